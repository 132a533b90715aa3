"""The language model as a learner."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig, PreTrainedModel

from harness.config.grid import prompt_length, sequence_length
from harness.config.schema import Config, LanguageModel, TextData
from harness.data.base import RealData
from harness.data.text import TextCorpus
from harness.errors import DataError, LearnerError
from harness.learners.base import Control, EvaluateTask, Evaluation, FitOutcome, FitTask, Ranks, SampleTask, Stopped
from harness.learners.language_model import model as models
from harness.learners.language_model.behaviour import behaviour
from harness.learners.language_model.distributed import device
from harness.learners.language_model.sampling import Sampler, draw_batch
from harness.learners.language_model.scoring import score
from harness.learners.language_model.training import Trainer, plan_steps
from harness.metrics import likelihood
from harness.metrics.lexical import copying_metrics, lexical_metrics
from harness.records import Examples
from harness.streams import stream_seed, uniforms


class LanguageModelLearner:
    """A causal language model under one cell's configuration."""

    def __init__(self, config: Config, data: RealData, ranks: Ranks) -> None:
        """Keep the configuration; ``data`` is a `TextCorpus`."""
        assert isinstance(config.learner, LanguageModel) and isinstance(data, TextCorpus) and isinstance(config.data, TextData)
        self.config, self.learner, self.data, self.ranks = config, config.learner, data, ranks
        self.device = device()
        self.block_size = config.data.block_size
        self.bos: int | None = data.meta["bos"] if config.data.prepend_bos else None
        if self.bos is None and self.learner.sample.prompt == "bos":
            self.start_token: int | None = data.meta["bos"]
        else:
            self.start_token = self.bos
        self.dtype = models.DTYPES[self.learner.train.precision]
        self._loaded: tuple[Path, PreTrainedModel] | None = None

    @property
    def context(self) -> int:
        """Longest sequence that this cell feeds to a model."""
        return sequence_length(self.config)

    @cached_property
    def test_bytes(self) -> int:
        """UTF-8 bytes of the test tokens that are predicted: without a beginning-of-text token a block's first one is not."""
        return self._bytes(self.data.test)

    def _bytes(self, examples: Examples) -> int:
        first = 0 if self.bos is not None else 1
        return self.data.bytes(examples.values[:, first:])

    def fit(self, task: FitTask) -> FitOutcome:
        """Fit through DeepSpeed; rank 0 writes the weights in the training precision."""
        self._loaded = None
        gc.collect()  # models and their caches refer to themselves: what was loaded before would stay beside this fit
        model = self._initial(task)
        if getattr(model.config, "max_position_embeddings", self.context) < self.context:
            raise DataError(
                f"data.block_size: sequences of {self.context} tokens, but the model's context is "
                f"{model.config.max_position_embeddings}"
            )
        if self.learner.train.max_steps == 0:  # the pretrained model as it is
            kept = model.state_dict().keys()
            named = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]
            state = {name: tensor.detach().to(self.dtype) for name, tensor in named}
            finite = all(bool(torch.isfinite(tensor).all()) for tensor in state.values())
            if self.ranks.rank == 0 and finite:
                self._write(task.out, model.config, state)
            self.ranks.barrier()
            return FitOutcome("ok" if finite else "diverged", {"train_loss": [], "steps": 0}, 0, 0)
        reference = self.data.real(task.seed, self.data.num_examples)
        schedule = plan_steps(self.learner.train, task.training.examples, task.budget, reference)
        train, resources = self.learner.train, self.config.resources
        masked = prompt_length(self.config) if train.loss == "continuation" else 0
        trainer = Trainer(
            train,
            self.config.micro_batch,
            resources.zero_stage,
            self.bos,
            self.ranks,
            self.device,
            masked,
            resources.deterministic,
        )
        config = model.config
        fitted = trainer.run(model, self.data.validation, schedule, task)
        if self.ranks.rank == 0 and fitted.status == "ok":
            self._write(task.out, config, fitted.state)
        self.ranks.barrier()
        return FitOutcome(fitted.status, fitted.log, fitted.tokens, fitted.computed)

    def _write(self, folder: Path, config: PretrainedConfig, state: Mapping[str, torch.Tensor]) -> None:
        """An ordinary Hugging Face folder: the model with its tokenizer."""
        models.write_model(folder, config, state)
        self.data.write_tokenizer(folder)

    def _initial(self, task: FitTask) -> PreTrainedModel:
        model, vocab_size = self.learner.model, int(self.data.meta["vocab_size"])
        if task.init == "previous" and task.init_from is not None:
            return models.read_model(task.init_from, torch.float32, torch.device("cpu"))
        if model.pretrained is not None and task.init != "scratch":
            return models.pretrained_model(model, vocab_size)
        seed = stream_seed(task.seed, task.generation, "init")
        bos, eos = int(self.data.meta["bos"]), int(self.data.meta["eos"])
        return models.new_model(model, vocab_size, self.context, bos, eos, seed)

    def _model(self, folder: Path) -> PreTrainedModel:
        """The fitted model in a folder; the last one stays loaded."""
        if self._loaded is None or self._loaded[0] != folder:
            self._loaded = None
            self._loaded = (folder, models.read_model(folder, self.dtype, self.device))
        return self._loaded[1]

    def _sampler(self, model: PreTrainedModel, control: Control) -> Sampler:
        cached = self.learner.model.pretrained is None or behaviour(model.config).cached
        meta = self.data.meta
        return Sampler(
            model, self.learner.sample, self.start_token, int(meta["eos"]), control.tick, int(meta["vocab_size"]), cached
        )

    def sample(self, task: SampleTask) -> int:
        """Whole batches, dealt out over the ranks; each is committed as a shard when it is done."""
        size, width = self.config.resources.sample_batch, self.block_size
        model, control = self._model(task.fit), task.control
        sampler = self._sampler(model, control)
        wanted = range(task.start // size, -(-task.stop // size))
        batches = [batch for batch in wanted if (batch * size, (batch + 1) * size) not in task.shards]
        mine = batches[self.ranks.rank :: self.ranks.world_size]
        started, done = time.monotonic(), 0
        for number, batch in enumerate(mine):
            if control.stopping:
                break
            examples = draw_batch(
                sampler, task.prompts, prompt_length(self.config), width, task.seed, task.generation, batch * size, size
            )
            task.append(batch * size, examples)
            done += int(examples.lengths.sum())
            rate = done / (time.monotonic() - started) * self.ranks.world_size
            task.report((number + 1) * self.ranks.world_size * size, len(batches) * size, rate)
        if any(self.ranks.gather(control.stopping)):
            raise Stopped
        return sum(self.ranks.gather(done))

    def _score(self, folder: Path, examples: Examples, control: Control) -> npt.NDArray[np.float64]:
        """Nats per sequence under the model in a folder, the ranks sharing the work."""
        mine = score(self._model(folder), examples, self.bos, self.ranks.rank, self.ranks.world_size, control.tick)
        merged = np.full(len(examples), np.nan)
        for share in self.ranks.gather(mine):
            merged = np.where(np.isnan(share), merged, share)
        return merged

    def _predicted(self, examples: Examples) -> npt.NDArray[np.int64]:
        lengths = examples.lengths.astype(np.int64)
        return lengths if self.bos is not None else np.maximum(lengths - 1, 0)

    def evaluate(self, task: EvaluateTask) -> Evaluation:
        """All metrics of a generation, the per-sequence values behind them, and the prompts' continuations."""
        test, corpus = self.data.test, task.corpus
        copying = self._copying(task)

        def scores(name: str, model: Callable[[], Path], examples: Examples) -> npt.NDArray[np.float64]:
            return task.piece(f"{name}_nll", len(examples), lambda: self._score(model(), examples, task.control))

        test_nll = scores("test", task.fit, test)
        others = {name: scores(f"other_{name}", task.fit, task.others[name]) for name in sorted(task.others)}
        own = scores("self", task.fit, corpus)
        texts = self._continuations(task, task.fit()) if task.texts is None else task.texts
        task.report(1, 2, 0.0)
        under_gen0 = own if task.is_first else scores("gen0", task.generation_0, corpus)
        if self.ranks.rank:
            return Evaluation({})
        test_tokens, tokens = self._predicted(test), self._predicted(corpus)
        metrics = {
            **likelihood.test_metrics(test_nll, test_tokens, self.test_bytes, self.config.evaluate.perplexity_batch),
            **likelihood.gen0_metrics(under_gen0, tokens),
            **likelihood.self_metrics(own, tokens),
            **lexical_metrics(corpus, self.data.counts),
            **copying,
        }
        for name, nll in others.items():
            text = task.others[name]
            metrics |= likelihood.other_metrics(name, nll, self._predicted(text), self._bytes(text))
        arrays = {
            "test_nll": test_nll,
            "test_tokens": test_tokens.astype(np.float64),
            "gen0_nll": under_gen0,
            "self_nll": own,
            "tokens": tokens.astype(np.float64),
            **{f"other_{name}_nll": nll for name, nll in others.items()},
        }
        task.report(2, 2, 0.0)
        return Evaluation(metrics, arrays, texts)

    def _copying(self, task: EvaluateTask) -> Mapping[str, float]:
        """Duplicates and copies; on every rank, so that all of them end where there are too many.

        Raises:
            LearnerError: More duplicates than ``evaluate.max_duplicate_share``.
        """
        found, limit = copying_metrics(task.corpus, task.training.examples), self.config.evaluate.max_duplicate_share
        share = found["text/duplicate_share"]
        if limit is not None and share > limit:
            raise LearnerError(
                f"evaluate.max_duplicate_share: {share:.4g} of the first {len(task.corpus)} examples of generation "
                f"{task.generation} (seed {task.seed}) equal an earlier one, allowed: at most {limit:g}; the corpus stays, but the "
                "chain ends here"
            )
        return found

    def _prompts(self) -> list[list[int]]:
        """The evaluation's prompts as token ids, at most half a block or what leaves room for a block in the context."""
        prompts = self.config.evaluate.prompts
        if isinstance(prompts, int):
            return [list(map(int, row)) for row in self.data.test.values[:prompts, : self.block_size // 2]]
        return [self.data.encode(text) for text in prompts]

    def _continuations(self, task: EvaluateTask, fit: Path) -> Sequence[Mapping[str, str]]:
        """Each prompt with what this generation makes of it; rank 0 draws, prompts of one length together."""
        if self.ranks.rank:
            return []
        model = self._model(fit)
        limit = getattr(model.config, "max_position_embeddings", None) or self.context
        sampler = self._sampler(model, task.control)
        prompts = [prompt[: max(1, limit // 2)] for prompt in self._prompts()]
        found: dict[int, str] = {}
        for width in sorted({len(prompt) for prompt in prompts}):
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == width]
            length = max(1, min(self.block_size, limit - width - 1))
            uniform = np.concatenate([uniforms(task.seed, task.generation, "continuation", row, row + 1, length) for row in rows])
            drawn = sampler.draw(
                np.array([prompts[row] for row in rows], dtype=np.int64).reshape(len(rows), width), length, uniform
            )
            for row, values, used in zip(rows, drawn.values, drawn.lengths, strict=True):
                found[row] = self.data.decode(values[:used])
        return [{"prompt": self.data.decode(prompt), "continuation": found[row]} for row, prompt in enumerate(prompts)]

    def reset_peak(self) -> None:
        """Measure the peak of GPU memory anew."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def describe(self) -> Mapping[str, Any]:
        """Device, ZeRO stage and versions."""
        import deepspeed
        import transformers

        on_gpu = self.device.type == "cuda"
        versions = {"torch": torch.__version__, "deepspeed": deepspeed.__version__, "transformers": transformers.__version__}
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        return {
            "device": torch.cuda.get_device_name(0) if on_gpu else "cpu",
            "zero_stage": self.config.resources.zero_stage,
            "versions": versions,
            "peak_memory_bytes": peak,
        }
