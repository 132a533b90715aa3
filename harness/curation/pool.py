"""What arrives unlabelled, and what is trained on of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.curation.filters import Judge, judged, placed
from harness.errors import LearnerError
from harness.records import NO_FILTER_COUNTS, REAL, Counts, Examples, Selection
from harness.science import FitSpec
from harness.streams import stream


def choose(
    spec: FitSpec,
    pool: Examples,
    origin: npt.NDArray[np.int32],
    known: Counts,
    judge: Judge,
    labelled: Callable[[int], tuple[Examples, Examples]],
) -> tuple[npt.NDArray[np.int64], Selection, list[tuple[str, npt.NDArray[np.int64]]]]:
    """Choose what to train on.

    Args:
        spec: The fit.
        pool: What has arrived, in order.
        origin: Of each.
        known: What is trained on besides, without being judged.
        judge: What filters may know besides the examples.
        labelled: So many real examples, and as many that generation 0 wrote.

    Returns:
        Positions in the pool; what became of it; and the positions that each filter dropped, at last those
        that passed and were not needed.

    Raises:
        LearnerError: The filters leave nothing.
    """
    take = spec.recipe.take
    assert take is not None
    filters: list[Any] = [part.section for part in spec.filters]
    found, filtered = judged(filters, pool, origin, judge, take, labelled)
    left = [np.arange(len(pool)), *found]
    index, steps = left[-1], dict[str, tuple[Counts, Counts]]()
    dropped = []
    if spec.recipe.select == "filters":
        for section, given, passed in zip(filters, left, left[1:], strict=False):
            dropped.append((section.kind, np.setdiff1d(given, passed)))
        kinds = [section.kind for section in filters]
        for (place, section), given, passed in zip(placed(filters), left, left[1:], strict=False):
            name = section.kind if kinds.count(section.kind) == 1 else f"{section.kind}_{place + 1}"
            steps[name] = _distinct(origin, given), _distinct(origin, passed)
    else:
        index, filtered = _control(spec, origin, len(np.unique(index))), NO_FILTER_COUNTS
        dropped.append((spec.recipe.select, np.setdiff1d(left[0], index)))
    chosen = index[:take]
    if not len(chosen) and not known.total:
        raise LearnerError(
            f"filters: none of the {len(pool)} examples that arrive in generation {spec.generation} passes"
        )
    mine = Counts.of(origin[chosen])
    trained = Counts(known.real + mine.real, known.synthetic + mine.synthetic)
    dropped.append(("not_needed", np.setdiff1d(index, chosen)))
    selection = Selection(Counts.of(origin), _distinct(origin, index), steps, trained, filtered)
    return chosen, selection, dropped


def _control(spec: FitSpec, origin: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int64]:
    """As many examples as the filters would keep: drawn by lot, or real ones before synthetic ones."""
    if spec.recipe.select == "oracle":
        return np.argsort(origin != REAL, kind="stable")[:count]
    return np.sort(stream(spec.seed, spec.generation, "pool_lot").permutation(len(origin))[:count])


def _distinct(origin: npt.NDArray[np.int32], index: npt.NDArray[np.int64]) -> Counts:
    return Counts.of(origin[np.unique(index)])
