"""The protocol that every learner follows, and the registry beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from harness.config.schema import Config
from harness.data.base import RealData
from harness.records import Examples, Status
from harness.regimes import Drawn

T = TypeVar("T")
Report = Callable[[int, int, float], None]
"""Progress of a phase: done, total, tokens (or examples) per second."""


class Ranks(Protocol):
    """The ranks that run a branch together; every collective call is made by all of them in the same order."""

    rank: int
    world_size: int

    def barrier(self) -> None:
        """Wait for all ranks."""
        ...

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        ...

    def gather(self, value: T) -> list[T]:
        """Every rank's value in the order of ranks, on every rank."""
        ...

    def close(self) -> None:
        """Leave the process group."""
        ...


class SoloRanks:
    """One rank, no process group."""

    rank = 0
    world_size = 1

    def barrier(self) -> None:
        """Nothing to wait for."""

    def broadcast(self, value: T) -> T:
        """The value itself."""
        return value

    def gather(self, value: T) -> list[T]:
        """The value alone."""
        return [value]

    def close(self) -> None:
        """Nothing to leave."""


@dataclass(frozen=True)
class TrainingSet:
    """What a generation is fitted to: every example with its origin."""

    examples: Examples
    drawn: Drawn


@dataclass(frozen=True)
class FitTask:
    """One fit.

    Attributes:
        training: The training set.
        seed: The chain's seed.
        generation: Index of the generation.
        init: ``scratch``, ``pretrained`` or ``previous``; None for a learner without weights to start from.
        init_from: Folder of the fit to go on from, for ``previous``.
        budget: What is held equal to generation 0: ``examples`` (nothing), ``tokens`` or ``steps``.
        out: Folder that the fitted model is written to, by rank 0.
        report: Called with progress.
    """

    training: TrainingSet
    seed: int
    generation: int
    init: str | None
    init_from: Path | None
    budget: Literal["examples", "tokens", "steps"]
    out: Path
    report: Report


@dataclass(frozen=True)
class FitOutcome:
    """How a fit ended.

    Attributes:
        status: ``diverged`` where loss or parameters are no longer finite; nothing can be sampled then.
        log: What is kept beside the model: loss curves, numbers of steps and tokens.
        tokens: Tokens (or examples) that were processed.
    """

    status: Status
    log: Mapping[str, Any]
    tokens: int = 0


@dataclass(frozen=True)
class SampleTask:
    """Examples start..stop-1 of a corpus (a learner may go on to the end of its batch).

    Attributes:
        fit: Folder of the fitted model.
        seed: The chain's seed.
        generation: Index of the generation.
        start: First example that is missing.
        stop: One past the last that is needed.
        prompts: Source of prefixes: example i continues row i modulo their number; None for none.
        append: Commits one shard: first index and its examples.
        report: Called with progress.
    """

    fit: Path
    seed: int
    generation: int
    start: int
    stop: int
    prompts: Examples | None
    append: Callable[[int, Examples], None]
    report: Report


@dataclass(frozen=True)
class EvaluateTask:
    """The evaluation of one generation.

    Attributes:
        fit: Folder of the fitted model.
        generation_0: Folder of generation 0's model.
        seed: The chain's seed.
        generation: Index of the generation.
        corpus: The examples of its corpus that metrics read.
        training: What it was trained on.
        report: Called with progress.
    """

    fit: Path
    generation_0: Path
    seed: int
    generation: int
    corpus: Examples
    training: TrainingSet
    report: Report


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: Name to value.
        arrays: Per-sequence values, each of shape [num_sequences].
        texts: Prompts with their continuations.
    """

    metrics: Mapping[str, float]
    arrays: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    texts: Sequence[Mapping[str, str]] = ()


class Learner(Protocol):
    """A family of models under one cell's configuration. All state lies in folders; calls are collective over the ranks."""

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit a model and write it to ``task.out``."""
        ...

    def sample(self, task: SampleTask) -> int:
        """Write examples; returns the number of tokens (or examples) sampled by all ranks."""
        ...

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Measure a generation; the result is complete on rank 0."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Device, versions and other provenance of this process."""
        ...


LEARNERS: Mapping[str, tuple[int, str, str]] = {
    "language_model": (1, "harness.learners.language_model.learner", "LanguageModelLearner"),
    "gaussian": (1, "harness.learners.gaussian", "GaussianLearner"),
}
"""Registry: kind to version (part of every key), module and class; a module is imported when it is needed."""


def make_learner(config: Config, data: RealData, ranks: Ranks) -> Learner:
    """The learner of a cell."""
    _, module, name = LEARNERS[config.learner.kind]
    learner: Learner = getattr(import_module(module), name)(config, data, ranks)
    return learner
