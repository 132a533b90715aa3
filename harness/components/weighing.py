"""How much an example that a model wrote counts in a fit, as a configuration says it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

SyntheticWeight = Annotated[float, Field(ge=0)] | Literal["golden"]
"""Where a real example has 1."""


def check_weight(place: str, weight: float | Literal["golden"], regime: Any) -> None:
    """Refuse that synthetic examples count nothing where there are no others.

    ``golden`` is of two parts; where there is one, all of it counts the same.

    Raises:
        ValueError: The weight is 0 and no training example of later generations is real.
    """
    alone = regime.kind in ("replace", "fresh_real", "stream") and regime.synthetic_ratio == 1
    known = regime.anchor or regime.history == "all"  # of stream: real examples among what is trained on
    if weight == 0 and (regime.kind == "replace_grown" or (alone and not known)):
        ratio = " with regime.synthetic_ratio 1" if alone else ""
        raise ValueError(
            f"{place}: found 0, and in {regime.kind}{ratio} no training example is real: nothing would be "
            "learned"
        )
