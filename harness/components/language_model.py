"""Causal language models: their section, and what the rest of the harness has to know of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.components import posttraining
from harness.components.adapter import Lora, adapts_first, check_adapter, check_refresh
from harness.components.merging import Merge
from harness.components.model import Model, resolve_model
from harness.components.objectives import OBJECTIVES, Anchor, Objective
from harness.components.presets import preset_sizes
from harness.components.regimes import USUAL, usual_parts
from harness.components.sampling import Sample, check_watermark
from harness.components.text import TextData
from harness.components.weighing import SyntheticWeight, check_weight
from harness.records import REAL
from harness.registry import LearnerPlugin, Metric
from harness.section import PositiveInt, Section, Share, since


class Train(Section):
    """How one generation is fitted."""

    epochs: PositiveInt = since(1)
    """Passes over the training set."""
    max_steps: Annotated[int, Field(ge=0)] | None = since(None)
    """Optimizer steps, instead of epochs; 0 takes a pretrained model as it is."""
    batch_size: PositiveInt = since(16)
    """Examples per optimizer step, all ranks together."""
    learning_rate: Annotated[float, Field(gt=0)] = since(1e-3)
    schedule: Literal["constant", "cosine", "linear"] = since("cosine")
    """The learning rate after the warm-up; cosine and linear end at min_learning_rate_ratio of the peak."""
    min_learning_rate_ratio: Share = since(0.1)
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = since(0.1)
    """Share of the steps in which the learning rate rises linearly from 0."""
    precision: Literal["fp32", "bf16"] = since("bf16")
    weight_decay: Annotated[float, Field(ge=0)] = since(0.01)
    betas: tuple[Share, Share] = since((0.9, 0.999))
    eps: Annotated[float, Field(gt=0)] = since(1e-8)
    max_grad_norm: Annotated[float, Field(gt=0)] | None = since(1.0)
    """Gradients are clipped to this norm; null never clips."""
    weights: Literal["last", "best"] = since("last")
    """``best``: the weights with the lowest validation loss at the end of an epoch."""
    loss: Literal["all", "continuation"] = since("all")
    """``continuation``: the first prompt_tokens tokens of every example, real ones too, are read but not
    learned."""
    truncate: Annotated[float, Field(gt=0, lt=1)] | None = since(None)
    """Tokens that the model gives more than this probability are not learned (truncated cross-entropy)."""
    synthetic_weight: SyntheticWeight = since(1.0)
    """Weight of the loss of an example that a model wrote, where a real one has 1; ``golden``: what is best
    for a mean, by the numbers of real and synthetic examples."""
    anchor: Anchor | None = since(None)
    """Of generations after the first: what is predicted is held near to a reference model."""
    merge: Merge = since(1.0)
    """With init: previous, how much of the way that training went is gone: below 1 averages with the weights
    before, below 0 extrapolates away from them, ``uniform`` makes the mean of all generations' weights."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            raise ValueError("give epochs or max_steps, not both")
        if self.weights == "best" and self.max_steps is not None:
            raise ValueError("weights: best compares epochs; give epochs, not max_steps")
        return self


