"""Bundles: records and parameters of many cheap chains in one Parquet file, found by the chains' keys.

A file's name is the hash of its content, so writing one is a commit: a link that is there or is not. A chain
that is in two files is the same in both, up to rounding where two kinds of processors have computed it; of
files with as many of its generations the one that was finished first counts.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from harness.errors import DamagedError, StoreError
from harness.files import file_sha256, link_once, move_aside, reading

CHAINS = b"harness.chains"
PROVENANCE = b"harness.provenance"
CHAIN, GENERATION = "bundle_chain", "generation"
PARAMETERS = "parameters/"
"""Prefix of the columns that hold fitted parameters."""
FILTER_COLUMNS = {
    "made": "choices_made",
    "alike": "choices_alike",
    "read": "filters_read",
    "passed": "filters_passed",
}
"""Columns of what filters have read, passed and chosen (`harness.records.FilterCounts`)."""


@dataclass(frozen=True)
class InBundle:
    """Where a chain is, and the index of the last generation that it has there."""

    path: Path
    generations: int


class Bundles:
    """The folder ``bundles/``."""

    def __init__(self, folder: Path, mends: bool = True, trouble: dict[str, str] | None = None) -> None:
        """Keep the folder, and what a `Store` says of damage; nothing is read yet."""
        self.folder, self.mends = folder, mends
        self.trouble = {} if trouble is None else trouble
        self._metadata: dict[str, tuple[str, dict[str, int]]] = {}
        self._sound: set[str] = set()
        self._told: set[str] = set()

    def commit(self, rows: pa.Table, chains: Mapping[str, int], provenance: Mapping[str, object]) -> Path:
        """Write a bundle.

        Args:
            rows: One row per chain and generation, the chain's key in the column `CHAIN`.
            chains: Key to the index of the last generation asked for (a chain that diverged has fewer rows).
            provenance: How, where and when.
        """
        self.folder.mkdir(exist_ok=True)
        extra = {
            CHAINS: json.dumps(dict(chains), sort_keys=True).encode(),
            PROVENANCE: json.dumps(dict(provenance)).encode(),
        }
        temporary = self.folder / f".{uuid.uuid4().hex}"
        try:
            pq.write_table(
                rows.replace_schema_metadata(extra), temporary, compression="zstd", compression_level=1
            )
            target = self.folder / f"{_hash(temporary)}.parquet"
            link_once(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def names(self) -> list[str]:
        """The names of all bundles."""
        return sorted(path.name for path in self.folder.glob("*.parquet"))

    def index(self) -> dict[str, InBundle]:
        """Chain key to its bundle; the longest where there are several, of equals the first.

        A file that is no bundle holds nothing.
        """
        return self._places(self.names())

    def news(self) -> dict[str, InBundle]:
        """As `index`, of the bundles that have come since the last call."""
        names = set(self.names()) - self._told
        self._told |= names
        return self._places(names)

    def _places(self, names: Iterable[str]) -> dict[str, InBundle]:
        found: dict[str, InBundle] = {}
        known = [(*self._about(name), name) for name in names]
        for _, chains, name in sorted(
            known, key=itemgetter(0, 2)
        ):  # the first that was finished before others
            for key, generations in chains.items():
                if key not in found or found[key].generations < generations:
                    found[key] = InBundle(self.folder / name, generations)
        return found

    def _about(self, name: str) -> tuple[str, dict[str, int]]:
        """When a bundle was finished, and its chains."""
        if name not in self._metadata:
            try:
                self.check(name)
                with reading(self.folder / name):
                    found = pq.read_metadata(self.folder / name).metadata
                how = json.loads(found[PROVENANCE])
                self._metadata[name] = how.get("finished", ""), json.loads(found[CHAINS])
            except StoreError as error:
                # One that cannot be read keeps its place: whoever may read it has its chains, and nobody else
                # needs to stop for it.
                self.trouble[str(self.folder / name)] = str(error)
                if self.mends and isinstance(error, DamagedError):
                    move_aside(self.folder / name, self.folder.parent)  # its chains are computed again
                return "", {}
        return self._metadata[name]

    def check(self, name: str) -> None:
        """Compare a bundle with the hash that is its name; once per process.

        Raises:
            DamagedError: They differ, or there is no file.
            StoreError: It cannot be read.
        """
        if name in self._sound:
            return
        with reading(self.folder / name):
            found = _hash(self.folder / name)
        if found != name.removesuffix(".parquet"):
            raise DamagedError(f"bundles/{name} does not match the hash that is its name")
        self._sound.add(name)

    def provenance(self, name: str) -> dict[str, Any]:
        """How, where and when a bundle was computed."""
        found: dict[str, Any] = json.loads(pq.read_metadata(self.folder / name).metadata[PROVENANCE])
        return found

    def finished(self, places: Mapping[str, InBundle], key: str) -> float:
        """When the bundle that a chain is in was finished, in seconds of the epoch; 0 where it is in none."""
        said = self._about(places[key].path.name)[0] if key in places else ""
        return datetime.fromisoformat(said).timestamp() if said else 0.0

    def read(
        self,
        chains: Collection[str],
        places: Mapping[str, InBundle] | None = None,
        wanted: Callable[[str], bool] = lambda name: not name.startswith(PARAMETERS),
    ) -> pa.Table | None:
        """The rows of some chains, ordered by chain key and generation; None where there are none.

        Args: as `unordered`.
        """
        whole = self.unordered(chains, places, wanted)
        if whole is None:
            return None
        keys = whole[CHAIN].combine_chunks()
        rank = np.argsort(np.argsort(np.array(keys.dictionary.to_pylist())))[keys.indices.to_numpy()]
        order = np.lexsort((whole[GENERATION].to_numpy(), rank))
        columns = {name: whole[name] for name in whole.column_names}
        del whole, keys
        return pa.table(taken(columns, order))

    def unordered(
        self,
        chains: Collection[str],
        places: Mapping[str, InBundle] | None = None,
        wanted: Callable[[str], bool] = lambda name: not name.startswith(PARAMETERS),
    ) -> pa.Table | None:
        """The rows of some chains, as they lie in the files; None where there are none.

        Args:
            chains: Their keys.
            places: From `index`, where it is known.
            wanted: Which columns are read besides `CHAIN` (a dictionary) and `GENERATION`: all but the fitted
                parameters where nothing is said.
        """
        places = self.index() if places is None else places
        files: dict[Path, list[str]] = {}
        for key in chains:
            if key in places:
                files.setdefault(places[key].path, []).append(key)
        tables = []
        for path, keys in sorted(files.items()):
            names = [
                name for name in pq.read_schema(path).names if name in (CHAIN, GENERATION) or wanted(name)
            ]
            with pq.ParquetFile(path, read_dictionary=[CHAIN]) as file:
                # each thread would keep memory of its own
                table = file.read(columns=names, use_threads=False)
            there = pc.is_in(table[CHAIN], pa.array(keys))
            tables.append(table if pc.all(there).as_py() else table.filter(there))
        if not tables:
            return None
        return pa.concat_tables(
            [table.replace_schema_metadata(None) for table in tables], promote_options="default"
        ).unify_dictionaries()


def taken(columns: dict[str, pa.ChunkedArray], places: npt.NDArray[np.integer[Any]]) -> dict[str, pa.Array]:
    """The rows at some places, column by column: of a large table there is one column twice, and not all."""
    for name in columns:
        columns[name] = columns[name].combine_chunks().take(places)
        pa.default_memory_pool().release_unused()  # else as much stays as a large table takes
    return columns


def _hash(path: Path) -> str:
    return file_sha256(path)[:32]
