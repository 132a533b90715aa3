"""Grids on a real SLURM of three machines: both shapes, what they leave behind, and what is refused."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, harness
from slurm_cluster import Cluster
from slurm_jobs import TWO_NODES, Study, computed_once, export, logs, written

pytest_plugins = ("slurm_jobs",)
pytestmark = [pytest.mark.slurm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]

SHORTER = (
    "learner.train.epochs=1",
    "data.num_examples=160",
    "evaluate.prompts=2",
    "generations=1",
    "grid={learner.sample.temperature: [1.0, 0.7]}",
)
QUICK = tuple(word for assignment in SHORTER for word in ("--set", assignment))
"""The quickstart with shorter fits and chains, and one axis of its grid."""


# --- the two shapes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quickstart(folder: Path) -> Study:
    config, root = ROOT / "configs" / "quickstart.yaml", folder / "quickstart-alone"
    done = harness("run", config, "--root", root, *QUICK, timeout=400)
    assert done.returncode == 0, done.stderr
    return Study(config, export(config, root, *QUICK), root)


def test_one_allocation_of_two_nodes(cluster: Cluster, quickstart: Study, submit: Any, root: Path) -> None:
    job = submit(quickstart.config, *QUICK, *TWO_NODES)
    cluster.wait_job(job, "COMPLETED", timeout=500)
    assert export(quickstart.config, root, *QUICK) == quickstart.expected
    found = json.loads(cluster.harness("status", quickstart.config, "--root", root, *QUICK, "--json").stdout)
    assert [(task["job"], task["state"], task["requeues"]) for task in found["jobs"]] == [
        (job, "COMPLETED", 0)
    ]
    hosts = {row["provenance/host"] for row in json.loads(exported_provenance(quickstart.config, root))}
    assert hosts == {"n1", "n2"}, "both nodes should have computed"


def exported_provenance(config: Path, root: Path) -> str:
    return harness("export", config, "--root", root, "--format", "json", "--provenance", *QUICK).stdout


def test_an_array_of_allocations(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    alone = ("--array", 2, "--cpus-per-node", 1, "--time", 30, "--no-look", "--sbatch=--export=NONE")
    job = submit(faults.config, *alone)
    for task in range(2):
        cluster.wait_job(f"{job}_{task}", "COMPLETED", timeout=500)
    assert export(faults.config, root) == faults.expected
    coordinators = {json.loads(line)["coordinator"] for path in root.glob("experiments/*/events*.jsonl")
                    for line in path.read_text().splitlines() if '"run_started"' in line}  # fmt: skip
    assert len(coordinators) == 2, "every task should have its own coordinator"


def test_parts_of_a_grid_in_arrays_of_their_own(
    cluster: Cluster, sound: Study, submit: Any, root: Path
) -> None:
    """As sizes of a model that need different nodes would be."""
    options = ("--cpus-per-node", 1, "--time", 30, "--no-look", "--array")
    first = submit(sound.config, "--set", "regime.synthetic_ratio=0.5", *options, 2)
    second = submit(sound.config, "--set", "regime.synthetic_ratio=1.0", "--join", *options, 1)
    for task in (f"{first}_0", f"{first}_1", f"{second}_0"):
        cluster.wait_job(task, "COMPLETED", timeout=300)
    assert export(sound.config, root) == sound.expected
    assert computed_once(root), "generation 0 belongs to both"
    found = json.loads(cluster.harness("status", sound.config, "--root", root, "--json").stdout)
    assert {task["job"].partition("_")[0] for task in found["jobs"]} == {first, second}
    assert all(chain["state"] == "complete" for chain in found["chains"])
    known = json.loads((root / "experiments" / "faults" / "chains.json").read_text())
    assert {chain["chain"] for chain in found["chains"]} == {entry["chain"] for entry in known}


def test_what_is_complete_ends_quickly(cluster: Cluster, sound: Study, submit: Any, root: Path) -> None:
    shutil.copytree(sound.root, root)
    job = submit(sound.config, "--array", 3, "--cpus-per-node", 1, "--no-look")
    for task in range(3):
        cluster.wait_job(f"{job}_{task}", "COMPLETED", timeout=60)
    assert not list(root.glob("experiments/*/slurm/run/*/ray-*.log")), (
        "no Ray is needed to see that all is there"
    )


# --- a gang over two nodes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wide(folder: Path) -> Path:
    resources = {"ranks": 2, "zero_stage": 3, "sample_batch": 32}
    return written(folder / "wide.yaml", experiment="wide", generations=1, resources=resources)


def test_a_gang_across_nodes(cluster: Cluster, wide: Path, submit: Any, root: Path, folder: Path) -> None:
    """Two ranks of ZeRO-3 on gloo, one CPU on each node: equal to two ranks on one machine."""
    alone = harness("run", wide, "--root", folder / "wide-alone", timeout=300)
    assert alone.returncode == 0, alone.stderr
    job = submit(wide, "--nodes", 2, "--cpus-per-node", 1, "--time", 30, "--no-look")
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(wide, root) == export(wide, folder / "wide-alone")
    ranks = [path for path in root.glob("experiments/wide/logs/gang-*")]
    assert len(ranks) == 2


# --- bad input ----------------------------------------------------------------------------------------------


def refused(done: Any, *texts: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr


@pytest.mark.parametrize(
    "arguments, texts",
    [
        (("--partition", "mian"), ("--partition: 'mian' does not exist; did you mean main?",)),
        (
            ("--partition", "physics", "--account", "biology"),
            ("--account: 'biology'", "SLURM refuses the job"),
        ),
        (("--nodes", 7), ("--nodes: 7 nodes asked for, partition main has 3",)),
        (("--cpus-per-node", 64), ("--cpus-per-node: 64 CPUs a node asked for, partition main has 4",)),
        (
            ("--gpus-per-node", 3, "--cpus-per-node", 3),
            ("--gpus-per-node: 3 GPUs a node asked for, partition main has 2",),
        ),
        (("--mem", "99G"), ("--mem: 101376 MiB a node asked for, partition main has 8000",)),
        (("--time", "1"), ("--time: 0:01:00 is too short", "resources.checkpoint_s")),
        (("--time", "soon"), ("--time: found 'soon', allowed: MINUTES",)),
        (
            ("--partition", "short", "--time", "20"),
            ("--time: 20 is more than partition short allows (0:10:00)",),
        ),
        (
            ("--set", "resources.ranks=8", "--nodes", 1, "--array", 2, "--cpus-per-node", 4),
            ("a gang has 8 ranks", "each task of the array"),
        ),
        (("--array", "0"), ("--array: found '0', allowed: a number of tasks",)),
        (("--partition", "a;reboot"), ("--partition: found 'a;reboot', allowed: one word",)),
        (("--dependency", "sometime:12"), ("--dependency: 'sometime:12'", "SLURM refuses the job")),
        (("--site", "nowhere.yaml"), ("--site: nowhere.yaml does not exist",)),
    ],
)
def test_what_cannot_work_is_refused(
    cluster: Cluster, wide: Path, root: Path, arguments: Any, texts: Any
) -> None:
    refused(cluster.harness("submit", wide, "--root", root, "--no-look", *arguments), *texts)
    assert not list(root.glob("experiments/*/slurm/*/job.sh")), (
        "nothing stays of a submission that was refused"
    )


def test_not_a_slurm_machine(sound: Study, tmp_path: Path) -> None:
    for command in (["submit", sound.config], ["cancel", sound.config]):
        done = harness(*command, "--root", tmp_path, PATH=str(tmp_path))
        refused(done, "this is not a SLURM machine: there is no s", "run this on the cluster's login node")
    done = harness("run", sound.config, "--root", tmp_path, "--slurm")
    refused(done, "--slurm: this is not inside a SLURM allocation")


def test_a_run_in_an_interactive_allocation(cluster: Cluster, sound: Study, root: Path) -> None:
    """By hand: where salloc leaves the shell on the login node, the run says where to go; there it uses all
    of the allocation."""
    run = (sys.executable, "-m", "harness", "run", sound.config, "--root", root, "--slurm")
    options = ("salloc", "--quiet", "-N2", "--cpus-per-task=2", "--ntasks-per-node=1")
    refused(
        cluster.login(*options, *run, check=False, PYTHONPATH=str(ROOT)),
        "this is no node of the allocation",
        "go there: srun",
    )
    done = cluster.login(*options, "srun", "-N1", "-n1", "--overlap", *run, timeout=240, PYTHONPATH=str(ROOT))
    assert "chains complete: 2" in done.stdout
    assert export(sound.config, root) == sound.expected


def test_a_root_that_nodes_do_not_see(cluster: Cluster, sound: Study) -> None:
    # each machine has a /tmp of its own, the login node this machine's
    hidden = Path("/tmp/harness-hidden-root")
    try:
        done = cluster.harness("submit", sound.config, "--root", hidden)
        refused(done, "--root: node n", f"does not see {hidden / 'experiments' / 'faults'}")
        assert not list(hidden.glob("experiments/*/slurm/*/job.sh"))
        job = json.loads(
            cluster.harness("submit", sound.config, "--root", hidden, "--no-look", "--json").stdout
        )["job"]
        cluster.wait(lambda: cluster.jobs()[job] == "FAILED", 60, "job that could not even write its log")
        said = " ".join(cluster.harness("status", sound.config, "--root", hidden).stdout.split())
        assert "do the compute nodes see" in said
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def test_no_machine_is_free_to_look(cluster: Cluster, sound: Study, root: Path) -> None:
    busy = cluster.login(
        "sbatch", "--parsable", "-N3", "-c4", "--wrap", "sleep 300", "-o", "/dev/null"
    ).stdout.strip()
    cluster.wait_job(busy, "RUNNING")
    done = cluster.harness("submit", sound.config, "--root", root, *TWO_NODES[:-1], "--json")
    assert done.returncode == 0, done.stderr
    submitted = json.loads(done.stdout)
    cluster.login("scancel", busy, submitted["job"])
    (remark,) = [remark for remark in submitted["remarks"] if "has looked" in remark]
    assert f"whether it sees {root} (" in remark and remark.endswith("); the job itself will")


def test_a_second_submission(cluster: Cluster, sound: Study, submit: Any, root: Path) -> None:
    first = submit(sound.config, *TWO_NODES)
    refused(
        cluster.harness("submit", sound.config, "--root", root, *TWO_NODES),
        f"has jobs already: {first}",
        "--join",
    )
    second = submit(sound.config, "--join", "--array", 1, "--cpus-per-node", 1, "--time", 30, "--no-look")
    cluster.wait_job(first, "COMPLETED", timeout=240)
    cluster.wait_job(f"{second}_0", "COMPLETED", timeout=120)
    assert export(sound.config, root) == sound.expected
    assert computed_once(root)


def test_gpus_that_are_not_there(cluster: Cluster, wide: Path, submit: Any, root: Path) -> None:
    """SLURM hands out device files without a device: the run must not quietly compute on CPUs."""
    job = submit(wide, "--gpus-per-node", 2, "--cpus-per-node", 2, "--time", 30, "--no-look")
    cluster.wait_job(job, "FAILED", timeout=120)
    assert "torch finds no GPU" in logs(root, job) and "harness doctor" in logs(root, job)
