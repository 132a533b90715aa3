"""Filters over examples, and detectors over training sets.

Whether example i of a corpus passes depends on examples 0..i only, so a longer corpus keeps its verdicts.
Errors of a filter are drawn from a stream of its own, indexed by the example.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components import FILTERS
from harness.components.filters import (
    CurateFilter,
    DeduplicateFilter,
    LabelFilter,
    RandomFilter,
    RepetitionFilter,
    VerifierFilter,
)
from harness.config.schema import Filter
from harness.data import RealData
from harness.data.distributions import LinearTruth
from harness.errors import LearnerError
from harness.metrics.lexical import repetition_shares, row_hashes
from harness.records import NO_FILTER_COUNTS, REAL, Examples, FilterCounts
from harness.registry import Known, named
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
        learned: From a filter's section to what it learns from; None where it learns nothing.
    """

    real: RealData
    seed: int
    generation: int
    learned: Callable[[Any], Examples | None] = lambda section: None


def deduplicate(section: DeduplicateFilter, examples: Examples, known: Known) -> Mask:
    """The first of equal examples."""
    seen: set[bytes] = set()
    mask = np.zeros(len(examples), dtype=bool)
    for row, content in enumerate(row_hashes(examples)):
        mask[row] = content not in seen
        seen.add(content)
    return mask


def repetition(section: RepetitionFilter, examples: Examples, known: Known) -> Mask:
    """Examples in which few n-grams repeat."""
    return np.asarray(np.nan_to_num(repetition_shares(examples, section.n), nan=0.0) <= section.max_share)


def verifier(section: VerifierFilter, examples: Examples, known: Known) -> Mask:
    """Examples with a high score, but for the verifier's errors."""
    good = SCORES[section.score](examples, known.real) >= section.at_least
    return np.asarray(
        np.where(good, known.uniform >= section.false_reject, known.uniform < section.false_accept)
    )


def random(section: RandomFilter, examples: Examples, known: Known) -> Mask:
    """Each example with the same probability."""
    return np.asarray(known.uniform < section.keep)


def curate(section: CurateFilter, examples: Examples, known: Known) -> Mask:
    """Of every ``of`` examples in a row one, by its reward; of a last group that is not whole none.

    Drawing with probabilities in proportion to exp(reward) (the Bradley-Terry model; Ferbach and others 2024,
    arXiv 2407.09499) takes the largest of reward + Gumbel noise.
    """
    if section.outcomes is not None:
        rewards = np.asarray(section.outcomes)[examples.values[:, 0].astype(np.int64)]
    else:
        scores = (section.rewards or {}).items()
        rewards = np.sum([weight * SCORES[name](examples, known.real) for name, weight in scores], axis=0)
    groups = len(examples) // section.of
    scored = rewards[: groups * section.of].reshape(groups, section.of)
    known.told((scored == scored[:, :1]).all(axis=1))
    if section.choose == "bradley_terry":
        rewards = rewards - np.log(-np.log(np.maximum(known.uniform, 1e-300)))
    mask = np.zeros(len(examples), dtype=bool)
    if groups:
        best = np.argmax(rewards[: groups * section.of].reshape(groups, section.of), axis=1)
        mask[np.arange(groups) * section.of + best] = True
    return mask


def label(section: LabelFilter, origin: npt.NDArray[np.int32], uniform: npt.NDArray[np.float64]) -> Mask:
    """Training examples that the detector does not take for synthetic."""
    return np.asarray(uniform >= np.where(origin == REAL, section.false_positive_rate, section.recall))


def _agreement(examples: Examples, real: LinearTruth) -> npt.NDArray[np.float64]:
    x, y = examples.values[:, :-1], examples.values[:, -1]
    return np.asarray(np.einsum("ij,j->i", x, real.weights) * y >= 0, dtype=np.float64)


def _uniqueness(n: int) -> Callable[[Examples, Any], npt.NDArray[np.float64]]:
    return lambda examples, _: 1 - np.nan_to_num(repetition_shares(examples, n), nan=0.0)


SCORES: Mapping[str, Callable[[Examples, Any], npt.NDArray[np.float64]]] = {
    "agreement": _agreement,
    "log_density": lambda examples, real: np.asarray(real.log_density(examples.values)),
    "distinct_2": _uniqueness(2),
    "uniqueness_4": _uniqueness(4),
}
"""Scores of a verifier: examples and the real distribution to one number each."""


def placed(filters: Sequence[Filter]) -> list[tuple[int, Filter]]:
    """Every filter with its place among those of its kind, which names its stream.

    A key may hold one kind only.
    """
    seen: dict[str, int] = {}
    found = []
    for config in filters:
        found.append((seen.get(config.kind, 0), config))
        seen[config.kind] = seen.get(config.kind, 0) + 1
    return found


