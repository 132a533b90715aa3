"""What has to fit together where a language model answers prompts: tasks, chats, judges and objectives."""

from __future__ import annotations

from typing import Any

from harness.components.objectives import OBJECTIVES
from harness.components.regimes import COMPONENTS as REGIMES
from harness.components.tasks import Prompted, TaskData, TaskMeasure

KNOWING = ("exact", "answer", "noisy", "trained")
"""Judges that need something that knows which completions are right."""


def check(config: Any, later: Any, context: int | None) -> None:
    """Check a language model against data that are prompts: they say what is continued, and where it ends.

    Args:
        config: The cell.
        later: How generations after the first are trained.
        context: The longest sequence of the model, where its configuration says it.

    Raises:
        ValueError: They do not fit.
    """
    learner, data = config.learner, config.data
    what = data.named
    own = ("prompt", "prompt_tokens", "keep_prompt", "length", "min_new_tokens", "forbid_eos", "num_beams")
    given = [name for name in own if name in learner.sample.model_fields_set]
    if given:
        raise ValueError(
            f"learner.sample.{given[0]}: is not used with {what}; its prompts are continued until the "
            "completion ends"
        )
    if learner.train.loss != "all" or later.loss != "all":
        raise ValueError(f"learner.train.loss: is not used with {what}, where completions alone are learned")
    if learner.sample.watermark is not None:
        raise ValueError(f"learner.sample.watermark: is of text; not used with {what}")
    if not data.has_solutions:
        _check_unsolved(config, later)
    _check_tokenizer(config)
    if learner.sample.fresh_prompts and config.regime.growth is not None:
        raise ValueError(
            "regime.growth: with learner.sample.fresh_prompts each generation has data.num_examples prompts, "
            "however many examples are read; leave one of the two out"
        )
    _check_judge(config)
    _check_measured(learner, config.evaluate.task)
    _check_prompts(data, config.evaluate.task)
    if learner.objective is not None:
        _check_objective(config, later)
    block = data.block_size
    if context is not None and block > context:
        raise ValueError(
            f"learner.model.context: a prompt and its completion take {block} tokens "
            f"({data.prompt_length} and {block - data.prompt_length}), more than the model's context of "
            f"{context}"
        )
    if config.regime.source != "self" and config.regime.writer.cell is None:
        raise ValueError(f"regime.source: with {what} allowed are self and {{cell: ...}}")
    if not data.has_truth and "pass_k" in config.evaluate.task.model_fields_set:
        raise ValueError(
            "evaluate.task.pass_k: counts right completions, and nothing knows which are; data.answer names "
            "the field of the reference answers"
        )


def _check_prompts(data: Prompted, measured: TaskMeasure) -> None:
    """As many test prompts as shall be answered, where the data say how many there are."""
    there = data.test if isinstance(data, TaskData) else measured.prompts
    if "prompts" in measured.model_fields_set and measured.prompts > there:
        raise ValueError(
            f"evaluate.task.prompts: found {measured.prompts}, and data.test has {there}; allowed: 1 to "
            f"{there}, or a larger data.test"
        )


def _check_measured(learner: Any, measured: TaskMeasure) -> None:
    """A chain is compared with the pretrained model that it has begun with."""
    if measured.pretrained and (learner.model.pretrained is None or learner.init == "scratch"):
        raise ValueError(
            "evaluate.task.pretrained: compares with the pretrained model that a chain begins with; it needs "
            "learner.model.pretrained, and init: previous or pretrained"
        )


