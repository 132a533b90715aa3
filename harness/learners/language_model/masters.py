"""AdamW of one rank in bf16: fp32 copies of the weights, as DeepSpeed's ZeRO stage 2 keeps them, and no more.

Stage 2 is made to divide gradients among ranks. For one rank it costs hooks of every gradient, buckets and
copies, and computes what is computed here (docs/adr/0031-one-rank-in-bf16.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from harness.learners.language_model.imports import deepspeed

flatten: Callable[[Sequence[torch.Tensor]], torch.Tensor] = torch._utils._flatten_dense_tensors
unflatten: Callable[[torch.Tensor, Sequence[torch.Tensor]], Sequence[torch.Tensor]]
unflatten = torch._utils._unflatten_dense_tensors
STATES = "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
"""DeepSpeed's name for the file of `Masters.tree`."""


class Masters(torch.optim.AdamW):
    """AdamW on fp32 copies of bf16 weights, one of each group, laid end to end; the weights follow each step.

    It computes what DeepSpeed's stage 2 does for one rank, to the bit: the same sums in the same order, of
    tensors of the same lengths.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], max_grad_norm: float | None, **options: Any
    ) -> None:
        """Lay the weights of each group end to end.

        Args:
            groups: ``params`` and ``weight_decay``; on their device, in bf16.
            max_grad_norm: Longer gradients are shortened to this length; None for none.
            options: AdamW's.
        """
        self._clip = max_grad_norm or 0.0
        self._weights, self._flat, self._padding = [], [], []
        copies = []
        for group in groups:
            weights: list[nn.Parameter] = [weight for weight in group["params"] if weight.numel()]
            if not weights:
                continue
            # DeepSpeed's lengths are even, and by length fused AdamW decides what it computes as vectors.
            odd = sum(weight.numel() for weight in weights) % 2
            padding = torch.zeros(odd, dtype=weights[0].dtype, device=weights[0].device)
            flat = flatten([*(weight.detach() for weight in weights), padding])
            for weight, part in zip(weights, unflatten(flat, weights), strict=True):
                weight.data = part
            self._weights.append(weights)
            self._flat.append(flat)
            self._padding.append(padding)
            copies.append({**group, "params": [nn.Parameter(flat.float())]})
        super().__init__(copies, fused=True, **options)

    @property
    def _copies(self) -> list[nn.Parameter]:
        return [group["params"][0] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make a step with the gradients of the weights, which are freed."""
        norms = []
        for copy, weights, padding in zip(self._copies, self._weights, self._padding, strict=True):
            gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
            flat = flatten([*gradients, padding])
            del gradients
            for weight in weights:
                weight.grad = None
            copy.grad = flat.float()
            del flat
            if self._clip:
                parts = unflatten(copy.grad, weights)
                own = torch.stack([torch.linalg.vector_norm(part.double()) for part in parts])
                norms.append(own.pow(2.0).sum().float().pow(0.5))
        if self._clip:
            # Where one is not finite, all others become 0 and it NaN, which ends the fit (ADR 17).
            norm = torch.linalg.vector_norm(torch.stack(norms)).nan_to_num(torch.inf, torch.inf)
            scale = 1.0 / torch.clamp((norm + 1e-6) / self._clip, min=1.0)
            for copy in self._copies:
                assert copy.grad is not None
                copy.grad.mul_(scale)
        super().step()
        for copy, flat in zip(self._copies, self._flat, strict=True):
            copy.grad = None
            flat.copy_(copy)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: DeepSpeed would store it beside the weights; `tree` is stored in a file of its own."""
        return {}

    def load_state_dict(self, state_dict: Any) -> None:
        """Nothing, as nothing is in it."""

    def tree(self) -> dict[str, Any]:
        """Copies and moments, as DeepSpeed's stage 2 stores and reads them."""
        lengths = [len(flat) - len(padding) for flat, padding in zip(self._flat, self._padding, strict=True)]
        return {
            "optimizer_state_dict": {
                "base_optimizer_state": super().state_dict(),
                "single_partition_of_fp32_groups": [
                    copy.detach()[:length] for copy, length in zip(self._copies, lengths, strict=True)
                ],
                "ds_version": deepspeed.__version__,
            }
        }

    @torch.no_grad()
    def restore(self, tree: Mapping[str, Any]) -> None:
        """The inverse of `tree`, also of a file that DeepSpeed has written."""
        stored = tree["optimizer_state_dict"]
        super().load_state_dict(stored["base_optimizer_state"])
        for copy, flat, values in zip(
            self._copies, self._flat, stored["single_partition_of_fp32_groups"], strict=True
        ):
            copy[: len(values)].copy_(values)
            flat.copy_(copy)
