"""The event loop: ready branches to gangs, one event at a time, until nothing is left that can be done."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from harness.config.schema import Resources
from harness.coordinator.cluster import machines, unreachable
from harness.coordinator.display import NEWS, chain_of, computed_by, described, running_row
from harness.coordinator.failures import HOST_ADVICE, Budget, FailureKind, store_trouble
from harness.coordinator.gang import GangHandle, Outcome, death
from harness.coordinator.plans import plan_of
from harness.coordinator.revision import source_revision
from harness.coordinator.scheduler import Assign, Capacity, Gang, Queue, Retire, Start, decide, feasible
from harness.coordinator.shapes import held_back, shapes_of, turns_of
from harness.coordinator.shares import Shares
from harness.coordinator.summary import IDLE, Display, RunSummary
from harness.coordinator.tally import Tally, clear_committed
from harness.errors import StoreError
from harness.inventory import Inventory
from harness.inventory.estimates import scheduled_seconds
from harness.inventory.failed import with_logs
from harness.inventory.retention import Eviction
from harness.science import Branch, Chain, cut
from harness.stop import Stop
from harness.store import Experiment, Leases
from harness.store.leases import bury

TICK_S = 0.25
POLL_S = 1.0
"""Seconds between looks at what others do; more where a look takes long."""
MACHINES_S = 5.0
"""Seconds between looks at the cluster's machines."""
NODE_WAIT_S = 60.0
"""How long a run waits for machines that could hold what is left, when none of them is there any more."""
TEARDOWN_SHARE = 0.3
"""Share of the grace period that is kept for ending gangs and Ray."""


@dataclass
class _Running:
    """A branch on a gang, which has been given a part of it."""

    branch: Branch
    given: tuple[str, ...]
    pending: list[Any]
    outcomes: list[Outcome] = field(default_factory=list)
    next_node: int = 0


