"""Matrix products in fp32 by oneDNN, on processors on which torch's own library for them is slower."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.proc import processor_maker

MANY = 2**23
"""Multiplications from which oneDNN is faster, what it takes to begin included (docs/LOG.md)."""
FEWEST = 4
"""Rows from which it is for weights that lie the other way, as GPT-2's do."""


@cache
def is_faster() -> bool:
    """Whether oneDNN multiplies faster in fp32 than what torch calls: MKL, where that is not on its maker's.

    On others MKL leaves vectors of 512 bits alone. Where torch has no MKL nothing has been measured.
    """
    return (
        torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and processor_maker() not in ("GenuineIntel", "")
    )


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


_compiled = torch.library.custom_op("harness::multiply", _multiply, mutates_args=())


@_compiled.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(len(x), len(weight))


def _times(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Rows times weights, turned, plus bias: [rows, in] and [out, in], of any strides, to [rows, out]."""
    # A compiler would look into oneDNN's own function, and wants other weights of it.
    return (_compiled if torch.compiler.is_compiling() else _multiply)(x, weight, bias)


class _Layer(torch.autograd.Function):
    """A linear layer: [rows, in], [out, in] and [out] to [rows, out]; ``turned`` if weights are [in, out]."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, turned: bool
    ) -> torch.Tensor:
        # the parameter itself and no view of it: ZeRO stage 3 takes its weights away and brings them back
        ctx.save_for_backward(x, weight)
        ctx.turned = turned
        return _times(x, weight.t() if turned else weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        of_x = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = _times(gradient, weight if ctx.turned else weight.t())
        if ctx.needs_input_grad[1]:
            # Of [few, many] and [many, few] oneDNN computes the first a fifth faster.
            if x.shape[1] < gradient.shape[1]:
                of_weight = _times(x.t(), gradient.t()).t()
            else:
                of_weight = _times(gradient.t(), x.t())
            of_weight = of_weight.t() if ctx.turned else of_weight
        if ctx.needs_input_grad[2]:
            of_bias = gradient.sum(dim=0)
        return of_x, of_weight, of_bias, None


def _layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, turned: bool) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_grad_enabled():
        apply: Any = _Layer.apply
        found: torch.Tensor = apply(rows, weight, bias, turned)
    else:
        found = _times(rows, weight.t() if turned else weight, bias)
    return found.view(*x.shape[:-1], -1)


def _suits(x: torch.Tensor, weight: torch.Tensor, least: int = 1) -> bool:
    rows = x.numel() // x.shape[-1]
    wanted = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return wanted and rows >= least and rows * weight.numel() >= MANY


class _Linear(nn.Linear):
    """torch's linear layer, by oneDNN where that is worth it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if _suits(x, self.weight):
            return _layer(x, self.weight, self.bias, turned=False)
        return super().forward(x)


class _Conv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, by oneDNN where that is worth it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        if _suits(x, self.weight, FEWEST):
            return _layer(x, self.weight, self.bias, turned=True)
        found: torch.Tensor = super().forward(x)
        return found


def use_onednn(model: PreTrainedModel) -> PreTrainedModel:
    """Let oneDNN multiply where it is faster, in place, by layers of the same names; returns the model.

    Layers in another precision than fp32 compute as before: there torch calls oneDNN itself.
    """
    if model.device.type == "cpu" and is_faster():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.__class__ = _Linear
            elif type(module) is Conv1D:
                module.__class__ = _Conv1D
    return model
