"""What judges let pass, beside the truth: counts over all corpora that a training set reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components import FILTERS
from harness.curation.filters import is_short
from harness.data import RealData
from harness.records import NO_FILTER_COUNTS, Examples, FilterCounts
from harness.registry import named


class FilterTally:
    """Counts what was judged; of prompts without a known truth only that, of other such data nothing."""

    def __init__(self, data: RealData, filters: Sequence[Any] = ()) -> None:
        """Nothing is counted yet.

        Args:
            data: The real data.
            filters: Sections of the filters that decide.
        """
        self.data = data
        self.judges = [item for item in filters if FILTERS[item.kind].decides]
        self.of_corpora = any(FILTERS[item.kind].of == "corpora" for item in filters)
        self.short = is_short(filters)
        self.decisions: list[str] = []
        self.judged = self.accepted = self.right = self.kept_right = 0
        self.knows = False
        self.troubles: Counter[str] = Counter()
        self.rewarded, self.reward = 0, 0.0
        self.filtered = FilterCounts()

    def note(self, raw: Examples, index: npt.NDArray[np.int64], filtered: FilterCounts) -> None:
        """Count what filters have read of a corpus, and chosen; arguments as of `add`."""
        self.filtered += filtered
        if self.of_corpora:
            read = len(raw) if self.short or not len(index) else int(index[-1]) + 1
            self.filtered += FilterCounts(read=read, passed=len(index))

    def add(
        self, raw: Examples, index: npt.NDArray[np.int64], filtered: FilterCounts = NO_FILTER_COUNTS
    ) -> None:
        """Count a corpus.

        Args:
            raw: What was drawn, with the note ``reward`` where there is a judge.
            index: Which of it passes.
            filtered: The choices among what passes, of filters that keep one of several.
        """
        self.note(raw, index, filtered)
        right = self.data.right(raw)
        if right is None and not ("reward" in raw.notes and self.data.prompted):
            return
        self.decisions += [
            named(FILTERS[item.kind].decides)(item, raw, index, self.data) for item in self.judges if len(raw)
        ]
        self.judged += len(raw)
        self.accepted += len(index)
        votes = any(FILTERS[item.kind].votes(item) for item in self.judges)
        self.troubles.update(self.data.troubles(raw, votes))
        if right is not None:
            self.knows = True
            self.right += int(right.sum())
            self.kept_right += int(right[index].sum())
        if "reward" in raw.notes:
            self.rewarded += len(raw)
            self.reward += float(raw.notes["reward"].astype(np.float64).sum())

    @property
    def decision(self) -> str:
        """What is wrong with how all corpora are judged (`FilterPlugin.decides`); empty where nothing is.

        That a checker has failed comes first, as it may be why nothing passes.
        """
        if self.troubles and self.judges:
            return "troubled"
        return self.decisions[0] if len(set(self.decisions)) == 1 else ""

    def metrics(self) -> dict[str, float]:
        """The columns of records; a share of nothing is not a number."""
        if not self.judged:
            return {}
        found = {
            "judge/judged": float(self.judged),
            "judge/accepted": float(self.accepted),
            "judge/accepted_share": self.accepted / self.judged,
        }
        if self.knows:
            found["judge/true_share"] = self.right / self.judged
            found["judge/precision"] = self.kept_right / self.accepted if self.accepted else float("nan")
        for trouble, count in sorted(self.troubles.items()):
            found[f"judge/checker_{trouble}"] = float(count)
        if self.rewarded:
            found["judge/reward"] = self.reward / self.rewarded
        return found
