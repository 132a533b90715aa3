"""Run as a process beside a driver that has started a Ray of its own.

Where the driver is killed, ends that Ray and its folder.

Ray's processes notice by themselves that their driver is gone, but some take half a minute to.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys

import psutil

WATCH_S = 0.5


def members(folder: str) -> list[psutil.Process]:
    """Processes of the Ray whose files lie in a folder.

    Those that name it, and all that they have started.
    """
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and any(folder in part for part in process.cmdline()):
                for member in (process, *process.children(recursive=True)):
                    found[member.pid] = member
    return list(found.values())


def main(folder: str, pid: int) -> None:
    """Wait for the end of the driver; where it is gone already, only what names the folder is ended."""
    known: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        driver = psutil.Process(pid)
        while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE and os.getppid() == driver.pid:
            known = {
                process.pid: process
                for process in driver.children(recursive=True)
                if process.pid != os.getpid()
            }
            with contextlib.suppress(psutil.TimeoutExpired):
                driver.wait(WATCH_S)
                break
    # Not `harness.proc.kill`: this file is run by its path, where the package may not be found.
    for process in [*known.values(), *members(folder)]:
        with contextlib.suppress(psutil.Error):
            if process.is_running() and process.pid != os.getpid():
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
