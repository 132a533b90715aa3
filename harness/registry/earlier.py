"""Of which packages a study's components were when it was run: one of them may be missing by now."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.errors import ConfigError, InputProblem, StoreError
from harness.files import read_json, write_json
from harness.terminal import cut, shown, visible

_MISSING = re.compile(r"found '([^']+)', (?=allowed: )")
"""Begins what is said of a kind that there is not."""


def note(folder: Path, data: Any, added: Mapping[str, str]) -> None:
    """Note of which packages a study's components are, beside those of earlier runs.

    Args:
        folder: The experiment's.
        data: The study, as its file has it.
        added: What packages add here, by kind: their names and versions.
    """
    known = _known(folder)
    if (found := {**known, **{kind: added[kind] for kind in _texts(data) if kind in added}}) != known:
        write_json(_place(folder), found)


@contextlib.contextmanager
def naming_packages(folder: Path | None) -> Iterator[None]:
    """Say of kinds that there are not any more of which packages they were.

    Args:
        folder: The experiment's; None where no study can have that name.

    Raises:
        ConfigError: What was raised inside, with that.
    """
    try:
        yield
    except ConfigError as error:
        known = _known(folder) if folder else {}
        if not known:
            raise
        raise ConfigError([_named(problem, known) for problem in error.problems]) from None


def _named(problem: InputProblem, known: Mapping[str, str]) -> InputProblem:
    found = _MISSING.match(problem.message)
    if found is None or found[1] not in known:
        return problem
    package = visible(cut(known[found[1]]), lines=False)
    was = f"found {shown(found[1])}, which the package {package} added when this study was run here"
    return replace(problem, message=f"{was}, and nothing adds now; {problem.message[found.end() :]}")


def _texts(data: Any) -> set[str]:
    """All texts of a study, at any depth."""
    if isinstance(data, str):
        return {data}
    inner = data.values() if isinstance(data, Mapping) else data if isinstance(data, list | tuple) else ()
    return set().union(*map(_texts, inner))


def _known(folder: Path) -> dict[str, str]:
    """What earlier runs have noted; what cannot be read is missing in a message, and stops nothing."""
    with contextlib.suppress(StoreError):
        found = read_json(_place(folder))
        if isinstance(found, Mapping):
            return {kind: str(package) for kind, package in found.items()}
    return {}


def _place(folder: Path) -> Path:
    return folder / "packages.json"
