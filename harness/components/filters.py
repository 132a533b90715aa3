"""Filters: their sections, and where their code is; judges of completions are in `judging`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.components import judging
from harness.components.regimes import synthetic_count
from harness.registry import NUMBERS, FilterPlugin
from harness.section import HubItem, Place, PositiveInt, Section, Share, execution, since


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


class RandomFilter(Section):
    """Keeps each example that arrives with the same probability: what others are compared with."""

    kind: Literal["random"]
    keep: Annotated[float, Field(gt=0, le=1)]
    """The probability."""


class DetectorFilter(Section):
    """A classifier that has learned from labelled examples of generation 0 chooses from what arrives."""

    kind: Literal["detector"]
    examples: Annotated[int, Field(ge=10)] = since(200)
    """Labelled examples that it learns from: as many real ones as ones that generation 0 wrote."""
    ngram: Annotated[int, Field(ge=1, le=8)] = since(3)
    """Text: it counts runs of 1 to this many tokens, or characters."""
    unit: Literal["tokens", "characters"] = since("tokens")
    """Text: what it counts runs of; characters are those of the decoded text."""
    features: Literal["ngrams", "likelihood"] = since("ngrams")
    """``likelihood``: of text it reads what bigrams of ``reference`` real examples, as of ``select``, say of
    its tokens: the mean and the variance of their negative log-likelihood, and how high they rank."""
    reference: Annotated[int, Field(ge=2)] | None = since(None)
    """likelihood: real training examples that bigrams are counted in: those behind the labelled ones."""
    regularisation: Annotated[float, Field(gt=0)] = since(1.0)
    """Strength of the L2 penalty of its logistic regression."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = since(0.5)
    """Examples of which it says that they are synthetic with at least this probability are dropped."""
    use: Literal["threshold", "weights"] = since("threshold")
    """``weights``: instead of dropping, examples are drawn with weight (1 - probability) ** ``bias``."""
    bias: Annotated[float, Field(gt=0)] = since(1.0)
    repeats: PositiveInt = since(1)
    """weights: how often one example may be drawn."""
    temperature: Annotated[float, Field(gt=0)] = since(1.0)
    """Log odds are divided by it: above 1 the classifier is less sure."""

    @model_validator(mode="after")
    def _used(self) -> DetectorFilter:
        _check_use(self)
        if (self.features == "likelihood") != (self.reference is not None):
            verb = "needs" if self.features == "likelihood" else "does not use"
            raise ValueError(
                f"detector with features: {self.features} {verb} reference, a number of real examples"
            )
        for name in ("ngram", "unit"):
            if self.features == "likelihood" and name in self.model_fields_set:
                raise ValueError(f"detector with features: likelihood does not use {name}")
        return self


class ClassifierFilter(Section):
    """A pretrained classifier of texts chooses from what arrives."""

    kind: Literal["classifier"]
    model: Annotated[Place, Field(json_schema_extra={"execution": True})]
    """A folder with a sequence classifier and its tokenizer as transformers writes them, or its name on the
    hub."""
    revision: str | None = execution(None)
    """Of the hub."""
    content: str | None = since(None)
    """Hash of the folder's files, or the hub's revision: what is in keys. It is found out where null, and
    compared where not."""
    label: str
    """The class of synthetic text, by its name in the model's id2label."""
    max_tokens: Annotated[int, Field(ge=8)] = since(512)
    """The classifier reads the first so many of its own tokens of an example, as many as it has positions at
    most."""
    threshold: Annotated[float, Field(gt=0, lt=1)] = since(0.5)
    """Examples of which it says that they are synthetic with at least this probability are dropped."""
    use: Literal["threshold", "weights"] = since("threshold")
    """``weights``: instead of dropping, examples are drawn with weight (1 - probability) ** ``bias``."""
    bias: Annotated[float, Field(gt=0)] = since(1.0)
    repeats: PositiveInt = since(1)
    """weights: how often one example may be drawn."""
    temperature: Annotated[float, Field(gt=0)] = since(1.0)
    """Log odds are divided by it: above 1 the classifier is less sure."""

    @model_validator(mode="after")
    def _used(self) -> ClassifierFilter:
        _check_use(self)
        return self


