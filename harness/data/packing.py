"""From documents to blocks of token ids: their split, the tokenizer, and the folders that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.config.schema import BpeTokenizer, Split, TextData, science
from harness.data.documents import SPLITS, Documents, side_by_hash
from harness.data.tokenizers import TOKENIZER, load_pretrained, train_tokenizer
from harness.errors import DataError
from harness.files import write_json
from harness.records import Examples
from harness.streams import stream
from harness.terminal import counted, shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VERSION = 1
"""Version of splitting, tokenizer training and packing; part of every key."""
_NOT_CONTENT = ("source", "text_field", "revision")


def data_science(config: TextData, content: str, tokenizer: str | None) -> dict[str, Any]:
    """What of text data enters keys: their content, never their path.

    Args:
        config: The section.
        content: Fingerprint of the documents.
        tokenizer: Fingerprint of a pretrained tokenizer; None for a trained one.
    """
    spec = {name: value for name, value in science(config).items() if name not in _NOT_CONTENT}
    if tokenizer is not None:
        spec["tokenizer"] = {"kind": "pretrained", "content": tokenizer}
    return {"kind": "text", "version": VERSION, "content": content, **spec}


def prepared_science(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `data_science` that decides the prepared folder (how many blocks are used does not)."""
    return {
        name: value
        for name, value in spec.items()
        if name not in ("num_examples", "prepend_bos", "resample", "segment")
    }


def split_documents(documents: Documents, split: Split) -> dict[str, list[str]]:
    """Documents by side; a document's side is a function of its text, so no document is on two sides."""
    sides: dict[str, list[str]] = {name: list(documents.splits.get(name, ())) for name in SPLITS}
    known = {document.strip() for document in sides["test"]}
    test = 0 if "test" in documents.splits else split.test
    for document in documents.whole:
        content = document.strip().encode("utf-8", "surrogatepass")
        side = side_by_hash(content, test, split.validation)
        if document.strip() not in known:
            sides[side].append(document)
    return sides


def prepare(config: TextData, documents: Documents, folder: Path) -> None:
    """Split, tokenize and pack.

    Writes ``blocks.safetensors``, ``tokenizer.json`` and ``meta.json`` into a folder.

    Raises:
        DataError: The documents are too few for a block on every side, or for the vocabulary.
    """
    from safetensors.numpy import save_file

    sides = split_documents(documents, config.split)
    for side, texts in sides.items():
        if not texts:
            raise DataError(f"data.source: the {side} split is empty: {_too_few(sides)}")
    if isinstance(config.tokenizer, BpeTokenizer):
        tokenizer = train_tokenizer(sides["train"], config.tokenizer)
        bos = eos = 0  # the trainer numbers special tokens first
        vocab_size = tokenizer.get_vocab_size()
    else:
        loaded = load_pretrained(config.tokenizer)
        tokenizer, eos = loaded.backend_tokenizer, loaded.eos_token_id
        vocab_size = max(len(loaded), 1 + max(loaded.get_vocab().values(), default=0))  # some leave ids out
        bos = loaded.bos_token_id if loaded.bos_token_id is not None else eos
        if eos is None:
            raise DataError(f"data.tokenizer.name: {shown(config.tokenizer.name)} has no end-of-text token")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    separator = [eos] if config.separator == "eos" else tokenizer.encode("\n\n", add_special_tokens=False).ids
    packed = {side: pack(tokenizer, texts, separator, config.block_size) for side, texts in sides.items()}
    for side, blocks in packed.items():
        if not len(blocks):
            raise DataError(
                f"data.source: the {side} split has fewer than {config.block_size} tokens, not one block "
                "(data.block_size); give more text or smaller blocks"
            )
    packed["train"] = shuffled(packed["train"])
    counts = np.bincount(packed["train"].reshape(-1), minlength=vocab_size).astype(np.int64)
    save_file({**packed, "counts": counts}, folder / "blocks.safetensors")
    tokenizer.save(str(folder / TOKENIZER))
    meta = {
        "bos": bos,
        "eos": eos,
        "vocab_size": vocab_size,
        "block_size": config.block_size,
        "separator": [int(token) for token in separator],
        "blocks": {side: len(blocks) for side, blocks in packed.items()},
        "documents": {side: len(texts) for side, texts in sides.items()},
    }
    write_json(folder / "meta.json", meta)


def _too_few(sides: Mapping[str, Sequence[str]]) -> str:
    """Why documents do not reach for every side; equal ones are always on one."""
    documents = [text.strip() for texts in sides.values() for text in texts]
    different = len(set(documents))
    if different == len(documents):
        return f"{counted(different, 'document')} {'is' if different == 1 else 'are'} too few"
    which = "all of them are equal" if different == 1 else f"only {different} of them are different"
    return (
        f"there are {len(documents)} documents, but {which}, and equal documents fall on one side; give more "
        "different ones"
    )


def pack(
    tokenizer: Tokenizer, documents: Sequence[str], separator: Sequence[int], block_size: int
) -> npt.NDArray[np.int32]:
    """Documents as one stream of tokens, a separator behind each, cut into blocks; the remainder is dropped.

    Returns:
        Shape [num_blocks, block_size].
    """
    pieces = []
    for encoding in tokenizer.encode_batch_fast(list(documents), add_special_tokens=False):
        pieces.append(np.asarray([*encoding.ids, *separator], dtype=np.int32))
    flat = np.concatenate(pieces) if pieces else np.zeros(0, np.int32)
    return flat[: len(flat) // block_size * block_size].reshape(-1, block_size)


def shuffled(blocks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Blocks in a fixed random order: the first n are a fair sample, and those behind them another one."""
    return blocks[stream(0, 0, "blocks").permutation(len(blocks))]


def unshuffled(blocks: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Blocks as they were before `shuffled`, in which the text runs on from one to the next."""
    found = np.empty_like(blocks)
    found[stream(0, 0, "blocks").permutation(len(blocks))] = blocks
    return found


def other_science(data: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """What decides the prepared folder of another real text.

    Its test side, and how the cell's own text is packed.
    """
    return {"kind": "other", "data": prepared_science(data), "content": fingerprint}


def corpus_science(data: Mapping[str, Any], fingerprint: str) -> dict[str, Any]:
    """What decides the prepared folder of a fixed corpus: its text, and how the cell's own text is packed."""
    return {"kind": "corpus", "data": prepared_science(data), "content": fingerprint}


def write_other(folder: Path, blocks: Examples) -> None:
    """Write the blocks of another real text, or of a fixed corpus."""
    from safetensors.numpy import save_file

    save_file({"blocks": np.ascontiguousarray(blocks.values)}, folder / "other.safetensors")


def read_other(folder: Path) -> Examples:
    """The blocks of another real text, or of a fixed corpus, shape [num_blocks, block_size]."""
    from safetensors.numpy import load_file

    return Examples.full(load_file(folder / "other.safetensors")["blocks"])
