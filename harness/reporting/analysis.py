"""What only many chains show: when minorities are lost, and up to which synthetic ratio a chain holds."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from harness.metrics.catalogue import about
from harness.reporting.statistics import LEVEL, MIN_BOOTSTRAP, ended_in
from harness.streams import stream

RATIO = "regime.synthetic_ratio"
RESAMPLES = 2000


@dataclass(frozen=True)
class Loss:
    """When one share of one cell is lost.

    Attributes:
        cell: Values of the axes.
        share: Name of the share.
        lost: Seed to the first generation from which on it is 0; None where it comes back, or never goes.
    """

    cell: tuple[Any, ...]
    share: str
    lost: Mapping[int, int | None]

    @property
    def text(self) -> str:
        """For people."""
        when = sorted(generation for generation in self.lost.values() if generation is not None)
        if not when:
            return f"in none of {len(self.lost)}"
        return (
            f"in {len(when)} of {len(self.lost)}; median generation {median(when):g}, {when[0]} to {when[-1]}"
        )

    @property
    def by_seed(self) -> str:
        """Every seed with its generation."""
        return ", ".join(
            f"{seed}: {'never' if when is None else when}" for seed, when in sorted(self.lost.items())
        )


def losses(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[Loss]:
    """For every ``share/...`` and the seeds in which it is there in generation 0: when it is lost first."""
    names = sorted({name for row in rows for name in row if name.startswith("share/")})
    found: dict[tuple[tuple[Any, ...], str], dict[int, dict[int, float]]] = {}
    for row in rows:
        cell = tuple(row.get(axis) for axis in axes)
        for name in names:
            if row.get(name) is not None:
                found.setdefault((cell, name), {}).setdefault(int(row["seed"]), {})[
                    int(row["generation"])
                ] = float(row[name])
    result = []
    for (cell, name), seeds in found.items():
        there = {seed: item for seed, item in seeds.items() if item.get(0, 0.0) > 0}
        if there:
            lost = {seed: _from_then_on(item) for seed, item in there.items()}
            result.append(Loss(cell, name.removeprefix("share/"), lost))
    return result


def _from_then_on(shares: Mapping[int, float]) -> int | None:
    """The first generation from which on a share is 0."""
    found = None
    for generation in sorted(shares, reverse=True):
        if shares[generation] > 0:
            break
        found = generation
    return found


@dataclass(frozen=True)
class Critical:
    """The synthetic ratio up to which the last generation is no worse than the first.

    Attributes:
        cell: Values of the other axes.
        metric: What is compared.
        generation: The last generation, that of the longest chain.
        ratio: Where the mean worsening crosses the tolerance, by linear interpolation; the largest ratio
            where it never does; None where fewer than two seeds have come so far.
        low: Lower end of the bootstrap interval over seeds; infinite where it lies beyond the largest ratio;
            None with fewer than `MIN_BOOTSTRAP` seeds.
        high: Upper end; likewise.
        beyond: The tolerance is not crossed by any ratio of the grid.
        tolerance: Standard deviation of generation 0 over seeds: a chain that is worse by less is within what
            another seed does.
        ratios: How many ratios there are.
        seeds: How many seeds have come to the last generation, or diverged, with every ratio; the others are
            left out.
        unfinished: How many these are.
    """

    cell: tuple[Any, ...]
    metric: str
    generation: int
    ratio: float | None
    low: float | None
    high: float | None
    beyond: bool
    tolerance: float | None
    ratios: int
    seeds: int
    unfinished: int


def critical_ratios(
    rows: Sequence[Mapping[str, Any]], axes: Sequence[str], metric: str, seeds: Collection[int] = ()
) -> list[Critical]:
    """The critical ratio of every setting of the other axes that has three ratios or more.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        metric: Higher is worse, unless the catalogue says lower.
        seeds: Those that every cell is run with; those with rows when empty.
    """
    if RATIO not in axes:
        return []
    others = [axis for axis in axes if axis != RATIO]
    cells: dict[tuple[Any, ...], dict[float, dict[int, dict[int, Mapping[str, Any]]]]] = {}
    for row in rows:
        if row.get(RATIO) is not None:
            by_ratio = cells.setdefault(tuple(row.get(axis) for axis in others), {})
            by_ratio.setdefault(float(row[RATIO]), {}).setdefault(int(row["seed"]), {})[
                int(row["generation"])
            ] = row
    found = (
        _critical(cell, by_ratio, metric, seeds) for cell, by_ratio in cells.items() if len(by_ratio) >= 3
    )
    return [item for item in found if item.seeds or item.unfinished]


def _critical(
    cell: tuple[Any, ...],
    by_ratio: Mapping[float, Mapping[int, Mapping[int, Mapping[str, Any]]]],
    metric: str,
    seeds: Collection[int],
) -> Critical:
    sign = -1.0 if about(metric).worse == "lower" else 1.0
    ratios = sorted(by_ratio)
    last = max(
        generation for chains in by_ratio.values() for chain in chains.values() for generation in chain
    )
    known = sorted(set(seeds) | {seed for chains in by_ratio.values() for seed in chains})

    def worsening(ratio: float, seed: int) -> float | None:
        """None where it is not known yet; a chain without a finite last model is as much worse as can be."""
        chain = by_ratio[ratio].get(seed, {})
        first = chain.get(0, {}).get(metric)
        if first is None or (last not in chain and ended_in(chain) is None):
            return None
        final = chain.get(last, {}).get(metric)
        return math.inf if final is None else sign * (float(final) - float(first))

    whole = {seed: [worsening(ratio, seed) for ratio in ratios] for seed in known}
    used = [seed for seed in known if None not in whole[seed]]
    counts = (len(ratios), len(used), len(known) - len(used))
    if len(used) < 2:
        return Critical(cell, metric, last, None, None, None, False, None, *counts)
    worse = np.array([whole[seed] for seed in used], dtype=np.float64).T
    tolerance = float(np.std([float(by_ratio[ratios[0]][seed][0][metric]) for seed in used], ddof=1))
    ratio, low, high = _crossing(ratios, worse.mean(axis=1), tolerance), None, None
    if len(used) >= MIN_BOOTSTRAP:
        draws = stream(0, 0, "critical_ratio").integers(0, len(used), (RESAMPLES, len(used)))
        resampled = [_crossing(ratios, worse[:, draw].mean(axis=1), tolerance) for draw in draws]
        # Quantiles that are members of the sample: between a number and infinity there is nothing to
        # interpolate.
        ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        low, high = float(ends[0]), float(ends[1])
    beyond = math.isinf(ratio)
    return Critical(
        cell, metric, last, ratios[-1] if beyond else ratio, low, high, beyond, tolerance, *counts
    )


def _crossing(ratios: Sequence[float], worse: Any, tolerance: float) -> float:
    """Where a curve first rises above the tolerance; infinity if it never does."""
    above = np.flatnonzero(np.asarray(worse) > tolerance)
    if not len(above):
        return math.inf
    i = int(above[0])
    if i == 0:
        return ratios[0]
    share = (tolerance - worse[i - 1]) / (worse[i] - worse[i - 1])
    return float(ratios[i - 1] + share * (ratios[i] - ratios[i - 1]))