def _check_use(section: DetectorFilter | ClassifierFilter) -> None:
    """Check that only what a way of using probabilities reads is given.

    Raises:
        ValueError: A field is not used.
    """
    unused = {"threshold": ("bias", "repeats"), "weights": ("threshold",)}[section.use]
    for name in unused:
        if name in section.model_fields_set:
            raise ValueError(f"{section.kind} with use: {section.use} does not use {name}")


class SelectFilter(Section):
    """Keeps the share of what arrives that scores highest, or lowest."""

    kind: Literal["select"]
    score: Literal["likelihood", "entropy", "log_density", "distinct_2", "uniqueness_4"]
    """``likelihood``: under a model of ``reference`` real examples (bigrams of text: mean log-probability of
    tokens; the normal distribution of numbers: log density); ``entropy``: of an example's tokens, nats; the
    others as of ``verifier``."""
    keep: Annotated[float, Field(gt=0, le=1)] | None = since(None)
    """The share of what it is given."""
    at_least: float | None = since(None)
    """Or the score that an example needs (with ``choose: lowest`` the score that it may have at most)."""
    choose: Literal["highest", "lowest"] = since("highest")
    """``lowest`` likelihood is what surprises the reference."""
    reference: Annotated[int, Field(ge=2)] | None = since(None)
    """likelihood: real training examples that its model is fitted to; the chain trains on them too."""
    bias: float = since(0.0)
    """likelihood of numbers: standard deviations by which the reference's mean is off."""
    error: Share = since(0.0)
    """Probability that an example is judged by chance."""

    @model_validator(mode="after")
    def _reference(self) -> SelectFilter:
        if (self.keep is None) == (self.at_least is None):
            raise ValueError("select needs keep, a share, or at_least, a score; give one of the two")
        if (self.score == "likelihood") != (self.reference is not None):
            verb = "needs" if self.score == "likelihood" else "does not use"
            raise ValueError(f"select with score: {self.score} {verb} reference, a number of real examples")
        if self.score != "likelihood" and "bias" in self.model_fields_set:
            raise ValueError(f"select with score: {self.score} does not use bias")
        return self


class DiverseFilter(Section):
    """Keeps the share of what arrives whose examples lie farthest from one another."""

    kind: Literal["diverse"]
    keep: Annotated[float, Field(gt=0, le=1)]
    """The share of what it is given."""
    n: Annotated[int, Field(ge=1, le=8)] = since(2)
    """Text: examples are compared by their n-grams."""


class WatermarkFilter(Section):
    """Drops an example in which the chain's watermark is found."""

    kind: Literal["watermark"]
    threshold: float = since(4.0)
    """An example is dropped where it has more green tokens than chance, by more standard deviations than
    this."""
    gamma: Annotated[float, Field(gt=0, lt=1)] = since(0.25)
    """As in learner.sample.watermark."""
    context: Annotated[int, Field(ge=1, le=8)] = since(1)
    """As in learner.sample.watermark."""


class CurateFilter(Section):
    """Of every few examples in a row it keeps one, by its reward."""

    kind: Literal["curate"]
    of: Annotated[int, Field(ge=2, le=1000)]
    """Of how many one is kept."""
    rewards: dict[Literal["agreement", "log_density", "distinct_2", "uniqueness_4"], float] | None = since(
        None
    )
    """Scores as of ``verifier``, with their weights in the reward."""
    outcomes: tuple[float, ...] | None = since(None)
    """Discrete data: the reward of each outcome."""
    choose: Literal["best", "bradley_terry"] = since("bradley_terry")
    """``best``: the one of the highest reward; ``bradley_terry``: each with probability in proportion to the
    exponential of its reward."""

    @model_validator(mode="after")
    def _rewarded(self) -> CurateFilter:
        if (self.rewards is None) == (self.outcomes is None):
            raise ValueError("curate needs rewards or outcomes, one of the two")
        given = self.outcomes if self.rewards is None else list(self.rewards.values())
        if not given or len(set(given)) == 1 and (self.rewards is None or given[0] == 0) or not any(given):
            raise ValueError("curate: the reward is the same for all examples, so nothing is chosen")
        return self


