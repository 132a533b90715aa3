"""What the gangs of a cell occupy."""

from __future__ import annotations

from harness.components import LEARNERS
from harness.config.schema import Config
from harness.coordinator.scheduler import Shape


def shape_of(config: Config, gpus: bool) -> Shape:
    """What a gang for this cell occupies, on machines with GPUs or without."""
    resources, solo = config.resources, not LEARNERS[config.learner.kind].many_ranks
    per_rank = (1 if gpus else 0) if resources.gpus_per_rank is None else resources.gpus_per_rank
    return Shape(resources.ranks, resources.threads, 0 if solo else per_rank, solo)
