"""`harness doctor` in real allocations of a SLURM of several machines, sound ones and broken ones."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT
from slurm_cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1500)]
EXPECTED = {"slurm processes", "slurm time limit", "wandb", "cpus", "memory"}
"""What the test cluster is warned of: its settings, a network without a way out, and machines that share two
cores."""
CLEAN = {"PYTHONPATH": str(ROOT), "HARNESS_TMP": "", "WANDB_API_KEY": ""}


def batch(
    cluster: Cluster, name: str, *flags: str, root: Path | None = None, before: str = "", **environment: str
) -> str:
    """Submit a job that runs the doctor; its id."""
    folder = cluster.base / name
    folder.mkdir()
    command = f"{sys.executable} -m harness doctor --json --root {root or folder / 'root'}"
    ending = f"echo $? >{folder}/rc\nmv {folder}/out.part {folder}/out\n"
    script = f"#!/bin/bash\n{before}\n{command} >{folder}/out.part 2>{folder}/err\n{ending}"
    (folder / "job.sh").write_text(script)
    done = cluster.login(
        "sbatch", "--parsable", "-o", folder / "log", *flags, folder / "job.sh", **{**CLEAN, **environment}
    )
    return done.stdout.strip()


def outcome(cluster: Cluster, name: str, timeout: float = 240) -> tuple[int, list[dict[str, Any]]]:
    """The exit code and the checks of a job."""
    folder = cluster.base / name
    cluster.wait((folder / "out").exists, timeout, f"result of {name}")
    assert "Traceback" not in (folder / "err").read_text()
    return int((folder / "rc").read_text()), json.loads((folder / "out").read_text())["checks"]


def where(checks: list[dict[str, Any]], name: str, severity: str) -> list[str]:
    return sorted(
        check["where"] for check in checks if check["name"] == name and check["severity"] == severity
    )


@pytest.fixture
def leaves_nothing(cluster: Cluster) -> Iterator[None]:
    before = {name: set(cluster.leftovers(name)) for name in ("n1", "n2", "n3")}
    yield

    def clean(name: str) -> bool:
        return set(cluster.leftovers(name)) <= before[name]

    for name in before:
        if name in cluster_machines(cluster):
            cluster.wait(partial(clean, name), 20, f"machine {name} without what the doctor left", patience=1)


def cluster_machines(cluster: Cluster) -> list[str]:
    return [path.stem for path in (cluster.base / "run").glob("n*.pid")]


@pytest.mark.parametrize(
    "flags", [["-N2", "--ntasks-per-node=2", "-c1"], ["-N1", "--array=3"]], ids=["two", "array"]
)
def test_sound_allocations(
    cluster: Cluster, leaves_nothing: None, flags: list[str], request: pytest.FixtureRequest
) -> None:
    count, name = int(flags[0][2:]), f"sound-{request.node.callspec.id}"
    batch(cluster, name, *flags)
    code, checks = outcome(cluster, name)
    assert {check["name"] for check in checks if check["severity"] != "ok"} <= EXPECTED, checks
    assert code == 0 and not [check for check in checks if check["severity"] == "failure"]
    together = {1: "n1", 2: "n1, n2"}[count]
    for each in ("libraries", "socket path", "devices", "deepspeed", "store root", "disk"):
        assert where(checks, each, "ok") == together.split(", "), each
    for once in ("ports", "communication", "clocks"):
        assert where(checks, once, "ok") == [together], once
    for shared in ("same software", "shared root", "locking"):
        assert where(checks, shared, "ok") == ([together] if count > 1 else []), shared
    ranks = max(count, 2)
    assert f"gloo, {ranks} ranks" in next(
        check["found"] for check in checks if check["name"] == "communication"
    )
    assert sorted(path.name for path in (cluster.base / name).iterdir()) == [
        "err",
        "job.sh",
        "log",
        "out",
        "rc",
    ]


def test_gpus_that_nobody_can_use_a_private_root_a_long_folder(
    cluster: Cluster, leaves_nothing: None
) -> None:
    batch(
        cluster,
        "bad",
        "-N2",
        "--gpus-per-node=2",
        root=Path("/tmp/private/root"),
        HARNESS_TMP="/tmp/" + 60 * "r",
    )
    code, checks = outcome(cluster, "bad")
    assert code == 1
    assert where(checks, "devices", "failure") == ["n1", "n2"] == where(checks, "socket path", "failure")
    for check in checks:
        if check["name"] == "devices":
            assert "SLURM has given 2 GPUs (CUDA_VISIBLE_DEVICES=0,1), torch can use 0" in check["found"]
    (shared,) = [check for check in checks if check["name"] == "shared root"]
    assert (
        shared["severity"] == "failure"
        and "n2 does not see what n1 writes" in shared["found"]
        and "mount" in shared["remedy"]
    )
    (locking,) = [check for check in checks if check["name"] == "locking"]
    assert "60 of 60 names were taken by more than one machine" in locking["found"]
    assert where(checks, "communication", "ok") == ["n1, n2"], "what is sound is said to be"


def test_a_machine_that_hangs_and_an_unwritable_root(cluster: Cluster, leaves_nothing: None) -> None:
    batch(cluster, "hang", "-N2", root=Path("/proc/nowhere"))
    stopped = cluster.wait(lambda: probes(cluster, "n2"), 60, "probe on n2")
    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    code, checks = outcome(cluster, "hang")
    assert code == 1 and where(checks, "node", "failure") == ["n2"]
    (lost,) = [check for check in checks if check["name"] == "node"]
    assert "no answer to" in lost["found"] and "--exclude" in lost["remedy"]
    assert where(checks, "store root", "failure") == ["n1"]
    assert where(checks, "communication", "ok") == ["n1"] == where(checks, "deepspeed", "ok")
    cluster.wait(lambda: not any(process.is_running() for process in stopped), 20, "end of the stopped probe")
    # What was killed could not remove its folder, if it had made one; the next probe on that machine does.
    cluster.on("n2", "sh", "-c", f"{sys.executable} -m harness.launch.doctor.probe </dev/null", **CLEAN)


def probes(cluster: Cluster, name: str) -> list[psutil.Process]:
    """The probes on a machine, as this one sees them."""
    space, found = os.readlink(f"/proc/{cluster.pid(name)}/ns/pid"), []
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            if (
                command[-1:] == ["harness.launch.doctor.probe"]
                and os.readlink(f"/proc/{process.pid}/ns/pid") == space
            ):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


POWER = """
import json, sys, time
from pathlib import Path
from harness.launch.doctor import examination, nodes
found = nodes.allocated(["n1", "n2"])
some = Path("/tmp/some/root")
some.mkdir(parents=True)
for check in examination.Examination(found, some)._root():
    print("root", json.dumps([check.name, check.severity, check.found]), flush=True)
