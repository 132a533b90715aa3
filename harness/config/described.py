"""What the fields of the configuration mean, in the words that the schema has for them."""

from __future__ import annotations

import ast
import inspect
import textwrap
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from harness.config.messages import section_classes


@dataclass(frozen=True)
class Described:
    """One field of a section.

    Attributes:
        name: Its name.
        default: Its default as plain data; None where it is required.
        required: Whether it has to be given.
        text: What it means, on one line; empty where its name says it.
        allowed: What it may hold, where that is a list of words.
        sections: The sections that it may hold.
    """

    name: str
    default: Any
    required: bool
    text: str
    allowed: tuple[str, ...]
    sections: tuple[type[BaseModel], ...]


@cache
def _texts(section: type[BaseModel]) -> dict[str, str]:
    """The strings below the fields of a class and of what it inherits from."""
    found: dict[str, str] = {}
    for kind in reversed(section.__mro__):
        if not issubclass(kind, BaseModel) or kind is BaseModel:
            continue
        try:
            source = inspect.getsource(kind)
        except (OSError, TypeError):  # a package may make its sections otherwise
            continue
        (body,) = ast.parse(textwrap.dedent(source)).body
        if not isinstance(body, ast.ClassDef):
            continue
        for above, below in zip(body.body, body.body[1:], strict=False):
            if not isinstance(above, ast.AnnAssign) or not isinstance(above.target, ast.Name):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[above.target.id] = " ".join(str(below.value.value).replace("``", "").split())
    return found


def fields(section: type[BaseModel]) -> Iterator[Described]:
    """The fields of a section, in their order."""
    texts = _texts(section)
    for name, info in section.model_fields.items():
        required = info.is_required()
        default = None if required else info.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            default = default.model_dump(mode="json")
        elif isinstance(default, tuple):
            default = list(default)
        words = tuple(str(word) for word in _words(info.annotation))
        yield Described(
            name, default, required, texts.get(name, ""), words, tuple(section_classes(info.annotation))
        )


def _words(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        yield from typing.get_args(annotation)
    else:
        for part in typing.get_args(annotation):
            yield from _words(part)


def first_line(thing: Any) -> str:
    """What a class or a function is, in the first sentence of its text."""
    return " ".join((thing.__doc__ or "").split("\n\n")[0].replace("``", "").split())
