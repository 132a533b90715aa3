"""The ledger: one row per chain and generation, from the store's records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from harness.config.naming import spoken
from harness.inventory import Inventory
from harness.reporting.rows import Rows, to_column, to_table
from harness.science import BundledChain
from harness.store import Store
from harness.store.bundles import CHAIN, PARAMETERS, taken
from harness.study import Prepared

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
)


def rows(prepared: Prepared, store: Store, provenance: bool = False) -> Rows:
    """The tidy table of records, in the order of chains and generations.

    Args:
        prepared: The study.
        store: The store.
        provenance: Add how, where and when each was computed; the rest is deterministic.

    Returns:
        One row per committed generation: `IDENTITY`, the axes by dotted name, the metrics; a metric that is
        not finite is None.
    """
    name = prepared.study.base.experiment
    shared = [
        {
            "experiment": name,
            "chain": chain.id,
            "seed": chain.seed,
            **{axis: cell_value(value) for axis, value in prepared.axes(chain).items()},
        }
        for chain in prepared.chains
    ]
    one, single = _single(prepared, store, provenance)
    many, bundled = _bundled(prepared, store, provenance)
    if not len(many):
        return Rows(shared, one, single)
    if not len(one):
        return Rows(shared, many, bundled)
    chain = np.concatenate([one, many])
    order = np.argsort(chain, kind="stable")
    own = pa.concat_tables([single, bundled], promote_options="permissive")
    return Rows(shared, chain[order], own.take(order))


def _single(prepared: Prepared, store: Store, provenance: bool) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """The rows of chains that have a generation for each evaluation in the store, and whose they are."""
    found, places = list[dict[str, Any]](), list[int]()
    cache: dict[str, dict[str, Any] | None] = {}
    inventory = Inventory(prepared, store, asked=())
    for place, chain in enumerate(prepared.chains):
        if isinstance(chain, BundledChain):
            continue
        parent: str | None = None
        for key in inventory.nodes_of(chain):
            if key not in cache:
                cache[key] = _measured(prepared, store, key, provenance)
            measured = cache[key]
            if measured is None:
                break
            found.append({**measured["identity"], "parent_key": parent, **measured["values"]})
            places.append(place)
            if measured["identity"]["status"] == "diverged":
                break  # what another chain shares behind it is not this one's
            parent = measured["identity"]["key"]
    return np.array(places, dtype=np.int64), to_table(found)


def _bundled(prepared: Prepared, store: Store, provenance: bool) -> tuple[npt.NDArray[np.int64], pa.Table]:
    """The rows of bundled chains, and whose they are: columns all the way, for there may be millions."""
    nothing = np.zeros(0, dtype=np.int64), pa.table({})
    chains = [
        (place, chain) for place, chain in enumerate(prepared.chains) if isinstance(chain, BundledChain)
    ]

    def wanted(name: str) -> bool:
        return name in ("fit", "parent", "status") or ("/" in name and not name.startswith(PARAMETERS))

    table = store.bundles.read([chain.key for _, chain in chains], wanted=wanted) if chains else None
    if table is None:
        return nothing
    keys = table[CHAIN].combine_chunks()  # ordered: a run of rows for each chain
    codes = keys.indices.to_numpy()
    begins = np.flatnonzero(np.diff(codes, prepend=-1))
    counts = np.diff(begins, append=len(codes))
    names = keys.dictionary.take(codes[begins]).to_pylist()
    first = dict(zip(names, zip(begins, counts, strict=True), strict=True))
    places, starts, lengths = [], [], []
    for place, chain in chains:
        if chain.key in first:
            start, count = first[chain.key]
            places.append(place)
            starts.append(start)
            lengths.append(min(count, chain.generations + 1))
    owner, start_of, size = (np.array(numbers, dtype=np.int64) for numbers in (places, starts, lengths))
    chain_of = np.repeat(owner, size)
    places_of = np.repeat(start_of - (np.cumsum(size) - size), size) + np.arange(size.sum())
    columns = {"generation": table["generation"], "fit": pc.add(table["generation"], 1), "key": table["fit"]}
    columns |= {"status": table["status"], "parent_key": table["parent"]}
    metrics = {name: table[name] for name in table.column_names if "/" in name}
    del table
    metrics = taken(metrics, places_of)
    columns = taken(columns, places_of)
    seen = {name: pc.index(column.is_valid(), True).as_py() for name, column in metrics.items()}
    for name in sorted((name for name in metrics if seen[name] >= 0), key=lambda name: int(seen[name])):
        columns[name] = pc.if_else(pc.is_finite(metrics[name]), metrics.pop(name), None)
    own = pa.table(columns)
    if provenance:
        origins = _bundle_provenance(prepared, store)
        about = [origins.get(chain.key, {}) for _, chain in chains]
        number = np.zeros(len(prepared.chains), dtype=np.int64)
        number[[place for place, _ in chains]] = np.arange(len(chains))
        for name in dict.fromkeys(name for item in about for name in item):
            column = to_column(name, [item.get(name) for item in about])
            own = own.append_column(name, column.take(number[chain_of]))
    return chain_of, own


def _bundle_provenance(prepared: Prepared, store: Store) -> dict[str, dict[str, Any]]:
    """Bundled chains by key: how, where and when their bundle was computed.

    The seconds are the whole bundle's.
    """
    places, read = store.bundles.index(), dict[str, dict[str, Any]]()
    found = {}
    for chain in prepared.bundles:
        if chain.key not in places:
            continue
        name = places[chain.key].path.name
        if name not in read:
            about = store.bundles.provenance(name)
            known = ("host", "device", "commit", "finished")  # of earlier versions without the commit
            flat = {f"provenance/{field}": about[field] for field in known if field in about}
            flat |= {"provenance/bundle": name, "provenance/seconds/bundle": about["seconds"]}
            read[name] = flat | {
                f"provenance/versions/{field}": value for field, value in about["versions"].items()
            }
        found[chain.key] = read[name]
    return found


def _measured(prepared: Prepared, store: Store, key: str, provenance: bool) -> dict[str, Any] | None:
    record = store.record(key)
    if record is None:
        return None
    identity = {
        "generation": record.generation,
        "fit": record.generation + 1,
        "key": record.fit,
        "status": record.status,
    }
    values: dict[str, Any] = dict(record.metrics)
    if provenance:
        values |= _flat_provenance(store.json("evaluations", key, "provenance.json"))
    return {"identity": identity, "values": values}


def _flat_provenance(found: Mapping[str, Any]) -> dict[str, Any]:
    flat = {f"provenance/{name}": found.get(name) for name in _PROVENANCE}  # older ones lack the last two
    for group in ("seconds", "tokens_per_s", "versions"):
        flat |= {f"provenance/{group}/{name}": value for name, value in found[group].items()}
    return flat


def cell_value(value: Any) -> Any:
    """An axis value as one column holds it: objects and lists as text."""
    if isinstance(value, Mapping):
        return spoken(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


FORMATS = {"csv": "(FORMAT csv, HEADER)", "json": "(FORMAT json, ARRAY true)", "parquet": "(FORMAT parquet)"}


def write(records: Rows, form: str, out: Path) -> None:
    """Write rows to a file.

    Args:
        records: From `rows`.
        form: ``csv``, ``json`` or ``parquet``.
        out: The file.
    """
    connection = duckdb.connect()
    try:
        connection.execute("SET threads = 1")
        table = records.to_arrow()
        connection.register("ledger", table)
        columns = []
        for field in table.schema:
            name = '"' + field.name.replace('"', '""') + '"'
            shared = pa.types.is_dictionary(field.type)
            columns.append(f"CAST({name} AS VARCHAR) AS {name}" if shared else name)
        target = str(out).replace("'", "''")
        connection.execute(f"COPY (SELECT {', '.join(columns)} FROM ledger) TO '{target}' {FORMATS[form]}")
    finally:
        connection.close()
