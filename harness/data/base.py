"""What a chain needs to know of the real distribution."""

from __future__ import annotations

from typing import Protocol

from harness.records import Examples


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
