"""What a store has of a study's chains, asked in one way however they are run and kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa

from harness.inventory.states import Inventory, NodeState
from harness.records import GenerationView
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared


class Stored(ABC):
    """What a store has of chains that are kept in one way."""

    def __init__(self, prepared: Prepared, store: Store, look: Callable[[], Inventory]) -> None:
        """Read nothing yet.

        Args:
            prepared: The study.
            store: Its store.
            look: Gives what there is of the study, the same each time.
        """
        self.prepared, self.store, self.look = prepared, store, look

    @property
    @abstractmethod
    def chains(self) -> Sequence[Chain]:
        """The study's chains that are kept so."""

    @abstractmethod
    def committed(self, chain: Chain) -> int:
        """How many generations are committed, from the first on; no record is read.

        What has diverged in a bundle counts to its end.
        """

    @abstractmethod
    def is_complete(self, chain: Chain) -> bool:
        """Whether a chain has all the generations that there will ever be of it."""

    @abstractmethod
    def progress(self, chain: Chain) -> tuple[int, NodeState]:
        """How many generations need not be computed any more, and the state of the one behind them.

        At the chain's end that is its own: ``committed``, ``diverged`` or ``unreachable``.
        """

    @abstractmethod
    def states(self, chain: Chain) -> Iterator[NodeState]:
        """The state of every generation that there is to be."""

    @abstractmethod
    def check(self, chain: Chain) -> None:
        """Compare what is there with its checksums.

        Raises:
            StoreError: It is damaged, or cannot be read.
        """

    @abstractmethod
    def places(self, chain: Chain, generations: int) -> list[Mapping[str, Path]]:
        """Where the first generations lie: what lies there to its file or folder."""

    @abstractmethod
    def generations(self, chain: Chain) -> list[GenerationView]:
        """Every generation that is committed, from the first on."""

    @abstractmethod
    def outcomes(self, chains: Sequence[Chain]) -> pa.Table | None:
        """The generations of some chains as rows.

        ``generation``, ``status``, ``evaluation`` and the metrics; None where there are none.
        """

    @abstractmethod
    def rows(self, provenance: bool, keys: bool = True) -> tuple[npt.NDArray[Any], pa.Table]:
        """The rows of all chains for the ledger, those of a chain in the order of its generations.

        Args:
            provenance: Add how, where and when each was computed.
            keys: With the fits, their keys and those of the ones before them.

        Returns:
            Whose each row is, by its place among `chains`, and the columns; a value that is not finite is
            null.
        """


class StoredChains:
    """What a store has of a study's chains, however they are kept.

    What is read for many chains at once is kept, so it is made anew where others write to the store.
    """

    def __init__(self, prepared: Prepared, store: Store, inventory: Inventory | None = None) -> None:
        """Read nothing yet.

        Args:
            prepared: The study.
            store: Its store.
            inventory: What is there, where it is known already.
        """
        from harness.inventory.bundled import InBundles
        from harness.inventory.one_by_one import OneByOne

        self.look = cache(lambda: inventory or Inventory(prepared, store, asked=()))
        self.ways: tuple[Stored, ...] = tuple(
            way(prepared, store, self.look) for way in (OneByOne, InBundles)
        )
        self._of_cell = {chain.cell: way for way in self.ways for chain in way.chains}

    def of(self, chain: Chain) -> Stored:
        """What holds a chain; all chains of a cell are kept in the same way."""
        return self._of_cell[chain.cell]

    def stopped(self, chain: Chain) -> int | None:
        """The generation that a chain lacks for good, as one that writes for it has diverged; else None."""
        spec = self.look().prepared.specs[chain.cell]
        if spec.source is None and not spec.members:  # nobody else writes for it
            return None
        done, found = self.of(chain).progress(chain)
        return done if found.state == "unreachable" else None
