"""Frequencies of outcomes: their section, and what the rest of the harness has to know of them."""

from __future__ import annotations

from typing import Literal

from harness.registry import LearnerPlugin, Metric
from harness.section import Section


class Discrete(Section):
    """Frequencies of outcomes."""

    kind: Literal["discrete"]


COMPONENT = LearnerPlugin(
    section=Discrete,
    version=1,
    family="harness.learners.analytic.discrete:DiscreteFamily",
    reads=("discrete",),
    metrics=(
        Metric("discrete/entropy", "entropy", "nats", "lower", "Kazdan et al. 2024, arXiv 2410.16713"),
        Metric("discrete/outcomes", "outcomes that are left", "", "lower"),
        Metric(
            "discrete/heterozygosity",
            "heterozygosity (1 - sum of squared probabilities)",
            "",
            "lower",
            "Wright 1931",
        ),
        Metric("discrete/kl", "KL(fit || truth)", "nats", "higher", drawn=False),
        Metric("discrete/lost_mass", "true mass of the outcomes that are lost", "", "higher"),
        Metric("share/<name>", "share of <name>"),
    ),
    theory="harness.reporting.theory:discrete",
    groups={"discrete": 1},
    headlines=("discrete/entropy",),
    seconds_per_example=4e-8,
)
