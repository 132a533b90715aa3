"""How long a fit is, the learning rate of each step, and what its examples weigh."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from harness.config.schema import Train
from harness.learners.schedule import Schedule
from harness.learners.weights import relative_weights
from harness.records import REAL, Examples


def plan_steps(train: Train, examples: Examples, budget: str, reference: Examples, each: int = 1) -> Schedule:
    """The length of a fit.

    Passes and batches are those of ``train`` under every budget. So the steps or tokens are equal over
    regimes; they are generation 0's own where it is fitted by the same section, and not with ``later``.

    Args:
        train: The training section of the generation: ``later`` of those after the first, where it is set.
        examples: The training set.
        budget: ``examples``: the epochs asked for; ``steps``: as many steps as for generation 0's training
            set; ``tokens``: as many tokens.
        reference: Generation 0's training set.
        each: Examples of a unit, of which a batch has ``train.batch_size``.
    """
    size, batch = len(examples) // each, train.batch_size
    if train.max_steps is not None:
        return Schedule(size, batch, train.max_steps)
    epochs = train.epochs
    if budget == "steps":
        steps = epochs * len(reference) // batch
    elif budget == "tokens":
        tokens = epochs * int(reference.lengths.sum())
        steps = round(tokens / (float(examples.lengths.mean()) * each * batch))
    else:
        steps = epochs * size // batch
    return Schedule(size, batch, max(1, steps))


def origin_weights(train: Train, origin: npt.NDArray[np.int32]) -> npt.NDArray[np.float64] | None:
    """The weight of each training example's loss, shape [size]; None where all have the same.

    Args:
        train: The training section.
        origin: Of every training example, shape [size].

    Raises:
        LearnerError: All weights are 0.
    """
    real = origin == REAL
    found = relative_weights(train.synthetic_weight, int(real.sum()), int((~real).sum()))
    return None if found is None else np.where(real, *found)


def learning_rate(train: Train, step: int, steps: int) -> float:
    """The learning rate of a step.

    Linear warm-up, then constant, cosine or linear to min_learning_rate_ratio of the peak.
    """
    warmup = math.ceil(train.warmup_ratio * steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / warmup
    if train.schedule == "constant":
        return train.learning_rate
    done = (step - warmup) / max(1, steps - warmup)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else 1 - done
    return train.learning_rate * (train.min_learning_rate_ratio + (1 - train.min_learning_rate_ratio) * shape)
