"""Real distributions that are known, or given as rows of numbers; every seed draws its own training examples.

The test examples are the same for every seed. Example i depends on its index alone, so fewer examples are a
prefix of more.
"""

from __future__ import annotations

import hashlib
import math
import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from harness.components import DATA_KINDS
from harness.components.truths import (
    AnalyticData,
    ArrayData,
    DiscreteData,
    GaussianData,
    LinearData,
    MixtureData,
    ShapeData,
)
from harness.config.schema import data_kind
from harness.data.base import PreparedData, RealData, Room, own_examples, supply_of
from harness.data.rows import read_rows
from harness.errors import DataError
from harness.records import Examples
from harness.registry import named
from harness.science import DataSpec
from harness.section import science
from harness.streams import stream

Array = npt.NDArray[np.float64]
Draw = Callable[[str], np.random.Generator]
"""From a purpose to its stream."""
TEST_EXAMPLES = 500
"""Fresh real examples that a NLL is measured on, where it has no closed form (as many as Kazdan et al.
2410.16713)."""
ROWS = "rows.npy"
"""The file of rows that are kept in a folder."""
VERSION = 1
"""Version of how the examples are drawn; part of every key."""


def density_of_normal(values: Array, mean: Array, std: float) -> Array:
    """Log density of N(mean, std^2 I) at rows: [rows, dim] to [rows]."""
    return np.asarray(
        -0.5 * ((((values - mean) / std) ** 2).sum(axis=-1) + values.shape[-1] * np.log(2 * np.pi * std**2))
    )


class Truth(RealData):
    """A known distribution, or rows of numbers.

    Attributes:
        config: The section.
        width: Numbers per example.
        normal: Mean and variance, where it is a normal distribution.
    """

    width: int
    normal: GaussianData | None = None

    def __init__(self, config: AnalyticData, purpose: str = "real") -> None:
        """Keep the parameters.

        Args:
            config: The section.
            purpose: Name of the streams, so that a teacher's examples are not the real ones.
        """
        self.config, self.purpose = config, purpose

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        assert self.config.num_examples is not None
        return self.config.num_examples

    @property
    def supply(self) -> int:
        """Without limit."""
        return sys.maxsize

    @property
    def example_bytes(self) -> int:
        """Bytes of an example in memory."""
        return 8 * self.width

    @property
    def shape(self) -> tuple[int, ...]:
        """What examples are like: those of a teacher have the same."""
        return (self.width,)

    @property
    def identity(self) -> dict[str, Any]:
        """What enters keys."""
        return {"kind": self.config.source, **science(self.config), "version": VERSION}

    @property
    def stored(self) -> Mapping[str, Any] | None:
        """What decides the folder that keeps the examples; None where the section describes them."""
        return None

    @property
    def origin(self) -> str:
        """Where the examples come from, for people."""
        return self.config.source

    def write(self, folder: Path) -> None:
        """Write what `load_truth` reads, where something is stored."""

    @property
    def num_test(self) -> int:
        """Test examples."""
        return TEST_EXAMPLES

    @property
    @abstractmethod
    def test(self) -> Array:
        """Fresh real examples, the same for every seed: [examples, width]."""


