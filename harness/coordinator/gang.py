"""Gangs: one Ray actor per rank, one process group, brought up once and used for branch after branch."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import socket
import sys
import time
import traceback
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from harness.compiler import use_code_folder
from harness.coordinator.failures import HOST_ADVICE, FailureKind, by_ray, classify
from harness.coordinator.processes import ProcessId, build_folder, clear_stale_locks, reap, this_process
from harness.coordinator.scheduler import Shape
from harness.errors import reason_of

MEMORY_GROWTH_BYTES = 4 * 2**30
"""A gang whose ranks have grown by this much since their first branch retires: ZeRO-3 keeps host memory at
every fit."""
PROGRESS_EVERY_S = 0.5
GPU_SHARE = 0.9
"""Of what is free of a GPU's memory, for models and batches: kernels and gaps need some too."""
BEAT_EVERY_S = 1.0
"""Seconds between the coordinator's looks at a gang's counters."""
REAP_REMOTE_S = 10.0
"""Seconds that a machine has to say that a gang's processes are gone; a machine that is lost says nothing."""


@dataclass(frozen=True)
class Outcome:
    """How a rank's part of a branch ended.

    Attributes:
        status: ``ok``, ``diverged``, ``busy``, ``stopped`` or ``failed``.
        error: One line, for ``failed``.
        kind: What failed.
        key: What somebody else works on, for ``busy``.
        rss_bytes: Resident memory of the rank.
    """

    status: str
    error: str = ""
    kind: FailureKind = "crash"
    key: str | None = None
    rss_bytes: int = 0


class _Observer:
    """Writes events and progress to the experiment's folder, where any process can read them."""

    def __init__(self, root: Path, experiment: str, branch: str) -> None:
        from harness.store import Experiment

        self.experiment, self.branch, self._last = Experiment(root, experiment), branch, 0.0
        self._phase, self._since = ("", ""), 0.0

    def event(self, kind: str, **fields: Any) -> None:
        self.experiment.event(kind, **fields)

    def progress(self, node: Any, phase: str, done: int, total: int, rate: float) -> None:
        now = time.monotonic()
        if (node.evaluation, phase) != self._phase:
            self._phase, self._since = (node.evaluation, phase), now
        elif done < total and now - self._last < PROGRESS_EVERY_S:
            return
        self._last = now
        state = {
            "generation": node.generation,
            "seed": node.grid_seed,
            "phase": phase,
            "done": done,
            "total": total,
            "rate": rate,
        }
        left = (now - self._since) * (total - done) / max(done, 1)
        self.experiment.write_progress(self.branch, {**state, "node": node.evaluation, "left_s": left})

    def loading(self) -> None:
        """Libraries and data are being loaded: no generation has begun."""
        empty = {"done": 0, "total": 1, "rate": 0.0, "left_s": 0.0}
        self.experiment.write_progress(self.branch, {"phase": "loading", **empty})


