"""What one machine has, against what SLURM says it has given.

Libraries, devices, CPUs, memory, limits, temporary folders.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import harness
from harness.launch.allocation import LONGEST_TMP, TMP, TMP_VARIABLE
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
from harness.launch.node import OBJECT_STORE_BYTES
from harness.proc import control_group, cpu_quota

DEVICES_LIMIT_S = 60.0
DISTRIBUTION = "model-collapse-harness"
EXTRAS = ("text", "images", "wandb")
"""What the package asks for in parts: a machine that runs everything has all of it."""
SHOWN = ("torch", "deepspeed", "ray", "transformers")
SOCKET_BYTES = 107
"""The longest name of a socket that Linux takes."""
RAY_SUFFIX = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray adds to its folder, with the longest process id."""
ROOM = 2 * 2**30
"""Bytes that a temporary folder should have free: Ray's logs, and objects that do not fit its shared
memory."""
FILES = 4096
"""Open files that a process should be allowed: Ray's processes hold a connection to each worker."""


def libraries() -> dict[str, Any]:
    """The versions that are installed, and the checks of them against what the package asks for."""
    python_asked, lines = _asked_for()
    version = ".".join(map(str, sys.version_info[:3]))
    versions: dict[str, str] = {}
    wrong = (
        []
        if SpecifierSet(python_asked).contains(version)
        else [f"Python is {version}, {python_asked} is asked for"]
    )
    for requirement in {line: Requirement(line) for line in lines}.values():
        try:
            versions[requirement.name] = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing ({requirement.specifier} is asked for)")
            continue
        if not requirement.specifier.contains(versions[requirement.name], prereleases=True):
            wrong.append(
                f"{requirement.name} is {versions[requirement.name]}, {requirement.specifier} is asked for"
            )
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    found = f"Python {version}, harness {harness.__version__}, {len(versions)} libraries ({shown})"
    check = graded("libraries", found, wrong, remedy="install requirements.lock into this environment")
    return {
        **told(check),
        "versions": {"Python": version, "harness": harness.__version__, "its code": _code(), **versions},
    }


def _asked_for() -> tuple[str, list[str]]:
    """The Python and the libraries that the code that runs asks for.

    In a checkout the installed package may be of another day.
    """
    path = Path(harness.__file__).parents[1] / "pyproject.toml"
    if path.exists():
        project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            extras = project["optional-dependencies"]
            return project["requires-python"], [
                *project["dependencies"],
                *(line for name in EXTRAS for line in extras[name]),
            ]
    lines = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    asked = [
        line
        for line in lines
        if line.marker is None or any(line.marker.evaluate({"extra": name}) for name in ("", *EXTRAS))
    ]
    plain = [f"{line.name}{line.specifier}" for line in asked if line.name != DISTRIBUTION]
    return importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"], plain


