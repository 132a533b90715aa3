"""The scheduler under a virtual clock: how long a grid would take on some machines."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from harness.coordinator.scheduler import Assign, Capacity, Gang, Queue, Retire, Shape, Start, decide
from harness.coordinator.shares import Shares
from harness.science import Branch

GANG_START_S = 5.0
"""Seconds until a new gang can work: processes and imports (docs/LOG.md)."""


class _Clock:
    """The state of a simulated run."""

    def __init__(
        self,
        branches: Sequence[Branch],
        shapes: Mapping[str, Shape],
        seconds: Mapping[str, float],
        start_s: float,
        turns: Mapping[str, float],
    ) -> None:
        self.shapes, self.seconds, self.start_s = shapes, seconds, start_s
        self.queue = Queue(branches, {node for branch in branches for node in branch.needs} - set(seconds))
        self.gangs: dict[int, Gang] = {}
        self.born: dict[int, float] = {}
        self.now = self.busy = self.alive = 0.0
        self.events: list[tuple[float, int, str, bool]] = []
        self.running: dict[int, Branch] = {}
        self.parts = Shares(seconds, turns)

    def begin(self, gang: int, name: str, delay: float) -> None:
        """A gang takes a branch, or a part of it: its commits and its end are events to come."""
        branch = self.running[gang] = self.queue.take(name)
        self.gangs[gang] = Gang(gang, self.shapes[name], name)
        at, given = self.now + delay, self.parts.give(gang, branch)
        for node in given:
            at += self.seconds.get(node, 0.0)
            self.busy += self.seconds.get(node, 0.0)
            heapq.heappush(self.events, (at, gang, node, node == given[-1]))

    def act(self, machines: Sequence[Capacity]) -> bool:
        """Do what the scheduler says; False where there was nothing to do."""
        actions = decide(self.queue.ready, self.shapes, list(self.gangs.values()), machines)
        for action in actions:
            if isinstance(action, Assign):
                self.begin(action.gang, action.branch, 0.0)
            elif isinstance(action, Start):
                number = len(self.born)
                self.born[number] = self.now
                self.begin(number, action.branch, self.start_s)
            elif isinstance(action, Retire):
                self.alive += self.now - self.born[action.gang]
                del self.gangs[action.gang]
        return bool(actions)

    def advance(self) -> None:
        """Set the clock to the next commit."""
        self.now, gang, node, ends = heapq.heappop(self.events)
        self.queue.complete(node)
        if ends:
            branch = self.running.pop(gang)
            if node != branch.nodes[-1]:
                place = branch.nodes.index(node) + 1
                self.parts.end(gang, branch.nodes[:place])
                self.queue.push(branch.rest(branch.nodes[place]))
            self.gangs[gang] = Gang(gang, self.gangs[gang].shape, None, amid=self.parts.amid(gang))


def simulate(
    branches: Sequence[Branch],
    shapes: Mapping[str, Shape],
    seconds: Mapping[str, float],
    machines: Sequence[Capacity],
    start_s: float = GANG_START_S,
    turns: Mapping[str, float] = MappingProxyType({}),
) -> tuple[float, float]:
    """Run a schedule on a virtual clock.

    Args:
        branches: The branches that are left.
        shapes: Their shapes, by id.
        seconds: How long each node takes, by evaluation key; nodes without an entry are done.
        machines: The machines; every shape fits them.
        start_s: Seconds to start a gang.
        turns: For how many seconds at least a gang is given a branch, by its id; `TURN_S` of others.

    Returns:
        Seconds until the last branch ends, and the share of the gangs' time in which they are idle or
        starting.
    """
    clock = _Clock(branches, shapes, seconds, start_s, turns)
    while len(clock.queue) or clock.events:
        if not clock.act(machines):
            clock.advance()
    alive = clock.alive + sum(clock.now - clock.born[gang] for gang in clock.gangs)
    return clock.now, 1 - clock.busy / alive if alive else 0.0
