"""Ranks in processes that begin with the large libraries imported.

Ray's daemon starts this file for every worker (`take_workers`). It asks a `Server`, which has imported what
ranks of language models import, to fork; the child becomes the worker that the daemon wanted, with its
environment, streams and folder, and this process waits for its end. Where what libraries read as they are
imported is not as it is for the server, the worker starts as ever. Tests ask for ranks without Ray (`fork`).
"""

from __future__ import annotations

import array
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SOCKET = "HARNESS_TEST_WORKERS"
"""The variable with the server's address."""
LIBRARIES = (
    "harness.learners.language_model.distributed",
    "harness.learners.language_model.imports",
    "harness.learners.language_model.learner",
    "harness.learners.vae.learner",
    "harness.chain",
    "harness.preparation",
    "harness.store",
    "psutil",
)
AS_A_RANK = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
"""What a rank on one processor sets before it imports anything."""
READ_AT_START = tuple(
    "PYTHON OMP_ MKL_ OPENBLAS_ LD_ LC_ LANG MALLOC_ TORCH HOME HUGGINGFACE_ XDG_ DS_ DEEPSPEED_ CUDA_ "
    "NUMBA_".split()
)
"""How names of variables begin that libraries look at once."""
READ_LATER = ("PYTHONPATH", "TORCHINDUCTOR_")
READ_AGAIN = ("huggingface_hub.constants", "datasets.config")
"""Modules that have looked at ``HF_...`` and ``TRANSFORMERS_...``, and look again where these say something
else."""
COPIED_BY = ("huggingface_hub", "datasets", "transformers", "peft", "harness")


def main() -> None:
    """Be a worker, or wait for the one that the server has forked."""
    arguments = [each for each in sys.argv[1:] if not each.startswith("--language")]
    with contextlib.suppress(OSError):
        code = _ask(arguments)
        if code is not None:
            os._exit(code)
    os.execv(sys.executable, [sys.executable, *arguments])


def _ask(arguments: list[str]) -> int | None:
    """The exit code of a forked worker; None where there is none."""
    if any(each.startswith("--serialized-runtime-env-context") for each in arguments):
        return None
    child = fork(arguments, dict(os.environ), [0, 1, 2])
    return None if child is None else child.wait()


