"""From a language model's cell to its specs: the model by content, and what else its keys hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from harness.components.adapter import Lora, adapts_first
from harness.components.judging import JudgeFilter
from harness.components.language_model import LanguageModel, later_train
from harness.components.model import Model, resolve_model
from harness.components.objectives import OBJECTIVES
from harness.components.tasks import Prompted
from harness.config.schema import Config, TextData, Train
from harness.data.rendered import RenderedCorpus
from harness.data.text import TextCorpus
from harness.errors import DataError
from harness.learners.language_model.converted import with_safetensors
from harness.learners.language_model.facts import ModelFacts, check_kernels, model_facts, needs_weights
from harness.learners.language_model.identity import pretrained_identity
from harness.learners.language_model.specs import (
    AdapterSpec,
    LanguageModelFit,
    ModelSpec,
    ObjectiveSpec,
    SampleSpec,
    TrainSpec,
    VerdictSpec,
)
from harness.learners.protocol import Resolved
from harness.metrics import KL_OF_TOKENS
from harness.metrics.watermark import green_count
from harness.science import Versioned
from harness.terminal import shown


def settle(config: Config) -> Config:
    """The configuration, its pretrained model at the revision that has weights which can be loaded."""
    learner, _ = _sections(config)
    if not needs_weights(learner, _refresh_init(config)):
        return config
    model = with_safetensors(learner.model)
    if model is learner.model:
        return config
    return config.model_copy(update={"learner": learner.model_copy(update={"model": model})})


def resolve(config: Config, real: TextCorpus, version: int | str) -> Resolved:
    """What a cell fits, and how it samples; a pretrained model is checked against its files and the data.

    Args:
        config: The cell.
        real: Its text.
        version: Of the learner.

    Raises:
        DataError: The model is not what a chain takes it for.
    """
    learner, data = _sections(config)
    block = data.block_size
    train, sample, vocabulary = learner.train, learner.sample, int(real.meta["vocab_size"])
    length, verdict = data.longest(sample.sequence_length(block)), _verdict(config)
    if verdict is not None and real.rendered is not None:
        length = max(length, _asked(learner, verdict, real.rendered))
    if config.evaluate.others and real.other_tokens is not None:
        context = resolve_model(learner.model).context or block
        if learner.model.pretrained is None and context < real.other_tokens:
            raise DataError(
                f"evaluate.others: blocks of {real.other_tokens} tokens, more than the model's context of "
                f"{context}; set learner.model.context to at least {real.other_tokens}"
            )
        length = max(length, real.other_tokens)
    facts = model_facts(learner, _refresh_init(config), vocabulary, length, data.filled)
    check_kernels(learner.model, config.resources)
    model, marks = _model(config, learner, facts, vocabulary)
    _check_marks(config, vocabulary, data.longest(sample.sequence_length(block)))
    prompts = config.evaluate.prompts
    if not isinstance(prompts, int):
        real.check_prompts(prompts)
    measured, there = config.evaluate.task, len(real.test)
    if "prompts" in measured.model_fields_set and measured.prompts > there:
        raise DataError(
            f"evaluate.task.prompts: found {measured.prompts}, and {there} test prompts are there; allowed: "
            f"1 to {there}, or more data"
        )
    marks |= {**real.marks, **({} if verdict is None else {"verdict": verdict})}
    objective, adapter = _objective(learner, marks.get("tokens")), None
    if learner.adapter is not None:
        adapter, count = _adapter(learner.adapter, learner.model, model, real)
        facts = replace(facts, adapter=count, separate=adapter.section.weights == "separate")
    on_first = adapter is not None and adapts_first(learner)
    facts = replace(facts, first_adapted=on_first)

    def fitted_as(how: Train, **more: Any) -> Versioned:
        # The length of the prompt is sampling's, but with this loss the fit reads it too.
        masked = sample.prompt_length(block) if how.loss == "continuation" else None
        masked = real.prompt_tokens or masked
        spec = TrainSpec(**how.model_dump(exclude_unset=True), masked_tokens=masked)
        more = {name: value for name, value in more.items() if value is not None}
        return Versioned(LanguageModelFit(model=model, train=spec, **more), version)

    later = later_train(learner)
    plain = later == train and later.anchor is None and objective is None and (adapter is None or on_first)
    if objective is not None:
        against = OBJECTIVES[objective.section.kind].reference(objective.section)
    else:
        against = later.anchor.reference if later.anchor else None
    first = "pretrained" if learner.model.pretrained else "scratch"
    # generation 0 has nothing before it that an anchor could be
    alone = Train(**train.model_dump(exclude_unset=True, exclude={"anchor"}))
    return Resolved(
        fit=fitted_as(later, objective=objective, adapter=adapter),
        first=None if plain else fitted_as(alone, adapter=adapter if on_first else None),
        anchored=against == "initial",
        compared=learner.objective is not None and OBJECTIVES[learner.objective.kind].chooses == "pairs",
        based=facts.separate and learner.init == "previous" and not on_first,
        sampling=Versioned(SampleSpec(**{**sample.model_dump(exclude_unset=True), **marks}), version),
        init=first if learner.init == "previous" else learner.init,
        prompts=real.continued(sample, config.generations),
        cost=facts.training_flops * block,
        facts=facts,
        models={} if learner.model.pretrained is None else _place(learner.model),
        judge=None if verdict is None or verdict.by == "current" else verdict.by,
        metrics=KL_OF_TOKENS if real.task is not None and "tokens" in marks else {},
    )


def _check_marks(config: Config, vocabulary: int, longest: int) -> None:
    """Check that of what is marked, or looked for, some tokens are green and some not.

    Raises:
        DataError: They are all one, or no token has so many before it.
    """
    mark = _sections(config)[0].sample.watermark
    marks: dict[str, Any] = {"learner.sample.watermark": mark} if mark else {}
    filters: Sequence[Any] = config.filters
    marks |= {f"filters.{at}": item for at, item in enumerate(filters) if item.kind == "watermark"}
    for place, item in marks.items():
        count = green_count(item.gamma, vocabulary)
        if not 0 < count < vocabulary:
            raise DataError(
                f"{place}.gamma: {item.gamma} of {vocabulary} tokens is {count}; some tokens must be green, "
                "and some not"
            )
        if item.context >= longest:
            raise DataError(
                f"{place}.context: found {item.context}, and examples have up to {longest} tokens, so none "
                f"has so many before it; allowed: 1 to {longest - 1}"
            )


def _verdict(config: Config) -> VerdictSpec | None:
    """What a cell's judge asks a model; None where it asks none."""
    for item in config.filters:
        if isinstance(item, JudgeFilter) and item.judge == "verdict":
            from harness.learners.language_model.verdicts import VERSION

            return VerdictSpec(ask=item.ask, yes=item.yes, no=item.no, by=item.by, version=VERSION)
    return None


