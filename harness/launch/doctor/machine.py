"""What one machine has, against what SLURM says it has given.

Libraries, devices, CPUs, memory, limits, temporary folders.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import resource
import shutil
import socket
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import harness
from harness.compiler import FIELD, missing
from harness.launch.allocation import LONGEST_TMP, TMP, TMP_VARIABLE
from harness.launch.doctor.checks import (
    Check,
    ChildError,
    above,
    gib,
    graded,
    passed_over,
    run,
    said_by,
    scratch,
)
from harness.launch.node import OBJECT_STORE_BYTES
from harness.proc import cpu_quota, memory_limit
from harness.terminal import first_some

DEVICES_LIMIT_S = 60.0
DISTRIBUTION = "model-collapse-harness"
EXTRAS = {"text": "language models", "images": "VAEs", "wandb": "W&B"}
"""What the package asks for in parts, and what for: a machine that runs everything has all of it."""
SHOWN = ("torch", "deepspeed", "ray", "transformers")
SOCKET_BYTES = 107
"""The longest name of a socket that Linux takes."""
RAY_SUFFIX = "/r/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray adds to its folder, with the longest process id."""
ROOM = 2 * 2**30
"""Bytes that a temporary folder should have free: Ray's logs, and objects that do not fit its shared
memory."""
FILES, FEWEST_FILES = 4096, 512
"""Open files that a process should be allowed: Ray's processes hold a connection to each worker."""


def libraries() -> list[Check]:
    """The versions that are installed, against what the package asks for; whether fits can be compiled."""
    parts = _asked_for()
    there = {name: _installed(name) for asked in parts.values() for name in asked}
    absent = _left_out(parts, there)
    asked = {name: found for part in parts if part not in absent for name, found in parts[part].items()}
    wrong = [
        f"{name} is {there[name] or 'missing'}, {specifier} is asked for"
        for name, specifier in asked.items()
        if not there[name] or not specifier.contains(there[name], prereleases=True)
    ]
    versions = {name: version for name, version in there.items() if version}
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions)
    found = f"Python {there['Python']}, harness {harness.__version__}, {len(asked) - 1} libraries ({shown})"
    lacks = missing(gpu=shutil.which("nvidia-smi") is not None)
    found += f"; {FIELD} {'would lack ' + lacks if lacks else 'has what it needs'}"
    versions |= {"harness": harness.__version__, "its code": _code()}
    without = [f"no {', '.join(EXTRAS[part] for part in absent)} here"] if absent else []
    wanted = f"where they are wanted, pip install '{DISTRIBUTION}[{','.join(absent)}]'"
    check = graded("libraries", found, wrong, without, "" if wrong else wanted)
    return [replace(check, facts={"versions": versions})]


def _left_out(parts: Mapping[str, Mapping[str, SpecifierSet]], there: Mapping[str, str]) -> list[str]:
    """The parts of which nothing is installed; of libraries that another part needs too it is not asked."""
    needed = Counter(name for asked in parts.values() for name in asked)
    own = {part: [name for name in parts[part] if needed[name] == 1] or list(parts[part]) for part in parts}
    return [part for part, names in own.items() if part and not any(there[name] for name in names)]


def _asked_for() -> dict[str, dict[str, SpecifierSet]]:
    """The versions of Python and of libraries that the code that runs asks for, by the part that needs them.

    ``""`` is what everything needs. In a checkout the installed package may be of another day.
    """
    path = Path(harness.__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {}) if path.exists() else {}
    if project.get("name") == DISTRIBUTION:
        python, extras = project["requires-python"], project["optional-dependencies"]
        lines = [*project["dependencies"]]
        lines += [f'{line}; extra == "{name}"' for name in EXTRAS for line in extras[name]]
    else:
        python = importlib.metadata.metadata(DISTRIBUTION)["Requires-Python"]
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    asked: dict[str, dict[str, SpecifierSet]] = {"": {"Python": SpecifierSet(python)}}
    for item in map(Requirement, lines):
        for part in ("", *EXTRAS):
            if item.marker.evaluate({"extra": part}) if item.marker else not part:
                asked.setdefault(part, {})[item.name] = item.specifier
    return asked


