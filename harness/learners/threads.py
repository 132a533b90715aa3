"""How torch computes on this process's processors."""

from __future__ import annotations

import torch

from harness.proc import keep_freed


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
