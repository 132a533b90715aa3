"""Tokenizers of text: a byte-level BPE of one's own, or a pretrained one by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config.schema import BpeTokenizer, PretrainedTokenizer
from harness.data.reach import asking, hub_error
from harness.data.remembered import Note
from harness.errors import DataError
from harness.files import file_sha256, no_folder, refuse_pointer, refuse_special
from harness.proc import installed_version
from harness.terminal import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"
TOKENIZER = "tokenizer.json"
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
"""Of files that no tokenizer reads."""


def train_tokenizer(documents: Sequence[str], config: BpeTokenizer) -> Tokenizer:
    """A byte-level BPE trained on the training split; token 0 is the end-of-text token.

    Raises:
        DataError: The documents do not hold enough distinct pairs for the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer=trainer)
    found = tokenizer.get_vocab_size()
    if found < config.vocab_size:
        raise DataError(
            f"data.tokenizer.vocab_size: {config.vocab_size} tokens are asked for, the training split yields "
            f"{found}; lower it or give more text"
        )
    return tokenizer


def pretrained_fingerprint(config: PretrainedTokenizer) -> str:
    """A hash of what a pretrained tokenizer does: its serialised form and special tokens.

    It is remembered by the files that it comes from: to open one takes all of transformers, which is seconds.
    """
    files = _tokenizer_files(config)
    note = files and Note(
        "tokenizer", files, installed_version("transformers"), installed_version("tokenizers")
    )
    known = note.read("fingerprint") if note else None
    if known is not None:
        return str(known["fingerprint"])
    tokenizer = load_pretrained(config)
    text = tokenizer.backend_tokenizer.to_str() + f"/{tokenizer.bos_token_id}/{tokenizer.eos_token_id}"
    fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
    if note:
        note.write({"fingerprint": fingerprint})
    return fingerprint


def _tokenizer_files(config: PretrainedTokenizer) -> str | dict[str, str] | None:
    """What decides a pretrained tokenizer: its commit, or its folder's files by name and hash.

    None where that cannot be said without opening it.
    """
    folder = Path(config.name)
    if not folder.is_dir():
        import huggingface_hub

        try:
            with asking(config.name):
                path = huggingface_hub.hf_hub_download(config.name, TOKENIZER, revision=config.revision)
        except Exception:  # whatever it is, who opens the tokenizer will say it
            return None
        return f"{config.name}@{Path(path).parent.name}"
    if config.revision is not None:
        return None
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix not in _WEIGHTS]
    try:
        return {path.name: file_sha256(path) for path in sorted(files)}
    except OSError:
        return None


def load_pretrained(config: PretrainedTokenizer) -> Any:
    """A fast tokenizer of transformers.

    Raises:
        DataError: It cannot be loaded, or is not fast.
    """
    from transformers import AutoTokenizer

    folder = Path(config.name)
    if folder.is_absolute() and not folder.is_dir():
        raise DataError(f"data.tokenizer.name: {no_folder(folder)}")
    if folder.is_dir():
        if config.revision is not None:
            raise DataError(
                f"data.tokenizer.revision: {config.name} is a folder, and only tokenizers of the hub have "
                "revisions"
            )
        for path in folder.glob("*.json"):
            refuse_special(path, "data.tokenizer.name")
            try:
                with open(path, "rb") as file:
                    refuse_pointer(path, file.read(200), "data.tokenizer.name")
            except OSError as error:
                raise DataError(f"data.tokenizer.name: {path} cannot be read: {error.strerror}") from None
    try:
        with asking(config.name):
            tokenizer = AutoTokenizer.from_pretrained(
                config.name, revision=config.revision, trust_remote_code=False
            )
    except Exception as error:
        # the libraries raise what their parsers and transports raise; the user needs one line
        why = hub_error(error)
        raise DataError(f"data.tokenizer.name: {shown(config.name)} cannot be loaded ({why})") from None
    if not tokenizer.is_fast:
        raise DataError(f"data.tokenizer.name: {shown(config.name)} has no fast tokenizer (tokenizer.json)")
    return tokenizer
