"""Files that are whole or absent: atomic writes, fsync, checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from harness.errors import DamagedError, DataError, InputError, StoreError, reason_of
from harness.terminal import shown

MAX_NAME, MAX_PATH = 255, 4095
"""Bytes of a file's name, and of a path (Linux, limits.h)."""
CHECKSUMS = "checksums.json"
TOMBSTONE = ".evicted.json"
"""Suffix of the note that stands for a file whose bytes were freed on purpose."""
SMALL = 1 << 16
"""Bytes below which a file is hashed in one piece: the buffer for pieces takes longer to make than that."""
LOOKS = 10
"""How often `verify` looks for a file that others may be about to put back."""
PROBE = ".harness-doctor-"
"""How the folders begin in which `harness doctor` tries a file system."""
PASSING = (".format.", PROBE)
"""How names begin that a root may hold before it is a store: the file on its way to ``format``, and the
doctor's folders."""


def path_of(text: str) -> Path:
    """A path as a user gives it, with ``~`` for a home folder.

    Raises:
        ValueError: Nobody has that name, or no file can have it.
    """
    raw = text.encode(errors="surrogateescape")
    if len(raw) > MAX_PATH or any(len(name) > MAX_NAME for name in raw.split(b"/")):
        raise ValueError(
            f"found {shown(text)}, allowed: names of at most {MAX_NAME} bytes, {MAX_PATH} in all"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"found {shown(text)}, there is no such home folder") from None


def machine_folder() -> Path:
    """This user's own folder on this machine, made where there is none: libraries keep what they build there.

    Code is loaded from it, and anybody can tell its name. One of this user's that others can write to is
    moved out of the way; where another user has made it first, a new folder with a name that nobody can tell
    stands for it.
    """
    folder = Path(tempfile.gettempdir()) / f"harness-{os.getuid()}"
    for _ in range(3):  # others of this user's processes may be at it too
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                break
            if not found.st_mode & 0o022:
                return folder
            os.rename(folder, f"{folder}-{uuid.uuid4().hex}")
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


def remove_tree(folder: Path) -> None:
    """Remove a folder that another process may be about to rename.

    It is moved out of its way first, so that its rename fails.
    """
    gone = folder.with_name(f".gone-{uuid.uuid4().hex}")
    try:
        os.rename(folder, gone)
    except OSError:
        gone = folder
    shutil.rmtree(gone, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush a file or a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: bytes | BinaryIO) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part.

    Args:
        path: The file.
        content: All of it, or an open file that has it.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(io.BytesIO(content) if isinstance(content, bytes) else content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_file(path.parent)


def link_once(temporary: Path, target: Path) -> None:
    """Put a complete file in its place, unless somebody was first; both names are on the disk then."""
    sync_file(temporary)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, target)
    temporary.unlink()
    sync_file(target.parent)


def move_aside(path: Path, root: Path) -> Path:
    """Move what is damaged below a root to ``damaged/``, where it does no harm and can be looked at.

    Somebody else, who has found the damage too, may be first.

    Raises:
        OSError: It cannot be moved.
    """
    target = root / "damaged" / f"{'-'.join(path.relative_to(root).parts)}-{uuid.uuid4().hex[:8]}"
    with contextlib.suppress(FileNotFoundError):
        target.parent.mkdir(exist_ok=True)
        os.rename(path, target)
    return target


def dump_json(value: Any) -> bytes:
    """Readable JSON; refuses NaN and infinity."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomic(path, dump_json(value))


def put(source: Path, target: Path) -> None:
    """The same file in another place, where it takes no room of its own."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a block finds wrong with a file, as an error that says what it means.

    Raises:
        DamagedError: There is no file: it is missing, a folder, or a link that leads nowhere. Or a library,
            as Arrow does, calls it unreadable, and the system reads it from end to end.
        StoreError: There may be a good one, but this process cannot read it: it may not, or the disk or the
            network fails.
    """
    try:
        yield
    except OSError as error:
        error = _reason(path, error)
        if error.errno == errno.ENOENT:
            raise DamagedError(f"{path} is missing") from None
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.ELOOP):
            raise DamagedError(f"{path} is no file: {error.strerror}") from None
        if error.errno is None:  # all of it can be read, and the library makes nothing of it
            raise DamagedError(f"{path} is damaged: {reason_of(error)}") from None
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None


def _reason(path: Path, error: OSError) -> OSError:
    """What the system says of a file where a library, as Arrow does, has only its own words for it.

    Without a number where the system has nothing against it.
    """
    if error.errno is None:
        try:
            file_sha256(path)  # which reads all of it
        except OSError as found:
            return found
    return error


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        DamagedError: The file is missing or is not JSON.
        StoreError: It cannot be read.
    """
    with reading(path):
        content = path.read_bytes()
    return parse_json(content, path)


