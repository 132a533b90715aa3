"""Chains that are run together, the order in which their generations are, and where that was."""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from harness import __version__
from harness.bundle.cell import CellRun, Held
from harness.bundle.job import CellJob
from harness.components import PACKAGES
from harness.curation import Sources
from harness.learners.analytic.learner import versions
from harness.proc import cpu_device, one_thread
from harness.records import writer_of
from harness.science import Chain, Node, build


@dataclass(frozen=True)
class Unit:
    """Chains that are run together: same-shaped ones of a cell, or those of a population's members.

    Attributes:
        chains: The chains, for each of their cells one per seed.
        jobs: By index: their cells' jobs, and those of the cells that write for them.
    """

    chains: tuple[Chain, ...]
    jobs: Mapping[int, CellJob]


def run_unit(unit: Unit) -> pa.Table:
    """Run the chains of a unit; one row per chain and generation.

    Args:
        unit: The chains.

    Raises:
        LearnerError: The filters leave nothing to train on.
    """
    with one_thread():
        cells = _cells(unit)
        for cell, generation in _order(cells):
            cell.step(generation)
        return _rows(unit, cells)


def _order(cells: Mapping[int, CellRun]) -> Iterator[tuple[CellRun, int]]:
    """Every generation of every cell, behind what it reads.

    A writer goes all its way first, for a reader may read any generation of it; the members of a population,
    who read each other, go side by side.
    """
    for index, cell in cells.items():
        group = [cells[member] for member in cell.spec.members or (index,)]
        if cell is not group[0]:
            continue
        for now in range(max(member.spec.arrives + member.spec.generations for member in group) + 1):
            for member in group:
                if 0 <= now - member.spec.arrives <= member.spec.generations:
                    yield member, now - member.spec.arrives


def _rows(unit: Unit, cells: Mapping[int, CellRun]) -> pa.Table:
    """The rows of a unit's chains, cell by cell."""
    by_cell: dict[int, list[Chain]] = {}
    for chain in unit.chains:
        by_cell.setdefault(chain.cell, []).append(chain)
    tables = [cells[index].rows(chains) for index, chains in by_cell.items()]
    return pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]


def _cells(unit: Unit) -> dict[int, CellRun]:
    """The cells of a unit, those that write for others before these."""
    seeds = tuple(dict.fromkeys(chain.seed for chain in unit.chains))
    lineage = build(
        {index: job.spec for index, job in unit.jobs.items()}, lambda index, seed: str(index), seeds
    )
    cells: dict[int, CellRun] = {}
    for index, job in unit.jobs.items():
        writer = None if job.spec.source is None else cells[job.spec.source]
        cells[index] = CellRun(index, job, seeds, lineage, writer)
        if writer is not None:
            writer.read_by_others |= frozenset(cells[index].last_use)
            writer.keeps_models |= bool(job.spec.filters)
    for cell in cells.values():
        cell.members = [cells[index] for index in cell.spec.members]
        for recipe in cell.recipes:
            for part in recipe.parts:
                place, generation = writer_of(part.origin) if part.origin >= 0 else (None, 0)
                if place is not None:
                    cell.members[recipe.writers[place]].read_by_others |= {generation}
    return cells


@dataclass(frozen=True)
class Lesson:
    """What a chain trains on in one generation.

    Attributes:
        cell: Index of the chain's cell.
        node: The generation.
        nodes: By key, those whose corpora it reads.
        sources: Where its training examples come from.
    """

    cell: int
    node: Node
    nodes: Mapping[str, Node]
    sources: Sources


class Again:
    """A unit that is run again to look at what its chains train on, which bundles do not keep."""

    def __init__(self, unit: Unit) -> None:
        """Nothing is computed yet."""
        self.unit, self.cells = unit, _cells(unit)
        for cell in self.cells.values():
            cell.read_by_others = frozenset(range(cell.job.spec.generations + 1))

    def lessons(self) -> Iterator[Lesson]:
        """Every generation of every chain, when all that it reads is written."""
        wanted = {chain.cell for chain in self.unit.chains}
        with one_thread():
            for cell, generation in _order(self.cells):
                cell.begin(generation)
                for place in range(len(cell.alive)) if cell.index in wanted else ():
                    node = cell.nodes[cell.seeds[cell.alive[place]]][generation]
                    yield Lesson(cell.index, node, cell.all_nodes, Held(cell, place))
                cell.step(generation)

    def rows(self) -> pa.Table:
        """As `run_unit`; behind the last lesson."""
        return _rows(self.unit, self.cells)


def provenance(started: float, commit: str) -> dict[str, Any]:
    """How, where and when a bundle was computed.

    Args:
        started: By `time.monotonic`.
        commit: Revision of the source; empty where it is not known.
    """
    return {
        "commit": commit,
        "host": socket.gethostname(),
        "device": cpu_device(),
        "versions": {
            "harness": __version__,
            "python": platform.python_version(),
            "pyarrow": pa.__version__,
            **PACKAGES,
            **versions(),
        },
        "seconds": round(time.monotonic() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