class _Rank:
    """One rank. Heavy imports happen in `join`, once the environment is right.

    Calls of the group ``control`` are answered by a thread of their own while `run` is at work.
    """

    def __init__(
        self, rank: int, shape: Shape, log: str, environment: Mapping[str, str], owner: str, lease_s: float
    ) -> None:
        from harness.learners.protocol import Control

        gc.disable()  # until everything is imported: it would look at a million objects again and again
        os.environ.update(environment)
        builds = build_folder()
        os.environ["TORCH_EXTENSIONS_DIR"] = str(builds)
        clear_stale_locks(builds)
        use_code_folder()
        # Libraries and C code write to the descriptors, so the descriptors go to the log file.
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        self.rank, self.shape = rank, shape
        self._rendezvous: Any = None
        self._ranks: Any = None
        self._data: dict[str, Any] = {}
        self._store: Any = None
        self._said: set[tuple[str, str]] = set()
        self._owner, self._lease_s = owner, lease_s
        self._leases: Any = None
        self._room: float | None = None
        self._control = Control()

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def describe(self) -> ProcessId:
        return this_process(ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def beat(self) -> int:
        """How much has been done: goes up as long as the rank moves."""
        return self._control.ticks

    @ray.method(concurrency_group="control")  # type: ignore[untyped-decorator]
    def stop(self, grace_s: float) -> None:
        self._control.stop(grace_s)

    def rendezvous(self) -> tuple[str, int]:
        """Rank 0 listens; returns where."""
        from harness.learners.language_model.distributed import open_store

        self._rendezvous, host, port = open_store(self.shape.ranks, ray.util.get_node_ip_address())
        return host, port

    def join(self, place: tuple[str, int] | None) -> None:
        """Join the process group at rank 0's rendezvous; a solo gang has none."""
        from harness.learners.protocol import SoloRanks

        if place is None:
            self._ranks = SoloRanks()
            return
        self._control.tick()
        from harness.learners.language_model.distributed import (
            TorchRanks,
            check_device,
            choose_interface,
            join_store,
        )

        check_device(self.shape.gpus)
        choose_interface(ray.util.get_node_ip_address())
        store = self._rendezvous or join_store(*place, self.shape.ranks)
        self._control.tick()
        self._ranks = TorchRanks(self.rank, self.shape.ranks, store, self.shape.cpus)
        self._control.tick()

    def run(self, plan: Any, root: str, silent: Mapping[str, str]) -> Outcome:
        """Run a branch; an error is logged here and told in one line."""
        import psutil

        try:
            end = self._run(plan, Path(root), silent)
            outcome = Outcome(end.status, key=end.key)
        except (Exception, SystemExit) as error:  # a package may end its process, as it thinks
            if by_ray(error):
                raise
            traceback.print_exc()
            kind, message = classify(error)
            outcome = Outcome("failed", message, kind)
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):  # a process in trouble may not even be able to look at itself
            outcome = replace(outcome, rss_bytes=psutil.Process().memory_info().rss)
        return outcome

    def _run(self, plan: Any, root: Path, silent: Mapping[str, str]) -> Any:
        from harness.chain import Site, run_branch
        from harness.learners import make_learner
        from harness.preparation import load_data
        from harness.science import key_of
        from harness.store import Leases, Owner, Store

        if self._store is None:  # one, which remembers what it has checked
            self._store = Store(root)
        store, experiment = self._store, plan.execution.experiment
        if self._leases is None:
            owner = None
            if self.rank == 0:
                about = {"experiment": experiment, "coordinator": plan.coordinator}
                owner = Owner(root / "leases" / "owners", self._lease_s, about, self._owner).start()
            self._leases = Leases(root, owner)
        self._leases.watch.believe(silent)  # else every gang would wait for the lease time once more
        observer = _Observer(root, experiment, plan.branch)
        if self.rank == 0:
            observer.loading()
        spec = plan.nodes[plan.order[0]].spec.fit
        name = key_of(spec.data.identity)
        if name not in self._data:
            last = dict(list(self._data.items())[-1:])  # cells of two data sets may take turns
            self._data = {**last, name: load_data(spec.data, store)}
        plan = self._sized(plan, observer)
        learner = make_learner(spec.learner.section.kind, self._data[name], self._ranks, plan.execution)
        if not gc.get_freeze_count():
            # What the imports have made stays: 400,000 objects less to look at for every collection,
            # of which a fit of a language model has two, 0.16 s each.
            gc.freeze()
            gc.enable()
        self._control.tick()
        try:
            return run_branch(
                plan,
                Site(learner, store, self._data[name], self._ranks, observer, self._leases, self._control),
            )
        finally:
            observer.experiment.clear_progress(plan.branch)

    def _sized(self, plan: Any, observer: _Observer) -> Any:
        """A branch with batches that every rank's memory holds.

        What is free is looked at once: later, what is taken is this rank's own.
        """
        if not plan.execution.batches:
            return plan
        if self._room is None:
            from harness.learners.language_model.sizes import LIBRARIES

            # A limit that the libraries alone have passed by now is none: SLURM may count and not enforce it.
            self._room = self.shape.memory - LIBRARIES if self.shape.memory > LIBRARIES else math.inf
            if self.shape.gpus:
                import torch

                self._room = GPU_SHARE * torch.cuda.mem_get_info()[0]
        execution = plan.execution.within(min(self._ranks.gather(self._room)))
        pairs = {
            name: (getattr(execution.resources, name), getattr(plan.execution.resources, name))
            for name in plan.execution.batches
        }
        lowered = [
            f"{name} {held} in place of {most}" for name, (held, most) in pairs.items() if held != most
        ]
        said = (plan.branch, ", ".join(lowered))
        if self.rank == 0 and lowered and said not in self._said:
            self._said.add(said)
            observer.event("batches_lowered", branch=plan.branch, batches=said[1])
        return replace(plan, execution=execution)


