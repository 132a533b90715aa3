"""Documents: where text comes from, before anything is split or tokenized."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sysconfig
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.components import DATA
from harness.config.schema import NOTHING_THERE, TextData
from harness.data.hub import load_hub
from harness.data.reading import known, paragraphs, read_column, read_files
from harness.errors import DataError, PluginError, reason_of
from harness.registry import named
from harness.terminal import cut, shown

SPLITS = ("train", "validation", "test")
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3"}
_HOLDS_STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


@dataclass(frozen=True)
class Documents:
    """Text in documents.

    Attributes:
        whole: Documents that are still to be split; empty where the source has splits of its own.
        splits: The source's own splits, by name; empty where there are none. Beside ``whole`` the test side.
        files: Files that were read; 0 where the source is not files.
        empty: Texts that are "" or null, which are no documents.
        left_out: Files of a folder that were not read.
    """

    whole: Sequence[str]
    splits: Mapping[str, Sequence[str]]
    files: int = 0
    empty: int = 0
    left_out: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """A hash of all text, in order, with the splits' names."""
        digest = hashlib.sha256()
        for name, documents in (("", self.whole), *self.splits.items()):
            digest.update(f"{name}:{len(documents)}\n".encode())
            for document in documents:
                content = document.encode("utf-8", "surrogatepass")
                digest.update(f"{len(content)}\n".encode() + content)
        return digest.hexdigest()[:32]

    def about(self) -> dict[str, Any]:
        """What was read, for people."""
        count = len(self.whole) + sum(map(len, self.splits.values()))
        files = {"files": self.files, "not_read": list(self.left_out)} if self.files else {}
        return {**files, "documents": count, "empty": self.empty}


def side_by_hash(content: bytes, test: float, validation: float) -> str:
    """The side of what has some content, by its hash: so nothing is on two.

    Args:
        content: All that decides it.
        test: Share of the test side.
        validation: Share of the validation side.
    """
    place = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
    return "test" if place < test else "validation" if place < test + validation else "train"


def read_documents(config: TextData) -> Documents:
    """Read the documents that ``data.source`` names.

    Raises:
        DataError: There is no such source, or it cannot be read.
    """
    return read_named(config.source, config.text_field, config.revision, own_test=config.split.own_test)


def read_named(
    source: str,
    text_field: str = "text",
    revision: str | None = None,
    field: str = "data.source",
    own_test: bool = False,
) -> Documents:
    """Read the documents of a source.

    Args:
        source: An embedded source, ``hf:NAME[/CONFIG]`` or a path.
        text_field: Field or column that holds the text.
        revision: Revision of hub data; None for the newest.
        field: The configuration's field that names the source, for messages.
        own_test: See `Split.own_test`.

    Raises:
        DataError: There is no such source, or it cannot be read.
    """
    if source in DATA.loaded:
        return Documents(named_documents(source, field), {})
    if source in DATA.broken:
        raise DataError(f"{field}: found {shown(source)}; {cut(DATA.broken[source])}")
    try:
        if source.startswith("hf:"):
            return _hub(source, text_field, revision, own_test)
    except DataError as error:
        raise DataError(str(error).replace("data.source:", f"{field}:", 1)) from None
    path = Path(source)
    if not path.is_dir() and not source.lower().endswith(tuple(known())):
        allowed = f"{', '.join(DATA)}, hf:NAME, a {', '.join(known())} path, or a folder of such files"
        nothing = "" if path.exists() else f"; {NOTHING_THERE}"
        raise DataError(f"{field}: found {shown(source)}, allowed: {allowed}{nothing}")
    found = read_files(path, text_field, field)
    return Documents(found.documents, {}, found.files, found.empty, found.left_out)


def read_groups(config: TextData, group_field: str) -> dict[str, list[tuple[str, str]]]:
    """The documents of a source with the names of their groups.

    Args:
        config: The section.
        group_field: Field or column of .jsonl, .parquet or hub data that holds the name of a group, a text.

    Returns:
        Pairs of a document and its group's name ("" where it has none), by the source's own split; those that
        are still to be split under "".

    Raises:
        DataError: There is no such field, or it is no text.
    """
    source = config.source
    if source in DATA or source.lower().endswith(".txt"):
        raise DataError(
            f"evaluate.groups: found {shown(group_field)}, and {source} is text without fields; allowed: "
            ".jsonl, .parquet or hub data"
        )
    try:
        if not source.startswith("hf:"):
            columns = [
                list(read_column(Path(source), name, "data.source"))
                for name in (config.text_field, group_field)
            ]
            return {"": _pairs(*columns)}
        loaded = load_hub(source, config.revision)
        for rows in loaded.values():
            _check_column(source, rows, group_field)
        found = {
            str(split): _pairs(rows[config.text_field], rows[group_field]) for split, rows in loaded.items()
        }
    except DataError as error:
        message = str(error)
        if f"{shown(group_field)} (data.text_field)" in message and group_field != config.text_field:
            message = message.replace("data.source:", "evaluate.groups:", 1).replace(
                " (data.text_field)", "", 1
            )
        raise DataError(message) from None
    sides = own_sides(source, found, config.split.own_test)
    return {"" if side == "train" and "validation" not in sides else side: found[side] for side in sides}


