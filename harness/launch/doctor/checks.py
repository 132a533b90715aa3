"""What a check found and what to do about it, and the child processes that heavy checks run in."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil

from harness.ending import claimed, clear_abandoned, kill
from harness.errors import reason_of
from harness.imports import is_installed

SCRATCH = "hd-"
"""How names of temporary folders begin."""
Severity = Literal["ok", "warning", "failure"]
REMEDIES: Mapping[str, str] = {
    "slurm": "ask those who run the cluster; `harness run` works without SLURM",
    "partitions": "wait, or ask those who run the cluster (`sinfo`)",
    "slurm processes": "the harness ends its own Ray; after a crash look with `ps` on the nodes, or ask for "
    "proctrack/cgroup",
    "slurm time limit": "have the job signalled earlier (--signal=B:USR1@N); resources.checkpoint_s bounds "
    "what is lost",
    "slurm preemption": "what was committed stays; submit again, or ask for "
    "SlurmctldParameters=preempt_send_user_signal and a GraceTime",
    "slurm requeue": "submit with --requeue",
    "node": "log in there; leave it out with --exclude. Python and the harness must lie where all nodes see "
    "them",
    "libraries": "install requirements.lock into this environment",
    "same software": "use one environment that all nodes see, or install requirements.lock on each",
    "devices": "run `nvidia-smi` there: torch's build must suit the driver, and the job ask for GPUs that "
    "there are; a driver that hangs needs whoever runs the machine (leave it out with --exclude)",
    "cpus": "where fewer can be used, set resources.threads by them; where more, start Ray with --num-cpus "
    "of the job, or ask for TaskPlugin=task/affinity",
    "memory": "see who else uses the machine (`top`); ask for more with --mem",
    "open files": "`ulimit -n 65535`, or what is allowed at most, in the job",
    "socket path": "set tmp in the site file (HARNESS_TMP) to a folder with a shorter name",
    "temporary folder": "free space there, or set tmp in the site file (HARNESS_TMP) to another local folder "
    "with a short name",
    "shared memory": "mount a larger tmpfs on /dev/shm; Ray is slow without",
    "deepspeed": "install the pinned DeepSpeed (requirements.lock), of which no compiled operator is needed; "
    "a process takes 1 GiB of memory",
    "store root": "name another --root, or set HARNESS_ROOT: a local disk, or one that all machines share; "
    "where it hangs, see `df`",
    "disk": "`harness gc`, or a disk with more room; `harness plan` says what a study takes",
    "shared root": "--root, or HARNESS_ROOT, must lie on one file system that all nodes mount (`df` there)",
    "locking": "`link` is not atomic between these machines: leases would be held twice; use a POSIX file "
    "system that all share",
    "clocks": "set the clocks (chrony): events and ages come in a wrong order; leases do not mind, each "
    "observer uses its own clock",
    "ports": "names must resolve to the nodes' addresses, and ports above 1024 be open between them: Ray, "
    "gloo and NCCL take any",
    "communication": "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the interface that the nodes share; "
    "NCCL_DEBUG=INFO says more",
    "ray": "look into Ray's log (/tmp/hr-*/session_latest/logs while it starts), at free memory and "
    "/dev/shm; RAY_ADDRESS must name no other Ray",
    "wandb": "`wandb login`; or leave tracking.wandb at offline, and `harness sync` where there is a network",
    "hub": "set HF_HOME to a folder with room that all nodes share; fill it where there is a network",
}
"""What to do about a check that is not ok, by its name; some say something more special."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: What was checked.
        severity: ``ok``; ``warning``: it works, but worse than it could; ``failure``: a study would fail.
        found: What there is, in numbers with units.
        remedy: What to do about it; empty where it is ok.
        where: The machine.
        facts: What later checks have to know; not shown.
    """

    name: str
    severity: Severity
    found: str
    remedy: str = ""
    where: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def graded(
    name: str, found: str, failures: Sequence[str] = (), warnings: Sequence[str] = (), remedy: str = ""
) -> Check:
    """A check of several parts; ok where nothing is wrong.

    Args:
        name: What was checked.
        found: What there is; shown in any case.
        failures: What is wrong; any makes the check a failure.
        warnings: What could be better; any makes it a warning, unless something is wrong.
        remedy: What to do, where it is not what `REMEDIES` says.
    """
    severity: Severity = "failure" if failures else "warning" if warnings else "ok"
    said = "; ".join(filter(None, dict.fromkeys([*failures, *warnings, found])))
    remedy = remedy or REMEDIES.get(name, "see docs/doctor.md")
    return Check(name, severity, said, "" if severity == "ok" else remedy)


def passed_over(name: str, *modules: str) -> list[Check]:
    """A check that takes libraries, where they are not installed; empty where they are.

    Not every study needs them. Whether they are missed is what `machine.libraries` says.
    """
    lacks = [module for module in modules if not is_installed(module)]
    return [graded(name, f"not looked at: {', '.join(lacks)} not installed")] if lacks else []


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def above(path: Path) -> Path:
    """A path, or the nearest folder above it that there is."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def scratch(parent: Path | None = None) -> contextlib.AbstractContextManager[Path]:
    """A temporary folder of this process: where it is killed, the next one knows it by its name."""
    return claimed(parent or Path(tempfile.gettempdir()), SCRATCH)


def clear_scratch() -> None:
    """Remove the temporary folders of processes that were killed."""
    clear_abandoned(Path(tempfile.gettempdir()), SCRATCH)


class ChildError(Exception):
    """A child process failed or took too long; the message says which."""


def start(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a program whose output is wanted.

    Raises:
        ChildError: It is not there.
    """
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    except OSError as error:
        raise ChildError(f"{command[0]}: {error.strerror}") from None


def finish(child: subprocess.Popen[str], limit_s: float, late: str = "no answer") -> str:
    """The standard output of a program that was started; with its limit all that it has started ends too.

    Raises:
        ChildError: It took too long, or failed; says what it said last.
    """
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        end(child)
        raise ChildError(f"{late} within {limit_s:.0f} s") from None
    if child.returncode:
        said = [line for line in err.splitlines() if line.strip()] or [f"exit code {child.returncode}"]
        raise ChildError(said[-1].strip()[:300])
    return out


def end(child: subprocess.Popen[str]) -> None:
    """Kill a child with all that it has started."""
    with contextlib.suppress(psutil.Error):
        kill([psutil.Process(child.pid)])
    child.wait()


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> str:
    """The standard output of a program (errors as `start` and `finish`)."""
    return finish(start(command, environment), limit_s)


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module of the harness in a process of its own."""
    return [sys.executable, "-P", "-m", module, *map(str, arguments)]


def last_json(output: str) -> Any:
    """What a child has to say is its last line: libraries print before it."""
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines:
        raise ChildError("it said nothing")
    return json.loads(lines[-1])


def said_by(limit_s: float, module: str, *arguments: object, **environment: str) -> Any:
    """What a module of the harness says as JSON, run in a process of its own (errors as `run`)."""
    return last_json(run(python(module, *arguments), limit_s, {**os.environ, **environment}))


def text_of(error: BaseException) -> str:
    """An error in one line."""
    first = reason_of(error)
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
