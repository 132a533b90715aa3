"""A YAML file with the line of every field, and the dotted paths that ``--set`` and ``grid`` use."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.config.reading import MAX_CHARACTERS, MAX_DEPTH, Reader, compose
from harness.errors import ConfigError, InputProblem
from harness.terminal import cut, shown

if TYPE_CHECKING:
    from harness.config.track import Entered

_MISSING = object()
SETTINGS = {"mitigations": "", "population.members": "set"}
"""Sections of names whose settings are dotted fields, each of them one name in the file, and the field of a
name that holds them; empty where the name does."""


@dataclass(frozen=True)
class Source:
    """The content of a configuration file, and where each field stands.

    Attributes:
        name: The file, for messages.
        data: The content as plain data.
        lines: Dotted path to line, counted from 1; an item of a list is ``path.0``.
        set_paths: Paths that came from ``--set``.
        track: The track that the study is of, whose environment is in ``data``; None for any other study.
    """

    name: str
    data: dict[str, Any]
    lines: Mapping[str, int]
    set_paths: frozenset[str] = field(default_factory=frozenset)
    track: Entered | None = None

    def problem(self, path: str, message: str) -> InputProblem:
        """A problem at a field: at its line, or at the line of the nearest enclosing section.

        Where ``--set`` has given one of the fields that the message names, and not the one that it is about,
        what is in the file was right before: the problem is at ``--set``.
        """
        if not self.is_set(path) and any(_names(message, path, name) for name in self.set_paths):
            return InputProblem("--set", None, path, message)
        probe = path
        while probe:
            if probe in self.set_paths:
                return InputProblem("--set", None, path, message)
            if probe in self.lines:
                return InputProblem(self.name, self.lines[probe], path, message)
            probe = probe.rpartition(".")[0]
        if self.track is not None and path:
            return self.track.source.problem(f"config.{path}", message)
        return InputProblem(self.name, None, path, message)

    def placed(self, path: str, message: str, places: Mapping[str, str]) -> InputProblem:
        """A problem at a field whose value may come from an axis, an override or a mitigation.

        Args:
            path: The field.
            message: What is wrong.
            places: Where values stand that are not at their own place: dotted field to the dotted path in the
                file.
        """
        found = [place for field, place in places.items() if f"{path}.".startswith(f"{field}.")]
        if path not in self.lines:  # the values of its fields alone may be there
            found += [place for field, place in places.items() if field.startswith(f"{path}.")]
        # a field that the message names, where it is --set that gives it
        found += [at for field, at in places.items() if self.is_set(at) and _names(message, path, field)]
        at = self.problem([*found, path][0], message)
        return InputProblem(at.where, at.line, path, message)

    def located(self, error: Exception, places: Mapping[str, str] | None = None) -> ConfigError:
        """An error whose message begins with a field, at that field's line (`placed`)."""
        return ConfigError([self.placed(*split_field(str(error)), places or {})])

    def is_set(self, name: str) -> bool:
        """Whether ``--set`` has given a field its value, or an axis its values.

        A section that the field is in counts.
        """
        parts = name.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        return not self.set_paths.isdisjoint(above | {f"grid.{part}" for part in above})

    def grid(self) -> Mapping[str, Any]:
        """The axes, as they are given; none where there is no grid.

        Raises:
            ConfigError: It is none.
        """
        found = self.data.get("grid")
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise self.error("grid", f"found {shown(found)}, expected fields with lists of values")
        return found

    def error(self, path: str, message: str) -> ConfigError:
        """A `ConfigError` with one problem."""
        return ConfigError([self.problem(path, message)])


