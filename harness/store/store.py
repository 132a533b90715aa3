"""Committed items under a root: one rename makes an item whole, and the first commit of a key wins."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from harness import __version__
from harness.errors import DamagedError, InputError, StoreError, StoreVersionError
from harness.files import (
    CHECKSUMS,
    PROBE,
    TOMBSTONE,
    foreign,
    is_foreign,
    move_aside,
    parse_json,
    read_json,
    reading,
    remove_tree,
    seal,
    sync_file,
    verify,
    write_atomic,
    write_json,
)
from harness.records import Record
from harness.science import Node, key_of
from harness.store.bundles import Bundles
from harness.store.corpora import Corpora
from harness.store.packs import InPack, Packs

FORMAT, PACKED = 1, 2
"""What a root's ``format`` says where there are only folders, and where there are packs, which earlier
versions of the harness do not find."""
PACK_ITEMS, PACK_BYTES = 4096, 64 * 2**20
"""How many evaluations are packed together, and of how many bytes, at most."""
ItemKind = Literal["data", "fits", "evaluations"]
AnyKind = ItemKind | Literal["corpora"]
WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
"""The weights of a fit: whole ones, or what it adds to those of another (the name that peft looks for)."""
REPLICAS = "replicas.json"
"""Beside the weights of a fit: which of them are a refit of another execution class."""
WRITABLE_PROBE = ".probe-"
"""How files begin that try whether ``work/`` can be written."""
MADE = ("data", "fits", "corpora", "evaluations", "work", "experiments")
LATER = ("bundles", "packs", "leases")
"""Folders of a root: those that are made with it, and those that come with what they hold."""


def _no_folders(root: Path) -> dict[str, str]:
    """What lies where a folder of a root should be, path to reason."""
    paths = (root / name for name in (*MADE, *LATER))
    wrong = (path for path in paths if os.path.lexists(path) and not path.is_dir())
    return {str(path): f"{path} is no folder, and no link to one" for path in wrong}


class Store:
    """A root directory.

    Work goes on in ``work/<key>/<token>/``; `commit` renames its ``item/`` to ``<kind>/<key>/``, which fails
    where the key is already there. Checkpoints and finished pieces lie beside ``item/`` and go with the
    commit (`harness.store.work`).
    """

    def __init__(self, root: Path, mends: bool = True) -> None:
        """Use `open` or `read`; this makes no checks.

        Args:
            root: The root.
            mends: Whether what is damaged is set aside, so that it is made again; otherwise it counts as
                absent, and `trouble`, path to reason, says what was met.
        """
        self.root, self.mends, self.trouble = root, mends, dict[str, str]()
        self.corpora = Corpora(root / "corpora", root / "work", mends, self.trouble)
        self.bundles = Bundles(root / "bundles", mends, self.trouble)
        self.packs = Packs(root / "packs", self.trouble, self.unpack if mends else None)
        self._verified: dict[ItemKind, set[str]] = {"data": set(), "fits": set(), "evaluations": set()}

    @classmethod
    def open(cls, root: Path, seen: Store | None = None) -> Store:
        """Open a root for writing, and make it where there is none.

        Args:
            root: The root.
            seen: The same root, opened for reading before: what it found whole is not compared with its
                checksums again.

        Raises:
            InputError: The root cannot be written.
            StoreVersionError: A newer version wrote it.
        """
        root = root.absolute()
        try:
            root.mkdir(parents=True, exist_ok=True)
            if is_foreign(root):
                raise foreign(root)
            if not (root / "format").exists():
                write_json(root / "format", {"format": FORMAT, "harness": __version__})
            cls._check_format(root)
            if wrong := _no_folders(root):
                raise InputError(f"--root {root} cannot be written: {next(iter(wrong.values()))}")
            for name in MADE:
                (root / name).mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=root / "work", prefix=WRITABLE_PROBE):
                pass
        except OSError as error:
            raise InputError(f"--root {root} cannot be written: {error.strerror}") from None
        store = cls(root)
        if seen is not None:
            store._verified = seen._verified
        return store

    @staticmethod
    def check_writable(root: Path) -> None:
        """Check, without leaving a trace, that a root can be made or written.

        Raises:
            InputError: It cannot.
        """
        ancestor = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
        try:
            # NFS renames what is unlinked while it is open
            with tempfile.NamedTemporaryFile(dir=ancestor, prefix=PROBE):
                pass
        except OSError as error:
            raise InputError(f"--root {root} cannot be written: {error.strerror}") from None

    @classmethod
    def read(cls, root: Path) -> Store:
        """Open a root for reading, which changes nothing; one that does not exist yet reads as empty.

        Raises:
            InputError: The root is no folder, or cannot be looked at.
            StoreVersionError: A newer version wrote it.
        """
        root = root.absolute()
        try:
            if not stat.S_ISDIR(root.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        except FileNotFoundError:
            pass
        except OSError as error:
            raise InputError(f"--root {root} cannot be read: {error.strerror}") from None
        if (root / "format").exists():
            cls._check_format(root)
        store = cls(root, mends=False)
        store.trouble |= _no_folders(root)
        return store

    @staticmethod
    def _check_format(root: Path) -> None:
        try:
            found = read_json(root / "format")
        except DamagedError:
            found = None
        version = found.get("format") if isinstance(found, dict) else None
        if not isinstance(version, int):
            raise StoreError(
                f"{root / 'format'} does not hold a store's version; if this is a store, write it anew (echo "
                f"'{{\"format\": {FORMAT}}}' > {root / 'format'}), and look at the rest with harness doctor "
                "--store"
            )
        if version > PACKED:
            raise StoreVersionError(
                f"--root {root} has format {version}, written by harness {found.get('harness')}; this is "
                f"harness {__version__}, which knows formats up to {PACKED}: upgrade it"
            )

    def path(self, kind: AnyKind, key: str) -> Path:
        """Where a committed item lies."""
        return self.root / kind / key

    def has(self, kind: ItemKind, key: str) -> bool:
        """Whether an item is committed; its content is not looked at."""
        return self.path(kind, key).is_dir() or self._packed(kind, key) is not None

    def _packed(self, kind: AnyKind, key: str) -> InPack | None:
        return self.packs.place(key) if kind == "evaluations" else None

    def committed(self, kind: ItemKind) -> set[str]:
        """The keys of all committed items of a kind."""
        folder = self.root / kind
        # Folders first: what is packed meanwhile is in a pack before it has no folder.
        found = set(os.listdir(folder)) if folder.is_dir() else set()
        return found | self.packs.keys() if kind == "evaluations" else found

    def sound(self, kind: ItemKind, key: str) -> bool:
        """Whether an item is committed, matches its checksums and lies under its own key.

        A damaged one counts as absent, and is set aside (`mends`). An item is checked once per process.

        Raises:
            StoreError: It cannot be read, which says nothing about it; only where the store is open for
                writing.
        """
        path = self.path(kind, key)
        if key in self._verified[kind]:
            return True
        if not self.mends and str(path) in self.trouble:
            return False
        # In this order: what is packed meanwhile is in a pack before it has no folder.
        folder = os.path.lexists(path)
        packed = self._packed(kind, key)
        if packed is None and not folder:
            return False
        try:
            self.check(kind, key) if packed is None else self.packs.trust(packed.pack)
        except StoreError as error:
            if self.mends and not isinstance(error, DamagedError):
                raise
            if packed is not None and self.packs.gone(key):  # somebody has unpacked it since
                return self.sound(kind, key)
            self.trouble[str(path)] = str(error)
            if self.mends and packed is not None:
                self.unpack(packed.pack)
                return self.sound(kind, key)
            if self.mends:
                self.set_aside(path)
            return False
        self._verified[kind].add(key)
        return True

    def check(self, kind: ItemKind, key: str) -> None:
        """Compare an item with its checksums, and the spec in it with its key.

        Raises:
            DamagedError: They differ, or something of it is missing.
            StoreError: It cannot be read.
        """
        path, spec = self.path(kind, key), None
        if self._packed(kind, key) is None:
            try:
                verify(path)
                spec = read_json(path / "spec.json")
            except DamagedError:  # unless somebody has packed it since
                if self._packed(kind, key) is None:
                    raise
        if spec is None:
            spec = parse_json(self.packs.files(key)["spec.json"], path / "spec.json")
        if not isinstance(spec, dict) or key_of(spec) != key:
            raise DamagedError(f"{path / 'spec.json'} does not belong to this key")

    def complete(self, node: Node, examples: int) -> bool:
        """Whether all that a generation leaves is there.

        Its record undamaged, its fit, and so many examples of its corpus.
        """
        record = self.record(node.evaluation)
        if record is None or not self.has("fits", node.fit):
            return False
        return record.status == "diverged" or self.corpora.count(node.corpus) >= examples

    def set_aside(self, path: Path) -> Path:
        """Move a damaged item to ``damaged/``, where it does no harm and can be looked at."""
        try:
            return move_aside(path, self.root)
        except OSError as error:
            raise DamagedError(f"{path} is damaged and cannot be set aside: {error.strerror}") from None

    def stage(self, key: str) -> Path:
        """A new empty directory to build an item in: ``item/`` of a new workplace."""
        path = self.root / "work" / key / uuid.uuid4().hex[:12] / "item"
        while True:
            try:
                path.mkdir(parents=True)
                return path
            # others made the key's folder, and removed it, while it was made here
            except (FileNotFoundError, FileExistsError):
                if not (self.root / "work").is_dir():
                    raise

    def clear_work(self, key: str) -> None:
        """Remove all that was left of work on a key; only for who holds its lease."""
        remove_tree(self.root / "work" / key)

    def commit(self, kind: ItemKind, key: str, staged: Path, spec: Mapping[str, Any]) -> bool:
        """Commit a staged directory under its key.

        Args:
            kind: What it is.
            key: Its key.
            staged: From `stage`, with its content complete.
            spec: The full spec behind the key, kept beside the content.

        Returns:
            False where the key was committed by someone else first; the staged directory is discarded.
        """
        write_json(staged / "spec.json", spec)
        seal(staged)
        won = self._packed(kind, key) is None and self._put(kind, key, staged)
        self._leave(staged)
        if won:
            self._verified[kind].add(key)
        return won

    def _put(self, kind: ItemKind, key: str, staged: Path) -> bool:
        """Rename a staged directory to where its key lies; False where there is one already."""
        target = self.path(kind, key)
        try:
            os.rename(staged, target)
            sync_file(target.parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise StoreError(f"{target} cannot be committed: {error.strerror}") from error
            return False
        return True

    def _leave(self, staged: Path) -> None:
        """Remove a workplace with its checkpoints.

        Another process may be at work on the same key in its own.
        """
        shutil.rmtree(staged.parent, ignore_errors=True)
        with contextlib.suppress(OSError):
            staged.parent.parent.rmdir()

    def content(self, kind: AnyKind, key: str, name: str) -> bytes:
        """A file of a committed item.

        Raises:
            DamagedError: It is missing, or the pack that it is in is damaged.
            StoreError: It cannot be read.
        """
        path = self.path(kind, key) / name
        if self._packed(kind, key) is None:
            try:
                with reading(path):
                    return path.read_bytes()
            except DamagedError:  # unless somebody has packed it since
                if self._packed(kind, key) is None:
                    raise
        try:
            return self.packs.read(key, name)
        except DamagedError:  # unless somebody has unpacked it since
            if not self.packs.gone(key):
                raise
            return self.content(kind, key, name)

    def json(self, kind: AnyKind, key: str, name: str) -> Any:
        """A JSON file of a committed item (errors as `content`); a store that mends sets damage aside."""
        try:
            return parse_json(self.content(kind, key, name), self.path(kind, key) / name)
        except DamagedError:
            if self.mends and kind in self._verified:
                self._verified[kind].discard(key)  # it was whole once
                self.sound(kind, key)
            raise

    def place(self, kind: ItemKind, key: str) -> Path:
        """The folder of a committed item, or the pack that it is in."""
        found = self._packed(kind, key)
        return self.path(kind, key) if found is None else self.packs.folder / found.pack

    def pack(self, keys: Iterable[str]) -> int:
        """Put evaluations that have folders of their own into packs (`harness.store.packs`).

        A folder is removed when its pack is on disk and has been read back, so that at any moment an
        evaluation is in one of them or in both. What is damaged, or has files of others in it, stays.

        Args:
            keys: Which; those that are read one after another side by side.

        Returns:
            How many folders there are less.
        """
        folders, items, size = 0, dict[str, dict[str, bytes]](), 0
        for key in keys:
            path = self.path("evaluations", key)
            try:
                if not path.is_dir():
                    continue
                place = self._packed("evaluations", key)
                if place is not None and not self.packs.gone(key):  # a crash has left the folder
                    folders += 0 if self.packs.damage(place.pack) else self._drop(place.pack, [key])
                    continue
                self.check("evaluations", key)
                files = {found.name: found.read_bytes() for found in path.iterdir()}
                foreign = files.keys() - {*parse_json(files[CHECKSUMS], path / CHECKSUMS), CHECKSUMS}
            except (StoreError, OSError, KeyError):
                continue
            if foreign:  # somebody's own, which nobody would look for in a pack
                continue
            items[key] = files
            size += sum(map(len, files.values()))
            if len(items) == PACK_ITEMS or size >= PACK_BYTES:
                folders += self._pack(items)
                items, size = {}, 0
        return folders + self._pack(items)

    def _pack(self, items: Mapping[str, Mapping[str, bytes]]) -> int:
        if not items:
            return 0
        about = read_json(self.root / "format")
        if about["format"] < PACKED:
            write_json(self.root / "format", {**about, "format": PACKED})
        name = self.packs.write(items)
        if dict(self.packs.salvaged(name)) != items:
            raise StoreError(f"{self.packs.folder / name} does not read back as it was written")
        return self._drop(name, items)

    def _drop(self, pack: str, keys: Collection[str]) -> int:
        """Remove the folders of what is in a pack."""
        gone = self.stage(pack.removesuffix(".parquet"))
        for key in keys:
            with contextlib.suppress(FileNotFoundError):  # another run has packed it too
                os.rename(self.path("evaluations", key), gone / key)
        self._leave(gone)
        return len(keys)

    def unpack(self, name: str) -> None:
        """Give every evaluation of a pack that is undamaged a folder again, and set the pack aside."""
        for key, files in self.packs.salvaged(name):
            staged = self.stage(key)
            for file, content in files.items():
                write_atomic(staged / file, content)
            self._put("evaluations", key, staged)
            self._leave(staged)
        self.set_aside(self.packs.folder / name)
        self.packs.forget(name)

    def record(self, evaluation: str) -> Record | None:
        """The record of an evaluation, checked.

        None where it is not committed, or was damaged and has been set aside.
        """
        if not self.sound("evaluations", evaluation):
            return None
        return Record.from_json(self.json("evaluations", evaluation, "record.json"))

    def has_weights(self, fit: str) -> bool:
        """Whether a committed fit still has its weights."""
        return any((self.path("fits", fit) / name).exists() for name in (WEIGHTS, ADAPTER))

    def weights_freed(self, fit: str) -> bool:
        """Whether a fit's weights were freed, as a tombstone says; those that are missing are damage."""
        path = self.weights_file(fit)
        return not path.exists() and path.with_name(path.name + TOMBSTONE).exists()

    def weights_file(self, fit: str) -> Path:
        """The weights of a fit, there or freed: `ADAPTER` where it has such, else `WEIGHTS`."""
        folder = self.path("fits", fit)
        there = (folder / ADAPTER).exists() or (folder / (ADAPTER + TOMBSTONE)).exists()
        return folder / (ADAPTER if there else WEIGHTS)

    def evict_weights(self, fit: str, reason: str) -> int:
        """Free the weights of a fit and leave a tombstone; returns the bytes freed."""
        path = self.weights_file(fit)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return 0
        write_json(path.with_name(path.name + TOMBSTONE), {"bytes": size, "reason": reason})
        path.unlink(missing_ok=True)
        return size

    def restore_weights(self, fit: str, staged: Path, provenance: Mapping[str, Any]) -> bool:
        """Put refitted weights where a tombstone stood.

        Weights of another execution class may have other bits. They are the same science, so they count, as a
        replica: the fit's checksums are theirs from then on, and ``replicas.json`` beside them says which
        weights stood there before.

        Args:
            fit: Key of the fit.
            staged: The refit.
            provenance: How it was computed.

        Returns:
            Whether the bits are those that were committed.
        """
        target, name = self.path("fits", fit), self.weights_file(fit).name
        sums = read_json(target / CHECKSUMS)
        expected = sums.get(name)
        seal(staged)
        found = read_json(staged / CHECKSUMS)[name]  # nothing is written where there are no weights
        if expected != found:
            known = read_json(target / REPLICAS) if (target / REPLICAS).exists() else []
            write_json(
                target / REPLICAS,
                [*known, {"before": expected, "now": found, "provenance": dict(provenance)}],
            )
            # before the weights: until then the tombstone excuses them
            write_json(target / CHECKSUMS, {**sums, name: found})
        os.replace(staged / name, target / name)
        (target / (name + TOMBSTONE)).unlink(missing_ok=True)
        self._leave(staged)
        return bool(expected == found)
