"""Negative log-likelihoods of token sequences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from harness.learners.language_model.cuda import inference
from harness.records import Examples

IGNORED = -100
BATCH_TOKENS = 8192
"""Tokens in one forward pass when scoring."""


def with_bos(
    examples: Examples, bos: int | None, device: torch.device, masked: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a causal model.

    Args:
        examples: Shape [batch, width].
        bos: Token before every example, so that its first token is predicted too; None for none.
        device: Where the tensors go.
        masked: Tokens at the start of every example that are no targets.

    Returns:
        Inputs and targets, both [batch, width] (width - 1 without bos); targets behind an example's end, and
        masked ones, are `IGNORED`.
    """
    tokens = torch.from_numpy(np.ascontiguousarray(examples.values, dtype=np.int64))
    used = (
        torch.arange(tokens.shape[1])[None, :] < torch.from_numpy(examples.lengths.astype(np.int64))[:, None]
    )
    targets = torch.where(used, tokens, IGNORED)
    targets[:, :masked] = IGNORED
    if bos is None:
        return tokens[:, :-1].to(device), targets[:, 1:].to(device)
    first = torch.full((len(tokens), 1), bos, dtype=torch.int64)
    return torch.cat([first, tokens[:, :-1]], dim=1).to(device), targets.to(device)


def sequence_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Nats per sequence in fp32: [batch, length, vocab] logits and [batch, length] targets to [batch]."""
    flat = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(targets.shape).sum(dim=1)


def score(
    model: PreTrainedModel,
    examples: Examples,
    bos: int | None,
    rank: int = 0,
    world_size: int = 1,
    tick: Callable[[], None] = lambda: None,
) -> npt.NDArray[np.float64]:
    """Nats per sequence of this rank's share of the examples.

    Every batch has the same shape, padded where needed, so that a sequence's value does not depend on how
    many there are.

    Args:
        model: The model.
        examples: Shape [num_examples, width].
        bos: Token before every example; None for none.
        rank: This rank scores batches rank, rank + world_size, ...
        world_size: Number of ranks.
        tick: Told of every batch.

    Returns:
        Shape [num_examples]; NaN where another rank scores.
    """
    device = next(model.parameters()).device
    size = max(1, BATCH_TOKENS // examples.values.shape[1])
    result = np.full(len(examples), np.nan)
    with inference(device):
        for number, start in enumerate(range(0, len(examples), size)):
            if number % world_size != rank:
                continue
            part = examples.take(slice(start, start + size))
            short = size - len(part)
            padded = Examples(np.pad(part.values, ((0, short), (0, 0))), np.pad(part.lengths, (0, short)))
            inputs, targets = with_bos(padded, bos, device)
            nll = sequence_nll(model(input_ids=inputs, use_cache=False).logits, targets)
            tick()
            result[start : start + len(part)] = nll[: len(part)].double().cpu().numpy()
    return result
