"""N(mean, variance x I) as the real distribution; every seed draws its own examples."""

from __future__ import annotations

import sys

from harness.config.schema import GaussianData
from harness.records import Examples
from harness.streams import stream


class GaussianTruth:
    """A normal distribution with a known mean and covariance."""

    def __init__(self, config: GaussianData) -> None:
        """Keep the parameters."""
        self.config = config

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        return self.config.num_examples

    @property
    def supply(self) -> int:
        """Without limit."""
        return sys.maxsize

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` examples of this seed, shape [count, dim]; fewer are a prefix of more."""
        normals = stream(seed, 0, "real").standard_normal((count, self.config.dim))
        return Examples.full(self.config.mean + self.config.variance**0.5 * normals)
