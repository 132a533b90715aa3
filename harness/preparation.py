"""The real data of a study.

Read, fingerprinted and prepared once, put into the store, and read from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.components import DATA_KINDS
from harness.config.schema import Config, Data, data_kind
from harness.data.noted import Notes
from harness.data.packing import corpus_science, other_science, read_other
from harness.data.real import ExternalCorpus, Kept, PreparedData, RealData
from harness.errors import DamagedError, DataError
from harness.records import Examples
from harness.registry import named
from harness.science import DataSpec, blank, key_of
from harness.store import Store
from harness.terminal import shown


class DataOf:
    """Prepares each distinct ``data`` section once."""

    def __init__(self, store: Store, scratch: Path, notes: Notes) -> None:
        """Nothing is read.

        Args:
            store: Looked into for prepared data; not written to.
            scratch: A folder for data that the store has not.
            notes: Of the study's files.
        """
        self.store, self.scratch, self.notes = store, scratch, notes
        self.found: dict[str, PreparedData] = {}

    def get(self, config: Data) -> PreparedData:
        """The data of a section.

        Raises:
            DataError: They cannot be read, or are too few.
        """
        name = config.model_dump_json()
        if name not in self.found:
            self.found[name] = self._prepared(config)
        return self.found[name]

    def _prepared(self, config: Data) -> PreparedData:
        mark = _mark(config)
        room = _Room(self.store, self.scratch, self.notes, f"{data_kind(config)} {mark}", mark)
        kind = data_kind(config)
        found: PreparedData = named(DATA_KINDS[kind].prepare)(config, room)
        if not (isinstance(found, PreparedData) and isinstance(found.real, RealData)):
            what = found.real if isinstance(found, PreparedData) else found
            raise _no_data(kind, "prepare", what, "harness.data.real.PreparedData of harness.data.RealData")
        return replace(found, spec={**found.spec, **mark}, kept=room.kept)


@dataclass
class _Room:
    """The `harness.data.real.Room` of one section; ``mark`` is what every folder's key says of its kind."""

    store: Store
    scratch: Path
    notes: Notes
    kind: str
    mark: Mapping[str, Any]
    kept: Kept | None = None

    def gone(self, *paths: str) -> bool:
        """See `Notes.gone`."""
        return self.notes.gone(*paths)

    def recall(self, paths: Sequence[str], use: str, names: Sequence[str]) -> dict[str, Any] | None:
        """See `Notes.recall`; kinds and packages have notes of their own."""
        return self.notes.recall(paths, f"{self.kind} {use}", names)

    def remember(self, paths: Sequence[str], use: str, found: dict[str, Any]) -> None:
        """See `Notes.remember`."""
        self.notes.remember(paths, f"{self.kind} {use}", found)

    def known(self, stored: Mapping[str, Any]) -> Path | None:
        """The folder of prepared data in the store; None where it has none that is sound."""
        found = self._named(stored, self.store.root / "data")
        if not self.store.sound("data", found.key):
            return None
        self.kept = found
        return found.path

    def folder(self, stored: Mapping[str, Any], prepare: Callable[[Path], None]) -> Path:
        """Where prepared data lie: in the store, or in scratch.

        There they are prepared, if they are not there yet.
        """
        folder = self.known(stored)
        if folder is None:
            self.kept = self._named(stored, self.scratch)
            folder = self.kept.path
            if not folder.exists():
                folder.mkdir(parents=True)
                prepare(folder)
        return folder

    def _named(self, stored: Mapping[str, Any], place: Path) -> Kept:
        spec = {**stored, **self.mark}
        key = key_of(spec)
        return Kept(spec, key, place / key)


def _mark(config: Data) -> dict[str, Any]:
    """What keys say of a package's kind of data: they are nobody else's, whatever it says of them itself."""
    kind = DATA_KINDS.loaded[data_kind(config)]
    return {"added": kind.version} if kind.package else {}


