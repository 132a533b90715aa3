"""How alike two corpora are: n-grams that they share, and the distance between samples of numbers.

Each of these depends on the size of the corpora: two finite samples of one distribution differ. So the
corpora are cut to one size, and a value means something only beside that of two samples of real data of the
same size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from harness.metrics.lexical import clip, ngrams
from harness.records import Examples

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def jensen_shannon(a: Examples, b: Examples, n: int, budget: int) -> float:
    """Jensen-Shannon divergence between the n-gram distributions of two corpora.

    JSD = H((p + q) / 2) - (H(p) + H(q)) / 2 with the plug-in entropy H (Lin 1991, IEEE Transactions on
    Information Theory 37:145); in bits it goes from 0 (equal distributions) to 1 (no n-gram in common). The
    plug-in estimate is too large for small corpora.

    Args:
        a: Token ids.
        b: Token ids of the same tokenizer.
        n: Length of the n-grams, which lie within an example.
        budget: Tokens that are read of each corpus, from the first example on; both should have as many.

    Returns:
        Bits; NaN where a corpus has no n-gram.
    """
    first, second = _counts((a, b), n, budget)
    if not first.sum() or not second.sum():
        return float("nan")
    p, q = first / first.sum(), second / second.sum()
    # Rounding can leave a tiny negative number where the distributions are equal.
    return max(0.0, _entropy((p + q) / 2) - (_entropy(p) + _entropy(q)) / 2)


def effective_members(corpora: Sequence[Examples], n: int, budget: int) -> tuple[float, float, float]:
    """How many different n-grams several corpora write, each and together, and so how many corpora they are.

    Effective numbers are exponentials of entropies: alpha = exp(mean H(p_i)) of one corpus, gamma =
    exp(H(mean p_i)) of all together, and beta = gamma / alpha from 1 (all are one) to their number (nothing
    in common), after Jost 2007 (Ecology 88:2427); ln beta is the Jensen-Shannon divergence of all with equal
    weights. The plug-in estimates are too small for small corpora, beta too large.

    Args:
        corpora: Token ids of one tokenizer.
        n: Length of the n-grams, which lie within an example.
        budget: Tokens that are read of each corpus, from the first example on; all should have as many.

    Returns:
        Alpha, gamma, beta; NaN where a corpus has no n-gram.
    """
    counts = _counts(corpora, n, budget)
    if not all(found.sum() for found in counts):
        return float("nan"), float("nan"), float("nan")
    shares = [found / found.sum() for found in counts]
    alpha = 2.0 ** float(np.mean([_entropy(p) for p in shares]))
    gamma = 2.0 ** _entropy(np.mean(shares, axis=0))
    return alpha, gamma, gamma / alpha


def jaccard(a: Examples, b: Examples, n: int, budget: int) -> float:
    """Share of the distinct n-grams of two corpora that stand in both.

    |A and B| / |A or B| (Jaccard 1901, 1912).

    Args:
        a: Token ids.
        b: Token ids of the same tokenizer.
        n: Length of the n-grams, which lie within an example.
        budget: Tokens that are read of each corpus, from the first example on; both should have as many.

    Returns:
        From 0 (none in common) to 1 (the same set); NaN where neither corpus has an n-gram.
    """
    first, second = _counts((a, b), n, budget)
    return float(((first > 0) & (second > 0)).sum() / len(first)) if len(first) else float("nan")


def energy_distance(x: Array, y: Array) -> float:
    """Squared energy distance between two samples, 2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean norms.

    Székely and Rizzo 2013 (Journal of Statistical Planning and Inference 143:1249), the U-statistic: the mean
    over pairs of different points, without each point's distance of 0 to itself. So it is unbiased, 0 on
    average for two samples of one distribution, and may be negative.

    Args:
        x: Shape [num_x, dim], at least two points.
        y: Shape [num_y, dim], at least two points.

    Returns:
        In the unit of the data; infinite or NaN where the data are.
    """
    from scipy.spatial.distance import cdist, pdist

    return float(2 * cdist(x, y).mean() - pdist(x).mean() - pdist(y).mean())


def _counts(corpora: Sequence[Examples], n: int, budget: int) -> list[Ints]:
    """Occurrences in each corpus of every n-gram that is in one of them, all of shape [num_distinct]."""
    clipped = [clip(corpus, budget) for corpus in corpora]
    starts = np.cumsum([0, *map(len, clipped)])
    values = np.zeros((starts[-1], max(corpus.values.shape[1] for corpus in clipped)), dtype=np.int32)
    for corpus, start in zip(clipped, starts, strict=False):
        values[start : start + len(corpus), : corpus.values.shape[1]] = corpus.values
    # Codes are comparable within one call only, so all corpora go through it together.
    codes, rows = ngrams(Examples(values, np.concatenate([corpus.lengths for corpus in clipped])), n)
    distinct, index = np.unique(codes, return_inverse=True)
    return [
        np.bincount(index[(rows >= start) & (rows < stop)], minlength=len(distinct))
        for start, stop in zip(starts[:-1], starts[1:], strict=True)
    ]


def _entropy(p: Array) -> float:
    """Shannon entropy of a distribution, bits."""
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())
