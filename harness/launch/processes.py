"""Process trees and temporary folders of a job on one node.

Imports little, since every node pays for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import time
from pathlib import Path

import psutil

from harness.ending import claim, end_below, kill, namespace, owner_of, that_name
from harness.proc import start_of

LOOK_S, QUIET_LOOKS, TRACES_S = 0.05, 3, 10.0
"""Looks for processes that name a folder: seconds between them, how many must find none, and when to give
up."""
_PR_SET_CHILD_SUBREAPER, _PR_SET_PDEATHSIG = 36, 1


def adopt_orphans() -> None:
    """From now on, processes below this one whose parent ends become children of this one (Linux).

    None can get away then.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """To be called in a child before it runs its program.

    It gets a signal when the thread that started it ends.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def _shared_memory(pid: int) -> set[Path]:
    """Files of shared memory that a process has mapped."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {
            Path(line.split(maxsplit=5)[5])
            for line in lines
            if " /dev/shm/" in line and not line.endswith(" (deleted)")
        }
    return set()


def end_tree(patience_s: float) -> None:
    """End everything below this process: SIGTERM, then SIGKILL; what they shared in /dev/shm goes with them.

    Args:
        patience_s: How long they may take to end by themselves.
    """
    victims = psutil.Process().children(recursive=True)
    shared = set[Path]().union(*(_shared_memory(victim.pid) for victim in victims))
    end_below(patience_s)
    for path in shared - set[Path]().union(*map(_shared_memory, psutil.pids()) if shared else ()):
        with contextlib.suppress(OSError):
            path.unlink()


def leave_janitor(tmp: Path) -> None:
    """Fork a process that waits for the end of this one, and then removes what it could not.

    It may be killed at any moment.

    The janitor is nobody's child, since SLURM may track a step's processes by their parents and kill all of
    them at once (it does so where ``srun`` itself is terminated). Where it tracks them by control group, a
    step's SIGKILL ends the janitor too; but there this process is asked to end first, and what is left all
    the same goes with the next job on the node (`sweep`).
    """
    watched, held = os.pipe()
    if (child := os.fork()) != 0:
        os.waitpid(child, 0)
        os.close(watched)  # `held` stays open as long as this process lives, and is not handed on to programs
        return
    try:
        os.setsid()
        if os.fork() == 0:
            os.close(held)
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):  # SLURM takes a step for running while somebody has its output open
                os.dup2(nothing, descriptor)
            os.read(watched, 1)
            _remove_traces(tmp)
    finally:
        os._exit(0)


def _remove_traces(tmp: Path) -> None:
    """Kill the processes that name a folder, and remove it."""
    quiet, deadline = 0, time.monotonic() + TRACES_S
    # More than once: a process names nothing while `exec` gives it a new image, and starts others until it is
    # dead.
    while quiet < QUIET_LOOKS and time.monotonic() < deadline:
        quiet = 0 if kill(that_name(f"{tmp}/")) else quiet + 1
        time.sleep(LOOK_S)
    shutil.rmtree(tmp, ignore_errors=True)


def make_private(path: Path) -> None:
    """Make a folder of this process, for nobody else; what an earlier process left there is removed.

    Raises:
        FileExistsError: The process that made it is alive.
        OSError: It cannot be made.
    """
    pid = _living_owner(path)
    if pid is not None:
        raise FileExistsError(f"{path} is in use by process {pid}: another run in this job")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)
    try:
        claim(path)
    except OSError:  # nobody would know whose it is
        shutil.rmtree(path, ignore_errors=True)
        raise


def _living_owner(path: Path) -> int | None:
    pid, started, space = owner_of(path) or (0, "", "")
    alive = pid and space == namespace() and pid != os.getpid() and start_of(pid) == started
    return pid if alive else None


def sweep(pattern: str, parent: Path) -> None:
    """Remove folders of `make_private` whose process is gone: its machine, or SLURM, left it no time to."""
    for path in parent.glob(pattern):
        with contextlib.suppress(OSError):
            if (owner := owner_of(path)) and path.stat().st_uid == os.getuid():
                pid, started, space = owner
                if space == namespace() and start_of(pid) != started:
                    shutil.rmtree(path, ignore_errors=True)
