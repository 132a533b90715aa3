"""Lexical diversity of token sequences, on a fixed token budget (every one of these depends on length)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from harness.records import Examples

TOKEN_BUDGET = 65_536
"""Tokens that the lexical metrics read, from the first example on: two corpora are compared at the same
length."""
TAIL_SHARE = 0.1
"""The tail: the rarest tokens that together make up this share of the real training text."""
NUM_BANDS = 5
"""Frequency bands, each with an equal share of the real training text; band 1 holds the most frequent
tokens."""

LONGEST = 4
"""Tokens of the longest n-grams that are counted."""

Ints = npt.NDArray[np.int64]


def clip(examples: Examples, budget: int = TOKEN_BUDGET) -> Examples:
    """The first examples with at most ``budget`` tokens together; the last one may be cut short."""
    before = np.cumsum(examples.lengths) - examples.lengths
    kept = before < budget
    lengths = np.minimum(examples.lengths, budget - before)[kept].astype(np.int32)
    return Examples(examples.values[kept], lengths)


def ngrams(examples: Examples, n: int) -> tuple[Ints, Ints]:
    """Every n-gram within an example, as a code that is equal for equal n-grams.

    Returns:
        Codes and the index of the example of each, both of shape [num_ngrams].
    """
    width = examples.values.shape[1]
    if width < n or not len(examples):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    codes = examples.values[:, : width - n + 1].astype(np.int64)
    for offset in range(1, n):
        following = examples.values[:, offset : width - n + 1 + offset].astype(np.int64)
        # Codes are renumbered at each step, so they cannot overflow whatever the vocabulary.
        _, compact = np.unique(codes, return_inverse=True)
        codes = compact.reshape(codes.shape) * (int(following.max()) + 1) + following
    valid = np.arange(width - n + 1)[None, :] <= (examples.lengths[:, None] - n)
    rows = np.broadcast_to(np.arange(len(codes))[:, None], codes.shape)
    return codes[valid], rows[valid].astype(np.int64)


def distinct(examples: Examples, n: int) -> float:
    """distinct-n: distinct n-grams over all n-grams (Li et al. 2016, arXiv 1510.03055)."""
    codes, _ = ngrams(examples, n)
    return len(np.unique(codes)) / len(codes) if len(codes) else float("nan")


def repetition_shares(examples: Examples, n: int) -> npt.NDArray[np.float64]:
    """rep-n of each example.

    The share of its n-grams that occurred in it before (Welleck et al. 2020, arXiv 1908.04319).

    Returns:
        Shape [num_examples]; NaN where an example is shorter than n.
    """
    codes, rows = ngrams(examples, n)
    totals = np.bincount(rows, minlength=len(examples))
    unique_rows = np.unique(np.stack([rows, codes]), axis=1)[0] if len(codes) else rows
    unique = np.bincount(unique_rows, minlength=len(examples))
    with np.errstate(invalid="ignore"):
        return 1.0 - unique / np.where(totals == 0, np.nan, totals)


def entropy(examples: Examples, n: int) -> float:
    """Shannon entropy of the n-gram distribution, nats (plug-in estimate)."""
    codes, _ = ngrams(examples, n)
    if not len(codes):
        return float("nan")
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(share * np.log(share)).sum())


def token_counts(examples: Examples, vocab_size: int) -> Ints:
    """Occurrences of every token, shape [vocab_size]."""
    used = np.arange(examples.values.shape[1])[None, :] < examples.lengths[:, None]
    return np.bincount(examples.values[used], minlength=vocab_size).astype(np.int64)


def tail_tokens(real: Ints, share: float = TAIL_SHARE) -> npt.NDArray[np.bool_]:
    """The rarest tokens of the real text that together make up at most ``share`` of it.

    Tokens that never occur belong to it.
    """
    order = np.argsort(real, kind="stable")
    tail = np.zeros(len(real), dtype=bool)
    tail[order[np.cumsum(real[order]) <= share * real.sum()]] = True
    return tail


def band_of(real: Ints, bands: int = NUM_BANDS) -> npt.NDArray[np.int64]:
    """The frequency band of every token, 0 (most frequent) to bands - 1.

    Bands have equal cumulative shares of the real text.
    """
    order = np.argsort(-real, kind="stable")
    before = np.cumsum(real[order]) - real[order]
    band = np.empty(len(real), dtype=np.int64)
    band[order] = np.minimum(before * bands // max(int(real.sum()), 1), bands - 1)
    return band


def lexical_metrics(examples: Examples, real_counts: Ints, longest: int) -> Mapping[str, float]:
    """All lexical metrics of a corpus.

    What would be no number of the real text itself is left out; where all else is not, a model has collapsed.

    Args:
        examples: Token ids.
        real_counts: Occurrences of every token in the real training text, shape [vocab_size].
        longest: Tokens of the longest example of real text; of n-grams that are longer nothing is said.

    Returns:
        ``text/distinct_2``, ``text/rep_4`` (mean over examples), ``text/entropy_2`` (nats),
        ``text/type_token_ratio``, ``text/vocab_coverage`` (share of the real text's tokens that occur at
        all), ``text/tail_mass`` (share of tokens that belong to the real text's tail), ``text/band_k`` (share
        of band k over its share in the real text, where it has one), ``text/tokens`` (tokens read). Where
        there is no real text (a task without solutions), what compares with it is left out.
    """
    read = clip(examples)
    counts = token_counts(read, len(real_counts))
    total = int(counts.sum())
    share = counts / max(total, 1)
    repetition = repetition_shares(read, 4)
    metrics = {
        "text/distinct_2": distinct(read, 2),
        "text/rep_4": float(np.nanmean(repetition)) if np.isfinite(repetition).any() else float("nan"),
        "text/entropy_2": entropy(read, 2),
    }
    metrics = {name: value for name, value in metrics.items() if int(name[-1]) <= longest}
    metrics["text/type_token_ratio"] = float((counts > 0).sum() / max(total, 1))
    if not real_counts.any():
        return {**metrics, "text/tokens": float(total)}
    metrics |= {
        "text/vocab_coverage": float((counts[real_counts > 0] > 0).mean()),
        "text/tail_mass": float(share[tail_tokens(real_counts)].sum()),
        "text/tokens": float(total),
    }
    real_share, band = real_counts / real_counts.sum(), band_of(real_counts)
    for index in range(NUM_BANDS):
        expected = float(real_share[band == index].sum())
        if expected:  # of few tokens one may have all of a band, and more
            metrics[f"text/band_{index + 1}"] = float(share[band == index].sum()) / expected
    return metrics


def row_hashes(examples: Examples) -> list[bytes]:
    """Each example's used part as bytes: equal for equal examples."""
    values = np.ascontiguousarray(examples.values.astype(np.int32))
    return [values[row, :length].tobytes() for row, length in enumerate(examples.lengths)]


def copying_metrics(examples: Examples, training: Examples) -> Mapping[str, float]:
    """Exact repeats.

    Args:
        examples: What the model wrote.
        training: What it was trained on.

    Returns:
        ``text/duplicate_share``: examples equal to an earlier one; ``text/copy_share``: examples that stand
            verbatim in the
        training set.
    """
    rows = row_hashes(examples)
    trained = set(row_hashes(training))
    count = max(len(rows), 1)
    return {
        "text/duplicate_share": 1 - len(set(rows)) / count,
        "text/copy_share": sum(row in trained for row in rows) / count,
    }
