"""What a run is told and tells: its summary, its display, the shape of a cell's gang, the source's revision."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from harness.config.schema import Config
from harness.coordinator.scheduler import Shape

IDLE = "others compute all that is left"
"""Why a run ended that others do not need."""


@dataclass(frozen=True)
class Summary:
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
    """Branch or chain, and why, for people."""

    def __add__(self, other: Summary) -> Summary:
        """Two parts of one run, one after the other."""
        return Summary(
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
        ...

    def line(self, text: str) -> None:
        """Something worth a line in a log."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def shape_of(config: Config, gpus: bool) -> Shape:
    """What a gang for this cell occupies, on machines with GPUs or without."""
    resources, solo = config.resources, config.learner.kind != "language_model"
    per_rank = (1 if gpus else 0) if resources.gpus_per_rank is None else resources.gpus_per_rank
    return Shape(resources.ranks, resources.threads, 0 if solo else per_rank, solo)


def source_revision(folder: Path = Path(__file__).parents[1]) -> str:
    """The revision of the harness's source, with ``+dirty`` for local changes; empty where it is not under version control.

    A repository that only encloses the installed package (an environment inside a project) does not have its files, and says
    nothing about it.

    Args:
        folder: Where the package lies.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", str(folder / "__init__.py"))
        return git("rev-parse", "--short=12", "HEAD") + ("+dirty" if git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return ""
