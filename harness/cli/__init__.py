"""The commands: they turn errors into messages and exit codes, and wire the rest together.

Nothing heavy is imported before a command runs, so ``--help`` is quick and needs neither ray nor torch.
"""

from __future__ import annotations

import inspect
import os
import sys
import tempfile
import traceback
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import NoReturn

from typer import Typer

from harness import terminal
from harness.cli import board, discover, grid, machine, reference, results, slurm  # noqa: F401 (commands)
from harness.cli.app import EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED, app
from harness.errors import HarnessError, InputError

INTERRUPTED = 130
"""The code with which typer ends where Ctrl-C interrupts a command; no command ends with it by itself."""


def _unwrap(group: Typer) -> None:
    """Give commands' texts to who shows them without the line breaks of the source.

    Otherwise a terminal of another width breaks each line twice.
    """
    for command in group.registered_commands:
        text = inspect.getdoc(command.callback) or ""
        command.help = command.help or "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _unwrap(inner.typer_instance)


_unwrap(app)


def main() -> None:
    """The console script: every error is one message and an exit code, never a traceback."""
    terminal.open_streams()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        _command()
    except InputError as error:
        details = f" (details: {_details()})" if _is_code(error.__cause__) else ""
        terminal.show(f"error: {error}{details}", sys.stderr)
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


def _command() -> None:
    """Do what the command line asks for; Ctrl-C, which typer makes an exit code of, stays what it is."""
    try:
        app(prog_name="harness")  # of ``python -m harness`` too: shells complete what is called so
    except SystemExit as end:
        if end.code == INTERRUPTED:
            raise KeyboardInterrupt from None
        raise


def _extra_with(module: str) -> str:
    """The smallest part of the distribution that comes with a module; empty where none does."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    name = canonicalize_name(module.partition(".")[0])
    try:
        about = metadata("model-collapse-harness")
    except PackageNotFoundError:  # a checkout that is not installed
        return ""
    items = [Requirement(line) for line in about.get_all("Requires-Dist") or ()]
    parts = {
        extra: {canonicalize_name(i.name) for i in items if i.marker and i.marker.evaluate({"extra": extra})}
        for extra in about.get_all("Provides-Extra") or ()
    }
    return min((extra for extra in parts if name in parts[extra]), key=lambda e: len(parts[e]), default="")


def _defect(error: Exception) -> NoReturn:
    """Something that should not happen, by the harness or by a package; the details go to a file."""
    from harness.registry.blame import culprit

    whose = culprit(error) or "this is a defect of the harness"
    terminal.show(f"error: {whose}: {type(error).__name__}: {error} (details: {_details()})", sys.stderr)
    raise SystemExit(EXIT_FAILED) from None


def _is_code(cause: BaseException | None) -> bool:
    """Whether what an error comes from is a defect of a package's code, of which there are lines to read."""
    if cause is None:
        return False
    from harness.registry.blame import culprit

    return _is_code(cause.__cause__) if isinstance(cause, HarnessError) else bool(culprit(cause))


def _details() -> Path:
    """The file that the error in hand is written to, with every line of code that it has come by."""
    path = Path(
        tempfile.mkstemp(prefix="harness-error-", suffix=".log", dir=os.environ.get("HARNESS_ERRORS"))[1]
    )
    path.write_text(traceback.format_exc(), encoding="utf-8")
    return path


__all__ = ["app", "main"]
