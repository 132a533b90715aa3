"""Whole commands: the grid beside Ray Tune, and how long commands take to start."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from benchmarks.table import Figure
from benchmarks.turns import SCRIPTS, spread

GRID = Path(__file__).parent / "grid.yaml"
QUICKSTART = SCRIPTS.parent / "configs" / "quickstart.yaml"


class Failed(Exception):
    """A command did not do what it was to do."""


def _watch(pid, ended, seen):
    """Note the CPU seconds of a process and all below it twice a second, until it has ended."""
    while not ended.wait(0.5):
        with contextlib.suppress(psutil.Error):
            top = psutil.Process(pid)
            for process in [top, *top.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    seen[process.pid, process.create_time()] = times.user + times.system


def _run(command, folder, extra=None):
    """Wall seconds, CPU seconds of all its processes, and standard output of a command.

    A process that nobody waits for, as Ray's are, counts up to half a second before its end.

    Raises:
        Failed: It ended with another code than 0.
    """
    given = os.environ.get("PYTHONPATH")
    path = [str(SCRIPTS.parent), *([str(extra)] if extra else []), *([given] if given else [])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    out, log = Path(folder) / "out", Path(folder) / "log"
    at = time.perf_counter()
    with open(out, "w") as answers, open(log, "w") as messages:
        process = subprocess.Popen(command, stdout=answers, stderr=messages, env=env, cwd=folder)
        ended, seen = threading.Event(), {}
        watcher = threading.Thread(target=_watch, args=(process.pid, ended, seen))
        watcher.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
        finally:
            ended.set()
            watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    took = time.perf_counter() - at
    if process.returncode:
        lines = (out.read_text() + log.read_text()).strip().splitlines() or ["nothing"]
        raise Failed(f"{' '.join(command[1:4])} ended with {process.returncode}: {lines[-1]}")
    own = usage.ru_utime + usage.ru_stime  # exact, with what it waited for
    return took, max(own, sum(seen.values())), out.read_text()


def _harness(*arguments):
    return [sys.executable, "-m", "harness", *arguments]


def _grid_run(precision, generations):
    def run(folder, extra):
        settings = [f"learner.train.precision={precision}", f"generations={generations}"]
        command = _harness("run", str(GRID), "--root", str(folder / "root"), "--json")
        took, cpu, out = _run([*command, *_with(settings)], folder)
        found = json.loads(out.strip().splitlines()[-1])
        if found["chains_complete"] != 4 or found["generations_computed"] != 4 * generations + 2:
            raise Failed(f"harness run computed {found}")
        return took, cpu

    return run


def _grid_tune(precision, generations):
    def run(folder, extra):
        command = [
            sys.executable,
            str(SCRIPTS / "baselines" / "ray_tune.py"),
            "--generations",
            str(generations),
        ]
        took, cpu, out = _run([*command, *(["--bf16"] if precision == "bf16" else [])], folder, extra)
        chains = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        if len(chains) != 4 or any(chain["error"] for chain in chains):
            raise Failed(f"Ray Tune ended with {chains}")
        return took, cpu

    return run


def grid(rounds=1, generations=3, extra=None, tune_bf16=False):
    """`harness run` of the grid in fp32 and bf16, and Ray Tune over Trainer, in turn.

    Trainer computes in fp32, its default, and on request in bf16 too.
    """
    who = {
        ("harness", "fp32"): _grid_run("fp32", generations),
        ("Ray Tune, Trainer, generate", "fp32"): _grid_tune("fp32", generations),
        ("harness", "bf16"): _grid_run("bf16", generations),
    }
    if tune_bf16:
        who["Ray Tune, Trainer, generate", "bf16"] = _grid_tune("bf16", generations)
    taken = {key: [] for key in who}
    for number in range(rounds):
        for key in reversed(who) if number % 2 else who:
            with tempfile.TemporaryDirectory() as folder:
                taken[key].append(who[key](Path(folder), extra))
            print(f"grid: {', '.join(key)}: {taken[key][-1][0]:.1f} s", file=sys.stderr)
    return grid_figures(f"2 sizes x 2 ratios x generations 0-{generations}", taken)


def grid_figures(model, taken):
    """Figures of the grid; ratios are to Ray Tune in fp32.

    Args:
        model: What was computed.
        taken: Wall and CPU seconds of every round, by who computed in which precision.
    """
    found = []
    for place, unit in enumerate(("s", "CPU s")):
        tune = [pair[place] for pair in taken["Ray Tune, Trainer, generate", "fp32"]]
        for (name, precision), pairs in taken.items():
            values = [pair[place] for pair in pairs]
            found.append(Figure("grid", model, precision, name, unit, *spread(values)))
        for precision in ("fp32", "bf16"):
            ours = [pair[place] for pair in taken["harness", precision]]
            ratios = [theirs / own for theirs, own in zip(tune, ours, strict=True)]
            says = f"Ray Tune, Trainer, generate in fp32 : harness in {precision}"
            found.append(Figure("grid", model, precision, says, f"x, by {unit}", *spread(ratios)))
    return found


def _with(settings):
    """Arguments of the command line that set fields."""
    return [part for one in settings for part in ("--set", one)]


ONE_STEP = (
    "data.num_examples=16",
    "learner.train.epochs=1",
    "generations=0",
    "grid.learner.model.preset=[tiny]",
    "grid.regime.synthetic_ratio=[1.0]",
    "tracking.wandb=disabled",
)
"""The quickstart with one fit of one step."""


def _until_first_step(folder):
    """Seconds from the start of `harness run` to the end of a fit of one step, its commit included."""
    root, at = folder / "root", time.time()
    _run(_harness("run", str(QUICKSTART), "--root", str(root), *_with(ONE_STEP)), folder)
    lines = (root / "experiments" / "quickstart" / "events.jsonl").read_text().splitlines()
    (committed,) = [event["time"] for event in map(json.loads, lines) if event["event"] == "fit_committed"]
    return committed - at


def starts(rounds=5):
    """Seconds and CPU seconds of commands, and seconds of a run to its first training step."""
    smaller = _with(["data.num_examples=64", "learner.train.epochs=1", "tracking.wandb=disabled"])
    wall, cpu = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        about = [str(QUICKSTART), "--root", str(folder / "done"), *smaller]
        _run(_harness("run", *about), folder)  # so that there is something to tell of
        commands = {
            "harness --help": _harness("--help"),
            "harness status quickstart": _harness("status", *about),
            "harness plan quickstart": _harness("plan", *about),
            "harness export quickstart": _harness("export", *about, "--format", "csv"),
        }
        for number in range(rounds + 1):
            for says in commands if number % 2 else reversed(commands):
                took, used, _ = _run(commands[says], folder)
                if number:
                    wall.setdefault(says, []).append(took)
                    cpu.setdefault(says, []).append(used)
        for number in range(rounds):
            place = folder / str(number)
            place.mkdir()
            wall.setdefault("harness run to the first step", []).append(_until_first_step(place))
    found = [Figure("starts", says, "", "harness", "s", *spread(values)) for says, values in wall.items()]
    return found + [
        Figure("starts", says, "", "harness", "CPU s", *spread(values)) for says, values in cpu.items()
    ]
