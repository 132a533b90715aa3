"""Metrics: pure functions from arrays to numbers, each with its source and a version that enters the evaluation's key."""

from __future__ import annotations

from collections.abc import Mapping

from harness.config.schema import LEARNER_PLUGINS

VERSIONS: Mapping[str, Mapping[str, int | str]] = {
    "language_model": {"likelihood": 2, "lexical": 1, "copying": 1},
    "gaussian": {"gaussian": 2},
    "mixture": {"mixture": 1},
    "kde": {"kde": 1},
    "discrete": {"discrete": 1},
    "linear_regression": {"regression": 1},
    "vae": {"vae": 1},
    **{kind: {kind: f"{found.package}/{found.plugin.metrics_version}"} for kind, found in LEARNER_PLUGINS.loaded.items()},
}
"""Metric groups of each kind of learner, with their versions."""
BYTES_OF_TOKENS = {"likelihood": 3}
"""Versions where the test text is more than ASCII without special tokens: bits per byte counted blocks decoded by themselves."""
OTHERS_VERSION = 1
"""Of the metrics on other real texts, which enter the key only where there are such texts."""
OTHERS_BYTES_OF_TOKENS = 2
"""The same, where one of them is more than ASCII without special tokens."""
SCORES_VERSION = 1
"""Of the values per example that are kept beside a record: raised where they change.

It is in no key: where the weights are gone that would be needed to compute them, an evaluation takes them from an earlier one of
the same fit and corpus that had other metrics or prompts.
"""
