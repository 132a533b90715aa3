"""Everything that `harness doctor` looks at, in order; each line is given as soon as it is known."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.files import PROBE
from harness.launch.doctor import machine, network, nodes, services, slurm, storage
from harness.launch.doctor.checks import Check, ChildError, graded, text_of
from harness.launch.doctor.nodes import Nodes
from harness.launch.doctor.probe import node_name

QUICK_S = 20.0
CLOCK_ROUNDS = 5
WRITERS = 4
"""Machines whose new files all others look for."""
MACHINE: Mapping[str, float] = {
    "processors": QUICK_S,
    "limits": QUICK_S,
    "folders": QUICK_S,
    "devices": machine.DEVICES_LIMIT_S,
    "deepspeed": services.DEEPSPEED_LIMIT_S,
}
"""What every machine is asked, and its time limit."""
ONE: Mapping[str, float] = {"ray": services.RAY_LIMIT_S, "wandb": services.WANDB_LIMIT_S, "hub": QUICK_S}
"""What one machine is asked for all."""
SHARE = "the root must lie on one file system that all nodes mount: name another --root, or set HARNESS_ROOT"


def examine(root: Path) -> Iterator[Check]:
    """Examine this machine, or all nodes of the allocation that this process is in.

    Args:
        root: Where the store is, or would be.
    """
    here = node_name()
    yield from _guarded("slurm", lambda: (replace(check, where=here) for check in slurm.examine()))
    allocation = os.environ.get("SLURM_JOB_ID") and shutil.which("srun")
    try:
        found = (
            nodes.allocated(slurm.expand(os.environ.get("SLURM_JOB_NODELIST", "")))
            if allocation
            else nodes.here()
        )
    except (ChildError, OSError) as error:
        yield Check(
            "node",
            "failure",
            f"no machine can be examined: {error}",
            "is the allocation still there? `squeue --me`",
            here,
        )
        return
    try:
        yield from Examination(found, root.absolute()).checks()
    finally:
        found.close()


def _guarded(name: str, function: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A part's checks; one that is broken is one line, and does not hide the others."""
    try:
        yield from function()
    except Exception as error:
        yield Check(
            name, "failure", text_of(error), "this is a defect of the harness: report it", node_name()
        )


