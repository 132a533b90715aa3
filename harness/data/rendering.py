"""From messages to tokens: chat templates, through transformers."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import BpeTokenizer, PretrainedTokenizer
from harness.data.tokenizers import END_OF_TEXT, load_pretrained, train_tokenizer
from harness.errors import DataError, reason_of
from harness.files import put, refuse_special
from harness.terminal import shown

TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", TEMPLATE)
MARK = "0answer0"
"""Stands for an answer where a template is asked what it puts behind one."""
Messages = Sequence[tuple[str, str]]
"""Roles and contents."""
LIMIT_S, ROW_S = 10.0, 0.01
"""Seconds that a template may take, and how many more for each prompt: some 200 times what it needs."""


class TooLong(DataError):
    """A template that has not ended within its time."""

    def __init__(self) -> None:
        """An error with a message that says so."""
        super().__init__("data.template: it comes to no end")


@contextlib.contextmanager
def limited(rows: int = 1) -> Iterator[None]:
    """Interrupt this thread where it has not come to an end in time, in Python's code, as loops are.

    Args:
        rows: How many prompts are written.

    Raises:
        TooLong: It has not.
    """
    thread, lock, over = threading.get_ident(), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLong))

    timer = threading.Timer(LIMIT_S + ROW_S * rows, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
        timer.cancel()


@dataclass(frozen=True)
class Rendering:
    """How messages become tokens.

    Attributes:
        tokenizer: A fast tokenizer of transformers, with the template.
        system: System message in front of prompts that have none.
    """

    tokenizer: Any
    system: str | None

    def text(self, messages: Messages, where: str = "") -> str:
        """A prompt as the model reads it, up to where the assistant speaks.

        Raises:
            DataError: The template refuses it, or there is none and it is more than one message.
        """
        if self.system is not None and messages[0][0] != "system":
            messages = [("system", self.system), *messages]
        if self.tokenizer.chat_template is None:
            if len(messages) > 1:
                raise DataError(
                    f"data.template: {where} has {len(messages)} messages in its prompt, and without a "
                    "template there may be one"
                )
            return messages[0][1]
        return self._apply(messages, True, where)

    def texts(self, prompts: Iterable[tuple[Messages, str]]) -> list[str]:
        """Many prompts with where each of them stands, as `text`.

        Raises:
            DataError: As there, or the template comes to no end.
        """
        found = list(prompts)
        with limited(len(found)):
            return [self.text(*prompt) for prompt in found]

    def _apply(self, messages: Messages, answers: bool, where: str) -> str:
        plain = [{"role": role, "content": content} for role, content in messages]
        try:
            found: str = self.tokenizer.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=answers
            )
        except TooLong:
            raise DataError(f"data.template: it comes to no end for {where}") from None
        except Exception as error:  # templates raise what they like; the user needs one line
            reason = reason_of(error) or type(error).__name__
            raise DataError(f"data.template: it cannot write {where} ({reason})") from None
        return found

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered prompts, or of completions."""
        found = self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [item.ids for item in found]

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered prompts; without a template they begin as the tokenizer begins a text."""
        found, bos = self.ids(texts), self.tokenizer.bos_token_id
        if self.tokenizer.chat_template is None and bos is not None:
            begins = self.tokenizer("a").input_ids[:1] == [bos]
            return [[bos, *ids] for ids in found] if begins else found
        return found

    @property
    def end(self) -> int:
        """The token that ends an answer.

        The first special token that the template puts behind one; the end-of-text token where it puts none.

        Raises:
            DataError: There is neither.
        """
        if self.tokenizer.chat_template is not None:
            with limited():
                asked = self._apply([("user", "a"), ("assistant", MARK)], False, "a question and an answer")
            behind = self.ids([asked.rpartition(MARK)[2]])[0] if MARK in asked else []
            special = self.tokenizer.added_tokens_decoder
            if behind and behind[0] in special and special[behind[0]].special:
                return behind[0]
        if self.tokenizer.eos_token_id is None:
            raise DataError("data.tokenizer: it has no end-of-text token, and the template ends no answer")
        return int(self.tokenizer.eos_token_id)

    @property
    def vocab_size(self) -> int:
        """Tokens; some tokenizers leave ids out."""
        return max(len(self.tokenizer), 1 + max(self.tokenizer.get_vocab().values(), default=0))

    def fingerprint(self) -> str:
        """A hash of what it does: the tokenizer, its special tokens, the template."""
        known = self.tokenizer
        parts = [known.backend_tokenizer.to_str(), dict(known.special_tokens_map), known.chat_template]
        return hashlib.sha256(json.dumps([*parts, self.system], sort_keys=True).encode()).hexdigest()[:32]

    def write(self, folder: Path) -> None:
        """Write the tokenizer with its template, as `transformers.AutoTokenizer` finds it."""
        for name in self.tokenizer.save_pretrained(folder):
            if Path(name).name not in TOKENIZER_FILES:  # copies of what these say
                Path(name).unlink(missing_ok=True)


def read_rendering(folder: Path, system: str | None) -> Rendering:
    """What `Rendering.write` wrote."""
    from transformers import PreTrainedTokenizerFast

    return Rendering(PreTrainedTokenizerFast.from_pretrained(folder), system)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Put a tokenizer with its template beside a model."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            put(source / name, target / name)


def make_rendering(
    tokenizer: BpeTokenizer | PretrainedTokenizer, template: str, system: str | None, texts: Sequence[str]
) -> Rendering:
    """A tokenizer with the template that the configuration names.

    Args:
        tokenizer: Its section.
        template: ``tokenizer``, ``none`` or a file.
        system: System message.
        texts: A tokenizer that is trained on the data is trained on these.

    Raises:
        DataError: It cannot be loaded, or has no chat template and one is needed.
    """
    from transformers import PreTrainedTokenizerFast

    if isinstance(tokenizer, BpeTokenizer):
        trained = train_tokenizer(texts, tokenizer)
        found = PreTrainedTokenizerFast(
            tokenizer_object=trained, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
        )
    else:
        loaded = load_pretrained(tokenizer)
        found = PreTrainedTokenizerFast(
            tokenizer_object=loaded.backend_tokenizer, **loaded.special_tokens_map
        )
        found.chat_template = loaded.chat_template
    found.backend_tokenizer.no_truncation()
    found.backend_tokenizer.no_padding()
    if template == "none":
        found.chat_template = None
    elif template != "tokenizer":
        found.chat_template = _file(template)
    elif not isinstance(found.chat_template, str):
        name = shown(getattr(tokenizer, "name", "bpe"))
        what = "no chat template" if found.chat_template is None else "several chat templates"
        raise DataError(
            f"data.template: the tokenizer {name} has {what}; give a template's file, or template: none"
        )
    return Rendering(found, system)


def _file(template: str) -> str:
    refuse_special(Path(template), "data.template")
    try:
        text = Path(template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        allowed = "allowed: tokenizer, none, or a template's file"
        raise DataError(f"data.template: {shown(template)} cannot be read ({reason}); {allowed}") from None
    return text
