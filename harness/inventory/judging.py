"""Judges that decide nothing: which, in which generations, and what to do about it."""

from __future__ import annotations

from typing import Any

from harness.components import FILTERS
from harness.components.judging import DECISIONS
from harness.config.naming import cell_name
from harness.errors import DamagedError
from harness.science import Node
from harness.store import Store
from harness.study import Prepared

NEARLY_ALL = 0.99
"""Mean reward from which fits that do not record it are taken to have learned from all that was written."""


def remarks(prepared: Prepared, store: Store) -> list[str]:
    """What a study's judges decide that is no decision, a line for each cell, by what fits have recorded.

    And, of judges whose section says it whatever is written, before anything is.
    """
    judges = [
        [item.section for item in spec.filters if FILTERS[item.section.kind].decides]
        for spec in prepared.specs
    ]
    found: dict[tuple[int, str], set[int]] = {}
    for chain in prepared.lineage.chains if any(judges) else ():
        for section in judges[chain.cell]:
            wrong = FILTERS[section.kind].foreseen(section)
            if wrong:
                found[chain.cell, wrong] = set()
                continue
            for key in chain.nodes[1:]:
                wrong = decision(store, prepared.lineage.nodes[key])
                if wrong:
                    found.setdefault((chain.cell, wrong), set()).add(prepared.lineage.nodes[key].generation)
    lines = []
    for (cell, wrong), generations in sorted(found.items()):
        axes = dict(prepared.study.cells[cell].axes)
        values = tuple(axes.get(name) for name in prepared.study.columns)
        named = any(value is not None for value in values)
        where = [cell_name(values, prepared.study.columns)] if named else []
        if generations:
            where.append(f"generation {', '.join(map(str, sorted(generations)))}")
        lines.append(": ".join([*([", ".join(where)] if where else []), DECISIONS[wrong]]))
    return lines


def decision(store: Store, node: Node) -> str:
    """What is wrong with how a fit's examples were judged (`DECISIONS`), as far as it is stored."""
    try:
        fit: dict[str, Any] = store.json("fits", node.fit, "fit.json")
        if "judge" in fit:
            return str(fit["judge"])
        known = store.json("evaluations", node.evaluation, "record.json")["metrics"]
    except (DamagedError, OSError):
        return ""
    # fits of earlier versions do not record it
    if known.get("judge/accepted") == 0:
        return "nothing"
    reward, truth = known.get("judge/reward"), known.get("judge/true_share")
    return "everything" if None not in (reward, truth) and reward >= NEARLY_ALL > truth else ""
