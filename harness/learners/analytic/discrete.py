"""Frequencies of outcomes: genetic drift, in which an outcome that is lost never comes back."""

from __future__ import annotations

import numpy as np

from harness.data.distributions import DiscreteTruth, choose
from harness.learners.analytic.family import Array, Chains, Family, Parameters, Summary
from harness.metrics.analytic import discrete_metrics


class DiscreteFamily(Family):
    """One probability per outcome."""

    truth: DiscreteTruth
    parameters = ("probabilities",)

    @property
    def probabilities(self) -> Array:
        """The true ones, shape [outcomes]."""
        return self.truth.probabilities

    def numbers_per_chain(self, rows: int, n: int) -> int:
        """Counts and probabilities."""
        return 4 * len(self.probabilities)

    def summarise(self, values: Array) -> Summary:
        """Counts, shape [chains, outcomes]."""
        size, chains = len(self.probabilities), len(values)
        flat = values[:, :, 0].astype(np.int64) + size * np.arange(chains)[:, None]
        counts = np.bincount(flat.reshape(-1), minlength=size * chains)
        return {"counts": counts.reshape(chains, size).astype(np.float64)}

    def merge(self, left: Summary, right: Summary) -> Summary:
        """Counts add up."""
        return {"counts": left["counts"] + right["counts"]}

    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        """Relative frequencies: the maximum-likelihood estimate."""
        return {"probabilities": summary["counts"] / summary["counts"].sum(axis=1, keepdims=True)}

    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        """Indices of outcomes, by inverse transform."""
        uniforms = chains.uniforms("sample", count)
        drawn = [choose(uniforms[chain], model["probabilities"][chain]) for chain in range(len(chains))]
        return np.stack(drawn)[:, :, None].astype(np.float64)

    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        """Entropy, outcomes that are left, heterozygosity, divergence from the truth.

        Shares where outcomes are few.
        """
        return discrete_metrics(model["probabilities"], self.probabilities)
