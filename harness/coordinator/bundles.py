"""Bundles on Ray: chains of cheap learners to tasks of even size, each committed as one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from harness.bundle import CellJob, Unit
from harness.config.schema import Kde, Mixture
from harness.coordinator.base import Display, Summary
from harness.coordinator.failures import classify
from harness.coordinator.stop import Stop
from harness.data.analytic import Truth
from harness.lineage import BundledChain
from harness.store import Experiment, Store
from harness.store.bundles import Place
from harness.study import Prepared, load_data

MAX_CHAINS = 1000
"""Chains of a unit, and of a task."""
UNIT_BYTES = 24 * 2**20
"""Examples that the chains of a unit hold together; more would not fit the processor's caches, and memory on many cores."""
TASK_S = (1.0, 20.0)
"""Least and most estimated seconds of a task: what a kill costs, and what a commit costs."""
TASKS_PER_WORKER = 8
"""Tasks for each worker at least, so that all end at about the same time."""
GENERATION_S = 1e-4
"""Seconds of a chain's generation besides its examples."""
TICK_S = 0.25


@dataclass(frozen=True)
class Task:
    """Units that are computed in one go and committed as one file.

    Attributes:
        units: The units.
        seconds: Estimate.
        attempt: 1 for the first try.
    """

    units: tuple[Unit, ...]
    seconds: float
    attempt: int = 1

    @property
    def chains(self) -> list[BundledChain]:
        """Of all units."""
        return [chain for unit in self.units for chain in unit.chains]


@dataclass
class Done:
    """What a task has done: chains by key that failed, and why."""

    failed: dict[str, str] = field(default_factory=dict)


def missing(prepared: Prepared, places: Mapping[str, Place]) -> list[BundledChain]:
    """The bundled chains that the store has not, or not to their whole length."""
    return [c for c in prepared.bundles if c.key not in places or places[c.key].generations < c.generations]


def _jobs(prepared: Prepared, store: Store) -> Callable[[int], dict[int, CellJob]]:
    found: dict[int, CellJob] = {}

    def jobs(cell: int) -> dict[int, CellJob]:
        """A cell with the cells that write for it; these first."""
        source = prepared.sciences[cell].source
        before = {} if source is None else jobs(source)
        if cell not in found:
            config = prepared.configs[cell]
            truth = load_data(config, store, prepared.data[cell].key)
            assert isinstance(truth, Truth)
            found[cell] = CellJob(config, prepared.sciences[cell], truth)
        return {**before, cell: found[cell]}

    return jobs


