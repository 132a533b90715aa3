"""What a run has done: which chains are complete, and which generations it computed itself."""

from __future__ import annotations

from harness.coordinator.summary import RunSummary
from harness.errors import DamagedError
from harness.inventory import Inventory
from harness.records import Record
from harness.science import Branch, Chain, Lineage
from harness.store import Leases, Store


class Tally:
    """Counts what becomes complete while a run lasts.

    Attributes:
        inventory: What is there; it is kept up to date.
        mine: Nodes that this coordinator's gangs computed.
    """

    def __init__(self, inventory: Inventory, coordinator: str) -> None:
        """Count from here on.

        Args:
            inventory: What is there.
            coordinator: Whose generations count as ``mine``.
        """
        self.inventory, self.coordinator, self.lineage = inventory, coordinator, inventory.lineage
        self.mine: set[str] = set()
        self._chains_of: dict[str, list[Chain]] = {}
        self._left: dict[str, int] = {}
        for chain in self.lineage.chains:
            missing = [node for node in chain.nodes if node not in inventory.done]
            self._left[chain.id] = len(missing)
            for node in missing:
                self._chains_of.setdefault(node, []).append(chain)
        self._told = {chain.id for chain in self.lineage.chains if self.complete(chain)}

    def note(self, node: str) -> tuple[Record | None, list[Chain]]:
        """Note that a node is complete; returns its record and the chains that are complete with it."""
        diverged = len(self.inventory.diverged)
        record = self.inventory.note(node)
        if self._is_mine(node):
            self.mine.add(node)
        touched = self._chains_of.pop(node, [])
        for chain in touched:
            self._left[chain.id] -= 1
        if len(self.inventory.diverged) > diverged:
            touched = list(self.lineage.chains)  # those that it writes for end with it
        complete = [chain for chain in touched if chain.id not in self._told and self.complete(chain)]
        self._told |= {chain.id for chain in complete}
        return record, complete

    def _is_mine(self, node: str) -> bool:
        try:
            found = self.inventory.store.json("evaluations", node, "provenance.json")
        except DamagedError:
            return False
        return bool(found.get("coordinator") == self.coordinator)

    def next_of(self, branch: Branch) -> str | None:
        """The first node of a branch that is not complete."""
        return next((node for node in branch.nodes if node not in self.inventory.done), None)

    def unreachable(self, branch: Branch) -> bool:
        """Whether what is left of a branch does not exist."""
        first = self.next_of(branch)
        return first is not None and first not in self.inventory.exists

    def complete(self, chain: Chain) -> bool:
        """Whether a chain has all the generations that exist of it; counted, as it is asked for often."""
        return self._left[chain.id] == 0 or (
            bool(self.inventory.diverged) and self.inventory.is_complete(chain)
        )

    def summary(
        self, wall_s: float, stopped: bool, reason: str, failures: tuple[tuple[str, str], ...]
    ) -> RunSummary:
        """What the run did.

        Args:
            wall_s: Seconds that it took.
            stopped: Whether it ended early.
            reason: Why, where nobody asked it to.
            failures: Branch and why.
        """
        complete, chains = (
            sum(self.complete(chain) for chain in self.lineage.chains),
            len(self.lineage.chains),
        )
        stopped = stopped and complete < chains
        failed = 0 if stopped else chains - complete
        reused = len(self.inventory.done) - len(self.mine)
        return RunSummary(
            complete, failed, len(self.mine), reused, round(wall_s, 3), stopped, reason, failures
        )


def clear_committed(lineage: Lineage, store: Store, leases: Leases) -> None:
    """Remove what killed processes have left of work that is committed by now."""
    nodes = lineage.nodes.values()
    keys = {key for node in nodes for key in (node.fit, node.corpus, node.evaluation)}
    for key in keys & {path.name for path in (store.root / "work").iterdir()}:
        committed = store.has("evaluations", key) or store.has("fits", key) or store.corpora.count(key) > 0
        if committed and not leases.held(leases.look(key)):
            store.clear_work(key)
