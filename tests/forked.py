"""Command lines in processes of their own that begin with the large libraries imported.

Importing them is most of what a small command takes. A server imports them once and forks for each command,
which then has its own environment, streams, folder, exit code and end of the interpreter, as a new process
has. Libraries that read the environment as they are imported are left to the commands.

``python forked.py [MODULE ...]`` is the server, which imports these modules too: an order as JSON on each
line of its input, the child's process id and its exit code on two lines of its output.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forked_worker import take_workers

LIBRARIES = (
    "torch",
    "torch.utils.data",
    "ray",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "rich.console",
    "typer",
    "yaml",
    "safetensors.torch",
    "tokenizers",
    "sympy",
    "scipy.special",
    "jinja2",
    "httpx",
    "requests",
    "fsspec",
    "dill",
)
"""Without those of the hub, whose client remembers the environment."""
HARNESS = ("harness.api", "harness.cli", "harness.coordinator.coordinator")
"""Unless a command looks elsewhere for packages: what is added to the harness is found as it is imported."""
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "RAY_", "LD_", "LC_", "LANG", "MALLOC_", "TORCH")
"""Variables that the interpreter or these libraries look at only once."""
LEFT_BEHIND = (
    *("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_CLIENT_MODE", "PYTHONBREAKPOINT"),
    *("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS", "TRITON_CACHE_DIR"),
)
"""What Ray leaves in the environment of a process that has joined it, and torch and a rank in one that has
fitted; no command is to inherit that."""


class Forks:
    """A server of this process, started with the first command, ended with the process."""

    def __init__(self, *modules: str) -> None:
        """Modules are imported too; without any, commands may have a ``PYTHONPATH`` of their own."""
        self._modules = modules
        self._server: subprocess.Popen[str] | None = None
        self._busy = threading.Lock()
        self._start: dict[str, str] = {}

    def run(
        self, command: Sequence[str], environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str] | None:
        """What ``subprocess.run`` gives for ``python -m harness ...``; None where a new process is needed.

        Raises:
            subprocess.TimeoutExpired: It did not end in time, and was killed.
        """
        early = {name for name in environment if name.startswith(READ_AT_START)}
        if early - (set() if self._modules else {"PYTHONPATH"}):
            return None
        if not self._busy.acquire(blocking=False):
            return None
        try:
            return self._ask(command, environment, timeout)
        finally:
            self._busy.release()

    def _ask(
        self, command: Sequence[str], environment: dict[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str] | None:
        server = self._ready()
        if server is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            streams = {"out": str(out), "err": str(err)}
            given = {name: value for name, value in os.environ.items() if name not in LEFT_BEHIND}
            order = {"arguments": list(command[3:]), "environment": {**given, **environment}, **streams}
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(json.dumps(order | {"cwd": os.getcwd()}) + "\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            late = not select.select([server.stdout], [], [], timeout)[0]
            if late:
                os.kill(child, 9)
            code = int(server.stdout.readline())
            told = [path.read_text(encoding="utf-8") for path in (out, err)]
        if late:
            raise subprocess.TimeoutExpired(command, timeout, *told)
        return subprocess.CompletedProcess(command, code, *told)

    def _ready(self) -> subprocess.Popen[str] | None:
        seen = {
            name: value
            for name, value in os.environ.items()
            if name.startswith(READ_AT_START) and name not in LEFT_BEHIND
        }
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, str(Path(__file__)), *self._modules],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[1],
            )
            self._start = seen
        return self._server if seen == self._start else None


def serve() -> dict[str, Any]:
    """Fork for each order; returns in a child, with its order."""
    for name in (*LIBRARIES, *sys.argv[1:]):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a collection would copy all that is shared
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        child = os.fork()
        if not child:
            return order
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    os._exit(0)


def begin(order: dict[str, Any]) -> None:
    """Become the process that a command starts as."""
    os.chdir(order["cwd"])
    before, after = (
        environment.get("PYTHONPATH", "").split(os.pathsep)
        for environment in (os.environ, order["environment"])
    )
    others = [path for path in sys.path if path not in (*before, str(Path(__file__).parent))]
    sys.path[:] = [order["cwd"], *filter(None, after), *others]
    os.environ.clear()
    os.environ.update(order["environment"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    places = ((os.devnull, os.O_RDONLY), (order["out"], flags), (order["err"], flags))
    for descriptor, (path, how) in enumerate(places):
        opened = os.open(path, how, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin, sys.stdout, sys.stderr = (
        open(descriptor, mode, encoding="utf-8", closefd=False)
        for descriptor, mode in enumerate(("r", "w", "w"))
    )
    sys.argv = ["harness", *order["arguments"]]
    take_workers()


if __name__ == "__main__":
    begin(serve())
    runpy.run_module("harness", run_name="__main__", alter_sys=True)
