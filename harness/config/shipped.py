"""The studies that come with the harness: ``harness run quickstart`` needs no file of one's own."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_SENTENCE = re.compile(r"(?<!\bal)\. (?=[A-Z])")
_PLACES = (Path(__file__).parent / "studies", Path(__file__).parents[2] / "configs")
"""In an installed package, and in a checkout."""


@cache
def studies() -> dict[str, Path]:
    """Name to file, the name without its suffix and with its folder.

    ``quickstart``, ``papers/small/kazdan_gaussian``.
    """
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        return {}
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
    }
    return {name: path for name, path in found.items() if not name.startswith("models/")}


def summary(path: Path) -> str:
    """What a study says of itself: the first sentence of the comment that it begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.lstrip("# ").split()
    return _SENTENCE.split(" ".join(words))[0].rstrip(".")