def parse_json(content: bytes, where: Path | str) -> Any:
    """The value of JSON.

    Raises:
        DamagedError: It is none; ``where`` says what it should have been.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} is not JSON: {error}") from None


def no_folder(path: Path) -> str:
    """What is wrong with a path that should be a folder and is none."""
    return f"{path} is no folder" if os.path.lexists(path) else f"there is no folder {path}"


def is_foreign(root: Path) -> bool:
    """Whether a folder that is there holds things, and none of them says that it is a store.

    Others may be making the store, or probing the folder, at the same moment: what they have in it before
    ``format`` does not count, and ``format`` is looked for after the rest, since all else comes after it.
    """
    found = [path.name for path in root.iterdir()]
    return any(not name.startswith(PASSING) for name in found) and not (root / "format").exists()


def foreign(root: Path) -> InputError:
    """What is said of a folder that can be no store, as it holds other things."""
    return InputError(f"--root {root} is not empty and is not a store of the harness; name another directory")


def no_store(root: Path) -> InputError:
    """What is said to who reads a store where there is none."""
    named = "name the one that the study is in, here or in HARNESS_ROOT"
    try:
        other = root.exists() and (not root.is_dir() or is_foreign(root))
    except OSError:
        other = True
    if other:
        return InputError(f"--root {root} is not a store of the harness; {named}")
    return InputError(
        f"nothing has been run yet at --root {root}; `harness run STUDY` does, or, if there is a store "
        f"elsewhere, {named}"
    )


def refuse_special(path: Path, field: str) -> None:
    """Refuse what is no regular file: a pipe may never answer, a device never end, and both are read once.

    What cannot be looked at is left to who opens it.

    Args:
        path: The file.
        field: The configuration's field that names it, for the message.

    Raises:
        DataError: It is a pipe, a device or a socket.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(
            f"{field}: {path} is no regular file, but a pipe, a device or a socket; copy it to one"
        )


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git LFS leaves in the place of a file whose content has not been fetched."""


def refuse_pointer(path: Path, beginning: bytes, field: str) -> None:
    """Refuse what Git LFS puts in the place of a file.

    Args:
        path: The file.
        beginning: How its content begins.
        field: The configuration's field that names it, for the message.

    Raises:
        DataError: The file is such a pointer.
    """
    if beginning.startswith(LFS_POINTER):
        raise DataError(
            f"{field}: {path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size < SMALL:
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def checksum(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, which is flushed to disk."""
    sync_file(path)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def seal(folder: Path, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Write the checksums of all files in a folder beside them, and flush everything to disk.

    Args:
        folder: The folder.
        known: Checksums that other processes have computed for the files they wrote, by path within the
            folder.
    """
    sums = dict(known or {})
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if path.name != CHECKSUMS and name not in sums:
            sums[name] = checksum(path)
    write_json(folder / CHECKSUMS, sums)
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_file(path)
    sync_file(folder)


def verify(folder: Path) -> None:
    """Check a sealed folder against its checksums; a file with a tombstone may be absent.

    Raises:
        DamagedError: Names the first file that is missing, of another size, or of other content.
        StoreError: A file cannot be read.
    """
    while True:
        sums = read_json(folder / CHECKSUMS)
        try:
            return _verify(folder, sums)
        except DamagedError:
            if read_json(folder / CHECKSUMS) == sums:  # else a replica of its weights was put there meanwhile
                raise


def _verify(folder: Path, sums: Any) -> None:
    well_formed = isinstance(sums, dict) and all(
        isinstance(e, dict) and e.keys() >= {"bytes", "sha256"} for e in sums.values()
    )
    if not well_formed:
        raise DamagedError(f"{folder / CHECKSUMS} does not hold checksums")
    for name, expected in sums.items():
        # Others may free a file, and put it back, between any two looks; one that is missing is so at every
        # look.
        for left in reversed(range(LOOKS)):
            try:
                _compare(folder / name, expected)
            except FileNotFoundError:
                if not (folder / (name + TOMBSTONE)).exists():
                    if not left:
                        raise DamagedError(f"{folder / name} is missing") from None
                    continue
            except OSError as error:
                with reading(folder / name):
                    raise error
            break


def _compare(path: Path, expected: Mapping[str, Any]) -> None:
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise DamagedError(f"{path} has {size} bytes, {expected['bytes']} were committed")
    if file_sha256(path) != expected["sha256"]:
        raise DamagedError(f"{path} does not match its checksum")
