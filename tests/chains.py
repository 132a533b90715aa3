"""Run a chain in this process: no Ray, the real store, the real learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.chain import Site, run_branch
from harness.coordinator.plans import plan_of
from harness.coordinator.scheduler import Queue
from harness.coordinator.tally import Tally
from harness.inventory import Inventory
from harness.learners import Control, Ranks, SoloRanks, make_learner
from harness.preparation import load_data
from harness.science import Node, cut
from harness.store import Leases, Owner, Store
from harness.study import Prepared, commit_data, open_study


class Events:
    """An observer that keeps what it hears; ``on`` may raise to play a crash."""

    def __init__(self, on: Any = None) -> None:
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.begun: list[tuple[int, str]] = []
        self.on = on

    def event(self, kind: str, **fields: Any) -> None:
        self.seen.append((kind, fields))
        if self.on is not None:
            self.on(kind, fields)

    def progress(self, node: Node, phase: str, done: int, total: int, rate: float) -> None:
        if done == 0:
            self.begun.append((node.generation, phase))
        elif self.on is not None:
            self.on(f"progress {phase}", {"done": done, "total": total, "generation": node.generation})


def stopping(control: Control, kind: str, **wanted: Any) -> Events:
    """An observer that asks for an end at an event: the first of its kind that has the wanted fields."""

    def on(found: str, fields: dict[str, Any]) -> None:
        if found == kind and fields.items() >= wanted.items():
            control.stop(30)

    return Events(on)


def open_prepared(config: Path, root: Path, *assignments: str) -> tuple[Prepared, Store]:
    """The study, its data committed to the store."""
    prepared, scratch = open_study(config, assignments, Store.read(root))
    with scratch:
        store = Store.open(root)
        commit_data(prepared, store)
        return prepared, store


def run_all(
    config: Path,
    root: Path,
    *assignments: str,
    ranks: Ranks | None = None,
    observer: Any = None,
    control: Control | None = None,
    leases: Leases | None = None,
    prepared: Prepared | None = None,
) -> tuple[Prepared, Store]:
    """Run every branch of a grid, one after another, until one ends early."""
    if prepared is None:
        prepared, store = open_prepared(config, root, *assignments)
    else:
        store = Store(root)
    if leases is None:
        owner = Owner(root / "leases" / "owners")
        try:
            return run_all(
                config,
                root,
                ranks=ranks,
                observer=observer,
                control=control,
                leases=Leases(root, owner),
                prepared=prepared,
            )
        finally:
            owner.close()
    inventory, branches = Inventory(prepared, store), cut(prepared.lineage)
    tally, queue = Tally(inventory, ""), Queue(branches, inventory.gone)
    while len(queue):
        branch = queue.take(next(queue.ready).id)
        if tally.unreachable(branch):
            continue
        plan = plan_of(prepared, branch)
        spec = plan.nodes[plan.order[0]].spec.fit
        data = load_data(spec.data, store)
        used = ranks or SoloRanks()
        learner = make_learner(spec.learner.section.kind, data, used, plan.execution)
        end = run_branch(
            plan, Site(learner, store, data, used, observer or Events(), leases, control or Control())
        )
        if end.status in ("busy", "stopped"):
            break
        for node in filter(inventory.is_there, branch.nodes):
            tally.note(node)
        for node in (*branch.nodes, *inventory.gone):
            queue.complete(node)
    return prepared, store


def contents(store: Store, prepared: Prepared) -> dict[str, bytes]:
    """All records, per-sequence values, texts and corpora of a grid, as bytes: what two runs must agree
    on."""
    found = {}
    for key, node in prepared.lineage.nodes.items():
        folder = store.path("evaluations", key)
        for name in ("record.json", "continuations.json", "arrays.safetensors"):
            if (folder / name).exists():
                found[f"{key}/{name}"] = (folder / name).read_bytes()
        count = prepared.lineage.examples[node.corpus]
        if store.corpora.count(node.corpus) >= count:
            examples = store.corpora.load(node.corpus, count)
            found[f"{node.corpus}/corpus"] = examples.values.tobytes() + examples.lengths.tobytes()
            for what, note in examples.notes.items():
                found[f"{node.corpus}/{what}"] = note.tobytes()
    return found
