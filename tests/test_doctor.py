"""`harness doctor` on this machine: what it finds where all is well, and what it says about real faults."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import harness
from processes import tagged
from wandb_endpoint import endpoint

from harness.launch.doctor import checks, machine, network, nodes, probe, services, slurm, storage
from harness.launch.doctor.checks import Check, ChildError, clear_scratch, run, scratch
from harness.launch.doctor.examination import Examination, merged
from harness.launch.doctor.machine import judge_alike

NAMES = {
    "slurm",
    "libraries",
    "cpus",
    "memory",
    "open files",
    "socket path",
    "temporary folder",
    "shared memory",
    "devices",
    "deepspeed",
    "store root",
    "disk",
    "clocks",
    "ports",
    "communication",
    "ray",
    "wandb",
    "hub",
}


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No SLURM job around, and no settings of this machine's user."""
    for name in os.environ:
        if name.startswith(("SLURM", "WANDB", "RAY_TMPDIR", "HF_")):
            monkeypatch.delenv(name)


def only(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


@pytest.mark.slow
@pytest.mark.ray
def test_this_machine_is_fit_and_nothing_is_left_behind(tmp_path: Path, tag: str, outside: None) -> None:
    root = tmp_path / "root"
    done = harness("doctor", "--root", root, "--json", HARNESS_TEST_TAG=tag)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["failure"] == 0, done.stdout
    assert {check["name"] for check in found["checks"]} >= NAMES
    assert found["ok"] + found["warning"] == len(found["checks"])
    assert all(check["found"] and check["where"] for check in found["checks"])
    assert all(check["remedy"] for check in found["checks"] if check["severity"] != "ok")
    (step,) = [check["found"] for check in found["checks"] if check["name"] == "deepspeed"]
    assert "nothing compiled" in step
    assert not list(tmp_path.iterdir()), "the root is not made by looking"
    assert not tagged(tag)


@pytest.mark.slow
@pytest.mark.ray
def test_a_failure_is_a_line_and_an_exit_code(outside: None) -> None:
    done = harness("doctor", "--root", "/proc/nowhere")
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
    assert [
        line
        for line in lines
        if line.startswith("failure: store root: ") and "cannot be written" in line and " -> " in line
    ]
    assert [line for line in lines if line.startswith(f"ok: socket path: {platform.node()}: /tmp/hr-")]
    assert [line for line in lines if line.startswith("ok: communication: ")], "other checks go on"


# --- one machine --------------------------------------------------------------------------------------------


def test_roots_that_cannot_hold_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").touch()
    for root, why in (
        ("/proc/nowhere", "cannot be written"),
        (tmp_path / "file" / "x", "not a folder"),
        (tmp_path / "full", "not empty"),
    ):
        check = only(storage.root(str(root)), "store root")
        assert check.severity == "failure" and why in check.found and check.remedy
    good = storage.root(str(tmp_path / "full" / "new" / "root"))
    check = only(good, "store root")
    assert check.severity == "ok" and check.facts == {"above": str(tmp_path / "full")}
    assert os.listdir(tmp_path / "full") == ["letter"]


@pytest.mark.kernel
def test_a_small_disk(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        check = only(storage.root(str(tmp_path / "root")), "disk")
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
    assert check.severity == "failure" and "3 MiB are little" in check.found


def test_a_socket_may_have_107_bytes_and_the_doctor_counts_them(tmp_path: Path) -> None:
    # The longest folder that leaves room for Ray's suffix, and one byte more.
    fits = storage_folder(machine.SOCKET_BYTES - len(machine.RAY_SUFFIX))
    for folder, works in ((fits, True), (fits + "x", False)):
        path = Path(folder + machine.RAY_SUFFIX)
        path.parent.mkdir(parents=True)
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
            assert works
        except OSError:
            assert not works
        finally:
            subprocess.run(["rm", "-r", folder], check=True)
    assert machine.LONGEST_TMP <= len(fits)
    assert (
        machine.judge_folder(36 * "x").severity == "ok"
        and machine.judge_folder(37 * "x").severity == "failure"
    )


def test_a_root_that_a_group_shares(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        assert "group" not in {check.name for check in storage.root(str(tmp_path))}, "it is of one person"
        tmp_path.chmod(0o770)
        others = next(number for number in range(1, 100) if number not in {os.getegid(), *os.getgroups()})
        os.chown(tmp_path, -1, others if os.geteuid() == 0 else -1)
        check = only(storage.root(str(tmp_path)), "group")
        assert check.severity == "warning" and "umask" in check.found and "umask: '0002'" in check.remedy
        assert os.geteuid() != 0 or f"chmod g+s {tmp_path}" in check.remedy
        os.umask(0o002)
        tmp_path.chmod(0o2770)
        check = only(storage.root(str(tmp_path)), "group")
        assert (check.severity, check.remedy) == ("ok", "")
    finally:
        os.umask(before)


def storage_folder(length: int) -> str:
    return f"/tmp/{uuid.uuid4().hex}{length * 'y'}"[:length]


@pytest.mark.parametrize(
    "claimed, devices, listed, severity, said",
    [
        (None, 0, 0, "ok", "trained on CPUs"),
        (None, 0, 2, "failure", "driver lists 2 GPUs, torch can use none"),
        (2, 2, 2, "ok", "SLURM has given 2 GPUs"),
        (2, 0, 0, "failure", "SLURM has given 2 GPUs (CUDA_VISIBLE_DEVICES=0,1), torch can use 0"),
        (2, 1, 2, "failure", "torch can use 1"),
        (1, 8, 8, "warning", "torch can use 8"),
        (0, 0, 8, "ok", "no GPU"),
    ],
)
def test_devices_against_the_claim(
    claimed: int | None, devices: int, listed: int, severity: str, said: str
) -> None:
    device = {"name": "H", "memory": 80 * 2**30, "error": ""}
    seen = {"torch": "2.13.0", "cuda": "13.0", "devices": [device] * devices, "error": ""}
    claim = machine.DeviceClaim(claimed, None, None)
    check = machine.judge_devices(claim, seen, ["570.1"] * listed, "0,1" if claimed else None)
    assert check.severity == severity and said in check.found and bool(check.remedy) == (severity != "ok")


def test_a_device_that_is_listed_and_out_of_order_is_a_failure() -> None:
    bad = {"name": "H", "memory": 2**30, "error": "RuntimeError: ECC"}
    seen = {"torch": "2.13.0", "cuda": "13.0", "devices": [bad], "error": ""}
    check = machine.judge_devices(machine.DeviceClaim(None, None, None), seen, [], None)
    assert check.severity == "failure" and "GPU 0: RuntimeError: ECC" in check.found


def test_the_claim_is_read_from_what_slurm_sets() -> None:
    assert machine.claim_of({}) == machine.DeviceClaim(None, None, None)
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_ON_NODE": "4",
        "SLURM_MEM_PER_CPU": "500",
        "SLURM_STEP_GPUS": "0,3",
    }
    assert machine.claim_of(step) == machine.DeviceClaim(2, 4, 2000 * 2**20)
    assert machine.claim_of(
        step | {"SLURM_GPUS_ON_NODE": "1", "SLURM_MEM_PER_NODE": "100"}
    ) == machine.DeviceClaim(1, 4, 100 * 2**20)


def test_cpus_and_memory_against_the_claim() -> None:
    assert machine.judge_cpus(None, 2, None, 0.1).severity == "ok"
    assert machine.judge_cpus(2, 2, None, 0.1).severity == "ok"
    assert "given 4 CPUs, 2 can be used" in machine.judge_cpus(4, 8, 2.0, 0.1).found
    assert "does not confine" in machine.judge_cpus(1, 8, None, 0.1).found
    size = 2**30
    assert machine.judge_memory(8 * size, 9 * size, 10 * size, 2**60).severity == "ok"
    assert machine.judge_memory(8 * size, 4 * size, 10 * size, None).severity == "warning"
    assert "allows 2.0 GiB" in machine.judge_memory(8 * size, 9 * size, 10 * size, 2 * size).found
    assert machine.judge_memory(None, size // 2, 10 * size, None).severity == "failure"


def test_libraries_against_what_the_package_asks_for(tmp_path: Path) -> None:
    found = machine.libraries()
    assert only(found, "libraries").severity == "ok"
    # A library of another version, found first on the path.
    info = tmp_path / "wandb-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.1.0\n")
    code = "import json; from harness.launch.doctor.machine import libraries\n"
    code += "print(json.dumps(libraries(), default=vars))"
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path, "CXX": "no-such-compiler"}
    (fields,) = json.loads(run([sys.executable, "-c", code], 60, environment))
    check, versions = Check(**fields), only(found, "libraries").facts["versions"]
    assert check.severity == "failure" and "wandb is 0.1.0, " in check.found
    assert "resources.compile would lack a C++ compiler (no-such-compiler;" in check.found
    alike = judge_alike({"n1": versions, "n2": check.facts["versions"]})
    assert alike.severity == "failure" and alike.found == f"wandb: {versions['wandb']} on n1, 0.1.0 on n2"
    assert judge_alike({"n1": versions, "n2": versions}).severity == "ok"


def test_what_only_some_studies_need_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed forms take the base alone; half of what language models take is a failure all the same."""
    there = machine._installed
    text = {"datasets", "deepspeed", "huggingface_hub", "tokenizers", "transformers"}

    def without(*names: str) -> Check:
        monkeypatch.setattr(machine, "_installed", lambda name: "" if name in names else there(name))
        return only(machine.libraries(), "libraries")

    base = without(*text, "torch", "wandb")
    assert base.severity == "warning" and base.found.startswith("no language models, VAEs, W&B here; Python")
    assert base.remedy.endswith("pip install 'model-collapse-harness[text,images,wandb]'")
    images = without(*text)
    assert images.severity == "warning" and images.found.startswith("no language models here; ")
    for names in (("torch",), ("deepspeed", "datasets"), ("scipy", "wandb")):
        half = without(*names)
        assert half.severity == "failure" and f"{names[0]} is missing, " in half.found, names
    monkeypatch.setattr(checks, "is_installed", lambda module: module not in {"torch", "huggingface_hub"})
    for check in (machine.devices, services.deepspeed, services.hub):
        (found,) = check()
        assert found.severity == "ok" and found.found.startswith("not looked at: "), found


@pytest.mark.slow
def test_what_would_be_compiled_is_seen() -> None:
    code = """
from harness.launch.doctor.children import refuse_compilation
compiled = refuse_compilation()
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
try:
    DeepSpeedCPUAdam([torch.nn.Parameter(torch.zeros(4))])
except RuntimeError:
    print(compiled)
"""
    said = run([sys.executable, "-c", code], 120, {**os.environ, "DS_ACCELERATOR": "cpu"})
    assert said.splitlines()[-1] == "['cpu_adam']"


def test_the_hub_is_not_called_reachable_unseen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whether the hub is asked is a setting; that it answers nobody has tried."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for offline, said in (
        (False, ", may be asked, not tried (HF_HUB_OFFLINE is not set)"),
        (True, ", offline (HF_HUB_OFFLINE)"),
    ):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert f"free){said}" in only(services.hub(), "hub").found


@pytest.mark.slow
def test_wandb_without_a_key_with_one_and_without_a_server(
    monkeypatch: pytest.MonkeyPatch, outside: None, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # whose user is not logged in
    with endpoint() as recorder:
        monkeypatch.setenv("WANDB_BASE_URL", recorder.url)
        check = only(services.wandb(), "wandb")
        assert check.severity == "warning" and "not logged in" in check.found and "answers in" in check.found
        key = 40 * "5"
        monkeypatch.setenv("WANDB_API_KEY", key)
        check = only(services.wandb(), "wandb")
        assert check.severity == "ok" and "logged in" in check.found and key not in str(check)
    check = only(services.wandb(), "wandb")
    assert check.severity == "warning" and "cannot be reached" in check.found and "offline" in check.remedy


def test_what_ray_leaves_behind_is_found_by_its_mark() -> None:
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        ["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, services.TAG: mark}
    ) as echo:
        assert echo.stdin and echo.stdout
        echo.stdin.write(b"up\n")
        echo.stdin.flush()
        assert echo.stdout.readline() == b"up\n", (
            "past its exec: before that it has no environment to be found by"
        )
        assert [process.pid for process in services.tagged(mark)] == [echo.pid]
        echo.kill()
        os.waitid(os.P_PID, echo.pid, os.WEXITED | os.WNOWAIT)
        assert services.tagged(mark) == [], "what has ended and was not waited for has left nothing"
    assert services.tagged(mark) == []


# --- between machines ---------------------------------------------------------------------------------------


def race(folders: dict[str, Path]) -> dict[str, list[bool]]:
    wins: dict[str, list[bool]] = {}

    def take_part(name: str, folder: Path) -> None:
        wins[name] = storage.race(str(folder), name, 40)

    racers = [threading.Thread(target=take_part, args=item) for item in folders.items()]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    return wins


def test_private_folders_are_found_out(tmp_path: Path) -> None:
    shared = race({name: tmp_path for name in ("n1", "n2", "n3")})
    assert storage.judge_race(shared).severity == "ok" and sum(map(sum, shared.values())) == 40
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
    check = storage.judge_race(race({name: tmp_path / name for name in ("n1", "n2")}))
    assert check.severity == "failure" and "40 of 40 names were taken by more than one machine" in check.found
    assert "taken by none" in storage.judge_race({"n1": [True, False], "n2": [False, False]}).found


def test_files_that_are_seen_late_or_never(tmp_path: Path) -> None:
    assert storage.see(str(tmp_path / "absent"), 0.05) is None
    threading.Timer(0.2, storage.make, [str(tmp_path / "late")]).start()
    assert 0.1 < (storage.see(str(tmp_path / "late"), 5.0) or 0.0) < 4.0
    assert storage.judge_seen({("n1", "n2"): 0.01}).severity == "ok"
    assert "after 6.0 s" in storage.judge_seen({("n1", "n2"): 6.0}).found
    check = storage.judge_seen({("n1", "n2"): 0.01, ("n2", "n1"): None})
    assert check.severity == "failure" and check.found == "n1 does not see what n2 writes"


@pytest.mark.parametrize(
    "offsets, server, severity, said",
    [
        ({"n1": (0.0, 0.001), "n2": (0.2, 0.001)}, {"n1": 0.0}, "ok", "differ by 0.198 s"),
        ({"n1": (-2.0, 0.01), "n2": (1.2, 0.01)}, {}, "warning", "n2 is 3.2 s ahead of n1"),
        ({"n1": (0.0, 0.01), "n2": (-45.0, 0.01)}, {}, "failure", "n1 is 45.0 s ahead of n2"),
        ({"n1": (0.0, 1.0), "n2": (2.5, 1.0)}, {}, "ok", "differ by 0.500 s"),  # half of it could be the way
        ({"n1": (0.0, 0.01)}, {"n1": -5.0}, "warning", "the file server is 5.0 s behind n1"),
        ({"n1": (0.0, 0.01)}, {"n1": 31.0}, "failure", "the file server is 31.0 s ahead of n1"),
    ],
)
def test_clocks(
    offsets: dict[str, tuple[float, float]], server: dict[str, float], severity: str, said: str
) -> None:
    check = storage.judge_clocks(offsets, server)
    assert check.severity == severity and said in check.found


def test_a_port_that_nobody_listens_at_or_somebody_else_does() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    mine = network.listen("n1")
    hosts = {"n1": "127.0.0.1", "n2": "127.0.0.1", "n3": "127.0.0.1", "n4": "no-such-machine.invalid"}
    wrong = network.connect({"n1": mine, "n2": port, "n3": mine, "n4": mine}, hosts, "n1")
    assert (
        wrong.keys() == {"n2", "n3", "n4"} and "refused" in wrong["n2"] and "answers as 'n1'" in wrong["n3"]
    )
    check = network.judge_ports({"n1": wrong})
    assert check.severity == "failure" and "from n1 to n2: 127.0.0.1" in check.found
    own = network.connect(
        {"n1": mine, "n5": network.listen("n5")}, {"n1": "localhost", "n5": "localhost"}, "n1"
    )
    assert "which others cannot reach" in own["n1"]


@pytest.mark.slow
def test_a_group_whose_other_rank_never_comes_ends_by_its_limit() -> None:
    host, port = network.lead(2, None, "")
    leader = network._leading[-1]
    with pytest.raises(ChildError, match="no process group of 2 ranks within 6 s"):
        network.reduce({"n1": [(0, None)]}, 2, host, port, 6.0, "n1")
    assert leader.returncode is not None and not psutil.pid_exists(leader.pid)


# --- probes -------------------------------------------------------------------------------------------------


def test_an_answer_arrives_whole_in_short_lines() -> None:
    answer = {"value": [("é" * 3000), {"a": None}]}
    lines = probe.pieces("n1", 3, answer)
    assert len(lines) > 3 and all(len(line) < 1024 for line in lines)


def test_errors_and_delays_become_answers() -> None:
    def fail() -> None:
        raise ValueError("no\nway")

    assert probe.answer_of(lambda: 3, 5) == {"value": 3}
    assert probe.answer_of(lambda: None, 5) == {"value": None}
    assert probe.answer_of(fail, 5) == {"error": "ValueError: no"}
    assert probe.answer_of(lambda: time.sleep(30), 0.1) == {"error": "no result within 0 s"}


def test_folders_of_probes_that_were_killed_are_removed() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = Path(f"/tmp/hd-{gone.pid}-test")
    dead.mkdir()
    with scratch() as mine:
        assert mine.name.startswith(f"hd-{os.getpid()}-")
        clear_scratch()
        assert mine.exists() and not dead.exists()
    assert not mine.exists()


@pytest.fixture
def local(outside: None) -> Iterator[nodes.Nodes]:
    found = nodes.here()
    yield found
    found.close()


def test_an_error_in_a_probe_is_a_line(local: nodes.Nodes) -> None:
    assert local.ask("see", 5, name="shared root", path="/nowhere", patience_s="?") == {}
    (trouble,) = local.troubles
    assert (
        trouble.severity == "failure"
        and trouble.where == local.names[0]
        and "TypeError" in trouble.found
        and trouble.remedy
    )
    assert local.ask("clock", 5)[local.names[0]] == pytest.approx(time.time(), abs=5)


def test_a_probe_that_is_killed_is_named_at_once(local: nodes.Nodes) -> None:
    (child,) = [
        process
        for process in psutil.Process().children()
        if "harness.launch.doctor.probe" in process.cmdline()
    ]
    child.kill()
    started = time.monotonic()
    checks = list(Examination(local, Path("/tmp")).checks())
    assert time.monotonic() - started < 10
    assert [(check.name, check.severity, check.where) for check in checks] == [
        ("node", "failure", local.names[0])
    ]


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tag: str) -> None:
    command = ["bash", "-c", "sleep 61 & sleep 62"]
    with pytest.raises(ChildError, match="no answer within 1 s"):
        run(command, 1.0, {**os.environ, "HARNESS_TEST_TAG": tag})
    assert not tagged(tag)


# --- SLURM's settings, and the table ------------------------------------------------------------------------

CONFIG = """Configuration data as of 2026-11-21T13:00:00
ClusterName             = lab
JobRequeue              = 1
KillWait                = 30 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
ProctrackType           = proctrack/cgroup
SlurmctldParameters     = preempt_send_user_signal
"""
PARTITIONS = (
    "PartitionName=main MaxTime=1-00:00:00 PreemptMode=OFF State=UP TotalCPUs=8 TotalNodes=2\n"
    "PartitionName=low MaxTime=UNLIMITED PreemptMode=REQUEUE State=UP TotalCPUs=8 TotalNodes=2\n"
    "PartitionName=old MaxTime=UNLIMITED PreemptMode=REQUEUE State=DOWN TotalCPUs=8 TotalNodes=2\n"
)


@pytest.mark.parametrize(
    "change, name, said",
    [
        ({"ProctrackType": "proctrack/linuxproc"}, "slurm processes", "can outlive it"),
        ({"KillWait": "5 sec"}, "slurm time limit", "5 s from SIGTERM"),
        (
            {"SlurmctldParameters": "(null)"},
            "slurm preemption",
            "jobs in low, old are preempted without the signal",
        ),
        ({"JobRequeue": "0"}, "slurm requeue", "not queued again"),
        ({}, "", ""),
    ],
)
def test_settings_that_matter(change: dict[str, str], name: str, said: str) -> None:
    checks = slurm.judge_settings(slurm.settings(CONFIG) | change, PARTITIONS)
    warned = [check for check in checks if check.severity != "ok"]
    assert [check.name for check in warned] == ([name] if name else []) and len(checks) == 4
    assert all(said in check.found and check.remedy for check in warned)


def test_partitions_that_are_up() -> None:
    check = slurm.judge_partitions(PARTITIONS)
    assert (
        check.severity == "ok"
        and "main (2 nodes, 8 CPUs, up to 1-00:00:00)" in check.found
        and "old" not in check.found
    )
    assert slurm.judge_partitions("").severity == "failure"


def test_many_machines_that_are_alike_are_one_line() -> None:
    checks = [Check("disk", "ok", f"{n} GiB free", "", f"n{n}") for n in range(1, 6)]
    checks += [
        Check("ray", "failure", "x", "y", "n1"),
        Check("ray", "failure", "x", "y", "n2"),
        Check("ray", "failure", "z", "y", "n3"),
    ]
    lines = merged(checks)
    assert [(line.name, line.where, line.found) for line in lines] == [
        ("disk", "n1, n2, n3, n4, n5", "n1: 1 GiB free (others alike)"),
        ("ray", "n1, n2", "x"),
        ("ray", "n3", "z"),
    ]
