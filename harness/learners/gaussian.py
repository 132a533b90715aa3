"""The multivariate normal distribution, fitted in closed form: the smallest system that collapses."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from harness.config.schema import Config, Gaussian
from harness.data.base import RealData
from harness.data.gaussian import GaussianTruth
from harness.learners.base import EvaluateTask, Evaluation, FitOutcome, FitTask, Ranks, SampleTask
from harness.metrics.gaussian import gaussian_metrics
from harness.records import Examples
from harness.streams import stream


class GaussianLearner:
    """Fits mean and covariance; samples by the symmetric square root of the covariance (which may be singular)."""

    def __init__(self, config: Config, data: RealData, ranks: Ranks) -> None:
        """Keep the configuration; ``data`` is a `GaussianTruth`."""
        assert isinstance(config.learner, Gaussian) and isinstance(data, GaussianTruth)
        self.estimator = config.learner.estimator
        self.truth = data.config

    def fit(self, task: FitTask) -> FitOutcome:
        """The sample mean and covariance: divided by n (mle) or n - 1 (unbiased)."""
        values = task.training.examples.values
        mean = values.mean(axis=0)
        centred = values - mean
        divisor = len(values) - (1 if self.estimator == "unbiased" else 0)
        save_file({"mean": mean, "covariance": centred.T @ centred / divisor}, task.out / "model.safetensors")
        return FitOutcome("ok", {"examples": len(values)}, len(values), len(values))

    def sample(self, task: SampleTask) -> int:
        """Examples of N(mean, covariance); a longer corpus begins with a shorter one."""
        model = load_file(task.fit / "model.safetensors")
        values, vectors = np.linalg.eigh(model["covariance"])
        root = vectors * np.sqrt(np.clip(values, 0.0, None))
        normals = stream(task.seed, task.generation, "sample").standard_normal((task.stop, len(values)))
        task.append(task.start, Examples.full(model["mean"] + normals[task.start :] @ root.T))
        return task.stop - task.start

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Distance of the fit from the truth."""
        model = load_file(task.fit / "model.safetensors")
        return Evaluation(gaussian_metrics(model["mean"], model["covariance"], self.truth.mean, self.truth.variance))

    def describe(self) -> Mapping[str, Any]:
        """Processor and numpy's version."""
        return {"device": platform.processor() or platform.machine(), "zero_stage": None, "versions": {"numpy": np.__version__}}
