"""Gangs: one Ray actor per rank, one process group, brought up once and used for branch after branch."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from harness.coordinator.scheduler import Shape
from harness.errors import HarnessError

MEMORY_GROWTH_BYTES = 4 * 2**30
"""A gang whose ranks have grown by this much since their first branch retires: ZeRO-3 keeps host memory at every fit."""
PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a rank's part of a branch ended.

    Attributes:
        status: ``ok``, ``diverged`` or ``failed``.
        error: One line, for ``failed``.
        retry: Whether another try can help: not where the input is wrong.
        rss_bytes: Resident memory of the rank.
    """

    status: str
    error: str = ""
    retry: bool = True
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
        if done < total and now - self._last < PROGRESS_EVERY_S:
            return
        self._last = now
        state = {"generation": node.generation, "seed": node.seed, "phase": phase, "done": done, "total": total, "rate": rate}
        left = (now - self._since) * (total - done) / max(done, 1)
        self.experiment.write_progress(self.branch, {**state, "node": node.evaluation, "left_s": left})


class _Rank:
    """One rank. Heavy imports happen in `join`, once the environment is right."""

    def __init__(self, rank: int, shape: Shape, log: str, environment: Mapping[str, str]) -> None:
        os.environ.update(environment)
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

    def describe(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "host": socket.gethostname()}

    def rendezvous(self) -> tuple[str, int]:
        """Rank 0 listens; returns where."""
        from harness.learners.language_model.distributed import open_store

        self._rendezvous, host, port = open_store(self.shape.ranks, ray.util.get_node_ip_address())
        return host, port

    def join(self, place: tuple[str, int] | None) -> None:
        """Join the process group at rank 0's rendezvous; a solo gang has none."""
        from harness.learners.base import SoloRanks

        if place is None:
            self._ranks = SoloRanks()
            return
        from harness.learners.language_model.distributed import TorchRanks, join_store

        store = self._rendezvous or join_store(*place, self.shape.ranks)
        self._ranks = TorchRanks(self.rank, self.shape.ranks, store, self.shape.cpus)

    def run(self, plan: Any, root: str, data_key: str | None) -> Outcome:
        """Run a branch; an error is logged here and told in one line."""
        try:
            status = self._run(plan, Path(root), data_key)
            outcome = Outcome(status)
        except HarnessError as error:
            traceback.print_exc()
            outcome = Outcome("failed", str(error), retry=False)
        except Exception as error:
            traceback.print_exc()
            outcome = Outcome("failed", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        sys.stdout.flush()
        sys.stderr.flush()
        import psutil

        return Outcome(outcome.status, outcome.error, outcome.retry, psutil.Process().memory_info().rss)

    def _run(self, plan: Any, root: Path, data_key: str | None) -> str:
        from harness.chain import run_branch
        from harness.learners import make_learner
        from harness.store import Store
        from harness.study import load_data

        store = Store(root)
        name = plan.config.data.model_dump_json()
        if name not in self._data:
            self._data = {name: load_data(plan.config, store, data_key)}
        learner = make_learner(plan.config, self._data[name], self._ranks)
        observer = _Observer(root, plan.config.experiment, plan.branch)
        try:
            return run_branch(plan, learner, store, self._data[name], self._ranks, observer)
        finally:
            observer.experiment.clear_progress(plan.branch)


class GangHandle:
    """The coordinator's side of a gang."""

    def __init__(self, number: int, shape: Shape, logs: Path) -> None:
        """Ask Ray for the places and start the actors; nothing here waits.

        Args:
            number: The gang's number, for log files.
            shape: What it occupies.
            logs: Folder of the log files.
        """
        self.number, self.shape = number, shape
        self.first_rss: list[int] | None = None
        bundle = {"CPU": float(shape.cpus), **({"GPU": float(shape.gpus)} if shape.gpus else {})}
        self._group: PlacementGroup = placement_group([bundle] * shape.ranks, strategy="PACK")
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.logs = [logs / f"gang-{stamp}-{os.getpid()}-{number}-rank-{rank}.log" for rank in range(shape.ranks)]
        self._actors = [self._actor(rank) for rank in range(shape.ranks)]
        self._joined: list[Any] | None = None
        self._place = self._actors[0].rendezvous.remote() if not shape.solo else None

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
        return ray.remote(_Rank).options(**options).remote(rank, self.shape, str(self.logs[rank]), environment)

    def run(self, plan: Any, root: Path, data_key: str | None) -> list[Any]:
        """Start a branch on every rank; returns one reference per rank."""
        if self._joined is None:
            self._joined = [actor.join.remote(self._place) for actor in self._actors]
        # Nothing waits here: Ray hands rank 0's address on, and an actor runs its calls in order. A failed join is seen by the
        # coordinator, which waits for these references too.
        runs = [actor.run.remote(plan, str(root), data_key) for actor in self._actors]
        return [*self._joined, *runs]

    def outgrown(self, outcomes: list[Outcome]) -> bool:
        """Whether the gang's memory has grown too far since its first branch."""
        now = [outcome.rss_bytes for outcome in outcomes]
        if self.first_rss is None:
            self.first_rss = now
        return any(later - first > MEMORY_GROWTH_BYTES for first, later in zip(self.first_rss, now, strict=True))

    def end(self) -> None:
        """Kill all ranks and give the places back."""
        for actor in self._actors:
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)
        with contextlib.suppress(Exception):
            remove_placement_group(self._group)
