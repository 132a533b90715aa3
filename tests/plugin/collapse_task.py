"""The task of this package: turn a word round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.streams import stream
from harness.tasks import Problem

LETTERS = "abcd"


def problems(section: Any) -> Iterator[Problem]:
    """Words of ``length`` letters, as long as there are any."""
    for number in range(len(LETTERS) ** section.length * 4):
        draw = stream(0, 0, "turned", number)
        word = "".join(LETTERS[int(letter)] for letter in draw.integers(len(LETTERS), size=section.length))
        yield Problem(f"{word}<", word[::-1], difficulty=section.length)


def check(section: Any, prompt: str, completion: str) -> bool:
    """Whether it is the word from behind."""
    return completion == prompt[-2::-1]


def alphabet(section: Any) -> str:
    """What words and prompts are written in."""
    return f"{LETTERS}<"
