"""Corpora: token ids in Parquet shards that are committed one by one.

A corpus can be extended by appending.

A shard is one file, ``<start>-<stop>.parquet``, linked into place when it is complete. Example i is a
function of the corpus key and i, so shards that two processes wrote are equal where they overlap.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import DamagedError
from harness.files import link_once, move_aside, reading, write_json
from harness.records import Examples

NOTE = "note:"
"""Begins the names of columns that hold notes, one list of numbers an example."""
SCORES = "nll"
"""The column of what the model that wrote an example gave it, in nats; earlier versions kept none."""
_NAME = re.compile(r"^(\d{10})-(\d{10})\.parquet$")


Scores = npt.NDArray[np.float64]


class Corpora:
    """The corpora under a root."""

    def __init__(
        self, root: Path, work: Path, mends: bool = True, trouble: dict[str, str] | None = None
    ) -> None:
        """Keep the folders, and what a `Store` says of damage; nothing is read yet."""
        self.root, self.work, self.mends = root, work, mends
        self.trouble = {} if trouble is None else trouble

    def names(self) -> list[str]:
        """The keys of all corpora that have been begun."""
        return sorted(os.listdir(self.root)) if self.root.is_dir() else []

    def shards(self, key: str) -> list[tuple[int, int]]:
        """The committed shards of a corpus as (start, stop), in order."""
        folder = self.root / key
        if not folder.is_dir():
            return []
        matches = (_NAME.match(name) for name in os.listdir(folder))
        return sorted((int(m[1]), int(m[2])) for m in matches if m)

    def count(self, key: str) -> int:
        """How many examples there are from 0 on without a gap."""
        end = 0
        for start, stop in self.shards(key):
            if start <= end:
                end = max(end, stop)
        return end

    def create(self, key: str, spec: Mapping[str, Any]) -> None:
        """Make the folder of a corpus, with its spec."""
        folder = self.root / key
        folder.mkdir(exist_ok=True)
        if not (folder / "spec.json").exists():
            write_json(folder / "spec.json", spec)

    def append(self, key: str, start: int, examples: Examples, scores: Scores | None = None) -> None:
        """Commit one shard; one that is there already stays.

        Args:
            key: The corpus.
            start: Its first example.
            examples: Its examples.
            scores: What the model gave each of them as it wrote them, in nats. They lie beside the examples
                and are no part of what the shard says: its checksum is the same without.
        """
        name = f"{start:010d}-{start + len(examples):010d}.parquet"
        temporary = self.work / key / f"shard-{uuid.uuid4().hex[:12]}.parquet"
        temporary.parent.mkdir(exist_ok=True)
        width = examples.values.shape[1]
        flat = pa.array(np.ascontiguousarray(examples.values).reshape(-1))
        columns = {"values": pa.FixedSizeListArray.from_arrays(flat, width), "length": examples.lengths}
        for what, note in sorted(examples.notes.items()):
            flat = pa.array(np.ascontiguousarray(note, dtype=np.float32).reshape(-1))
            columns[f"{NOTE}{what}"] = pa.FixedSizeListArray.from_arrays(flat, note[0].size)
        about = {"sha256": digest(examples), "width": str(width)}
        if scores is not None:
            columns[SCORES], about[SCORES] = scores, _sum_of(scores)
        pq.write_table(pa.table(columns).replace_schema_metadata(about), temporary)
        link_once(temporary, self.root / key / name)

    def load(self, key: str, count: int, shards: Sequence[tuple[int, int]] | None = None) -> Examples:
        """The first ``count`` examples.

        Args:
            key: The corpus.
            count: How many.
            shards: From `shards`, where somebody else has looked already.

        Raises:
            DamagedError: A shard is missing or damaged; its path is in the message and it has been set aside.
        """
        found, end = [], 0
        for start, stop in self.shards(key) if shards is None else shards:
            if start > end or stop <= end or end >= count:
                continue
            found.append(self.check(key, start, stop).take(slice(end - start, None)))
            end = stop
        if end < count:
            raise DamagedError(f"corpus {key} has {end} examples, {count} are needed")
        notes = {
            name: np.concatenate([shard.notes[name] for shard in found])[:count] for name in found[0].notes
        }
        return Examples(
            np.concatenate([shard.values for shard in found])[:count],
            np.concatenate([shard.lengths for shard in found])[:count],
            notes,
        )

    def scores(self, key: str, count: int) -> Scores | None:
        """What the model gave each of the first ``count`` examples as it wrote them, in nats.

        None where that was not kept of all of them, or is damaged: then they are scored.
        """
        found, end = [], 0
        for start, stop in self.shards(key):
            if start > end or stop <= end or end >= count:
                continue
            path = self.root / key / f"{start:010d}-{stop:010d}.parquet"
            try:
                with reading(path), pq.ParquetFile(path) as file:
                    kept = file.read(columns=[SCORES])[SCORES].to_numpy()
                    if _sum_of(kept) != (file.schema_arrow.metadata or {})[SCORES.encode()].decode():
                        return None
            except pa.ArrowMemoryError as error:
                raise MemoryError(str(error)) from None
            except (DamagedError, KeyError, ValueError, AttributeError, pa.ArrowException):
                return None
            found.append(kept[end - start :])
            end = stop
        return np.concatenate(found)[:count] if found and end >= count else None

    def check(self, key: str, start: int, stop: int, set_aside: bool | None = None) -> Examples:
        """One shard, checked.

        Args:
            key: The corpus.
            start: First example.
            stop: One past the last.
            set_aside: Move the shard to ``damaged/`` where it is damaged; as the store does it when None.

        Raises:
            DamagedError: It does not match its checksum.
            StoreError: It cannot be read.
        """
        path = self.root / key / f"{start:010d}-{stop:010d}.parquet"
        try:
            with reading(path), pq.ParquetFile(path) as file:  # `read_table` takes twice as long
                table = file.read()
            width = int((table.schema.metadata or {})[b"width"])
            flat = table["values"].combine_chunks().flatten().to_numpy()
            notes = {
                name.removeprefix(NOTE): _numbers(table[name], len(table))
                for name in table.column_names
                if name.startswith(NOTE)
            }
            examples = Examples(flat.reshape(-1, width), table["length"].to_numpy().astype(np.int32), notes)
            good = (
                digest(examples) == (table.schema.metadata or {})[b"sha256"].decode()
                and len(examples) == stop - start
            )
        except pa.ArrowMemoryError as error:
            raise MemoryError(str(error)) from None
        except (DamagedError, KeyError, ValueError, AttributeError, pa.ArrowException):
            good = False
        if not good:
            if self.mends if set_aside is None else set_aside:
                move_aside(path, self.root.parent)
            else:
                self.trouble[str(path)] = f"{path} does not match its checksum"
            raise DamagedError(f"{path} does not match its checksum")
        return examples


def _sum_of(scores: Scores) -> str:
    return hashlib.sha256(np.ascontiguousarray(scores, dtype=np.float64).tobytes()).hexdigest()


def _numbers(column: Any, rows: int) -> Any:
    """A column of lists of one length as an array, shape [rows, length]."""
    return column.combine_chunks().flatten().to_numpy().reshape(rows, -1)


def digest(examples: Examples) -> str:
    """SHA-256 of examples, their lengths and notes, in hexadecimal."""
    found = hashlib.sha256(np.ascontiguousarray(examples.values).tobytes())
    found.update(np.ascontiguousarray(examples.lengths).tobytes())
    for name, note in sorted(examples.notes.items()):
        found.update(name.encode() + np.ascontiguousarray(note, dtype=np.float32).tobytes())
    return found.hexdigest()
