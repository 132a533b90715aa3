"""The real distributions that are known: how their examples are drawn, and their densities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt

from harness.components.truths import DiscreteData, GaussianData, LinearData, MixtureData, ShapeData
from harness.data.analytic import Array, Distribution, Draw
from harness.streams import stream


def density_of_normal(values: Array, mean: Array, std: float) -> Array:
    """Log density of N(mean, std^2 I) at rows: [rows, dim] to [rows]."""
    return np.asarray(
        -0.5 * ((((values - mean) / std) ** 2).sum(axis=-1) + values.shape[-1] * np.log(2 * np.pi * std**2))
    )


class GaussianTruth(Distribution):
    """N(mean, variance x I)."""

    config: GaussianData

    @property
    def normal(self) -> GaussianData:  # type: ignore[override]
        """Its section, as it is a normal distribution."""
        return self.config

    @property
    def own_metrics(self) -> Mapping[str, float]:
        """Its own metrics: the true variance, and its logarithm."""
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
        """Log density of the normal distribution."""
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
        """The error of the truth itself: none beyond its noise."""
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
        """Log density of the mixture."""
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
