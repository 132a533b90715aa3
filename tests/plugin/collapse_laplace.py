"""The learner: a family works on many chains at once, one number of each chain per first axis."""

from __future__ import annotations

import numpy as np

from harness.learners.analytic import Array, Chains, Family, Parameters, Summary


class LaplaceFamily(Family):
    parameters = ("median", "scale")

    def fit(self, summary: Summary, chains: Chains, parent: Parameters | None) -> Parameters:
        values = summary["values"]
        median = np.median(values, axis=1)
        scale = np.abs(values - median[:, None]).mean(axis=1) * (1 - self.learner.shrink)
        return {"median": median, "scale": scale}

    def sample(self, model: Parameters, chains: Chains, count: int, real: Array | None) -> Array:
        width = model["median"].shape[1]
        uniform = chains.uniforms("sample", count * width).reshape(len(chains), count, width) - 0.5
        noise = -np.sign(uniform) * np.log1p(-2 * np.abs(uniform))
        return model["median"][:, None] + model["scale"][:, None] * noise

    def evaluate(self, model: Parameters, corpus: Array) -> dict[str, Array]:
        with np.errstate(divide="ignore"):
            return {
                "laplace/log_scale": np.log(model["scale"].mean(axis=1)),
                "laplace/median": model["median"][:, 0],
            }
