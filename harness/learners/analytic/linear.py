"""Least squares on labels that earlier models gave."""

from __future__ import annotations

import numpy as np
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs

from harness.config.schema import LinearRegression
from harness.data.distributions import LinearTruth
from harness.learners.analytic.family import Array, Chains, Family, Parameters, Summary, affine, padding
from harness.metrics.analytic import regression_metrics


class LinearFamily(Family):
    """Weights; a sample is x with the label that the weights give it, and the data's noise."""

    learner: LinearRegression
    parameters = ("weights",)

    def __init__(self, learner: LinearRegression, truth: LinearTruth) -> None:
        """Keep the section and the true weights."""
        super().__init__(learner, truth)
        self.data = truth.config
        self.true_weights = truth.weights
        self.reads_real = self.learner.design == "fixed"

    def summarise(self, values: Array) -> Summary:
        """The Gram matrix of x and y together, and the number of examples."""
        return {
            "count": np.full(len(values), float(values.shape[1])),
            "gram": values.transpose(0, 2, 1) @ values,
        }

    def merge(self, left: Summary, right: Summary) -> Summary:
        """Gram matrices add up."""
        return {name: left[name] + right[name] for name in left}

    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        """(X'X + ridge I)^-1 X'y, chain by chain.

        NaN where the examples do not determine the weights: that chain has diverged.
        """
        dim = self.data.dim
        gram = summary["gram"][:, :dim, :dim] + self.learner.ridge * np.eye(dim)
        weights = np.full((len(gram), dim), np.nan)
        for chain, matrix in enumerate(gram):
            lower, failed = dpotrf(matrix, lower=1)
            if (
                failed
                or dpocon(lower, np.abs(matrix).sum(axis=0).max(), uplo="L")[0]
                < dim * np.finfo(np.float64).eps
            ):
                continue
            weights[chain] = dpotrs(lower, summary["gram"][chain, :dim, dim], lower=1)[0]
        return {"weights": weights}

    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        """Examples [x, y].

        ``design: fixed`` goes through the real x, again from the first where there are fewer.
        """
        dim = self.data.dim
        if self.learner.design == "fixed":
            assert real is not None
            x = real[:, np.arange(count) % real.shape[1], :dim]
            x = np.concatenate([x, np.zeros((len(x), padding(count), dim))], axis=1)
        else:
            x = chains.normals("sample", count, dim, padding(count))
        # The product that every label comes from has a fixed shape, and one column that matters.
        root = np.zeros((len(chains), dim, dim))
        root[:, 0] = model["weights"]
        signal = affine(np.zeros((len(chains), dim)), root, x, count)[:, :, 0]
        if self.data.labels == "sign":
            y = np.where(signal >= 0, 1.0, -1.0)
        else:
            y = signal + self.data.noise_variance**0.5 * chains.normals("sample_noise", count, 1)[:, :, 0]
        return np.concatenate([x[:, :count], y[:, :, None]], axis=2)

    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        """Error of the weights; for labels that are signs the accuracy too."""
        return regression_metrics(model["weights"], self.true_weights, self.data.labels == "sign")
