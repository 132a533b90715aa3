"""The variational autoencoder as a learner: one rank, on the CPU."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, ndtri

from harness.config.schema import Vae, VaeSample
from harness.data.images import ImageSet
from harness.learners.protocol import (
    EvaluateTask,
    Evaluation,
    Execution,
    FitOutcome,
    FitTask,
    Ranks,
    SampleTask,
    Stopped,
)
from harness.learners.threads import compute_with
from harness.learners.vae.model import ConvVae, decoded, encoded, new_model, read_model, write_model
from harness.learners.vae.training import fit, plan_steps
from harness.metrics import vae as metrics
from harness.proc import cpu_device, installed_version
from harness.records import Examples
from harness.science import CorpusSpec, FitSpec
from harness.streams import stream, uniforms

LATENT_SAMPLES = 8
"""Latents per test image in the estimate of the ELBO."""
PICTURES = 64
"""Samples whose pictures are kept with an evaluation."""


class VaeLearner:
    """Convolutional VAEs over one set of images."""

    def __init__(self, data: ImageSet, ranks: Ranks, execution: Execution) -> None:
        """Keep the images, and make torch deterministic."""
        self.data, self.shape, self.resources = data, data.shape, execution.resources
        compute_with(execution.resources.threads)
        self._loaded: tuple[Path, ConvVae] | None = None

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit with Adam; a fit that diverged has no weights."""
        self._loaded = None
        learner, spec = _section(task.spec), task.spec
        if spec.init == "previous" and task.init_from is not None:
            model = read_model(learner, self.shape, task.init_from)
        else:
            model = new_model(learner, self.shape, spec.seed, spec.generation)
        images = self._images(task.training.examples)
        schedule = plan_steps(learner.train, len(images), spec.recipe.budget, self.data.num_examples)
        outcome = fit(model, learner.train, schedule, images, task)
        if outcome.status == "ok":
            write_model(model, task.out)
        return outcome

    def _images(self, examples: Examples) -> npt.NDArray[np.float32]:
        """Rows as images, shape [num, height, width]."""
        return np.ascontiguousarray(examples.values, dtype=np.float32).reshape(-1, *self.shape)

    def _model(self, spec: FitSpec, folder: Path) -> ConvVae:
        """The fitted model in a folder; the last one stays loaded."""
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = (folder, read_model(_section(spec), self.shape, folder))
        return self._loaded[1]

    def sample(self, task: SampleTask) -> int:
        """Whole batches; each is committed as a shard when it is done."""
        size, model, started = (
            self.resources.sampled_together,
            self._model(task.spec.fit, task.fit),
            time.monotonic(),
        )
        wanted = range(task.start // size, -(-task.stop // size))
        batches = [batch for batch in wanted if (batch * size, (batch + 1) * size) not in task.shards]
        for number, batch in enumerate(batches, start=1):
            if task.control.stopping:
                raise Stopped
            task.append(batch * size, self.draw(model, task.spec, batch * size, size))
            task.report(number * size, len(batches) * size, number * size / (time.monotonic() - started))
        return len(batches) * size

    def draw(self, model: ConvVae, spec: CorpusSpec, start: int, count: int) -> Examples:
        """Examples start..start+count-1 of a corpus; example i is decoded from the i-th stream of uniforms.

        Returns:
            Float32, shape [count, height * width]: the decoder's means, or its Bernoulli's draws for
            ``sample.binary``.
        """
        how: VaeSample = spec.sampling.section
        latent_dim, pixels = _section(spec.fit).latent_dim, self.shape[0] * self.shape[1]
        width = latent_dim + (pixels if how.binary else 0)
        uniform = uniforms(spec.fit.seed, spec.fit.generation, "sample", start, start + count, width)
        # a uniform may be 0, which has no finite quantile
        latent = ndtri(np.maximum(uniform[:, :latent_dim], 2.0**-54))
        logits = decoded(model, latent.astype(np.float32), count).reshape(count, pixels)
        means = expit(logits)
        values = uniform[:, latent_dim:] < means if how.binary else means
        return Examples.full(values.astype(np.float32))

    @cached_property
    def classifier(self) -> metrics.Classifier | None:
        """Trained on the real training split alone; None where what it reads has no classes, or one."""
        count, labels = metrics.CLASSIFIER_EXAMPLES, self.data.labels
        if labels is None or len(np.unique(labels[:count])) < 2:
            return None
        return metrics.Classifier(self.data.training[:count], labels[:count])

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """The ELBO on the real test set, and what the samples look like.

        Those are shown to generation 0's encoder and to a fixed classifier.
        """
        elbo = task.piece("elbo", 2, lambda: self._elbo(task))
        task.report(1, 2, 0.0)
        samples = self._images(task.corpus)
        means, _ = encoded(self._model(task.spec.fit, task.generation_0()), samples)
        found = {
            **metrics.elbo_metrics(elbo[0], elbo[1]),
            "vae/latent_std": metrics.latent_std(means),
            "vae/sample_std": metrics.sample_std(samples),
        }
        if task.spec.measured.section.groups is not None:
            found |= metrics.elbo_by_class(elbo, self.data.test_labels)
        if self.classifier is not None:
            found |= metrics.class_metrics(
                self.classifier.probabilities(task.corpus.values), self.classifier.classes
            )
        arrays = {"test_elbo": -elbo.sum(axis=0), "pictures": samples[:PICTURES].astype(np.float64)}
        task.report(2, 2, 0.0)
        return Evaluation(found, arrays)

    def _elbo(self, task: EvaluateTask) -> npt.NDArray[np.float64]:
        """Reconstruction and KL of every test image, nats, shape [2, num_test].

        All evaluations draw the same noise.
        """
        model, test = self._model(task.spec.fit, task.fit()), self._images(self.data.test)
        mean, log_variance = encoded(model, test)
        reconstruction = np.zeros(len(test))
        for index in range(LATENT_SAMPLES):
            noise = stream(0, 0, "elbo", index).standard_normal(mean.shape)
            logits = decoded(model, (mean + np.exp(0.5 * log_variance) * noise).astype(np.float32))
            reconstruction += (
                metrics.bernoulli_nll(logits.reshape(len(test), -1), self.data.test.values) / LATENT_SAMPLES
            )
            task.control.tick()
        return np.stack([reconstruction, metrics.gaussian_kl(mean, log_variance)])

    def reset_peak(self) -> None:
        """Do nothing: a largest memory can be reset on GPUs alone."""

    def describe(self) -> Mapping[str, Any]:
        """Device, batch and versions."""
        versions = {
            "torch": torch.__version__,
            "scikit-learn": installed_version("scikit-learn"),
            "numpy": np.__version__,
        }
        return {
            "device": cpu_device(),
            "zero_stage": None,
            "sample_batch": self.resources.sampled_together,
            "versions": versions,
        }


def _section(spec: FitSpec) -> Vae:
    section: Vae = spec.learner.section
    return section
