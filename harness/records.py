"""Frozen data that crosses a process or the disk: recipes, records, provenance, plans."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

REAL = -1
"""Origin of a training example that no model wrote; other origins are the index of the generation that wrote
it."""

EXTERNAL = -2
"""Origin of a training example from a fixed corpus that someone else's model wrote."""

TEACHER = -3
"""Origin of a training example from a fixed teacher."""

MEMBER = 1 << 20
"""Origins below are generations of the chain itself; those of the other members of its population that it
reads (`Recipe.writers`) follow, so many for each. No chain has as many generations
(`harness.config.size`)."""


def written_by(place: int, generation: int) -> int:
    """The origin of what another member wrote in one of its generations, by its place in `Recipe.writers`."""
    return (place + 1) * MEMBER + generation


def writer_of(origin: int) -> tuple[int | None, int]:
    """The place in `Recipe.writers` that an origin names, None for the chain itself, and the generation."""
    place, generation = divmod(origin, MEMBER)
    return (place - 1 if place else None), generation


Status = Literal["ok", "degenerate", "diverged"]
"""``degenerate``: there is a model, and some metric of it is not finite; ``diverged``: there is no finite
model, the chain ends."""


DrawKind = Literal["first", "resample", "fixed", "unseen"]
"""Which examples of a source a training set has; see `Part`."""


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a training set.

    Attributes:
        origin: `REAL`, the generation whose corpus is read, or `written_by` another member of a population.
        count: How many examples are read from it.
        draw: ``first``: examples 0..count-1; ``resample``: a random subset, new each generation; ``fixed``:
            one random subset, the same in every generation; ``unseen``: the next ``count`` that no earlier
            generation read, from ``offset`` on.
        offset: First example, for ``unseen``, and of what several members of a population read.
        pooled: It arrives in the unlabelled pool, from which a recipe takes some.
    """

    origin: int
    count: int
    draw: DrawKind = "first"
    offset: int = 0
    pooled: bool = False

    @property
    def end(self) -> int:
        """One past the last example that is read of what models of the grid wrote."""
        return self.count + (self.offset if self.origin >= 0 else 0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a generation's training set is built; part of the identity of its fit.

    Attributes:
        spec: What enters the key: the regime, its version and the fields it uses.
        parts: The sources, in order.
        subsample: Draw this many from all parts together, without replacement; None keeps everything.
        take: The pooled parts are shuffled, filters judge them without knowing what is real, and this many of
            those that pass are trained on; None where there is no pool.
        select: What decides in a pool: its filters, or in their place chance, or the provenance; these two
            keep as many as the filters would.
        budget: What is held equal across regimes: ``examples``, ``tokens`` or ``steps``.
        init: Overrides the learner's ``init`` (for a refresh); None leaves it.
        writers: The members of a population whose corpora are read, besides the chain itself; an origin names
            one by its place here (`writer_of`), so that it does not depend on who else is in the population.
    """

    spec: Mapping[str, Any]
    parts: tuple[Part, ...]
    subsample: int | None = None
    take: int | None = None
    select: Literal["filters", "random", "oracle"] = "filters"
    budget: Literal["examples", "tokens", "steps"] = "examples"
    init: str | None = None
    writers: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Number of training examples; of a pool as many as may be taken."""
        if self.subsample is not None:
            return self.subsample
        return min(self.take or 0, self.pooled) + sum(part.count for part in self.parts if not part.pooled)

    @property
    def pooled(self) -> int:
        """Examples of the pool."""
        return sum(part.count for part in self.parts if part.pooled)

    @property
    def arriving(self) -> int:
        """Synthetic examples that arrive in one generation's pool: what is labelled lies behind them."""
        return max((part.end for part in self.parts if part.pooled and part.origin != REAL), default=0)

    @property
    def counts(self) -> tuple[float, float]:
        """How many training examples are real, and how many synthetic; of a subsample those to expect."""
        real = sum(part.count for part in self.parts if part.origin == REAL)
        whole = sum(part.count for part in self.parts)
        share = self.size / whole if whole else 0.0
        return real * share, (whole - real) * share


def on_a_line(at: tuple[float, float], beside: Sequence[tuple[float, float]]) -> bool:
    """Whether three training sets differ in real and in synthetic examples by one proportion only.

    Args:
        at: Real and synthetic examples (`Recipe.counts`) of one.
        beside: The same of two others.
    """
    (a, b), (c, d) = ((real - at[0], synthetic - at[1]) for real, synthetic in beside)
    return abs(a * d - b * c) <= 1e-9 * max(abs(a), abs(b), abs(c), abs(d)) ** 2


