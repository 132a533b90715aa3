"""What every step of a branch stands on: rank 0's view, leases, events, progress, times, provenance."""

from __future__ import annotations

import platform
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from harness import __version__
from harness.chain.plan import Busy, Plan, Site
from harness.components import PACKAGES
from harness.learners.protocol import Stopped
from harness.proc import peak_memory, reset_peak_memory
from harness.records import Provenance
from harness.science import Node
from harness.store import Lease

T = TypeVar("T")


class Context:
    """A branch on its ranks.

    Every method that is not private is collective, or says nothing on ranks other than 0.
    """

    def __init__(self, plan: Plan, site: Site) -> None:
        """Nothing is computed yet."""
        self.plan = plan
        self.learner, self.store, self.data = site.learner, site.store, site.data
        self.ranks, self.observer = site.ranks, site.observer
        self.leases, self.control = site.leases, site.control
        self.since = 0.0
        self.seconds: dict[str, float] = {}
        self.rates: dict[str, float] = {}

    def check_stop(self) -> None:
        """Stop here where that is wished; collective."""
        if self.ranks.broadcast(self.control.stopping):
            raise Stopped

    @contextmanager
    def claim(self, key: str, node: Node) -> Iterator[None]:
        """Hold the lease of a key for the time of a block; collective.

        Raises:
            Busy: Somebody else holds it.
        """
        about = {
            "branch": self.plan.branch,
            "generation": node.generation,
            "seed": node.grid_seed,
            "coordinator": self.plan.coordinator,
        }
        lease = self.leases.acquire(key, about) if self.ranks.rank == 0 else None
        if not self.ranks.broadcast(lease is not None):
            raise Busy(key)
        whole = key == node.evaluation
        finished = False
        try:
            if whole:
                self.event("claimed", node, epoch=lease.epoch if lease else 0)
            yield
            finished = True
        finally:
            if lease is not None:
                self._release(lease, finished)
                if whole:
                    self.event("released", node, finished=finished)

    def _release(self, lease: Lease, finished: bool) -> None:
        try:
            self.leases.release(lease, finished)
        except OSError as error:  # a disk that is full must not hide why the block ended
            self.observer.event("release_failed", key=lease.key, reason=str(error))

    def measure_anew(self) -> None:
        """Times, rates and the peak of memory are a generation's own, not its gang's so far."""
        self.seconds, self.rates = {}, {}
        reset_peak_memory()
        self.learner.reset_peak()

    def on_rank_0(self, look: Callable[[], T]) -> T:
        """What rank 0 sees in the store, on every rank.

        Two ranks that look for themselves may see different things.
        """
        found: T = self.ranks.broadcast(look() if self.ranks.rank == 0 else None)  # type: ignore[assignment]
        return found

    def event(self, kind: str, node: Node, **fields: Any) -> None:
        """Something happened to a generation."""
        if self.ranks.rank == 0:
            self.observer.event(
                kind,
                branch=self.plan.branch,
                generation=node.generation,
                seed=node.grid_seed,
                fit=node.fit,
                evaluation=node.evaluation,
                attempt=self.plan.attempt,
                **fields,
            )

    def reporter(self, node: Node, phase: str) -> Any:
        """What a learner calls with its progress; the phase is shown from now on."""

        def report(done: int, total: int, rate: float) -> None:
            self.control.tick()
            if self.ranks.rank == 0:
                self.observer.progress(node, phase, done, total, rate)

        report(0, 1, 0.0)
        return report

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds of a block to a phase."""
        self.since = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - self.since

    def provenance(self) -> Provenance:
        """How, where and when this generation was computed."""
        found = dict(self.learner.describe())
        peak = found.get("peak_memory_bytes") or peak_memory()
        base = Provenance(
            host=socket.gethostname(),
            device=str(found["device"]),
            world_size=self.ranks.world_size,
            zero_stage=found["zero_stage"],
            threads=self.plan.execution.resources.threads,
            attention=found.get("attention"),
            activation_checkpointing=found.get("activation_checkpointing"),
            micro_batch=found.get("micro_batch"),
            sample_batch=found.get("sample_batch"),
            compiled=found.get("compiled"),
            attempt=self.plan.attempt,
            commit=self.plan.commit,
            coordinator=self.plan.coordinator,
            versions={
                "harness": __version__,
                "python": platform.python_version(),
                **PACKAGES,
                **found["versions"],
            },
        )
        return replace(
            base,
            seconds=dict(self.seconds),
            tokens_per_s=dict(self.rates),
            peak_memory_bytes=int(peak),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def execution_class(self) -> dict[str, Any]:
        """What can change bits without changing the science; a checkpoint names it."""
        found, resources = self.learner.describe(), self.plan.execution.resources
        return {
            "world_size": self.ranks.world_size,
            "zero_stage": found["zero_stage"],
            "device": found["device"],
            "micro_batch": resources.micro_batch,
            "threads": resources.threads,
            "attention": resources.attention,
            "activation_checkpointing": resources.activation_checkpointing,
            "compiled": resources.compile,
            "versions": {"harness": __version__, **found["versions"]},
        }
