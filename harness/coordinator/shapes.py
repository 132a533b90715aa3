"""What the gangs of a cell occupy, and whether machines have it."""

from __future__ import annotations

from collections.abc import Collection

from harness.components import LEARNERS
from harness.config.schema import Config
from harness.coordinator.scheduler import Capacity, Shape, feasible
from harness.errors import ResourceError


def shape_of(config: Config, gpus: bool) -> Shape:
    """What a gang for this cell occupies, on machines with GPUs or without."""
    resources, solo = config.resources, not LEARNERS[config.learner.kind].many_ranks
    per_rank = (1 if gpus else 0) if resources.gpus_per_rank is None else resources.gpus_per_rank
    return Shape(resources.ranks, resources.threads, 0 if solo else per_rank, solo)


def check_feasible(shapes: Collection[Shape], found: Collection[Capacity]) -> None:
    """Check that every gang fits the machines before anything waits.

    Raises:
        ResourceError: Says what is asked for and what there is.
    """
    for shape in sorted(set(shapes)):
        if feasible(shape, list(found)):
            continue
        kind = "GPU" if shape.gpus else "CPU"
        asked = shape.ranks * (shape.gpus or shape.cpus)
        sizes = [machine.gpus if shape.gpus else machine.cpus for machine in found]
        raise ResourceError(
            f"resources.ranks: this grid asks for {asked} {kind}s a gang ({shape.ranks} ranks x "
            f"{shape.gpus or shape.cpus}); the largest machine has {max(sizes, default=0):g}, all "
            f"{len(sizes)} together {sum(sizes):g}; lower resources.ranks or resources.threads"
        )
