"""A child process: one ZeRO step of a small model, as a fit makes it; prints one JSON line."""

from __future__ import annotations

import json
import os
import time
from typing import Any, NoReturn


def refuse_compilation() -> list[str]:
    """Let nothing be compiled from now on.

    The list that is returned fills with the names of what was asked for.
    """
    from torch.utils import cpp_extension

    compiled: list[str] = []

    def refuse(name: str = "", *_: Any, **__: Any) -> NoReturn:
        compiled.append(name or "an operator")
        raise RuntimeError(f"{name} would have to be compiled")

    # DeepSpeed looks these up when it needs them, so this is seen whatever it asks for.
    setattr(cpp_extension, "load", refuse)  # noqa: B010 (mypy: a function is not assigned to)
    setattr(cpp_extension, "load_inline", refuse)  # noqa: B010
    return compiled


def main() -> None:
    """Refuse every compilation, and make a step."""
    from importlib.metadata import version

    import torch

    compiled = refuse_compilation()
    from transformers import GPT2Config, GPT2LMHeadModel

    from harness.config.schema import Train
    from harness.learners.language_model.distributed import TorchRanks, device, open_store
    from harness.learners.language_model.engine import Engine

    found: dict[str, Any] = {
        "version": version("deepspeed"),
        "moved": False,
        "seconds": 0.0,
        "compiled": compiled,
    }
    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=1)
    found["accelerator"] = os.environ["DS_ACCELERATOR"]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2)).to(
        device()
    )
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    try:
        started = time.monotonic()
        engine = Engine(model, Train(batch_size=2, precision="fp32", learning_rate=1e-2), 2, 1, 2)
        tokens = torch.arange(32, device=device()).reshape(2, 16)
        loss = torch.nn.functional.cross_entropy(
            engine.logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()
        )
        engine.backward(loss)
        found["seconds"] = time.monotonic() - started
        after = engine.state(keep=True)
        found["moved"] = any(not torch.equal(after[name], value.cpu()) for name, value in before.items())
    except RuntimeError:
        if not compiled:
            raise
    ranks.close()
    print(json.dumps(found), flush=True)
    os._exit(0)  # what libraries do when the interpreter ends is nobody's concern here


if __name__ == "__main__":
    main()
