"""What can happen to jobs on a real SLURM, made to happen: the same results as one machine alone, and nothing
left behind."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import unlabelled
from slurm_cluster import Cluster
from slurm_jobs import (
    FAULTS,
    TWO_NODES,
    Study,
    clean,
    computed_once,
    events,
    export,
    first_node,
    going_on,
    logs,
    mid_run,
    resumed,
    stopped,
    written,
)

pytest_plugins = ("slurm_jobs",)
HELPERS = ("monitor.py", "dashboard.py", "ray.util.client.server")
"""Of Ray, which nobody needs here; the last would listen at a port that two jobs on one node cannot share."""
pytestmark = [pytest.mark.slurm, pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1500)]


def test_power_off(cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path) -> None:
    job = submit(faults.config, *TWO_NODES)
    lost = mid_run(cluster, root, "n2")
    cluster.poweroff("n2")
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 120, "requeued job")
    unfinished = stopped(root)
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert lost | unfinished <= resumed(root)
    assert computed_once(root, 2)


def test_power_off_of_the_first_node(
    cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path
) -> None:
    """The coordinator and Ray's head go down with it."""
    job = submit(faults.config, *TWO_NODES)
    mid_run(cluster, root)
    commands = cluster.processes("n1")
    assert any("gcs_server" in line for line in commands)
    assert not any(helper in line for helper in HELPERS for line in commands)
    modes = cluster.on("n1", "sh", "-c", "stat -c %a /tmp/h*-*").stdout.split()
    assert modes and set(modes) == {"700"}, "Ray makes what lies within writable for all"
    cluster.poweroff("n1")
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 120, "requeued job")
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert computed_once(root, 2)


def urgent(cluster: Cluster) -> str:
    """A job of somebody else, with a higher priority, that needs all machines for a while."""
    return cluster.login(
        "sbatch", "--parsable", "-p", "main", "-N3", "-c4", "--wrap", "sleep 3", "-o", "/dev/null"
    ).stdout.strip()


def test_preemption(cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path) -> None:
    job = submit(faults.config, *TWO_NODES, "--partition", "low")
    mid_run(cluster, root)
    other = urgent(cluster)
    cluster.wait_job(other, "COMPLETED", timeout=60)
    machines = ["n1", "n2", "n3"]
    clean(cluster, machines)
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert "ended by SLURM" in logs(root, job)


def test_preemption_with_grace_saves_first(
    cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path
) -> None:
    job = submit(faults.config, *TWO_NODES, "--partition", "grace")
    lost = mid_run(cluster, root)
    other = urgent(cluster)
    cluster.wait_job(other, "COMPLETED", timeout=90)
    unfinished, done = stopped(root), {path.name for path in root.glob("fits/*")}
    cluster.now(job)
    cluster.wait_job(job, "COMPLETED", timeout=240)
    assert export(faults.config, root) == faults.expected
    assert "requeued (1 of at most 50)" in logs(root, job)
    assert (lost - done) | unfinished <= resumed(root) and lost - done


def test_a_signal_before_anybody_listens(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """Preempted while the script still makes the environment: by itself USR1 would end the job for good."""
    job = submit(faults.config, *TWO_NODES, "--partition", "grace", "--setup", "sleep 6")
    cluster.wait_job(job, "RUNNING")
    other = urgent(cluster)
    cluster.wait_job(other, "COMPLETED", timeout=90)
    assert "requeued (1 of at most 50)" in logs(root, job)
    assert not list(root.glob("evaluations/*")), "nothing was begun in vain"
    cluster.now(job)
    cluster.wait_job(job, "RUNNING")


def test_a_run_that_hangs_at_the_limit_and_a_cancel(
    cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path
) -> None:
    job = submit(faults.config, *TWO_NODES, "--signal-s", 12)
    mid_run(cluster, root)
    cluster.on(first_node(cluster, job), "pkill", "-STOP", "-f", "^[^ ]+ -P -m harness run")
    cluster.login("scancel", "--batch", "--signal=USR1", job)  # as SLURM does before the limit
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 60, "requeued job")
    assert "the run was killed (exit code -9); requeued (1 of" in logs(root, job)
    at = time.monotonic()
    done = cluster.harness("cancel", faults.config, "--root", root, "--json")
    assert json.loads(done.stdout) == {"cancelled": [job]} and time.monotonic() - at < 30
    cluster.wait_job(job, "CANCELLED")
    assert cluster.harness("cancel", faults.config, "--root", root).returncode == 0, (
        "there is nothing left to cancel"
    )


