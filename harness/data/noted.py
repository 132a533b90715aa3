"""What is known of files and folders that a study names, kept with the study's experiment."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from harness import terminal
from harness.components import DATA, DATA_KINDS
from harness.errors import DamagedError
from harness.files import read_json, write_json
from harness.science import key_of
from harness.section import HUB
from harness.terminal import shown


class Notes:
    """What the files and folders that a study names held when it last ran.

    Where they are gone (cleared away, or left behind on another machine), what was prepared of them is in the
    store, and a note says what it is called there. It holds hashes: what else keys are of is worked out anew.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is read.

        Args:
            folder: Of the experiment's notes.
        """
        self.folder = folder
        self.recalled: dict[str, None] = {}
        self._new: dict[Path, dict[str, Any]] = {}

    def recall(self, source: str, use: str) -> dict[str, Any] | None:
        """What `remember` was given; None where it is no path, is there, or nothing sound was noted."""
        place = self._place(source, use)
        if _is_name(source) or is_there(source) or not place.exists():
            return None
        with contextlib.suppress(DamagedError, KeyError, TypeError, ValueError):
            found = dict(read_json(place)["found"])
            self.recalled[source] = None
            return found
        return None

    def remember(self, source: str, use: str, found: dict[str, Any]) -> None:
        """Keep what is known of a file or folder; nothing of what is no path."""
        if not _is_name(source):
            self._new[self._place(source, use)] = {"source": source, "use": use, "found": found}

    def write(self) -> None:
        """Write down what has been found, for the next time."""
        for place, note in self._new.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, note)

    def tell(self) -> None:
        """Say what is not there, and was taken from the store."""
        for source in self.recalled:
            what = "its content is taken from the store, as it was when this study last ran"
            terminal.show(f"{shown(source)} is not there: {what}", sys.stderr)
        self.recalled.clear()

    def _place(self, source: str, use: str) -> Path:
        return self.folder / f"{key_of({'source': source, 'use': use})}.json"


def _is_name(source: str) -> bool:
    """Whether a source is no path: of the hub, or one that comes with the harness or a package."""
    named = (name for kind in DATA_KINDS for name in DATA_KINDS[kind].sources)
    return source.startswith(HUB) or source in DATA.loaded or source in named


def is_there(path: str) -> bool:
    """Whether there is a file or folder, readable or not."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True
