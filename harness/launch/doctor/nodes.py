"""The probes on the machines that are examined: they are started, asked and ended here."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.launch.allocation import SHAPED_BY
from harness.launch.doctor.checks import Check, end, graded, python
from harness.launch.doctor.probe import END, MARK, node_name

START_LIMIT_S = 60.0
SLACK_S = 8.0
"""How much longer than its own limit a probe may take to answer: what is left out of it is srun's way."""
END_LIMIT_S = 5.0


class Nodes:
    """One probe a machine.

    Attributes:
        names: Machines, in order.
        troubles: What has gone wrong with asking: a failure for each machine that gave an error or no answer.
        lost: Machines that gave no answer; they are asked nothing more.
        heard_at: The monotonic time at which each answer to the last question came.
    """

    def __init__(self, names: Sequence[str], command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the probes.

        Args:
            names: Machines.
            command: Starts all probes, and carries their input and output.
            environment: Of the command.
        """
        self.names, self.lost, self.hosts = tuple(names), dict[str, str](), dict[str, str]()
        self.troubles, self.heard_at = list[Check](), dict[str, float]()
        self._number, self._step = 0, ""
        self._heard: queue.SimpleQueue[tuple[str, int, dict[str, Any], float]] = queue.SimpleQueue()
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=dict(environment),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        for node, (answer, _) in self._wait(0, self.names, START_LIMIT_S, "start").items():
            self.hosts[node], self._step = answer["value"]["host"], answer["value"]["step"]

    @property
    def alive(self) -> list[str]:
        """Machines that have answered so far."""
        return [name for name in self.names if name not in self.lost]

    def ask(
        self, what: str, limit_s: float, only: Collection[str] | None = None, name: str = "", **details: Any
    ) -> dict[str, Any]:
        """Ask machines something; the values of those that gave one.

        Args:
            what: A name of `probe.REQUESTS`.
            limit_s: Seconds to answer.
            only: Which machines; all that have answered so far where it is not given.
            name: The check that this is part of, for what goes wrong; ``what`` where it is not given.
            details: Arguments.
        """
        self._number += 1
        wanted = [node for node in self.alive if only is None or node in only]
        request = {"number": self._number, "ask": what, "limit_s": limit_s, "to": wanted, "with": details}
        with contextlib.suppress(OSError):  # who is gone is seen below
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answers = self._wait(self._number, wanted, limit_s + SLACK_S, name or what)
        self.heard_at = {node: when for node, (_, when) in answers.items()}
        for node, (answer, _) in answers.items():
            if "error" in answer:
                self._troubled(name or what, answer["error"], node)
        return {node: answer["value"] for node, (answer, _) in answers.items() if "value" in answer}

    def _troubled(self, name: str, what: str, node: str) -> None:
        self.troubles.append(replace(graded(name, "", [what]), where=node))

    def _wait(
        self, number: int, wanted: Sequence[str], limit_s: float, name: str
    ) -> dict[str, tuple[dict[str, Any], float]]:
        """Answers to one request; who gives none is lost."""
        found: dict[str, tuple[dict[str, Any], float]] = {}
        deadline = time.monotonic() + limit_s
        while len(found) < len(wanted) and (left := deadline - time.monotonic()) > 0:
            try:
                node, of, answer, when = self._heard.get(timeout=min(left, 0.2))
            except queue.Empty:
                if not self._reader.is_alive() and self._heard.empty():
                    break
                continue
            if of == number and node in wanted:
                found[node] = (answer, when)
        late = f"no answer to '{name}' within {limit_s:.0f} s"
        why = late if self._reader.is_alive() else "its probe ended"
        for node in wanted:
            if node not in found:
                said = self._said()
                self.lost[node] = why
                self._troubled("node", f"{why} ({said})" if said else why, node)
        return {node: found[node] for node in self.names if node in found}

    def _read(self) -> None:
        assert self._process.stdout is not None
        parts: dict[tuple[str, int], dict[int, str]] = {}
        for line in self._process.stdout:
            if not line.startswith(MARK):
                continue
            with contextlib.suppress(ValueError):
                _, node, number, index, count, part = line.split()
                known = parts.setdefault((node, int(number)), {})
                known[int(index)] = part
                if len(known) == int(count):
                    answer = json.loads(base64.b64decode("".join(known[i] for i in range(len(known)))))
                    self._heard.put((node, int(number), answer, time.monotonic()))

    def _said(self) -> str:
        """The last that the probes, or srun, have said for people."""
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if "error" in line.lower()]
        return lines[-1][:200] if lines else ""

    def close(self) -> None:
        """End the probes.

        Where one hears nothing, SLURM kills all of them, so the others leave nothing behind before.
        """
        if self.lost and self.alive:
            self.ask(END, END_LIMIT_S)
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        if self.lost and self._step.strip(".") and shutil.which("scancel"):
            subprocess.run(
                ["scancel", "--signal=KILL", self._step], capture_output=True, timeout=15, check=False
            )
        try:
            self._process.wait(timeout=SLACK_S)
        except subprocess.TimeoutExpired:
            end(self._process)
        self._errors.close()


def here() -> Nodes:
    """This machine alone."""
    name = node_name()
    return Nodes([name], python("harness.launch.doctor.probe", name), os.environ)


def allocated(names: Sequence[str]) -> Nodes:
    """One probe on each node of this process's allocation, beside whatever runs there."""
    environment = {name: value for name, value in os.environ.items() if name not in SHAPED_BY}
    flags = f"--overlap -N{len(names)} -n{len(names)} --ntasks-per-node=1 --cpu-bind=none --export=ALL"
    flags += f" --input=all --kill-on-bad-exit=0 --no-kill --mpi=none --nodelist={','.join(names)}"
    return Nodes(names, ["srun", *flags.split(), *python("harness.launch.doctor.probe")], environment)
