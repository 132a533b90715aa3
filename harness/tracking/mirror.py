"""One function turns a chain's records into one W&B run; one thread is the only writer.

A chain is mirrored when it is complete, all generations in one go, so a run that was killed and continued sends nothing twice and
leaves no half-written offline file behind. A failure here is kept for a warning at the end; it never reaches the chains.
"""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import HarnessError
from harness.files import read_json, write_json
from harness.records import Record
from harness.store import Leases

Mode = Literal["offline", "online"]
CURVE_POINTS = 200
"""Points of a loss curve that are sent at most."""


@dataclass(frozen=True)
class GenerationView:
    """One generation as it is mirrored."""

    record: Record
    loss: Sequence[float | None]
    texts: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class ChainView:
    """One chain as it is mirrored.

    Attributes:
        experiment: W&B's group.
        chain: The chain's id.
        project: W&B's project.
        entity: W&B's entity; None for the default.
        config: The cell, the seed and the axes.
        generations: In order, shared ones included.
    """

    experiment: str
    chain: str
    project: str
    entity: str | None
    config: Mapping[str, Any]
    generations: Sequence[GenerationView]

    def digest(self, mode: str) -> str:
        """Changes when there is something new to send."""
        text = "/".join([mode, self.project, self.entity or "", *(g.record.evaluation for g in self.generations)])
        return hashlib.sha256(text.encode()).hexdigest()


def run_id(experiment: str, chain: str) -> str:
    """The W&B id of a chain's run."""
    return f"{experiment}-{chain}"


def mirror_chain(view: ChainView, mode: Mode, folder: Path) -> None:
    """Write one chain as one W&B run; what was sent before is not sent again.

    Args:
        view: The chain.
        mode: ``offline`` writes W&B's own files under ``folder``; ``online`` sends.
        folder: The experiment's ``wandb/`` folder.
    """
    identity = run_id(view.experiment, view.chain)
    marker = folder / "mirrored" / f"{view.chain}.json"
    sent: dict[str, Any] = read_json(marker) if marker.exists() else {}
    if sent.get("digest") == view.digest(mode):
        return
    first = 0
    if mode == "offline":
        for old in (folder / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(old)
    elif sent.get("mode") == "online":
        first = int(sent["generations"])
    _write_run(view, identity, mode, folder, first)
    marker.parent.mkdir(parents=True, exist_ok=True)
    write_json(marker, {"digest": view.digest(mode), "mode": mode, "generations": len(view.generations)})


def _write_run(view: ChainView, identity: str, mode: Mode, folder: Path, first: int) -> None:
    import wandb

    if mode == "online" and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
        raise HarnessError("not logged in to W&B: run `wandb login`, or set tracking.wandb: offline")
    folder.mkdir(parents=True, exist_ok=True)
    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, silent=True)
    run = wandb.init(
        mode=mode,
        reinit="create_new",
        id=identity,
        name=view.chain,
        group=view.experiment,
        job_type="chain",
        project=view.project,
        entity=view.entity,
        dir=str(folder),
        config=dict(view.config),
        settings=settings,
        resume="allow" if mode == "online" else None,
    )
    try:
        run.define_metric("generation")
        run.define_metric("*", step_metric="generation")
        run.define_metric("fit_step")
        run.define_metric("loss/*", step_metric="fit_step")
        for generation in view.generations[first:]:
            record = generation.record
            values = {name: value for name, value in record.metrics.items() if value is not None}
            run.log({"generation": record.generation, "fit": record.generation + 1, "status": record.status, **values})
            stride = max(1, -(-len(generation.loss) // CURVE_POINTS))
            for step, loss in list(enumerate(generation.loss, start=1))[::stride]:
                if loss is not None:
                    run.log({"fit_step": step, f"loss/generation_{record.generation}": loss})
        rows = [[g.record.generation, t["prompt"], t["continuation"]] for g in view.generations for t in g.texts]
        if rows:
            run.log({"samples": wandb.Table(columns=["generation", "prompt", "continuation"], data=rows)})
        last = view.generations[-1].record
        run.summary.update({name: value for name, value in last.metrics.items() if value is not None})
        run.summary.update({"generations": len(view.generations), "status": last.status})
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


class Mirror:
    """The one writer: chains are queued and mirrored by a thread."""

    def __init__(self, mode: Literal["offline", "online", "disabled"], folder: Path, leases: Leases) -> None:
        """Start the thread, unless tracking is disabled.

        Args:
            mode: ``tracking.wandb``.
            folder: The experiment's ``wandb/`` folder.
            leases: Several coordinators may complete the same chain; one of them sends it.
        """
        self.mode, self.folder, self.leases = mode, folder, leases
        self.errors: list[str] = []
        self._mirrored = 0
        self._queue: queue.SimpleQueue[ChainView | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if mode != "disabled":
            self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)
            self._thread.start()

    def add(self, view: ChainView) -> None:
        """Queue a complete chain."""
        if self._thread is not None:
            self._queue.put(view)

    def _work(self) -> None:
        while (view := self._queue.get()) is not None:
            try:
                assert self.mode != "disabled"
                self._mirror(view, self.mode)
            except BaseException as error:  # a tracker must never stop a chain, whatever it raises
                reason = (str(error).splitlines() or [""])[0]
                self.errors.append(f"{view.chain}: {type(error).__name__}: {reason}")
            self._mirrored += 1

    def _mirror(self, view: ChainView, mode: Mode) -> None:
        key = f"wandb-{run_id(view.experiment, view.chain)}"
        lease = self.leases.acquire(key)
        if lease is None:
            return
        try:
            mirror_chain(view, mode, self.folder)
        finally:
            self.leases.release(lease, finished=True)

    def close(self, timeout_s: float = 120.0) -> list[str]:
        """Wait for what is queued, as long as there is progress.

        Args:
            timeout_s: Give up after this long without one more chain.

        Returns:
            What went wrong, one line each.
        """
        if self._thread is not None:
            self._queue.put(None)
            while self._thread.is_alive():
                before = self._mirrored
                self._thread.join(timeout_s)
                if self._thread.is_alive() and self._mirrored == before:
                    self.errors.append(f"W&B took no chain for {timeout_s:.0f} s; run the command again to send the rest")
                    break
        return self.errors
