"""Sources of real data that are known by a name."""

from __future__ import annotations

from collections.abc import Mapping

from harness.registry import DataPlugin

DATA_TAGS: Mapping[str, str] = {
    "gaussian": "gaussian",
    "discrete": "discrete",
    "linear": "linear",
    "mixture": "mixture",
    "blobs": "shape",
    "moons": "shape",
    "circles": "shape",
    "swiss_roll": "shape",
    "array": "array",
}
"""Source to section; every other source is text."""
DIGITS = "digits"
"""The handwritten digits that scikit-learn carries."""
COMPONENTS: Mapping[str, DataPlugin] = {
    "python-docs": DataPlugin("harness.data.documents:python_docs"),
    "python-stdlib": DataPlugin("harness.data.documents:python_stdlib"),
}
"""Text that every Python carries; it differs between Python's versions, and so do the keys."""