class TextsOf:
    """Reads each distinct fixed corpus, and each other real text that models are scored on, once."""

    def __init__(self, store: Store, notes: Notes) -> None:
        """Nothing is read.

        Args:
            store: Looked into for texts that have been packed; not written to.
            notes: Of the study's files.
        """
        self.store, self.notes = store, notes
        self.found: dict[str, dict[str, ExternalCorpus]] = {}

    def fixed(self, config: Config, data: PreparedData) -> ExternalCorpus | None:
        """The fixed corpus of a cell, where its regime reads one.

        Raises:
            DataError: It cannot be read.
        """
        source = config.regime.writer.corpus
        if source is None:
            return None

        def packed(fingerprint: str) -> Examples | None:
            return self._packed(corpus_science(data.spec, fingerprint))

        def read() -> dict[str, ExternalCorpus]:
            return {"": data.real.external(source, packed)}

        return self._once("corpus", source, source, partial(corpus_science, data.spec), read)[""]

    def scored(self, config: Config, data: PreparedData) -> dict[str, ExternalCorpus]:
        """What a cell's models are scored on, by name: other real texts, and groups of the real text.

        Raises:
            DataError: One cannot be read.
        """
        spec, real, found = partial(other_science, data.spec), data.real, dict[str, ExternalCorpus]()
        for name, source in config.evaluate.others.items():
            read = partial(_other, real, name, source)
            found[name] = self._once("other", source, source, spec, read)[""]
        field, source = config.evaluate.groups, getattr(config.data, "source", "")
        if field is not None:
            # Files of one content may say other groups, so what is read of which file is part of the name.
            where = [getattr(config.data, place, None) for place in ("source", "revision", "text_field")]
            found |= self._once("groups", [field, *where], source, spec, partial(real.groups, field))
        return found

    def _once(
        self,
        what: str,
        name: str | Sequence[str | None],
        source: str,
        spec: Callable[[str], Mapping[str, Any]],
        read: Callable[[], dict[str, ExternalCorpus]],
    ) -> dict[str, ExternalCorpus]:
        """Texts by name, of one source: as noted where that is gone, or read."""
        which = json.dumps([what, name, spec("")], sort_keys=True)
        if which not in self.found:
            noted = self.notes.recall([source], which, ()) or {}
            found = {}
            for text, content in noted.items():
                if (examples := self._packed(spec(content))) is not None:
                    found[text] = ExternalCorpus(content, examples)
            if not found or len(found) < len(noted):
                found = read()
                hashes = {text: item.fingerprint for text, item in found.items()}
                self.notes.remember([source], which, hashes)
            self.found[which] = found
        return self.found[which]

    def _packed(self, spec: Mapping[str, Any]) -> Examples | None:
        """The blocks of a text, where the store has them."""
        key = key_of(spec)
        return read_other(self.store.path("data", key)) if self.store.sound("data", key) else None


def _other(real: RealData, name: str, source: str) -> dict[str, ExternalCorpus]:
    return {"": real.other(name, source)}


def teacher_spec(config: Data, real: RealData, changes: Mapping[str, Any]) -> DataSpec:
    """A fixed teacher as specs name it.

    Args:
        config: The section.
        real: The data that it describes.
        changes: Fields in which the teacher differs.

    Raises:
        DataError: The fields do not fit, or the truth is not known.
    """
    found = real.teacher(changes)
    return replace(found, identity={**found.identity, **_mark(config)})


def data_spec(config: Data, prepared: PreparedData) -> DataSpec:
    """Real data as specs name them: by content, with the number of examples that are trained on.

    Args:
        config: The section.
        prepared: What it was prepared to.
    """
    n = prepared.real.num_examples
    kind, section, folder = data_kind(config), config, None
    if prepared.kept is not None:
        section, folder = blank(config, *DATA_KINDS[kind].places), prepared.kept.key
    section = section.model_copy(update={"num_examples": n})
    return DataSpec(kind, section, {**prepared.spec, "num_examples": n}, folder)


def load_data(spec: DataSpec, store: Store) -> RealData:
    """The real data of a spec, from the store, checked.

    Args:
        spec: What they are.
        store: Has them, where they have a folder.

    Raises:
        DamagedError: Their folder is not there, or is damaged.
        DataError: A package's code gives something else.
    """
    folder = None if spec.folder is None else store.path("data", spec.folder)
    if spec.folder is not None and not store.sound("data", spec.folder):
        reason = store.trouble.get(str(folder), f"{folder} is missing")
        raise DamagedError(f"prepared data: {reason}; run the command again, which prepares them anew")
    real = named(DATA_KINDS[spec.kind].load)(spec.section, folder)
    if not isinstance(real, RealData):
        raise _no_data(spec.kind, "load", real, "harness.data.RealData")
    return real


def _no_data(kind: str, field: str, found: Any, expected: str) -> DataError:
    package = DATA_KINDS.loaded[kind].package
    what = f"data {kind} of the package {package}: {field}"
    return DataError(f"data.source: {what} gives {shown(found)}, expected {expected}")
