"""One fit: batch order and noise are functions of the step.

That is why a fit goes on from a checkpoint to the same bits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.adam import adam

from harness.config.schema import VaeTrain
from harness.errors import reason_of
from harness.learners.protocol import CheckpointUnusable, FitOutcome, FitTask, Stopped
from harness.learners.schedule import Schedule
from harness.learners.vae.model import ConvVae
from harness.records import finite_or_none
from harness.streams import stream

CHECKPOINT = "progress.safetensors"
REPORT_EVERY = 10
"""Steps between reports of progress."""


def plan_steps(train: VaeTrain, size: int, budget: str, first: int) -> Schedule:
    """The length of a fit.

    Args:
        train: The training section.
        size: Training examples.
        budget: ``examples``: the epochs asked for; ``steps``: as many steps as generation 0.
        first: Generation 0's training examples.
    """
    counted = first if budget == "steps" else size
    return Schedule(size, train.batch_size, max(1, train.epochs * counted // train.batch_size))


class _FitState:
    """How far a fit is: weights, what Adam keeps of them, and the losses of the steps that are done.

    `torch.optim.Adam` computes with the function that is called here; the class imports torch's compiler at
    its first step, which takes a quarter of what a rank takes to start.
    """

    def __init__(self, model: ConvVae, train: VaeTrain) -> None:
        self._model, self._train = model, train
        self._parameters = list(model.parameters())
        self._moments = {
            "step": [torch.tensor(0.0) for _ in self._parameters],
            "exp_avg": [torch.zeros_like(parameter) for parameter in self._parameters],
            "exp_avg_sq": [torch.zeros_like(parameter) for parameter in self._parameters],
        }
        self.losses: list[float] = []

    @property
    def step(self) -> int:
        return len(self.losses)

    def learn(self, loss: Tensor) -> None:
        """One step of Adam with torch's defaults."""
        gradients = torch.autograd.grad(loss, self._parameters)
        with torch.no_grad():
            adam(
                self._parameters,  # type: ignore[arg-type]
                list(gradients),
                self._moments["exp_avg"],
                self._moments["exp_avg_sq"],
                [],
                self._moments["step"],
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self._train.learning_rate,
                weight_decay=self._train.weight_decay,
                eps=1e-8,
                maximize=False,
            )
        self.losses.append(float(loss.detach()))

    def write(self, folder: Path) -> Sequence[Path]:
        tensors: dict[str, Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for index, (name, parameter) in enumerate(self._model.named_parameters()):
            tensors[f"model.{name}"] = parameter.detach().clone()
            tensors |= {f"{moment}.{name}": kept[index].clone() for moment, kept in self._moments.items()}
        save_file(tensors, folder / CHECKPOINT)
        return [folder / CHECKPOINT]

    def read(self, folder: Path) -> None:
        tensors = load_file(folder / CHECKPOINT)
        self.losses = [float(value) for value in tensors["losses"]]
        with torch.no_grad():
            for index, (name, parameter) in enumerate(self._model.named_parameters()):
                parameter.copy_(tensors[f"model.{name}"])
                for moment, kept in self._moments.items():
                    kept[index].copy_(tensors[f"{moment}.{name}"])


def fit(
    model: ConvVae, train: VaeTrain, schedule: Schedule, images: npt.NDArray[np.float32], task: FitTask
) -> FitOutcome:
    """Fit a model in place, from its beginning or from a checkpoint.

    Args:
        model: The initial model.
        train: The training section.
        schedule: From `plan_steps`.
        images: The training set, shape [size, height, width].
        task: The fit: seed and generation; where to go on from and what to tell meanwhile.

    Raises:
        Stopped: It was asked to stop; what it had is in a checkpoint, where the grace period had room for
            one.
    """
    progress = _FitState(model.train(), train)
    if task.resume is not None:
        try:
            progress.read(task.resume)
        except Exception as error:
            raise CheckpointUnusable(f"{type(error).__name__}: {reason_of(error)}") from error
    before, started = progress.step, time.monotonic()
    saved, save_s = started, 0.0
    cache: dict[int, npt.NDArray[np.int64]] = {}
    latent_dim = model.from_latent.in_features
    while progress.step < schedule.steps:
        step = progress.step
        batch = torch.from_numpy(images[schedule.order(task.spec.seed, task.spec.generation, step, cache)])
        noise = stream(task.spec.seed, task.spec.generation, "reparametrise", step).standard_normal(
            (len(batch), latent_dim)
        )
        progress.learn(model.loss(batch, torch.from_numpy(noise.astype(np.float32)), train.beta))
        task.control.tick()
        if not math.isfinite(progress.losses[-1]):
            break
        if progress.step % REPORT_EVERY == 0 or progress.step == schedule.steps:
            rate = (progress.step - before) * train.batch_size / (time.monotonic() - started)
            task.report(progress.step, schedule.steps, rate)
        stopping, now = task.control.stopping, time.monotonic()
        if progress.step < schedule.steps and (stopping or now - saved >= task.checkpoint_s):
            # Where a checkpoint does not fit into what is left of the grace period, the last one stands.
            if not stopping or task.control.left_s > 1.5 * save_s:
                task.save(progress.step, progress.write)
                saved, save_s = time.monotonic(), time.monotonic() - now
            if stopping:
                raise Stopped
    finite = math.isfinite(progress.losses[-1]) and all(
        bool(torch.isfinite(p).all()) for p in model.parameters()
    )
    log = {"steps": schedule.steps, "train_loss": [finite_or_none(value) for value in progress.losses]}
    seen = train.batch_size
    return FitOutcome(
        "ok" if finite else "diverged", log, progress.step * seen, (progress.step - before) * seen
    )
