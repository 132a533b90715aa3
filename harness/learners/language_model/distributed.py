"""The process group of a gang: one TCP store, gloo or NCCL by device, DeepSpeed on top of it."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from harness.errors import LearnerError
from harness.learners.threads import compute_with

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)


def device() -> torch.device:
    """This rank's device: the one GPU that it was given, or the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def check_device(gpus: int) -> None:
    """Refuse to compute on the CPU where a GPU was asked for and given.

    Raises:
        LearnerError: torch finds no GPU.
    """
    if gpus and not torch.cuda.is_available():
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        raise LearnerError(
            f"this rank was given a GPU (CUDA_VISIBLE_DEVICES={given}), but torch finds no GPU; run harness "
            "doctor on the node, or set resources.gpus_per_rank: 0 to compute on CPUs"
        )


def choose_interface(address: str) -> None:
    """Let gloo use the interface that has an address.

    By itself it takes what the machine's name stands for, often the loopback.

    Args:
        address: This machine's, as the other ranks reach it.
    """
    for name, addresses in psutil.net_if_addrs().items():
        if any(item.address == address for item in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def open_store(world_size: int, address: str = "127.0.0.1") -> tuple[Any, str, int]:
    """Rank 0's rendezvous, listening on a port that the system chose.

    It is bound at once, so that nobody can take it in between.

    Args:
        world_size: Number of ranks.
        address: This machine's address, as the other ranks reach it.
    """
    with socket.socket() as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        # torch itself would listen on every interface, and anybody who reaches the store can change what
        # ranks agree on.
        store = TCPStore(
            address,
            port,
            world_size,
            is_master=True,
            wait_for_workers=False,
            timeout=TIMEOUT,
            master_listen_fd=listener.detach(),
            use_libuv=True,
        )
    return store, address, port


def join_store(host: str, port: int, world_size: int) -> Any:
    """Another rank's end of the rendezvous."""
    return TCPStore(host, port, world_size, is_master=False, timeout=TIMEOUT)


def seed_dropout(device: torch.device, seed: int) -> None:
    """Seed what a model's dropout draws from next.

    ``torch.manual_seed`` takes a stack trace for each kind of device that is not there, in every step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


class TorchRanks:
    """A torch.distributed process group, with DeepSpeed's communication on it."""

    def __init__(self, rank: int, world_size: int, store: Any, threads: int, fits: bool = True) -> None:
        """Join the group.

        Args:
            rank: This process's rank.
            world_size: Number of ranks.
            store: The rendezvous: rank 0's own, or a client of it.
            threads: CPU threads of this rank.
            fits: Models will be fitted: libraries for it are imported, and DeepSpeed joins.
        """
        self.rank, self.world_size = rank, world_size
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
            LOCAL_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT="0",
        )
        on_gpu = device().type == "cuda"
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")
        compute_with(threads)
        backend = "nccl" if on_gpu else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
        # Objects travel over gloo, so that a barrier or a broadcast needs no device memory.
        self._objects = dist.new_group(backend="gloo") if on_gpu else dist.group.WORLD
        if fits:
            from harness.learners.language_model.imports import start_deepspeed

            start_deepspeed(backend)

    def barrier(self) -> None:
        """Wait for all ranks."""
        dist.barrier(group=self._objects)

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        if self.world_size == 1:
            return value
        holder: list[Any] = [value]
        dist.broadcast_object_list(holder, src=0, group=self._objects)
        result: T = holder[0]
        return result

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank."""
        if self.world_size == 1:
            return [value]
        holder: list[Any] = [None] * self.world_size
        dist.all_gather_object(holder, value, group=self._objects)
        return holder

    def close(self) -> None:
        """Leave the group."""
        if dist.is_initialized():
            dist.destroy_process_group()
