"""What moves first: when each metric leaves where generation 0 of another seed would be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.config.naming import cell_name
from harness.metrics.catalogue import drawn
from harness.reporting.growth import middle
from harness.reporting.rows import Rows
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
    firsts = [curve[0] for curve in curves.values() if 0 in curve]
    if len(firsts) < MIN_SEEDS:
        return {}
    centre, reach = one_more(firsts)
    found = {}
    end = max((g for curve in curves.values() for g in curve), default=0) if last is None else last
    for seed, curve in curves.items():
        later = (g for g in sorted(curve) if 0 < g <= end)
        when = float(next((g for g in later if abs(curve[g] - centre) > reach), math.inf))
        if math.isfinite(when) or end in curve:
            found[seed] = when
    return found


def early_table(rows: Rows, axes: Sequence[str]) -> list[dict[str, Any]]:
    """The metrics of every cell in the order in which they leave generation 0's scatter, as text.

    Returns:
        Lines with the ``cell`` and its ``moves``: a generation (the median over seeds) and the metrics that
        move there. A metric of which a seed is not finished, or has ended without moving, has none.
    """
    by_cell: dict[tuple[Any, ...], list[Any]] = {}
    for series in rows.series(axes):
        by_cell.setdefault(series.cell, []).append(series)
    metrics = drawn(rows.names)
    values = {metric.name: rows.values(metric.name) for metric in metrics}
    lines = []
    for cell, group in by_cell.items():
        when: dict[float, list[str]] = {}
        for metric in metrics[:MAX_METRICS]:
            curves = {series.seed: rows.curve(series, values[metric.name]) for series in group}
            moves = first_moves(curves)
            if len(moves) == len(group) and any(len(curve) > 1 for curve in curves.values()):
                when.setdefault(middle(list(moves.values()))[0], []).append(metric.label)
        if when:
            shown = [
                {"generation": "never" if math.isinf(g) else f"{g:g}", "metrics": "; ".join(when[g])}
                for g in sorted(when)
            ]
            lines.append({"cell": cell_name(list(cell), list(axes)) or "the only cell", "moves": shown})
    return lines
