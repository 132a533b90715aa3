"""The recursive algorithm: for every generation build the training set, fit, sample, evaluate, commit.

`run_branch` is the same under every engine, on a laptop and on a cluster. Everything it needs it asks the store for, and what the
store lacks is computed first, so it goes on wherever an earlier process stopped: inside a fit from its checkpoint, inside a
sampling from its shards, inside an evaluation from its pieces. What is being computed is leased, so that others on the same store
wait for it or do something else.
"""

from __future__ import annotations

import platform
import resource
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from harness import __version__
from harness.config.schema import Config, LanguageModel
from harness.curation import accepted
from harness.data.base import RealData
from harness.errors import DamagedError, LearnerError
from harness.files import checksum, write_json
from harness.learners.base import (
    Control,
    EvaluateTask,
    FitOutcome,
    FitTask,
    Learner,
    Ranks,
    SampleTask,
    Stopped,
    TrainingSet,
)
from harness.lineage import Node
from harness.records import EXTERNAL, REAL, Examples, Provenance, Record, Status, finite_or_none
from harness.regimes import draw
from harness.store import Lease, Leases, Store, Workplace

T = TypeVar("T")
MAX_OVERSAMPLING = 20
"""A filtered corpus is sampled until enough examples pass, at most this many times the number needed."""


@dataclass(frozen=True)
class Plan:
    """One branch with all that is needed to run it; travels to the gang.

    Attributes:
        branch: The branch's id.
        config: The cell.
        order: The branch's nodes, in order.
        nodes: These and all nodes they descend from.
        specs: Key to spec, for everything that may be committed.
        examples: Corpus key to the number of examples that the grid reads.
        external: Path and fingerprint of the fixed corpus; None where there is none.
        attempt: 1 for the first try.
        commit: Revision of the source, for provenance.
        coordinator: Who scheduled it, for provenance.
    """

    branch: str
    config: Config
    order: tuple[str, ...]
    nodes: Mapping[str, Node]
    specs: Mapping[str, Mapping[str, Any]]
    examples: Mapping[str, int]
    external: tuple[str, str] | None = None
    attempt: int = 1
    commit: str = ""
    coordinator: str = ""


class Busy(Exception):
    """Somebody else, who may be alive, works on a key that is needed; raised on every rank."""

    def __init__(self, key: str) -> None:
        """Keep the key."""
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class End:
    """How a branch ended.

    Attributes:
        status: ``ok``: all its generations are committed; ``diverged``: one has no finite model, and later ones do not exist;
            ``busy``: somebody else works on what is needed; ``stopped``: it was asked to stop, and saved what it had.
        key: What somebody else works on, for ``busy``.
    """

    status: Literal["ok", "diverged", "busy", "stopped"]
    key: str | None = None


class Observer(Protocol):
    """Hears what a branch does; called on rank 0 only."""

    def event(self, kind: str, **fields: Any) -> None:
        """Something happened that must be provable afterwards."""
        ...

    def progress(self, node: Node, phase: str, done: int, total: int, rate: float) -> None:
        """A phase has come so far."""
        ...


def run_branch(
    plan: Plan,
    learner: Learner,
    store: Store,
    data: RealData,
    ranks: Ranks,
    observer: Observer,
    leases: Leases,
    control: Control,
) -> End:
    """Run a branch of the lineage, generation by generation.

    Args:
        plan: The branch.
        learner: The cell's learner, on every rank.
        store: The store, on every rank.
        data: The real distribution.
        ranks: The ranks that run this together.
        observer: Hears of events and progress.
        leases: Taken on rank 0 for what is computed.
        control: Through which the branch is asked to stop.
    """
    branch = _Branch(plan, learner, store, data, ranks, observer, leases, control)
    try:
        for key in plan.order:
            node = plan.nodes[key]
            if not branch.complete(node):
                with branch.claim(node.evaluation, node):
                    branch.check_stop()
                    status = branch.fit(node)
                    if status == "ok":
                        branch.sample(node, plan.examples[node.corpus])
                    branch.evaluate(node, status)
            if branch.status(node) == "diverged":
                return End("diverged")
    except Busy as busy:
        return End("busy", busy.key)
    except Stopped:
        return End("stopped")
    return End("ok")


