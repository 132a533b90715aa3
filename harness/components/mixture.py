"""Mixtures of normal distributions: their section, and what the rest of the harness has to know of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.registry import NUMBERS, FitSize, LearnerPlugin, Metric
from harness.section import PositiveInt, Section, since


class Mixture(Section):
    """A mixture of normal distributions, fitted by expectation-maximisation (scikit-learn's)."""

    kind: Literal["mixture"]
    components: PositiveInt = since(2)
    covariance: Literal["full", "diag"] = since("full")
    tolerance: Annotated[float, Field(gt=0)] = since(1e-3)
    """The fit ends when the mean log-likelihood gains less than this."""
    max_iterations: PositiveInt = since(100)
    regularisation: Annotated[float, Field(ge=0)] = since(1e-6)
    """Added to the diagonal of every covariance."""
    init: Literal["scratch", "previous"] = since("scratch")
    """``scratch``: k-means each generation; ``previous``: go on from the previous generation's parameters."""
    truncate: Annotated[float, Field(gt=0, lt=1)] | None = since(None)
    """With init: previous, examples whose density under the model before is above this share of the highest
    at its components' means are not learned from."""

    @model_validator(mode="after")
    def _truncated(self) -> Mixture:
        if self.truncate is not None and self.init == "scratch":
            raise ValueError("truncate goes with init: previous, the model before that says what is likely")
        return self


def _check(config: Any) -> None:
    """As many examples as components, at least."""
    components, n = config.learner.components, config.data.num_examples
    if n is not None and components > n:
        raise ValueError(
            f"learner.components: {components} components, but only {n} examples (data.num_examples)"
        )


def _numbers(section: Mixture, size: FitSize) -> int:
    """Covariances of all components, what they come from, and what each answers for of each example."""
    matrices = 4 if section.covariance == "full" else 2
    return section.components * (matrices * size.width**2 + 2 * size.largest)


COMPONENT = LearnerPlugin(
    section=Mixture,
    version=1,
    family="harness.learners.analytic.mixture:MixtureFamily",
    reads=NUMBERS,
    metrics=(
        Metric("mixture/components", "components with more than half an example", "", "lower"),
        Metric("mixture/min_weight", "smallest weight of a component", drawn=False),
        Metric("mixture/log_variance", "log variance of the samples"),
        Metric("mixture/converged", "share of fits that converged", drawn=False),
    ),
    groups={"mixture": 1},
    seconds_per_example=3e-5,
    least_numbers=_numbers,
    check=_check,
    reads_pools_anew=lambda section: True,
)
