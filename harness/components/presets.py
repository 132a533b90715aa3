"""Model presets: data files in ``configs/models/``, one architecture each.

A preset is resolved before it enters a key, so a preset and the same sizes written out are the same science,
and an edited preset is another one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

_PLACES = (
    Path(__file__).parents[1] / "config" / "studies" / "models",
    Path(__file__).parents[2] / "configs" / "models",
)
"""In an installed package, where they come with the studies, and in a checkout."""
_ABOUT = ("published_parameters", "vocab_size", "source")
"""What a preset file says besides the model: parameter count and vocabulary of the published model, and where
it was published."""


@cache
def _folder() -> Path:
    return next(place for place in _PLACES if place.is_dir())


@cache
def preset_names() -> tuple[str, ...]:
    """The names that ``learner.model.preset`` takes."""
    return tuple(sorted(path.stem for path in _folder().glob("*.yaml")))


@cache
def read_preset(name: str) -> dict[str, Any]:
    """The content of a preset's file, by one of `preset_names`."""
    data: dict[str, Any] = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


def preset_sizes(name: str) -> dict[str, Any]:
    """Fields of a model that a preset stands for."""
    return {field: value for field, value in read_preset(name).items() if field not in _ABOUT}
