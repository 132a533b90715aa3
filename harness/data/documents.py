"""Documents: where text comes from, before anything is split or tokenized."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.config.schema import TextData
from harness.data.hub import load_hub
from harness.errors import DataError

SPLITS = ("train", "validation", "test")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3"}


@dataclass(frozen=True)
class Documents:
    """Text in documents.

    Attributes:
        whole: Documents that are still to be split; empty where the source has splits of its own.
        splits: The source's own splits, by name; empty where there are none.
    """

    whole: Sequence[str]
    splits: Mapping[str, Sequence[str]]

    def fingerprint(self) -> str:
        """A hash of all text, in order, with the splits' names."""
        digest = hashlib.sha256()
        for name, documents in (("", self.whole), *self.splits.items()):
            digest.update(f"{name}:{len(documents)}\n".encode())
            for document in documents:
                content = document.encode("utf-8", "surrogatepass")
                digest.update(f"{len(content)}\n".encode() + content)
        return digest.hexdigest()[:32]


def read_documents(config: TextData) -> Documents:
    """Read the documents that ``data.source`` names.

    Raises:
        DataError: There is no such source, or it cannot be read.
    """
    return read_named(config.source, config.text_field, config.revision)


def read_named(source: str, text_field: str = "text", revision: str | None = None, field: str = "data.source") -> Documents:
    """Read the documents of a source.

    Args:
        source: An embedded source, ``hf:NAME[/CONFIG]`` or a path.
        text_field: Field or column that holds the text.
        revision: Revision of hub data; None for the newest.
        field: The configuration's field that names the source, for messages.

    Raises:
        DataError: There is no such source, or it cannot be read.
    """
    if source in BUILT_IN:
        return Documents(built_in(source), {})
    try:
        if source.startswith("hf:"):
            return _hub(source, text_field, revision)
        return Documents(tuple(read_path(Path(source), text_field, field)), {})
    except DataError as error:
        raise DataError(str(error).replace("data.source:", f"{field}:", 1)) from None


@cache
def built_in(source: str) -> tuple[str, ...]:
    """The documents of an embedded source; kept, since a gang may need them in every generation."""
    return tuple(BUILT_IN[source]())


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text: what blank lines separate."""
    found, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line.rstrip())
        elif lines:
            found.append("\n".join(lines))
            lines = []
    return found


def _python_docs() -> Iterator[str]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from paragraphs(topics[name])


def _python_stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        if _NOT_LIBRARY.intersection(path.relative_to(root).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text and inspect.cleandoc(text):
                    yield inspect.cleandoc(text)


BUILT_IN: Mapping[str, Callable[[], Iterator[str]]] = {"python-docs": _python_docs, "python-stdlib": _python_stdlib}
"""Text that every Python carries; it differs between Python's versions, and so do the keys."""


def read_path(path: Path, text_field: str, field: str) -> Iterator[str]:
    """Documents of a file, or of all files of a folder in the order of their names.

    Args:
        path: .txt (paragraphs), .jsonl or .parquet (one document a row), or a folder of them.
        text_field: Field or column that holds the text.
        field: The configuration's field, for messages.

    Raises:
        DataError: Missing, of an unknown kind, or malformed; names the file and the line or column.
    """
    readers = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.is_dir():
        files = sorted(found for found in path.rglob("*") if found.suffix in readers)
        if not files:
            raise DataError(f"{field}: {path} holds no .txt, .jsonl or .parquet file")
    elif path.suffix in readers:
        files = [path]
    else:
        known = ", ".join(BUILT_IN)
        raise DataError(f"{field}: found {str(path)!r}, allowed: {known}, hf:NAME, or a .txt, .jsonl or .parquet path or folder")
    for file in files:
        try:
            yield from readers[file.suffix](file, text_field)
        except OSError as error:
            raise DataError(f"{field}: {file} cannot be read: {error.strerror or error}") from None
        except UnicodeDecodeError as error:
            raise DataError(f"{field}: {file} is not UTF-8 text at byte {error.start}") from None


def _read_txt(path: Path, _: str) -> Iterator[str]:
    yield from paragraphs(path.read_text(encoding="utf-8"))


def _read_jsonl(path: Path, text_field: str) -> Iterator[str]:
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise DataError(f"data.source: {path}:{number} is not JSON") from None
            if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
                raise DataError(f"data.source: {path}:{number} has no text in the field {text_field!r} (data.text_field)")
            if any("\ud800" <= character <= "\udfff" for character in row[text_field]):
                raise DataError(f"data.source: {path}:{number} holds half a surrogate pair, which is not text")
            yield row[text_field]


def _read_parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"data.source: {path} is not Parquet: {error}") from None
    if text_field not in file.schema_arrow.names:
        names = ", ".join(file.schema_arrow.names)
        raise DataError(f"data.source: {path} has no column {text_field!r} (data.text_field); it has {names}")
    kind = file.schema_arrow.field(text_field).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"data.source: {path} has {kind} in the column {text_field!r} (data.text_field), not text")
    try:
        for batch in file.iter_batches(columns=[text_field]):
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"data.source: {path} is damaged: {str(error).splitlines()[0]}") from None


def _hub(source: str, text_field: str, revision: str | None) -> Documents:
    loaded = load_hub(source, revision)
    splits: dict[str, tuple[str, ...]] = {}
    for split, rows in loaded.items():
        if text_field not in rows.column_names:
            raise DataError(
                f"data.source: {source} has no column {text_field!r} (data.text_field); it has {', '.join(rows.column_names)}"
            )
        splits[str(split)] = tuple(text for text in rows[text_field] if text)
    if all(split in splits for split in SPLITS):
        return Documents((), {split: splits[split] for split in SPLITS})
    if "train" not in splits:
        raise DataError(f"data.source: {source} has no split 'train'; it has {', '.join(splits)}")
    return Documents(splits["train"], {})
