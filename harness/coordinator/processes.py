"""Processes of gangs, as the operating system sees them.

Who they are, whether they are gone, and why they went.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.ending import kill
from harness.files import machine_folder


@dataclass(frozen=True)
class ProcessId:
    """One process for good: a process id alone is used again.

    Attributes:
        host: Host name.
        node: Ray's id of the node.
        pid: Process id.
        started: Start time, seconds since the epoch.
        oom_kills: How many processes the machine's kernel had killed for want of memory when this one
            started.
    """

    host: str
    node: str
    pid: int
    started: float
    oom_kills: int


def oom_kills() -> int:
    """How many processes this machine's kernel has killed for want of memory; 0 where it does not say."""
    with contextlib.suppress(OSError):
        found = re.search(r"^oom_kill (\d+)", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def this_process(node: str) -> ProcessId:
    """The calling process."""
    process = psutil.Process()
    return ProcessId(socket.gethostname(), node, process.pid, process.create_time(), oom_kills())


def _living(processes: Sequence[ProcessId]) -> list[psutil.Process]:
    found = []
    for known in processes:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(known.pid)
            if abs(process.create_time() - known.started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def reap(processes: Sequence[ProcessId], patience_s: float = 2.0) -> int:
    """Make sure that processes of this machine are gone, with all that they started.

    A stopped one hears nothing but SIGKILL.

    Args:
        processes: Of this machine.
        patience_s: How long they may end by themselves.

    Returns:
        `oom_kills` of now.
    """
    victims, children = _living(processes), list[psutil.Process]()
    for process in victims:
        with contextlib.suppress(psutil.Error):
            children += process.children(recursive=True)
    deadline = time.monotonic() + patience_s
    while _living(processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    kill([*victims, *children])
    return oom_kills()


def build_folder() -> Path:
    """Where this user's builds of native operators go on this machine, apart for every Python.

    That is never a shared file system.
    """
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    return machine_folder() / f"torch-extensions-{socket.gethostname()}-{version}"


def clear_stale_locks(folder: Path) -> list[Path]:
    """Remove locks of builds that were killed.

    A build holds its lock file open, so a lock that no process has open is stale.
    """
    locks = [path for path in folder.glob("**/lock") if path.is_file()]
    if not locks:
        return []
    held = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            held |= {os.path.realpath(file.path) for file in process.open_files()}
            # A file that is open for nothing but its existence is not in open_files of every kernel.
            held |= {
                os.path.realpath(f"/proc/{process.pid}/fd/{name}")
                for name in os.listdir(f"/proc/{process.pid}/fd")
            }
    stale = [path for path in locks if os.path.realpath(path) not in held]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale
