"""One fit: the order of the examples, the learning rate and the loss are functions of the step; DeepSpeed does the rest."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from harness.config.schema import Train
from harness.learners.base import Ranks, Report
from harness.learners.language_model.engine import Engine
from harness.learners.language_model.scoring import sequence_nll, with_bos
from harness.records import Examples, Status
from harness.streams import stream, stream_seed

CHECK_EVERY = 10
"""Steps between looks at the loss: a look costs a synchronisation of the device and of the ranks."""


@dataclass(frozen=True)
class Schedule:
    """How long a fit is, and what each step reads.

    Attributes:
        size: Training examples.
        batch_size: Examples per step.
        steps: Optimizer steps.
    """

    size: int
    batch_size: int
    steps: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the examples, rounded down, at least 1."""
        return max(1, self.size // self.batch_size)

    def order(self, seed: int, generation: int, step: int, cache: dict[int, npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        """The examples of one global batch, shape [batch_size].

        Epochs follow one another as one stream of permutations, so a batch may reach over the end of an epoch.
        """
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.size
        for epoch in np.unique(epochs):
            if int(epoch) not in cache:
                cache.pop(int(epoch) - 2, None)
                cache[int(epoch)] = stream(seed, generation, "order", int(epoch)).permutation(self.size)
        return np.array([cache[int(e)][p % self.size] for e, p in zip(epochs, positions, strict=True)], dtype=np.int64)


def plan_steps(train: Train, examples: Examples, budget: str, reference: Examples) -> Schedule:
    """The length of a fit.

    Args:
        train: The training section.
        examples: The training set.
        budget: ``examples``: the epochs asked for; ``steps``: as many steps as generation 0; ``tokens``: as many tokens.
        reference: Generation 0's training set.
    """
    size, batch = len(examples), train.batch_size
    if train.max_steps is not None:
        return Schedule(size, batch, train.max_steps)
    epochs = train.epochs
    if budget == "steps":
        steps = epochs * len(reference) // batch
    elif budget == "tokens":
        tokens = epochs * int(reference.lengths.sum())
        steps = round(tokens / (float(examples.lengths.mean()) * batch))
    else:
        steps = epochs * size // batch
    return Schedule(size, batch, max(1, steps))


def learning_rate(train: Train, step: int, steps: int) -> float:
    """The learning rate of a step: linear warm-up, then constant, cosine or linear to min_learning_rate_ratio of the peak."""
    warmup = math.ceil(train.warmup_ratio * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "constant":
        return train.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else 1 - done
    return train.learning_rate * (train.min_learning_rate_ratio + (1 - train.min_learning_rate_ratio) * shape)


@dataclass(frozen=True)
class Fitted:
    """The end of a fit.

    Attributes:
        status: ``diverged`` where the loss or a weight is not finite.
        state: The weights, on rank 0.
        log: Loss curves and counts.
        tokens: Tokens that were predicted, all ranks together.
    """

    status: Status
    state: Mapping[str, torch.Tensor]
    log: Mapping[str, Any]
    tokens: int


class Trainer:
    """Runs one fit on all ranks."""

    def __init__(
        self, train: Train, micro_batch: int, zero_stage: int, bos: int | None, ranks: Ranks, device: torch.device
    ) -> None:
        """Keep what is the same for all fits of a cell.

        Args:
            train: The training section.
            micro_batch: Examples per forward pass and rank.
            zero_stage: DeepSpeed's ZeRO stage.
            bos: Token before every example; None for none.
            ranks: The ranks.
            device: This rank's device.
        """
        self.train, self.micro_batch, self.zero_stage = train, micro_batch, zero_stage
        self.bos, self.ranks, self.device = bos, ranks, device

    def run(
        self,
        model: PreTrainedModel,
        examples: Examples,
        validation: Examples,
        schedule: Schedule,
        seed: int,
        generation: int,
        report: Report,
    ) -> Fitted:
        """Fit a model.

        Args:
            model: The initial model, in fp32 or the training precision.
            examples: The training set.
            validation: Real validation examples, for ``weights: best`` and the validation curve.
            schedule: From `plan_steps`.
            seed: The chain's seed.
            generation: Index of the generation.
            report: Called with steps done, steps in all, tokens per second.
        """
        engine = Engine(model, self.train, self.micro_batch, self.ranks.world_size, self.zero_stage)
        try:
            return self._loop(engine, examples, validation, schedule, seed, generation, report)
        finally:
            engine.close()

    def _loop(
        self,
        engine: Engine,
        examples: Examples,
        validation: Examples,
        schedule: Schedule,
        seed: int,
        generation: int,
        report: Report,
    ) -> Fitted:
        cache: dict[int, npt.NDArray[np.int64]] = {}
        losses: list[torch.Tensor] = []
        curve: list[dict[str, float]] = []
        best: tuple[float, Mapping[str, torch.Tensor]] = (math.inf, {})  # the value is the same on every rank
        tokens, started, status = 0, time.monotonic(), "ok"
        engine.train_mode(True)
        for step in range(schedule.steps):
            engine.set_learning_rate(learning_rate(self.train, step, schedule.steps))
            batch = examples.take(schedule.order(seed, generation, step, cache))
            predicted = int(self._predicted(batch).sum())
            losses.append(self._step(engine, batch, predicted, seed, generation, step))
            tokens += predicted
            if (step + 1) % CHECK_EVERY == 0 or step + 1 == schedule.steps:
                if not all(map(math.isfinite, self._reduced(losses[-CHECK_EVERY:]))):
                    status = "diverged"
                    break
                report(step + 1, schedule.steps, tokens / (time.monotonic() - started))
            if self._ends_epoch(schedule, step):
                value = self.ranks.broadcast(self._validate(engine, validation))
                curve.append({"step": step + 1, "nll": value})
                if self.train.weights == "best" and value < best[0]:
                    best = (value, engine.state(self.ranks.rank == 0))
        state = best[1] if best[0] < math.inf else engine.state(self.ranks.rank == 0)
        finite = self.ranks.broadcast(all(bool(torch.isfinite(tensor).all()) for tensor in state.values()))
        status = status if finite else "diverged"
        log = {
            "steps": schedule.steps,
            "train_loss": [_number(value) for value in self._reduced(losses)],
            "validation": [{"step": point["step"], "nll": _number(point["nll"])} for point in curve],
        }
        return Fitted("diverged" if status == "diverged" else "ok", state, log, tokens)

    def _predicted(self, batch: Examples) -> npt.NDArray[np.int64]:
        """Tokens of each example that the model predicts: all with a token before them."""
        lengths = batch.lengths.astype(np.int64)
        return lengths if self.bos is not None else np.maximum(lengths - 1, 0)

    def _step(self, engine: Engine, batch: Examples, predicted: int, seed: int, generation: int, step: int) -> torch.Tensor:
        """One optimizer step; returns this rank's share of the mean loss.

        The loss is the mean over the tokens of the global batch, whatever the ranks and micro batches: DeepSpeed averages over
        ranks and accumulation steps, which is undone here.
        """
        per_rank = len(batch) // self.ranks.world_size
        first = self.ranks.rank * per_rank
        total = torch.zeros((), device=self.device)
        for start in range(first, first + per_rank, self.micro_batch):
            part = batch.take(slice(start, start + self.micro_batch))
            # Dropout is indexed by the position in the stream of examples, not by what this process drew before.
            torch.manual_seed(stream_seed(seed, generation, "dropout", step * len(batch) + start))
            inputs, targets = with_bos(part, self.bos, self.device)
            loss = sequence_nll(engine.logits(inputs), targets).sum() / max(predicted, 1)
            total += loss.detach()
            engine.backward(loss * self.ranks.world_size * (per_rank // self.micro_batch))
        return total

    def _reduced(self, losses: list[torch.Tensor]) -> list[float]:
        """The losses of some steps, summed over the ranks."""
        if not losses:
            return []
        stacked = torch.stack(losses).float()
        if self.ranks.world_size > 1:
            dist.all_reduce(stacked)
        return [float(value) for value in stacked.tolist()]

    def _ends_epoch(self, schedule: Schedule, step: int) -> bool:
        last = step + 1 == schedule.steps
        return last or (self.train.weights == "best" and (step + 1) % schedule.steps_per_epoch == 0)

    def _validate(self, engine: Engine, validation: Examples) -> float:
        """Nats per token on the validation blocks; collective (every rank runs every block: ZeRO-3 gathers weights in step)."""
        engine.train_mode(False)
        total, count = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(validation), self.micro_batch):
                part = validation.take(slice(start, start + self.micro_batch))
                inputs, targets = with_bos(part, self.bos, self.device)
                total += float(sequence_nll(engine.logits(inputs), targets).double().sum())
                count += int(self._predicted(part).sum())
        engine.train_mode(True)
        return total / max(count, 1)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