def read_source(path: Path, assignments: Sequence[str] = ()) -> Source:
    """Read a YAML file and apply ``--set`` assignments.

    Args:
        path: The file.
        assignments: Items ``a.b=c``; the value is read as YAML.

    Raises:
        ConfigError: The file is unreadable, not YAML, not a mapping, or has a key twice; or an assignment is
            malformed.
    """
    name = str(path)
    data, lines = parse(_text(path), name)
    set_paths: list[str] = []
    for assignment in assignments:
        dotted, separator, value = assignment.partition("=")
        if not separator or not all(dotted.split(".")) or dotted.count(".") >= MAX_DEPTH:
            raise ConfigError(
                [InputProblem("--set", None, "", f"found {shown(assignment)}, expected a.b=value")]
            )
        so_far = Source(name, data, lines, frozenset(set_paths))
        try:
            dotted = _assign(so_far, dotted, _value(dotted, value))
        except TypeError as error:
            raise ConfigError([InputProblem("--set", None, dotted, str(error))]) from None
        set_paths.append(dotted)
        # what stood there in the file, and below, is no longer what counts
        lines = {at: line for at, line in lines.items() if not f"{at}.".startswith(f"{dotted}.")}
    return Source(name, data, lines, frozenset(set_paths))


def _names(message: str, path: str, field: str) -> bool:
    """Whether a message about a path names another field, in whole or as one of the path's own.

    A name without a dot is a word like any other.
    """
    own = field.removeprefix(f"{path}.") if path and field.startswith(f"{path}.") else field
    return (own != field or "." in field) and re.search(
        rf"(?<![\w.]){re.escape(own)}(?!\w|\.\w)", message
    ) is not None


def _text(path: Path) -> str:
    """The text of a file, a pipe or a device; no more of it than a configuration may have."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CHARACTERS + 1)
        if len(content) > MAX_CHARACTERS:
            raise ConfigError(
                [InputProblem(str(path), None, "", f"is too large: allowed are {MAX_CHARACTERS:,} bytes")]
            )
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([InputProblem(str(path), None, "", f"cannot be read: {reason}")]) from None


def _assign(source: Source, dotted: str, value: Any) -> str:
    """Apply one ``--set`` to a file with those before it.

    ``grid.a.b`` is the axis named a.b, and a field that is an axis is pinned to the value.
    ``grid.seed.count`` changes a range that is given as ``{from: 0, count: 3}``.
    ``mitigations.NAME.a.b`` is the setting a.b of a mitigation, and so are those of a population's members.

    Returns:
        The dotted path of what it has changed: for a part of a range that of the axis.

    Raises:
        ConfigError: What is there already is no grid.
        TypeError: It cannot be assigned.
    """
    data = source.data
    if dotted.startswith("grid."):
        axes, axis = source.grid(), dotted.removeprefix("grid.")
        whole, _, part = axis.rpartition(".")
        if part in ("from", "count") and isinstance(axes.get(whole), dict):
            axis, value = whole, {**axes[whole], part: value}
        data["grid"] = {**axes, axis: value}
        return f"grid.{axis}"
    grid = data.get("grid")
    if isinstance(grid, dict):
        grid.pop(dotted, None)
        touched = next(
            (axis for axis in grid if f"{axis}.".startswith(f"{dotted}.") or dotted.startswith(f"{axis}.")),
            None,
        )
        if touched is not None:
            raise TypeError(f"touches the same field as the axis {touched}; set grid.{touched} instead")
    parts = dotted.split(".")
    for place, (before, part) in enumerate(itertools.pairwise(parts), start=1):
        whole = ".".join(parts[:place])
        # Members and mitigations may have numbers as names.
        if part.isdigit() and (before in LISTS or isinstance(get(data, whole), list)):
            raise TypeError(f"{part} would be a place in a list, which is given whole; set {whole} instead")
    _put(data, _keys(data, dotted), value)
    return dotted


def _keys(data: Mapping[str, Any], dotted: str) -> list[str]:
    """The names of the sections on the way to a field, and its own.

    Names of mitigations and members may hold dots, as their settings do: the longest one that is there
    already is meant, else what stands before the first dot. A setting that is a section already has fields
    of its own.
    """
    section = next((name for name in SETTINGS if dotted.startswith(f"{name}.")), None)
    if section is None:
        return dotted.split(".")
    keys, field = section.split("."), dotted.removeprefix(f"{section}.")
    name = _longest(get(data, section), field) or field.partition(".")[0]
    keys, field = [*keys, name], field[len(name) + 1 :]
    if inner := SETTINGS[section]:
        if not field.startswith(f"{inner}."):  # a field of the member itself, or all settings of it
            return [*keys, *(field.split(".") if field else ())]
        keys, field = [*keys, inner], field.removeprefix(f"{inner}.")
    settings = _at(data, keys)
    known = _longest(settings, field)
    if known and known != field and isinstance(settings[known], Mapping):
        return [*keys, known, *field[len(known) + 1 :].split(".")]
    return [*keys, field] if field else keys


def _longest(names: Any, dotted: str) -> str:
    """The longest name of a section that a dotted path begins with; empty where none does."""
    known = names if isinstance(names, Mapping) else ()
    return max((name for name in known if f"{dotted}.".startswith(f"{name}.")), key=len, default="")


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Parse YAML text into plain data and the line of every path."""
    try:
        node = compose(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError(
            [InputProblem(name, line, "", f"is not valid YAML: {cut(str(error.problem or error.context))}")]
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            [InputProblem(name, None, "", f"is not valid YAML: {cut(str(error).splitlines()[0])}")]
        ) from None
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            [InputProblem(name, 1, "", "expected a mapping of fields such as 'experiment: NAME'")]
        )
    reader = Reader(name)
    return reader.read(node, ""), reader.lines


