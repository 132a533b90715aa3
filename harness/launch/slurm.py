"""SLURM's commands.

One call for many jobs, a time limit on each, and patience with a controller that is busy.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

from harness.errors import HarnessError, InputError
from harness.terminal import listed, shown

CALL_S, SIGNAL_S = 60.0, 20.0
NO_ANSWER = "no answer within"
WAITS_S = (1.0, 3.0, 9.0)
"""Pauses between tries of a call that the controller did not answer."""
_BUSY = re.compile(
    r"unable to contact slurm controller|socket timed out|connection (refused|timed "
    r"out|reset)|slurm_load_\w+ error: unable|"
    r"temporarily|try again|zero bytes",
    re.IGNORECASE,
)
_LIVE = (
    "PENDING RUNNING SUSPENDED CONFIGURING COMPLETING REQUEUED REQUEUE_HOLD RESIZING SIGNALING STAGE_OUT "
    "STOPPED SPECIAL_EXIT"
)
LIVE = frozenset(_LIVE.split())
"""States of a job that may still compute."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"})
_NO_CLUSTER = re.compile(r"could not establish a configuration source", re.IGNORECASE)
_OVER = re.compile(r"invalid job id|already (completing|completed)", re.IGNORECASE)


class SlurmError(HarnessError):
    """SLURM refused a request, or does not answer.

    Attributes:
        output: What the command printed besides.
    """

    def __init__(self, message: str, output: str = "") -> None:
        """Keep the message, and what the command printed besides."""
        super().__init__(message)
        self.output = output


class NoClusterError(SlurmError, InputError):
    """SLURM's programs are installed, and no cluster is known here."""


_THEIRS = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SCANCEL_", "SCONTROL_")


@dataclass(frozen=True)
class Partition:
    """A partition, as ``sinfo`` shows it.

    Attributes:
        name: Its name.
        default: Jobs that name none go here.
        time_s: Its time limit; None for none.
        default_s: The limit of jobs that ask for none; None for `time_s`.
        nodes: How many nodes it has.
        cpus: CPUs of its largest node.
        memory: MiB of its largest node.
        gpus: GPUs of its largest node.
    """

    name: str
    default: bool
    time_s: int | None
    default_s: int | None
    nodes: int
    cpus: int
    memory: int
    gpus: int


@dataclass(frozen=True)
class JobState:
    """A job, or a task of an array, as ``squeue`` shows it."""

    job: str
    state: str
    reason: str
    nodes: str
    elapsed: str
    limit: str
    start: str


