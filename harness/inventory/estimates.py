"""How long a generation takes: from what the store has measured, or from the arithmetic in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.components import LEARNERS
from harness.errors import StoreError
from harness.learners.protocol import Turn
from harness.science import Node
from harness.store import Store
from harness.study import Prepared

CPU_FLOPS = 8e10
"""FLOP/s of one CPU thread in training (docs/LOG.md); used until the store holds a measurement."""
GPU_FLOPS = 1.5e14
"""FLOP/s of one GPU in training: two fifths of a current device's bf16 peak. An assumption, until the store
holds a measurement."""
SAMPLING_SHARE = 0.4
"""FLOP/s of sampling over FLOP/s of training."""
SECONDS_PER_TURN = 2.0
"""What a generation costs besides arithmetic: engine, files, evaluation's text."""
CHEAP_SECONDS = 0.02
"""One generation of a learner in closed form."""
MAX_MEASUREMENTS = 500


@dataclass(frozen=True)
class _Rates:
    """Tokens per second of one rank."""

    fit: float
    sample: float
    measured: bool


class Estimates:
    """How long the generations of a study take."""

    def __init__(self, prepared: Prepared, store: Store, gpus: bool) -> None:
        """Read what the store has measured.

        Args:
            prepared: The study.
            store: The store.
            gpus: Whether ranks run on GPUs.
        """
        self.prepared, self.gpus = prepared, gpus
        self.measured = self._measurements(store)
        self.rates = [self._rates(index) for index in range(len(prepared.study.cells))]

    def _measurements(self, store: Store) -> dict[str, tuple[float, float]]:
        """Model to tokens per second and rank, (fit, sample), from the provenance of what is stored."""
        wanted = {_trained(spec.learner.identity) for spec in self.prepared.specs}
        found: dict[str, list[tuple[float, float]]] = {}
        for key in sorted(store.committed("evaluations"))[:MAX_MEASUREMENTS]:
            try:
                rates = store.json("evaluations", key, "provenance.json")
                fit = store.json("evaluations", key, "spec.json")["fit"]
                model = _trained(store.json("fits", fit, "spec.json")["learner"])
                # "cpu", of earlier versions, or with its model
                on_gpu = not rates["device"].startswith("cpu")
                speed, ranks = rates["tokens_per_s"], rates["world_size"]
                if model in wanted and on_gpu == self.gpus and speed.get("fit") and speed.get("sample"):
                    found.setdefault(model, []).append((speed["fit"] / ranks, speed["sample"] / ranks))
            except (StoreError, AttributeError, KeyError, TypeError, ZeroDivisionError):
                continue  # somebody else's, who knows how; there are others
        return {model: sorted(pairs)[len(pairs) // 2] for model, pairs in found.items()}

    def _rates(self, cell: int) -> _Rates:
        spec, config = self.prepared.specs[cell], self.prepared.study.cells[cell].config
        measured = self.measured.get(_trained(spec.learner.identity))
        if measured:
            return _Rates(*measured, measured=True)
        flops = GPU_FLOPS if self.gpus else CPU_FLOPS * config.resources.threads
        facts = self.prepared.models[cell]
        parameters = facts.parameters if facts else 1e8
        trained = facts.training_flops if facts else 6 * parameters
        return _Rates(flops / trained, SAMPLING_SHARE * flops / (2 * parameters), measured=False)

    def of(self, keys: Iterable[str]) -> dict[str, float]:
        """Node to its estimated seconds."""
        return {key: self.seconds(self.prepared.lineage.nodes[key]) for key in keys}

    def seconds(self, node: Node) -> float:
        """Estimated seconds of one generation on its gang."""
        config, lineage = self.prepared.study.cells[node.cell].config, self.prepared.lineage
        component = LEARNERS[config.learner.kind]
        if component.turn_seconds is None:
            return CHEAP_SECONDS
        rates, n = self.rates[node.cell], self.prepared.specs[node.cell].n
        sampled, scored = lineage.examples[node.corpus], node.spec.measured.examples
        real = self.prepared.data[node.cell].real
        turn = Turn(config, real, node.recipe, n, sampled, scored, rates.fit, rates.sample)
        return SECONDS_PER_TURN + component.turn_seconds(turn)


def _trained(learner: Mapping[str, Any]) -> str:
    """What says how fast a fit is: its model, and the adapter where that is trained."""
    return json.dumps([learner.get("model"), learner.get("adapter")], sort_keys=True)


def scheduled_seconds(prepared: Prepared, store: Store, gpus: bool, keys: Iterable[str]) -> dict[str, float]:
    """Node to its estimated seconds, for a run; empty where a package's estimate fails.

    A run needs none: it then gives whole branches to its gangs. `harness plan` names the package.
    """
    try:
        return Estimates(prepared, store, gpus).of(keys)
    except Exception:
        return {}
