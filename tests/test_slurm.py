"""Grids on a real SLURM of three machines: both shapes, everything that can happen to a job, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, TEXT, harness, merged
from slurm_cluster import Cluster

from harness.store import Experiment

pytestmark = [pytest.mark.slurm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

QUICK = ("--set", "learner.train.epochs=1", "--set", "data.num_examples=900", "--set", "evaluate.prompts=2")
"""The quickstart's grid with shorter fits."""
FAULTS: dict[str, Any] = {
    "experiment": "faults",
    "generations": 1,
    "grid": {"seed": [0, 1], "regime.synthetic_ratio": [0.5, 1.0]},
    "learner.train": {"epochs": 120, "batch_size": 8, "learning_rate": 3e-3},
    "resources": {"sample_batch": 32, "checkpoint_s": 0.5, "lease_s": 300.0, "grace_s": 10.0},
}
"""Fits of several seconds; a lease that nobody could wait for, so a requeued job goes on at once or not in time."""
TWO_NODES = ("--nodes", 2, "--cpus-per-node", 2, "--time", 30, "--no-look")


def export(config: Path, root: Path, *assignments: str) -> bytes:
    done = harness("export", config, "--root", root, "--format", "csv", *assignments)
    assert done.returncode == 0, done.stderr
    return done.stdout.encode()


@pytest.fixture(scope="module")
def folder(cluster: Cluster) -> Path:
    made = cluster.base / "work"
    made.mkdir()
    return made


def written(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(merged(TEXT, changes), sort_keys=False))
    return path


@dataclass
class Study:
    """A configuration on the cluster's file system, and what a run of it on this machine alone exports."""

    config: Path
    expected: bytes


@pytest.fixture(scope="module")
def faults(folder: Path) -> Study:
    config, root = written(folder / "faults.yaml", **FAULTS), folder / "alone"
    done = harness("run", config, "--root", root, timeout=300)
    assert done.returncode == 0, done.stderr
    return Study(config, export(config, root))


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
    cluster.wait(lambda: not any(cluster.leftovers(name) for name in machines), 10, f"clean machines; {clutter(cluster, machines)}")
    shutil.rmtree(made, ignore_errors=True)


def clutter(cluster: Cluster, machines: list[str]) -> dict[str, list[str]]:
    return {name: cluster.leftovers(name) for name in machines}


@pytest.fixture
def submit(cluster: Cluster, root: Path) -> Callable[..., str]:
    def send(config: Path, *arguments: object) -> str:
        done = cluster.harness("submit", config, "--root", root, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["job"])

    return send


def logs(root: Path, job: str) -> str:
    return "\n".join(path.read_text() for path in root.glob(f"experiments/*/slurm/*/{job}*.log"))


def first_node(cluster: Cluster, job: str) -> str:
    """Where the job's own process and its run are."""
    return cluster.login("squeue", "-h", "-j", job, "-o", "%B").stdout.strip()


def mid_run(cluster: Cluster, root: Path, host: str = "") -> set[str]:
    """Wait until something is committed, and a fit (of one machine) has a checkpoint and still some way to go; returns such fits.

    Whatever happens to them next, they must go on from there.
    """
    steps = FAULTS["learner.train"]["epochs"] * TEXT["data"]["num_examples"] / FAULTS["learner.train"]["batch_size"]

    def under_way() -> set[str]:
        if not any(root.glob("evaluations/*")):
            return set()
        here = {event["fit"] for event in events(root, "fit_started") if event["host"] == (host or event["host"])}
        early = {path.parts[-3] for path in checkpoints(root) if int(path.name.rpartition("-")[2]) < 0.4 * steps}
        return early & here & stopped(root)

    found: set[str] = cluster.wait(under_way, 90, "fit with a checkpoint behind something that is committed")
    return found


# --- the two shapes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quickstart(folder: Path) -> Study:
    config, root = ROOT / "configs" / "quickstart.yaml", folder / "quickstart-alone"
    done = harness("run", config, "--root", root, *QUICK, timeout=400)
    assert done.returncode == 0, done.stderr
    return Study(config, export(config, root, *QUICK))


