"""Compressed files: what they hold, and what says that they are damaged."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import IO, Any

CHUNK = 1 << 20
"""Bytes that are read at once."""


class _Streams:
    """What a file of one compressed stream or several, one behind the other, holds.

    Python's own readers of bz2 and xz take a stream whose beginning is damaged for no part of the file, and
    so lose it and all behind it without a word.
    """

    def __init__(self, file: IO[bytes], begin: Callable[[], Any]) -> None:
        self._file, self._begin = file, begin
        self._stream: Any = None
        self._empty = True

    def read(self, size: int) -> bytes:
        """At most so many bytes; none at the end.

        Raises:
            EOFError: The file ends inside a stream, or has none.
            OSError, lzma.LZMAError: It holds something else.
        """
        while True:
            if self._stream is None or self._stream.eof:
                rest = self._stream.unused_data if self._stream else b""
                rest = rest or self._file.read(CHUNK)
                if not self._empty:
                    rest = self._without_padding(rest)
                if not rest and not self._empty:
                    return b""
                self._stream, self._empty = self._begin(), False
            else:
                rest = self._file.read(CHUNK) if self._stream.needs_input else b""
            if not rest and self._stream.needs_input:
                raise EOFError("it ends before the end of what was compressed")
            found: bytes = self._stream.decompress(rest, size)
            if found:
                return found

    def _without_padding(self, rest: bytes) -> bytes:
        """What stands behind zeros, with which both formats may be filled up."""
        while rest and not (kept := rest.lstrip(b"\0")):
            rest = self._file.read(CHUNK)
        return kept if rest else b""


OPENERS: Mapping[str, Callable[[IO[bytes]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": lambda file: _Streams(file, bz2.BZ2Decompressor),
    ".xz": lambda file: _Streams(file, lzma.LZMADecompressor),
}
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
"""What readers of compressed files raise where these are damaged."""
