"""Packs: committed evaluations of single chains, many in one Parquet file in place of a folder each.

An evaluation is committed as a folder of six small files, which stay what counts until they are packed. A
million of them are more than a file system's quota has, and six million files to open for whoever reads all.
A pack has a row for each and a column for each name of a file, byte for byte. Its own name is the hash of its
content, so writing one is a commit: a link that is there or is not. An evaluation that is in two packs, or in
a pack and a folder, is the same in both.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import DamagedError
from harness.files import CHECKSUMS, file_sha256, link_once, parse_json, reading
from harness.science import key_of

KEY = "key"
GROUP = 256
"""Rows that are read together."""
REMEMBERED = 16
"""Groups of one column that are kept in memory."""

_UNREADABLE = (OSError, pa.ArrowException, KeyError, ValueError)
"""What reading a damaged pack may raise."""
Files = Mapping[str, bytes]
"""The files of an evaluation: name to content."""


class InPack(NamedTuple):
    """Where an evaluation is: name of the pack, group of rows, row in it."""

    pack: str
    group: int
    row: int


class Packs:
    """The folder ``packs/``."""

    def __init__(
        self, folder: Path, trouble: dict[str, str], on_damage: Callable[[str], object] | None
    ) -> None:
        """Keep the folder; nothing is read yet.

        Args:
            folder: The folder.
            trouble: Path to reason, of packs of which not even the keys can be read; they are added.
            on_damage: Called with the name of such a pack, where it is not the system that does not give it.
        """
        self.folder, self.trouble, self._on_damage = folder, trouble, on_damage
        self._places: dict[str, InPack] = {}
        self._rows: dict[str, int] = {}
        self._known: set[str] = set()
        self._checked: dict[str, str] = {}
        self._looking = threading.Lock()
        self._column = lru_cache(maxsize=REMEMBERED)(self._read_column)

    def names(self) -> list[str]:
        """The names of all packs."""
        try:
            return sorted(name for name in os.listdir(self.folder) if name.endswith(".parquet"))
        except FileNotFoundError:
            return []
        except OSError as error:
            self.trouble.setdefault(str(self.folder), f"{self.folder} cannot be read: {error.strerror}")
            return []

    def keys(self) -> KeysView[str]:
        """The evaluations in all packs."""
        self._look()
        return self._places.keys()

    def place(self, key: str) -> InPack | None:
        """Where an evaluation is; None where it is in no pack."""
        if key not in self._places:
            self._look()
        return self._places.get(key)

    def _look(self) -> None:
        """Read the keys of packs that have come since the last look."""
        for name in self.names():
            with self._looking:
                if name in self._known:
                    continue
                try:
                    found = self._keys_of(name)
                except MemoryError:  # one of Arrow's errors is that too; the pack has nothing to do with it
                    raise
                except _UNREADABLE as error:
                    self.trouble[str(self.folder / name)] = f"{self.folder / name} cannot be read: {error}"
                    damaged = not isinstance(error, OSError) or error.errno is None
                else:
                    self._places |= found
                    self._rows[name] = len(found)
                    damaged = False
                self._known.add(name)
            if damaged and self._on_damage is not None:
                self._on_damage(name)

    def _keys_of(self, name: str) -> dict[str, InPack]:
        with pq.ParquetFile(self.folder / name, page_checksum_verification=True) as file:
            return {
                key: InPack(name, group, row)
                for group in range(file.num_row_groups)
                for row, key in enumerate(file.read_row_group(group, columns=[KEY])[KEY].to_pylist())
            }

    def check(self, name: str) -> None:
        """Compare a pack with the hash that is its name.

        Raises:
            DamagedError: They differ, or there is no file.
            StoreError: It cannot be read.
        """
        with reading(self.folder / name):
            found = file_sha256(self.folder / name)[:32]
        if found != name.removesuffix(".parquet"):
            raise DamagedError(f"{self.folder / name} does not match the hash that is its name")

    def damage(self, name: str) -> str:
        """What is wrong with a pack, looked for once a process; empty where nothing is.

        Raises:
            StoreError: It cannot be read.
        """
        with self._looking:
            if name not in self._checked:
                try:
                    self.check(name)
                    self._checked[name] = ""
                except DamagedError as error:
                    self._checked[name] = str(error)
            return self._checked[name]

    def trust(self, name: str) -> None:
        """Go on with a pack.

        Raises:
            DamagedError: It is damaged (`damage`).
            StoreError: It cannot be read.
        """
        if damage := self.damage(name):
            raise DamagedError(damage)

    def read(self, key: str, name: str) -> bytes:
        """A file of an evaluation.

        Raises:
            DamagedError: There is none, or it cannot be read any more.
            StoreError: It cannot be read now.
        """
        place = self.place(key)
        if place is None:
            raise DamagedError(f"evaluation {key} is in no pack of {self.folder}")
        column = self._column(place.pack, place.group, name)
        content = None if column is None else column[place.row].as_py()
        if content is None:
            raise DamagedError(f"{self.folder / place.pack} has no {name} of {key}")
        return bytes(content)

    def _read_column(self, pack: str, group: int, name: str) -> pa.ChunkedArray | None:
        path = self.folder / pack
        try:
            with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
                if name not in file.schema_arrow.names:
                    return None
                return file.read_row_group(group, columns=[name])[name]
        except MemoryError:
            raise
        except pa.ArrowException as error:
            raise DamagedError(f"{path} cannot be read: {error}") from None

    def files(self, key: str) -> dict[str, bytes]:
        """All files of an evaluation, compared with the checksums among them.

        Raises:
            DamagedError: One is missing or differs.
            StoreError: The pack cannot be read.
        """
        found = {CHECKSUMS: self.read(key, CHECKSUMS)}
        sums = parse_json(found[CHECKSUMS], f"{CHECKSUMS} of {key}")
        found |= {name: self.read(key, name) for name in sums}
        if wrong := _wrong(found, sums):
            raise DamagedError(f"{wrong} of {key} does not match its checksum")
        return found

    def bytes_each(self, key: str) -> int:
        """An evaluation's part of its pack, in bytes; 0 where it is in none."""
        place = self.place(key)
        if place is None:
            return 0
        return (self.folder / place.pack).stat().st_size // self._rows[place.pack]

    def write(self, items: Mapping[str, Files]) -> str:
        """Write a pack; returns its name.

        Args:
            items: Files of evaluations by key, those that are read one after another side by side.
        """
        names = sorted({name for files in items.values() for name in files})
        columns: dict[str, pa.Array] = {KEY: pa.array(list(items), pa.string())}
        for name in names:
            columns[name] = pa.array([files.get(name) for files in items.values()], pa.large_binary())
        self.folder.mkdir(exist_ok=True)
        temporary = self.folder / f".{uuid.uuid4().hex}"
        try:
            pq.write_table(
                pa.table(columns),
                temporary,
                row_group_size=GROUP,
                compression="zstd",
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
            )
            target = self.folder / f"{file_sha256(temporary)[:32]}.parquet"
            link_once(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target.name

    def forget(self, name: str) -> None:
        """Forget what was read of a pack that is gone."""
        with self._looking:
            self._known.discard(name)
            self._checked.pop(name, None)
            self._column.cache_clear()
            self._places = {key: place for key, place in self._places.items() if place.pack != name}

    def gone(self, key: str) -> bool:
        """Whether the pack that an evaluation was in is there no more; it is forgotten then, if not yet."""
        place = self._places.get(key)
        if place is not None and (self.folder / place.pack).exists():
            return False
        if place is not None:
            self.forget(place.pack)
        return True

    def salvaged(self, name: str) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and files of every evaluation of a pack that match their checksums, if it is damaged too.

        Raises:
            MemoryError: There is no memory to read it.
            OSError: The system does not give it; what is in it may be good.
        """
        path = self.folder / name
        with _where_damaged(), pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name != KEY]
            for group in range(file.num_row_groups):
                with _where_damaged():
                    yield from _good(file.read_row_group(group, columns=names).to_pylist())


@contextlib.contextmanager
def _where_damaged() -> Iterator[None]:
    """Pass over what a damaged pack raises, and one that is gone; let through what says nothing of it."""
    try:
        yield
    except MemoryError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):
            raise


def _good(rows: Sequence[Mapping[str, object]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    for row in rows:
        files = {name: content for name, content in row.items() if isinstance(content, bytes)}
        try:
            sums = json.loads(files[CHECKSUMS])
            whole = sums.keys() == files.keys() - {CHECKSUMS} and not _wrong(files, sums)
            key = key_of(json.loads(files["spec.json"]))  # the column may be what is damaged
        except (KeyError, ValueError, AttributeError, TypeError):
            continue
        if whole:
            yield key, files


def _wrong(files: Files, sums: Mapping[str, Mapping[str, object]]) -> str | None:
    """The first file that is not what its checksum says."""
    digests = ((name, hashlib.sha256(files[name]).hexdigest()) for name in sums)
    return next((name for name, digest in digests if digest != sums[name]["sha256"]), None)
