"""What moves first: when each metric leaves where generation 0 of another seed would be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config.naming import cell_name
from harness.metrics.catalogue import drawn
from harness.reporting.growth import middle
from harness.reporting.rows import Rows, Series
from harness.reporting.statistics import one_more

MIN_SEEDS = 3
"""With fewer, where another seed's generation 0 would be is not known."""
MAX_METRICS = 20
"""Metrics of a cell that the table names."""


def first_moves(curves: Mapping[int, Mapping[int, float]], last: int | None = None) -> dict[int, float]:
    """For each seed the first generation in which a metric lies outside of generation 0's scatter.

    That is the interval in which one more seed's generation 0 would lie with 95 % (the prediction interval of
    a normal sample, Student's t), whichever way the metric goes.

    Args:
        curves: Seed to generation to value.
        last: The last generation that is looked at; all when None.

    Returns:
        By seed; infinite where it never leaves. Empty with fewer than `MIN_SEEDS` seeds. A seed that has not
        left and has not come to the last generation has none: it may yet.
    """
    known = [(n, g, v) for n, curve in enumerate(curves.values()) for g, v in curve.items()]
    number, generation, value = np.array(known, dtype=np.float64).reshape(-1, 3).T
    when = _when(number.astype(np.int64), generation, value, len(curves), last)
    return {seed: float(at) for seed, at in zip(curves, when, strict=True) if not math.isnan(at)}


def _when(
    number: npt.NDArray[np.int64],
    generation: npt.NDArray[Any],
    value: npt.NDArray[np.float64],
    seeds: int,
    last: int | None = None,
) -> npt.NDArray[np.float64]:
    """`first_moves` of values of the seeds ``number`` in the generations ``generation``, each [values].

    Returns:
        Shape [seeds]; NaN where a seed has none.
    """
    when = np.full(seeds, np.nan)
    firsts = value[generation == 0]
    if len(firsts) < MIN_SEEDS:
        return when
    centre, reach = one_more(firsts)
    end = generation.max() if last is None else last
    when[number[generation == end]] = math.inf
    moved = (generation > 0) & (generation <= end) & (np.abs(value - centre) > reach)
    np.fmin.at(when, number[moved], generation[moved].astype(np.float64))
    return when


def early_table(rows: Rows, axes: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics of every cell in the order in which they leave generation 0's scatter, as text.

    Returns:
        Lines with the ``cell`` and its ``moves``: a generation (the median over seeds) and the metrics that
        move there. A metric of which a seed is not finished, or has ended without moving, has none.
    """
    by_cell: dict[tuple[Any, ...], list[Series]] = {}
    for series in rows.series(axes):
        by_cell.setdefault(series.cell, []).append(series)
    found: dict[tuple[Any, ...], dict[float, list[str]]] = {cell: {} for cell in by_cell}
    # closed forms score examples, which are no text
    labels = {} if "test/perplexity" in rows.names else {"test/nll": "NLL on real examples"}
    for metric in drawn(rows.names)[:MAX_METRICS]:
        values = rows.values(metric.name)
        for cell, group in by_cell.items():
            places = np.concatenate([series.places for series in group])
            number = np.repeat(np.arange(len(group)), [len(series.places) for series in group])
            known = ~np.isnan(values[places])
            places, number = places[known], number[known]
            moves = _when(number, rows.generation[places], values[places], len(group))
            if not np.isnan(moves).any() and (np.bincount(number) > 1).any():
                found[cell].setdefault(middle(moves.tolist())[0], []).append(
                    labels.get(metric.name, metric.label)
                )
    lines = []
    for cell, when in found.items():
        if when:
            shown = [
                {"generation": "never" if math.isinf(g) else f"{g:g}", "metrics": "; ".join(when[g])}
                for g in sorted(when)
            ]
            lines.append({"cell": cell_name(list(cell), list(axes)) or "the only cell", "moves": shown})
    return lines
