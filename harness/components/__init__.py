"""Everything that a study names by a ``kind``: the harness's own, and what packages add (`harness.registry`).

A component says all that the rest of the harness has to know of a kind: its section, its version, what it
reads, what it costs, its metrics, and where its code is. So a new kind is a module here, its code, and a line
below; nothing else asks which kind it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from harness.components import (
    chat,
    columns,
    discrete,
    filters,
    gaussian,
    images,
    kde,
    language_model,
    linear_regression,
    mixture,
    objectives,
    regimes,
    survival,
    tasks,
    text,
    truths,
    vae,
)
from harness.registry import (
    DataKind,
    DataPlugin,
    FilterPlugin,
    Found,
    LearnerPlugin,
    Loaded,
    MetricPlugin,
    RegimePlugin,
    TrackerPlugin,
    gather,
    has_field,
    packages_of,
    releases,
)
from harness.terminal import shown

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
TASKS = tasks.TASKS
OBJECTIVES = objectives.OBJECTIVES
_KINDS: Mapping[str, DataKind] = {
    "text": text.KIND,
    "task": tasks.KIND,
    "chat": chat.KIND,
    "images": images.KIND,
    **truths.KINDS,
}


def _check_like(kind: DataPlugin | DataKind) -> None:
    """Check that a package's section has what readers of the kind that it is like ask for."""
    if not isinstance(kind, DataKind):
        return
    if kind.like and kind.like not in _KINDS:
        raise ValueError(f"its like is {shown(kind.like)}, allowed: {', '.join(_KINDS)}")
    like = "task" if kind.section.prompted else kind.like
    lacks = [name for name in _KINDS[like].asked if not has_field(kind.section, name)] if like else []
    if lacks:
        raise TypeError(f"its section lacks {', '.join(lacks)}, which readers of {like} data ask for")


_DATA: Found[DataPlugin | DataKind] = gather(
    "data",
    (DataPlugin, DataKind),
    text.NAMED,
    taken=[*_KINDS, *(name for kind in _KINDS.values() for name in kind.sources)],
    check=_check_like,
)
DATA = _DATA.of(DataPlugin)
"""Texts that are known by a name."""
DATA_KINDS: Found[DataKind] = Found(
    {**{name: Loaded(kind) for name, kind in _KINDS.items()}, **_DATA.of(DataKind).loaded}
)
METRICS = gather(
    "metrics",
    MetricPlugin,
    {"survival": survival.COMPONENT},
    columns=[
        metric.name
        for metrics in (
            columns.POOL,
            columns.JUDGED,
            survival.COMPONENT.metrics,
            *(item.plugin.metrics for item in LEARNERS.loaded.values() if not item.package),
        )
        for metric in metrics
    ],
)
TRACKERS = gather(
    "trackers",
    TrackerPlugin,
    {
        "wandb": TrackerPlugin(
            tracker="harness.tracking.weights_and_biases:Wandb",
            field="tracking.wandb",
            off="set disabled",
            extra="wandb",
            modules=("wandb",),
        ),
        "mlflow": TrackerPlugin(
            "harness.tracking.mlflow:write",
            where="harness.tracking.mlflow:where",
            extra="mlflow",
            modules=("mlflow", "sqlalchemy", "alembic"),
        ),
    },
)
_ALL = (LEARNERS, FILTERS, REGIMES, _DATA, TASKS, OBJECTIVES, METRICS, TRACKERS)
PACKAGES = releases(*_ALL)
"""Packages that add to the harness here, with their versions."""
ADDED = packages_of(*_ALL)
"""Kind to the package that adds it here, with its version."""


def readable(kind: str, reads: Collection[str]) -> bool:
    """Whether data of a kind are among those that something reads; nothing named means all."""
    return not reads or kind in reads or DATA_KINDS[kind].like in reads