class LanguageModel(Section):
    """Causal language models, trained through DeepSpeed."""

    kind: Literal["language_model"]
    model: Model
    init: Literal["scratch", "pretrained", "previous"] = since("scratch")
    """``scratch``: new weights each generation; ``pretrained``: the pretrained ones each time; ``previous``:
    go on from g-1."""
    train: Train = since(Train(), introduced={})
    later: Train | None = since(None)
    """How generations after the first are fitted: what is given here stands in the place of ``train``'s."""
    objective: Objective | None = since(None)
    """data.source: task: what generations after the first minimise; sft when null."""
    adapter: Lora | None = since(None)
    """Small matrices that are trained in the place of the weights; null trains the weights themselves."""
    sample: Sample = since(Sample(), introduced={})

    @model_validator(mode="after")
    def _init_fits(self) -> LanguageModel:
        if self.init == "pretrained" and self.model.pretrained is None:
            raise ValueError("init: pretrained needs model: {pretrained: NAME}")
        if self.later is not None and self.later.merge != 1.0 and self.init != "previous":
            raise ValueError(
                f"later.merge: found {self.later.merge}, which merges with the weights before and needs "
                "init: previous"
            )
        for name, train in (("train", self.train), ("later", later_train(self))):
            # generation 0 may be a pretrained model as it is, from which later ones go on
            begins = name == "train" and self.init == "previous" and self.model.pretrained is not None
            if train.max_steps == 0 and self.init != "pretrained" and not begins:
                if name == "later" and (self.later is None or "max_steps" not in self.later.model_fields_set):
                    raise ValueError(
                        "train.max_steps: 0 steps leave generation 0 as the pretrained model is, and later "
                        "generations would learn nothing either; give them steps: later: {epochs: 1}, say"
                    )
                raise ValueError(
                    f"{name}.max_steps: 0 steps leave new weights as they are; it goes with init: pretrained"
                )
            if train.loss == "continuation" and not self.sample.keep_prompt:
                raise ValueError(
                    f"{name}.loss: continuation needs sample.keep_prompt: true; without it examples hold no "
                    "prompt to mask"
                )
        if self.later is not None and "precision" in self.later.model_fields_set:
            raise ValueError(
                "later.precision: all generations of a chain have one precision, which train.precision says"
            )
        if self.train.merge != 1.0 and self.init != "previous":
            raise ValueError(
                f"train.merge: found {self.train.merge}, which merges with the weights before and needs "
                "init: previous"
            )
        check_adapter(self, any(train.merge != 1.0 for train in (self.train, later_train(self))))
        return self


def later_train(learner: LanguageModel) -> Train:
    """How generations after the first are fitted."""
    if learner.later is None:
        return learner.train
    given = learner.train.model_dump(exclude_unset=True)
    changed = learner.later.model_dump(exclude_unset=True)
    for one, other in (("epochs", "max_steps"), ("max_steps", "epochs")):
        if one in changed and changed[one] is not None:
            given.pop(other, None)
    return Train(**{**given, **changed})


def check(config: Any) -> None:
    """Check its section against the rest of a configuration.

    Raises:
        ValueError: They do not fit.
    """
    learner, regime = config.learner, config.regime
    if config.data.prompted:
        posttraining.check(config, later_train(learner), resolve_model(learner.model).context)
    else:
        posttraining.check_none(config)
        _check_text(learner, config.data)
    check_watermark(config)
    own = learner.later is not None and "synthetic_weight" in learner.later.model_fields_set
    section = "later" if own else "train"
    check_weight(f"learner.{section}.synthetic_weight", later_train(learner).synthetic_weight, regime)
    _check_anchor(learner, config)
    check_refresh(config)
    if config.resources.attention == "flash_attention_2" and learner.train.precision != "bf16":
        raise ValueError(
            f"resources.attention: flash_attention_2 computes in bf16, learner.train.precision is "
            f"{learner.train.precision}"
        )
    if config.resources.compile and learner.adapter is not None and learner.adapter.dropout:
        raise ValueError(
            "resources.compile: an adapter's dropout is drawn example by example, which cannot be compiled, "
            f"and learner.adapter.dropout is {learner.adapter.dropout:g}; allowed: compile: false, or "
            "dropout: 0"
        )
    for section, train in (("train", learner.train), ("later", later_train(learner))):
        _check_batch(section, train.batch_size, config.resources.ranks, config.resources.micro_batch)
    if regime.refresh and regime.refresh.init == "pretrained" and learner.model.pretrained is None:
        raise ValueError("regime.refresh.init: pretrained needs learner.model: {pretrained: NAME}")
    steps = learner.train.max_steps is not None or later_train(learner).max_steps is not None
    if steps and regime.budget != "examples":
        raise ValueError("regime.budget equalises epochs; with learner.train.max_steps it is not used")
    if learner.sample.num_beams > 1 and regime.source == "self":
        _check_beams(config)


def _check_beams(config: Any) -> None:
    """Beam search writes one example a prompt, and there are as many prompts as real examples."""
    regime, parts = config.regime, usual_parts(config.regime)
    # A detector learns from what lies behind the examples of a pool.
    detects = any(item.kind == "detector" for item in config.filters) and any(part.pooled for part in parts)
    if (
        regime.growth is not None
        or config.learner.sample.per_prompt > 1
        # Members may read more of one corpus than there are prompts.
        or (config.population is not None and config.population.mixes)
        or any(part.origin != REAL and part.count > USUAL for part in parts)
        or detects
    ):
        raise ValueError(
            f"learner.sample.num_beams: above 1 writes one example a prompt, but {regime.kind} here reads "
            "more examples than there are prompts (the real examples); allowed: num_beams: 1, another "
            "regime, augment with synthetic_ratio up to 0.5, or stream with synthetic_ratio x pool up to 1 "
            "and no detector; with per_prompt: 1, no growth, and no members that read one another"
        )


