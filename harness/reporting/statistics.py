"""Aggregates over seeds, and over pairs of chains, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

LEVEL = 0.95
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Aggregate:
    """A mean over seeds.

    Attributes:
        mean: Over the seeds with a finite value; None where there is none.
        low: Lower end of the interval; None with fewer than two seeds.
        high: Upper end.
        values: The seeds' finite values.
        missing: Seeds without a finite value.
    """

    mean: float | None
    low: float | None
    high: float | None
    values: tuple[float, ...]
    missing: int


def aggregate(values: Iterable[float | None]) -> Aggregate:
    """Mean with a 95 % interval by Student's t, over seeds.

    A value that is not finite is counted as missing, never as 0.
    """
    given = list(values)
    finite = tuple(float(value) for value in given if value is not None and math.isfinite(value))
    if not finite:
        return Aggregate(None, None, None, (), len(given))
    mean = sum(finite) / len(finite)
    low = high = None
    if len(finite) > 1:
        half = float(stats.t.ppf((1 + LEVEL) / 2, len(finite) - 1)) * stdev(finite) / math.sqrt(len(finite))
        low, high = mean - half, mean + half
    return Aggregate(mean, low, high, finite, len(given) - len(finite))


def aggregate_pairs(values: Mapping[tuple[str, str], float], random: np.random.Generator) -> Aggregate:
    """Mean over pairs of chains, with a 95 % percentile bootstrap interval.

    Pairs with a chain in common are not independent, so chains are drawn with replacement, and not pairs: a pair counts the product
    of how often its chains were drawn (Snijders and Borgatti 1999, Connections 22:161; here a chain makes no pair with itself).

    Args:
        values: Pair of chains to value; one that is not finite is counted as missing.
        random: Draws the chains.

    Returns:
        Without an interval where there are fewer than two pairs.
    """
    finite = {pair: value for pair, value in values.items() if math.isfinite(value)}
    missing = len(values) - len(finite)
    if not finite:
        return Aggregate(None, None, None, (), missing)
    found = np.array(list(finite.values()))
    low = high = None
    if len(finite) > 1:
        names = {name: index for index, name in enumerate(sorted({name for pair in finite for name in pair}))}
        first, second = (np.array([names[pair[side]] for pair in finite]) for side in (0, 1))
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAP_DRAWS)
        weights = (drawn[:, first] * drawn[:, second]).astype(np.float64)
        weights = weights[weights.sum(axis=1) > 0]
        low, high = _central(weights @ found / weights.sum(axis=1))
    return Aggregate(float(found.mean()), low, high, tuple(found.tolist()), missing)


def spread(values: Iterable[float]) -> Aggregate:
    """The mean of values and the range of their central 95 %: where one more is expected, not how well the mean is known."""
    given = list(values)
    finite = np.array([value for value in given if math.isfinite(value)])
    if not len(finite):
        return Aggregate(None, None, None, (), len(given))
    low, high = _central(finite) if len(finite) > 1 else (None, None)
    return Aggregate(float(finite.mean()), low, high, tuple(finite.tolist()), len(given) - len(finite))


def _central(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def curves(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], metric: str) -> dict[tuple[Any, ...], dict[int, Aggregate]]:
    """A metric against generation for every cell: cell to generation to aggregate over seeds."""
    groups: dict[tuple[Any, ...], dict[int, dict[int, float | None]]] = {}
    for row in rows:
        cell = tuple(row.get(name) for name in axes)
        # By seed: chains that differ in an axis left out here share generations, and a seed counts once.
        groups.setdefault(cell, {}).setdefault(int(row["generation"]), {})[int(row["seed"])] = row.get(metric)
    return {cell: {g: aggregate(values.values()) for g, values in sorted(found.items())} for cell, found in groups.items()}
