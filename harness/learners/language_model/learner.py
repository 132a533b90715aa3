"""The language model as a learner."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from harness.components.adapter import Lora
from harness.components.merging import share_of_way
from harness.data.text import TextCorpus
from harness.errors import LearnerError
from harness.learners.language_model import adapter as adapters
from harness.learners.language_model import model as models
from harness.learners.language_model.deferred import Keep
from harness.learners.language_model.engine import Scattering, restore_linear
from harness.learners.language_model.evaluating import Evaluator
from harness.learners.language_model.inference import Inference
from harness.learners.language_model.objectives import Objective, Units, make_objective
from harness.learners.language_model.sampling import Sampler, draw_batch, own_scores
from harness.learners.language_model.schedule import plan_steps
from harness.learners.language_model.specs import fitted, text_of
from harness.learners.language_model.training import Trainer
from harness.learners.language_model.verdicts import Questions, verdicts
from harness.learners.protocol import (
    EvaluateTask,
    Evaluation,
    Execution,
    FitOutcome,
    FitTask,
    Ranks,
    SampleTask,
    Stopped,
)
from harness.proc import cpu_device, give_back
from harness.records import Examples, Status
from harness.science import CorpusSpec, FitSpec
from harness.streams import stream_seed


class LanguageModelLearner:
    """Causal language models over one text."""

    def __init__(self, data: TextCorpus, ranks: Ranks, execution: Execution) -> None:
        """Keep the text."""
        self.data, self.ranks, self.execution = data, ranks, execution
        self.inference = Inference(data, ranks, execution)
        self._adapted = False

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit through DeepSpeed; rank 0 writes the weights in the training precision."""
        try:
            return self._fit(task)
        finally:
            restore_linear()  # an engine does so too, but a model that is built for ZeRO-3 may get none

    def _fit(self, task: FitTask) -> FitOutcome:
        self.inference.release()
        # models and their caches refer to themselves: what was loaded before would stay beside this fit
        give_back()
        spec, train, resources = task.spec, fitted(task.spec).train, self.execution.resources
        adapter = _adapter_of(spec)
        self._adapted = adapter is not None
        _check_base(task)
        # Under ZeRO-3 no rank holds a whole model, not even as it is made.
        nothing = train.max_steps == 0 or not len(task.training.examples)
        if not len(task.training.examples) and (spec.init != "previous" or task.init_from is None):
            raise LearnerError(
                f"filters: nothing passes of what generation {spec.generation} could be trained on, and with "
                f"init: {spec.init} there are no weights to go on with; allowed: init: previous, more "
                "completions of a prompt (learner.sample.per_prompt), or a judge that accepts more"
            )
        parted = resources.zero_stage == 3 and not nothing
        units = None if nothing else self._units(task)
        if units is not None:
            nothing = not len(units)
            parted = parted and not nothing
        model = self._initial(task, Scattering(train, self.ranks.world_size) if parted else None)
        values = None if adapter is None else self._adapter(task, model, adapter)
        if nothing:
            return self._unchanged(task, model, values)
        reference = self.data.real(spec.seed, self.data.num_examples)
        training = task.training.examples if units is None else units.examples
        schedule = plan_steps(train, training, spec.recipe.budget, reference, units.each if units else 1)
        trainer = self._trainer(spec)
        if adapter is not None and values is not None:
            adapters.attach(model, adapter, values)
        objective, adapted = self._objective(spec), adapter is not None
        towards = self._reference(task, model)
        found = trainer.run(model, self.data.validation, schedule, task, units, objective, adapted, towards)
        status = found.status
        if status == "ok":
            status = self._keep(task, model, self._come_to(task, found.state))
        return FitOutcome(status, found.log, found.tokens, found.computed)

    def _trainer(self, spec: FitSpec) -> Trainer:
        train, resources = fitted(spec).train, self.execution.resources
        return Trainer(
            train,
            resources.micro_batch or 1,
            resources.zero_stage or 0,
            self.inference.bos(spec),
            self.ranks,
            self.inference.device,
            train.masked_tokens or 0,
            resources.deterministic,
            resources.attention,
            resources.activation_checkpointing,
            self.data.prompt_tokens,
            self.data.fill,
            _tokens(spec),
            resources.compile,
            self.execution.stage_asked,
        )

    def _unchanged(self, task: FitTask, model: PreTrainedModel, values: adapters.Values | None) -> FitOutcome:
        """A fit that learns nothing: the pretrained model, or the one before, as it is."""
        state, dtype = models.weights_of(model), models.DTYPES[fitted(task.spec).train.precision]
        if values is not None and _separate(_adapter_of(task.spec)) and _finite(state):
            state = dict(values)
        status = self._keep(task, model, {name: tensor.to(dtype) for name, tensor in state.items()})
        return FitOutcome(status, {"train_loss": [], "steps": 0}, 0, 0)

    def _come_to(self, task: FitTask, state: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What is stored of what was fitted, on rank 0: merged with what it began with, where it is asked."""
        adapter, train = _adapter_of(task.spec), fitted(task.spec).train
        if self.ranks.rank:
            return {}
        if adapter is not None:
            state = adapters.by_file_name(state)
        if adapter is not None and not _separate(adapter):
            dtype = models.DTYPES[train.precision]
            model = adapters.base_model(task.spec, _before(task), self.execution.models, dtype)
            adapters.merge(model, adapter, state)
            state = models.weights_of(model)
        if train.merge != 1.0 and task.init_from is not None:
            share = share_of_way(train.merge, task.spec.generation)
            state = models.merged(task.init_from, state, share)
        return state

    def _adapter(self, task: FitTask, model: PreTrainedModel, section: Lora) -> adapters.Values:
        """What an adapter begins with: that of the generation before where it goes on, else a new one."""
        before = task.init_from if task.spec.init == "previous" else None
        if before is not None and adapters.is_adapter(before):
            return adapters.read_adapter(before)
        return adapters.new_values(model, section, task.spec.seed, task.spec.generation)

    def _keep(self, task: FitTask, model: PreTrainedModel, state: Mapping[str, torch.Tensor]) -> Status:
        """Write what a fit came to, on rank 0; collective. Diverged where it is not finite.

        An ordinary Hugging Face folder, the model with its tokenizer; or an adapter as peft stores it.
        """
        status: Status = "ok"
        if self.ranks.rank == 0:
            adapter = _adapter_of(task.spec)
            if not _finite(state):
                status = "diverged"
            elif _separate(adapter):
                base, revision = self._base_name(task.spec)
                turned = adapters.transposed(model)
                adapters.write_adapter(task.out, adapter, state, turned, base, revision)
                self.data.write_tokenizer(task.out)
            else:
                models.write_model(task.out, model.config, state)
                self.data.write_tokenizer(task.out)
        return self.ranks.broadcast(status)

    def _base_name(self, spec: FitSpec) -> tuple[str, str | None]:
        """What an adapter is added to, for other tools: a model of the hub, or a key; never a path."""
        if spec.base is not None:
            return spec.base, None
        content = fitted(spec).model.pretrained or ""
        name, _, revision = content.removeprefix("hub:").partition("@")
        return (name, revision) if content.startswith("hub:") else (content, None)

    def _objective(self, spec: FitSpec) -> Objective | None:
        """What a fit minimises; None for the cross-entropy."""
        found = fitted(spec).objective
        return None if found is None else make_objective(found.section)

    def _units(self, task: FitTask) -> Units | None:
        """The training examples as the fit's objective arranges them; None for the cross-entropy."""
        objective = self._objective(task.spec)
        if objective is None:
            return None
        folder = task.reference or task.init_from
        assert folder is not None  # its configuration asks for init: previous

        def logprobs(examples: Examples) -> npt.NDArray[np.float64]:
            tokens, score = _tokens(task.spec), self.inference.score
            return -score(task.spec, folder, examples, task.control, by_token=True, tokens=tokens)

        found = objective.units(task.training.examples, self.data.prompt_tokens, logprobs)
        self.inference.release()
        give_back()
        return found

    def _reference(self, task: FitTask, model: PreTrainedModel) -> Callable[..., Any] | None:
        """The model that ``train.anchor`` holds a fit near to; every rank has a whole one.

        It is the fitted model without its adapter, where that is what the adapter is added to. (Under ZeRO-3
        layers are gathered in one order, so there it is a model of its own.)
        """
        folder = task.reference or task.init_from
        if fitted(task.spec).train.anchor is None or folder is None:
            return None
        if self._adapted and folder == _before(task) and self.execution.resources.zero_stage != 3:
            return adapters.Without(model)
        found: Callable[..., Any] = self.inference.model(task.spec, folder)
        self.inference.release()
        return found

    def _initial(self, task: FitTask, keep: Keep | None) -> PreTrainedModel:
        spec, model, meta = task.spec, fitted(task.spec).model, self.data.meta
        before = _before(task)
        if before is not None:
            return models.model_to_fit(before, keep)
        place = model if model.pretrained is None else self.execution.models[model.pretrained]
        vocab_size = int(meta["vocab_size"])
        if model.pretrained is not None and spec.init != "scratch":
            return models.pretrained_model(place, vocab_size, keep)
        seed = stream_seed(spec.seed, spec.generation, "init")
        return models.new_model(
            place, vocab_size, model.context or 0, int(meta["bos"]), int(meta["eos"]), seed, keep
        )

    def sample(self, task: SampleTask) -> int:
        """Whole batches, dealt out over the ranks; each is committed as a shard when it is done."""
        spec, control = task.spec.fit, task.control
        self._adapted = _adapter_of(spec) is not None
        size, width = self.execution.resources.sampled_together, text_of(spec).block_size
        sampler = self.inference.sampler(task.spec, self.inference.model(spec, task.fit), control)
        prompt = sampler.config.prompt_length(width)
        judging, known = self._judging(task.spec, sampler.model, task.judge), sampler.noted
        scored = self._scores_as_it_draws(sampler, spec, task.prompts, prompt)
        sampler = replace(sampler, noted=known or scored)
        wanted = range(task.start // size, -(-task.stop // size))
        batches = [batch for batch in wanted if (batch * size, (batch + 1) * size) not in task.shards]
        mine = batches[self.ranks.rank :: self.ranks.world_size]
        started, done = time.monotonic(), 0
        for number, batch in enumerate(mine):
            if control.stopping:
                break
            examples = draw_batch(
                sampler, task.prompts, prompt, width, spec.seed, spec.generation, batch * size, size
            )
            if judging is not None:
                examples = examples.noted("verdict", verdicts(*judging, examples, tick=control.tick))
            scores = own_scores(examples, self.data.prompt_tokens) if scored else None
            task.append(batch * size, examples if known else examples.without("logprob"), scores)
            done += int(examples.lengths.sum())
            rate = done / (time.monotonic() - started) * self.ranks.world_size
            task.report((number + 1) * self.ranks.world_size * size, len(batches) * size, rate)
        if any(self.ranks.gather(control.stopping)):
            raise Stopped
        return sum(self.ranks.gather(done))

    def _scores_as_it_draws(
        self, sampler: Sampler, spec: FitSpec, prompts: Examples | None, prompt: int
    ) -> bool:
        """Whether a sampler sees all that scoring would look at, so that nothing is read a second time.

        Scoring begins with the same token, leaves out the same prompt, and looks at all tokens of the model.
        """
        config, size = sampler.config, sampler.model.config.get_text_config().vocab_size
        front = 0 if prompts is None else prompt if config.keep_prompt else None
        return (
            front == self.data.prompt_tokens
            and sampler.bos == self.inference.bos(spec)
            and (sampler.bos is not None or bool(front))
            and config.num_beams == 1
            and (sampler.vocab_size is None or sampler.vocab_size >= size)
        )

    def _judging(
        self, spec: CorpusSpec, writer: PreTrainedModel, judge: Path | None
    ) -> tuple[PreTrainedModel, Questions] | None:
        """Who is asked about what is written, and how; None where nobody is."""
        questions = self.inference.questions(spec)
        if questions is None:
            return None
        if judge is not None:
            self.inference.release()  # both are needed at once
            writer = self.inference.model(spec.fit, judge)
        return writer, questions

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """Measure a generation; the result is complete on rank 0."""
        found = Evaluator(self.inference, task).evaluation()
        self._adapted = _adapter_of(task.spec.fit) is not None  # a fit may have been made again meanwhile
        return found

    def reset_peak(self) -> None:
        """Measure the peak of GPU memory anew."""
        if self.inference.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def describe(self) -> Mapping[str, Any]:
        """Device, ZeRO stage, kernels, batches and versions."""
        import transformers

        from harness.learners.language_model.imports import deepspeed

        on_gpu = self.inference.device.type == "cuda"
        versions = {
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
            "transformers": transformers.__version__,
        }
        if self._adapted:
            versions["peft"] = metadata.version("peft")
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return {
            "device": torch.cuda.get_device_name(0) if on_gpu else cpu_device(),
            "zero_stage": self.execution.resources.zero_stage,
            "attention": self.execution.resources.attention,
            "activation_checkpointing": self.execution.resources.activation_checkpointing,
            "micro_batch": self.execution.resources.micro_batch or 1,
            "sample_batch": self.execution.resources.sampled_together,
            "compiled": self.execution.resources.compile,
            "versions": versions,
            "peak_memory_bytes": peak,
        }


def _adapter_of(spec: FitSpec) -> Lora | None:
    """What a fit trains in the place of weights; None for these."""
    found = fitted(spec).adapter
    return None if found is None else found.section


def _tokens(spec: FitSpec) -> int | None:
    """Among how many tokens a fit's objective takes probabilities; None for all that the model scores."""
    found = fitted(spec).objective
    return None if found is None else found.tokens


def _separate(adapter: Lora | None) -> TypeGuard[Lora]:
    """Whether a fit is stored as an adapter."""
    return adapter is not None and adapter.weights == "separate"


def _before(task: FitTask) -> Path | None:
    """The fit with whose weights one begins, its adapter left aside; None where they are in no fit."""
    before = task.init_from if task.spec.init == "previous" else None
    return task.base if before is not None and adapters.is_adapter(before) else before


def _check_base(task: FitTask) -> None:
    """Check that a separate adapter is fitted on the weights that its fit says it is added to.

    Raises:
        LearnerError: It would be read on others.
    """
    spec, before = task.spec, _before(task)
    begins = None if before is None else spec.parent if before == task.init_from else spec.base
    if _separate(_adapter_of(spec)) and begins != spec.base:
        one, other = ("the pretrained model" if key is None else f"fit {key}" for key in (begins, spec.base))
        raise LearnerError(
            f"learner.adapter: generation {spec.generation} begins with the weights of {one}, and its "
            f"adapter would be added to those of {other}; allowed: adapter.weights: merged, or an init that "
            "begins with the latter"
        )


def _finite(state: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
