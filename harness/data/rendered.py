"""Prompts and completions in a pretrained model's tokens.

An example is a rendered prompt, filled up in front to one length, and a completion with the token that ends
it. What fills up is hidden from the model (`harness.learners.language_model.filling`), so a prompt is read as
if it stood alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from harness.components.chat import ChatData
from harness.components.tasks import TaskData
from harness.components.text import Split
from harness.config.schema import science
from harness.data.documents import SPLITS as SIDES
from harness.data.packing import pack
from harness.data.real import ExternalCorpus
from harness.data.rendering import Messages, Rendering, copy_tokenizer, read_rendering
from harness.data.task import TaskCorpus
from harness.data.text import TextCorpus
from harness.errors import DataError
from harness.files import write_json
from harness.records import Examples
from harness.terminal import shown

PROMPTS = "prompts.parquet"
OTHER_TOKENS, OTHER_BLOCKS = 128, 32
"""Of another real text that a model is scored on: tokens of a block, and blocks."""


@dataclass(frozen=True)
class Item:
    """One example before it is tokens.

    Attributes:
        messages: The prompt.
        prompt: The prompt as one text; what a task's checker is asked about.
        completion: What is learned; None where a task has no solutions.
        answer: The reference answer.
        where: Where it comes from, for messages.
        skill: As of `harness.tasks.Problem`.
        difficulty: As of `harness.tasks.Problem`.
    """

    messages: Messages
    prompt: str
    completion: str | None
    answer: str | None
    where: str
    skill: str = "all"
    difficulty: int = 1


@dataclass(frozen=True)
class Row:
    """An example as tokens."""

    item: Item
    prompt: list[int]
    completion: list[int]


def content_of(rows: Mapping[str, Sequence[Row]]) -> str:
    """A hash of every token of every example, and of what is known of it."""
    digest = hashlib.sha256()
    for side in SIDES:
        for row in rows[side]:
            item = row.item
            what = [side, row.prompt, row.completion, item.prompt, item.answer, item.skill, item.difficulty]
            digest.update(json.dumps(what).encode() + b"\n")
    return digest.hexdigest()[:32]


def rendered_science(config: ChatData | TaskData, content: str, rendering: str) -> dict[str, Any]:
    """What of the data enters keys: every token of them, and how others would be made."""
    places = ("kind", "source", "revision", "prompt", "completion", "messages", "answer", "template")
    left_out = {*places, "tokenizer", "system", "too_long", "task"}
    return {
        **{name: value for name, value in science(config).items() if name not in left_out},
        "content": content,
        "rendering": rendering,
        "lengths": [config.prompt_length, config.block_size],
    }


def in_tokens(
    config: ChatData | TaskData,
    rendering: Rendering,
    items: Mapping[str, Sequence[Item]],
    too_long: Literal["error", "drop"] | None = None,
) -> tuple[dict[str, list[Row]], int]:
    """Examples as tokens, and how many were left out because there is no room for them.

    Args:
        config: The section.
        rendering: How they become tokens.
        items: By side.
        too_long: What becomes of those for which there is no room; None where the section cannot say it.

    Raises:
        DataError: There is no room for one, or its completion holds the token that ends it.
    """
    room = {"prompt": config.prompt_length, "completion": config.block_size - config.prompt_length}
    end, dropped, first = rendering.end, 0, ""
    longest = {"prompt": 0, "completion": 0}
    found: dict[str, list[Row]] = {}
    for side, part in items.items():
        prompts = rendering.prompts(rendering.texts((item.messages, item.where) for item in part))
        completions = rendering.ids([item.completion or "" for item in part])
        found[side] = []
        for item, prompt, completion in zip(part, prompts, completions, strict=True):
            if end in completion:
                name = shown(rendering.tokenizer.convert_ids_to_tokens(end))
                field = "messages" if getattr(config, "messages", None) else "completion"
                raise DataError(f"data.{field}: {item.where} holds {name}, the token that ends a completion")
            row = Row(item, prompt, [] if item.completion is None else [*completion, end])
            sizes = {"prompt": len(row.prompt), "completion": len(row.completion)}
            longest = {what: max(longest[what], sizes[what]) for what in longest}
            over = next((what for what in room if sizes[what] > room[what]), None)
            if over is None:
                found[side].append(row)
                continue
            dropped += 1
            first = first or (
                f"data.{over}_tokens: the {over} of {item.where} takes {sizes[over]} tokens, there is room "
                f"for {room[over]}"
            )
    if dropped and too_long != "drop":
        needed = ", ".join(f"{what}_tokens {size}" for what, size in longest.items() if size > room[what])
        also = ", or too_long: drop, which leaves them out" if too_long else ""
        raise DataError(f"{first}; {dropped} are too long, allowed: at least {needed}{also}")
    empty = next((side for side in found if not found[side]), None)
    if empty is not None:
        raise DataError(f"{first}; nothing is left of the {empty} side")
    return found, dropped


def check_prompts(rows: Mapping[str, Sequence[Row]]) -> None:
    """One prompt, as it is rendered, is on one side and has one answer.

    Raises:
        DataError: It is not; names the rows.
    """
    known: dict[tuple[int, ...], tuple[str, Item]] = {}
    for side in SIDES:
        for row in rows[side]:
            other_side, other = known.setdefault(tuple(row.prompt), (side, row.item))
            both = f"{other.where} and {row.item.where}"
            if other_side != side:
                raise DataError(
                    f"data.template: {both} are one prompt as it is rendered, and on different sides "
                    f"({other_side}, {side}); the template leaves out in what they differ"
                )
            if other.answer != row.item.answer:
                raise DataError(
                    f"data.answer: {both} have the same prompt and different answers, "
                    f"{shown(other.answer)} and {shown(row.item.answer)}"
                )


def _filler(rows: Mapping[str, Sequence[Row]], end: int) -> int:
    """The token that fills prompts up: one that none begins with."""
    begun = {row.prompt[0] for part in rows.values() for row in part}
    return end if end not in begun else next(token for token in range(len(begun) + 1) if token not in begun)


def write(
    config: ChatData | TaskData, rendering: Rendering, rows: Mapping[str, Sequence[Row]], folder: Path
) -> None:
    """Write what `RenderedCorpus` reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from safetensors.numpy import save_file

    start, width, fill = config.prompt_length, config.block_size, _filler(rows, rendering.end)
    arrays: dict[str, Any] = {}
    for side in SIDES:
        values = np.zeros((len(rows[side]), width), dtype=np.int32)
        values[:, :start] = fill
        lengths = np.zeros(len(values), dtype=np.int32)
        for place, row in enumerate(rows[side]):
            values[place, start - len(row.prompt) : start] = row.prompt
            values[place, start : start + len(row.completion)] = row.completion
            lengths[place] = start + len(row.completion)
        arrays |= {side: values, f"{side}_lengths": lengths}
    written = np.concatenate([np.array(row.completion, dtype=np.int64) for row in rows["train"]])
    counts = np.bincount(written, minlength=rendering.vocab_size).astype(np.int64)
    save_file({**arrays, "counts": counts}, folder / "blocks.safetensors")
    rendering.write(folder)
    table = {
        "side": [side for side in SIDES for _ in rows[side]],
        "prompt": [row.item.prompt for side in SIDES for row in rows[side]],
        "answer": pa.array([row.item.answer for side in SIDES for row in rows[side]], pa.string()),
    }
    pq.write_table(pa.table(table), folder / PROMPTS)
    meta = {
        "bos": rendering.end
        if rendering.tokenizer.bos_token_id is None
        else rendering.tokenizer.bos_token_id,
        "eos": rendering.end,
        "fill": fill,
        "vocab_size": rendering.vocab_size,
        "prompt_tokens": start,
        "block_size": width,
        "skills": {side: [row.item.skill for row in rows[side]] for side in SIDES},
        "difficulties": {side: [row.item.difficulty for row in rows[side]] for side in SIDES},
    }
    write_json(folder / "meta.json", meta)


