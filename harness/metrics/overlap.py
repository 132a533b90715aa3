"""How much of some examples is in others too: whole ones, and n-grams of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NGRAM = 13
"""Tokens in a row that count as the same passage (Brown et al. 2020, arXiv 2005.14165, appendix C)."""


def overlaps(held: npt.NDArray[Any], others: npt.NDArray[Any]) -> dict[str, float]:
    """Share of some examples that others have too.

    Args:
        held: Shape [examples, width]; token ids where they are integers.
        others: The same, of any number.

    Returns:
        By what was looked for: ``whole examples``, and of token ids ``13-grams``, where they are as long.
    """
    found = {"whole examples": _share(held, others)}
    if np.issubdtype(held.dtype, np.integer) and held.shape[1] >= NGRAM:
        found[f"{NGRAM}-grams"] = _share(_windows(held), _windows(others))
    return found


def passages_in(
    documents: Sequence[Sequence[int]], others: Sequence[npt.NDArray[Any]]
) -> tuple[npt.NDArray[np.bool_], float]:
    """Which documents have a passage that is in other text too, and the share of all their passages.

    Args:
        documents: Token ids of each.
        others: Other text as it runs on, token ids, each of shape [tokens].

    Returns:
        Shape [documents], and a share; a document of fewer than 13 tokens has no passage.
    """
    rows = [np.asarray(document, dtype=np.int32) for document in documents]
    windows, owner = _all_windows(rows)
    there = _is_in(windows, _all_windows(others)[0])
    found = np.zeros(len(rows), dtype=np.bool_)
    found[owner[there]] = True
    return found, float(there.mean()) if len(there) else 0.0


def _all_windows(texts: Sequence[npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Every passage of some texts, shape [passages, 13], and the text that it is of."""
    long = [place for place, text in enumerate(texts) if len(text) >= NGRAM]
    found = [_windows(texts[place][None]) for place in long]
    owner = np.repeat(np.array(long, dtype=np.int64), [len(part) for part in found])
    return np.concatenate([np.zeros((0, NGRAM), np.int32), *found]), owner


def _windows(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(rows, NGRAM, axis=1)
    return np.ascontiguousarray(windows.reshape(-1, NGRAM))


def _share(mine: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    return float(_is_in(mine, theirs).mean()) if len(mine) else 0.0


def _is_in(mine: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows are among others, all of one width."""
    kind = np.dtype((np.void, mine.dtype.itemsize * mine.shape[1]))
    one, other = np.ascontiguousarray(mine), np.ascontiguousarray(theirs.astype(mine.dtype))
    return np.asarray(np.isin(one.view(kind).ravel(), other.view(kind).ravel()))
