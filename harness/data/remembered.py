"""What is known of published data and models, kept beside the hub's cache.

A revision never changes, so it is read once to be known for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

from harness.data.hub import Caches, place_of
from harness.errors import DamagedError
from harness.files import read_json, write_json
from harness.section import HUB

VERSION = 1
"""Of how hub data and models are read."""


class Note:
    """One thing that need not be found out again."""

    def __init__(self, *about: Any) -> None:
        """Name it by all that it depends on, beside how it is read."""
        name = hashlib.sha256(json.dumps([VERSION, *about]).encode()).hexdigest()[:32]
        self._path = Caches.default().datasets / "fingerprints" / f"{name}.json"

    def read(self, *names: str) -> dict[str, Any] | None:
        """What was written; None where nothing sound was, or it has not all that is wanted of it."""
        with contextlib.suppress(DamagedError, OSError):
            found = read_json(self._path)
            if isinstance(found, dict) and found.keys() >= set(names):
                return found
        return None

    def write(self, found: dict[str, Any]) -> None:
        """Keep it; a cache that cannot be written keeps nothing."""
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, found)


def recall(source: str, revision: str | None, use: str) -> dict[str, Any] | None:
    """What `remember` was given; None where nothing is remembered, or the source is not of the hub.

    Args:
        source: As in ``data.source``.
        revision: Its revision; None for the newest.
        use: What of the data the fingerprint is of.
    """
    note = _note(source, revision, use)
    found = None if note is None else note.read("fingerprint")
    return found if found is not None and isinstance(found["fingerprint"], str) else None


def remember(source: str, revision: str | None, use: str, found: dict[str, Any]) -> None:
    """Keep a fingerprint, and what else is to be known without reading the data."""
    note = _note(source, revision, use)
    if note is not None:
        note.write(found)


def _note(source: str, revision: str | None, use: str) -> Note | None:
    place = place_of(source, revision) if source.startswith(HUB) else None
    return None if place is None else Note(*place, use)
