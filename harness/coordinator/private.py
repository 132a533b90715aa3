"""What a Ray of a run's own is told past `ray.init`: the environment, and what it need not start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ray._private import parameter, ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.job_config import JobConfig

from harness.coordinator import agent
from harness.imports import hidden
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


@contextlib.contextmanager
def without_helpers() -> Iterator[None]:
    """A Ray that starts within this block gets no helpers that it does not need.

    Nobody scales a run's own Ray, its workers' logs are read where they lie, nobody joins it as a client, and
    a Ray without a dashboard starts a smaller one: each of the four is a Python process with Ray in it. So is
    each of the workers that wait for tasks, one for every core: ranks are actors, which have their own. Two
    more, which the daemon cannot do without, are small (`harness.coordinator.agent`). ``ray start`` has
    options for the first two, ``ray.init`` has none.
    """
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # read by the daemons that start here
    every, dashboard, process = parameter.RayParams, services.start_api_server, services.start_ray_process
    fewer = {"include_log_monitor": False, "no_monitor": True, "ray_client_server_port": None}
    parameter.RayParams = lambda *values, **named: every(*values, **named | fewer)
    services.start_api_server = lambda *arguments, **named: ("", None)  # its address, and its process
    services.start_ray_process = lambda command, *values, **named: process(
        [_small(word) for word in command], *values, **named
    )
    try:
        yield
    finally:
        parameter.RayParams, services.start_api_server = every, dashboard
        services.start_ray_process = process


class _Places(list[str]):
    """Folders in which Ray's workers look for modules before all others."""

    def extend(self, places: Iterable[str]) -> None:
        """Add those in which this process looks, too.

        Ray adds the current folder, where a study may have a `datasets.py` beside it.
        """
        own = {os.path.realpath(place) for place in sys.path}
        super().extend(place for place in places if os.path.realpath(place) in own)


def same_places() -> JobConfig:
    """Have Ray's workers look for modules where this process does, and not in the current folder besides."""
    config = JobConfig()
    config._py_driver_sys_path = _Places()
    return config


AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
"""Options of Ray's daemon."""


def _small(word: Any) -> Any:
    """An option of a daemon; where it is the command of an agent, with what runs in its place."""
    for option in AGENTS:
        if str(word).startswith(option):
            small = subprocess.list2cmdline([sys.executable, "-I", "-S", str(agent.__file__)])
            return f"{option}{small} {word.removeprefix(option)}"
    return word


OTHER_COMMANDS = ("ray.util.state", "ray.dashboard.modules.job.cli", "ray.serve.scripts")
"""What defines commands of Ray's besides ``ray start``: 0.3 s of a processor to import."""

if __name__ == "__main__":  # `ray start` on a node
    with contextlib.ExitStack() as meanwhile:
        for name in OTHER_COMMANDS:
            meanwhile.enter_context(hidden(name))
        from ray.scripts.scripts import main

    with without_helpers():
        main()
