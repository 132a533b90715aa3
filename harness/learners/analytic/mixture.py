"""Mixtures of normal distributions, fitted by expectation-maximisation (scikit-learn's GaussianMixture)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config.schema import Mixture
from harness.data.distributions import choose
from harness.learners.analytic.family import ROWS, Array, Chains, Family, Parameters, Summary, padding
from harness.learners.analytic.gaussian import factor
from harness.metrics.analytic import mixture_log_density, moments
from harness.streams import stream_seed


class MixtureFamily(Family):
    """Weights, means and covariances."""

    learner: Mixture
    parameters = ("weights", "means", "covariances")

    def numbers_per_chain(self, rows: int, n: int) -> int:
        """Each component has moments of its own."""
        return self.learner.components * super().numbers_per_chain(rows, n)

    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        """One fit per chain; k-means starts it, or the previous generation's parameters do.

        A chain whose examples admit no fit any more (a covariance that is not positive definite) gets NaN: it
        has diverged.
        """
        learner = self.learner
        values = summary["values"]
        k, dim = learner.components, values.shape[2]
        model: dict[str, Array] = {
            "weights": np.full((len(values), k), np.nan),
            "means": np.full((len(values), k, dim), np.nan),
            "covariances": np.full((len(values), k, dim, dim), np.nan),
            "converged": np.zeros(len(values)),
        }
        for chain, rows in enumerate(values):
            start = (
                None
                if parent is None
                else {name: parent[name][chain] for name in ("weights", "means", "covariances")}
            )
            if start is not None and learner.truncate is not None:
                rows = rows[_unlikely(rows, start, learner.truncate)]
            found = self._fit(rows, stream_seed(chains.seeds[chain], chains.generation, "em"), start)
            for name, array in (found or {}).items():
                model[name][chain] = array
        return model

    def _fit(self, rows: Array, seed: int, start: dict[str, Array] | None) -> dict[str, Any] | None:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        learner = self.learner
        begin: dict[str, Any] = {}
        try:
            if start is not None:
                precisions = np.linalg.inv(start["covariances"])
                if learner.covariance == "diag":
                    precisions = np.diagonal(precisions, axis1=1, axis2=2)
                begin = {
                    "weights_init": start["weights"],
                    "means_init": start["means"],
                    "precisions_init": precisions,
                }
            found = GaussianMixture(
                learner.components,
                covariance_type=learner.covariance,
                tol=learner.tolerance,
                reg_covar=learner.regularisation,
                max_iter=learner.max_iterations,
                random_state=seed % 2**32,
                **begin,
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                found.fit(rows)
        except (ValueError, np.linalg.LinAlgError):
            return None
        covariances = found.covariances_
        if learner.covariance == "diag":
            covariances = np.stack([np.diag(row) for row in covariances])
        return {
            "weights": found.weights_,
            "means": found.means_,
            "covariances": covariances,
            "converged": np.float64(found.converged_),
        }

    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        """A component by its weight, then the component's normal distribution."""
        uniforms = chains.uniforms("sample_component", count)
        size, dim = len(chains), model["means"].shape[2]
        normals = chains.normals("sample", count, dim, padding(count))
        k = model["weights"].shape[1]
        roots = factor(model["covariances"].reshape(-1, dim, dim))[0].reshape(size, k, dim, dim)
        drawn = np.empty((size, count, dim))
        for chain in range(size):
            chosen = choose(uniforms[chain], model["weights"][chain])
            blocks = normals[chain].reshape(-1, ROWS, dim)
            # Every component's product for every row, of fixed shape; then the one that was chosen.
            everywhere = np.stack([(blocks @ root.T).reshape(-1, dim)[:count] for root in roots[chain]])
            drawn[chain] = everywhere[chosen, np.arange(count)] + model["means"][chain][chosen]
        return drawn

    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        """NLL of the test examples, what is left of the components, the corpus's spread."""
        size, test = len(model["weights"]), self.truth.test
        found: dict[str, Array] = {
            name: np.full(size, np.nan) for name in ("test/nll", "mixture/components", "mixture/min_weight")
        }
        for chain in range(size):
            weights = model["weights"][chain]
            logs = mixture_log_density(test, weights, model["means"][chain], model["covariances"][chain])
            found["test/nll"][chain] = -logs.mean()
            found["mixture/components"][chain] = (weights >= 1 / (2 * self.truth.num_examples)).sum()
            found["mixture/min_weight"][chain] = weights.min()
        with np.errstate(divide="ignore"):
            found["mixture/log_variance"] = np.log(moments(corpus)[1])
        found["mixture/converged"] = np.asarray(model["converged"])
        return found


def _unlikely(rows: Array, before: dict[str, Array], share: float) -> npt.NDArray[np.bool_]:
    """Which examples are no likelier under a mixture than a share of its highest density at its means.

    The loss of what a model finds likely is 0, as in truncated cross-entropy (ForTIFAI, arXiv 2509.08972).

    Args:
        rows: Shape [num_examples, dim].
        before: Weights, means and covariances of the mixture.
        share: The share.
    """
    weights, means, covariances = (before[name] for name in ("weights", "means", "covariances"))
    highest = mixture_log_density(means, weights, means, covariances).max()
    return np.asarray(mixture_log_density(rows, weights, means, covariances) <= highest + math.log(share))
