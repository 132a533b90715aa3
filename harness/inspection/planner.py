"""What a grid will cost: generations before and after sharing, memory, device-hours, disk, wall time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

from harness.config.asking import planning
from harness.coordinator.scheduler import Capacity, Shape, at_once
from harness.coordinator.shapes import held_back, shapes_of, turns_of
from harness.coordinator.simulate import simulate
from harness.inventory import Inventory
from harness.inventory.estimates import Estimates
from harness.inventory.judging import remarks
from harness.inventory.memory import rank_bytes
from harness.inventory.retention import kept_fits, weights_gone
from harness.inventory.slices import chain_seconds
from harness.science import cut
from harness.store import Store
from harness.study import Prepared

BYTES_PER_EVALUATION = 60_000
BYTES_PER_ROW = 350
"""Of a bundle, compressed; parameters come on top."""


@dataclass(frozen=True)
class PlanSummary:
    """The plan; field names are those of ``plan --json``."""

    experiment: str
    cells: int
    chains: int
    generations_requested: int
    generations_unique: int
    generations_stored: int
    generations_begun: int
    fits_unique: int
    branches: int
    device_hours: float
    disk_bytes: int
    wall_s: float
    idle_share: float
    throughput: str
    memory_per_rank_bytes: int
    shapes: tuple[Mapping[str, Any], ...]
    data: tuple[Mapping[str, Any], ...]
    weights_gone: int
    remarks: tuple[str, ...]
    held_back: tuple[str, ...]
    chains_again: int
    """Bundled chains that the store has up to an earlier generation, and that are run from the start."""


@planning
def plan(prepared: Prepared, store: Store, machines: Sequence[Capacity]) -> PlanSummary:
    """The plan of a grid on some machines; reads the store, writes nothing.

    Args:
        prepared: The study.
        store: The store.
        machines: The machines of the simulated run.
    """
    gpus = any(machine.gpus for machine in machines)
    estimates = Estimates(prepared, store, gpus)
    lineage = prepared.lineage
    inventory = Inventory(prepared, store)
    left = inventory.left
    seconds = estimates.of(key for key in lineage.nodes if key in left)
    shapes_of_cells = shapes_of(prepared, machines)
    branches = [branch for branch in cut(lineage) if any(node in seconds for node in branch.nodes)]
    shapes = {branch.id: shapes_of_cells[lineage.nodes[branch.nodes[0]].cell] for branch in branches}
    wall, idle = simulate(branches, shapes, seconds, machines, turns=turns_of(prepared, branches))
    todo = inventory.missing
    each = {cell: chain_seconds(prepared, cell) for cell in {chain.cell for chain in todo}}
    bundled_s = sum(each[chain.cell] for chain in todo)
    wall += bundled_s / max(1, sum(machine.cpus for machine in machines))
    bundled = sum(chain.generations + 1 for chain in prepared.bundled.values())
    begun = sum(store.record(key) is not None for key in seconds.keys() & store.committed("evaluations"))
    hours = bundled_s / 3600 + sum(
        value * shapes_of_cells[lineage.nodes[key].cell].ranks / 3600 for key, value in seconds.items()
    )
    memories = [rank_bytes(prepared, cell, gpus) for cell in range(len(prepared.study.cells))]
    known = {rate.measured for rate in estimates.rates}
    return PlanSummary(
        experiment=prepared.study.base.experiment,
        cells=len(prepared.study.cells),
        chains=len(prepared.chains),
        generations_requested=sum(chain.generations + 1 for chain in prepared.chains),
        generations_unique=len(lineage.nodes) + bundled,
        generations_stored=len(lineage.nodes)
        - len(seconds)
        + bundled
        - sum(chain.generations + 1 for chain in todo),
        generations_begun=begun,
        fits_unique=len({node.fit for node in lineage.nodes.values()}) + bundled,
        branches=len(branches),
        device_hours=round(hours, 4),
        disk_bytes=disk_bytes(prepared),
        wall_s=round(wall, 1),
        idle_share=round(idle, 3),
        throughput="measured" if known == {True} else "estimated" if known == {False} else "partly measured",
        memory_per_rank_bytes=max(memories, default=0),
        shapes=tuple(
            _shape_row(prepared, shapes_of_cells, shape, machines) for shape in sorted(set(shapes_of_cells))
        ),
        data=tuple({json.dumps(item.about): item.about for item in prepared.data}.values()),
        weights_gone=weights_gone(prepared, store),
        remarks=tuple(remarks(prepared, store)),
        held_back=tuple(held_back(shapes.values(), machines)),
        chains_again=sum(chain.key in inventory.places for chain in todo),
    )


def _shape_row(
    prepared: Prepared, shapes: Sequence[Shape], shape: Shape, machines: Sequence[Capacity]
) -> dict[str, Any]:
    cells = [index for index, found in enumerate(shapes) if found == shape]
    memories = [rank_bytes(prepared, cell, any(machine.gpus for machine in machines)) for cell in cells]
    row = {**asdict(shape), "cells": len(cells), "at_once": at_once(shape, machines)}
    row["memory_per_rank_bytes"] = max(memories, default=0)
    del row["memory"]  # the same, for all cells, but no more than there is
    return row


def disk_bytes(prepared: Prepared) -> int:
    """Estimate of what the grid leaves on disk, under its retention."""
    lineage, kept = prepared.lineage, kept_fits(prepared)
    weights, total = {}, 0.0
    for node in lineage.nodes.values():
        facts = prepared.models[node.cell]
        if facts is not None and node.fit in kept:
            learner = cast("Any", prepared.study.cells[node.cell].config.learner)
            weights[node.fit] = facts.stored(node.generation) * (
                2 if learner.train.precision == "bf16" else 4
            )
    widths = {node.corpus: prepared.data[node.cell].real.stored_bytes for node in lineage.nodes.values()}
    total += sum(lineage.examples[corpus] * width for corpus, width in widths.items())
    rows = sum(chain.generations + 1 for chain in prepared.bundles)
    return int(
        total + sum(weights.values()) + BYTES_PER_EVALUATION * len(lineage.nodes) + BYTES_PER_ROW * rows
    )
