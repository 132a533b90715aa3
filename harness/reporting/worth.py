"""The value of real data: how many synthetic examples buy what one real one buys, and what undoes collapse.

From cells that differ in how many real and how many synthetic examples a generation trains on. Between them
the metric is taken as linear, so the answer is of the place where the cells are; a ratio of two means over
the same seeds has Fieller's interval, which is exact for normal values and says when there is no answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from harness.records import on_a_line
from harness.reporting.statistics import LEVEL

Floats = npt.NDArray[np.float64]


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
    t = float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
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
