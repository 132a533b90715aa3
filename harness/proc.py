"""What the kernel says about processes, and the memory that this one keeps."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import resource
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
KEPT = 2**31 - 1
"""Freed bytes that stay with the process: all."""
OWN_MAPPING, LARGE = 2**30, 2**20
"""Bytes from which a block is the kernel's as soon as it is freed, in a fit and where rows are read."""
_PROCESSORS = Path("/proc/cpuinfo")
_MEMBERSHIP = Path("/proc/self/cgroup")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")


def start_of(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks.

    None where there is none (a zombie does no work).

    A process id is given out again; an id with a start is not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _control_groups() -> Iterator[Path]:
    """The folders of this process's control groups and of all above them, whose limits hold together.

    A container shows its own group as the highest, under the path that it has outside.
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        base = _CONTROL_GROUPS / controllers.split(",")[0] if controllers else _CONTROL_GROUPS
        for folder in (path, *map(str, Path(path).parents)):
            yield base / folder.lstrip("/")


def _said(folder: Path, name: str) -> list[str]:
    try:
        return (folder / name).read_text().split()
    except OSError:
        return []


@cache
def cpu_device() -> str:
    """The CPU as a device: ``cpu, AMD EPYC 9B14``; the architecture where the kernel knows no model.

    Processors of different models add up in different orders, and give different digits.
    """
    found = _said_of_processor("model name", "Processor\t")
    return f"cpu, {found or platform.processor() or platform.machine()}"


@cache
def processor_maker() -> str:
    """Who made the CPU, in its own word: ``GenuineIntel``, ``AuthenticAMD``; empty where none is said."""
    return _said_of_processor("vendor_id")


def _said_of_processor(*names: str) -> str:
    """What the kernel says first under one of these names, of any processor; empty for nothing."""
    try:
        lines = _PROCESSORS.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    said = (line.partition(":")[2] for line in lines if line.startswith(names))
    return next((" ".join(words.split()) for words in said if words.strip()), "")


def cpu_quota() -> float | None:
    """CPUs that this process's control groups let it use at once, as a container's limit: the least of them.

    None where they say nothing.
    """
    found = []
    for folder in _control_groups():
        pairs = (
            _said(folder, "cpu.max"),
            _said(folder, "cpu.cfs_quota_us") + _said(folder, "cpu.cfs_period_us"),
        )
        found += [int(pair[0]) / int(pair[1]) for pair in pairs if len(pair) == 2 and "".join(pair).isdigit()]
    return min(found, default=None)


def memory_limit() -> int | None:
    """Bytes that this process's control groups let it use, as a container's limit: the least of them.

    None where they say nothing; the kernel may give a huge number where there is no limit.
    """
    names = ("memory.max", "memory.limit_in_bytes")
    said = [_said(folder, name) for folder in _control_groups() for name in names]
    return min((int(words[0]) for words in said if words and words[0].isdigit()), default=None)


def usable_memory() -> int:
    """Bytes of memory that this process may use: this machine's, or fewer where its control groups say so."""
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = memory_limit()
    return there if limit is None else min(there, limit)


def usable_cpus() -> int:
    """CPUs that this process may use.

    Those that it may run on, and no more than its container's quota, rounded down.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


@cache
def installed_version(distribution: str) -> str:
    """Of a distribution; reading it takes milliseconds, and some are named in every record.

    Raises:
        PackageNotFoundError: It is not installed.
    """
    return metadata.version(distribution)


def one_thread() -> contextlib.AbstractContextManager[object]:
    """Products of matrices inside use one thread: those of several round by their number.

    To find the libraries takes 10 ms, more than a small fit; so only after something has been imported.
    """
    from threadpoolctl import get_cached_controller

    limited: contextlib.AbstractContextManager[object] = get_cached_controller().limit(limits=1)
    return limited


def keep_freed() -> None:
    """Let what is freed be used again by this process, until `give_back`.

    Every step frees its logits and gradients and asks for as much again. glibc gives such large blocks back
    to the kernel each time, and the kernel fills every page anew: a tenth of a small model's step, a fifth of
    a score. What the environment says (``MALLOC_...``) stays.
    """
    _adjust({TRIM_THRESHOLD: KEPT, MMAP_THRESHOLD: OWN_MAPPING})


def _adjust(parameters: Mapping[int, int]) -> None:
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if adjust is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        for name, value in parameters.items():
            adjust(name, value)


def large_blocks_apart() -> None:
    """Let large blocks be the kernel's again as soon as they are freed.

    Unless it is told a size, glibc keeps blocks like those that were freed before, up to 32 MB each: of
    millions of rows, whose columns come and go, up to 40 MB. What the environment says (``MALLOC_...``)
    stays.
    """
    _adjust({MMAP_THRESHOLD: LARGE})


def give_back() -> None:
    """Free what only refers to itself, as models and their caches do, and return what is free."""
    gc.collect()
    _return_freed()


def _return_freed() -> None:
    """Return to the kernel what has been freed and kept."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def reset_peak_memory() -> None:
    """Let the kernel measure the peak of resident memory anew; where it does not, the peak stays.

    What others have freed and kept does not count.
    """
    _return_freed()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak of this process's resident memory since `reset_peak_memory`, bytes."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
