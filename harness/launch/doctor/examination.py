"""Everything that `harness doctor` looks at, in order; each line is given as soon as it is known."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from harness.errors import HarnessError
from harness.files import PROBE
from harness.launch.doctor import machine, network, nodes, services, slurm, storage
from harness.launch.doctor.checks import Check, Severity, graded, text_of
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


def examine(root: Path) -> Iterator[Check]:
    """Examine this machine, or all nodes of the allocation that this process is in.

    Args:
        root: Where the store is, or would be.
    """
    here = node_name()
    yield from _guarded("slurm", lambda: (replace(check, where=here) for check in slurm.examine()))
    try:
        if os.environ.get("SLURM_JOB_ID") and shutil.which("srun"):
            found = nodes.allocated(slurm.expand(os.environ.get("SLURM_JOB_NODELIST", "")))
        else:
            found = nodes.here()
    except (HarnessError, OSError) as error:
        remedy = "is the allocation still there? `squeue --me`"
        wrong = graded("node", "", [f"no machine can be examined: {error}"], remedy=remedy)
        yield replace(wrong, where=here)
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
        broken = graded(name, "", [text_of(error)], remedy="this is a defect of the harness: report it")
        yield replace(broken, where=node_name())


def by_severity(checks: Iterable[Check]) -> dict[str, int]:
    """How many checks of each severity there are."""
    found = Counter(check.severity for check in checks)
    return {severity: found[severity] for severity in get_args(Severity)}


def merged(checks: Iterable[Check]) -> list[Check]:
    """One line for machines that say the same.

    Those that are all well share one, with what the first of them has.
    """
    lines: dict[tuple[str, ...], Check] = {}
    for check in checks:
        key = (check.name, check.severity, *(() if check.severity == "ok" else (check.found, check.remedy)))
        first = lines.setdefault(key, check)
        if first is not check:
            found = first.found
            if check.found != found and " (others alike)" not in found:
                found = f"{first.where}: {found} (others alike)"
            lines[key] = replace(first, where=f"{first.where}, {check.where}", found=found)
    return list(lines.values())


class Examination:
    """One examination of some machines."""

    def __init__(self, found: Nodes, root: Path) -> None:
        """Nothing is asked yet.

        Args:
            found: The machines.
            root: Where the store is, or would be.
        """
        self.nodes, self.root = found, root
        self._facts: dict[str, dict[str, Any]] = {}

    def checks(self) -> Iterator[Check]:
        """All checks, and after each part what has gone wrong with asking."""
        parts = {
            "machine": self._machines,
            "store root": self._root,
            "ports": self._ports,
            "communication": self._communication,
            "services": self._services,
        }
        for name, part in parts.items():
            if self.nodes.alive:
                yield from _guarded(name, part)
            yield from self._troubles()

    def _troubles(self) -> list[Check]:
        found, self.nodes.troubles = self.nodes.troubles, []
        return found

    def _each(
        self, what: str, limit_s: float, only: list[str] | None = None, name: str = "", **details: Any
    ) -> Iterator[Check]:
        """Ask machines for checks."""
        for node, answer in self.nodes.ask(what, limit_s, only, name, **details).items():
            for fields in answer:
                self._facts.setdefault(node, {}).update(fields["facts"])
                yield Check(**{**fields, "where": node})
        yield from self._troubles()

    def _known(self, fact: str) -> dict[str, Any]:
        """A fact of every machine that has told it."""
        return {node: facts[fact] for node, facts in self._facts.items() if fact in facts}

    def _all(self, check: Check) -> Check:
        return replace(check, where=", ".join(self.nodes.alive))

    def _machines(self) -> Iterator[Check]:
        yield from self._each("libraries", QUICK_S)
        versions = self._known("versions")
        if len(versions) > 1:
            yield self._all(machine.judge_alike(versions))
        for name, limit_s in MACHINE.items():
            yield from self._each(name, limit_s)

    def _root(self) -> Iterator[Check]:
        checks = list(self._each("root", QUICK_S, name="store root", root=str(self.root)))
        yield from checks
        above = self._known("above")
        if not above or any(check.severity == "failure" and check.name == "store root" for check in checks):
            return
        if len(set(above.values())) > 1:
            without = ", ".join(node for node, there in above.items() if there != str(self.root))
            wrong = f"{self.root} is not there on {without}, and is on others"
            yield self._all(graded("shared root", "", [wrong]))
            return
        folder = f"{next(iter(above.values()))}/{PROBE}{uuid.uuid4().hex}"
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
            name, path = "shared root", f"{folder}/{writer}.seen"
            self.nodes.ask("look", QUICK_S, others, name, path=path)
            if self.nodes.ask("make", QUICK_S, [writer], name, path=path):
                # Once it is known that they share nothing, nobody waits that long again.
                patience_s = 1.0 if None in waits.values() else storage.SEEN_LIMIT_S
                details = {"path": path, "patience_s": patience_s}
                seen = self.nodes.ask("see", patience_s + 5, others, name, **details)
                waits |= {(writer, reader): waited for reader, waited in seen.items()}
        if waits:
            yield self._all(storage.judge_seen(waits))
        limit_s, rounds = storage.SEEN_LIMIT_S, storage.ROUNDS
        wins = self.nodes.ask("race", limit_s, name="locking", folder=folder, rounds=rounds)
        if len(wins) > 1:
            yield self._all(storage.judge_race(wins))

    def _clocks(self, folder: str) -> Iterator[Check]:
        """As in NTP: the answer that came soonest says best what a clock showed, half a round trip ago."""
        best: dict[str, tuple[float, float]] = {}
        server: dict[str, float] = {}
        for _ in range(CLOCK_ROUNDS):
            server |= self.nodes.ask("file_clock", QUICK_S, name="clocks", folder=folder)
            asked, wall = time.monotonic(), time.time()
            for node, now in self.nodes.ask("clock", QUICK_S, name="clocks").items():
                half = (self.nodes.heard_at[node] - asked) / 2
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
        if any("torch" not in known for known in self._known("versions").values()):
            yield self._all(graded("communication", "not looked at: torch not installed"))
            return
        # One rank a machine. On one machine two, or there would be nobody to talk to; but NCCL wants a GPU
        # for each.
        alive = self.nodes.alive
        leader, gpus = alive[0], self._known("gpus").get(alive[0], 0)
        places: list[tuple[str, int | None]] = [(node, None) for node in alive]
        if len(alive) == 1 and gpus != 1:
            places = [(leader, device if gpus else None) for device in (0, 1)]
        ranks: dict[str, list[tuple[int, int | None]]] = {node: [] for node in alive}
        for rank, (node, device) in enumerate(places):
            ranks[node].append((rank, device))
        name, world, patience_s = "communication", len(places), network.REDUCE_LIMIT_S
        peer, device = self.nodes.hosts[alive[1]] if alive[1:] else "", places[0][1]
        found = self.nodes.ask("lead", 3 * QUICK_S, [leader], name, world=world, device=device, peer=peer)
        if leader not in found:
            return
        host, port = found[leader]
        place = {"ranks": ranks, "world": world, "host": host, "port": port, "patience_s": patience_s}
        answers = self.nodes.ask("reduce", patience_s + 5, name=name, **place)
        results = [result for answer in answers.values() for result in answer]
        if len(results) == world:
            yield self._all(network.judge_reduction(results))

    def _services(self) -> Iterator[Check]:
        for name, limit_s in ONE.items():
            yield from self._each(name, limit_s, self.nodes.alive[:1])