def test_a_task_of_an_array_loses_its_machine(
    cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path
) -> None:
    """The others take its work over after its lease, and end; when it comes back, nothing is left to do."""
    # A machine that is taken as a whole comes with its GPUs, here device files without a device.
    resources = FAULTS["resources"] | {"lease_s": 3.0, "gpus_per_rank": 0}
    config = written(
        faults.config.parent / "array.yaml",
        unlabelled(faults.config.parent),
        **FAULTS | {"resources": resources},
    )
    job = submit(config, "--array", 3, "--cpus-per-node", 2, "--exclusive", "--time", 30, "--no-look")
    lost = mid_run(cluster, root)
    host = next(event["host"] for event in reversed(events(root, "fit_started")) if event["fit"] in lost)
    task = next(name for name, where in placed(cluster, job).items() if where == host)
    cluster.poweroff(host)
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
    # what is left until the signal is not enough, the first time, however fast the machine is
    slow = folder / "slow-once"
    setup = f"[ -e {slow} ] || {{ touch {slow}; sleep 50; }}"
    job = submit(
        faults.config, "--cpus-per-node", 1, "--time", 2, "--signal-s", 58, "--setup", setup, "--no-look"
    )
    cluster.wait_job(job, "RUNNING")
    cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 200, "requeued job")
    assert "requeued (1 of at most 50)" in logs(root, job)
    status = cluster.harness("status", faults.config, "--root", root).stdout
    assert "BeginTime, not before" in status
    for _ in range(5):
        cluster.now(job)
        cluster.wait_job(job, "RUNNING", "COMPLETED")
        if cluster.wait(
            lambda: {"PENDING", "COMPLETED", "FAILED"} & {cluster.jobs()[job]}, 200, "end of a run"
        ) != {"PENDING"}:
            break
    cluster.wait_job(job, "COMPLETED")
    assert export(faults.config, root) == faults.expected


def test_cancelled_and_submitted_again(
    cluster: Cluster, faults: Study, submit: Any, root: Path, begun: Path
) -> None:
    """By `harness cancel`, which has the job save and not requeue; then by scancel alone. The next job must
    learn each time that the one before is over, or wait for leases of 300 s."""
    first = submit(faults.config, *TWO_NODES)
    lost = mid_run(cluster, root)
    done = cluster.harness("cancel", faults.config, "--root", root, "--json")
    assert json.loads(done.stdout) == {"cancelled": [first]}
    cluster.wait_job(first, "CANCELLED", timeout=60)
    assert "cancelled, so it is not requeued" in logs(root, first)
    unfinished, done = stopped(root), {path.name for path in root.glob("fits/*")}
    second = submit(faults.config, *TWO_NODES)
    cluster.wait(lambda: going_on(root), 90, "fit that goes on")
    cluster.login("scancel", second)
    cluster.wait_job(second, "CANCELLED", timeout=60)
    assert stopped(root), "it was cut"
    third = submit(faults.config, *TWO_NODES)
    cluster.wait_job(third, "COMPLETED", timeout=200)
    assert export(faults.config, root) == faults.expected
    assert (lost - done) | unfinished <= resumed(root) and lost - done
    assert "no jobs that wait or run" in cluster.harness("cancel", faults.config, "--root", root).stdout


def test_the_coordinator_is_killed(cluster: Cluster, faults: Study, submit: Any, root: Path) -> None:
    """The run's own process dies without a word: its job cleans up and requeues, but not for ever."""
    job = submit(faults.config, *TWO_NODES)
    machines = ["n1", "n2", "n3"]

    def ranks() -> str:
        return cluster.on(first_node(cluster, job), "pgrep", "-f", "ray::", check=False).stdout

    for attempt in range(3):
        cluster.wait_job(job, "RUNNING")
        cluster.wait(ranks, 60, "Ray at work")
        cluster.on(first_node(cluster, job), "pkill", "-9", "-f", "^[^ ]+ -P -m harness run")
        if attempt < 2:
            cluster.wait(lambda: cluster.jobs()[job] == "PENDING", 60, "requeued job")
            clean(cluster, machines)
            cluster.now(job)
    cluster.wait_job(job, "FAILED", timeout=60)
    text = logs(root, job)
    assert text.count("the run was killed (exit code -9); requeued") == 2 and "3 short runs in a row" in text
