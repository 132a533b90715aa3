"""The scheduler: which branch goes to which gang. Pure: no Ray, no clock, no files."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.science import Branch


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """What a gang occupies; a branch runs in any gang of its shape.

    Attributes:
        ranks: Ray actors.
        cpus: CPUs per rank.
        gpus: GPUs per rank.
        solo: The learner needs no process group.
        memory: Bytes of its machine's memory that a rank takes; 0 where nothing is known.
    """

    ranks: int
    cpus: int
    gpus: int
    solo: bool = False
    memory: int = 0


@dataclass(frozen=True, slots=True)
class Capacity:
    """Free CPUs and GPUs of one machine, and bytes of its memory."""

    cpus: float
    gpus: float
    memory: float = math.inf

    def holds(self, shape: Shape) -> bool:
        """Whether there is room for a rank."""
        return self.cpus >= shape.cpus and self.gpus >= shape.gpus and self.memory >= shape.memory

    def times(self, shape: Shape) -> int:
        """For how many ranks there is room."""
        pairs = ((self.cpus, shape.cpus), (self.gpus, shape.gpus), (self.memory, shape.memory))
        return int(min(there // each for there, each in pairs if each and there != math.inf))

    def without(self, shape: Shape) -> Capacity:
        """What is left beside a rank."""
        return Capacity(self.cpus - shape.cpus, self.gpus - shape.gpus, self.memory - shape.memory)


@dataclass(frozen=True, slots=True)
class Gang:
    """A gang that exists.

    Attributes:
        id: Its number.
        shape: What it occupies.
        branch: What it runs; None while it is idle.
        machines: The machine of each rank, by its index; empty while nobody knows, or it has none yet.
        amid: It is idle since it has ended a part of a branch, and what it was started or chosen for would
            take it longer (`shares.Shares`).
    """

    id: int
    shape: Shape
    branch: str | None
    machines: tuple[int, ...] = ()
    amid: bool = False


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a branch to an idle gang."""

    gang: int
    branch: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start a gang for a branch."""

    shape: Shape
    branch: str


@dataclass(frozen=True, slots=True)
class Retire:
    """End an idle gang, to make room or because nothing is left for it."""

    gang: int


Action = Assign | Start | Retire


def place(shape: Shape, free: Sequence[Capacity]) -> list[Capacity] | None:
    """What is left free after a gang is placed rank by rank, fullest machine that fits first.

    None where it does not fit.
    """
    left = list(free)
    for _ in range(shape.ranks):
        fits = [i for i, machine in enumerate(left) if machine.holds(shape)]
        if not fits:
            return None
        chosen = min(fits, key=lambda i: (left[i].gpus, left[i].cpus, i))
        left[chosen] = left[chosen].without(shape)
    return left


class Queue:
    """Branches that wait for what they need, and those that are ready, the longest remaining path first.

    Longest path first bounds the time of the whole grid (Graham 1969). Ties go by id, so a schedule is a
    function of its input.
    """

    def __init__(self, branches: Iterable[Branch], done: Collection[str]) -> None:
        """Take the branches in.

        Args:
            branches: All branches that are to be run.
            done: Nodes that are committed.
        """
        self._missing: dict[str, set[str]] = {}
        self._waits: dict[str, list[Branch]] = {}
        self._given_up: set[str] = set()
        self._ready: list[tuple[float, str, Branch]] = []
        for branch in branches:
            missing = {node for node in branch.needs if node not in done}
            self._missing[branch.id] = missing
            for node in missing:
                self._waits.setdefault(node, []).append(branch)
            if not missing:
                self.push(branch)

    def push(self, branch: Branch) -> None:
        """A branch is ready, or ready again."""
        bisect.insort(self._ready, (-branch.rank, branch.id, branch), key=lambda item: item[:2])

    def complete(self, node: str) -> None:
        """A node is committed."""
        for branch in self._waits.pop(node, ()):
            self._found(branch, node)

    def give_up(self, branch: Branch) -> None:
        """A branch has failed for good, so those that need it will not run either.

        Whoever only shares what any of these would have made waits for it no longer.
        """
        found = [branch]
        while found:
            nodes = found.pop().nodes
            for node, waiting in [(node, self._waits[node]) for node in nodes if node in self._waits]:
                self._waits[node] = needing = [other for other in waiting if node not in other.shares]
                for other in waiting:
                    if node in other.shares:
                        self._found(other, node)
                found += [other for other in needing if other.id not in self._given_up]
                self._given_up |= {other.id for other in needing}

    def _found(self, branch: Branch, node: str) -> None:
        self._missing[branch.id].discard(node)
        if not self._missing[branch.id]:
            self.push(branch)

    def take(self, branch: str) -> Branch:
        """Remove a branch that a gang runs now."""
        index = next(i for i, item in enumerate(self._ready) if item[1] == branch)
        return self._ready.pop(index)[2]

    @property
    def ready(self) -> Iterator[Branch]:
        """Ready branches in order."""
        return (item[2] for item in self._ready)

    @property
    def waiting(self) -> int:
        """Number of branches that wait for others."""
        return sum(bool(missing) for missing in self._missing.values())

    def __len__(self) -> int:
        """Number of ready branches."""
        return len(self._ready)


def _free(gangs: Sequence[Gang], machines: Sequence[Capacity]) -> tuple[list[Capacity], bool]:
    """What gangs leave free, and whether one of them finds no place.

    First those that are somewhere, then those that will be.
    """
    free, waits = list(machines), False
    for gang in gangs:
        for index in gang.machines:
            free[index] = free[index].without(gang.shape)
    for gang in gangs:
        if not gang.machines:
            left_over = place(gang.shape, free)
            waits, free = waits or left_over is None, left_over or free
    return free, waits


def decide(
    ready: Iterable[Branch], shapes: Mapping[str, Shape], gangs: Sequence[Gang], machines: Sequence[Capacity]
) -> list[Action]:
    """What to do now.

    Args:
        ready: Branches whose needs are committed and that no gang runs, the most urgent first.
        shapes: The shape of every branch, by id.
        gangs: The gangs that exist.
        machines: Every machine with all its CPUs and GPUs.

    Returns:
        Actions, in the order in which they are to be done; a gang gets one branch at most. Gangs of one shape
        are reused; one that is amid a branch takes the most urgent of its shape before all others, so that
        gangs of two shapes do not take turns with every part. A branch that has no place gets the next
        that is freed: idle gangs of other shapes retire for it, and nothing less urgent starts before it, so
        that a large gang cannot starve behind small ones. The same holds for a gang that was started where
        the machines, as they turned out to be filled, have no room for it.
    """
    free, waits = _free(gangs, machines)
    idle = [gang for gang in gangs if gang.branch is None]
    actions: list[Action] = []
    if any(gang.amid for gang in idle):
        ready = _go_on(iter(ready), shapes, idle, actions)
    if waits and idle:
        return [*actions, *(Retire(gang.id) for gang in idle)]
    for branch in ready:
        shape = shapes[branch.id]
        match = next((gang for gang in idle if gang.shape == shape), None)
        if match is not None:
            idle.remove(match)
            actions.append(Assign(match.id, branch.id))
            continue
        placed = place(shape, free)
        if placed is None:
            actions.extend(Retire(gang.id) for gang in idle)
            break
        free = placed
        actions.append(Start(shape, branch.id))
    return actions


def _go_on(
    ready: Iterator[Branch], shapes: Mapping[str, Shape], idle: list[Gang], actions: list[Action]
) -> Iterator[Branch]:
    """Give gangs that are amid a branch the most urgent ones of their shapes; returns what is left."""
    amid, passed = [gang for gang in idle if gang.amid], list[Branch]()
    while amid and (branch := next(ready, None)) is not None:
        gang = next((gang for gang in amid if gang.shape == shapes[branch.id]), None)
        if gang is None:
            passed.append(branch)
            continue
        amid.remove(gang)
        idle.remove(gang)
        actions.append(Assign(gang.id, branch.id))
    return itertools.chain(passed, ready)


def at_once(shape: Shape, machines: Sequence[Capacity]) -> int:
    """How many gangs of a shape the machines hold when they are empty."""
    if shape.ranks == 1:
        return sum(machine.times(shape) for machine in machines)
    count, left = 0, place(shape, machines)
    while left is not None:
        count, left = count + 1, place(shape, left)
    return count


def feasible(shape: Shape, machines: Sequence[Capacity]) -> bool:
    """Whether a gang fits the machines when they are empty."""
    return place(shape, machines) is not None
