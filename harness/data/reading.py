"""Files of text.

Which of a folder are read, how each kind is read, and what is refused before it is opened as a whole.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.compressed import CHUNK, DAMAGED, OPENERS
from harness.errors import DataError, reason_of
from harness.files import refuse_pointer, refuse_special
from harness.proc import usable_memory
from harness.terminal import counted, cut, shown

BREAKS = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"
"""Characters that `str.splitlines` takes for newlines, and that are content here."""
BLANKS = "".join(
    character for character in map(chr, range(0x3001)) if character.isspace() and character not in BREAKS
)
ROWS = 1024
"""Rows of a Parquet file that are read at once: a small file can hold many long ones."""
MEMORY_SHARE = 4
"""A source may take this part of the memory that may be used; what it is made into takes the rest."""


@dataclass(frozen=True)
class Texts:
    """What files hold.

    Attributes:
        documents: Their texts, in the order of the files' names.
        files: How many files were read.
        empty: Texts that are "" or null, which are no documents.
        left_out: Files of the folder that were not read, in the order of their names.
    """

    documents: tuple[str, ...]
    files: int = 1
    empty: int = 0
    left_out: tuple[str, ...] = ()


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text: what blank lines separate; a line ends with a line feed, nothing else."""
    found: list[str] = []
    lines: list[str] = []
    for line in [*re.split("\r?\n", text), ""]:
        if line.strip(BLANKS):
            lines.append(line.rstrip(BLANKS))
        elif lines:
            found.append("\n".join(lines))
            lines = []
    return found


def read_files(path: Path, text_field: str, field: str) -> Texts:
    """The documents of a file, or of all files of a folder in the order of their names.

    Hidden files and folders are left out, and so are stores of the harness.

    Args:
        path: .txt (paragraphs), .jsonl or .parquet (one document a row), the first two also compressed; or a
            folder of them.
        text_field: Field or column that holds the text.
        field: The configuration's field, for messages.

    Raises:
        DataError: Missing, of an unknown kind, malformed, or more than memory holds; names the file and the
            line or column.
    """
    files, left_out = _named_files(path, known(), field)
    budget = ReadLimit(field)
    documents: list[str] = []
    empty = 0
    for file in files:
        for text in _texts(file, text_field, field, budget):
            if text:
                documents.append(text)
            else:
                empty += 1
    if not documents:
        found = f"{counted(len(files), 'file')}, {counted(empty, 'empty text')}"
        raise DataError(f"{field}: {path} holds no text ({found}){_named(left_out)}")
    return Texts(tuple(documents), len(files), empty, tuple(left_out))


def read_column(path: Path, name: str, field: str) -> Iterator[str | None]:
    """What a field or column of text holds, row by row, in the order in which `read_files` reads documents.

    Args:
        path: As there; .txt has no fields.
        name: The field or column.
        field: The configuration's field, for messages.

    Raises:
        DataError: As there.
    """
    files, _ = _named_files(path, known(), field)
    budget = ReadLimit(field)
    for file in files:
        if (_kind(file, known()) or ("",))[0] == ".txt":
            raise DataError(f"{field}: {file} is text without fields, and {shown(name)} is asked for")
        yield from _texts(file, name, field, budget)


def files_of(path: Path, suffixes: Sequence[str], field: str) -> list[tuple[Path, str, str]]:
    """A file, or all files of a folder in the order of their names, each with its kind and compression.

    Args:
        path: The file or folder.
        suffixes: Of files that are read; what a folder has besides is passed over.
        field: The configuration's field, for messages.

    Raises:
        DataError: There is none.
    """
    files, _ = _named_files(path, suffixes, field)
    return [(file, *(_kind(file, suffixes) or ("", ""))) for file in files]


