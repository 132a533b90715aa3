"""How processes of this machine are ended, and the folders removed that killed ones have left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil


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


def clear_abandoned(parent: Path, prefix: str) -> None:
    """Remove this user's folders ``{prefix}{process id}-...`` whose process is gone."""
    for path in parent.glob(f"{prefix}*-*"):
        owner = path.name.removeprefix(prefix).partition("-")[0]
        with contextlib.suppress(OSError, OverflowError):
            if owner.isdigit() and path.stat().st_uid == os.getuid() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(path, ignore_errors=True)
