"""Kernel density estimates with a Gaussian kernel; a sample is a training example with the kernel's noise."""

from __future__ import annotations

import numpy as np

from harness.config.schema import Kde
from harness.learners.analytic.family import Array, Chains, Family, Parameters, Summary
from harness.metrics.analytic import log_kernel_sums, moments


class KdeFamily(Family):
    """The training examples and a bandwidth.

    With a fixed bandwidth a summary also holds the log of its kernels' sum at each test example, which merges
    by adding: the pool of an accumulating chain is not scored again in every generation.
    """

    learner: Kde
    parameters = ("bandwidth",)

    @property
    def _fixed(self) -> float | None:
        bandwidth = self.learner.bandwidth
        return None if isinstance(bandwidth, str) else float(bandwidth)

    def numbers_per_chain(self, rows: int, n: int) -> int:
        """Kernels at the test examples, which are computed for one chain after another."""
        return len(self.truth.test) * min(rows, 2 * n) // 8

    def summarise(self, values: Array) -> Summary:
        """The examples, and their kernels at the test examples."""
        if self._fixed is None:
            return {"values": values}
        return {
            "values": values,
            "log_kernels": log_kernel_sums(self.truth.test, values, np.full(len(values), self._fixed)),
        }

    def merge(self, left: Summary, right: Summary) -> Summary:
        """The examples of both."""
        merged = {"values": np.concatenate([left["values"], right["values"]], axis=1)}
        if "log_kernels" in left:
            merged["log_kernels"] = np.logaddexp(left["log_kernels"], right["log_kernels"])
        return merged

    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        """The bandwidth.

        A number, or Scott's or Silverman's rule for unit variance, as in Kazdan et al. 2410.16713.
        """
        values = summary["values"]
        count, dim = values.shape[1:]
        match self.learner.bandwidth:
            case "scott":
                bandwidth = count ** (-1 / (dim + 4))
            case "silverman":
                bandwidth = (count * (dim + 2) / 4) ** (-1 / (dim + 4))
            case number:
                bandwidth = float(number)
        widths = np.full(len(values), bandwidth)
        kernels = (
            summary["log_kernels"]
            if "log_kernels" in summary
            else log_kernel_sums(self.truth.test, values, widths)
        )
        return {"values": values, "bandwidth": widths, "log_kernels": kernels}

    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        """A training example chosen at random, with noise."""
        values = model["values"]
        chosen = np.minimum(
            (chains.uniforms("sample_component", count) * values.shape[1]).astype(np.int64),
            values.shape[1] - 1,
        )
        noise = chains.normals("sample", count, values.shape[2])
        return np.asarray(
            np.take_along_axis(values, chosen[:, :, None], axis=1) + model["bandwidth"][:, None, None] * noise
        )

    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        """NLL of the test examples; the variance of the density."""
        count, dim = model["values"].shape[1:]
        logs = model["log_kernels"] - np.log(count)
        nll = -logs.sum(axis=1) / logs.shape[1]
        variance = moments(model["values"])[1] + model["bandwidth"] ** 2
        with np.errstate(divide="ignore"):
            found = {
                "kde/test_nll": nll,
                "test/nll": nll,
                "kde/variance": variance,
                "kde/log_variance": np.log(variance),
            }
            return {**found, "kde/bandwidth": model["bandwidth"]}
