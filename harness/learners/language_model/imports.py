"""DeepSpeed and transformers without what no fit uses: a third of what a rank's start costs."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable
from typing import Any

from harness.imports import hidden, quick_transformers


def _plain(**options: Any) -> Callable[..., Any]:
    """In place of ``torch.compile`` as a decorator with options: the function stays as it is."""
    return lambda function: function


WITHOUT = ("scipy", "accelerate", "peft")
"""What transformers is imported without."""


def _import_models() -> None:
    quick_transformers()
    # Losses of object detection, which all models import, import SciPy's optimizers: 0.3 s. Accelerate, which
    # peft brings, would be imported too, and with peft every folder and hub's model be asked for an adapter.
    asks = importlib.import_module("transformers.utils.import_utils")
    with contextlib.ExitStack() as stack:
        for module in WITHOUT:
            stack.enter_context(hidden(module))
            # A package may have made transformers look for them already, and it remembers what it has found.
            getattr(asks, f"is_{module}_available").cache_clear()
        importlib.import_module("transformers.modeling_utils")
        asks.is_peft_available()


def _import_deepspeed() -> Any:
    # Its autotuner, which nothing here uses, imports MLflow and with it pandas and FastAPI: 0.8 s.
    with hidden("mlflow"):
        deepspeed = importlib.import_module("deepspeed")
    # Every engine asks whether its optimizer is Muon. That module compiles its functions as it is imported,
    # and for that torch's whole compiler is imported: 1.4 s.
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    real, compiler.compile = compiler.compile, _plain
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = real
    return deepspeed


_import_models()
deepspeed = _import_deepspeed()
"""The package."""


def start_deepspeed(backend: str) -> None:
    """Put DeepSpeed's communication on the process group that exists."""
    deepspeed.utils.logger.setLevel(logging.WARNING)
    # The shared-memory all-reduce is compiled at first use: it needs a compiler, and a kill during the build
    # leaves a lock that hangs later builds. gloo does the same work.
    # DeepSpeed asks this table for nothing else; to fill it, it would look for compilers and libraries.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
