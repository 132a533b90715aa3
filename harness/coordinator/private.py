"""The environment that Ray reads, for the time of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from harness.ray_access import LOOPBACK


@contextlib.contextmanager
def environment(**changes: str | None) -> Iterator[None]:
    """The environment with other values for the time of a block, and Ray told of it.

    None removes a variable.
    """
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    # Ray has read the environment when it was imported.
    ray_constants.ENABLE_RAY_CLUSTER = all(os.environ.get(name) != value for name, value in LOOPBACK.items())
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
