"""A child process: one rank of a process group like a gang's, that sums a tensor over all ranks.

Prints JSON lines.
"""

from __future__ import annotations

import json
import os
import sys
import time

REPEATS = 3


def main(rank: int, world: int, host: str, port: int, mebibytes: int) -> None:
    """Meet, sum, and look at the result; rank 0 says first where it waits."""
    import torch
    import torch.distributed as dist

    from harness.learners.language_model.distributed import TorchRanks, device, join_store, open_store

    if rank == 0:
        store, host, port = open_store(world, host)
        print(json.dumps({"host": host, "port": port}), flush=True)
    else:
        store = join_store(host, port, world)
    ranks = TorchRanks(rank, world, store, threads=1)
    wrong = ""
    if ranks.gather(rank) != list(range(world)) or ranks.broadcast(rank) != 0:
        wrong = "objects do not arrive as they were sent"
    count = mebibytes * 2**20 // 4
    fastest = float("inf")
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
    print(json.dumps({"backend": backend, "seconds": fastest, "wrong": wrong}), flush=True)
    os._exit(0)  # what libraries do when the interpreter ends is nobody's concern here


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
