"""Mitigations: named settings that are meant to resist collapse, and the axis over their names.

    mitigations:
      none: {}
      keep_real: {regime.synthetic_ratio: 0.9}

A cell has one of them; without ``mitigation`` in the grid it is an axis over all, in the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.config.source import Source
from harness.terminal import nearest, shown

AXIS = "mitigation"
"""The axis, and its column in ``export``."""
SECTION = "mitigations"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$"
"""How mitigations may be called: what also names a file."""

Mitigations = Mapping[str, Mapping[str, Any]]
"""Name to dotted fields with their values."""


def take_mitigations(
    source: Source, data: dict[str, Any], check_setting: Callable[[str, str], None]
) -> Mitigations:
    """Take the mitigations out of a file's content.

    Args:
        source: The file.
        data: Its content; ``mitigations`` is removed from it.
        check_setting: Checks that a dotted field (second) may be set at a place in the file (first).

    Raises:
        ConfigError: They are not names with fields and values.
    """
    given = data.pop(SECTION, None)
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not given:
        raise source.error(
            SECTION, f"found {shown(given)}, expected names with settings: {{none: {{}}, ...}}"
        )
    for name, settings in given.items():
        place = f"{SECTION}.{name}"
        if not re.fullmatch(NAME, name):
            allowed = "letters, digits, '.', '_' and '-', at most 40, starting with a letter or digit"
            raise source.error(place, f"found the name {shown(name)}, allowed: {allowed}")
        if settings is not None and not isinstance(settings, Mapping):
            message = f"found {shown(settings)}, expected dotted fields with values, such as {{filters: []}}"
            raise source.error(place, message)
        for field in settings or {}:
            check_setting(f"{place}.{field}", field)
            for other in settings or {}:
                if other != field and f"{field}.".startswith(f"{other}."):
                    raise source.error(
                        f"{place}.{field}", f"touches the same field as {other}; give one of the two"
                    )
    return {name: dict(settings or {}) for name, settings in given.items()}


def take_axis(
    source: Source, data: dict[str, Any], axes: Mapping[str, Sequence[Any]], mitigations: Mitigations
) -> dict[str, Sequence[Any]]:
    """The axes of the grid with the one over mitigations: all of them where the file does not say which.

    Args:
        source: The file.
        data: Its content; ``mitigation`` is removed from it.
        axes: Those of the grid.
        mitigations: From `take_mitigations`.

    Raises:
        ConfigError: A name is unknown, or an axis is over a field that a mitigation sets.
    """
    one = data.pop(AXIS, None)
    if one is None and AXIS not in axes and not mitigations:
        return dict(axes)
    place, names = (f"grid.{AXIS}.{{}}", axes[AXIS]) if AXIS in axes else (AXIS, [one])
    if one is None and AXIS not in axes:
        names = list(mitigations)
    for index, name in enumerate(names):
        if not isinstance(name, str) or name not in mitigations:
            what = f"{', '.join(mitigations)}{nearest(str(name), mitigations)}"
            allowed = f"allowed: {what}" if mitigations else f"but the file has no {SECTION}"
            raise source.error(place.format(index), f"found {shown(name)}, {allowed}")
    for name, settings in mitigations.items():
        for field in settings:
            for axis in axes:
                if f"{axis}.".startswith(f"{field}.") or f"{field}.".startswith(f"{axis}."):
                    message = f"touches the same field as the axis {axis}; a cell can have one of the two"
                    raise source.error(f"{SECTION}.{name}.{field}", message)
    return dict(axes) if AXIS in axes else {AXIS: names, **axes}
