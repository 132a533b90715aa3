"""What packages beside the harness add to it: learners, filters, regimes, data, tasks, metrics, trackers.

A package names an object of one of these classes in its metadata, under the kind that a study will call
it by:

    [project.entry-points."harness.filters"]
    every_other = "my_package:every_other"

It is loaded when the harness's schema is, so the module that holds the object imports `harness.registry`,
`harness.section` and `harness.records` only; what is heavier is named as ``module:attribute``, and imported
when it is used. A kind that comes from a package has the package's name in the keys of everything that it
computes, so that two packages never mean two things by one key.
"""

from __future__ import annotations

from harness.registry.gathering import Found, Loaded, check_names, gather, has_field, packages_of, releases
from harness.registry.places import named, no_verdict
from harness.registry.plugins import (
    NUMBERS,
    DataKind,
    DataPlugin,
    FilterPlugin,
    FitSize,
    Known,
    LearnerPlugin,
    Metric,
    MetricPlugin,
    ObjectivePlugin,
    RegimePlugin,
    TaskPlugin,
    TrackerPlugin,
    moments_numbers,
    moments_seconds,
)

__all__ = [
    "DataKind",
    "DataPlugin",
    "FilterPlugin",
    "Found",
    "Known",
    "FitSize",
    "LearnerPlugin",
    "Loaded",
    "Metric",
    "MetricPlugin",
    "NUMBERS",
    "ObjectivePlugin",
    "RegimePlugin",
    "TaskPlugin",
    "TrackerPlugin",
    "check_names",
    "gather",
    "has_field",
    "moments_numbers",
    "moments_seconds",
    "named",
    "no_verdict",
    "packages_of",
    "releases",
]
