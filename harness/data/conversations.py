"""Conversations: rows of files and of the hub, as a prompt with its completion."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.components.chat import ChatData
from harness.data.compressed import OPENERS
from harness.data.documents import SPLITS, own_sides, side_by_hash
from harness.data.hub import load_hub
from harness.data.reading import (
    ReadLimit,
    decoded,
    files_of,
    json_lines,
    open_parquet,
    parquet_columns,
    refuse_twice,
)
from harness.errors import DataError
from harness.section import HUB
from harness.terminal import shown

KINDS = (".jsonl", ".csv", ".parquet")
SUFFIXES = (*KINDS, *(f"{kind}{packed}" for kind in KINDS[:2] for packed in OPENERS))
ROLES: Mapping[str, str] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",
    "gpt": "assistant",
}
"""Roles of messages, by the names that data sets give them."""
NAMES = (("role", "content"), ("from", "value"))
"""Fields of a message."""
FIELD = "data.source"
MAX_FIELD = 2**31 - 1
"""Characters of a field of a .csv file: as many as there are."""
FileRow = tuple[str, Mapping[str, Any]]
"""Where it stands, for messages, and its fields."""


@dataclass(frozen=True)
class Conversation:
    """One row.

    Attributes:
        messages: The prompt: roles and contents, the last one the user's.
        completion: What the assistant answers.
        answer: The reference answer, where the data have one.
        where: File and row, for messages.
    """

    messages: tuple[tuple[str, str], ...]
    completion: str
    answer: str | None
    where: str

    @property
    def prompt(self) -> str:
        """The prompt as one text, by which its side is decided."""
        if len(self.messages) == 1:
            return self.messages[0][1]
        return json.dumps(self.messages, ensure_ascii=False)


def read_conversations(config: ChatData) -> tuple[dict[str, list[Conversation]], int]:
    """The conversations of each side, which share no prompt.

    Returns:
        By side; and how many a source with splits of its own has on a side before, which are left out.

    Raises:
        DataError: The source cannot be read, or a row is no conversation; says which.
    """
    if config.source.startswith(HUB):
        splits = load_hub(config.source, config.revision)
        there = own_sides(config.source, splits, config.split.own_test)
        found = {side: list(_hub(config, side, splits[side])) for side in there}
    else:
        found = {"train": [_conversation(config, *row) for row in _file_rows(config)]}
    sides: dict[str, list[Conversation]] = {side: found.get(side, []) for side in SPLITS}
    own_test = "test" in found
    if "validation" not in found:
        sides["train"] = []
        test, validation = 0 if own_test else config.split.test, config.split.validation
        for item in found["train"]:
            sides[side_by_hash(item.prompt.encode(), test, validation)].append(item)
    return _apart(sides) if own_test else (sides, 0)


def _apart(sides: dict[str, list[Conversation]]) -> tuple[dict[str, list[Conversation]], int]:
    """Without what training or validation share with the test side, or training with validation."""
    known: set[str] = set()
    left_out = 0
    for side in ("test", "validation", "train"):
        kept = [item for item in sides[side] if item.prompt not in known]
        left_out += len(sides[side]) - len(kept)
        sides[side] = kept
        known |= {item.prompt for item in kept}
    return sides, left_out


def _hub(config: ChatData, split: str, rows: Any) -> Iterator[Conversation]:
    where = f"{config.source} ({split})"
    _check_columns(config, where, rows.column_names)
    number = 0
    try:
        for row in rows.select_columns([name for name, _ in _wanted(config)]):
            number += 1
            yield _conversation(config, f"{where}, row {number}", row)
    except UnicodeDecodeError:
        raise DataError(f"{FIELD}: {where} holds text that is not UTF-8, after row {number}") from None


def _check_columns(config: ChatData, where: str, there: Sequence[str]) -> None:
    for name, field in _wanted(config):
        if name not in there:
            raise DataError(f"{field}: {where} has no column {shown(name)}; it has {', '.join(there)}")


def _wanted(config: ChatData) -> list[tuple[str, str]]:
    """The columns that are read, each with the configuration's field that names it."""
    if config.messages is not None:
        found = [(config.messages, "data.messages")]
    else:
        found = [(config.prompt, "data.prompt"), (config.completion, "data.completion")]
    return found + ([] if config.answer is None else [(config.answer, "data.answer")])


