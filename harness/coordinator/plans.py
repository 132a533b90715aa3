"""From a branch of the lineage to what its gang is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from harness.chain import Plan
from harness.records import MEMBER
from harness.science import Branch, Node
from harness.study import Prepared


def plan_of(
    prepared: Prepared, branch: Branch, attempt: int = 1, commit: str = "", coordinator: str = ""
) -> Plan:
    """A branch with all nodes that it descends from, and how its cell is executed.

    Args:
        prepared: The study.
        branch: All its nodes are of one cell.
        attempt: 1 for the first try.
        commit: Revision of the source, for provenance.
        coordinator: Who schedules it, for provenance.
    """
    lineage = prepared.lineage
    [cell] = {lineage.nodes[key].cell for key in branch.nodes}
    written_by_others = prepared.specs[cell].source is not None

    def past(node: Node) -> tuple[str | None, ...]:
        """What the cell's own learner has computed, or can compute again, on the way to a node."""
        return (
            node.previous,
            node.first,
            node.init_from,
            node.prompted_by,
            node.judged_by,
            *(() if written_by_others else (key for origin, key in node.corpora.items() if origin < MEMBER)),
        )

    own = _reached(lineage.nodes, branch.nodes, past)
    nodes = _reached(lineage.nodes, branch.nodes, lambda node: (*past(node), *node.corpora.values()))
    return Plan(
        branch=branch.id,
        execution=prepared.executions[cell],
        order=branch.nodes,
        nodes=nodes,
        examples={node.corpus: lineage.examples[node.corpus] for node in nodes.values()},
        foreign=frozenset(node.fit for node in nodes.values()) - {node.fit for node in own.values()},
        attempt=attempt,
        commit=commit,
        coordinator=coordinator,
    )


def _reached(
    nodes: Mapping[str, Node], start: Iterable[str], follow: Callable[[Node], tuple[str | None, ...]]
) -> dict[str, Node]:
    """These nodes and all that they lead to."""
    found: dict[str, Node] = {}
    todo: list[str | None] = list(start)
    while todo:
        key = todo.pop()
        if key is not None and key not in found:
            found[key] = nodes[key]
            todo.extend(follow(nodes[key]))
    return found
