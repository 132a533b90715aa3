"""From plain data to a `Config`.

Every error names the file, the line, the field, what was found and what is allowed.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.components import DATA, DATA_KINDS, FILTERS, LEARNERS, REGIMES
from harness.components.objectives import ALSO_CALLED
from harness.config.schema import Config, data_kind
from harness.config.source import Source, has, read_source, split_field
from harness.config.track import in_track
from harness.errors import ConfigError, InputProblem
from harness.registry import Found
from harness.terminal import cut, nearest, shown

TOP_LEVEL_EXTRA = ("grid", "overrides", "mitigations", "mitigation", "track")


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


_KINDS: Mapping[str, Found[Any]] = {"learner": LEARNERS, "filters": FILTERS, "regime": REGIMES}


def check_kinds(source: Source) -> None:
    """Check the kinds that are named outside of the grid.

    Before fields are looked for that only an unknown one may have.

    Raises:
        ConfigError: The harness, and what is installed beside it, has no such kind.
    """
    problems = []
    for section, kinds in _KINDS.items():
        items = source.data.get(section)
        for index, item in enumerate(items if isinstance(items, list) else [items]):
            kind = item.get("kind") if isinstance(item, Mapping) else None
            if not isinstance(kind, str) or kind in kinds.loaded:
                continue
            path = f"{section}.{index}" if isinstance(items, list) else section
            path = "regime.kind" if section == "regime" else path  # as the schema names them
            broken = kinds.broken.get(kind)
            reason = f"; {cut(broken)}" if broken else f", allowed: {', '.join(kinds)}{nearest(kind, kinds)}"
            problems.append(source.problem(path, f"found {shown(kind)}{reason}"))
    data = source.data.get("data")
    name = data.get("source") if isinstance(data, Mapping) and data_kind(data) == "text" else None
    if isinstance(name, str) and name in DATA.broken and name not in DATA.loaded:
        problems.append(source.problem("data.source", f"found {shown(name)}; {cut(DATA.broken[name])}"))
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
        message = _message(data, path, detail)
        if not path:
            path, message = split_field(message)
        elif detail["type"] == "value_error":
            path, message = _narrowed(data, path, message)
        if message not in messages.setdefault(path, []):
            messages[path].append(message)
    problems = [source.placed(path, "; or ".join(found), places) for path, found in messages.items()]
    return sorted(problems, key=lambda problem: problem.line or 0)


def _narrowed(data: Mapping[str, Any], path: str, message: str) -> tuple[str, str]:
    """The field that a section's message begins with, where the section has it, and what is said of it."""
    name, colon, rest = message.partition(": ")
    section, given = _section_at(data, path), data
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


def section_classes(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in typing.get_args(annotation) for found in section_classes(part)]


def _section_at(data: Mapping[str, Any], path: str) -> type[BaseModel] | None:
    """The class of the section at a path, following ``kind`` and ``source`` through unions."""
    section: type[BaseModel] | None = Config
    value: Any = data
    found: list[type[BaseModel]] = []
    of_names = False
    for part in path.split(".") if path else []:
        if isinstance(value, Sequence) and not isinstance(value, str) and part.isdigit():
            value = value[int(part)] if int(part) < len(value) else None  # one of the same sections
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
            info = section.model_fields.get(part) if section else None
            if info is None and of_names:  # a name of one of the same sections
                of_names = False
            else:
                found = section_classes(info.annotation) if info else []
                of_names = info is not None and "dict[" in str(info.annotation)
        kind = value.get("kind") if isinstance(value, Mapping) else None
        matching = [
            c
            for c in found
            if "kind" in c.model_fields and kind in typing.get_args(c.model_fields["kind"].annotation)
        ]
        if path == "data" or path.startswith("data.") and part == "data":
            matching = [DATA_KINDS[data_kind(value)].section]
        section = (matching or found or [None])[0]  # type: ignore[list-item]
    return section


_OF_NAMES = "letters, digits, '.', '_' and '-', at most {}, starting with a letter or digit"
_OF_PATTERN: Mapping[str, str] = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": _OF_NAMES.format(64),
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$": _OF_NAMES.format(40),
    r"^[a-z][a-z0-9_]*$": "lower-case letters, digits and '_', starting with a letter",
    r"^[a-z]{1,4}$": "one to four lower-case letters",
    r"^[a-z]{0,4}$": "at most four lower-case letters",
    r"^[-+*]{1,3}$": "one to three of '-', '+' and '*'",
}
"""What a field's pattern says, in words; a pattern without any is shown itself."""


def _message(data: Mapping[str, Any], path: str, detail: ErrorDetails) -> str:
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        parent, _, name = path.rpartition(".")
        section = _section_at(data, parent)
        allowed = [*section.model_fields, *(TOP_LEVEL_EXTRA if not parent else ())] if section else []
        return f"unknown field{nearest(name, allowed)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        return (
            f"found {shown(found)}, expected more values"
            if isinstance(found, list | tuple)
            else "is required"
        )
    if kind == "value_error":
        return str(context.get("error", detail["msg"]))
    if kind in ("union_tag_invalid", "literal_error"):
        expected = str(context.get("expected_tags") or context.get("expected", ""))
        names = [name.strip().strip("'") for name in expected.replace(" or ", ", ").split(",")]
        value = found.get("kind") if isinstance(found, Mapping) and "discriminator" in context else found
        group = _KINDS.get(path.split(".")[0])
        if group is not None and str(value) in group.broken:
            return f"found {shown(value)}; {cut(group.broken[str(value)])}"
        if path.startswith("learner.objective") and str(value) in ALSO_CALLED:
            return f"found {shown(value)}, which is {ALSO_CALLED[str(value)]}; allowed: {', '.join(names)}"
        return f"found {shown(value)}, allowed: {', '.join(names)}{nearest(str(value), names)}"
    if kind == "union_tag_not_found":
        return "needs a kind"
    if kind == "finite_number":
        return f"found {shown(found)}, must be a finite number"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return f"found {shown(found)}, allowed: {_OF_PATTERN.get(pattern, f'what has the form {pattern}')}"
    return f"found {'nothing' if found is None else shown(found)}, expected {_expected(detail)}"


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "a section with fields"
    if detail["type"] == "too_short":
        least = detail.get("ctx", {}).get("min_length", 1)
        return f"at least {least} {'value' if least == 1 else 'values'}"
    if detail["type"] == "too_long":
        return f"at most {detail.get('ctx', {})['max_length']} values"
    return detail["msg"].removeprefix("Input should be ").replace("a valid array", "a list")
