"""Rows of numbers, as they are read from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.truths import ArrayData
from harness.data.reading import check_size, load_array, open_parquet, refuse_twice
from harness.errors import DataError
from harness.terminal import shown


def read_rows(config: ArrayData) -> npt.NDArray[np.float64]:
    """The rows of a file, shape [rows, columns], all finite.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    path = Path(config.path)
    if path.suffix.lower() == ".npy":
        values = load_array(path, "data.path")
    elif path.suffix.lower() == ".parquet":
        values = _read_columns(path, config)
    else:
        raise DataError(f"data.path: {path}: found {path.suffix or 'no suffix'}, allowed: .npy, .parquet")
    if values.ndim == 1:
        values = values[:, None]
    numbers = np.issubdtype(values.dtype, np.number) and not np.iscomplexobj(values)
    if values.ndim != 2 or 0 in values.shape or not numbers:
        raise DataError(
            f"data.path: {path} holds {values.dtype} of shape {values.shape}, expected numbers of shape "
            "[rows, columns], neither of them 0"
        )
    values = np.ascontiguousarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"data.path: {path} holds NaN or infinity")
    return values


def _read_columns(path: Path, config: ArrayData) -> npt.NDArray[Any]:
    import pyarrow as pa

    file = open_parquet(path, "data.path")
    schema = file.schema_arrow
    wanted = list(config.columns or schema.names)
    missing = sorted(set(wanted) - set(schema.names))
    if missing:
        raise DataError(f"data.columns: {path} has no column {', '.join(missing)}; it has {schema.names}")
    refuse_twice(schema.names, wanted, "data.columns", str(path))
    for name in wanted:
        kind = schema.field(name).type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
            raise DataError(
                f"data.columns: {path} has {kind} in the column {shown(name)}, not numbers; name the columns "
                "that hold numbers"
            )
    check_size(file, path, "data.path", 8 * len(wanted), wanted)
    try:
        found = file.read(columns=wanted)
        return np.column_stack([found[name].to_numpy() for name in found.column_names])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"data.path: {path} cannot be read ({(str(error).splitlines() or [''])[0]})"
        ) from None
