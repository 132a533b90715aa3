"""What is committed, running, waiting and failed, from the store alone."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from harness.coordinator.slices import make_slices
from harness.science import Node, chain_nodes, cut, ends, reachable
from harness.store import Experiment, Leases, Store
from harness.store.bundles import CHAIN
from harness.study import Prepared

WRITER_ENDED = "from generation {} on: the chain that writes its examples has diverged"


@dataclass(frozen=True)
class ChainState:
    """One chain, with detail for people.

    Its state is ``complete``, ``diverged``, ``unreachable`` (the chain that writes its examples has diverged), ``running``,
    ``failed``, ``damaged``, ``interrupted`` (there is unfinished work to go on from, and nobody is at it) or ``waiting``.
    """

    chain: str
    axes: Mapping[str, Any]
    seed: int
    committed: int
    total: int
    state: str
    detail: str


def lease_holder(leases: Leases, key: str) -> str | None:
    """Who works on a key: host and process; None where nobody does.

    One look cannot watch a counter, so an owner on another machine counts as alive while its counter's file, by the file system's
    and this machine's clocks, is not older than two lease times.
    """
    view = leases.look(key)
    if view.owner is None or not leases.held(view):
        return None
    who = leases.watch.identity(view.owner)
    with contextlib.suppress(OSError):
        age = time.time() - (leases.watch.folder / f"{view.owner}.beat").stat().st_mtime
        if age < 2 * float(who.get("lease_s", 60.0)):
            return f"process {who.get('pid')} on {who.get('host')}"
    return None


def chain_states(prepared: Prepared, store: Store) -> list[ChainState]:
    """The state of every chain, from the store alone."""
    return _States(prepared, store).all()


class _States:
    """What all chains' states are read from, read once."""

    def __init__(self, prepared: Prepared, store: Store) -> None:
        self.prepared, self.store = prepared, store
        experiment = Experiment(store.root, prepared.study.base.experiment)
        nodes, examples = prepared.lineage.nodes, prepared.lineage.examples
        there = store.committed("evaluations") & nodes.keys()
        self.committed = {key for key in there if store.complete(nodes[key], examples[nodes[key].corpus])}
        self.branch_of = {node: branch.id for branch in cut(prepared.lineage) for node in branch.nodes}
        self.progress, self.failed = experiment.progress(), failures(experiment)
        self.events = list(experiment.events()) if prepared.bundles else []
        self.leases = Leases(store.root, None)
        self.leased = {key for key, view in self.leases.keys() if view.owner is not None}
        self.work = {path.name for path in (store.root / "work").glob("*")}
        found = {key: store.record(key) for key in ends(prepared.lineage, self.committed)}
        self.diverged = {key for key, record in found.items() if record is not None and record.status == "diverged"}
        self.exists = reachable(prepared.lineage, self.diverged)

    def all(self) -> list[ChainState]:
        nodes, found = self.prepared.lineage.nodes, self._bundled()
        for chain in self.prepared.lineage.chains:
            mine = list(chain_nodes(chain, self.exists, self.diverged))
            done = next((place for place, node in enumerate(mine) if node not in self.committed), len(mine))
            if done < len(mine):
                state, detail = self._open(nodes[mine[done]])
            elif done == len(chain.nodes):
                state, detail = "complete", ""
            elif mine and mine[-1] in self.diverged:
                state, detail = "diverged", f"in generation {done - 1}"
            else:
                state, detail = "unreachable", WRITER_ENDED.format(done)
            found.append(ChainState(chain.id, self.prepared.axes(chain), chain.seed, done, len(chain.nodes), state, detail))
        return found

    def _bundled(self) -> list[ChainState]:
        """Bundled chains are there as a whole, or not."""
        found, places = [], self.store.bundles.index()
        table = self.store.bundles.read([chain.key for chain in self.prepared.bundles], places) if self.prepared.bundles else None
        ended: dict[str, int] = {}
        rows: Counter[str] = Counter()
        why = {event["chain"]: event["reason"] for event in self.events if event["event"] == "chain_failed"}
        if table is not None:
            rows.update(table[CHAIN].to_pylist())
            diverged = table.filter(pc.equal(table["status"], "diverged"))
            ended = dict(zip(diverged[CHAIN].to_pylist(), diverged["generation"].to_pylist(), strict=True))
        holders = self._slice_holders()
        for chain in self.prepared.bundles:
            total, axes = chain.generations + 1, self.prepared.axes(chain)
            there = chain.key in places and places[chain.key].generations >= chain.generations
            end = ended.get(chain.key) if there else None
            if end is not None and end <= chain.generations:
                found.append(ChainState(chain.id, axes, chain.seed, end + 1, total, "diverged", f"in generation {end}"))
                continue
            if there and rows[chain.key] < total:
                count = rows[chain.key]
                found.append(ChainState(chain.id, axes, chain.seed, count, total, "unreachable", WRITER_ENDED.format(count)))
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
        keys = {data.key for data in self.prepared.data}
        if not (self.leased and self.prepared.bundles and all(key is None or self.store.has("data", key) for key in keys)):
            return holders  # nobody can have begun without the data
        for part in make_slices(self.prepared, self.store):
            if part.key in self.leased and (holder := lease_holder(self.leases, part.key)) is not None:
                holders |= {chain.key: f"slice of {len(part.chains)}, {holder}" for chain in part.chains}
        return holders

    def _open(self, node: Node) -> tuple[str, str]:
        """The state of a chain whose next generation is this one."""
        branch = self.branch_of[node.evaluation]
        keys = (node.evaluation, node.fit, node.corpus)
        holder = next((found for key in keys if key in self.leased and (found := lease_holder(self.leases, key))), None)
        if holder is not None:
            progress = self.progress.get(branch, {})
            if progress.get("node") != node.evaluation:
                return "running", f"generation {node.generation}, {holder}"
            share = 100 * progress["done"] / max(progress["total"], 1)
            return "running", f"generation {node.generation} {progress['phase']} {share:.0f} %, {holder}"
        if branch in self.failed:
            return "failed", self.failed[branch]
        aside = self.store.trouble.get(str(self.store.path("evaluations", node.evaluation)))
        if aside is not None:
            return "damaged", f"generation {node.generation}; the next run makes it again"
        if self.work & set(keys):
            return "interrupted", f"in generation {node.generation}; run the command again to go on"
        if self.store.record(node.evaluation) is not None:
            have, needed = self.store.corpora.count(node.corpus), self.prepared.lineage.examples[node.corpus]
            lacks = f"{have} of {needed} examples are there" if self.store.has("fits", node.fit) else "its fit is gone"
            return "waiting", f"generation {node.generation}: {lacks}; the next run makes the rest"
        return "waiting", ""


def failures(experiment: Experiment) -> dict[str, str]:
    """Branch to why it failed, for branches whose last word was a failure without another try."""
    failed: dict[str, str] = {}
    for event in experiment.events():
        if event["event"] == "branch_failed" and not event["again"]:
            failed[event["branch"]] = event["reason"]
        elif event["event"] in ("branch_started", "branch_ended"):
            failed.pop(event["branch"], None)
    return failed
