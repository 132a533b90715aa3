"""Filters over examples, and detectors over training sets.

Whether example i of a corpus passes depends on examples 0..i only, so a longer corpus keeps its verdicts. Errors of a filter are
drawn from a stream of its own, indexed by the example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config.schema import FILTER_PLUGINS, DeduplicateFilter, Filter, LabelFilter, RepetitionFilter, VerifierFilter
from harness.data import RealData
from harness.data.analytic import Density, LinearTruth
from harness.errors import LearnerError
from harness.metrics.lexical import repetition_shares, row_hashes
from harness.records import REAL, Examples
from harness.registry import Known, Loaded
from harness.streams import stream

Mask = npt.NDArray[np.bool_]
MAX_OVERSAMPLING = 20
"""A filtered corpus is sampled until enough examples pass, at most this many times the number needed."""


@dataclass(frozen=True)
class Judge:
    """What a filter may know besides the examples.

    Attributes:
        real: The real distribution.
        seed: The chain's seed.
        generation: The generation that wrote the examples.
    """

    real: RealData
    seed: int
    generation: int


def _deduplicate(_: DeduplicateFilter, examples: Examples, index: npt.NDArray[np.int64], judge: Judge, place: int) -> Mask:
    seen: set[bytes] = set()
    mask = np.zeros(len(index), dtype=bool)
    for row, content in enumerate(row_hashes(examples.take(index))):
        mask[row] = content not in seen
        seen.add(content)
    return mask


def _repetition(config: RepetitionFilter, examples: Examples, index: npt.NDArray[np.int64], judge: Judge, place: int) -> Mask:
    shares = repetition_shares(examples.take(index), config.n)
    return np.asarray(np.nan_to_num(shares, nan=0.0) <= config.max_share)


def _verifier(config: VerifierFilter, examples: Examples, index: npt.NDArray[np.int64], judge: Judge, place: int) -> Mask:
    good = SCORES[config.score](examples.take(index), judge.real) >= config.at_least
    uniform = stream(judge.seed, judge.generation, f"verifier_{place}").random(len(examples))[index]
    return np.asarray(np.where(good, uniform >= config.false_reject, uniform < config.false_accept))


def _agreement(examples: Examples, real: RealData) -> npt.NDArray[np.float64]:
    assert isinstance(real, LinearTruth)
    x, y = examples.values[:, :-1], examples.values[:, -1]
    return np.asarray(np.einsum("ij,j->i", x, real.weights) * y >= 0, dtype=np.float64)


def _log_density(examples: Examples, real: RealData) -> npt.NDArray[np.float64]:
    assert isinstance(real, Density)
    return np.asarray(real.log_density(examples.values))


def _uniqueness(n: int) -> Callable[[Examples, RealData], npt.NDArray[np.float64]]:
    return lambda examples, _: 1 - np.nan_to_num(repetition_shares(examples, n), nan=0.0)


SCORES: dict[str, Callable[[Examples, RealData], npt.NDArray[np.float64]]] = {
    "agreement": _agreement,
    "log_density": _log_density,
    "distinct_2": _uniqueness(2),
    "uniqueness_4": _uniqueness(4),
}
"""Scores of a verifier: examples and the real distribution to one number each."""

RULES: dict[str, Callable[[Any, Examples, npt.NDArray[np.int64], Judge, int], Mask]] = {
    "deduplicate": _deduplicate,
    "repetition": _repetition,
    "verifier": _verifier,
}
VERSIONS: dict[str, int | str] = {"deduplicate": 1, "repetition": 1, "verifier": 1, "label": 1}
"""Versions of the filters; part of the key of every fit that reads a filtered corpus."""


def _of_package(found: Loaded) -> Callable[[Any, Examples, npt.NDArray[np.int64], Judge, int], Mask]:
    """A filter of another package, as those of this one are called."""

    def keep(config: Any, examples: Examples, index: npt.NDArray[np.int64], judge: Judge, place: int) -> Mask:
        name = f"{found.package}/{config.kind}_{place}"
        uniform = stream(judge.seed, judge.generation, name).random(len(examples))[index]
        known = Known(judge.real, judge.seed, judge.generation, uniform)
        mask = np.asarray(found.plugin.keep(config, examples.take(index), known))
        if mask.shape != (len(index),) or mask.dtype != bool:
            raise LearnerError(
                f"filters: {config.kind} ({found.package}) gives an array of shape {list(mask.shape)} and type {mask.dtype}, "
                f"expected [{len(index)}] truth values"
            )
        return mask

    return keep


for _kind, _found in FILTER_PLUGINS.loaded.items():
    RULES[_kind], VERSIONS[_kind] = _of_package(_found), _found.version


def _placed(filters: Sequence[Filter]) -> list[tuple[int, Filter]]:
    """Every filter with its place among those of its kind, which names its stream: a key may hold one kind only."""
    seen: dict[str, int] = {}
    found = []
    for config in filters:
        found.append((seen.get(config.kind, 0), config))
        seen[config.kind] = seen.get(config.kind, 0) + 1
    return found


def accepted(filters: Sequence[Filter], examples: Examples, judge: Judge) -> npt.NDArray[np.int64]:
    """The indices of the examples that pass all filters of corpora, in order; a filter sees what earlier ones left."""
    index = np.arange(len(examples))
    for place, config in _placed(filters):
        if config.kind in RULES:
            index = index[RULES[config.kind](config, examples, index, judge, place)]
    return index


def first_accepted(filters: Sequence[Filter], draw: Callable[[int], Examples], count: int, judge: Judge) -> Examples:
    """The first examples that pass all filters of corpora; more are drawn where too few do.

    Args:
        filters: The cell's filters.
        draw: The first so many examples, unfiltered.
        count: How many must pass.
        judge: What a filter may know besides.

    Raises:
        LearnerError: Nearly everything is rejected.
    """
    raw = count
    while True:
        examples = draw(raw)
        index = accepted(filters, examples, judge)
        if len(index) >= count:
            return examples.take(index[:count])
        if raw >= MAX_OVERSAMPLING * count:
            raise LearnerError(
                f"filters: {len(index)} of {raw} examples of generation {judge.generation} pass, {count} are needed; "
                "the filters reject nearly everything this model writes"
            )
        raw = min(MAX_OVERSAMPLING * count, max(raw + raw // 2, int(1.1 * raw * count / max(len(index), 1))))


def undetected(filters: Sequence[Filter], origin: npt.NDArray[np.int32], seed: int, generation: int) -> Mask | None:
    """Which training examples no detector takes for synthetic; None where there is no detector.

    Args:
        filters: The cell's filters; those of kind ``label`` are detectors.
        origin: Of every training example, shape [size].
        seed: The chain's seed.
        generation: The generation that is fitted; 0 is fitted to real data, which nobody doubts.
    """
    detectors = [(place, config) for place, config in _placed(filters) if isinstance(config, LabelFilter)]
    if not detectors or generation == 0:
        return None
    kept = np.ones(len(origin), dtype=bool)
    for place, config in detectors:
        uniform = stream(seed, generation, f"label_{place}").random(len(origin))
        kept &= uniform >= np.where(origin == REAL, config.false_positive_rate, config.recall)
    return kept
