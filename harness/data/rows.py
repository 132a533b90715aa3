"""Rows of numbers of a file: read, split and shuffled once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.truths import ArrayData
from harness.data.analytic import Array, Truth
from harness.data.reading import check_size, load_array, open_parquet, refuse_twice
from harness.data.real import own_examples, supply_of
from harness.errors import DataError, reason_of
from harness.records import Examples
from harness.science import DataSpec
from harness.streams import stream
from harness.terminal import shown

ROWS = "rows.npy"
"""The file of rows that are kept in a folder."""


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
    numbers = values.dtype.kind in "iuf"  # numpy takes lengths of time for whole numbers
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
    if not wanted:
        raise DataError(f"data.path: {path} has no columns")
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
        raise DataError(f"data.path: {path} cannot be read ({reason_of(error)})") from None


class ArrayTruth(Truth):
    """Rows of a file: split and shuffled once, the same for every seed."""

    config: ArrayData

    def __init__(self, config: ArrayData, purpose: str = "real") -> None:
        """Read the file.

        Raises:
            DataError: It cannot be read, or holds something else than finite numbers.
        """
        super().__init__(config, purpose)
        self.rows = read_rows(config)
        self.fingerprint = hashlib.sha256(repr(self.rows.shape).encode() + self.rows.tobytes()).hexdigest()[
            :32
        ]
        held_out = max(1, round(config.test * len(self.rows)))
        shuffled = self.rows[stream(0, 0, "rows").permutation(len(self.rows))]
        self._test, self._train = shuffled[:held_out], shuffled[held_out:]
        if len(self._train) < 2:
            raise DataError(
                f"data.path: {config.path} has {len(self.rows)} rows, too few to hold {held_out} out"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What enters keys: the rows by their content, never by their path."""
        found = super().identity
        del found["path"]
        return {**found, "content": self.fingerprint}

    @property
    def stored(self) -> Mapping[str, Any]:
        """What names the folder of the prepared rows: their content."""
        return {"kind": "array", "content": self.fingerprint}

    @property
    def origin(self) -> str:
        """The file that the rows come from."""
        return self.config.path

    def write(self, folder: Path) -> None:
        """Write the rows."""
        np.save(folder / ROWS, self.rows, allow_pickle=False)

    def teacher(self, changes: Mapping[str, Any]) -> DataSpec:
        """Fixed teachers are refused for rows of numbers, so there is none."""
        raise DataError(
            "regime.source.model: rows of a file have no parameters that a teacher could differ in"
        )

    @property
    def width(self) -> int:  # type: ignore[override]
        """Columns."""
        return int(self.rows.shape[1])

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        return self.config.num_examples or self.supply

    @property
    def supply(self) -> int:
        """Rows that are not held out, or those of the segment."""
        return supply_of(self.config, len(self._train))

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` rows, the same for every seed unless they are resampled."""
        return Examples.full(self._train[own_examples(self.config, seed, len(self._train), count)])

    @property
    def num_test(self) -> int:
        """Rows that are held out."""
        return len(self._test)

    @property
    def test(self) -> Array:
        """The rows that are held out."""
        return self._test
