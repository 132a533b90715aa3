"""A fit's forward pass and loss as one compiled program, of one shape.

Only what a fit computes with gradients goes through it: all its micro batches have one shape, so that it is
compiled once. Validation and everything else takes torch's own kernels, as without.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from harness.compiler import FIELD, clear_unfinished, missing, use_code_folder
from harness.components.objectives import Anchor
from harness.errors import LearnerError, reason_of
from harness.learners.language_model.distributed import device
from harness.learners.language_model.scoring import token_nll


class Loss(NamedTuple):
    """What is computed of logits: arguments of `scoring.token_nll`, and ``among``: of the first so many."""

    targets: torch.Tensor
    among: int | None = None
    anchor: Anchor | None = None
    reference: torch.Tensor | None = None


def loss_of(logits: torch.Tensor, loss: Loss) -> torch.Tensor:
    """Nats per token, [batch, length], of logits, [batch, length, vocab]."""
    logits = logits if loss.among is None else logits[..., : loss.among]
    return token_nll(logits, loss.targets, loss.anchor, loss.reference)


def _program(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], loss: Loss) -> torch.Tensor:
    """What is compiled. DeepSpeed's hooks are those of the model's call, and stay outside."""
    return loss_of(type(model).forward(model, use_cache=False, **inputs).logits, loss)


BACKEND = "inductor"
OPTIONS: dict[str, Any] | None = {
    # dropout draws what it draws without, from the seed of each micro batch
    "fallback_random": True,
    # no choice of kernels by how fast they are just now: a fit that goes on elsewhere makes the same ones
    "deterministic": True,
}
MANY = 4
"""Programs of one kind after which all are forgotten; torch would refuse to make more than eight."""


@dataclass
class _Made:
    """What this process has compiled.

    Attributes:
        kind: All that it depends on besides the values of tensors.
        program: Compiles at its first call, and again where something is otherwise that no kind knows of.
        before: How many programs torch had made when this one was begun.
    """

    kind: Any
    program: Callable[..., torch.Tensor]
    before: int


_made: list[_Made] = []
"""The last one, if any."""


def program(kind: Any) -> Callable[..., torch.Tensor]:
    """The program of fits of one kind, which takes what `_program` does.

    Another kind forgets the last one: what a fit computes with never depends on what was fitted before.

    Args:
        kind: All that it depends on besides the values of tensors.
    """
    if not _made or _made[0].kind != kind:
        forget()
        folder = use_code_folder()
        clear_unfinished(folder)
        _settle(folder)
        found = torch.compile(_program, dynamic=False, fullgraph=True, backend=BACKEND, options=OPTIONS)
        _made.append(_Made(kind, found, programs()))
    return _made[0].program


def programs() -> int:
    """How many programs torch has made in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _settle(folder: Path) -> None:
    """Let torch compile in this process, and keep compiled headers in the private folder too.

    Whatever it is told, its own place for them is a folder whose name anybody on the machine can tell. Where
    that cannot be changed, or they cannot be told apart (it calls openssl for that), they are read each time.
    """
    from torch._inductor import codecache, config

    config.compile_threads = 1
    headers = folder / "headers"
    places = {"_HEADER_DIR": headers, "_HEADER_LOCK_DIR": headers / "locks"}
    known = (
        config.cpp_cache_precompile_headers
        and all(hasattr(codecache, name) for name in places)
        and shutil.which("openssl") is not None
    )
    config.cpp_cache_precompile_headers = known
    for name, place in places.items():
        setattr(codecache, name, str(place))


def forget() -> None:
    """Free all that was compiled."""
    if _made:
        torch._dynamo.reset()
        _made.clear()


def compile_fit(model: PreTrainedModel, kind: Any) -> None:
    """Let a model compute what is given a `Loss` by a compiled program, in place; the rest as ever.

    Args:
        model: The model, before DeepSpeed has it.
        kind: What its program depends on besides its configuration and what its parameters are.

    Raises:
        LearnerError: This machine cannot compile. The model's call raises it where the model cannot be.
    """
    lacking = missing(device().type == "cuda")
    if lacking:
        raise LearnerError(f"{FIELD}: true needs {lacking}, which {socket.gethostname()} does not have")
    if _made and programs() - _made[0].before >= MANY:
        forget()
    plain = model.forward
    parts = [(name, p.shape, p.requires_grad) for name, p in model.named_parameters()]
    whole = kind, model.config.to_json_string(), parts

    def forward(*args: Any, loss: Loss | None = None, **inputs: Any) -> Any:
        if loss is None:
            return plain(*args, **inputs)
        shapes = {name: value.shape for name, value in inputs.items()}
        asked = whole, shapes, loss.among, loss.anchor, loss.reference is None
        try:
            return program(asked)(model, inputs, loss)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = reason_of(getattr(error, "inner_exception", error))
            raise LearnerError(
                f"{FIELD}: this model cannot be compiled here ({reason}); set false"
            ) from error

    model.forward = forward
