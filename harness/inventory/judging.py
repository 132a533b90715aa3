"""Judges and curators that decide nothing: which, in which generations, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.components import FILTERS
from harness.components.judging import DECISIONS
from harness.config.naming import cell_name
from harness.errors import DamagedError
from harness.records import FilterCounts
from harness.science import Node
from harness.store import Store
from harness.store.bundles import CHAIN, FILTER_COLUMNS, GENERATION
from harness.study import Prepared

Integers = npt.NDArray[np.int64]
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


def _chosen(prepared: Prepared, store: Store) -> Mapping[int, Mapping[int, FilterCounts]]:
    """By cell and generation what the filters of all its seeds have done."""
    found: dict[int, dict[int, FilterCounts]] = {}
    cells = {
        cell for cell in range(len(prepared.specs)) if _choosing(prepared, cell) or _reading(prepared, cell)
    }
    rows = _recorded(prepared, store, cells)
    if not len(rows):
        return found
    width = int(rows[:, 1].max()) + 1
    places, inverse = np.unique(rows[:, 0] * width + rows[:, 1], return_inverse=True)
    for place, sums in zip(places.tolist(), _sums(inverse, rows[:, 2:], len(places)).tolist(), strict=True):
        found.setdefault(place // width, {})[place % width] = FilterCounts(
            **dict(zip(FILTER_COLUMNS, sums, strict=True))
        )
    return found


def _sums(groups: Integers, rows: Integers, count: int) -> Integers:
    """Sums of rows by group, shape [count, columns]."""
    return np.stack([np.bincount(groups, column, count) for column in rows.T], axis=1).astype(np.int64)


def _recorded(prepared: Prepared, store: Store, cells: set[int]) -> Integers:
    """What each fit, and each row of a bundle, has recorded: cell, generation and `FILTER_COLUMNS`."""
    single = [
        [chain.cell, node.generation, *_filter_counts(store, node).to_json().values()]
        for chain in prepared.lineage.chains
        if chain.cell in cells
        for node in (prepared.lineage.nodes[key] for key in chain.nodes[1:])
    ]
    bundled = {chain.key: chain for chain in prepared.bundles if chain.cell in cells}
    parts = [np.array(single, dtype=np.int64).reshape(-1, 2 + len(FILTER_COLUMNS))]
    table = (
        store.bundles.read(list(bundled), wanted=lambda name: name in FILTER_COLUMNS.values())
        if bundled
        else None
    )
    if table is not None and set(FILTER_COLUMNS.values()) & set(table.column_names):
        keys = table[CHAIN].cast(pa.string()).combine_chunks().dictionary_encode()
        whose = [bundled[key] for key in keys.dictionary.to_pylist()]
        own = np.array([(chain.cell, chain.generations) for chain in whose])[keys.indices.to_numpy()]
        generation = table[GENERATION].to_numpy()
        counts = np.full((len(table), len(FILTER_COLUMNS)), np.nan)
        for place, column in enumerate(FILTER_COLUMNS.values()):
            if column in table.column_names:  # bundles of earlier versions have fewer, or none
                counts[:, place] = table[column].cast(pa.float64()).to_numpy()
        kept = (generation <= own[:, 1]) & ~np.isnan(counts).all(axis=1)
        whole = np.column_stack([own[:, 0], generation, np.nan_to_num(counts)])
        parts.append(whole[kept].astype(np.int64))
    return np.concatenate(parts)


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


def _filter_counts(store: Store, node: Node) -> FilterCounts:
    """What filters have done for a fit, as it has recorded it.

    Nothing where nothing is stored, and in fits of versions that did not record it.
    """
    found = fit_facts(store, node.fit).get("choices", {})
    return FilterCounts(**{name: found.get(name, 0) for name in FILTER_COLUMNS})
