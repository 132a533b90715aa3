"""The protocol that every learner follows, and the registry beside it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from harness.components import LEARNERS
from harness.config.schema import Config, Model, Resources, Section
from harness.data.real import RealData
from harness.errors import DataError
from harness.imports import is_installed
from harness.records import NO_FILTER_COUNTS, Examples, FilterCounts, Recipe, Selection, Status
from harness.regimes import Drawn
from harness.registry import named
from harness.science import CorpusSpec, EvaluationSpec, FitSpec, Prompts, Versioned, blank
from harness.section import begins

GROUP_MODULES = ("torch", "deepspeed")
"""What a process group of several ranks is made with."""
T = TypeVar("T")
Report = Callable[[int, int, float], None]
"""Progress of a phase: done, total, tokens (or examples) per second."""


@dataclass(frozen=True)
class Execution:
    """How the work of a cell is done: it may change last bits, never what a result means, and is in no key.

    Attributes:
        experiment: The name that events and leases carry.
        resources: What a gang uses; ``micro_batch``, ``sample_batch`` and, where it applies, ``zero_stage``
            are numbers.
        models: Content of a pretrained model to where it lies: the name and revision, or the folder.
        batches: For ``micro_batch`` and ``sample_batch``, where the configuration leaves them open, the sizes
            that may be used, the largest first, each with the bytes that a rank then holds besides the
            libraries.
        stage_asked: Whether the configuration says ``zero_stage``.
    """

    experiment: str
    resources: Resources
    models: Mapping[str, Model] = field(default_factory=dict)
    batches: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    stage_asked: bool = True

    def within(self, room: float) -> Execution:
        """The same with the largest batches that so many bytes hold, or the smallest ones."""
        chosen = {
            name: next((size for size, needed in sizes if needed <= room), sizes[-1][0])
            for name, sizes in self.batches.items()
        }
        return replace(self, resources=self.resources.model_copy(update=chosen), batches={})


@dataclass(frozen=True)
class Resolved:
    """What a cell's learner is, in the words of its specs.

    Attributes:
        fit: What is fitted.
        sampling: How its models write.
        init: Where generation 0 starts from; None for a learner without weights to start from.
        prompts: What its examples continue.
        cost: Relative cost of one training example.
        facts: What is known of its model beforehand; None where nothing is.
        models: Content of a pretrained model to where it lies.
        first: What is fitted in generation 0, where that is something else.
        anchored: Whether fits after that compare with generation 0's weights.
        compared: Whether what they learn from are comparisons, of which real examples are no part.
        based: Whether they are stored as what they add to these.
        judge: Whose model is asked about what a generation writes: generation 0's, or that of the one before;
            None for its own, or nobody's.
        metrics: Versions of metrics that come out otherwise than those of the learner's other cells.
    """

    fit: Versioned
    sampling: Versioned
    init: str | None
    prompts: Prompts
    cost: float
    facts: Any = None
    models: Mapping[str, Model] = field(default_factory=dict)
    first: Versioned | None = None
    anchored: bool = False
    compared: bool = False
    based: bool = False
    judge: Literal["initial", "previous"] | None = None
    metrics: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """One generation, for an estimate of what it takes.

    Attributes:
        config: Its cell.
        real: The real data.
        recipe: Its training set.
        n: Number of real training examples.
        sampled: Examples that it writes.
        scored: Examples of these that its evaluation reads.
        fit_rate: Tokens that one rank trains on in a second, as measured or assumed.
        sample_rate: Tokens that one rank writes in a second.
    """

    config: Config
    real: RealData
    recipe: Recipe
    n: int
    sampled: int
    scored: int
    fit_rate: float
    sample_rate: float


def resolve(config: Config, real: RealData) -> Resolved:
    """What a cell's learner is.

    Args:
        config: The cell.
        real: Its real data.

    Raises:
        DataError: What it names cannot be had, or does not fit the data.
    """
    section, found = config.learner, LEARNERS.loaded[config.learner.kind]
    if found.plugin.resolve:
        resolved: Resolved = named(found.plugin.resolve)(config, real, found.version)
        return resolved
    each = found.plugin.seconds_per_example
    return Resolved(
        fit=Versioned(blank(section, "init", "sample"), found.version),
        sampling=Versioned(getattr(section, "sample", Section()), found.version),
        init="scratch" if begins(section) else None,
        prompts="none",
        cost=each(real.example_bytes // 8) if callable(each) else each,
    )


class Ranks(Protocol):
    """The ranks that run a branch together.

    Every collective call is made by all of them in the same order.
    """

    rank: int
    world_size: int

    def barrier(self) -> None:
        """Wait for all ranks."""

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value in the order of ranks, on every rank."""

    def close(self) -> None:
        """Leave the process group."""


