"""Judges and curators that decide nothing: which, in which generations, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from harness.components import FILTERS
from harness.components.judging import DECISIONS
from harness.config.naming import cell_name
from harness.errors import DamagedError
from harness.records import Choices
from harness.science import Node
from harness.store import Store
from harness.store.bundles import CHAIN, CHOICES, GENERATION
from harness.study import Prepared

BY_LOT = 0.5
"""A curator is said to choose by lot where more than this share of a generation's choices are."""

ALIKE = (
    "so many of its choices are among examples that score alike, and so by lot: take a reward that tells "
    "them apart, or more examples of which one is kept"
)
"""What is said of a curator whose reward has become constant."""

NOTHING = "drops none of the {} synthetic examples that it has read: the cell is as without it"
"""What is said of filters that let everything pass."""


def remarks(prepared: Prepared, store: Store) -> list[str]:
    """What a study's judges and curators decide that is no decision, by what fits and bundles have recorded.

    A line for each cell. Of judges whose section says it whatever is written, before anything is.
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
    lines = [
        _line(prepared, cell, map(str, sorted(generations)), DECISIONS.get(wrong, wrong))
        for (cell, wrong), generations in sorted(found.items())
    ]
    for cell, chosen in sorted(_chosen(prepared, store).items()):
        read, passed = (sum(getattr(part, name) for part in chosen.values()) for name in ("read", "passed"))
        if read and read == passed:
            kinds = ", ".join(dict.fromkeys(item.section.kind for item in _reading(prepared, cell)))
            lines.append(_line(prepared, cell, (), f"{kinds}: {NOTHING.format(f'{read:,}')}"))
        shares = {then: part.alike / part.made for then, part in sorted(chosen.items()) if part.made}
        by_lot = [f"{then} ({share:.0%})" for then, share in shares.items() if share > BY_LOT]
        if by_lot:
            kinds = ", ".join(dict.fromkeys(item.section.kind for item in _choosing(prepared, cell)))
            lines.append(_line(prepared, cell, by_lot, f"{kinds}: {ALIKE}"))
    return lines


def _line(prepared: Prepared, cell: int, generations: Iterable[str], text: str) -> str:
    """A remark about some generations of a cell."""
    axes, there = dict(prepared.study.cells[cell].axes), ", ".join(generations)
    values = tuple(axes.get(name) for name in prepared.study.columns)
    where = [cell_name(values, prepared.study.columns)] if any(value is not None for value in values) else []
    if there:
        where.append(f"generation {there}")
    return ": ".join([*([", ".join(where)] if where else []), text])


def _reading(prepared: Prepared, cell: int) -> list[Any]:
    """A cell's filters of what generations write; none beside a judge, of whom other remarks are made."""
    kinds = [(item, FILTERS[item.section.kind]) for item in prepared.specs[cell].filters]
    return (
        [item for item, kind in kinds if kind.of == "corpora"] if not any(k.rewards for _, k in kinds) else []
    )


def _choosing(prepared: Prepared, cell: int) -> list[Any]:
    """A cell's filters that keep one of several examples."""
    return [item for item in prepared.specs[cell].filters if FILTERS[item.section.kind].chooses]


def _chosen(prepared: Prepared, store: Store) -> Mapping[int, Mapping[int, Choices]]:
    """By cell and generation what the filters of all its seeds have done."""
    found: dict[int, dict[int, Choices]] = {}
    cells = {
        cell for cell in range(len(prepared.specs)) if _choosing(prepared, cell) or _reading(prepared, cell)
    }
    for cell, generation, made in _recorded(prepared, store, cells) if cells else ():
        of_cell = found.setdefault(cell, {})
        of_cell[generation] = of_cell.get(generation, Choices()) + made
    return found


def _recorded(prepared: Prepared, store: Store, cells: set[int]) -> Iterator[tuple[int, int, Choices]]:
    """Cell, generation and choices of each fit and each row of a bundle that has recorded them."""
    for chain in prepared.lineage.chains:
        if chain.cell in cells:
            for node in (prepared.lineage.nodes[key] for key in chain.nodes[1:]):
                yield chain.cell, node.generation, choices(store, node)
    bundled = {chain.key: chain for chain in prepared.bundles if chain.cell in cells}
    table = store.bundles.read(list(bundled), wanted=lambda name: name in CHOICES.values())
    if table is None:
        return
    for row in table.to_pylist():
        # bundles of earlier versions have fewer of these columns, or none
        counts = {name: row.get(column) for name, column in CHOICES.items()}
        known, chain = {name: n for name, n in counts.items() if n is not None}, bundled[row[CHAIN]]
        if row[GENERATION] <= chain.generations and known:
            yield chain.cell, row[GENERATION], Choices(**known)


def fit_facts(store: Store, fit: str) -> Mapping[str, Any]:
    """What a fit has recorded of itself; empty where it is not there, or damaged."""
    try:
        found = store.json("fits", fit, "fit.json")
    except (DamagedError, OSError):
        return {}
    return found if isinstance(found, Mapping) else {}


def decision(store: Store, node: Node) -> str:
    """What is wrong with how a fit's examples were judged (`DECISIONS`), as it has recorded it.

    Empty where nothing is, where nothing is stored, and of fits of versions that did not record it.
    """
    return str(fit_facts(store, node.fit).get("judge", ""))


def choices(store: Store, node: Node) -> Choices:
    """What filters that keep one of several have chosen for a fit, as it has recorded it.

    None are made where nothing is stored, and by fits of versions that did not record it.
    """
    return Choices(**fit_facts(store, node.fit).get("choices", {}))
