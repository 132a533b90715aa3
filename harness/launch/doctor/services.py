"""DeepSpeed, Ray, W&B and the hub, each in a child process where it is heavy or may hang."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path

import psutil

from harness.ending import kill
from harness.launch.doctor.checks import Check, ChildError, above, gib, graded, passed_over, said_by, scratch

DEEPSPEED_LIMIT_S = 120.0
RAY_LIMIT_S = 120.0
WANDB_LIMIT_S = 30.0
GONE_S = 10.0
"""Seconds that the processes of a Ray that has ended may take to go."""
TAG = "HARNESS_DOCTOR"


def _name(process: psutil.Process) -> str:
    """The name of a process; empty where it has ended."""
    with contextlib.suppress(psutil.Error):
        return str(process.name()) if process.is_running() else ""
    return ""


def deepspeed() -> list[Check]:
    """One step of a small model on one rank, in a child that refuses to compile."""
    if lacks := passed_over("deepspeed", "torch", "deepspeed"):
        return lacks
    with scratch() as builds:
        limit_s, module = DEEPSPEED_LIMIT_S - 10, "harness.launch.doctor.children"
        found = said_by(limit_s, module, "step", TORCH_EXTENSIONS_DIR=str(builds))
    asked = found["compiled"]
    wrong = [] if found["moved"] else ["a step of the optimizer left the weights as they were"]
    wrong += [f"it asks for {', '.join(asked)} to be compiled"] if asked else []
    step = f"a ZeRO-2 step in {found['seconds']:.1f} s, nothing compiled"
    text = f"DeepSpeed {found['version']} on {found['accelerator']}: {step}"
    return [graded("deepspeed", "" if wrong else text, wrong)]


def ray() -> list[Check]:
    """A Ray like that of `harness run`, for the time of one task; then whatever it has left behind."""
    tag, started, error = uuid.uuid4().hex, time.monotonic(), ""
    try:
        found = said_by(RAY_LIMIT_S - GONE_S - 10, "harness.coordinator.selfcheck", **{TAG: tag})
    except ChildError as failed:
        error = f"a local Ray: {failed}"
    took = time.monotonic() - started
    while (left := tagged(tag)) and time.monotonic() - started - took < GONE_S:
        if error:  # they start others until they are dead
            kill(left)
        time.sleep(0.1)
    if error:
        return [graded("ray", "", [error])]
    names = sorted({name for process in left if (name := _name(process))})
    kill(left)
    behind = [f"it left processes behind: {', '.join(names)} (killed now)"] if names else []
    behind += [f"it left {folder} behind" for folder in found["folders"] if Path(folder).exists()]
    text = f"Ray {found['version']} started, ran a task and ended in {took:.1f} s, nothing left"
    return [graded("ray", "" if behind else text, behind)]


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


def wandb() -> list[Check]:
    """Whether W&B has a key, and its server answers; a study runs without both."""
    if lacks := passed_over("wandb", "wandb"):
        return lacks
    try:
        found = said_by(WANDB_LIMIT_S - 5, "harness.tracking.login")
    except ChildError as error:
        return [graded("wandb", "", [], [f"W&B: {error}"])]
    key = "logged in" if found["key"] else "not logged in"
    answer = found["error"] or f"answers in {found['seconds'] * 1e3:.0f} ms"
    text = f"W&B {found['version']}: {key}; {found['server']} {answer}"
    return [graded("wandb", text, [], [text] if found["error"] or not found["key"] else [])]


def hub() -> list[Check]:
    """Where models and data of the hub are kept, and whether they may be fetched."""
    if lacks := passed_over("hub", "huggingface_hub"):
        return lacks
    from huggingface_hub import constants

    folder, offline = Path(constants.HF_HUB_CACHE), constants.HF_HUB_OFFLINE
    there = above(folder)
    free = shutil.disk_usage(there).free
    mode = "offline (HF_HUB_OFFLINE)" if offline else "may be asked, not tried (HF_HUB_OFFLINE is not set)"
    text = f"{folder} ({'there' if there == folder else 'not there yet'}, {gib(free)} free), {mode}"
    wrong = [] if os.access(there, os.W_OK) else [f"{there} cannot be written"]
    wrong += ["offline, and there is no cache"] if offline and there != folder else []
    wrong += [f"{gib(free)} are little for a model"] if free < 2**30 else []
    return [graded("hub", text, [], wrong)]
