"""Runs in processes of their own, and what can be seen of them."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from chains import contents

from harness.store import Experiment, Store
from harness.study import open_study


def result(config: Path, root: Path) -> dict[str, bytes]:
    prepared, scratch = open_study(config, (), Store.read(root))
    scratch.cleanup()
    return contents(Store.read(root), prepared)


def events(root: Path, experiment: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in Experiment(root, experiment).events() if event["event"] == kind]


def ranks_of(root: Path) -> list[psutil.Process]:
    """The actors of gangs, by the log file that they write to."""
    found = []
    for process in psutil.process_iter():
        try:
            if "_Rank" in "".join(process.cmdline()) and os.path.realpath(
                f"/proc/{process.pid}/fd/1"
            ).startswith(str(root)):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def tagged(value: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if (
                process.environ().get("HARNESS_TEST_TAG") == value
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start(tag: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HARNESS_TEST_TAG": tag},
    )


def wait_for(condition: Callable[[], Any], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def await_event(root: Path, experiment: str, kind: str, known: int, seconds: float = 90) -> None:
    """Wait until more events of a kind are there than are known."""
    wait_for(lambda: len(events(root, experiment, kind)) > known, seconds)


@contextmanager
def once(path: Path) -> Iterator[bool]:
    """Whether this process is to make something that all tests share; the others wait until it is there, or
    try in their turn."""
    done = path.with_name(path.name + ".done")
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield not done.exists()
            done.touch()
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # for closing is not enough where a child has inherited it