def _value(dotted: str, text: str) -> Any:
    """The value of a ``--set``, read as YAML by the same rules as a file."""
    try:
        node = compose(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(
            [InputProblem("--set", None, dotted, f"{shown(text)} is not a YAML value: {cut(problem)}")]
        ) from None
    return None if node is None else Reader("--set", in_file=False).read(node, dotted)


LISTS = ("filters", "claims", "overrides")
"""Sections that are lists."""
_FIELD = re.compile(
    r"^((?:data|learner|regime|filters|evaluate|resources|generations)(?:\.[a-z_0-9]+)*)(?::)? (.*)$",
    re.DOTALL,
)


def split_field(message: str) -> tuple[str, str]:
    """A message that begins with a dotted field, as (field, rest); the field is empty where there is none."""
    match = _FIELD.match(message)
    return (match[1], match[2]) if match else ("", message)


def get(data: Any, dotted: str) -> Any:
    """The value at a dotted path; None where it is absent."""
    return _at(data, dotted.split("."))


def _at(data: Any, keys: Iterable[str]) -> Any:
    for part in keys:
        data = data.get(part, _MISSING) if isinstance(data, Mapping) else _MISSING
    return None if data is _MISSING else data


def has(data: Any, dotted: str) -> bool:
    """Whether something is given at a dotted path, null too."""
    for part in dotted.split("."):
        if not isinstance(data, Mapping) or part not in data:
            return False
        data = data[part]
    return True


def within(dotted: str, fields: Iterable[str]) -> bool:
    """Whether a field is one of some, or lies in one."""
    return any(f"{dotted}.".startswith(f"{field}.") for field in fields)


def put(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value at a dotted path in place, making sections on the way.

    Raises:
        TypeError: Something on the way is not a section.
    """
    _put(data, dotted.split("."), value)


def _put(data: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    *sections, last = keys
    for index, part in enumerate(sections):
        inner = data.setdefault(part, {})
        if inner is None:
            inner = data[part] = {}
        if not isinstance(inner, dict):
            raise TypeError(f"{'.'.join(sections[: index + 1])} is {shown(inner)}, not a section with fields")
        data = inner
    data[last] = value


def with_values(data: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the data with values at dotted paths; only the sections on the way are copied."""
    copy = dict(data)
    for dotted, value in values.items():
        section = copy
        *sections, last = dotted.split(".")
        for index, part in enumerate(sections):
            inner = section.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                raise TypeError(
                    f"{'.'.join(sections[: index + 1])} is {shown(inner)}, not a section with fields"
                )
            section[part] = dict(inner or {})
            section = section[part]
        section[last] = value
    return copy