def _file_rows(config: ChatData) -> Iterator[FileRow]:
    path = Path(config.source)
    budget = ReadLimit(FIELD)
    readers: Mapping[str, Callable[[Path, str], Iterator[FileRow]]] = {
        ".jsonl": lambda file, packed: _jsonl(config, file, decoded(file, packed, FIELD, budget)),
        ".csv": lambda file, packed: _csv(config, file, decoded(file, packed, FIELD, budget)),
        ".parquet": lambda file, packed: _parquet(config, file, budget),
    }
    for file, kind, packed in files_of(path, SUFFIXES, FIELD):
        try:
            yield from readers[kind](file, packed)
        except OSError as error:
            raise DataError(f"{FIELD}: {file} cannot be read: {error.strerror or error}") from None


def _jsonl(config: ChatData, path: Path, text: str) -> Iterator[FileRow]:
    read = [name for name, _ in _wanted(config)] + [*(sum(NAMES, ()) if config.messages else ())]
    for number, row in json_lines(path, text, FIELD, read):
        if not isinstance(row, dict):
            raise DataError(f"{FIELD}: {path}:{number} is no object with fields")
        yield f"{path}:{number}", row


def _csv(config: ChatData, path: Path, text: str) -> Iterator[FileRow]:
    csv.field_size_limit(MAX_FIELD)  # of the process: what may be read is limited before
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        refuse_twice(reader.fieldnames or [], [name for name, _ in _wanted(config)], FIELD, str(path))
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        # it knows lines of whole rows: this one begins behind them
        raise DataError(f"{FIELD}: {path}:{reader.line_num + 1} is not CSV: {error}") from None


def _parquet(config: ChatData, path: Path, budget: ReadLimit) -> Iterator[FileRow]:
    file, columns = open_parquet(path, FIELD), [name for name, _ in _wanted(config)]
    _check_columns(config, str(path), file.schema_arrow.names)
    number = 0
    for found in parquet_columns(file, path, FIELD, columns, budget):
        for values in zip(*found.values(), strict=True):
            number += 1
            yield f"{path}, row {number}", dict(zip(found, values, strict=True))


def _conversation(config: ChatData, where: str, row: Mapping[str, Any]) -> Conversation:
    """A row as a conversation.

    Raises:
        DataError: It is none; says where it stands.
    """
    for name, field in _wanted(config):
        if row.get(name) is None:
            there = ", ".join(sorted(map(str, row)))
            raise DataError(f"{field}: {where} has nothing in the field {shown(name)}; it has {there}")
    answer = None
    if config.answer is not None:
        found = row[config.answer]
        number = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
        if not number and not isinstance(found, str):
            raise DataError(f"data.answer: {where} has {shown(found)}, expected text or a number")
        answer = _text(str(found), "data.answer", where)
    if config.messages is None:
        prompt = _text(row[config.prompt], "data.prompt", where)
        completion = _text(row[config.completion], "data.completion", where)
        return Conversation((("user", prompt),), completion, answer, where)
    *before, (_, completion) = _messages(row[config.messages], where)
    return Conversation(tuple(before), completion, answer, where)


def _messages(found: Any, where: str) -> list[tuple[str, str]]:
    """The messages of a conversation: a system message or none, then user and assistant in turn."""
    if not isinstance(found, list):
        raise DataError(f"data.messages: {where} has {shown(found)}, expected a list of messages")
    messages: list[tuple[str, str]] = []
    for number, item in enumerate(found, start=1):
        at = f"{where}, message {number}"
        names = next((pair for pair in NAMES if isinstance(item, dict) and set(pair) <= set(item)), None)
        if names is None:
            raise DataError(f"data.messages: {at} is {shown(item)}, expected {{role: ..., content: ...}}")
        role = ROLES.get(str(item[names[0]]))
        if role is None:
            raise DataError(
                f"data.messages: {at} has the role {shown(item[names[0]])}, allowed: {', '.join(ROLES)}"
            )
        expected = ("user", "assistant")[sum(known != "system" for known, _ in messages) % 2]
        if role != expected and not (role == "system" and not messages):
            raise DataError(
                f"data.messages: {at} is the {role}'s, expected the {expected}'s: user and assistant speak "
                "in turn, behind a system message or none"
            )
        messages.append((role, _text(item[names[1]], "data.messages", at)))
    if not messages or messages[-1][0] != "assistant":
        raise DataError(
            f"data.messages: {where} does not end with a message of the assistant, which is what is learned"
        )
    return messages


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{field}: {where} has {type(value).__name__}, expected text")
    if not value.strip():
        raise DataError(f"{field}: {where} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise DataError(f"{field}: {where} holds half a surrogate pair, which is not text")
    return value
