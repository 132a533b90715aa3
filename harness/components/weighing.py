"""How much an example that a model wrote counts in a fit, as a configuration says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

SyntheticWeight = Annotated[float, Field(ge=0)] | Literal["golden"]
"""Where a real example has 1."""


def check_weight(place: str, weight: float | Literal["golden"], regime: Any) -> None:
    """Refuse a weight that has nothing real to be weighed against.

    Raises:
        ValueError: No training example of later generations is real, and the weight is 0 or ``golden``.
    """
    unreal = regime.kind == "replace_grown" or (regime.kind == "replace" and regime.synthetic_ratio == 1)
    if unreal and weight in (0, "golden"):
        result = "nothing would be learned" if weight == 0 else "all would count the same"
        ratio = "" if regime.kind == "replace_grown" else " with regime.synthetic_ratio 1"
        raise ValueError(
            f"{place}: found {weight}, and in {regime.kind}{ratio} no training example is real: {result}"
        )
