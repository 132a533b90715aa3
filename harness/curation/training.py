"""How a training set is built: for a chain that is run by itself, and for each chain of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.components import FILTERS
from harness.curation.filters import Judge, first_accepted, is_short, raw_count, rewarded, undetected
from harness.curation.pool import choose
from harness.curation.tally import FilterTally
from harness.data import RealData
from harness.data.truths import load_teacher
from harness.errors import LearnerError
from harness.records import (
    EXTERNAL,
    NO_FILTER_COUNTS,
    REAL,
    TEACHER,
    Counts,
    Examples,
    FilterCounts,
    Part,
    Selection,
)
from harness.regimes import Drawn, draw
from harness.registry import named
from harness.science import FitSpec, learned_from


class Sources(Protocol):
    """Where the examples of a training set come from, unfiltered."""

    def real(self, count: int) -> Examples:
        """The first real examples of the chain's seed."""

    def fixed(self, content: str) -> Examples:
        """The fixed corpus with this hash."""

    def corpus(self, origin: int, count: int) -> Examples:
        """The first examples of an origin's corpus; more of them are sampled where there are too few."""


@dataclass(frozen=True)
class Chosen:
    """What a fit trains on.

    Attributes:
        drawn: Origin and index of every example.
        found: For each origin the examples that the indices point into.
        selection: What became of the pool; None where the regime has none.
        dropped: What each filter dropped of the pool, by its kind; at last what passed and was not needed.
        judged: What was judged and what passed, where there is a truth to compare it with.
        raw: By origin, places in the raw corpus of what the indices point into, where filters alone do not
            say it.
        decision: What is wrong with how it was judged (`harness.curation.tally.FilterTally.decision`).
        filtered: What filters of corpora have read, passed and chosen.
    """

    drawn: Drawn
    found: dict[int, Examples]
    selection: Selection | None = None
    dropped: tuple[tuple[str, Drawn], ...] = ()
    judged: Mapping[str, float] = field(default_factory=dict)
    raw: Mapping[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    decision: str = ""
    filtered: FilterCounts = NO_FILTER_COUNTS


def training_examples(spec: FitSpec, data: RealData, sources: Sources) -> Chosen:
    """Every training example of a fit.

    Args:
        spec: The fit.
        data: The real distribution, which filters may look at.
        sources: Where examples come from.

    Raises:
        LearnerError: The filters leave too little.
    """
    drawn = draw(spec.recipe, data.num_examples, spec.seed, spec.generation)
    if spec.recipe.take is not None:
        return _from_pool(spec, data, sources, drawn)
    filters: list[Any] = [part.section for part in spec.filters]
    kept = undetected(filters, drawn.origin, spec.seed, spec.generation)
    if kept is not None:
        if not kept.any():
            raise LearnerError(
                f"filters: the detector drops all training examples of generation {spec.generation}"
            )
        drawn = drawn.take(kept)
    tally = FilterTally(data, filters)
    opponent, first = _opponent(spec)
    if opponent:
        drawn, found, raw = _beside(spec, data, sources, opponent, first, tally)
        return Chosen(drawn, found, judged=tally.metrics(), raw=raw, decision=tally.decision)
    found = _found(spec, data, sources, filters, tally)
    if is_short(filters):
        for part in spec.recipe.parts:
            if part.origin >= 0:  # of a slice of a corpus what is found begins with the slice
                drawn.index[drawn.origin == part.origin] -= part.offset
    there = drawn.take(_there(drawn, found))
    return Chosen(there, found, judged=tally.metrics(), decision=tally.decision, filtered=tally.filtered)


def _opponent(spec: FitSpec) -> tuple[str, bool]:
    """What pairs the latest corpus with generation 0's, or with solutions; and whether it reads the first."""
    found = (FILTERS[str(item.identity["kind"])].opposed(item.section) for item in spec.filters)
    return next((item for item in found if item[0]), ("", False))


def _beside(
    spec: FitSpec, data: RealData, sources: Sources, opponent: str, first: bool, tally: FilterTally
) -> tuple[Drawn, dict[int, Examples], dict[int, npt.NDArray[np.int64]]]:
    """Pairs of what each generation that is read wrote with what generation 0 did, or with solutions.

    Returns:
        What is trained on, the better one of each pair first; by origin what that points into; and its places
        in raw corpora.
    """
    [item] = spec.filters
    section: Any = item.section
    each = FILTERS[str(item.identity["kind"])].together(section) or 1
    own = {part.origin: raw_count((section,), part.end) for part in spec.recipe.parts}
    raw = {**({0: max(own.values())} if first else {}), **own}
    written = {
        origin: rewarded(section, sources.corpus(origin, count), judge_of(spec, data, sources, origin))
        for origin, count in raw.items()
    }
    start, real = data.prompt_tokens, sources.real(data.supply)
    taken: dict[int, list[int]] = {}
    drawn: list[tuple[int, int]] = []
    for part in spec.recipe.parts:
        latest, other = written[part.origin], written[0 if first else part.origin]
        asked = latest.values[: len(latest) // each * each : each, :start]
        places = _solutions(asked, real.values[:, :start])
        pairs = named(opponent)(section, latest, other, real.take(places))[: part.end // 2]
        origins = {"current": part.origin, "initial": 0, "solutions": REAL}
        for whose, place in (one for pair in pairs for one in pair):
            if whose == "solutions":
                drawn.append((REAL, int(places[place])))
                continue
            rows = taken.setdefault(origins[whose], [])
            drawn.append((origins[whose], len(rows)))
            rows.append(place)
        used = {place for pair in pairs for whose, place in pair if origins[whose] == part.origin}
        tally.add(latest, np.array(sorted(used), dtype=np.int64))
    index = {origin: np.array(rows, dtype=np.int64) for origin, rows in taken.items()}
    found = {origin: written[origin].take(rows) for origin, rows in index.items()}
    found[REAL] = real.noted("reward", np.ones(len(real)))
    whose_is = np.array([origin for origin, _ in drawn], dtype=np.int32)
    made = Drawn(whose_is, np.array([row for _, row in drawn], dtype=np.int64))
    return made, found, index


def _solutions(asked: npt.NDArray[np.int32], prompts: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Which real example solves each prompt: the first one that has it, shape [num_prompts]."""
    known: dict[bytes, int] = {}
    for place, row in enumerate(prompts):
        known.setdefault(row.tobytes(), place)
    return np.array([known[row.tobytes()] for row in asked], dtype=np.int64)


def _there(drawn: Drawn, found: Mapping[int, Examples]) -> npt.NDArray[np.bool_]:
    """Which of what was drawn is there: of some filters fewer examples may pass than were asked for."""
    sizes = {origin: len(examples) for origin, examples in found.items()}
    return np.array(
        [index < sizes[origin] for origin, index in zip(drawn.origin, drawn.index, strict=True)], bool
    )


def _from_pool(spec: FitSpec, data: RealData, sources: Sources, drawn: Drawn) -> Chosen:
    """The examples that are known to be real, and what is chosen of those that arrive."""

    def labelled(count: int) -> tuple[Examples, Examples]:
        start = spec.recipe.arriving  # what lies before arrives in pools
        written = sources.corpus(0, start + count).take(slice(start, start + count))
        return sources.real(count).take(slice(count)), written

    found = _found(spec, data, sources, [])  # filters judge the pool, not what a model wrote by itself
    known = len(drawn) - spec.recipe.pooled
    pool = drawn.take(np.arange(known, len(drawn)))
    judge = Judge(data, spec.seed, spec.generation)
    chosen, selection, dropped = choose(
        spec, gather(pool, found), pool.origin, Counts.of(drawn.origin[:known]), judge, labelled
    )
    taken = drawn.take(np.concatenate([np.arange(known), known + chosen]))
    left_out = tuple((kind, pool.take(index)) for kind, index in dropped)
    return Chosen(taken, found, selection, left_out, filtered=selection.filtered)


def gather(drawn: Drawn, found: Mapping[int, Examples]) -> Examples:
    """Examples by origin and index, in order.

    Args:
        drawn: Which; shape [size].
        found: For each origin the examples that its indices point into.
    """
    width = max(source.values.shape[1] for source in found.values())
    notes: dict[str, npt.NDArray[np.float32]] = {}
    values = np.zeros((len(drawn), width), dtype=next(iter(found.values())).values.dtype)
    lengths = np.zeros(len(drawn), dtype=np.int32)
    for origin, source in found.items():
        rows = np.flatnonzero(drawn.origin == origin)
        chosen = source.take(drawn.index[rows])
        values[rows, : chosen.values.shape[1]] = chosen.values
        lengths[rows] = chosen.lengths
        for name, note in chosen.notes.items():
            whole = notes.setdefault(name, np.full((len(drawn), *note.shape[1:]), np.nan, dtype=np.float32))
            whole[rows] = note
    return Examples(values, lengths, notes)


def _found(
    spec: FitSpec, data: RealData, sources: Sources, filters: list[Any], tally: FilterTally | None = None
) -> dict[int, Examples]:
    """For each origin its examples, as far as the recipe reads them."""
    largest: dict[int, Part] = {}  # a rule may read an origin in several parts
    for part in spec.recipe.parts:
        known = largest.setdefault(part.origin, part)
        if part.offset + part.count > known.offset + known.count:
            largest[part.origin] = part
    tally = tally or FilterTally(data)
    return {origin: _examples(spec, part, data, sources, filters, tally) for origin, part in largest.items()}


def _examples(
    spec: FitSpec, part: Part, data: RealData, sources: Sources, filters: list[Any], tally: FilterTally
) -> Examples:
    """The examples of one part, filtered."""
    if part.origin == REAL:
        return sources.real(max(part.offset + part.count, data.num_examples))
    if part.origin == EXTERNAL:
        return sources.fixed(spec.recipe.spec["source"]["corpus"])
    if part.origin == TEACHER:
        return taught(spec, part.count, data, filters, tally)
    judge = judge_of(spec, data, sources, part.origin)
    draw_raw = partial(sources.corpus, part.origin)
    return first_accepted(filters, draw_raw, part.end, judge, tally.add, part.offset)


def judge_of(spec: FitSpec, data: RealData, sources: Sources, origin: int) -> Judge:
    """What filters may know of what a generation of a fit's past wrote."""

    def learned(section: Any) -> Examples | None:
        rows = learned_from((section,), data.num_examples)
        return None if rows is None else sources.corpus(0, rows.stop).take(rows)

    return Judge(data, spec.seed, origin, learned)


def taught(
    spec: FitSpec, count: int, data: RealData, filters: Sequence[Any] = (), tally: FilterTally | None = None
) -> Examples:
    """What a fit's fixed teacher writes for it, filtered.

    Args:
        spec: The fit.
        count: How many examples.
        data: The real distribution.
        filters: What the examples have to pass.
        tally: Told of the choices of those that keep one of several.
    """
    assert spec.writer is not None
    teacher = load_teacher(spec.writer)
    judge = Judge(data, spec.seed, spec.generation)

    def tell(raw: Examples, index: npt.NDArray[np.int64], filtered: FilterCounts) -> None:
        if tally is not None:
            tally.note(raw, index, filtered)

    return first_accepted(
        filters, lambda raw: teacher.lesson(spec.seed, spec.generation, raw), count, judge, tell
    )
