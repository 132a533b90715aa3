"""How much a real training example counts against one that a model wrote."""

from __future__ import annotations

import math
from typing import Literal

from harness.errors import LearnerError


def relative_weights(
    weight: float | Literal["golden"], real: int, synthetic: int
) -> tuple[float, float] | None:
    """The weight of a real example and of a synthetic one, 1 on average; None where all have the same.

    ``golden`` is the weight w of n_r real examples together against 1 - w of n_s synthetic ones that makes
    the error of a mean least in the long run, w = (sqrt(k^2 + 4k) - k) / 2 for k = n_r / n_s (He, Xu and
    Cheng 2025, arXiv 2502.18049).

    Args:
        weight: Of a synthetic example, where a real one has 1; or ``golden``.
        real: Real training examples, n_r.
        synthetic: Those that a model wrote, n_s.

    Raises:
        LearnerError: All weights are 0.
    """
    if weight == 1.0 or not synthetic or (weight == "golden" and not real):
        return None
    if weight == "golden":
        k = real / synthetic
        share = (math.sqrt(k * k + 4 * k) - k) / 2
        one, other = share / real, (1 - share) / synthetic
    else:
        one, other = 1.0, float(weight)
    total = one * real + other * synthetic
    if total == 0:
        raise LearnerError("synthetic_weight: found 0, and no training example is real: nothing is learned")
    scale = (real + synthetic) / total
    return one * scale, other * scale
