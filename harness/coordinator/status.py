"""What is committed, running, waiting and failed, from the store alone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.lineage import cut
from harness.store import Experiment, Store
from harness.study import Prepared

STALE_S = 60.0
"""Progress that is older than this belongs to a process that is gone, or to a phase that reports rarely."""


@dataclass(frozen=True)
class ChainState:
    """One chain: ``complete``, ``diverged``, ``running``, ``failed`` or ``waiting``, with detail for people."""

    chain: str
    axes: Mapping[str, Any]
    seed: int
    committed: int
    total: int
    state: str
    detail: str


def chain_states(prepared: Prepared, store: Store) -> list[ChainState]:
    """The state of every chain."""
    experiment = Experiment(store.root, prepared.study.base.experiment)
    committed = store.committed("evaluations")
    branch_of = {node: branch.id for branch in cut(prepared.lineage) for node in branch.nodes}
    running = {b: p for b, p in experiment.progress().items() if time.time() - p["updated"] < STALE_S}
    failed = _failures(experiment)
    states = []
    for chain in prepared.lineage.chains:
        done = next((i for i, node in enumerate(chain.nodes) if node not in committed), len(chain.nodes))
        record = store.record(chain.nodes[done - 1]) if 0 < done < len(chain.nodes) else None
        state, detail = "waiting", ""
        if done == len(chain.nodes):
            state = "complete"
        elif record is not None and record.status == "diverged":
            state, detail = "diverged", f"in generation {record.generation}"
        elif branch_of[chain.nodes[done]] in running:
            progress = running[branch_of[chain.nodes[done]]]
            share = 100 * progress["done"] / max(progress["total"], 1)
            state, detail = "running", f"generation {progress['generation']} {progress['phase']} {share:.0f} %"
        elif branch_of[chain.nodes[done]] in failed:
            state, detail = "failed", failed[branch_of[chain.nodes[done]]]
        states.append(ChainState(chain.id, prepared.axes(chain), chain.seed, done, len(chain.nodes), state, detail))
    return states


def _failures(experiment: Experiment) -> dict[str, str]:
    """Branches whose last word was a failure without another try."""
    failed: dict[str, str] = {}
    for event in experiment.events():
        if event["event"] == "branch_failed" and not event["again"]:
            failed[event["branch"]] = event["reason"]
        elif event["event"] in ("branch_started", "branch_ended"):
            failed.pop(event["branch"], None)
    return failed
