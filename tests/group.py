"""Several ranks on this machine, each a process: gloo, or NCCL with a GPU for each; no Ray."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness.proc import peak_memory, reset_peak_memory

BEGINNING = """
import json
import os
import sys
import time
from pathlib import Path

from harness.learners.language_model.distributed import TorchRanks, join_store, open_store

rank, size, place = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
arguments = json.loads(sys.argv[4])
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


def run_ranks(program: str, size: int, on_gpus: bool = False, **arguments: Any) -> list[dict[str, Any]]:
    """Run a program on all ranks: it has ``ranks`` and ``arguments``, and puts what it found into ``found``.

    No rank listens on more than one address: who reaches the store of the group changes what ranks agree
    on.

    Returns what each found, in the order of ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for rank in range(size):
            path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
            given = {"CUDA_VISIBLE_DEVICES": str(rank)} if on_gpus else {}
            command = [sys.executable, "-c", BEGINNING + program + END]
            started.append(
                subprocess.Popen(
                    [*command, str(rank), str(size), folder, json.dumps(arguments)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env={**os.environ, **given, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": "65536"},
                )
            )
        try:
            said = [process.communicate(timeout=240) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
    for process, (_, errors) in zip(started, said, strict=True):
        assert process.returncode == 0, errors[-4000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


class Grown:
    """Bytes that this process grew by at its peak within a block, in ``bytes``.

    Where every tensor has pages of its own, as in `run_ranks`, they are there while it is, whoever frees it
    (also the threads of gloo, which torch's profiler does not see).
    """

    bytes: int

    def __enter__(self) -> Grown:
        gc.collect()  # what was before would be freed within
        reset_peak_memory()
        self._before = peak_memory()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = peak_memory() - self._before
