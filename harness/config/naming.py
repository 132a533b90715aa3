"""One name for a cell, wherever people read of it: figures, tables, lines, reports, trackers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KIND, RATIO = "regime.kind", "regime.synthetic_ratio"
SELF_EVIDENT = ("experiment", "mitigation", "preset", "kind", "estimator", "source", "pretrained")
"""Axes, by their last part, whose values need no word beside them."""
MAX_NAME = 120
"""Characters of a value in a name; the middle of what is longer is left out."""


def short_names(axes: Sequence[str]) -> list[str]:
    """Axes by their last part, or all of it where two have the same."""
    short = [axis.rpartition(".")[2] for axis in axes]
    return [word if short.count(word) == 1 else axis for word, axis in zip(short, axes, strict=True)]


def words(axes: Sequence[str]) -> list[str]:
    """Axes for people: `short_names`, in words."""
    return [name.replace("_", " ") for name in short_names(axes)]


def cell_name(cell: Sequence[Any], axes: Sequence[str], seed: int | None = None) -> str:
    """A cell as ``small, replace 1.0``, and with its seed ``small, replace 1.0, seed 0``.

    What it has no value for is left out; a regime's ratio stands behind its kind. Empty for the only cell.

    Args:
        cell: Values of the axes.
        axes: Their dotted names.
        seed: Of a chain.
    """
    values = {axis: value for axis, value in zip(axes, cell, strict=True) if value is not None}
    ratio = values.pop(RATIO, None) if KIND in values else None
    parts = []
    for axis, word in zip(axes, words(axes), strict=True):
        if axis not in values:
            continue
        text = _short(values[axis])
        if axis == KIND and ratio is not None:
            parts.append(f"{text} {ratio}")
        elif isinstance(values[axis], str) and axis.rpartition(".")[2] in SELF_EVIDENT:
            parts.append(text)
        else:
            parts.append(f"{word} {text}")
    return ", ".join([*parts, *([] if seed is None else [f"seed {seed}"])])


def cell_names(cells: Iterable[Sequence[Any]], axes: Sequence[str]) -> list[str]:
    """The names of several cells, every one another: with all axes in full where the short ones are equal."""
    known = list(cells)
    names = [cell_name(cell, axes) for cell in known]
    often = Counter(names)
    return [
        name
        if often[name] == 1
        else ", ".join(f"{axis} {value}" for axis, value in zip(axes, cell, strict=True) if value is not None)
        for name, cell in zip(names, known, strict=True)
    ]


def spoken(value: Any) -> str:
    """A value in words; one of several fields as ``teacher big``, or ``a (a 0.5, b 0.5), b (b 1)``."""
    if not isinstance(value, Mapping):
        return str(value)
    found = []
    for name, inner in value.items():
        found.append(f"{name} ({spoken(inner)})" if isinstance(inner, Mapping) else f"{name} {inner}")
    return ", ".join(found)


def _short(value: Any) -> str:
    text = spoken(value)
    end = MAX_NAME // 3
    return text if len(text) <= MAX_NAME else f"{text[: MAX_NAME - end]} ... {text[-end:]}"
