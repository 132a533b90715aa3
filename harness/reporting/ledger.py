"""The ledger: one row per chain and generation, as a DuckDB table over the store's records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from harness.inventory import Inventory
from harness.records import finite_or_none
from harness.science import BundledChain
from harness.store import Store
from harness.store.bundles import CHAIN
from harness.study import Prepared

IDENTITY = ("experiment", "chain", "seed", "generation", "fit", "key", "parent_key", "status")
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
)


def rows(prepared: Prepared, store: Store, provenance: bool = False) -> list[dict[str, Any]]:
    """The tidy table of records, in the order of chains and generations.

    Args:
        prepared: The study.
        store: The store.
        provenance: Add how, where and when each was computed; the rest is deterministic.

    Returns:
        One mapping per committed generation: `IDENTITY`, the axes by dotted name, the metrics; a metric that
        is not finite is None.
    """
    found = []
    cache: dict[str, dict[str, Any] | None] = {}
    found_bundles = _bundled(prepared, store)
    origins = _bundle_provenance(prepared, store) if provenance else {}
    inventory = Inventory(prepared, store, asked=())
    for chain in prepared.chains:
        axes = {name: cell_value(value) for name, value in prepared.axes(chain).items()}
        identity = {"experiment": prepared.study.base.experiment, "chain": chain.id, "seed": chain.seed}
        if isinstance(chain, BundledChain):
            for row in found_bundles.get(chain.key, ())[: chain.generations + 1]:
                found.append({**identity, **row[0], **axes, **row[1], **origins.get(chain.key, {})})
            continue
        parent: str | None = None
        for key in inventory.nodes_of(chain):
            if key not in cache:
                cache[key] = _measured(prepared, store, key, provenance)
            measured = cache[key]
            if measured is None:
                break
            found.append(
                {**identity, **measured["identity"], "parent_key": parent, **axes, **measured["values"]}
            )
            if measured["identity"]["status"] == "diverged":
                break  # what another chain shares behind it is not this one's
            parent = measured["identity"]["key"]
    return found


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
            flat = {f"provenance/{field}": about[field] for field in ("host", "device", "finished")}
            flat |= {"provenance/bundle": name, "provenance/seconds/bundle": about["seconds"]}
            read[name] = flat | {
                f"provenance/versions/{field}": value for field, value in about["versions"].items()
            }
        found[chain.key] = read[name]
    return found


def _bundled(prepared: Prepared, store: Store) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Bundled chains by key: for every generation its identity and its metrics."""
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    table = store.bundles.read([chain.key for chain in prepared.bundles]) if prepared.bundles else None
    if table is None:
        return found
    metrics = [name for name in table.column_names if "/" in name]
    columns = {
        name: table[name].to_pylist() for name in (CHAIN, "generation", "fit", "parent", "status", *metrics)
    }
    for i, chain in enumerate(columns[CHAIN]):
        identity = {
            "generation": columns["generation"][i],
            "fit": columns["generation"][i] + 1,
            "key": columns["fit"][i],
            "parent_key": columns["parent"][i],
            "status": columns["status"][i],
        }
        values = {name: finite_or_none(columns[name][i]) for name in metrics if columns[name][i] is not None}
        found.setdefault(chain, []).append((identity, values))
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
    flat = {f"provenance/{name}": found[name] for name in _PROVENANCE}
    for group in ("seconds", "tokens_per_s", "versions"):
        flat |= {f"provenance/{group}/{name}": value for name, value in found[group].items()}
    return flat


def cell_value(value: Any) -> Any:
    """An axis value as one column holds it: objects and lists as text."""
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def table(records: list[dict[str, Any]]) -> pa.Table:
    """Rows as an Arrow table; a column that mixes kinds of values becomes text."""
    names = list(dict.fromkeys([*IDENTITY, *(name for row in records for name in row)]))
    columns = {}
    for name in names:
        values = [row.get(name) for row in records]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} and float in kinds:
            values = [None if value is None else float(value) for value in values]
        elif len(kinds) > 1:
            values = [None if value is None else str(value) for value in values]
        metric = "/" in name and not name.startswith("provenance/")  # a number, also where it is never finite
        columns[name] = pa.array(values, type=None if kinds else pa.float64() if metric else pa.string())
    return pa.table(columns)


FORMATS = {"csv": "(FORMAT csv, HEADER)", "json": "(FORMAT json, ARRAY true)", "parquet": "(FORMAT parquet)"}


def write(records: list[dict[str, Any]], form: str, out: Path) -> None:
    """Write rows to a file.

    Args:
        records: From `rows`.
        form: ``csv``, ``json`` or ``parquet``.
        out: The file.
    """
    connection = duckdb.connect()
    try:
        connection.execute("SET threads = 1")
        connection.register("ledger", table(records))
        target = str(out).replace("'", "''")
        connection.execute(f"COPY (SELECT * FROM ledger) TO '{target}' {FORMATS[form]}")
    finally:
        connection.close()