def make_tasks(prepared: Prepared, store: Store, chains: Sequence[BundledChain], workers: int) -> list[Task]:
    """Chains to tasks, the costliest first.

    Args:
        prepared: The study.
        store: The store, with the study's data.
        chains: Those to compute.
        workers: How many tasks run at once.
    """
    jobs, by_cell = _jobs(prepared, store), dict[int, list[BundledChain]]()
    longest = {chain.key: chain for chain in sorted(chains, key=lambda chain: chain.generations)}  # a shorter one is its beginning
    for chain in longest.values():
        by_cell.setdefault(chain.cell, []).append(chain)
    cost = {cell: chain_seconds(prepared, cell) for cell in by_cell}
    total = sum(cost[chain.cell] for chain in chains)
    target = min(max(total / (workers * TASKS_PER_WORKER), TASK_S[0]), TASK_S[1])
    units: list[tuple[float, Unit]] = []
    for cell, group in by_cell.items():
        made = jobs(cell)
        room = 1 if made[cell].alone else int(UNIT_BYTES // max(job.bytes_per_chain for job in made.values()))
        size = max(1, min(room, MAX_CHAINS, int(target / cost[cell])))
        for start in range(0, len(group), size):
            part = tuple(group[start : start + size])
            units.append((cost[cell] * len(part), Unit(cell, part, made)))
    units.sort(key=lambda item: -item[0])
    tasks: list[Task] = []
    open_units: list[Unit] = []
    seconds = 0.0
    for each, unit in units:
        if open_units and (seconds + each > target or sum(len(u.chains) for u in open_units) + len(unit.chains) > MAX_CHAINS):
            tasks.append(Task(tuple(open_units), seconds))
            open_units, seconds = [], 0.0
        open_units.append(unit)
        seconds += each
    if open_units:
        tasks.append(Task(tuple(open_units), seconds))
    return tasks


def chain_seconds(prepared: Prepared, cell: int) -> float:
    """Estimated seconds of one chain, with the chain that writes for it."""
    science = prepared.sciences[cell]
    recipes = [science.recipe(g) for g in range(science.generations + 1)]
    learner = prepared.configs[cell].learner
    # Where moments or counts are all that a fit needs, a pool that only grows is not read again: a generation adds a corpus to it.
    reread = isinstance(learner, Mixture) or (isinstance(learner, Kde) and isinstance(learner.bandwidth, str))
    own = sum(GENERATION_S + science.cost * (r.size if reread or len(r.parts) < 3 else 2 * science.n) for r in recipes)
    return own + (0.0 if science.source is None else chain_seconds(prepared, science.source))


def run_task(task: Task, root: str) -> Done:
    """Compute a task and commit it; on a worker."""
    import pyarrow as pa

    from harness.bundle import provenance, run_unit
    from harness.store.bundles import Bundles

    started, done, tables, chains = time.monotonic(), Done(), [], dict[str, int]()
    for unit in task.units:
        try:
            tables.append(run_unit(unit))
            chains |= {chain.key: chain.generations for chain in unit.chains}
        except Exception as error:
            kind, reason = classify(error)
            if kind in ("store", "memory"):
                raise
            done.failed |= {chain.key: reason for chain in unit.chains}
    if tables:
        Bundles(Path(root) / "bundles").commit(pa.concat_tables(tables, promote_options="default"), chains, provenance(started))
    return done


class BundleRun:
    """The bundled part of a run."""

    def __init__(self, prepared: Prepared, store: Store, experiment: Experiment, display: Display, stop: Stop) -> None:
        """Take stock of the store.

        Args:
            prepared: The study.
            store: The store.
            experiment: The experiment's folder.
            display: Shows progress.
            stop: Set from outside to end early.
        """
        self.prepared, self.store, self.experiment = prepared, store, experiment
        self.display, self.stop = display, stop
        self.failed: dict[str, str] = {}
        self.computed = 0

    def run(self, workers: int, on_chain: Callable[[BundledChain], None]) -> Summary:
        """Compute the chains that the store has not.

        Args:
            workers: Tasks that run at once.
            on_chain: Called for every chain that is complete.
        """
        started, chains = time.monotonic(), self.prepared.bundles
        todo = missing(self.prepared, self.store.bundles.index())
        tasks = make_tasks(self.prepared, self.store, todo, workers) if todo else []
        self.experiment.event("bundles_started", chains=len(todo), tasks=len(tasks))
        done, running = len(chains) - len(todo), dict[Any, Task]()
        remote = ray.remote(num_cpus=1, max_retries=0)(run_task)
        while (tasks or running) and not self.stop.is_set():
            while tasks and len(running) < workers:
                task = self._still_missing(tasks.pop(0))
                if task is not None:
                    running[remote.remote(task, str(self.store.root))] = task
            if not running:
                continue
            finished, _ = ray.wait(list(running), num_returns=1, timeout=TICK_S)
            for ref in finished:
                task = running.pop(ref)
                again = self._finish(ref, task)
                tasks[:0] = again
                if not again:
                    done += len(task.chains)
                    self.display.line(f"[{done}/{len(chains)} chains] {len(task.chains)} in bundles of {len(task.units)} cell(s)")
            self.display.update(done, len(chains), [])
        for ref in running:  # what a task has done so far is lost: at most a few seconds, by its size
            ray.cancel(ref, force=True)
        return self._summary(time.monotonic() - started, on_chain)

    def _still_missing(self, task: Task) -> Task | None:
        """A task without what another run on the store has committed meanwhile.

        There are no leases here: two runs may compute a chain at the same moment, and then both write the same.
        """
        left = {chain.key for chain in missing(self.prepared, self.store.bundles.index())}
        units = []
        for unit in task.units:
            chains = tuple(chain for chain in unit.chains if chain.key in left)
            if chains:
                units.append(replace(unit, chains=chains))
        return replace(task, units=tuple(units)) if units else None

    def _finish(self, ref: Any, task: Task) -> list[Task]:
        """A task is over; returns what must be tried again: its units one by one, so that one cannot take the others with it."""
        try:
            found: Done = ray.get(ref)
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            again = task.attempt <= self.prepared.study.base.resources.max_failures
            self.experiment.event("bundle_failed", reason=reason, attempt=task.attempt, again=again)
            self.display.line(f"a bundle of {len(task.chains)} chains failed{', trying again' if again else ''}: {reason}")
            if again:
                return [Task((unit,), task.seconds, task.attempt + 1) for unit in task.units]
            self.failed |= {chain.key: reason for chain in task.chains}
            return []
        self.failed |= found.failed
        for key, why in found.failed.items():
            self.experiment.event("chain_failed", chain=key, reason=why)
        self.computed += sum(chain.generations + 1 for chain in task.chains if chain.key not in found.failed)
        return []

    def _summary(self, wall_s: float, on_chain: Callable[[BundledChain], None]) -> Summary:
        left = {chain.key for chain in missing(self.prepared, self.store.bundles.index())}
        complete = [chain for chain in self.prepared.bundles if chain.key not in left]
        for chain in complete:
            on_chain(chain)
        total = sum(chain.generations + 1 for chain in complete)
        stopped = bool(left) and self.stop.is_set()
        names = {chain.key: chain.id for chain in self.prepared.bundles}
        failures = tuple((f"chain {names[key]}", reason) for key, reason in self.failed.items())
        failed = 0 if stopped else len(left)
        return Summary(len(complete), failed, self.computed, total - self.computed, round(wall_s, 3), stopped, "", failures)