def death(error: BaseException) -> tuple[FailureKind, str]:
    """What the death of a rank's process means, from Ray's report of it."""
    if isinstance(error, ray.exceptions.RayTaskError):  # raised by what surrounds a branch
        return classify(error.cause if isinstance(error.cause, Exception) else error)
    text = str(error)
    line = reason_of(text)
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "memory monitor" in text or "low memory" in text:
        return "memory", f"{HOST_ADVICE} (Ray's memory monitor ended a rank)"
    if "node has died" in text or "node was terminated" in text or getattr(error, "preempted", False):
        return "preempted", "a machine of the gang is gone"
    return "crash", f"a rank died ({type(error).__name__}: {line})"


class GangHandle:
    """The coordinator's side of a gang."""

    def __init__(self, number: int, shape: Shape, logs: Path, owner: str, lease_s: float) -> None:
        """Ask Ray for the places and start the actors; nothing here waits.

        Args:
            number: The gang's number, for log files.
            shape: What it occupies.
            logs: Folder of the log files.
            owner: Under which rank 0 takes leases.
            lease_s: How long they hold without a sign of life.
        """
        self.number, self.shape, self.owner, self.lease_s = number, shape, owner, lease_s
        self.first_rss: list[int] | None = None
        bundle = {"CPU": float(shape.cpus)}
        bundle |= {"GPU": float(shape.gpus)} if shape.gpus else {}
        bundle |= {"memory": float(shape.memory)} if shape.memory else {}
        self._group: PlacementGroup = placement_group([bundle] * shape.ranks, strategy="PACK")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.logs = [
            logs / f"gang-{stamp}-{os.getpid()}-{number}-rank-{rank}.log" for rank in range(shape.ranks)
        ]
        self._actors = [self._actor(rank) for rank in range(shape.ranks)]
        self._joined: list[Any] | None = None
        self._place = self._actors[0].rendezvous.remote() if not shape.solo else None
        self._describing = [actor.describe.remote() for actor in self._actors]
        self.processes: list[ProcessId] = []
        self._beats: dict[Any, int] = {}
        self._counters, self._moved = [-1] * shape.ranks, time.monotonic()
        self._asked = self._moved

    def _actor(self, rank: int) -> Any:
        environment = {
            "OMP_NUM_THREADS": str(self.shape.cpus),
            "TOKENIZERS_PARALLELISM": "false",
            "WANDB_MODE": "disabled",
            "LOCAL_SIZE": str(self.shape.ranks),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        }
        if not self.shape.gpus:
            # Ray shows every GPU to an actor that asked for none.
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank)
        places = {"num_cpus": self.shape.cpus, "num_gpus": self.shape.gpus, "scheduling_strategy": strategy}
        options = {"max_restarts": 0, "max_task_retries": 0, **places}
        actor = ray.remote(concurrency_groups={"control": 1})(_Rank).options(**options)
        return actor.remote(rank, self.shape, str(self.logs[rank]), environment, self.owner, self.lease_s)

    def run(self, plan: Any, root: Path, silent: Mapping[str, str]) -> list[Any]:
        """Start a branch on every rank; returns one reference per rank.

        Args:
            plan: The branch.
            root: The store's root.
            silent: Owners of leases that the coordinator has found dead (`Watch.silent`).
        """
        self._moved = time.monotonic()
        if self._joined is None:
            self._joined = [actor.join.remote(self._place) for actor in self._actors]
        # Nothing waits here: Ray hands rank 0's address on, and an actor runs its calls in order. A failed
        # join is seen by the coordinator, which waits for these references too.
        runs = [actor.run.remote(plan, str(root), dict(silent)) for actor in self._actors]
        return [*self._joined, *runs]

    def stop(self, grace_s: float) -> None:
        """Ask all ranks to save and stop."""
        for actor in self._actors:
            actor.stop.remote(grace_s)

    def still_s(self) -> float:
        """For how long no rank has moved.

        A gang that waits for its places stands still, but does not hang: 0.
        """
        now = time.monotonic()
        self._learn_processes()
        if not self.processes:
            self._moved = now
            return 0.0
        ready, _ = (
            ray.wait(list(self._beats), num_returns=len(self._beats), timeout=0) if self._beats else ([], [])
        )
        for reference in ready:
            rank = self._beats.pop(reference)
            with contextlib.suppress(ray.exceptions.RayError):
                count = ray.get(reference)
                if count != self._counters[rank]:
                    self._counters[rank], self._moved = count, now
        if now - self._asked >= BEAT_EVERY_S:
            unanswered = set(self._beats.values())
            self._beats |= {
                actor.beat.remote(): rank for rank, actor in enumerate(self._actors) if rank not in unanswered
            }
            self._asked = now
        return now - self._moved

    def _learn_processes(self) -> None:
        """Who the ranks are, once all of them run."""
        if self.processes:
            return
        ready, _ = ray.wait(self._describing, num_returns=len(self._describing), timeout=0)
        if len(ready) == len(self._describing):
            with contextlib.suppress(ray.exceptions.RayError):
                self.processes = ray.get(self._describing)

    def outgrown(self, outcomes: list[Outcome]) -> bool:
        """Whether the gang's memory has grown too far since its first branch."""
        now = [outcome.rss_bytes for outcome in outcomes]
        if self.first_rss is None:
            self.first_rss = now
        return any(
            later - first > MEMORY_GROWTH_BYTES for first, later in zip(self.first_rss, now, strict=True)
        )

    def kill(self) -> None:
        """Kill all ranks; waits for nothing."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)

    def end(self, skip: Collection[str] = ()) -> dict[str, int]:
        """Kill all ranks, see that they are gone, and give the places back.

        Args:
            skip: Nodes that are lost, and cannot be asked.

        Returns:
            Node to how many processes its kernel has killed for want of memory since the gang started.
        """
        with contextlib.suppress(Exception):
            self._learn_processes()
        self.kill()
        killed = {}
        for node in {process.node for process in self.processes} - set(skip):
            there = [process for process in self.processes if process.node == node]
            now = self._reap(node, there)
            if now is not None:
                killed[node] = now - min(process.oom_kills for process in there)
        with contextlib.suppress(Exception):
            remove_placement_group(self._group)
        return killed

    @staticmethod
    def _reap(node: str, processes: list[ProcessId]) -> int | None:
        if processes[0].host == socket.gethostname():
            return reap(processes)
        with contextlib.suppress(Exception):  # the node may be gone, and its processes with it
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
            task = ray.remote(reap).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)
            counted: int = ray.get(task.remote(processes), timeout=REAP_REMOTE_S)
            return counted
        return None
