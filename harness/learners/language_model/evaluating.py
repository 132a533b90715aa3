"""What an evaluation measures of one generation of a language model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.data.real import GROUP
from harness.data.task import TaskCorpus
from harness.errors import LearnerError
from harness.learners.language_model.answers import answers_of, draw_answers, judged, measure
from harness.learners.language_model.drift import NAMES, drift
from harness.learners.language_model.inference import Inference
from harness.learners.language_model.specs import text_of
from harness.learners.language_model.verdicts import Questions, verdicts
from harness.learners.protocol import EvaluateTask, Evaluation
from harness.metrics import DRIFT_VERSION, likelihood
from harness.metrics.lexical import copying_metrics, lexical_metrics
from harness.metrics.tasks import model_metrics
from harness.records import Examples
from harness.streams import uniforms

Array = npt.NDArray[np.float64]


class Evaluator:
    """The evaluation of one generation."""

    def __init__(self, inference: Inference, task: EvaluateTask) -> None:
        """Nothing is measured yet."""
        self.inference, self.task = inference, task
        self.data, self.ranks, self.spec = inference.data, inference.ranks, task.spec.fit
        self.measured, self.prompt = task.spec.measured.section, inference.data.prompt_tokens
        self._done, self._pieces = itertools.count(1), 0

    def evaluation(self) -> Evaluation:
        """All metrics of a generation, and the values per sequence behind them.

        The prompts' continuations come with them.
        """
        task, test, corpus, texts = self.task, self.data.test, self.task.corpus, self.task.texts
        copying, whose = self._copying(), self._forgetting()
        test_tokens = self._predicted(test)
        solved = bool(test_tokens.any())  # a task may have no solutions
        once = (task.scores is None, not task.is_first, solved, texts is None, self.prompt > 0)
        self._pieces = len(task.others) * len(whose) + sum(once)
        test_nll = self._scored("test", task.fit, test) if solved else np.zeros(0)
        others = {
            f"{when}other_{name}": self._scored(f"{when}other_{name}", model, task.others[name], text=True)
            for when, model in whose
            for name in sorted(task.others)
        }
        own = self._scored("self", task.fit, corpus) if task.scores is None else task.scores
        if texts is None:
            texts = self._continuations(task.fit())
            self._report()
        under_gen0 = own if task.is_first else self._scored("gen0", task.generation_0, corpus)
        drifted = self._drift()
        answered = self._answers(self.data.task) if self.data.task else Evaluation({})
        if self.ranks.rank:
            return Evaluation({})
        tokens = self._predicted(corpus)
        metrics: dict[str, float] = {}
        arrays: dict[str, Array] = {}
        if solved:
            size, batch = self._bytes(test), self.measured.perplexity_batch
            metrics |= likelihood.test_metrics(test_nll, test_tokens, size, batch)
            arrays |= {"test_nll": test_nll, "test_tokens": test_tokens.astype(np.float64)}
        metrics |= {
            **likelihood.gen0_metrics(under_gen0, tokens),
            **likelihood.self_metrics(own, tokens),
            **lexical_metrics(self.data.written(corpus), self.data.counts, self.data.longest),
            **copying,
            **dict(zip(NAMES, next(iter(drifted.values()), ()), strict=False)),
            **answered.metrics,
            **self._of_others(others),
        }
        arrays |= {"gen0_nll": under_gen0, "self_nll": own, "tokens": tokens.astype(np.float64)}
        arrays |= {f"{name}_nll": nll for name, nll in others.items()}
        return Evaluation(metrics, {**arrays, **drifted, **answered.arrays}, texts)

    def _scored(
        self, name: str, model: Callable[[], Path | None], examples: Examples, text: bool = False
    ) -> Array:
        """Nats per sequence under a model, as a piece of the evaluation."""
        score, spec, control = self.inference.score, self.spec, self.task.control
        found = self.task.piece(
            f"{name}_nll", len(examples), lambda: score(spec, model(), examples, control, text=text)
        )
        self._report()
        return found

    def _report(self) -> None:
        """One piece more is done."""
        self.task.report(next(self._done), self._pieces, 0.0)

    def _of_others(self, scored: Mapping[str, Array]) -> dict[str, float]:
        """Metrics of other real texts, from their scores by name."""
        metrics: dict[str, float] = {}
        for name, text in self.task.others.items():
            nll, predicted = scored[f"other_{name}"], self._predicted(text, text=True)
            if name.startswith(GROUP):
                metrics[f"test/nll/{name.removeprefix(GROUP)}"] = float(nll.sum()) / int(predicted.sum())
                continue
            metrics |= likelihood.other_metrics(name, nll, predicted, self._bytes(text, text=True))
            if self.data.task is not None:
                before = scored.get(f"gen0_other_{name}", nll)
                metrics[f"other/{name}/forgotten"] = float((nll - before).sum() / predicted.sum())
            if self.measured.task.pretrained:
                before = scored[f"pretrained_other_{name}"]
                metrics[f"other/{name}/forgotten_pretrained"] = float((nll - before).sum() / predicted.sum())
        return metrics

    def _bytes(self, examples: Examples, text: bool = False) -> int:
        """UTF-8 bytes of the tokens that are predicted.

        Without a beginning-of-text token an example's first one is not; ``text`` has no prompts in front.
        """
        first = self._first(text)
        place = np.arange(examples.values.shape[1])[None, :]
        return self.data.bytes(examples.values[(place >= first) & (place < examples.lengths[:, None])])

    def _predicted(self, examples: Examples, text: bool = False) -> npt.NDArray[np.int64]:
        return np.maximum(examples.lengths.astype(np.int64) - self._first(text), 0)

    def _first(self, text: bool) -> int:
        """The first token of an example that is predicted: behind the prompt, and behind another one."""
        return max(0 if text else self.prompt, 0 if text_of(self.spec).prepend_bos else 1)

    def _forgetting(self) -> list[tuple[str, Callable[[], Path | None]]]:
        """Whose scores of other texts are measured.

        Of prompts, whose text is none, generation 0's too, and the pretrained model's where it is asked for.
        """
        found: list[tuple[str, Callable[[], Path | None]]] = [("", self.task.fit)]
        if self.data.task is not None and not self.task.is_first:
            found.append(("gen0_", self.task.generation_0))
        if self.measured.task.pretrained:
            found.append(("pretrained_", lambda: None))
        return found

    def _drift(self) -> Mapping[str, Array]:
        """What ``evaluate.drift`` asks for, by the name of its array; nothing where it is not asked for."""
        task, spec, how = self.task, self.spec, self.measured.drift
        if how is None:
            return {}
        read = self.data.test.take(slice(0, how.examples))

        def compute() -> Array:
            first = self.inference.model(spec, task.generation_0())
            self.inference.release()  # both are needed at once
            model = first if task.is_first else self.inference.model(spec, task.fit())
            bos, fill = self.inference.bos(spec), self.data.fill
            return drift(model, first, read, bos, self.prompt, task.control.tick, fill)

        # Its name says what it depends on: another evaluation may read it.
        name = f"drift_{DRIFT_VERSION}_{len(read)}"
        return {name: task.piece(name, len(NAMES), compute)}

    def _answers(self, data: TaskCorpus) -> Evaluation:
        """How the test prompts of a task are answered; the result is complete on rank 0."""
        task, spec, how, ranks = self.task, self.spec, self.measured.task, self.ranks
        prompts = min(how.prompts, len(data.test))

        def draw() -> Array:
            sampler = self.inference.sampler(
                task.spec.corpus, self.inference.model(spec, task.fit()), task.control
            )
            return self.inference.merged(
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

        def under(who: str, model: Callable[[], Path | None]) -> Array:
            score, control = self.inference.score, task.control
            return task.piece(
                f"answers_{who}_nll{of}",
                len(answers),
                lambda: score(spec, model(), answers, control, tokens=among),
            )

        under_gen0 = -np.nansum(answers.notes["logprob"].astype(np.float64), axis=1)
        if not task.is_first:
            under_gen0 = under("gen0", task.generation_0)
        arrays = {"answers": rows, f"answers_gen0_nll{of}": under_gen0}
        if how.pretrained:
            under_pretrained = under("pretrained", lambda: None)
            arrays[f"answers_pretrained_nll{of}"] = under_pretrained
        questions = self.inference.questions(task.spec.corpus)
        if questions is not None:
            said = task.piece("answers_verdict", len(answers), lambda: self._asked(questions, answers))
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

    def _asked(self, questions: Questions, answers: Examples) -> Array:
        """What the model that judges says of answers."""
        judge = (self.task.judge or self.task.fit)()
        model = self.inference.model(self.spec, judge)
        ranks, tick = self.ranks, self.task.control.tick
        return self.inference.merged(verdicts(model, questions, answers, ranks.rank, ranks.world_size, tick))

    def _copying(self) -> Mapping[str, float]:
        """Duplicates and copies; on every rank, so that all of them end where there are too many.

        Raises:
            LearnerError: More duplicates than ``evaluate.max_duplicate_share``.
        """
        task, spec, limit = self.task, self.spec, self.measured.max_duplicate_share
        found = copying_metrics(task.corpus, task.training.examples)
        share = found["text/duplicate_share"]
        if limit is not None and share > limit:
            raise LearnerError(
                f"evaluate.max_duplicate_share: {share:.4g} of the first {len(task.corpus)} examples of "
                f"generation {spec.generation} (seed {spec.seed}) equal an earlier one, allowed: at most "
                f"{limit:g}; the corpus stays, but the chain ends here"
            )
        return found

    def _prompts(self) -> list[list[int]]:
        """The evaluation's prompts as token ids; those of the test split are half a block."""
        prompts, half = self.measured.prompts, text_of(self.spec).block_size // 2
        if isinstance(prompts, int):
            cut = self.prompt or half
            return [list(map(int, row)) for row in self.data.test.values[:prompts, :cut]]
        return [self.data.encode(text) for text in prompts]

    def _continuations(self, fit: Path) -> Sequence[Mapping[str, str]]:
        """Each prompt with what this generation makes of it; rank 0 draws, prompts of one length together.

        Prompts are cut to half of the model's context.
        """
        if self.ranks.rank:
            return []
        spec, block = self.spec, text_of(self.spec).block_size
        model = self.inference.model(spec, fit)
        sampler = self.inference.sampler(self.task.spec.corpus, model, self.task.control)
        limit = getattr(model.config, "max_position_embeddings", None) or sampler.config.sequence_length(
            block
        )
        prompts = self._prompts()
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
