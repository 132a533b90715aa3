"""Values and mappings as columns of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa


def to_column(name: str, values: Sequence[Any]) -> pa.Array:
    """Values of one column; those of several kinds become text, numbers of both kinds become floats."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1:
        values = [None if value is None else str(value) for value in values]
    provenance = name.startswith("provenance/")
    metric = "/" in name and not provenance  # a number, also where it is never finite
    column = pa.array(values, type=None if kinds else pa.float64() if metric else pa.string())
    # the same few texts for each of what may be a million rows
    return column.dictionary_encode() if provenance and pa.types.is_string(column.type) else column


def to_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Mappings as an Arrow table, its columns in the order in which they come first."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pa.table({name: to_column(name, [row.get(name) for row in rows]) for name in names})