def _installed(name: str) -> str:
    """The version of Python or of a library; empty where it is not there."""
    if name == "Python":
        return ".".join(map(str, sys.version_info[:3]))
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _code() -> str:
    """A digest of the harness's own code: two nodes must not run different ones."""
    folder = Path(harness.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def judge_alike(versions: Mapping[str, Mapping[str, str]]) -> Check:
    """Whether all machines run the same software.

    Args:
        versions: For each machine the version of each library, of Python and of the harness.
    """
    names = sorted({name for known in versions.values() for name in known})
    unlike = []
    for name in names:
        there: dict[str, list[str]] = {}
        for node, known in versions.items():
            there.setdefault(known.get(name, "missing"), []).append(node)
        if len(there) > 1:
            said = ", ".join(f"{version} on {', '.join(on)}" for version, on in there.items())
            unlike.append(f"{name}: {said}")
    text = f"the same Python, harness and {len(names) - 3} libraries on {len(versions)} machines"
    return graded("same software", "" if unlike else text, first_some(unlike, 3))


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

    def number(name: str) -> int:
        text = environment.get(name, "")
        return int(text) if text.isdigit() else 0

    listed = environment.get("SLURM_STEP_GPUS") or environment.get("SLURM_JOB_GPUS") or ""
    gpus, cpus = number("SLURM_GPUS_ON_NODE"), number("SLURM_CPUS_ON_NODE")
    megabytes = number("SLURM_MEM_PER_NODE") or number("SLURM_MEM_PER_CPU") * cpus
    return DeviceClaim(gpus or len(listed.replace(",", " ").split()), cpus or None, megabytes * 2**20 or None)


def devices() -> list[Check]:
    """GPUs as torch, the driver and SLURM see them."""
    if lacks := passed_over("devices", "torch"):
        return lacks
    seen = said_by(DEVICES_LIMIT_S - 15, "harness.launch.doctor.children", "devices")
    drivers: list[str] = []
    if shutil.which("nvidia-smi"):
        try:
            drivers = run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], 10).split()
        except ChildError as error:
            seen["error"] = seen["error"] or f"nvidia-smi: {error}"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    check = judge_devices(claim_of(os.environ), seen, drivers, visible)
    return [replace(check, facts={"gpus": sum(not device["error"] for device in seen["devices"])})]


def judge_devices(
    claim: DeviceClaim, seen: Mapping[str, Any], drivers: list[str], visible: str | None
) -> Check:
    """Hold the claim, torch and the driver against each other.

    Args:
        claim: What SLURM has given.
        seen: What torch sees (`children.devices`).
        drivers: The version of the driver, for each GPU that it lists.
        visible: ``CUDA_VISIBLE_DEVICES``.
    """
    usable = [device for device in seen["devices"] if not device["error"]]
    names = ", ".join(f"{device['name']} {gib(device['memory'])}" for device in usable)
    found = f"torch {seen['torch']} can use {f'{len(usable)}: {names}' if usable else 'no GPU'}"
    found += f", driver {drivers[0]}" if drivers else ""
    wrong = [f"GPU {n}: {device['error']}" for n, device in enumerate(seen["devices"]) if device["error"]]
    wrong += [seen["error"]] if seen["error"] else []
    if claim.gpus:
        shown = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
        given = f"SLURM has given {claim.gpus} GPUs{shown}"
        if len(usable) > claim.gpus:
            remedy = "GPUs of others are in reach: set CUDA_VISIBLE_DEVICES in the job, and ask for "
            remedy += "ConstrainDevices in cgroup.conf"
            return graded("devices", found, wrong, [f"{given}, torch can use {len(usable)}"], remedy)
        if len(usable) == claim.gpus:
            found = f"{given}; {found}"
        else:
            wrong.insert(0, f"{given}, torch can use {len(usable)}")
            wrong += ["this torch is built without CUDA"] if seen["cuda"] is None else []
    elif drivers and not usable and claim.gpus is None and visible != "":
        wrong.insert(0, f"the driver lists {len(drivers)} GPUs, torch can use none")
    elif not usable and not wrong:
        found += ": models are trained on CPUs"
    return graded("devices", found, wrong)


