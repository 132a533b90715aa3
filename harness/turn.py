"""One generation: fit, sample, evaluate. Recursive training is this, again and again."""

from __future__ import annotations

from typing import Protocol

from harness.records import Status


class Steps(Protocol):
    """The steps of one generation: of one chain, or of many same-shaped ones at once."""

    def fit(self) -> Status:
        """Build the training set and fit; ``diverged`` where there is no finite model."""

    def sample(self) -> None:
        """Write the corpus."""

    def evaluate(self, status: Status) -> None:
        """Measure, and record; a generation that diverged is recorded without metrics."""


def turn(steps: Steps) -> Status:
    """Run one generation; what has diverged writes nothing, and is recorded all the same."""
    status = steps.fit()
    if status == "ok":
        steps.sample()
    steps.evaluate(status)
    return status
