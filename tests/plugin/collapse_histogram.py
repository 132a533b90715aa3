"""A learner on several ranks: each counts its share of the examples, and their counts are added up."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from harness.learners.protocol import EvaluateTask, Evaluation, FitOutcome, FitTask, SampleTask
from harness.records import Examples
from harness.streams import uniforms


class HistogramLearner:
    def __init__(self, data: Any, ranks: Any, execution: Any) -> None:
        self.ranks = ranks

    def fit(self, task: FitTask) -> FitOutcome:
        values, bins = task.training.examples.values, task.spec.learner.section.bins
        mine = values[self.ranks.rank :: self.ranks.world_size]
        counted = self.ranks.gather(np.histogram(mine, bins, (-5.0, 5.0))[0])
        if self.ranks.rank == 0:
            save_file({"counts": np.stack(counted)}, task.out / "model.safetensors")
        return FitOutcome("ok", {}, len(values), len(values))

    def sample(self, task: SampleTask) -> int:
        counts, of = load_file(task.fit / "model.safetensors")["counts"].sum(axis=0), task.spec.fit
        ends = np.linspace(task.start, task.stop, self.ranks.world_size + 1).astype(int)
        start, stop = ends[self.ranks.rank : self.ranks.rank + 2]
        uniform = uniforms(of.seed, of.generation, "sample", start, stop, 1)
        edges, shares = np.linspace(-5.0, 5.0, len(counts) + 1), np.cumsum([0, *counts]) / counts.sum()
        drawn = self.ranks.gather(np.interp(uniform, shares, edges))
        if self.ranks.rank == 0:
            task.append(task.start, Examples.full(np.concatenate(drawn)))
        return task.stop - task.start

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        counts = load_file(task.fit() / "model.safetensors")["counts"]
        return Evaluation({"histogram/counted": counts.sum(), "histogram/by_rank_0": counts[0].sum()})

    def reset_peak(self) -> None:
        pass

    def describe(self) -> dict[str, Any]:
        return {"device": "cpu", "zero_stage": None, "versions": {"numpy": np.__version__}}
