"""What is not finished.

Checkpoints of a fit and finished pieces of an evaluation, in ``work/<key>/<token>/``.

A successor adopts what its predecessor completed by renaming it into its own workplace, so a predecessor that
was only paused cannot change it any more.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.errors import DamagedError
from harness.files import read_json, remove_tree, seal, sync_file, verify, write_json

_CHECKPOINT = re.compile(r"^checkpoint-(\d{9})$")
ABOUT = "about.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint of a fit.

    Attributes:
        step: Optimizer steps that are done.
        folder: Its files.
        about: What it was written under: ranks, ZeRO stage and the rest of the execution class.
    """

    step: int
    folder: Path
    about: Mapping[str, Any]


class Workplace:
    """One ``work/<key>/<token>/``; the caller holds the key's lease."""

    def __init__(self, staged: Path) -> None:
        """Take the workplace of a staged item.

        Args:
            staged: From `Store.stage`.
        """
        self.folder = staged.parent

    def begin(self, step: int) -> Path:
        """An empty folder for the files of a checkpoint that is being written."""
        folder = self.folder / f".checkpoint-{step:09d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def commit(self, step: int, about: Mapping[str, Any], sums: Mapping[str, Mapping[str, Any]]) -> None:
        """Make a checkpoint count, and remove the one before.

        Args:
            step: As given to `begin`.
            about: See `Checkpoint`.
            sums: Checksums of the files, as each rank computed them for its own.
        """
        writing, final = self.folder / f".checkpoint-{step:09d}", self.folder / f"checkpoint-{step:09d}"
        write_json(writing / ABOUT, {"step": step, **about})
        seal(writing, sums)
        os.rename(writing, final)
        sync_file(self.folder)
        for older in self._checkpoints(self.folder):
            if older != final:
                shutil.rmtree(older, ignore_errors=True)

    @staticmethod
    def _checkpoints(place: Path) -> list[Path]:
        with contextlib.suppress(OSError):
            return [place / name for name in os.listdir(place) if _CHECKPOINT.match(name)]
        return []

    def adopt(self, usable: Callable[[Mapping[str, Any]], str | None]) -> tuple[Checkpoint | None, list[str]]:
        """Take over what predecessors on this key have left, and remove the rest of it.

        Args:
            usable: From a checkpoint's ``about`` to the reason why it cannot be gone on from; None where it
                can.

        Returns:
            The furthest checkpoint that can be used, and why further ones could not.
        """
        others = [place for place in self.folder.parent.iterdir() if place != self.folder]
        found, reasons = None, []
        for path in sorted(
            (path for place in others for path in self._checkpoints(place)),
            key=lambda p: p.name,
            reverse=True,
        ):
            try:
                verify(path)
                about = read_json(path / ABOUT)
                reason = usable(about)
            except (DamagedError, OSError) as error:
                reason = f"it is damaged ({error})"
            if reason is None:
                target = self.folder / path.name
                os.rename(path, target)
                found = Checkpoint(int(about["step"]), target, about)
                break
            reasons.append(f"{path.name}: {reason}")
        for place in others:
            self._take_pieces(place)
            remove_tree(place)
        return found, reasons

    def _take_pieces(self, place: Path) -> None:
        with contextlib.suppress(OSError):
            for path in place.glob("piece-*.safetensors"):
                os.rename(path, self.folder / path.name)

    def write_piece(self, name: str, values: npt.NDArray[np.float64]) -> None:
        """Keep a finished part of an evaluation."""
        path = self.folder / f"piece-{name}.safetensors"
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}")
        save_file(
            {"values": values}, temporary, metadata={"sha256": hashlib.sha256(values.tobytes()).hexdigest()}
        )
        sync_file(temporary)
        os.replace(temporary, path)

    def read_piece(self, name: str) -> npt.NDArray[np.float64] | None:
        """A part that was finished before; None where it was not, or is damaged."""
        try:
            with safe_open(self.folder / f"piece-{name}.safetensors", "np") as file:
                values: npt.NDArray[np.float64] = file.get_tensor("values")
                good = (file.metadata() or {}).get("sha256") == hashlib.sha256(values.tobytes()).hexdigest()
        except (OSError, SafetensorError):
            return None
        return values if good else None
