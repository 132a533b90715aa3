"""One token of what a model predicts: the tokens that are kept, and inverse transform among them."""

from __future__ import annotations

import torch
from torch.nn.functional import pad

from harness.components.sampling import Drawing

GROUP = 64
"""Tokens that are drawn among after their group has been drawn."""
BINS_PER_NAT, NUM_BINS = 32, 1024
"""Bins of `_nearest`; the last one has all that lies behind."""
UNSURE = 1e-9
"""Far above what sums of probabilities can be off by."""


def choose(logits: torch.Tensor, uniform: torch.Tensor, how: Drawing) -> torch.Tensor:
    """One token per row by inverse transform.

    First the group of `GROUP` tokens is found, then the token in it: sums that run over the whole
    vocabulary take longer than a small model does.

    [batch, vocab] logits and [batch] uniforms to [batch] token ids.
    """
    weights = distribution(logits, how)
    vocab, every = weights.shape[-1], torch.arange(len(weights), device=weights.device)
    groups = pad(weights, (0, -vocab % GROUP)).view(len(weights), -1, GROUP)
    masses = groups.sum(dim=-1).double().cumsum(dim=-1)
    which, threshold = _cross(masses, uniform * masses[:, -1])
    threshold = threshold - torch.where(which > 0, masses[every, which - 1], 0.0)
    inside, _ = _cross(groups[every, which].double().cumsum(dim=-1), threshold)
    return (which * GROUP + inside).clamp(max=vocab - 1)


def distribution(logits: torch.Tensor, how: Drawing) -> torch.Tensor:
    """Probabilities after temperature, top-k, top-p, min-p and typical-p, in that order.

    Unnormalised by the cuts behind top-k; [batch, vocab], fp64 where there are such cuts and fp32
    otherwise.
    """
    scaled = logits.float()
    if how.temperature != 1.0:
        scaled = scaled / how.temperature
    if 0 < how.top_k < scaled.shape[-1]:
        least = scaled.topk(how.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
    if how.top_p == 1.0 and how.min_p == 0 and how.typical_p == 1.0:
        return torch.softmax(scaled, dim=-1)
    probabilities = torch.softmax(scaled.double(), dim=-1)
    if how.top_p < 1.0:
        ordered, index = probabilities.sort(dim=-1, descending=True, stable=True)
        # A token stays if the mass before it is below top_p, so the one that crosses it stays too.
        dropped = ordered.cumsum(dim=-1) - ordered >= how.top_p
        probabilities = probabilities.masked_fill(dropped.scatter(-1, index, dropped), 0.0)
    if how.min_p > 0:
        least = how.min_p * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    if how.typical_p < 1.0:
        probabilities = _typical(probabilities, how.typical_p)
    return probabilities


def _cross(cumulative: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where running sums pass a threshold, and the threshold, both [batch].

    It stays below the total even after rounding, so that what weighs 0 is never drawn; [batch, entries] sums.
    """
    total = cumulative[:, -1]
    below = torch.minimum(threshold, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, below[:, None], right=True)[:, 0]
    return found.clamp(max=cumulative.shape[-1] - 1), below


def _typical(probabilities: torch.Tensor, mass: float) -> torch.Tensor:
    """The tokens whose surprise is nearest to its expectation, of at least this mass together.

    Meister and others 2023 (arXiv 2202.00666). Shape [batch, vocab]; what is dropped has probability 0.
    """
    normal = probabilities / probabilities.sum(dim=-1, keepdim=True)
    surprise = -normal.log()
    expected = torch.where(normal > 0, normal * surprise, 0.0).sum(dim=-1, keepdim=True)
    distance = (surprise - expected).abs()
    if probabilities.device.type == "cpu":
        kept = _nearest(distance, normal, mass)
        if kept is not None:
            return probabilities.masked_fill(~kept, 0.0)
    index = distance.sort(dim=-1, stable=True).indices
    ordered = normal.gather(-1, index)
    dropped = ordered.cumsum(dim=-1) - ordered >= mass
    return probabilities.masked_fill(dropped.scatter(-1, index, dropped), 0.0)


def _nearest(distance: torch.Tensor, normal: torch.Tensor, mass: float) -> torch.Tensor | None:
    """Which tokens a stable sort by distance and running sums would keep, without sorting: [batch, vocab].

    Masses are summed by bins of distances, and only those in the bin in which a row's sum crosses are sorted.
    None where a sum comes so near to ``mass`` that its rounding, so the order of summing, could decide.
    """
    last = NUM_BINS - 1
    bins = (distance * BINS_PER_NAT).nan_to_num(nan=last, posinf=last).clamp(max=last).long()
    sums = normal.new_zeros(len(normal), NUM_BINS).scatter_add_(-1, bins, normal).cumsum(dim=-1)
    if not bool(((sums - mass).abs() > UNSURE).all()):
        return None
    crossing = (sums < mass).sum(dim=-1, keepdim=True)
    row, token = (bins == crossing).nonzero(as_tuple=True)
    order = distance[row, token].argsort(stable=True)
    order = order[row[order].argsort(stable=True)]
    row, token = row[order], token[order]
    own = normal[row, token]
    within = own.cumsum(dim=0)
    first = torch.searchsorted(row, torch.arange(len(normal)))
    start = torch.where(crossing[:, 0] > 0, sums.gather(-1, (crossing - 1).clamp(min=0))[:, 0], 0.0)
    before = within - own + (start - within[first] + own[first])[row]
    if bool(((before - mass).abs() < UNSURE).any()):
        return None
    kept = bins < crossing
    kept[row, token] = before < mass
    return kept
