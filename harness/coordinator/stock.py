"""What of a grid is done: everything here can be derived again from the store."""

from __future__ import annotations

from harness.coordinator.base import Summary
from harness.errors import DamagedError
from harness.files import read_json
from harness.records import Record
from harness.science import Branch, Chain, chain_nodes, ends, reachable
from harness.store import Store
from harness.study import Prepared


class Stock:
    """Which generations and chains are complete.

    Attributes:
        done: Nodes that are complete.
        mine: Those of them that this coordinator's gangs computed.
        diverged: Nodes behind which their chains have nothing.
    """

    def __init__(self, prepared: Prepared, store: Store, coordinator: str) -> None:
        """Take stock of the store.

        Args:
            prepared: The study.
            store: The store.
            coordinator: Whose generations count as ``mine``.
        """
        self.lineage, self.store, self.coordinator = prepared.lineage, store, coordinator
        committed = set(self.lineage.nodes) & store.committed("evaluations")
        self.done = {node for node in committed if self._is_complete(node)}
        self.mine: set[str] = set()
        self.diverged: set[str] = set()
        self._chains_of: dict[str, list[Chain]] = {}
        self._left: dict[str, int] = {}
        for chain in self.lineage.chains:
            missing = [node for node in chain.nodes if node not in self.done]
            self._left[chain.id] = len(missing)
            for node in missing:
                self._chains_of.setdefault(node, []).append(chain)
        self.diverged = {key for key in ends(self.lineage, self.done) if self._has_diverged(store.record(key))}
        self._exists = reachable(self.lineage, self.diverged)
        self._told = {chain.id for chain in self.lineage.chains if self.complete(chain)}

    @staticmethod
    def _has_diverged(record: Record | None) -> bool:
        return record is not None and record.status == "diverged"

    def _is_complete(self, key: str) -> bool:
        node = self.lineage.nodes[key]
        return self.store.complete(node, self.lineage.examples[node.corpus])

    def is_there(self, node: str) -> bool:
        """Whether a node is complete; a record alone can be older than the fit or corpus that is being made again for it."""
        return node in self.done or (self.store.has("evaluations", node) and self._is_complete(node))

    def news(self) -> list[str]:
        """Nodes that have become complete since they were noted."""
        found = (set(self.lineage.nodes) - self.done) & self.store.committed("evaluations")
        return [node for node in found if self._is_complete(node)]

    def note(self, node: str) -> tuple[Record | None, list[Chain]]:
        """Note that a node is complete; returns its record and the chains that are complete with it."""
        self.done.add(node)
        record = self.store.record(node)
        if self._is_mine(node):
            self.mine.add(node)
        touched = self._chains_of.pop(node, [])
        for chain in touched:
            self._left[chain.id] -= 1
        if self._has_diverged(record):
            self.diverged.add(node)
            self._exists = reachable(self.lineage, self.diverged)
            touched = list(self.lineage.chains)  # those that it writes for end with it
        complete = [chain for chain in touched if chain.id not in self._told and self.complete(chain)]
        self._told |= {chain.id for chain in complete}
        return record, complete

    def _is_mine(self, node: str) -> bool:
        try:
            found = read_json(self.store.path("evaluations", node) / "provenance.json")
        except DamagedError:
            return False
        return bool(found.get("coordinator") == self.coordinator)

    def next_of(self, branch: Branch) -> str | None:
        """The first node of a branch that is not complete."""
        return next((node for node in branch.nodes if node not in self.done), None)

    @property
    def gone(self) -> set[str]:
        """Nodes that will never be there; nobody need wait for them."""
        return set(self.lineage.nodes) - self._exists

    def unreachable(self, branch: Branch) -> bool:
        """Whether what is left of a branch does not exist (`reachable`)."""
        first = self.next_of(branch)
        return first is not None and first not in self._exists

    def complete(self, chain: Chain) -> bool:
        """Whether a chain has all the generations that exist of it."""
        if self._left[chain.id] == 0:
            return True
        return bool(self.diverged) and all(node in self.done for node in chain_nodes(chain, self._exists, self.diverged))

    def summary(self, wall_s: float, stopped: bool, reason: str, failures: tuple[tuple[str, str], ...]) -> Summary:
        """What a run did.

        Args:
            wall_s: Seconds that it took.
            stopped: Whether it ended early.
            reason: Why, where nobody asked it to.
            failures: Branch and why.
        """
        complete, chains = sum(self.complete(chain) for chain in self.lineage.chains), len(self.lineage.chains)
        stopped = stopped and complete < chains
        failed = 0 if stopped else chains - complete
        reused = len(self.done) - len(self.mine)
        return Summary(complete, failed, len(self.mine), reused, round(wall_s, 3), stopped, reason, failures)
