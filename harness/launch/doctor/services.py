"""DeepSpeed, Ray, W&B and the hub, each in a child process where it is heavy or may hang."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from harness.launch.doctor.checks import (
    Check,
    ChildError,
    gib,
    graded,
    last_line,
    ok,
    python,
    run,
    scratch_prefix,
    told,
)
from harness.proc import wait_gone

DEEPSPEED_LIMIT_S = 120.0
RAY_LIMIT_S = 120.0
WANDB_LIMIT_S = 30.0
GONE_S = 10.0
"""Seconds that the processes of a Ray that has ended may take to go."""
TAG = "HARNESS_DOCTOR"


def end_children() -> None:
    """Kill everything that this probe has started and that still runs."""
    _kill(psutil.Process().children(recursive=True))


def _kill(processes: Sequence[psutil.Process]) -> None:
    """Kill processes, and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait_gone(processes, 5.0)


def _name(process: psutil.Process) -> str:
    """The name of a process; empty where it has ended."""
    with contextlib.suppress(psutil.Error):
        return str(process.name()) if process.is_running() else ""
    return ""


def deepspeed() -> dict[str, Any]:
    """One step of a small model on one rank, in a child that refuses to compile."""
    with tempfile.TemporaryDirectory(prefix=scratch_prefix()) as builds:
        environment = {**os.environ, "TORCH_EXTENSIONS_DIR": builds}
        found = json.loads(
            last_line(run(python("harness.launch.doctor.step"), DEEPSPEED_LIMIT_S - 10, environment))
        )
    asked = found["compiled"]
    wrong = [] if found["moved"] else ["a step of the optimizer left the weights as they were"]
    built = [f"it asks for {', '.join(asked)} to be compiled"] if asked else []
    text = (
        f"DeepSpeed {found['version']} on {found['accelerator']}: a ZeRO-2 step in {found['seconds']:.1f} s, "
        "nothing compiled"
    )
    remedy = (
        "install the pinned DeepSpeed (requirements.lock); the harness needs none of its compiled operators"
    )
    return told(graded("deepspeed", "" if wrong or built else text, [*wrong, *built], remedy=remedy))


def ray() -> dict[str, Any]:
    """A Ray like that of `harness run`, for the time of one task; then whatever it has left behind."""
    tag = uuid.uuid4().hex
    environment = {**os.environ, TAG: tag}
    remedy = (
        "look into Ray's log (/tmp/hr-*/session_latest/logs while it starts), at free memory and /dev/shm"
    )
    started = time.monotonic()
    try:
        found = json.loads(
            last_line(run(python("harness.coordinator.selfcheck"), RAY_LIMIT_S - GONE_S - 10, environment))
        )
    except ChildError as error:
        deadline = time.monotonic() + GONE_S
        while (left := tagged(tag)) and time.monotonic() < deadline:  # they start others until they are dead
            _kill(left)
        return told(Check("ray", "failure", f"a local Ray: {error}", remedy))
    took = time.monotonic() - started
    while (left := tagged(tag)) and time.monotonic() - started - took < GONE_S:
        time.sleep(0.1)
    names = sorted({name for process in left if (name := _name(process))})
    _kill(left)
    behind = [f"it left processes behind: {', '.join(names)} (killed now)"] if names else []
    behind += [f"it left {folder} behind" for folder in found["folders"] if Path(folder).exists()]
    text = f"Ray {found['version']} started, ran a task and ended in {took:.1f} s, nothing left"
    return told(
        graded(
            "ray",
            "" if behind else text,
            behind,
            remedy="end them; and see that no other Ray is asked for by RAY_ADDRESS",
        )
    )


def tagged(tag: str) -> list[psutil.Process]:
    """Processes that carry a mark in their environment, as children inherit it; zombies have none.

    A process seems to have no environment, too, while `exec` gives it a new image: who seems to have none is
    looked at once more.
    """
    found, again = {}, list(psutil.process_iter())
    for pause_s in (0.0, 0.02):
        time.sleep(pause_s)
        looked, again = again, []
        for process in looked:
            with contextlib.suppress(psutil.Error, OSError):
                environment = process.environ()
                if environment.get(TAG) == tag:
                    found[process.pid] = process
                elif not environment:
                    again.append(process)
    return list(found.values())


def wandb() -> dict[str, Any]:
    """Whether W&B has a key, and its server answers; a study runs without both."""
    try:
        found = json.loads(last_line(run(python("harness.tracking.login"), WANDB_LIMIT_S - 5)))
    except ChildError as error:
        return told(
            Check("wandb", "warning", f"W&B: {error}", "tracking.wandb: offline needs neither key nor server")
        )
    key = "logged in" if found["key"] else "not logged in"
    text = f"W&B {found['version']}: {key}; {found['server']} " + (
        found["error"] or f"answers in {found['seconds'] * 1e3:.0f} ms"
    )
    remedies = [] if found["key"] else ["`wandb login`, or leave tracking.wandb at offline"]
    if found["error"]:
        remedies.append("use tracking.wandb: offline here, and `harness sync` where there is a network")
    return told(Check("wandb", "warning" if remedies else "ok", text, "; ".join(remedies)))


def hub() -> dict[str, Any]:
    """Where models and data of the hub are kept, and whether they may be fetched."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    above = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(above).free
    mode = "offline (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "online"
    text = f"{folder} ({'there' if above == folder else 'not there yet'}, {gib(free)} free), {mode}"
    wrong = []
    if not os.access(above, os.W_OK):
        wrong.append(f"{above} cannot be written")
    if constants.HF_HUB_OFFLINE and above != folder:
        wrong.append("offline, and there is no cache")
    if free < 2**30:
        wrong.append(f"{gib(free)} are little for a model")
    remedy = "set HF_HOME to a folder with room that all nodes share; fill it where there is a network"
    return told(graded("hub", text, [], wrong, remedy=remedy) if wrong else ok("hub", text))


REQUESTS: dict[str, Callable[..., Any]] = {"deepspeed": deepspeed, "ray": ray, "wandb": wandb, "hub": hub}