def test_one_allocation_of_two_nodes(cluster: Cluster, quickstart: Study, submit: Any, root: Path) -> None:
    job = submit(quickstart.config, *QUICK, *TWO_NODES)
    cluster.wait_job(job, "COMPLETED", timeout=500)
    assert export(quickstart.config, root, *QUICK) == quickstart.expected
    found = json.loads(cluster.harness("status", quickstart.config, "--root", root, *QUICK, "--json").stdout)
    assert [(task["job"], task["state"], task["requeues"]) for task in found["jobs"]] == [(job, "COMPLETED", 0)]
    hosts = {row["provenance/host"] for row in json.loads(exported_provenance(quickstart.config, root))}
    assert hosts == {"n1", "n2"}, "both nodes should have computed"


def exported_provenance(config: Path, root: Path) -> str:
    return harness("export", config, "--root", root, "--format", "json", "--provenance", *QUICK).stdout


def test_an_array_of_allocations(cluster: Cluster, quickstart: Study, submit: Any, root: Path) -> None:
    alone = ("--array", 3, "--cpus-per-node", 1, "--time", 30, "--no-look", "--sbatch=--export=NONE")
    job = submit(quickstart.config, *QUICK, *alone)
    for task in range(3):
        cluster.wait_job(f"{job}_{task}", "COMPLETED", timeout=500)
    assert export(quickstart.config, root, *QUICK) == quickstart.expected
    coordinators = {json.loads(line)["coordinator"] for path in root.glob("experiments/*/events*.jsonl")
                    for line in path.read_text().splitlines() if '"run_started"' in line}  # fmt: skip
    assert len(coordinators) == 3, "every task should have its own coordinator"


