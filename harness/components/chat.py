"""Instruction data: prompts with completions from files and the hub, rendered by a chat template."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from harness.components.tasks import ASKED, Prompted
from harness.components.text import BpeTokenizer, PretrainedTokenizer, Split, check_own_test, tokenizer_items
from harness.registry import DataKind
from harness.section import HubItem, Place, PositiveInt, check_revision, hub_data, since


class ChatData(Prompted):
    """Prompts with completions, or conversations, as instruction data have them."""

    named: ClassVar[str] = "data.kind: chat"
    more: ClassVar[tuple[str, str]] = "data.num_examples: leaves", "leave at least {} training prompts"
    kind: Literal["chat"]
    source: Place
    """``hf:NAME[/CONFIG]``, or a path: .jsonl, .csv, .parquet, or a folder of them. A row is an example."""
    revision: str | None = since(None)
    """Revision of hub data."""
    prompt: str = since("prompt")
    """Field or column that holds the prompt."""
    completion: str = since("completion")
    """Field or column that holds the completion."""
    messages: str | None = since(None)
    """Field that holds a conversation, a list of ``{role, content}``, in the place of prompt and completion:
    its last message, the assistant's, is the completion, and the prompt is what stands before."""
    answer: str | None = since(None)
    """Field that holds the reference answer, with which final answers are compared; null: nothing knows
    which completions are right."""
    extract: str | None = since(None)
    """Regular expression (of the package ``regex``) that finds the final answer in a completion, and in the
    field ``answer`` where it matches there: its last match, the first group where it has one. Null:
    the whole text."""
    system: str | None = since(None)
    """System message in front of every prompt that has none of its own."""
    template: Place = since("tokenizer")
    """How a prompt is written: by the ``tokenizer``'s chat template, by that of a file (Jinja), or ``none``:
    as it is."""
    tokenizer: Annotated[BpeTokenizer | PretrainedTokenizer, Field(discriminator="kind")] = since(
        BpeTokenizer(), introduced={"kind": "bpe"}
    )
    prompt_tokens: PositiveInt = since(256)
    """Tokens there is room for in a rendered prompt."""
    completion_tokens: Annotated[int, Field(ge=2, le=100_000)] = since(256)
    """Tokens there is room for in a completion, the one that ends it included."""
    too_long: Literal["error", "drop"] = since("error")
    """What becomes of rows for which there is no room."""
    num_examples: PositiveInt | None = since(None)
    """Training prompts with their completions; all when null. The rest is the reservoir of ``fresh_real``."""
    resample: bool = since(False)
    """Every seed trains on its own ``num_examples`` of the training side, drawn at random; otherwise all on
    the same ones."""
    split: Split = since(Split(), introduced={})
    """Shares of the prompts that are held out, where the source has no splits of its own."""

    @field_validator("extract")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            import regex  # which executes it

            try:
                regex.compile(value)
            except regex.error as error:
                raise ValueError(f"found {value!r}, which is no regular expression: {error}") from None
        return value

    @model_validator(mode="after")
    def _rendered(self) -> ChatData:
        check_own_test(self.source, self.split)
        check_revision(self.source, self.revision)
        given = [name for name in ("prompt", "completion") if name in self.model_fields_set]
        if self.messages is not None and given:
            raise ValueError(f"{given[0]}: is not used with messages, which hold prompt and completion")
        if self.template == "tokenizer" and self.tokenizer.kind == "bpe":
            raise ValueError(
                "template: a tokenizer that is trained on the data has no chat template; give a template's "
                "file, template: none, or tokenizer: {kind: pretrained, name: ...}"
            )
        if self.template == "none" and self.system is not None:
            raise ValueError("system: is not used with template: none, which has no place for it")
        return self

    @property
    def prompt_length(self) -> int:
        """Tokens of every prompt, what fills it up included."""
        return self.prompt_tokens

    @property
    def block_size(self) -> int:
        """Tokens of an example."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def has_truth(self) -> bool:
        """Whether something knows which completions are right."""
        return self.answer is not None

    @property
    def hub_items(self) -> list[HubItem]:
        """What it needs of the hub."""
        return hub_data("data.source", self.source, self.revision) + tokenizer_items(self.tokenizer)


KIND = DataKind(
    section=ChatData,
    prepare="harness.data.chat:prepared",
    load="harness.data.chat:ChatCorpus",
    like="text",
    asked=ASKED,
    places=(
        "source",
        "revision",
        "prompt",
        "completion",
        "messages",
        "answer",
        "template",
        "tokenizer.name",
        "tokenizer.revision",
        "too_long",
        "split.own_test",
    ),
)
