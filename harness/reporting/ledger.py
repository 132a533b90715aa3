"""The ledger: one row per chain and generation, from the store's records."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from harness.config.naming import spoken
from harness.errors import InputError
from harness.inventory import StoredChains
from harness.reporting.rows import Rows
from harness.store import Store
from harness.study import Prepared
from harness.terminal import shown


def rows(prepared: Prepared, store: Store, provenance: bool = False, keys: bool = True) -> Rows:
    """The tidy table of records, in the order of chains and generations.

    Args:
        prepared: The study.
        store: The store.
        provenance: Add how, where and when each was computed; the rest is deterministic.
        keys: With the fits, their keys and those of the ones before them, half of what a closed form's rows
            take. Without, the status is a dictionary.

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
    entered = prepared.study.source.track
    leads = [] if entered is None else [entered.track.score.metric]
    place = {chain.id: index for index, chain in enumerate(prepared.chains)}
    parts, stored = [], StoredChains(prepared, store)
    ends = ((index, stored.stopped(chain)) for index, chain in enumerate(prepared.chains))
    stopped = {index: end for index, end in ends if end is not None}
    learners = [prepared.study.cells[chain.cell].config.learner.kind for chain in prepared.chains]
    for way in stored.ways:
        of_way, own = way.rows(provenance, keys)
        if len(of_way):
            parts.append((np.array([place[chain.id] for chain in way.chains])[of_way], own))
    if len(parts) < 2:
        chain, own = parts[0] if parts else (np.zeros(0, dtype=np.int64), pa.table({}))
    else:
        chain = np.concatenate([owner for owner, _ in parts])
        order = np.argsort(chain, kind="stable")
        own = pa.concat_tables([own for _, own in parts], promote_options="permissive").take(order)
        chain = chain[order]
    if not keys and "status" in own.column_names:
        at = own.column_names.index("status")
        own = own.set_column(at, "status", own["status"].dictionary_encode())
    return Rows(shared, chain, own, leads, stopped, learners)


def cell_value(value: Any) -> Any:
    """An axis value as one column holds it: objects and lists as text."""
    if isinstance(value, Mapping):
        return spoken(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


FORMATS = {"csv": "(FORMAT csv, HEADER)", "json": "(FORMAT json, ARRAY true)", "parquet": "(FORMAT parquet)"}


_WHERE = re.compile(r"^LINE (\d+):(?=.*\n *\^+\s*\Z)", re.MULTILINE)
"""Where DuckDB says what is wrong: at the end, above a mark."""
_NO_TABLE = re.compile(r'(Table with name [^\n]* does not exist[^\n]*)(\nDid you mean "[^\n]*"\?)?')
"""What DuckDB says of a table that is not there, and the name that is most like it among all its tables."""
TABLE = "ledger"
"""What a query calls the rows."""


def write(records: Rows, form: str, out: Path, own: str | None = None) -> int:
    """Write rows, or what a query makes of them, to a file; returns how many.

    Args:
        records: From `rows`.
        form: ``csv``, ``json`` or ``parquet``.
        out: The file.
        own: A SELECT of DuckDB's SQL, in which the rows are the table `TABLE`; all rows when None.

    Raises:
        InputError: The query cannot be answered.
        OSError: The file cannot be written.
    """
    import duckdb  # a run reads rows, and writes none

    connection = duckdb.connect(config={"autoinstall_known_extensions": False})
    try:
        connection.execute("SET threads = 1")
        if own is None:
            table = records.parts()
            connection.register(TABLE, table)
            columns = []
            for field in table.schema:
                name = '"' + field.name.replace('"', '""') + '"'
                shared = pa.types.is_dictionary(field.type)
                columns.append(f"CAST({name} AS VARCHAR) AS {name}" if shared else name)
            query = f"SELECT {', '.join(columns)} FROM {TABLE}"
        else:
            connection.register(TABLE, records.to_arrow())  # a query may go over it more than once
            try:
                asked = _selecting(own)
                try:
                    connection.execute(f"CREATE TEMP TABLE answer AS\n{asked}")
                except duckdb.Error as error:  # it counts a line above the query's own
                    said = _WHERE.sub(lambda at: f"LINE {int(at[1]) - 1}:", str(error))
                    if isinstance(error, duckdb.CatalogException):  # it would offer tables of its own
                        said = _NO_TABLE.sub(rf"\1\nThe table is {TABLE}.", said)
                    raise InputError(f"--sql: {said}") from None
            except duckdb.Error as error:
                raise InputError(f"--sql: {error}") from None
            query = "FROM answer"
        target = str(out).replace("'", "''")
        written = connection.execute(f"COPY ({query}) TO '{target}' {FORMATS[form]}").fetchone()
        assert written is not None
        return int(written[0])
    except duckdb.IOException as error:  # a full disk, as everything else says it
        number = re.search(r'"errno":"(\d+)"', str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(out)) from None
    finally:
        connection.close()


def _selecting(query: str) -> str:
    """A query as the one statement that it is.

    Raises:
        InputError: It is not one SELECT.
        duckdb.Error: It is no SQL.
    """
    import duckdb

    found = duckdb.extract_statements(query)
    if len(found) != 1 or found[0].type != duckdb.StatementType.SELECT:
        raise InputError(f"--sql: found {shown(query)}, allowed: one SELECT, in which the table is {TABLE}")
    return str(found[0].query)
