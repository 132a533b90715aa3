"""The commands: they turn errors into messages and exit codes, and wire the rest together.

Nothing heavy is imported before a command runs, so ``--help`` is quick and needs neither ray nor torch.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import NoReturn

from harness import terminal
from harness.cli import board, discover, grid, machine, reference, results, slurm  # noqa: F401 (commands)
from harness.cli.app import EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, app
from harness.errors import HarnessError, InputError


def main() -> None:
    """The console script: every error is one message and an exit code, never a traceback."""
    terminal.open_streams()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except InputError as error:
        terminal.show(f"error: {error}", sys.stderr)
        raise SystemExit(EXIT_INPUT) from None
    except HarnessError as error:
        terminal.show(f"error: {error}", sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:
        from harness.coordinator.failures import classify

        kind, message = classify(error)
        if kind != "store":
            _defect(error)
        terminal.show(
            f"error: {message}; nothing that was committed is lost: make room, and run the command again",
            sys.stderr,
        )
        raise SystemExit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        terminal.show("interrupted; nothing committed is lost, run the same command again", sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None
    except ModuleNotFoundError as error:
        if not (extra := _extra_with(error.name or "")):
            _defect(error)
        remedy = f"pip install 'model-collapse-harness[{extra}]'"
        terminal.show(f"error: this needs {error.name}, which is not installed; {remedy}", sys.stderr)
        raise SystemExit(EXIT_INPUT) from None
    except Exception as error:
        _defect(error)


def _extra_with(module: str) -> str:
    """The smallest part of the distribution that comes with a module; empty where none does."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name, sizes, having = canonicalize_name(module.partition(".")[0]), Counter[str](), set[str]()
    lines: list[str] = []
    with suppress(PackageNotFoundError):  # a checkout that is not installed
        lines = requires("model-collapse-harness") or []
    for item in map(Requirement, lines):
        if found := re.search(r"extra == ['\"](\w+)['\"]", str(item.marker or "")):
            sizes[found[1]] += 1
            having |= {found[1]} if canonicalize_name(item.name) == name else set()
    return min(having, key=sizes.__getitem__, default="")


def _defect(error: Exception) -> NoReturn:
    """Something that should not happen, by the harness or by a package; the details go to a file."""
    path = Path(
        tempfile.mkstemp(prefix="harness-error-", suffix=".log", dir=os.environ.get("HARNESS_ERRORS"))[1]
    )
    path.write_text(traceback.format_exc(), encoding="utf-8")
    from harness.registry.blame import blamed

    said, plain = blamed(error), f"{type(error).__name__}: {error}"
    whose = said if said.startswith("the package ") else f"this is a defect of the harness: {plain}"
    terminal.show(f"error: {whose} (details: {path})", sys.stderr)
    raise SystemExit(EXIT_FAILED) from None


__all__ = ["app", "main"]
