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

from harness.ending import kill, that_name

WATCH_S = 0.5


def main(folder: str, pid: int) -> None:
    """Wait for the end of the driver; where it is gone already, only what names the folder is ended."""
    known: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        driver = psutil.Process(pid)
        while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE and os.getppid() == driver.pid:
            known = driver.children(recursive=True)
            with contextlib.suppress(psutil.TimeoutExpired):
                driver.wait(WATCH_S)
                break
    kill([*known, *that_name(folder)])
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
