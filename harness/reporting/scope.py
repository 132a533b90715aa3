"""Which cells and seeds a page is of, noted beside it: a page of a part of a grid may replace one of all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import DamagedError
from harness.files import read_json, write_json
from harness.reporting.ledger import cell_value
from harness.study import Prepared
from harness.terminal import counted

NAME = "scope.json"


def rescoped(prepared: Prepared, folder: Path) -> str:
    """What is said where the page that was in a folder had cells or seeds that this study's lacks.

    Notes what the new one is of; call it when that has been written.

    Args:
        prepared: The study.
        folder: Of the page.

    Returns:
        A sentence; empty where nothing is missing, and where nobody noted what the page was of.
    """
    now = {
        "columns": list(prepared.study.columns),
        "cells": [
            [cell_value(cell.axes[name]) for name in prepared.study.columns]
            for cell in prepared.study.cells
            if not cell.teacher
        ],
        "seeds": list(prepared.study.seeds),
    }
    before: Any = None
    with contextlib.suppress(DamagedError, OSError):
        before = read_json(folder / NAME)
    with contextlib.suppress(OSError):  # the page is there, which counts
        write_json(folder / NAME, now)
    try:
        if before is None or not _lacks(now, before):
            return ""
        was = _counts(before)
    except (KeyError, TypeError, ValueError):
        return ""
    return (
        f"note: the page that was in {folder} had cells or seeds that this one has not: it was of {was}, "
        f"this one is of {_counts(now)}; the command without what leaves them out makes it again, --out "
        "writes elsewhere"
    )


def _counts(page: Mapping[str, Any]) -> str:
    return f"{counted(len(page['cells']), 'cell')} and {counted(len(page['seeds']), 'seed')}"


def _lacks(now: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a page has not all cells, or seeds, of another one; an axis more takes nothing away."""
    if not set(before["seeds"]) <= set(now["seeds"]) or not set(before["columns"]) <= set(now["columns"]):
        return True
    places = [now["columns"].index(name) for name in before["columns"]]
    cells = {json.dumps([cell[place] for place in places]) for cell in now["cells"]}
    return not {json.dumps(cell) for cell in before["cells"]} <= cells
