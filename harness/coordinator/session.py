"""One `harness run`.

The experiment's folder, Ray, the coordinator and the mirror, put together and taken apart.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import terminal
from harness.config.asking import planning
from harness.config.grid import Study
from harness.config.schema import Tracking
from harness.config.source import Source
from harness.coordinator.bundles import BundleRun
from harness.coordinator.cluster import RayPlace, connected
from harness.coordinator.coordinator import Coordinator
from harness.coordinator.packing import Packing
from harness.coordinator.processes import reap
from harness.coordinator.scheduler import Capacity
from harness.coordinator.shapes import check_feasible, shape_of
from harness.coordinator.summary import Display, RunSummary
from harness.errors import DamagedError, GangError, ResourceError
from harness.inventory import Inventory
from harness.inventory.memory import check_kernels, check_memory, has_gpus
from harness.inventory.retention import kept_by_chain
from harness.proc import usable_cpus
from harness.science import Chain
from harness.stop import Stop
from harness.store import Experiment, Leases, Store, own_leases
from harness.store.experiment import Others
from harness.study import Prepared, commit_data
from harness.terminal import counted
from harness.tracking import Mirror
from harness.tracking.tracker import NO_WANDB, open_trackers
from harness.tracking.views import Mirrored, Views, aggregates, mirrored, of_bundles, of_chain

STOPPED_MIRROR_S = 3.0
"""How long a run that stops early waits for W&B; the next one sends the rest."""


class _Gangs:
    """Who must not outlive this run if Ray dies under it."""

    coordinator: Coordinator | None = None

    def ray_is_lost(self, reason: str) -> None:
        """End everything without asking Ray, which no longer answers.

        Called in a thread, while the main thread may hang in Ray.
        """
        if self.coordinator is not None:
            with contextlib.suppress(Exception):
                self.coordinator.experiment.event("ray_lost", coordinator=self.coordinator.id, reason=reason)
            here = socket.gethostname()
            processes = [process for gang in self.coordinator.gangs.values() for process in gang.processes]
            with contextlib.suppress(Exception):
                reap([process for process in processes if process.host == here], patience_s=0.0)
        terminal.show(f"stopped early with work left ({reason}); run the same command again", sys.stderr)
        os._exit(75)


def describe_chains(prepared: Prepared) -> list[dict[str, Any]]:
    """The chains for ``chains.json``: id, axes, seed, keys, and whose weights are kept."""
    nodes = prepared.lineage.nodes
    return [
        {
            "chain": chain.id,
            "axes": prepared.axes(chain),
            "seed": chain.seed,
            "generations": [
                {
                    "fit": nodes[n].fit,
                    "corpus": nodes[n].corpus,
                    "evaluation": n,
                    "examples": prepared.lineage.examples[nodes[n].corpus],
                }
                for n in chain.nodes
            ],
            "keep": sorted(kept_by_chain(prepared, chain)),
        }
        for chain in prepared.lineage.chains
    ] + [
        {
            "chain": chain.id,
            "axes": prepared.axes(chain),
            "seed": chain.seed,
            "bundle": chain.key,
            "generations": [],
        }
        for chain in prepared.bundles
    ]


@planning
def check_this_machine(prepared: Prepared) -> None:
    """Refuse what this machine has too few CPUs or too little memory for, before anything starts.

    Ray finds the GPUs.

    Raises:
        ConfigError: At the field that asks for it.
    """
    shapes = {replace(shape_of(cell.config, False), gpus=0) for cell in prepared.study.cells}
    try:
        check_feasible(shapes, [Capacity(usable_cpus(), 0)])
        check_memory(prepared, gpus=has_gpus())
        check_kernels(prepared, gpus=has_gpus())
    except ResourceError as error:
        raise prepared.study.source.located(error) from None


def _told(experiment: Experiment, others: Others, tracking: Tracking) -> list[str]:
    """What is said once, as a run begins or ends: of W&B, and of another study's chains by this name."""
    told = [NO_WANDB] if tracking.without else []
    if not others.count:
        return told
    chains = counted(others.count, "chain")
    if others.measured:
        return [
            *told,
            f"experiment {experiment.name} has {chains} of this study with another `evaluate` on this store: "
            "they stay, and no model of theirs is fitted again but in bundles; the report is of what is "
            "measured now, and W&B and harness.load have both by one name",
        ]
    return [
        *told,
        f"experiment {experiment.name} has {chains} of another study on this store: they stay, but its "
        "report is written anew, and W&B and harness.load have both by one name; give one of them another "
        "`experiment`",
    ]


