"""Run as a process: a Ray like that of a run starts, runs one task and ends; prints one JSON line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ray

from harness.coordinator.cluster import PREFIX, RayPlace, connected


def total(count: int) -> int:
    """The sum of a range of numbers, computed by a task of Ray."""
    return sum(range(count))


def main() -> None:
    """Start, work, end.

    Raises:
        RuntimeError: The task gave back something else, or Ray went away.
    """
    lost: list[str] = []
    with connected(RayPlace(), lost.append) as machines:
        folders = [str(path) for path in Path("/tmp").glob(f"{PREFIX}{os.getpid()}-*")]
        answer = ray.get(ray.remote(total).remote(10), timeout=60)
    if lost or answer != 45 or not machines:
        raise RuntimeError(
            f"a local Ray answered {answer} instead of 45 ({', '.join(lost) or 'nothing was lost'})"
        )
    print(json.dumps({"version": ray.__version__, "folders": folders}))


if __name__ == "__main__":
    main()