@dataclass(frozen=True, slots=True)
class Record:
    """The result of one generation: deterministic metrics only, and nothing of the chains that share it.

    Attributes:
        generation: Index, from 0.
        seed: The chain's seed.
        status: ``ok``, ``degenerate`` or ``diverged``.
        fit: Key of the fit.
        corpus: Key of the corpus.
        evaluation: Key of the evaluation.
        metrics: Name to value; None where the value is not finite.
    """

    generation: int
    seed: int
    status: Status
    fit: str
    corpus: str
    evaluation: str
    metrics: Mapping[str, float | None]

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`.

        Records of earlier versions also name the fit before, which the chain knows; some call themselves ok
        though a metric is not finite, and some degenerate for a frequency band without a token in real text,
        which is no number whatever the model does.
        """
        found = cls(**{name: value for name, value in data.items() if name != "parent"})
        metrics = {
            name: value
            for name, value in found.metrics.items()
            if value is not None or not name.startswith("text/band_")
        }
        status = found.status if found.status == "diverged" else status_of("ok", metrics)
        return dataclasses.replace(found, status=status, metrics=metrics)


@dataclass(frozen=True)
class GenerationView:
    """One generation as it is shown.

    Attributes:
        record: Its record.
        loss: Of its fit, step by step; empty where there is none, or its fit is gone.
        texts: What it has written, each a prompt and its continuation.
    """

    record: Record
    loss: Sequence[float | None] = ()
    texts: Sequence[Mapping[str, str]] = ()


def status_of(status: Status, metrics: Mapping[str, float | None]) -> Status:
    """``degenerate`` where there is a model and some metric of it is not finite.

    Else what is known already.
    """
    return (
        "degenerate"
        if status == "ok" and any(finite_or_none(value) is None for value in metrics.values())
        else status
    )


IDENTITY_COLUMNS = ("seed", "generation", "status", "fit", "corpus", "evaluation")
"""Columns of a bundle that are not metrics, besides the chain's key."""


def bundled_record(row: Mapping[str, Any]) -> Record:
    """The record of one row of a bundle.

    A metric that another cell's chains have, and this one has not, is null and left out.
    """
    metrics = {
        name: value for name, value in row.items() if "/" in name and not name.startswith("parameters/")
    }
    known = {name: finite_or_none(value) for name, value in metrics.items() if value is not None}
    return Record(**{name: row[name] for name in IDENTITY_COLUMNS}, metrics=known)


@dataclass(frozen=True, slots=True)
class Provenance:
    """How, where and when something was computed; never part of a key or of the default export.

    Attributes:
        host: Host name of rank 0.
        device: Device model.
        world_size: Number of ranks.
        zero_stage: DeepSpeed ZeRO stage; None where it does not apply.
        threads: CPU threads per rank.
        attempt: 1 for the first try.
        commit: Source revision, with ``+dirty`` where the tree had changes; empty if unknown.
        versions: Package to version.
        seconds: Phase to seconds.
        tokens_per_s: Phase to tokens (or examples) per second.
        peak_memory_bytes: Peak memory of rank 0: device memory on a GPU, else resident memory.
        finished: UTC time of the commit, ISO 8601.
        coordinator: Who scheduled it: one `harness run`.
        attention: What computed attention in the fit; None for what the library takes by itself, or none.
        activation_checkpointing: Whether the fit computed activations twice; None where it has none.
        micro_batch: Examples per forward pass and rank of the fit, where it has such; of a resumed fit the
            last ones.
        sample_batch: Examples that were sampled together, where they are; of a resumed corpus the last ones.
        compiled: Whether the fit was compiled; None where it cannot be.
    """

    host: str
    device: str
    world_size: int
    zero_stage: int | None
    threads: int
    attempt: int
    commit: str
    versions: Mapping[str, str]
    seconds: Mapping[str, float] = field(default_factory=dict)
    tokens_per_s: Mapping[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    finished: str = ""
    coordinator: str = ""
    attention: str | None = None
    activation_checkpointing: bool | None = None
    micro_batch: int | None = None
    sample_batch: int | None = None
    compiled: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Examples:
    """Examples as rows.

    Attributes:
        values: Shape [num_examples, width]: token ids (int32) or numbers (float64, pixels float32). Behind a
            row's length it is 0.
        lengths: Shape [num_examples], int32: how much of each row is used.
        notes: What is known of each besides, float32, by name: ``logprob``, shape [num_examples, width], of
            every token under the model that wrote it, at temperature 1, among the tokenizer's; ``reward``,
            shape [num_examples], what a judge gives. NaN where it is not known.
    """

    values: npt.NDArray[Any]
    lengths: npt.NDArray[np.int32]
    notes: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.values)

    def take(self, index: npt.NDArray[Any] | slice) -> Examples:
        """The examples at these positions."""
        notes = {name: note[index] for name, note in self.notes.items()}
        return Examples(self.values[index], self.lengths[index], notes)

    def noted(self, name: str, note: npt.NDArray[np.floating[Any]]) -> Examples:
        """The examples with one more note."""
        return dataclasses.replace(self, notes={**self.notes, name: note.astype(np.float32)})

    def without(self, name: str) -> Examples:
        """The examples without a note."""
        kept = {other: note for other, note in self.notes.items() if other != name}
        return dataclasses.replace(self, notes=kept)

    def rows(self) -> list[npt.NDArray[Any]]:
        """Every example to its length."""
        return [values[:length] for values, length in zip(self.values, self.lengths, strict=True)]

    @classmethod
    def full(cls, values: npt.NDArray[Any]) -> Examples:
        """Rows that are all used to their whole width."""
        return cls(values, np.full(len(values), values.shape[1], dtype=np.int32))


@dataclass(frozen=True)
class Counts:
    """How many examples are real, and how many a model wrote."""

    real: int
    synthetic: int

    @classmethod
    def of(cls, origin: npt.NDArray[np.int32]) -> Counts:
        """Of examples with these origins."""
        real = int((origin == REAL).sum())
        return cls(real, len(origin) - real)

    @property
    def total(self) -> int:
        """The number of all examples."""
        return self.real + self.synthetic


@dataclass(frozen=True)
class FilterCounts:
    """What filters of corpora have done for a training set.

    Attributes:
        made: Choices of one among several examples.
        alike: How many of them among examples that all scored alike, so that what was chosen is by lot.
        read: Examples that the filters were given, up to the last one that was needed.
        passed: How many of these passed all of them.
    """

    made: int = 0
    alike: int = 0
    read: int = 0
    passed: int = 0

    def __add__(self, other: FilterCounts) -> FilterCounts:
        ours, theirs = self.to_json(), other.to_json()
        return FilterCounts(**{name: number + theirs[name] for name, number in ours.items()})

    def to_json(self) -> dict[str, int]:
        """Plain data for JSON, and the columns of bundles."""
        return dataclasses.asdict(self)


NO_FILTER_COUNTS = FilterCounts()


@dataclass(frozen=True)
class Selection:
    """What became of a pool. Records know what is real; who decided did not (unless it was the oracle).

    Attributes:
        arrived: The pool.
        passed: Distinct examples that passed.
        steps: What each filter was given, and what of it passed; by the filter's name.
        trained: What is trained on, with what was known to be real before, and as often as it is there.
        filtered: What filters of corpora have read, passed and chosen.
    """

    arrived: Counts
    passed: Counts
    steps: dict[str, tuple[Counts, Counts]]
    trained: Counts
    filtered: FilterCounts = NO_FILTER_COUNTS

    def metrics(self) -> dict[str, float]:
        """The columns of records; of a kind of which nothing has arrived there is no rate."""
        found = {
            "pool/trained": float(self.trained.total),
            "pool/trained_real_share": self.trained.real / self.trained.total,
            "pool/real_share": self.arrived.real / self.arrived.total,
            **_rates("pool/", self.arrived, self.passed),
        }
        if len(self.steps) > 1:
            for name, (given, passed) in self.steps.items():
                found |= _rates(f"pool/{name}/", given, passed)
        return found


def _rates(prefix: str, given: Counts, passed: Counts) -> dict[str, float]:
    found = {}
    if given.total:
        found[f"{prefix}kept_share"] = passed.total / given.total
    if given.synthetic:
        found[f"{prefix}recall"] = 1 - passed.synthetic / given.synthetic
    if given.real:
        found[f"{prefix}false_positive_rate"] = 1 - passed.real / given.real
    return found


def finite_or_none(value: float | None) -> float | None:
    """A float that JSON can hold: None where it is not finite (never 0)."""
    return None if value is None or not math.isfinite(value) else float(value)
