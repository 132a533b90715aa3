"""What the interactive figure of a report shows: every metric of every cell by generation, as one mapping.

The page holds it as JSON, and ``assets/explorer.js`` draws it. What would make the page too large is left
out: the values of single seeds first, then generations in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from harness.config.naming import cell_names, words
from harness.metrics.catalogue import about
from harness.reporting.palette import styles
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, curves, thinned
from harness.terminal import visible

HIDDEN_AXES = ("generations",)
"""Chains that differ in these only are one line."""
NUMBERS = 700_000
"""Numbers that a page holds at most; each takes some seven bytes."""
STEPS = 200
"""Generations that are shown at most, evenly spread."""
SHOWN = 24
"""Cells that are shown at first."""
DIGITS = 5
Theory = Mapping[tuple[Any, ...], Sequence[float]]


def explorer(
    rows: Rows,
    axes: Sequence[str],
    seeds: Sequence[int],
    metrics: Mapping[str, str],
    theory: Callable[[str], Theory] = lambda metric: {},
) -> dict[str, Any]:
    """Everything that the interactive figure shows.

    Args:
        rows: From `ledger.rows`.
        axes: The axes that tell cells apart.
        seeds: Those that every cell is run with.
        metrics: Those that can be chosen, with their titles, in order.
        theory: What theory says of a metric, by cell.
    """
    shown = [axis for axis in axes if axis not in HIDDEN_AXES]
    cells = list(dict.fromkeys(series.cell for series in rows.series(shown)))
    drawn = styles(cells)
    steps = thinned(np.unique(rows.generation).tolist(), STEPS)
    each = len(cells) * len(metrics)
    while len(steps) > 2 and each * len(steps) * 5 > NUMBERS:
        steps = thinned(steps, max(2, len(steps) // 2))
    count = len(seeds) or len({series.seed for series in rows.series(shown)})
    whole = each * len(steps) * (5 + count) <= NUMBERS
    data: dict[str, Any] = {
        "steps": steps,
        "axes": words(shown),
        "cells": [
            {
                "name": visible(name or "the only cell", lines=False),
                "values": ["" if v is None else visible(str(v), lines=False) for v in cell],
                "light": drawn[cell].light,
                "dark": drawn[cell].dark,
                "dash": drawn[cell].dash,
                "on": True,
            }
            for name, cell in zip(cell_names(cells, shown), cells, strict=True)
        ],
        "metrics": [],
        "every_seed": whole,
    }
    first = thinned(list(range(len(cells))), SHOWN)
    for place, cell in enumerate(data["cells"]):
        cell["on"] = place in first or len(cells) <= SHOWN
    for metric, title in metrics.items():
        found = curves(rows, shown, metric, seeds)
        if not any(point.values for curve in found.values() for point in curve.values()):
            continue
        wanted = {tuple(v for a, v in zip(axes, cell, strict=True) if a in shown): line
                  for cell, line in theory(metric).items()}  # fmt: skip
        data["metrics"].append(
            {
                "name": metric,
                "title": visible(title, lines=False),
                "worse": about(metric).worse,
                "cells": [_curve(found.get(cell, {}), steps, whole, wanted.get(cell)) for cell in cells],
            }
        )
    return data


def _curve(
    curve: Mapping[int, Aggregate], steps: Sequence[int], whole: bool, theory: Sequence[float] | None
) -> dict[str, Any] | None:
    """One cell: ``m`` means, ``l`` and ``h`` ends of intervals, ``n`` seeds with a value, ``d`` diverged.

    ``t`` is how many seeds there are, ``s`` their values, ``w`` what theory says; None for an empty cell.
    """
    points = [curve.get(step) for step in steps]
    if not any(point is not None and point.values for point in points):
        return None
    found: dict[str, Any] = {
        "m": [_number(p.mean) if p else None for p in points],
        "n": [len(p.values) if p else 0 for p in points],
        "t": max(p.total for p in points if p),
    }
    if any(p and p.low is not None for p in points):
        found["l"] = [_number(p.low) if p else None for p in points]
        found["h"] = [_number(p.high) if p else None for p in points]
    if any(p and p.diverged for p in points):
        found["d"] = [p.diverged if p else 0 for p in points]
    if whole and found["t"] > 1:
        found["s"] = [[_number(v) for v in p.values] if p else [] for p in points]
    if theory is not None:
        found["w"] = [_number(theory[step]) if step < len(theory) else None for step in steps]
    return found


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{DIGITS}g}")
