"""Fingerprints of hub data, kept beside its cache.

A revision never changes, so it is read once to be known for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from harness.data.hub import Caches, place_of
from harness.errors import DamagedError
from harness.files import read_json, write_json
from harness.section import HUB

VERSION = 1
"""Of how texts are read from hub data."""


def recall(source: str, revision: str | None, use: str) -> dict[str, Any] | None:
    """What `remember` was given; None where nothing is remembered, or the source is not of the hub.

    Args:
        source: As in ``data.source``.
        revision: Its revision; None for the newest.
        use: What of the data the fingerprint is of.
    """
    note = _note(source, revision, use)
    if note is None:
        return None
    try:
        found = read_json(note)
    except (DamagedError, OSError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("fingerprint"), str) else None


def remember(source: str, revision: str | None, use: str, found: dict[str, Any]) -> None:
    """Keep a fingerprint, and what else is to be known without reading the data.

    A cache that cannot be written keeps nothing.
    """
    note = _note(source, revision, use)
    if note is not None:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_json(note, found)


def _note(source: str, revision: str | None, use: str) -> Path | None:
    place = place_of(source, revision) if source.startswith(HUB) else None
    if place is None:
        return None
    name = hashlib.sha256(json.dumps([VERSION, *place, use]).encode()).hexdigest()[:32]
    return Caches.default().datasets / "fingerprints" / f"{name}.json"
