"""The jobs of an experiment: what was submitted, kept in the experiment's folder.

What SLURM says of it, asked when needed.

experiments/<name>/slurm/<submission>/   job.sh and config.yaml as submitted, submission.json, the jobs' logs
experiments/<name>/slurm/run/<job>/      of a running job: Ray's logs by node, its token, how often it was
requeued
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import DamagedError
from harness.files import read_json, write_json
from harness.launch.slurm import JobState, Slurm

SUBMISSION, SCRIPT = "submission.json", "job.sh"
CANCELLED, OUTCOME, REQUEUES = "cancelled", "outcome.json", "requeues"


@dataclass(frozen=True)
class Submission:
    """One ``harness submit``.

    Attributes:
        job: SLURM's id; for an array, that of the array.
        tasks: Tasks of the array; 0 for one allocation.
        time: When, seconds since the epoch.
        assignments: Its ``--set`` items.
        folder: Name of its folder.
        user: Who submitted it.
        host: Where.
    """

    job: str
    tasks: int
    time: float
    assignments: Sequence[str]
    folder: str
    user: str
    host: str


@dataclass(frozen=True)
class ArrayTask:
    """One allocation, as a person wants to see it.

    Attributes:
        job: ``12``, or ``12_3``.
        state: SLURM's, or ``FORGOTTEN`` where it has forgotten the job, or ``UNKNOWN`` where it cannot be
            asked.
        detail: Why it waits, where it runs, how it ended.
        requeues: How often it has requeued itself.
        submission: From which submission.
    """

    job: str
    state: str
    detail: str
    requeues: int
    submission: str


def folder_of(experiment: Path) -> Path:
    """Where an experiment's jobs are kept."""
    return experiment / "slurm"


def record(folder: Path, submission: Submission) -> None:
    """Write a submission down."""
    write_json(folder / SUBMISSION, asdict(submission))


def submissions(experiment: Path) -> list[Submission]:
    """All submissions of an experiment, the oldest first."""
    found = []
    for path in folder_of(experiment).glob(f"*/{SUBMISSION}"):
        with contextlib.suppress(DamagedError, TypeError):
            found.append(Submission(**read_json(path)))
    return sorted(found, key=lambda item: item.time)


def tasks(experiment: Path, slurm: Slurm) -> list[ArrayTask]:
    """All allocations of an experiment with their states; SLURM is asked once.

    Raises:
        SlurmError: SLURM does not answer.
    """
    known = submissions(experiment)
    states = slurm.states([item.job for item in known], experiment.name) if known and slurm.here() else None
    found = []
    for item in known:
        seen = (states or {}).get(item.job)
        if seen:
            found += [_task(experiment, state, item) for state in sorted(seen, key=_order)]
        else:
            names = [f"{item.job}_{task}" for task in range(item.tasks)] or [item.job]
            state = "UNKNOWN" if states is None else "FORGOTTEN"
            found += [
                ArrayTask(name, state, _ended(experiment, name), _requeues(experiment, name), item.folder)
                for name in names
            ]
    return found


def _order(state: JobState) -> tuple[str, int]:
    job, _, task = state.job.partition("_")
    return job, int(task) if task.isdigit() else -1


def _task(experiment: Path, state: JobState, submission: Submission) -> ArrayTask:
    if state.state == "RUNNING":
        detail = f"on {state.nodes}, {state.elapsed} of {state.limit}"
    elif state.state == "PENDING":
        starts = f", not before {state.start}" if state.reason == "BeginTime" else ""
        detail = f"{state.reason}{starts}"
    else:
        detail = _ended(experiment, state.job) or ("" if state.reason == "None" else state.reason)
        log = folder_of(experiment) / submission.folder / f"{state.job}.log"
        if state.state == "FAILED" and not log.exists():
            detail = f"ended before it could write its log; do the compute nodes see {experiment}?"
    return ArrayTask(state.job, state.state, detail, _requeues(experiment, state.job), submission.folder)


def run_folder(experiment: Path, job: str) -> Path:
    """Where a job keeps what it needs while it runs."""
    return folder_of(experiment) / "run" / job


def write_outcome(folder: Path, reason: str, text: str) -> None:
    """Write down how a run ended: ``done``, ``stopped`` or ``idle``, and a line for people."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / OUTCOME, {"reason": reason, "text": text})


def read_requeues(folder: Path) -> tuple[int, int]:
    """How often a job has requeued itself, and after how many short runs in a row."""
    with contextlib.suppress(OSError, ValueError):
        done, short = (folder / REQUEUES).read_text().split()
        return int(done), int(short)
    return 0, 0


def _requeues(experiment: Path, job: str) -> int:
    return read_requeues(run_folder(experiment, job))[0]


def _ended(experiment: Path, job: str) -> str:
    """How a job's last run ended, in its own words."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        outcome: dict[str, Any] = json.loads((run_folder(experiment, job) / OUTCOME).read_text())
        return str(outcome["text"])
    return ""
