"""What jobs do and how they are ended, without a SLURM: programs that stand for SLURM's write down what they
are asked."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from harness.ending import OWNER, claimed, clear_abandoned, namespace
from harness.errors import InputError
from harness.launch import allocation, batch, node
from harness.launch.allocation import Allocation, RayInAllocation
from harness.launch.doctor.checks import scratch
from harness.launch.jobs import CANCELLED, REQUEUES, SCRIPT, Submission, read_requeues, record
from harness.launch.options import Options, make_options, read_site
from harness.launch.processes import make_private
from harness.launch.render import Job, render
from harness.launch.slurm import WAITS_S, Slurm, SlurmError
from harness.launch.submit import cancel

ALLOCATION = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_CPUS_PER_NODE": "2",
    "SLURMD_NODENAME": "n1",
    "SLURM_CLUSTER_NAME": "lab",
}
ANSWERS = '[ "$1 $2" = "show hostnames" ] && { echo n1; exit; }\n[ "$1" = show ] && exit\n'
"""What ``scontrol`` says of nodes and settings; not of what a job asks it to do."""


class Place:
    """A job's folders, and a PATH on which SLURM's programs are scripts."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.asked, self.tmp = folder / "bin", folder / "asked", folder / "tmp"
        self.submission = folder / "root" / "experiments" / "x" / "slurm" / "one"
        self.run = self.submission.parent / "run" / "17"
        for made in (self.programs, self.submission):
            made.mkdir(parents=True)
        (self.submission / SCRIPT).touch()
        self.program("scontrol")
        self.program("scancel")

    def program(self, name: str, answer: str = "exit 0") -> None:
        """Let one of SLURM's programs be a script, in shell."""
        path = self.programs / name
        path.write_text(f'#!/bin/bash\n{ANSWERS}echo "{name} $*" >>{self.asked}\n{answer}\n')
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        ours = {"PATH": f"{self.programs}:{os.environ['PATH']}", "HARNESS_TMP": str(self.tmp)}
        return {**os.environ, **ALLOCATION, **ours}

    def batch(
        self, *command: str, signal_s: int = 60, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a job's own process on a command."""
        words = ["--folder", str(self.submission), "--max-requeues", "5", "--signal-s", str(signal_s), "--"]
        return subprocess.run(
            [sys.executable, "-P", "-m", "harness.launch.batch", *words, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**self.environment, **environment},
        )

    def requests(self) -> list[str]:
        """What SLURM was asked to do, in order."""
        return self.asked.read_text().splitlines() if self.asked.exists() else []


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- what a job imports -------------------------------------------------------------------------------------

BESIDE = ("argparse", "ctypes", "datasets", "evaluate", "psutil", "random", "shutil", "typer")


def _agents(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a job runs on each of its nodes: the harness's own, and Ray's."""
    started: list[Any] = []

    def start(command: Any, **_: Any) -> Any:
        started.append(command)
        raise InterruptedError

    monkeypatch.setattr(allocation, "kill_wait", lambda: 30.0)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("HARNESS_TMP", "/tmp")
    with pytest.raises(InterruptedError):
        RayInAllocation(Allocation("17", "17", "lab", ("n1",), (2,), 0, 0, 0), tmp / "ray", lambda: False)
    monkeypatch.undo()
    agent = started[0][started[0].index(sys.executable) :]
    named = argparse.Namespace(head="127.0.0.1:9", is_head=True, tmp=tmp, cpus=1, gpus=0, memory=0)
    return [agent, node._command(named)]


def test_no_file_beside_a_study_is_imported(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job runs in the folder from which it was submitted, and what lies there may be called like a module
    of Python or of a library."""
    study, mark = tmp_path / "study", tmp_path / "imported"
    study.mkdir()
    for name in BESIDE:
        (study / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")
    job = Job("x", place.submission, tmp_path / "root", study, sys.executable, 2, 60, (), {})
    done = subprocess.run(
        ["bash"],
        input=render(job, Options()),
        capture_output=True,
        text=True,
        check=False,
        cwd=study,
        env=place.environment,
    )
    assert not mark.exists(), mark.read_text()
    assert done.returncode == 2 and "config.yaml" in done.stderr, done.stderr
    for command in _agents(tmp_path, monkeypatch):
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, cwd=study)
        assert not mark.exists(), mark.read_text()
        assert done.returncode == 0, done.stderr


def test_modules_are_run_without_the_current_folder() -> None:
    """Whatever runs a module of the harness: its own program does not look there either."""
    runs = re.compile(r'sys\.executable,(?!\s*"-P")[^\]]*"-m"')
    found = [path.name for path in (ROOT / "harness").rglob("*.py") if runs.search(path.read_text())]
    assert not found


# --- back into the queue ------------------------------------------------------------------------------------

STOPPED = ("bash", "-c", "exit 75")
"""A run that ends with work left."""
ENDED = -signal.SIGTERM
BUSY = "echo 'Socket timed out on send/recv operation' >&2; exit 1"
END_IT = "kill $PPID"
"""What SLURM does to a job that goes back into the queue, or is cancelled."""


def first(once: str, then: str) -> str:
    """An answer that another one follows."""
    return f'[ -e "$0.asked" ] || {{ touch "$0.asked"; {once}; }}\n{then}'


def test_a_busy_controller_is_asked_for_a_requeue_again(place: Place) -> None:
    place.program("scontrol", first(BUSY, END_IT))
    done = place.batch(*STOPPED)
    assert done.returncode == ENDED, done.stdout + done.stderr
    assert place.requests() == ["scontrol requeue 17"] * 2
    assert "stopped with work left; requeued (1 of at most 5)" in done.stdout
    assert "not requeued" not in done.stdout
    assert (place.run / REQUEUES).read_text() == "1 1"


def test_a_requeue_whose_answer_was_lost_is_one(place: Place) -> None:
    over = "echo 'Job/step already completing or completed' >&2; exit 1"
    over = f"(sleep 0.2; {END_IT}) >/dev/null 2>&1 & {over}"
    place.program("scontrol", first(BUSY, over))
    done = place.batch(*STOPPED)
    assert done.returncode == ENDED and "not requeued" not in done.stdout, done.stdout + done.stderr
    assert (place.run / REQUEUES).read_text() == "1 1"


@pytest.mark.parametrize(
    "answer, tries, reason",
    [
        (BUSY, 2, "scontrol: Socket timed out on send/recv operation"),
        (
            "echo 'Requested operation is presently disabled' >&2; exit 1",
            1,
            "scontrol: Requested operation is presently disabled",
        ),
    ],
)
def test_a_requeue_in_vain_is_said(place: Place, answer: str, tries: int, reason: str) -> None:
    """Asked for as long as the job has; the count is of those that were."""
    place.program("scontrol", answer)
    at = time.monotonic()
    done = place.batch(*STOPPED, signal_s=4, HARNESS_SIGNALLED="1")
    assert time.monotonic() - at < 30 and done.returncode == 75, done.stdout + done.stderr
    assert 1 <= len(place.requests()) <= tries
    assert f"not requeued, as SLURM does not do it: {reason}; submit again" in done.stdout
    assert (place.run / REQUEUES).read_text() == "0 0"


def test_how_long_slurm_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = batch._Batch(Allocation("17", "17", "lab", ("n1",), (2,), 0, 0, 0), tmp_path, 5, 60.0, tmp_path)
    for ends_in, expected in ((None, batch.PATIENCE_S), (9000, batch.PATIENCE_S), (100, 98.0), (-5, 600.0)):
        if ends_in is not None:
            monkeypatch.setenv(batch.END_TIME, str(int(time.time()) + ends_in))
        assert expected - 10 < job._left() <= expected, "what is over has been put off"
    job.told_at = time.monotonic() - 20
    assert 30 < job._left() <= 38, "the limit comes near, or a preemption"


def test_a_busy_controller_is_asked_to_cancel_again(place: Place) -> None:
    place.run.mkdir(parents=True)
    (place.run / CANCELLED).touch()
    place.program("scancel", first(BUSY, END_IT))
    done = place.batch("bash", "-c", "echo it has run")
    assert done.returncode == ENDED and place.requests() == ["scancel 17"] * 2
    assert "cancelled, so it is not requeued" in done.stdout and "it has run" not in done.stdout


# --- folders that a node cannot give ------------------------------------------------------------------------


def test_a_node_with_a_bad_folder_is_said_and_left(place: Place) -> None:
    """Another node may be fine; what the job says is one line."""
    place.program("scontrol", END_IT)
    place.tmp.touch()
    done = place.batch(*STOPPED, HARNESS_TMP=str(place.tmp / "fast"))
    assert done.returncode == ENDED, done.stdout + done.stderr
    assert done.stderr == f"error: node n1: {place.tmp}/fast: Not a directory\n"
    assert place.requests() == ["scontrol requeue 17"]
    assert "the run could not begin on this node; requeued (1 of at most 5)\n" in done.stdout
    assert (place.run / REQUEUES).read_text() == "1 1"


def test_requeues_that_cannot_be_counted_are_few(place: Place) -> None:
    """SLURM's own count stands for the job's, so that it does not come back for ever."""
    place.program("scontrol", END_IT)
    place.run.parent.touch()
    done = place.batch(*STOPPED)
    assert done.returncode == ENDED, done.stdout + done.stderr
    assert done.stderr == f"error: node n1: {place.run}: Not a directory\n"
    assert f"requeued (1 of at most 5), which cannot be counted: {place.run}/{REQUEUES}: Not" in done.stdout
    place.run.parent.unlink()
    (place.run / REQUEUES).mkdir(parents=True)
    done = place.batch(*STOPPED, SLURM_RESTART_COUNT="2")
    assert done.returncode == 75 and not done.stderr, done.stderr
    assert "work left; not requeued, as that cannot be counted (" in done.stdout
    assert ") and SLURM has restarted it 2 times already: submit again\n" in done.stdout
    assert place.requests() == ["scontrol requeue 17"], "of the first"


def test_a_full_disk_loses_no_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    job = batch._Batch(Allocation("17", "17", "lab", ("n1",), (2,), 0, 0, 0), tmp_path, 5, 60.0, tmp_path)
    assert job._count(2, 0) == "" and read_requeues(tmp_path) == (2, 0)
    monkeypatch.setattr(os, "fsync", full)
    assert job._count(3, 1) == f"{tmp_path}/{REQUEUES}: No space left on device"
    assert read_requeues(tmp_path) == (2, 0)
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        make_private(tmp_path / "h17-0b")
    assert not (tmp_path / "h17-0b").exists(), "nobody would know whose it is"


# --- cancel -------------------------------------------------------------------------------------------------


@pytest.fixture
def cancelled(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """`cancel` of an experiment with two running jobs and one that waits; what ``scancel`` was asked."""
    states = {"12": "RUNNING", "13": "RUNNING", "14": "PENDING"}
    lines = [f"{job}|{job}|{state}|None|n1|1:00|1:00:00|N/A" for job, state in states.items()]
    place.program("squeue", "\n".join(f"echo '{line}'" for line in lines))
    place.program("sbatch")
    for job in states:
        (place.submission.parent / job).mkdir()
        record(place.submission.parent / job, Submission(job, 0, float(job), [], job, "ada", "login"))
    monkeypatch.setenv("PATH", place.environment["PATH"])

    def call() -> list[str]:
        found = cancel(place.submission.parents[1], Slurm(sleep=lambda _: None), (), False)
        assert [task.job for task in found] == list(states)
        return signals()

    def signals() -> list[str]:
        return [line for line in place.requests() if "--signal" in line]

    return call


ALL = "scancel --batch --signal=USR1 12 13"


def test_a_busy_controller_is_asked_to_signal_again(place: Place, cancelled: Callable[[], list[str]]) -> None:
    place.program("scancel", f'[[ "$*" != *USR1* ]] || {{ {first(BUSY, "exit 0")}; }}')
    assert cancelled() == [ALL] * 2
    assert "scancel 14" in place.requests()


def test_jobs_that_are_not_reached_are_named(place: Place, cancelled: Callable[[], list[str]]) -> None:
    place.program("scancel", f'[[ "$*" != *USR1* ]] || {{ {BUSY}; }}')
    with pytest.raises(SlurmError) as caught:
        cancelled()
    assert str(caught.value).startswith("not reached: 12, 13 (scancel: Socket timed out")
    assert str(caught.value).endswith("; all else is cancelled: cancel again, or with --now")
    assert "scancel 14" in place.requests()
    assert place.requests().count(ALL) == len(WAITS_S) + 1


OVER = "scancel: error: Kill job error on job id 12: Invalid job id specified"
DENIED = "scancel: error: Kill job error on job id 13: Access/permission denied"


def refusing(place: Place, *reasons: str) -> None:
    """Let ``scancel`` refuse what it is asked of the jobs that these are about."""
    about = [(text.split()[8].rstrip(":"), text) for text in reasons]
    lines = [f"[[ ' '$*' ' = *' {job} '* ]] && {{ echo '{text}' >&2; s=1; }}" for job, text in about]
    place.program("scancel", "\n".join([*lines, "exit ${s:-0}"]))


def test_a_job_that_is_over_hides_no_other(place: Place, cancelled: Callable[[], list[str]]) -> None:
    refusing(place, OVER)
    cancelled()
    refusing(place, OVER, DENIED)
    with pytest.raises(SlurmError, match=r"^not reached: 13 \(scancel: .* 13: Access/permission denied"):
        cancelled()
    slurm = Slurm(sleep=lambda _: None)
    slurm.cancel(["12", "14"])
    with pytest.raises(SlurmError, match=r"^not cancelled: 13 \(.*13: Access/permission denied\)$"):
        slurm.cancel(["12", "13", "14"])
    refusing(place, DENIED.replace("13", "14"))
    with pytest.raises(SlurmError, match=r"^not cancelled: 14 \(.*denied\); all else is cancelled"):
        cancelled()
    assert place.requests()[-2] == ALL, "those that run hear it all the same"


# --- options of sbatch's ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option, reason",
    [
        ("--job-name=x", "--job-name: jobs are found by the experiment's name"),
        ("--job-na=x", "--job-name: jobs are"),
        ("--job-name x", "--job-name: jobs are"),
        ("-J x", "--job-name: jobs are"),
        ("-Jx", "--job-name: jobs are"),
        ("--no-requeue", "--no-requeue: give max_requeues in a site file, or --max-requeues"),
        ("--signal=B:USR1@10", "--signal: give signal_s in a site file, or --signal-s"),
        ("--output=log", "--output: logs lie with the submission"),
        ("-e log", "--error: logs lie with the submission"),
        ("--chdir=/", "--chdir: jobs run where"),
        ("--nodes=4", "--nodes: give nodes in a site file, or --nodes"),
        ("-N4", "--nodes: give nodes"),
        ("--time=1", "--time: give time"),
        ("--mem=1G", "--mem: give mem"),
        ("--cpus-per-task=3", "--cpus-per-task: give cpus_per_node in a site file, or --cpus-per-node"),
        ("--array=0-3", "--array: give array"),
        ("--partition=gpu", "--partition: give partition"),
        ("--wait", "--wait: the job's id is read"),
        ("--test-only", "--test-only: `harness submit --dry-run` shows the script"),
        ("--wrap=ls", "--wrap: the job"),
        ("--parsable", "--parsable: the job"),
    ],
)
def test_options_that_the_harness_sets_are_refused(tmp_path: Path, option: str, reason: str) -> None:
    """They would come to nothing, or overrule what was checked, or hide the jobs."""
    wanted = (
        f"extra: found {option!r}, allowed: --name or --name=value, one word each, of what the harness does"
    )
    (tmp_path / "site.yaml").write_text(f"nodes: 1\nextra: [--nice=1, '{option}']\n")
    with pytest.raises(InputError) as caught:
        read_site(tmp_path / "site.yaml")
    assert f"site.yaml:2: {wanted} not set itself ({reason}" in str(caught.value)
    with pytest.raises(InputError) as caught:
        make_options({}, {"extra": [option]})
    assert str(caught.value).startswith(wanted.replace("extra", "--sbatch", 1))


def test_every_line_of_a_script_is_refused_as_an_extra(tmp_path: Path) -> None:
    everything = Options(
        **dict.fromkeys(("partition", "account", "qos", "reservation", "constraint", "dependency"), "x"),
        **{"array": "2", "gpus_per_node": "1", "mem": "1G", "time": "60"},
    )
    job = Job("x", tmp_path, tmp_path, tmp_path, sys.executable, 2, 60, (), {})
    lines = re.findall(r"^#SBATCH (\S+)$", render(job, everything), re.MULTILINE)
    assert len(lines) == 19
    for line in lines:
        with pytest.raises(InputError, match="of what the harness does not set itself"):
            make_options({}, {"extra": [line]})


def test_other_options_go_to_sbatch() -> None:
    others = ("--comment=x", "--nice=9", "--export=NONE", "--nodelist=n1", "--exclude=n2", "--time-min=60")
    others += ("--gres=tmp:1", "--mem-per-gpu=9G", "--exclusive=user", "--gpus=4", "--wait-all-nodes=1")
    assert make_options({}, {"extra": others}).extra == others


@pytest.mark.parametrize("printed", ["", "sbatch: Job 12 to start at once"])
def test_an_answer_without_a_jobs_id(place: Place, monkeypatch: pytest.MonkeyPatch, printed: str) -> None:
    place.program("sbatch", f"echo '{printed}'")
    monkeypatch.setenv("PATH", place.environment["PATH"])
    with pytest.raises(SlurmError, match=f"^sbatch: it has printed no job's id, but '{printed}'$"):
        Slurm().submit("#!/bin/bash\n")
    place.program("sbatch", "echo 'a line of the site'; echo '12;lab'")
    assert Slurm().submit("#!/bin/bash\n") == "12"


# --- folders of one process ---------------------------------------------------------------------------------


def test_live_folders_of_other_containers_stay(tmp_path: Path) -> None:
    """They may share a /tmp, or a store, and see nothing of each other's processes."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    with claimed(tmp_path, "hr-") as mine:
        pid, started, space = (mine / OWNER).read_text().split(" ")
        assert (int(pid), space) == (os.getpid(), namespace()) and mine.name.startswith(f"hr-{pid}-")
        assert stat.S_IMODE(mine.stat().st_mode) == 0o700
        noted = {
            f"{gone.pid}-dead": f"{gone.pid} {started} {space}",
            f"{pid}-again": f"{pid} 1 {space}",
            f"{gone.pid}-theirs": f"{gone.pid} {started} pid:[1]",
            f"{gone.pid}-earlier": "",
            f"{pid}-earlier": "",
        }
        for name, owner in noted.items():
            (tmp_path / f"hr-{name}").mkdir()
            if owner:
                (tmp_path / f"hr-{name}" / OWNER).write_text(owner)
        clear_abandoned(tmp_path, "hr-")
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {mine.name, f"hr-{gone.pid}-theirs", f"hr-{pid}-earlier"}
    assert not mine.exists()


def test_what_others_may_remove_says_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment in which it has its name."""
    from harness.tracking.staging import staged

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with staged(tmp_path / "wandb") as place:
        assert (place / OWNER).exists()
    with scratch(tmp_path) as folder:
        assert (folder / OWNER).exists()
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"), claimed(tmp_path, "hr-"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"wandb"} and not list(
        (tmp_path / "wandb").iterdir()
    )
