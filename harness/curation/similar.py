"""Near duplicates: examples that share most of their n-grams with an earlier one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.components.filters import SimilarFilter
from harness.records import Examples
from harness.registry import Known


def near_duplicate(section: SimilarFilter, examples: Examples, known: Known) -> npt.NDArray[np.bool_]:
    """Which examples are unlike all kept before them.

    Two are alike where the Jaccard similarity of their sets of n-grams (shared / all) exceeds
    ``max_similarity``, computed exactly: an index from each n-gram to the kept examples that have it gives
    the shared counts, so what shares nothing is never compared.

    Args:
        section: The filter.
        examples: Token ids.
        known: Not used.

    Returns:
        Shape [num_examples].
    """
    having: dict[bytes, list[int]] = {}
    sizes: list[int] = []
    keep = np.ones(len(examples), dtype=bool)
    for place, row in enumerate(examples.rows()):
        grams = _ngrams(row, section.n)
        shared: dict[int, int] = {}
        for gram in grams:
            for other in having.get(gram, ()):
                shared[other] = shared.get(other, 0) + 1
        if any(
            count > section.max_similarity * (len(grams) + sizes[other] - count)
            for other, count in shared.items()
        ):
            keep[place] = False
            continue
        for gram in grams:
            having.setdefault(gram, []).append(len(sizes))
        sizes.append(len(grams))
    return keep


def _ngrams(row: npt.NDArray[np.int32], n: int) -> set[bytes]:
    """The distinct n-grams of an example; a shorter one is one n-gram."""
    content = np.ascontiguousarray(row).tobytes()
    width, step = n * row.itemsize, row.itemsize
    return {content[at : at + width] for at in range(0, max(len(content) - width, 0) + 1, step)}
