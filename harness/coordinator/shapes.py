"""What the gangs of a cell occupy, and whether machines have it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from harness.components import LEARNERS
from harness.config.schema import Config
from harness.coordinator import shares
from harness.coordinator.scheduler import Capacity, Shape, at_once, feasible, place
from harness.errors import ResourceError
from harness.inventory.memory import gib, rank_bytes
from harness.science import Branch
from harness.study import Prepared
from harness.terminal import counted


def shape_of(config: Config, gpus: bool) -> Shape:
    """What a gang for this cell occupies, on machines with GPUs or without."""
    resources, solo = config.resources, not LEARNERS[config.learner.kind].many_ranks
    per_rank = (1 if gpus else 0) if resources.gpus_per_rank is None else resources.gpus_per_rank
    return Shape(resources.ranks, resources.threads, 0 if solo else per_rank, solo)


def shapes_of(prepared: Prepared, machines: Sequence[Capacity]) -> list[Shape]:
    """What a gang of each cell occupies on some machines, with their memory.

    Gangs that are alike but for their memory are alike in that too, by the cell that takes most: else every
    cell would need gangs of its own. GPUs have memory of their own, and Ray counts GPUs. One gang always has
    room, on the machines that have most: what cannot fit at all is refused before (`check_memory`), and an
    estimate may be too high.
    """
    gpus, most = any(machine.gpus for machine in machines), dict[Shape, int]()
    shapes = [shape_of(cell.config, gpus) for cell in prepared.study.cells]
    for index, shape in enumerate(shapes):
        if not shape.gpus:
            most[shape] = max(most.get(shape, 0), rank_bytes(prepared, index, gpus))
    for shape in most:
        most[shape] = _with_room(shape, most[shape], machines)
    return [replace(shape, memory=most.get(shape, 0)) for shape in shapes]


def turns_of(prepared: Prepared, branches: Iterable[Branch]) -> dict[str, float]:
    """For how many estimated seconds at least a gang is given each branch, by its id."""

    def turn(branch: Branch) -> float:
        config = prepared.study.cells[prepared.lineage.nodes[branch.nodes[0]].cell].config
        if LEARNERS[config.learner.kind].turn_seconds is None:  # no matter, and chains may be very long
            return math.inf
        return shares.COMPILED_TURN_S if config.resources.compile else shares.TURN_S

    return {branch.id: turn(branch) for branch in branches}


def _with_room(shape: Shape, most: int, machines: Sequence[Capacity]) -> int:
    """The most bytes of a rank, up to `most`, with which a gang has room on machines that are empty."""
    if place(replace(shape, memory=most), machines) is not None:
        return most
    shares = {
        int(machine.memory / ranks)
        for machine in machines
        if machine.memory < shape.ranks * most
        for ranks in range(1, shape.ranks + 1)
    }
    sizes = sorted(share for share in shares if share < most)
    fit = bisect.bisect(sizes, False, key=lambda size: place(replace(shape, memory=size), machines) is None)
    return sizes[fit - 1] if fit else 0


def held_back(shapes: Iterable[Shape], machines: Sequence[Capacity], what: str = "gangs") -> list[str]:
    """A sentence for every shape of which memory lets fewer work at once than processors do."""
    said = []
    for shape in sorted(set(shapes)):
        fit, could = max(1, at_once(shape, machines)), at_once(replace(shape, memory=0), machines)
        if fit < could:
            each, there = shape.ranks * shape.memory, sum(machine.memory for machine in machines)
            said.append(
                f"{what} at a time: {fit}, where there are processors for {could}, for each takes about "
                f"{gib(each)} of {gib(there)} of memory"
            )
    return said


def check_feasible(shapes: Collection[Shape], found: Collection[Capacity]) -> None:
    """Check that every gang fits the machines before anything waits.

    Raises:
        ResourceError: Says what is asked for and what there is.
    """
    for shape in sorted(set(shapes)):
        if feasible(shape, list(found)):
            continue
        gpus = bool(shape.gpus) and not feasible(replace(shape, cpus=0), list(found))
        sizes = [machine.gpus if gpus else machine.cpus for machine in found]
        raise ResourceError(_too_much(shape, gpus, sizes))


def _too_much(shape: Shape, gpus: bool, sizes: Sequence[float]) -> str:
    """Which field asks for more than there is, how much that is, and what would help.

    Args:
        shape: The gang's.
        gpus: Whether it is GPUs that are short, and not CPUs.
        sizes: How many of them each machine has.
    """
    each, kind = (shape.gpus, "GPU") if gpus else (shape.cpus, "CPU")
    of_rank = "resources.gpus_per_rank" if gpus else "resources.threads"
    most = int(max(sizes, default=0))
    if each <= most:
        field, least = "resources.ranks", sum(int(size // each) for size in sizes)
        help_ = f"lower resources.ranks to {least} or less{f', or {of_rank}' if each > 1 else ''}"
    else:  # not one rank has room
        field = of_rank
        help_ = f"lower {of_rank} to {most} or less" if most else f"leave {of_rank} out, or set it to 0"
    there = f"the largest machine has {most}, all {len(sizes)} together {sum(sizes):g}"
    if len(sizes) < 2:
        there = f"the machine has {most}"
    return (
        f"{field}: this grid asks for {counted(shape.ranks * each, kind)} a gang "
        f"({counted(shape.ranks, 'rank')} x {each}); {there}; {help_}"
    )
