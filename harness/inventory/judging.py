"""Judges that decide nothing: which, in which generations, and what to do about it."""

from __future__ import annotations

from harness.components import FILTERS
from harness.components.judging import DECISIONS
from harness.config.naming import cell_name
from harness.errors import DamagedError
from harness.science import Node
from harness.store import Store
from harness.study import Prepared


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
    """What is wrong with how a fit's examples were judged (`DECISIONS`), as it has recorded it.

    Empty where nothing is, where nothing is stored, and of fits of versions that did not record it.
    """
    try:
        return str(store.json("fits", node.fit, "fit.json").get("judge", ""))
    except (DamagedError, OSError):
        return ""