class SoloRanks:
    """One rank, no process group."""

    rank = 0
    world_size = 1

    def barrier(self) -> None:
        """Return at once: there is one rank."""

    def broadcast(self, value: T) -> T:
        """The value itself: there is one rank."""
        return value

    def gather(self, value: T) -> list[T]:
        """The value in a list of one."""
        return [value]

    def close(self) -> None:
        """Do nothing: there is no process group."""


class Stopped(Exception):
    """A learner stopped because it was asked to; raised on every rank.

    What it had is in a checkpoint, in shards or in pieces.
    """


class CheckpointUnusable(Exception):
    """A checkpoint that is whole cannot be gone on from: say another version of a library wrote it.

    Raised on every rank.
    """


class Control:
    """What reaches a rank that is at work: the wish that it stops.

    What can be seen of it meanwhile is that it moves.
    """

    def __init__(self) -> None:
        """A control that nobody has asked to stop."""
        self.ticks = 0
        self._deadline: float | None = None

    def tick(self) -> None:
        """A step, a token or a batch is done."""
        self.ticks += 1

    def stop(self, grace_s: float) -> None:
        """Ask it to stop, with this many seconds to save what it has."""
        self._deadline = time.monotonic() + grace_s

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked."""
        return self._deadline is not None

    @property
    def left_s(self) -> float:
        """Seconds until the end of the grace period; without end where nobody has asked."""
        return float("inf") if self._deadline is None else self._deadline - time.monotonic()


SaveCheckpoint = Callable[[int, Callable[[Path], Sequence[Path]]], None]
"""Commits a checkpoint, collectively: the steps that are done, and what writes this rank's files into a
folder and names them."""


@dataclass(frozen=True)
class TrainingSet:
    """Every training example with its origin, and what became of a pool, was judged and chosen (`Chosen`)."""

    examples: Examples
    drawn: Drawn
    selection: Selection | None = None
    judged: Mapping[str, float] = field(default_factory=dict)
    decision: str = ""
    filtered: FilterCounts = NO_FILTER_COUNTS


@dataclass(frozen=True)
class FitTask:
    """One fit.

    Attributes:
        spec: What is fitted.
        training: The training set.
        init_from: Folder of the fit to go on from; None unless ``spec.init`` is ``previous``.
        out: Folder that the fitted model is written to, by rank 0.
        report: Called with progress.
        control: Asked between steps whether to stop (then `Stopped` is raised), and told of every step.
        resume: Folder of a checkpoint to go on from; None to start.
        checkpoint_s: Seconds between checkpoints.
        save: Commits a checkpoint. A learner that fits in closed form needs none.
        reference: Folder of generation 0's fit, where ``spec.reference`` names it.
        base: The same, where ``spec.base`` names it.
    """

    spec: FitSpec
    training: TrainingSet
    init_from: Path | None
    out: Path
    report: Report
    control: Control
    resume: Path | None
    checkpoint_s: float
    save: SaveCheckpoint
    reference: Path | None = None
    base: Path | None = None


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended.

    Attributes:
        status: ``diverged`` where loss or parameters are no longer finite; nothing can be sampled then.
        log: What is kept beside the model: loss curves, numbers of steps and tokens.
        tokens: Tokens (or examples) that the fit processed.
        computed: Those of them that this process did, after the checkpoint that it went on from.
    """

    status: Status
    log: Mapping[str, Any]
    tokens: int = 0
    computed: int = 0


class Append(Protocol):
    """Commits one shard of a corpus."""

    def __call__(
        self, start: int, examples: Examples, scores: npt.NDArray[np.float64] | None = None, /
    ) -> None:
        """Commit it (`SampleTask.append`)."""


