"""From plain data to a `Config`.

Every error names the file, the line, the field, what was found and what is allowed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.components import DATA
from harness.config.messages import KINDS, allowed_kinds, message_at, section_at
from harness.config.schema import Config, data_kind, unknown_source
from harness.config.source import Source, has, read_source, split_field
from harness.config.track import in_track
from harness.errors import ConfigError, InputProblem
from harness.terminal import cut, shown


def load_file(path: Path, assignments: tuple[str, ...] = ()) -> Source:
    """Read a configuration file (`harness.config.source.read_source`), and the track that it names."""
    return in_track(read_source(path, assignments), path.parent)


def validate(source: Source, data: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Config:
    """Validate one cell's data.

    Args:
        source: The file, for lines.
        data: Plain data, without ``grid`` and ``overrides``.
        places: Where a field's value came from when not from its own place: dotted field to the dotted path
            in the file.

    Raises:
        ConfigError: With every problem found.
    """
    try:
        return _config(source, data)
    except ValidationError as error:
        raise ConfigError(_problems(source, data, places or {}, error.errors())) from None


def _config(source: Source, data: Mapping[str, Any]) -> Config:
    regime = data.get("regime")
    if isinstance(regime, Mapping):  # a field or an axis of it alone is about the kind that is usual
        data = {**data, "regime": {"kind": "replace", **regime}}
    try:
        text = json.dumps(data, default=str)
        return Config.model_validate_json(text, strict=True)
    except ValidationError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError([source.problem("", f"cannot be read as data: {error}")]) from None


def check_field(source: Source, data: Mapping[str, Any], field: str, place: str) -> None:
    """Check that what a field holds can be its value, whatever the rest of the data is.

    Args:
        source: The file, for lines.
        data: Plain data, without ``grid`` and ``overrides``.
        field: The dotted field, which may be a section.
        place: Where its value stands in the file, as a dotted path.

    Raises:
        ConfigError: The field's value is wrong by itself.
    """
    try:
        _config(source, data)
    except ValidationError as error:
        found = [
            detail
            for detail in error.errors()
            if _is_of(_path(data, detail["loc"], detail["type"]), detail, field)
        ]
        if found:
            raise ConfigError(_problems(source, data, {field: place}, found)) from None


def _is_of(path: str, detail: ErrorDetails, field: str) -> bool:
    """Whether an error is of a field or inside of it, and of what is there rather than of what is missing."""
    if not detail["loc"] or detail["type"] in ("missing", "union_tag_not_found"):
        return False
    if detail["type"] == "union_tag_invalid" and field == f"{path}.kind":
        return True
    return f"{path}.".startswith(f"{field}.")


def check_kinds(source: Source, held: Callable[[str], bool]) -> None:
    """Check the kinds that are named outside of the grid.

    Before fields are looked for that only an unknown one may have.

    Args:
        source: The file.
        held: Whether a name is that of a file or folder that is gone, and a store knows what it held.

    Raises:
        ConfigError: The harness, and what is installed beside it, has no such kind.
    """
    problems = []
    for section, kinds in KINDS.items():
        items = source.data.get(section)
        for index, item in enumerate(items if isinstance(items, list) else [items]):
            kind = item.get("kind") if isinstance(item, Mapping) else None
            if not isinstance(kind, str) or kind in kinds.loaded:
                continue
            path = f"{section}.{index}" if isinstance(items, list) else section
            path = "regime.kind" if section == "regime" else path  # as the schema names them
            broken = kinds.broken.get(kind)
            reason = f"; {cut(broken)}" if broken else f", {allowed_kinds(kind, kinds)}"
            problems.append(source.problem(path, f"found {shown(kind)}{reason}"))
    data = source.data.get("data")
    name = data.get("source") if isinstance(data, Mapping) and data_kind(data) == "text" else None
    if isinstance(name, str):
        if name in DATA.broken and name not in DATA.loaded:
            problems.append(source.problem("data.source", f"found {shown(name)}; {cut(DATA.broken[name])}"))
        elif (wrong := unknown_source(name)) and not held(name):
            problems.append(source.problem("data.source", wrong))
    if problems:
        raise ConfigError(problems)


def _problems(
    source: Source, data: Mapping[str, Any], places: Mapping[str, str], details: Sequence[ErrorDetails]
) -> list[InputProblem]:
    messages: dict[str, list[str]] = {}
    paths = [_path(data, detail["loc"], detail["type"]) for detail in details]
    for path, detail in zip(paths, details, strict=True):
        # of the kinds of values that a field may have, what is within this one says more than that another is
        # another
        if detail["type"] in _WRONG_TYPES and any(other.startswith(f"{path}.") for other in paths):
            continue
        if detail["type"] == "too_short" and any(other.startswith(f"{path}.") for other in paths):
            continue  # what is wrong is not counted, and is said by itself
        message = message_at(data, path, detail)
        if not path:
            path, message = split_field(message)
        elif detail["type"] == "value_error":
            path, message = _narrowed(data, path, message)
        if path == "regime" and "does not use" in message:
            message += _of_parts(places)
        if message not in messages.setdefault(path, []):
            messages[path].append(message)
    return [source.placed(path, "; or ".join(found), places) for path, found in messages.items()]


def _of_parts(places: Mapping[str, str]) -> str:
    """What helps where axes give a regime part by part, and one kind does not use what another one needs."""
    if not any(field.startswith("regime.") and place.startswith("grid.") for field, place in places.items()):
        return ""
    return (
        "; an axis of whole regimes goes, such as regime: [{kind: replace, synthetic_ratio: 0.5}, {kind: "
        "accumulate}]"
    )


def _narrowed(data: Mapping[str, Any], path: str, message: str) -> tuple[str, str]:
    """The field that a section's message begins with, where the section has it, and what is said of it."""
    name, colon, rest = message.partition(": ")
    section, given = section_at(data, path), data
    for part in path.split("."):
        given = given[int(part) if isinstance(given, list) else part]
    known = bool(colon) and section is not None and name.split(".")[0] in section.model_fields
    return (f"{path}.{name}", rest) if known and has(given, name) else (path, message)


_WRONG_TYPES = (
    "int_type", "int_from_float", "float_type", "string_type", "bool_type", "list_type", "tuple_type",
    "dict_type", "model_type", "model_attributes_type", "literal_error",
)  # fmt: skip
"""Kinds of errors that say that a value is of another type altogether."""


def _path(data: Any, loc: tuple[int | str, ...], kind: str) -> str:
    """The dotted path of an error, without the tags of unions that pydantic puts in between.

    Args:
        data: What was given.
        loc: Fields, places in lists and tags.
        kind: Of the error: only what is missing may be named without being there.
    """
    path: list[str] = []
    tagged: Any = None  # the section whose tag has been passed: a field of it may have the same name
    for position, part in enumerate(loc):
        last = position == len(loc) - 1
        if isinstance(data, Mapping):
            if data is not tagged and part in (data.get("source"), data.get("kind")):
                tagged = data
                continue
            if part in data:
                data = data[str(part)]
            elif not last or kind != "missing":
                tagged = data  # what is not there is the tag of a section that was taken for it
                continue
            else:
                data = None
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(str(part))
    return ".".join(path)