def processors() -> list[Check]:
    """CPUs and memory that this process can really use, against SLURM's claim."""
    memory, claim = psutil.virtual_memory(), claim_of(os.environ)
    return [
        judge_cpus(claim.cpus, len(os.sched_getaffinity(0)), cpu_quota(), os.getloadavg()[0]),
        judge_memory(claim.memory, memory.available, memory.total, memory_limit()),
    ]


def judge_cpus(claim: int | None, allowed: int, quota: float | None, load: float) -> Check:
    """CPUs.

    Args:
        claim: What SLURM has given.
        allowed: CPUs that the scheduler of this kernel lets the process run on.
        quota: CPUs that the control group allows, in time.
        load: Processes that want to run, mean of a minute.
    """
    usable = allowed if quota is None else min(allowed, quota)
    found, unlike = f"{usable:g} CPUs can be used, load {load:.1f}", []
    if claim is not None and usable < claim:
        unlike = [f"SLURM has given {claim} CPUs, {usable:g} can be used"]
    elif claim is not None and usable > claim:
        unlike = [f"SLURM has given {claim} CPUs, and does not confine the job to them"]
    elif claim is not None:
        found = f"SLURM has given {claim}; {found}"
    return graded("cpus", found, [], unlike)


def judge_memory(claim: int | None, free: int, total: int, limit: int | None) -> Check:
    """Memory, in bytes.

    Args:
        claim: What SLURM has given.
        free: What is free.
        total: What the machine has.
        limit: What the control group allows; the kernel gives a huge number where there is no limit.
    """
    limit = limit if limit is not None and limit < total else None
    found = f"{gib(free)} of {gib(total)} free" + (f", limit {gib(limit)}" if limit else "")
    less = []
    if claim is not None and free < claim:
        less = [f"SLURM has given {gib(claim)}, {gib(free)} are free"]
    elif claim is not None and limit is not None and limit < claim:
        less = [f"SLURM has given {gib(claim)}, the control group allows {gib(limit)}"]
    elif claim is not None:
        found = f"SLURM has given {gib(claim)}; {found}"
    return graded("memory", found, [f"{gib(free)} are free"] if free < 2**30 else [], less)


def limits() -> list[Check]:
    """Open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = [f"{soft} are few for Ray"] if soft < FILES else []
    found = f"{soft} open files a process (at most {hard})"
    return [graded("open files", found, few if soft < FEWEST_FILES else [], few)]


def ray_folder(environment: Mapping[str, str]) -> str:
    """The folder that a Ray of the harness would use for its sockets.

    In a job a site may have named another place (``tmp``).
    """
    job = environment.get("SLURM_JOB_ID")
    return f"{environment.get(TMP_VARIABLE) or TMP}/h{job}-0" if job else "/tmp/hr-4194304-00000000"


def judge_folder(folder: str) -> Check:
    """The length of Ray's folder, against the longest name that a socket may have."""
    own, longest = len(os.fsencode(folder)), len(os.fsencode(folder + RAY_SUFFIX))
    too_long = f"Ray's folder has a name of {own} bytes, {LONGEST_TMP} are allowed"
    found = f"{folder}: {own} bytes, sockets in it up to {longest} of {SOCKET_BYTES}"
    return graded("socket path", found, [too_long] if own > LONGEST_TMP else [])


def folders() -> list[Check]:
    """Ray's folder, and shared memory."""
    folder, wrong = ray_folder(os.environ), []
    length, there = judge_folder(folder), above(Path(folder))
    try:
        with scratch(there) as inner:
            if length.severity == "ok":
                # Not every file system takes a socket.
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(f"{inner}/socket")
    except OSError as error:
        wrong = [f"no socket can be made in {there}: {error.strerror or error}"]
    free = shutil.disk_usage(there).free
    little = [f"{gib(free)} are little"] if free < ROOM else []
    temporary = graded("temporary folder", f"{gib(free)} free in {there}", wrong, little)
    try:
        memory = shutil.disk_usage("/dev/shm").free
        found, needs = f"{gib(memory)} free in /dev/shm", f"Ray's {gib(OBJECT_STORE_BYTES)} of objects"
        few = [f"{gib(memory)} are less than {needs}"] if memory < OBJECT_STORE_BYTES else []
    except OSError as error:
        found, few = "", [f"/dev/shm: {error.strerror}"]
    return [length, temporary, graded("shared memory", found, [], few)]
