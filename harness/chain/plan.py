"""What a branch is given, and how it ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from harness.data.real import RealData
from harness.learners.protocol import Control, Execution, Learner, Ranks
from harness.science import Node
from harness.store import Leases, Store


@dataclass(frozen=True)
class Plan:
    """One branch with all that is needed to run it; travels to the gang.

    Attributes:
        branch: The branch's id.
        execution: How its work is done.
        order: The branch's nodes, in order.
        nodes: These and all nodes they descend from; what is done is in their specs.
        examples: Corpus key to the number of examples that the grid reads.
        foreign: Fits of other cells' chains, whose corpora this one only reads.
        attempt: 1 for the first try.
        commit: Revision of the source, for provenance.
        coordinator: Who scheduled it, for provenance.
    """

    branch: str
    execution: Execution
    order: tuple[str, ...]
    nodes: Mapping[str, Node]
    examples: Mapping[str, int]
    foreign: frozenset[str] = frozenset()
    attempt: int = 1
    commit: str = ""
    coordinator: str = ""


class Busy(Exception):
    """Somebody else, who may be alive, works on a key that is needed; raised on every rank."""

    def __init__(self, key: str) -> None:
        """Keep the key."""
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class End:
    """How a branch ended.

    Attributes:
        status: ``ok``: all its generations are committed; ``diverged``: one has no finite model, and later
            ones do not exist; ``busy``: somebody else works on what is needed; ``stopped``: it was asked to
            stop, and saved what it had.
        key: What somebody else works on, for ``busy``.
    """

    status: Literal["ok", "diverged", "busy", "stopped"]
    key: str | None = None


class Observer(Protocol):
    """Hears what a branch does; called on rank 0 only."""

    def event(self, kind: str, **fields: Any) -> None:
        """Something happened that must be provable afterwards."""

    def progress(self, node: Node, phase: str, done: int, total: int, rate: float) -> None:
        """A phase has come so far."""


@dataclass(frozen=True)
class Site:
    """Where and with what a branch is run: everything that is not science.

    Attributes:
        learner: The cell's learner, on every rank.
        store: The store, on every rank.
        data: The real distribution.
        ranks: The ranks that run this together.
        observer: Hears of events and progress.
        leases: Taken on rank 0 for what is computed.
        control: Through which the branch is asked to stop.
    """

    learner: Learner
    store: Store
    data: RealData
    ranks: Ranks
    observer: Observer
    leases: Leases
    control: Control
