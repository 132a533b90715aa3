"""What the kernel says about processes."""

from __future__ import annotations

from pathlib import Path


def start_of(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where there is none (a zombie does no work).

    A process id is given out again; an id with a start is not.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