class Coordinator:
    """Runs one grid on one Ray; others may run the same or other grids on the same store."""

    def __init__(
        self,
        inventory: Inventory,
        experiment: Experiment,
        leases: Leases,
        found: tuple[Capacity, ...],
        display: Display,
        on_chain: Callable[[Chain], None],
        stop: Stop,
        idle_s: float | None = None,
    ) -> None:
        """Look at the machines; what is there is known.

        Args:
            inventory: What the store, open for writing, has of the study.
            experiment: The experiment's folder.
            leases: As this coordinator sees them.
            found: The machines of the cluster.
            display: Shows progress.
            on_chain: Called once for every chain that is complete.
            stop: Set from outside to end early.
            idle_s: End after this many seconds in which all that is left is being computed by others; None to
                wait for them.
        """
        assert leases.owner is not None
        self.inventory, self.experiment, self.leases = inventory, experiment, leases
        self.prepared, self.store = prepared, store = inventory.prepared, inventory.store
        self.machines, self.display, self.on_chain, self.stop = found, display, on_chain, stop
        self._lost: set[str] = set()
        self.id = leases.owner.id
        self.lineage, self.study = prepared.lineage, prepared.study
        self.budget = Budget()
        shapes = shapes_of(prepared, found)
        self.branches = {branch.id: branch for branch in cut(self.lineage)}
        self.shapes = {branch.id: shapes[self._cell_of(branch)] for branch in self.branches.values()}
        seconds = scheduled_seconds(prepared, store, any(one.gpus for one in found), inventory.left)
        self.parts = Shares(seconds, turns_of(prepared, self.branches.values()))
        for line in held_back(self.shapes.values(), found):
            display.line(line)
        self.tally = Tally(self.inventory, self.id)
        self._sharers = Counter(node for chain in self.lineage.chains for node in chain.nodes)
        self.failed: dict[str, str] = {}
        self.held: dict[str, tuple[Branch, str]] = {}
        """Branches that wait for a key that somebody else works on."""
        self.gangs: dict[int, GangHandle] = {}
        self.running: dict[int, _Running] = {}
        self._ended: set[str] = set()  # branches, since the events were read last
        self._owners: list[str] = []
        self._offsets: dict[str, int] = {}
        self._nodes: list[str] = []
        self._revision = source_revision()
        self._polled = self._looked = self._shown = time.monotonic()
        self._poll_s = POLL_S
        self.idle_s, self._busy = idle_s, time.monotonic()
        self.retention = Eviction(prepared, store, experiment, self.inventory.done, display.line)

    # --- the loop -------------------------------------------------------------------------------------------

    def run(self) -> RunSummary:
        """Run what is left of the grid.

        Raises:
            StoreError: The store cannot be written any more.
        """
        started, reason = time.monotonic(), ""
        for chain in self.lineage.chains:
            if self.tally.complete(chain):
                self.on_chain(chain)
        remaining = [
            branch
            for branch in self.branches.values()
            if any(node not in self.inventory.done for node in branch.nodes)
        ]
        self.queue = Queue(
            (b for b in remaining if not self.tally.unreachable(b)), self.inventory.done | self.inventory.gone
        )
        clear_committed(self.lineage, self.store, self.leases)
        done, total = len(self.inventory.done), len(self.lineage.nodes)
        self.experiment.event("run_started", coordinator=self.id, generations=total, done=done)
        self.experiment.news(self._offsets)  # there is a file now, from whose end on it is read
        try:
            while not self.stop.is_set() and (len(self.queue) or self.running or self.held):
                self._poll()
                self._act()
                if not self.running and len(self.queue):
                    reason = self._await_machines()
                    if reason:
                        break
                if self._idle():
                    reason = IDLE
                    break
                self._wait()
                self._watch()
                self._show()
            if self.stop.is_set():
                self._drain()
        finally:
            self._end_gangs()
        self._tell()
        self._show(last=True)
        stopped = self.stop.is_set() or bool(reason)
        summary = self.tally.summary(time.monotonic() - started, stopped, reason, tuple(self.failed.items()))
        self.experiment.event(
            "run_ended",
            coordinator=self.id,
            stopped=summary.stopped,
            complete=summary.chains_complete,
            failed=summary.chains_failed,
        )
        return summary

    def _idle(self) -> bool:
        """Whether others have been computing all that is left for so long that this run is not needed."""
        if self.running or len(self.queue) or self.queue.waiting:
            self._busy = time.monotonic()
        return self.idle_s is not None and time.monotonic() - self._busy >= self.idle_s

    def _act(self) -> None:
        """Do what the scheduler says."""
        possible = {shape: feasible(shape, self.machines) for shape in set(self.shapes.values())}
        again = True
        while again:
            again = False
            gangs = [self._as_planned(number) for number in self.gangs]
            ready = (branch for branch in self.queue.ready if possible[self.shapes[branch.id]])
            for action in decide(ready, self.shapes, gangs, self.machines):
                if isinstance(action, Retire):
                    self._retire(action.gang)
                elif self._held_elsewhere(self.branches[action.branch]):
                    again = True
                else:
                    number = action.gang if isinstance(action, Assign) else self._start_gang(action)
                    self._begin(number, self.queue.take(action.branch))

    def _as_planned(self, number: int) -> Gang:
        """A gang as the scheduler sees it: on machines that are there, or in search of some."""
        gang, running = self.gangs[number], self.running.get(number)
        places = tuple(self._nodes.index(rank.node) for rank in gang.processes if rank.node in self._nodes)
        branch = running.branch.id if running else None
        return Gang(number, gang.shape, branch, places, self.parts.amid(number))

    def _held_elsewhere(self, branch: Branch) -> bool:
        """Put a branch aside whose next generation is not this run's to compute.

        It is done, does not exist, or somebody else computes it.
        """
        node = self.tally.next_of(branch)
        if node is None or self.tally.unreachable(branch):
            self.queue.take(branch.id)
            return True
        view = self.leases.look(node)
        if not self.leases.held(view):
            return False
        self._hold(self.queue.take(branch.id), node)
        return True

    def _hold(self, branch: Branch, key: str) -> None:
        view = self.leases.look(key)
        who = self.leases.watch.identity(view.owner) if view.owner else {}
        self.held[branch.id] = (branch, key)
        self.experiment.event("branch_held", branch=branch.id, key=key, owner=view.owner)
        if who.get("about", {}).get("coordinator") != self.id:
            self.display.line(
                f"{chain_of(self.prepared, key)} waits: {who.get('host', 'somebody else')} computes its next "
                "generation"
            )

    def _start_gang(self, action: Start) -> int:
        number = len(self._owners) + 1
        owner = f"{self.id}-gang-{number}"
        self._owners.append(owner)
        self.gangs[number] = GangHandle(number, action.shape, self.experiment.logs, owner, self.study.lease_s)
        return number

    def _begin(self, number: int, branch: Branch) -> None:
        branch = branch.rest(self.tally.next_of(branch) or branch.nodes[0])
        given = self.parts.give(number, branch)
        attempt = self.budget.attempt(branch.id)
        plan = plan_of(self.prepared, replace(branch, nodes=given), attempt, self._revision, self.id)
        cell, silent = self._cell_of(branch), self.leases.watch.silent()
        self.running[number] = _Running(branch, given, self.gangs[number].run(plan, self.store.root, silent))
        about = {
            "attempt": plan.attempt,
            "generations": len(plan.order),
            "axes": dict(self.prepared.study.cells[cell].axes),
        }
        self.experiment.event("branch_started", branch=branch.id, gang=number, **about)

    def _wait(self) -> None:
        """Handle what has happened since the last look: commits, ends, failures."""
        owner = {ref: number for number, running in self.running.items() for ref in running.pending}
        if not owner:
            self.stop.wait(TICK_S)
            return
        finished, _ = ray.wait(list(owner), num_returns=1, timeout=TICK_S)
        for running in self.running.values():
            self._notice_commits(running)
        for ref in finished:
            if owner[ref] in self.running:
                self._handle(owner[ref], ref)

    def _handle(self, number: int, ref: Any) -> None:
        """One call of one rank is over.

        The first bad one ends the gang, the last good one ends the branch.
        """
        running = self.running[number]
        try:
            outcome = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._fail(number, *death(error))
            return
        running.pending.remove(ref)
        if isinstance(outcome, Outcome):
            if outcome.status == "failed":
                self._fail(number, outcome.kind, outcome.error)
                return
            running.outcomes.append(outcome)
        if not running.pending:
            self._end(number)

    def _end(self, number: int) -> None:
        """What a gang was given has ended well; it is free for more, unless it has grown too large."""
        running = self.running.pop(number)
        self._ended.add(running.branch.id)
        self._notice_commits(running)
        outcome = running.outcomes[0]
        self.experiment.event("branch_ended", branch=running.branch.id, gang=number, status=outcome.status)
        missing = self.tally.next_of(running.branch)
        if outcome.status == "busy" and outcome.key is not None:
            self._hold(running.branch, outcome.key)
        elif outcome.status == "ok" and missing is not None:
            # What is there may have been committed on another machine, and this one's view of a shared file
            # system is not that fresh yet: the gang passes over it, and goes on behind it.
            if running.given[-1] == running.branch.nodes[-1]:
                self.held[running.branch.id] = (running.branch, missing)
            else:
                self.parts.end(number, running.given)
                self.queue.push(running.branch.rest(missing))
        if self.gangs[number].outgrown(running.outcomes):
            self._retire(number)

    def _retire(self, number: int) -> None:
        gang = self.gangs.pop(number)
        gang.end()
        bury(self.leases.watch.folder, gang.owner)

    # --- what goes wrong ------------------------------------------------------------------------------------

    def _fail(self, number: int, kind: FailureKind, reason: str) -> None:
        """A gang is lost.

        Kill all of it, keep what it committed, try its branch again or give the branch up.
        """
        running, gang = self.running.pop(number), self.gangs.pop(number)
        self._ended.add(running.branch.id)
        branch = running.branch
        lost = self._lost_machines(gang)
        killed_for_memory = gang.end(skip=lost)
        bury(self.leases.watch.folder, gang.owner)
        if kind == "crash" and any(killed_for_memory.values()):
            kind, reason = "memory", f"{HOST_ADVICE} (the kernel killed a rank)"
        if kind in ("crash", "hang") and lost:
            kind, reason = "preempted", "a machine of the gang is gone"
        if kind == "store":
            trouble = store_trouble(self.store.root)
            if trouble:
                raise StoreError(
                    f"{trouble} ({reason}); nothing that was committed is lost: make room, and run the "
                    "command again"
                )
            kind = "crash"
        self._notice_commits(running)
        self.experiment.clear_progress(branch.id)
        reason = with_logs(reason, gang.logs)
        attempt = self.budget.attempt(branch.id)
        again = self.budget.again(branch.id, kind, self._resources_of(branch))
        self.experiment.event(
            "branch_failed",
            branch=branch.id,
            gang=number,
            failure=kind,
            reason=reason,
            attempt=attempt,
            again=again,
        )
        node = self.tally.next_of(branch) or branch.nodes[-1]
        name = chain_of(self.prepared, node)
        self.display.line(f"{name} failed{', trying again' if again else ''}: {reason}")
        self._refresh_machines()
        if again:
            self.queue.push(branch)
        else:
            self.failed[name] = reason
            if self.store.has("fits", self.lineage.nodes[node].fit):  # who shares one that fails, fails too
                self.queue.give_up(branch)

    def _lost_machines(self, gang: GangHandle) -> set[str]:
        """The machines of a gang that are gone; any, where it had not come to tell where it is."""
        nodes = {process.node for process in gang.processes} or set(machines(self._lost))
        lost = unreachable(nodes)
        self._lost |= lost
        return lost

    def _cell_of(self, branch: Branch) -> int:
        """The cell whose configuration a branch runs with: that of all its nodes."""
        return self.lineage.nodes[branch.nodes[0]].cell

    def _resources_of(self, branch: Branch) -> Resources:
        return self.prepared.study.cells[self._cell_of(branch)].config.resources

    def _watch(self) -> None:
        """End gangs that hang, and look whether machines have come or gone."""
        for number, running in list(self.running.items()):
            if number not in self.running:
                continue  # it went with the one before
            still = self.gangs[number].still_s()
            if still >= self._resources_of(running.branch).watchdog_s:
                self._fail(
                    number,
                    "hang",
                    f"the gang hangs: no step, token or batch for {still:.0f} s (resources.watchdog_s)",
                )
        if time.monotonic() - self._looked >= MACHINES_S:
            self._refresh_machines()

    def _refresh_machines(self) -> None:
        found = machines(self._lost)
        self.machines, self._looked = tuple(found.values()), time.monotonic()
        gone, self._nodes = set(self._nodes) - set(found), list(found)
        if not gone:
            return
        for number, gang in list(self.gangs.items()):
            # A gang that was about to start on a machine that is gone would wait for ever for another place.
            if number not in self.gangs:
                continue
            if number in self.running and (
                not gang.processes or gone & {process.node for process in gang.processes}
            ):
                self._fail(number, "preempted", "a machine of the gang is gone")
            elif number not in self.running and gone & {process.node for process in gang.processes}:
                self._retire(number)

    def _await_machines(self) -> str:
        """Nothing runs and nothing could be started: wait for machines.

        Says so when none have come in time.
        """
        deadline = time.monotonic() + NODE_WAIT_S
        while not any(feasible(self.shapes[branch.id], self.machines) for branch in self.queue.ready):
            if self.stop.is_set():
                return ""
            if time.monotonic() > deadline:
                return f"no machine that could hold what is left has come within {NODE_WAIT_S:.0f} s"
            self.stop.wait(TICK_S)
            self._refresh_machines()
        return ""

    def _drain(self) -> None:
        """Ask every gang to save what it has, and wait for it as long as the grace period allows."""
        grace = self.study.grace_s * (1 - TEARDOWN_SHARE)
        deadline = time.monotonic() + grace
        for number in self.running:
            self.gangs[number].stop(grace)
        while self.running and time.monotonic() < deadline and not self.stop.at_once:
            self._wait()
        for number, running in self.running.items():
            self.experiment.event("branch_ended", branch=running.branch.id, gang=number, status="cut off")

    def _end_gangs(self) -> None:
        for gang in self.gangs.values():
            # all at once: to see each one gone takes time, and the grace period is for all of them together
            gang.kill()
        for number in list(self.gangs):
            self._retire(number)
        for running in self.running.values():
            self.experiment.clear_progress(running.branch.id)
        self.leases.forget(self._owners)

    # --- what has been committed ----------------------------------------------------------------------------

    def _poll(self) -> None:
        """Take note of what others have committed.

        Branches that no longer have to wait for them are taken up.
        """
        started = time.monotonic()
        if started - self._polled < self._poll_s:
            return
        self._tell()
        for node in self.inventory.news():
            self._committed(node)
        for branch, key in list(self.held.values()):
            if self.tally.next_of(branch) is None or self.tally.unreachable(branch):
                del self.held[branch.id]
            elif not self.leases.held(self.leases.look(key)):
                del self.held[branch.id]
                self.queue.push(branch)
        self._polled = time.monotonic()
        self._poll_s = max(POLL_S, 20 * (self._polled - started))

    def _tell(self) -> None:
        """What the gangs of this run report that a person wants to know."""
        mine = {running.branch.id for running in self.running.values()} | self._ended
        self._ended = set()
        for event in self.experiment.news(self._offsets):
            if event.get("branch") in mine and event["event"] in NEWS:
                self.display.line(NEWS[event["event"]].format(**event))

    def _notice_commits(self, running: _Running) -> None:
        """Take note of the nodes that a branch has committed since the last look."""
        nodes = running.branch.nodes
        while running.next_node < len(nodes) and self.inventory.is_there(nodes[running.next_node]):
            node = nodes[running.next_node]
            running.next_node += 1
            if node not in self.inventory.done:
                self._committed(node)
                self.budget.progress(running.branch.id)

    def _committed(self, node: str) -> None:
        record, complete = self.tally.note(node)
        ended = self.inventory.gone if record is not None and record.status == "diverged" else ()
        for key in (node, *ended):
            self.queue.complete(key)
        count, total = len(self.inventory.done), len(self.lineage.nodes)
        who = computed_by(self.prepared, node, self._sharers[node] - 1)
        self.display.line(f"[{count}/{total}] {who} {described(record)}")
        for chain in complete:
            self.on_chain(chain)
        self.retention.committed(node)

    def _show(self, last: bool = False) -> None:
        if not last and time.monotonic() - self._shown < TICK_S:
            return
        self._shown = time.monotonic()
        progress = self.experiment.progress() if self.running else {}
        branches = [running.branch for running in self.running.values()]
        rows = [running_row(self.prepared, branch, progress.get(branch.id, {})) for branch in branches]
        self.display.update(len(self.inventory.done), len(self.lineage.nodes), rows)
