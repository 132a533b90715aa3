"""A tracker: chains as MLflow runs, in a database file of the experiment or on the server that the lab has.

A chain is one run, known by a tag; metrics have the generation as their step. A run that was cut short is
replaced, so that a chain is never there twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.records import GenerationView
from harness.tracking.runs import ChainView

TAG = "harness.chain"
STORE = "harness.store"
DATABASE = "mlflow.db"
BATCH = 1000
"""Metrics that MLflow takes at once, at most."""
LONGEST = 500
"""Characters of a parameter, so that older servers take it too."""


def write(view: ChainView, folder: Path) -> None:
    """Chains as MLflow runs, in a database file of the experiment or on MLFLOW_TRACKING_URI.

    Args:
        view: The chain.
        folder: Where the database lies, unless ``MLFLOW_TRACKING_URI`` names a server.
    """
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient(tracking_uri=_place(folder))
    experiment = _experiment(client, view.experiment)
    tags = {TAG: view.chain, STORE: str(folder.absolute())}
    for run in client.search_runs([experiment], f"tags.`{TAG}` = '{view.chain}'"):
        # others on the same server may have the same chain from a store of their own
        if run.data.tags.get(STORE) == tags[STORE]:
            client.delete_run(run.info.run_id)
    run = client.create_run(experiment, run_name=view.chain, tags={**tags, "kind": view.kind})
    name, now = run.info.run_id, int(1000 * time.time())
    client.log_batch(name, params=[Param(key, value) for key, value in parameters(view.config).items()])
    points = [point for generation in view.generations for point in metrics(generation)]
    for start in range(0, len(points), BATCH):
        batch = [Metric(key, value, now, step) for key, value, step in points[start : start + BATCH]]
        client.log_batch(name, metrics=batch)
    for generation in view.generations:
        client.set_tag(name, f"status.{generation.record.generation}", generation.record.status)
    client.set_terminated(name)


def _place(folder: Path) -> str:
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.absolute() / DATABASE}"


def where(folder: Path) -> str:
    """What stands for the place of an experiment's chains: a hash, since an address may hold a password.

    It is another one once the database file is gone.
    """
    place = _place(folder)
    gone = place.endswith(f"/{DATABASE}") and not (folder / DATABASE).exists()
    return hashlib.sha256(f"{place} {gone}".encode()).hexdigest()[:16]


def _experiment(client: Any, name: str) -> str:
    known = client.get_experiment_by_name(name)
    found: str = known.experiment_id if known is not None else client.create_experiment(name)
    return found


def parameters(config: Mapping[str, Any]) -> dict[str, str]:
    """The cell as flat text: dotted name to value, as JSON where it is no text."""
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(inner, f"{path}.{key}" if path else str(key))
        else:
            found[path] = (value if isinstance(value, str) else json.dumps(value))[:LONGEST]

    walk(config, "")
    return found


def metrics(generation: GenerationView) -> Iterator[tuple[str, float, int]]:
    """Name, value and step of every number of a generation that is finite."""
    for name, value in generation.record.metrics.items():
        if value is not None:
            yield name, value, generation.record.generation
