"""Contestants take turns: each is a process that sets up, and computes one turn whenever it is told to.

So none sees another's imports, settings or caches, and noise that outlasts a turn falls on all of them.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPTS = Path(__file__).parents[1]


class Turns:
    """A contestant's side: `ready`, then one pass of a loop over this object for every turn."""

    def __init__(self):
        """Keep standard output for answers: what libraries print goes to standard error."""
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self, work, **about):
        """Set up; one turn will do so much work."""
        self._answer({"work": work, "device": _device(), **about})

    def __iter__(self):
        for line in sys.stdin:
            with _profiled() if line.strip() == "profile" else contextlib.nullcontext({}) as found:
                _synchronize()
                at, used = time.perf_counter(), time.process_time()
                yield
                _synchronize()
                seconds, used = time.perf_counter() - at, time.process_time() - used
            self._answer({"seconds": seconds, "cpu_seconds": used, **found})

    def _answer(self, content):
        self._answers.write(json.dumps(content) + "\n")
        self._answers.flush()


def _device():
    """The GPU's name, or ``cpu``."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_available()
    return torch.cuda.get_device_name(0) if on_gpu else "cpu"


def _synchronize():
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _profiled():
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    found = {}
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as recorded:
        yield found
    order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
    found["table"] = recorded.key_averages().table(sort_by=order, row_limit=16, max_name_column_width=60)


class Left(Exception):
    """A contestant could not be set up, or ended on the way."""


class Contestant:
    """The other side: starts the process and tells it its turns."""

    def __init__(self, name, shape, extra=None):
        """Start to set up, in the background.

        Args:
            name: A function of `benchmarks.contestants`.
            shape: The `Shape`.
            extra: Folder with packages that the harness's environment does not have, or, under the
                contestant's name, with an environment of its own.
        """
        self.name = name
        path = [SCRIPTS, SCRIPTS / "baselines", SCRIPTS.parent]
        own = extra / name / "bin" / "python" if extra else None  # an environment of its own
        python = str(own) if own and own.exists() else sys.executable
        path += [extra] if extra and python == sys.executable else []
        given = os.environ.get("PYTHONPATH")
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, path), *([given] if given else [])]),
            "OMP_NUM_THREADS": str(shape.threads),
        }
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.contestants", name, json.dumps(shape.as_dict())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )

    def about(self):
        """Wait until it is set up; returns what it told of itself.

        Raises:
            Left: It could not be set up.
        """
        return self._read()

    def turn(self, command="go"):
        """One turn: its answer, with ``seconds`` and ``cpu_seconds``.

        Raises:
            Left: It ended.
        """
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self):
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["it printed nothing"]
        raise Left(f"{self.name}: {lines[-1]}")

    def close(self):
        """No more turns."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()


def alternate(contestants, rounds, clock="seconds"):
    """Seconds of each contestant's turns, in rounds of changing order; or its ``cpu_seconds``."""
    found = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants if number % 2 else reversed(contestants):
            found[contestant.name].append(contestant.turn()[clock])
    return found


def spread(values):
    """Median, lowest and highest."""
    return statistics.median(values), min(values), max(values)
