"""What W&B shows of a study, read from the store.

Needs neither ray nor torch, so a login node can mirror while jobs compute.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from harness.config.naming import cell_name, cell_names
from harness.inventory import StoredChains
from harness.records import Record, Status
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared
from harness.terminal import visible
from harness.tracking import ChainView, GenerationView
from harness.tracking.workspace import CELL

LEVEL = 0.95


@dataclass(frozen=True)
class Mirrored:
    """What one run shows: a chain, or the means over all chains of a cell.

    Attributes:
        id: Of the chain; or of these chains, so that other seeds are another run.
        kind: Which.
        chains: The chain, or those of the cell.
    """

    id: str
    kind: Literal["chain", "cell"]
    chains: tuple[Chain, ...]

    @property
    def cell(self) -> int:
        """Index of the cell."""
        return self.chains[0].cell

    @property
    def generations(self) -> int:
        """Index of the last generation."""
        return self.chains[0].generations


def of_chain(chain: Chain) -> Mirrored:
    """A chain by itself."""
    return Mirrored(chain.id, "chain", (chain,))


def _of_cells(chains: Sequence[Chain]) -> list[Mirrored]:
    """The cells of some chains."""
    cells: dict[int, list[Chain]] = {}
    for chain in chains:
        cells.setdefault(chain.cell, []).append(chain)
    return [Mirrored(_name(found), "cell", tuple(found)) for found in cells.values()]


def mirrored(prepared: Prepared) -> list[Mirrored]:
    """What a study's runs show."""
    return [*map(of_chain, prepared.lineage.chains), *of_bundles(prepared)]


def of_bundles(prepared: Prepared) -> list[Mirrored]:
    """What the runs of bundled chains show.

    Their cells, unless ``tracking.bundles`` asks for chains: a run for each of 10,000 cheap chains helps
    nobody.
    """
    if prepared.study.base.tracking.bundles == "chains":
        return [of_chain(chain) for chain in prepared.bundles]
    return _of_cells(prepared.bundles)


def aggregates(prepared: Prepared) -> list[Mirrored]:
    """Cells of several seeds whose chains have runs of their own, and one more for their means."""
    return [cell for cell in _of_cells(prepared.lineage.chains) if len(cell.chains) > 1]


def _name(chains: Sequence[Chain]) -> str:
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
        self.prepared, self.stored = prepared, StoredChains(prepared, store)

    @cached_property
    def _names(self) -> list[str]:
        """What the cells are called, every one another."""
        columns, cells = self.prepared.study.columns, self.prepared.study.cells
        return cell_names([[cell.axes.get(name) for name in columns] for cell in cells], columns)

    def committed(self, item: Mirrored) -> int:
        """How many generations are committed; cheap, no record is read.

        A cell counts when all its chains are there.
        """
        return min(self.stored.of(chain).committed(chain) for chain in item.chains)

    def whole(self, item: Mirrored) -> bool:
        """Whether all generations that there will ever be are committed."""
        return all(self.stored.of(chain).is_complete(chain) for chain in item.chains)

    def metrics(self, chain: Chain) -> set[str]:
        """Names of the metrics that records of a chain have."""
        records = (generation.record for generation in self.stored.of(chain).generations(chain))
        return {name for record in records for name, value in record.metrics.items() if value is not None}

    def view(self, item: Mirrored) -> ChainView:
        """What a run shows: the cell as configuration, every generation that is committed."""
        cell, chain = self.prepared.study.cells[item.cell], item.chains[0]
        tracking, stored = cell.config.tracking, self.stored.of(chain)
        name = visible(cell_name(list(cell.axes.values()), list(cell.axes)), lines=False)
        about: dict[str, Any]
        places: Sequence[Mapping[str, Path]] = ()
        if item.kind == "cell":
            about, which = {"seeds": len(item.chains)}, f"{len(item.chains)} seeds"
            generations = self._means(item)
        else:
            about, which = {"seed": chain.seed}, f"seed {chain.seed}"
            generations = stored.generations(chain)
            places = stored.places(chain, len(generations))
        return ChainView(
            experiment=cell.config.experiment,
            chain=item.id,
            project=tracking.project,
            entity=tracking.entity,
            config={
                **cell.config.model_dump(mode="json"),
                "axes": dict(cell.axes),
                CELL: visible(self._names[item.cell], lines=False) or "the only cell",
                **about,
                item.kind: item.id,
            },
            generations=generations,
            kind=item.kind,
            name=f"{name}, {which}" if name else which,
            tags=(*([name] if name else []), which),
            places=places,
        )

    def _means(self, item: Mirrored) -> list[GenerationView]:
        """Every generation of a cell.

        The means over its chains, and their 95 % intervals where none has diverged (Student's t).
        """
        stored = self.stored.of(item.chains[0])
        table = stored.outcomes(item.chains)
        if table is None:
            return []
        names = [name for name in table.column_names if "/" in name]
        generation = table["generation"].to_numpy()
        # a chain whose writer has diverged has ended, too
        stopped = [end for end in map(self.stored.stopped, item.chains) if end is not None]
        ended = np.sort([*generation[np.asarray(pc.equal(table["status"], "diverged"))], *stopped])
        values = {name: table[name].cast(pa.float64()).to_numpy() for name in names}
        keys = np.asarray(table["evaluation"].to_pylist(), dtype=object)
        found = []
        # chains may end before others; as long as a chain can grow, no mean is over those alone that have
        count = (max if self.whole(item) else min)(map(stored.committed, item.chains))
        for g in range(count):
            rows = np.flatnonzero(generation == g)
            gone = int(np.searchsorted(ended, g, side="right"))
            at_g = {name: values[name][rows] for name in names}
            found.append(_generation(g, len(item.chains), gone, at_g, keys[rows].tolist()))
        return found


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
