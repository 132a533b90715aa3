"""One fit: the order of the examples, the learning rate and the loss are functions of the step.

DeepSpeed does the rest.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from harness.compiler import ticking
from harness.config.schema import Train
from harness.errors import reason_of
from harness.learners.language_model.checkpoint import load_tree, save_tree
from harness.learners.language_model.compiled import Loss
from harness.learners.language_model.cuda import deterministic
from harness.learners.language_model.distributed import seed_dropout
from harness.learners.language_model.engine import Engine
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.objectives import Objective, Units
from harness.learners.language_model.schedule import learning_rate, origin_weights
from harness.learners.language_model.scoring import IGNORED, batch_loss, by_sequence, sequence_nll, with_bos
from harness.learners.protocol import CheckpointUnusable, Control, FitTask, Ranks, Stopped
from harness.learners.schedule import Schedule
from harness.records import Examples, Status, finite_or_none
from harness.streams import stream_seed

CHECK_EVERY = 10
"""Steps between looks at the loss: a look costs a synchronisation of the device and of the ranks."""
LOOK_S = 0.5
"""Seconds between the moments at which the ranks agree whether to save or to stop."""


@dataclass(frozen=True)
class Fitted:
    """The end of a fit.

    Attributes:
        status: ``diverged`` where the loss or a weight is not finite.
        state: The weights that were fitted, on rank 0.
        log: Loss curves and counts.
        tokens: Tokens that were predicted, all ranks together.
        computed: Those of them since the checkpoint that the fit went on from.
    """

    status: Status
    state: Mapping[str, torch.Tensor]
    log: Mapping[str, Any]
    tokens: int
    computed: int


@dataclass
class _Progress:
    """How far a fit is, apart from what DeepSpeed holds.

    Attributes:
        step: Optimizer steps done.
        tokens: Tokens predicted.
        losses: This rank's share of each step's loss.
        curve: Validation loss.
        best: Lowest validation loss and, on rank 0, its weights.
    """

    step: int = 0
    tokens: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, Mapping[str, torch.Tensor]] = (math.inf, {})  # the value is the same on every rank

    def write(self, path: Path) -> None:
        losses = torch.stack(self.losses).cpu() if self.losses else torch.zeros(0)
        tree = {
            "step": self.step,
            "tokens": self.tokens,
            "losses": losses,
            "curve": self.curve,
            "best": self.best,
        }
        save_tree(tree, path)

    @classmethod
    def read(cls, path: Path, device: torch.device) -> _Progress:
        tree = load_tree(path)
        return cls(tree["step"], tree["tokens"], list(tree["losses"].to(device)), tree["curve"], tree["best"])


class _Looks:
    """What the ranks do at a look, decided by rank 0: go on, save, stop; and when they look again."""

    def __init__(self, control: Control, checkpoint_s: float, step: int) -> None:
        self.control, self.checkpoint_s = control, checkpoint_s
        self.started = self.saved = time.monotonic()
        self.first_step, self.save_s = step, 0.0

    def decide(self, step: int) -> tuple[bool, bool, int]:
        """Whether to save, whether to stop, and the step of the next look."""
        now = time.monotonic()
        per_step = (now - self.started) / max(step - self.first_step, 1)
        ahead = max(1, min(1000, int(LOOK_S / max(per_step, 1e-9))))
        if self.control.stopping:
            # Where a checkpoint does not fit into what is left of the grace period, the last one stands.
            return self.control.left_s > 1.5 * self.save_s, True, step + ahead
        return now - self.saved >= self.checkpoint_s, False, step + ahead

    def has_saved(self, seconds: float) -> None:
        self.saved, self.save_s = time.monotonic(), seconds


@dataclass
class Trainer:
    """Runs one fit on all ranks; what it is made with is the same for all fits of a cell.

    Attributes:
        train: The training section.
        micro_batch: Examples per forward pass and rank.
        zero_stage: DeepSpeed's ZeRO stage.
        bos: Token before every example; None for none.
        ranks: The ranks.
        device: This rank's device.
        masked: Tokens at the start of every training example that are read but not learned. Validation is
            on all tokens.
        deterministic: Only kernels whose sums have one order, on a GPU.
        attention: ``resources.attention``.
        recompute: ``resources.activation_checkpointing``.
        prompt: Tokens at the start of every example, validation's too, that are a task's prompt.
        fill: Token that fills prompts up; None where nothing is hidden.
        tokens: An objective's log-probabilities are among the first so many; among all when None.
        compiled: ``resources.compile``.
        stage_asked: Whether the study says ``zero_stage``.
    """

    train: Train
    micro_batch: int
    zero_stage: int
    bos: int | None
    ranks: Ranks
    device: torch.device
    masked: int = 0
    deterministic: bool = True
    attention: str | None = None
    recompute: bool = False
    prompt: int = 0
    fill: int | None = None
    tokens: int | None = None
    compiled: bool = False
    stage_asked: bool = True
    units: Units | None = field(default=None, init=False)
    objective: Objective | None = field(default=None, init=False)
    reference: Callable[..., Any] | None = field(default=None, init=False)

    def run(
        self,
        model: PreTrainedModel,
        validation: Examples,
        schedule: Schedule,
        task: FitTask,
        units: Units | None = None,
        objective: Objective | None = None,
        adapted: bool = False,
        reference: Callable[..., Any] | None = None,
    ) -> Fitted:
        """Fit a model, from its beginning or from a checkpoint.

        Args:
            model: The initial model, in fp32 or the training precision.
            validation: Real validation examples, for ``weights: best`` and the validation curve.
            schedule: From `plan_steps`.
            task: The fit: its training set, seed and generation; where to go on from and what to tell
                meanwhile.
            units: What is trained on in the place of the task's examples, with another objective.
            objective: What is minimised; the cross-entropy when None.
            adapted: The model has an adapter, which alone is fitted.
            reference: What ``train.anchor`` holds the model near to, on this device.

        Raises:
            Stopped: It was asked to stop; what it had is in a checkpoint.
        """
        self.units, self.objective, self.reference = units, objective, reference
        size, stage = self.ranks.world_size, self.zero_stage
        how = self.attention, self.recompute, adapted, self.compiled, self.stage_asked
        engine = Engine(model, self.train, self.micro_batch, size, stage, *how)
        try:
            with deterministic(self.device, self.deterministic):
                return self._loop(engine, validation, schedule, task)
        finally:
            engine.close()

    def _loop(self, engine: Engine, validation: Examples, schedule: Schedule, task: FitTask) -> Fitted:
        progress = _Progress()
        if task.resume is not None:
            progress = self._resume(engine, task.resume)
        before, started, first = progress.tokens, time.monotonic(), progress.step + 1
        looks, look_at = _Looks(task.control, task.checkpoint_s, progress.step), progress.step + 1
        cache: dict[int, npt.NDArray[np.int64]] = {}
        weights = origin_weights(self.train, task.training.drawn.origin)
        validated = bool(self._predicted(validation, self.prompt).any())  # a task may have no solutions
        status = "ok"
        engine.train_mode(True)
        while progress.step < schedule.steps:
            begins = self.compiled and progress.step + 1 == first  # the first step compiles
            with ticking(task.control.tick) if begins else nullcontext():
                self._advance(engine, schedule, task, progress, cache, weights)
            check = progress.step % CHECK_EVERY == 0 or progress.step == schedule.steps
            if check and not self._is_finite(engine, progress):
                status = "diverged"
                break
            if check or progress.step == first:
                rate = (progress.tokens - before) / (time.monotonic() - started)
                task.report(progress.step, schedule.steps, rate)
            if self._ends_epoch(schedule, progress.step) and validated:
                self._end_epoch(engine, validation, progress, task.control.tick)
            if progress.step == look_at and progress.step < schedule.steps:
                look_at = self._look(engine, looks, task, progress)
        best_value, best_state = progress.best
        state = best_state if best_value < math.inf else engine.state(self.ranks.rank == 0)
        finite = self.ranks.broadcast(all(bool(torch.isfinite(tensor).all()) for tensor in state.values()))
        status = status if finite else "diverged"
        log = {
            "steps": schedule.steps,
            "train_loss": [finite_or_none(value) for value in self._reduced(progress.losses)],
            "validation": [
                {"step": point["step"], "nll": finite_or_none(point["nll"])} for point in progress.curve
            ],
        }
        return Fitted(
            "diverged" if status == "diverged" else "ok",
            state,
            log,
            progress.tokens,
            progress.tokens - before,
        )

    def _resume(self, engine: Engine, folder: Path) -> _Progress:
        problem, progress = "", _Progress()
        try:
            engine.load(folder)
            progress = _Progress.read(self._progress_file(folder), self.device)
        except Exception as error:
            problem = f"{type(error).__name__}: {reason_of(error)}"
        problems = [found for found in self.ranks.gather(problem) if found]
        if problems:
            raise CheckpointUnusable(problems[0])
        return progress

    def _advance(
        self,
        engine: Engine,
        schedule: Schedule,
        task: FitTask,
        progress: _Progress,
        cache: dict[int, npt.NDArray[np.int64]],
        weights: npt.NDArray[np.float64] | None,
    ) -> None:
        """One optimizer step."""
        step, seed, generation = progress.step, task.spec.seed, task.spec.generation
        engine.set_learning_rate(learning_rate(self.train, step, schedule.steps))
        index = schedule.order(seed, generation, step, cache)
        rows, source, weight, numbers = index, task.training.examples, None, dict[str, npt.NDArray[Any]]()
        if self.units is not None:
            rows, source = _rows(index, self.units.each), self.units.examples
            numbers = {name: values[rows] for name, values in self.units.numbers.items()}
        elif weights is not None:
            weight = torch.from_numpy(weights[index]).float().to(self.device)
        batch = source.take(rows)
        predicted = int(self._predicted(batch, self.masked).sum())
        loss = self._step(engine, batch, predicted, seed, generation, step, weight, numbers)
        progress.losses.append(loss)
        progress.tokens += predicted
        progress.step += 1
        task.control.tick()

    def _end_epoch(
        self, engine: Engine, validation: Examples, progress: _Progress, tick: Callable[[], None]
    ) -> None:
        value = self.ranks.broadcast(self._validate(engine, validation, tick))
        progress.curve.append({"step": progress.step, "nll": value})
        if self.train.weights == "best" and value < progress.best[0]:
            progress.best = (value, engine.state(self.ranks.rank == 0))

    def _look(self, engine: Engine, looks: _Looks, task: FitTask, progress: _Progress) -> int:
        """All ranks save or stop where rank 0 says so; returns the step of the next look."""
        own = looks.decide(progress.step) if self.ranks.rank == 0 else (False, False, 0)
        save, stop, look_at = self.ranks.broadcast(own)
        if save:
            at = time.monotonic()

            def write(folder: Path) -> Sequence[Path]:
                progress.write(self._progress_file(folder))
                return [*engine.save(folder), self._progress_file(folder)]

            task.save(progress.step, write)
            looks.has_saved(time.monotonic() - at)
        if stop:
            raise Stopped
        return look_at

    def _progress_file(self, folder: Path) -> Path:
        return folder / f"progress-{self.ranks.rank}.safetensors"

    def _predicted(self, batch: Examples, masked: int = 0) -> npt.NDArray[np.int64]:
        """Tokens of each example that the model predicts.

        All with a token before them, less the masked ones.
        """
        first = max(masked, 0 if self.bos is not None else 1)
        return np.maximum(batch.lengths.astype(np.int64) - first, 0)

    def _step(
        self,
        engine: Engine,
        batch: Examples,
        predicted: int,
        seed: int,
        generation: int,
        step: int,
        weights: torch.Tensor | None = None,
        numbers: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> torch.Tensor:
        """One optimizer step; returns this rank's share of the mean loss.

        The loss is the mean over the tokens of the global batch, or with an objective over its units,
        whatever the ranks and micro batches: DeepSpeed averages over ranks and accumulation steps, which is
        undone here.
        """
        each = 1 if self.units is None else self.units.each
        size = len(batch) // each
        per_rank = size // self.ranks.world_size
        first = self.ranks.rank * per_rank
        total = torch.zeros((), device=self.device)
        for start in range(first, first + per_rank, self.micro_batch):
            rows = slice(start * each, (start + self.micro_batch) * each)
            part = batch.take(rows)
            # Dropout is indexed by the position in the stream of examples, not by what this process drew
            # before.
            place = step * size + start
            seed_dropout(self.device, stream_seed(seed, generation, "dropout", place))
            engine.place(seed, generation, range(place * each, place * each + len(part)))
            inputs, targets = with_bos(part, self.bos, self.device, self.masked)
            if self.objective is None:
                mine = None if weights is None else weights[rows]
                loss = batch_loss(self._nll(engine, inputs, targets, mine), predicted)
            else:
                known = {
                    name: torch.from_numpy(values[rows]).to(self.device)
                    for name, values in (numbers or {}).items()
                }
                logprob = -engine.token_nll(inputs, Loss(targets, self.tokens), self.fill)
                loss = self.objective.loss(logprob, targets != IGNORED, known).sum() / size
            total += loss.detach()
            engine.backward(loss * self.ranks.world_size * (per_rank // self.micro_batch))
        return total

    def _nll(
        self, engine: Engine, inputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None
    ) -> torch.Tensor:
        """What each sequence adds to the loss, times its weight."""
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                hides = hidden(inputs, self.fill)
                reference = self.reference(input_ids=inputs, use_cache=False, **hides).logits
        anchor = None if reference is None else self.train.anchor
        nll = engine.token_nll(inputs, Loss(targets, None, anchor, reference), self.fill)
        nll = by_sequence(nll, self.train.truncate)
        return nll if weights is None else nll * weights

    def _is_finite(self, engine: Engine, progress: _Progress) -> bool:
        """Whether the last losses and gradients are finite, on all ranks; collective."""
        return not engine.skipped and all(map(math.isfinite, self._reduced(progress.losses[-CHECK_EVERY:])))

    def _reduced(self, losses: list[torch.Tensor]) -> list[float]:
        """The losses of some steps, summed over the ranks."""
        if not losses:
            return []
        stacked = torch.stack(losses).float()
        if self.ranks.world_size > 1:
            dist.all_reduce(stacked)
        return [float(value) for value in stacked.tolist()]

    def _ends_epoch(self, schedule: Schedule, step: int) -> bool:
        return step == schedule.steps or (
            self.train.weights == "best" and step % schedule.steps_per_epoch == 0
        )

    def _validate(self, engine: Engine, validation: Examples, tick: Callable[[], None]) -> float:
        """Nats per token on the validation blocks.

        Collective (every rank runs every block: ZeRO-3 gathers weights in step).
        """
        engine.train_mode(False)
        total, count = 0.0, 0
        with torch.no_grad():
            for start in range(0, len(validation), self.micro_batch):
                part = validation.take(slice(start, start + self.micro_batch))
                inputs, targets = with_bos(part, self.bos, self.device, self.prompt)
                total += float(sequence_nll(engine.logits(inputs, self.fill), targets).double().sum())
                count += int(self._predicted(part, self.prompt).sum())
                tick()
        engine.train_mode(True)
        return total / max(count, 1)


def _rows(index: npt.NDArray[np.int64], each: int) -> npt.NDArray[np.int64]:
    """The examples of some units, shape [units * each]."""
    return (index[:, None] * each + np.arange(each)).reshape(-1)
