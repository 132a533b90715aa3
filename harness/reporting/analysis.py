"""What only many chains show: when minorities are lost, and up to which synthetic ratio a chain holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from harness.reporting.statistics import LEVEL
from harness.streams import stream

RATIO = "regime.synthetic_ratio"
RESAMPLES = 2000
HIGHER_IS_BETTER = ("gaussian/log_variance", "discrete/entropy", "regression/accuracy", "vae/elbo", "vae/latent_std")


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
        return f"in {len(when)} of {len(self.lost)}; median generation {median(when):g}, {when[0]} to {when[-1]}"

    @property
    def by_seed(self) -> str:
        """Every seed with its generation."""
        return ", ".join(f"{seed}: {'never' if when is None else when}" for seed, when in sorted(self.lost.items()))


def losses(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> list[Loss]:
    """For every ``share/...`` and the seeds in which it is there in generation 0: when it is lost first."""
    names = sorted({name for row in rows for name in row if name.startswith("share/")})
    found: dict[tuple[tuple[Any, ...], str], dict[int, dict[int, float]]] = {}
    for row in rows:
        cell = tuple(row.get(axis) for axis in axes)
        for name in names:
            if row.get(name) is not None:
                found.setdefault((cell, name), {}).setdefault(int(row["seed"]), {})[int(row["generation"])] = float(row[name])
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
        ratio: Where the mean worsening crosses the tolerance, by linear interpolation; the largest ratio where it never does.
        low: Lower end of the bootstrap interval over seeds; infinite where it lies beyond the largest ratio.
        high: Upper end; infinite likewise.
        beyond: The tolerance is not crossed by any ratio of the grid.
        tolerance: Standard deviation of generation 0 over seeds: a chain that is worse by less is within what another seed does.
        ratios: How many ratios there are.
        seeds: How many seeds.
    """

    cell: tuple[Any, ...]
    metric: str
    ratio: float
    low: float
    high: float
    beyond: bool
    tolerance: float
    ratios: int
    seeds: int


def critical_ratios(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], metric: str) -> list[Critical]:
    """The critical ratio of every setting of the other axes that has three ratios or more.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        metric: Higher is worse, but for `HIGHER_IS_BETTER`.
    """
    if RATIO not in axes:
        return []
    sign = -1.0 if metric in HIGHER_IS_BETTER else 1.0
    others = [axis for axis in axes if axis != RATIO]
    values: dict[tuple[Any, ...], dict[float, dict[int, dict[int, float]]]] = {}
    for row in rows:
        if row.get(metric) is not None and row.get(RATIO) is not None:
            cell = tuple(row.get(axis) for axis in others)
            by_seed = values.setdefault(cell, {}).setdefault(float(row[RATIO]), {}).setdefault(int(row["seed"]), {})
            by_seed[int(row["generation"])] = sign * float(row[metric])
    found = []
    for cell, by_ratio in values.items():
        ratios = sorted(by_ratio)
        seeds = sorted(set.intersection(*(set(by_ratio[ratio]) for ratio in ratios)))
        if len(ratios) < 3 or len(seeds) < 2:
            continue
        last = max(max(item) for item in by_ratio[ratios[0]].values())
        if any(0 not in by_ratio[r][s] for r in ratios for s in seeds):
            continue
        # A chain without a finite last value is as much worse as can be.
        worse = np.array([[by_ratio[r][s].get(last, math.inf) - by_ratio[r][s][0] for s in seeds] for r in ratios])
        tolerance = float(np.std([by_ratio[ratios[0]][s][0] for s in seeds], ddof=1))
        ratio = _crossing(ratios, worse.mean(axis=1), tolerance)
        beyond = math.isinf(ratio)
        draws = stream(0, 0, "critical_ratio").integers(0, len(seeds), (RESAMPLES, len(seeds)))
        resampled = [_crossing(ratios, worse[:, draw].mean(axis=1), tolerance) for draw in draws]
        # Quantiles that are members of the sample: between a number and infinity there is nothing to interpolate.
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        ratio = ratios[-1] if beyond else ratio
        found.append(Critical(cell, metric, ratio, float(low), float(high), beyond, tolerance, len(ratios), len(seeds)))
    return found


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
