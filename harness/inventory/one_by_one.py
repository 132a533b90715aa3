"""Chains that have a fit, a corpus and an evaluation for each generation in the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.inventory.columns import to_table
from harness.inventory.states import WRITER_ENDED, NodeState
from harness.inventory.stored import Stored
from harness.records import GenerationView, Record
from harness.science import Chain, Node

_PROVENANCE = (
    "host",
    "device",
    "world_size",
    "zero_stage",
    "threads",
    "attempt",
    "commit",
    "finished",
    "peak_memory_bytes",
    "attention",
    "activation_checkpointing",
    "micro_batch",
    "sample_batch",
    "compiled",
)


class OneByOne(Stored):
    """What a store has of chains that are run and kept generation by generation."""

    @property
    def chains(self) -> Sequence[Chain]:
        """The chains that are run one by one."""
        return self.prepared.lineage.chains

    def _nodes(self, chain: Chain) -> Iterator[Node]:
        return (self.prepared.lineage.nodes[key] for key in chain.nodes)

    def committed(self, chain: Chain) -> int:
        """How many generations are complete, from the first on."""
        return self.look().committed(chain)

    def is_complete(self, chain: Chain) -> bool:
        """Whether all generations are complete that exist."""
        return self.look().is_complete(chain)

    def progress(self, chain: Chain) -> tuple[int, NodeState]:
        """How many generations are complete, and the state of the next one, or of the chain."""
        inventory = self.look()
        nodes = list(inventory.nodes_of(chain))
        for place in range(inventory.committed(chain), len(nodes)):
            found = inventory.state(nodes[place])
            if found.state != "committed":  # or somebody has finished it since the inventory was taken
                return place, found
        done = len(nodes)
        if nodes and nodes[-1] in inventory.diverged:
            return done, NodeState("diverged", f"in generation {done - 1}")
        if done <= chain.generations:
            return done, NodeState("unreachable", WRITER_ENDED.format(done))
        return done, NodeState("committed")

    def states(self, chain: Chain) -> Iterator[NodeState]:
        """The state of each generation of a chain, as the inventory has it."""
        for key in chain.nodes:
            yield self.look().state(key)

    def check(self, chain: Chain) -> None:
        """Compare every item of every generation with its checksums."""
        for node in self._nodes(chain):
            if not self.store.has("evaluations", node.evaluation):
                return
            self.store.check("evaluations", node.evaluation)
            self.store.check("fits", node.fit)
            for start, stop in self.store.corpora.shards(node.corpus):
                self.store.corpora.check(node.corpus, start, stop)

    def places(self, chain: Chain, generations: int) -> list[Mapping[str, Path]]:
        """The folders of the first generations."""
        root, nodes = self.store.root, list(self._nodes(chain))
        return [
            {
                "fit": root / "fits" / node.fit,
                "corpus": root / "corpora" / node.corpus,
                "evaluation": self.store.place("evaluations", node.evaluation),
            }
            for node in nodes[:generations]
        ]

    def _records(self, chain: Chain) -> Iterator[Record]:
        for node in self._nodes(chain):
            record = self.store.record(node.evaluation)
            if record is None:
                return
            yield record
            if record.status == "diverged":  # what another chain shares behind it is not this one's
                return

    def generations(self, chain: Chain) -> list[GenerationView]:
        """With losses and continuations, up to where there is no record."""
        return [
            GenerationView(
                record,
                self.store.json("fits", record.fit, "fit.json")["log"].get("train_loss", ())
                if self.store.has("fits", record.fit)
                else (),
                self.store.json("evaluations", record.evaluation, "continuations.json"),
            )
            for record in self._records(chain)
        ]

    def outcomes(self, chains: Sequence[Chain]) -> pa.Table | None:
        """The records as rows."""
        names = ("generation", "status", "evaluation")
        found = [
            {**{name: getattr(record, name) for name in names}, **record.metrics}
            for chain in chains
            for record in self._records(chain)
        ]
        return to_table(found) if found else None

    def rows(self, provenance: bool, keys: bool = True) -> tuple[npt.NDArray[Any], pa.Table]:
        """The records as rows, with the fits before them."""
        found, places = list[dict[str, Any]](), list[int]()
        cache: dict[str, dict[str, Any] | None] = {}
        for place, chain in enumerate(self.chains):
            parent: str | None = None
            for key in self.look().nodes_of(chain):
                if key not in cache:
                    cache[key] = self._row(key, provenance)
                row = cache[key]
                if row is None:
                    break
                found.append({**row, "parent_key": parent})
                places.append(place)
                if row["status"] == "diverged":
                    break
                parent = row["key"]
        table = to_table(found)
        if found and not keys:
            table = table.drop_columns(["fit", "key", "parent_key"])
        return np.array(places, dtype=np.int64), table

    def _row(self, key: str, provenance: bool) -> dict[str, Any] | None:
        record = self.store.record(key)
        if record is None:
            return None
        found = {
            "generation": record.generation,
            "fit": record.generation + 1,
            "key": record.fit,
            "status": record.status,
            "parent_key": None,
            **record.metrics,
        }
        if provenance:
            found |= _flat_provenance(self.store.json("evaluations", key, "provenance.json"))
        return found


def _flat_provenance(found: Mapping[str, Any]) -> dict[str, Any]:
    flat = {f"provenance/{name}": found.get(name) for name in _PROVENANCE}  # older ones lack the last five
    for group in ("seconds", "tokens_per_s", "versions"):
        flat |= {f"provenance/{group}/{name}": value for name, value in found[group].items()}
    return flat
