"""Packs of what complete chains have left, made beside a run (`harness.store.packs`)."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from harness.store import Store

PACK_AT = 2048
"""Evaluations that are worth a pack: a store of fewer keeps its folders, which anybody can look into."""


class Packing:
    """Packs the evaluations of complete chains in a thread of its own, so many at a time."""

    def __init__(self, store: Store) -> None:
        """Nothing is packed yet."""
        self._store, self._loose = store, dict[str, None]()
        self._pool, self._begun = ThreadPoolExecutor(1), list[Future[int]]()

    def add(self, evaluations: Iterable[str]) -> None:
        """Those of a chain that is complete."""
        folders = (key for key in evaluations if self._store.path("evaluations", key).is_dir())
        self._loose.update(dict.fromkeys(folders))
        if len(self._loose) >= PACK_AT:
            self._begun.append(self._pool.submit(self._store.pack, list(self._loose)))
            self._loose = {}

    def problems(self) -> list[str]:
        """Wait for what has been begun; returns why something could not be packed."""
        self._pool.shutdown()
        found = [future.exception() for future in self._begun]
        return [
            f"records stay in their folders, for they cannot be packed: {error}" for error in found if error
        ]