@dataclass(frozen=True)
class SampleTask:
    """Examples start..stop-1 of a corpus (a learner may go on to the end of its batch).

    Attributes:
        spec: What is sampled.
        fit: Folder of the fitted model.
        start: First example that is missing.
        stop: One past the last that is needed.
        prompts: Source of prefixes: example i continues row i modulo their number; None for none.
        append: Commits one shard: first index, its examples, and where the learner knows it without a second
            look what the model gave each of them, shape [examples], in nats: evaluations are told of it.
        shards: (start, stop) of the shards that are committed, also behind a gap.
        report: Called with progress.
        control: Asked between batches whether to stop.
        judge: Folder of the fit that ``spec.judge`` names, where it does.
    """

    spec: CorpusSpec
    fit: Path
    start: int
    stop: int
    prompts: Examples | None
    append: Append
    shards: frozenset[tuple[int, int]]
    report: Report
    control: Control
    judge: Path | None = None


@dataclass(frozen=True)
class EvaluateTask:
    """The evaluation of one generation.

    Attributes:
        spec: What is measured.
        fit: Gives the folder of the fitted model, with its weights; collective. Weights that were freed are
            fitted again, so it is called only by what really needs them.
        generation_0: The same for generation 0's model.
        is_first: Whether the two are one fit.
        corpus: The examples of its corpus that metrics read.
        training: What it was trained on.
        report: Called with progress.
        piece: Computes an array of values per example, or reads it where an interrupted evaluation, or an
            earlier one of the same fit, left it: its name, its number of rows, and what computes it
            (collectively; only rank 0's result counts). Raises `Stopped` after a piece where that is wished.
        control: Told of every batch.
        others: Other real texts that the model is scored on, by name.
        texts: The prompts' continuations, where an earlier evaluation of the same fit has them.
        judge: As ``fit``, of the fit that ``spec.corpus.judge`` names; None where it names none.
        learned: Gives what a judge has learned from, of the corpus that ``spec.learned`` names; collective.
        scores: What the model gave each of the corpus's examples as it wrote them, in nats; None where that
            was not kept of all of them.
    """

    spec: EvaluationSpec
    fit: Callable[[], Path]
    generation_0: Callable[[], Path]
    is_first: bool
    corpus: Examples
    training: TrainingSet
    report: Report
    piece: Callable[[str, int, Callable[[], npt.NDArray[np.float64]]], npt.NDArray[np.float64]]
    control: Control
    others: Mapping[str, Examples] = field(default_factory=dict)
    texts: Sequence[Mapping[str, str]] | None = None
    judge: Callable[[], Path] | None = None
    learned: Callable[[], Examples | None] = lambda: None
    scores: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: Name to value.
        arrays: Values per example: the first axis is the example. A later evaluation takes a piece of the
            same name from here.
        texts: Prompts with their continuations.
    """

    metrics: Mapping[str, float]
    arrays: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    texts: Sequence[Mapping[str, str]] = ()


class Learner(Protocol):
    """A family of models.

    What is done is in the specs; all state lies in folders; calls are collective over the ranks.
    """

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit a model and write it to ``task.out``."""

    def sample(self, task: SampleTask) -> int:
        """Write examples; returns the number of tokens (or examples) sampled by all ranks."""

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Measure a generation; the result is complete on rank 0."""

    def reset_peak(self) -> None:
        """Measure the peak of device memory anew, where there is a device."""

    def describe(self) -> Mapping[str, Any]:
        """Device, versions and other provenance of this process."""


def check_installed(kind: str) -> None:
    """Look for the libraries that a learner needs, without importing them.

    Raises:
        DataError: One of them is not installed.
    """
    found = LEARNERS[kind]
    needed = dict.fromkeys((*found.modules, *(GROUP_MODULES if found.many_ranks else ())))
    missing = [name for name in needed if not is_installed(name)]
    if missing:
        raise DataError(
            f"learner.kind: {kind} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} "
            f"not installed; pip install 'model-collapse-harness[{found.extra or 'text'}]'"
        )


def whose_learner(kind: str) -> str:
    """A learner in messages about what its code gives: its kind, and the package that adds it."""
    package = LEARNERS.loaded[kind].package
    return f"learner {kind} of the package {package}" if package else f"learner {kind}"


def make_learner(kind: str, data: RealData, ranks: Ranks, execution: Execution) -> Learner:
    """A learner of some kind, over some real data, on some ranks."""
    learner: Learner = named(LEARNERS[kind].learner, Learner)(data, ranks, execution)
    return learner