class _Branch:
    """The four steps of a generation; each returns at once where the store has its result."""

    def __init__(
        self,
        plan: Plan,
        learner: Learner,
        store: Store,
        data: RealData,
        ranks: Ranks,
        observer: Observer,
        leases: Leases,
        control: Control,
    ) -> None:
        self.plan, self.learner, self.store = plan, learner, store
        self.data, self.ranks, self.observer = data, ranks, observer
        self.leases, self.control = leases, control
        self._since = 0.0
        self._training: tuple[str, TrainingSet] | None = None
        self.seconds: dict[str, float] = {}
        self.rates: dict[str, float] = {}

    # --- build the training set ------------------------------------------------------------------------------------------

    def training_set(self, node: Node) -> TrainingSet:
        """Every training example of a node, with its origin; collective, and remembered for the node's evaluation."""
        if self._training is None or self._training[0] != node.evaluation:
            self._training = (node.evaluation, self._build(node))
        return self._training[1]

    def _build(self, node: Node) -> TrainingSet:
        drawn = draw(node.recipe, self.data.num_examples, node.seed, node.generation)
        sources: dict[int, Examples] = {}
        for part in node.recipe.parts:
            if part.origin == REAL:
                sources[REAL] = self.data.real(node.seed, max(part.offset + part.count, self.data.num_examples))
            elif part.origin == EXTERNAL:
                sources[EXTERNAL] = self._external()
            else:
                sources[part.origin] = self.filtered(self.plan.nodes[node.corpora[part.origin]], part.count)
        width = max(source.values.shape[1] for source in sources.values())
        values = np.zeros((len(drawn), width), dtype=next(iter(sources.values())).values.dtype)
        lengths = np.zeros(len(drawn), dtype=np.int32)
        for origin, source in sources.items():
            rows = np.flatnonzero(drawn.origin == origin)
            chosen = source.take(drawn.index[rows])
            values[rows, : chosen.values.shape[1]] = chosen.values
            lengths[rows] = chosen.lengths
        return TrainingSet(Examples(values, lengths), drawn)

    def _external(self) -> Examples:
        from harness.data.text import TextCorpus

        assert self.plan.external is not None and isinstance(self.data, TextCorpus)
        path, fingerprint = self.plan.external
        found = self.data.external(path)
        if found.fingerprint != fingerprint:
            raise LearnerError(f"regime.source: {path} has changed since this run began; run the command again")
        return found.examples

    def filtered(self, node: Node, count: int) -> Examples:
        """The first ``count`` examples of a node's corpus that pass the filters; samples more of it where too few do."""
        filters, raw = self.plan.config.filters, count
        while True:
            examples = self.corpus(node, raw)
            index = accepted(filters, examples)
            if len(index) >= count:
                return examples.take(index[:count])
            if raw >= MAX_OVERSAMPLING * count:
                raise LearnerError(
                    f"filters: {len(index)} of {raw} examples of generation {node.generation} pass, {count} are needed; "
                    "the filters reject nearly everything this model writes"
                )
            raw = min(MAX_OVERSAMPLING * count, max(raw + raw // 2, int(1.1 * raw * count / max(len(index), 1))))

    def corpus(self, node: Node, count: int) -> Examples:
        """The first ``count`` raw examples of a node's corpus; a damaged shard is sampled again."""
        for _ in range(3):
            self.sample(node, count)
            try:
                found = self.store.corpora.load(node.corpus, count) if self.ranks.rank == 0 else None
            except DamagedError as error:
                found = None
                self.observer.event("damaged", corpus=node.corpus, reason=str(error))
            if self.ranks.broadcast(found is not None):
                return found if found is not None else self.store.corpora.load(node.corpus, count)
        raise DamagedError(f"corpus {node.corpus} was sampled again and is still damaged; check the disk")

    # --- fit -------------------------------------------------------------------------------------------------------------

    def fit(self, node: Node) -> Status:
        """Make sure that a node's fit is committed and has its weights."""
        if self._has_fit(node):
            return self._fit_status(node)
        with self.claim(node.fit, node):
            if not self._has_fit(node):
                self._fit(node)
        return self._fit_status(node)

    def _has_fit(self, node: Node) -> bool:
        def look() -> bool:
            if not self.store.sound("fits", node.fit):
                return False
            diverged = self.store.json("fits", node.fit, "fit.json")["status"] == "diverged"
            return diverged or self.store.has_weights(node.fit)

        return self.on_rank_0(look)

    def _fit(self, node: Node) -> None:
        refit = self.on_rank_0(lambda: self.store.sound("fits", node.fit))
        if node.init_from is not None:
            self.fit(self.plan.nodes[node.init_from])
        training = self.training_set(node)
        staged = self.on_rank_0(lambda: self.store.stage(node.fit))
        parent = None if node.init_from is None else self.store.path("fits", self.plan.nodes[node.init_from].fit)
        resume = self._adopt(node, staged)
        self._event("fit_started", node, examples=len(training.drawn))
        with self._timed("fit"):
            outcome = self.learner.fit(
                FitTask(
                    training=training,
                    seed=node.seed,
                    generation=node.generation,
                    init=node.init,
                    init_from=parent,
                    budget=node.recipe.budget,
                    out=staged,
                    report=self._reporter(node, "fit"),
                    control=self.control,
                    resume=resume,
                    checkpoint_s=self.plan.config.resources.checkpoint_s,
                    save=lambda step, write: self._save_checkpoint(node, staged, step, write),
                )
            )
        self.rates["fit"] = outcome.computed / max(self.seconds["fit"], 1e-9)
        if self.ranks.rank == 0:
            self._commit_fit(node, staged, training, outcome, refit=refit)
        self.ranks.barrier()

    def _execution_class(self) -> dict[str, Any]:
        """What can change bits without changing the science; a checkpoint names it."""
        found, resources = self.learner.describe(), self.plan.config.resources
        return {
            "world_size": self.ranks.world_size,
            "zero_stage": found["zero_stage"],
            "device": found["device"],
            "micro_batch": self.plan.config.micro_batch,
            "threads": resources.threads,
            "versions": dict(found["versions"]),
        }

    def _adopt(self, node: Node, staged: Path) -> Path | None:
        """The checkpoint to go on from, on every rank; says what could not be used and why."""
        own = self._execution_class()

        def usable(about: Mapping[str, Any]) -> str | None:
            for name, what in (("world_size", "ranks"), ("zero_stage", "ZeRO stage")):
                if about[name] != own[name]:
                    return f"it was written with {what} {about[name]}, this gang has {own[name]}; DeepSpeed cannot convert it"
            return None

        def look() -> tuple[Path | None, float]:
            found, reasons = Workplace(staged).adopt(usable)
            for reason in reasons:
                self._event("checkpoint_refused", node, reason=reason, again_from_step=found.step if found else 0)
            if found is None:
                return None, 0.0
            other = {name: found.about[name] for name in own if found.about[name] != own[name]}
            # Another device or library version goes on, in another execution class: provenance must not hide it.
            self._event("resumed", node, step=found.step, **({"other_class": other} if other else {}))
            return found.folder, float(found.about["seconds"])

        folder, seconds = self.on_rank_0(look)
        self.seconds["fit"] = seconds
        return folder

    def _save_checkpoint(self, node: Node, staged: Path, step: int, write: Callable[[Path], Sequence[Path]]) -> None:
        """Every rank writes and hashes its own files; rank 0 makes them count."""
        workplace = Workplace(staged)
        folder = self.on_rank_0(lambda: workplace.begin(step))
        own = {str(path.relative_to(folder)): checksum(path) for path in write(folder)}
        sums = {name: entry for share in self.ranks.gather(own) for name, entry in share.items()}
        if self.ranks.rank == 0:
            seconds = self.seconds.get("fit", 0.0) + time.monotonic() - self._since
            workplace.commit(step, {**self._execution_class(), "seconds": seconds}, sums)
            self._event("checkpointed", node, step=step)
        self.ranks.barrier()
        self.control.tick()

    def _commit_fit(self, node: Node, staged: Path, training: TrainingSet, outcome: FitOutcome, refit: bool) -> None:
        if refit:
            self.store.restore_weights(node.fit, staged)
            self.observer.event("weights_restored", fit=node.fit)
            return
        save_file({"origin": training.drawn.origin, "index": training.drawn.index}, staged / "training_set.safetensors")
        write_json(staged / "fit.json", {"status": outcome.status, "tokens": outcome.tokens, "log": outcome.log})
        write_json(staged / "provenance.json", self._provenance().to_json())
        won = self.store.commit("fits", node.fit, staged, self.plan.specs[node.fit])
        self._event("fit_committed" if won else "fit_discarded", node)

    def _fit_status(self, node: Node) -> Status:
        status: Status = self.on_rank_0(lambda: self.store.json("fits", node.fit, "fit.json")["status"])
        return status

    # --- sample ----------------------------------------------------------------------------------------------------------

    def sample(self, node: Node, count: int) -> None:
        """Make sure that a node's corpus has at least ``count`` examples."""
        if self._count(node) >= count:
            return
        with self.claim(node.corpus, node):
            have = self._count(node)
            if have < count:
                self.fit(node)
                self._sample(node, have, count)

    def _count(self, node: Node) -> int:
        return self.on_rank_0(lambda: self.store.corpora.count(node.corpus))

    def _sample(self, node: Node, have: int, count: int) -> None:
        prompts = self._prompts(node)
        if self.ranks.rank == 0:
            self.store.clear_work(node.corpus)
            self.store.corpora.create(node.corpus, self.plan.specs[node.corpus])
        shards = self.on_rank_0(lambda: frozenset(self.store.corpora.shards(node.corpus)))
        self._event("sample_started", node, start=have, stop=count, shards=len(shards))
        with self._timed("sample"):
            tokens = self.learner.sample(
                SampleTask(
                    fit=self.store.path("fits", node.fit),
                    seed=node.seed,
                    generation=node.generation,
                    start=have,
                    stop=count,
                    prompts=prompts,
                    append=lambda start, examples: self.store.corpora.append(node.corpus, start, examples),
                    shards=shards,
                    report=self._reporter(node, "sample"),
                    control=self.control,
                )
            )
        self.ranks.barrier()
        if self.ranks.rank == 0:
            self.store.clear_work(node.corpus)
        self.rates["sample"] = tokens / max(self.seconds["sample"], 1e-9)
        self._event("sample_committed", node, examples=self.store.corpora.count(node.corpus))

    def _prompts(self, node: Node) -> Examples | None:
        learner = self.plan.config.learner
        if not isinstance(learner, LanguageModel) or learner.sample.prompt == "bos":
            return None
        if learner.sample.prompt == "previous_prefix" and node.previous is not None:
            return self.corpus(self.plan.nodes[node.previous], self.data.num_examples)
        return self.data.real(node.seed, self.data.num_examples)

    # --- evaluate and commit ---------------------------------------------------------------------------------------------

    def evaluate(self, node: Node, status: Status) -> None:
        """Measure a generation and commit its record; a diverged one has no metrics."""
        if self.on_rank_0(lambda: self.store.sound("evaluations", node.evaluation)):
            return  # only its corpus or its fit was missing
        staged = self.on_rank_0(lambda: self.store.stage(node.evaluation))
        if self.ranks.rank == 0:
            Workplace(staged).adopt(lambda _: "an evaluation has no checkpoints")
        metrics: Mapping[str, float] = {}
        arrays, texts = {}, []
        if status == "ok":
            first = self.plan.nodes[node.first]
            self.fit(first)
            evaluated = min(self.data.num_examples, self.plan.config.evaluate.examples)
            corpus = self.corpus(node, evaluated)
            training = self.training_set(node)
            with self._timed("evaluate"):
                found = self.learner.evaluate(
                    EvaluateTask(
                        fit=self.store.path("fits", node.fit),
                        generation_0=self.store.path("fits", first.fit),
                        seed=node.seed,
                        generation=node.generation,
                        corpus=corpus,
                        training=training,
                        report=self._reporter(node, "evaluate"),
                        piece=lambda name, compute: self._piece(staged, name, compute),
                        control=self.control,
                    )
                )
            metrics, arrays, texts = found.metrics, dict(found.arrays), list(found.texts)
        if self.ranks.rank == 0:
            parent = None if node.previous is None else self.plan.nodes[node.previous].fit
            record = Record(
                node.generation,
                node.seed,
                status,
                node.fit,
                node.corpus,
                node.evaluation,
                parent,
                {name: finite_or_none(value) for name, value in metrics.items()},
            )
            write_json(staged / "record.json", record.to_json())
            write_json(staged / "provenance.json", self._provenance().to_json())
            write_json(staged / "continuations.json", texts)
            save_file({name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}, staged / "arrays.safetensors")
            won = self.store.commit("evaluations", node.evaluation, staged, self.plan.specs[node.evaluation])
            self._event("committed" if won else "discarded", node, status=status)
        self.seconds, self.rates = {}, {}
        self.ranks.barrier()

    def _piece(self, staged: Path, name: str, compute: Callable[[], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        """A part of an evaluation, kept when it is done; the same call on every rank."""
        workplace = Workplace(staged)
        kept = workplace.read_piece(name) if self.ranks.rank == 0 else None
        if self.ranks.broadcast(kept is not None):
            return np.zeros(0) if kept is None else kept
        values = compute()
        if self.ranks.rank == 0:
            workplace.write_piece(name, values)
        self.check_stop()
        return values

    def status(self, node: Node) -> Status:
        """``ok`` or ``diverged``, from the committed record."""
        return self.on_rank_0(lambda: self._record_status(node))

    def _record_status(self, node: Node) -> Status:
        record = self.store.record(node.evaluation)
        return record.status if record else "ok"

    # --- bookkeeping -----------------------------------------------------------------------------------------------------

    def complete(self, node: Node) -> bool:
        """Whether all that a node leaves is there, and its record undamaged."""
        return self.on_rank_0(lambda: self.store.complete(node, self.plan.examples[node.corpus]))

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
        about = {"branch": self.plan.branch, "generation": node.generation, "seed": node.seed, "coordinator": self.plan.coordinator}
        lease = self.leases.acquire(key, about) if self.ranks.rank == 0 else None
        if not self.ranks.broadcast(lease is not None):
            raise Busy(key)
        whole = key == node.evaluation
        finished = False
        try:
            if whole:
                self._event("claimed", node, epoch=lease.epoch if lease else 0)
            yield
            finished = True
        finally:
            if lease is not None:
                self._release(lease, finished)
                if whole:
                    self._event("released", node, finished=finished)

    def _release(self, lease: Lease, finished: bool) -> None:
        try:
            self.leases.release(lease, finished)
        except OSError as error:  # a disk that is full must not hide why the block ended
            self.observer.event("release_failed", key=lease.key, reason=str(error))

    def on_rank_0(self, look: Callable[[], T]) -> T:
        """What rank 0 sees in the store, on every rank: two ranks that look for themselves may see different things."""
        found: T = self.ranks.broadcast(look() if self.ranks.rank == 0 else None)  # type: ignore[assignment]
        return found

    def _event(self, kind: str, node: Node, **fields: Any) -> None:
        if self.ranks.rank == 0:
            self.observer.event(
                kind,
                branch=self.plan.branch,
                generation=node.generation,
                seed=node.seed,
                fit=node.fit,
                evaluation=node.evaluation,
                attempt=self.plan.attempt,
                **fields,
            )

    def _reporter(self, node: Node, phase: str) -> Any:
        def report(done: int, total: int, rate: float) -> None:
            self.control.tick()
            if self.ranks.rank == 0:
                self.observer.progress(node, phase, done, total, rate)

        return report

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        self._since = time.monotonic()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.monotonic() - self._since

    def _provenance(self) -> Provenance:
        found = dict(self.learner.describe())
        peak = found.get("peak_memory_bytes") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        base = Provenance(
            host=socket.gethostname(),
            device=str(found["device"]),
            world_size=self.ranks.world_size,
            zero_stage=found["zero_stage"],
            threads=self.plan.config.resources.threads,
            attempt=self.plan.attempt,
            commit=self.plan.commit,
            coordinator=self.plan.coordinator,
            versions={"harness": __version__, "python": platform.python_version(), **found["versions"]},
        )
        return replace(
            base,
            seconds=dict(self.seconds),
            tokens_per_s=dict(self.rates),
            peak_memory_bytes=int(peak),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )
