"""Which of several kernels computes a part of a model: the fastest here; results are equal up to rounding."""

from __future__ import annotations

import functools
import inspect
import math
import re
import sys
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.activations import GELUTanh, NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.pytorch_utils import Conv1D

from harness.errors import LearnerError
from harness.learners.language_model.cuda import align_head
from harness.learners.language_model.products import use_onednn

IN_FP32 = "harness_sdpa_in_fp32"
"""Name of `_attention_in_fp32` among transformers' attention functions."""


def _attention_in_fp32(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
) -> tuple[torch.Tensor, None]:
    """Attention of torch, computed in fp32: queries, keys, values and the result are of the caller's type."""
    found, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)
    return found.to(query.dtype), None


BY_STEPS = "harness_sdpa_by_steps"
"""Name of `_attention_by_steps` among transformers' attention functions."""
FEW_KEYS = 16
"""Below so many keys torch's attention is faster than two products (docs/LOG.md)."""


def with_room(part: torch.Tensor, room: torch.Tensor) -> torch.Tensor:
    """Keys or values that lie at the beginning of some room, [rows, heads, tokens, width]; 0 stands behind.

    Attention of one query reads all of it: it is contiguous, and read in half the time of a part of it.
    """
    part.room = room  # type: ignore[attr-defined]
    return part


def _rooms(key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `with_room` was told of keys and values; themselves where a model has made others of either."""
    of_key, of_value = getattr(key, "room", None), getattr(value, "room", None)
    return (key, value) if of_key is None or of_value is None else (of_key, of_value)


def _attention_by_steps(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of torch, but two matrix products where each row reads on by one token.

    torch's kernel is made for many queries: of one it takes two to six times as long on a CPU. Keys and
    values are of a type of their own, in which it is computed; the result is of the queries' type.
    """
    asked, keys = query.to(key.dtype), key.shape[-2]
    mask = attention_mask if attention_mask is None or attention_mask.dtype == torch.bool else None
    few = query.shape[-2] == 1 and keys >= FEW_KEYS and (mask is None or mask.shape[1] == 1)
    if not few or mask is not attention_mask or kwargs.get("position_bias") is not None or scaling is None:
        found, _ = sdpa_attention_forward(
            module, asked, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return found.to(query.dtype), None
    batch, heads, _, width = query.shape
    # Heads that share keys are the rows of one product.
    grouped = (asked * scaling).view(batch, key.shape[1], -1, width)
    key, value = _rooms(key, value)
    scores = grouped @ key.transpose(-1, -2)
    scores[..., keys:] = -torch.inf
    if mask is not None:
        scores[..., :keys].masked_fill_(~mask, -torch.inf)
    found = scores.softmax(dim=-1) @ value
    return found.reshape(batch, 1, heads, -1).to(query.dtype), None


for _name, _function in ((IN_FP32, _attention_in_fp32), (BY_STEPS, _attention_by_steps)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


@functools.cache
def _asks_for_sdpa(code: str) -> bool:
    """Whether a module of Python, by name, has models that do otherwise where attention is not ``sdpa``.

    Sparse attention does: which tokens were selected (DeepSeek-AI 2025, arXiv 2512.02556, section 2.1) is put
    into the mask under the library's own names only, so under another one all tokens would be read.
    """
    try:
        source = inspect.getsource(sys.modules[code])
    except (OSError, TypeError):  # a module without one
        return False
    return re.search(r"""_attn_implementation\b.{0,60}?["']sdpa["']""", source, re.DOTALL) is not None


def _attends_by_name(model: nn.Module) -> bool:
    """Whether a model must keep the library's name of its attention (`_asks_for_sdpa`)."""
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    return any(_asks_for_sdpa(type(part).__module__) for part in parts)


def read_by_steps(model: PreTrainedModel) -> torch.dtype:
    """Give a model that will write token by token the kernels for it, in place.

    Returns:
        The type of its cache: on a CPU fp32, in which its attention is several times as fast as in bf16.
    """
    usual = model.config._attn_implementation == "sdpa"
    if model.device.type == "cpu" and usual and not _attends_by_name(model):
        model.set_attn_implementation(BY_STEPS)
    return torch.float32 if model.config._attn_implementation == BY_STEPS else model.dtype


class _Gelu(nn.Module):
    """GELU with a hyperbolic tangent (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2).

    0.5 x (1 + tanh u) is x sigmoid(2 u): a compiler's exponential takes a third of the time of its tanh.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            return torch.nn.functional.gelu(x, approximate="tanh")
        wide = x.float()
        twice = math.sqrt(8 / math.pi) * (wide + 0.044715 * wide * wide * wide)
        return (wide * torch.sigmoid(twice)).to(x.dtype)


def fuse_activations(model: PreTrainedModel) -> PreTrainedModel:
    """Compute GPT-2's GELU in one kernel instead of eight, in place; returns the model."""
    for module in list(model.modules()):
        for name, part in module.named_children():
            if isinstance(part, NewGELUActivation | GELUTanh):
                setattr(module, name, _Gelu())
    return model


class _LinearGelu(nn.Module):
    """A linear layer of GPT-2 and the GELU behind it, for reading only: oneDNN computes both in one kernel.

    Its GELU takes a quarter to a half of the time of torch's, which is most of such a layer (docs/LOG.md).
    """

    def __init__(self, layer: Conv1D) -> None:
        """Take the weights of a layer, turned to [out, in]."""
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "gelu", [], "tanh"
        )
        return found


def fuse_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Let oneDNN compute a CPU's linear layers with their GELU, in place, in a model that will only read."""
    onednn: Any = torch.backends.mkldnn
    if model.device.type != "cpu" or not onednn.is_available():
        return model
    known = {torch.float32: True, torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    if not known.get(model.dtype):
        return model
    for module in list(model.modules()):
        match type(module).__name__, dict(module.named_children()):
            case "GPT2MLP", {"c_fc": Conv1D() as layer, "act": _Gelu()}:
                module.c_fc, module.act = _LinearGelu(layer), nn.Identity()
    return use_onednn(model)


def prepare_fit(
    model: PreTrainedModel, device: torch.device, attention: str | None = None, recompute: bool = False
) -> None:
    """Give a model that will be fitted the kernels for a device, in place.

    On a GPU the head gets aligned shapes. On a CPU, torch's backward pass of attention in bf16 takes five
    times as long as in fp32 (docs/LOG.md), so attention is computed in fp32. Products in fp32 are oneDNN's
    where it is faster.

    Args:
        model: The model.
        device: Where it is fitted.
        attention: ``resources.attention``.
        recompute: ``resources.activation_checkpointing``.
    """
    if attention is not None:
        try:
            model.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:  # what this machine or this architecture has not
            raise LearnerError(f"resources.attention: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        align_head(model)
    elif model.config._attn_implementation in ("sdpa", BY_STEPS) and not _attends_by_name(model):
        model.set_attn_implementation(IN_FP32)
    if device.type == "cpu":  # the model itself may be there still
        use_onednn(model)
    if recompute:
        # The way that keeps no graph of its own would need inputs with gradients, and warns of that.
        enable = (
            getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