class RenderedCorpus(TaskCorpus):
    """Prompts and completions in tokens that are no characters; the checker is a task's."""

    other_tokens, other_blocks, other_split = OTHER_TOKENS, OTHER_BLOCKS, Split()

    def __init__(self, config: TaskData | ChatData, folder: Path) -> None:
        """Read the examples.

        Args:
            config: The section.
            folder: What `write` wrote.
        """
        import pyarrow.parquet as pq

        super().__init__(config, folder)  # type: ignore[arg-type]
        self.fill = int(self.meta["fill"])
        table = pq.read_table(folder / PROMPTS).to_pydict()
        tokens = np.concatenate([self._blocks[side][:, : self.prompt_tokens] for side in SIDES])
        known = zip(table["prompt"], table["answer"], strict=True)
        self.about: Mapping[bytes, tuple[str, str | None]] = {
            row.tobytes(): about for row, about in zip(tokens.astype(np.int32), known, strict=True)
        }
        """Prompt and reference answer, by the prompt's tokens."""

    @property
    def repeated(self) -> int:
        """Training examples whose prompt another one before them has."""
        return len(self._blocks["train"]) - len(
            np.unique(self._blocks["train"][:, : self.prompt_tokens], axis=0)
        )

    @property
    def end(self) -> int:
        """The token that ends a completion."""
        return int(self.meta["eos"])

    @cached_property
    def rendering(self) -> Rendering:
        """How other prompts become tokens."""
        return read_rendering(self.folder, self.config.system)

    def _about(self, examples: Examples) -> list[tuple[str, str | None]]:
        prompts = np.ascontiguousarray(examples.values[:, : self.prompt_tokens], dtype=np.int32)
        return [self.about[row.tobytes()] for row in prompts]

    def prompts(self, examples: Examples) -> list[str]:
        """The prompts of examples as the data have them, before they are rendered."""
        return [prompt for prompt, _ in self._about(examples)]

    def _text(self, tokens: npt.NDArray[np.integer[Any]]) -> str:
        return self.decode(tokens.tolist()).strip()

    def encode(self, text: str) -> list[int]:
        """Token ids of a user's message, rendered and filled up.

        Raises:
            DataError: It is too long, or begins with the token that fills up.
        """
        ids = self.rendering.prompts(self.rendering.texts([([("user", self._asked(text))], shown(text))]))[0]
        if len(ids) > self.prompt_tokens:
            raise DataError(
                f"evaluate.prompts: {shown(text)} takes {len(ids)} tokens, there is room for "
                f"{self.prompt_tokens} (data.prompt_tokens)"
            )
        if ids[0] == self.fill:
            raise DataError(f"evaluate.prompts: {shown(text)} begins with the token that fills prompts up")
        return [cast("int", self.fill)] * (self.prompt_tokens - len(ids)) + ids

    @property
    def rendered(self) -> RenderedCorpus:  # type: ignore[override]
        """These data, which are rendered prompts."""
        return self

    def check_prompts(self, texts: Sequence[str]) -> None:
        """Look whether there is room for the texts that every generation continues.

        Raises:
            DataError: There is not.
        """
        for text in texts:
            self.encode(text)

    def _asked(self, text: str) -> str:
        return self.config.instruction.replace("{prompt}", text)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, without what fills up in front."""
        start = 0
        while start < len(tokens) and tokens[start] == self.fill:
            start += 1
        text: str = self.tokenizer.decode([int(token) for token in tokens[start:]], skip_special_tokens=False)
        return text

    def other(self, name: str, source: str) -> ExternalCorpus:
        """The test side of a real text, in blocks of `OTHER_TOKENS`: what a model may forget.

        It is split as texts are, unless it has splits of its own.
        """
        return TextCorpus.other(self, name, source)

    def _pack(self, documents: Sequence[str]) -> npt.NDArray[np.int32]:
        end = self.rendering.tokenizer.eos_token_id
        return pack(self.tokenizer, documents, [self.end if end is None else end], OTHER_TOKENS)

    def write_tokenizer(self, folder: Path) -> bool:
        """Put the tokenizer with its template beside a model."""
        copy_tokenizer(self.folder, folder)
        return True
