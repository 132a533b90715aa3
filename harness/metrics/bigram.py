"""An interpolated bigram model.

The baseline that a language model must beat before its collapse means anything.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TokenIds = npt.NDArray[np.int32]


def bigram_nll(train: TokenIds, validation: TokenIds, test: TokenIds, bos: int, vocab_size: int) -> float:
    """Test NLL of an interpolated bigram model.

    p(b | a) = l2 c(a, b) / c(a) + l1 c(b) / N + l0 / V, with the weights l fitted by expectation maximisation
    on the validation blocks (Jelinek and Mercer 1980). Every block starts behind the token ``bos``, as the
    language models see it.

    Args:
        train: Shape [num_blocks, block_size], token ids.
        validation: Likewise.
        test: Likewise.
        bos: Token before every block.
        vocab_size: V.

    Returns:
        Nats per token.
    """
    context, token = _pairs(train, bos)
    # only pairs that occur: all of a large vocabulary would be gigabytes
    codes, counts = np.unique(context * vocab_size + token, return_counts=True)
    followed = np.maximum(np.bincount(context, minlength=vocab_size), 1)
    unigram = np.bincount(token, minlength=vocab_size) / len(token)

    def parts(blocks: TokenIds) -> npt.NDArray[np.float64]:
        context, token = _pairs(blocks, bos)
        wanted = context * vocab_size + token
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        conditional = np.where(codes[place] == wanted, counts[place] / followed[context], 0.0)
        return np.stack([np.full(len(token), 1.0 / vocab_size), unigram[token], conditional])

    weights = np.full(3, 1 / 3)
    held_out = parts(validation)
    for _ in range(200):
        share = weights[:, None] * held_out
        weights = (share / share.sum(axis=0)).mean(axis=1)
    return float(-np.log(weights @ parts(test)).mean())


def unigram_nll(train: TokenIds, test: TokenIds, vocab_size: int) -> float:
    """Test NLL of a model that knows how often each token occurs, and nothing else; each counted once more.

    Args:
        train: Shape [num_blocks, block_size], token ids.
        test: Likewise.
        vocab_size: V.

    Returns:
        Nats per token.
    """
    counts = np.bincount(train.reshape(-1), minlength=vocab_size) + 1.0
    return float(-np.log(counts / counts.sum())[test.reshape(-1)].mean())


def _pairs(blocks: TokenIds, bos: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    before = np.concatenate([np.full((len(blocks), 1), bos, dtype=blocks.dtype), blocks[:, :-1]], axis=1)
    return before.reshape(-1).astype(np.int64), blocks.reshape(-1).astype(np.int64)
