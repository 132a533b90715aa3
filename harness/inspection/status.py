"""What is committed, running, waiting and failed, from the store alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.inventory import Inventory, StoredChains
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared

_NAMES = {"committed": "complete", "short": "waiting", "unfitted": "waiting"}
"""States of generations to those of chains, where they differ."""


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
    stored = StoredChains(prepared, store, Inventory(prepared, store))
    chains: list[Chain] = [*prepared.bundles, *prepared.lineage.chains]
    return [_state(stored, chain, prepared.axes(chain)) for chain in chains]


def _state(stored: StoredChains, chain: Chain, axes: Mapping[str, Any]) -> ChainState:
    """The state of a chain is that of the first generation of which something is still to be done."""
    done, found = stored.of(chain).progress(chain)
    state = _NAMES.get(found.state, found.state)
    return ChainState(chain.id, axes, chain.seed, done, chain.generations + 1, state, found.detail)
