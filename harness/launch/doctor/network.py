"""Ports and process groups, on one machine and between machines."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from harness.launch.doctor.checks import Check, ChildError, finish, graded, last_json, python, start
from harness.launch.node import address_towards
from harness.ray_access import LOOPBACK_ADDRESS
from harness.terminal import first_some

CONNECT_S = 5.0
REDUCE_LIMIT_S = 120.0
REDUCED_MIB = 16
_listeners: list[socket.socket] = []
_leading: list[subprocess.Popen[str]] = []


def _greet(listener: socket.socket, node: str) -> None:
    while True:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(node.encode())
        except OSError:
            return


def listen(node: str) -> int:
    """Open a port that the system chooses, and say this machine's name to whoever comes."""
    listener = socket.create_server(("0.0.0.0", 0))
    _listeners.append(listener)
    threading.Thread(target=_greet, args=(listener, node), daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def connect(ports: Mapping[str, int], hosts: Mapping[str, str], node: str) -> dict[str, str]:
    """Come to all ports by the names of their machines; what went wrong, by machine.

    Args:
        ports: For each machine its port.
        hosts: For each machine its host name.
        node: This machine.
    """
    with ThreadPoolExecutor(32) as pool:
        heard = pool.map(lambda other: _hear(hosts[other], ports[other], other), ports)
        wrong = {other: what for other, what in zip(ports, heard, strict=True) if what}
    # A machine whose own name means the loopback to it tells others an address that they cannot reach.
    if len(ports) > 1 and not wrong and "GLOO_SOCKET_IFNAME" not in os.environ:
        own = socket.gethostbyname(hosts[node])
        if own.startswith("127."):
            wrong[node] = f"its own name {hosts[node]} means {own} to it, which others cannot reach"
    return wrong


def _hear(host: str, port: int, node: str) -> str:
    """What is wrong with a machine's port; empty where it says the machine's name."""
    try:
        with socket.create_connection((host, port), timeout=CONNECT_S) as connection:
            connection.settimeout(CONNECT_S)
            heard = b"".join(iter(lambda: connection.recv(256), b"")).decode(errors="replace")
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"
    return "" if heard == node else f"{host}:{port} answers as {heard[:40]!r}"


def judge_ports(wrong: Mapping[str, Mapping[str, str]]) -> Check:
    """Whether every machine came to every port that it was asked to.

    Args:
        wrong: For each machine that tried, what went wrong by the machine that it came to.
    """
    told = [
        f"from {node} to {other}: {what}"
        for node, found in sorted(wrong.items())
        for other, what in sorted(found.items())
    ]
    who = "this machine" if len(wrong) == 1 else f"each of {len(wrong)} machines"
    found = f"a port that the system chose was reached from {who}"
    return graded("ports", "" if told else found, first_some(told, 4))


# --- process groups -----------------------------------------------------------------------------------------


def _start(rank: int, world: int, host: str, port: int, device: int | None) -> subprocess.Popen[str]:
    environment = dict(os.environ)
    if device is not None:
        visible = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        environment["CUDA_VISIBLE_DEVICES"] = visible[device] if device < len(visible) else str(device)
    place = (rank, world, host, port, REDUCED_MIB)
    return start(python("harness.launch.doctor.children", "reduction", *place), environment)


def lead(world: int, device: int | None, peer: str) -> tuple[str, int]:
    """Start rank 0 in a child, which goes on; the address and port at which it waits for the others.

    Args:
        world: Number of ranks.
        device: Of rank 0; None for the CPU.
        peer: A machine of the others; empty where they are all on this one.
    """
    child = _start(0, world, address_towards(peer, 9) if peer else LOOPBACK_ADDRESS, 0, device)
    _leading.append(child)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("{"):
            found = json.loads(line)
            return str(found["host"]), int(found["port"])
    finish(child, 5.0)
    raise ChildError("rank 0 ended before it said where it waits")


def reduce(
    ranks: Mapping[str, Sequence[tuple[int, int | None]]],
    world: int,
    host: str,
    port: int,
    patience_s: float,
    node: str,
) -> list[Any]:
    """This machine's part of an all-reduce; rank 0 was started by `lead`.

    Args:
        ranks: For each machine its ranks, each with its device or None.
        world: Number of ranks.
        host: Rank 0's address.
        port: Rank 0's port.
        patience_s: The ranks are killed after this long.
        node: This machine.
    """
    mine = ranks[node]
    children = [_leading.pop() if r == 0 else _start(r, world, host, port, device) for r, device in mine]
    deadline, results, wrong = time.monotonic() + patience_s, list[Any](), list[str]()
    for child in children:
        left = 0.1 if wrong else max(0.1, deadline - time.monotonic())
        try:
            results.append(last_json(finish(child, left, f"no process group of {world} ranks")))
        except ChildError as error:
            wrong.append(str(error))
    if wrong:
        raise ChildError(wrong[0])
    return results


def judge_reduction(results: Sequence[Mapping[str, Any]]) -> Check:
    """What the ranks found.

    Args:
        results: ``backend``, ``seconds`` of one all-reduce, and ``wrong`` of each rank.
    """
    wrong = [result["wrong"] for result in results if result["wrong"]]
    slowest, backend = max(result["seconds"] for result in results), results[0]["backend"]
    found = f"{backend}, {len(results)} ranks: all-reduce of {REDUCED_MIB} MiB in {slowest * 1e3:.0f} ms "
    found += f"({REDUCED_MIB / slowest:,.0f} MiB/s), result exact"
    return graded("communication", "" if wrong else found, wrong)
