"""The studies and tracks that come with the harness: for these nobody needs a file of his own."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from harness.errors import InputError
from harness.terminal import nearest, shown

_SENTENCE = re.compile(r"(?<!\bal)\. (?=[A-Z])")
_PLACES = (Path(__file__).parent / "studies", Path(__file__).parents[2] / "configs")
"""In an installed package, and in a checkout."""


@cache
def _files() -> dict[str, Path]:
    """All files by name, without suffix and with their folders."""
    folder = next((place for place in _PLACES if place.is_dir()), None)
    if folder is None:
        return {}
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))
    }


def studies() -> dict[str, Path]:
    """Name to file, the name without its suffix and with its folder.

    ``quickstart``, ``papers/small/kazdan_gaussian``.
    """
    return {name: path for name, path in _files().items() if not name.startswith(("models/", "tracks/"))}


def study_file(name: str, field: str) -> Path:
    """A study's file, or the one that comes with the harness where no file has that name.

    Args:
        name: A path, or a name of `studies`.
        field: What gave it, for messages.

    Raises:
        InputError: It can be no path, and there is no such study.
    """
    found = Path(name)
    if found.exists():
        return found
    known = studies()
    if name not in known and not found.suffix and len(found.parts) == 1:
        raise InputError(
            f"{field}: found {shown(name)}, which is no file, and no study of `harness list studies`"
            f"{nearest(name, known)}"
        )
    return known.get(name, found)


def tracks() -> dict[str, Path]:
    """The tracks that come with the harness, by name."""
    return {n.removeprefix("tracks/"): path for n, path in _files().items() if n.startswith("tracks/")}


def summary(path: Path) -> str:
    """What a study says of itself: the first sentence of the comment that it begins with."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words += line.lstrip("# ").split()
    return _SENTENCE.split(" ".join(words))[0].rstrip(".")
