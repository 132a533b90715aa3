"""The language model as a learner."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from harness.components.adapter import Lora
from harness.components.merging import share_of_way
from harness.data.base import GROUP
from harness.data.task import TaskCorpus
from harness.data.text import TextCorpus
from harness.errors import LearnerError
from harness.learners.base import (
    Control,
    EvaluateTask,
    Evaluation,
    Execution,
    FitOutcome,
    FitTask,
    Ranks,
    SampleTask,
    Stopped,
)
from harness.learners.language_model import adapter as adapters
from harness.learners.language_model import model as models
from harness.learners.language_model.answers import answers_of, draw_answers, judged, measure
from harness.learners.language_model.deferred import Keep
from harness.learners.language_model.distributed import device
from harness.learners.language_model.drift import NAMES, drift
from harness.learners.language_model.engine import Scattering
from harness.learners.language_model.objectives import Objective, Units, make_objective
from harness.learners.language_model.sampling import Sampler, draw_batch
from harness.learners.language_model.scoring import score
from harness.learners.language_model.specs import SampleSpec, VerdictSpec, fitted, text_of
from harness.learners.language_model.training import Trainer, plan_steps
from harness.learners.language_model.verdicts import Questions, verdicts
from harness.metrics import DRIFT_VERSION, likelihood
from harness.metrics.lexical import copying_metrics, lexical_metrics
from harness.metrics.tasks import model_metrics
from harness.metrics.watermark import GreenLists
from harness.records import Examples, Status
from harness.science import CorpusSpec, FitSpec
from harness.streams import stream_seed, uniforms


class LanguageModelLearner:
    """Causal language models over one text."""

    def __init__(self, data: TextCorpus, ranks: Ranks, execution: Execution) -> None:
        """Keep the text."""
        self.data, self.ranks, self.execution = data, ranks, execution
        self.device = device()
        self.prompt, self.fill = data.prompt_tokens, data.fill
        self._loaded: tuple[Path | None, PreTrainedModel] | None = None
        self._base: Path | None = None
        self._adapted = False

    def _begin(self, spec: FitSpec, base: Path | None) -> None:
        """Note what a call is about: where what its fits add to lies, and whether they are fitted by peft."""
        self._base, self._adapted = base, fitted(spec).adapter is not None

    def _bos(self, spec: FitSpec) -> int | None:
        """The token that every example is read behind; None for none."""
        return int(self.data.meta["bos"]) if text_of(spec).prepend_bos else None

    def _bytes(self, spec: FitSpec, examples: Examples, text: bool = False) -> int:
        """UTF-8 bytes of the tokens that are predicted.

        Without a beginning-of-text token an example's first one is not; ``text`` has no prompts in front.
        """
        first = max(0 if text_of(spec).prepend_bos else 1, 0 if text else self.prompt)
        place = np.arange(examples.values.shape[1])[None, :]
        return self.data.bytes(examples.values[(place >= first) & (place < examples.lengths[:, None])])

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit through DeepSpeed; rank 0 writes the weights in the training precision."""
        self._loaded = None
        # models and their caches refer to themselves: what was loaded before would stay beside this fit
        gc.collect()
        spec, train, resources = task.spec, fitted(task.spec).train, self.execution.resources
        self._begin(spec, task.base)
        adapter = _adapter_of(spec)
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
            resources.zero_stage,
            self._bos(spec),
            self.ranks,
            self.device,
            train.masked_tokens or 0,
            resources.deterministic,
            resources.attention,
            resources.activation_checkpointing,
            self.prompt,
            self.fill,
            _tokens(spec),
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
            tokens = _tokens(task.spec)
            return -self._score(task.spec, folder, examples, task.control, by_token=True, tokens=tokens)

        found = objective.units(task.training.examples, self.prompt, logprobs)
        self._loaded = None
        gc.collect()
        return found

    def _reference(self, task: FitTask, model: PreTrainedModel) -> Callable[..., Any] | None:
        """The model that ``train.anchor`` holds a fit near to; every rank has a whole one.

        It is the fitted model without its adapter, where that is what the adapter is added to. (Under ZeRO-3
        layers are gathered in one order, so there it is a model of its own.)
        """
        folder = task.reference or task.init_from
        if fitted(task.spec).train.anchor is None or folder is None:
            return None
        if self._adapted and folder == _before(task) and self.execution.resources.zero_stage < 3:
            return adapters.Without(model)
        found: Callable[..., Any] = self._model(task.spec, folder)
        self._loaded = None
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

    def _model(self, spec: FitSpec, folder: Path | None) -> PreTrainedModel:
        """The fitted model in a folder, the pretrained one where that is None; the last one stays loaded."""
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None
            if folder is None:
                dtype = models.DTYPES[fitted(spec).train.precision]
                found = adapters.base_model(spec, None, self.execution.models, dtype)
                self._loaded = (folder, models.to_read(found, self.device))
            elif adapters.is_adapter(folder):  # merged: sampling and scoring cost what they cost without one
                whole = adapters.whole_model(spec, folder, self._base, self.execution.models)
                self._loaded = (folder, models.to_read(whole, self.device))
            else:
                dtype = models.DTYPES[fitted(spec).train.precision]
                self._loaded = (folder, models.read_model(folder, dtype, self.device))
        return self._loaded[1]

    def _sampler(self, spec: CorpusSpec, model: PreTrainedModel, control: Control) -> Sampler:
        meta = self.data.meta
        how: SampleSpec = spec.sampling.section
        start = int(meta["bos"]) if how.prompt == "bos" else self._bos(spec.fit)
        vocabulary, mark = int(meta["vocab_size"]), how.watermark
        green = None
        if mark is not None:
            green = GreenLists(spec.fit.seed, vocabulary, mark.gamma, mark.context)
        return Sampler(
            model,
            how,
            start,
            int(meta["eos"]),
            control.tick,
            vocabulary,
            how.context != "whole",
            green,
            how.noted,
            self.fill,
        )

    def sample(self, task: SampleTask) -> int:
        """Whole batches, dealt out over the ranks; each is committed as a shard when it is done."""
        spec, control = task.spec.fit, task.control
        self._begin(spec, task.base)
        size, width = self.execution.resources.sample_batch, text_of(spec).block_size
        sampler = self._sampler(task.spec, self._model(spec, task.fit), control)
        prompt = sampler.config.prompt_length(width)
        judging = self._judging(task.spec, sampler.model, task.judge)
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
            task.append(batch * size, examples)
            done += int(examples.lengths.sum())
            rate = done / (time.monotonic() - started) * self.ranks.world_size
            task.report((number + 1) * self.ranks.world_size * size, len(batches) * size, rate)
        if any(self.ranks.gather(control.stopping)):
            raise Stopped
        return sum(self.ranks.gather(done))

    def _judging(
        self, spec: CorpusSpec, writer: PreTrainedModel, judge: Path | None
    ) -> tuple[PreTrainedModel, Questions] | None:
        """Who is asked about what is written, and how; None where nobody is."""
        if self._verdict(spec) is None:
            return None
        if judge is not None:
            self._loaded = None  # both are needed at once
            writer = self._model(spec.fit, judge)
        return writer, self._questions(spec)

    def _verdict(self, spec: CorpusSpec) -> VerdictSpec | None:
        how: SampleSpec = spec.sampling.section
        return how.verdict

    def _questions(self, spec: CorpusSpec) -> Questions:
        verdict = self._verdict(spec)
        assert verdict is not None and self.data.rendered is not None
        return Questions(verdict, self.data.rendered)

    def _score(
        self,
        spec: FitSpec,
        folder: Path | None,
        examples: Examples,
        control: Control,
        by_token: bool = False,
        text: bool = False,
        tokens: int | None = None,
    ) -> npt.NDArray[np.float64]:
        """Nats per sequence, or by token, under the model in a folder (`_model`), the ranks sharing the work.

        Other ``text`` has no prompts in front. With ``tokens`` they are among the first so many.
        """
        model, ranks = self._model(spec, folder), self.ranks
        mine = score(
            model,
            examples,
            self._bos(spec),
            ranks.rank,
            ranks.world_size,
            control.tick,
            0 if text else self.prompt,
            by_token,
            None if text else self.fill,
            self.fill is not None,
            tokens,
        )
        return self._merged(mine)

    def _merged(self, mine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What all ranks have computed; NaN where a rank has not."""
        merged = np.full_like(mine, np.nan)
        for share in self.ranks.gather(mine):
            merged = np.where(np.isnan(share), merged, share)
        return merged

    def _predicted(self, spec: FitSpec, examples: Examples, text: bool = False) -> npt.NDArray[np.int64]:
        first = max(0 if text else self.prompt, 0 if text_of(spec).prepend_bos else 1)
        return np.maximum(examples.lengths.astype(np.int64) - first, 0)

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """All metrics of a generation, and the values per sequence behind them.

        The prompts' continuations come with them.
        """
        test, corpus, spec, measured = self.data.test, task.corpus, task.spec.fit, task.spec.measured.section
        self._begin(spec, task.base)
        copying = self._copying(task)

        done, test_tokens = itertools.count(1), self._predicted(spec, test)
        solved = bool(test_tokens.any())  # a task may have no solutions
        pieces = (
            len(task.others) * len(self._forgetting(task))
            + (1 if task.is_first else 2)
            + solved
            + (task.texts is None)
            + (self.prompt > 0)
        )

        def scores(
            name: str, model: Callable[[], Path | None], examples: Examples, text: bool = False
        ) -> npt.NDArray[np.float64]:
            found = task.piece(
                f"{name}_nll",
                len(examples),
                lambda: self._score(spec, model(), examples, task.control, text=text),
            )
            task.report(next(done), pieces, 0.0)
            return found

        test_nll = scores("test", task.fit, test) if solved else np.zeros(0)
        others = {
            f"{when}other_{name}": scores(f"{when}other_{name}", model, task.others[name], text=True)
            for when, model in self._forgetting(task)
            for name in sorted(task.others)
        }
        own = scores("self", task.fit, corpus)
        texts = task.texts
        if texts is None:
            texts = self._continuations(task, task.fit())
            task.report(next(done), pieces, 0.0)
        under_gen0 = own if task.is_first else scores("gen0", task.generation_0, corpus)
        drifted = self._drift(task)
        answered = self._answers(task, self.data.task) if self.data.task else None
        if self.ranks.rank:
            return Evaluation({})
        tokens = self._predicted(spec, corpus)
        of_test: Mapping[str, float] = {}
        if solved:
            of_test = likelihood.test_metrics(
                test_nll, test_tokens, self._bytes(spec, test), measured.perplexity_batch
            )
        metrics = {
            **of_test,
            **likelihood.gen0_metrics(under_gen0, tokens),
            **likelihood.self_metrics(own, tokens),
            **lexical_metrics(self.data.written(corpus), self.data.counts, self.data.longest),
            **copying,
            **dict(zip(NAMES, next(iter(drifted.values()), ()), strict=False)),
            **(answered.metrics if answered else {}),
        }
        for name, text in task.others.items():
            nll, predicted = others[f"other_{name}"], self._predicted(spec, text, text=True)
            if name.startswith(GROUP):
                metrics[f"test/nll/{name.removeprefix(GROUP)}"] = float(nll.sum()) / int(predicted.sum())
                continue
            metrics |= likelihood.other_metrics(name, nll, predicted, self._bytes(spec, text, text=True))
            if self.data.task is not None:
                before = others.get(f"gen0_other_{name}", nll)
                metrics[f"other/{name}/forgotten"] = float((nll - before).sum() / predicted.sum())
            if measured.task.pretrained:
                before = others[f"pretrained_other_{name}"]
                metrics[f"other/{name}/forgotten_pretrained"] = float((nll - before).sum() / predicted.sum())
        arrays = {
            **({"test_nll": test_nll, "test_tokens": test_tokens.astype(np.float64)} if solved else {}),
            "gen0_nll": under_gen0,
            "self_nll": own,
            "tokens": tokens.astype(np.float64),
            **{f"{name}_nll": nll for name, nll in others.items()},
            **drifted,
            **(answered.arrays if answered else {}),
        }
        return Evaluation(metrics, arrays, texts)

    def _forgetting(self, task: EvaluateTask) -> list[tuple[str, Callable[[], Path | None]]]:
        """Whose scores of other texts are measured.

        Of prompts, whose text is none, generation 0's too, and the pretrained model's where it is asked for.
        """
        found: list[tuple[str, Callable[[], Path | None]]] = [("", task.fit)]
        if self.data.task is not None and not task.is_first:
            found.append(("gen0_", task.generation_0))
        if task.spec.measured.section.task.pretrained:
            found.append(("pretrained_", lambda: None))
        return found

    def _drift(self, task: EvaluateTask) -> Mapping[str, npt.NDArray[np.float64]]:
        """What ``evaluate.drift`` asks for, by the name of its array; nothing where it is not asked for."""
        spec, how = task.spec.fit, task.spec.measured.section.drift
        if how is None:
            return {}
        read = self.data.test.take(slice(0, how.examples))

        def compute() -> npt.NDArray[np.float64]:
            first = self._model(spec, task.generation_0())
            self._loaded = None  # both are needed at once
            model = first if task.is_first else self._model(spec, task.fit())
            return drift(model, first, read, self._bos(spec), self.prompt, task.control.tick, self.fill)

        # Its name says what it depends on: another evaluation may read it.
        name = f"drift_{DRIFT_VERSION}_{len(read)}"
        return {name: task.piece(name, len(NAMES), compute)}

    def _answers(self, task: EvaluateTask, data: TaskCorpus) -> Evaluation:
        """How the test prompts of a task are answered; the result is complete on rank 0."""
        spec, how, ranks = task.spec.fit, task.spec.measured.section.task, self.ranks
        prompts = min(how.prompts, len(data.test))

        def draw() -> npt.NDArray[np.float64]:
            sampler = self._sampler(task.spec.corpus, self._model(spec, task.fit()), task.control)
            return self._merged(
                draw_answers(
                    sampler,
                    data,
                    prompts,
                    how.completions,
                    spec.seed,
                    spec.generation,
                    slice(ranks.rank, None, ranks.world_size),
                )
            )

        rows = ranks.broadcast(task.piece("answers", prompts * how.completions, draw))
        answers = answers_of(data, prompts, rows)
        # among the tokens that they were drawn from; its name says it, as another evaluation may read it
        among = task.spec.corpus.sampling.section.tokens
        of = "" if among is None else f"_of_{among}"

        def under(who: str, model: Callable[[], Path | None]) -> npt.NDArray[np.float64]:
            return task.piece(
                f"answers_{who}_nll{of}",
                len(answers),
                lambda: self._score(spec, model(), answers, task.control, tokens=among),
            )

        under_gen0 = -np.nansum(answers.notes["logprob"].astype(np.float64), axis=1)
        if not task.is_first:
            under_gen0 = under("gen0", task.generation_0)
        arrays = {"answers": rows, f"answers_gen0_nll{of}": under_gen0}
        if how.pretrained:
            under_pretrained = under("pretrained", lambda: None)
            arrays[f"answers_pretrained_nll{of}"] = under_pretrained
        if self._verdict(task.spec.corpus) is not None:
            said = task.piece("answers_verdict", len(answers), lambda: self._asked(task, answers))
            arrays["answers_verdict"] = said
            answers = answers.noted("verdict", said) if ranks.rank == 0 else answers
        learned = task.learned()
        if ranks.rank:
            return Evaluation({})
        judges = task.spec.measured.judges
        found = dict(measure(data, prompts, how.pass_k, answers, under_gen0, judges))
        if how.pretrained:
            logprob = np.nansum(answers.notes["logprob"].astype(np.float64), axis=1)
            tokens = answers.lengths.astype(np.int64) - data.prompt_tokens
            against = model_metrics(logprob, under_pretrained, tokens)
            found["task/kl_pretrained"] = against["task/kl"]
        found |= judged(data, judges, how.completions, answers, spec.seed, spec.generation, learned)
        if data.has_truth and "task/judged_reward" in found:
            found["task/reward_gap"] = found["task/judged_reward"] - found["task/pass_1"]
        return Evaluation(found, arrays)

    def _asked(self, task: EvaluateTask, answers: Examples) -> npt.NDArray[np.float64]:
        """What the model that judges says of answers."""
        judge = (task.judge or task.fit)()
        model = self._model(task.spec.fit, judge)
        ranks, tick = self.ranks, task.control.tick
        questions = self._questions(task.spec.corpus)
        return self._merged(verdicts(model, questions, answers, ranks.rank, ranks.world_size, tick))

    def _copying(self, task: EvaluateTask) -> Mapping[str, float]:
        """Duplicates and copies; on every rank, so that all of them end where there are too many.

        Raises:
            LearnerError: More duplicates than ``evaluate.max_duplicate_share``.
        """
        found, limit = (
            copying_metrics(task.corpus, task.training.examples),
            task.spec.measured.section.max_duplicate_share,
        )
        share, spec = found["text/duplicate_share"], task.spec.fit
        if limit is not None and share > limit:
            raise LearnerError(
                f"evaluate.max_duplicate_share: {share:.4g} of the first {len(task.corpus)} examples of "
                f"generation {spec.generation} (seed {spec.seed}) equal an earlier one, allowed: at most "
                f"{limit:g}; the corpus stays, but the chain ends here"
            )
        return found

    def _prompts(self, task: EvaluateTask) -> list[list[int]]:
        """The evaluation's prompts as token ids; those of the test split are half a block."""
        prompts, half = task.spec.measured.section.prompts, text_of(task.spec.fit).block_size // 2
        if isinstance(prompts, int):
            cut = self.prompt or half
            return [list(map(int, row)) for row in self.data.test.values[:prompts, :cut]]
        return [self.data.encode(text) for text in prompts]

    def _continuations(self, task: EvaluateTask, fit: Path) -> Sequence[Mapping[str, str]]:
        """Each prompt with what this generation makes of it; rank 0 draws, prompts of one length together.

        Prompts are cut to half of the model's context.
        """
        if self.ranks.rank:
            return []
        spec, block = task.spec.fit, text_of(task.spec.fit).block_size
        model = self._model(spec, fit)
        sampler = self._sampler(task.spec.corpus, model, task.control)
        limit = getattr(model.config, "max_position_embeddings", None) or sampler.config.sequence_length(
            block
        )
        prompts = self._prompts(task)
        if not self.prompt:
            prompts = [prompt[: max(1, limit // 2)] for prompt in prompts]
        found: dict[int, str] = {}
        for width in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == width]
            length = block - width if self.prompt else max(1, min(block, limit - width - 1))
            each = sampler.numbers(length)
            uniform = np.concatenate(
                [uniforms(spec.seed, spec.generation, "continuation", row, row + 1, each) for row in rows]
            )
            drawn = sampler.draw(
                np.array([prompts[row] for row in rows], dtype=np.int64).reshape(len(rows), width),
                length,
                uniform,
            )
            for row, values, used in zip(rows, drawn.values, drawn.lengths, strict=True):
                found[row] = self.data.decode(values[:used])
        return [
            {"prompt": self.data.decode(prompt), "continuation": found[row]}
            for row, prompt in enumerate(prompts)
        ]

    def reset_peak(self) -> None:
        """Measure the peak of GPU memory anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def describe(self) -> Mapping[str, Any]:
        """Device, ZeRO stage and versions."""
        import transformers

        from harness.learners.language_model.imports import deepspeed

        on_gpu = self.device.type == "cuda"
        versions = {
            "torch": torch.__version__,
            "deepspeed": deepspeed.__version__,
            "transformers": transformers.__version__,
        }
        if self._adapted:
            versions["peft"] = metadata.version("peft")
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return {
            "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
            "zero_stage": self.execution.resources.zero_stage,
            "attention": self.execution.resources.attention,
            "activation_checkpointing": self.execution.resources.activation_checkpointing,
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


def _finite(state: Mapping[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
