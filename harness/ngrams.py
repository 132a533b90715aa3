"""Counts of n-grams of tokens or characters, which classifiers read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FEATURES = 2**16
"""Columns that n-grams are hashed to."""


def ngram_counts(n: int, rows: list[list[int]]) -> Any:
    """How often each row has which runs of 1 to n tokens: hashed counts, rows of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(
        n_features=FEATURES, ngram_range=(1, n), token_pattern=r"\d+", norm="l2", alternate_sign=False
    )
    return counts.transform([" ".join(map(str, row)) for row in rows])


def character_counts(n: int, texts: Sequence[str]) -> Any:
    """How often each text has which runs of 1 to n characters: hashed counts, rows of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = HashingVectorizer(
        n_features=FEATURES,
        ngram_range=(1, n),
        analyzer="char",
        lowercase=False,
        norm="l2",
        alternate_sign=False,
    )
    return counts.transform(texts)
