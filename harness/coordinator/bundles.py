"""Bundles on Ray: slices of a study's cheap chains to tasks of even size, each committed as one file.

Runs of one study on one store share its slices by lease, as they share branches. Two studies that overlap are
sliced differently: what both work on at one time is computed twice, and committed as the same numbers.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray

from harness.coordinator.display import chain_name
from harness.coordinator.failures import by_ray, classify, store_trouble
from harness.coordinator.gang import death
from harness.coordinator.revision import source_revision
from harness.coordinator.scheduler import Capacity, Shape, at_once
from harness.coordinator.shapes import held_back
from harness.coordinator.summary import IDLE, Display, RunSummary
from harness.errors import StoreError
from harness.inventory.slices import MAX_CHAINS, Slice, make_slices, missing
from harness.science import Chain, key_of
from harness.stop import Stop
from harness.store import Experiment, Lease, Leases, Store
from harness.study import Prepared
from harness.terminal import counted

TASK_S = (1.0, 20.0)
"""Least and most estimated seconds of a task: what a kill costs, and what a commit costs."""
TASKS_PER_WORKER = 8
"""Tasks for each worker at least, so that all end at about the same time."""
TICK_S = 0.25
POLL_S = 1.0
"""Seconds between looks at the slices that others work on."""


@dataclass(frozen=True)
class BundleTask:
    """Slices that are computed in one go and committed as one file.

    Attributes:
        slices: The slices, or what is left of them.
        attempt: 1 for the first try.
        commit: Revision of the source, for provenance.
    """

    slices: tuple[Slice, ...]
    attempt: int = 1
    commit: str = ""

    @property
    def chains(self) -> list[Chain]:
        """The chains of all slices."""
        return [chain for part in self.slices for chain in part.chains]


@dataclass
class Done:
    """What a task has done: chains by key that failed, and why."""

    failed: dict[str, str] = field(default_factory=dict)


def run_task(task: BundleTask, root: str) -> Done:
    """Compute a task and commit it; on a worker."""
    import pyarrow as pa

    from harness.bundle import provenance, run_unit
    from harness.store.bundles import Bundles

    started, done, tables, chains = time.monotonic(), Done(), [], dict[str, int]()
    each: dict[str, float] = {}
    for unit in (unit for part in task.slices for unit in part.units):
        began = time.monotonic()
        try:
            tables.append(run_unit(unit))
            chains |= {chain.key: chain.generations for chain in unit.chains}
            share = round((time.monotonic() - began) / len(unit.chains), 6)
            each |= {chain.key: share for chain in unit.chains}
        except (Exception, SystemExit) as error:  # a package may end its process, as it thinks
            kind, reason = classify(error)
            if kind in ("store", "memory") or by_ray(error):
                raise
            done.failed |= {chain.key: reason for chain in unit.chains}
    if tables:
        rows = pa.concat_tables(tables, promote_options="default")
        how = provenance(started, task.commit) | {"chain_seconds": each}
        Bundles(Path(root) / "bundles").commit(rows, chains, how)
    return done


class BundleRun:
    """The bundled part of a run."""

    def __init__(
        self,
        prepared: Prepared,
        store: Store,
        experiment: Experiment,
        leases: Leases,
        display: Display,
        stop: Stop,
        idle_s: float | None = None,
    ) -> None:
        """Look at the store.

        Args:
            prepared: The study.
            store: The store, with the study's data.
            experiment: The experiment's folder.
            leases: As this run sees them.
            display: Shows progress.
            stop: Set from outside to end early.
            idle_s: End after this many seconds in which all that is left is being computed by others; None to
                wait for them.
        """
        self.prepared, self.store, self.experiment, self.leases = prepared, store, experiment, leases
        self.display, self.stop, self.idle_s = display, stop, idle_s
        self.failed: dict[str, str] = {}
        self.computed = 0
        self._revision = source_revision()
        self._wanted = {key: chain.generations for key, chain in prepared.bundled.items()}
        self.left = {chain.key for chain in missing(prepared, store.bundles.index())}
        slices = make_slices(prepared, store) if self.left else []
        self.ready = deque(part for whole in slices if (part := whole.only(self.left)))
        # Two studies that overlap are sliced differently, so leases do not keep them apart. They begin in
        # different places, and find done what the other one has come by.
        self.ready.rotate(int(key_of({"experiment": experiment.name}), 16) % max(1, len(self.ready)))
        self.again: deque[BundleTask] = deque()
        self.held: list[Slice] = []
        """Slices that somebody else works on."""
        self.running: dict[Any, BundleTask] = {}
        self._mine: dict[str, Lease] = {}
        self._open: Counter[str] = Counter()
        """How many tasks of this run, running or to be tried again, have a part of a slice."""
        self._waits_for: set[str] = set()
        self._polled = self._busy = time.monotonic()

    def run(self, machines: Sequence[Capacity]) -> RunSummary:
        """Compute the chains that the store has not, and wait for those that others compute.

        Args:
            machines: A task runs on each of their CPUs, or on as many as their memory holds.

        Raises:
            StoreError: The store cannot be written any more.
        """
        started, total, reason = time.monotonic(), len(self.prepared.bundles), ""
        most = max((part.bytes for part in self.ready), default=0)
        place = Shape(1, 1, 0, True, most)
        workers = max(1, at_once(place, machines))
        for line in held_back([place], machines, "bundles"):
            self.display.line(line)
        target = min(
            max(sum(part.seconds for part in self.ready) / (workers * TASKS_PER_WORKER), TASK_S[0]), TASK_S[1]
        )
        self.experiment.event("bundles_started", chains=len(self.left), slices=len(self.ready))
        remote = ray.remote(num_cpus=1, max_retries=0)(run_task)
        try:
            while (self.ready or self.again or self.held or self.running) and not self.stop.is_set():
                while len(self.running) < workers and (task := self._next(target)) is not None:
                    self.running[remote.remote(task, str(self.store.root))] = task
                if self._idle():
                    reason = IDLE
                    break
                self._wait()
                self._poll()
                self.display.update(total - len(self.left), total, [])
        finally:
            for (
                ref
            ) in self.running:  # what a task has done so far is lost: at most a few seconds, by its size
                ray.cancel(ref, force=True)
            for key in list(self._mine):
                with contextlib.suppress(OSError):  # a disk that is full must not hide why the run ends
                    self._release(key)
        return self._summary(time.monotonic() - started, reason)

    # --- whose is what --------------------------------------------------------------------------------------

    def _next(self, target: float) -> BundleTask | None:
        """A task of about so many seconds, of slices that nobody else works on.

        Their leases are this run's.
        """
        if self.again:
            return self.again.popleft()
        taken: list[Slice] = []
        while self.ready and sum(part.seconds for part in taken) < target:
            part = self.ready[0].only(self.left)
            if (
                part is not None
                and taken
                and sum(len(p.chains) for p in taken) + len(part.chains) > MAX_CHAINS
            ):
                break
            self.ready.popleft()
            if part is None:
                continue
            lease = self.leases.acquire(part.key, {"chains": len(part.chains)})
            if lease is None:
                self._hold(part)
                continue
            self._mine[part.key] = lease
            self._open[part.key] += 1
            taken.append(part)
        if not taken:
            return None
        self._look()  # whoever had a lease before may have committed after this run's last look
        wanted = []
        for part in taken:
            if (still := part.only(self.left)) is not None:
                wanted.append(still)
            else:
                self._close(part.key)
        return BundleTask(tuple(wanted), commit=self._revision) if wanted else self._next(target)

    def _hold(self, part: Slice) -> None:
        """Put a slice aside that somebody else works on."""
        self.held.append(part)
        view = self.leases.look(part.key)
        who = self.leases.watch.identity(view.owner) if view.owner else {}
        host = str(who.get("host", "somebody else"))
        if host not in self._waits_for:
            self._waits_for.add(host)
            self.display.line(f"some chains wait: {host} computes them")

    def _close(self, key: str) -> None:
        """A task that had a part of a slice is over."""
        self._open[key] -= 1
        if not self._open[key]:
            self._release(key)

    def _release(self, key: str) -> None:
        # As finished, whatever came of it: a lease that is taken on an old view of the folder costs a second
        # computation at most.
        self.leases.release(self._mine.pop(key), finished=True)

    def _look(self) -> None:
        """Take note of what anybody has committed."""
        places = self.store.bundles.news()
        self.left -= {key for key, place in places.items() if place.generations >= self._wanted.get(key, 0)}

    def _poll(self) -> None:
        """Take up slices whose owner has given them back or is dead."""
        if not self.held or time.monotonic() - self._polled < POLL_S:
            return
        self._look()
        held, self.held = self.held, []
        for part in held:
            if (still := part.only(self.left)) is None:
                continue
            if self.leases.held(self.leases.look(part.key)):
                self.held.append(still)
            else:
                self.ready.append(still)
        self._polled = time.monotonic()

    def _idle(self) -> bool:
        """Whether others have been computing all that is left for so long that this run is not needed."""
        if self.running or self.ready or self.again:
            self._busy = time.monotonic()
        return self.idle_s is not None and time.monotonic() - self._busy >= self.idle_s

    # --- what becomes of a task -----------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until a task is over, or a moment."""
        if not self.running:
            if self.held:
                self.stop.wait(TICK_S)
            return
        finished, _ = ray.wait(list(self.running), num_returns=1, timeout=TICK_S)
        for ref in finished:
            self._finish(ref, self.running.pop(ref))

    def _finish(self, ref: Any, task: BundleTask) -> None:
        """A task is over.

        Where its worker died, its units are tried one by one, so that one cannot take the others with it.
        """
        try:
            found: Done = ray.get(ref)
        except ray.exceptions.RayError as error:
            kind, reason = death(error)
            trouble = store_trouble(self.store.root) if kind == "store" else None
            if trouble:
                raise StoreError(
                    f"{trouble} ({reason}); nothing that was committed is lost: make room, and run the "
                    "command again"
                ) from None
            alone = [replace(part, units=(unit,)) for part in task.slices for unit in part.units]
            again = [part for part in alone if task.attempt <= self._failures_of(part)]
            self.experiment.event("bundle_failed", reason=reason, attempt=task.attempt, again=bool(again))
            what = f"a bundle of {counted(len(task.chains), 'chain')} failed"
            self.display.line(f"{what}{', trying again' if again else ''}: {reason}")
            for part in again:
                self._open[part.key] += 1
                self.again.append(BundleTask((part,), task.attempt + 1, task.commit))
            over = [part for part in alone if task.attempt > self._failures_of(part)]
            self._fail({chain.key: reason for part in over for chain in part.chains})
        else:
            self._fail(found.failed)
            self.computed += sum(
                chain.generations + 1 for chain in task.chains if chain.key not in found.failed
            )
            self.left -= {chain.key for chain in task.chains} - set(found.failed)
            cells = len({chain.cell for chain in task.chains})
            done, total = len(self.prepared.bundles) - len(self.left), len(self.prepared.bundles)
            self.display.line(
                f"[{done}/{total} chains] {len(task.chains)} in bundles of {counted(cells, 'cell')}"
            )
        for part in task.slices:
            self._close(part.key)

    def _failures_of(self, part: Slice) -> int:
        """How often a slice may fail and be tried again: as often as any of its cells allows."""
        cells = self.prepared.study.cells
        return max(cells[chain.cell].config.resources.max_failures for chain in part.chains)

    def _fail(self, failed: Mapping[str, str]) -> None:
        """Give chains up, by key, and write down why."""
        self.failed |= failed
        for key, reason in failed.items():
            self.experiment.event("chain_failed", chain=key, reason=reason)

    def _summary(self, wall_s: float, reason: str) -> RunSummary:
        left = {chain.key for chain in missing(self.prepared, self.store.bundles.index())}
        complete = [chain for chain in self.prepared.bundles if chain.key not in left]
        total = sum(last + 1 for key, last in self._wanted.items() if key not in left)
        stopped = bool(left) and (self.stop.is_set() or bool(reason))
        failures = tuple(
            (chain_name(self.prepared, self.prepared.bundled[key]), reason)
            for key, reason in self.failed.items()
        )
        failed = 0 if stopped else len(self.prepared.bundles) - len(complete)
        return RunSummary(
            len(complete),
            failed,
            self.computed,
            total - self.computed,
            round(wall_s, 3),
            stopped,
            reason if left else "",
            failures,
        )