def _pairs(texts: Sequence[str | None], groups: Sequence[str | None]) -> list[tuple[str, str]]:
    return [(text, group or "") for text, group in zip(texts, groups, strict=True) if text]


def named_documents(source: str, field: str = "data.source") -> tuple[str, ...]:
    """The documents of a source that is known by its name.

    Raises:
        DataError: The package that gives them fails, or gives something else than texts.
    """
    try:
        return _named_documents(source)
    except PluginError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        package = DATA.loaded[source].package
        if not package:
            raise
        reason = reason_of(error)
        raise DataError(
            f"{field}: {shown(source)} of {package} cannot be read ({type(error).__name__}: {cut(reason)})"
        ) from None


@cache
def _named_documents(source: str) -> tuple[str, ...]:
    """The same; kept, since several cells and fields may read them."""
    documents = tuple(named(DATA[source].read)())
    odd = next((text for text in documents if not isinstance(text, str)), None)
    if odd is not None:
        raise TypeError(f"gives {type(odd).__name__}, not text")
    return tuple(text for text in documents if text)


def python_docs() -> Iterator[str]:
    """The documentation that every Python carries (0.5 MB)."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from paragraphs(topics[name])


def python_stdlib() -> Iterator[str]:
    """The docstrings of Python's standard library (1.6 MB)."""
    files = list[Path]()
    for folder, inside, names in os.walk(sysconfig.get_paths()["stdlib"]):
        inside[:] = set(inside) - _NOT_LIBRARY  # packages that are installed there may be many
        files += (Path(folder, name) for name in names if name.endswith(".py"))
    for path in sorted(files):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in _statements(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False)
                if text and inspect.cleandoc(text):
                    yield inspect.cleandoc(text)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes of `ast.walk`, in its order, but for expressions: they are most, and have no docstrings."""
    found = deque[ast.AST]([tree])
    while found:
        node = found.popleft()
        yield node
        for name in node._fields:
            inside = getattr(node, name)
            if isinstance(inside, list) and inside and isinstance(inside[0], _HOLDS_STATEMENTS):
                found.extend(inside)


def _check_column(source: str, rows: Any, name: str) -> list[str | None]:
    """A column of hub data, which holds text.

    Raises:
        DataError: There is none, or it holds something else.
    """
    if name not in rows.column_names:
        raise DataError(
            f"data.source: {source} has no column {shown(name)} (data.text_field); it has "
            f"{', '.join(rows.column_names)}"
        )
    try:
        texts = list(rows[name])
    except UnicodeDecodeError:
        raise DataError(
            f"data.source: {source} holds text that is not UTF-8 in the column {shown(name)} "
            "(data.text_field)"
        ) from None
    odd = next((text for text in texts if not isinstance(text, str | None)), None)
    if odd is not None:
        raise DataError(
            f"data.source: {source} has {type(odd).__name__} in the column {shown(name)} (data.text_field), "
            "not text"
        )
    return texts


def own_sides(source: str, splits: Collection[str], own_test: bool) -> tuple[str, ...]:
    """Which of the splits of hub data are sides; with all three `SPLITS` nothing is left to be split.

    Raises:
        DataError: There is no split ``train``, or no split ``test`` where that is to be the test side.
    """
    sides = SPLITS if all(side in splits for side in SPLITS) else ("train", "test")[: 1 + own_test]
    for side in sides:
        if side not in splits:
            field = "data.split.own_test" if side == "test" else "data.source"
            raise DataError(f"{field}: {source} has no split {side!r}; it has {', '.join(splits)}")
    return sides


def _hub(source: str, text_field: str, revision: str | None, own_test: bool) -> Documents:
    loaded = load_hub(source, revision)
    splits: dict[str, tuple[str, ...]] = {}
    empty = 0
    for split, rows in loaded.items():
        texts = _check_column(source, rows, text_field)
        splits[str(split)] = tuple(text for text in texts if text)
        empty += len(texts) - len(splits[str(split)])
    found = {side: splits[side] for side in own_sides(source, splits, own_test)}
    whole = () if "validation" in found else found.pop("train")
    return Documents(whole, found, empty=empty)
