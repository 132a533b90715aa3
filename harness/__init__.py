"""A distributed benchmark harness for model collapse: recursive training chains from one YAML file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.api import Results, load, plan, run

__version__ = "0.2.0.dev3"
__all__ = ["Results", "__version__", "load", "plan", "run"]


def __getattr__(name: str) -> Any:
    """The public functions of `harness.api`, imported when they are asked for.

    Most of this package needs none of them.
    """
    if name in __all__:
        from harness import api

        return getattr(api, name)
    raise AttributeError(f"module 'harness' has no attribute {name!r}")
