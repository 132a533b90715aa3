"""Filters over examples. Whether example i passes depends on examples 0..i only, so a longer corpus keeps its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config.schema import DeduplicateFilter, Filter, RepetitionFilter
from harness.metrics.lexical import repetition_shares, row_hashes
from harness.records import Examples

Mask = npt.NDArray[np.bool_]


def _deduplicate(_: DeduplicateFilter, examples: Examples) -> Mask:
    seen: set[bytes] = set()
    mask = np.zeros(len(examples), dtype=bool)
    for row, content in enumerate(row_hashes(examples)):
        mask[row] = content not in seen
        seen.add(content)
    return mask


def _repetition(config: RepetitionFilter, examples: Examples) -> Mask:
    shares = repetition_shares(examples, config.n)
    return np.asarray(np.nan_to_num(shares, nan=0.0) <= config.max_share)


RULES: dict[str, Callable[[Any, Examples], Mask]] = {"deduplicate": _deduplicate, "repetition": _repetition}
VERSIONS = {"deduplicate": 1, "repetition": 1}
"""Versions of the filters; part of the key of every fit that reads a filtered corpus."""


def accepted(filters: Sequence[Filter], examples: Examples) -> npt.NDArray[np.int64]:
    """The indices of the examples that pass all filters, in order; a filter sees what earlier ones left."""
    index = np.arange(len(examples))
    for config in filters:
        index = index[RULES[config.kind](config, examples.take(index))]
    return index