def _named_files(path: Path, suffixes: Sequence[str], field: str) -> tuple[list[Path], list[str]]:
    """The files that a path names, and the names of those in a folder that are not read."""
    if not path.is_dir():
        if _kind(path, suffixes) is not None:
            return [path], []
        raise DataError(
            f"{field}: found {shown(str(path))}, expected a {', '.join(suffixes)} path, or a folder of such "
            "files"
        )
    if _is_store(path):
        raise DataError(f"{field}: {path} is a store of the harness, which holds what models wrote")
    files, left_out = _files(path, suffixes, field)
    if not files:
        plain = [suffix for suffix in suffixes if suffix.count(".") == 1]
        kinds = f"{', '.join(plain[:-1])} or {plain[-1]}"
        raise DataError(f"{field}: {path} holds no {kinds} file{_named(left_out)}")
    return files, left_out


def known() -> list[str]:
    """The suffixes that are read."""
    return [
        ".txt",
        ".jsonl",
        ".parquet",
        *(f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in OPENERS),
    ]


def _named(left_out: list[str]) -> str:
    return f"; not read: {', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}" if left_out else ""


def _kind(path: Path, suffixes: Sequence[str]) -> tuple[str, str] | None:
    """A file's kind and compression, by its name; None where it is not among those that are read."""
    name = Path(path.name.lower())
    packed = name.suffix if name.suffix in OPENERS else ""
    kind = Path(name.stem).suffix if packed else name.suffix
    return (kind, packed) if f"{kind}{packed}" in suffixes else None


def _is_store(folder: Path) -> bool:
    try:
        found = json.loads((folder / "format").read_bytes()[:1000])
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "harness"} <= found.keys()


