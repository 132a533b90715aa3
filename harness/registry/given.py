"""What the code of components gives, looked at before it goes on: a package's may give anything."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.errors import LearnerError
from harness.terminal import shown

_NUMBERS = "biuf"
"""Kinds of numpy's types that are real numbers, or truth values, which count as 0 and 1."""


def by_name(found: Any, whose: str) -> Mapping[str, Any]:
    """What was given, by name.

    Raises:
        LearnerError: It is no mapping, or one of its names is no text.
    """
    if not isinstance(found, Mapping):
        raise LearnerError(f"{whose} gives {shown(found)}, expected a mapping by name")
    if odd := next((name for name in found if not isinstance(name, str)), None):
        raise LearnerError(f"{whose} gives {shown(odd)} as a name, expected a text")
    return found


def as_number(value: Any, whose: str) -> float:
    """One number, which need not be finite; what is masked is none.

    Raises:
        LearnerError: It is something else.
    """
    if np.ma.is_masked(value):
        return math.nan
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())
    if value is not None and not isinstance(value, str | bytes):
        with contextlib.suppress(Exception):  # whatever numbers of other libraries raise where they are none
            return float(np.float64(value))
    raise LearnerError(f"{whose} is {shown(value)}, expected a number")


def as_array(value: Any, shape: Sequence[int], whose: str, axes: str, more: bool = False) -> npt.NDArray[Any]:
    """Numbers of a shape, which need not be finite.

    Args:
        value: What was given.
        shape: The length of each axis.
        whose: What it is, for messages.
        axes: What the axes are, for messages.
        more: Whether further axes may follow.

    Raises:
        LearnerError: It is something else.
    """
    try:
        found = np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths
        found = np.array(None)
    if np.ma.is_masked(value):
        raise LearnerError(f"{whose} is masked in part, expected numbers everywhere")
    expected = f"expected numbers of the shape {[*shape, *['...'] * more]} ({axes})".replace("'", "")
    if found.dtype.kind not in _NUMBERS:
        raise LearnerError(f"{whose} is {shown(value)}, {expected}")
    if (found.shape[: len(shape)] if more else found.shape) != tuple(shape):
        raise LearnerError(f"{whose} has the shape {list(found.shape)}, {expected}")
    return found