def _check_unsolved(config: Any, later: Any) -> None:
    """Where prompts have no solutions, nothing learns from any, and nothing is measured on any."""
    learner, regime, none = config.learner, config.regime, f"task {config.data.task.kind} has no solutions"
    if learner.train.max_steps != 0:
        raise ValueError(
            f"learner.train.max_steps: found {learner.train.max_steps}, but generation 0 learns from "
            f"solutions, and {none}; allowed: 0, with model: {{pretrained: ...}}, init: previous or "
            "pretrained, and later: {epochs: ...} or {max_steps: ...}"
        )
    compared = learner.objective is not None and OBJECTIVES[learner.objective.kind].chooses == "pairs"
    written = regime.kind == "replace_grown" or (regime.kind == "replace" and regime.synthetic_ratio == 1)
    if regime.refresh is not None or not (written or (compared and regime.kind == "accumulate")):
        raise ValueError(
            f"regime{'' if regime.refresh is None else '.refresh'}: reads solutions after generation 0, and "
            f"{none}; allowed: {{kind: replace, synthetic_ratio: 1.0}}, replace_grown, and accumulate with "
            "learner.objective: {kind: dpo}"
        )
    if later.weights == "best":
        raise ValueError(f"learner.later.weights: best is of validation solutions, and {none}; allowed: last")
    if any(item.kind == "judge" and item.solutions for item in config.filters):
        raise ValueError(f"filters: judge: solutions: found a share of pairs above 0, and {none}; allowed: 0")
    if config.evaluate.drift is not None:
        raise ValueError(f"evaluate.drift: is on test solutions, and {none}; allowed: null")


def _check_tokenizer(config: Any) -> None:
    """A pretrained model reads its own tokens."""
    learner, data = config.learner, config.data
    if learner.model.pretrained is None:
        return
    if data.tokenizer is None:
        raise ValueError(
            "learner.model.pretrained: a task is written in characters, which no pretrained model's "
            "tokenizer has; give data.tokenizer: {kind: pretrained, name: ...} too, or a preset or an "
            "architecture"
        )
    if data.tokenizer.kind == "bpe":
        raise ValueError(
            "data.tokenizer: a pretrained model needs its own tokenizer: {kind: pretrained, name: ...}"
        )


def _check_judge(config: Any) -> None:
    """A judge looks at all completions of a prompt together, as many as are written."""
    each = config.learner.sample.per_prompt
    for place, item in enumerate(config.filters):
        if item.kind != "judge":
            continue
        if config.regime.kind in REGIMES and REGIMES[config.regime.kind].selects:
            raise ValueError(
                f"filters: judge looks at all completions of a prompt together; with regime.kind "
                f"{config.regime.kind} they arrive shuffled"
            )
        if place:
            raise ValueError(
                "filters: judge has to come first, and once: it looks at all completions of a prompt together"
            )
        if config.regime.source == "self" and item.of not in (None, each):
            raise ValueError(
                f"filters: judge looks at {item.of} completions of a prompt (of), "
                f"learner.sample.per_prompt writes {each}"
            )
        if item.of is None:
            item.check_of(each, "learner.sample.per_prompt")
        if item.judge in KNOWING and not config.data.has_truth:
            raise ValueError(
                f"filters: judge {item.judge} has to know which completions are right, and these data do "
                "not say it; name the field of the reference answers in data.answer, or take majority, self "
                "or proxy"
            )
        if item.beside:
            _check_beside(item, config)
        _check_compared(item.choose, config.learner.objective)
        if item.judge in ("verdict", "trained"):
            _check_model(item.judge, config)


def _check_compared(choose: str, objective: Any) -> None:
    """Cross-entropy would learn what was judged worse as it learns what was judged better."""
    fitting = [kind for kind in OBJECTIVES if OBJECTIVES[kind].chooses == choose]
    if fitting and (objective is None or not OBJECTIVES[objective.kind].loss):
        raise ValueError(
            f"filters: judge: choose: {choose} passes what is judged worse too, for objectives that compare "
            f"(learner.objective: {' or '.join(fitting)}); cross-entropy, which is the default, learns from "
            "choose: threshold or best"
        )


def _check_beside(section: Any, config: Any) -> None:
    """Pairs of more than one model's completions: who has answered, and what learns from them."""
    objective, what = config.learner.objective, "solutions"
    if section.rejected == "initial":
        what = "rejected: initial"
    if objective is None or OBJECTIVES[objective.kind].chooses != "pairs":
        raise ValueError(f"filters: judge: {what} is of learner.objective: {{kind: dpo}}")
    if section.solutions and config.learner.train.synthetic_weight != 1:
        raise ValueError(
            "learner.train.synthetic_weight: is of the cross-entropy; pairs with solutions are weighed by "
            "filters: judge: solutions"
        )
    if section.rejected == "initial" and config.learner.sample.fresh_prompts:
        raise ValueError(
            "filters: judge: rejected: initial needs prompts that generation 0 has answered; with "
            "learner.sample.fresh_prompts each generation answers others"
        )


