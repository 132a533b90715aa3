"""From options and a plan to a job in SLURM's queue, and the end of such jobs."""

from __future__ import annotations

import contextlib
import getpass
import re
import shutil
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import InputError
from harness.launch import jobs
from harness.launch.jobs import CANCELLED, ArrayTask, Submission
from harness.launch.options import Options
from harness.launch.render import Job, render
from harness.launch.slurm import LIVE, NO_ANSWER, WAITING, Slurm, SlurmError
from harness.launch.validate import Work, cpus_per_node, signal_s
from harness.terminal import listed, shown

LOOK_S = 15
"""Seconds that the look at a compute node may wait for one."""


class UnsureError(SlurmError):
    """A job may have been queued, or not."""


@dataclass(frozen=True)
class Request:
    """A submission that has passed its checks.

    Attributes:
        experiment: The experiment's folder in the store.
        root: The store.
        config: The configuration file.
        assignments: ``--set`` items.
        python: The interpreter that has the harness.
        variables: What jobs export: where the hub's cache is, and that there is no network.
        track: The file of the track that the study is of, if it is of one.
    """

    experiment: Path
    root: Path
    config: Path
    assignments: Sequence[str]
    python: str
    variables: Mapping[str, str]
    track: Path | None = None


def script(request: Request, options: Options, work: Work, folder: Path) -> str:
    """The job script of a submission whose files are kept in a folder."""
    job = Job(
        experiment=request.experiment.name,
        folder=folder,
        root=request.root,
        directory=Path.cwd(),
        python=request.python,
        cpus=cpus_per_node(work, options),
        signal_s=signal_s(work, options),
        # a track is copied beside the study, as it was when it was checked
        assignments=[*request.assignments, *(["track=track.yaml"] if request.track else [])],
        variables=request.variables,
    )
    return render(job, options)


def new_folder(experiment: Path) -> Path:
    """A name for a submission's folder that nobody has."""
    return jobs.folder_of(experiment) / f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def check_alone(experiment: Path, slurm: Slurm, join: bool) -> None:
    """Refuse a second submission of an experiment that has jobs, unless it is to join them.

    Raises:
        InputError: There are jobs.
    """
    live = [task for task in jobs.tasks(experiment, slurm) if task.state in LIVE]
    if live and not join:
        some = listed([f"{task.job} ({task.state.lower()})" for task in live], 5)
        raise InputError(
            f"experiment {experiment.name} has jobs already: {some}; they continue by themselves. "
            "--join adds more that share its work with them (best as --array N), harness cancel ends them"
        )


def submit(
    request: Request, options: Options, work: Work, slurm: Slurm, look: bool
) -> tuple[Submission, list[str]]:
    """Write the job's files, see that a compute node finds them, and put it into the queue.

    On failure nothing stays.

    Args:
        request: What.
        options: What is asked of SLURM.
        work: The plan.
        slurm: The controller.
        look: Have a compute node look for the files first, if one is free.

    Returns:
        The submission, and what the user should know about it.

    Raises:
        InputError: A compute node does not see the store, or SLURM refuses the job for what it asks.
        UnsureError: SLURM does not answer, and may have taken the job; its files stay.
    """
    for path in (request.root, Path.cwd(), Path(request.python)):
        if any(ord(character) < 32 for character in str(path)):
            raise InputError(
                f"{shown(str(path))}: a name with control characters cannot stand in a job script"
            )
    folder = new_folder(request.experiment)
    folder.mkdir(parents=True)
    job, remarks = "", list[str]()
    try:
        shutil.copyfile(request.config, folder / "config.yaml")
        if request.track is not None:
            shutil.copyfile(request.track, folder / "track.yaml")
        text = script(request, options, work, folder)
        (folder / "job.sh").write_text(text, encoding="utf-8")
        if look and (why := _look(folder, request.python, options, slurm)):
            remarks.append(
                f"no compute node has looked whether it sees {request.root} ({why}); the job itself will"
            )
        try:
            job = slurm.submit(text)
        except SlurmError as error:
            raise _refusal(error, options) from None
        user = ""
        with contextlib.suppress(OSError, KeyError):
            user = getpass.getuser()
        assigned = list(request.assignments)
        tasks = options.tasks if options.array else 0
        submission = Submission(job, tasks, time.time(), assigned, folder.name, user, socket.gethostname())
        jobs.record(folder, submission)
        return submission, remarks
    except BaseException as error:
        if job:
            slurm.cancel([job])
        if not isinstance(error, UnsureError):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _look(folder: Path, python: str, options: Options, slurm: Slurm) -> str:
    """Have a compute node look for the job's files and its Python.

    Returns:
        Why none has looked; empty where one has found them.

    Raises:
        InputError: The node does not find them.
    """
    named = ("partition", "account", "qos", "constraint", "reservation")
    where = [f"--{name}={getattr(options, name)}" for name in named if getattr(options, name)]
    program = (
        'for file in "$@"; do [ -e "$file" ] || { echo "missing on $(hostname): $file"; exit 3; }; done; '
        "echo seen"
    )
    command = [
        "srun",
        f"--immediate={LOOK_S}",
        "--nodes=1",
        "--ntasks=1",
        "--time=1",
        "--chdir=/",
        "--job-name=harness-look",
        *where,
    ]
    why = ""
    try:
        said = slurm.call(
            *command, "bash", "-c", program, "look", str(folder / "job.sh"), python, again=False
        )
    except SlurmError as error:
        said, why = error.output, re.sub(r"^srun: (srun: )?(error: )?", "", str(error))
    found = re.search(r"missing on (\S+): (.*)", said)
    if found is None:
        return "" if "seen" in said.split() else why or "no answer"
    if found[2] == python:
        raise InputError(
            f"node {found[1]} has no {python}; put the environment on a file system that all nodes share, "
            "and name it with --python"
        )
    raise InputError(
        f"--root: node {found[1]} does not see {folder.parent.parent}; give a root on a file system that all "
        "nodes share"
    )