def _check_anchor(learner: LanguageModel, config: Any) -> None:
    """What is held near to a reference model, and whether there is that model."""
    for section, train in (("train", learner.train), ("later", later_train(learner))):
        anchor, place = train.anchor, f"learner.{section}.anchor"
        if anchor is None:
            if section == "later" and learner.train.anchor is not None:
                raise ValueError(
                    f"{place}: found nothing, so no generation is left that learner.train.anchor is of; "
                    "leave one of the two out"
                )
            continue
        if learner.objective is not None and OBJECTIVES[learner.objective.kind].loss:
            raise ValueError(
                f"{place}: is of the cross-entropy; learner.objective: {learner.objective.kind} has a "
                "reference of its own"
            )
        if train.truncate is not None:
            raise ValueError(f"{place}: does not go with truncate, which leaves tokens out of the loss")
        if anchor.reference == "previous" and (learner.init != "previous" or config.regime.refresh):
            raise ValueError(
                f"{place}.reference: previous needs learner.init: previous, and no regime.refresh; allowed "
                "without: initial"
            )


def _check_text(learner: LanguageModel, data: TextData) -> None:
    """Check the tokenizer and the lengths of examples against the model and its prompts."""
    if learner.model.pretrained and data.tokenizer.kind == "bpe" and learner.init == "pretrained":
        raise ValueError(
            "data.tokenizer: a pretrained model needs its own tokenizer: {kind: pretrained, name: ...}"
        )
    sample, block = learner.sample, data.block_size
    prompt = sample.prompt_length(block)
    if sample.keep_prompt and prompt >= block:
        raise ValueError(
            f"learner.sample.prompt_tokens: found {prompt}, must be below data.block_size ({block}), as "
            "keep_prompt makes it a part of the block"
        )
    if prompt > block:
        raise ValueError(
            f"learner.sample.prompt_tokens: found {prompt}, must be at most data.block_size ({block})"
        )
    new = block - prompt if sample.keep_prompt else block
    if sample.min_new_tokens > new:
        raise ValueError(
            f"learner.sample.min_new_tokens: found {sample.min_new_tokens}, must be at most {new}: an "
            "example has no more new tokens (data.block_size)"
        )
    context, needed = resolve_model(learner.model).context, sample.sequence_length(block)
    if context is not None and needed > context:
        tokens = f"{block} tokens" if needed == block else f"{needed} tokens with the prompt"
        raise ValueError(
            f"data.block_size: an example takes {tokens}, more than the model's context of {context}"
        )


def stands_for(learner: LanguageModel) -> tuple[Mapping[str, Any], str]:
    """What a preset stands for, where it is not given beside it, and the words for that."""
    model = learner.model
    if model.preset is None:
        return {}, ""
    sizes = preset_sizes(model.preset)
    values = {f"model.{name}": sizes[name] for name in sizes if name not in model.given}
    return values, f"preset {model.preset}"


