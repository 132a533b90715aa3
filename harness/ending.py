"""How processes of this machine are ended, and the folders removed that killed ones have left."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from harness.proc import start_of


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill processes with all that they have started, and wait until they are gone; never the caller."""
    members: dict[psutil.Process, None] = {}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            members |= dict.fromkeys([*process.children(recursive=True), process])
    members.pop(psutil.Process(), None)
    for member in members:
        with contextlib.suppress(psutil.Error):
            member.kill()
    wait_gone(members, 5.0)


def wait_gone(processes: Iterable[psutil.Process], timeout_s: float) -> bool:
    """Wait until processes have ended; a zombie has, whoever is to take note of it.

    Returns:
        Whether all have.
    """
    deadline, left = time.monotonic() + timeout_s, list(processes)
    while left := [process for process in left if process.is_running() and start_of(process.pid) is not None]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


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
        with contextlib.suppress(OSError):
            if owner.isdigit() and path.stat().st_uid == os.getuid() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(path, ignore_errors=True)
