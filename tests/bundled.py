"""Run the bundled chains of a configuration in this process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from harness.coordinator.bundles import BundleTask, run_task
from harness.inventory.slices import make_slices, missing
from harness.reporting import ledger
from harness.store import Store
from harness.study import Prepared, commit_data, open_study


def run_bundles(config: Path, root: Path, *assignments: str) -> tuple[Prepared, Store]:
    """Run every slice of a grid that is not there, one after another."""
    prepared, scratch = open_study(config, assignments, Store.read(root))
    with scratch:
        store = Store.open(root)
        commit_data(prepared, store)
    left = {chain.key for chain in missing(prepared, store.bundles.index())}
    for part in filter(None, (part.only(left) for part in make_slices(prepared, store))):
        done = run_task(BundleTask((part,)), str(root))
        assert not done.failed, done.failed
    return prepared, store


def table(config: dict[str, Any], **changes: Any) -> pd.DataFrame:
    """The records of a configuration, computed in a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(
            yaml.safe_dump({"experiment": "oracle", "tracking": {"wandb": "disabled"}, **config, **changes})
        )
        prepared, store = run_bundles(path, Path(folder) / "root")
        return pd.DataFrame(ledger.rows(prepared, store))


def at(frame: pd.DataFrame, metric: str, generation: int) -> np.ndarray:
    """A metric in one generation: one value per seed."""
    return frame[frame.generation == generation][metric].to_numpy(dtype=float)


def assert_mean(values: np.ndarray, expected: float, errors: float = 4.0) -> None:
    """The mean of independent values is within some of its standard errors of what theory says."""
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) <= errors * error, (
        f"n {len(values)}, found {values.mean():.6g} ± {error:.2g}, theory {expected:.6g}, allowed {errors} "
        "standard errors"
    )
