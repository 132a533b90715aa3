"""Whether a submission can work, before anything is queued."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from harness.errors import InputError
from harness.launch.options import Options, parse_memory
from harness.launch.slurm import Partition
from harness.terminal import counted, shown

START_S = 60
"""What a job needs before it computes: Python, Ray, models."""


@dataclass(frozen=True, order=True)
class GangNeed:
    """What one gang of the grid occupies.

    Attributes:
        ranks: Ranks.
        cpus: CPUs of each.
        gpus: GPUs of each.
    """

    ranks: int
    cpus: int
    gpus: int

    def per_node(self, cpus: int, gpus: int) -> int:
        """How many of its ranks fit a node."""
        return min(cpus // self.cpus, gpus // self.gpus if self.gpus else self.ranks)


@dataclass(frozen=True)
class Work:
    """What the plan says of the grid.

    Attributes:
        gangs: The shapes of its gangs.
        wall_s: Simulated time of what is left, on one job's nodes.
        checkpoint_s: Longest time between two checkpoints of a fit.
        grace_s: Longest time that saving takes.
        left: Generations to compute.
    """

    gangs: Collection[GangNeed]
    wall_s: float
    checkpoint_s: float
    grace_s: float
    left: int


def signal_s(work: Work, options: Options) -> int:
    """Seconds before the time limit at which a run is told.

    SLURM may be up to a minute early, never so late.
    """
    return options.signal_s if options.signal_s is not None else max(60, math.ceil(2 * work.grace_s))


def cpus_per_node(work: Work, options: Options) -> int:
    """CPUs to ask for on each node: what its GPUs' ranks need, or the largest gang without GPUs."""
    if options.cpus_per_node is not None:
        return options.cpus_per_node
    needs = [gang.cpus * (options.gpus // gang.gpus if gang.gpus else gang.ranks) for gang in work.gangs]
    return max(1, *needs)


SET_MIB = 64
"""A cluster that does not say how much memory its nodes have says 1 MiB; less than this is no answer."""


def node_memory(options: Options, partitions: Mapping[str, Partition] | None) -> int | None:
    """Bytes that a job has on each node at most: what is asked for, or the largest node it may get.

    None where nobody says; ``--mem 0`` asks for all that a node has.
    """
    asked = parse_memory(options.mem) if options.mem else 0
    if asked:
        return asked * 2**20
    names = options.partition.split(",") if options.partition else []
    known = (partitions or {}).values()
    sizes = [item.memory for item in known if item.name in names or (not names and item.default)]
    largest = max(sizes, default=0)
    return largest * 2**20 if largest >= SET_MIB else None


def check(work: Work, options: Options, partitions: Mapping[str, Partition] | None) -> list[str]:
    """Check a submission against the plan and the cluster.

    Args:
        work: The plan.
        options: What is asked of SLURM.
        partitions: The cluster's; None where there is no SLURM to ask (a dry run).

    Returns:
        Remarks that do not forbid it.

    Raises:
        InputError: It cannot work; one line for every reason.
    """
    problems, named = problems_of_gangs(work, options), list[Partition]()
    limit = options.time_s
    if partitions is not None:
        named = _named(options, partitions, problems)
        failing = [_fits(work, options, partition) for partition in named]
        if failing and all(failing):  # of several, SLURM takes the one that starts first
            problems += failing[0]
        limits = [found for item in named if (found := item.default_s or item.time_s)]
        limit = limit or min(limits, default=None)
    lead = signal_s(work, options)
    if limit is not None and limit < START_S + work.checkpoint_s + lead:
        problems.append(
            f"--time: {_duration(limit)} is too short: a job needs about {START_S} s to start, writes a "
            f"checkpoint every {work.checkpoint_s:g} s (resources.checkpoint_s) and saves its work {lead} s "
            f"before its limit (--signal-s); allowed: {_duration(START_S + work.checkpoint_s + lead)} or more"
        )
    if problems:
        raise InputError("\n".join(problems))
    return _remarks(work, options, limit, named)


def problems_of_gangs(work: Work, options: Options) -> list[str]:
    """Why gangs of the grid would find no room in a job; empty where all do."""
    cpus, problems = cpus_per_node(work, options), []
    for gang in sorted(work.gangs):
        there = gang.per_node(cpus, options.gpus)
        if there * options.nodes >= gang.ranks:
            continue
        what, wanted = (
            ("GPU", gang.gpus)
            if gang.gpus and options.gpus // gang.gpus <= cpus // gang.cpus
            else ("CPU", gang.cpus)
        )
        has = options.gpus if what == "GPU" else cpus
        shape = "each task of the array" if options.array else "the job"
        problems.append(
            f"--nodes: a gang has {gang.ranks} ranks with {counted(wanted, what)} each; {shape} has "
            f"{counted(options.nodes, 'node')} with {counted(has, what)}, room for "
            f"{there * options.nodes} ranks; give more --nodes or "
            f"--{what.lower()}s-per-node, or lower resources.ranks"
        )
    return problems


def _named(options: Options, partitions: Mapping[str, Partition], problems: list[str]) -> list[Partition]:
    """The partitions that a job may go to."""
    if options.partition is None:
        return [item for item in partitions.values() if item.default]
    found = []
    for name in options.partition.split(","):
        if name in partitions:
            found.append(partitions[name])
            continue
        near = get_close_matches(name, partitions, 1)
        known = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(partitions))}"
        problems.append(f"--partition: {shown(name)} does not exist; {known}")
    return found


def _fits(work: Work, options: Options, partition: Partition) -> list[str]:
    asked = {
        "--nodes": (options.nodes, partition.nodes, "nodes"),
        "--cpus-per-node": (cpus_per_node(work, options), partition.cpus, "CPUs a node"),
        "--gpus-per-node": (options.gpus, partition.gpus, "GPUs a node"),
        "--mem": (parse_memory(options.mem) if options.mem else 0, partition.memory, "MiB a node"),
    }
    problems = [
        f"{name}: {wanted} {what} asked for, partition {partition.name} has {most}"
        for name, (wanted, most, what) in asked.items()
        if wanted > most
    ]
    if options.time_s is not None and partition.time_s is not None and options.time_s > partition.time_s:
        problems.append(
            f"--time: {options.time} is more than partition {partition.name} allows "
            f"({_duration(partition.time_s)})"
        )
    return problems


def _remarks(work: Work, options: Options, limit: int | None, named: Sequence[Partition]) -> list[str]:
    found = []
    if not options.gpus and named and all(partition.gpus for partition in named):
        names = ", ".join(partition.name for partition in named)
        found.append(
            f"partition {names} has GPUs and none is asked for (--gpus-per-node), so everything is computed "
            "on CPUs"
        )
    if not work.left:
        found.append("everything is in the store already; the job will only see that")
    if limit is not None and not options.array:
        useful = limit - START_S - signal_s(work, options)
        jobs = math.ceil(work.wall_s / useful) if useful > 0 else 0
        if jobs > 1:
            often = "once" if jobs == 2 else f"{jobs - 1} times"
            enough = (
                ""
                if jobs <= options.max_requeues + 1
                else f", more than --max-requeues {options.max_requeues} allows"
            )
            found.append(
                f"about {_duration(work.wall_s)} of work: the job will requeue itself about {often}{enough}"
            )
    return found


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}-{hour:02d}:{minute:02d}:{second:02d}" if days else f"{hour}:{minute:02d}:{second:02d}"
