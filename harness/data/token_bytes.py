"""How many bytes of text each token stands for.

With these a text that is cut into blocks anywhere counts as many as it has.

Decoding a block by itself counts too many where the cut goes through a character: each half becomes a
replacement character.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")
"""A token that stands for one byte, where a vocabulary lacks a character."""

_CONTROLS = [chr(0x100 + number) for number in range(34)]
"""What byte-level vocabularies write for the bytes 0 to 32 and 127."""


def token_bytes(tokenizer: Tokenizer) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """UTF-8 bytes of each token, and which tokens decode to whole ASCII characters wherever they stand.

    A special token, such as the end of text, stands for no text: 0 bytes. In a byte-level vocabulary each
    character of a token's name is one byte. Elsewhere a token counts what it adds to a text that goes before
    it, so that a space between words is counted.

    Returns:
        Both of shape [vocab_size], by token id; an id without a token counts 0.
    """
    names: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    size = 1 + max(names.values(), default=0)
    counts, plain = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.bool_)
    added = tokenizer.get_added_tokens_decoder()
    by_bytes = _is_byte_level(json.loads(tokenizer.to_str()).get("decoder"))
    before = [] if by_bytes else tokenizer.encode("a", add_special_tokens=False).ids[-1:]
    start = tokenizer.decode(before, skip_special_tokens=False)
    for name, token in names.items():
        if token in added and added[token].special:
            continue
        if token in added:
            counts[token] = len(added[token].content.encode())
        elif by_bytes:
            counts[token] = len(name)
            plain[token] = all("!" <= character <= "~" or character in _CONTROLS for character in name)
        elif _BYTE.fullmatch(name):
            counts[token] = 1
        else:
            text = tokenizer.decode([*before, token], skip_special_tokens=False)
            counts[token] = len(text.encode()) - len(start.encode())
    return np.maximum(counts, 0), plain


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    return decoder.get("type") == "ByteLevel" or any(map(_is_byte_level, decoder.get("decoders") or []))
