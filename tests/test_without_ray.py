"""Everything but Ray's part of the harness works where there is no Ray, and no W&B either."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXT, Make

BLOCKED = """
import sys
from importlib.abc import MetaPathFinder


class NotInstalled(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "wandb"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NotInstalled())
"""
GENERATIONS = """
import json
from pathlib import Path

from chains import run_all

import harness
from harness.learners.language_model.distributed import TorchRanks, open_store

config, root = Path(sys.argv[1]), Path(sys.argv[2])
planned = harness.plan(config, root)
store, _, _ = open_store(1)
ranks = TorchRanks(0, 1, store, threads=1)
run_all(config, root, ranks=ranks)
ranks.close()
records = harness.load(root).records(config=config)
print(json.dumps([planned, records.to_dict("list")]))
"""
COMMAND = """
from harness.cli import main

sys.argv[0] = "harness"
main()
"""


def without_ray(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process in which neither Ray nor W&B can be imported."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", BLOCKED + program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


@pytest.mark.slow
def test_two_generations_are_planned_computed_and_read(make_config: Make, tmp_path: Path) -> None:
    """Fits through DeepSpeed's engine, samples, evaluations; in a process of its own."""
    done = without_ray(GENERATIONS, make_config(TEXT, generations=1), tmp_path / "root")
    assert done.returncode == 0, done.stderr
    planned, records = json.loads(done.stdout.splitlines()[-1])
    assert (planned["generations_unique"], planned["generations_stored"]) == (2, 0)
    assert records["generation"] == [0, 1] and records["status"] == ["ok", "ok"]
    # A model of 300 tokens that has learned anything is below the entropy of guessing.
    assert all(0 < nll < 5.71 for nll in records["test/nll"])


@pytest.mark.parametrize("command", ["plan", "run"])
def test_commands_need_ray_to_run_a_study_alone(make_config: Make, tmp_path: Path, command: str) -> None:
    given: Any = (command, make_config(TEXT), "--root", tmp_path / "root")
    done = without_ray(COMMAND, *given)
    assert "defect" not in done.stderr and not (tmp_path / "root").exists()
    if command == "run":
        assert done.returncode == 2 and "Ray is not installed here" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
