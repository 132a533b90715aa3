"""What is said of why chains have failed: with the logs, and each reason once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LOG = " (log: "


def with_logs(reason: str, logs: Sequence[Path]) -> str:
    """A reason with the files in which a gang's ranks have written more."""
    return f"{reason}{_LOG}{', '.join(map(str, logs))})" if logs else reason


def without_logs(reason: str) -> str:
    """The reason alone, of one `with_logs`."""
    return reason.rpartition(_LOG)[0] if _LOG in reason and reason.endswith(")") else reason


@dataclass(frozen=True)
class Failed:
    """Something has failed, and others for the same reason.

    Attributes:
        first: What it is called.
        reason: Why, with its logs.
        count: How many have failed so.
    """

    first: str
    reason: str
    count: int

    def __str__(self) -> str:
        others = f" and {self.count - 1:,} more" if self.count > 1 else ""
        return f"{self.first}{others}: {self.reason}"


def grouped(failures: Iterable[tuple[str, str]]) -> list[Failed]:
    """Failures by their reasons, in the order in which these come first; the logs are those of the first.

    Args:
        failures: What has failed, and why.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for name, reason in failures:
        groups.setdefault(without_logs(reason), []).append((name, reason))
    return [Failed(*found[0], len(found)) for found in groups.values()]
