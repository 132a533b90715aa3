"""What this package adds: each component is its section, what it does, and its registration."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from harness.records import REAL, Examples, Part
from harness.registry import (
    DataKind,
    DataPlugin,
    FilterPlugin,
    Known,
    LearnerPlugin,
    Metric,
    MetricPlugin,
    RegimePlugin,
    TaskPlugin,
    TrackerPlugin,
)
from harness.section import DataSection, PositiveInt, Section, Share, since


class Laplace(Section):
    """A Laplace distribution in every coordinate, fitted by its median and mean absolute deviation."""

    kind: Literal["laplace"]
    shrink: Share = since(0.0)
    """Share by which every fit makes the scale too small."""


class Histogram(Section):
    """Shares of bins between -5 and 5, counted by several ranks."""

    kind: Literal["histogram"]
    bins: PositiveInt = since(20)


class Box(DataSection):
    """Uniform between 0 and a width, in every coordinate."""

    source: Literal["box"]
    dim: PositiveInt = since(1)
    num_examples: PositiveInt = since(100)
    width: float = since(1.0)


class Every(Section):
    """Keeps every n-th example."""

    kind: Literal["every"]
    step: PositiveInt = since(2)


class Turned(Section):
    """Words, to be written from behind."""

    kind: Literal["turned"]
    length: PositiveInt = since(4)


def keep(config: Every, examples: Examples, known: Known) -> Any:
    return np.arange(len(examples)) % config.step == 0


def two_latest(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], None]:
    """Half of the training set is the last corpus, half the one before (real examples in generation 1)."""
    before = generation - 2 if generation > 1 else REAL
    return (Part(before, n // 2), Part(generation - 1, n - n // 2)), None


def spread(corpus: Examples, known: Known) -> dict[str, float]:
    low, high = np.quantile(corpus.values[:, 0], [0.1, 0.9])
    return {"spread/p10_p90": float(high - low)}


def notes() -> Iterator[str]:
    """Notes of a laboratory, which say the same day after day."""
    for day in range(900):
        yield f"On day {day} the sample weighed {day * day % 97} grams, and {day % 7} of the mice slept."


def write(view: Any, folder: Path) -> None:
    """A file of JSON for every chain."""
    rows = [{"generation": item.record.generation, **item.record.metrics} for item in view.generations]
    (folder / f"{view.chain}.json").write_text(json.dumps({"config": dict(view.config), "rows": rows}))


learner = LearnerPlugin(
    Laplace,
    version=1,
    family="collapse_laplace:LaplaceFamily",
    reads=("gaussian", "mixture", "shape", "array"),
    metrics=(
        Metric("laplace/log_scale", "log scale", worse="lower", shown=True),
        Metric("laplace/median", "median of the fit"),
    ),
)
histogram = LearnerPlugin(
    Histogram,
    version=1,
    learner="collapse_histogram:HistogramLearner",
    reads=("gaussian", "mixture", "shape", "array"),
    metrics=(Metric("histogram/counted", "examples"), Metric("histogram/by_rank_0", "examples of rank 0")),
    batchable=False,
    many_ranks=True,
)
filter_ = FilterPlugin(Every, version=1, keep=keep)
regime = RegimePlugin(two_latest, version=1, pools=False)
metric = MetricPlugin(
    (Metric("spread/p10_p90", "10 % to 90 % of the samples", worse="lower"),), version=1, measure=spread
)
task = TaskPlugin(
    Turned,
    version=1,
    problems="collapse_task:problems",
    check="collapse_task:check",
    alphabet="collapse_task:alphabet",
    lengths=lambda section: (section.length + 1, section.length),
)
tracker = TrackerPlugin("collapse_plugin:write")
data = DataPlugin("collapse_plugin:notes")
box = DataKind(
    Box, prepare="collapse_box:prepared", load="collapse_box:BoxTruth", sources=("box",), like="array"
)