class Distribution(Truth):
    """A distribution that examples are drawn from."""

    def teacher(self, changes: Mapping[str, Any]) -> DataSpec:
        """This distribution with some of its fields changed.

        Raises:
            DataError: The fields do not fit.
        """
        try:
            made = type(self)(type(self.config).model_validate({**self.config.model_dump(), **changes}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            allowed = ", ".join(name for name in type(self.config).model_fields if name != "source")
            raise DataError(
                f"regime.source.model.{where}: {str(first['msg']).lower()}; fields of this data: {allowed}"
            ) from None
        if made.shape != self.shape:
            raise DataError(
                "regime.source.model: the teacher's examples have another shape than the real ones (dim, "
                "outcomes or means)"
            )
        return DataSpec(made.config, made.identity)

    @abstractmethod
    def draw(self, streams: Draw, count: int) -> Array:
        """``count`` examples from these streams."""

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` examples of this seed, shape [count, width]."""
        return Examples.full(self.draw(lambda what: stream(seed, 0, self.purpose + what), count))

    def lesson(self, seed: int, generation: int, count: int) -> Examples:
        """What this distribution teaches one generation, where it is a teacher.

        ``count`` examples, new in each generation.
        """
        return Examples.full(self.draw(lambda what: stream(seed, generation, self.purpose + what), count))

    @cached_property
    def test(self) -> Array:
        """Fresh real examples, the same for every seed: [examples, width]."""
        return self.draw(lambda what: stream(0, 0, "test" + what), TEST_EXAMPLES)


class Density(Protocol):
    """A distribution whose density is known."""

    def log_density(self, values: Array) -> Array:
        """Log density at rows, [rows]."""
        ...


class GaussianTruth(Distribution):
    """N(mean, variance x I)."""

    config: GaussianData

    @property
    def normal(self) -> GaussianData:  # type: ignore[override]
        """It is one."""
        return self.config

    @property
    def own_metrics(self) -> Mapping[str, float]:
        """Its variance."""
        return {"gaussian/log_variance": math.log(self.config.variance), "kde/variance": self.config.variance}

    @property
    def width(self) -> int:  # type: ignore[override]
        """Coordinates."""
        return self.config.dim

    def draw(self, streams: Draw, count: int) -> Array:
        """Shape [count, dim]."""
        normals = streams("").standard_normal((count, self.config.dim))
        return np.asarray(self.config.mean + self.config.variance**0.5 * normals)

    def log_density(self, values: Array) -> Array:
        """Of the normal distribution."""
        return density_of_normal(
            values, np.full(self.config.dim, self.config.mean), self.config.variance**0.5
        )


def strata(probabilities: Array, n: int) -> npt.NDArray[np.int64]:
    """A class for each of n examples, each class as often as its probability says (largest remainders).

    They stand in a fixed mixed order.
    """
    exact = probabilities * n
    counts = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: n - counts.sum()]] += 1
    labels = np.repeat(np.arange(len(probabilities)), counts)
    mixed: npt.NDArray[np.int64] = labels[stream(0, 0, "strata").permutation(n)]
    return mixed


def choose(uniforms: Array, probabilities: Array) -> npt.NDArray[np.int64]:
    """Inverse transform: uniforms in [0, 1) to indices; an index of probability 0 is never chosen."""
    cumulative = np.cumsum(probabilities)
    found = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    return np.asarray(np.minimum(found, np.flatnonzero(probabilities)[-1]))


class DiscreteTruth(Distribution):
    """A distribution over K outcomes; an example is the index of its outcome."""

    config: DiscreteData
    width = 1

    @property
    def own_metrics(self) -> Mapping[str, float]:
        """Its entropy, and how many outcomes it has."""
        p = self.probabilities[self.probabilities > 0]
        return {"discrete/entropy": float(-(p * np.log(p)).sum()), "discrete/outcomes": float(len(p))}

    @property
    def shape(self) -> tuple[int, ...]:
        """An outcome, and how many there are."""
        return (1, len(self.probabilities))

    @cached_property
    def probabilities(self) -> Array:
        """Shape [K]."""
        config = self.config
        if config.probabilities is not None:
            return np.asarray(config.probabilities)
        assert config.outcomes is not None
        weights = np.arange(1, config.outcomes + 1, dtype=np.float64) ** -(config.zipf or 0.0)
        return np.asarray(weights / weights.sum())

    def draw(self, streams: Draw, count: int) -> Array:
        """Shape [count, 1]."""
        if self.config.stratified and self.purpose == "real":
            labels = strata(self.probabilities, self.num_examples)
            return labels[np.arange(count) % len(labels)][:, None].astype(np.float64)
        return choose(streams("").random(count), self.probabilities)[:, None].astype(np.float64)


class LinearTruth(Distribution):
    """y = w.x + noise; an example is x and then y."""

    config: LinearData

    @property
    def own_metrics(self) -> Mapping[str, float]:
        """It makes no error beyond its noise."""
        return {"regression/test_error": 0.0}

    @property
    def width(self) -> int:  # type: ignore[override]
        """Coordinates of x, and y."""
        return self.config.dim + 1

    @cached_property
    def weights(self) -> Array:
        """Shape [dim]: length 1, and the shift at a right angle to it (in one dimension along it)."""
        dim = self.config.dim
        base = np.full(dim, dim**-0.5)
        aside = np.where(np.arange(dim) % 2 == 0, 1.0, -1.0)
        aside -= base * (base @ aside) if dim > 1 else 0.0
        return np.asarray(base + self.config.shift * aside / np.linalg.norm(aside))

    def draw(self, streams: Draw, count: int) -> Array:
        """Shape [count, dim + 1]."""
        x = streams("").standard_normal((count, self.config.dim))
        return np.column_stack([x, self.label(x, streams)])

    def label(self, x: Array, streams: Draw) -> Array:
        """Labels of rows of x, [rows]."""
        signal = np.einsum("ij,j->i", x, self.weights)
        if self.config.labels == "real":
            return np.asarray(
                signal + self.config.noise_variance**0.5 * streams("_noise").standard_normal(len(x))
            )
        wrong = streams("_flip").random(len(x)) < self.config.flipped
        return np.where(signal >= 0, 1.0, -1.0) * np.where(wrong, -1.0, 1.0)


class MixtureTruth(Distribution):
    """A mixture of isotropic normal distributions."""

    config: MixtureData

    @property
    def width(self) -> int:  # type: ignore[override]
        """Coordinates."""
        return len(self.config.components[0].mean)

    def draw(self, streams: Draw, count: int) -> Array:
        """Shape [count, dim]."""
        parts = self.config.components
        weights = np.array([part.weight for part in parts])
        if self.config.stratified and self.purpose == "real":
            labels = strata(weights, self.num_examples)
            chosen = labels[np.arange(count) % len(labels)]
        else:
            chosen = choose(streams("_component").random(count), weights)
        means, stds = np.array([part.mean for part in parts]), np.array([part.std for part in parts])
        return np.asarray(
            means[chosen] + stds[chosen, None] * streams("").standard_normal((count, self.width))
        )

    def log_density(self, values: Array) -> Array:
        """Of the mixture."""
        logs = [
            np.log(part.weight) + density_of_normal(values, np.asarray(part.mean), part.std)
            for part in self.config.components
        ]
        return np.asarray(np.logaddexp.reduce(logs, axis=0))


class ShapeTruth(Distribution):
    """Blobs, moons, circles and the swiss roll, with scikit-learn's geometry.

    Blobs have three fixed centres: a generator that draws its centres anew for the test data compares two
    distributions.
    """

    config: ShapeData
    CENTRES = np.array([[-6.0, -4.0], [0.0, 6.0], [6.0, -4.0]])

    @property
    def width(self) -> int:  # type: ignore[override]
        """3 for the swiss roll, else 2."""
        return 3 if self.config.source == "swiss_roll" else 2

    def draw(self, streams: Draw, count: int) -> Array:
        """Shape [count, width]."""
        uniform = streams("_shape").random((count, 2))
        default = 1.0 if self.config.source == "blobs" else 0.05
        noise = default if self.config.noise is None else self.config.noise
        points = getattr(self, f"_{self.config.source}")(uniform[:, 0], uniform[:, 1])
        return np.asarray(points + noise * streams("").standard_normal(points.shape))

    def _blobs(self, which: Array, _: Array) -> Array:
        return np.asarray(self.CENTRES[np.minimum((which * 3).astype(int), 2)])

    @staticmethod
    def _moons(which: Array, place: Array) -> Array:
        outer, angle = which < 0.5, np.pi * place
        x, y = np.cos(angle), np.sin(angle)
        return np.column_stack([np.where(outer, x, 1 - x), np.where(outer, y, 0.5 - y)])

    @staticmethod
    def _circles(which: Array, place: Array) -> Array:
        radius, angle = np.where(which < 0.5, 1.0, 0.8), 2 * np.pi * place
        return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])

    @staticmethod
    def _swiss_roll(along: Array, across: Array) -> Array:
        angle = 1.5 * np.pi * (1 + 2 * along)
        return np.column_stack([angle * np.cos(angle), 21 * across, angle * np.sin(angle)])


class ArrayTruth(Truth):
    """Rows of a file: split and shuffled once, the same for every seed."""

    config: ArrayData

    def __init__(self, config: ArrayData, purpose: str = "real") -> None:
        """Read the file.

        Raises:
            DataError: It cannot be read, or holds something else than finite numbers.
        """
        super().__init__(config, purpose)
        self.rows = read_rows(config)
        self.fingerprint = hashlib.sha256(repr(self.rows.shape).encode() + self.rows.tobytes()).hexdigest()[
            :32
        ]
        held_out = max(1, round(config.test * len(self.rows)))
        shuffled = self.rows[stream(0, 0, "rows").permutation(len(self.rows))]
        self._test, self._train = shuffled[:held_out], shuffled[held_out:]
        if len(self._train) < 2:
            raise DataError(
                f"data.path: {config.path} has {len(self.rows)} rows, too few to hold {held_out} out"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What enters keys: the rows by their content, never by their path."""
        found = super().identity
        del found["path"]
        return {**found, "content": self.fingerprint}

    @property
    def stored(self) -> Mapping[str, Any]:
        """The rows decide their folder."""
        return {"kind": "array", "content": self.fingerprint}

    @property
    def origin(self) -> str:
        """The file."""
        return self.config.path

    def write(self, folder: Path) -> None:
        """Write the rows."""
        np.save(folder / ROWS, self.rows, allow_pickle=False)

    def teacher(self, changes: Mapping[str, Any]) -> DataSpec:
        """None: refused."""
        raise DataError(
            "regime.source.model: rows of a file have no parameters that a teacher could differ in"
        )

    @property
    def width(self) -> int:  # type: ignore[override]
        """Columns."""
        return int(self.rows.shape[1])

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        return self.config.num_examples or self.supply

    @property
    def supply(self) -> int:
        """Rows that are not held out, or those of the segment."""
        return supply_of(self.config, len(self._train))

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` rows, the same for every seed unless they are resampled."""
        return Examples.full(self._train[own_examples(self.config, seed, len(self._train), count)])

    @property
    def num_test(self) -> int:
        """Rows that are held out."""
        return len(self._test)

    @property
    def test(self) -> Array:
        """The rows that are held out."""
        return self._test


TRUTHS: dict[str, type[Truth]] = {
    "gaussian": GaussianTruth,
    "discrete": DiscreteTruth,
    "linear": LinearTruth,
    "mixture": MixtureTruth,
    "array": ArrayTruth,
}


def make_truth(config: AnalyticData, purpose: str = "real") -> Truth:
    """The distribution of a section.

    Raises:
        DataError: A file cannot be read.
    """
    return TRUTHS.get(config.source, ShapeTruth)(config, purpose)


def prepared(config: AnalyticData, room: Room) -> PreparedData:
    """A known distribution, which needs no folder, or rows, which are kept in one.

    Raises:
        DataError: A file cannot be read.
    """
    truth = make_truth(config)
    if truth.stored is not None:
        room.folder(truth.stored, truth.write)
    return PreparedData(truth.identity, truth, {"source": truth.origin})


def load_truth(config: AnalyticData, folder: Path | None) -> Truth:
    """What a section describes, or the rows in a folder."""
    return make_truth(config if folder is None else config.model_copy(update={"path": str(folder / ROWS)}))


def load_teacher(spec: DataSpec) -> Distribution:
    """A fixed teacher, from its spec (`Distribution.teacher`): its examples are not the real ones."""
    teacher: Distribution = named(DATA_KINDS[data_kind(spec.section)].load)(spec.section, None)
    teacher.purpose = "teacher"
    return teacher
