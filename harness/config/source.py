"""A YAML file with the line of every field, and the dotted paths that ``--set`` and ``grid`` use."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError, Problem

_MISSING = object()


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``2e-3`` is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


@dataclass(frozen=True)
class Source:
    """The content of a configuration file, and where each field stands.

    Attributes:
        name: The file, for messages.
        data: The content as plain data.
        lines: Dotted path to line, counted from 1; an item of a list is ``path.0``.
        set_paths: Paths that came from ``--set``.
    """

    name: str
    data: dict[str, Any]
    lines: Mapping[str, int]
    set_paths: frozenset[str] = field(default_factory=frozenset)

    def problem(self, path: str, message: str) -> Problem:
        """A problem at a field: at its line, or at the line of the nearest enclosing section."""
        probe = path
        while probe:
            if probe in self.set_paths:
                return Problem("--set", None, path, message)
            if probe in self.lines:
                return Problem(self.name, self.lines[probe], path, message)
            probe = probe.rpartition(".")[0]
        return Problem(self.name, None, path, message)

    def located(self, error: Exception) -> ConfigError:
        """An error whose message begins with a field, at that field's line."""
        path, message = split_field(str(error))
        return ConfigError([self.problem(path, message)])

    def is_set(self, name: str) -> bool:
        """Whether ``--set`` has given a field its value, or an axis its values, or a section that the field is in."""
        parts = name.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
        return not self.set_paths.isdisjoint(above | {f"grid.{part}" for part in above})

    def error(self, path: str, message: str) -> ConfigError:
        """A `ConfigError` with one problem."""
        return ConfigError([self.problem(path, message)])


def read_source(path: Path, assignments: Sequence[str] = ()) -> Source:
    """Read a YAML file and apply ``--set`` assignments.

    Args:
        path: The file.
        assignments: Items ``a.b=c``; the value is read as YAML.

    Raises:
        ConfigError: The file is unreadable, not YAML, not a mapping, or has a key twice; or an assignment is malformed.
    """
    name = str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([Problem(name, None, "", f"cannot be read: {reason}")]) from None
    data, lines = parse(text, name)
    set_paths = []
    for assignment in assignments:
        dotted, separator, value = assignment.partition("=")
        if not separator or not all(dotted.split(".")):
            raise ConfigError([Problem("--set", None, "", f"found {assignment!r}, expected a.b=value")])
        try:
            _assign(data, dotted, yaml.load(value, Loader=_Loader))
        except yaml.YAMLError:
            raise ConfigError([Problem("--set", None, dotted, f"{value!r} is not a YAML value")]) from None
        except TypeError as error:
            raise ConfigError([Problem("--set", None, dotted, str(error))]) from None
        set_paths.append(dotted)
    return Source(name, data, lines, frozenset(set_paths))


def _assign(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Apply one ``--set``: ``grid.a.b`` is the axis named a.b, and a field that is an axis is pinned to the value."""
    if dotted.startswith("grid."):
        data["grid"] = {**(data.get("grid") or {}), dotted.removeprefix("grid."): value}
        return
    grid = data.get("grid")
    if isinstance(grid, dict):
        grid.pop(dotted, None)
        touched = next((axis for axis in grid if f"{axis}.".startswith(f"{dotted}.") or dotted.startswith(f"{axis}.")), None)
        if touched is not None:
            raise TypeError(f"touches the same field as the axis {touched}; set grid.{touched} instead")
    put(data, dotted, value)


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Parse YAML text into plain data and the line of every path."""
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ConfigError([Problem(name, 1, "", "expected a mapping of fields such as 'experiment: NAME'")])
        _walk(node, "", lines, name)
        data = loader.construct_document(node)
    except RecursionError:
        raise ConfigError([Problem(name, None, "", "refers to itself")]) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        raise ConfigError([Problem(name, line, "", f"is not valid YAML: {error.problem or error.context}")]) from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise ConfigError([Problem(name, None, "", f"is not valid YAML: {first}")]) from None
    except ValueError as error:
        raise ConfigError([Problem(name, None, "", f"holds a value that cannot be read: {error}")]) from None
    return data, lines


def _walk(node: yaml.Node, path: str, lines: dict[str, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError([Problem(name, line, path, "a field's name must be plain text")])
            if key.value in seen:
                raise ConfigError([Problem(name, line, join(path, key.value), "is given twice")])
            seen.add(key.value)
            lines[join(path, key.value)] = line
            _walk(value, join(path, key.value), lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[join(path, str(index))] = value.start_mark.line + 1
            _walk(value, join(path, str(index)), lines, name)


_FIELD = re.compile(r"^((?:data|learner|regime|filters|evaluate|resources|generations)(?:\.[a-z_0-9]+)*)(?::)? (.*)$", re.DOTALL)


def split_field(message: str) -> tuple[str, str]:
    """A message that begins with a dotted field, as (field, rest); the field is empty where there is none."""
    match = _FIELD.match(message)
    return (match[1], match[2]) if match else ("", message)


def join(path: str, part: str) -> str:
    """Append a part to a dotted path."""
    return f"{path}.{part}" if path else part


def get(data: Any, dotted: str) -> Any:
    """The value at a dotted path; None where it is absent."""
    for part in dotted.split("."):
        data = data.get(part, _MISSING) if isinstance(data, Mapping) else _MISSING
    return None if data is _MISSING else data


def put(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set the value at a dotted path in place, making sections on the way.

    Raises:
        TypeError: Something on the way is not a section.
    """
    *sections, last = dotted.split(".")
    for index, part in enumerate(sections):
        inner = data.setdefault(part, {})
        if inner is None:
            inner = data[part] = {}
        if not isinstance(inner, dict):
            raise TypeError(f"{'.'.join(sections[: index + 1])} is {inner!r}, not a section with fields")
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
                raise TypeError(f"{'.'.join(sections[: index + 1])} is {inner!r}, not a section with fields")
            section[part] = dict(inner or {})
            section = section[part]
        section[last] = value
    return copy