def _code() -> str:
    """A digest of the harness's own code: two nodes must not run different ones."""
    folder = Path(harness.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class DeviceClaim:
    """What SLURM says that it has given this process on this machine; None where it says nothing.

    Attributes:
        gpus: GPUs.
        cpus: CPUs.
        memory: Bytes.
    """

    gpus: int | None
    cpus: int | None
    memory: int | None


def claim_of(environment: Mapping[str, str]) -> DeviceClaim:
    """SLURM's claim, from the environment of a job's step."""
    if "SLURM_JOB_ID" not in environment:
        return DeviceClaim(None, None, None)
    listed = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or ""
    count = environment.get("SLURM_GPUS_ON_NODE", "")
    gpus = int(count) if count.isdigit() else len([part for part in listed.split(",") if part])
    cpus = (
        int(environment["SLURM_CPUS_ON_NODE"])
        if environment.get("SLURM_CPUS_ON_NODE", "").isdigit()
        else None
    )
    megabytes = int(environment.get("SLURM_MEM_PER_NODE") or 0) or int(
        environment.get("SLURM_MEM_PER_CPU") or 0
    ) * (cpus or 0)
    return DeviceClaim(gpus, cpus, megabytes * 2**20 or None)


def devices() -> dict[str, Any]:
    """GPUs as torch, the driver and SLURM see them."""
    seen = json.loads(last_line(run(python("harness.launch.doctor.devices"), DEVICES_LIMIT_S - 15)))
    driver, listed = "", 0
    if shutil.which("nvidia-smi"):
        try:
            lines = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 10).split()
            driver, listed = (lines or [""])[0], len(lines)
        except ChildError as error:
            seen["error"] = seen["error"] or f"nvidia-smi: {error}"
    check = judge_devices(claim_of(os.environ), seen, driver, listed, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return {**told(check), "gpus": sum(not device["error"] for device in seen["devices"])}


def judge_devices(
    claim: DeviceClaim, seen: Mapping[str, Any], driver: str, listed: int, visible: str | None
) -> Check:
    """Hold the claim, torch and the driver against each other.

    Args:
        claim: What SLURM has given.
        seen: What torch sees: ``torch`` and ``cuda`` (versions), ``devices`` (name, bytes of memory, error)
            and ``error``.
        driver: The driver's version; empty where there is none.
        listed: GPUs that the driver lists.
        visible: ``CUDA_VISIBLE_DEVICES``.
    """
    usable = [device for device in seen["devices"] if not device["error"]]
    names = ", ".join(f"{device['name']} {gib(device['memory'])}" for device in usable) or "no GPU"
    found = (
        f"torch {seen['torch']} can use {len(usable)}: {names}"
        if usable
        else f"torch {seen['torch']} can use no GPU"
    )
    found += f", driver {driver}" if driver else ""
    wrong = [f"GPU {n}: {device['error']}" for n, device in enumerate(seen["devices"]) if device["error"]]
    if seen["error"]:
        wrong.append(seen["error"])
    if claim.gpus:
        shown = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
        if len(usable) < claim.gpus:
            wrong.insert(0, f"SLURM has given {claim.gpus} GPUs{shown}, torch can use {len(usable)}")
            wrong += ["this torch is built without CUDA"] if seen["cuda"] is None else []
        elif len(usable) > claim.gpus:
            beyond = f"SLURM has given {claim.gpus} GPUs{shown}, torch can use {len(usable)}"
            remedy = (
                "GPUs of others are in reach: set CUDA_VISIBLE_DEVICES in the job, and ask for "
                "ConstrainDevices in cgroup.conf"
            )
            return graded("devices", found, wrong, [beyond], remedy=remedy)
        else:
            found = f"SLURM has given {claim.gpus} GPUs{shown}; {found}"
    elif listed and not usable and claim.gpus is None and visible != "":
        wrong.insert(0, f"the driver lists {listed} GPUs, torch can use none")
    elif not usable and not wrong:
        found += ": models are trained on CPUs"
    remedy = (
        "run `nvidia-smi` there; the build of torch must suit the driver, and the job must ask for GPUs that "
        "there are"
    )
    return graded("devices", found, wrong, remedy=remedy)


def processors() -> dict[str, Any]:
    """CPUs and memory that this process can really use, against SLURM's claim."""
    limit = cpu_quota()
    ceiling = control_group("memory.max", "memory.limit_in_bytes")
    free = psutil.virtual_memory().available
    claim = claim_of(os.environ)
    found = [
        judge_cpus(claim.cpus, len(os.sched_getaffinity(0)), limit, os.getloadavg()[0]),
        judge_memory(
            claim.memory, free, psutil.virtual_memory().total, int(ceiling) if ceiling.isdigit() else None
        ),
    ]
    return told(*found)


def judge_cpus(claim: int | None, allowed: int, quota: float | None, load: float) -> Check:
    """CPUs.

    Args:
        claim: What SLURM has given.
        allowed: CPUs that the scheduler of this kernel lets the process run on.
        quota: CPUs that the control group allows, in time.
        load: Processes that want to run, mean of a minute.
    """
    usable = allowed if quota is None else min(allowed, quota)
    found = f"{usable:g} CPUs can be used, load {load:.1f}"
    if claim is None:
        return ok("cpus", found)
    less = [f"SLURM has given {claim} CPUs, {usable:g} can be used"] if usable < claim else []
    more = [f"SLURM has given {claim} CPUs, and does not confine the job to them"] if usable > claim else []
    remedy = (
        "set resources.threads by what can be used"
        if less
        else "start Ray with --num-cpus of the job, or ask for TaskPlugin=task/affinity"
    )
    return graded(
        "cpus", found if less or more else f"SLURM has given {claim}; {found}", [], less + more, remedy=remedy
    )


def judge_memory(claim: int | None, free: int, total: int, limit: int | None) -> Check:
    """Memory.

    Args:
        claim: Bytes that SLURM has given.
        free: Bytes that are free.
        total: Bytes of the machine.
        limit: Bytes that the control group allows; the kernel gives a huge number where there is none.
    """
    limit = limit if limit is not None and limit < total else None
    found = f"{gib(free)} of {gib(total)} free" + (f", limit {gib(limit)}" if limit else "")
    warnings = []
    if claim is not None and free < claim:
        warnings.append(f"SLURM has given {gib(claim)}, {gib(free)} are free")
    elif claim is not None and limit is not None and limit < claim:
        warnings.append(f"SLURM has given {gib(claim)}, the control group allows {gib(limit)}")
    elif claim is not None:
        found = f"SLURM has given {gib(claim)}; {found}"
    failures = [f"{gib(free)} are free"] if free < 2**30 else []
    return graded(
        "memory",
        found,
        failures,
        warnings,
        remedy="see who else uses the machine (`top`); ask for more with --mem",
    )


def limits() -> dict[str, Any]:
    """Open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files a process (at most {hard})"
    few = [f"{soft} are few for Ray"] if soft < FILES else []
    return told(
        graded(
            "open files",
            found,
            few if soft < 512 else [],
            few,
            remedy=f"`ulimit -n {min(hard, 65535)}` in the job",
        )
    )


def ray_folder(environment: Mapping[str, str]) -> str:
    """The folder that a Ray of the harness would use for its sockets.

    In a job a site may have named another place (``tmp``).
    """
    job = environment.get("SLURM_JOB_ID")
    return f"{environment.get(TMP_VARIABLE) or TMP}/h{job}-0" if job else "/tmp/hr-4194304-00000000"


def judge_folder(folder: str) -> Check:
    """The length of Ray's folder, against the longest name that a socket may have."""
    longest = len(os.fsencode(folder + RAY_SUFFIX))
    found = f"{folder}: {len(os.fsencode(folder))} bytes, sockets in it up to {longest} of {SOCKET_BYTES}"
    remedy = (
        f"set tmp in the site file (HARNESS_TMP) so that the folder's name has at most {LONGEST_TMP} "
        "characters"
    )
    too_long = [f"Ray's folder has a name of {len(os.fsencode(folder))} bytes, {LONGEST_TMP} are allowed"]
    return graded(
        "socket path", found, too_long if len(os.fsencode(folder)) > LONGEST_TMP else [], remedy=remedy
    )


def folders() -> dict[str, Any]:
    """Ray's folder, and shared memory."""
    folder = ray_folder(os.environ)
    length = judge_folder(folder)
    above = next(path for path in (Path(folder), *Path(folder).absolute().parents) if path.exists())
    remedy = (
        f"free space on {above}, or set tmp in the site file (HARNESS_TMP) to another local folder with a "
        "short name"
    )
    wrong = []
    try:
        with tempfile.TemporaryDirectory(prefix=scratch_prefix(), dir=above) as inner:
            if length.severity == "ok":
                # Not every file system takes a socket.
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(f"{inner}/socket")
    except OSError as error:
        wrong.append(f"no socket can be made in {above}: {error.strerror or error}")
    free = shutil.disk_usage(above).free
    little = [f"{gib(free)} are little"] if free < ROOM else []
    temporary = graded("temporary folder", f"{gib(free)} free in {above}", wrong, little, remedy=remedy)
    try:
        memory = shutil.disk_usage("/dev/shm").free
        few = (
            [f"{gib(memory)} are less than Ray's {gib(OBJECT_STORE_BYTES)} of objects"]
            if memory < OBJECT_STORE_BYTES
            else []
        )
        shared = graded(
            "shared memory",
            f"{gib(memory)} free in /dev/shm",
            [],
            few,
            remedy="make /dev/shm larger; Ray is slow without",
        )
    except OSError as error:
        shared = Check(
            "shared memory",
            "warning",
            f"/dev/shm: {error.strerror}",
            "mount a tmpfs there; Ray is slow without",
        )
    return told(length, temporary, shared)


REQUESTS: dict[str, Callable[..., Any]] = {
    "libraries": libraries,
    "devices": devices,
    "processors": processors,
    "limits": limits,
    "folders": folders,
}
