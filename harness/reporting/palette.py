"""One colour and one kind of line for every cell, the same in all figures of a page, in print and on screen.

The colours can be told apart by the colour-blind and have a contrast of 3 : 1 with their ground; kinds of
lines tell apart what has nearly the same colour.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

ON_WHITE = ("#0072b2", "#d55e00", "#008a64", "#b5548a", "#8c6d00", "#444444")
"""After Okabe and Ito (2008), the light ones darkened."""
ON_BLACK = ("#56b4e9", "#f0854a", "#2bc79a", "#e79cc5", "#f0e442", "#c9d1d9")
DASHES = ((), (6, 3), (2, 2), (8, 3, 2, 3))
"""Lengths of strokes and gaps, in points."""
FEW = len(ON_WHITE) * 2
"""Up to so many cells have colours that differ in hue; more have a sequence from dark to light."""
T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True)
class Style:
    """How a cell is drawn.

    Attributes:
        light: Its colour on white.
        dark: Its colour on black.
        dash: Lengths of strokes and gaps; empty for a solid line.
    """

    light: str
    dark: str
    dash: tuple[int, ...]

    @property
    def line(self) -> str | tuple[int, tuple[int, ...]]:
        """As matplotlib's line style."""
        return (0, self.dash) if self.dash else "-"


def styles(cells: Iterable[T]) -> dict[T, Style]:
    """A style for every cell, by its place among them."""
    known = list(dict.fromkeys(cells))
    if len(known) <= FEW:
        size = len(ON_WHITE)
        return {
            cell: Style(ON_WHITE[i % size], ON_BLACK[i % size], DASHES[i // size])
            for i, cell in enumerate(known)
        }
    light = colormaps["viridis"](np.linspace(0.0, 0.57, len(known)))
    dark = colormaps["viridis"](np.linspace(0.36, 1.0, len(known)))
    return {
        cell: Style(to_hex(light[i]), to_hex(dark[i]), DASHES[i % len(DASHES)])
        for i, cell in enumerate(known)
    }
