"""Metrics that a study asks for by name (``evaluate.metrics``), of other packages too."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from harness.components import METRICS
from harness.errors import LearnerError
from harness.records import Examples
from harness.registry import Known, named
from harness.registry.given import as_number, by_name
from harness.streams import stream


def added_versions(names: Sequence[str]) -> dict[str, int | str]:
    """Name to version, for the key of an evaluation."""
    return {name: METRICS.loaded[name].version for name in names}


def added_metrics(
    names: Sequence[str], corpus: Examples, real: Any, seed: int, generation: int, there: Collection[str]
) -> dict[str, float]:
    """What packages measure of a corpus.

    Args:
        names: ``evaluate.metrics``.
        corpus: The examples that metrics read, shape [num_examples, width].
        real: The real distribution.
        seed: The chain's seed.
        generation: The generation that wrote the corpus.
        there: Columns that exist already, which no package may replace.

    Returns:
        Column to value, the columns that each package has declared.

    Raises:
        LearnerError: A package gives other columns than it has declared, one that exists already, or what is
            no number.
    """
    found: dict[str, float] = {}
    for name in names:
        item = METRICS.loaded[name]
        uniform = stream(seed, generation, f"{item.package}/{name}").random(len(corpus))
        code = named(item.plugin.measure)
        whose = f"evaluate.metrics: {name} ({item.package})"
        values = by_name(code(corpus, Known(real, seed, generation, uniform)), whose)
        declared = [metric.name for metric in item.plugin.metrics]
        if sorted(values) != sorted(declared):
            given = ", ".join(sorted(values)) or "nothing"
            raise LearnerError(f"{whose} gives {given}, declared are {', '.join(declared)}")
        if taken := sorted({*there, *found} & values.keys()):
            raise LearnerError(f"{whose} gives {', '.join(taken)}, which exists already")
        found |= {column: as_number(value, f"{whose}: {column}") for column, value in values.items()}
    return found