def _files(folder: Path, suffixes: Sequence[str], field: str) -> tuple[list[Path], list[str]]:
    """The files of a folder that are read, and the names of those that are not.

    A link to a folder is not followed. What is called as a file that is read, and is none (a link that leads
    nowhere, a pipe), is among those that are read: who opens it says what it is.

    Raises:
        DataError: A folder in it cannot be looked into, which would hide documents.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{field}: {error.filename} cannot be read: {error.strerror}") from None

    files, left_out = [], []
    for where, folders, names in os.walk(folder, onerror=refuse):
        here = Path(where)
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_store(here / name)]
        left_out += [
            f"{(here / name).relative_to(folder)}/" for name in folders if (here / name).is_symlink()
        ]
        for name in names:
            path = here / name
            if name.startswith("."):
                continue
            if _kind(path, suffixes) is None:
                left_out.append(str(path.relative_to(folder)))
            else:
                files.append(path)
    return sorted(files), sorted(left_out)


class ReadLimit:
    """Counts what is read, and stops where memory would not hold it."""

    def __init__(self, field: str) -> None:
        """Nothing is read.

        Args:
            field: The configuration's field, for messages.
        """
        self.field, self.left = field, usable_memory() // MEMORY_SHARE
        self.limit = self.left

    def take(self, path: Path, count: int) -> None:
        """Count bytes.

        Raises:
            DataError: They are more than a part of the memory that may be used.
        """
        self.left -= count
        if self.left < 0:
            raise DataError(
                f"{self.field}: {path} would bring what is read to more than {self.limit / 2**30:,.1f} GiB, "
                "a quarter of the memory that may be used here"
            )


def _texts(file: Path, text_field: str, field: str, budget: ReadLimit) -> Iterator[str | None]:
    found = _kind(file, known())
    assert found is not None
    kind, packed = found
    try:
        if kind == ".parquet":
            yield from _read_parquet(file, text_field, field, budget)
            return
        text = decoded(file, packed, field, budget)
        yield from paragraphs(text) if kind == ".txt" else _read_jsonl(file, text, text_field, field)
    except OSError as error:
        raise DataError(f"{field}: {file} cannot be read: {error.strerror or error}") from None


def decoded(file: Path, packed: str, field: str, budget: ReadLimit) -> str:
    """A file's text, decompressed, without a byte order mark.

    Raises:
        DataError: It is no such text, or more than memory holds.
    """
    content = io.BytesIO()
    refuse_special(file, field)
    with open(file, "rb") as raw:
        refuse_pointer(file, raw.read(200), field)
        raw.seek(0)
        source = OPENERS[packed](raw) if packed else raw
        try:
            while part := source.read(CHUNK):
                budget.take(file, len(part))
                content.write(part)
        except DAMAGED as error:
            raise DataError(f"{field}: {file} cannot be decompressed: {error}") from None
    try:
        return content.getvalue().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = content.getvalue()[:2] in (b"\xff\xfe", b"\xfe\xff")
        what = "is UTF-16, not UTF-8 text" if wide else f"is not UTF-8 text at byte {error.start}"
        raise DataError(f"{field}: {file} {what}") from None


def json_lines(path: Path, text: str, field: str, read: Collection[str]) -> Iterator[tuple[int, Any]]:
    """What stands in each line that is not empty, with the line's number.

    Args:
        path: Of the file, for messages.
        text: Its text.
        field: Of the configuration, for messages.
        read: Names of fields, at any depth, that may be there once only.

    Raises:
        DataError: A line is not JSON, or has one of these fields twice.
    """
    twice = list[str]()

    def fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.extend(name for name in read if names.count(name) > 1)
        return found

    for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=fields)
        except (ValueError, RecursionError):
            raise DataError(f"{field}: {path}:{number} is not JSON") from None
        if twice:
            raise DataError(f"{field}: {path}:{number} has the field {shown(twice[0])} twice; give one")
        yield number, row


def _read_jsonl(path: Path, text: str, text_field: str, field: str) -> Iterator[str | None]:
    for number, row in json_lines(path, text, field, (text_field,)):
        if not isinstance(row, dict) or not isinstance(row.get(text_field, 0), str | None):
            has = f"; it has {cut(', '.join(row))}" if isinstance(row, dict) and text_field not in row else ""
            raise DataError(
                f"{field}: {path}:{number} has no text in the field {shown(text_field)} "
                f"(data.text_field){has}"
            )
        value = row[text_field]
        if value is not None and any("\ud800" <= character <= "\udfff" for character in value):
            raise DataError(f"{field}: {path}:{number} holds half a surrogate pair, which is not text")
        yield value


def _read_parquet(path: Path, text_field: str, field: str, budget: ReadLimit) -> Iterator[str | None]:
    import pyarrow as pa

    file = open_parquet(path, field)
    if text_field not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(
            f"{field}: {path} has no column {shown(text_field)} (data.text_field); it has {names}"
        )
    refuse_twice(file.schema_arrow.names, [text_field], field, str(path))
    kind = file.schema_arrow.field(text_field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_null,  # a column of nulls is of empty texts, as lines of them are
    )
    if not any(holds(kind) for holds in is_text):
        raise DataError(
            f"{field}: {path} has {kind} in the column {shown(text_field)} (data.text_field), not text"
        )
    for found in parquet_columns(file, path, field, [text_field], budget):
        yield from found[text_field]


def parquet_columns(
    file: Any, path: Path, field: str, columns: Sequence[str], budget: ReadLimit
) -> Iterator[dict[str, list[Any]]]:
    """Some columns of a Parquet file as Python's objects, a few rows at once.

    Args:
        file: See `open_parquet`.
        path: Its path, for messages.
        field: The configuration's field that names it, for messages.
        columns: Which, each of which it has.
        budget: Counts what is read.

    Raises:
        DataError: It has two columns of a name, is damaged, holds text that is not UTF-8, or more than memory
            holds.
    """
    import pyarrow as pa

    refuse_twice(file.schema_arrow.names, columns, field, str(path))
    check_size(file, path, field, 8, columns)
    row = 1
    try:
        for batch in file.iter_batches(batch_size=ROWS, columns=list(columns)):
            budget.take(path, batch.nbytes + 8 * batch.num_rows)
            yield {name: batch.column(name).to_pylist() for name in columns}
            row += batch.num_rows
    except UnicodeDecodeError:
        rows = f"rows {row} to {row + batch.num_rows - 1}"
        raise DataError(f"{field}: {path} holds text that is not UTF-8, in {rows}") from None
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = reason_of(error) or type(error).__name__
        raise DataError(f"{field}: {path} is damaged: {reason}") from None


def refuse_twice(there: Sequence[str], wanted: Sequence[str], field: str, where: str) -> None:
    """Refuse columns of which a file has two: nothing says which is meant.

    Args:
        there: The file's columns.
        wanted: Those that are read.
        field: The configuration's field that names it, for messages.
        where: The file, for messages.

    Raises:
        DataError: It has two.
    """
    twice = [name for name in wanted if there.count(name) > 1]
    if twice:
        raise DataError(f"{field}: {where} has several columns of the name {shown(twice[0])}; give one")


def open_parquet(path: Path, field: str) -> Any:
    """A Parquet file, of which only the footer has been read.

    Args:
        path: The file.
        field: The configuration's field that names it, for messages.

    Raises:
        DataError: It is no Parquet file, or says that it has more rows than memory holds.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    refuse_special(path, field)
    try:
        with open(path, "rb") as raw:
            refuse_pointer(path, raw.read(200), field)
    except OSError as error:
        raise DataError(f"{field}: {path} cannot be read: {error.strerror or error}") from None
    try:
        file = pq.ParquetFile(path)
        _ = file.schema_arrow.names  # which need not be text
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{field}: {path} is not Parquet: {reason_of(error)}") from None
    check_size(file, path, field, 8, ())
    return file