class Examination:
    """One examination of some machines."""

    def __init__(self, found: Nodes, root: Path) -> None:
        """Nothing is asked yet.

        Args:
            found: The machines.
            root: Where the store is, or would be.
        """
        self.nodes, self.root = found, root
        self._gpus: dict[str, int] = {}

    def checks(self) -> Iterator[Check]:
        """All checks."""
        yield from self._told()
        parts = {
            "libraries": self._libraries,
            "machine": self._machines,
            "store root": self._root,
            "ports": self._ports,
            "communication": self._communication,
            "services": self._services,
        }
        for name, part in parts.items():
            if self.nodes.alive:
                yield from _guarded(name, part)
                yield from self._told()

    def _told(self) -> list[Check]:
        """What has gone wrong with asking since the last time."""
        troubles, self.nodes.troubles = self.nodes.troubles, []
        return troubles

    def _each(
        self, what: str, limit_s: float, only: list[str] | None = None, name: str = "", **details: Any
    ) -> Iterator[Check]:
        """Ask machines for checks."""
        for node, answer in self.nodes.ask(what, limit_s, only, name, **details).items():
            self._gpus[node] = answer.get("gpus", self._gpus.get(node, 0))
            for fields in answer["checks"]:
                yield replace(Check(**fields), where=node)
        yield from self._told()

    def _all(self, check: Check) -> Check:
        return replace(check, where=", ".join(self.nodes.alive))

    def _libraries(self) -> Iterator[Check]:
        answers = self.nodes.ask("libraries", QUICK_S)
        for node, answer in answers.items():
            yield from (replace(Check(**fields), where=node) for fields in answer["checks"])
        if len(answers) > 1:
            yield self._all(judge_alike({node: answer["versions"] for node, answer in answers.items()}))

    def _machines(self) -> Iterator[Check]:
        for name, limit_s in MACHINE.items():
            yield from self._each(name, limit_s)

    def _root(self) -> Iterator[Check]:
        answers = self.nodes.ask("root", QUICK_S, name="store root", root=str(self.root))
        checks = [
            replace(Check(**fields), where=node)
            for node, answer in answers.items()
            for fields in answer["checks"]
        ]
        yield from checks
        if not answers or any(check.severity == "failure" and check.name == "store root" for check in checks):
            return
        there = sorted({answer["above"] for answer in answers.values()})
        if len(there) > 1:
            without = ", ".join(node for node, answer in answers.items() if not answer["exists"])
            yield self._all(
                Check(
                    "shared root",
                    "failure",
                    f"{self.root} is not there on {without}, and is on others",
                    SHARE,
                )
            )
            return
        folder = f"{there[0]}/{PROBE}{uuid.uuid4().hex}"
        self.nodes.ask("meet", QUICK_S, name="shared root", folder=folder)
        try:
            if len(self.nodes.alive) > 1:
                yield from self._sharing(folder)
            yield from self._clocks(folder)
        finally:
            self.nodes.ask("leave", QUICK_S, name="shared root", folder=folder)

    def _sharing(self, folder: str) -> Iterator[Check]:
        waits: dict[tuple[str, str], float | None] = {}
        for writer in self.nodes.alive[:WRITERS]:
            others = [node for node in self.nodes.alive if node != writer]
            path = f"{folder}/{writer}.seen"
            self.nodes.ask("look", QUICK_S, others, "shared root", path=path)
            if self.nodes.ask("make", QUICK_S, [writer], "shared root", path=path):
                # Once it is known that they share nothing, nobody waits that long again.
                patience_s = 1.0 if None in waits.values() else storage.SEEN_LIMIT_S
                seen = self.nodes.ask(
                    "see", patience_s + 5, others, "shared root", path=path, patience_s=patience_s
                )
                waits |= {(writer, reader): waited for reader, waited in seen.items()}
        if waits:
            yield self._all(storage.judge_seen(waits, storage.SEEN_LIMIT_S))
        wins = self.nodes.ask(
            "race", storage.SEEN_LIMIT_S, name="locking", folder=folder, rounds=storage.ROUNDS
        )
        if len(wins) > 1:
            yield self._all(storage.judge_race(wins))

    def _clocks(self, folder: str) -> Iterator[Check]:
        """As in NTP: the answer that came soonest says best what a clock showed, half a round trip ago."""
        best: dict[str, tuple[float, float]] = {}
        server: dict[str, float] = {}
        for _ in range(CLOCK_ROUNDS):
            server |= self.nodes.ask("file_clock", QUICK_S, name="clocks", folder=folder)
            asked, wall = time.monotonic(), time.time()
            for node, (now, when) in self.nodes.timed("clock", QUICK_S, name="clocks").items():
                half = (when - asked) / 2
                if node not in best or half < best[node][1]:
                    best[node] = (now - (wall + half), half)
        if best:
            yield self._all(storage.judge_clocks(best, server))

    def _ports(self) -> Iterator[Check]:
        hosts = {node: self.nodes.hosts[node] for node in self.nodes.alive}
        ports = self.nodes.ask("listen", QUICK_S, name="ports")
        wrong = self.nodes.ask("connect", QUICK_S, name="ports", ports=ports, hosts=hosts)
        if wrong:
            yield self._all(network.judge_ports(wrong))

    def _communication(self) -> Iterator[Check]:
        # One rank a machine. On one machine two, or there would be nobody to talk to; but NCCL wants a GPU
        # for each.
        alive = self.nodes.alive
        gpus = self._gpus.get(alive[0], 0)
        places: list[tuple[str, int | None]] = [(node, None) for node in alive]
        if len(alive) == 1 and gpus != 1:
            places = [(alive[0], device if gpus else None) for device in (0, 1)]
        ranks = {
            node: [(rank, device) for rank, (at, device) in enumerate(places) if at == node] for node in alive
        }
        world, leader = len(places), alive[0]
        peer = self.nodes.hosts[alive[1]] if len(alive) > 1 else ""
        found = self.nodes.ask(
            "lead", QUICK_S * 3, [leader], "communication", world=world, device=places[0][1], peer=peer
        )
        if leader in found:
            place = dict(zip(("host", "port"), found[leader], strict=True))
            patience_s = network.REDUCE_LIMIT_S
            answers = self.nodes.ask(
                "reduce",
                patience_s + 5,
                name="communication",
                ranks=ranks,
                world=world,
                patience_s=patience_s,
                **place,
            )
            results = [result for answer in answers.values() for result in answer]
            if len(results) == world:
                yield self._all(network.judge_reduction(results))

    def _services(self) -> Iterator[Check]:
        for name, limit_s in ONE.items():
            yield from self._each(name, limit_s, self.nodes.alive[:1])


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
            unlike.append(
                f"{name}: " + ", ".join(f"{version} on {', '.join(on)}" for version, on in there.items())
            )
    more = [f"and {len(unlike) - 3} more"] if len(unlike) > 3 else []
    text = f"the same Python, harness and {len(names) - 3} libraries on {len(versions)} machines"
    remedy = "use one environment that all nodes see, or install requirements.lock on each"
    return graded("same software", "" if unlike else text, [*unlike[:3], *more], remedy=remedy)
