"""What computing on a GPU needs beyond computing on a CPU.

Kernels with one order of summation, few launches, aligned shapes.

Nothing here changes what is computed, only in which kernels; on a CPU nothing here is used.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache

from harness.errors import LearnerError

ALIGNED = 64
"""Columns of a matrix product: with an odd number of them the library falls back to kernels several times
slower."""


@contextlib.contextmanager
def deterministic(device: torch.device, wanted: bool) -> Iterator[None]:
    """Fit with kernels whose sums have one order, or, where they are not wanted, with any.

    torch asks for them by `torch.use_deterministic_algorithms`, but with ``warn_only`` the backward pass of
    every fused attention still takes the other ones. So on a GPU an operation that has no deterministic
    kernel is an error.

    Args:
        device: Where the fit runs. Nothing happens on a CPU.
        wanted: ``resources.deterministic``.

    Raises:
        LearnerError: The model has an operation without such a kernel.
    """
    if device.type != "cuda":
        yield
        return
    try:
        with _kernels(wanted):
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise LearnerError(
            f"this model cannot be fitted reproducibly on a GPU ({str(error).splitlines()[0][:200]}); "
            "resources.deterministic: false fits it with sums in any order"
        ) from None


@contextlib.contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Read and write without gradients.

    torch has no kernel that it calls deterministic for a running sum, although the one for sums within rows
    has one order; and cuDNN's attention plans anew, in tens of milliseconds, for every length that it meets.
    So on a GPU neither is asked for.
    """
    if device.type != "cuda":
        with torch.inference_mode():
            yield
        return
    with _kernels(deterministic=False), torch.inference_mode():
        yield


@contextlib.contextmanager
def _kernels(deterministic: bool) -> Iterator[None]:
    """Which kernels a GPU uses meanwhile; cuDNN's attention is never one of them."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    cudnn = bool(torch.backends.cuda.cudnn_sdp_enabled())  # type: ignore[no-untyped-call]
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def align_head(model: PreTrainedModel) -> None:
    """Compute the logits of a few tokens more, which are cut off again.

    This is done where the vocabulary is no multiple of `ALIGNED`.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.out_features % ALIGNED == 0:
        return
    size, short = head.out_features, -head.out_features % ALIGNED

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        weight = nn.functional.pad(head.weight, (0, 0, 0, short))
        bias = None if head.bias is None else nn.functional.pad(head.bias, (0, short))
        return nn.functional.linear(hidden, weight, bias)[..., :size]

    head.forward = forward  # type: ignore[method-assign, assignment]


class StepReader:
    """Reads texts token by token with one launch a token.

    The step is recorded once, as a CUDA graph, and replayed.

    A small model's step is some hundred kernels of a few microseconds, and launching them one by one takes
    several times as long as running them. The recorded step reads its token from, and writes its logits to,
    the same memory each time, and its keys and values lie in a cache of full length.
    """

    def __init__(self, model: PreTrainedModel, rows: int, length: int) -> None:
        """Make room, and on a GPU record the step.

        Args:
            model: Of an architecture that can read with a cache of fixed size (`can_step`).
            rows: Texts.
            length: Tokens of the longest text, prompt included.

        Raises:
            RuntimeError: The step cannot be recorded: some architectures ask on the way how much they have
                read.
        """
        self.model = model
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        self._token = torch.zeros((rows, 1), dtype=torch.int64, device=model.device)
        self._logits: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._token.is_cuda:
            self._record()
        self.restart()

    def restart(self) -> None:
        """Forget the texts; the recorded step stays."""
        self._cache.reset()
        self._started = False

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Read tokens, shape [rows, new].

        Returns the logits of the next one, shape [rows, vocab], valid until the next call.
        """
        if self._graph is None or not self._started:
            self._started = True
            return self._forward(tokens)
        self._token.copy_(tokens)
        self._graph.replay()
        assert self._logits is not None
        return self._logits

    def _forward(self, tokens: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = found.logits[:, -1]
        return logits

    def _record(self) -> None:
        """Record a step, after two of the same shape: what a first step sets up must not be recorded."""
        stream, graph = _aside(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._forward(self._token)
            self._cache.reset()
            self._forward(self._token)
        torch.cuda.current_stream().wait_stream(stream)
        self._cache.reset()
        with torch.cuda.graph(graph, stream=stream):
            self._logits = self._forward(self._token)
        self._graph = graph


@functools.cache
def _aside() -> torch.cuda.Stream:
    """Where steps are recorded.

    One for all, for each stream that multiplies matrices keeps 32 MiB for good.
    """
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def can_step(model: PreTrainedModel) -> bool:
    """Whether an architecture's step can be recorded.

    It reads with a cache of fixed size then, all layers alike.
    """
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    sliding = getattr(text, "sliding_window", None) is not None and getattr(text, "use_sliding_window", True)
    return (
        bool(getattr(model, "_can_compile_fullgraph", False)) and kinds == {"full_attention"} and not sliding
    )