def test_parts_of_a_grid_in_arrays_of_their_own(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """As sizes of a model that need different nodes would be."""
    options = ("--cpus-per-node", 1, "--time", 30, "--no-look", "--array", 2)
    first = submit(faults.config, "--set", "regime.synthetic_ratio=0.5", *options)
    second = submit(faults.config, "--set", "regime.synthetic_ratio=1.0", "--join", *options)
    for task in (f"{first}_0", f"{first}_1", f"{second}_0", f"{second}_1"):
        cluster.wait_job(task, "COMPLETED", timeout=300)
    assert export(faults.config, root) == faults.expected
    assert computed_once(root), "generation 0 belongs to both"
    found = json.loads(cluster.harness("status", faults.config, "--root", root, "--json").stdout)
    assert {task["job"].partition("_")[0] for task in found["jobs"]} == {first, second}
    assert all(chain["state"] == "complete" for chain in found["chains"])
    known = json.loads((root / "experiments" / "faults" / "chains.json").read_text())
    assert {chain["chain"] for chain in found["chains"]} == {entry["chain"] for entry in known}


def test_what_is_complete_ends_quickly(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    shutil.copytree(faults.config.parent / "alone", root)
    job = submit(faults.config, "--array", 3, "--cpus-per-node", 1, "--no-look")
    for task in range(3):
        cluster.wait_job(f"{job}_{task}", "COMPLETED", timeout=60)
    assert not list(root.glob("experiments/*/slurm/run/*/ray-*.log")), "no Ray is needed to see that all is there"


# --- what happens to jobs ----------------------------------------------------------------------------------------------


def test_power_off(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    job = submit(faults.config, *TWO_NODES)
    lost = mid_run(cluster, root, "n2")
    cluster.poweroff("n2")
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 120, "requeued job")
    unfinished = stopped(root)
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert lost | unfinished <= resumed(root)
    assert computed_once(root)


def test_power_off_of_the_first_node(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """The coordinator and Ray's head go down with it."""
    job = submit(faults.config, *TWO_NODES)
    mid_run(cluster, root)
    cluster.poweroff("n1")
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 120, "requeued job")
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert computed_once(root)


def events(root: Path, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in Experiment(root, "faults").events() if event["event"] in kinds]


def computed_once(root: Path) -> bool:
    """No fit was finished twice."""
    return [event["event"] for event in events(root, "fit_committed", "fit_discarded")] == ["fit_committed"] * 6


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


def urgent(cluster: Cluster) -> str:
    """A job of somebody else, with a higher priority, that needs all machines for a while."""
    return cluster.login("sbatch", "--parsable", "-p", "main", "-N3", "-c4", "--wrap", "sleep 3", "-o", "/dev/null").stdout.strip()


def test_preemption(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    job = submit(faults.config, *TWO_NODES, "--partition", "low")
    mid_run(cluster, root)
    other = urgent(cluster)
    cluster.wait_job(other, "COMPLETED", timeout=60)
    machines = ["n1", "n2", "n3"]
    cluster.wait(lambda: not any(clutter(cluster, machines).values()), 10, f"clean machines; {clutter(cluster, machines)}")
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert "ended by SLURM" in logs(root, job)


def test_preemption_with_grace_saves_first(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    job = submit(faults.config, *TWO_NODES, "--partition", "grace")
    begun = mid_run(cluster, root)
    other = urgent(cluster)
    cluster.wait_job(other, "COMPLETED", timeout=90)
    unfinished, done = stopped(root), {path.name for path in root.glob("fits/*")}
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert "requeued (1 of at most 50)" in logs(root, job)
    assert (begun - done) | unfinished <= resumed(root) and begun - done


def test_a_signal_before_anybody_listens(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """Preempted while the script still makes the environment: by itself USR1 would end the job for good."""
    job = submit(faults.config, *TWO_NODES, "--partition", "grace", "--setup", "sleep 6")
    cluster.wait_job(job, "RUNNING", timeout=30)
    other = urgent(cluster)
    cluster.wait_job(other, "COMPLETED", timeout=90)
    assert "requeued (1 of at most 50)" in logs(root, job)
    assert not list(root.glob("evaluations/*")), "nothing was begun in vain"
    cluster.now(job)
    cluster.wait_job(job, "RUNNING", timeout=30)


def test_a_run_that_hangs_at_the_limit_and_cancel_while_it_waits(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    job = submit(faults.config, *TWO_NODES, "--signal-s", 12)
    mid_run(cluster, root)
    cluster.on(first_node(cluster, job), "pkill", "-STOP", "-f", "^[^ ]+ -m harness run")
    cluster.login("scancel", "--batch", "--signal=USR1", job)  # as SLURM does before the limit
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 60, "requeued job")
    assert "the run was killed (exit code -9); requeued (1 of" in logs(root, job)
    at = time.monotonic()
    done = cluster.harness("cancel", faults.config, "--root", root, "--json")
    assert json.loads(done.stdout) == {"cancelled": [job]} and time.monotonic() - at < 30
    cluster.wait_job(job, "CANCELLED", timeout=30)
    assert cluster.harness("cancel", faults.config, "--root", root).returncode == 0, "there is nothing left to cancel"


def test_a_task_of_an_array_loses_its_machine(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """The others take its work over after its lease, and end; when it comes back, nothing is left to do."""
    # A machine that is taken as a whole comes with its GPUs, here device files without a device.
    changes = {"resources.lease_s": 3.0, "resources.gpus_per_rank": 0}
    config = written(faults.config.parent / "array.yaml", **merged(FAULTS, changes))
    job = submit(config, "--array", 3, "--cpus-per-node", 2, "--exclusive", "--time", 30, "--no-look")
    mid_run(cluster, root)
    task = next(name for name, where in placed(cluster, job).items() if where == "n2")
    cluster.poweroff("n2")
    for other in range(3):
        if f"{job}_{other}" != task:
            cluster.wait_job(f"{job}_{other}", "COMPLETED", timeout=300)
    assert export(config, root) == faults.expected
    cluster.wait(lambda: cluster.jobs()[task] == "PENDING", 60, "requeued task")
    cluster.now(task)
    cluster.wait_job(task, "COMPLETED", timeout=60)


def placed(cluster: Cluster, job: str) -> dict[str, str]:
    lines = cluster.login("squeue", "-h", "-r", "-t", "R", "-j", job, "-o", "%i %N").stdout.splitlines()
    return dict(line.split() for line in lines)


def test_the_time_limit(cluster: Cluster, faults: Study, submit: Any, root: Path, folder: Path) -> None:
    slow = folder / "slow-once"  # what is left until the signal is not enough, the first time, however fast the machine is
    setup = f"[ -e {slow} ] || {{ touch {slow}; sleep 47; }}"
    job = submit(faults.config, "--cpus-per-node", 1, "--time", 2, "--signal-s", 58, "--setup", setup, "--no-look")
    cluster.wait_job(job, "RUNNING", timeout=30)
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 200, "requeued job")
    assert "requeued (1 of at most 50)" in logs(root, job)
    status = cluster.harness("status", faults.config, "--root", root).stdout
    assert "BeginTime, not before" in status
    for _ in range(5):
        cluster.now(job)
        cluster.wait_job(job, "RUNNING", "COMPLETED", timeout=30)
        if cluster.wait(lambda: {"PENDING", "COMPLETED", "FAILED"} & {cluster.jobs()[job]}, 200, "end of a run") != {"PENDING"}:
            break
    cluster.wait_job(job, "COMPLETED", timeout=30)
    assert export(faults.config, root) == faults.expected


def test_scancel_and_submit_again(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    first = submit(faults.config, *TWO_NODES)
    mid_run(cluster, root)
    cluster.login("scancel", first)
    cluster.wait_job(first, "CANCELLED", timeout=60)
    second = submit(faults.config, *TWO_NODES)  # another job: it must learn that the first is over, or wait for leases of 300 s
    cluster.wait_job(second, "COMPLETED", timeout=200)
    assert export(faults.config, root) == faults.expected


def test_cancel_saves_and_does_not_requeue(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    first = submit(faults.config, *TWO_NODES)
    begun = mid_run(cluster, root)
    done = cluster.harness("cancel", faults.config, "--root", root, "--json")
    assert json.loads(done.stdout) == {"cancelled": [first]}
    cluster.wait_job(first, "CANCELLED", timeout=60)
    assert "cancelled, so it is not requeued" in logs(root, first)
    unfinished, done = stopped(root), {path.name for path in root.glob("fits/*")}
    second = submit(faults.config, *TWO_NODES)
    cluster.wait_job(second, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert (begun - done) | unfinished <= resumed(root) and begun - done
    assert "no jobs that wait or run" in cluster.harness("cancel", faults.config, "--root", root).stdout


def test_the_coordinator_is_killed(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """The run's own process dies without a word: its job cleans up and requeues, but not for ever."""
    job = submit(faults.config, *TWO_NODES)
    machines = ["n1", "n2", "n3"]

    def ranks() -> str:
        return cluster.on(first_node(cluster, job), "pgrep", "-f", "ray::", check=False).stdout

    for attempt in range(3):
        cluster.wait_job(job, "RUNNING", timeout=30)
        cluster.wait(ranks, 60, "Ray at work")
        cluster.on(first_node(cluster, job), "pkill", "-9", "-f", "^[^ ]+ -m harness run")
        if attempt < 2:
            cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 60, "requeued job")
            cluster.wait(lambda: not any(clutter(cluster, machines).values()), 10, f"clean machines; {clutter(cluster, machines)}")
            cluster.now(job)
    cluster.wait_job(job, "FAILED", timeout=60)
    text = logs(root, job)
    assert text.count("the run was killed (exit code -9); requeued") == 2 and "3 short runs in a row" in text


# --- a gang over two nodes ---------------------------------------------------------------------------------------------


def test_a_gang_across_nodes(cluster: Cluster, folder: Path, submit: Any, root: Path) -> None:
    """Two ranks of ZeRO-3 on gloo, one CPU on each node: equal to two ranks on one machine."""
    changes = {"experiment": "wide", "generations": 1, "resources": {"ranks": 2, "zero_stage": 3, "sample_batch": 32}}
    config = written(folder / "wide.yaml", **changes)
    alone = harness("run", config, "--root", folder / "wide-alone", timeout=300)
    assert alone.returncode == 0, alone.stderr
    job = submit(config, "--nodes", 2, "--cpus-per-node", 1, "--time", 30, "--no-look")
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(config, root) == export(config, folder / "wide-alone")
    ranks = [path for path in root.glob("experiments/wide/logs/gang-*")]
    assert len(ranks) == 2


# --- bad input ---------------------------------------------------------------------------------------------------------


def refused(done: Any, *texts: str) -> None:
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    for text in texts:
        assert text in done.stderr, done.stderr


@pytest.mark.parametrize(
    "arguments, texts",
    [
        (("--partition", "mian"), ("--partition: 'mian' does not exist; did you mean main?",)),
        (("--partition", "physics", "--account", "biology"), ("--account: 'biology'", "SLURM refuses the job")),
        (("--nodes", 7), ("--nodes: 7 nodes asked for, partition main has 3",)),
        (("--cpus-per-node", 64), ("--cpus-per-node: 64 CPUs a node asked for, partition main has 4",)),
        (("--gpus-per-node", 3, "--cpus-per-node", 3), ("--gpus-per-node: 3 GPUs a node asked for, partition main has 2",)),
        (("--mem", "99G"), ("--mem: 101376 MiB a node asked for, partition main has 8000",)),
        (("--time", "1"), ("--time: 0:01:00 is too short", "resources.checkpoint_s")),
        (("--time", "soon"), ("--time: found 'soon', allowed: MINUTES",)),
        (("--partition", "short", "--time", "20"), ("--time: 20 is more than partition short allows (0:10:00)",)),
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
def test_what_cannot_work_is_refused(cluster: Cluster, faults: Study, root: Path, arguments: Any, texts: Any) -> None:
    refused(cluster.harness("submit", faults.config, "--root", root, "--no-look", *arguments), *texts)
    assert not list(root.glob("experiments/*/slurm/*/job.sh")), "nothing stays of a submission that was refused"


def test_not_a_slurm_machine(faults: Study, tmp_path: Path) -> None:
    for command in (["submit", faults.config], ["cancel", faults.config]):
        done = harness(*command, "--root", tmp_path, PATH=str(tmp_path))
        refused(done, "this is not a SLURM machine: there is no s", "run this on the cluster's login node")
    done = harness("run", faults.config, "--root", tmp_path, "--slurm")
    refused(done, "--slurm: this is not inside a SLURM allocation")


def test_a_run_in_an_interactive_allocation(cluster: Cluster, faults: Study, root: Path) -> None:
    """By hand: where salloc leaves the shell on the login node, the run says where to go; there it uses all of the allocation."""
    run = (sys.executable, "-m", "harness", "run", faults.config, "--root", root, "--slurm")
    options = ("salloc", "--quiet", "-N2", "--cpus-per-task=2", "--ntasks-per-node=1")
    refused(cluster.login(*options, *run, check=False, PYTHONPATH=str(ROOT)), "this is no node of the allocation", "go there: srun")
    done = cluster.login(*options, "srun", "-N1", "-n1", "--overlap", *run, timeout=240, PYTHONPATH=str(ROOT))
    assert "chains complete: 4" in done.stdout
    assert export(faults.config, root) == faults.expected


def test_a_root_that_nodes_do_not_see(cluster: Cluster, faults: Study) -> None:
    hidden = Path("/tmp/harness-hidden-root")  # each machine has a /tmp of its own, the login node this machine's
    try:
        done = cluster.harness("submit", faults.config, "--root", hidden)
        refused(done, "--root: node n", f"does not see {hidden / 'experiments' / 'faults'}")
        assert not list(hidden.glob("experiments/*/slurm/*/job.sh"))
        job = json.loads(cluster.harness("submit", faults.config, "--root", hidden, "--no-look", "--json").stdout)["job"]
        cluster.wait(lambda: cluster.jobs()[job] == "FAILED", 60, "job that could not even write its log")
        said = " ".join(cluster.harness("status", faults.config, "--root", hidden).stdout.split())
        assert "do the compute nodes see" in said
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def test_no_machine_is_free_to_look(cluster: Cluster, faults: Study, root: Path) -> None:
    busy = cluster.login("sbatch", "--parsable", "-N3", "-c4", "--wrap", "sleep 300", "-o", "/dev/null").stdout.strip()
    cluster.wait_job(busy, "RUNNING", timeout=30)
    done = cluster.harness("submit", faults.config, "--root", root, *TWO_NODES[:-1], "--json")
    assert done.returncode == 0, done.stderr
    submitted = json.loads(done.stdout)
    cluster.login("scancel", busy, submitted["job"])
    (remark,) = [remark for remark in submitted["remarks"] if "has looked" in remark]
    assert f"whether it sees {root} (" in remark and remark.endswith("); the job itself will")


def test_a_second_submission(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    first = submit(faults.config, *TWO_NODES)
    refused(cluster.harness("submit", faults.config, "--root", root, *TWO_NODES), f"has jobs already: {first}", "--join")
    second = submit(faults.config, "--join", "--array", 2, "--cpus-per-node", 1, "--time", 30, "--no-look")
    cluster.wait_job(first, "COMPLETED", timeout=240)
    for task in range(2):
        cluster.wait_job(f"{second}_{task}", "COMPLETED", timeout=120)
    assert export(faults.config, root) == faults.expected
    assert computed_once(root)


def test_gpus_that_are_not_there(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """SLURM hands out device files without a device: the run must not quietly compute on CPUs."""
    job = submit(faults.config, "--gpus-per-node", 2, "--cpus-per-node", 2, "--time", 30, "--no-look")
    cluster.wait_job(job, "FAILED", timeout=120)
    assert "torch finds no GPU" in logs(root, job) and "harness doctor" in logs(root, job)
