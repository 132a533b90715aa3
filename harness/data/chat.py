"""Chats from files and the hub, and tasks as chats, in a pretrained model's tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.chat import ChatData
from harness.components.tasks import TASKS, TaskData
from harness.components.text import BpeTokenizer
from harness.config.schema import science
from harness.data.conversations import Conversation, read_conversations
from harness.data.documents import SPLITS as SIDES
from harness.data.real import PreparedData, Room
from harness.data.remembered import recall, remember
from harness.data.rendered import (
    Item,
    RenderedCorpus,
    Row,
    check_prompts,
    content_of,
    in_tokens,
    rendered_science,
    write,
)
from harness.data.rendering import Rendering, make_rendering
from harness.data.task import NOT_STORED, collect, stored
from harness.errors import DataError
from harness.records import Examples
from harness.section import HUB
from harness.streams import stream
from harness.tasks import Problem, Verdict
from harness.tasks.reference import Reference
from harness.terminal import shown

VERSION = 1
"""Version of reading, splitting, rendering and filling up, and of how other texts are cut; part of every
key."""


def prepared(config: ChatData, room: Room) -> PreparedData:
    """Read chats and write them as tokens; what those of the hub came to is remembered by their revision.

    Raises:
        DataError: They cannot be read or rendered, or there is no room for one.
    """
    # What is wrong with a template is told of the row that it cannot write, so files are read first.
    apart = config.source.startswith(HUB) or room.gone(config.source)
    use = _use(config, None) if apart else None
    noted = None if use is None else recall(config.source, config.revision, use)
    needed = ["fingerprint", "rendering", "about"]
    known = noted or (None if use is None else room.recall([config.source], use, needed))
    if known is not None:
        spec = _spec(config, known["fingerprint"], known["rendering"])
        kept = room.known(stored(spec))
        if kept is not None:  # so nothing of it has to be read
            return PreparedData(spec, ChatCorpus(config, kept), {"source": config.source, **known["about"]})
    sides, shared = read_conversations(config)
    items = {side: [_item(found) for found in sides[side]] for side in SIDES}
    for side in SIDES:
        if not items[side]:
            raise DataError(
                f"data.source: the {side} side is empty, of {sum(map(len, items.values()))} prompts; give "
                "more different ones, or a larger share (data.split)"
            )
    texts = [text for item in items["train"] for text in (item.prompt, item.completion or "")]
    rendering = make_rendering(config.tokenizer, config.template, config.system, texts)
    rows, dropped = in_tokens(config, rendering, items, config.too_long)
    rows["train"] = [rows["train"][place] for place in stream(0, 0, "chats").permutation(len(rows["train"]))]
    check_prompts(rows)
    _check_references(config, rows)
    about = {
        "prompts": {side: len(rows[side]) for side in SIDES},
        "too_long": dropped,
        "on_two_sides": shared,
    }
    found = {"fingerprint": content_of(rows), "rendering": rendering.fingerprint(), "about": about}
    if (use := use or _use(config, rendering)) is not None:
        room.remember([config.source], use, found)
        if noted is None:
            remember(config.source, config.revision, use, found)
    spec = _spec(config, content_of(rows), rendering.fingerprint())
    folder = room.folder(stored(spec), lambda folder: write(config, rendering, rows, folder))
    return PreparedData(spec, ChatCorpus(config, folder), {"source": config.source, **about})


def _use(config: ChatData, rendering: Rendering | None) -> str | None:
    """All that decides the tokens of a source's content; None where only reading it says that.

    A template may write what is no part of its text, as today's date, so what it makes of a message is part
    of it; so a template with a tokenizer that is trained on the data is not known before.
    """
    left_out = {"source", "revision", *NOT_STORED}
    section = {name: value for name, value in config.model_dump(mode="json").items() if name not in left_out}
    if isinstance(config.tokenizer, BpeTokenizer):
        return json.dumps(["chat", VERSION, section], sort_keys=True) if config.template == "none" else None
    del section["tokenizer"]
    rendering = rendering or make_rendering(config.tokenizer, config.template, config.system, ())
    written = rendering.texts([([("user", "a message")], "a message")])[0]
    return json.dumps(["chat", VERSION, section, rendering.fingerprint(), written], sort_keys=True)


def prepared_task(config: TaskData, room: Room) -> PreparedData:
    """Draw the problems of a task and write them as a user's messages, in a pretrained model's tokens.

    Raises:
        DataError: There are too few, or there is no room for one.
    """
    assert config.tokenizer is not None
    rendering = make_rendering(config.tokenizer, config.template, config.system, ())
    items = {side: [_of_problem(config, item) for item in found] for side, found in collect(config).items()}
    rows, _ = in_tokens(config, rendering, items)
    check_prompts(rows)
    plugin = TASKS.loaded[config.task.kind]
    task = {"task": {**science(config.task), "version": plugin.version}}
    spec = {
        "kind": "task chat",
        "version": VERSION,
        **rendered_science(config, content_of(rows), rendering.fingerprint()),
        **task,
    }
    folder = room.folder(stored(spec), lambda folder: write(config, rendering, rows, folder))
    about = {"source": "task", "task": config.task.kind, "prompts": {s: len(rows[s]) for s in SIDES}}
    return PreparedData(spec, RenderedCorpus(config, folder), about)


def _item(found: Conversation) -> Item:
    return Item(found.messages, found.prompt, found.completion, found.answer, found.where)


def _of_problem(config: TaskData, found: Problem) -> Item:
    asked = config.instruction.replace("{prompt}", found.prompt)
    where = f"task {config.task.kind}, {shown(found.prompt)}"
    return Item([("user", asked)], found.prompt, found.solution, None, where, found.skill, found.difficulty)


def _check_references(config: ChatData, rows: Mapping[str, Sequence[Row]]) -> None:
    """The final answers of references are found in time, so that later nothing waits for them.

    Raises:
        DataError: One is not; names the row.
    """
    finds = Reference(config.extract)
    for row in (row for side in SIDES for row in rows[side] if row.item.answer is not None):
        try:
            finds.reference(str(row.item.answer), limited=True)
        except TimeoutError:
            raise DataError(
                f"data.extract: has not found the final answer of {row.item.where} in time; "
                "give an expression that goes over a text once"
            ) from None


def _spec(config: ChatData, content: str, rendering: str) -> dict[str, Any]:
    return {"kind": "chat", "version": VERSION, **rendered_science(config, content, rendering)}


class ChatCorpus(RenderedCorpus):
    """Chats; with reference answers something knows which completions are right."""

    config: ChatData  # type: ignore[assignment]

    def _asked(self, text: str) -> str:
        return text

    @cached_property
    def has_truth(self) -> bool:
        """Whether the data have reference answers."""
        return any(answer is not None for _, answer in self.about.values())

    @cached_property
    def checker(self) -> Any:
        """Finds final answers, by which a majority votes."""
        return Reference(self.config.extract)

    @cached_property
    def _references(self) -> Mapping[str, str]:
        """Reference answers to what they are compared as."""
        found = {answer for _, answer in self.about.values() if answer is not None}
        return {answer: self.checker.reference(answer) for answer in found}

    def verdicts(self, examples: Examples) -> list[Verdict]:
        """Whether final answers are the references'; a completion that is not ended is wrong."""
        found = []
        for (_, answer), text in zip(self._about(examples), self.completions(examples), strict=True):
            if text is None or answer is None:
                found.append(Verdict(False, False))
            else:
                found.append(self.checker.verdict(text, self._references[answer]))
        return found

    def right(self, examples: Examples) -> npt.NDArray[np.bool_] | None:
        """Which completions have the reference's answer; None where there are no references."""
        return super().right(examples) if self.has_truth else None

    @property
    def may_fail(self) -> bool:
        """An expression of the user's finds the answers."""
        return self.config.extract is not None
