"""Several ranks on this machine, each a process: gloo, or NCCL with a GPU for each; no Ray."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import forked_worker

from harness.proc import peak_memory, reset_peak_memory

BEGINNING = """
import json
import os
import sys
import time
from pathlib import Path

from harness.learners.language_model.distributed import TorchRanks, join_store, open_store

rank, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[0]).parent
arguments = json.loads((place / "arguments").read_text())
if rank == 0:
    store, _, port = open_store(size)
    (place / "port.part").write_text(str(port))
    (place / "port.part").rename(place / "port")
else:
    while not (place / "port").exists():
        time.sleep(0.02)
    store = join_store("127.0.0.1", int((place / "port").read_text()), size)
ranks = TorchRanks(rank, size, store, threads=1)
found = {}
"""
END = """
ranks.barrier()
import psutil
import torch
listening = [c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN"]
assert rank or [place.ip for place in listening if place.port == port] == ["127.0.0.1"]
if torch.distributed.get_backend() == "gloo":
    assert not {place.ip for place in listening} & {"0.0.0.0", "::"}, "open to every machine"
ranks.close()
print(json.dumps(found))
"""


OWN_PAGES = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def run_ranks(
    program: str, size: int, on_gpus: bool = False, own_pages: bool = False, **arguments: Any
) -> list[dict[str, Any]]:
    """Run a program on all ranks: it has ``ranks`` and ``arguments``, and puts what it found into ``found``.

    No rank listens on more than one address: who reaches the store of the group changes what ranks agree
    on.

    Args:
        program: Python.
        size: Ranks.
        on_gpus: Each has a GPU.
        own_pages: Every tensor has pages of its own, as `Grown` needs.
        arguments: As JSON holds them.

    Returns what each found, in the order of ranks.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as ending:
        file = Path(folder, "program.py")
        search = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        file.write_text(search + BEGINNING + program + END)
        file.with_name("arguments").write_text(json.dumps(arguments))
        started = []
        for rank in range(size):
            given = {"CUDA_VISIBLE_DEVICES": str(rank)} if on_gpus else OWN_PAGES if own_pages else {}
            streams = [ending.enter_context(open(f"{folder}/{rank}.{kind}", "w")) for kind in ("out", "err")]
            started.append(_begin([str(file), str(rank), str(size)], {**os.environ, **given}, streams))
            ending.callback(started[-1].kill)
        codes = [process.wait(timeout=240) for process in started]
        out, err = (
            [Path(folder, f"{rank}.{kind}").read_text() for rank in range(size)] for kind in ("out", "err")
        )
    for code, errors in zip(codes, err, strict=True):
        assert code == 0, errors[-4000:]
    return [json.loads(output.splitlines()[-1]) for output in out]


def _begin(
    arguments: list[str], environment: dict[str, str], streams: list[Any]
) -> forked_worker.Forked | subprocess.Popen[bytes]:
    """Start a process with the large libraries imported, or where that cannot be a new one."""
    if forked_worker.SOCKET in os.environ:
        with open(os.devnull) as nothing:
            child = forked_worker.fork(
                arguments, environment, [each.fileno() for each in (nothing, *streams)]
            )
        if child is not None:
            return child
    command = [sys.executable, *arguments]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=streams[0], stderr=streams[1], env=environment
    )


class Grown:
    """Bytes that this process grew by at its peak within a block, in ``bytes``.

    Where every tensor has pages of its own, as `run_ranks` gives them, they are there while it is, whoever
    frees it (also the threads of gloo, which torch's profiler does not see).
    """

    bytes: int

    def __enter__(self) -> Grown:
        gc.collect()  # what was before would be freed within
        reset_peak_memory()
        self._before = peak_memory()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = peak_memory() - self._before
