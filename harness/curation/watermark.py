"""The filter that finds what a chain has marked."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.components.filters import WatermarkFilter
from harness.data.text import TextCorpus
from harness.metrics.watermark import GreenLists
from harness.records import Examples
from harness.registry import Known


def watermark(section: WatermarkFilter, examples: Examples, known: Known) -> npt.NDArray[np.bool_]:
    """Examples without the chain's mark: whose z score is at most the threshold.

    Args:
        section: The filter.
        examples: Token ids.
        known: With the chain's seed, which the key is of, and the text, whose vocabulary it is.
    """
    text: TextCorpus = known.real
    lists = GreenLists(known.seed, int(text.meta["vocab_size"]), section.gamma, section.context)
    return np.asarray(lists.z_scores(examples) <= section.threshold)
