"""Runs on each machine that is examined.

Reads one request a line, answers each within its time limit, ends with its input.

srun carries requests and answers, so that neither the network nor the file system that are being examined
need to work for it.
"""

from __future__ import annotations

import base64
import inspect
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from harness.ending import kill, make_claimed
from harness.launch.doctor import machine, network, services, storage
from harness.launch.doctor.checks import SCRATCH, ChildError, clear_scratch, text_of

MARK = "@harness-doctor"
END = "end"
"""The request to leave nothing behind, before this process may be killed."""
PIECE = 600
"""Bytes of a line at most: srun keeps lines of up to 1024 bytes whole, and mixes longer ones with those of
other machines."""
_ANSWERS: tuple[Callable[..., Any], ...] = (
    *(machine.libraries, machine.processors, machine.limits, machine.folders, machine.devices),
    *(services.deepspeed, services.ray, services.wandb, services.hub),
    *(storage.root, storage.meet, storage.look, storage.make, storage.see, storage.race, storage.leave),
    *(storage.clock, storage.file_clock),
    *(network.listen, network.connect, network.lead, network.reduce),
)
REQUESTS = {function.__name__: function for function in _ANSWERS}
"""Everything that can be asked: checks, or another value that is JSON; `node` is this machine's name where a
function wants it."""
_speaking = threading.Lock()


def node_name() -> str:
    """How SLURM calls this machine; its host name elsewhere."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def pieces(node: str, number: int, answer: dict[str, Any]) -> list[str]:
    """An answer as lines that arrive whole; checks become mappings."""
    text = base64.b64encode(json.dumps(answer, default=vars).encode()).decode()
    parts = [text[start : start + PIECE] for start in range(0, len(text), PIECE)]
    return [f"{MARK} {node} {number} {index} {len(parts)} {part}" for index, part in enumerate(parts)]


def _say(node: str, number: int, answer: dict[str, Any]) -> None:
    with _speaking:
        print(*pieces(node, number, answer), sep="\n", file=sys.__stdout__, flush=True)


def answer_of(function: Callable[[], Any], limit_s: float) -> dict[str, Any]:
    """What a function returns, or why it does not; it goes on in its thread where it takes too long."""
    answer: dict[str, Any] = {}

    def work() -> None:
        try:
            answer["value"] = function()
        except (ChildError, TimeoutError) as error:
            answer["error"] = str(error)
        except BaseException as error:  # whatever is wrong with a machine, the others' lines must be seen
            answer["error"] = text_of(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit_s)
    return dict(answer) if answer else {"error": f"no result within {limit_s:.0f} s"}


def _serve(node: str, request: dict[str, Any]) -> None:
    function, details = REQUESTS[request["ask"]], request["with"]
    if "node" in inspect.signature(function).parameters:
        details["node"] = node
    _say(node, request["number"], answer_of(lambda: function(**details), request["limit_s"]))


def main() -> None:
    """Greet, and answer until the input ends."""
    node = sys.argv[1] if len(sys.argv) > 1 else node_name()
    # Libraries print to standard output, which belongs to the answers here.
    sys.stdout = sys.stderr
    step = f"{os.environ.get('SLURM_JOB_ID', '')}.{os.environ.get('SLURM_STEP_ID', '')}"
    _say(node, 0, {"value": {"host": socket.gethostname(), "step": step}})
    # torch makes this folder when it is imported, in /tmp where nobody says otherwise.
    clear_scratch()
    folder = os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(make_claimed(Path(tempfile.gettempdir()), SCRATCH))
    for line in sys.stdin:
        request = json.loads(line)
        if node not in request["to"]:
            continue
        if request["ask"] == END:
            _tidy(Path(folder))
            _say(node, request["number"], {"value": None})
        else:
            threading.Thread(target=_serve, args=(node, request), daemon=True).start()
    _tidy(Path(folder))
    os._exit(0)


def _tidy(folder: Path) -> None:
    """End everything that this probe has started and that still runs."""
    kill(psutil.Process().children())
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
