"""What is heavy or may hang, run as a process of its own: ``python -m ... NAME ARGUMENTS``.

The last line that it prints is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, NoReturn

from harness.launch.doctor.checks import text_of

REPEATS = 3
"""All-reduces that are timed."""


def devices() -> dict[str, Any]:
    """What torch sees: a number is put on each device and read back.

    A device can be listed and still be out of order, or somebody's own.
    """
    import torch

    count, wrong, found = 0, "", []
    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:
        wrong = text_of(error)
    for index in range(count):
        device: dict[str, Any] = {"name": "", "memory": 0, "error": ""}
        try:
            properties = torch.cuda.get_device_properties(index)
            device.update(name=properties.name, memory=properties.total_memory)
            if torch.full((1024,), 2.0, device=f"cuda:{index}").sum().item() != 2048.0:
                device["error"] = "a sum of 1024 twos is not 2048"
        except Exception as error:
            device["error"] = text_of(error)
        found.append(device)
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "devices": found, "error": wrong}


def refuse_compilation() -> list[str]:
    """Let nothing be compiled from now on.

    The list that is returned fills with the names of what was asked for.
    """
    from torch.utils import cpp_extension

    compiled: list[str] = []

    def refuse(name: str = "", *_: Any, **__: Any) -> NoReturn:
        compiled.append(name or "an operator")
        raise RuntimeError(f"{name} would have to be compiled")

    # DeepSpeed looks these up when it needs them, so this is seen whatever it asks for.
    for function in ("load", "load_inline"):
        setattr(cpp_extension, function, refuse)
    return compiled


def step() -> dict[str, Any]:
    """One ZeRO step of a small model, as a fit makes it; every compilation is refused."""
    from importlib.metadata import version

    import torch

    compiled = refuse_compilation()
    from transformers import GPT2Config, GPT2LMHeadModel

    from harness.config.schema import Train
    from harness.learners.language_model.distributed import TorchRanks, device, open_store
    from harness.learners.language_model.engine import Engine

    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=1)
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(shape).to(device())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    moved, started = False, time.monotonic()
    try:
        engine = Engine(model, Train(batch_size=2, precision="fp32", learning_rate=1e-2), 2, 1, 2)
        tokens = torch.arange(32, device=device()).reshape(2, 16)
        logits = engine.logits(tokens)[:, :-1].flatten(0, 1)
        engine.backward(torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()))
        after = engine.state(keep=True)
        moved = any(not torch.equal(after[name], value.cpu()) for name, value in before.items())
    except RuntimeError:
        if not compiled:
            raise
    seconds = time.monotonic() - started
    ranks.close()
    found = {"version": version("deepspeed"), "accelerator": os.environ["DS_ACCELERATOR"]}
    return {**found, "moved": moved, "seconds": seconds, "compiled": compiled}


def reduction(rank: int, world: int, host: str, port: int, mebibytes: int) -> dict[str, Any]:
    """One rank of a process group like a gang's, that sums a tensor over all ranks and looks at the result.

    Rank 0 says first where it waits.
    """
    import torch
    import torch.distributed as dist

    from harness.learners.language_model.distributed import TorchRanks, device, join_store, open_store

    if rank == 0:
        store, host, port = open_store(world, host)
        print(json.dumps({"host": host, "port": port}), flush=True)
    else:
        store = join_store(host, port, world)
    ranks = TorchRanks(rank, world, store, threads=1, fits=False)
    wrong, fastest, count = "", float("inf"), mebibytes * 2**20 // 4
    if ranks.gather(rank) != list(range(world)) or ranks.broadcast(rank) != 0:
        wrong = "objects do not arrive as they were sent"
    for _ in range(REPEATS):
        # Every element its own whole number, small enough for float32 to hold the sum exactly.
        base = torch.arange(count, device=device()) % 1000
        values = (base * (rank + 1)).to(torch.float32)
        ranks.barrier()
        started = time.monotonic()
        dist.all_reduce(values)
        if not torch.equal(values.cpu().long(), (base * (world * (world + 1) // 2)).cpu()):
            wrong = f"the sum over {world} ranks is wrong"
        fastest = min(fastest, time.monotonic() - started)
    ranks.barrier()
    backend = dist.get_backend()
    ranks.close()
    return {"backend": backend, "seconds": fastest, "wrong": wrong}


if __name__ == "__main__":
    match sys.argv[1]:
        case "devices":
            said = devices()
        case "step":
            said = step()
        case _:
            rank, world, host, port, mebibytes = sys.argv[2:]
            said = reduction(int(rank), int(world), host, int(port), int(mebibytes))
    print(json.dumps(said), flush=True)
    os._exit(0)  # what libraries do when the interpreter ends is nobody's concern here