@planning
def run_study(
    prepared: Prepared,
    root: Path,
    source: Source,
    place: Callable[[], AbstractContextManager[RayPlace]],
    make_display: Callable[[], Display],
    stop: Stop,
    on_connected: Callable[[], None],
    idle_s: float | None = None,
) -> tuple[RunSummary, list[str]]:
    """Run a grid, or what is left of it.

    Args:
        prepared: The study.
        root: The store's root; it is made or opened for writing once nothing can be wrong with the input any
            more.
        source: The configuration file, kept beside the results.
        place: Makes Ray, or says where it is, for the time of the run; not called where everything is there
            already.
        make_display: Makes the display once nothing can be wrong with the input any more.
        stop: Set from outside to end early.
        on_connected: Called when Ray is up (it takes signals for itself; the caller may want them back).
        idle_s: End after this many seconds in which all that is left is being computed by others; None to
            wait for them.

    Returns:
        What was done, and the mirror's warnings.
    """
    base = prepared.study.base
    Store.check_writable(root)
    inventory = Inventory(prepared, Store.read(root))
    if not inventory.work_left:
        return _only_read(prepared, Store.open(root, inventory.store), source)
    gangs = _Gangs()
    with place() as where, connected(where, gangs.ray_is_lost, on_connected, stop) as machines:
        gpus = any(machine.gpus for machine in machines)
        try:
            check_feasible({shape_of(cell.config, gpus) for cell in prepared.study.cells}, machines)
        except ResourceError as error:
            raise source.located(error) from None
        store = Store.open(root, inventory.store)
        experiment = Experiment(store.root, base.experiment)
        if not commit_data(prepared, store, stop.is_set):
            raise GangError("stopped while another run wrote the data of this study")
        others = experiment.begin(source.data, describe_chains(prepared))
        with _leases(store, prepared.study) as leases, contextlib.closing(make_display()) as display:
            for line in _told(experiment, others, base.tracking):
                display.line(line)
            mirror = Mirror(open_trackers(base.tracking, experiment.path), leases)
            views = Views(prepared, store)

            packing = Packing(store)

            def on_chain(chain: Chain) -> None:
                _tell(mirror, views, of_chain(chain))
                packing.add(chain.nodes)

            summary = RunSummary(0, 0, 0, 0, 0.0)
            if prepared.bundles:
                summary = BundleRun(prepared, store, experiment, leases, display, stop, idle_s).run(machines)
                if mirror.active:
                    _mirror(mirror, Views(prepared, store), of_bundles(prepared))
            if prepared.lineage.chains:
                inventory.reopen(store)
                coordinator = Coordinator(
                    inventory, experiment, leases, machines, display, on_chain, stop, idle_s
                )
                gangs.coordinator = coordinator
                summary += coordinator.run()
                if mirror.active:
                    _mirror(mirror, Views(prepared, store), aggregates(prepared), means=True)
            warnings = mirror.close(timeout_s=STOPPED_MIRROR_S if summary.stopped else 120.0)
            warnings += packing.problems()
    return summary, warnings


def _mirror(mirror: Mirror, views: Views, items: Iterable[Mirrored], means: bool = False) -> None:
    """Queue what is committed to its end; `Mirror.add`."""
    for item in items:
        if views.whole(item):
            _tell(mirror, views, item, means)


def _tell(mirror: Mirror, views: Views, item: Mirrored, means: bool = False) -> None:
    """Queue a chain or a cell, unless nobody is told, or something of it turns out to be damaged.

    That is set aside by now, and the next run makes it again; what this run computes is not concerned.
    """
    if not mirror.active:
        return
    try:
        mirror.add(views.view(item), means)
    except DamagedError as error:
        mirror.errors.append(f"{item.id}: {error}; set aside: run the command again to make and send it")


def _leases(store: Store, study: Study) -> AbstractContextManager[Leases]:
    return own_leases(store.root, study.lease_s, {"experiment": study.base.experiment})


def _only_read(prepared: Prepared, store: Store, source: Source) -> tuple[RunSummary, list[str]]:
    """Everything is there: no Ray is started; what W&B has not been sent is sent."""
    experiment = Experiment(store.root, prepared.study.base.experiment)
    commit_data(prepared, store)  # where somebody has removed it: other studies go on from it
    others = experiment.begin(source.data, describe_chains(prepared))
    with _leases(store, prepared.study) as leases:
        mirror = Mirror(open_trackers(prepared.study.base.tracking, experiment.path), leases)
        if mirror.active:
            views = Views(prepared, store)
            _mirror(mirror, views, mirrored(prepared))
            _mirror(mirror, views, aggregates(prepared), means=True)
        warnings = mirror.close()
    reused = len(set(prepared.lineage.nodes) & store.committed("evaluations"))
    reused += sum(chain.generations + 1 for chain in prepared.bundled.values())
    warnings += _told(experiment, others, prepared.study.base.tracking)
    return RunSummary(len(prepared.chains), 0, 0, reused, 0.0), warnings
