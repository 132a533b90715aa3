"""Everything that a study names by a ``kind``: the harness's own, and what packages add (`harness.registry`).

A component says all that the rest of the harness has to know of a kind: its section, its version, what it
reads, what it costs, its metrics, and where its code is. So a new kind is a module here, its code, and a line
below; nothing else asks which kind it is.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.components import (
    discrete,
    filters,
    gaussian,
    images,
    kde,
    language_model,
    linear_regression,
    mixture,
    regimes,
    text,
    truths,
    vae,
)
from harness.registry import (
    DataKind,
    DataPlugin,
    FilterPlugin,
    LearnerPlugin,
    MetricPlugin,
    RegimePlugin,
    TrackerPlugin,
    gather,
    releases,
)

LEARNERS = gather(
    "learners",
    LearnerPlugin,
    {
        "language_model": language_model.COMPONENT,
        "gaussian": gaussian.COMPONENT,
        "mixture": mixture.COMPONENT,
        "kde": kde.COMPONENT,
        "discrete": discrete.COMPONENT,
        "linear_regression": linear_regression.COMPONENT,
        "vae": vae.COMPONENT,
    },
)
FILTERS = gather("filters", FilterPlugin, filters.COMPONENTS)
REGIMES = gather("regimes", RegimePlugin, regimes.COMPONENTS)
DATA_KINDS: Mapping[str, DataKind] = {"text": text.KIND, "images": images.KIND, **truths.KINDS}
DATA = gather(
    "data", DataPlugin, text.NAMED, taken=[name for kind in DATA_KINDS.values() for name in kind.sources]
)
"""Texts that are known by a name."""
METRICS = gather("metrics", MetricPlugin, {})
TRACKERS = gather(
    "trackers",
    TrackerPlugin,
    {
        "mlflow": TrackerPlugin(
            "harness.tracking.mlflow:write",
            where="harness.tracking.mlflow:where",
            extra="mlflow",
            modules=("mlflow", "sqlalchemy", "alembic"),
        )
    },
)
PACKAGES = releases(LEARNERS, FILTERS, REGIMES, DATA, METRICS, TRACKERS)
"""Packages that add to the harness here, with their versions."""