class SimilarFilter(Section):
    """Drops an example that shares most of its n-grams with an earlier one of what is read together."""

    kind: Literal["near_duplicate"]
    n: PositiveInt = since(3)
    max_similarity: Annotated[float, Field(gt=0, lt=1)] = since(0.5)
    """Largest allowed Jaccard similarity of two examples' sets of n-grams."""


SCORES: Mapping[str, tuple[str, ...]] = {
    "agreement": ("linear",),
    "log_density": ("gaussian", "mixture"),
    "distinct_2": ("text",),
    "uniqueness_4": ("text",),
}
"""Score of a verifier to the kinds of data that it reads."""


TRUE_SCORES = ("agreement", "log_density")
"""Scores that are by the true distribution."""


def _knows(given: Mapping[str, Any]) -> bool:
    weights = {given.get("score"): 1.0, **(given.get("rewards") or {})}
    return any(weights.get(score) for score in TRUE_SCORES)


def _check_curate(section: CurateFilter, data: Any, kind: str) -> None:
    if section.outcomes is not None:
        if kind != "discrete":
            raise ValueError(f"filters: curate.outcomes are of discrete data, not {kind}")
        number = data.outcomes or len(data.probabilities or ())
        if len(section.outcomes) != number:
            raise ValueError(
                f"filters: curate.outcomes has {len(section.outcomes)} rewards, the data have {number} "
                "outcomes"
            )
    for score in section.rewards or {}:
        _check_score(score, data, kind)


def _check_score(score: str, data: Any, kind: str) -> None:
    if kind not in SCORES[score]:
        raise ValueError(f"filters: the score {score} reads {' or '.join(SCORES[score])} data, not {kind}")
    if score == "agreement" and data.labels != "sign":
        raise ValueError("filters: the score agreement needs data.labels: sign")
    longest, needed = getattr(data, "block_size", None), {"distinct_2": 3, "uniqueness_4": 5}.get(score, 0)
    if longest is not None and longest < needed:
        raise ValueError(
            f"filters: the score {score} is the same for all examples of {longest} tokens (data.block_size), "
            f"so nothing is chosen; it needs {needed}"
        )


def _check_verifier(section: VerifierFilter, data: Any, kind: str) -> None:
    _check_score(section.score, data, kind)


def _why_none(section: Any, data: Any) -> str:
    """Why a threshold, or its errors, let no example pass; empty where one may."""
    errs = section.error if section.kind == "select" else section.false_accept
    if errs:
        return ""
    if section.kind == "verifier" and section.false_reject == 1:
        return "verifier.false_reject is 1 and false_accept 0"
    asked, bounds = section.at_least, _bounds(section.score, data)
    lowest = section.kind == "select" and section.choose == "lowest"
    if asked is None or (asked >= bounds[0] if lowest else asked <= bounds[1]):
        return ""
    end = f"{bounds[0]:g} at least" if lowest else f"{bounds[1]:.6g} at most"
    return f"{section.kind}.at_least is {asked:g}, and {section.score} is {end} with these data"


def _bounds(score: str, data: Any) -> tuple[float, float]:
    """No score is lower, and none higher; infinite where nobody knows."""
    match score, data.source:
        case "log_density", "gaussian":
            return -math.inf, -data.dim / 2 * math.log(2 * math.pi * data.variance)
        case "log_density", "mixture":  # none above its highest component's own
            peaks = (
                -len(item.mean) * math.log(math.sqrt(2 * math.pi) * item.std) for item in data.components
            )
            return -math.inf, max(peaks)
        case "agreement" | "distinct_2" | "uniqueness_4", _:
            return 0.0, 1.0
        case "entropy", _:
            return 0.0, math.inf
    return -math.inf, math.inf


def _check_select(section: SelectFilter, data: Any, kind: str) -> None:
    if section.score == "likelihood":
        if kind not in ("text", *NUMBERS):
            raise ValueError(f"filters: the score likelihood reads text or rows of numbers, not {kind} data")
        if kind == "text" and section.bias:
            raise ValueError("filters: select.bias is of numbers, not of text")
    elif section.score == "entropy":
        if kind != "text":
            raise ValueError(f"filters: the score entropy reads text, not {kind} data")
    else:
        _check_score(section.score, data, kind)


