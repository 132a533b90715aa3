"""A study's training examples as a data set for other people: Parquet files with a Croissant description."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness.errors import InputError
from harness.files import write_json
from harness.inspection.croissant import Table, describe
from harness.inspection.examples import COLUMNS, ExampleRows
from harness.reporting import ledger
from harness.store import Store
from harness.study import Prepared

SHARD_BYTES = 256 * 2**20
"""A file that has become as large as that is followed by another."""
GROUP_BYTES = 16 * 2**20
"""Rows that are compressed together."""
EXAMPLES, RECORDS = "data", "records"
"""Folders of what is handed on; the first as `datasets.load_dataset` looks for it."""


@contextmanager
def new_folder(target: Path, option: str) -> Iterator[Path]:
    """A folder to fill, which becomes ``target`` when it is whole.

    Raises:
        InputError: Something is there already, or it cannot be written.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{option}: {target} is there already; name a folder that is empty or new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent.resolve()))
    except OSError as error:
        raise InputError(f"{option}: {target} cannot be written: {error.strerror}") from None
    try:
        yield made
        made.chmod(0o755)
        os.replace(made, target)
    except OSError as error:
        raise InputError(f"{option}: {target} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(made, ignore_errors=True)


def hand_on(prepared: Prepared, store: Store, target: Path) -> dict[str, Any]:
    """Write every training example of what is committed of a study, with its origin.

    Args:
        prepared: The study.
        store: The store; only read.
        target: A new folder.

    Returns:
        What was written, for people: counts, and the chains that this machine computes otherwise than their
        records say.

    Raises:
        InputError: Something is there, it cannot be written, or nothing of the study is committed.
        DamagedError: Something that was trained on is missing or not the same.
    """
    records = ledger.rows(prepared, store).to_arrow()
    if not len(records):
        raise InputError("nothing of the study is committed yet; harness run computes it")
    rows = ExampleRows(prepared, store)
    with new_folder(target, "--to") as folder:
        (folder / EXAMPLES).mkdir()
        (folder / RECORDS).mkdir()
        files = _write(rows, folder)
        pq.write_table(_plain(records), folder / RECORDS / "records.parquet", compression="zstd")
        told = asdict(rows.told)
        tables = [
            Table("examples", files, rows.schema, "One example that a generation was trained on, or that a "
                  "filter dropped on the way.", COLUMNS),
            Table("records", [Path(RECORDS, "records.parquet")], _plain(records).schema,
                  "What one generation of one chain has come to; key is that of examples.", {}),
        ]  # fmt: skip
        write_json(folder / "croissant.json", _description(prepared, folder, tables, told))
        write_json(folder / "about.json", {"experiment": prepared.study.base.experiment, **told})
    return {"path": str(target), "files": len(files), **told}


def _write(rows: ExampleRows, folder: Path) -> list[Path]:
    """The rows, file by file: no more than `GROUP_BYTES` of them are in memory."""
    files, writer = list[Path](), None
    try:
        for table in _grouped(rows):
            if writer is None:
                files.append(Path(EXAMPLES, f"train-{len(files):05d}.parquet"))
                writer = pq.ParquetWriter(folder / files[-1], rows.schema, compression="zstd")
            writer.write_table(table)
            if (folder / files[-1]).stat().st_size >= SHARD_BYTES:
                writer.close()
                writer = None
    finally:
        if writer is not None:
            writer.close()
    return files


def _grouped(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables put together: one that has few rows is no row group of its own."""
    waiting, size = list[pa.Table](), 0
    for table in rows:
        waiting.append(table)
        size += table.nbytes
        if size >= GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _plain(records: pa.Table) -> pa.Table:
    """Without dictionaries, and without whole objects as values of an axis."""
    for place, column in enumerate(records.schema):
        if pa.types.is_dictionary(column.type):
            records = records.set_column(place, column.name, records[column.name].cast(pa.string()))
    return records


def _description(
    prepared: Prepared, folder: Path, tables: list[Table], told: dict[str, Any]
) -> dict[str, Any]:
    name = prepared.study.base.experiment
    sources = list(
        {str(about["source"]): None for about in (d.about for d in prepared.data) if "source" in about}
    )
    about = (
        f"Every training example of every generation of the study {name!r}: {told['trained']:,} rows, "
        f"{told['real']:,} of them real, the others written by models (harness for model collapse)."
    )
    derived = [{"@type": "prov:Entity", "prov:label": source} for source in sources]
    more: dict[str, Any] = {"datePublished": datetime.now(UTC).date().isoformat()}
    if derived:
        more["prov:wasDerivedFrom"] = derived
    return describe(folder, name, about, tables, more)
