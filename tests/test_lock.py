"""The lock pins what the package asks for, and nothing else: what is installed besides is paid for at every
start, as by a Ray that finds the libraries of its dashboard."""

from __future__ import annotations

import tomllib
from importlib.metadata import requires

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EDITABLE = ("editables",)
"""What hatchling asks for while it makes an editable install."""


def asked_for(wanted: list[Requirement]) -> set[str]:
    """All that some requirements lead to on this platform, by the metadata of what is installed."""
    found = set[tuple[str, str]]()
    todo = [(item.name, extra) for item in wanted for extra in _extras(item)]
    while todo:
        name, extra = todo.pop()
        if (key := (canonicalize_name(name), extra)) in found:
            continue
        found.add(key)
        for item in map(Requirement, requires(name) or []):
            if item.marker is None or item.marker.evaluate({"extra": extra}):
                todo += [(item.name, further) for further in _extras(item)]
    return {name for name, _ in found}


def _extras(item: Requirement) -> list[str]:
    return ["", *item.extras]


def test_every_pin_is_asked_for() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    parts = settings["project"]["optional-dependencies"].values()
    lines = [*settings["project"]["dependencies"], *settings["build-system"]["requires"], *EDITABLE]
    every = [Requirement(line) for line in [*lines, *(line for part in parts for line in part)]]
    own = canonicalize_name(settings["project"]["name"])
    pins = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in pins}
    assert len(pinned) > 100 and not pinned - asked_for([item for item in every if item.name != own])
