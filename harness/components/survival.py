"""The metric ``survival``: its columns, and where its code is."""

from __future__ import annotations

from itertools import pairwise

from harness.registry import Metric, MetricPlugin

NO_END = 1 << 62
BANDS = (1, 2, 4, 8, 16, 32, NO_END)
"""Counts at which bands begin."""


def column(low: int, high: int) -> str:
    """The column of a band of counts, from the first to below the second."""
    return f"survival/count_{low}{'_up' if high == NO_END else '' if high == low + 1 else f'_{high - 1}'}"


def _label(low: int, high: int) -> str:
    if high == NO_END:
        return f"share of outcomes of {low} and more real occurrences that are written"
    last = "" if high == low + 1 else f" to {high - 1}"
    return f"share of outcomes of {low}{last} real occurrences that are written"


COMPONENT = MetricPlugin(
    metrics=tuple(
        Metric(column(low, high), _label(low, high), worse="lower", source="Suresh et al. 2024")
        for low, high in pairwise(BANDS)
    ),
    version=1,
    measure="harness.metrics.survival:survival",
    reads=("text", "discrete"),
)
