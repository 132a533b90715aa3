"""YAML text as plain data: what a configuration may hold, and the line of every field.

Safe for any text: its size is counted after aliases are expanded, and nothing is made but dicts, lists, text,
numbers, booleans and null. Names of fields are the text that is written, whatever it would be as a value
(``yes``, ``2026-10-05``, ``1``). A date is text. Where YAML 1.1 reads a number otherwise than people do
(``010`` is 8, ``1:30`` is 90), it has to be written in another way.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from harness.errors import ConfigError, InputProblem
from harness.terminal import shown

MAX_DEPTH = 100
"""Sections and lists within each other."""
MAX_NODES = 200_000
"""Values of a file, those behind an alias counted wherever it is used."""
MAX_CHARACTERS = 10_000_000
"""Of all values together, counted in the same way."""
MAX_DIGITS = 100
"""Characters of a number."""

_TAG = "tag:yaml.org,2002:"
_BOOLEANS = yaml.SafeLoader.bool_values
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_FLOAT = re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$", re.ASCII)


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``2e-3`` is a number; too deep a nesting ends early."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            found = f"is nested too deeply; allowed are {MAX_DEPTH} sections and lists within each other"
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=found, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
_RESOLVER = _Loader("")


def compose(text: str) -> yaml.Node | None:
    """The tree of a YAML text, aliases not expanded; None for an empty text.

    Raises:
        yaml.YAMLError: It is not YAML, or nested too deeply.
    """
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except ValueError as error:  # \\U00110000, which is no character
        raise yaml.YAMLError(str(error)) from None


class Reader:
    """Makes plain data of a tree.

    Attributes:
        lines: Dotted path to line, counted from 1; an item of a list is ``path.0``.
    """

    def __init__(self, name: str, in_file: bool = True) -> None:
        """Read a tree.

        Args:
            name: The file, or the option, for messages.
            in_file: Whether lines tell the user where a value stands.
        """
        self.name, self.in_file = name, in_file
        self.lines: dict[str, int] = {}
        self._nodes, self._characters = 0, 0
        self._open: set[int] = set()

    def read(self, node: yaml.Node, path: str) -> Any:
        """The value of a node; ``path`` is the dotted path of the field that holds it.

        Raises:
            ConfigError: It holds what no configuration may hold.
        """
        self._count(node, path)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise self._error(node, path, "refers to itself")
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != _TAG + kind:
            raise self._error(
                node, path, f"the tag {_short(node.tag)} is not allowed; give plain data without tags"
            )
        self._open.add(id(node))
        try:
            return (
                self._mapping(node, path) if isinstance(node, yaml.MappingNode) else self._items(node, path)
            )
        finally:
            self._open.discard(id(node))

    def _count(self, node: yaml.Node, path: str) -> None:
        self._nodes += 1
        self._characters += len(node.value) if isinstance(node, yaml.ScalarNode) else 0
        for found, allowed, what in (
            (self._nodes, MAX_NODES, "values"),
            (self._characters, MAX_CHARACTERS, "characters"),
        ):
            if found > allowed:
                raise self._error(
                    node, path, f"is too large: more than {allowed:,} {what} once its aliases are expanded"
                )

    def _items(self, node: yaml.Node, path: str) -> list[Any]:
        found = []
        for index, value in enumerate(node.value):
            inner = join(path, str(index))
            self.lines[inner] = value.start_mark.line + 1
            found.append(self.read(value, inner))
        return found

    def _mapping(self, node: yaml.Node, path: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, path, "a field's name must be plain text")
            self._count(key, path)
            if key.tag == f"{_TAG}merge":
                merged = {**self._merged(value, path), **merged}
                continue
            name = self._text(key, path)
            inner = join(path, name)
            if name in found:
                raise self._error(key, inner, "is given twice")
            self.lines[inner] = key.start_mark.line + 1
            found[name] = self.read(value, inner)
        return {**merged, **found}

    def _merged(self, node: yaml.Node, path: str) -> dict[str, Any]:
        """What ``<<`` brings in: a section, or several of which the first wins."""
        value = self.read(node, path)
        sections = value if isinstance(value, list) else [value]
        if not all(isinstance(section, dict) for section in sections):
            raise self._error(node, path, "<< needs a section, or a list of sections")
        return {name: inner for section in reversed(sections) for name, inner in section.items()}

    def _scalar(self, node: yaml.ScalarNode, path: str) -> Any:
        kind, text = node.tag.removeprefix(_TAG), node.value
        # A text has the tag that it resolves to; another one (`!!int abc`) asks for what it is not.
        resolved = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG if node.style else _resolved(text)
        if node.tag not in (resolved, f"{_TAG}str"):
            raise self._error(
                node, path, f"{shown(text)} has the tag {_short(node.tag)}; give plain data without tags"
            )
        if kind in ("int", "float"):
            return self._number(node, path, kind)
        if kind == "bool":
            return _BOOLEANS[text.lower()]
        return None if kind == "null" else self._text(node, path)

    def _number(self, node: yaml.ScalarNode, path: str, kind: str) -> int | float:
        text = node.value
        if len(text) > MAX_DIGITS:
            raise self._error(
                node,
                path,
                f"found {shown(text)}, a number of {len(text):,} characters; allowed are {MAX_DIGITS}",
            )
        digits = text.replace("_", "").lower()
        if ":" in text:
            raise self._error(
                node,
                path,
                f'found {text}, which YAML reads to base 60; write a plain number, or text as "{text}"',
            )
        if kind == "int" and _OCTAL.fullmatch(text):
            octal = f"found {text}, which YAML reads as octal {int(digits, 8)}"
            raise self._error(
                node, path, f'{octal}; write a number without the leading zero, or text as "{text}"'
            )
        try:
            if kind == "float":
                return float(digits.replace(".inf", "inf").replace(".nan", "nan"))
            return int(digits, 0)
        except ValueError:  # YAML 1.1 takes 0x_ for a number
            raise self._error(
                node, path, f'found {text}, a number without digits; write a number, or text as "{text}"'
            ) from None

    def _text(self, node: yaml.ScalarNode, path: str) -> str:
        """The text of a node.

        Escaped pairs of surrogates (as JSON writes them) become the character that they stand for.
        """
        try:
            text: str = node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise self._error(
                node, path, f"found {shown(node.value)}, which holds half a character"
            ) from None
        if "\0" in text:
            raise self._error(node, path, f"found {shown(text)}, which holds a character of code 0")
        return text

    def _error(self, node: yaml.Node, path: str, message: str) -> ConfigError:
        return ConfigError(
            [InputProblem(self.name, node.start_mark.line + 1 if self.in_file else None, path, message)]
        )


def _resolved(text: str) -> str:
    """The tag of a plain text, which no state of a loader changes."""
    return str(_RESOLVER.resolve(yaml.ScalarNode, text, (True, False)))  # type: ignore[no-untyped-call]


def _short(tag: str) -> str:
    return shown(str(tag).replace(_TAG, "!!"))


def join(path: str, part: str) -> str:
    """Append a part to a dotted path."""
    return f"{path}.{part}" if path else part
