"""The scheduler under a virtual clock: how long a grid would take on some machines."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from harness.coordinator.scheduler import Assign, Capacity, Gang, Queue, Retire, Shape, Start, decide
from harness.lineage import Branch

GANG_START_S = 15.0
"""Seconds until a new gang can work: processes and imports (docs/LOG.md)."""


def simulate(branches: Sequence[Branch], shapes: Mapping[str, Shape], seconds: Mapping[str, float], machines: Sequence[Capacity],
             start_s: float = GANG_START_S) -> tuple[float, float]:  # fmt: skip
    """Run a schedule on a virtual clock.

    Args:
        branches: The branches that are left.
        shapes: Their shapes, by id.
        seconds: How long each node takes, by evaluation key; nodes without an entry are done.
        machines: The machines.
        start_s: Seconds to start a gang.

    Returns:
        Seconds until the last branch ends, and the share of that time in which gangs that exist are idle or starting.
    """
    done = {node for branch in branches for node in branch.needs} - set(seconds)
    queue = Queue(branches, done)
    gangs: dict[int, Gang] = {}
    clock, busy, alive, number = 0.0, 0.0, 0.0, 0
    born: dict[int, float] = {}
    events: list[tuple[float, int, str, str]] = []

    def begin(gang: int, branch: Branch, delay: float) -> None:
        nonlocal busy
        gangs[gang] = Gang(gang, shapes[branch.id], branch.id)
        queue.take(branch.id)
        at = clock + delay
        for node in branch.nodes:
            at += seconds.get(node, 0.0)
            busy += seconds.get(node, 0.0)
            heapq.heappush(events, (at, gang, node, branch.id if node == branch.nodes[-1] else ""))

    by_id = {branch.id: branch for branch in branches}
    while len(queue) or events:
        actions = decide(queue.ready, shapes, list(gangs.values()), machines)
        for action in actions:
            if isinstance(action, Assign):
                begin(action.gang, by_id[action.branch], 0.0)
            elif isinstance(action, Start):
                number, born[number] = number + 1, clock
                begin(number - 1, by_id[action.branch], start_s)
            elif isinstance(action, Retire):
                alive += clock - born.pop(action.gang)
                del gangs[action.gang]
        if actions:
            continue
        if not events:
            break  # what is left fits no machine
        clock, gang, node, ended = heapq.heappop(events)
        queue.complete(node)
        if ended:
            gangs[gang] = Gang(gang, gangs[gang].shape, None)
    alive += sum(clock - at for at in born.values())
    return clock, 1 - busy / alive if alive else 0.0
