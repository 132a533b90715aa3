"""The memory that a cell of a language model takes, and the batches that it can be done in."""

from __future__ import annotations

from typing import Any, cast

from harness.components import OBJECTIVES
from harness.components.adapter import adapts_first
from harness.components.language_model import later_train
from harness.config.schema import Config
from harness.learners.language_model.facts import ModelFacts
from harness.learners.language_model.sizes import Memory, PassSizes, memory_per_rank


def memory_needed(
    config: Config,
    facts: ModelFacts,
    on_gpu: bool,
    judged: bool = False,
    micro_batch: int | None = None,
    sample_batch: int | None = None,
) -> Memory:
    """Bytes per rank.

    Args:
        config: The cell's.
        facts: What its model is.
        on_gpu: Whether ranks run on GPUs.
        judged: A model is asked about what is written.
        micro_batch: Examples per forward pass; the configuration's, or the most that it allows, when None.
        sample_batch: Examples sampled together; in the same way.
    """
    learner: Any = config.learner
    resources, data = config.resources, cast("Any", config.data)
    length = learner.sample.sequence_length(data.block_size)
    each = 1 if learner.objective is None else OBJECTIVES[learner.objective.kind].each
    # Who is alone has DeepSpeed's buffers only where a stage is asked for (`engine.Engine`).
    alone = resources.ranks == 1 and resources.zero_stage is None
    work = PassSizes(
        tokens=(micro_batch or config.micro_batch) * each * length,
        rows=sample_batch or resources.sampled_together,
        length=length,
        bf16=learner.train.precision == "bf16",
        ranks=resources.ranks,
        stage=0 if alone else config.zero_stage or 0,
        recompute=resources.activation_checkpointing,
        compiled=resources.compile,
        on_gpu=on_gpu,
        trained=facts.trained,
        reference=_has_reference(learner, config.zero_stage),
        drift=config.evaluate.drift is not None or judged,
    )
    return memory_per_rank(
        facts.parameters + (facts.adapter or 0),
        facts.num_layers,
        facts.width,
        facts.vocab_size,
        facts.kept,
        work,
    )


def batches(config: Config, facts: ModelFacts) -> dict[str, list[tuple[int, int]]]:
    """The sizes of batches that a cell leaves open, the largest first, each with a rank's bytes.

    They are those of a CPU, which needs more of a cache: a GPU is not filled to the last byte.
    """
    found, resources = {}, config.resources
    if resources.micro_batch is None:
        most = config.micro_batch
        sizes = [size for size in range(most, 0, -1) if most % size == 0]
        found["micro_batch"] = [
            (size, memory_needed(config, facts, False, micro_batch=size).fit) for size in sizes
        ]
    if resources.sample_batch is None:
        sizes = [
            resources.sampled_together >> bits for bits in range(resources.sampled_together.bit_length())
        ]
        found["sample_batch"] = [
            (size, memory_needed(config, facts, False, sample_batch=size).sampling) for size in sizes
        ]
    return found


def _has_reference(learner: Any, zero_stage: int | None) -> bool:
    """Whether a fit holds a second model for ``train.anchor``: not the first one without its adapter."""
    anchor = later_train(learner).anchor
    if anchor is None or learner.adapter is None or zero_stage == 3:
        return anchor is not None
    if learner.adapter.weights == "merged":
        return anchor.reference != "previous"
    return anchor.reference != "initial" or adapts_first(learner)