def check_size(file: Any, path: Path, field: str, row_bytes: int, columns: Sequence[str]) -> None:
    """Compare what a Parquet file says of itself with the memory that may be used.

    A few bytes can stand for any number of rows.

    Args:
        file: The open file.
        path: Its path, for messages.
        field: The configuration's field that names it, for messages.
        row_bytes: What a row takes in memory at least.
        columns: Those that are read, whose decompressed size counts too.

    Raises:
        DataError: It is more than a part of the memory.
    """
    about = file.metadata
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    rows = max(about.num_rows, sum(group.num_rows for group in groups))
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    size = sum(
        chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns
    )
    needed = max(rows * row_bytes, size)
    limit = usable_memory() // MEMORY_SHARE
    if needed > limit:
        raise DataError(
            f"{field}: {path} says that it has {rows} rows, which take at least {needed / 2**30:,.1f} GiB; "
            f"allowed: {limit / 2**30:,.1f} GiB, a quarter of the memory that may be used here"
        )


def load_array(path: Path, field: str) -> Any:
    """An array of a .npy file, whose header is compared with the file's size before anything is read.

    Raises:
        DataError: It is no .npy file of numbers, or holds less than its header says.
    """
    import numpy as np

    refuse_special(path, field)
    try:
        with open(path, "rb") as file:
            refuse_pointer(path, file.read(200), field)
            file.seek(0)
            version = np.lib.format.read_magic(file)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(file)
            if not dtype.itemsize or min(shape, default=1) < 0:
                raise ValueError(f"its header says {dtype} of the shape {shown(list(shape))}")
            needed, there = math.prod(shape) * dtype.itemsize + file.tell(), os.fstat(file.fileno()).st_size
        if not dtype.hasobject and needed > there:
            claim = needed if needed < 2**63 else "more than a file can have"
            raise DataError(f"{field}: {path} is truncated: {there} bytes, its header says {claim}")
        return np.load(path, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{field}: {path} cannot be read: {error.strerror or error}") from None
    except DataError:
        raise
    except Exception as error:  # numpy takes the header for Python and raises what its parser does
        reason = reason_of(error) or type(error).__name__
        raise DataError(f"{field}: {path} is no .npy file of numbers: {cut(reason)}") from None
