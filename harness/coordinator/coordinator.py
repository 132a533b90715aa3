"""The event loop: ready branches to gangs, one event at a time, until nothing is left that can be done."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray

from harness.chain import Plan
from harness.config.schema import Config
from harness.coordinator.cluster import machines
from harness.coordinator.gang import GangHandle, Outcome
from harness.coordinator.retention import Retention
from harness.coordinator.scheduler import Assign, Capacity, Gang, Queue, Retire, Shape, Start, decide
from harness.lineage import Branch, Chain, cut
from harness.records import Record
from harness.store import Experiment, Store
from harness.study import Prepared

TICK_S = 0.25


@dataclass(frozen=True)
class Summary:
    """What a run did; field names are those of ``run --json``."""

    chains_complete: int
    chains_failed: int
    generations_computed: int
    generations_reused: int
    wall_s: float
    stopped: bool = False
    failures: tuple[tuple[str, str], ...] = ()
    """Branch or chain, and why, for people."""

    @property
    def exit_code(self) -> int:
        """0 all chains complete, 1 some failed, 75 stopped early."""
        return 75 if self.stopped else 1 if self.chains_failed else 0


class Display(Protocol):
    """Shows the run to a person."""

    def update(self, done: int, total: int, running: Sequence[Mapping[str, Any]]) -> None:
        """Called every tick."""
        ...

    def line(self, text: str) -> None:
        """Something worth a line in a log."""
        ...

    def close(self) -> None:
        """The run is over."""
        ...


def shape_of(config: Config, gpus: bool) -> Shape:
    """What a gang for this cell occupies, on machines with GPUs or without."""
    resources, solo = config.resources, config.learner.kind != "language_model"
    per_rank = (1 if gpus else 0) if resources.gpus_per_rank is None else resources.gpus_per_rank
    return Shape(resources.ranks, resources.threads, 0 if solo else per_rank, solo)


def source_revision() -> str:
    """The revision of the source tree, with ``+dirty`` for local changes; empty outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10).stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        return revision + ("+dirty" if revision and git("status", "--porcelain", "--", str(folder)) else "")
    except (OSError, subprocess.SubprocessError):
        return ""


@dataclass
class _Running:
    """A branch on a gang."""

    branch: Branch
    pending: list[Any]
    outcomes: list[Outcome] = field(default_factory=list)
    next_node: int = 0


@dataclass
class _State:
    """What the loop knows; everything in it can be derived again from the store."""

    done: set[str]
    diverged: set[str] = field(default_factory=set)
    failures: dict[str, int] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


