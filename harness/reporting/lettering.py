"""Text in figures is shown as it is: no mathematics in it, and in a font that has its characters."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import TextToPath

from harness.terminal import visible

USUAL = "DejaVu Sans"
"""Comes with matplotlib."""
LEFT_OUT = ("Last Resort", "STIX", "cm")
"""Beginnings of names of fonts that have no letters, or letters for formulas."""


def letter(figure: Figure) -> None:
    """Make every text of a figure plain, and choose fonts for it.

    A ``$`` of a user's name begins no formula. Characters that the usual font lacks come from installed
    fonts; what no font has is written as its code, for an empty box says nothing.
    """
    texts = figure.findobj(Text)
    plain = {text: visible(text.get_text()) for text in texts}
    families, missing = _fonts(frozenset("".join(plain.values())))
    for text, content in plain.items():
        shown = "".join(f"\\u{ord(c):04x}" if c in missing else c for c in content)
        if shown != text.get_text():
            text.set_text(shown)
        text.set_parse_math(False)
        if len(families) > 1:
            text.set_fontfamily(families)


def width_of(text: str, size: float) -> float:
    """Inches that a line of text takes at a font of so many points; at most, where other fonts are needed."""
    missing = _without(set(text), findfont(USUAL))
    shown = "".join(f"\\u{ord(c):04x}" if c in missing else c for c in visible(text, lines=False))
    width: float = TextToPath().get_text_width_height_descent(
        shown, FontProperties(family=USUAL, size=size), False
    )[0]
    return width / 72


def _fonts(characters: frozenset[str]) -> tuple[list[str], set[str]]:
    """The fonts that are needed, the usual one first, and the characters that none has."""
    families, missing = [USUAL], _without(characters - set("\n"), findfont(USUAL))
    if missing:
        for entry in _others():
            left = _without(missing, entry.fname)
            if left != missing:
                families, missing = [*families, entry.name], left
            if not missing:
                break
    return families, missing


def _without(characters: Iterable[str], path: str) -> set[str]:
    known = _characters(path)
    return {character for character in characters if ord(character) not in known}


@cache
def _characters(path: str) -> frozenset[int]:
    try:
        return frozenset(get_font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a file that is no font any more
        return frozenset()


def _others() -> list[FontEntry]:
    """Installed fonts, upright ones of usual weight, by name."""
    found = [
        entry
        for entry in fontManager.ttflist
        if entry.style == "normal"
        and entry.weight in (400, "normal", "regular")
        and not entry.name.startswith(LEFT_OUT)
    ]
    return sorted(found, key=lambda entry: entry.name)
