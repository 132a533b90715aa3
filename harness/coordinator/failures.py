"""Why a gang ended, and what follows: whose budget it counts against, and what a person can do about it."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from harness.config.schema import Resources
from harness.errors import HarnessError, InputError, StoreError, reason_of
from harness.registry.blame import culprit
from harness.store.store import WRITABLE_PROBE

FailureKind = Literal["input", "crash", "memory", "device_memory", "hang", "store", "preempted"]
"""``input``: trying again cannot help. ``store``: the whole run cannot go on. ``preempted``: the machine went
away."""

_DISK = re.compile(
    r"no space left|os error 28|quota exceeded|os error 122|read-only file system|os error 30\b",
    re.IGNORECASE,
)
_HOST_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|unable to allocate|bad_alloc", re.IGNORECASE
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

HOST_ADVICE = (
    "out of host memory: lower resources.sample_batch or resources.micro_batch, raise resources.ranks with "
    "resources.zero_stage: 3, or let fewer gangs run at once with a larger resources.threads"
)
DEVICE_ADVICE = (
    "out of GPU memory: lower resources.micro_batch or resources.sample_batch, or raise resources.ranks or "
    "resources.zero_stage"
)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def by_ray(error: BaseException) -> bool:
    """Whether Ray ends the process with it (at SIGTERM, say), and not what somebody has written."""
    return hasattr(error, "ray_terminate_msg")


def classify(error: BaseException) -> tuple[FailureKind, str]:
    """What an exception on a rank means, with one line for people."""
    for found in _chain(error):
        if type(found).__name__ == "OutOfMemoryError" and "torch" in type(found).__module__:
            return "device_memory", f"{DEVICE_ADVICE} ({reason_of(found)})"
        if isinstance(found, MemoryError) or (
            not isinstance(found, OSError) and _HOST_MEMORY.search(str(found))
        ):
            return "memory", f"{HOST_ADVICE} ({reason_of(found)})"
        if isinstance(found, OSError) and found.errno in _DISK_ERRORS or _DISK.search(str(found)):
            return "store", reason_of(found)
    if isinstance(error, HarnessError):
        # what could not be read now may be read at the next try; what was damaged is made again then
        passing = isinstance(error, StoreError) and not isinstance(error, InputError)
        return "crash" if passing else "input", str(error)
    said, whose = f"{type(error).__name__}: {reason_of(error)}", culprit(error)
    return "crash", f"{whose}: {said}" if whose else said


def store_trouble(root: Path) -> str | None:
    """Why the store cannot be written now; None where it can. Tries it with as much as a record needs."""
    try:
        with tempfile.NamedTemporaryFile(dir=root / "work", prefix=WRITABLE_PROBE) as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        return f"--root {root} cannot be written: {error.strerror}"
    return None


@dataclass
class Budget:
    """How often a branch has ended badly since its last commit.

    What its machine did is counted apart from what it did itself, or for an unknown cause.
    """

    failures: dict[str, int] = field(default_factory=dict)
    preemptions: dict[str, int] = field(default_factory=dict)

    def again(self, branch: str, kind: FailureKind, limits: Resources) -> bool:
        """Count one more bad end; whether the branch may try again, by the limits of its cell."""
        if kind == "input":
            return False
        if kind == "preempted":
            counts, limit = self.preemptions, limits.max_preemptions
        else:
            counts, limit = self.failures, limits.max_failures
        counts[branch] = counts.get(branch, 0) + 1
        return counts[branch] <= limit

    def attempt(self, branch: str) -> int:
        """Number of the next try, from 1."""
        return self.failures.get(branch, 0) + self.preemptions.get(branch, 0) + 1

    def progress(self, branch: str) -> None:
        """A generation is committed: what went wrong before no longer counts."""
        self.failures.pop(branch, None)
        self.preemptions.pop(branch, None)
