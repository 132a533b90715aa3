"""The commands that run a grid, and look at it: run, plan, status, explain."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import terminal
from harness.cli import jobs as slurm_jobs
from harness.cli.app import (
    DEFAULT_ROOT,
    EXIT_STOPPED,
    Assignments,
    ChainName,
    ConfigPath,
    Json,
    Root,
    WatchOption,
    app,
    prepare,
    print_json,
    say,
    signals,
    tell_absence,
    tell_damage,
)
from harness.cli.tables import print_lines, print_rows
from harness.errors import GangError, InputError, ResourceError
from harness.imports import arrow_without_pandas
from harness.ray_access import check_ray
from harness.stop import Stop
from harness.terminal import counted, noun

if TYPE_CHECKING:
    from harness.coordinator.summary import RunSummary
    from harness.inspection.planner import PlanSummary
    from harness.inspection.status import ChainState
    from harness.store import Store
    from harness.study import Prepared

MOST_CHAINS = 40
"""Chains that `status` lists one by one, complete ones too."""
STATES = ("complete", "diverged", "unreachable", "running", "interrupted", "waiting", "failed", "damaged")
"""Those of `ChainState`, in the order of the columns."""
ANSWER_LINES = 5
"""Of what a study has come to, at the end of a run."""
MOST_READ = 20_000
"""Records that lie one by one, up to which a run reads them all to say so."""


@app.command(rich_help_panel="A study")
def run(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
    address: Annotated[
        str | None, typer.Option(help="A running Ray to join; without it one is started here.")
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Run on all nodes of the SLURM allocation that this is in.")
    ] = False,
    idle_exit: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", min=0, help="End once others have computed all that is left for so long."
        ),
    ] = None,
) -> None:
    """Run the grid, or what is left of it.

    Example: harness run study.yaml --set generations=5
    """
    if slurm and address is not None:
        raise InputError(
            "--slurm starts a Ray on the allocation, --address joins one that runs; give one of them"
        )
    stop = Stop()
    listen = signals(stop)
    listen()
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, _ = prepare(config, assignments, root, scratch)
        _tell_rules(prepared)
        check_ray()
        if address is None and not slurm:
            from harness.coordinator.session import check_this_machine

            check_this_machine(prepared)
        # before ray is imported, which then reads how to log in
        job = slurm_jobs.JobRun(prepared, root) if slurm else None
        from harness.coordinator.cluster import RayPlace
        from harness.coordinator.display import make_display
        from harness.coordinator.session import run_study
        from harness.inventory.retention import weights_gone
        from harness.store import Store

        def place() -> AbstractContextManager[RayPlace]:
            return job.place(stop.is_set) if job else nullcontext(RayPlace(address))

        try:
            summary, mirrored = run_study(
                prepared,
                root,
                prepared.study.source,
                place,
                lambda: make_display(json_output),
                stop,
                listen,
                idle_exit,
            )
        except GangError as error:  # nothing was computed yet, and another try may find better machines
            terminal.show(f"error: {error}", sys.stderr)
            raise typer.Exit(EXIT_STOPPED) from None
        if job:
            job.ended(summary)
    warnings = list(mirrored)
    if gone := weights_gone(prepared, Store.read(root)):
        warnings.append(_gone(gone))
    if not json_output:
        _answer(prepared, Store.read(root))
    _tell(summary, warnings, json_output)
    raise typer.Exit(summary.exit_code)


def _tell_rules(prepared: Prepared) -> None:
    """Which mitigations of a track's study can be no entry, before they have cost anything."""
    if prepared.study.source.track is None:
        return
    from harness.board.rules import broken_rules

    for line in broken_rules(prepared):
        terminal.show(f"warning: {line}; harness leaderboard add will refuse it", sys.stderr)


