"""What is known of files and folders that a study names, kept with the study's experiment."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from harness import terminal
from harness.components import DATA, DATA_KINDS
from harness.config.asking import placed
from harness.config.grid import Study, expand
from harness.config.schema.run import NAME
from harness.config.source import Source
from harness.errors import DamagedError, DataError
from harness.files import read_json, write_json
from harness.registry.earlier import naming_packages
from harness.science import key_of
from harness.section import HUB
from harness.terminal import shown

VERSION = 1
"""Of what notes hold; others are none."""


@dataclass(frozen=True)
class _Note:
    """What files held: their paths then, on which host and when, and what was found."""

    paths: list[str]
    host: str
    time: float
    found: dict[str, Any]


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
        self._recalled: dict[tuple[str, ...], _Note] = {}
        self._new: dict[Path, dict[str, Any]] = {}

    def gone(self, *paths: str) -> bool:
        """Whether none of some files and folders is there, and something has been noted of them together."""
        if any(map(_is_name, paths)) or any(map(_is_there, paths)):
            return False
        return self._place(paths).is_dir()

    def recall(self, paths: Sequence[str], use: str, names: Sequence[str]) -> dict[str, Any] | None:
        """What `remember` was given; None where a file is there, or what they held is not certain.

        What was found in the same place counts; where they have only been elsewhere (on another machine, in
        another folder), what was found there, if it was everywhere the same.

        Args:
            paths: Files and folders that are read together.
            use: All else that decides what is read of them.
            names: What has to be known.
        """
        if not self.gone(*paths):
            return None
        every = list(self._notes(paths, use, names))
        here = [note for note in every if note.paths == list(map(os.path.abspath, paths))] or every
        if not here or any(note.found != here[0].found for note in here):
            return None
        found = max(here, key=lambda note: note.time)
        self._recalled[tuple(paths)] = found
        return found.found

    def remember(self, paths: Sequence[str], use: str, found: dict[str, Any]) -> None:
        """Keep what is known of files and folders; nothing of what is no path."""
        if any(map(_is_name, paths)):
            return
        where = {"paths": list(map(os.path.abspath, paths)), "host": socket.gethostname()}
        name = key_of({"use": use, **where})
        said = {"version": VERSION, "use": use, **where, "time": time.time(), "found": found}
        self._new[self._place(paths) / f"{name}.json"] = said

    def write(self) -> None:
        """Write down what has been found, for the next time."""
        for place, note in self._new.items():
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, note)

    def tell(self) -> None:
        """Say what is not there, and was taken from the store."""
        for paths, note in self._recalled.items():
            what, where = (" and ".join(map(shown, names)) for names in (paths, note.paths))
            here = note.paths == list(map(os.path.abspath, paths)) and note.host == socket.gethostname()
            read = time.strftime("as this study read it on %Y-%m-%d %H:%M", time.localtime(note.time))
            read += "" if here else f" at {where} on {note.host}"
            terminal.show(f"{what} is not there: taken from the store, {read}", sys.stderr)
        self._recalled.clear()

    def _place(self, paths: Sequence[str]) -> Path:
        return self.folder / key_of({"paths": list(map(os.path.normpath, paths))})

    def _notes(self, paths: Sequence[str], use: str, names: Sequence[str]) -> Iterator[_Note]:
        for path in self._place(paths).glob("*.json"):
            with contextlib.suppress(DamagedError, KeyError, TypeError):
                said = read_json(path)
                if said["version"] == VERSION and said["use"] == use and said["found"].keys() >= set(names):
                    yield _Note(said["paths"], said["host"], said["time"], said["found"])


def held(root: Path, experiment: Any) -> Callable[[str], bool]:
    """What says whether a name is that of a file or folder that is gone, and a store knows what it held.

    Args:
        root: The store.
        experiment: The study's name as its file has it, whatever that is.
    """
    return Notes(notes_of(root, experiment)).gone if _may_be_named(experiment) else lambda name: False


def expanded(source: Source, root: Path) -> Study:
    """The cells of a study (`harness.config.grid.expand`).

    The store is asked what it knows of files that are gone, and of packages that are.

    Args:
        source: The study's file.
        root: The store.
    """
    experiment = source.data.get("experiment")
    folder = notes_of(root, experiment).parent if _may_be_named(experiment) else None
    try:
        with naming_packages(folder), placed(source):
            return expand(source, held(root, experiment))
    except DataError as error:  # of a package's rule, which is asked what a regime reads
        raise source.located(error) from None


def _may_be_named(experiment: Any) -> TypeGuard[str]:
    """Whether a study may have a name; another one is refused later, with why."""
    return isinstance(experiment, str) and re.match(NAME, experiment) is not None


def notes_of(root: Path, experiment: str) -> Path:
    """The folder of an experiment's notes, in the one that `harness.store.Experiment` has."""
    return root.absolute() / "experiments" / experiment / "sources"


def _is_name(source: str) -> bool:
    """Whether a source is no path: of the hub, or one that comes with the harness or a package."""
    named = (name for kind in DATA_KINDS for name in DATA_KINDS[kind].sources)
    return source.startswith(HUB) or source in DATA.loaded or source in named


def _is_there(path: str) -> bool:
    """Whether there is a file or folder, readable or not."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True
