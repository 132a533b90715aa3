"""The rows of the ledger, kept as columns: a million of them are some arrays, not a million mappings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from harness.inventory.columns import to_column, to_table
from harness.metrics.catalogue import measures

IDENTITY = ("experiment", "chain", "seed", "generation", "fit", "key", "parent_key", "status")
BATCH_ROWS = 65_536
"""Rows that are made into mappings at a time."""
AxisValues = tuple[Any, ...]


@dataclass(frozen=True)
class Series:
    """One seed of one cell.

    Attributes:
        cell: Values of the axes.
        seed: The seed.
        places: Rows of its generations, in their order; shape [generations].
        ended: The generation in which it has diverged, or that it lacks as its writer has; else None.
    """

    cell: AxisValues
    seed: int
    places: npt.NDArray[np.int64]
    ended: int | None


@dataclass(frozen=True)
class Step:
    """The seeds of one cell in one generation.

    Attributes:
        places: Rows of the seeds that have a model, in the order of the seeds; shape [seeds].
        diverged: Seeds that have none any more.
    """

    places: npt.NDArray[np.int64]
    diverged: int


class Rows(Iterable[Mapping[str, Any]]):
    """A table of records, in the order of chains and generations.

    What all rows of a chain share (its cell, its seed) is kept once a chain, as the values that they are; all
    else, as columns.
    """

    def __init__(
        self,
        shared: Sequence[Mapping[str, Any]],
        chain: npt.NDArray[np.int64],
        own: pa.Table,
        leads: Sequence[str] = (),
        stopped: Mapping[int, int] = MappingProxyType({}),
        learners: Sequence[str] = (),
    ) -> None:
        """Keep the columns.

        Args:
            shared: What the rows of each chain have in common.
            chain: Which of them each row belongs to; shape [rows].
            own: The other columns, one row a record; a value that is missing or not finite is null.
            leads: Metrics that a report begins with before all others: what a track ranks by.
            stopped: Of chains that cannot go on, as one that writes for them has diverged, the generation
                that they lack for good; by place in ``shared``.
            learners: Kind of each chain's learner; not known where there are none.
        """
        self.shared, self.chain, self.own, self.leads = shared, chain, own, leads
        self.stopped, self.learners = stopped, learners
        self._series: dict[tuple[str, ...], Sequence[Series]] = {}
        self._steps: dict[tuple[str, ...], Mapping[AxisValues, Mapping[int, Step]]] = {}

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Rows:
        """Mappings as columns; what is columns already stays as it is."""
        if isinstance(rows, Rows):
            return rows
        rows = list(rows)
        own = [{name: row[name] for name in row if _is_own(name)} for row in rows]
        shared = [{name: row[name] for name in row if not _is_own(name)} for row in rows]
        return cls(shared, np.arange(len(rows)), to_table(own))

    def __len__(self) -> int:
        return len(self.chain)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, len(self), BATCH_ROWS):
            part = self.own.slice(start, BATCH_ROWS).to_pylist()
            for chain, own in zip(self.chain[start : start + BATCH_ROWS].tolist(), part, strict=True):
                yield {**self.shared[chain], **own}

    @cached_property
    def _used(self) -> list[int]:
        """The chains that have a row, in the order of their first rows."""
        begins = np.flatnonzero(
            np.diff(self.chain, prepend=-1)
        )  # a million rows are no list of as many numbers
        return list(dict.fromkeys(self.chain[begins].tolist()))

    @cached_property
    def names(self) -> list[str]:
        """All columns: those that tell rows apart first."""
        shared = dict.fromkeys(name for chain in self._used for name in self.shared[chain])
        known = [*IDENTITY, *(name for name in shared if name not in IDENTITY)]
        return [*known, *(name for name in self.own.column_names if name not in known)]

    @cached_property
    def generation(self) -> npt.NDArray[np.int64]:
        """The generation of each row; shape [rows]."""
        if not len(self):
            return np.zeros(0, dtype=np.int64)
        found: npt.NDArray[np.int64] = self.own["generation"].to_numpy().astype(np.int64, copy=False)
        return found

    @cached_property
    def diverged(self) -> npt.NDArray[np.bool_]:
        """Whether the status of each row is ``diverged``; shape [rows]."""
        if "status" not in self.own.column_names:
            return np.zeros(len(self), dtype=np.bool_)
        found: npt.NDArray[np.bool_] = (
            pc.equal(self.own["status"], "diverged").fill_null(False).to_numpy().astype(np.bool_)
        )
        return found

    def values(self, name: str) -> npt.NDArray[np.float64]:
        """A metric of each row, NaN where it is missing or not finite; shape [rows]."""
        if name in self.own.column_names:
            column = self.own[name].cast(pa.float64()).to_numpy()
        else:
            of_chain = [chain.get(name) for chain in self.shared]
            column = np.array([np.nan if v is None else float(v) for v in of_chain])[self.chain]
        infinite = np.isinf(column)
        found: npt.NDArray[np.float64] = np.where(infinite, np.nan, column) if infinite.any() else column
        return found

    def curve(self, series: Series, values: npt.NDArray[np.float64]) -> dict[int, float]:
        """Generation to value of one seed, without what is missing; ``values`` are of all rows (`values`)."""
        known = series.places[~np.isnan(values[series.places])]
        return dict(zip(self.generation[known].tolist(), values[known].tolist(), strict=True))

    def where(self, wanted: npt.NDArray[np.bool_]) -> Rows:
        """Some of the rows; ``wanted`` has shape [rows]."""
        own = self.own.filter(pa.array(wanted))
        return Rows(self.shared, self.chain[wanted], own, self.leads, self.stopped, self.learners)

    def series(self, axes: Sequence[str]) -> Sequence[Series]:
        """The rows by cell and seed, in the order in which these come first; remembered.

        Chains that differ in an axis that is left out share generations, and a seed counts once: of two rows
        of one generation the later one stays.

        Args:
            axes: The axes that tell cells apart.
        """
        if tuple(axes) not in self._series:
            self._series[tuple(axes)] = self._by_seed(axes)
        return self._series[tuple(axes)]

    def _by_seed(self, axes: Sequence[str]) -> Sequence[Series]:
        numbers: dict[tuple[AxisValues, int], int] = {}
        of_chain = np.zeros(len(self.shared), dtype=np.int32)
        for chain in self._used:
            about = self.shared[chain]
            key = tuple(about.get(axis) for axis in axes), int(about["seed"])
            of_chain[chain] = numbers.setdefault(key, len(numbers))
        number = of_chain[self.chain]
        order = np.lexsort((self.generation, number))  # stable: a later row comes behind an earlier one
        number, generation = number[order], self.generation[order]
        last = np.ones(len(order), dtype=np.bool_)
        last[:-1] = (number[1:] != number[:-1]) | (generation[1:] != generation[:-1])
        del generation
        if not last.all():  # else they would be there twice
            order, number = order[last], number[last]
        starts = np.searchsorted(number, np.arange(len(numbers) + 1, dtype=np.int32))
        found = []
        for (cell, seed), start, stop in zip(numbers, starts[:-1], starts[1:], strict=True):
            places = order[start:stop]
            ended = self.generation[places][self.diverged[places]].tolist()
            if self.stopped:
                ended += [self.stopped[at] for at in set(self.chain[places].tolist()) & self.stopped.keys()]
            found.append(Series(cell, seed, places, min(ended, default=None)))
        return found

    def measures(self, series: Series, metric: str) -> bool:
        """Whether the learner of a seed's chain measures a metric: what it does not is not "not finite"."""
        kinds = {self.learners[at] for at in set(self.chain[series.places].tolist())} if self.learners else ()
        return not kinds or any(measures(kind, metric) for kind in kinds)

    def steps(self, axes: Sequence[str]) -> Mapping[AxisValues, Mapping[int, Step]]:
        """The rows by cell and generation, these in ascending order; remembered, as `series` is.

        Args:
            axes: The axes that tell cells apart.
        """
        if tuple(axes) not in self._steps:
            cells: dict[AxisValues, list[Series]] = {}
            for series in self.series(axes):
                cells.setdefault(series.cell, []).append(series)
            self._steps[tuple(axes)] = {cell: self._by_step(parts) for cell, parts in cells.items()}
        return self._steps[tuple(axes)]

    def _by_step(self, parts: Sequence[Series]) -> Mapping[int, Step]:
        """The seeds of one cell."""
        ends = np.sort([part.ended for part in parts if part.ended is not None])
        places = np.concatenate([part.places for part in parts])
        end = np.repeat(
            [np.inf if part.ended is None else part.ended for part in parts],
            [len(part.places) for part in parts],
        )
        order = np.argsort(self.generation[places], kind="stable")  # the seeds stay in their order
        places, end = places[order], end[order]
        known, starts = np.unique(self.generation[places], return_index=True)
        return {
            at: Step(there[at < ends_there], int(np.searchsorted(ends, at, side="right")))
            for at, there, ends_there in zip(
                known.tolist(), np.split(places, starts[1:]), np.split(end, starts[1:]), strict=True
            )
        }

    def to_pandas(self) -> Any:
        """As a data frame."""
        table = self.to_arrow()
        plain = [c.cast(pa.string()) if pa.types.is_dictionary(c.type) else c for c in table.columns]
        return pa.table(plain, names=table.column_names).to_pandas()

    def to_arrow(self) -> pa.Table:
        """As an Arrow table; a column that mixes kinds of values becomes text.

        Text that all rows of a chain share is a dictionary.
        """
        return self._parts(len(self) or 1).read_all()

    def parts(self) -> pa.RecordBatchReader:
        """As `to_arrow`, some rows at a time: what chains share is not there for all rows at once."""
        return self._parts(BATCH_ROWS)

    def _parts(self, size: int) -> pa.RecordBatchReader:
        used = self._used
        place = np.zeros(len(self.shared), dtype=np.int64)
        place[used] = np.arange(len(used))
        of_chains = {}
        for name in self.names:
            if name not in self.own.column_names:
                column = to_column(name, [self.shared[chain].get(name) for chain in used])
                text = pa.types.is_string(column.type)
                of_chains[name] = column.dictionary_encode() if text else column

        def part(start: int, size: int) -> pa.Table:
            own = self.own.slice(start, size)
            chains = pa.array(place[self.chain[start : start + size]])
            return pa.table({n: of_chains[n].take(chains) if n in of_chains else own[n] for n in self.names})

        batches = (batch for at in range(0, len(self), size) for batch in part(at, size).to_batches())
        return pa.RecordBatchReader.from_batches(part(0, 0).schema, batches)


def _is_own(name: str) -> bool:
    return name in ("generation", "status") or "/" in name
