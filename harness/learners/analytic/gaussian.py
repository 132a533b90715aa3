"""The multivariate normal distribution, fitted in closed form: the smallest system that collapses."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg.lapack import dpstrf

from harness.components.merging import share_of_way
from harness.config.schema import Gaussian
from harness.learners.analytic.family import Array, Chains, Family, Parameters, Summary, affine, padding
from harness.metrics.analytic import gaussian_metrics, normal_nll


class GaussianFamily(Family):
    """Mean and covariance; sampled through a pivoted Cholesky factor, which a singular covariance has too."""

    learner: Gaussian
    parameters = ("mean", "covariance")

    def summarise(self, values: Array) -> Summary:
        """Number, mean and scatter matrix; with ``truncate`` the examples too."""
        count = values.shape[1]
        mean = (np.ones((1, count)) @ values)[:, 0] / max(count, 1)
        centred = values - mean[:, None]
        found = {
            "count": np.full(len(values), float(count)),
            "mean": mean,
            "scatter": centred.transpose(0, 2, 1) @ centred,
        }
        return {**found, "values": values} if self.learner.truncate is not None else found

    def merge(self, left: Summary, right: Summary) -> Summary:
        """Pooled moments (Chan, Golub and LeVeque 1979)."""
        count = left["count"] + right["count"]
        apart = right["mean"] - left["mean"]
        share = (right["count"] / count)[:, None]
        between = (
            (left["count"] * right["count"] / count)[:, None, None] * apart[:, :, None] * apart[:, None, :]
        )
        found = {
            "count": count,
            "mean": left["mean"] + share * apart,
            "scatter": left["scatter"] + right["scatter"] + between,
        }
        return (
            found if "values" not in left else {**found, **super().merge(_examples(left), _examples(right))}
        )

    def numbers_per_chain(self, rows: int, n: int) -> int:
        """Moments; with ``truncate`` the examples, centred and whitened."""
        examples = 4 * rows * self.truth.width if self.learner.truncate is not None else 0
        return super().numbers_per_chain(rows, n) + examples

    def weigh(self, summary: Summary, weight: float) -> Summary:
        """The same mean, counted more or less."""
        return {
            "count": weight * summary["count"],
            "mean": summary["mean"],
            "scatter": weight * summary["scatter"],
        }

    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        """The sample mean and covariance: divided by n (mle) or n - 1 (unbiased).

        With ``merge`` both lie on the line through the models to go on from: an average (Wortsman and others
        2022, arXiv 2203.05482), or away from them (Neon: Alemohammad and others 2025, arXiv 2510.03597).
        With ``truncate`` the moments are those of the examples that are left.
        """
        if parent is not None and self.learner.truncate is not None:
            summary = _unlikely(summary["values"], parent, self.learner.truncate)
        divisor = summary["count"] - (1.0 if self.learner.estimator == "unbiased" else 0.0)
        found = {"mean": summary["mean"], "covariance": summary["scatter"] / divisor[:, None, None]}
        if parent is not None and self.learner.merge != 1.0:
            share = share_of_way(self.learner.merge, chains.generation)
            found = {name: parent[name] + share * (value - parent[name]) for name, value in found.items()}
            if not 0 <= share <= 1:  # beyond both ends of the line there need be no normal distribution
                found["covariance"][_indefinite(found["covariance"])] = np.nan
        root, log_det = factor(found["covariance"])
        return {**found, "root": root, "log_det": log_det}

    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        """Examples of N(mean, covariance)."""
        normals = chains.normals("sample", count, model["mean"].shape[1], padding(count))
        return affine(model["mean"], model["root"], normals, count)

    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        """Distance of the fit from the truth, where that is normal; NLL on real examples."""
        found = {}
        truth = self.truth.normal
        if truth is not None:
            found = gaussian_metrics(
                model["mean"], model["covariance"], model["log_det"], truth.mean, truth.variance
            )
            inner: Array | float = truth.variance
            points = np.full((1, truth.dim), truth.mean)
        else:
            inner, points = 0.0, self.truth.test
            with np.errstate(divide="ignore"):
                trace = np.trace(model["covariance"], axis1=1, axis2=2)
                found = {"gaussian/log_variance": np.log(trace / trace.dtype.type(model["mean"].shape[1]))}
        return {
            **found,
            "test/nll": normal_nll(model["mean"], model["root"], model["log_det"], points, inner),
        }


def _unlikely(values: Array, before: Parameters, share: float) -> Summary:
    """The moments of the examples that are not too likely under the models before; of none NaN.

    The loss of what a model finds likely is 0, as in truncated cross-entropy (ForTIFAI, arXiv 2509.08972).

    Args:
        values: The examples, shape [chains, num_examples, dim].
        before: Mean and covariance of each chain.
        share: Of a density's highest value, the most that an example may have.
    """
    away = np.full(values.shape[:2], np.nan)  # squared distances from the mean, as the covariance measures
    finite = np.isfinite(before["covariance"]).all(axis=(1, 2))
    spectrum, axes = np.linalg.eigh(before["covariance"][finite])
    turned = (values - before["mean"][:, None])[finite] @ axes
    with np.errstate(divide="ignore", invalid="ignore"):
        away[finite] = (turned**2 / spectrum[:, None]).sum(axis=2)
    kept = (away >= -2 * math.log(share)).astype(np.float64)
    count = kept.sum(axis=1)
    count[count == 0] = np.nan
    mean = (kept[:, None] @ values)[:, 0] / count[:, None]
    centred = (values - mean[:, None]) * kept[:, :, None]
    return {"count": count, "mean": mean, "scatter": centred.transpose(0, 2, 1) @ centred}


def _examples(summary: Summary) -> Summary:
    return {"values": summary["values"]}


def _indefinite(covariance: Array) -> Array:
    """Which matrices have a negative eigenvalue, beyond rounding; [chains, dim, dim] to truth, [chains]."""
    finite = np.where(np.isfinite(covariance), covariance, 0.0)
    trace = np.abs(np.trace(finite, axis1=1, axis2=2))
    return np.asarray(np.linalg.eigvalsh(finite)[:, 0] < -1e-12 * trace)


def factor(covariance: Array) -> tuple[Array, Array]:
    """A root of each covariance, and the log of its determinant.

    Args:
        covariance: Shape [chains, dim, dim], positive semi-definite.

    Returns:
        ``root`` with root @ root.T = covariance, shape [chains, dim, dim]; log determinants, shape [chains],
        -inf where singular.
    """
    chains, dim, _ = covariance.shape
    with np.errstate(divide="ignore"):
        if dim == 1:
            root = np.sqrt(covariance)
            return root, 2 * np.log(root[:, 0, 0])
        root, log_det = np.zeros_like(covariance), np.full(chains, -np.inf)
        for chain in range(chains):
            if not np.isfinite(covariance[chain]).all():
                root[chain], log_det[chain] = np.nan, np.nan
                continue
            lower, pivot, rank, _ = dpstrf(covariance[chain], lower=1)
            lower = np.tril(lower)
            lower[:, rank:] = 0.0
            root[chain, pivot - 1] = lower
            if rank == dim:
                log_det[chain] = 2 * np.log(np.diagonal(lower)).sum()
        return root, log_det
