"""What a package's own learner gives, looked at before it is kept; the harness's own are known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import numpy as np

from harness.components import LEARNERS
from harness.data.real import RealData
from harness.errors import LearnerError
from harness.learners.protocol import whose_learner
from harness.records import Examples
from harness.registry.given import as_number, by_name
from harness.science import Node
from harness.store.corpora import Scores


def _is_added(node: Node) -> bool:
    return bool(LEARNERS.loaded[node.spec.fit.learner.section.kind].package)


def _whose(node: Node, what: str) -> str:
    return f"{whose_learner(node.spec.fit.learner.section.kind)}: {what}"


def numbers_of(node: Node, metrics: Mapping[str, float]) -> Mapping[str, float]:
    """The metrics of an evaluation.

    Raises:
        LearnerError: They are no numbers by name.
    """
    if not _is_added(node):
        return metrics
    whose = _whose(node, "evaluate")
    return {name: as_number(value, f"{whose}: {name}") for name, value in by_name(metrics, whose).items()}


class Written:
    """What a learner has written of a corpus."""

    def __init__(
        self,
        node: Node,
        data: RealData,
        there: Collection[tuple[int, int]],
        append: Callable[[str, int, Examples, Scores | None], None],
    ) -> None:
        """Nothing is written yet.

        Args:
            node: The generation whose corpus it is.
            data: The real data.
            there: Shards that are there already: the first example, and one past the last.
            append: Commits one more of a corpus.
        """
        self.node, self.data, self.shards, self._append = node, data, set(there), append

    def append(self, start: int, examples: Examples, scores: Scores | None = None) -> None:
        """Commit a shard.

        Raises:
            LearnerError: Its examples are not as wide as the real ones, or its scores not as many as they.
        """
        if scores is not None:
            try:
                scores = np.asarray(scores, dtype=np.float64)
                found = f"have the shape {list(scores.shape)}"
            except (TypeError, ValueError):
                scores, found = None, "are no numbers"
            if scores is None or scores.shape != (len(examples),):
                raise LearnerError(
                    f"{_whose(self.node, 'sample')}: the scores of what it appends {found}, expected the "
                    f"shape [{len(examples)}]"
                )
        if _is_added(self.node):
            width = self.data.real(self.node.seed, 1).values.shape[1]
            if examples.values.ndim != 2 or examples.values.shape[1] != width:
                shape = list(examples.values.shape)
                raise LearnerError(
                    f"{_whose(self.node, 'sample')}: what it appends has the shape {shape}, expected "
                    f"[{len(examples)}, {width}] (examples, numbers in an example)"
                )
            self.shards.add((start, start + len(examples)))
        self._append(self.node.corpus, start, examples, scores)

    def check(self, count: int, there: Collection[tuple[int, int]]) -> None:
        """Check that there are as many examples as are needed.

        Args:
            count: How many are.
            there: Shards that the store has, of all ranks.

        Raises:
            LearnerError: Some are missing.
        """
        end = 0
        for start, stop in sorted(self.shards.union(there)):
            end = max(end, stop) if start <= end else end
        if _is_added(self.node) and end < count:
            raise LearnerError(
                f"{_whose(self.node, 'sample')}: it appends examples up to {end}, {count} are needed"
            )
