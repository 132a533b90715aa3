"""The sections of a language model's specs: the user's, with what else its keys hold."""

from __future__ import annotations

from typing import Literal

from harness.components.adapter import Lora
from harness.components.objectives import Objective
from harness.components.tasks import Prompted
from harness.config.schema import Model, PositiveInt, Sample, Section, TextData, Train, since
from harness.science import FitSpec


class ModelSpec(Model):
    """A model by its sizes, or a pretrained one by its content (`Execution.models` says where that lies)."""

    new_weights: Literal["fp32"] | None = since(None)
    """New weights of a published configuration that names another type; an earlier version drew them in
    that."""


class TrainSpec(Train):
    """How one generation is fitted."""

    masked_tokens: PositiveInt | None = since(None)
    """First tokens of every example that are read but not learned, with ``loss: continuation``."""


class ObjectiveSpec(Section):
    """An objective as it is executed."""

    section: Objective
    version: int | str
    tokens: PositiveInt | None = since(None)
    """Log-probabilities are under the distribution over the tokenizer's tokens, which completions were drawn
    from, where the model scores more of them."""


class AdapterSpec(Section):
    """An adapter as it is executed: its targets are names of layers, without the number of their block."""

    section: Lora
    version: int


class LanguageModelFit(Section):
    """What is fitted."""

    kind: Literal["language_model"] = "language_model"
    model: ModelSpec
    train: TrainSpec = since(TrainSpec(), introduced={})
    objective: ObjectiveSpec | None = since(None)
    """What it minimises, with the version of its code; the cross-entropy when null."""
    adapter: AdapterSpec | None = since(None)
    """What is trained, with the version of its code; all weights when null."""


class VerdictSpec(Section):
    """How a model is asked whether a completion is right, as of a judge's section."""

    ask: str
    yes: str
    no: str
    by: Literal["current", "initial", "previous"]
    version: int


class SampleSpec(Sample):
    """How a generation writes its corpus."""

    context: Literal["whole"] | None = since(None)
    """A model that a key-value cache would change reads everything again for every token."""
    noted: bool = since(False)
    """The log-probability of every token is kept with it."""
    tokens: PositiveInt | None = since(None)
    """Only the tokenizer's tokens are drawn, where the model scores more of them."""
    verdict: VerdictSpec | None = since(None)
    """A verdict on every completion is kept with it."""


def fitted(spec: FitSpec) -> LanguageModelFit:
    """The section of a language model's fit."""
    section: LanguageModelFit = spec.learner.section
    return section


def text_of(spec: FitSpec) -> TextData | Prompted:
    """The section of its real text, or of its prompts."""
    section: TextData | Prompted = spec.data.section
    return section
