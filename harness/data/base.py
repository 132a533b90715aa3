"""What a chain needs to know of the real distribution."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from harness.records import Examples
from harness.streams import stream


class RealData(Protocol):
    """A real distribution, text or analytic."""

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        ...

    @property
    def supply(self) -> int:
        """Real training examples there are, the reservoir of ``fresh_real`` included."""
        ...

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` real training examples; where the truth is analytic, drawn for this seed."""
        ...


def own_examples(seed: int, supply: int, count: int, resample: bool) -> slice | npt.NDArray[np.int64]:
    """Which of a split's examples are the first ``count`` of a seed.

    Args:
        seed: The chain's seed.
        supply: Examples of the training split.
        count: How many are wanted; fewer are a prefix of more.
        resample: ``data.resample``: every seed has an order of its own. Otherwise all have the split's.
    """
    return stream(seed, 0, "resample").permutation(supply)[:count] if resample else slice(count)
