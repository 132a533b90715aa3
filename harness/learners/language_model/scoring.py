"""Negative log-likelihoods of token sequences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import nll_loss
from transformers import PreTrainedModel

from harness.components.objectives import Anchor
from harness.learners.language_model.batches import Batch, batches, of_one_width
from harness.learners.language_model.cuda import inference
from harness.learners.language_model.sizes import BATCH_TOKENS, SMALL_BATCH
from harness.records import Examples

IGNORED = -100
FEW = 2**23
"""Logits up to which what the backward pass needs is kept, 32 MiB; of more it is computed again."""
ENTRIES = {"cpu": 2**18, "cuda": 2**28}
"""Logits that are made fp32 together: they stay in a CPU's cache; on a GPU launches should be few."""


def with_bos(
    examples: Examples, bos: int | None, device: torch.device, masked: int | npt.NDArray[np.int64] = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of a causal model.

    Args:
        examples: Shape [batch, width].
        bos: Token before every example, so that its first token is predicted too; None for none.
        device: Where the tensors go.
        masked: Tokens at the start of every example, or of each, that are no targets.

    Returns:
        Inputs and targets, both [batch, width] (width - 1 without bos); targets behind an example's end, and
        masked ones, are `IGNORED`.
    """
    tokens = torch.from_numpy(np.ascontiguousarray(examples.values, dtype=np.int64))
    place = torch.arange(tokens.shape[1])[None, :]
    used = place < torch.from_numpy(examples.lengths.astype(np.int64))[:, None]
    used &= place >= torch.as_tensor(masked).view(-1, 1)
    targets = torch.where(used, tokens, IGNORED)
    if bos is None:
        return tokens[:, :-1].to(device), targets[:, 1:].to(device)
    first = torch.full((len(tokens), 1), bos, dtype=torch.int64)
    return torch.cat([first, tokens[:, :-1]], dim=1).to(device), targets.to(device)


def sequence_nll(
    logits: torch.Tensor,
    targets: torch.Tensor,
    truncate: float | None = None,
    anchor: Anchor | None = None,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Nats per sequence in fp32: [batch, length, vocab] logits and [batch, length] targets to [batch].

    With ``truncate``, tokens that have more than this probability count nothing. With ``anchor``, it is the
    loss towards a reference with these logits, [batch, length, vocab].

    Of more than `FEW` logits no fp32 copy is made, neither here nor by the backward pass: a few tokens' at a
    time stay in the processor's cache. Every bit is the same either way.
    """
    return by_sequence(token_nll(logits, targets, anchor, reference), truncate)


def by_sequence(nll: torch.Tensor, truncate: float | None = None) -> torch.Tensor:
    """Nats per sequence, [batch], of nats per token, [batch, length]; ``truncate`` as of `sequence_nll`."""
    if truncate is not None:
        nll = torch.where(nll < -math.log(truncate), 0.0, nll)
    return nll.sum(dim=1)


def batch_loss(nll: torch.Tensor, predicted: int) -> torch.Tensor:
    """What a fit minimises, as far as it is these sequences': the mean over all tokens of their batch.

    Args:
        nll: Of some of a batch's sequences, from `sequence_nll`.
        predicted: Tokens that all of the batch's sequences predict.
    """
    return nll.sum() / max(predicted, 1)


def token_nll(
    logits: torch.Tensor,
    targets: torch.Tensor,
    anchor: Anchor | None = None,
    reference: torch.Tensor | None = None,
) -> torch.Tensor:
    """Nats per token as in `sequence_nll`: shape [batch, length], 0 where there is no target."""
    few = logits.requires_grad and logits.numel() <= FEW
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    towards = None if reference is None else reference.flatten(0, 1)
    if torch.compiler.is_compiling() or (few and towards is not None):
        return _loss(flat, wanted, anchor, towards).view(targets.shape)  # a compiler makes no copy either
    apply: Any = _TokenLoss.apply
    found: torch.Tensor = apply(flat, wanted, anchor, towards, few)
    return found.view(targets.shape)


class _TokenLoss(torch.autograd.Function):
    """Nats per token, [tokens, vocab] logits and [tokens] targets to [tokens], some tokens at a time.

    Of ``few`` the log-probabilities are kept. The gradient of -log p(t) is p - 1 at t and p elsewhere, made
    in the place of log p, which takes fewer passes over the vocabulary than torch's own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        anchor: Anchor | None,
        reference: torch.Tensor | None,
        few: bool,
    ) -> torch.Tensor:
        kept = torch.empty_like(logits, dtype=torch.float32) if few else None
        found = []
        for part in _parts(logits):
            if kept is None:
                nll = _loss(logits[part], targets[part], anchor, _part(reference, part))
            else:
                nll = _nll(torch.log_softmax(logits[part].float(), dim=-1, out=kept[part]), targets[part])
            found.append(nll)
        ctx.anchor = anchor
        ctx.save_for_backward(logits, targets, reference, kept)
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        logits, targets, reference, kept = ctx.saved_tensors
        in_place = kept is not None and kept.dtype == logits.dtype
        found = kept if in_place else torch.empty_like(logits)
        for part in _parts(logits):
            if reference is None:
                logprobs = logits[part].float().log_softmax(dim=-1) if kept is None else kept[part]
                made = _gradient(logprobs, targets[part], gradient[part])
                if not in_place:
                    found[part] = made
                continue
            with torch.enable_grad():  # the forward pass once more: it is cheaper than to keep what it makes
                own = logits[part].detach().requires_grad_()
                loss = _loss(own, targets[part], ctx.anchor, _part(reference, part))
                (found[part],) = torch.autograd.grad(loss, own, gradient[part])
        return found, None, None, None, None


def _nll(logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nll_loss(logprobs, targets, ignore_index=IGNORED, reduction="none")


def _gradient(logprobs: torch.Tensor, targets: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """What `_nll` sends back to logits, [tokens, vocab], in the place of their log-probabilities.

    Args:
        logprobs: Shape [tokens, vocab], overwritten.
        targets: Shape [tokens].
        gradient: Of each token's nats, shape [tokens].
    """
    none = targets == IGNORED
    at = targets.masked_fill(none, 0)[:, None]
    found = logprobs.exp_()
    found.scatter_(1, at, found.gather(1, at) - 1)
    return found.mul_(gradient.masked_fill(none, 0)[:, None])


def _loss(
    logits: torch.Tensor, targets: torch.Tensor, anchor: Anchor | None, reference: torch.Tensor | None
) -> torch.Tensor:
    """The loss of tokens: [tokens, vocab] logits and [tokens] targets to [tokens].

    Towards a reference q with weight w it is, for a model p and a token t,

    - ``smoothing``: -(1 - w) log p(t) - w sum_v q(v) log p(v), label smoothing with q in the place of the
      uniform distribution (Szegedy et al. 2016, arXiv 1512.00567, section 7);
    - ``kl``: -log p(t) + w sum_v p(v) log (p(v) / q(v)).
    """
    own = logits.float().log_softmax(dim=-1)
    nll = _nll(own, targets)
    if anchor is None or reference is None:
        return nll
    other = reference.float().log_softmax(dim=-1)
    if anchor.loss == "smoothing":
        nll = (1 - anchor.weight) * nll
        added = -(other.exp() * own).sum(dim=-1)
    else:
        added = (own.exp() * (own - other)).sum(dim=-1)
    return nll + anchor.weight * torch.where(targets == IGNORED, 0.0, added)


def _part(values: torch.Tensor | None, part: slice) -> torch.Tensor | None:
    return None if values is None else values[part]


def _parts(logits: torch.Tensor) -> list[slice]:
    """Rows that are looked at together."""
    size = max(1, ENTRIES[logits.device.type] // logits.shape[1])
    return [slice(start, start + size) for start in range(0, max(1, len(logits)), size)]


def score(
    model: PreTrainedModel,
    examples: Examples,
    bos: int | None,
    rank: int = 0,
    world_size: int = 1,
    tick: Callable[[], None] = lambda: None,
    masked: int = 0,
    by_token: bool = False,
    fill: int | None = None,
    few: bool = False,
    tokens: int | None = None,
) -> npt.NDArray[np.float64]:
    """Nats per sequence of this rank's share of the examples.

    A sequence is read in the least of a few widths that holds it (`batches`), and every batch of one width
    has the same shape, padded where needed: so its value depends neither on how many others there are nor
    on their lengths.

    Args:
        model: The model.
        examples: Shape [num_examples, width].
        bos: Token before every example; None for none.
        rank: This rank scores batches rank, rank + world_size, ...
        world_size: Number of ranks.
        tick: Told of every batch.
        masked: Tokens at the start of every example that count nothing.
        by_token: Give them by token.
        fill: Token that fills prompts up in front, which is not read: a prompt stands alone. None where
            nothing does.
        few: Examples are few and the model may be large, as where something is filled up.
        tokens: Under the distribution over the first so many, which is what is drawn from where a model
            scores more than its tokenizer knows; over all when None.

    Returns:
        Shape [num_examples], or [num_examples, width] by token; NaN where another rank scores.
    """
    device = next(model.parameters()).device
    # Where examples are few and models large, filling a batch up would take most of the time.
    most = SMALL_BATCH if few or fill is not None else BATCH_TOKENS[device.type]
    width = examples.values.shape[1]
    result = np.full((len(examples), width) if by_token else len(examples), np.nan)
    with inference(device):
        one_width = read_afresh(model)
        for batch in batches(examples, most, int(bos is None), fill, rank, world_size, one_width):
            padded, first = batch.filled()
            inputs, targets = with_bos(padded, bos, device, masked - first)
            logits = model(input_ids=inputs, use_cache=False).logits
            nll = token_nll(logits[..., :tokens], targets)
            found = (nll if by_token else nll.sum(dim=1))[: len(batch.rows)].double().cpu().numpy()
            tick()
            result[batch.rows] = _placed(found, batch, width) if by_token else found
    return result


def read_afresh(model: PreTrainedModel) -> bool:
    """Whether a model reads all texts in one width (`of_one_width`); then what it read before counts no more.

    Rotary positions that grow with what is read begin again behind a text of one token.
    """
    one_width = of_one_width(model.config)
    if one_width:
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=model.device), use_cache=False)
    return one_width


def _placed(nll: npt.NDArray[np.float64], batch: Batch, width: int) -> npt.NDArray[np.float64]:
    """Nats of a batch's tokens where these stand in examples of a width; 0 at all others."""
    read = batch.examples.values.shape[1]
    found = np.zeros((len(nll), width + read))  # what is behind an example's end may be behind the width
    np.put_along_axis(found, batch.first[:, None] + np.arange(read - nll.shape[1], read), nll, axis=1)
    return found[:, :width]
