"""Runs on every node of an allocation, under one ``srun`` each.

Ray's head or one of its workers, and the end of it.

SIGUSR2 comes from the run, which is over; SIGTERM from SLURM, and then the run may still be saving, so Ray
stays up for a while.

Nothing may stay on a node: SLURM ends a step by signals, after which Ray's own processes may outlive each
other, and no one removes their files. So this process starts Ray, adopts whatever Ray's processes leave
behind, ends all of it, and removes its folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import terminal
from harness.launch.processes import (
    adopt_orphans,
    die_with_parent,
    end_tree,
    leave_janitor,
    make_private,
    sweep,
)
from harness.ray_access import FOLDER, LOOPBACK, LOOPBACK_ADDRESS

OBJECT_STORE_BYTES = 200_000_000
"""Ray carries calls, never corpora or weights."""
LOOK_S = 0.2
TERM_S, KILL_S = 1.0, 3.0
_NO_GPU_UNASKED = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Ray leaves the devices of actors that ask for none to us (see harness.coordinator.gang)."""


def main(arguments: list[str] | None = None) -> int:
    """Run Ray on this node until it ends, or is to end; returns 0 where it was told to."""
    options = _parser().parse_args(arguments)
    parent = os.getppid()
    sweep("h[0-9]*", options.tmp.parent)
    try:
        make_private(options.tmp)
        (options.tmp / "t").mkdir()
    except OSError as error:
        terminal.show(f"error: {error}", sys.stderr)
        return 1
    leave_janitor(options.tmp)
    adopt_orphans()
    told: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.append(time.monotonic() + options.linger))
    signal.signal(signal.SIGUSR2, lambda *_: told.insert(0, time.monotonic()))
    for number in (signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        command, environment = _command(options), _environment(options)
        ray = subprocess.Popen(command, env=environment, preexec_fn=die_with_parent)  # noqa: PLW1509
        while ray.poll() is None:
            if os.getppid() != parent or (told and time.monotonic() >= told[0]):
                break
            time.sleep(LOOK_S)
        return 0 if told or ray.returncode is None else abs(ray.returncode) or 1
    finally:
        end_tree(KILL_S if not told else TERM_S)
        shutil.rmtree(options.tmp, ignore_errors=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.launch.node")
    parser.add_argument("--head", required=True, help="HOST:PORT of Ray's head")
    parser.add_argument("--is-head", action="store_true")
    parser.add_argument("--tmp", type=Path, required=True, help="a short folder of this node's own")
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0, help="bytes; 0 for what the machine has")
    parser.add_argument(
        "--linger", type=float, default=0.0, help="seconds between SIGTERM and the end of Ray, at most"
    )
    return parser


def _command(options: argparse.Namespace) -> list[str]:
    host, _, port = options.head.rpartition(":")
    own: list[Any] = (
        ["--head", "--port", port, "--include-dashboard=false"]
        if options.is_head
        else ["--address", options.head]
    )
    address = host if options.is_head else address_towards(host, int(port))
    limits = (
        ["--memory", options.memory - OBJECT_STORE_BYTES] if options.memory > 2 * OBJECT_STORE_BYTES else []
    )
    size = [
        "--num-cpus",
        options.cpus,
        "--num-gpus",
        options.gpus,
        "--object-store-memory",
        OBJECT_STORE_BYTES,
        *limits,
    ]
    common = [
        "--node-ip-address",
        address,
        "--temp-dir",
        options.tmp / FOLDER,
        "--disable-usage-stats",
        "--block",
    ]
    words = ["-P", "-m", "harness.coordinator.private", "start", *own, *size, *common]
    return [sys.executable, *map(str, words)]


def address_towards(host: str, port: int) -> str:
    """This node's own address on the way to another.

    Names of machines often stand for the loopback on themselves.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        way.connect((host, port))
        return str(way.getsockname()[0])


def _environment(options: argparse.Namespace) -> dict[str, str]:
    return {
        **os.environ,
        "TMPDIR": str(options.tmp / "t"),
        "RAY_TMPDIR": str(options.tmp / FOLDER),
        "RAY_USAGE_STATS_ENABLED": "0",
        **(LOOPBACK if options.head.startswith(f"{LOOPBACK_ADDRESS}:") else {}),
        **_NO_GPU_UNASKED,
    }


if __name__ == "__main__":
    raise SystemExit(main())
