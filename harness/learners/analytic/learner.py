"""A family as a learner of its own: one chain, every generation in the store, as for large models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from harness.data.analytic import Truth
from harness.learners.analytic.family import (
    Chains,
    Family,
    Parameters,
    fitted,
    fold_origins,
    make_family,
    metrics_of,
    sampled,
)
from harness.learners.protocol import (
    EvaluateTask,
    Evaluation,
    Execution,
    FitOutcome,
    FitTask,
    Ranks,
    SampleTask,
)
from harness.proc import cpu_device, installed_version, one_thread
from harness.records import Examples
from harness.science import FitSpec


def versions() -> dict[str, str]:
    """Versions of the libraries that compute."""
    names = ("numpy", "scipy", "scikit-learn")
    return {name: installed_version(name) for name in names}  # importing them takes a second


class AnalyticLearner:
    """Fits, samples and measures one chain; the numbers are those of a bundle."""

    def __init__(self, data: Truth, ranks: Ranks, execution: Execution) -> None:
        """Keep the real distribution."""
        self.data = data

    def _family(self, spec: FitSpec) -> Family:
        return make_family(spec.learner.section, self.data)

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit to the parts of the training set, one per origin, in order."""
        drawn, values, family = task.training.drawn, task.training.examples.values, self._family(task.spec)
        origins = list(dict.fromkeys(drawn.origin.tolist()))
        with one_thread():
            parts = [family.summarise(values[None, drawn.origin == origin]) for origin in origins]
            parent = None if task.init_from is None else _load(task.init_from)
            sizes = [int((drawn.origin == origin).sum()) for origin in origins]
            model = fitted(family, fold_origins(family, parts, origins, sizes), _chain(task.spec), parent)
        save_file(
            {name: np.array(array[0], order="C") for name, array in model.items()},
            task.out / "model.safetensors",
        )
        finite = all(not np.isnan(array).any() for array in model.values())
        return FitOutcome("ok" if finite else "diverged", {"examples": len(values)}, len(values), len(values))

    def sample(self, task: SampleTask) -> int:
        """The examples that are missing; a longer corpus begins with a shorter one."""
        fit, family = task.spec.fit, self._family(task.spec.fit)
        real = self.data.real(fit.seed, self.data.num_examples).values[None] if family.reads_real else None
        with one_thread():
            found = sampled(family, _load(task.fit), _chain(fit), task.stop, real)[0]
        task.append(task.start, Examples.full(found[task.start :]))
        return task.stop - task.start

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Distance of the fit from the truth."""
        family, asked = self._family(task.spec.fit), task.spec.measured.section
        with one_thread():
            found = metrics_of(family, _load(task.fit()), task.corpus.values[None], asked)
        return Evaluation({name: float(value[0]) for name, value in found.items()})

    def reset_peak(self) -> None:
        """Do nothing: a largest memory can be reset on GPUs alone."""

    def describe(self) -> Mapping[str, Any]:
        """Processor and versions."""
        return {"device": cpu_device(), "zero_stage": None, "versions": versions()}


def _load(folder: Path) -> Parameters:
    return {name: np.asarray(array)[None] for name, array in load_file(folder / "model.safetensors").items()}


def _chain(spec: FitSpec) -> Chains:
    return Chains((spec.seed,), spec.generation)
