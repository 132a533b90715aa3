"""Ray, started here or joined: the machines, and the end of what was started."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.services import node_ip_address_from_perspective

from harness.compiler import PLACE
from harness.coordinator import guard
from harness.coordinator.private import environment, same_places, without_helpers
from harness.coordinator.scheduler import Capacity
from harness.ending import clear_abandoned, kill, make_claimed
from harness.errors import GangError, ResourceError, reason_of
from harness.proc import usable_cpus
from harness.ray_access import FOLDER, LOOPBACK, TOKEN, joining_tokens, own_token, write_token
from harness.stop import Stop
from harness.terminal import counted

WATCH_S = 1.0
"""Seconds between looks at Ray's own processes."""
REFUSALS = 3
"""A head that refuses this many connections in a row is gone."""
PROBE_S = 2.0
JOIN_LOOK_S = 0.2
JOIN_TRIES = {"RAY_gcs_server_port_wait_time_s": "3"}
"""How often Ray tries to join one that answers already, a second apart; 20 times where nothing is said, also
with a wrong token."""
PREFIX = "hr-"
CODE = "code"
"""Compiled code, within the run's folder."""
GCS_ADDRESS = "--gcs-address="


class _HeadWatch:
    """Notices that Ray's head, or the local Ray, is gone.

    Ray itself waits a minute for it, and then ends the process.
    """

    def __init__(
        self, daemons: Sequence[psutil.Process], address: str, on_lost: Callable[[str], None]
    ) -> None:
        """Watch from now on.

        Args:
            daemons: Ray's processes, where this process started them.
            address: HOST:PORT of the head; looked at where there are no daemons.
            on_lost: Called in a thread of its own, once, with what is gone.
        """
        self.daemons, self.on_lost, self._end = daemons, on_lost, threading.Event()
        host, _, port = address.rpartition(":")
        self.head, self._refused = (host, int(port)), 0
        self._thread = threading.Thread(target=self._work, name="head-watch", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._end.wait(WATCH_S):
            gone = self._gone()
            if gone and not self._end.is_set():
                self.on_lost(gone)
                return

    def _gone(self) -> str:
        for process in self.daemons:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    continue
            return "Ray on this machine died"
        if not self.daemons:
            try:
                socket.create_connection(self.head, timeout=5).close()
                self._refused = 0
            except OSError:
                self._refused += 1
        return f"Ray's head at {self.head[0]}:{self.head[1]} is gone" if self._refused >= REFUSALS else ""

    def close(self) -> None:
        self._end.set()


def _start_guardian(folder: str) -> subprocess.Popen[bytes]:
    """A process that outlives this one for a moment.

    Where this one is killed, it ends the Ray that was started here.
    """
    paths = filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
    return subprocess.Popen(
        [sys.executable, "-P", "-m", guard.__name__, folder, str(os.getpid())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


@dataclass(frozen=True)
class RayPlace:
    """Where a run's Ray is.

    Attributes:
        address: A running Ray to join; None for one of the run's own, on this machine.
        nodes: Machines that must have joined it before anything starts.
        cpus: CPUs that all of them offer together.
        gpus: GPUs that all of them offer together.
        wait_s: How long to wait for them.
        trouble: Says what has gone wrong with its machines, if anything has.
    """

    address: str | None = None
    nodes: int = 0
    cpus: float = 0.0
    gpus: float = 0.0
    wait_s: float = 0.0
    trouble: Callable[[], str] = str


@contextlib.contextmanager
def connected(
    place: RayPlace,
    on_lost: Callable[[str], None],
    on_joined: Callable[[], None] = lambda: None,
    stop: Stop | None = None,
) -> Iterator[tuple[Capacity, ...]]:
    """Ray for the time of a run.

    Args:
        place: Where it is.
        on_lost: Called, in a thread of its own, if Ray goes away meanwhile; nothing can be asked of Ray then.
        on_joined: Called as soon as Ray is up: it takes signals for itself, and the caller may want them
            back.
        stop: Set from outside to end the wait for the machines.

    Yields:
        The machines.

    Raises:
        ResourceError: There is no Ray at the address.
        GangError: Its machines have not come in time, or before the stop.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with contextlib.ExitStack() as until_the_end:
        folder = None
        if place.address is None:
            # A short folder: socket paths must stay under 107 bytes. Ray's own lies inside, for it makes that
            # one everybody's.
            clear_abandoned(Path("/tmp"), PREFIX)
            folder = str(make_claimed(Path("/tmp"), PREFIX))
            until_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
            write_token(Path(folder) / TOKEN)
            own = {**own_token(Path(folder) / TOKEN), **LOOPBACK, PLACE: f"{folder}/{CODE}"}
            until_the_end.enter_context(environment(**own))
            with without_helpers():
                ray.init(
                    address="local",
                    num_cpus=usable_cpus(),
                    include_dashboard=False,
                    object_store_memory=200_000_000,
                    _temp_dir=f"{folder}/{FOLDER}",
                    job_config=same_places(),
                    **_COMMON,
                )
        else:
            until_the_end.enter_context(_joined(place, _probe(place)))
        yield from _running(place, folder, on_lost, on_joined, stop)


_COMMON: dict[str, Any] = dict(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)


_TOKEN_WANTED = "set RAY_AUTH_TOKEN_PATH to the file with its token, and RAY_AUTH_MODE=token"


@contextlib.contextmanager
def _joined(place: RayPlace, address: str) -> Iterator[None]:
    """Join the Ray at an address; what its libraries write about a failure becomes one message."""
    loopback = LOOPBACK if _only_on_loopback(address) else {}
    # one that was started for this run may still be on its way
    tries = {} if place.nodes or os.environ.keys() & JOIN_TRIES.keys() else JOIN_TRIES
    reason = ""
    for token in joining_tokens():
        with environment(**token, **loopback, **tries), _captured_stderr() as said:
            try:
                ray.init(address=address, job_config=same_places(), **_COMMON)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                reason = str(error)
                if "InvalidAuthToken" in said():
                    reason = f"it wants another token: {_TOKEN_WANTED}"
                    continue
                if isinstance(error, ray.exceptions.AuthenticationError):  # before it speaks with any Ray
                    reason = f"there is no token: {_TOKEN_WANTED}"
                break
        with environment(**token, **loopback):
            yield
        return
    raise _unreachable(place, reason)


def _unreachable(place: RayPlace, reason: str) -> GangError | ResourceError:
    first = reason_of(reason)
    if place.nodes:  # it was started for this run, so it is not the user's mistake
        return GangError(
            f"the Ray of this run at {place.address} cannot be joined ({first}); {place.trouble()}"
        )
    return ResourceError(f"--address {place.address}: there is no Ray that can be joined ({first})")


def _only_on_loopback(address: str) -> bool:
    """Whether a Ray listens on the loopback alone.

    Ray takes a loopback's address for the machine's own unless it is told.
    """
    host, _, port = address.rpartition(":")
    if not host.startswith("127.") and host not in ("localhost", "::1"):
        return False
    try:
        socket.create_connection((node_ip_address_from_perspective(), int(port)), timeout=PROBE_S).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Keep what is written to this process's standard error for the time of a block.

    C code writes to the descriptor.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def said() -> str:
            file.seek(0)
            return file.read().decode(errors="replace")

        try:
            yield said
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)


def _running(
    place: RayPlace,
    folder: str | None,
    on_lost: Callable[[str], None],
    on_joined: Callable[[], None],
    stop: Stop | None,
) -> Iterator[tuple[Capacity, ...]]:
    """Watch over a Ray that is up, and end what was started here."""
    on_joined()
    started = psutil.Process().children(recursive=True) if folder is not None else []
    guardian = _start_guardian(folder) if folder is not None else None
    daemons = [process for process in started if _is_daemon(process)]

    def lost(reason: str) -> None:
        if folder is not None:
            kill(psutil.Process().children())
            shutil.rmtree(folder, ignore_errors=True)
        on_lost(reason)

    watch = _HeadWatch(daemons, ray.get_runtime_context().gcs_address, lost)
    try:
        _await_machines(place, stop)
        yield tuple(machines().values())
    finally:
        watch.close()
        ray.shutdown()
        if guardian is not None:
            guardian.kill()
            guardian.wait()


def _is_daemon(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # what Ray runs for a moment while it starts may be gone
        return process.name() in ("gcs_server", "raylet")
    return False


def _await_machines(place: RayPlace, stop: Stop | None) -> None:
    """Wait until Ray offers what it should: a machine that has joined may not have told yet what it has."""
    deadline = time.monotonic() + place.wait_s
    while True:
        found = list(machines().values())
        cpus, gpus = sum(machine.cpus for machine in found), sum(machine.gpus for machine in found)
        if len(found) >= place.nodes and cpus >= place.cpus and gpus >= place.gpus:
            return
        if trouble := place.trouble():
            raise GangError(trouble)
        if stop is not None and stop.is_set():
            raise GangError("stopped before all machines of this run had joined")
        if time.monotonic() > deadline:
            raise GangError(
                f"after {place.wait_s:.0f} s Ray has {counted(len(found), 'machine')} with {cpus:g} CPUs and "
                f"{gpus:g} GPUs; there should be {place.nodes} with {place.cpus:g} and {place.gpus:g}"
            )
        time.sleep(JOIN_LOOK_S)


def _probe(place: RayPlace) -> str:
    """The address of a Ray that answers.

    Ray tries one for minutes; one connection says at once whether anything is there.

    Raises:
        ResourceError: Nothing answers there.
        GangError: The same, where it was started for this run.
    """
    try:
        address = place.address or ""
        if address == "auto":
            address = os.environ.get("RAY_ADDRESS", "") or _only_public_ray()
        host, separator, port = address.rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError("expected HOST:PORT or auto")
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(place, str(error)) from None
    return address


def _only_public_ray() -> str:
    """The Ray that runs on this machine, for ``auto``.

    Those that other runs have for themselves do not count.
    """
    found: set[str] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if process.name() == "raylet" and not any(f"/tmp/{PREFIX}" in part for part in line):
                found |= {part.removeprefix(GCS_ADDRESS) for part in line if part.startswith(GCS_ADDRESS)}
    if len(found) != 1:
        raise ValueError(
            f"several run here: {', '.join(sorted(found))}; name one"
            if found
            else "none runs on this machine"
        )
    return found.pop()


def machines(lost: Collection[str] = ()) -> dict[str, Capacity]:
    """The machines of the cluster that are alive, by Ray's id, in the order of their ids.

    Args:
        lost: Machines that are known to be gone though Ray does not know it yet.
    """
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: str(node["NodeID"]))
    return {
        str(node["NodeID"]): Capacity(
            there.get("CPU", 0.0), there.get("GPU", 0.0), there.get("memory", math.inf)
        )
        for node, there in ((node, node["Resources"]) for node in nodes)
        if str(node["NodeID"]) not in lost
    }


def unreachable(nodes: Collection[str]) -> set[str]:
    """Which machines are dead.

    Ray says so (it takes half a minute to know), or nothing answers at the port of their raylet.
    """
    addresses = {str(node["NodeID"]): node for node in ray.nodes()}
    gone = set()
    for name in nodes:
        node = addresses.get(name)
        if node is None or not node["Alive"]:
            gone.add(name)
            continue
        try:
            socket.create_connection(
                (node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=PROBE_S
            ).close()
        except OSError:
            gone.add(name)
    return gone
