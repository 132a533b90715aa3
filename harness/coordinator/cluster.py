"""Ray, started here or joined: the machines, and the end of what was started."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator
from typing import Any

import ray

from harness.coordinator.scheduler import Capacity, Shape, feasible
from harness.errors import ResourceError


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[tuple[Capacity, ...]]:
    """Ray for the time of a run.

    Args:
        address: A running Ray, or None to start one on this machine that ends with the run.

    Yields:
        The machines.

    Raises:
        ResourceError: There is no Ray at the address.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    common: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    folder = None
    if address is None:
        # A short private folder: socket paths must stay under 107 bytes, and /tmp/ray may belong to somebody else.
        folder = tempfile.mkdtemp(prefix="hr-", dir="/tmp")
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            object_store_memory=200_000_000,
            _temp_dir=folder,
            **common,
        )
    else:
        _probe(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ResourceError(f"--address {address}: there is no Ray that can be joined ({reason})") from None
    try:
        yield machines()
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _probe(address: str) -> None:
    """Ray tries an address for minutes; one connection says at once whether anything is there."""
    host, separator, port = address.rpartition(":")
    if address == "auto":
        return
    try:
        if not separator:
            raise ValueError("expected HOST:PORT or auto")
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ResourceError(f"--address {address}: there is no Ray that can be joined ({error})") from None


def machines() -> tuple[Capacity, ...]:
    """The living machines of the cluster, in the order of their ids."""
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
    return tuple(Capacity(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0)) for node in nodes)


def check_feasible(shapes: Collection[Shape], found: Collection[Capacity]) -> None:
    """Check that every gang fits the machines before anything waits.

    Raises:
        ResourceError: Says what is asked for and what there is.
    """
    for shape in sorted(set(shapes)):
        if feasible(shape, list(found)):
            continue
        kind = "GPU" if shape.gpus else "CPU"
        asked = shape.ranks * (shape.gpus or shape.cpus)
        sizes = [machine.gpus if shape.gpus else machine.cpus for machine in found]
        raise ResourceError(
            f"resources.ranks: this grid asks for {asked} {kind}s a gang ({shape.ranks} ranks x {shape.gpus or shape.cpus}); "
            f"the largest machine "
            f"has {max(sizes, default=0):g}, all {len(sizes)} together {sum(sizes):g}; lower resources.ranks or resources.threads"
        )
