"""Likelihood metrics from per-sequence negative log-likelihoods (NLL)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def test_metrics(
    nll: Array, tokens: npt.NDArray[np.int64], text_bytes: int, batch: int
) -> Mapping[str, float]:
    """NLL on real test text, and the three perplexities that publications report.

    The perplexity of a text is exp(total nats / total tokens), which weights every token equally. exp(mean
    over batches of the batch's nats per token) weights a short last batch like a full one; Shumailov et al.
    2023 report it. The mean over sequences of exp(nats per token), which the ``evaluate`` library returns, is
    never below exp of their mean (Jensen), and a few unlikely sequences dominate it.

    Args:
        nll: Shape [num_sequences]: sum over the sequence's tokens, nats.
        tokens: Shape [num_sequences]: predicted tokens.
        text_bytes: UTF-8 bytes of the text that was scored.
        batch: Consecutive sequences in one batch; the last one may be smaller.

    Returns:
        ``test/nll`` (nats per token), ``test/perplexity``, ``test/perplexity_batch_mean``,
        ``test/perplexity_sequence_mean``, ``test/bits_per_byte`` (all nats to bits, over bytes).
    """
    total, count = float(nll.sum()), int(tokens.sum())
    starts = np.arange(0, len(nll), batch)
    of_batches = np.add.reduceat(nll, starts) / np.add.reduceat(tokens, starts)
    with np.errstate(over="ignore"):
        return {
            "test/nll": total / count,
            "test/perplexity": float(np.exp(total / count)),
            "test/perplexity_batch_mean": float(np.exp(of_batches.mean())),
            "test/perplexity_sequence_mean": float(np.exp(per_sequence(nll, tokens)).mean()),
            "test/bits_per_byte": total / math.log(2) / max(text_bytes, 1),
        }


def other_metrics(
    name: str, nll: Array, tokens: npt.NDArray[np.int64], text_bytes: int
) -> Mapping[str, float]:
    """NLL on the test side of another real text; forgetting is its rise (McCloskey and Cohen 1989).

    Args:
        name: What the text is called.
        nll: Shape [num_sequences]: sum over the sequence's tokens, nats.
        tokens: Shape [num_sequences]: predicted tokens.
        text_bytes: UTF-8 bytes of the text that was scored.

    Returns:
        ``other/<name>/nll`` (nats per token) and ``other/<name>/bits_per_byte``.
    """
    total = float(nll.sum())
    return {
        f"other/{name}/nll": total / int(tokens.sum()),
        f"other/{name}/bits_per_byte": total / math.log(2) / max(text_bytes, 1),
    }


def gen0_metrics(nll: Array, tokens: npt.NDArray[np.int64]) -> Mapping[str, float]:
    """How likely generation 0's model finds synthetic examples, per sequence.

    Shumailov et al. 2023, histogram of perplexities.

    Args:
        nll: Shape [num_sequences]: sum over the sequence's tokens under generation 0's model, nats.
        tokens: Shape [num_sequences]: predicted tokens.

    Returns:
        Mean and quantiles of the sequences' nats per token.
    """
    per_token = per_sequence(nll, tokens)
    low, middle, high = np.quantile(per_token, [0.05, 0.5, 0.95])
    return {
        "gen0/nll_mean": float(per_token.mean()),
        "gen0/nll_p05": float(low),
        "gen0/nll_p50": float(middle),
        "gen0/nll_p95": float(high),
    }


def self_metrics(nll: Array, tokens: npt.NDArray[np.int64]) -> Mapping[str, float]:
    """How likely the model finds its own examples: mean over sequences of nats per token."""
    return {"self/nll_mean": float(per_sequence(nll, tokens).mean())}


def per_sequence(nll: Array, tokens: npt.NDArray[np.int64]) -> Array:
    """Nats per token of each sequence; an empty sequence has none and is left out."""
    used = tokens > 0
    result: Array = nll[used] / tokens[used]
    return result if len(result) else np.array([math.nan])
