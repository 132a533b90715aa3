"""Wheels for a machine without a network: which ones, collected here, installed there."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
ROOTS = (
    "deepspeed",
    "pydantic",
    "PyYAML",
    "psutil",
    "pyarrow",
    "safetensors",
    "threadpoolctl",
    "packaging",
    "hypothesis",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
)
"""What the CUDA tests and the benchmark import."""
ALONE = ("datasets",)
"""Looked for before a language model is fitted, and imported for data of the hub only."""
THERE = {"torch", "transformers", "tokenizers", "huggingface-hub", "numpy", "pyarrow"}
"""What the machine has, whatever the version; what these need is there too. (pyarrow alone is as large as all
wheels together may be.)"""
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)


class Refused(Exception):
    """It cannot go on, for a reason that a person can mend."""


def plain(name):
    """The name of a distribution as indexes compare it."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def needed(roots, there):
    """Distributions with all that they need, as this environment has them; name to version.

    Args:
        roots: Where to begin.
        there: Names that are left out with what only they need.
    """
    from packaging.requirements import Requirement

    found, ahead = {}, list(roots)
    while ahead:
        name = plain(ahead.pop())
        if name in found or name in there:
            continue
        try:
            about = distribution(name)
        except PackageNotFoundError:
            raise Refused(
                f"{name} is not installed here; `scripts/test` makes an environment that has it"
            ) from None
        found[name] = about.version
        wanted = [Requirement(text) for text in about.requires or ()]
        ahead += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def listed(path):
    """Names in the output of ``pip list --format freeze`` or ``pip freeze``."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise Refused(f"--have: {path} cannot be read ({error.strerror})") from None
    names = {plain(re.split(r"[=<>!~ @\[;]", line.strip(), maxsplit=1)[0]) for line in lines}
    return {name for name in names if name and not name.startswith("#")}


def collect(folder, python, have, lacks, most):
    """Collect wheels.

    Args:
        folder: Where to; it is emptied of wheels first.
        python: The machine's Python, as ``3.12``.
        have: File with what the machine has; None for `THERE` alone.
        lacks: Names that it has not, of those in `THERE` too.
        most: Megabytes of all of them together.

    Raises:
        Refused: One cannot be had, or they are too large.
    """
    if not re.fullmatch(r"3\.\d+", python):
        raise Refused(f"--python: found {python!r}, allowed: a version as 3.12")
    there = (THERE | (listed(have) if have else set())) - {plain(name) for name in lacks}
    wanted = needed((*ROOTS, *lacks), there) | {name: version(name) for name in ALONE if name not in there}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    for name, which in sorted(wanted.items()):
        _fetch(folder, f"{name}=={which}", python)
    sizes = sorted(((path.stat().st_size, path.name) for path in folder.glob("*.whl")), reverse=True)
    total = sum(size for size, _ in sizes) / 1e6
    largest = ", ".join(f"{name.split('-')[0]} {size / 1e6:.1f}" for size, name in sizes[:4])
    if total > most:
        raise Refused(
            f"{len(sizes)} wheels are {total:.1f} MB, allowed: {most} ({largest}); name what the machine has "
            "with --have"
        )
    print(f"{folder}: {len(sizes)} wheels, {total:.1f} MB ({largest}), for Python {python}")
    return 0


def _fetch(folder, wanted, python):
    """One wheel: of the index, for the machine; or built here, where it is the same for all machines."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    how = ["--only-binary", ":all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        how += ["--platform", platform]
    command = [*pip, "download", "--quiet", "--no-deps", *how, "--dest", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    before = set(folder.glob("*.whl"))
    command = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), wanted]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    made = set(folder.glob("*.whl")) - before
    if built.returncode or any(not path.name.endswith("-none-any.whl") for path in made):
        lines = (built.stderr or done.stderr).strip().splitlines() or ["pip says nothing"]
        raise Refused(f"{wanted}: no wheel for Python {python} on x86-64 ({lines[-1]})")


def install(wheels, folder):
    """Install what is missing here, or older than what was collected, into a folder; offline.

    Returns:
        The folder, in a list; nothing where nothing was missing.

    Raises:
        Refused: There are two versions of one, or pip cannot install them.
    """
    from packaging.version import Version  # transformers needs it, so it is there

    missing, seen = [], {}
    for path in sorted(Path(wheels).glob("*.whl")):
        name, which = path.name.split("-")[:2]
        if plain(name) in seen:
            raise Refused(f"{path} and {seen[plain(name)]}: one version of each")
        seen[plain(name)] = path
        try:
            if Version(version(name)) >= Version(which):
                continue
        except PackageNotFoundError:
            pass
        missing.append(str(path))
    if not missing:
        return []
    how = [
        "--quiet",
        "--disable-pip-version-check",
        "--no-index",
        "--no-deps",
        "--no-compile",
        "--no-cache-dir",
    ]
    command = [sys.executable, "-m", "pip", "install", *how, "--target", str(folder), *missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip says nothing"]
        raise Refused(f"{wheels}: its wheels cannot be installed here ({lines[-1]})")
    return [folder]
