"""The parts of `scripts/gpu run`, one after another, each within what is left of the time.

What they find is kept in one file.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from offline.pack import Refused

MACHINE = """
import json, sys
import pyarrow, torch, transformers
sys.path.insert(0, sys.argv[1])
from benchmarks import machine
about = machine.describe()
cuda = torch.cuda.is_available()
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
about["devices"] = [{"name": one.name, "memory_bytes": one.total_memory} for one in devices]
about["cuda"], about["machine"] = torch.version.cuda, machine.name(devices[0].name if devices else "cpu", 1)
print(json.dumps(about))
"""
COMPARED = ("fits", "samples", "scores")
SHORT = "--short --cpu-time --rounds 1 --steps 1 --rows 8 --scored 32"
LARGE = "--models gpt2-124m --precisions bf16 --vocab 50257 --context 512 --batch 16 --scored 64 --rounds 5"
PYTEST = "-m pytest -q --tb short -p no:cacheprovider -p offline.reports -m"


@dataclass
class Part:
    """A program that answers with a document.

    Attributes:
        name: What ``--parts`` calls it.
        command: Its command line.
        limit: Seconds that it may take.
        kind: ``machine``, ``tests`` or ``figures``: what its answer is.
        environment: What its environment has besides.
    """

    name: str
    command: list
    limit: float
    kind: str
    environment: dict = field(default_factory=dict)


def all_parts(root, dry):
    """All parts, in their order: short ones first, and the tests before what the table can do without."""
    python, bench = sys.executable, root / "scripts" / "bench"
    files = [str(path) for path in sorted((root / "tests").glob("test_*.py")) if _asks_for_a_gpu(path)]
    machine = Part("machine", [python, "-c", MACHINE, str(bench.parent)], 60, "machine")
    tests = Part("tests", [python, *PYTEST.split(), "gpu or multigpu", *files], 240, "tests")

    def figures(name, more):
        return [
            Part(f"{what}-{name}", [python, str(bench), what, "--json", *more.split()], 120, "figures")
            for what in COMPARED
        ]

    if dry:
        return [machine, *figures("short", SHORT), tests]
    pairs = [(model, kind) for kind in ("bf16", "fp32") for model in ("small", "tiny")]
    each = [figures(f"{one}-{kind}", f"--models {one} --precisions {kind} --rounds 5") for one, kind in pairs]
    small, *others = each
    return [
        machine,
        *small,
        tests,
        *figures("gpt2-124m-bf16", LARGE),
        *(part for one in others for part in one),
    ]


def _asks_for_a_gpu(path):
    return re.search(r"mark\.(gpu|multigpu)\b", path.read_text()) is not None


def run(root, options, environment):
    """Run the parts; returns the exit code.

    Args:
        root: The tree.
        options: ``out``, ``limit``, ``parts``, ``dry``.
        environment: Of all parts.

    Raises:
        Refused: There is no GPU, or no such part.
    """
    parts = all_parts(root, options.dry)
    names = [part.name for part in parts]
    odd = [name for name in options.parts or () if name not in names]
    if odd:
        raise Refused(f"--parts: found {odd[0]!r}, allowed: {', '.join(names)}")
    wanted = {"machine", *(options.parts or names)}
    return _run([part for part in parts if part.name in wanted], options, environment, root)


def _run(parts, options, environment, root):
    started = time.monotonic()
    document = {
        "mode": "cpu" if options.dry else "cuda",
        "command": ["scripts/gpu", "run", *(["--dry"] if options.dry else [])],
        "limit_s": options.limit,
        "parts": [],
        "tests": [],
        "figures": [],
        "left_out": {},
    }
    for part in parts:
        left = options.limit - (time.monotonic() - started)
        if left < 1:
            document["parts"].append({"name": part.name, "status": "left out"})
        else:
            document["parts"].append(_one(part, min(part.limit, left), environment, root, document))
        if part.kind == "machine":
            _check(document, options.dry)
        document["seconds"] = round(time.monotonic() - started, 1)
        _write(options.out, document)
        last = document["parts"][-1]
        print(
            f"{part.name}: {last['status']}",
            *([f"({last['reason']})"] if last.get("reason") else []),
            flush=True,
        )
    outcomes = [test["outcome"] for test in document["tests"]]
    counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped"))
    print(f"{options.out}: {counts}; {len(document['figures'])} figures; {document['seconds']:.0f} s")
    return _code([part["status"] for part in document["parts"]], outcomes)


def _code(statuses, outcomes):
    if "failed" in statuses or "failed" in outcomes:
        return 1
    return 75 if {"left out", "out of time"} & set(statuses) else 0


def _check(document, dry):
    """What the first part found: without a GPU nothing else is asked for."""
    first = document["parts"][0]
    if first["status"] != "ok":
        raise Refused(f"this machine cannot be asked what it is: {first.get('reason', first['status'])}")
    if not document["devices"] and not dry:
        raise Refused("torch finds no GPU on this machine; --dry runs the same parts without one")


def _one(part, limit, environment, root, document):
    """Run a part, and add what it found to the document; returns what became of it."""
    at = time.monotonic()
    about = {"name": part.name, "command": part.command, "status": "ok"}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w+") as log:
        lines = Path(folder) / "tests.jsonl"
        lines.touch()
        own = {**environment, **part.environment, "HARNESS_TEST_REPORTS": str(lines)}
        process = subprocess.Popen(
            part.command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=root,
            env=own,
            start_new_session=True,
        )
        try:
            answer, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            about["status"] = "out of time"
            answer = _ended(process)
        log.seek(0)
        said = log.read().strip().splitlines()
        if part.kind == "tests":
            document["tests"] += [json.loads(line) for line in lines.read_text().splitlines()]
            said = answer.strip().splitlines()[-8:] or said
    about["seconds"] = round(time.monotonic() - at, 1)
    if about["status"] == "ok" and process.returncode:
        about |= {"status": "failed", "reason": said[-1] if said else f"exit code {process.returncode}"}
    if about["status"] == "ok" and part.kind != "tests":
        found = json.loads(answer)
        if part.kind == "machine":
            document.update(found)
        else:
            document["figures"] += found["figures"]
            document["left_out"] |= found["left_out"]
    return about


def _ended(process):
    """End a program with all that it started; returns what it had said."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            return process.communicate(timeout=5)[0]
        except subprocess.TimeoutExpired:
            continue
    return ""


def _write(path, document):
    """Replace the file as a whole, so that it can be read at any moment."""
    other = path.with_name(path.name + ".part")
    other.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(other, path)
