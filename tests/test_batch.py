"""A job's own process without a SLURM: programs that stand for SLURM's write down what they are asked."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from harness.launch import allocation, node
from harness.launch.allocation import Allocation, RayInAllocation
from harness.launch.jobs import SCRIPT
from harness.launch.options import Options
from harness.launch.render import Job, render

ALLOCATION = {
    "SLURM_JOB_ID": "17",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_JOB_CPUS_PER_NODE": "2",
    "SLURMD_NODENAME": "n1",
    "SLURM_CLUSTER_NAME": "lab",
}
ANSWERS = '[ "$1 $2" = "show hostnames" ] && { echo n1; exit; }\n[ "$1" = show ] && exit\n'
"""What ``scontrol`` says of nodes and settings; not of what a job asks it to do."""


class Place:
    """A job's folders, and a PATH on which SLURM's programs are scripts."""

    def __init__(self, folder: Path) -> None:
        self.programs, self.asked, self.tmp = folder / "bin", folder / "asked", folder / "tmp"
        self.submission = folder / "root" / "experiments" / "x" / "slurm" / "one"
        self.run = self.submission.parent / "run" / "17"
        for made in (self.programs, self.submission):
            made.mkdir(parents=True)
        (self.submission / SCRIPT).touch()
        self.program("scontrol")
        self.program("scancel")

    def program(self, name: str, answer: str = "exit 0") -> None:
        """Let one of SLURM's programs be a script, in shell."""
        path = self.programs / name
        path.write_text(f'#!/bin/bash\n{ANSWERS}echo "{name} $*" >>{self.asked}\n{answer}\n')
        path.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        ours = {"PATH": f"{self.programs}:{os.environ['PATH']}", "HARNESS_TMP": str(self.tmp)}
        return {**os.environ, **ALLOCATION, **ours}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- what a job imports -------------------------------------------------------------------------------------

BESIDE = ("argparse", "ctypes", "datasets", "evaluate", "psutil", "random", "shutil", "typer")


def _agents(tmp: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that a job runs on each of its nodes: the harness's own, and Ray's."""
    started: list[Any] = []

    def start(command: Any, **_: Any) -> Any:
        started.append(command)
        raise InterruptedError

    monkeypatch.setattr(allocation, "kill_wait", lambda: 30.0)
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setenv("HARNESS_TMP", "/tmp")
    with pytest.raises(InterruptedError):
        RayInAllocation(Allocation("17", "17", "lab", ("n1",), (2,), 0, 0, 0), tmp / "ray", lambda: False)
    monkeypatch.undo()
    agent = started[0][started[0].index(sys.executable) :]
    named = argparse.Namespace(head="127.0.0.1:9", is_head=True, tmp=tmp, cpus=1, gpus=0, memory=0)
    return [agent, node._command(named)]


def test_no_file_beside_a_study_is_imported(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job runs in the folder from which it was submitted, and what lies there may be called like a module
    of Python or of a library."""
    study, mark = tmp_path / "study", tmp_path / "imported"
    study.mkdir()
    for name in BESIDE:
        (study / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\n")
    job = Job("x", place.submission, tmp_path / "root", study, sys.executable, 2, 60, (), {})
    done = subprocess.run(
        ["bash"],
        input=render(job, Options()),
        capture_output=True,
        text=True,
        check=False,
        cwd=study,
        env=place.environment,
    )
    assert not mark.exists(), mark.read_text()
    assert done.returncode == 2 and "config.yaml" in done.stderr, done.stderr
    for command in _agents(tmp_path, monkeypatch):
        done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False, cwd=study)
        assert not mark.exists(), mark.read_text()
        assert done.returncode == 0, done.stderr


def test_modules_are_run_without_the_current_folder() -> None:
    """Whatever runs a module of the harness: its own program does not look there either."""
    runs = re.compile(r'sys\.executable,(?!\s*"-P")[^\]]*"-m"')
    found = [path.name for path in (ROOT / "harness").rglob("*.py") if runs.search(path.read_text())]
    assert not found
