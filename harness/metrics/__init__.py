"""Metrics: pure functions from arrays to numbers, each with its source and a version that enters the evaluation's key."""

VERSIONS = {
    "language_model": {"likelihood": 2, "lexical": 1, "copying": 1},
    "gaussian": {"gaussian": 2},
    "mixture": {"mixture": 1},
    "kde": {"kde": 1},
    "discrete": {"discrete": 1},
    "linear_regression": {"regression": 1},
    "vae": {"vae": 1},
}
"""Metric groups of each kind of learner, with their versions."""
OTHERS_VERSION = 1
"""Of the metrics on other real texts, which enter the key only where there are such texts."""
