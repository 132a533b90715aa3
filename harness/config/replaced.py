"""Values that an axis, an override or a mitigation replaces.

No cell has them, but they stand in the file, so they must be valid all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.config.load import check_field, validate
from harness.config.mitigations import SECTION, Mitigations
from harness.config.schema import Override
from harness.config.source import Source, has, with_values


def check_replaced(
    source: Source,
    data: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    overrides: Sequence[Override],
    before: Mapping[int, Mapping[str, Any]],
    mitigations: Mitigations,
) -> None:
    """Check values that another one stands in for, each as a value of its field, in the first cell.

    What is only wrong together with other values is no error: these are never together.

    Args:
        source: The file.
        data: Its content, without grid and overrides.
        axes: Field to values, the seed aside.
        overrides: In the order in which they apply.
        before: An override's number to a cell as it is when that override has been applied, and none behind
            it.
        mitigations: Each is looked at in the first cell: the grid may leave it out.

    Raises:
        ConfigError: A value can never be one of its field.
    """
    first = with_values(data, {name: values[0] for name, values in axes.items()})
    for name, value, place, cell in _replaced(data, first, axes, overrides, before):
        check_field(source, with_values(cell, {name: value}), name, place)
    for mitigation, settings in mitigations.items():
        places = {name: f"{SECTION}.{mitigation}.{name}" for name in settings}
        try:
            validate(source, with_values(first, settings), places)
            for name in settings:
                if has(data, name):
                    check_field(source, with_values(first, {name: _value(data, name)}), name, name)
        except TypeError as error:
            raise source.error(f"{SECTION}.{mitigation}", str(error)) from None


def _replaced(
    data: Mapping[str, Any],
    first: Mapping[str, Any],
    axes: Mapping[str, Sequence[Any]],
    overrides: Sequence[Override],
    before: Mapping[int, Mapping[str, Any]],
) -> Iterator[tuple[str, Any, str, Mapping[str, Any]]]:
    """Field, value, where it stands, and the cell to look at it in."""
    set_later = {name for override in overrides for name in override.set}
    for name in {**axes, **dict.fromkeys(set_later)}:
        # of a section that is looked at as a whole
        inside = any(name.startswith(f"{axis}.") for axis in axes)
        if has(data, name) and not inside:
            yield name, _value(data, name), name, first
    for name, values in axes.items():
        if any(_touch(name, other) for other in set_later):
            for index, value in enumerate(values):
                yield name, value, f"grid.{name}.{index}", first
    for index, cell in before.items():
        for name, value in overrides[index].set.items():
            yield name, value, f"overrides.{index}.set.{name}", cell


def _value(data: Mapping[str, Any], name: str) -> Any:
    for part in name.split("."):
        data = data[part]
    return data


def _touch(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")
