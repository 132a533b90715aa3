"""How torch computes on this process's processors, and what becomes of memory that it has freed."""

from __future__ import annotations

import ctypes
import gc
import os

import torch

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``."""
KEPT = 2**31 - 1
"""Freed bytes that stay with the process: all."""
OWN_MAPPING = 2**30
"""Bytes from which a block is taken from the kernel and given back by itself."""


def compute_with(threads: int) -> None:
    """Use some threads, and operations that give the same bits on every run where there are any."""
    keep_freed()
    torch.set_num_threads(threads)
    # As torch.use_deterministic_algorithms(True, warn_only=True), which would import torch's compiler (0.8 s)
    # to tell it too.
    torch.set_deterministic_debug_mode("warn")
    # Otherwise every torch.empty is filled, which finds reads of uninitialised memory, and costs most of a
    # small fit. torch's type stubs do not know it.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010


def keep_freed() -> None:
    """Let what is freed be used again by this process, until `give_back`.

    Every step frees its logits and gradients and asks for as much again. glibc gives such large blocks back
    to the kernel each time, and the kernel fills every page anew: a tenth of a small model's step, a fifth of
    a score. What the environment says (``MALLOC_...``) stays.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's own
    if adjust is not None and not any(name.startswith("MALLOC_") for name in os.environ):
        adjust(TRIM_THRESHOLD, KEPT)
        adjust(MMAP_THRESHOLD, OWN_MAPPING)


def give_back() -> None:
    """Free what only refers to itself, as models and their caches do, and return what is free."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