def _check_detector(section: DetectorFilter, data: Any, kind: str) -> None:
    if kind != "text" and section.features == "likelihood":
        raise ValueError(
            f"filters: detector.features: likelihood is of the tokens of text, not of {kind} data"
        )
    if kind != "text" and section.unit != "tokens":
        raise ValueError(f"unit: {section.unit} is of texts, and the data are {kind}")


def _classifier_items(section: ClassifierFilter, field: str) -> list[HubItem]:
    if Path(section.model).is_dir():
        return []
    asked = section.model, section.revision
    return [
        HubItem("model", f"{field}.model", *asked, weights=True),
        HubItem("tokenizer", f"{field}.model", *asked),
    ]


def _left(section: Any, count: int) -> int:
    return count if section.keep is None else synthetic_count(section.keep, count)


def draws_before(before: Sequence[Any]) -> int:
    """How many of some filters with ``use`` draw by their weights."""
    return sum(section.use == "weights" for section in before)


def _draws_anew(section: Any, before: Sequence[Any]) -> int:
    """1 for a draw behind another one of its kind: both had the same noise."""
    return int(section.use == "weights" and draws_before(before) > 0)


_CODE = "harness.curation.filters"
COMPONENTS: Mapping[str, FilterPlugin] = {
    "deduplicate": FilterPlugin(DeduplicateFilter, 1, f"{_CODE}:deduplicate", reads=("text",)),
    "repetition": FilterPlugin(
        RepetitionFilter,
        1,
        f"{_CODE}:repetition",
        reads=("text",),
        neutral=lambda section: section.max_share == 1,
    ),
    "verifier": FilterPlugin(
        VerifierFilter,
        1,
        f"{_CODE}:verifier",
        check=_check_verifier,
        none=_why_none,
        neutral=lambda section: section.false_accept == 1 and section.false_reject == 0,
        knows=_knows,
    ),
    "near_duplicate": FilterPlugin(
        SimilarFilter, 1, "harness.curation.similar:near_duplicate", reads=("text",)
    ),
    "curate": FilterPlugin(
        CurateFilter,
        1,
        f"{_CODE}:curate",
        check=_check_curate,
        passing=lambda section: 1 / section.of,
        leaves=lambda section, count: count // section.of,
        knows=_knows,
        chooses=True,
    ),
    "watermark": FilterPlugin(WatermarkFilter, 1, "harness.curation.watermark:watermark", reads=("text",)),
    "judge": judging.COMPONENT,
    "select": FilterPlugin(
        SelectFilter,
        1,
        "harness.curation.selection:select",
        of="pools",
        reference=lambda section: section.reference or 0,
        check=_check_select,
        none=_why_none,
        knows=_knows,
        neutral=lambda section: section.keep == 1,
        leaves=lambda section, count: count if section.error else _left(section, count),
    ),
    "diverse": FilterPlugin(
        DiverseFilter,
        1,
        "harness.curation.selection:diverse",
        of="pools",
        reads=("text", "gaussian", "mixture", "shape", "array", "images"),
        neutral=lambda section: section.keep == 1,
        leaves=_left,
    ),
    "random": FilterPlugin(
        RandomFilter, 1, f"{_CODE}:random", of="pools", neutral=lambda section: section.keep == 1
    ),
    "detector": FilterPlugin(
        DetectorFilter,
        1,
        "harness.curation.detector:detector",
        of="pools",
        labelled=lambda section: section.examples,
        reference=lambda section: section.examples + section.reference if section.reference else 0,
        check=_check_detector,
        raised=_draws_anew,
    ),
    "classifier": FilterPlugin(
        ClassifierFilter,
        2,
        "harness.curation.classifier:classifier",
        of="pools",
        reads=("text",),
        locate="harness.curation.classifier:locate",
        hub_items=_classifier_items,
        elsewhere=lambda section: True,
        raised=_draws_anew,
    ),
    "label": FilterPlugin(
        LabelFilter,
        1,
        f"{_CODE}:label",
        of="training sets",
        neutral=lambda section: section.recall == section.false_positive_rate == 0,
        drops=lambda section: (section.false_positive_rate == 1, section.recall == 1),
    ),
}
