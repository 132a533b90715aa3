"""What a run tells: its summary, and its display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

IDLE = "others compute all that is left"
"""`RunSummary.reason` when other runs hold all remaining work."""


@dataclass(frozen=True)
class RunSummary:
    """What a run did; field names are those of ``run --json``."""

    chains_complete: int
    chains_failed: int
    generations_computed: int
    generations_reused: int
    wall_s: float
    stopped: bool = False
    reason: str = ""
    """Why it stopped early, where nobody asked it to."""
    failures: tuple[tuple[str, str], ...] = ()
    """Chain, with its cell and seed, and why, for people."""

    def __add__(self, other: RunSummary) -> RunSummary:
        """Two parts of one run, one after the other."""
        return RunSummary(
            self.chains_complete + other.chains_complete,
            self.chains_failed + other.chains_failed,
            self.generations_computed + other.generations_computed,
            self.generations_reused + other.generations_reused,
            round(self.wall_s + other.wall_s, 3),
            self.stopped or other.stopped,
            self.reason or other.reason,
            (*self.failures, *other.failures),
        )

    @property
    def exit_code(self) -> int:
        """0 all chains complete, 1 some failed, 75 stopped early."""
        return 75 if self.stopped else 1 if self.chains_failed else 0


class Display(Protocol):
    """Shows the run to a person."""

    def update(self, done: int, total: int, running: Sequence[Mapping[str, Any]]) -> None:
        """Called every tick."""

    def line(self, text: str) -> None:
        """Something worth a line in a log."""

    def close(self) -> None:
        """End the display: the run is over."""