def _answer(prepared: Prepared, store: Store) -> None:
    """What the study has come to, in a few lines: those that its report begins with."""
    from harness.inventory.judging import remarks
    from harness.reporting import ledger
    from harness.reporting.answer import answers, reserved

    if len(prepared.lineage.nodes) > MOST_READ:
        terminal.show("harness report says what has come of it")
        return
    arrow_without_pandas()
    rows = ledger.rows(prepared, store, keys=False)
    axes, seeds = prepared.study.columns, prepared.study.seeds
    lines = answers(rows, axes, seeds, ANSWER_LINES - 1)
    print_lines([*lines, *reserved(rows, axes, seeds), *remarks(prepared, store)])


def _tell(summary: RunSummary, warnings: Sequence[str], json_output: bool) -> None:
    """What a run did, and what went wrong beside it."""
    from harness.inventory.failed import grouped

    for warning in warnings:
        terminal.show(f"warning: {warning}", sys.stderr)
    for failed in grouped(summary.failures):
        terminal.show(f"failed: {failed}", sys.stderr)
    names = ("chains_complete", "chains_failed", "generations_computed", "generations_reused", "wall_s")
    found = {name: getattr(summary, name) for name in names}
    if json_output:
        print_json(found)
    else:
        terminal.show(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))
        if summary.stopped:
            because = f" ({summary.reason})" if summary.reason else ""
            terminal.show(f"stopped early with work left{because}; run the same command again")


@app.command(rich_help_panel="A study")
def plan(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
    nodes: Annotated[int, typer.Option(min=1, help="Machines of the simulated run.")] = 1,
    gpus_per_node: Annotated[
        int, typer.Option(min=0, help="GPUs of each; 0 for a machine like this one.")
    ] = 0,
) -> None:
    """Say what the grid is, what the store has of it, and what the rest will cost; writes nothing.

    Example: harness plan study.yaml --nodes 4 --gpus-per-node 8
    """
    from harness.coordinator.scheduler import Capacity
    from harness.coordinator.shapes import check_feasible, shape_of
    from harness.inspection.planner import plan as make_plan
    from harness.inventory.memory import check_kernels, check_memory, has_gpus
    from harness.proc import usable_cpus, usable_memory

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = prepare(config, assignments, root, scratch)
        _tell_rules(prepared)
        # On GPU machines the GPUs are what runs out; a CPU is taken to be there for every thread that a rank
        # asks for.
        threads = max(cell.config.resources.threads for cell in prepared.study.cells)
        cpus = gpus_per_node * threads if gpus_per_node else usable_cpus()
        machines = [Capacity(cpus, gpus_per_node, math.inf if gpus_per_node else usable_memory())] * nodes
        try:
            check_feasible(
                {shape_of(cell.config, gpus_per_node > 0) for cell in prepared.study.cells}, machines
            )
            if not gpus_per_node:
                check_memory(prepared, gpus=has_gpus())
                check_kernels(prepared, gpus=has_gpus())
        except ResourceError as error:
            raise prepared.study.source.located(error) from None
        found = make_plan(prepared, store, machines)
    if json_output:
        print_json(asdict(found))
        return
    terminal.show(f"{found.experiment}: {counted(found.cells, 'cell')}, {counted(found.chains, 'chain')}")
    terminal.show(
        f"generations     {found.generations_requested} asked for, {found.generations_unique} after sharing "
        f"({counted(found.fits_unique, 'fit')}), {found.generations_stored} in the store, "
        + (f"{found.generations_begun} of which a part is to be made, " if found.generations_begun else "")
        + f"{found.generations_unique - found.generations_stored - found.generations_begun} to compute"
    )
    if found.chains_again:
        there = "chain in closed form is" if found.chains_again == 1 else "chains in closed form are"
        runs = "it runs" if found.chains_again == 1 else "they run"
        terminal.show(
            f"bundles         {found.chains_again:,} {there} in the store up to an earlier generation; "
            f"{runs} again from the start"
        )
    for data in found.data:
        terminal.show(f"data            {_read(data)}")
    for shape in found.shapes:
        device = f"{shape['gpus']} GPU" if shape["gpus"] else f"{shape['cpus']} CPU"
        memory = shape["memory_per_rank_bytes"] / 2**30
        about = f", about {memory:.2f} GiB of memory a rank" if memory >= 0.01 else ""
        terminal.show(
            f"gang            {counted(shape['ranks'], 'rank')} x {device}, {counted(shape['cells'], 'cell')}"
            f"{about}, {shape['at_once']} at once"
        )
    for line in found.held_back:
        terminal.show(f"memory          {line}")
    terminal.show(f"device-hours    {found.device_hours:.2f} ({found.throughput} throughput)")
    terminal.show(f"disk            {found.disk_bytes / 2**20:.1f} MiB when complete")
    for remark in found.remarks:
        terminal.show(f"judge           {remark}")
    if found.weights_gone:
        terminal.show(f"weights         {_gone(found.weights_gone)}")
    terminal.show(f"wall time       {_wall(found, nodes)}")


