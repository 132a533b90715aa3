"""Filters: their sections, and where their code is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from harness.registry import FilterPlugin
from harness.section import PositiveInt, Section, Share, since


class DeduplicateFilter(Section):
    """Drops an example that equals an earlier one of the same corpus."""

    kind: Literal["deduplicate"]


class RepetitionFilter(Section):
    """Drops an example in which too many n-grams repeat."""

    kind: Literal["repetition"]
    n: PositiveInt = since(4)
    max_share: Share = since(0.2)
    """Largest allowed share of n-grams that occurred before in the example."""


class VerifierFilter(Section):
    """Keeps synthetic examples whose score is high enough; it may err."""

    kind: Literal["verifier"]
    score: Literal["agreement", "log_density", "distinct_2", "uniqueness_4"]
    """``agreement``: 1 where the sign of a label is the truth's, else 0 (linear data); ``log_density``: under
    the truth (gaussian and mixture data); ``distinct_2``: distinct over all bigrams of the example;
    ``uniqueness_4``: 1 - repeated 4-grams (text)."""
    at_least: float
    false_accept: Share = since(0.0)
    """Probability that an example below ``at_least`` is kept all the same."""
    false_reject: Share = since(0.0)
    """Probability that an example that should be kept is dropped."""


class LabelFilter(Section):
    """Drops training examples that a detector takes for synthetic."""

    kind: Literal["label"]
    recall: Share
    """Probability that a synthetic example is recognised, and dropped."""
    false_positive_rate: Share = since(0.0)
    """Probability that a real example is taken for synthetic, and dropped."""


SCORES: Mapping[str, tuple[str, ...]] = {
    "agreement": ("linear",),
    "log_density": ("gaussian", "mixture"),
    "distinct_2": ("text",),
    "uniqueness_4": ("text",),
}
"""Score of a verifier to the kinds of data that it reads."""


def _check_verifier(section: VerifierFilter, data: Any, kind: str) -> None:
    if kind not in SCORES[section.score]:
        raise ValueError(
            f"filters: the score {section.score} reads {' or '.join(SCORES[section.score])} data, not {kind}"
        )
    if section.score == "agreement" and data.labels != "sign":
        raise ValueError("filters: the score agreement needs data.labels: sign")


_CODE = "harness.curation.filters"
COMPONENTS: Mapping[str, FilterPlugin] = {
    "deduplicate": FilterPlugin(DeduplicateFilter, 1, f"{_CODE}:deduplicate", reads=("text",)),
    "repetition": FilterPlugin(RepetitionFilter, 1, f"{_CODE}:repetition", reads=("text",)),
    "verifier": FilterPlugin(VerifierFilter, 1, f"{_CODE}:verifier", check=_check_verifier),
    "label": FilterPlugin(LabelFilter, 1, f"{_CODE}:label", of="training sets"),
}
