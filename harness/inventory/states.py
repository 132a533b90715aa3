"""The state of every generation of a study in a store.

Scheduler, plan, status, explain, mirrors and exports all read it here, so they agree on what is there and on
what a run will do.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from harness.inventory.slices import missing
from harness.records import Record
from harness.science import Chain, Node, chain_nodes, cut, ends, reachable
from harness.store import Experiment, Leases, Store
from harness.store.bundles import InBundle
from harness.study import Prepared

State = Literal[
    "committed",
    "diverged",
    "new",
    "short",
    "unfitted",
    "damaged",
    "running",
    "failed",
    "interrupted",
    "waiting",
    "unreachable",
]
READERS = 8
"""Generations that are looked at side by side."""
WRITER_ENDED = "from generation {} on: the chain that writes its examples has diverged"


@dataclass(frozen=True)
class NodeState:
    """What is to be said of a generation.

    Its state is ``committed``; ``diverged`` (committed, and its chain ends with it); ``new`` (it is made with
    its whole chain, which is not there); ``short`` (its corpus has fewer examples than the grid reads) or
    ``unfitted`` (its record is there, its fit is gone); ``damaged``; ``running``; ``failed`` (tried, and the
    next run tries again); ``interrupted`` (there is unfinished work to go on from, and nobody is at it);
    ``waiting``, for what of another chain; ``unreachable`` (a chain that writes for it has diverged).

    Attributes:
        state: In a word.
        detail: For people; empty where there is nothing to add.
    """

    state: State
    detail: str = ""


class Inventory:
    """The state of a study's generations.

    It is what the store had when this was made, and what has been noted since.

    Attributes:
        done: Nodes of which everything is there.
        diverged: Nodes of them behind which their chains have nothing.
        exists: Nodes that there will ever be (`reachable`).
        places: Where bundled chains are, by key.
    """

    def __init__(self, prepared: Prepared, store: Store, asked: Collection[str] | None = None) -> None:
        """Look at what is committed.

        Args:
            prepared: The study.
            store: The store.
            asked: Nodes that are looked at; all when None. Others count as complete where they have a record:
                nobody asks for them, or whoever does reads and checks the record himself.
        """
        self.prepared, self.store, self.lineage = prepared, store, prepared.lineage
        there = self.lineage.nodes.keys() & store.committed("evaluations")
        self.done = there - self._incomplete(there if asked is None else there & set(asked))
        last = sorted(ends(self.lineage, self.done, asked))
        with ThreadPoolExecutor(READERS) as pool:
            records = dict(zip(last, pool.map(store.record, last), strict=True))
        self.diverged = {key for key, record in records.items() if _has_diverged(record)}
        self.exists = reachable(self.lineage, self.diverged)
        self.places: Mapping[str, InBundle] = store.bundles.index() if prepared.bundles else {}

    def _incomplete(self, keys: Collection[str]) -> set[str]:
        """Those of which something is missing.

        Each is some seventeen looks at files; where a network answers them, waiting takes the time.
        """
        with ThreadPoolExecutor(READERS) as pool:
            return {
                key for key, whole in zip(keys, pool.map(self._is_complete, keys), strict=True) if not whole
            }

    def _is_complete(self, key: str) -> bool:
        node = self.lineage.nodes[key]
        return self.store.complete(node, self.lineage.examples[node.corpus])

    # --- what is done ---------------------------------------------------------------------------------------

    def reopen(self, store: Store) -> None:
        """Go on with the store open for writing: what was not complete is looked at again, and set aside.

        Args:
            store: The same root (`Store.open`).
        """
        self.store = store
        for key in self.news():
            self.note(key)
        if self.prepared.bundles:
            self.places = store.bundles.index()

    def is_there(self, key: str) -> bool:
        """Whether a node is complete by now.

        A record alone can be older than the fit or corpus that is being made again.
        """
        return key in self.done or (self.store.has("evaluations", key) and self._is_complete(key))

    def news(self) -> list[str]:
        """Nodes that have become complete since they were noted."""
        found = (self.lineage.nodes.keys() - self.done) & self.store.committed("evaluations")
        return [key for key in found if self._is_complete(key)]

    def note(self, key: str) -> Record | None:
        """Note that a node is complete; returns its record."""
        self.done.add(key)
        record = self.store.record(key)
        if _has_diverged(record):
            self.diverged.add(key)
            self.exists = reachable(self.lineage, self.diverged)
        return record

    @property
    def left(self) -> set[str]:
        """Nodes that a run will compute, or complete."""
        return self.exists - self.done

    @property
    def gone(self) -> set[str]:
        """Nodes that will never be there; nobody need wait for them."""
        return self.lineage.nodes.keys() - self.exists

    @property
    def missing(self) -> list[Chain]:
        """Bundled chains that are not there, or not to their whole length."""
        return missing(self.prepared, self.places)

    @property
    def work_left(self) -> bool:
        """Whether any generation that exists is still to be computed."""
        return bool(self.left or self.missing)

    def is_complete(self, chain: Chain) -> bool:
        """Whether a chain of nodes has all the generations that there will ever be of it."""
        return all(key in self.done for key in self.nodes_of(chain))

    def nodes_of(self, chain: Chain) -> Collection[str]:
        """The nodes of a chain that exist."""
        return chain.nodes if not self.diverged else list(chain_nodes(chain, self.exists, self.diverged))

    def committed(self, chain: Chain) -> int:
        """How many generations of a chain are there, from the first on."""
        nodes = list(self.nodes_of(chain))
        return next((place for place, key in enumerate(nodes) if key not in self.done), len(nodes))

    # --- and what is not ------------------------------------------------------------------------------------

    @cached_property
    def _experiment(self) -> Experiment:
        return Experiment(self.store.root, self.prepared.study.base.experiment)

    @cached_property
    def branch_of(self) -> Mapping[str, str]:
        """Node to the branch that it is in."""
        return {key: branch.id for branch in cut(self.lineage) for key in branch.nodes}

    @cached_property
    def _failed(self) -> Mapping[str, str]:
        return failures(self._experiment)

    @cached_property
    def _progress(self) -> Mapping[str, Mapping[str, Any]]:
        return self._experiment.progress()

    @cached_property
    def leases(self) -> Leases:
        """The store's leases."""
        return Leases(self.store.root, None)

    @cached_property
    def leased(self) -> set[str]:
        """Keys that somebody holds, or held when he died."""
        return {key for key, view in self.leases.keys() if view.owner is not None}

    @cached_property
    def _work(self) -> set[str]:
        return {path.name for path in (self.store.root / "work").glob("*")}

    def state(self, key: str) -> NodeState:
        """The state of a node."""
        node = self.lineage.nodes[key]
        if key in self.diverged:
            return NodeState("diverged")
        if key in self.done:
            return NodeState("committed")
        if key not in self.exists:
            return NodeState("unreachable", WRITER_ENDED.format(node.generation))
        return self._open(node)

    def _open(self, node: Node) -> NodeState:
        """The state of a node of which something is still to be done."""
        key, branch = node.evaluation, self.branch_of[node.evaluation]
        keys = (key, node.fit, node.corpus)
        holder = next(
            (found for one in keys if one in self.leased and (found := lease_holder(self.leases, one))), None
        )
        if holder is not None:
            return NodeState("running", f"generation {node.generation}{self._share(branch, key)}, {holder}")
        if branch in self._failed:
            return NodeState("failed", self._failed[branch])
        if str(self.store.path("evaluations", key)) in self.store.trouble:
            return NodeState("damaged", f"generation {node.generation}; the next run makes it again")
        if self._work & set(keys):
            return NodeState(
                "interrupted", f"in generation {node.generation}; run the command again to go on"
            )
        if self.store.record(key) is None:
            return NodeState("waiting", self._waits_for(node))
        if not self.store.has("fits", node.fit):
            return NodeState(
                "unfitted", f"generation {node.generation}: its fit is gone; the next run makes the rest"
            )
        have, needed = self.store.corpora.count(node.corpus), self.lineage.examples[node.corpus]
        if have >= needed:  # somebody has finished it since
            return NodeState("committed")
        return NodeState(
            "short",
            f"generation {node.generation}: {have} of {needed} examples are there; the next run makes the "
            "rest",
        )

    @cached_property
    def _chains_of(self) -> Mapping[str, list[str]]:
        """Node to the chains that it is a generation of."""
        found: dict[str, list[str]] = {}
        for chain in self.lineage.chains:
            for key in chain.nodes:
                found.setdefault(key, []).append(chain.id)
        return found

    def _waits_for(self, node: Node) -> str:
        """What of another chain a generation needs that is not there yet; empty where it needs none."""
        mine = set(self._chains_of[node.evaluation])
        for key in node.dependencies:
            others = self._chains_of[key]
            if key not in self.done and mine.isdisjoint(others):
                return f"for generation {self.lineage.nodes[key].generation} of chain {others[0]}"
        return ""

    def _share(self, branch: str, key: str) -> str:
        progress = self._progress.get(branch, {})
        if progress.get("node") != key:
            return ""
        return f" {progress['phase']} {100 * progress['done'] / max(progress['total'], 1):.0f} %"


def _has_diverged(record: Record | None) -> bool:
    return record is not None and record.status == "diverged"


def lease_holder(leases: Leases, key: str) -> str | None:
    """Who works on a key: host and process; None where nobody does.

    One look cannot watch a counter, so an owner on another machine counts as alive while its counter's file,
    by the file system's and this machine's clocks, is not older than two lease times.
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


def failures(experiment: Experiment) -> dict[str, str]:
    """Branch to why it failed, for branches whose last word was a failure without another try."""
    failed: dict[str, str] = {}
    for event in experiment.events():
        if event["event"] == "branch_failed" and not event["again"]:
            failed[event["branch"]] = event["reason"]
        elif event["event"] in ("branch_started", "branch_ended"):
            failed.pop(event["branch"], None)
    return failed
