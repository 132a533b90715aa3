"""Files of a board that never change: each is called by the hash of its content."""

from __future__ import annotations

import hashlib
import json
import stat
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import ValidationError

from harness.errors import InputError
from harness.files import write_atomic
from harness.section import Section
from harness.terminal import cut, shown

MAX_BYTES = 50_000_000
"""No file of a board is larger."""


class Immutable(Section):
    """Content that its file's name is made of."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Of its file, from the board's folder: the same content always has the same name."""

    @property
    def content(self) -> bytes:
        """The file: one line for each field, so that two can be compared, and not one for each number.

        What a file did not say stays unsaid: a field that came later changes no earlier file, nor its name.
        """
        fields = self.model_dump(mode="json", exclude_unset=True)
        lines = (
            f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in fields.items()
        )
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()

    @cached_property
    def sha256(self) -> str:
        """Of the content, which is written out for it: once, for the name is asked for again and again."""
        return hashlib.sha256(self.content).hexdigest()

    def hashed(self) -> bytes:
        """The content, and its hash remembered: large ones take long to write out."""
        content = self.content
        self.__dict__["sha256"] = hashlib.sha256(content).hexdigest()
        return content

    def model_copy(self, **changes: Any) -> Self:
        """As pydantic's, without what is remembered of the content."""
        made = super().model_copy(**changes)
        made.__dict__.pop("sha256", None)
        return made


Kind = TypeVar("Kind", bound=Immutable)


def read_immutable(path: Path, kind: type[Kind], what: str) -> Kind:
    """Read a file of a board.

    Args:
        path: The file.
        kind: What is in it.
        what: That in words, for messages: "entry".

    Raises:
        InputError: It cannot be read, is none, or is not what its name says.
    """
    try:
        there = path.stat()
        if not stat.S_ISREG(there.st_mode):
            raise InputError(f"{path} is no {what}: it is no regular file")
        if there.st_size > MAX_BYTES:
            raise InputError(f"{path} is no {what}: it has more than {MAX_BYTES:,} bytes")
        content = path.read_bytes()
        found = kind.model_validate_json(content)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = "".join(f"{part}." for part in first["loc"])[:-1]
        where = f"{field}: " if field else ""
        raise InputError(
            f"{path} is no {what}: {where}{first['msg']}, found {shown(first['input'])}"
        ) from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is no {what}: {cut(str(error))}") from None
    own = found.hashed()
    if path.name != Path(found.name).name:
        raise InputError(f"{path} was changed after it was made: by its content its name is {found.name}")
    if content.replace(b"\r\n", b"\n") != own:
        raise InputError(
            f"{path} was changed after it was made: it says more, or otherwise, than what is read"
        )
    return found


def write_immutable(item: Immutable, folder: Path) -> Path:
    """Add a file to a board's folder; one with the same content is there already, and stays.

    Raises:
        OSError: The folder cannot be written.
    """
    content = item.hashed()
    target = folder / item.name
    target.parent.mkdir(parents=True, exist_ok=True)
    return _write(target, content)


def write_beside(item: Immutable, other: Path) -> Path:
    """Add a file to the folder that another one lies in.

    Raises:
        OSError: The folder cannot be written.
    """
    content = item.hashed()
    return _write(other.with_name(Path(item.name).name), content)


def _write(target: Path, content: bytes) -> Path:
    if not target.exists():
        write_atomic(target, content)
    return target
