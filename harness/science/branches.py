"""Branches: the paths that the graph is cut into, each for one gang."""

from __future__ import annotations

from dataclasses import dataclass, replace

from harness.science.graph import Lineage


@dataclass(frozen=True, slots=True)
class Branch:
    """A path of the lineage from a fork to a leaf, which gangs run; all its nodes are of one cell.

    Attributes:
        id: Short name, from its first node.
        nodes: Evaluation keys in order.
        needs: Nodes outside the branch that must be committed before it starts.
        rank: Cost of the longest path from its first node to a leaf: the scheduler's priority.
        ranks: The same of each of its nodes; empty where nothing is known but ``rank``.
        shares: Those of ``needs`` that only make first what it would make itself without them.
    """

    id: str
    nodes: tuple[str, ...]
    needs: frozenset[str]
    rank: float
    ranks: tuple[float, ...] = ()
    shares: frozenset[str] = frozenset()

    def rest(self, node: str) -> Branch:
        """What is left of it from one of its nodes on, under the same id and by its own priority."""
        place = self.nodes.index(node)
        ranks = self.ranks[place:]
        return replace(self, nodes=self.nodes[place:], ranks=ranks, rank=ranks[0] if ranks else self.rank)


def cut(lineage: Lineage) -> tuple[Branch, ...]:
    """Cut the graph into branches: each path goes on with its costliest child of the same cell.

    Other children start branches of their own. A gang builds its learner, its filters and what it reads from
    outside from the cell of its branch, so a branch never goes on into another cell, though the two share all
    generations up to there.
    """
    children: dict[str, list[str]] = {}
    for node in lineage.nodes.values():
        if node.previous is not None:
            children.setdefault(node.previous, []).append(node.evaluation)
    height: dict[str, float] = {}
    for key in reversed(list(lineage.nodes)):
        below = max((height[child] for child in children.get(key, ())), default=0.0)
        height[key] = lineage.nodes[key].cost + below
    heirs: dict[str, str] = {}
    for key, below_keys in children.items():
        cell = lineage.nodes[key].cell
        own = [
            child
            for child in below_keys
            if lineage.nodes[child].dependencies == (key,) and lineage.nodes[child].cell == cell
        ]
        if own:
            heirs[key] = max(own, key=lambda child: height[child])
    continued = set(heirs.values())
    branches = []
    for key, node in lineage.nodes.items():
        if key in continued:
            continue
        path = [key]
        while path[-1] in heirs:
            path.append(heirs[path[-1]])
        ranks = tuple(height[each] for each in path)
        needs = frozenset(node.dependencies)
        branches.append(Branch(key[:12], tuple(path), needs, ranks[0], ranks, node.shares))
    return tuple(branches)
