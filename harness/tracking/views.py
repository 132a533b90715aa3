"""What W&B shows of a study, read from the store.

Needs neither ray nor torch, so a login node can mirror while jobs compute.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.config.naming import cell_name
from harness.inventory import Inventory
from harness.records import Record, Status, bundled_record
from harness.science import BundledChain, Chain
from harness.store import Store
from harness.store.bundles import CHAIN
from harness.study import Prepared
from harness.tracking import ChainView, GenerationView

LEVEL = 0.95


@dataclass(frozen=True)
class BundledCell:
    """All chains of a cell that is run in bundles: one run shows their means.

    A run for each of 10,000 cheap chains helps nobody.

    Attributes:
        id: Of these chains, so that other seeds are another run.
        cell: Index of the cell.
        chains: The chains.
    """

    id: str
    cell: int
    chains: tuple[BundledChain, ...]

    @property
    def generations(self) -> int:
        """Index of the last generation."""
        return self.chains[0].generations


@dataclass(frozen=True)
class CellOfChains:
    """All chains of a cell that are run one by one, which have runs of their own: this one shows their means.

    Attributes:
        id: Of these chains, so that other seeds are another run.
        cell: Index of the cell.
        chains: The chains.
    """

    id: str
    cell: int
    chains: tuple[Chain, ...]


Mirrored = Chain | BundledChain | BundledCell
"""What one run shows."""


def mirrored(prepared: Prepared) -> list[Mirrored]:
    """What a study's runs show.

    Its chains, but the cells of those in bundles, unless ``tracking.bundles`` asks for chains.
    """
    if prepared.study.base.tracking.bundles == "chains":
        return list(prepared.chains)
    cells: dict[int, list[BundledChain]] = {}
    for chain in prepared.bundles:
        cells.setdefault(chain.cell, []).append(chain)
    found: list[Mirrored] = list(prepared.lineage.chains)
    found += [BundledCell(_name(chains), cell, tuple(chains)) for cell, chains in cells.items()]
    return found


def aggregates(prepared: Prepared) -> list[CellOfChains]:
    """Cells of several seeds whose chains are run one by one."""
    cells: dict[int, list[Chain]] = {}
    for chain in prepared.lineage.chains:
        cells.setdefault(chain.cell, []).append(chain)
    return [CellOfChains(_name(c), cell, tuple(c)) for cell, c in cells.items() if len(c) > 1]


def _name(chains: Sequence[Chain | BundledChain]) -> str:
    return f"cell-{hashlib.sha256(' '.join(chain.id for chain in chains).encode()).hexdigest()[:12]}"


class Views:
    """What is mirrored of a study, as far as it is committed.

    What is read for many chains at once is kept, so views of a store that others write to are made anew for
    each pass over it.
    """

    def __init__(self, prepared: Prepared, store: Store) -> None:
        """Read nothing yet.

        Args:
            prepared: The study.
            store: Its store.
        """
        self.prepared, self.store = prepared, store
        self._inventory: Inventory | None = None
        self._bundled: dict[str, list[GenerationView]] | None = None

    @property
    def inventory(self) -> Inventory:
        """What is there, looked at once."""
        if self._inventory is None:
            self._inventory = Inventory(self.prepared, self.store, asked=())
        return self._inventory

    def committed(self, item: Mirrored) -> int:
        """How many generations are committed; cheap, no record is read.

        A cell counts when all its chains are there.
        """
        if isinstance(item, BundledCell):
            return min(self.committed(chain) for chain in item.chains)
        if isinstance(item, BundledChain):
            place = self.inventory.places.get(item.key)
            return 0 if place is None else min(place.generations, item.generations) + 1
        return self.inventory.committed(item)

    def whole(self, item: Mirrored | CellOfChains) -> bool:
        """Whether all generations that there will ever be are committed."""
        if isinstance(item, CellOfChains):
            return all(map(self.whole, item.chains))
        if not isinstance(item, Chain):
            return self.committed(item) > item.generations
        return self.inventory.is_complete(item)

    def view(self, item: Mirrored | CellOfChains) -> ChainView:
        """What a run shows: the cell as configuration, every generation that is committed."""
        cell = self.prepared.study.cells[item.cell]
        shown = cell.config.model_dump(mode="json") | {"axes": dict(cell.axes)}
        tracking, places = cell.config.tracking, list[Mapping[str, Path]]()
        if isinstance(item, BundledCell | CellOfChains):
            shown |= {"seeds": len(item.chains), "cell": item.id}
            which, kind = f"{len(item.chains)} seeds", "cell"
            generations = self._means(item) if isinstance(item, BundledCell) else self._means_of(item)
        else:
            shown |= {"seed": item.seed, "chain": item.id}
            which, kind = f"seed {item.seed}", "chain"
            generations = self._rows(item) if isinstance(item, BundledChain) else self._records(item)
            places = self._places(item, len(generations))
        name = cell_name(list(cell.axes.values()), list(cell.axes))
        return ChainView(
            experiment=cell.config.experiment,
            chain=item.id,
            project=tracking.project,
            entity=tracking.entity,
            config=shown,
            generations=generations,
            kind=kind,
            name=f"{name}, {which}" if name else which,
            tags=(*([name] if name else []), which),
            places=places,
        )

    def _places(self, item: Chain | BundledChain, generations: int) -> list[Mapping[str, Path]]:
        """Where the generations of a chain lie."""
        if isinstance(item, BundledChain):
            place = self.inventory.places.get(item.key)
            return [] if place is None else [{"bundle": place.path}]
        nodes = [self.prepared.lineage.nodes[key] for key in item.nodes[:generations]]
        root = self.store.root
        return [
            {
                "fit": root / "fits" / node.fit,
                "corpus": root / "corpora" / node.corpus,
                "evaluation": root / "evaluations" / node.evaluation,
            }
            for node in nodes
        ]

    def _means_of(self, item: CellOfChains) -> list[GenerationView]:
        """As `_means`, of chains that are run one by one."""
        chains = [[view.record for view in self._records(chain)] for chain in item.chains]
        found = []
        for g in range(max(map(len, chains))):
            there = [records[g] for records in chains if len(records) > g]
            gone = sum(records[: g + 1][-1].status == "diverged" for records in chains)
            values = {
                name: np.array(
                    [
                        math.nan if r.metrics[name] is None else r.metrics[name]
                        for r in there
                        if name in r.metrics
                    ]
                )
                for name in sorted({name for record in there for name in record.metrics})
            }
            found.append(_generation(g, len(chains), gone, values, [r.evaluation for r in there]))
        return found

    def _means(self, item: BundledCell) -> list[GenerationView]:
        """Every generation of a cell.

        The means over its chains, and their 95 % intervals where none has diverged (Student's t).
        """
        table = self.store.bundles.read([chain.key for chain in item.chains])
        if table is None:
            return []
        names = [name for name in table.column_names if "/" in name]
        generation = table["generation"].to_numpy()
        ended = np.sort(generation[np.asarray(pc.equal(table["status"], "diverged"))])
        values = {name: table[name].cast(pa.float64()).to_numpy() for name in names}
        keys = np.asarray(table["evaluation"].to_pylist(), dtype=object)
        found = []
        for g in range(item.generations + 1):
            rows = np.flatnonzero(generation == g)
            gone = int(np.searchsorted(ended, g, side="right"))
            at_g = {name: values[name][rows] for name in names}
            found.append(_generation(g, len(item.chains), gone, at_g, keys[rows].tolist()))
        return found

    def _records(self, chain: Chain) -> list[GenerationView]:
        found = []
        for key in chain.nodes:
            node = self.prepared.lineage.nodes[key]
            record: Record | None = self.store.record(key)
            if record is None:
                break
            log = (
                self.store.json("fits", node.fit, "fit.json")["log"]
                if self.store.has("fits", node.fit)
                else {}
            )
            found.append(
                GenerationView(
                    record,
                    log.get("train_loss", ()),
                    self.store.json("evaluations", key, "continuations.json"),
                )
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


def _generation(
    generation: int, chains: int, gone: int, values: Mapping[str, Any], keys: Sequence[str]
) -> GenerationView:
    """Means over the chains of a cell, of which some have diverged by then."""
    metrics: dict[str, float | None] = {"seeds/live": float(chains - gone), "seeds/diverged": float(gone)}
    for name, column in values.items():
        metrics |= _mean(name, column, intervals=not gone)
    evaluation = hashlib.sha256(" ".join(sorted(keys)).encode()).hexdigest()[:32]
    status: Status = "diverged" if gone == chains else "ok"
    return GenerationView(Record(generation, 0, status, "", "", evaluation, metrics), (), ())


def _mean(name: str, values: Any, intervals: bool) -> dict[str, float | None]:
    """A metric's mean over seeds, with the ends of its interval beside it.

    Nothing where no value is finite.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {}
    mean = float(finite.mean())
    if len(finite) < 2 or not intervals:
        return {name: mean}
    from scipy.special import stdtrit

    half = (
        float(stdtrit(len(finite) - 1, (1 + LEVEL) / 2)) * float(finite.std(ddof=1)) / math.sqrt(len(finite))
    )
    return {name: mean, f"{name}.low": mean - half, f"{name}.high": mean + half}