def _asked(learner: LanguageModel, verdict: VerdictSpec, real: RenderedCorpus) -> int:
    """Tokens of the longest question of a judge with its answer.

    Raises:
        DataError: It cannot be asked, or is longer than the model's context.
    """
    from harness.learners.language_model.verdicts import Questions

    length, model = Questions(verdict, real).length, resolve_model(learner.model)
    if model.pretrained is None and (model.context or real.config.block_size) < length:
        raise DataError(
            f"learner.model.context: a question of judge verdict takes up to {length} tokens, more than the "
            f"model's context of {model.context or real.config.block_size}; set it to at least {length}"
        )
    return length


def _objective(learner: LanguageModel, tokens: int | None) -> ObjectiveSpec | None:
    """The objective of generations after the first; None for the cross-entropy.

    One that learns from all completions compares with how they were drawn, from so many ``tokens``; one of
    pairs compares models with each other, over all that they score.
    """
    if learner.objective is None or not OBJECTIVES[learner.objective.kind].loss:
        return None
    found = OBJECTIVES.loaded[learner.objective.kind]
    drawn = {"tokens": tokens} if tokens is not None and found.plugin.chooses == "all" else {}
    return ObjectiveSpec(section=learner.objective, version=found.version, **drawn)


def _adapter(section: Lora, named: Model, model: ModelSpec, real: TextCorpus) -> tuple[AdapterSpec, int]:
    """An adapter as it is executed, and how many parameters it has.

    Raises:
        DataError: It does not fit the model, or peft is not installed.
    """
    from harness.learners.language_model import adapter as adapters

    adapters.check_adapters_installed()
    vocabulary, bos, eos = (int(real.meta[name]) for name in ("vocab_size", "bos", "eos"))
    name = (
        shown(named.pretrained) if named.pretrained else named.preset or f"architecture {model.architecture}"
    )
    layers = _layers(named if named.pretrained else model, vocabulary, bos, eos)
    settled, count = adapters.settle_targets(section, layers, name)
    return AdapterSpec(section=settled, version=adapters.VERSION), count


@cache
def _layers(model: Model, vocabulary: int, bos: int, eos: int) -> Sequence[Any]:
    """The linear layers of a model, by its configuration."""
    from harness.learners.language_model.adapter import linear_layers
    from harness.learners.language_model.behaviour import on_meta
    from harness.learners.language_model.model import pretrained_config, transformers_config

    if model.pretrained is not None:
        config = pretrained_config(model)
    else:
        config = transformers_config(model, vocabulary, model.context or 0, bos, eos)
    return list(linear_layers(on_meta(config)))


def _sections(config: Any) -> tuple[LanguageModel, TextData | Prompted]:
    """Those of the learner and of its data, which are of these kinds where it is asked."""
    return config.learner, config.data


def _refresh_init(config: Config) -> str | None:
    return config.regime.refresh.init if config.regime.refresh else None


def _model(
    config: Config, learner: LanguageModel, facts: ModelFacts, vocabulary: int
) -> tuple[ModelSpec, dict[str, Any]]:
    """The model, and marks of its sampling.

    Published models that an earlier version computed otherwise are marked: new weights took the type that the
    published configuration names; without a key-value cache only the last token was read; and tokens that no
    tokenizer knows could be drawn. Models without these traits have the keys that they had.
    """
    model = resolve_model(learner.model)
    if model.pretrained is None:
        context = model.context or learner.sample.sequence_length(_sections(config)[1].block_size)
        return ModelSpec(**{**model.model_dump(exclude_unset=True), "context": context}), {}
    anew = "scratch" in (learner.init, _refresh_init(config))
    weights = {"new_weights": "fp32"} if anew and not facts.full_precision else {}
    marks: dict[str, Any] = {} if facts.cached else {"context": "whole"}
    if facts.vocab_size != vocabulary:
        marks["tokens"] = vocabulary
    return ModelSpec(pretrained=pretrained_identity(model).content, **weights), marks


def _place(model: Model) -> dict[str, Model]:
    """Where a pretrained model lies, by its content.

    One of the hub is found at its revision; one in a folder by an absolute path, with its content in the
    place of a revision, so that every generation loads what the key names, wherever it runs.
    """
    found, name = pretrained_identity(model), model.pretrained or ""
    if found.revision is None:
        name = str(Path(name).absolute())
    return {
        found.content: model.model_copy(
            update={"pretrained": name, "revision": found.revision or found.content}
        )
    }
