"""What each optimizer step reads: a function of (seed, generation, step), so that a fit goes on anywhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.streams import stream


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

    def order(
        self, seed: int, generation: int, step: int, cache: dict[int, npt.NDArray[np.int64]]
    ) -> npt.NDArray[np.int64]:
        """The examples of one global batch, shape [batch_size].

        Epochs follow one another as one stream of permutations, so a batch may reach over the end of an
        epoch.
        """
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = positions // self.size
        for done in [epoch for epoch in cache if epoch < epochs[0]]:
            del cache[done]
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            if epoch not in cache:
                cache[epoch] = stream(seed, generation, "order", epoch).permutation(self.size)
        return np.array(
            [cache[int(e)][p % self.size] for e, p in zip(epochs, positions, strict=True)], dtype=np.int64
        )
