"""How much an example that a model wrote counts in a fit, as a configuration says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.components.regimes import usual_parts
from harness.records import REAL

SyntheticWeight = Annotated[float, Field(ge=0)] | Literal["golden"]
"""Where a real example has 1."""


def check_weight(place: str, weight: float | Literal["golden"], regime: Any) -> None:
    """Refuse that synthetic examples count nothing where there are no others.

    ``golden`` is of two parts; where there is one, all of it counts the same.

    Raises:
        ValueError: The weight is 0 and no training example of later generations is real.
    """
    if weight == 0 and not any(part.origin == REAL for part in usual_parts(regime)):
        ratio = " with regime.synthetic_ratio 1" if regime.synthetic_ratio == 1 else ""
        raise ValueError(
            f"{place}: found 0, and in {regime.kind}{ratio} no training example is real: nothing would be "
            "learned"
        )