def _wall(found: PlanSummary, nodes: int) -> str:
    """How long the run would take, in one line."""
    from harness.coordinator.display import duration

    if found.generations_stored == found.generations_unique:
        return "none: the store has all of it"
    gangs = f"; gangs idle or starting {100 * found.idle_share:.0f} % of it" if found.branches else ""
    took = duration(found.wall_s) if found.wall_s >= 1 else "less than a second"
    return f"{took} on {counted(nodes, 'machine')}, and some seconds to start and end{gangs}"


def _gone(fits: int) -> str:
    were, they = ("was", "it is") if fits == 1 else ("were", "they are")
    return (
        f"{counted(fits, 'fit')} that retention.weights keeps {were} freed before; {they} fitted again only "
        f"if something needs {noun(fits, 'it', 'them')}"
    )


def _read(data: Mapping[str, Any]) -> str:
    """What was read of a source, in one line."""
    parts = [counted(data["files"], "file")] if "files" in data else []
    parts += [counted(data["documents"], "document")] if "documents" in data else []
    parts += [f"{counted(data['empty'], 'empty text')} left out"] if data.get("empty") else []
    left_out = data.get("not_read") or []
    parts += [f"not read: {', '.join(left_out[:5])}{' ...' if len(left_out) > 5 else ''}"] if left_out else []
    return f"{data['source']}{': ' if parts else ''}{', '.join(parts)}"


