"""How a training set is built: for a chain that is run by itself, and for each chain of a bundle."""

from __future__ import annotations

from functools import partial
from typing import Any, Protocol

from harness.curation.filters import Judge, first_accepted, undetected
from harness.data import RealData
from harness.data.analytic import load_teacher
from harness.errors import LearnerError
from harness.records import EXTERNAL, REAL, TEACHER, Examples, Part
from harness.regimes import Drawn, draw
from harness.science import FitSpec


class Sources(Protocol):
    """Where the examples of a training set come from, unfiltered."""

    def real(self, count: int) -> Examples:
        """The first real examples of the chain's seed."""
        ...

    def fixed(self, content: str) -> Examples:
        """The fixed corpus with this hash."""
        ...

    def corpus(self, generation: int, count: int) -> Examples:
        """The first examples that a generation wrote; more of them are sampled where there are too few."""
        ...


def training_examples(spec: FitSpec, data: RealData, sources: Sources) -> tuple[Drawn, dict[int, Examples]]:
    """Every training example of a fit.

    Args:
        spec: The fit.
        data: The real distribution, which filters may look at.
        sources: Where examples come from.

    Returns:
        Origin and index of every example, and for each origin the examples that the indices point into.

    Raises:
        LearnerError: The filters leave too little.
    """
    filters: list[Any] = [part.section for part in spec.filters]
    drawn = draw(spec.recipe, data.num_examples, spec.seed, spec.generation)
    kept = undetected(filters, drawn.origin, spec.seed, spec.generation)
    if kept is not None:
        if not kept.any():
            raise LearnerError(
                f"filters: the detector drops all training examples of generation {spec.generation}"
            )
        drawn = drawn.take(kept)
    largest: dict[int, Part] = {}  # a rule may read an origin in several parts
    for part in spec.recipe.parts:
        known = largest.setdefault(part.origin, part)
        if part.offset + part.count > known.offset + known.count:
            largest[part.origin] = part
    found = {origin: _examples(spec, part, data, sources, filters) for origin, part in largest.items()}
    return drawn, found


def _examples(spec: FitSpec, part: Part, data: RealData, sources: Sources, filters: list[Any]) -> Examples:
    """The examples of one part, filtered."""
    if part.origin == REAL:
        return sources.real(max(part.offset + part.count, data.num_examples))
    if part.origin == EXTERNAL:
        return sources.fixed(spec.recipe.spec["source"]["corpus"])
    if part.origin == TEACHER:
        return taught(spec, part.count, data)
    judge = Judge(data, spec.seed, part.origin)
    return first_accepted(filters, partial(sources.corpus, part.origin), part.count, judge)


def taught(spec: FitSpec, count: int, data: RealData) -> Examples:
    """What a fit's fixed teacher writes for it, filtered.

    Args:
        spec: The fit.
        count: How many examples.
        data: The real distribution.
    """
    assert spec.writer is not None
    teacher, filters = load_teacher(spec.writer), [part.section for part in spec.filters]
    judge = Judge(data, spec.seed, spec.generation)
    return first_accepted(
        filters,  # type: ignore[arg-type]
        lambda raw: teacher.lesson(spec.seed, spec.generation, raw),
        count,
        judge,
    )