def _code(kind: str) -> Callable[[Any, Any, Any], Mask]:
    code: Callable[[Any, Any, Any], Mask] = named(FILTERS[kind].keep)
    return code


def _verdict(kind: str, section: Any, what: Examples, known: Known, count: int) -> npt.NDArray[Any]:
    """A filter's verdicts about a pool: truth values, or positions of which one may come several times."""
    if FILTERS[kind].of != "pools":
        return _mask(kind, section, what, known, count)
    found = np.asarray(_code(kind)(section, what, known))
    if found.dtype == bool:
        return _checked(kind, found, count)
    if (
        found.ndim != 1
        or found.dtype.kind != "i"
        or (len(found) and not 0 <= found.min() <= found.max() < count)
    ):
        raise LearnerError(
            f"filters: {kind} ({FILTERS.loaded[kind].package or 'harness'}) gives an array of shape "
            f"{list(found.shape)} and type {found.dtype}, expected {count} truth values, or positions below "
            f"{count}"
        )
    return found


def _mask(kind: str, section: Any, what: Any, known: Any, count: int) -> Mask:
    """A filter's verdicts.

    Raises:
        LearnerError: It gives something else than a truth value for each example.
    """
    return _checked(kind, np.asarray(_code(kind)(section, what, known)), count)


def _checked(kind: str, mask: npt.NDArray[Any], count: int) -> Mask:
    if mask.shape != (count,) or mask.dtype != bool:
        raise LearnerError(
            f"filters: {kind} ({FILTERS.loaded[kind].package}) gives an array of shape {list(mask.shape)} "
            f"and type {mask.dtype}, expected [{count}] truth values"
        )
    return mask


def _uniform(kind: str, place: int, seed: int, generation: int, count: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) per example, from a stream of the filter's own."""
    package = FILTERS.loaded[kind].package
    name = f"{package}/{kind}_{place}" if package else f"{kind}_{place}"
    return stream(seed, generation, name).random(count)


def accepted(filters: Sequence[Filter], examples: Examples, judge: Judge) -> npt.NDArray[np.int64]:
    """The indices of the examples that pass all filters of corpora, in order.

    A filter sees what earlier ones left.

    Raises:
        LearnerError: A filter gives something else than a truth value for each example.
    """
    return _passed(filters, examples, judge)[0]


def _passed(
    filters: Sequence[Filter], examples: Examples, judge: Judge
) -> tuple[npt.NDArray[np.int64], Examples, list[npt.NDArray[np.int8]]]:
    """As `accepted`, and all examples with what filters have noted of them.

    And for each filter that keeps one of several 1 for an example that it has chosen among such that scored
    alike, 0 for one that it has chosen by its score, and -1 for the others.
    """
    index, lots = np.arange(len(examples)), []
    for place, section in placed(filters):
        kind = section.kind
        if FILTERS[kind].of != "corpora":
            continue
        uniform = _uniform(kind, place, judge.seed, judge.generation, len(examples))[index]
        learned, told = judge.learned(section), list[Mask]()
        known = Known(judge.real, judge.seed, judge.generation, uniform, learned=learned, told=told.append)
        if FILTERS[kind].rewards:
            reward = np.full(len(examples), np.nan)
            reward[index] = _scored(kind, section, examples.take(index), known)
            examples = examples.noted("reward", reward)
        index = index[_mask(kind, section, examples.take(index), known, len(index))]
        for alike in told:
            lots.append(np.full(len(examples), -1, dtype=np.int8))
            lots[-1][index] = alike
    return index, examples, lots


def _choices(lots: list[npt.NDArray[np.int8]], index: npt.NDArray[np.int64]) -> FilterCounts:
    """The choices of some of the examples (`_passed`)."""
    return sum(
        (FilterCounts(int((lot[index] >= 0).sum()), int((lot[index] == 1).sum())) for lot in lots),
        NO_FILTER_COUNTS,
    )


def _scored(kind: str, section: Any, examples: Examples, known: Known) -> npt.NDArray[np.float64]:
    """A filter's rewards.

    Raises:
        LearnerError: It gives something else than a number for each example.
    """
    found = np.asarray(named(FILTERS[kind].rewards)(section, examples, known), dtype=np.float64)
    if found.shape != (len(examples),):
        raise LearnerError(
            f"filters: {kind} gives rewards of shape {list(found.shape)}, expected [{len(examples)}] numbers"
        )
    return found


