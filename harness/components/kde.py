"""Kernel density estimates: their section, and what the rest of the harness has to know of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.registry import NUMBERS, FitSize, LearnerPlugin, Metric
from harness.section import Section, since


class Kde(Section):
    """A kernel density estimate."""

    kind: Literal["kde"]
    kernel: Literal["gaussian"] = since("gaussian")
    bandwidth: Annotated[float, Field(gt=0)] | Literal["scott", "silverman"] = since("scott")
    """Standard deviation of the kernel in every coordinate, or a rule: scott n^(-1/(d+4)), silverman
    (n(d+2)/4)^(-1/(d+4))."""


def _numbers(section: Kde, size: FitSize) -> int:
    """Kernels at the test examples, twice; with a fixed bandwidth those of one corpus at a time."""
    return 2 * size.test * (size.largest if isinstance(section.bandwidth, str) else size.real)


COMPONENT = LearnerPlugin(
    section=Kde,
    version=1,
    family="harness.learners.analytic.kde:KdeFamily",
    reads=NUMBERS,
    metrics=(
        Metric(
            "kde/test_nll",
            "NLL of real test examples",
            "nats/example",
            "higher",
            "Kazdan et al. 2024, arXiv 2410.16713",
        ),
        Metric("kde/variance", "variance of the density"),
        Metric("kde/log_variance", "log variance of the density", drawn=False),
        Metric("kde/bandwidth", "bandwidth", drawn=False),
    ),
    theory="harness.reporting.theory:kde",
    groups={"kde": 1},
    seconds_per_example=6e-6,
    least_numbers=_numbers,
    reads_pools_anew=lambda section: isinstance(
        section.bandwidth, str
    ),  # a rule's bandwidth changes with the pool
)
