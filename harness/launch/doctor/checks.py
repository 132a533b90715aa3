"""What a check found, and small helpers to say so."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from harness.proc import wait_gone

Severity = Literal["ok", "warning", "failure"]


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: What was checked.
        severity: ``ok``; ``warning``: it works, but worse than it could; ``failure``: a study would fail.
        found: What there is, in numbers with units.
        remedy: What to do about it; empty where it is ok.
        where: The machine.
    """

    name: str
    severity: Severity
    found: str
    remedy: str = ""
    where: str = ""


def ok(name: str, found: str) -> Check:
    """A check that found nothing wrong."""
    return Check(name, "ok", found)


def graded(
    name: str, found: str, failures: Sequence[str], warnings: Sequence[str] = (), *, remedy: str = ""
) -> Check:
    """A check of several parts.

    Args:
        name: What was checked.
        found: What there is; shown in any case.
        failures: What is wrong; any makes the check a failure.
        warnings: What could be better; any makes it a warning, unless something is wrong.
        remedy: What to do; left out where nothing is to be done.
    """
    severity: Severity = "failure" if failures else "warning" if warnings else "ok"
    said = "; ".join(dict.fromkeys([*failures, *warnings, *([found] if found else [])]))
    return Check(name, severity, said, remedy if severity != "ok" else "")


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def scratch_prefix() -> str:
    """How temporary folders of this process begin: where it is killed, the next one knows them by it."""
    return f"hd-{os.getpid()}-"


def clear_scratch() -> None:
    """Remove the temporary folders of processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob("hd-*-*"):
        owner = path.name.split("-")[1]
        with contextlib.suppress(OSError):
            if owner.isdigit() and path.stat().st_uid == os.getuid() and not psutil.pid_exists(int(owner)):
                shutil.rmtree(path, ignore_errors=True)


class ChildError(Exception):
    """A child process failed or took too long; the message says which."""


def end_tree(process: subprocess.Popen[str]) -> None:
    """Kill a child with all that it has started."""
    members: list[psutil.Process] = []
    try:
        parent = psutil.Process(process.pid)
        members = [*parent.children(recursive=True), parent]
    except psutil.Error:
        pass
    for member in members:
        try:
            member.kill()
        except psutil.Error:
            pass
    wait_gone([member for member in members if member.pid != process.pid], 5.0)
    process.wait()


def run(command: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> str:
    """The standard output of a command.

    Args:
        command: Program and arguments.
        limit_s: It is killed after this long, with all that it has started.
        environment: Its environment; this process's own where it is not given.

    Raises:
        ChildError: It is not there, took too long, or failed; says what it said last.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    except OSError as error:
        raise ChildError(f"{command[0]}: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        end_tree(process)
        raise ChildError(f"no answer within {limit_s:.0f} s") from None
    if process.returncode:
        said = [line for line in err.splitlines() if line.strip()] or [f"exit code {process.returncode}"]
        raise ChildError(said[-1].strip()[:300])
    return out


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of the harness in a process of its own."""
    return [sys.executable, "-m", module, *arguments]


def last_line(output: str) -> str:
    """What a child has to say is its last line: libraries print before it."""
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines:
        raise ChildError("it said nothing")
    return lines[-1]


def text_of(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def told(*checks: Check) -> dict[str, Any]:
    """Checks as a probe sends them."""
    return {"checks": [vars(check) for check in checks]}
