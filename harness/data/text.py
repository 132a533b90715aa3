"""Prepared text: blocks of token ids, what they were packed from, and other texts packed as they are.

Made once per fingerprint.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.components import DATA
from harness.config.schema import PretrainedTokenizer, Split, TextData
from harness.data.documents import Documents, named_documents, read_documents, read_groups, read_named
from harness.data.packing import (
    data_science,
    pack,
    prepare,
    prepared_science,
    shuffled,
    split_documents,
    unshuffled,
)
from harness.data.real import GROUP, ExternalCorpus, PreparedData, RealData, Room, own_examples, supply_of
from harness.data.remembered import recall, remember
from harness.data.token_bytes import token_bytes
from harness.data.tokenizers import TOKENIZER, pretrained_fingerprint
from harness.errors import DataError
from harness.files import put, read_json, write_json
from harness.metrics import LEXICAL_OF_SHORT
from harness.metrics.lexical import LONGEST
from harness.records import Examples
from harness.science import Prompts
from harness.terminal import counted, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from tokenizers import Tokenizer

    from harness.config.schema import Sample
    from harness.data.rendered import RenderedCorpus
    from harness.data.task import TaskCorpus

_CONTINUED: Mapping[str, Prompts] = {"bos": "none", "real_prefix": "real", "previous_prefix": "previous"}
MAX_GROUPS = 32
MAX_OTHER_BLOCKS = 256
"""Blocks of another real text that a model is scored on."""


def prepared(config: TextData, room: Room) -> PreparedData:
    """Read and prepare text; what its source held is remembered, so that it need not be read again.

    Raises:
        DataError: It cannot be read, or is too little.
    """
    tokenizer = config.tokenizer
    pretrained = pretrained_fingerprint(tokenizer) if isinstance(tokenizer, PretrainedTokenizer) else None
    use = f"text {config.text_field}" + (", own test side" if config.split.own_test else "")
    noted = recall(config.source, config.revision, use)
    known = noted or room.recall([config.source], use, ["fingerprint", "about"])
    if known is not None:
        spec = data_science(config, known["fingerprint"], pretrained)
        folder = room.known(prepared_science(spec))
        if folder is not None:  # so nothing of it has to be read
            about = {"source": config.source, **known["about"]}
            return PreparedData(spec, TextCorpus(config, folder), about)
    documents = read_documents(config)
    spec = data_science(config, documents.fingerprint(), pretrained)
    found = {"fingerprint": spec["content"], "about": documents.about()}
    room.remember([config.source], use, found)
    if noted is None:
        remember(config.source, config.revision, use, found)
    folder = room.folder(prepared_science(spec), lambda folder: prepare(config, documents, folder))
    return PreparedData(spec, TextCorpus(config, folder), {"source": config.source, **documents.about()})


class TextCorpus(RealData):
    """Prepared text, read from its folder.

    Attributes:
        meta: What `prepare` wrote: special tokens, vocabulary, numbers of blocks and bytes.
        fill: The token that fills prompts up where the model must not see it; None for none.
        task: These data, where they are prompts with completions.
        rendered: These data, where prompts are a user's messages in a chat template.
        other_tokens: Tokens of a block of other real text; None for as many as of an example.
        other_blocks: How many of these a model is scored on at most.
        other_split: How other real text is split; None for as the data are.
        marks: What sampling's keys hold besides the section.
    """

    config: TextData
    counted = True
    fill: int | None = None
    task: TaskCorpus | None = None
    rendered: RenderedCorpus | None = None
    other_tokens: int | None = None
    other_blocks = MAX_OTHER_BLOCKS
    other_split: Split | None = None
    marks: Mapping[str, Any] = MappingProxyType({})

    def __init__(self, config: TextData, folder: Path) -> None:
        """Read the blocks.

        Args:
            config: The section.
            folder: What `prepare` wrote.
        """
        from safetensors.numpy import load_file

        self.config, self.folder = config, folder
        self.meta: Mapping[str, Any] = read_json(folder / "meta.json")
        self._blocks = load_file(folder / "blocks.safetensors")

    @property
    def example_bytes(self) -> int:
        """Bytes of a block in memory."""
        return 4 * self.config.block_size

    @property
    def supply(self) -> int:
        """Blocks of the training split."""
        return supply_of(self.config, len(self._blocks["train"]))

    @property
    def stored_bytes(self) -> float:
        """Bytes of a block in the store, about: one and a half a token, compressed."""
        return 1.5 * self.config.block_size

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` training blocks, the same for every seed unless they are resampled.

        Shape [count, block_size].
        """
        chosen = own_examples(self.config, seed, len(self._blocks["train"]), count)
        return Examples.full(self._blocks["train"][chosen])

    @property
    def running_text(self) -> list[npt.NDArray[np.int32]]:
        """All of the training split as it runs on, token ids, each of shape [tokens].

        Blocks cut documents, and may be shorter than a passage that is looked for.
        """
        return [unshuffled(self._blocks["train"]).reshape(-1)]

    @property
    def validation(self) -> Examples:
        """Validation blocks, shape [num_blocks, block_size]."""
        return Examples.full(self._blocks["validation"])

    @property
    def test(self) -> Examples:
        """Test blocks, shape [num_blocks, block_size]."""
        return Examples.full(self._blocks["test"])

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """Occurrences of every token in the training split, shape [vocab_size]."""
        counts: npt.NDArray[np.int64] = self._blocks["counts"]
        return counts

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / TOKENIZER))

    def write_tokenizer(self, folder: Path) -> bool:
        """Put the tokenizer beside a model, as `transformers.AutoTokenizer` finds it.

        Its file takes no room of its own.
        """
        put(self.folder / TOKENIZER, folder / TOKENIZER)
        names = {name: self.tokenizer.id_to_token(int(self.meta[name])) for name in ("bos", "eos")}
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": names["bos"],
            "eos_token": names["eos"],
            "clean_up_tokenization_spaces": False,
        }
        write_json(folder / "tokenizer_config.json", about)
        return True

    def table(self, examples: Examples) -> pa.Table:
        """Raw examples as columns: the text and its tokens."""
        import pyarrow as pa

        rows = [row.tolist() for row in examples.rows()]
        texts, tokens = pa.array(map(self.decode, rows), pa.string()), pa.array(rows, pa.list_(pa.int32()))
        return pa.table({"text": texts, "tokens": tokens})

    def continued(self, sample: Sample, generations: int) -> Prompts:
        """What the examples of a chain continue.

        Raises:
            DataError: There are not as many prompts as its generations answer.
        """
        return _CONTINUED[sample.prompt]

    def check_prompts(self, texts: Sequence[str]) -> None:
        """Look whether there is room for the texts that every generation continues: for all.

        Raises:
            DataError: There is not.
        """

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest training example, as far as a model would write it."""
        return int(self.config.block_size)

    @property
    def metrics(self) -> Mapping[str, int]:
        """Of examples with fewer tokens than n-grams have."""
        return LEXICAL_OF_SHORT if self.longest < LONGEST else {}

    def written(self, examples: Examples) -> Examples:
        """What of examples a model has written, or would write: all of a text."""
        return examples

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        text: str = self.tokenizer.decode([int(token) for token in tokens], skip_special_tokens=False)
        return text

    @cached_property
    def _token_bytes(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        return token_bytes(self.tokenizer)

    def bytes(self, tokens: npt.NDArray[np.integer[Any]]) -> int:
        """UTF-8 bytes of the text that tokens of any shape stand for."""
        return int(self._token_bytes[0][tokens].sum())

    @property
    def test_is_plain(self) -> bool:
        """Whether the test blocks stand for ASCII alone."""
        return self.is_plain(self.test.values)

    def is_plain(self, tokens: npt.NDArray[np.integer[Any]]) -> bool:
        """Whether tokens stand for ASCII alone.

        Then a block decoded by itself has as many bytes as its tokens.
        """
        return bool(self._token_bytes[1][tokens].all())

    def external(
        self, source: str, packed: Callable[[str], Examples | None] = lambda _: None
    ) -> ExternalCorpus:
        """A fixed corpus, packed as the real text is.

        Args:
            source: A path (its text in the field ``text``), which is read whole and in its order;
                ``hf:NAME[/CONFIG]``, of which the split ``train`` is read so; or an embedded source, of which
                the training side is taken, in the order in which it would be the real text.
            packed: Gives its blocks by its hash, where they have been packed before.

        Raises:
            DataError: It cannot be read.
        """

        def blocks(documents: Documents, pack: Callable[[], npt.NDArray[np.int32]]) -> ExternalCorpus:
            fingerprint = documents.fingerprint()
            known = packed(fingerprint)
            return ExternalCorpus(fingerprint, Examples.full(pack()) if known is None else known)

        if source in DATA.loaded:
            # Hashed as a split: a file of the same documents has them in another order, so it is another
            # corpus.
            whole = Documents(named_documents(source, "regime.source.corpus"), {})
            train = tuple(split_documents(whole, self.config.split)["train"])
            documents = Documents((), {"train": train})
            return blocks(documents, lambda: shuffled(self._pack(train)))
        known = recall(source, None, "corpus")
        examples = packed(known["fingerprint"]) if known is not None else None
        if known is not None and examples is not None:
            return ExternalCorpus(known["fingerprint"], examples)
        found = read_named(source, field="regime.source.corpus")
        documents = Documents(found.whole or found.splits["train"], {})
        if known is None:
            remember(source, None, "corpus", {"fingerprint": documents.fingerprint()})
        return blocks(documents, lambda: self._pack(documents.whole))

    def other(self, name: str, source: str) -> ExternalCorpus:
        """The test side of another real text, packed as the real text is.

        Args:
            name: What it is called in ``evaluate.others``.
            source: As in ``data.source``; its text in the field ``text``. It is split as the real text is,
                unless it has splits of its own.

        Returns:
            At most `MAX_OTHER_BLOCKS` blocks: a fixed random sample where there are more. The hash is of all
            of the test side.

        Raises:
            DataError: It cannot be read, or its test side does not fill one block.
        """
        field = f"evaluate.others.{name}"
        sides = split_documents(read_named(source, field=field), self.other_split or self.config.split)
        found = self._test_side(sides["test"])
        if found is None:
            size = self.other_tokens or self.meta["block_size"]
            raise DataError(f"{field}: the test side of {source} has fewer than {size} tokens, not one block")
        return found

    def _test_side(self, texts: Sequence[str]) -> ExternalCorpus | None:
        """Texts that models are scored on, with the hash of all of them; None where they fill no block."""
        blocks = self._pack(texts)
        if not len(blocks):
            return None
        return ExternalCorpus(
            Documents(texts, {}).fingerprint(), Examples.full(shuffled(blocks)[: self.other_blocks])
        )

    def groups(self, field: str) -> dict[str, ExternalCorpus]:
        """The test side of each group of the real text.

        Args:
            field: Of the source, with the name of each document's group. A document without one is in none.

        Returns:
            By `GROUP` and the group's name in lower-case letters, digits and strokes below; at most
            `MAX_OTHER_BLOCKS` blocks each, as of `other`.

        Raises:
            DataError: There is no such field; the groups are too many, or one too small for a block.
        """
        if self.task is not None or self.rendered is not None:
            return super().groups(field)
        found = read_groups(self.config, field)
        if "test" not in found:
            whole = Documents([text for text, _ in found[""]], {})
            side = frozenset(split_documents(whole, self.config.split)["test"])
            test = [pair for pair in found[""] if pair[0] in side]
        else:
            test = found["test"]
        texts: dict[str, list[str]] = {group: [] for pairs in found.values() for _, group in pairs if group}
        what = f"evaluate.groups: {shown(field)} of {self.config.source}"
        if not 2 <= len(texts) <= MAX_GROUPS:
            raise DataError(f"{what} names {counted(len(texts), 'group')}; allowed: 2 to {MAX_GROUPS}")
        for text, group in test:
            if group:
                texts[group].append(text)
        columns: dict[str, ExternalCorpus] = {}
        for group in sorted(texts):
            name = GROUP + re.sub("[^a-z0-9]+", "_", group.lower()).strip("_")
            if name in columns or name == GROUP:
                raise DataError(f"{what} names the group {shown(group)}, and its column would be another's")
            part = self._test_side(texts[group])
            if part is None:
                raise DataError(
                    f"{what} names the group {shown(group)}, whose test side has fewer than "
                    f"{self.meta['block_size']} tokens, not one block; allowed: a larger data.split.test, or "
                    "smaller blocks"
                )
            columns[name] = part
        return columns

    def _pack(self, documents: Sequence[str]) -> npt.NDArray[np.int32]:
        return pack(self.tokenizer, documents, self.meta["separator"], int(self.meta["block_size"]))
