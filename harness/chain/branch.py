"""The four steps of a generation: build its training set, fit, sample, evaluate and commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from harness.chain.checkpoints import adopt, save_checkpoint
from harness.chain.context import Context
from harness.chain.earlier import ARRAYS, Earlier
from harness.chain.given import Written, numbers_of
from harness.chain.plan import Plan, Site
from harness.curation import gather, training_examples
from harness.data.packing import corpus_science, other_science, read_other
from harness.errors import DamagedError, LearnerError
from harness.files import remove_tree, write_json
from harness.learners.protocol import (
    CheckpointUnusable,
    EvaluateTask,
    FitOutcome,
    FitTask,
    SampleTask,
    TrainingSet,
)
from harness.metrics import SCORES_VERSION
from harness.metrics.added import added_metrics
from harness.records import NO_FILTER_COUNTS, Examples, Record, Status, finite_or_none, status_of
from harness.science import Node, key_of, learned_from
from harness.store import Workplace


class BranchRun:
    """The four steps; each returns at once where the store has its result."""

    def __init__(self, plan: Plan, site: Site) -> None:
        """Nothing is built yet."""
        self.plan, self.context = plan, Context(plan, site)
        self.learner, self.store, self.data, self.ranks = site.learner, site.store, site.data, site.ranks
        self._training: tuple[str, TrainingSet] | None = None

    def complete(self, node: Node) -> bool:
        """Whether all that a node leaves is there, and its record undamaged."""
        return self.context.on_rank_0(lambda: self.store.complete(node, self.plan.examples[node.corpus]))

    # --- build the training set -----------------------------------------------------------------------------

    def training_set(self, node: Node) -> TrainingSet:
        """Every training example of a node, with its origin.

        Collective, and remembered for the node's evaluation.
        """
        if self._training is None or self._training[0] != node.evaluation:
            self._training = (node.evaluation, self._build(node))
        return self._training[1]

    def _build(self, node: Node) -> TrainingSet:
        made = training_examples(node.spec.fit, self.data, _Sources(self, node))
        drawn, selection = made.drawn, made.selection
        if selection is not None:
            # A filter that computes may decide otherwise on another machine: rank 0's choice is everybody's.
            drawn, selection = self.ranks.broadcast((drawn, selection))
        examples = gather(drawn, made.found)
        if made.judged:  # a checker may take too long on one rank, and not on another
            drawn, examples = self.ranks.broadcast((drawn, examples))
        return TrainingSet(examples, drawn, selection, made.judged, made.decision, made.filtered)

    def prepared(self, spec: Mapping[str, Any], what: str) -> Examples:
        """A text that a key names by its content, from the store."""
        key = key_of(spec)
        if not self.context.on_rank_0(lambda: self.store.sound("data", key)):
            raise LearnerError(f"{what}: is not in the store; run the command again")
        return read_other(self.store.path("data", key))

    def corpus(self, node: Node, count: int) -> Examples:
        """The first ``count`` raw examples of a node's corpus; a damaged shard is sampled again."""
        for _ in range(3):
            self.sample(node, count)
            found, shards = None, self.context.on_rank_0(lambda: self.store.corpora.shards(node.corpus))
            try:
                found = self.store.corpora.load(node.corpus, count, shards) if self.ranks.rank == 0 else None
            except DamagedError as error:
                self.context.observer.event("damaged", corpus=node.corpus, reason=str(error))
            if self.ranks.broadcast(found is not None):
                # The files that rank 0 has seen, by name: another machine's list of the folder may be older.
                return found if found is not None else self.store.corpora.load(node.corpus, count, shards)
        raise DamagedError(f"corpus {node.corpus} was sampled again and is still damaged; check the disk")

    # --- fit ------------------------------------------------------------------------------------------------

    def fit(self, node: Node) -> Status:
        """Make sure that a node's fit is committed; its weights may have been freed since."""
        if not self._has_fit(node):
            with self.context.claim(node.fit, node):
                if not self._has_fit(node):
                    self._fit(node)
        return self._fit_status(node)

    def weights(self, node: Node) -> Path:
        """The folder of a node's fit, with its weights, and those that it adds to where it does.

        Fitted again where they were freed, and are needed after all.
        """
        self.fit(node)
        if node.spec.fit.base is not None:
            self.weights(self.plan.nodes[node.first])
        if not self.context.on_rank_0(lambda: self.store.has_weights(node.fit)):
            with self.context.claim(node.fit, node):
                if not self.context.on_rank_0(lambda: self.store.has_weights(node.fit)):
                    self._fit(node)
        return self.store.path("fits", node.fit)

    def _judge(self, node: Node) -> Path | None:
        """The weights that are asked about what a node writes, where they are not its own."""
        return None if node.judged_by is None else self.weights(self.plan.nodes[node.judged_by])

    def _has_fit(self, node: Node) -> bool:
        return self.context.on_rank_0(lambda: self.store.sound("fits", node.fit))

    def _fit(self, node: Node) -> None:
        if node.fit in self.plan.foreign:
            raise LearnerError(
                f"more examples of generation {node.generation} of another cell's chain are needed than it "
                "has, and this cell's learner cannot write them: run the command again if something is "
                "damaged, or relax the filters"
            )
        report = self.context.reporter(node, "fit")
        refit = self.context.on_rank_0(lambda: self.store.sound("fits", node.fit))
        parent = None if node.init_from is None else self.weights(self.plan.nodes[node.init_from])
        anchor, base = node.spec.fit.reference, node.spec.fit.base
        reference = None if anchor is None else self.weights(self.plan.nodes[node.first])
        training = self.training_set(node)
        staged = self.context.on_rank_0(lambda: self.store.stage(node.fit))
        resume = adopt(self.context, node, staged)
        self.context.event("fit_started", node, examples=len(training.drawn))
        with self.context.timed("fit"):
            task = FitTask(
                spec=node.spec.fit,
                training=training,
                init_from=parent,
                out=staged,
                report=report,
                control=self.context.control,
                resume=resume,
                checkpoint_s=self.plan.execution.resources.checkpoint_s,
                save=lambda step, write: save_checkpoint(self.context, node, staged, step, write),
                reference=reference,
                base=None if base is None else self.store.path("fits", base),
            )
            try:
                outcome = self.learner.fit(task)
            except CheckpointUnusable as error:
                self.context.event(
                    "checkpoint_refused", node, reason=f"its checkpoint ({error})", again_from_step=0
                )
                self.context.seconds["fit"] = 0.0
                if resume is not None:  # the new fit's own checkpoint may get its name
                    self.context.on_rank_0(partial(remove_tree, resume))
                outcome = self.learner.fit(replace(task, resume=None))
        self.context.rates["fit"] = outcome.computed / max(self.context.seconds["fit"], 1e-9)
        if self.ranks.rank == 0:
            self._commit_fit(node, staged, training, outcome, refit=refit)
        self.ranks.barrier()

    def _commit_fit(
        self, node: Node, staged: Path, training: TrainingSet, outcome: FitOutcome, refit: bool
    ) -> None:
        if refit:
            if outcome.status != "ok":
                raise LearnerError(
                    f"the weights of fit {node.fit} were freed or lost, and fitting it again on this machine "
                    f"has {outcome.status}. What is committed of it stays; its provenance.json says where it "
                    "was fitted: go on there, or begin a new --root with retention.weights: all"
                )
            same = self.store.restore_weights(node.fit, staged, self.context.provenance().to_json())
            self.context.event("weights_restored" if same else "weights_replicated", node)
            return
        save_file(
            {"origin": training.drawn.origin, "index": training.drawn.index},
            staged / "training_set.safetensors",
        )
        found = {"status": outcome.status, "tokens": outcome.tokens, "log": outcome.log}
        judge = {"judge": training.decision} if training.decision else {}
        counts = {"choices": training.filtered.to_json()} if training.filtered != NO_FILTER_COUNTS else {}
        write_json(staged / "fit.json", {**found, **judge, **counts})
        write_json(staged / "provenance.json", self.context.provenance().to_json())
        won = self.store.commit("fits", node.fit, staged, node.spec.fit.to_json())
        self.context.event("fit_committed" if won else "fit_discarded", node, **judge, **counts)

    def _fit_status(self, node: Node) -> Status:
        status: Status = self.context.on_rank_0(
            lambda: self.store.json("fits", node.fit, "fit.json")["status"]
        )
        return status

    # --- sample ---------------------------------------------------------------------------------------------

    def sample(self, node: Node, count: int) -> None:
        """Make sure that a node's corpus has at least ``count`` examples."""
        if self._count(node) >= count:
            return
        with self.context.claim(node.corpus, node):
            have = self._count(node)
            if have < count:
                self._sample(node, self.weights(node), have, count)

    def _count(self, node: Node) -> int:
        return self.context.on_rank_0(lambda: self.store.corpora.count(node.corpus))

    def _sample(self, node: Node, fit: Path, have: int, count: int) -> None:
        prompts, judge = self._prompts(node), self._judge(node)
        report = self.context.reporter(node, "sample")
        if self.ranks.rank == 0:
            self.store.clear_work(node.corpus)
            self.store.corpora.create(node.corpus, node.spec.corpus.to_json())
        shards = self.context.on_rank_0(lambda: frozenset(self.store.corpora.shards(node.corpus)))
        written = Written(node, self.data, shards, self.store.corpora.append)
        self.context.event("sample_started", node, start=have, stop=count, shards=len(shards))
        with self.context.timed("sample"):
            tokens = self.learner.sample(
                SampleTask(
                    spec=node.spec.corpus,
                    fit=fit,
                    start=have,
                    stop=count,
                    prompts=prompts,
                    append=written.append,
                    shards=shards,
                    report=report,
                    control=self.context.control,
                    judge=judge,
                )
            )
        self.ranks.barrier()
        if self.ranks.rank == 0:
            written.check(count, self.store.corpora.shards(node.corpus))
            self.store.clear_work(node.corpus)
        self.context.rates["sample"] = tokens / max(self.context.seconds["sample"], 1e-9)
        self.context.event("sample_committed", node, examples=self._count(node))

    def _scores(self, node: Node, count: int) -> Any:
        """What a node's model gave its first examples as it wrote them; on rank 0, where that was kept."""
        return self.store.corpora.scores(node.corpus, count) if self.ranks.rank == 0 else None

    def _prompts(self, node: Node) -> Examples | None:
        if node.spec.corpus.prompts == "none":
            return None
        if node.prompted_by is not None:
            return self.corpus(self.plan.nodes[node.prompted_by], self.data.num_examples)
        n = self.data.num_examples
        if node.spec.corpus.prompts == "fresh":  # behind the real training examples, n for each generation
            start = n * (node.generation + 1)
            return self.data.real(node.seed, start + n).take(slice(start, None))
        return self.data.real(node.seed, n)

    # --- evaluate and commit --------------------------------------------------------------------------------

    def evaluate(self, node: Node, status: Status) -> None:
        """Measure a generation and commit its record; a diverged one has no metrics."""
        if self.context.on_rank_0(lambda: self.store.sound("evaluations", node.evaluation)):
            return  # only its corpus or its fit was missing
        staged = self.context.on_rank_0(lambda: self.store.stage(node.evaluation))
        if self.ranks.rank == 0:
            Workplace(staged).adopt(lambda _: "an evaluation has no checkpoints")
        metrics: Mapping[str, float] = {}
        arrays, texts = {}, []
        if status == "ok":
            first, report = self.plan.nodes[node.first], self.context.reporter(node, "evaluate")
            earlier = Earlier(self.store, node, first, node.spec.to_json()) if self.ranks.rank == 0 else None
            corpus = self.corpus(node, node.spec.measured.examples)
            training = self.training_set(node)
            with self.context.timed("evaluate"):
                found = self.learner.evaluate(
                    EvaluateTask(
                        spec=node.spec,
                        fit=lambda: self.weights(node),
                        generation_0=lambda: self.weights(first),
                        is_first=first.fit == node.fit,
                        corpus=corpus,
                        training=training,
                        report=report,
                        piece=lambda name, rows, compute: self._piece(staged, earlier, name, rows, compute),
                        control=self.context.control,
                        others=self._others(node),
                        texts=self.ranks.broadcast(earlier.texts() if earlier else None),
                        learned=lambda: self._learned(node),
                        judge=None if node.judged_by is None else lambda: self._judge(node) or Path(),
                        scores=self.ranks.broadcast(self._scores(node, len(corpus))),
                    )
                )
            metrics, arrays, texts = found.metrics, dict(found.arrays), list(found.texts)
            if self.ranks.rank == 0:
                metrics = numbers_of(node, metrics)
                names = node.spec.measured.section.metrics
                selection = training.selection
                metrics = {
                    **metrics,
                    **(selection.metrics() if selection else {}),
                    **training.judged,
                    **added_metrics(names, corpus, self.data, node.seed, node.generation, metrics),
                }
        if self.ranks.rank == 0:
            record = Record(
                node.generation,
                node.seed,
                status_of(status, metrics),
                node.fit,
                node.corpus,
                node.evaluation,
                {name: finite_or_none(value) for name, value in metrics.items()},
            )
            write_json(staged / "record.json", record.to_json())
            write_json(staged / "provenance.json", self.context.provenance().to_json())
            write_json(staged / "continuations.json", texts)
            values = {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}
            save_file(values, staged / ARRAYS, metadata={"scores": str(SCORES_VERSION)})
            won = self.store.commit("evaluations", node.evaluation, staged, node.spec.to_json())
            self.context.event("committed" if won else "discarded", node, status=record.status)
        self.ranks.barrier()

    def _learned(self, node: Node) -> Examples | None:
        """What a judge has learned from, of what generation 0 wrote."""
        judges = [item.section for item in node.spec.measured.judges]
        rows = learned_from(judges, self.data.num_examples)
        return None if rows is None else self.corpus(self.plan.nodes[node.first], rows.stop).take(rows)

    def _others(self, node: Node) -> Mapping[str, Examples]:
        """The other real texts that a node's evaluation names by their content, from the store."""
        data = node.spec.fit.data.identity
        return {
            name: self.prepared(other_science(data, content), f"evaluate.others.{name}")
            for name, content in node.spec.measured.others.items()
        }

    def _piece(
        self,
        staged: Path,
        earlier: Earlier | None,
        name: str,
        rows: int,
        compute: Callable[[], npt.NDArray[np.float64]],
    ) -> npt.NDArray[np.float64]:
        """A part of an evaluation, kept when it is done; the same call on every rank."""
        workplace, kept = Workplace(staged), None
        if earlier is not None:  # rank 0
            kept = workplace.read_piece(name)
            kept = earlier.array(name, rows) if kept is None else kept
        if self.ranks.broadcast(kept is not None):
            return np.zeros(0) if kept is None else kept
        values = compute()
        if self.ranks.rank == 0:
            workplace.write_piece(name, values)
        self.context.check_stop()
        return values

    def status(self, node: Node) -> Status:
        """``ok`` or ``diverged``, from the committed record."""
        return self.context.on_rank_0(lambda: self._record_status(node))

    def _record_status(self, node: Node) -> Status:
        record = self.store.record(node.evaluation)
        return record.status if record else "ok"


@dataclass(frozen=True)
class _Sources:
    """Where a node's training examples come from: the real data, and the store."""

    branch: BranchRun
    node: Node

    def real(self, count: int) -> Examples:
        return self.branch.data.real(self.node.seed, count)

    def fixed(self, content: str) -> Examples:
        spec = corpus_science(self.node.spec.fit.data.identity, content)
        return self.branch.prepared(spec, "regime.source")

    def corpus(self, generation: int, count: int) -> Examples:
        return self.branch.corpus(self.branch.plan.nodes[self.node.corpora[generation]], count)
