"""Chains as W&B shows them, read from the store; needs neither ray nor torch, so a login node can mirror while jobs compute."""

from __future__ import annotations

from collections.abc import Mapping

from harness.lineage import BundledChain, Chain
from harness.records import Record, bundled_record
from harness.store import Store
from harness.store.bundles import CHAIN, Place
from harness.study import Prepared
from harness.tracking import ChainView, GenerationView


class Views:
    """The chains of a study, as far as they are committed.

    What is read for many chains at once is kept, so views of a store that others write to are made anew for each pass over it.
    """

    def __init__(self, prepared: Prepared, store: Store) -> None:
        """Read nothing yet.

        Args:
            prepared: The study.
            store: Its store.
        """
        self.prepared, self.store = prepared, store
        self._committed: set[str] | None = None
        self._places: Mapping[str, Place] | None = None
        self._bundled: dict[str, list[GenerationView]] | None = None

    def committed(self, chain: Chain | BundledChain) -> int:
        """How many generations of a chain are committed; cheap, no record is read."""
        if isinstance(chain, BundledChain):
            if self._places is None:
                self._places = self.store.bundles.index()
            place = self._places.get(chain.key)
            return 0 if place is None else min(place.generations, chain.generations) + 1
        if self._committed is None:
            self._committed = self.store.committed("evaluations")
        return next((i for i, node in enumerate(chain.nodes) if node not in self._committed), len(chain.nodes))

    def view(self, chain: Chain | BundledChain) -> ChainView:
        """A chain as W&B shows it: the cell as configuration, every generation that is committed."""
        config = self.prepared.cell(chain).config
        shown = config.model_dump(mode="json") | {"seed": chain.seed, "chain": chain.id, "axes": self.prepared.axes(chain)}
        generations = self._rows(chain) if isinstance(chain, BundledChain) else self._records(chain)
        return ChainView(config.experiment, chain.id, config.tracking.project, config.tracking.entity, shown, generations)

    def _records(self, chain: Chain) -> list[GenerationView]:
        found = []
        for key in chain.nodes:
            node = self.prepared.lineage.nodes[key]
            record: Record | None = self.store.record(key)
            if record is None:
                break
            log = self.store.json("fits", node.fit, "fit.json")["log"] if self.store.has("fits", node.fit) else {}
            found.append(
                GenerationView(record, log.get("train_loss", ()), self.store.json("evaluations", key, "continuations.json"))
            )
            if record.status == "diverged":
                break
        return found

    def _rows(self, chain: BundledChain) -> list[GenerationView]:
        if self._bundled is None:
            self._bundled = {}
            table = self.store.bundles.read([item.key for item in self.prepared.bundles])
            for row in table.to_pylist() if table is not None else []:
                self._bundled.setdefault(row[CHAIN], []).append(GenerationView(bundled_record(row), (), ()))
        return self._bundled.get(chain.key, [])[: chain.generations + 1]
