"""Least squares: its section, and what the rest of the harness has to know of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.registry import LearnerPlugin, Metric, moments_seconds
from harness.section import Section, since


class LinearRegression(Section):
    """Least squares; samples new labels with the data's noise."""

    kind: Literal["linear_regression"]
    design: Literal["fixed", "fresh"] = since("fixed")
    """``fixed``: every generation labels the real examples' x anew; ``fresh``: new x each generation."""
    ridge: Annotated[float, Field(ge=0)] = since(0.0)
    """Added to the diagonal of X'X."""


def _check(config: Any) -> None:
    """As many examples as determine the weights, unless they are regularised."""
    data, refresh = config.data, config.regime.refresh
    fewest = min(data.num_examples, (refresh and refresh.examples) or data.num_examples)
    if config.learner.ridge == 0 and data.dim >= fewest - 1:
        where = "data.dim" if fewest == data.num_examples else "regime.refresh.examples"
        raise ValueError(
            f"{where}: least squares needs dim < num_examples - 1, found {data.dim} and {fewest}; give more "
            "examples or learner.ridge"
        )


COMPONENT = LearnerPlugin(
    section=LinearRegression,
    version=1,
    family="harness.learners.analytic.linear:LinearFamily",
    reads=("linear",),
    metrics=(
        Metric(
            "regression/test_error",
            "test error of the weights",
            "",
            "higher",
            "Gerstgrasser et al. 2024, arXiv 2404.01413",
        ),
        Metric(
            "regression/accuracy", "accuracy of the sign", "", "lower", "Feng et al. 2024, arXiv 2406.07515"
        ),
        Metric("regression/norm", "length of the weights", drawn=False),
    ),
    theory="harness.reporting.theory:regression",
    groups={"regression": 1},
    headlines=("regression/accuracy", "regression/test_error"),
    evaluates=("examples",),
    seconds_per_example=moments_seconds,
    least_numbers=lambda section, size: 4 * (size.width - 1) ** 2,
    check=_check,
)