def judged(
    filters: Sequence[Filter],
    pool: Examples,
    origin: npt.NDArray[np.int32],
    judge: Judge,
    take: int,
    labelled: Callable[[int], tuple[Examples, Examples]],
) -> tuple[list[npt.NDArray[np.int64]], FilterCounts]:
    """What filters let pass of a pool, in which they do not know what is real.

    Args:
        filters: All of the cell's; each sees what earlier ones left.
        pool: The examples, in the order in which they have arrived.
        origin: Of each, for the filters that are no more than error rates.
        judge: What a filter may know besides.
        take: How many examples will be trained on.
        labelled: So many real examples, and as many that generation 0 wrote.

    Returns:
        For each filter the positions in the pool that are left, in order; a position may stand there several
        times. And the choices of those filters that keep one of several.

    Raises:
        LearnerError: A filter gives something else than truth values or positions.
    """
    index, found, told = np.arange(len(pool)), [], list[Mask]()
    for number, (place, section) in enumerate(placed(filters)):
        kind, plugin = section.kind, FILTERS[section.kind]
        uniform = _uniform(kind, place, judge.seed, judge.generation, len(pool))[index]
        if plugin.of == "training sets":
            verdict: npt.NDArray[Any] = _mask(kind, section, origin[index], uniform, len(index))
        else:
            asked = plugin.labelled(section)
            learned = labelled(asked) if asked else None
            before = [other for other in filters[:number] if other.kind == kind]
            about = judge.real, judge.seed, judge.generation, uniform
            known = Known(*about, take, learned, told=told.append, before=before)
            verdict = _verdict(kind, section, pool.take(index), known, len(index))
        index = index[verdict]
        found.append(index)
    return found, sum((FilterCounts(len(alike), int(alike.sum())) for alike in told), NO_FILTER_COUNTS)


def raw_count(filters: Sequence[Any], count: int) -> int:
    """How many examples are drawn first where so many are to pass: by the share that may pass at most."""
    share = math.prod(FILTERS[section.kind].passing(section) for section in filters)
    return math.ceil(count / share - 1e-9)


def is_short(filters: Sequence[Any]) -> bool:
    """Whether fewer may pass than are asked for, and no more are drawn then."""
    return any(FILTERS[section.kind].short for section in filters)


def rewarded(section: Any, examples: Examples, judge: Judge) -> Examples:
    """All examples with the rewards that a judge alone gives them."""
    return _passed((section,), examples, judge)[1]


def first_accepted(
    filters: Sequence[Filter],
    draw: Callable[[int], Examples],
    count: int,
    judge: Judge,
    tell: Callable[[Examples, npt.NDArray[np.int64], FilterCounts], None] = lambda raw, index, filtered: None,
    before: int = 0,
) -> Examples:
    """The first examples that pass all filters of corpora; more are drawn where too few do.

    With a filter of which fewer may pass (`FilterPlugin.short`) nothing more is drawn, and what passes is
    all.

    Args:
        filters: The cell's filters.
        draw: The first so many examples, unfiltered.
        count: How many must pass.
        judge: What a filter may know besides.
        tell: Told of what was drawn, of which of it is given back, and of the choices among these.
        before: So many others read first of what is drawn as much of as they could need at most: with a
            filter of which fewer may pass, what they read is left out, whether it passes or not.

    Raises:
        LearnerError: Nearly everything is rejected.
    """
    raw = raw_count(filters, count)
    most = MAX_OVERSAMPLING * raw
    short = is_short(filters)
    while True:
        index, examples, lots = _passed(filters, draw(raw), judge)
        if short:
            start = raw_count(filters, before)
            index = index[index >= start][: count - before]
            tell(examples.take(slice(start, None)), index - start, _choices(lots, index))
            return examples.take(index)
        if len(index) >= count:
            index = index[:count]
            tell(examples, index, _choices(lots, index))
            return examples.take(index)
        if raw >= most:
            raise LearnerError(
                f"filters: {len(index)} of {raw} examples of generation {judge.generation} pass, {count} are "
                "needed; the filters reject nearly everything this model writes"
            )
        raw = min(most, max(raw + raw // 2, int(1.1 * raw * count / max(len(index), 1))))


def undetected(
    filters: Sequence[Filter], origin: npt.NDArray[np.int32], seed: int, generation: int
) -> Mask | None:
    """Which training examples no detector takes for synthetic; None where there is no detector.

    Args:
        filters: The cell's filters; those of training sets are detectors.
        origin: Of every training example, shape [size].
        seed: The chain's seed.
        generation: The generation that is fitted; 0 is fitted to real data, which nobody doubts.
    """
    detectors = [
        (place, section) for place, section in placed(filters) if FILTERS[section.kind].of == "training sets"
    ]
    if not detectors or generation == 0:
        return None
    kept = np.ones(len(origin), dtype=bool)
    for place, section in detectors:
        uniform = _uniform(section.kind, place, seed, generation, len(origin))
        kept &= _mask(section.kind, section, origin, uniform, len(origin))
    return kept
