"""Tests in several processes at once: how many, in which order, and which of them run alone.

Most tests on Ray and SLURM wait for something most of the time, so others compute meanwhile. What a test
starts is its own, or its process's: a Ray, a SLURM (one for all tests that need it), folders. A test that is
judged by a clock is marked ``alone``. One more process gives way to the others, and computes while they wait.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

TEST_BYTES = 5 * 2**30
"""What the tests of one process take at most: a Ray with two gangs of two ranks each."""
APART = {
    "test_bundles.py",
    "test_doctor.py",
    "test_faults.py",
    "test_fetch.py",
    "test_papers.py",
    "test_ray.py",
}
"""Files with long tests, each of which makes all that it needs: a process takes one test at a time. Of other
files it takes all."""
FIRST = {"test_adapter.py", "test_plugins.py", "test_quickstart.py", "test_sync.py"}
"""Long files of which one process takes the whole, which would work alone in the end."""
SLURM = {"test_slurm.py", "test_doctor_slurm.py"}
"""One process runs all of these, on one SLURM; another one has one for tests/test_slurm_faults.py."""


SPARE_NICE = 5
"""How far the spare process gives way: it has a fourth of what another one has on the same core."""


def _most() -> int:
    """One process a core: with more of them everything takes longer, and limits of time are reached."""
    return max(1, min(len(os.sched_getaffinity(0)), psutil.virtual_memory().total // TEST_BYTES))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return _most() + (not config.option.markexpr)  # where tests are chosen by marks, it is those that compute


def _is_spare(worker: str) -> bool:
    """Whether it is the process that computes while the others wait."""
    return worker == f"gw{_most()}"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") and _is_spare(config.workerinput["workerid"]):
        os.nice(SPARE_NICE)


@functools.cache
def _patient(scope: str) -> bool:
    """Whether a file's tests only compute: none starts a Ray or a SLURM, or looks at a clock."""
    path, others = Path(__file__).parent / scope, r"^import time$|mark\.(ray|slurm)\b"
    return path.exists() and not re.search(others, path.read_text(), re.MULTILINE)


class Shares(LoadScopeScheduling):  # type: ignore[misc]
    """What a process takes as a whole, and which of it."""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).name
        return nodeid if name in APART else "slurm" if name in SLURM else name

    def _reschedule(self, node: Any) -> None:
        if _is_spare(node.gateway.id) and not any(map(_patient, self.workqueue)) and not node.shutting_down:
            node.shutdown()  # when it has done what it has
        super()._reschedule(node)

    def _assign_work_unit(self, node: Any) -> None:
        if _is_spare(node.gateway.id):  # the others come to these last
            found = next(filter(_patient, reversed(self.workqueue)), next(iter(self.workqueue)))
            self.workqueue.move_to_end(found, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Shares:
    return Shares(config, log)


def pytest_make_parametrize_id(val: Any) -> str | None:
    """Names of tests are the same in all processes, or nothing runs; bytes may hold the time, as those of
    gzip do."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest first, so that no process ends long before the others; those that run alone last, when
    nobody waits for them."""
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    if item.get_closest_marker("alone"):
        return 3
    if item.get_closest_marker("slurm") or item.path.name in FIRST:
        return 0
    return 1 if item.get_closest_marker("ray") or not _patient(item.path.name) else 2


class _Rooms:
    """Many may be in, or one alone. Who wants to be alone waits at the gate, and nobody passes it
    meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.gate, self.room = folder / "gate.lock", folder / "room.lock"

    def enter(self, alone: bool) -> ExitStack:
        inside = ExitStack()
        room = inside.enter_context(open(self.room, "w"))
        # for closing is not enough where a child has inherited it
        inside.callback(fcntl.flock, room, fcntl.LOCK_UN)
        with open(self.gate, "w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        return inside


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Before a test's time limit begins, wait until it may run."""
    factory: Any = item.config._tmp_path_factory  # type: ignore[attr-defined]
    if not hasattr(item.config, "workerinput"):
        yield
        return
    with _Rooms(factory.getbasetemp().parent).enter(item.get_closest_marker("alone") is not None):
        yield