def _check_model(judge: str, config: Any) -> None:
    """Judges that are models know what their own chain writes; one that is asked in words reads words."""
    if judge == "verdict" and not config.data.filled:
        raise ValueError(
            "filters: judge verdict asks the model in words, and the tokens of this task are its characters; "
            "give data.tokenizer, or take another judge"
        )
    if config.regime.source != "self":
        raise ValueError(
            f"filters: judge {judge} is a model of the chain that writes the completions; it needs "
            "regime.source: self"
        )


def _check_objective(config: Any, later: Any) -> None:
    """What an objective learns from."""
    learner, regime = config.learner, config.regime
    kind = learner.objective.kind
    plugin = OBJECTIVES[kind]
    if not plugin.loss:
        return
    place = f"learner.objective: {kind}"
    if learner.init != "previous" or regime.refresh is not None:
        raise ValueError(f"{place} goes on from the weights before; it needs init: previous, and no refresh")
    _check_regime(place, plugin.chooses, regime)
    from harness.components import FILTERS  # which is made of what is here

    chosen = [FILTERS[item.kind].choice(item) for item in config.filters if FILTERS[item.kind].rewards]
    if not chosen or (plugin.chooses and chosen[0] != plugin.chooses):
        raise ValueError(f"{place} needs a judge: filters: [{{kind: judge, choose: {plugin.chooses}, ...}}]")
    if len(config.filters) > 1:
        raise ValueError(f"{place} learns from what belongs together; the judge has to be the only filter")
    if learner.train.truncate is not None or later.truncate is not None:
        raise ValueError(f"learner.train.truncate: is of the cross-entropy, not of {kind}")
    sample = learner.sample
    if kind == "reinforce" and (
        (sample.temperature, sample.top_k, sample.top_p, sample.min_p, sample.typical_p)
        != (1.0, 0, 1.0, 0.0, 1.0)
        or sample.repetition_penalty != 1
        or sample.temperatures
        or sample.mixture
    ):
        raise ValueError(
            f"{place} corrects for how completions were drawn, so they have to be the model's own: "
            "learner.sample with temperature 1 and without cuts or penalties"
        )


def _check_regime(place: str, chooses: str, regime: Any) -> None:
    """Comparisons accumulate; what corrects for how it was drawn learns from the last model's alone."""
    latest = regime.kind == "replace" and regime.synthetic_ratio == 1
    if regime.source == "self" and (latest or (chooses == "pairs" and regime.kind == "accumulate")):
        return
    allowed = "{kind: replace, synthetic_ratio: 1.0, source: self}"
    if chooses == "pairs":
        raise ValueError(
            f"{place} learns from pairs that a judge has compared, and a solution alone is compared with "
            f"nothing; allowed: regime: {allowed}, or {{kind: accumulate}} (the pairs of all generations so "
            "far); solutions are mixed in as pairs, by filters: judge: solutions"
        )
    raise ValueError(
        f"{place} learns from what the model before has written, and that wrote neither solutions nor what "
        f"earlier models wrote; it needs regime: {allowed}"
    )


def check_none(config: Any) -> None:
    """Check a language model of other data: what only prompts have cannot be given.

    Raises:
        ValueError: It is.
    """
    sample = config.learner.sample
    if sample.fresh_prompts:
        raise ValueError("learner.sample.fresh_prompts: is of data.source: task and data.kind: chat")
    if config.learner.objective is not None:
        raise ValueError("learner.objective: is of data.source: task and data.kind: chat")
    if sample.per_prompt > 1 and sample.prompt == "bos":
        raise ValueError(
            f"learner.sample.per_prompt: found {sample.per_prompt}, and with prompt: bos there are no prompts"
        )
    if config.evaluate.task != TaskMeasure():
        raise ValueError("evaluate.task: is of data.source: task and data.kind: chat")