class Coordinator:
    """Runs one grid on one Ray."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        experiment: Experiment,
        found: tuple[Capacity, ...],
        display: Display,
        on_chain: Callable[[Chain], None],
        stop: threading.Event,
    ) -> None:
        """Take stock of the store.

        Args:
            prepared: The study.
            store: The store.
            experiment: The experiment's folder.
            found: The machines of the cluster.
            display: Shows progress.
            on_chain: Called once for every chain that is complete.
            stop: Set from outside to end early.
        """
        self.prepared, self.store, self.experiment = prepared, store, experiment
        self.machines, self.display, self.on_chain, self.stop = found, display, on_chain, stop
        self.lineage = prepared.lineage
        gpus = any(machine.gpus for machine in found)
        cells = prepared.study.cells
        self.branches = {branch.id: branch for branch in cut(self.lineage)}
        self.shapes = {b.id: shape_of(cells[self.lineage.nodes[b.nodes[0]].cell].config, gpus) for b in self.branches.values()}
        committed = set(self.lineage.nodes) & store.committed("evaluations")
        self.state = _State(done={node for node in committed if store.sound("evaluations", node)})
        self.reused = len(self.state.done)
        self.gangs: dict[int, GangHandle] = {}
        self.running: dict[int, _Running] = {}
        self._gang_count = 0
        self._revision = source_revision()
        self._chains_of: dict[str, list[Chain]] = {}
        self._left: dict[str, int] = {}
        for chain in self.lineage.chains:
            missing = [node for node in chain.nodes if node not in self.state.done]
            self._left[chain.id] = len(missing)
            for node in missing:
                self._chains_of.setdefault(node, []).append(chain)
        self.retention = Retention(prepared, store, experiment, self.state.done)
        self._find_diverged()

    def _find_diverged(self) -> None:
        """Committed divergence ends a chain: its later generations do not exist."""
        for node in self.lineage.nodes.values():
            if node.evaluation not in self.state.done and node.previous in self.state.done:
                record = self.store.record(node.previous)
                if record is not None and record.status == "diverged":
                    self.state.diverged.add(node.previous)

    # --- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> Summary:
        """Run what is left of the grid."""
        started = time.monotonic()
        for chain in self.lineage.chains:
            if self._complete(chain):
                self.on_chain(chain)
        remaining = [branch for branch in self.branches.values() if any(node not in self.state.done for node in branch.nodes)]
        self.queue = Queue((b for b in remaining if not self._unreachable(b)), self.state.done - self.state.diverged)
        try:
            while not self.stop.is_set() and (len(self.queue) or self.running):
                if not self._act() and not self.running:
                    break
                self._wait()
                self._show()
        finally:
            for gang in list(self.gangs.values()):
                gang.end()
        self._show()
        complete = sum(self._complete(chain) for chain in self.lineage.chains)
        stopped = self.stop.is_set() and complete < len(self.lineage.chains)
        failed = 0 if stopped else len(self.lineage.chains) - complete
        return Summary(
            complete,
            failed,
            len(self.state.done) - self.reused,
            self.reused,
            round(time.monotonic() - started, 3),
            stopped,
            tuple(self.state.failed.items()),
        )

    def _act(self) -> bool:
        """Do what the scheduler says; False where there was nothing to do."""
        gangs = [Gang(n, g.shape, self.running[n].branch.id if n in self.running else None) for n, g in self.gangs.items()]
        actions = decide(self.queue.ready, self.shapes, gangs, self.machines)
        for action in actions:
            if isinstance(action, Retire):
                self.gangs.pop(action.gang).end()
                continue
            if isinstance(action, Start):
                self._gang_count += 1
                number = self._gang_count
                self.gangs[number] = GangHandle(number, action.shape, self.experiment.logs)
            else:
                assert isinstance(action, Assign)
                number = action.gang
            self._begin(number, self.queue.take(action.branch))
        return bool(actions)

    def _begin(self, number: int, branch: Branch) -> None:
        plan, key = self._plan(branch)
        self.running[number] = _Running(branch, self.gangs[number].run(plan, self.store.root, key))
        self.experiment.event("branch_started", branch=branch.id, gang=number, attempt=plan.attempt, generations=len(plan.order))

    def _plan(self, branch: Branch) -> tuple[Plan, str | None]:
        """The branch with all nodes that it descends from."""
        nodes, todo = {}, list(branch.nodes)
        while todo:
            key = todo.pop()
            if key in nodes:
                continue
            node = nodes[key] = self.lineage.nodes[key]
            todo.extend(other for other in (*node.corpora.values(), node.previous, node.first, node.init_from) if other)
        keys = {key for node in nodes.values() for key in (node.fit, node.corpus, node.evaluation)}
        cell = nodes[branch.nodes[0]].cell
        config = self.prepared.configs[cell]
        plan = Plan(
            branch=branch.id,
            config=config,
            order=branch.nodes,
            nodes=nodes,
            specs={key: self.lineage.specs[key] for key in keys},
            examples={node.corpus: self.lineage.examples[node.corpus] for node in nodes.values()},
            external=self.prepared.externals[cell],
            attempt=self.state.failures.get(branch.id, 0) + 1,
            commit=self._revision,
        )
        return plan, self.prepared.data[cell].key

    def _wait(self) -> None:
        """Handle what has happened since the last look: commits, ends, failures."""
        owner = {ref: number for number, running in self.running.items() for ref in running.pending}
        if not owner:
            return
        finished, _ = ray.wait(list(owner), num_returns=1, timeout=TICK_S)
        for running in self.running.values():
            self._notice_commits(running)
        for ref in finished:
            self._handle(owner[ref], ref)

    def _handle(self, number: int, ref: Any) -> None:
        """One call of one rank is over; the first bad one ends the gang, the last good one ends the branch."""
        running = self.running[number]
        try:
            outcome = ray.get(ref)
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            self._fail(number, f"a rank died ({type(error).__name__}: {reason})", retry=True)
            return
        running.pending.remove(ref)
        if isinstance(outcome, Outcome):
            if outcome.status == "failed":
                self._fail(number, outcome.error, outcome.retry)
                return
            running.outcomes.append(outcome)
        if not running.pending:
            self._end(number)

    def _end(self, number: int) -> None:
        """A branch is complete; the gang is free for another one, unless it has grown too large."""
        running = self.running.pop(number)
        self._notice_commits(running)
        self.experiment.event("branch_ended", branch=running.branch.id, gang=number, status=running.outcomes[0].status)
        if self.gangs[number].outgrown(running.outcomes):
            self.gangs.pop(number).end()

    def _fail(self, number: int, reason: str, retry: bool) -> None:
        """A gang is lost: kill all of it, keep what it committed, try its branch again or give the branch up."""
        running, gang = self.running.pop(number), self.gangs.pop(number)
        gang.end()
        branch = running.branch
        self._notice_commits(running)
        self.experiment.clear_progress(branch.id)
        failures = self.state.failures[branch.id] = self.state.failures.get(branch.id, 0) + 1
        config = self.prepared.study.cells[self.lineage.nodes[branch.nodes[0]].cell].config
        again = retry and failures <= config.resources.max_failures
        self.experiment.event("branch_failed", branch=branch.id, gang=number, reason=reason, attempt=failures, again=again)
        logs = ", ".join(str(path) for path in gang.logs)
        self.display.line(f"branch {branch.id} failed{', trying again' if again else ''}: {reason} (log: {logs})")
        self.machines = machines() or self.machines  # one of them may be gone
        if again:
            self.queue.push(branch)
        else:
            self.state.failed[branch.id] = f"{reason} (log: {logs})"

    # --- what has been committed ---------------------------------------------------------------------------------------

    def _notice_commits(self, running: _Running) -> None:
        """Take note of the nodes that a branch has committed since the last look."""
        nodes = running.branch.nodes
        while running.next_node < len(nodes) and self.store.has("evaluations", nodes[running.next_node]):
            node = nodes[running.next_node]
            running.next_node += 1
            if node not in self.state.done:
                self._committed(node)

    def _committed(self, node: str) -> None:
        self.state.done.add(node)
        record = self.store.record(node)
        diverged = record is not None and record.status == "diverged"
        if diverged:
            self.state.diverged.add(node)  # whatever needs it stays unscheduled: there is nothing to go on from
        else:
            self.queue.complete(node)
        self.display.line(_describe(record, len(self.state.done), len(self.lineage.nodes)) if record else f"{node} committed")
        for chain in self._chains_of.pop(node, ()):
            self._left[chain.id] -= 1
            if self._left[chain.id] == 0 or diverged:
                self.on_chain(chain)
        self.retention.committed(node)

    def _unreachable(self, branch: Branch) -> bool:
        first = next(node for node in branch.nodes if node not in self.state.done)
        return self.lineage.nodes[first].previous in self.state.diverged

    def _complete(self, chain: Chain) -> bool:
        return self._left[chain.id] == 0 or any(node in self.state.diverged for node in chain.nodes)

    def _show(self) -> None:
        progress = self.experiment.progress() if self.running else {}
        rows = []
        for running in self.running.values():
            first = self.lineage.nodes[running.branch.nodes[0]]
            axes = self.prepared.study.cells[first.cell].axes
            rows.append(
                {
                    "branch": running.branch.id,
                    "axes": axes,
                    "seed": first.seed,
                    "last": self.lineage.nodes[running.branch.nodes[-1]].generation,
                    **progress.get(running.branch.id, {}),
                }
            )
        self.display.update(len(self.state.done), len(self.lineage.nodes), rows)


def _describe(record: Record, done: int, total: int) -> str:
    shown = [name for name in ("test/perplexity", "gaussian/log_variance") if record.metrics.get(name) is not None]
    values = "".join(f" {name} {record.metrics[name]:.4g}" for name in shown)
    return f"[{done}/{total}] generation {record.generation} seed {record.seed} fit {record.fit[:12]} {record.status}{values}"
