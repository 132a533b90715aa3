"""The Ray of a run's own is its user's alone, and a Ray of somebody else is joined with its token or not at
all."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import GAUSSIAN, Make, harness
from processes import wait_for

from harness.coordinator import agent, cluster
from harness.coordinator import private as private_ray

PRIVATE = """
import json, os, sys
from harness.coordinator.cluster import RayPlace, connected
import ray
with connected(RayPlace(), lambda reason: None):
    print(json.dumps({"address": ray.get_runtime_context().gcs_address}), flush=True)
    if sys.stdin.readline():
        inside = ray.remote(os.getenv).options(runtime_env={"env_vars": {"GIVEN": "yes"}})
        print(ray.get(inside.remote("GIVEN"), timeout=60), flush=True)
        sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A run's own Ray, though the environment asks for none of what keeps it private, and there is no home to
    write to."""
    hostile = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "0" * 64, "HOME": "/dev/null"}
    process = subprocess.Popen(
        [sys.executable, "-c", PRIVATE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **hostile},
    )
    assert process.stdout is not None and process.stdin is not None
    yield process, json.loads(process.stdout.readline())["address"]
    process.stdin.close()
    process.wait(60)
    assert not list(Path("/tmp").glob(f"{cluster.PREFIX}{process.pid}-*")), "the folder goes with its run"


@pytest.mark.ray
def test_nobody_else_reaches_a_private_ray(private: Any, make_config: Make, tmp_path: Path) -> None:
    process, address = private
    (folder,) = Path("/tmp").glob(f"{cluster.PREFIX}{process.pid}-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and (folder / "r").is_dir()
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
    own = psutil.Process(process.pid)
    listening = [
        c.laddr.ip
        for p in (own, *own.children(recursive=True))
        for c in p.net_connections()
        if c.status == "LISTEN"
    ]
    assert len(listening) > 3 and {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    commands = [" ".join(p.cmdline()) for p in own.children(recursive=True)]
    assert any("gcs_server" in line for line in commands), "what is looked for can be seen"
    for helper in ("monitor.py", "dashboard.py"):
        assert not any(helper in line for line in commands), "no autoscaler, nobody who forwards logs"
    config = make_config(GAUSSIAN)
    guessed = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "1" * 64}
    done = harness("run", config, "--root", tmp_path / "root", "--address", address, **guessed)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert (
        "there is no Ray that can be joined (it wants another token: set RAY_AUTH_TOKEN_PATH" in done.stderr
    )
    assert not (tmp_path / "root").exists()


@pytest.mark.ray
def test_a_token_that_is_missing_is_asked_for(make_config: Make, tmp_path: Path) -> None:
    """Ray looks for it before it speaks with anybody."""
    place = tmp_path / "token"
    config, said = (
        make_config(GAUSSIAN),
        "(there is no token: set RAY_AUTH_TOKEN_PATH to the file with its token, ",
    )
    with socket.create_server(("127.0.0.1", 0)) as somebody:
        address = f"127.0.0.1:{somebody.getsockname()[1]}"
        for asked in ({"RAY_AUTH_TOKEN_PATH": ""}, {"RAY_AUTH_TOKEN_PATH": str(place)}):
            done = harness(
                "run", config, "--root", tmp_path / "root", "--address", address,
                HOME=str(tmp_path), RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="", **asked,
            )  # fmt: skip
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
            assert done.stderr.startswith(f"error: --address {address}: ") and said in done.stderr
    assert not (tmp_path / "root").exists()


@pytest.mark.ray
def test_rays_agent_for_environments_comes_when_wanted(private: Any) -> None:
    """As under ``uv run``; until then, and in place of the dashboard's, a process without Ray is there."""
    process, _ = private

    def agents() -> set[str]:
        found = [p.cmdline() for p in psutil.Process(process.pid).children(recursive=True)]
        small = {line[-1] for line in found if agent.__file__ in line[:4]}
        assert not any("DashboardAgent" in line[0] for line in found if line)
        return {line[0] for line in found if line and "RuntimeEnvAgent" in line[0]} | {str(len(small))}

    assert agents() == {"2"}
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "yes\n"
    assert agents() == {"ray::RuntimeEnvAgent", "1"}


@pytest.mark.ray
def test_a_public_ray_is_joined_with_its_token(make_config: Make, tmp_path: Path) -> None:
    """As ``ray start`` makes it for whoever has a token in the home folder."""
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("a" * 64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    mine = {"HOME": str(tmp_path / "home"), "RAY_AUTH_MODE": "", "RAY_TMPDIR": "/tmp/hp"}
    environment = {
        name: value
        for name, value in {**os.environ, **mine}.items()
        if value and name != "RAY_AUTH_TOKEN_PATH"
    }
    flags = [
        "--head",
        "--block",
        "--num-cpus=2",
        "--include-dashboard=false",
        "--object-store-memory=100000000",
        "--disable-usage-stats",
    ]
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        f"--port={address.split(':')[1]}",
        *flags,
    ]
    with open(tmp_path / "log", "w") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "log").read_text(), 60)
        config = make_config(GAUSSIAN, generations=0)
        stranger = harness(
            "run", config, "--root", tmp_path / "root", "--address", address, HOME=str(tmp_path)
        )
        assert stranger.returncode == 2 and "it wants another token" in stranger.stderr
        assert len(stranger.stderr.splitlines()) == 1 and not (tmp_path / "root").exists()
        done = harness("run", config, "--root", tmp_path / "root", "--address", address, HOME=mine["HOME"])
        assert done.returncode == 0, done.stderr
    finally:
        children = psutil.Process(head.pid).children(recursive=True)
        for process in (psutil.Process(head.pid), *children):
            process.kill()
        psutil.wait_procs(children, 10)


def test_auto_takes_no_run_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    class Raylet:
        def __init__(self, folder: str, port: int) -> None:
            self.line = [
                "raylet",
                f"--raylet_socket_name={folder}/session_x/sockets/raylet",
                f"--gcs-address=10.0.0.1:{port}",
            ]

        def name(self) -> str:
            return "raylet"

        def cmdline(self) -> list[str]:
            return self.line

    found = [Raylet("/tmp/hr-12-ab/r", 1), Raylet("/tmp/ray", 2)]
    monkeypatch.setattr(psutil, "process_iter", lambda: found)
    assert cluster._only_public_ray() == "10.0.0.1:2"
    found.append(Raylet("/tmp/other", 3))
    with pytest.raises(ValueError, match="several run here: 10.0.0.1:2, 10.0.0.1:3"):
        cluster._only_public_ray()
    del found[1:]
    with pytest.raises(ValueError, match="none runs on this machine"):
        cluster._only_public_ray()


PLACES = """
import json, os, sys
from harness.coordinator.cluster import RayPlace, connected
import ray
with connected(RayPlace(), lambda reason: None):
    look = ray.remote(lambda: list(__import__("sys").path))
    print(json.dumps(ray.get(look.remote(), timeout=60)))
"""


@pytest.mark.ray
def test_ranks_look_for_modules_where_their_run_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the folder of the study besides, as Ray's workers do, where anything may lie."""
    command = [sys.executable, "-P", "-c", PLACES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    places = json.loads(done.stdout)
    assert places and not {"", str(tmp_path)} & set(places), places
    monkeypatch.chdir(tmp_path)
    for here in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [here, *sys.path])
        given = private_ray.same_places()._py_driver_sys_path
        given.extend([str(tmp_path), "/none"])
        assert list(given) == [str(tmp_path)], "as the process itself"