some.rmdir()
some.parent.rmdir()
print(sorted(found.ask("clock", 10)), flush=True)
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.05)
started = time.monotonic()
twice = [sorted(found.ask("clock", 2)) for _ in range(2)]
print(*twice, found.lost, time.monotonic() - started < 15, flush=True)
print([(t.name, t.severity, t.where) for t in found.troubles], flush=True)
found.close()
Path(sys.argv[3]).touch()
"""


def test_a_root_of_some_machines_and_one_that_loses_power(cluster: Cluster, leaves_nothing: None) -> None:
    """One after the other, in one allocation."""
    folder = cluster.base / "power"
    folder.mkdir()
    (folder / "ask.py").write_text(POWER)
    asked, cut, ended = (folder / name for name in ("asked", "cut", "ended"))
    script = f"#!/bin/bash\nexec {sys.executable} {folder}/ask.py {asked} {cut} {ended}\n"
    (folder / "job.sh").write_text(script)
    cluster.login(
        "sbatch",
        "-N2",
        "-w",
        "n1,n2",
        "--no-kill",
        "--no-requeue",
        "-o",
        folder / "log",
        folder / "job.sh",
        **CLEAN,
    )
    cluster.wait(asked.exists, 60, "answer of both")
    try:
        cluster.poweroff("n2")
        cut.touch()
        cluster.wait(ended.exists, 60, "end of the examination")
    finally:
        if "n2" not in cluster_machines(cluster):
            cluster.boot("n2")
    lines = (folder / "log").read_text()
    told = [json.loads(line.removeprefix("root ")) for line in lines.splitlines() if line.startswith("root ")]
    (shared,) = [(severity, found) for name, severity, found in told if name == "shared root"]
    assert shared[0] == "failure" and "/tmp/some/root is not there on n2" in shared[1]
    assert "['n1', 'n2']\n['n1'] ['n1'] {'n2': " in lines and "True\n[('node', 'failure', 'n2')]" in lines, (
        lines
    )
    cluster.wait(lambda: cluster.idle() == cluster.nodes, 60, "machines that are idle again")


def test_an_allocation_that_is_gone_is_one_failure(cluster: Cluster) -> None:
    done = cluster.harness(
        "doctor", "--json", SLURM_JOB_ID="99999", SLURM_JOB_NODELIST="n[1-2]", cwd=cluster.base, **CLEAN
    )
    checks = json.loads(done.stdout)["checks"]
    assert done.returncode == 1 and where(checks, "node", "failure") == ["n1", "n2"], (
        done.stdout + done.stderr
    )
    assert all("Invalid job id" in check["found"] for check in checks if check["name"] == "node")


def test_a_controller_that_does_not_answer(cluster: Cluster) -> None:
    config = cluster.base / "silent.conf"
    config.write_text(
        (cluster.base / "etc" / "slurm.conf")
        .read_text()
        .replace("MessageTimeout=5", "MessageTimeout=2\nSlurmctldPort=9")
    )
    code = (
        "from harness.launch.doctor.slurm import examine; print([(c.name, c.severity, c.found) for c in "
        "examine()])"
    )
    done = cluster.login(sys.executable, "-c", code, **{**CLEAN, "SLURM_CONF": str(config)})
    assert done.stdout.startswith("[('slurm', 'failure', 'the controller does not answer"), done.stdout
