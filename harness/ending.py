"""How processes of this machine are ended, and the folders removed that killed ones have left."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from harness.proc import start_of

OWNER = "owner"
"""A file in a folder of one process: which."""


def kill(processes: Iterable[psutil.Process]) -> bool:
    """Kill processes with all that they have started, and wait until they are gone; never the caller.

    Returns:
        Whether there was any that this process may end.
    """
    members: dict[psutil.Process, None] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process not in members:  # whose children are looked up with those of what has started it
                members |= dict.fromkeys([*process.children(recursive=True), process])
    members.pop(psutil.Process(), None)
    killed = []
    for member in members:
        with contextlib.suppress(psutil.Error):
            member.kill()
            killed.append(member)
    wait_gone(killed, 5.0)
    return bool(killed)


def wait_gone(processes: Iterable[psutil.Process], timeout_s: float) -> bool:
    """Wait until processes have ended; a zombie has, whoever is to take note of it.

    Returns:
        Whether all have.
    """
    deadline, left = time.monotonic() + timeout_s, list(processes)
    while left := list(filter(_works, left)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _works(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def that_name(path: str) -> list[psutil.Process]:
    """The processes but this one that have a path in their command."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(path in part for part in process.cmdline()):
                found.append(process)
    return found


def end_below(patience_s: float) -> None:
    """End everything below this process: SIGTERM, then SIGKILL.

    Args:
        patience_s: How long they may take to end by themselves.
    """
    this = psutil.Process()
    for process in this.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _reap(patience_s)
    deadline = time.monotonic() + 5.0
    while (left := this.children(recursive=True)) and time.monotonic() < deadline:
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _reap(0.1)


def _reap(patience_s: float) -> None:
    """Take note of children that have ended, until there is none left."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.02)


def claim(folder: Path) -> None:
    """Write into a folder that it is this process's."""
    (folder / OWNER).write_text(f"{os.getpid()} {start_of(os.getpid())} {namespace()}")


def namespace() -> str:
    """Within one namespace a process id means one process.

    Containers on a machine may share its /tmp and not its processes.
    """
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def owner_of(folder: Path) -> tuple[int, str, str] | None:
    """What `claim` has written: process id, start and namespace; None where it says nothing."""
    with contextlib.suppress(OSError, ValueError):
        pid, started, space = (folder / OWNER).read_text().split(" ")
        return int(pid), started, space
    return None


def make_claimed(parent: Path, prefix: str) -> Path:
    """Make a folder ``{prefix}{process id}-...`` of this process, for nobody else.

    It has its name, by which `clear_abandoned` finds it, when it says whose it is.
    """
    made = Path(tempfile.mkdtemp(prefix=f".{prefix}{os.getpid()}-", dir=parent))
    try:
        claim(made)
        return made.rename(made.with_name(made.name.removeprefix(".")))
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        raise


@contextlib.contextmanager
def claimed(parent: Path, prefix: str) -> Iterator[Path]:
    """`make_claimed` for the time of a block."""
    folder = make_claimed(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def clear_abandoned(parent: Path, prefix: str) -> None:
    """Remove this user's folders ``{prefix}{process id}-...`` whose process is gone.

    Those of another namespace stay, since their processes cannot be seen. Earlier versions wrote no owner: of
    theirs the id alone counts.
    """
    for path in parent.glob(f"{prefix}*-*"):
        pid = path.name.removeprefix(prefix).partition("-")[0]
        with contextlib.suppress(OSError, OverflowError):
            if pid.isdigit() and path.stat().st_uid == os.getuid() and _is_abandoned(path, int(pid)):
                shutil.rmtree(path, ignore_errors=True)


def _is_abandoned(folder: Path, pid: int) -> bool:
    owner = owner_of(folder)
    if owner is None:
        return not psutil.pid_exists(pid)
    return owner[2] == namespace() and start_of(owner[0]) != owner[1]