def _check_batch(section: str, batch_size: int, ranks: int, micro: int | None) -> None:
    if batch_size % ranks:
        raise ValueError(
            f"learner.{section}.batch_size {batch_size} is not a multiple of resources.ranks {ranks}"
        )
    if micro is not None and (batch_size // ranks) % micro:
        raise ValueError(
            f"learner.{section}.batch_size {batch_size} is not a multiple of resources.ranks {ranks} x "
            f"resources.micro_batch {micro}"
        )


def micro_batch(config: Any) -> int:
    """Examples per forward pass and rank: as given, or the most up to 64 that divide a rank's part."""
    learner = config.learner
    size = math.gcd(learner.train.batch_size, later_train(learner).batch_size)
    per_rank = size // config.resources.ranks
    sizes = (size for size in range(1, min(per_rank, 64) + 1) if per_rank % size == 0)
    return config.resources.micro_batch or max(sizes)


def zero_stage(config: Any) -> int:
    """DeepSpeed's ZeRO stage: as given, or `usual_stage`."""
    given, ranks = config.resources.zero_stage, config.resources.ranks
    return usual_stage(ranks, config.learner.train.precision) if given is None else int(given)


def usual_stage(ranks: int, precision: str) -> int:
    """The ZeRO stage where none is given: 2, but 0 for one rank in fp32.

    For one rank stages 1 and 2 divide nothing, and take 4 to 5 % of a step's time (docs/LOG.md). In bf16 it
    has stage 2 all the same, for DeepSpeed's stage 0 keeps fp32 gradients from step to step, 4 bytes a
    parameter; what stage 2 computes is computed without DeepSpeed's part of it (docs/adr/0031).
    """
    return 0 if ranks == 1 and precision == "fp32" else 2


def turn_seconds(turn: Any) -> float:
    """Seconds of one generation (`harness.learners.protocol.Turn`), from the tokens that it reads and writes.

    Two models score the corpus, each three times as fast as it is trained: forward only.
    """
    learner, block = turn.config.learner, turn.config.data.block_size
    train = later_train(learner) if turn.recipe.spec else learner.train  # generation 0 has no regime
    size = turn.recipe.size if turn.recipe.budget == "examples" else turn.n
    trained = train.epochs * size * block
    if train.max_steps is not None:
        trained = train.max_steps * train.batch_size * block
    if learner.adapter is not None and not turn.recipe.spec and not adapts_first(learner):
        trained = trained * 3 // 2  # all weights have gradients there, 6 FLOPs a parameter in the place of 4
    if train.anchor is not None and turn.recipe.spec:
        trained = trained * 4 // 3  # a forward pass of the reference for each one of the fit
    seconds = trained / turn.fit_rate + turn.sampled * block / turn.sample_rate
    return float(seconds + 2 * turn.scored * block / (3 * turn.fit_rate)) / int(turn.config.resources.ranks)


_SHUMAILOV = "Shumailov et al. 2023, arXiv 2305.17493"
_FORGETTING = "McCloskey and Cohen 1989"
_CHEN = "Chen et al. 2021, arXiv 2107.03374"
_NATS = "nats/token"
_GEN0 = "NLL of synthetic text under generation 0"
COMPONENT = LearnerPlugin(
    section=LanguageModel,
    version=1,
    learner="harness.learners.language_model.learner:LanguageModelLearner",
    settle="harness.learners.language_model.resolve:settle",
    resolve="harness.learners.language_model.resolve:resolve",
    hub_items="harness.learners.language_model.converted:hub_items",
    turn_seconds=turn_seconds,
    reads=("text",),
    extra="text",
    modules=("torch", "deepspeed", "transformers", "tokenizers", "datasets"),
    batchable=False,
    many_ranks=True,
    micro_batch=micro_batch,
    zero_stage=zero_stage,
    whole="harness.learners.language_model.adapter:write_whole",
    check=check,
    stands_for=stands_for,
    metrics=(
        Metric(
            "task/pass_1", "pass@1 on test prompts", "", "lower", _CHEN, shown=True, needs="data.prompted"
        ),
        Metric("task/pass_<k>", "pass@<k> on test prompts", "", "lower", _CHEN, needs="data.prompted"),
        Metric("task/answer", "completions with the right final answer", "", "lower", needs="data.prompted"),
        Metric(
            "task/distinct_correct",
            "different right completions of a prompt",
            "",
            "lower",
            needs="data.prompted",
        ),
        Metric("task/judged_reward", "reward by the cell's judge", "", "", needs="data.prompted"),
        Metric("task/reward_gap", "judged reward less the truth", "", "higher", needs="data.prompted"),
        Metric(
            "task/kl", "KL from generation 0's model, on completions", _NATS, "higher", needs="data.prompted"
        ),
        Metric(
            "task/kl_pretrained",
            "KL from the pretrained model, on completions",
            _NATS,
            "higher",
            needs="evaluate.task.pretrained",
        ),
        Metric("task/entropy", "entropy of completions", _NATS, "lower", needs="data.prompted"),
        Metric("task/length", "length of completions", "tokens", needs="data.prompted"),
        Metric("task/unended", "completions that do not end", "", "higher", needs="data.prompted"),
        Metric("task/skill_<name>", "pass@1, skill <name>", "", "lower", drawn=False, needs="data.prompted"),
        Metric(
            "task/difficulty_<d>", "pass@1, difficulty <d>", "", "lower", drawn=False, needs="data.prompted"
        ),
        Metric(
            "task/checker_<trouble>",
            "completions for which the checker <trouble>",
            drawn=False,
            needs="data.prompted",
        ),
        Metric("test/perplexity", "perplexity on real test text", "", "higher", _SHUMAILOV, shown=True),
        Metric("test/nll", "NLL on real test text", _NATS, "higher"),
        Metric("test/bits_per_byte", "bits per byte on real test text", "", "higher"),
        Metric(
            "test/perplexity_batch_mean",
            "mean over batches of the test perplexity",
            "",
            "higher",
            _SHUMAILOV,
            drawn=False,
        ),
        Metric(
            "test/perplexity_sequence_mean",
            "mean over blocks of the test perplexity",
            "",
            "higher",
            drawn=False,
        ),
        Metric(
            "test/nll/<group>",
            "NLL on real text of the group <group>",
            _NATS,
            "higher",
            needs="evaluate.groups",
        ),
        Metric(
            "other/<name>/nll",
            "NLL on other real text: <name>",
            _NATS,
            "higher",
            _FORGETTING,
            needs="evaluate.others",
        ),
        Metric(
            "other/<name>/bits_per_byte",
            "bits per byte on other real text: <name>",
            "",
            "higher",
            _FORGETTING,
            drawn=False,
            needs="evaluate.others",
        ),
        Metric(
            "other/<name>/forgotten",
            "rise of the NLL from generation 0's, on other real text: <name>",
            _NATS,
            "higher",
            _FORGETTING,
            needs="evaluate.others",
        ),
        Metric(
            "other/<name>/forgotten_pretrained",
            "rise of the NLL from the pretrained model's, on other real text: <name>",
            _NATS,
            "higher",
            _FORGETTING,
            needs="evaluate.others",
        ),
        Metric("drift/entropy", "entropy of predictions on fixed real text", _NATS, needs="evaluate.drift"),
        Metric(
            "drift/kl",
            "KL from generation 0's predictions on fixed real text",
            _NATS,
            "higher",
            needs="evaluate.drift",
        ),
        Metric(
            "drift/cka",
            "likeness of representations to generation 0's (linear CKA)",
            "",
            "lower",
            "Kornblith et al. 2019, arXiv 1905.00414",
            needs="evaluate.drift",
        ),
        Metric("gen0/nll_mean", _GEN0, _NATS, "", _SHUMAILOV),
        Metric("gen0/nll_p05", f"5 % quantile of the {_GEN0}", _NATS, "", _SHUMAILOV, drawn=False),
        Metric("gen0/nll_p50", f"median of the {_GEN0}", _NATS, "", _SHUMAILOV, drawn=False),
        Metric("gen0/nll_p95", f"95 % quantile of the {_GEN0}", _NATS, "", _SHUMAILOV, drawn=False),
        Metric("self/nll_mean", "NLL of synthetic text under its own model", _NATS),
        Metric("text/distinct_2", "distinct-2", "", "", "Li et al. 2016, arXiv 1510.03055"),
        Metric(
            "text/rep_4", "rep-4 (share of repeated 4-grams)", "", "", "Welleck et al. 2020, arXiv 1908.04319"
        ),
        Metric("text/entropy_2", "bigram entropy", "nats"),
        Metric("text/type_token_ratio", "type-token ratio"),
        Metric("text/vocab_coverage", "vocabulary coverage", "", "lower"),
        Metric("text/tail_mass", "tail mass (rarest tokens, 10 % of real text)"),
        Metric("text/band_<k>", "share of frequency band <k>, over that in real text", drawn=False),
        Metric("text/duplicate_share", "share of duplicates", "", "higher"),
        Metric("text/copy_share", "share copied from the training set"),
        Metric("text/tokens", "tokens that the metrics of the corpus read", drawn=False),
    ),
    groups={"likelihood": 2, "lexical": 1, "copying": 1},
    headlines=("task/pass_1", "test/perplexity"),
    evaluates=(
        "prompts",
        "examples",
        "perplexity_batch",
        "max_duplicate_share",
        "others",
        "groups",
        "drift",
        "task",
    ),
    names_examples=True,
    example={
        "model": {"preset": "micro"},
        "train": {"epochs": 4, "batch_size": 16, "learning_rate": 4e-3, "warmup_ratio": 0.2},
    },
    seeds=1,
)
