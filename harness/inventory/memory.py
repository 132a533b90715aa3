"""The least memory that a grid takes, against a machine's; and the kernels that it asks for.

What cannot fit, or cannot be computed, is refused before anything starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.compiler import FIELD, missing
from harness.components import LEARNERS
from harness.config.asking import planning
from harness.errors import ResourceError
from harness.imports import is_installed
from harness.learners.language_model.needs import memory_needed
from harness.learners.language_model.sizes import Memory
from harness.proc import memory_limit, usable_memory
from harness.registry import FitSize
from harness.study import Prepared
from harness.terminal import counted

COPIES = 2
"""Of a training set: its examples as they are drawn, and as they are fitted to."""


def has_gpus() -> bool:
    """Whether this machine has GPUs, as far as its devices tell; Ray counts them."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


@planning
def check_memory(prepared: Prepared, gpus: bool, limit: int | None = None, nodes: int = 1) -> None:
    """Compare what each cell takes at least with a machine's memory.

    That is its largest training set; what its fits make of that, where their learner says; and its model's
    states where they are not on GPUs.

    Args:
        prepared: The study.
        gpus: There are GPUs, whose memory is not known here; models lie on them unless a cell has none.
        limit: Bytes; what this process may use when None.
        nodes: Machines that a gang's ranks are spread over.

    Raises:
        ResourceError: A single chain cannot fit.
    """
    there = usable_memory() if limit is None else limit
    whose = "a node of the job" if limit is not None else "this machine"
    if limit is None and memory_limit() == there:
        whose = "this machine's control group (a container, or a job)"
    for index, (cell, spec) in enumerate(zip(prepared.study.cells, prepared.specs, strict=True)):
        examples, fit = _least(prepared, index)
        last, each = spec.generations, prepared.data[index].real.example_bytes
        size = spec.recipe(last).size
        if examples > there:
            raise ResourceError(
                f"data.num_examples: generation {last} has {size} training examples of {each} bytes, which "
                f"take at least {gib(examples)} of memory; {whose} has {gib(there)}"
            )
        if fit > there:
            field = "data.dim" if getattr(cell.config.data, "dim", 1) > 1 else "learner.kind"
            raise ResourceError(
                f"{field}: a {cell.config.learner.kind} learner of {size:,} examples of {each // 8:,} "
                f"numbers holds at least {gib(fit)} of memory beside them; {whose} has {gib(there)}"
            )
        memory, ranks = memory_of(prepared, index, gpus), -(-cell.config.resources.ranks // nodes)
        on_gpu = gpus and cell.config.resources.gpus_per_rank != 0
        if memory is None or on_gpu:
            continue
        learner: Any = cell.config.learner
        trains = learner.train.max_steps != 0
        states = memory.weights + (memory.gradients + memory.optimizer if trains else 0)
        if ranks * states > there:
            raise ResourceError(
                f"learner.model: weights{', gradients and optimizer' if trains else ''} take {gib(states)} a "
                f"rank, for {counted(ranks, 'rank')} at once; {whose} has {gib(there)}"
            )


def check_kernels(prepared: Prepared, gpus: bool) -> None:
    """Refuse kernels that this machine does not have, and compiled fits where it cannot compile.

    Args:
        prepared: The study.
        gpus: It has GPUs.

    Raises:
        ResourceError: A cell asks for such.
    """
    models = zip(prepared.study.cells, prepared.models, strict=True)
    asked = [cell.config.resources for cell, facts in models if facts is not None]
    for on_gpu in sorted({gpus and each.gpus_per_rank != 0 for each in asked if each.compile}):
        lacking = missing(on_gpu)
        if lacking:
            raise ResourceError(
                f"{FIELD}: true needs {lacking}, which this machine does not have; install it, or set false"
            )
    if all(cell.config.resources.attention != "flash_attention_2" for cell in prepared.study.cells):
        return
    if not gpus:
        raise ResourceError(
            "resources.attention: flash_attention_2 needs a GPU, and this machine has none; set sdpa or eager"
        )
    if not is_installed("flash_attn"):
        raise ResourceError(
            "resources.attention: flash_attention_2 needs the package flash-attn, which is not installed "
            "here; install it for this machine's torch, or set sdpa"
        )


def _least(prepared: Prepared, cell: int) -> tuple[int, int]:
    """The bytes that a cell takes at least: its largest training set, and what its fits make of that."""
    spec, real, learner = (
        prepared.specs[cell],
        prepared.data[cell].real,
        prepared.study.cells[cell].config.learner,
    )
    largest = spec.recipe(spec.generations).size
    size = FitSize(real.example_bytes // 8, spec.n, largest, getattr(real, "num_test", 0))
    fit = 8 * LEARNERS[learner.kind].least_numbers(learner, size)
    return COPIES * largest * real.example_bytes, fit


def rank_bytes(prepared: Prepared, cell: int, gpus: bool) -> int:
    """Bytes of one rank: see `memory_of`; of what is not a language model, what it takes at least."""
    memory = memory_of(prepared, cell, gpus)
    return sum(_least(prepared, cell)) if memory is None else memory.total


def gib(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:,.1f} GiB"


def memory_of(prepared: Prepared, cell: int, gpus: bool) -> Memory | None:
    """Bytes per rank; None for what is not a language model.

    Args:
        prepared: The study.
        cell: Its number.
        gpus: Whether ranks run on GPUs, unless the cell has none.
    """
    facts, config = prepared.models[cell], prepared.study.cells[cell].config
    on_gpu = gpus and config.resources.gpus_per_rank != 0
    return (
        None
        if facts is None
        else memory_needed(config, facts, on_gpu, prepared.specs[cell].judge is not None)
    )
