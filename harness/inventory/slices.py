"""Chains of cheap learners cut into slices.

What one run at a time works on, and about how long that takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from harness.bundle import CellJob, Unit
from harness.components import LEARNERS
from harness.data.analytic import Truth
from harness.preparation import load_data
from harness.science import Chain
from harness.store import Store
from harness.store.bundles import InBundle
from harness.study import Prepared

MAX_CHAINS = 1000
"""Chains of a unit, and of a task."""
UNIT_BYTES = 24 * 2**20
"""Examples that the chains of a unit hold together; more would not fit the processor's caches, and memory on
many cores."""
SLICES = 512
"""Into so many a large study is cut at least: enough for the runs that share it, few enough for a lease
each."""
SLICE_S = (0.5, 5.0)
"""Least and most estimated seconds of a slice."""
GENERATION_S = 1e-4
"""Seconds of a chain's generation besides its examples."""


@dataclass(frozen=True)
class Slice:
    """Units that one run at a time works on.

    Which chains it holds depends on the study alone, not on who asks or on what is there already, so that
    runs of one study agree.

    Attributes:
        key: Of its lease; the hash of its chains' keys.
        units: The units.
        seconds: Estimate.
        bytes: Rough memory of the largest unit.
    """

    key: str
    units: tuple[Unit, ...]
    seconds: float
    bytes: int

    @property
    def chains(self) -> list[Chain]:
        """The chains of all units."""
        return [chain for unit in self.units for chain in unit.chains]

    def only(self, keys: Collection[str]) -> Slice | None:
        """What is left of it where only some chains are wanted; None where nothing is."""
        units = []
        for unit in self.units:
            chains = tuple(chain for chain in unit.chains if chain.key in keys)
            if chains:
                units.append(replace(unit, chains=chains))
        share = sum(len(unit.chains) for unit in units) / len(self.chains)
        return replace(self, units=tuple(units), seconds=self.seconds * share) if units else None


def missing(prepared: Prepared, places: Mapping[str, InBundle]) -> list[Chain]:
    """The bundled chains that the store has not, or not to their whole length; one for each key."""
    chains = prepared.bundled.values()
    return [c for c in chains if c.key not in places or places[c.key].generations < c.generations]


def make_slices(prepared: Prepared, store: Store) -> list[Slice]:
    """All bundled chains of a study, the costliest first.

    Args:
        prepared: The study.
        store: The store, with the study's data.
    """
    jobs, by_cell = _jobs(prepared, store), dict[int, list[Chain]]()
    # A shorter chain is the beginning of a longer one with its key.
    longest = {chain.key: chain for chain in sorted(prepared.bundles, key=lambda chain: chain.generations)}
    for chain in longest.values():
        by_cell.setdefault(chain.cell, []).append(chain)
    cost = {cell: chain_seconds(prepared, cell) for cell in by_cell}
    total = sum(cost[cell] * len(group) for cell, group in by_cell.items())
    target = min(max(total / SLICES, SLICE_S[0]), SLICE_S[1])
    units: list[tuple[float, Unit, int]] = []
    for cell, group in by_cell.items():
        made, members = jobs(cell), prepared.specs[cell].members
        if members and cell != members[0]:  # with the first of its population
            continue
        together = members or (cell,)
        alone = any(made[index].alone for index in together)
        held = max(
            sum(made[i].bytes_per_chain for i in together), *(j.bytes_per_chain for j in made.values())
        )
        seconds_each = sum(cost.get(index, 0.0) for index in together)
        room = 1 if alone else int(UNIT_BYTES // held)
        size = max(1, min(room, MAX_CHAINS // len(together), int(target / seconds_each)))
        for start in range(0, len(group), size):
            part = tuple(group[start : start + size])
            if len(members) > 1:
                seeds = {chain.seed for chain in part}
                part = tuple(c for member in members for c in by_cell.get(member, ()) if c.seed in seeds)
            units.append((sum(cost[chain.cell] for chain in part), Unit(part, made), held * size))
    units.sort(key=lambda item: -item[0])
    slices: list[Slice] = []
    gathered: list[Unit] = []
    seconds, most = 0.0, 0
    for each, unit, size in units:
        if gathered and (
            seconds + each > target or sum(len(u.chains) for u in gathered) + len(unit.chains) > MAX_CHAINS
        ):
            slices.append(_slice(gathered, seconds, most))
            gathered, seconds, most = [], 0.0, 0
        gathered.append(unit)
        seconds, most = seconds + each, max(most, size)
    return [*slices, _slice(gathered, seconds, most)] if gathered else slices


def _slice(units: list[Unit], seconds: float, most: int) -> Slice:
    keys = sorted(chain.key for unit in units for chain in unit.chains)
    return Slice(hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32], tuple(units), seconds, most)


def _jobs(prepared: Prepared, store: Store) -> Callable[[int], dict[int, CellJob]]:
    found: dict[int, CellJob] = {}

    def jobs(cell: int) -> dict[int, CellJob]:
        """A cell with the cells that write for it, these first, or with the members of its population."""
        source = prepared.specs[cell].source
        before = {} if source is None else jobs(source)
        members = prepared.specs[cell].members or (cell,)
        for member in members:
            if member not in found:
                spec = prepared.specs[member]
                truth = load_data(spec.data, store)
                assert isinstance(truth, Truth)
                found[member] = CellJob(spec, truth, prepared.study.cells[member].config.retention.weights)
        return {**before, **{member: found[member] for member in members}}

    return jobs


def chain_seconds(prepared: Prepared, cell: int) -> float:
    """Estimated seconds of one chain, with the chain that writes for it."""
    spec = prepared.specs[cell]
    recipes = (spec.recipe(g) for g in range(spec.generations + 1))
    section = spec.learner.section
    # Where moments or counts are all that a fit needs, a pool that only grows is not read again: a generation
    # adds a corpus to it.
    reread = LEARNERS[str(spec.learner.identity["kind"])].reads_pools_anew(section)
    own = sum(
        GENERATION_S + spec.cost * (r.size if reread or len(r.parts) < 3 else 2 * spec.n) for r in recipes
    )
    return own + (0.0 if spec.source is None else chain_seconds(prepared, spec.source))