@app.command(rich_help_panel="A study")
def status(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    watch: WatchOption = None,
    every: Annotated[
        bool, typer.Option("--all", help="List every chain, complete ones too, however many there are.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Say what is committed, running, waiting and failed; reads only the store.

    Of more than forty chains a line for each cell, and the chains that have begun and are not complete.

    Watched on a terminal it stays in its place; elsewhere a line comes whenever something has changed, and
    the whole once nothing is left to wait for. With --json each look is a line.

    Example: harness status study.yaml --watch 5
    """
    from harness.store import Store

    stop, told = Stop(), ""
    if watch is not None:
        signals(stop)()
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = prepare(config, assignments, root, scratch)
        while True:
            found = _Look(prepared, store, root)
            last = watch is None or found.settled or stop.is_set()
            if json_output:
                print_json(found.to_json())
            elif last or sys.stdout.isatty():
                if watch is not None and sys.stdout.isatty():
                    from rich.console import Console

                    Console().clear()
                found.show(every)
            elif told != (told := found.counts):
                say(told)
            if last or stop.wait(watch or 0):
                break
            store = Store.read(root)
    raise typer.Exit(tell_damage(store))


class _Look:
    """What a store has of a study at one moment."""

    def __init__(self, prepared: Prepared, store: Store, root: Path) -> None:
        from harness.inspection.status import chain_states
        from harness.inventory.judging import remarks
        from harness.store import Experiment

        self.prepared, self.store, self.root = prepared, store, root
        self.states, self.remarks = chain_states(prepared, store), remarks(prepared, store)
        self.folder = Experiment(store.root, prepared.study.base.experiment).path
        self.jobs, self.problem = slurm_jobs.find_jobs(self.folder)

    @property
    def settled(self) -> bool:
        """Whether nothing is computed any more: what has failed the next run tries again."""
        ended = ("complete", "diverged", "unreachable", "failed")
        return all(state.state in ended for state in self.states)

    @property
    def counts(self) -> str:
        """How many chains are in which state."""
        counts = Counter(state.state for state in self.states)
        return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "experiment": self.prepared.study.base.experiment,
            "chains": [asdict(state) for state in self.states],
            "remarks": self.remarks,
            "jobs": [asdict(task) for task in self.jobs],
            "jobs_problem": self.problem,
        }

    def show(self, every: bool = False) -> None:
        """How many chains are in which state, the tables of them, and what there is to say of them.

        Args:
            every: All chains, however many they are.
        """
        if not (self.root / "format").exists():
            terminal.show(f"note: there is no store at --root {self.root} yet", sys.stderr)
        elif not any(s.committed for s in self.states) and not (self.folder / "config.json").exists():
            tell_absence(self.prepared, self.store)
        print_lines([self.counts])
        shown = self.states
        if not every and len(shown) > MOST_CHAINS:
            self._print_cells()
            # those that wait, and of which there is nothing yet, are in the cells' numbers
            shown = [s for s in shown if s.state != "complete" and (s.state, s.committed) != ("waiting", 0)]
            if shown:
                terminal.show("chains that have begun and are not complete (--all: all chains)")
        if shown:
            self._print_chains(shown)
        print_lines(self.remarks)
        slurm_jobs.print_jobs(self.jobs, self.problem)

    def _values(self, state: ChainState) -> tuple[str, ...]:
        """The cell of a chain, as it is shown: a value for each axis, or none."""
        from harness.config.naming import spoken

        known = (state.axes.get(name) for name in self.prepared.study.columns)
        return tuple("" if value is None else spoken(value) for value in known)

    def _print_chains(self, states: Sequence[ChainState]) -> None:
        from harness.config.naming import short_names

        rows = []
        for state in states:
            done = f"{state.committed}/{state.total}"
            said = f"{state.state} {state.detail}".strip()
            rows.append((state.chain, *self._values(state), str(state.seed), done, said))
        print_rows(("chain", *short_names(self.prepared.study.columns), "seed", "generations", "state"), rows)

    def _print_cells(self) -> None:
        """A line for each cell: how many of its chains are in which state."""
        from harness.config.naming import short_names

        cells: dict[tuple[str, ...], Counter[str]] = {}
        for state in self.states:
            cells.setdefault(self._values(state), Counter())[state.state] += 1
        found = [name for name in STATES if any(counts[name] for counts in cells.values())]
        names = (*short_names(self.prepared.study.columns), "chains", *found)
        rows = [
            (*cell, str(counts.total()), *(str(counts[name] or "") for name in found))
            for cell, counts in cells.items()
        ]
        print_rows(names, rows, right=range(len(names) - len(found) - 1, len(names)))


@app.command(rich_help_panel="A study")
def explain(
    config: ConfigPath,
    chain: ChainName = "",
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
) -> None:
    """Say of every generation of a chain why it will run.

    New, failed, damaged, or which field of which generation changed; a line for generations that are alike.

    Example: harness explain study.yaml --chain 1a2b
    """
    from harness.inspection.explain import ABSENT, Explainer, ranges

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = prepare(config, assignments, root, scratch)
        wanted = prepared.find_chain(chain)
        found = Explainer(prepared, store, wanted).explain()
    if json_output:
        print_json({"chain": wanted.id, "generations": [asdict(item) for item in found]})
        return
    terminal.show(f"chain {wanted.id}")
    for name, item in ranges(found, bundled=not wanted.nodes):
        terminal.show(f"{name}: {item.reason}: {item.detail}")
        for difference in item.differences:
            place = (
                "" if difference.generation == item.generation else f"generation {difference.generation}: "
            )
            stored, wished = (
                value if value == ABSENT else json.dumps(value)
                for value in (difference.stored, difference.wanted)
            )
            terminal.show(f"    {place}{difference.field}: {stored} (stored) -> {wished}")
