"""The process that a job script becomes.

Runs the harness, hands signals on, and decides whether the job goes back into the queue.

It is a process of its own, apart from the run, because a run can end in ways that let it decide nothing:
killed for memory, or with its Ray. Its rules:

- USR1 (the time limit comes near, or a preemption with grace): the run saves and ends; with work left the job
  is requeued. A run
  that does not end in time is killed and the job requeued all the same: SLURM itself requeues no job that has
  reached its limit.
- TERM (scancel, preemption, a requeue from outside): SLURM has decided already; save what can be saved, leave
  nothing behind.
- The run ends by itself with work left, is killed, or ends in an error before it could say how: the machine's
  fault; requeue.
- Complete, failed chains, wrong input: the exit code says so, nothing is requeued.

A job requeues itself a set number of times at most, and not at all once it was cancelled, or where short runs
end badly one after the other: a job that cannot even start Ray would otherwise come back every few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness import terminal
from harness.errors import HarnessError, InputError
from harness.files import write_atomic
from harness.launch.allocation import Allocation, kill_wait, read_allocation
from harness.launch.jobs import CANCELLED, OUTCOME, REQUEUES, SCRIPT, read_requeues
from harness.launch.processes import adopt_orphans, end_tree, leave_janitor, make_private, sweep
from harness.launch.slurm import Slurm, SlurmError

COMPLETE, FAILED, INPUT, STOPPED = 0, 1, 2, 75
LOOK_S = 0.1
SIGNALLED = "HARNESS_SIGNALLED"
"""Set by the script where USR1 came before this process was there."""
SAVE_MARGIN_S = 20.0
"""Of the time between USR1 and the limit, kept for ending what does not end by itself, and for the
requeue."""
KILL_MARGIN_S = 3.0
"""Of SLURM's KillWait, kept for cleaning up."""
END_WAIT_S = 60.0
ASK_S, PATIENCE_S = 30.0, 600.0
"""Seconds that SLURM may take for one answer, and for which it is asked again where no limit comes near."""
LIMIT_MARGIN_S = 2.0
"""Before the limit, when to ask no more: what has become of it is yet to be said."""
END_TIME = "SLURM_JOB_END_TIME"
"""When the limit is reached, in seconds since the epoch, where SLURM says so."""
_ON_ITS_WAY = re.compile(r"already|pending execution", re.IGNORECASE)
"""What is said of a job that an earlier request has put back, whose answer was lost, or that is ended."""
SHORT_S, MOST_SHORT = 300.0, 3
"""A run that ends by itself within so many seconds has got nowhere; that often in a row, and the job gives
up."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the harness in this job; the exit code is the run's."""
    options, command = _parser().parse_known_args(arguments)
    try:
        allocation = read_allocation(os.environ)
        if not os.path.exists(options.folder / SCRIPT):  # nor where the node's file system gives errors
            raise InputError(
                f"--root: {options.folder} is not to be seen on node {allocation.nodes[0]}; give a root that "
                "all nodes share"
            )
    except InputError as error:
        terminal.show(f"error: {error}", sys.stderr)
        return INPUT
    folder = options.folder.parent / "run" / allocation.job
    batch = _Batch(allocation, folder, options.max_requeues, options.signal_s, options.folder / SCRIPT)
    return batch.run([argument for argument in command if argument != "--"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.launch.batch", allow_abbrev=False)
    parser.add_argument("--folder", type=Path, required=True, help="the submission's folder in the store")
    parser.add_argument("--max-requeues", type=int, required=True)
    parser.add_argument(
        "--signal-s", type=float, required=True, help="seconds between USR1 and the time limit"
    )
    return parser


class _Batch:
    """One run of one job."""

    def __init__(
        self, allocation: Allocation, folder: Path, max_requeues: int, signal_s: float, script: Path
    ) -> None:
        self.allocation, self.folder, self.max_requeues, self.script = (
            allocation,
            folder,
            max_requeues,
            script,
        )
        self.signal_s, self.save_s = signal_s, max(signal_s - SAVE_MARGIN_S, signal_s / 2)
        self.signals: list[int] = []
        self.started, self.told_at, self.ended_at = time.monotonic(), 0.0, 0.0
        self.tmp = Path(f"{allocation.tmp}b")
        self.driver: subprocess.Popen[bytes] | None = None

    def run(self, command: list[str]) -> int:
        trouble = self._make_folders()
        adopt_orphans()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heard)
        if os.environ.pop(SIGNALLED, ""):
            self._heard(signal.SIGUSR1, None)
        self._say(f"on {', '.join(self.allocation.nodes)}, requeued {self.allocation.restarts} times so far")
        if trouble:
            terminal.show(f"error: {trouble}", sys.stderr)
            return self._go_back("the run could not begin on this node")
        wait = kill_wait()
        try:
            if os.path.exists(self.folder / CANCELLED):
                return self._cancelled("it starts again after it was cancelled")
            own = {
                "TMPDIR": self.tmp,
                "HARNESS_INCARNATION": self.allocation.incarnation,
                "HARNESS_ERRORS": self.folder,
            }
            self.driver = subprocess.Popen(
                command, env={**os.environ, **{name: str(value) for name, value in own.items()}}
            )
            for early in list(self.signals):  # those that came before there was a run to hand them to
                self._pass_on(early)
            code = self._await(self.driver, wait)
        finally:
            end_tree(patience_s=1.0 if self.ended_at else 10.0)
            shutil.rmtree(self.tmp, ignore_errors=True)
        return self._decide(code)

    def _make_folders(self) -> str:
        """Make the job's folders.

        Returns:
            What this node has against it; another one may not.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._forget_others()
            self.tmp.parent.mkdir(parents=True, exist_ok=True)
            sweep("h[0-9]*", self.tmp.parent)
            make_private(self.tmp)
            leave_janitor(self.tmp)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            return f"node {self.allocation.nodes[0]}: {where}{error.strerror or error}"
        return ""

    def _forget_others(self) -> None:
        """Notes that are older than the job's script are of a job that had its number before.

        Clusters are set up anew.
        """
        (self.folder / OUTCOME).unlink(missing_ok=True)
        for name in (CANCELLED, REQUEUES):
            with contextlib.suppress(OSError):
                if (self.folder / name).stat().st_mtime < self.script.stat().st_mtime:
                    (self.folder / name).unlink()

    def _heard(self, number: int, _: object) -> None:
        self.signals.append(number)
        if number == signal.SIGUSR1:
            self.told_at = self.told_at or time.monotonic()
        else:
            self.ended_at = self.ended_at or time.monotonic()
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if self.driver is not None and self.driver.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.driver.send_signal(number)

    def _await(self, driver: subprocess.Popen[bytes], wait: float) -> int:
        """Wait for the run, but after a signal not longer than there is time to still clean up."""
        while driver.poll() is None:
            now = time.monotonic()
            late = self.ended_at and now - self.ended_at > max(1.0, wait - KILL_MARGIN_S)
            if late or (self.told_at and now - self.told_at > self.save_s):
                driver.kill()
            time.sleep(LOOK_S)
        assert driver.returncode is not None
        return driver.returncode

    def _decide(self, code: int) -> int:
        outcome = self._outcome()
        if code in (COMPLETE, INPUT) or (code == FAILED and outcome == "done"):
            self._say(
                {COMPLETE: "complete", FAILED: "ended, with chains that failed", INPUT: "the input is wrong"}[
                    code
                ]
            )
            return code
        if outcome == "idle":
            self._say("others compute what is left; this job is not needed any more")
            return COMPLETE
        known = {STOPPED: "stopped with work left", FAILED: "the run ended in an error"}
        reason = known.get(code, f"the run was killed (exit code {code})")
        return self._go_back(reason)

    def _go_back(self, reason: str) -> int:
        """Back into the queue, unless somebody else has decided already what becomes of the job."""
        if os.path.exists(self.folder / CANCELLED):
            return self._cancelled(reason)
        if self.ended_at:
            self._say(f"{reason}; ended by SLURM, which decides whether it starts again")
            return STOPPED
        return self._requeue(reason)

    def _cancelled(self, reason: str) -> int:
        self._say(f"{reason}; cancelled, so it is not requeued")
        # so that SLURM shows it as cancelled, not as failed
        if trouble := self._end_by("scancel", self.allocation.job):
            self._say(f"SLURM will show it as failed: {trouble}")
        return STOPPED

    def _end_by(self, *command: str) -> str:
        """Have SLURM end this process.

        Were it to end by itself meanwhile, SLURM could take the job for failed after all.

        Returns:
            Why SLURM does not, where it is asked in vain.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            Slurm().call(*command, limit_s=ASK_S, patience_s=self._left())
        except HarnessError as error:
            if not isinstance(error, SlurmError) or not _ON_ITS_WAY.search(str(error)):
                return str(error)
        time.sleep(END_WAIT_S)
        return ""

    def _left(self) -> float:
        """Seconds for which SLURM can be asked."""
        now, ends = time.monotonic(), [PATIENCE_S]
        if self.told_at:
            ends.append(self.told_at + self.signal_s - now - LIMIT_MARGIN_S)
        elif os.environ.get(END_TIME, "").isdecimal():
            left = int(os.environ[END_TIME]) - time.time()
            ends += [left - LIMIT_MARGIN_S] if left > 0 else []  # else somebody has put it off
        return min(ends)

    def _outcome(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return str(json.loads((self.folder / OUTCOME).read_text())["reason"])
        return ""

    def _requeue(self, reason: str) -> int:
        done, short = read_requeues(self.folder)
        short = short + 1 if not self.signals and time.monotonic() - self.started < SHORT_S else 0
        if short >= MOST_SHORT:
            self._say(
                f"{reason}; {short} short runs in a row ended so, so it is not requeued: see the logs, then "
                "submit again"
            )
            return STOPPED
        if done >= self.max_requeues:
            self._say(
                f"{reason}; requeued {done} times already (--max-requeues), so no more: submit again to go on"
            )
            return STOPPED
        if (lost := self._count(done + 1, short)) and self.allocation.restarts + 1 >= MOST_SHORT:
            often = f"SLURM has restarted it {self.allocation.restarts} times already"
            self._say(f"{reason}; not requeued, as that cannot be counted ({lost}) and {often}: submit again")
            return STOPPED
        uncounted = f", which cannot be counted: {lost}" if lost else ""
        self._say(f"{reason}; requeued ({done + 1} of at most {self.max_requeues}){uncounted}")
        if trouble := self._end_by("scontrol", "requeue", self.allocation.job_id):
            self._count(done, short)
            self._say(f"not requeued, as SLURM does not do it: {trouble}; submit again to go on")
        return STOPPED

    def _count(self, done: int, short: int) -> str:
        """Write down how often the job has requeued itself, and after how many short runs; why not."""
        try:
            write_atomic(self.folder / REQUEUES, f"{done} {short}".encode())
        except OSError as error:
            return f"{self.folder / REQUEUES}: {error.strerror or error}"
        return ""

    def _say(self, text: str) -> None:
        terminal.show(f"{time.strftime('%Y-%m-%d %H:%M:%S')} job {self.allocation.job}: {text}")


if __name__ == "__main__":
    raise SystemExit(main())
