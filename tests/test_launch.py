"""What needs no SLURM: scripts against golden files, options and the site file, checks against the plan, a
busy controller."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import GAUSSIAN, ROOT, TEXT, Make, harness
from hypothesis import given
from hypothesis import strategies as st

from harness.ending import OWNER
from harness.errors import InputError
from harness.launch.allocation import read_allocation
from harness.launch.options import Options, make_options, parse_memory, parse_time, read_site
from harness.launch.processes import make_private, sweep
from harness.launch.render import Job, render
from harness.launch.slurm import WAITS_S, Partition, Slurm, SlurmError
from harness.launch.validate import GangNeed, Work, check, cpus_per_node, signal_s

GOLDEN = ROOT / "tests" / "golden"
JOB = Job(
    experiment="quickstart",
    folder=Path("/shared/runs/experiments/quickstart/slurm/20261121-120000-abcdef"),
    root=Path("/shared/runs"),
    directory=Path("/home/ada/collapse"),
    python="/shared/venv/bin/python",
    cpus=16,
    signal_s=60,
    assignments=(),
    variables={"HF_HOME": "/shared/hf", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"},
)
SCRIPTS: dict[str, tuple[Job, Options]] = {
    "allocation": (
        JOB,
        Options(
            nodes=4,
            gpus_per_node="a100:8",
            partition="gpu,preempt",
            account="collapse",
            time="1-00:00:00",
            mem="500G",
        ),
    ),
    "array": (
        Job(**{**vars(JOB), "assignments": ("learner.model.preset=tiny", "learner.sample.temperature=0.7")}),
        Options(array="8%4", gpus_per_node=1, qos="long", constraint="a100&nvlink", dependency="singleton"),
    ),
    "site": (
        Job(**{**vars(JOB), "root": Path("/shared/my runs"), "folder": Path("/shared/my runs/it's here")}),
        Options(
            exclusive=True,
            mail_user="ada@example.org",
            setup=("module load cuda/12.8", "ulimit -l unlimited"),
            umask="0002",
            environment={"NCCL_SOCKET_IFNAME": "ib0", "GREETING": "hello there; rm -rf /"},
            extra=("--comment=collapse", "--nice=100"),
            network=True,
            max_requeues=3,
        ),
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name: str) -> None:
    """A golden file that is missing is a failure; to change one, write what `render` gives and read the
    difference."""
    assert render(*SCRIPTS[name]) == (GOLDEN / f"{name}.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name: str) -> None:
    done = subprocess.run(
        ["bash", "-n"], input=render(*SCRIPTS[name]), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_words_reach_the_run_unharmed(tmp_path: Path) -> None:
    """Quotes, blanks and the shell's signs: the command that the script ends in gets names, values and
    variables as given."""
    python = tmp_path / "py thon"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$GREETING" "$@"\n')
    python.chmod(0o755)
    nasty = 'a\'b "c" $(touch x) `y` ; z'
    job = Job(
        **{
            **vars(JOB),
            "python": str(python),
            "assignments": (f"experiment={nasty}",),
            "root": Path("/r oot/'q'"),
        }
    )
    script = render(job, Options(environment={"GREETING": nasty}))
    said = subprocess.run(
        ["bash"], input=script, capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout.splitlines()
    assert said[0] == nasty
    assert said[said.index("--set") + 1] == f"experiment={nasty}"
    assert said[said.index("--root") + 1] == "/r oot/'q'"
    assert not (tmp_path / "x").exists()


# --- options and the site file ------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_times(days: int, hours: int, minutes: int, seconds: int) -> None:
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_time(f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}") == expected
    assert parse_time(f"{days * 24 + hours}:{minutes:02d}:{seconds:02d}") == expected
    assert parse_time(f"{days}-{hours}") == (days * 24 + hours) * 3600
    assert parse_time(f"{minutes}") == minutes * 60
    assert parse_time(f"{minutes}:{seconds:02d}") == minutes * 60 + seconds


def test_sizes() -> None:
    assert [parse_memory(text) for text in ("64G", "512", "512M", "2T", "2048K")] == [
        65536,
        512,
        512,
        2097152,
        2,
    ]
    with pytest.raises(ValueError, match="allowed: a number with K, M, G or T"):
        parse_memory("lots")


def test_the_command_line_beats_the_site_file(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        "partition: gpu\ntime: 4:00:00\nsetup: [module load cuda]\nenvironment: {A: 1}\numask: "
        "0002\ngpus_per_node: a100:4\n"
    )
    options = make_options(read_site(site), {"partition": "debug", "setup": ["source venv"], "account": None})
    assert (options.partition, options.time_s, options.account) == ("debug", 4 * 3600, None)
    assert options.setup == ("module load cuda", "source venv") and options.environment == {"A": "1"}
    assert (options.umask, options.gpus) == ("0002", 4)


def test_what_sbatch_reads_from_the_environment_counts_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    monkeypatch.setenv("SBATCH_PARTITION", "theirs")
    options = make_options({"partition": "gpu"}, {})
    assert (options.account, options.partition) == ("mine", "gpu")
    monkeypatch.setenv("SBATCH_QOS", "a b")
    with pytest.raises(InputError, match="SBATCH_QOS: found 'a b', allowed: one word"):
        make_options({}, {})


@pytest.mark.parametrize(
    "text, expected",
    [
        ("partition: gpu\nparttion: x\n", "site.yaml:2: parttion: is unknown; did you mean partition?"),
        ("nodes: 2\ntime: tomorrow\n", "site.yaml:2: time: found 'tomorrow', allowed: MINUTES"),
        ("account: a b\n", "site.yaml:1: account: found 'a b', allowed: one word"),
        ("- gpu\n", "site.yaml:1: expected a mapping"),
        ("partition: [\n", "site.yaml:2: is not YAML"),
        (
            "extra: ['--wrap=rm -rf /']\n",
            "site.yaml:1: extra: found '--wrap=rm -rf /', allowed: --name or --name=value",
        ),
        ("environment: {'A B': 1}\n", "site.yaml:1: environment: found the name 'A B'"),
        ('setup: ["a\\nb"]\n', "site.yaml:1: setup: give a list of single lines"),
        ("partition: a\nnodes: 2\n'partition': b\n", "site.yaml:3: partition: is given twice"),
        ("environment:\n  A: 1\n  A: 1\n", "site.yaml:3: environment.A: is given twice"),
        ("mail_type: END\n", "mail_type: needs mail_user"),
        ("gpus_per_node: many\n", "gpus_per_node: found 'many', allowed: a number, or TYPE:NUMBER"),
        ("python: python3\n", "python: found 'python3', allowed: an absolute path"),
        (
            "tmp: /a/very/long/path/to/scratch\n",
            "tmp: found '/a/very/long/path/to/scratch', allowed: 20 characters at most",
        ),
        (
            "environment: [A=b]\n",
            "site.yaml:1: environment: found ['A=b'], allowed: NAME: VALUE, a line each",
        ),
        ("setup: {a: b}\n", "site.yaml:1: setup: found {'a': 'b'}, allowed: a list of lines"),
        ("nodes: 0\n", "site.yaml:1: nodes: found '0', allowed: more than 0"),
        ("nodes: some\n", "site.yaml:1: nodes: found 'some', allowed: a whole number"),
        ("network: perhaps\n", "site.yaml:1: network: found 'perhaps', allowed: true or false"),
        ("signal_s: 1\n", "site.yaml:1: signal_s: found '1', allowed: at least 10"),
    ],
)
def test_a_wrong_site_file(tmp_path: Path, text: str, expected: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(text)
    with pytest.raises(InputError) as caught:
        read_site(site)
    assert expected in str(caught.value)


def test_the_example_site_file() -> None:
    found = make_options(read_site(ROOT / "slurm" / "site.example.yaml"), {})
    assert found.partition and found.setup and found.cache and found.gpus


def test_a_single_line_and_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    (tmp_path / "site.yaml").write_text(
        "setup: module load cuda\nextra: --comment=x\ncache: ~/hf\npython: ~/venv/bin/python\n"
    )
    found = make_options(read_site(tmp_path / "site.yaml"), {"setup": ["module load gcc"]})
    assert found.setup == ("module load cuda", "module load gcc") and found.extra == ("--comment=x",)
    assert (found.cache, found.python) == (Path("/home/ada/hf"), "/home/ada/venv/bin/python")
    with pytest.raises(InputError, match="--sbatch: found 'nodelist=n1', allowed: --name or --name=value"):
        make_options({}, {"extra": ["nodelist=n1"]})


# --- checks against the plan --------------------------------------------------------------------------------

CPU, GPU = GangNeed(2, 4, 0), GangNeed(8, 2, 1)
PARTITIONS = {"gpu": Partition("gpu", True, 86400, 3600, 4, 64, 500_000, 8)}


def work(*gangs: GangNeed, wall_s: float = 3600.0) -> Work:
    return Work(gangs, wall_s, 300.0, 30.0, 10)


def test_what_is_asked_for_by_default() -> None:
    assert cpus_per_node(work(CPU), Options()) == 8
    assert cpus_per_node(work(GPU), Options(gpus_per_node=4)) == 8
    assert cpus_per_node(work(GPU), Options(gpus_per_node=4, cpus_per_node=20)) == 20
    assert signal_s(work(CPU), Options()) == 60 and signal_s(work(CPU), Options(signal_s=200)) == 200


def test_gangs_and_nodes() -> None:
    check(work(GPU), Options(nodes=2, gpus_per_node=4), PARTITIONS)
    with pytest.raises(
        InputError, match=r"a gang has 8 ranks with 1 GPU each; the job has 1 node with 4 GPUs, room for 4"
    ):
        check(work(GPU), Options(gpus_per_node=4), PARTITIONS)
    with pytest.raises(InputError, match=r"each task of the array has 1 node with 4 GPUs, "):
        check(work(GPU), Options(gpus_per_node=4, array="16"), PARTITIONS)
    with pytest.raises(InputError, match=r"2 CPUs each; the job has 1 node with 8 CPUs, "):
        check(work(GPU), Options(gpus_per_node=8, cpus_per_node=8), PARTITIONS)


def test_times_and_remarks() -> None:
    with pytest.raises(InputError, match="0:06:00 is too short.* allowed: 0:07:00 or more"):
        check(work(CPU), Options(time="6"), PARTITIONS)
    assert check(work(CPU), Options(time="7"), PARTITIONS) != []
    cpus = {"cpu": replace(PARTITIONS["gpu"], name="cpu", gpus=0)}
    remarks = check(work(CPU, wall_s=10 * 3600), Options(time="2:02:00", max_requeues=3), cpus)
    assert remarks == [
        "about 10:00:00 of work: the job will requeue itself about 4 times, more than --max-requeues 3 allows"
    ]
    assert check(work(CPU), Options(time="20:00:00"), cpus) == []
    idle = "partition gpu has GPUs and none is asked for (--gpus-per-node), so everything is computed on CPUs"
    assert check(work(CPU), Options(time="20:00:00"), PARTITIONS) == [idle]
    assert check(work(GPU), Options(gpus_per_node=8, time="2:00:00"), PARTITIONS) == []


def test_all_problems_at_once() -> None:
    with pytest.raises(InputError) as caught:
        check(work(GPU), Options(partition="gpo", gpus_per_node=4, time="1"), PARTITIONS)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "--nodes",
        "--partition",
        "--time",
    ]


@pytest.mark.slow
def test_dry_run_needs_no_slurm_and_writes_nothing(make_config: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    done = harness(
        "submit", make_config(TEXT), "--root", root, "--dry-run", "--nodes", 2, PATH="/usr/bin:/bin:/none"
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=text\n")
        and "#SBATCH --nodes=2\n" in done.stdout
    )
    assert not root.exists()
    refused = harness(
        "submit", make_config(TEXT), "--root", "/proc/nowhere", "--dry-run", PATH="/usr/bin:/bin:/none"
    )
    assert refused.returncode == 2 and "cannot be written" in refused.stderr and not refused.stdout


@pytest.mark.slow
def test_what_cannot_fit_a_node_is_refused_before_it_waits(make_config: Make, tmp_path: Path) -> None:
    """The same check as before a run, against the memory that the job asks for."""
    arguments = ("submit", make_config(GAUSSIAN), "--root", tmp_path / "root", "--dry-run")
    large = ("--set", "data.num_examples=50000000")
    done = harness(*arguments, *large, "--mem", "700M", PATH="/usr/bin:/bin:/none")
    assert done.returncode == 2, done.stderr
    for text in (
        "data.num_examples: generation 3 has 50000000",
        "0.7 GiB of memory; a node of the job has 0.7",
    ):
        assert text in done.stderr
    assert harness(*arguments, *large, "--mem", "0", PATH="/usr/bin:/bin:/none").returncode == 0, (
        "all there is"
    )
    assert harness(*arguments, *large, "--mem", "1G", PATH="/usr/bin:/bin:/none").returncode == 0
    assert harness(*arguments, *large, PATH="/usr/bin:/bin:/none").returncode == 0, (
        "nobody says how much there is"
    )


# --- SLURM's own answers ------------------------------------------------------------------------------------


class Controller:
    """Answers that were written down beforehand, one after the other."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers, self.asked, self.waited = list(answers), [], []

    def run(self, command: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append(command)
        code, out, err = self.answers.pop(0)
        return subprocess.CompletedProcess(command, code, out, err)

    @property
    def slurm(self) -> Slurm:
        return Slurm(self.run, self.waited.append)


BUSY = (1, "", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)")


def test_a_busy_controller_is_asked_again_after_longer_pauses() -> None:
    controller = Controller(
        BUSY,
        BUSY,
        (0, "12|12|RUNNING|None|n1|1:00|1:00:00|N/A\n13|13|PENDING|Priority||0:00|1:00:00|N/A\n", ""),
    )
    found = controller.slurm.states(["12"], "quickstart")
    assert list(found) == ["12"] and found["12"][0].state == "RUNNING"
    assert tuple(controller.waited) == WAITS_S[:2] and len(controller.asked) == 3


def test_it_is_given_up_in_the_end_and_never_submitted_twice() -> None:
    controller = Controller(*[BUSY] * (len(WAITS_S) + 1))
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        controller.slurm.states(["12"], "quickstart")
    controller = Controller(BUSY)
    with pytest.raises(SlurmError):
        controller.slurm.submit("#!/bin/bash\n")
    assert len(controller.asked) == 1


def test_an_array_is_one_call() -> None:
    lines = "".join(f"40|40_{task}|RUNNING|None|n1|1:00|1:00:00|N/A\n" for task in range(500))
    controller = Controller((0, lines, ""))
    assert len(controller.slurm.states(["40", "41"], "quickstart")["40"]) == 500
    assert len(controller.asked) == 1


def test_partitions_with_nodes_of_several_sizes() -> None:
    large, larger = (
        "gpu*|1-00:00:00|1:00:00|4|64|500000+|gpu:a100:8(S:0-1)",
        "gpu*|1-00:00:00|1:00:00|2|128|1000000|(null)",
    )
    shown = f"{large}\n{larger}\ncpu|infinite|n/a|9|32|64000|(null)\n"
    found = Controller((0, shown, "")).slurm.partitions()
    assert found["gpu"] == Partition("gpu", True, 86400, 3600, 6, 128, 1_000_000, 8)
    assert found["cpu"].time_s is None and not found["cpu"].default


@pytest.mark.parametrize(
    "gres, gpus",
    [
        ("gpu:8", 8),
        ("gpu:a100:8(S:0-1)", 8),
        ("gpu:3090:8", 8),
        ("gpu:2080ti:4,shard:16", 4),
        ("gpu:1g.5gb:7", 7),
        ("(null)", 0),
        ("gpu:a100:4(S:0,2),gpu:v100:2,nvme:1", 6),
        ("gpu", 0),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: int) -> None:
    found = Controller((0, f"p|infinite|n/a|1|8|1000|{gres}\n", "")).slurm.partitions()
    assert found["p"].gpus == gpus


def test_a_job_that_may_be_queued_is_not_said_to_be_refused(tmp_path: Path) -> None:
    from harness.launch.submit import Request, UnsureError, submit

    config = tmp_path / "c.yaml"
    config.write_text("experiment: x\n")
    request = Request(tmp_path / "experiments" / "x", tmp_path, config, (), "/usr/bin/python3", {})
    for answer, error in (
        (BUSY, UnsureError),
        ((1, "", "sbatch: error: Batch job submission failed: Job violates policy"), InputError),
    ):
        with pytest.raises(error) as caught:
            submit(request, Options(), work(CPU), Controller(answer).slurm, look=False)
        kept = list(tmp_path.glob("experiments/x/slurm/*/job.sh"))
        assert bool(kept) == (error is UnsureError), "the files of a job that may be queued stay"
        assert "--account" not in str(caught.value)
        for path in kept:
            path.unlink()


def test_a_track_goes_with_its_study(tmp_path: Path) -> None:
    """Beside it, as it was when it was checked: the job reads both there, whatever becomes of the files."""
    from harness.config.load import load_file
    from harness.config.shipped import tracks
    from harness.launch.submit import Request, UnsureError, submit

    (tmp_path / "tracks").mkdir()
    track = tmp_path / "tracks" / "mine.yaml"
    track.write_bytes(tracks()["closed-form-gaussian"].read_bytes())
    config = tmp_path / "c.yaml"
    config.write_text("experiment: x\ntrack: tracks/mine.yaml\n")
    place = tmp_path / "experiments" / "x"
    request = Request(place, tmp_path, config, ("seed=3",), "/usr/bin/python3", {}, track)
    with pytest.raises(UnsureError):
        submit(request, Options(), work(CPU), Controller(BUSY).slurm, look=False)
    (script,) = place.glob("slurm/*/job.sh")
    assert "--set seed=3 --set track=track.yaml" in " ".join(script.read_text().replace("\\", "").split())
    track.unlink()
    there = load_file(script.parent / "config.yaml", ("seed=3", "track=track.yaml"))
    assert there.track is not None and there.track.track.track == "closed-form-gaussian"


def test_programs_without_a_cluster() -> None:
    said = (
        "sinfo: error: fetch_config: DNS SRV lookup failed\nsinfo: fatal: Could not establish a "
        "configuration source\n"
    )
    for error in (
        InputError,
        SlurmError,
    ):  # bad input where SLURM is needed; where it is not, no reason to fail
        with pytest.raises(
            error, match="not a SLURM machine: sinfo finds no configuration of a cluster; run this on"
        ):
            Controller((1, "", said)).slurm.partitions()


def test_users_filters_do_not_reach_slurms_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_USERS", "nobody")
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    seen: dict[str, str] = {}

    def run(command: Any, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess(command, 0, "", "")

    Slurm(run).running()
    assert not {"SQUEUE_USERS", "SLURM_NTASKS"} & set(seen) and seen["SLURM_CONF"] == "/etc/slurm.conf"


def test_an_allocation_is_read() -> None:
    environment = {
        "SLURM_JOB_ID": "17",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "3",
        "SLURM_JOB_NODELIST": "n[1-3]",
        "SLURM_JOB_CPUS_PER_NODE": "4(x2),8",
        "SLURM_MEM_PER_NODE": "2000",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_RESTART_COUNT": "4",
        "SLURM_CLUSTER_NAME": "lab",
        "SLURMD_NODENAME": "n1",
    }
    found = read_allocation(environment, lambda _: ["n1", "n2", "n3"])
    assert (found.job, found.job_id, found.cpus, found.gpus) == ("12_3", "17", (4, 4, 8), 2)
    assert found.memory == 2000 * 2**20 and found.incarnation == "lab.12_3/4"
    for here in ("", "n2"):
        with pytest.raises(InputError, match=r"its first node \(n1\) is where a run starts; go there: srun"):
            read_allocation(environment | {"SLURMD_NODENAME": here}, lambda _: ["n1", "n2", "n3"])


# --- folders and leases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["node", "batch", "doctor.probe"])
def test_processes_that_every_job_starts_load_little(module: str) -> None:
    heavy = {"numpy", "pandas", "pyarrow", "pydantic", "ray", "torch"}
    code = f"import sys, harness.launch.{module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def test_folders_of_the_dead_are_swept_and_others_are_not(tmp_path: Path) -> None:
    mine, dead, foreign = (tmp_path / name for name in ("h1", "h2", "h3"))
    before = os.umask(0)
    for path in (mine, dead, foreign):
        make_private(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, "Ray makes what lies within writable for all"
    os.umask(before)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    child.kill()
    child.wait()
    _, started, namespace = (mine / OWNER).read_text().split(" ")
    (dead / OWNER).write_text(f"{child.pid} {started} {namespace}")
    (foreign / OWNER).write_text(f"{child.pid} {started} pid:[1]")
    sweep("h[0-9]*", tmp_path)
    assert mine.exists() and foreign.exists() and not dead.exists()


def test_a_node_process_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """SLURM may kill the processes of a step all at once; what they had started by then and their folder must
    go all the same."""
    tmp = tmp_path / "h9"
    program = (
        "import os, subprocess, sys, time; from pathlib import Path; from harness.launch import processes as "
        f"p\ntmp = Path({str(tmp)!r}); p.leave_janitor(tmp); p.make_private(tmp)\ncommand = [sys.executable, "
        f"'-c', 'import time; time.sleep(60)', {str(tmp)!r} + '/mark']\nc = subprocess.Popen(command, "
        "start_new_session=True)\nprint(c.pid, flush=True); time.sleep(60)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert agent.stdout is not None
    child = int(agent.stdout.readline())
    assert tmp.exists()
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    deadline = time.monotonic() + 10
    while (tmp.exists() or _lives(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not tmp.exists() and not _lives(child)


def _lives(pid: int) -> bool:
    try:
        return re.search(r"\) [ZX] ", Path(f"/proc/{pid}/stat").read_text()) is None
    except OSError:
        return False


def test_a_requeued_job_takes_over_what_its_earlier_run_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.store import Leases, Owner

    def leases(incarnation: str) -> Leases:
        monkeypatch.setenv("HARNESS_INCARNATION", incarnation)
        return Leases(tmp_path, Owner(tmp_path / "leases" / "owners", 1000.0))

    first = leases("lab.12_3/0")
    assert first.acquire("key") is not None
    for other in ("lab.12_4/1", "lab.13/1", "other.12_3/1", "lab.12_3/0", ""):
        assert leases(other).acquire("key") is None, other
    assert leases("lab.12_3/1").acquire("key") is not None
    monkeypatch.setenv("HARNESS_INCARNATION", "lab.12_3/0")
    assert first.acquire("key") is None, "the earlier run does not take it back"
    assert os.environ["HARNESS_INCARNATION"] == "lab.12_3/0"


def test_only_ended_jobs_of_this_user_are_buried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.launch.allocation import Allocation, bury_ended_jobs
    from harness.store import Owner

    folder = tmp_path / "leases" / "owners"

    def owner(incarnation: str, user: int) -> str:
        monkeypatch.setenv("HARNESS_INCARNATION", incarnation)
        monkeypatch.setattr(os, "getuid", lambda: user)
        return Owner(folder, 1000.0).id

    me = os.getuid()
    ended, runs, theirs, elsewhere = (
        owner(*item) for item in (("lab.7/0", me), ("lab.8/0", me), ("lab.9/0", me + 1), ("b.7/0", me))
    )
    monkeypatch.delenv("HARNESS_INCARNATION")
    plain = Owner(folder, 1000.0).id
    monkeypatch.setattr(os, "getuid", lambda: me)
    job = Allocation("12", "12", "lab", ("n1",), (1,), 0, 0, 0)
    assert bury_ended_jobs(folder, job, Controller((0, "8\n12\n", "")).slurm) == 1
    assert {path.stem for path in folder.glob("*.dead")} == {ended}
    assert {runs, theirs, elsewhere, plain} <= {path.stem for path in folder.glob("*.beat")}
    assert bury_ended_jobs(folder, job, Controller(*[BUSY] * 4).slurm) == 0, (
        "who does not answer says nothing"
    )


def test_status_without_slurm_still_tells_of_jobs(make_config: Make, tmp_path: Path) -> None:
    from harness.launch.jobs import Submission, record

    root = tmp_path / "root"
    config = make_config(GAUSSIAN)
    folder = root / "experiments" / "normal" / "slurm" / "one"
    folder.mkdir(parents=True)
    record(folder, Submission("12", 2, 1.0, [], "one", "ada", "login"))
    done = harness("status", config, "--root", root, PATH="/none")
    assert done.returncode == 0 and "12_0  unknown" in done.stdout and "12_1  unknown" in done.stdout, (
        done.stdout
    )
