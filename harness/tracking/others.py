"""Trackers besides W&B: told of every chain once, with all its generations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.components import TRACKERS
from harness.files import read_json, write_json
from harness.registry import named
from harness.tracking.runs import ChainView

SENT = "sent"
"""Folder of the notes, in a tracker's own: which evaluations of a chain it has been told of."""


def tell(names: Sequence[str], view: ChainView, folder: Path) -> list[str]:
    """Tell trackers of a chain, unless they have been told of all of it.

    Args:
        names: ``tracking.trackers``.
        view: The chain.
        folder: Of the experiment's trackers; each has one of its own in it, which is there when it is called.

    Returns:
        What went wrong, one line for each tracker: it is told again by the next run.
    """
    wrong = []
    for name in names:
        note = folder / name / SENT / f"{view.chain}.json"
        if note.exists() and read_json(note) == _said(name, view, folder):
            continue
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            named(TRACKERS[name].write)(view, folder / name)
        except Exception as error:  # a tracker must never stop a chain, whatever it raises
            reason = _without_passwords((str(error).splitlines() or [""])[0])
            wrong.append(f"tracker {name}: {view.chain}: {type(error).__name__}: {reason}")
            continue
        write_json(note, _said(name, view, folder))
    return wrong


def _said(name: str, view: ChainView, folder: Path) -> Any:
    """What a tracker has been told, and where it wrote it."""
    where = TRACKERS[name].where
    return (
        {"where": named(where)(folder / name), "evaluations": view.evaluations} if where else view.evaluations
    )


def _without_passwords(text: str) -> str:
    """A message without what stands between a name and the @ of an address."""
    return re.sub(r"(://[^\s:/@]*):[^\s@]+@", r"\1:***@", text)
