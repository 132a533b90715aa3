"""Several experiments, or several stores, in one table and on one page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.config.source import get, has
from harness.errors import InputError
from harness.metrics.catalogue import HEADLINES
from harness.reporting.page import Page, Tell, render
from harness.reporting.rows import Rows
from harness.reporting.tables import headline
from harness.store.experiment import nothing_of
from harness.study import Prepared

AXIS = "experiment"
"""The first axis of a comparison: which of the experiments."""


@dataclass(frozen=True)
class Compared:
    """Some experiments together.

    Attributes:
        names: Of the experiments; with their stores where two have the same.
        axes: `AXIS`, and all axes of any of them.
        rows: Of all of them; where one has no such axis its one value stands, or null.
        seeds: Those of all, where they are the same in all; else none, and cells tell their own.
        chains: Of all of them, with records or without.
        total: Generations that these will have.
        absent: Of which experiments nothing is there, a line each.
        tables: The same rows apart, with their axes, for experiments that have not the same headline metric:
            what a learner does not measure is not there, which is not the same as not finite.
    """

    names: tuple[str, ...]
    axes: tuple[str, ...]
    rows: Rows
    seeds: tuple[int, ...]
    chains: int
    total: int
    absent: tuple[str, ...]
    tables: tuple[tuple[Rows, tuple[str, ...]], ...] = ()


def together(parts: Sequence[tuple[Prepared, Rows, Path]]) -> Compared:
    """Put experiments together.

    Args:
        parts: A study, its rows, and the store that they are from.

    Raises:
        InputError: The same experiment of the same store is there twice.
    """
    plain = [prepared.study.base.experiment for prepared, _, _ in parts]
    often = Counter(plain)
    names = [
        name if often[name] == 1 else f"{name} ({root})"
        for name, (_, _, root) in zip(plain, parts, strict=True)
    ]
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise InputError(f"{twice} is given twice; name two experiments, or --root once for each")
    axes = _axes(parts)
    seeds = {prepared.study.seeds for prepared, _, _ in parts}
    groups: dict[str | None, list[int]] = {}
    for place, (_, rows, _) in enumerate(parts):
        groups.setdefault(headline(rows, led=False) if len(rows) else None, []).append(place)
    shared = _shared(parts) if len(groups.keys() - {None}) > 1 else None
    if shared is not None:  # what all of them measure can be compared, what each begins with cannot
        groups = {shared: [place for place, (_, rows, _) in enumerate(parts) if len(rows)]}
    lead = () if shared is None else (shared,)
    whole, tables = _rows(names, axes, parts, lead), []
    for metric, places in groups.items():
        some = [parts[place] for place in places]
        if metric is None:
            continue
        if len(some) == len(parts):  # the same rows, of which much is remembered, are not there twice
            tables.append((whole, axes))
        else:
            own = _axes(some)
            tables.append((_rows([names[place] for place in places], own, some, lead), own))
    chains = [chain for prepared, _, _ in parts for chain in prepared.chains]
    return Compared(
        tuple(names),
        axes,
        whole,
        seeds.pop() if len(seeds) == 1 else (),
        chains=len(chains),
        total=sum(chain.generations + 1 for chain in chains),
        absent=tuple(
            nothing_of(root, name)
            for name, (_, rows, root) in zip(plain, parts, strict=True)
            if not len(rows)
        ),
        tables=tuple(tables),
    )


def _shared(parts: Sequence[tuple[Prepared, Rows, Path]]) -> str | None:
    """The first metric, of those that reports begin with, that all studies with rows have numbers of."""
    some = [rows for _, rows, _ in parts if len(rows)]
    return next(
        (name for name in HEADLINES if all(np.isfinite(rows.values(name)).any() for rows in some)), None
    )


def _axes(parts: Sequence[tuple[Prepared, Rows, Path]]) -> tuple[str, ...]:
    return (AXIS, *dict.fromkeys(name for prepared, _, _ in parts for name in prepared.study.columns))


def _fixed(prepared: Prepared, axes: Sequence[str]) -> dict[str, Any]:
    """What a study has where another one has an axis: its one value; null where it has none, or several."""
    known = [cell.config.model_dump(mode="json") for cell in prepared.study.cells if not cell.teacher]
    found: dict[str, Any] = dict.fromkeys(axes)
    for name in set(axes) - {AXIS, *prepared.study.columns}:
        values = [get(data, name) if has(data, name) else None for data in known]
        alike = all(value == values[0] for value in values)
        found[name] = values[0] if alike and not isinstance(values[0], dict | list) else None
    return found


def _rows(
    names: Sequence[str],
    axes: Sequence[str],
    parts: Sequence[tuple[Prepared, Rows, Path]],
    lead: Sequence[str] = (),
) -> Rows:
    """All rows as one table that begins with a metric; what a chain's rows share is changed once a chain."""
    shared, places, before = list[Mapping[str, Any]](), list[npt.NDArray[np.int64]](), 0
    stopped, learners = dict[int, int](), list[str]()
    for name, (prepared, rows, _) in zip(names, parts, strict=True):
        fixed = _fixed(prepared, axes)
        # two experiments may have chains in common, which are lines of their own here
        shared += [
            {**fixed, **chain, AXIS: name, "chain": f"{name}/{chain['chain']}"} for chain in rows.shared
        ]
        places.append(rows.chain + before)
        stopped |= {before + chain: end for chain, end in rows.stopped.items()}
        learners += rows.learners
        before = len(shared)
    own = [rows.own for _, rows, _ in parts if len(rows)] or [pa.table({})]
    leads = {tuple(rows.leads) for _, rows, _ in parts}  # of one track, or none
    table = pa.concat_tables(own, promote_options="permissive")
    if "generation" in table.column_names:  # in one piece, which is read as it is and not copied
        at = table.column_names.index("generation")
        table = table.set_column(at, "generation", table["generation"].combine_chunks())
    if not lead and len(leads) == 1:
        lead = leads.pop()
    return Rows(shared, np.concatenate(places), table, lead, stopped, learners)


def build(compared: Compared, folder: Path, tell: Tell = lambda line: None) -> Path:
    """Write the page; returns it.

    Args:
        compared: The experiments.
        folder: Where it goes.
        tell: Is told what is being made.
    """
    page = Page(folder, tell)
    title = " and ".join(compared.names)
    return render(
        page,
        title,
        compared.rows,
        compared.axes,
        compared.seeds,
        tables=compared.tables,
        chains=compared.chains,
        total=compared.total,
        remarks=compared.absent,
    )
