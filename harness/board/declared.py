"""What a study claims, and whether it said so before the first fit."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field

from harness.errors import DamagedError, InputError
from harness.files import read_json
from harness.science import key_of
from harness.section import Section
from harness.store import Experiment, Store
from harness.store.experiment import declaration
from harness.study import Prepared

ROUNDING_S = 1.0
"""Times of commits are kept to the second."""


class Declared(Section):
    """What a study claims, and since when."""

    hash: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    """Of the claims and of all that they are about; which part of it is run, and how, is not in it."""
    time: str | None
    """UTC time of the first run that said so; None where the store has no such run."""
    before: bool
    """Whether that was before the first fit of the entry's chains began."""
    claims: tuple[dict[str, Any], ...]
    """As the study has them."""


def claimed(prepared: Prepared) -> dict[str, Any] | None:
    """What a study claims, with all that it is about; None where it claims nothing."""
    return declaration(prepared.study.source.data)


def declared_of(
    prepared: Prepared, store: Store, cell: int, own: Any, said: Mapping[str, Any] | str | None
) -> Declared | None:
    """What has been claimed of a cell, before or after it was first run.

    Args:
        prepared: The study.
        store: Its store.
        cell: Number of the cell.
        own: The rows of the cell, with their provenance.
        said: From `claimed`, or the hash of it; of what the store does not have there are no claims then.

    Returns:
        None where nothing is claimed.
    """
    if said is None:
        return None
    key = said if isinstance(said, str) else key_of(said)
    time, claims = _declaration(store, key)
    if not isinstance(said, str):
        claims = said["claims"]
    first = _first_fit(prepared, store, cell, own)
    before = time is not None and (first is None or time <= first)
    return Declared(hash=key, time=_utc(time), before=before, claims=tuple(claims))


def _declaration(store: Store, key: str) -> tuple[float | None, list[Any]]:
    """When a declaration was first written on a store, in seconds, and its claims; None where it never was.

    Raises:
        InputError: It is there, and is not what its name says.
    """
    times, claims = [], list[Any]()
    for path in store.root.glob(f"experiments/*/declared/{key}.json"):
        try:
            found = read_json(path)
            if key_of(found["declaration"]) != key:
                raise ValueError
            time = float(found["time"])
            _utc(time)  # a time that no calendar has is none
            times.append(time)
            claims = list(found["declaration"]["claims"])
        except (DamagedError, KeyError, TypeError, ValueError, OverflowError, OSError):
            raise InputError(f"{path} is damaged: it is not the declaration that its name says") from None
    return min(times, default=None), claims


def _utc(time: float | None) -> str | None:
    return None if time is None else datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds")


def _first_fit(prepared: Prepared, store: Store, cell: int, own: Any) -> float | None:
    """When the first fit of a cell's chains began, as far as the store knows; seconds.

    A bundle is there as a whole or not at all, so what came of it was known at its end at the earliest; the
    fits of other chains can be looked into while they go on, so the first time that any was begun counts.
    """
    begun = []
    if len(own):
        seconds = [name for name in own.columns if name.startswith("provenance/seconds/")]
        for end, took in zip(own["provenance/finished"], own[seconds].sum(axis=1), strict=True):
            begun.append(datetime.fromisoformat(end).timestamp() + ROUNDING_S - took)
    nodes = prepared.lineage.nodes
    fits = {nodes[key].fit for c in prepared.lineage.chains if c.cell == cell for key in c.nodes}
    if fits:
        for folder in (store.root / "experiments").glob("*"):
            events = Experiment(store.root, folder.name).events()
            begun += [
                float(e["time"]) for e in events if e["event"] == "fit_started" and e.get("fit") in fits
            ]
    return min(begun, default=None)
