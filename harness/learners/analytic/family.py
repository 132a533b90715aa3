"""What a cheap family of models is.

It works on many same-shaped chains at once, and each chain's numbers are its own.

Arrays have the chains as their first axis. Every operation treats a chain alone: one matrix product per
chain, sums along a chain's own axis, one random stream per chain. So a chain's bits do not depend on how many
others are in the array; tests hold this.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from harness.components import LEARNERS
from harness.config.schema import Evaluate
from harness.data.analytic import Draw, Truth
from harness.errors import LearnerError
from harness.learners.protocol import whose_learner
from harness.learners.weights import relative_weights
from harness.metrics.analytic import range_shares
from harness.records import REAL
from harness.registry import named
from harness.registry.given import as_array, by_name
from harness.streams import stream

Array = npt.NDArray[np.float64]
Parameters = Mapping[str, Array]
"""Fitted parameters by name, each of shape [chains, ...]."""
Summary = Mapping[str, Array]
"""All that a fit needs to know of some examples, each array of shape [chains, ...]."""
ROWS = 32
"""Rows of a matrix product that samples: a product of fixed shape, so that a row's bits do not depend on how
many are sampled."""


@dataclass(frozen=True)
class Chains:
    """The chains of an array: their seeds, in its order, and the generation.

    Attributes:
        seeds: One per chain.
        generation: Index of the generation.
    """

    seeds: tuple[int, ...]
    generation: int

    def __len__(self) -> int:
        """Number of chains."""
        return len(self.seeds)

    def stream(self, chain: int, purpose: str) -> np.random.Generator:
        """A chain's stream for a purpose."""
        return stream(self.seeds[chain], self.generation, purpose)

    def draw(self, chain: int) -> Draw:
        """From a purpose to a chain's stream."""
        return lambda purpose: self.stream(chain, purpose)

    def uniforms(self, purpose: str, count: int) -> Array:
        """Shape [chains, count], values in [0, 1); fewer are a prefix of more."""
        return np.stack([self.stream(chain, purpose).random(count) for chain in range(len(self))])

    def normals(self, purpose: str, count: int, width: int, pad: int = 0) -> Array:
        """Standard normals of shape [chains, count + pad, width], the padding 0.

        Fewer are a prefix of more.
        """
        found = np.zeros((len(self), count + pad, width))
        for chain in range(len(self)):
            self.stream(chain, purpose).standard_normal(out=found[chain, :count])
        return found


class Family(ABC):
    """A family of models.

    A fit sees its training set as the merged summaries of its parts, in order: one part per origin. Merging
    goes from the left, so the pool of an accumulating chain can be kept and extended.
    """

    parameters: ClassVar[tuple[str, ...]] = ()
    """What of a model is kept beside its record; a model has other arrays that follow from these or are
    examples."""
    reads_real: bool = False
    """Whether sampling reads the real training examples."""

    def __init__(self, learner: Any, truth: Truth) -> None:
        """Keep the learner's section and the real distribution."""
        self.learner, self.truth = learner, truth
        self.synthetic_weight = getattr(learner, "synthetic_weight", 1.0)

    def summarise(self, values: Array) -> Summary:
        """A summary of examples of shape [chains, count, width]."""
        return {"values": values}

    def merge(self, left: Summary, right: Summary) -> Summary:
        """The summary of both together, ``left`` first."""
        return {name: np.concatenate([left[name], right[name]], axis=1) for name in left}

    def weigh(self, summary: Summary, weight: float) -> Summary:
        """The summary of the same examples, each counted so many times.

        Raises:
            LearnerError: The learner has a field ``synthetic_weight``, and its family does not say how.
        """
        raise LearnerError(
            f"learner.synthetic_weight: {type(self).__name__} does not say how examples are weighed; it "
            "needs a method weigh"
        )

    def numbers_per_chain(self, rows: int, n: int) -> int:
        """Rough size of a chain's model, and of what is made on the way, in numbers.

        Args:
            rows: Examples of its largest training set.
            n: Real training examples.
        """
        return 4 * self.truth.width**2  # moments, a root, and what they are made with

    @abstractmethod
    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        """Fit a model to each chain's examples.

        Args:
            summary: Of the training set.
            chains: Whose.
            parent: The models to go on from; None for a learner that starts anew.
        """

    @abstractmethod
    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        """The first ``count`` examples of each chain's corpus, shape [chains, count, width].

        Args:
            model: The models.
            chains: Whose.
            count: How many; fewer are a prefix of more.
            real: The chains' real training examples, for a learner that reads them (`reads_real`).
        """

    @abstractmethod
    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        """Metrics by name, each of shape [chains].

        Args:
            model: The models.
            corpus: The examples that the metrics read, shape [chains, count, width].
        """


