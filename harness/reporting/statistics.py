"""Aggregates over seeds, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any

from scipy import stats

LEVEL = 0.95


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


def curves(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], metric: str) -> dict[tuple[Any, ...], dict[int, Aggregate]]:
    """A metric against generation for every cell: cell to generation to aggregate over seeds."""
    groups: dict[tuple[Any, ...], dict[int, dict[int, float | None]]] = {}
    for row in rows:
        cell = tuple(row.get(name) for name in axes)
        # By seed: chains that differ in an axis left out here share generations, and a seed counts once.
        groups.setdefault(cell, {}).setdefault(int(row["generation"]), {})[int(row["seed"])] = row.get(metric)
    return {cell: {g: aggregate(values.values()) for g, values in sorted(found.items())} for cell, found in groups.items()}
