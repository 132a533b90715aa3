"""The value of real data: how many synthetic examples buy what one real one buys, and what undoes collapse.

From cells that differ in how many real and how many synthetic examples a generation trains on. Between them
the metric is taken as linear, so the answer is of the place where the cells are; a ratio of two means over
the same seeds has Fieller's interval, which is exact for normal values and says when there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config.naming import cell_names
from harness.metrics.catalogue import HEADLINES
from harness.records import on_a_line
from harness.reporting.analysis import RATIO
from harness.reporting.ledger import cell_value
from harness.reporting.rows import Rows
from harness.reporting.statistics import student
from harness.study import Prepared

Floats = npt.NDArray[np.float64]
SIZE = "data.num_examples"
MIN_SEEDS = 5
"""A line of the table needs as many."""
MAX_LINES = 60


@dataclass(frozen=True)
class Ratio:
    """A ratio of two means.

    Attributes:
        value: The ratio; None where the denominator's mean is 0.
        low: Lower end of the interval; None where there is none: with fewer than two seeds, or where the
            denominator may be 0, so that any ratio may be true.
        high: Upper end.
        seeds: How many seeds it is of.
    """

    value: float | None
    low: float | None
    high: float | None
    seeds: int


def ratio_of_means(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """The mean of one over the mean of the other, with the interval of all ratios that a t test keeps.

    A ratio q is kept where the mean of ``above - q * below`` is not told apart from 0 (Fieller 1954, J. R.
    Statist. Soc. B 16:175).

    Args:
        above: A number a seed.
        below: Another number of the same seeds, in the same order.
    """
    one, other = np.array(above, dtype=np.float64), np.array(below, dtype=np.float64)
    count = len(one)
    a, b = float(one.mean()), float(other.mean())
    value = a / b if b else None
    if count < 2 or value is None:
        return Ratio(value, None, None, count)
    t = student(count - 1)
    (var_a, both), (_, var_b) = t * t * np.cov(one, other, ddof=1) / count
    # (a - q b)^2 <= t^2 (var_a - 2 q both + q^2 var_b): an interval where b is told apart from 0
    square, linear, free = b * b - var_b, a * b - both, a * a - var_a
    inside = linear * linear - square * free
    if square <= 0:
        return Ratio(value, None, None, count)
    half = math.sqrt(max(inside, 0.0))
    return Ratio(value, float((linear - half) / square), float((linear + half) / square), count)


def exchange(
    at: tuple[float, float],
    beside: Sequence[tuple[float, float]],
    values: Mapping[int, tuple[float, float, float]],
) -> Ratio:
    """How many more synthetic examples change a metric as one more real example does.

    The slope in real examples over the slope in synthetic ones, at the cell in question; both are of examples
    of one generation. In tokens it is the same number where examples are blocks of one length.

    Args:
        at: Real and synthetic examples of the cell.
        beside: The same of two cells beside it.
        values: Seed to the metric in the cell and in these two.

    Raises:
        ValueError: The three lie on one line, so that the two slopes cannot be told apart.
    """
    steps = np.array(beside, dtype=np.float64) - np.array(at, dtype=np.float64)
    if on_a_line(at, beside):
        raise ValueError("the three cells lie on one line of real and synthetic examples")
    invert = np.linalg.inv(steps)
    slopes = [invert @ np.array([one - own, two - own]) for own, one, two in values.values()]
    return ratio_of_means([s[0] for s in slopes], [s[1] for s in slopes])


def undoing(real: float, values: Mapping[int, tuple[float, float, float]]) -> Ratio:
    """How many more real examples in a generation undo what a cell has lost.

    Linear between the cell and one with more real examples; a number larger than ``real`` is extrapolated.

    Args:
        real: How many more real examples the other cell has.
        values: Seed to the metric of the cell before, of the cell after, and of the other cell after.

    Raises:
        ValueError: The other cell has as many real examples.
    """
    if not real:
        raise ValueError("both cells have as many real examples")
    lost = [after - before for before, after, _ in values.values()]
    won = [(after - other) / real for _, after, other in values.values()]
    return ratio_of_means(lost, won)


def worth_lines(prepared: Prepared, rows: Rows) -> list[dict[str, str]]:
    """What a real example is worth, for every cell of a grid over the synthetic ratio and the size.

    A cell is compared with the next smaller ratio and with the next larger size; all else is equal.

    Returns:
        ``cell``, ``real``, ``synthetic`` (examples of the last generation) and ``worth``, as text; empty
        unless both axes are there, with five seeds or more.
    """
    axes = prepared.study.columns
    metric = next((name for name in (*rows.leads, *HEADLINES) if name in rows.names), None)
    if metric is None or not {RATIO, SIZE} <= set(axes) or len(prepared.study.seeds) < MIN_SEEDS:
        return []
    last, ended = _last_values(rows, axes, metric), dict[tuple[Any, ...], set[int]]()
    for series in rows.series(axes):
        if series.ended is not None:
            ended.setdefault(series.cell, set()).add(series.seed)
    cells = {
        tuple(cell_value(cell.axes[axis]) for axis in axes): index
        for index, cell in enumerate(prepared.study.cells)
        if not cell.teacher
    }
    names = dict(zip(cells, cell_names(cells, axes), strict=True))
    found = []
    for at, *beside in _corners(list(cells), axes):
        specs = [prepared.specs[cells[cell]] for cell in (at, *beside)]
        counts = [spec.recipe(spec.generations).counts for spec in specs]
        of_cells = [
            last.get((cell, spec.generations), {}) for cell, spec in zip((at, *beside), specs, strict=True)
        ]
        seeds = set.intersection(*map(set, of_cells))
        gone = set[int]().union(*(ended.get(cell, ()) for cell in (at, *beside)))
        if on_a_line(counts[0], counts[1:]):
            continue
        real, synthetic = counts[0]
        line = {"cell": names[at], "real": f"{real:g}", "synthetic": f"{synthetic:g}"}
        if gone:  # of those that live it would say nothing of the cells
            total = len(prepared.study.seeds)
            found.append({**line, "worth": f"not known: {len(gone)} of {total} seeds have diverged"})
            continue
        if len(seeds) < MIN_SEEDS:
            continue
        one, two, three = of_cells
        ratio = exchange(counts[0], counts[1:], {s: (one[s], two[s], three[s]) for s in sorted(seeds)})
        shown = "" if ratio.value is None else f"{ratio.value:.3g}"
        shown += (
            " (not told apart from any number)"
            if ratio.low is None
            else f" [{ratio.low:.3g}, {ratio.high:.3g}]"
        )
        found.append({**line, "worth": shown})
    return found[:MAX_LINES]


def _corners(cells: Sequence[tuple[Any, ...]], axes: Sequence[str]) -> Iterator[list[tuple[Any, ...]]]:
    """A cell, the one with the next smaller ratio, and the one with the next larger size."""
    ratio, size = axes.index(RATIO), axes.index(SIZE)
    known = set(cells)
    ratios = sorted({cell[ratio] for cell in cells if cell[ratio] is not None})
    sizes = sorted({cell[size] for cell in cells if cell[size] is not None})
    for cell in cells:
        if cell[ratio] is None or cell[size] is None:
            continue
        less, more = ratios.index(cell[ratio]) - 1, sizes.index(cell[size]) + 1
        if less >= 0 and more < len(sizes):
            others = [list(cell), list(cell)]
            others[0][ratio], others[1][size] = ratios[less], sizes[more]
            if set(map(tuple, others)) <= known:
                yield [cell, *map(tuple, others)]


def _last_values(
    rows: Rows, axes: Sequence[str], metric: str
) -> dict[tuple[tuple[Any, ...], int], dict[int, float]]:
    """Cell and last generation to seed to value; without what is not finite."""
    values = rows.values(metric)
    found: dict[tuple[tuple[Any, ...], int], dict[int, float]] = {}
    for series in rows.series(axes):
        place = series.places[-1]
        if series.ended is None and not math.isnan(values[place]):
            known = found.setdefault((series.cell, int(rows.generation[place])), {})
            known[series.seed] = float(values[place])
    return found
