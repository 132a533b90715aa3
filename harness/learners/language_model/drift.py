"""How far a model has moved from generation 0's on fixed real text: what it predicts, how it represents."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from harness.learners.language_model.batches import batches
from harness.learners.language_model.cuda import inference
from harness.learners.language_model.scoring import IGNORED, read_afresh, with_bos
from harness.learners.language_model.sizes import BATCH_TOKENS
from harness.records import Examples

NAMES = ("drift/entropy", "drift/kl", "drift/cka")


class Similarity:
    """Linear CKA of two representations of the same tokens, read some tokens at a time.

    ||Y'X||^2 / (||X'X|| ||Y'Y||) with Frobenius norms and centred columns (Kornblith et al. 2019, arXiv
    1905.00414, equation 5): 1 for representations that are equal up to a rotation, a shift and a factor.
    """

    def __init__(self) -> None:
        """Nothing is read."""
        self._count = 0
        self._sums: list[torch.Tensor] = []
        self._products: list[torch.Tensor] = []

    def add(self, one: torch.Tensor, other: torch.Tensor) -> None:
        """Read both representations of some tokens, shapes [tokens, width] and [tokens, other width]."""
        one, other = one.double(), other.double()
        sums = [one.sum(dim=0), other.sum(dim=0)]
        products = [one.T @ one, other.T @ other, other.T @ one]
        if self._count:
            sums = [known + new for known, new in zip(self._sums, sums, strict=True)]
            products = [known + new for known, new in zip(self._products, products, strict=True)]
        self._sums, self._products, self._count = sums, products, self._count + len(one)

    def value(self) -> float:
        """Between 0 and 1; NaN where a representation is the same for all tokens."""
        one, other = (total / self._count for total in self._sums)
        pairs = ((one, one), (other, other), (other, one))
        own, others, cross = (
            float((product / self._count - torch.outer(*pair)).square().sum())
            for product, pair in zip(self._products, pairs, strict=True)
        )
        return cross / (own * others) ** 0.5 if own > 0 and others > 0 else float("nan")


def drift(
    model: PreTrainedModel,
    first: PreTrainedModel,
    examples: Examples,
    bos: int | None,
    masked: int,
    tick: Callable[[], None],
    fill: int | None = None,
) -> npt.NDArray[np.float64]:
    """What `NAMES` says, over all tokens that are predicted, each with the same weight.

    The entropy of the model's predictions and KL(generation 0 || model) are in nats; CKA is of what the head
    reads, the last hidden states.

    Args:
        model: The generation's.
        first: Generation 0's.
        examples: Real text, shape [num_examples, width].
        bos: Token before every example; None for none.
        masked: Tokens at the start of every example that count nothing.
        tick: Told of every batch.
        fill: Token that fills prompts up in front, which is not read; None where nothing does.

    Returns:
        Shape [3].
    """
    device = next(model.parameters()).device
    similarity, entropy, divergence, count = Similarity(), 0.0, 0.0, 0
    with inference(device):
        one_width = any([read_afresh(model), read_afresh(first)])
        tokens = BATCH_TOKENS[device.type]
        for batch in batches(examples, tokens, int(bos is None), fill, one_width=one_width):
            inputs, targets = with_bos(batch.examples, bos, device, masked - batch.first)
            counts = targets != IGNORED
            found = []
            for one in (model, first):
                read = one(input_ids=inputs, use_cache=False, output_hidden_states=True)
                found.append(
                    (read.logits[counts].float().log_softmax(dim=-1), read.hidden_states[-1][counts])
                )
                del read
            (own, state), (other, other_state) = found
            entropy -= float((own.exp() * own).sum(dim=-1).double().sum())
            divergence += float((other.exp() * (other - own)).sum(dim=-1).double().sum())
            similarity.add(state, other_state)
            count += len(own)
            tick()
    return np.array([entropy / count, divergence / count, similarity.value()])
