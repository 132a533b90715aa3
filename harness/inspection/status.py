"""What is committed, running, waiting and failed, from the store alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from harness.inventory import Inventory, lease_holder
from harness.inventory.slices import make_slices
from harness.inventory.states import WRITER_ENDED
from harness.science import Chain
from harness.store import Experiment, Store
from harness.store.bundles import CHAIN
from harness.study import Prepared


@dataclass(frozen=True)
class ChainState:
    """One chain, with detail for people.

    Its state is ``complete``, ``diverged``, ``unreachable`` (the chain that writes its examples has
    diverged), ``running``, ``failed``, ``damaged``, ``interrupted`` (there is unfinished work to go on from,
    and nobody is at it) or ``waiting``.
    """

    chain: str
    axes: Mapping[str, Any]
    seed: int
    committed: int
    total: int
    state: str
    detail: str


def chain_states(prepared: Prepared, store: Store) -> list[ChainState]:
    """The state of every chain, from the store alone."""
    inventory = Inventory(prepared, store)
    return [*_Bundled(inventory).all(), *(_state(inventory, chain) for chain in prepared.lineage.chains)]


def _state(inventory: Inventory, chain: Chain) -> ChainState:
    """The state of a chain is that of the first generation of which something is still to be done."""
    total, done, nodes = len(chain.nodes), inventory.committed(chain), list(inventory.nodes_of(chain))
    state, detail = "complete", ""
    if done < len(nodes):
        found = inventory.state(nodes[done])
        state, detail = "waiting" if found.state in ("short", "unfitted") else found.state, found.detail
    elif nodes and nodes[-1] in inventory.diverged:
        state, detail = "diverged", f"in generation {done - 1}"
    elif done < total:
        state, detail = "unreachable", WRITER_ENDED.format(done)
    return ChainState(chain.id, inventory.prepared.axes(chain), chain.seed, done, total, state, detail)


class _Bundled:
    """Bundled chains are there as a whole, or not."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory, self.prepared, self.store = inventory, inventory.prepared, inventory.store

    def all(self) -> list[ChainState]:
        """The state of every bundled chain."""
        if not self.prepared.bundles:
            return []
        found, places = [], self.inventory.places
        keys = [chain.key for chain in self.prepared.bundles]
        table = self.store.bundles.read(keys, places, lambda name: name == "status")
        ended: dict[str, int] = {}
        rows: dict[str, int] = {}
        events = Experiment(self.store.root, self.prepared.study.base.experiment).events()
        why = {event["chain"]: event["reason"] for event in events if event["event"] == "chain_failed"}
        if table is not None:
            counts = table[CHAIN].combine_chunks().value_counts()
            rows = dict(zip(*(part.to_pylist() for part in counts.flatten()), strict=True))
            diverged = table.filter(pc.equal(table["status"], "diverged"))
            ended = dict(zip(diverged[CHAIN].to_pylist(), diverged["generation"].to_pylist(), strict=True))
        holders = self._slice_holders()
        for chain in self.prepared.bundles:
            total, axes = chain.generations + 1, self.prepared.axes(chain)
            there = self.inventory.is_complete(chain)
            end = ended.get(chain.key) if there else None
            if end is not None and end <= chain.generations:
                found.append(
                    ChainState(chain.id, axes, chain.seed, end + 1, total, "diverged", f"in generation {end}")
                )
                continue
            if there and rows[chain.key] < total:
                count = rows[chain.key]
                found.append(
                    ChainState(
                        chain.id, axes, chain.seed, count, total, "unreachable", WRITER_ENDED.format(count)
                    )
                )
                continue
            state, detail = "waiting", ""
            if there:
                state = "complete"
            elif chain.key in holders:
                state, detail = "running", holders[chain.key]
            elif chain.key in why:
                state, detail = "failed", why[chain.key]
            found.append(ChainState(chain.id, axes, chain.seed, total if there else 0, total, state, detail))
        return found

    def _slice_holders(self) -> dict[str, str]:
        """Bundled chain to who works on the slice that it is in."""
        holders = dict[str, str]()
        keys = {data.kept.key for data in self.prepared.data if data.kept is not None}
        leases, leased = self.inventory.leases, self.inventory.leased
        if not (leased and all(self.store.sound("data", key) for key in keys)):
            return holders  # nobody can have begun without the data
        for part in make_slices(self.prepared, self.store):
            if part.key in leased and (holder := lease_holder(leases, part.key)) is not None:
                holders |= {chain.key: f"slice of {len(part.chains)}, {holder}" for chain in part.chains}
        return holders
