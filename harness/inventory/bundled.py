"""Chains that are rows of a bundle: there as a whole, or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from harness.errors import DamagedError
from harness.inventory.columns import to_column
from harness.inventory.slices import make_slices
from harness.inventory.states import WRITER_ENDED, NodeState, lease_holder
from harness.inventory.stored import Stored
from harness.records import GenerationView, bundled_record
from harness.science import Chain
from harness.store import Experiment
from harness.store.bundles import CHAIN, PARAMETERS, InBundle, taken

NAMED = 12
"""Characters of a bundle's name, which is a hash, that people are told."""


class InBundles(Stored):
    """What a store has of bundled chains."""

    @property
    def chains(self) -> Sequence[Chain]:
        """The chains that are run in bundles."""
        return self.prepared.bundles

    def _place(self, chain: Chain) -> InBundle | None:
        return self.look().places.get(chain.key)

    @cached_property
    def _ends(self) -> tuple[Mapping[str, int], Mapping[str, int]]:
        """Key to the number of rows, and to the generation in which it has diverged."""
        table = self.store.bundles.read(
            [chain.key for chain in self.chains], self.look().places, lambda name: name == "status"
        )
        if table is None:
            return {}, {}
        counts = table[CHAIN].combine_chunks().value_counts()
        diverged = table.filter(pc.equal(table["status"], "diverged"))
        return (
            dict(zip(*(part.to_pylist() for part in counts.flatten()), strict=True)),
            dict(zip(diverged[CHAIN].to_pylist(), diverged["generation"].to_pylist(), strict=True)),
        )

    @cached_property
    def _failed(self) -> Mapping[str, str]:
        """Key to why the chain failed, after what there is of it was finished."""
        events = Experiment(self.store.root, self.prepared.study.base.experiment).events()
        failed = [event for event in events if event["event"] == "chain_failed"]
        finished = {
            key: self.store.bundles.finished(self.look().places, key) for key in {e["chain"] for e in failed}
        }
        return {e["chain"]: e["reason"] for e in failed if e["time"] >= finished[e["chain"]]}

    @cached_property
    def _holders(self) -> Mapping[str, str]:
        """Key to who works on the slice that the chain is in."""
        holders = dict[str, str]()
        keys = {data.kept.key for data in self.prepared.data if data.kept is not None}
        leases, leased = self.look().leases, self.look().leased
        if not (leased and all(self.store.sound("data", key) for key in keys)):
            return holders  # nobody can have begun without the data
        for part in make_slices(self.prepared, self.store):
            if part.key in leased and (holder := lease_holder(leases, part.key)) is not None:
                holders |= {chain.key: f"slice of {len(part.chains)}, {holder}" for chain in part.chains}
        return holders

    def committed(self, chain: Chain) -> int:
        """How many of the generations that are asked for are there, with those behind a divergence."""
        place = self._place(chain)
        return 0 if place is None else min(place.generations, chain.generations) + 1

    def is_complete(self, chain: Chain) -> bool:
        """Whether it is there to its whole length."""
        return self.committed(chain) > chain.generations

    def progress(self, chain: Chain) -> tuple[int, NodeState]:
        """How many generations count as done, and why no more.

        Of a chain that is too short none: it is run anew.
        """
        key = chain.key
        if not self.is_complete(chain):
            if key in self._holders:
                return 0, NodeState("running", self._holders[key])
            return 0, NodeState("failed", self._failed[key]) if key in self._failed else NodeState("waiting")
        rows, ended = self._ends
        if (end := ended.get(key, chain.generations + 1)) <= chain.generations:
            return end + 1, NodeState("diverged", f"in generation {end}")
        if (count := rows.get(key, 0)) <= chain.generations:
            return count, NodeState("unreachable", WRITER_ENDED.format(count))
        return chain.generations + 1, NodeState("committed")

    def states(self, chain: Chain) -> Iterator[NodeState]:
        """In which bundle they are, or that they will be made with the whole chain."""
        place = self._place(chain)
        if not self.is_complete(chain) and chain.key in self._failed:
            yield NodeState("failed", self._failed[chain.key])
            yield from [NodeState("waiting", "with the whole chain")] * chain.generations
            return
        if place is None or not self.is_complete(chain):
            last, again = -1, "will run again: a bundled chain that is to be longer runs as a whole"
            new = "will run with the whole chain"
            if place is None:
                new += ", which no bundle in the store has"
            else:
                last = place.generations
                again = f"is stored, as {_named(place)} has the chain up to generation {last}; it {again}"
            for generation in range(chain.generations + 1):
                yield NodeState("committed", again) if generation <= last else NodeState("new", new)
            return
        done, end = self.progress(chain)
        there = f"is in {_named(place)}"
        yield from [NodeState("committed", there)] * (done - (end.state == "diverged"))
        if end.state != "committed":
            yield NodeState("diverged", there) if end.state == "diverged" else end

    def check(self, chain: Chain) -> None:
        """Compare its bundle with the hash that is its name."""
        place = self._place(chain)
        if place is not None:
            self.store.bundles.check(place.path.name)
        elif self.store.trouble:  # which chains a bundle had that cannot be read, nobody knows
            raise DamagedError(f"in no bundle; {next(iter(self.store.trouble.values()))}")

    def places(self, chain: Chain, generations: int) -> list[Mapping[str, Path]]:
        """The one file that has all generations of a chain."""
        place = self._place(chain)
        return [] if place is None else [{"bundle": place.path}]

    @cached_property
    def _views(self) -> Mapping[str, Sequence[GenerationView]]:
        found: dict[str, list[GenerationView]] = {}
        table = self.store.bundles.read([chain.key for chain in self.chains])
        for row in table.to_pylist() if table is not None else []:
            found.setdefault(row[CHAIN], []).append(GenerationView(bundled_record(row)))
        return found

    def generations(self, chain: Chain) -> list[GenerationView]:
        """The rows of a chain as records."""
        return list(self._views.get(chain.key, ())[: chain.generations + 1])

    def outcomes(self, chains: Sequence[Chain]) -> pa.Table | None:
        """The rows of some chains, as a table."""
        return self.store.bundles.read([chain.key for chain in chains])

    def rows(self, provenance: bool, keys: bool = True) -> tuple[npt.NDArray[Any], pa.Table]:
        """Columns all the way, for there may be millions."""

        def wanted(name: str) -> bool:
            known = ("fit", "parent", "status") if keys else ("status",)
            return name in known or ("/" in name and not name.startswith(PARAMETERS))

        chains = [chain.key for chain in self.chains]
        table = self.store.bundles.unordered(chains, self.look().places, wanted) if chains else None
        if table is None:
            return np.zeros(0, dtype=np.int64), pa.table({})
        of_row = table[CHAIN].combine_chunks()
        order = np.lexsort((table["generation"].to_numpy(), of_row.indices.to_numpy()))
        codes = of_row.indices.to_numpy()[order]  # a run of rows for each chain
        begins = np.flatnonzero(np.diff(codes, prepend=-1))
        counts = np.diff(begins, append=len(codes))
        names = of_row.dictionary.take(codes[begins]).to_pylist()
        first = dict(zip(names, zip(begins, counts, strict=True), strict=True))
        found = [
            (place, first[chain.key][0], min(first[chain.key][1], chain.generations + 1))
            for place, chain in enumerate(self.chains)
            if chain.key in first
        ]
        owner, start_of, size = np.array(found, dtype=np.int64).reshape(-1, 3).T
        chain_of = np.repeat(owner, size)
        places_of = order[np.repeat(start_of - (np.cumsum(size) - size), size) + np.arange(size.sum())]
        columns = {"generation": table["generation"]}
        if keys:
            columns["fit"] = pc.add(table["generation"], 1)
        named = {"key": "fit", "status": "status", "parent_key": "parent"} if keys else {"status": "status"}
        columns |= {name: table[stored] for name, stored in named.items()}
        metrics = {name: table[name] for name in table.column_names if "/" in name}
        del table, of_row, codes, order
        metrics = taken(metrics, places_of)
        columns = taken(columns, places_of)
        seen = {name: pc.index(column.is_valid(), True).as_py() for name, column in metrics.items()}
        for name in sorted((name for name in metrics if seen[name] >= 0), key=lambda name: int(seen[name])):
            column = metrics.pop(name)
            finite = pc.is_finite(column)
            columns[name] = column if pc.all(finite).as_py() else pc.if_else(finite, column, None)
        own = pa.table(columns)
        if provenance:
            about = self._provenance()
            for name in dict.fromkeys(name for item in about for name in item):
                column = to_column(name, [item.get(name) for item in about])
                own = own.append_column(name, column.take(pa.array(chain_of)))
        return chain_of, own

    def _provenance(self) -> list[Mapping[str, Any]]:
        """How, where and when the bundle of each chain was computed.

        The seconds are the whole bundle's and, unless an earlier version computed it, the chain's own.
        """
        places, read = self.look().places, dict[str, dict[str, Any]]()
        own: dict[str, float] = {}
        found: list[Mapping[str, Any]] = []
        for chain in self.chains:
            if chain.key not in places:
                found.append({})
                continue
            name = places[chain.key].path.name
            if name not in read:
                about = self.store.bundles.provenance(name)
                known = ("host", "device", "commit", "finished")  # of earlier versions without the commit
                flat = {f"provenance/{field}": about[field] for field in known if field in about}
                flat |= {"provenance/bundle": name, "provenance/seconds/bundle": about["seconds"]}
                own |= about.get("chain_seconds", {})
                read[name] = flat | {
                    f"provenance/versions/{field}": value for field, value in about["versions"].items()
                }
            seconds = own.get(chain.key)
            found.append(read[name] | ({} if seconds is None else {"provenance/seconds/chain": seconds}))
        return found


def _named(place: InBundle) -> str:
    """A bundle, by how its name begins."""
    return f"bundle {place.path.stem[:NAMED]}"
