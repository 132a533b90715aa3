"""Whose code an error comes from, where it is not the harness's own."""

from __future__ import annotations

import traceback
from importlib.metadata import packages_distributions
from pathlib import Path

_MODULES: dict[str, str] = {}
"""Module to the package that names it in its metadata, without what stands behind a dot."""


def note_modules(package: str, module: str) -> None:
    """Note a module that a package's component is in."""
    _MODULES[module.partition(".")[0]] = package


def culprit(error: BaseException) -> str:
    """The package whose code raised an error, or called what did, with file and line; empty where none did.

    Args:
        error: As it was caught, with its traceback.
    """
    package, line = culprits_line(error)
    return f"the package {package} ({line})" if package else ""


def culprits_line(error: BaseException) -> tuple[str, str]:
    """The package whose code raised an error, or called what did, and its line; both empty where none did."""
    adding, others = set(_MODULES.values()), packages_distributions() if _MODULES else {}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        found = [_MODULES[module]] if module in _MODULES else adding.intersection(others.get(module, ()))
        for package in found:
            return package, f"{Path(frame.f_code.co_filename).name}, line {line}"
    return "", ""