def fold_origins(
    family: Family, parts: Sequence[Summary], origins: Sequence[int], sizes: Sequence[int]
) -> Summary:
    """Merge summaries from the left, synthetic ones with the learner's weight.

    Args:
        family: The family.
        parts: Summaries, one for each origin.
        origins: Their origins.
        sizes: How many examples each is of.
    """
    real = sum(size for size, origin in zip(sizes, origins, strict=True) if origin == REAL)
    weights = relative_weights(family.synthetic_weight, real, sum(sizes) - real)
    if weights is not None:
        parts = [
            family.weigh(part, weights[origin != REAL]) for part, origin in zip(parts, origins, strict=True)
        ]
    return fold(family, parts)


def fold(family: Family, parts: Sequence[Summary]) -> Summary:
    """Merge summaries from the left."""
    found = parts[0]
    for part in parts[1:]:
        found = family.merge(found, part)
    return found


def select(arrays: Mapping[str, Array], chains: Any) -> dict[str, Array]:
    """Some of the chains."""
    return {name: array[chains] for name, array in arrays.items()}


def affine(mean: Array, root: Array, normals: Array, count: int) -> Array:
    """Mean + root @ normal for rows of standard normals.

    [chains, dim], [chains, dim, dim], [chains, rows, dim].

    The number of rows is a multiple of `ROWS`; the first ``count`` results are returned.
    """
    chains, rows, dim = normals.shape
    blocks = normals.reshape(chains, rows // ROWS, ROWS, dim) @ root.transpose(0, 2, 1)[:, None]
    return np.asarray((blocks.reshape(chains, rows, dim) + mean[:, None])[:, :count])


def padding(count: int) -> int:
    """Rows that fill ``count`` up to a multiple of `ROWS`."""
    return -count % ROWS


def make_family(learner: Any, truth: Truth) -> Family:
    """The family of a learner's section."""
    family: Family = named(LEARNERS[learner.kind].family, Family)(learner, truth)
    return family


def fitted(family: Family, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
    """The models of `Family.fit`, looked at.

    Raises:
        LearnerError: They are no arrays with the chains as their first axis, or lack some that are kept.
    """
    whose = f"{whose_learner(family.learner.kind)}: fit"
    found = by_name(family.fit(summary, chains, parent), whose)
    if lacks := [name for name in family.parameters if name not in found]:
        raise LearnerError(f"{whose} gives no {', '.join(lacks)}, which its parameters name")
    return {
        name: as_array(array, [len(chains)], f"{whose}: {name}", "chains, and any", more=True)
        for name, array in found.items()
    }


def sampled(family: Family, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
    """The corpora of `Family.sample`, looked at.

    Raises:
        LearnerError: They are something else than so many examples of each chain, as wide as the real ones.
    """
    shape, whose = (len(chains), count, family.truth.width), f"{whose_learner(family.learner.kind)}: sample"
    axes = "chains, examples, numbers in an example"
    return as_array(family.sample(model, chains, count, real), shape, f"{whose}: what it gives", axes)


def metrics_of(family: Family, model: Parameters, corpus: Array, asked: Evaluate) -> dict[str, Array]:
    """The metrics of `Family.evaluate`, looked at, and the shares of ranges (``evaluate.ranges``).

    Args:
        family: The family.
        model: The models.
        corpus: The examples that the metrics read, shape [chains, count, width].
        asked: What is measured, of which a learner reads what it says (`LearnerPlugin.evaluates`).

    Raises:
        LearnerError: They are something else than a number of each chain, by name.
    """
    whose = f"{whose_learner(family.learner.kind)}: evaluate"
    found = {
        name: as_array(values, corpus.shape[:1], f"{whose}: {name}", "chains")
        for name, values in by_name(family.evaluate(model, corpus), whose).items()
    }
    reads_ranges = "ranges" in LEARNERS[family.learner.kind].evaluates
    return {**found, **(range_shares(corpus[:, :, 0], asked.ranges) if reads_ranges else {})}
