"""What compiled fits need of a machine: a compiler, a private folder for code, and a watchdog that waits.

torch is not needed here: commands ask before anything starts.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from harness.files import machine_folder

FIELD = "resources.compile"
PLACE = "HARNESS_CODE_FOLDER"
"""The variable by which a run that has a folder of its own on its machine tells its ranks where code goes."""
UNFINISHED = "_CxxBuild"
"""How the folders end that torch has beside a build while its compiler is at work
(``torch._inductor.cpp_builder``)."""
SOURCES = (".cpp", ".h")
"""How the files end that a build reads, and that are whole as soon as they are there."""
SETTLED_S = 2.0
"""Seconds after which a build's compiler has started, if there is one."""
LOOK_S = 1.0
BUSY = 0.05
"""The share of a processor that something must take to count as at work."""


def missing(gpu: bool) -> str | None:
    """What this machine lacks to compile fits; None where it lacks nothing.

    Args:
        gpu: Fits are on GPUs.
    """
    if gpu:
        from importlib.util import find_spec

        if find_spec("triton") is None:
            return "the package triton, which torch compiles for GPUs with"
        if not any(shutil.which(name) for name in (os.environ.get("CC") or "gcc", "clang")):
            return "a C compiler, which triton calls (gcc, or what CC names)"
        return None
    name = os.environ.get("CXX", "g++")
    if shutil.which(name) is None:
        return f"a C++ compiler ({name or 'CXX is empty'}; torch takes g++, or what CXX names)"
    include = Path(sysconfig.get_path("include"))
    if not (include / "Python.h").exists():
        return f"Python's header files (there is no {include / 'Python.h'})"
    return None


def code_folder() -> Path:
    """Where compiled code lies on this machine, made where there is none; only this user can read or write.

    Code is loaded from it, and is made for this machine's processor. It is in the run's own folder, which
    goes with it, or, on a Ray that was joined, in the user's own folder on the machine.
    """
    version = f"py{sys.version_info[0]}{sys.version_info[1]}"
    given = os.environ.get(PLACE)
    folder = Path(given) if given else machine_folder() / f"torch-inductor-{socket.gethostname()}-{version}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def use_code_folder() -> Path:
    """Tell torch and triton, which read the environment, where code goes; the folder."""
    folder = code_folder()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    # A rank has its processors and no others; helpers would each import torch once more.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    return folder


def clear_unfinished(folder: Path) -> list[Path]:
    """Remove what killed builds have left half written, which torch would take for whole.

    A build has a folder of its own as long as it lasts, in which its compiler works. Locks need nothing: they
    are the kernel's, and go with who holds them.

    Returns:
        The files.
    """
    left = [mark for mark in folder.rglob(f"*{UNFINISHED}") if _age(mark) > SETTLED_S]
    if not left:
        return []
    working = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            working.add(process.cwd())
    gone = []
    for mark in left:
        if os.path.realpath(mark) in working:
            continue
        stem = mark.name.removesuffix(UNFINISHED)
        for path in mark.parent.glob(f"{stem}.*"):
            if path.is_file() and path.suffix not in SOURCES:
                path.unlink(missing_ok=True)
                gone.append(path)
        shutil.rmtree(mark, ignore_errors=True)
    return gone


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0


@contextlib.contextmanager
def ticking(tick: Callable[[], None], every_s: float = LOOK_S) -> Iterator[None]:
    """Tick during a block as long as this process, or a compiler that it has started, is at work.

    A compilation makes no steps, and may take longer than a watchdog waits; one that waits for something that
    never comes takes no processor time, and is found.
    """
    end = threading.Event()

    def work() -> None:
        process, others = psutil.Process(), math.inf
        own = _own()
        while not end.wait(every_s):
            before, own = own, _own()
            busy = own - before > BUSY * every_s
            if not busy:  # to look for others takes long in a process that is at work itself
                before, others = others, _others(process)
                busy = others - before > BUSY * every_s
            if busy:
                tick()

    thread = threading.Thread(target=work, name="compiling", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _own() -> float:
    """Processor seconds of this process, less those of the thread that asks."""
    return time.process_time() - time.thread_time()


def _others(process: psutil.Process) -> float:
    """Processor seconds of a process's children: those that there are, and those that it has waited for."""
    total = 0.0
    with contextlib.suppress(psutil.Error):
        total = sum(process.cpu_times()[2:4])
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                total += sum(child.cpu_times()[:4])
    return total
