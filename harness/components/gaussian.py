"""The normal distribution: its section, and what the rest of the harness has to know of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.components.merging import Merge
from harness.components.weighing import SyntheticWeight, check_weight
from harness.registry import NUMBERS, LearnerPlugin, Metric, moments_numbers, moments_seconds
from harness.section import Section, since


class Gaussian(Section):
    """A multivariate normal distribution, fitted in closed form."""

    kind: Literal["gaussian"]
    estimator: Literal["mle", "unbiased"] = since("mle")
    """Divide the scatter matrix by n (mle) or n - 1 (unbiased)."""
    synthetic_weight: SyntheticWeight = since(1.0)
    """Weight of an example that a model wrote, where a real one has 1; ``golden``: what is best for the
    mean."""

    init: Literal["previous"] | None = since(None)
    """``previous``: what a fit is merged with is that of the generation before; a closed form begins nowhere
    when null."""
    merge: Merge = since(1.0)
    """With init: previous, how much of the way from the moments before to the fitted ones is gone: below 1
    averages, below 0 extrapolates away from them, ``uniform`` makes the mean of all generations' fits."""
    truncate: Annotated[float, Field(gt=0, lt=1)] | None = since(None)
    """With init: previous, examples whose density under the model before is above this share of its highest
    are not learned from."""

    @model_validator(mode="after")
    def _merged(self) -> Gaussian:
        if (self.init == "previous") != (self.merge != 1.0 or self.truncate is not None):
            raise ValueError(
                "init: previous goes with merge or truncate, and they with it: moments have a closed form, "
                "so where a fit begins changes only what it is merged with, and what is left out of it"
            )
        return self

    @model_validator(mode="after")
    def _weighted(self) -> Gaussian:
        if self.estimator == "unbiased" and self.synthetic_weight != 1.0:
            raise ValueError("estimator: unbiased is of equal weights; synthetic_weight goes with mle")
        if self.truncate is not None and self.synthetic_weight != 1.0:
            raise ValueError("truncate leaves examples out or not: synthetic_weight does not go with it")
        return self


def _check(config: Any) -> None:
    """Something has to be learned from.

    Raises:
        ValueError: No example counts.
    """
    check_weight("learner.synthetic_weight", config.learner.synthetic_weight, config.regime)


_KAZDAN = "Kazdan et al. 2024, arXiv 2410.16713"
COMPONENT = LearnerPlugin(
    section=Gaussian,
    version=2,
    family="harness.learners.analytic.gaussian:GaussianFamily",
    reads=NUMBERS,
    metrics=(
        Metric("gaussian/log_variance", "log variance", "", "lower", _KAZDAN, shown=True),
        Metric("gaussian/trace_ratio", "trace of covariance, fitted / true", "", "", _KAZDAN),
        Metric("gaussian/det_ratio", "determinant of covariance, fitted / true", "", "", _KAZDAN),
        Metric("gaussian/mean_sq_error", "squared error of the mean", "", "higher", _KAZDAN),
        Metric(
            "gaussian/covariance_error", "error of the covariance (Frobenius norm)", "", "higher", _KAZDAN
        ),
        Metric(
            "gaussian/wasserstein_2",
            "Wasserstein-2 distance to the truth",
            "",
            "higher",
            "Olkin and Pukelsheim 1982",
        ),
        Metric("gaussian/kl", "KL(fit || truth)", "nats", "higher"),
    ),
    theory="harness.reporting.theory:gaussian",
    groups={"gaussian": 2},
    headlines=("gaussian/log_variance",),
    seconds_per_example=moments_seconds,
    least_numbers=moments_numbers,
    check=_check,
    reads_pools_anew=lambda section: section.truncate is not None,
)
