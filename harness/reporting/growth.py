"""How a metric goes over the generations: slope, curvature, which shape fits, and when it is too much.

Every function gives one number for each chain, and the seeds are the replicates: the generations of a chain
depend on one another, so nothing counts them as if they were independent evidence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from harness.config.grid import SHAPED
from harness.config.schema.run import GrowthShape
from harness.reporting.rows import Rows
from harness.reporting.statistics import LEVEL, Aggregate, aggregate

SHAPES: tuple[GrowthShape, ...] = get_args(GrowthShape)
FREE = {"linear": 3, "exponential": 4, "saturating": 4}
"""Parameters of each shape, the variance of what is left over among them."""
LEAST_BEND, FASTEST = 0.05, 3.0
"""Rates that are tried: from one that bends a whole chain by 5 % to e cubed in one generation."""
RATES, FINER, ROUNDS = 41, 9, 5
"""Rates of the first search and of each finer one between the neighbours of the best."""
TOGETHER = 64
"""Chains whose rates are searched together: it takes a number for each chain, rate and generation."""
UNDECIDED = "undecided"
"""How a metric grows of which the seeds do not say whether it rises or falls."""
EXACT = 1e-12
"""What is left over, relative to the largest value, below which numbers are equal but for rounding."""
Floats = npt.NDArray[np.float64]


def slopes(generations: Floats, values: Floats) -> Floats:
    """Least squares, per generation.

    Args:
        generations: Shape [generations], at least two.
        values: Shape [chains, generations].

    Returns:
        Shape [chains].
    """
    centred = generations - generations.mean()
    return _beyond_rounding(values @ centred / (centred @ centred), values, float(np.ptp(generations)))


def curvatures(generations: Floats, values: Floats) -> Floats:
    """The second derivative of the parabola by least squares, per generation squared.

    Its interval over the seeds is right however the generations of a chain depend on one another.

    Args:
        generations: Shape [generations], at least three.
        values: Shape [chains, generations].

    Returns:
        Shape [chains].
    """
    basis = np.stack([np.ones_like(generations), generations, generations**2], axis=1)
    found: Floats = 2 * np.linalg.lstsq(basis, values.T, rcond=None)[0][2]
    # how far the parabola's middle lies from the chord between its ends
    return _beyond_rounding(found, values, float(np.ptp(generations)) ** 2 / 8)


def _beyond_rounding(found: Floats, values: Floats, reach: float) -> Floats:
    """Rates, 0 where all that they come to is rounding: equal seeds would be sure of its sign.

    Args:
        found: Shape [chains].
        values: Shape [chains, generations].
        reach: What a rate is multiplied by to be a difference of values.
    """
    kept: Floats = np.where(np.abs(found) * reach > EXACT * np.abs(values).max(axis=1), found, 0.0)
    return kept


def until(curve: Mapping[int, float], threshold: float, first: int = 0, ended: int | None = None) -> float:
    """Generations until a metric has risen by a threshold, or fallen where that is negative.

    Args:
        curve: Generation to value; without those that are not finite.
        threshold: The change; not 0.
        first: The generation that is compared with.
        ended: The generation in which the chain has diverged: then it has come so far, at the latest.

    Returns:
        The first such generation less ``first``; infinite where there is none.
    """
    sign = math.copysign(1.0, threshold)
    start = curve.get(first)
    reached = (
        generation
        for generation in sorted(curve)
        if start is not None
        and generation > first
        and sign * (curve[generation] - start) >= abs(threshold) - EXACT * abs(start)
    )
    return min(next(reached, math.inf), math.inf if ended is None else ended) - first


def middle(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The median of values that may be infinite, with its 95 % interval.

    The interval is between two of the values in order, by the binomial distribution of how many lie below
    the true median (Thompson 1936, Ann. Math. Statist. 7:122): nothing is assumed of how they scatter. It
    holds at least 95 %; fewer than six values have none.

    Args:
        values: At least one; none is NaN.
    """
    ordered = sorted(values)
    count = len(ordered)
    low, high = ordered[(count - 1) // 2], ordered[count // 2]
    centre = low if low == high else (low + high) / 2
    behind = _behind(count)
    return (centre, ordered[behind - 1], ordered[count - behind]) if behind else (centre, None, None)


@functools.cache
def _behind(count: int) -> int:
    """The largest k with P(X < k) <= 2.5 % of how many of ``count`` values lie below their median."""
    found, ways = 0, 1
    while ways / 2**count <= (1 - LEVEL) / 2:
        found += 1
        ways += math.comb(count, found)
    return found


def evidence(generations: Floats, values: Floats) -> dict[GrowthShape, Floats]:
    """AICc of every shape, for every chain; lower fits better.

    ``linear``: a + b g; ``exponential``: a + b exp(r g), ever faster; ``saturating``: a - b exp(-r g),
    towards a limit; r > 0. By least squares, with independent normal errors (Hurvich and Tsai 1989,
    Biometrika 76:297; Burnham and Anderson 2002, Model Selection and Multimodel Inference). The errors of a
    chain's generations depend on one another, so a chain that wanders looks curved one way or the other:
    what proves a shape is that the curvatures of the seeds agree.

    Args:
        generations: Shape [generations], at least `SHAPED`.
        values: Shape [chains, generations].

    Returns:
        Shape to an array of shape [chains].
    """
    count = len(generations)
    if count < SHAPED:
        raise ValueError(f"{count} generations, {SHAPED} are needed")
    span = float(generations[-1] - generations[0])
    left = {"linear": _left_over(values, generations[None, None])[:, 0]}
    parts = [values[at : at + TOGETHER] for at in range(0, len(values), TOGETHER)]
    for shape, sign in (("exponential", 1.0), ("saturating", -1.0)):
        left[shape] = np.concatenate([_best_rate(generations, part, sign, span) for part in parts])
    floor = count * (EXACT * np.abs(values).max(axis=1)) ** 2 + np.finfo(float).tiny
    return {
        shape: count * np.log(np.maximum(left[shape], floor) / count)
        + 2 * FREE[shape] * (1 + (FREE[shape] + 1) / (count - FREE[shape] - 1))
        for shape in SHAPES
    }


def _left_over(values: Floats, bases: Floats) -> Floats:
    """The sum of squares that a constant and one other column leave.

    Args:
        values: Shape [chains, generations].
        bases: Shape [chains or 1, tried, generations].

    Returns:
        Shape [chains, tried].
    """
    centred = values - values.mean(axis=1, keepdims=True)
    column = bases - bases.mean(axis=2, keepdims=True)
    column /= np.linalg.norm(column, axis=2, keepdims=True)
    along = np.einsum("ctg,cg->ct", np.broadcast_to(column, (len(values), *column.shape[1:])), centred)
    # not by Pythagoras, which loses what is left over of an almost perfect fit
    rest = along[:, :, None] * column
    np.subtract(centred[:, None], rest, out=rest)
    found: Floats = np.einsum("ctg,ctg->ct", rest, rest)
    return found


def _best_rate(generations: Floats, values: Floats, sign: float, span: float) -> Floats:
    """The least sum of squares over the rates; shape [chains]."""
    rates = np.tile(np.geomspace(LEAST_BEND / span, FASTEST, RATES), (1, 1))
    best = np.zeros(len(values))
    for _ in range(ROUNDS):
        # scaled so that nothing overflows: the largest exponent is 0
        powers = np.exp(sign * rates[:, :, None] * (generations - generations[-1 if sign > 0 else 0]))
        found = _left_over(values, powers)
        at = found.argmin(axis=1)
        best = found[np.arange(len(values)), at]
        table = np.broadcast_to(rates, (len(values), rates.shape[1]))
        low = table[np.arange(len(values)), np.maximum(at - 1, 0)]
        high = table[np.arange(len(values)), np.minimum(at + 1, rates.shape[1] - 1)]
        rates = np.geomspace(low, high, FINER, axis=1)
    return best


def leads(
    found: Mapping[GrowthShape, Floats], shape: GrowthShape, against: GrowthShape | None = None
) -> Floats:
    """By how much lower the AICc of a shape is than of another one, or than of the best of the others."""
    others = [found[name] for name in SHAPES if name != shape and against in (None, name)]
    lead: Floats = np.minimum.reduce(others) - found[shape]
    return lead


@dataclass(frozen=True)
class CellGrowth:
    """How a metric goes in one cell.

    Attributes:
        slope: Per generation, over the seeds.
        curvature: Its second derivative, over the seeds; None with fewer than three generations.
        leads: By how much the AICc of each shape is lower than that of the best other one, over the seeds;
            empty with fewer than `SHAPED` generations.
        generations: Up to which generation.
        still: Whether it is the same in all generations of each seed, but for rounding.
    """

    slope: Aggregate
    curvature: Aggregate | None
    leads: Mapping[GrowthShape, Aggregate]
    generations: int
    still: bool = False

    @property
    def shape(self) -> str:
        """In a word or two: a shape, `UNDECIDED`, ``flat``, or empty where one seed does not tell.

        Curved where the interval of the curvature says so and AICc with it; over too few generations for AICc
        it is said which way it bends; else linear where the slope's interval has one sign, and `UNDECIDED`
        where there may be none. ``flat`` is what does not move at all.
        """
        if self.slope.low is None or self.slope.high is None or self.slope.mean is None:
            return ""
        if self.still:
            return "flat"
        bent = self.curvature
        if bent is not None and bent.low is not None and bent.high is not None:
            sure = bent.low > 0 or bent.high < 0
            faster = (bent.low > 0) == (self.slope.mean > 0)
            if sure and not self.leads:
                return "ever faster" if faster else "ever slower"
            name: GrowthShape = "exponential" if faster else "saturating"
            if sure and self.leads and (self.leads[name].mean or 0.0) > 0:
                return name
        return UNDECIDED if self.slope.low <= 0 <= self.slope.high else "linear"


def growths(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str], metric: str, seeds: Iterable[int] = ()
) -> dict[tuple[Any, ...], CellGrowth]:
    """The growth of a metric in every cell, over the chains that have come as far as any of it.

    Args:
        rows: From `ledger.rows`.
        axes: The axes that tell cells apart.
        metric: A column.
        seeds: Those that every cell is run with; each its own when empty.
    """
    table = Rows.of(rows)
    values = table.values(metric)
    cells: dict[tuple[Any, ...], list[npt.NDArray[np.int64]]] = {}
    ended: dict[tuple[Any, ...], int] = {}
    # where nobody says with which seeds, those of another cell say nothing of this one
    known, everyone = dict[tuple[Any, ...], set[int]](), frozenset(seeds)
    for part in table.series(axes):
        known.setdefault(part.cell, set(everyone)).add(part.seed)
        cells.setdefault(part.cell, [])
        if part.ended is not None:
            ended[part.cell] = ended.get(part.cell, 0) + 1
            continue
        there = np.isfinite(values[part.places])
        cells[part.cell].append(part.places if there.all() else part.places[there])
    found = {}
    for cell, parts in cells.items():
        at = table.generation
        last = max((at[places[-1]] for places in parts if len(places)), default=0)
        longest = max((len(places) for places in parts), default=0)
        whole = [p for p in parts if len(p) == longest and at[p[-1]] == last] if longest > 1 else []
        # seeds may lack another one each
        whole = [places for places in whole if np.array_equal(at[places], at[whole[0]])]
        if whole:
            absent = max(0, len(known[cell]) - ended.get(cell, 0) - len(whole))
            generations = at[whole[0]].astype(np.float64)
            found[cell] = _growth(generations, values[np.stack(whole)], ended.get(cell, 0), absent)
    return found


def _growth(generations: Floats, values: Floats, diverged: int, absent: int) -> CellGrowth:
    bent, shown = None, {}
    if len(generations) >= 3:
        bent = aggregate(curvatures(generations, values), diverged, absent)
    if len(generations) >= SHAPED:
        found = evidence(generations, values)
        shown = {shape: aggregate(leads(found, shape), diverged, absent) for shape in SHAPES}
    slope = aggregate(slopes(generations, values), diverged, absent)
    still = bool((np.ptp(values, axis=1) <= EXACT * np.abs(values).max(axis=1)).all())
    return CellGrowth(slope, bent, shown, int(generations[-1]), still)
