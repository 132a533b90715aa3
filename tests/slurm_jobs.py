"""Jobs on the SLURM of the tests: a small study, its submission, and what is seen of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import IMAGES, TEXT, harness, merged, unlabelled
from processes import once
from slurm_cluster import Cluster

from harness.store import Experiment

FAULTS: dict[str, Any] = {
    "experiment": "faults",
    "generations": 1,
    "grid": {"regime.synthetic_ratio": [0.5, 1.0]},
    "learner.train.epochs": 250,
    "resources": {"sample_batch": 32, "checkpoint_s": 0.5, "lease_s": 300.0, "grace_s": 10.0},
}
"""Three fits of several seconds, the last two at the same time: of VAEs, whose ranks start sooner than a
language model's.

The first is there already where a test has the store of `begun`. The leases are such that nobody could wait
for them: a job that is requeued goes on at once or not in time.
"""
TWO_NODES = ("--nodes", 2, "--cpus-per-node", 1, "--time", 30, "--no-look")
"""One gang on each."""


def export(config: Path, root: Path, *assignments: str) -> bytes:
    done = harness("export", config, "--root", root, "--format", "csv", *assignments)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


@pytest.fixture(scope="session")
def folder(cluster: Cluster) -> Path:
    made = cluster.base / "work"
    made.mkdir()
    return made


def written(path: Path, base: dict[str, Any] = TEXT, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(merged(base, changes), sort_keys=False))
    return path


@dataclass
class Study:
    """A configuration on the cluster's file system, what a run of it on this machine alone exports, and that
    run's store."""

    config: Path
    expected: bytes
    root: Path


@pytest.fixture(scope="session")
def faults(folder: Path, shared_folder: Path) -> Study:
    """A grid whose fits last long enough for something to happen to them."""
    return alone(
        written(folder / "faults.yaml", unlabelled(folder), **FAULTS), shared_folder / "slurm-faults"
    )


@pytest.fixture(scope="session")
def sound(folder: Path, shared_folder: Path) -> Study:
    """The same grid with short fits, for jobs that nothing happens to."""
    brief = FAULTS | {"learner.train.epochs": 5}
    return alone(written(folder / "sound.yaml", unlabelled(folder), **brief), shared_folder / "slurm-sound")


def alone(config: Path, root: Path) -> Study:
    """Computed once for all tests, whatever process they run in."""
    with once(root) as first:
        if first:
            done = harness("run", config, "--root", root, "--set", "resources.checkpoint_s=1000", timeout=300)
            assert done.returncode == 0, done.stderr
    return Study(config, export(config, root), root)


@pytest.fixture
def root(cluster: Cluster, folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A store of its own; at the end, nothing of the test's jobs is left on any machine."""
    made = folder / request.node.name
    yield made
    machines = [f"n{number}" for number in range(1, cluster.nodes + 1)]
    for job, state in cluster.jobs().items():
        if state in ("RUNNING", "PENDING", "CONFIGURING"):
            cluster.login("scancel", job)
    for name in machines:
        if not (cluster.base / "run" / f"{name}.pid").exists():
            cluster.boot(name)
    cluster.wait(lambda: cluster.idle() == cluster.nodes, 60, "machines that are idle")
    clean(cluster, machines)
    shutil.rmtree(made, ignore_errors=True)


def clean(cluster: Cluster, machines: list[str]) -> None:
    """Nothing of any job is left on any machine, now or within ten seconds."""
    cluster.wait(
        lambda: not any(clutter(cluster, machines).values()),
        10,
        f"clean machines; {clutter(cluster, machines)}",
        patience=1,
    )


def clutter(cluster: Cluster, machines: list[str]) -> dict[str, list[str]]:
    return {name: cluster.leftovers(name) for name in machines}


@pytest.fixture
def submit(cluster: Cluster, root: Path) -> Callable[..., str]:
    def send(config: Path, *arguments: object) -> str:
        done = cluster.harness("submit", config, "--root", root, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["job"])

    return send


@pytest.fixture
def begun(faults: Study, root: Path) -> Path:
    """The test's store as an earlier job has left it: generation 0, which both chains share, is there.

    Who only needs a fit in the middle need not wait for another one first.
    """
    known = json.loads((faults.root / "experiments" / "faults" / "chains.json").read_text())
    first = known[0]["generations"][0]
    for kind, folder in (("fit", "fits"), ("corpus", "corpora"), ("evaluation", "evaluations")):
        shutil.copytree(faults.root / folder / first[kind], root / folder / first[kind])
    shutil.copytree(faults.root / "data", root / "data")
    shutil.copyfile(faults.root / "format", root / "format")
    return root


def logs(root: Path, job: str) -> str:
    return "\n".join(path.read_text() for path in root.glob(f"experiments/*/slurm/*/{job}*.log"))


def first_node(cluster: Cluster, job: str) -> str:
    """Where the job's own process and its run are."""
    return cluster.login("squeue", "-h", "-j", job, "-o", "%B").stdout.strip()


def mid_run(cluster: Cluster, root: Path, host: str = "") -> set[str]:
    """Wait until something is committed, and a fit (of one machine) has a checkpoint and still some way to
    go; returns such fits.

    Whatever happens to them next, they must go on from there.
    """
    images, batch = IMAGES["data"]["num_examples"], IMAGES["learner"]["train"]["batch_size"]
    steps = FAULTS["learner.train.epochs"] * images / batch

    def under_way() -> set[str]:
        if not any(root.glob("evaluations/*")):
            return set()
        here = {
            event["fit"] for event in events(root, "fit_started") if event["host"] == (host or event["host"])
        }
        early = {
            path.parts[-3] for path in checkpoints(root) if int(path.name.rpartition("-")[2]) < 0.4 * steps
        }
        return early & here & stopped(root)

    found: set[str] = cluster.wait(under_way, 90, "fit with a checkpoint behind something that is committed")
    return found


def events(root: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in Experiment(root, "faults").events() if event["event"] in kinds]


def computed_once(root: Path, fits: int = 3) -> bool:
    """No fit was finished twice, and so many were finished."""
    return [event["event"] for event in events(root, "fit_committed", "fit_discarded")] == [
        "fit_committed"
    ] * fits


def stopped(root: Path) -> set[str]:
    """Fits that have a checkpoint, and are not finished."""
    return {path.parts[-3] for path in checkpoints(root)} - {path.name for path in root.glob("fits/*")}


def checkpoints(root: Path) -> list[Path]:
    while True:
        try:
            return list(root.glob("work/*/*/checkpoint-*"))
        except FileNotFoundError:  # a fit was committed, and its workplace removed, while it was looked into
            continue


def resumed(root: Path) -> set[str]:
    """Fits that went on from a checkpoint."""
    return {event["fit"] for event in events(root, "resumed")}


def going_on(root: Path) -> set[str]:
    """Fits that have gone on from a checkpoint, and are not finished."""
    return resumed(root) & stopped(root)
