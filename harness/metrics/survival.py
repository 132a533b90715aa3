"""Survival: which of the rare outcomes of the real data models still write."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from harness.components.survival import BANDS, column
from harness.records import Examples
from harness.registry import Known


def survival(corpus: Examples, known: Known) -> dict[str, float]:
    """Of the outcomes that the chain's real examples hold so often, the share that is written at all.

    Replacing n of n examples again and again, an outcome with count c of many is left in the corpus of
    generation g with probability 1 - (1 - s)^c, s_0 = 1, s <- 1 - exp(-s), g + 1 times (Suresh et al. 2024,
    arXiv 2412.17646).

    Args:
        corpus: Token ids, or outcomes in the first column.
        known: Whose real examples are counted.

    Returns:
        A share for every band of counts; 1 where the real examples have no outcome in it, as nothing is lost.
    """
    counts = np.bincount(_outcomes(known.real.real(known.seed, known.real.num_examples)))
    written = np.bincount(_outcomes(corpus), minlength=len(counts))[: len(counts)] > 0
    found = {}
    for low, high in pairwise(BANDS):
        there = (counts >= low) & (counts < high)
        found[column(low, high)] = float(written[there].mean()) if there.any() else 1.0
    return found


def _outcomes(examples: Examples) -> npt.NDArray[np.int64]:
    if np.issubdtype(examples.values.dtype, np.integer):
        return np.concatenate(examples.rows()).astype(np.int64)
    return examples.values[:, 0].astype(np.int64)