@dataclass
class Slurm:
    """The controller.

    Attributes:
        run: Runs a command; replaced in tests of what happens when the controller is busy.
        sleep: Waits.
    """

    run: Callable[..., subprocess.CompletedProcess[str]] = field(default=subprocess.run)
    sleep: Callable[[float], None] = time.sleep

    @staticmethod
    def here() -> bool:
        """Whether this machine has SLURM's commands."""
        return shutil.which("sbatch") is not None and shutil.which("squeue") is not None

    def call(
        self,
        *command: str,
        text: str | None = None,
        again: bool = True,
        limit_s: float = CALL_S,
        patience_s: float | None = None,
    ) -> str:
        """Run one of SLURM's commands; returns what it prints.

        Args:
            command: The command.
            text: Its standard input.
            again: Ask again, after longer and longer pauses, while the controller does not answer. Not for
                what must not be done twice.
            limit_s: Seconds for one try.
            patience_s: Seconds for all tries, as many as there is time for; when None, three more than one.

        Raises:
            InputError: SLURM is not installed here, or belongs to no cluster.
            SlurmError: The command failed.
        """
        output, deadline = "", None if patience_s is None else time.monotonic() + patience_s
        for number in itertools.count():
            if deadline is not None:
                limit_s = min(limit_s, max(1.0, deadline - time.monotonic()))
            try:
                # Always with an input of its own: srun would read what is meant for whoever called this.
                done = self.run(
                    command,
                    input=text or "",
                    capture_output=True,
                    text=True,
                    timeout=limit_s,
                    check=False,
                    env=_own_environment(),
                )
            except FileNotFoundError:
                raise InputError(
                    f"this is not a SLURM machine: there is no {command[0]}; run this on the cluster's login "
                    "node"
                ) from None
            except subprocess.TimeoutExpired:
                problem = f"{NO_ANSWER} {limit_s:.0f} s"
            else:
                if done.returncode == 0:
                    return done.stdout
                problem, output = " ".join(done.stderr.split()) or f"exit code {done.returncode}", done.stdout
                if _NO_CLUSTER.search(problem):
                    raise NoClusterError(
                        f"this is not a SLURM machine: {command[0]} finds no configuration of a cluster; run "
                        "this on the cluster's login node, or let SLURM_CONF name its slurm.conf"
                    )
                if not _BUSY.search(problem):
                    break
            pause = WAITS_S[min(number, len(WAITS_S) - 1)]
            late = number >= len(WAITS_S) if deadline is None else time.monotonic() + pause >= deadline
            if late or not again:
                break
            self.sleep(pause)
        raise SlurmError(f"{command[0]}: {problem}", output)

    def partitions(self) -> dict[str, Partition]:
        """All partitions, by name."""
        found: dict[str, Partition] = {}
        for line in self.call("sinfo", "-h", "-a", "-o", "%P|%l|%L|%D|%c|%m|%G").splitlines():
            name, limit, default, nodes, cpus, memory, gres = line.split("|")
            sizes = (int(nodes), _number(cpus), _number(memory), _gpus(gres))
            item = Partition(name.rstrip("*"), name.endswith("*"), _limit(limit), _limit(default), *sizes)
            known = found.get(item.name)
            if known is not None:  # nodes of several sizes: one line each
                largest = (max(getattr(known, key), getattr(item, key)) for key in ("cpus", "memory", "gpus"))
                item = Partition(
                    item.name, item.default, item.time_s, item.default_s, known.nodes + item.nodes, *largest
                )
            found[item.name] = item
        return found

    def submit(self, script: str, *arguments: str) -> str:
        """Submit a job script; returns the job's id.

        Raises:
            SlurmError: SLURM refused it, or does not say which job it is.
        """
        printed = self.call("sbatch", "--parsable", *arguments, text=script, again=False)
        last = (printed.strip().splitlines() or [""])[-1].partition(";")[0]
        if not last.isdecimal():
            raise SlurmError(f"sbatch: it has printed no job's id, but {shown(printed.strip())}")
        return last

    def states(self, jobs: Collection[str], name: str) -> dict[str, list[JobState]]:
        """The states of jobs, by the id under which they were submitted, one entry per task.

        One call for all of them.

        Jobs that SLURM has forgotten (it does, some minutes after their end) are absent.

        Args:
            jobs: Their ids.
            name: The name that all of them have.
        """
        if not jobs:
            return {}
        # By name, not by id: to ask for one id that is forgotten is an error.
        lines = self.call(
            "squeue", "-h", "-a", "-r", "-t", "all", f"--name={name}", "-o", "%F|%i|%T|%r|%N|%M|%l|%S"
        ).splitlines()
        found: dict[str, list[JobState]] = {}
        for line in lines:
            submitted, *rest = line.split("|")
            if submitted in jobs:
                found.setdefault(submitted, []).append(JobState(*rest))
        return found

    def running(self) -> set[str]:
        """All jobs and tasks of this user that have begun and not ended."""
        begun = "RUNNING,SUSPENDED,STOPPED,COMPLETING,CONFIGURING,SIGNALING,STAGE_OUT,RESIZING"
        return set(
            self.call("squeue", "-h", "-a", "-r", "-u", str(os.getuid()), "-t", begun, "-o", "%i").split()
        )

    def cancel(self, jobs: Sequence[str]) -> None:
        """End jobs at once; SLURM sends SIGTERM, then SIGKILL. A job that has ended meanwhile is no error.

        Raises:
            SlurmError: Names the jobs that SLURM has not ended, and says why.
        """
        if failed := self._scancel(jobs, limit_s=CALL_S):
            raise SlurmError(f"not cancelled: {listed(list(failed), 20)} ({next(iter(failed.values()))})")

    def signal(self, jobs: Sequence[str], name: str) -> dict[str, str]:
        """Send a signal to the batch processes of running jobs; some may get it twice.

        Returns:
            Which have not got it, and why; a job that has ended meanwhile needs none.
        """
        return self._scancel(jobs, "--batch", f"--signal={name}", limit_s=SIGNAL_S)

    def _scancel(self, jobs: Sequence[str], *options: str, limit_s: float) -> dict[str, str]:
        """``scancel`` for many jobs; for each by itself where SLURM refuses something about one of them.

        Returns:
            The jobs for which it has failed, and why; none of those that are over.
        """
        if not jobs:
            return {}
        try:
            self.call("scancel", *options, *jobs, limit_s=limit_s)
            return {}
        except SlurmError as error:
            reason = str(error)
        if _unanswered(reason):
            return dict.fromkeys(jobs, reason)
        if len(jobs) == 1:
            return {} if _OVER.search(reason) else {jobs[0]: reason}
        found: dict[str, str] = {}
        for number, job in enumerate(jobs):
            found |= self._scancel([job], *options, limit_s=limit_s)
            if job in found and _unanswered(found[job]):
                return found | dict.fromkeys(jobs[number:], found[job])
        return found


def _unanswered(reason: str) -> bool:
    """Whether a call failed because the controller did not answer it."""
    return NO_ANSWER in reason or _BUSY.search(reason) is not None


def _own_environment() -> dict[str, str]:
    """The environment without what would change what is asked.

    Sizes of an allocation that this is in, a user's own filters.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_THEIRS) or name == "SLURM_CONF"
    }


def _limit(text: str) -> int | None:
    from harness.launch.options import parse_time

    try:
        return parse_time(text)
    except ValueError:
        return None


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found[0]) if found else 0


def _gpus(gres: str) -> int:
    """GPUs in SLURM's ``gpu:a100:8(S:0-1),shard:4``; a type may look like a number."""
    items = [item.split(":") for item in re.sub(r"\([^)]*\)", "", gres).split(",")]
    return sum(_number(item[-1]) for item in items if item[0] == "gpu" and len(item) > 1)