class Forked:
    """A process that the server has forked; it ends at the latest when whoever has asked for it ends."""

    def __init__(self, connection: socket.socket) -> None:
        """Its exit code comes over the connection."""
        self._connection = connection

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code.

        Raises:
            TimeoutError: It has not ended in so many seconds.
        """
        self._connection.settimeout(timeout)
        # without a word the server has ended, and its children with it
        return int(self._connection.makefile().readline() or 1)

    def kill(self) -> None:
        """End it."""
        self._connection.close()


def fork(arguments: list[str], environment: dict[str, str], streams: list[int]) -> Forked | None:
    """Let the server run a file of Python with its arguments; None where a new process is needed.

    Args:
        arguments: The file, and what it finds in ``sys.argv`` behind its name.
        environment: Of the process.
        streams: Descriptors of its standard input, output and error.

    Raises:
        OSError: There is no server.
    """
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    order = {"arguments": arguments, "environment": environment, "cwd": os.getcwd()}
    line = json.dumps(order).encode() + b"\n"
    connection.sendmsg([line[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
    connection.sendall(line[1:])
    said = b""
    while said[-1:] != b"\n" and (part := connection.recv(1)):  # and no more: the exit code comes behind it
        said += part
    if said == b"forked\n":
        return Forked(connection)
    connection.close()
    return None


def start() -> Any:
    """A server for all Rays that this process and its children start; it ends with what is returned.

    None where another process has started one, or where workers may find a GPU: a process that was forked
    cannot begin to use one if whoever forked it has looked for it.
    """
    if SOCKET in os.environ or Path("/dev/nvidiactl").exists() or not hasattr(os, "pidfd_open"):
        return None
    address = str(Path(tempfile.mkdtemp(prefix="hw-", dir="/tmp"), "s"))
    command = [sys.executable, __file__, "--serve", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as server:
        alive = os.dup(server.stdin.fileno())  # type: ignore[union-attr]
    os.environ[SOCKET] = address
    return open(alive, "wb")


def take_workers() -> None:
    """From now on every Ray that this process starts takes its workers from the server."""
    from ray._private import parameter

    if SOCKET in os.environ:
        parameter.RayParams = functools.partial(parameter.RayParams, setup_worker_path=__file__)


class Server:
    """Forks for each order, and tells who gave it when the child has ended."""

    def __init__(self, address: str) -> None:
        """Listen; nothing is imported before the first order."""
        self._environment = {**os.environ}
        self._address, self._imported = address, False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address)
        self._listener.listen(64)
        self._children: dict[int, tuple[int, socket.socket]] = {}
        """By the descriptor of the process: its id, and who waits for it."""

    def work(self) -> dict[str, Any] | None:
        """Until the standard input ends; returns in a child, with its order."""
        while True:
            waiting: dict[Any, int] = {
                connection.fileno(): process for process, (_, connection) in self._children.items()
            }
            ready: list[Any] = select.select([0, self._listener, *self._children, *waiting], [], [])[0]
            if 0 in ready:  # whoever started this has ended
                for process in self._children:
                    signal.pidfd_send_signal(process, signal.SIGKILL)
                shutil.rmtree(Path(self._address).parent, ignore_errors=True)
                return None
            for process in {waiting.get(found, found) for found in ready} & self._children.keys():
                self._end(process)
            if self._listener in ready and (order := self._take()) is not None:
                return order

    def _take(self) -> dict[str, Any] | None:
        """Fork for an order; it is what a child gets back."""
        connection, _ = self._listener.accept()
        order = _read(connection)
        if order is None or not _alike(self._environment, order["environment"]):
            for stream in order["streams"] if order else ():
                os.close(stream)
            connection.close()
            return None
        if not self._imported:
            _import_all(self._environment)
            self._imported = True
        child = os.fork()
        if not child:
            for each in (self._listener, connection, *(each for _, each in self._children.values())):
                each.close()
            for process in self._children:
                os.close(process)
            return order
        for stream in order["streams"]:
            os.close(stream)
        self._children[os.pidfd_open(child)] = child, connection
        with contextlib.suppress(OSError):  # whoever has asked is gone: it is seen at the next look
            connection.sendall(b"forked\n")
        return None

    def _end(self, process: int) -> None:
        """A child has ended, or whoever waits for it has been ended."""
        child, connection = self._children.pop(process)
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError), connection:
            connection.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
        os.close(process)


def _read(connection: socket.socket) -> dict[str, Any] | None:
    first, messages, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i")
    for _, _, data in messages:
        streams.frombytes(data)
    line = first + connection.makefile("rb").readline() if first else b""
    return json.loads(line) | {"streams": list(streams)} if line else None


def _alike(mine: dict[str, str], theirs: dict[str, str]) -> bool:
    """Whether libraries would find the same in both environments as they are imported."""
    others = {*mine, *theirs} - AS_A_RANK.keys()
    names = [name for name in others if name.startswith(READ_AT_START) and not name.startswith(READ_LATER)]
    return all(mine.get(name) == theirs.get(name) for name in names)


def _import_all(environment: dict[str, str]) -> None:
    gc.disable()
    os.environ.update(AS_A_RANK)
    for name in LIBRARIES:
        importlib.import_module(name)
    os.environ.clear()
    os.environ.update(environment)
    gc.freeze()  # a collection would copy all that is shared


def begin(order: dict[str, Any]) -> None:
    """Become the process that a worker starts as."""
    gc.unfreeze()
    gc.enable()
    os.setpgid(0, 0)  # when a worker has ended, Ray ends the group that it was in
    os.chdir(order["cwd"])
    _look_in(order["environment"].get("PYTHONPATH", ""))
    elsewhere = _of_the_hub(os.environ) != _of_the_hub(order["environment"])
    os.environ.clear()
    os.environ.update(order["environment"])
    tempfile.tempdir = None
    if elsewhere:
        _look_again()
    for descriptor, given in enumerate(order["streams"]):
        os.dup2(given, descriptor)
        os.close(given)
    sys.stdin, sys.stdout, sys.stderr = (
        open(descriptor, mode, encoding="utf-8", closefd=False)
        for descriptor, mode in enumerate(("r", "w", "w"))
    )
    sys.argv = order["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)


def _of_the_hub(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(("HF_", "TRANSFORMERS_"))}


def _look_again() -> None:
    """Let the hub's libraries read the environment anew; what others have copied from them is replaced."""
    for module in [sys.modules[name] for name in READ_AGAIN if name in sys.modules]:
        before = dict(vars(module))
        importlib.reload(module)
        changed = {name for name in before if name[:2] != "__" and before[name] != vars(module)[name]}
        for other in [other for name, other in sys.modules.items() if name.startswith(COPIED_BY)]:
            for name in changed & vars(other).keys():
                if vars(other)[name] is before[name]:
                    setattr(other, name, vars(module)[name])
    if found := sys.modules.get("transformers.utils.logging"):
        found.set_verbosity(found._get_default_logging_level())


def _look_in(places: str) -> None:
    """Find modules where another process would; the harness reads what packages add as it is imported."""
    before = os.environ.get("PYTHONPATH", "")
    if places == before:
        return
    others = [path for path in sys.path[1:] if path not in before.split(os.pathsep)]
    sys.path[1:] = [*filter(None, places.split(os.pathsep)), *others]
    for name in [name for name in sys.modules if name.partition(".")[0] == "harness"]:
        del sys.modules[name]
    importlib.invalidate_caches()


if __name__ == "__main__":
    if sys.argv[1:2] != ["--serve"]:
        main()
    elif os.fork():  # Ray ends children, too, of a process that has joined it and leaves
        os._exit(0)
    elif (given := Server(sys.argv[2]).work()) is not None:
        begin(given)
        runpy.run_path(sys.argv[0], run_name="__main__")
