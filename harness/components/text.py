"""Text: its section, what the rest of the harness has to know of it, and texts that are known by a name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.registry import DataKind, DataPlugin
from harness.section import (
    HUB,
    DataSection,
    HubItem,
    Place,
    Section,
    Segment,
    check_revision,
    hub_data,
    since,
)


class BpeTokenizer(Section):
    """A byte-level BPE trained on the real training split."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = since(512)
    """Tokens, the 256 bytes and the end-of-text token included."""


class PretrainedTokenizer(Section):
    """A tokenizer of the Hugging Face hub, or of a local folder."""

    kind: Literal["pretrained"]
    name: Place
    revision: str | None = since(None)


class Split(Section):
    """Shares of the real documents that are held out.

    A document falls on one side by the hash of its text.
    """

    validation: Annotated[float, Field(gt=0, lt=0.5)] = since(0.05)
    test: Annotated[float, Field(gt=0, lt=0.5)] = since(0.05)
    own_test: bool = since(False)
    """The test side is the split ``test`` of hub data that have no validation split, whole; validation is a
    share of ``train``."""


def check_own_test(source: str, split: Split) -> None:
    """Check that a source can have a test side of its own.

    Raises:
        ValueError: It cannot; says where.
    """
    if split.own_test and not source.startswith(HUB):
        raise ValueError(
            f"split.own_test: found true, and only data of the hub ({HUB}NAME) have splits of their own"
        )


class TextData(DataSection):
    """Text as the real distribution."""

    source: Place
    """``python-docs``, ``python-stdlib``, ``hf:NAME[/CONFIG]``, or a path: .txt, .jsonl, .parquet, or a
    folder of them."""
    text_field: str = since("text")
    """Field or column of .jsonl, .parquet and hub data that holds the text."""
    revision: str | None = since(None)
    """Revision of hub data."""
    tokenizer: Annotated[BpeTokenizer | PretrainedTokenizer, Field(discriminator="kind")] = since(
        BpeTokenizer(), introduced={"kind": "bpe"}
    )
    block_size: Annotated[int, Field(ge=2)] = since(64)
    """Tokens per example."""
    num_examples: Annotated[int, Field(gt=0)] | None = since(None)
    """Training examples; all when null. The rest is the reservoir of ``fresh_real``."""
    resample: bool = since(False)
    """Every seed trains on its own ``num_examples`` of the training split, drawn at random; otherwise all on
    the same ones."""
    segment: Segment | None = since(None)
    """Only this part of the training split, none of which other segments have (as populations give each
    member one)."""
    separator: Literal["none", "eos"] = since("none")
    """``eos`` puts the end-of-text token behind every document; ``none`` joins documents by a blank line."""
    prepend_bos: bool = since(True)
    """Train with the beginning-of-text token before every example, so that its first token is learned too."""
    split: Split = since(Split(), introduced={})

    @model_validator(mode="after")
    def _of_the_hub(self) -> TextData:
        check_own_test(self.source, self.split)
        check_revision(self.source, self.revision)
        return self

    @property
    def filled(self) -> bool:
        """Whether a part of an example is hidden from the model: nothing is."""
        return False

    def longest(self, written: int) -> int:
        """Tokens of the longest sequence that a model reads, where it writes some of so many."""
        return written

    @property
    def hub_items(self) -> list[HubItem]:
        """What it needs of the hub."""
        return hub_data("data.source", self.source, self.revision) + tokenizer_items(self.tokenizer)


def tokenizer_items(tokenizer: BpeTokenizer | PretrainedTokenizer | None) -> list[HubItem]:
    """What a tokenizer needs of the hub."""
    if tokenizer is None or tokenizer.kind == "bpe" or Path(tokenizer.name).is_dir():
        return []
    return [HubItem("tokenizer", "data.tokenizer.name", tokenizer.name, tokenizer.revision)]


ASKED = ("tokenizer", "block_size", "prepend_bos", "filled", "longest")
"""What a language model asks of a section of text."""
KIND = DataKind(
    section=TextData,
    prepare="harness.data.text:prepared",
    load="harness.data.text:TextCorpus",
    asked=ASKED,
    places=("source", "text_field", "revision", "tokenizer.name", "tokenizer.revision", "split.own_test"),
    example={
        "source": "python-docs",
        "tokenizer": {"kind": "bpe", "vocab_size": 512},
        "block_size": 64,
        "num_examples": 1600,
    },
)
NAMED: Mapping[str, DataPlugin] = {
    "python-docs": DataPlugin("harness.data.documents:python_docs"),
    "python-stdlib": DataPlugin("harness.data.documents:python_stdlib"),
}
"""Text that every Python carries; it differs between Python's versions, and so do the keys."""
