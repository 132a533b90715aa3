"""What is printed: control characters are made visible, long values cut, and streams may be closed."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

MAX_SHOWN = 200
"""Characters of a value in a message; what is longer is cut in the middle."""
_LEFT_OUT = " ... ({:,} characters more) ... "
"""Stands for the middle of what is cut."""
_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode that are not printed as they are: controls, surrogates, and what breaks lines."""
_TURNS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Characters that turn the direction of what follows, so that it reads as something else."""


def visible(text: str, lines: bool = True) -> str:
    r"""Text with control characters as ``\u001b``, which is how JSON writes them too.

    A terminal obeys control characters: they clear it, overwrite what stands there, rename its window.

    Args:
        text: Any text.
        lines: Whether line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(f"\\u{ord(c):04x}" if _is_hidden(c) and not (lines and c in "\n\t") else c for c in text)


def _is_hidden(character: str) -> bool:
    return unicodedata.category(character) in _HIDDEN or character in _TURNS


def cut(text: str, most: int = MAX_SHOWN) -> str:
    """Text of at most so many characters: its beginning, how many are left out of the middle, and its end.

    Where to say how many would take more than half of the room, its beginning alone.
    """
    if len(text) <= most:
        return text
    # the number has no more digits than that of all characters, whatever room is left
    room = most - len(_LEFT_OUT.format(len(text)))
    if 2 * room < most:
        return text[:most]
    end = room // 4
    return text[: room - end] + _LEFT_OUT.format(len(text) - room) + text[-end:]


def shown(value: Any) -> str:
    """A value as it is found in a configuration, for a message."""
    try:
        return cut(visible(repr(value), lines=False))
    except ValueError:  # an integer of more digits than are ever printed
        return "a very large number"


def first_some(parts: Sequence[str], most: int) -> list[str]:
    """The first of many, and how many there are besides."""
    return [*parts[:most], *([f"and {len(parts) - most} more"] if len(parts) > most else [])]


def listed(names: Sequence[str], most: int = 3) -> str:
    """Some names for a message: the first few, and how many there are."""
    some = ", ".join(names[:most])
    return some if len(names) <= most else f"{some} and {len(names) - most} more"


def counted(number: int, one: str, many: str = "") -> str:
    """A number of things, in words: one has no s.

    Args:
        number: How many.
        one: What one of them is called.
        many: What several are called, where that is not with an s.
    """
    return f"{number} {noun(number, one, many)}"


def noun(number: int, one: str, many: str = "") -> str:
    """What so many things are called, as `counted`: for numbers that are written in a form of their own."""
    return one if number == 1 else many or f"{one}s"


def nearest(word: str, allowed: Iterable[str], alike: float = 0.6) -> str:
    """`` (did you mean 'x'?)`` or nothing: what is spelled nearly so, or is a part of it between ``_``.

    Args:
        word: What was found.
        allowed: What it may have been meant to be.
        alike: The share of characters in common, in their order, from which it is; more where any other word
            may stand.
    """
    from difflib import get_close_matches

    known = list(allowed)
    close = get_close_matches(word, known, n=1, cutoff=alike)
    close = close or [name for name in known if name and name in word.split("_")]
    return f" (did you mean {close[0]!r}?)" if close else ""


def show(text: str, stream: TextIO | None = None, end: str = "\n") -> None:
    """Print text that may hold what users or models wrote; standard output unless a stream is named.

    Where nobody reads any more (a pipe to ``head``), nothing more is written there, and the command goes on.
    """
    write(visible(text) + end, stream)


def write(text: str, stream: TextIO | None = None) -> None:
    """Write text as it is, controls of the terminal included; as `show` where nobody reads."""
    stream = stream or sys.stdout
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        _to_nowhere(stream)


def _to_nowhere(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def has_unicode(stream: TextIO) -> bool:
    """Whether a stream can show every character."""
    return (stream.encoding or "").lower().startswith("utf")


def open_streams() -> None:
    """Make the standard streams such that printing never fails.

    Closed ones lead nowhere, what cannot be encoded is escaped.

    A closed one also must not be the number of the next file that is opened, which programs that are started
    would write into.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 0 else os.O_WRONLY)  # takes the lowest free number
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
