"""How far a fit goes from the model before."""

from __future__ import annotations

from typing import Literal

Merge = float | Literal["uniform"]
"""A share of the way, or ``uniform``: as far as makes the mean of all generations' fits of it."""


def share_of_way(merge: Merge, generation: int) -> float:
    """How much of the way from the model before to the fitted one a generation goes.

    ``uniform`` goes 1 / (g + 1) of it, so what generation g comes to is the mean of the fits of generations
    0 to g, a uniform soup (Wortsman and others 2022, arXiv 2203.05482).
    """
    return 1 / (generation + 1) if merge == "uniform" else float(merge)
