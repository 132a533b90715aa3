"""Model presets: data files in ``configs/models/``, one architecture each.

A preset is resolved before it enters a key, so a preset and the same sizes written out are the same science,
and an edited preset is another one.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from harness.config.schema import Model
from harness.errors import ConfigError, Problem
from harness.terminal import shown

_PLACES = (Path(__file__).parent / "models", Path(__file__).parents[2] / "configs" / "models")
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
    """The content of a preset's file.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in preset_names():
        found = f"found {shown(name)}, allowed: {', '.join(preset_names())}"
        raise ConfigError([Problem("configuration", None, "learner.model.preset", found)])
    data: dict[str, Any] = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return data


@cache
def resolve_model(model: Model) -> Model:
    """The model with its preset replaced by the architecture that it names; other models as they are."""
    if model.preset is None:
        return model
    sizes = {key: value for key, value in read_preset(model.preset).items() if key not in _ABOUT}
    given = {key: getattr(model, key) for key in model.model_fields_set - {"preset"}}
    return Model(**{**sizes, **given})