def _refusal(error: SlurmError, options: Options) -> InputError | UnsureError:
    """What a failed sbatch means: a refusal, with the option that SLURM seems to mean, or no answer."""
    text = str(error)
    if "sbatch: error" not in text or NO_ANSWER in text:
        name = "look with `squeue --me` before you submit again: the job may be queued all the same"
        return UnsureError(f"{text}; {name}")
    reason = re.sub(r"^sbatch: (sbatch: )?(error: )*", "", text)
    hints = {
        "invalid account": ("account", "; see `sacctmgr show associations user=$USER`"),
        "qos": ("qos", ""),
        "depend": ("dependency", ""),
        "feature": ("constraint", ""),
        "reservation": ("reservation", ""),
        "partition": ("partition", ""),
    }
    for word, (name, more) in hints.items():
        if word in text.lower() and "policy" not in text.lower() and getattr(options, name):
            return InputError(
                f"--{name}: {shown(getattr(options, name))}{more}: SLURM refuses the job: {reason}"
            )
    return InputError(f"SLURM refuses the job: {reason}")


def cancel(experiment: Path, slurm: Slurm, only: Sequence[str], now: bool) -> list[ArrayTask]:
    """End jobs of an experiment; what they have saved stays.

    Running jobs are asked to save their work and end; those that wait are taken out of the queue.

    Args:
        experiment: The experiment's folder.
        slurm: The controller.
        only: Jobs or tasks; all of the experiment's when empty.
        now: Do not let them save.

    Returns:
        The jobs that were live.

    Raises:
        InputError: A job is none of this experiment's.
        SlurmError: Some jobs were not reached; says which.
    """
    known = jobs.tasks(experiment, slurm)
    mine = {task.job for task in known} | {task.job.partition("_")[0] for task in known}
    for name in only:
        if name not in mine:
            raise InputError(
                f"--job: {name} is no job of experiment {experiment.name}; it has "
                f"{', '.join(sorted(mine)) or 'none'}"
            )
    live = [
        task
        for task in known
        if task.state in LIVE and (not only or task.job in only or task.job.partition("_")[0] in only)
    ]
    running = [task.job for task in live if task.state == "RUNNING"]
    for job in running:  # it may be about to requeue itself: its next run will see this
        folder = jobs.run_folder(experiment, job)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CANCELLED).touch()
    if now:
        slurm.cancel(_whole([task.job for task in live], known))
        return live
    problems = _ended(slurm, _whole([task.job for task in live if task.job not in running], known))
    unheard = slurm.signal(running, "USR1")
    after = {task.job: task.state for task in jobs.tasks(experiment, slurm)}
    problems += _ended(slurm, [job for job in running if after.get(job) in WAITING])
    if lost := [job for job in unheard if after.get(job) == "RUNNING"]:
        problems.append(
            f"not reached: {listed(lost, 20)} ({unheard[lost[0]]}), which compute on until their limit"
        )
    if problems:
        raise SlurmError(f"{'; '.join(problems)}; all else is cancelled: cancel again, or with --now")
    return live


def _ended(slurm: Slurm, names: Sequence[str]) -> list[str]:
    """End jobs at once; why not all are, so that the others can be seen to first."""
    try:
        slurm.cancel(names)
    except SlurmError as error:
        return [str(error)]
    return []


def _whole(names: Sequence[str], known: Sequence[ArrayTask]) -> list[str]:
    """The same jobs, an array whose tasks are all meant by its own id.

    One request instead of one for each.
    """
    meant, found = set(names), dict[str, None]()
    for name in names:
        array = name.partition("_")[0]
        whole = all(
            task.job in meant for task in known if task.job.partition("_")[0] == array and task.state in LIVE
        )
        found[array if whole else name] = None
    return list(found)
