"""Everything that can go wrong with a run, made to go wrong for real."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import yaml
from conftest import GAUSSIAN, ROOT, TEXT, Make, Quiet, harness
from processes import await_event, events, gone, once, ranks_of, result, start, tagged, wait_for

from harness.compiler import PLACE, UNFINISHED
from harness.coordinator.failures import Budget, classify, store_trouble
from harness.coordinator.processes import clear_stale_locks, reap, this_process
from harness.errors import DamagedError, DataError, LearnerError, StoreError, StoreVersionError
from harness.inventory import Inventory
from harness.stop import Stop
from harness.store import Experiment, Store
from harness.study import commit_data, open_study

pytestmark = pytest.mark.ray

LONG = {"learner.train.epochs": 24, "generations": 0, "resources.checkpoint_s": 0.2}
"""A fit of a few seconds with several checkpoints; another one follows where a chain must go on."""
PAIR = LONG | {"learner.train.epochs": 18, "resources.ranks": 2}
"""Two ranks, which take longer for a step than one."""
LONG_IMAGES = LONG | {"learner.train.epochs": 200}
"""The same of a VAE, whose rank starts sooner: for what does not depend on the learner."""


@pytest.fixture
def clean(
    tmp_path: Path, run_study: Callable[..., Any], shared_folder: Path
) -> Callable[..., dict[str, bytes]]:
    """What an undisturbed run of a configuration ends with; computed once for all tests, whatever process
    they run in."""

    def run(config: Path) -> dict[str, bytes]:
        cell = yaml.safe_load(config.read_text())
        # the rest of the resources changes no bits, and studies that agree in these share a store
        names = {"ranks", "zero_stage", "micro_batch", "sample_batch", "threads", "compile"}
        same = {name: value for name, value in cell.pop("resources", {}).items() if name in names}
        place, study = (shared_folder / f"clean-{_digest(part)}" for part in (same, [same, cell]))
        with once(study) as first:
            if first:
                summary, _, lines = run_study(config, place, "resources.checkpoint_s=1000")
                assert summary.exit_code == 0, lines
        return result(config, place)

    return run


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def meanwhile(
    root: Path, kind: str, act: Callable[[dict[str, Any]], None], name: str = "text"
) -> threading.Thread:
    """Do something once, when an event has happened."""

    def wait() -> None:
        wait_for(lambda: events(root, name, kind))
        act(events(root, name, kind)[-1])

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


# --- ranks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compiled", "changes"),
    [(False, PAIR | {"generations": 1}), (True, LONG)],
    ids=["two ranks", "one rank, compiled"],
)
def test_a_killed_rank_goes_on_from_the_last_checkpoint(
    make_config: Make,
    run_study: Callable[..., Any],
    clean: Callable[..., Any],
    tmp_path: Path,
    compiled: bool,
    changes: dict[str, Any],
) -> None:
    config, root = make_config(TEXT, **changes | {"resources.compile": compiled}), tmp_path / "root"
    expected = clean(config)
    thread = meanwhile(root, "checkpointed", lambda _: ranks_of(root)[-1].kill())
    summary, _, lines = run_study(config, root)
    thread.join(5)
    assert summary.exit_code == 0, lines
    (resumed,) = events(root, "text", "resumed")
    saved = [e["step"] for e in events(root, "text", "checkpointed") if e["time"] < resumed["time"]]
    assert resumed["step"] == saved[-1] > 0
    assert result(config, root) == expected
    records = [json.loads(path.read_text()) for path in root.glob("evaluations/*/provenance.json")]
    fits = changes["generations"] + 1
    assert [record["compiled"] for record in records] == [compiled] * fits
    assert len(events(root, "text", "fit_committed")) == fits and not list((root / "work").iterdir())


def test_an_exception_on_one_rank_ends_its_gang_at_once(
    make_config: Make, run_study: Callable[..., Any], clean: Callable[..., Any], tmp_path: Path
) -> None:
    """One of two ranks may open no more files, so its next checkpoint raises, while the other waits in a
    collective."""
    import ray
    from ray.util import placement_group_table

    config, root = make_config(TEXT, **PAIR), tmp_path / "root"
    expected = clean(config)
    gang: list[psutil.Process] = []

    def forbid(_: dict[str, Any]) -> None:
        gang.extend(ranks_of(root))
        gang[-1].suspend()  # so that it opens and closes nothing meanwhile
        used = {int(name) for name in os.listdir(f"/proc/{gang[-1].pid}/fd")}
        unused = next(number for number in range(len(used) + 1) if number not in used)
        gang[-1].rlimit(psutil.RLIMIT_NOFILE, (unused, unused))
        gang[-1].resume()

    thread = meanwhile(root, "checkpointed", forbid)
    summary, _, lines = run_study(config, root)
    thread.join(5)
    assert summary.exit_code == 0, lines
    (failed,) = events(root, "text", "branch_failed")
    assert failed["failure"] == "crash" and "Too many open files" in failed["reason"] and failed["again"]
    assert (
        failed["time"]
        - [e for e in events(root, "text", "checkpointed") if e["time"] < failed["time"]][-1]["time"]
        < 10
    )
    assert any("goes on from step" in line for line in lines)
    assert len(gang) == 2 and all(map(gone, gang))
    assert ray.is_initialized() is False or all(
        group["state"] == "REMOVED" for group in placement_group_table().values()
    )
    assert result(config, root) == expected


def test_a_hung_rank_is_found_by_the_watchdog(
    make_config: Make, run_study: Callable[..., Any], clean: Callable[..., Any], tmp_path: Path
) -> None:
    """One of two ranks is stopped; the other waits for it in a collective. Only SIGKILL reaches the stopped
    one. The watchdog's time is longer than a busy machine takes to start two ranks."""
    config, root = make_config(TEXT, **PAIR, **{"resources.watchdog_s": 45}), tmp_path / "root"
    expected = clean(config)
    stopped: list[psutil.Process] = []

    def hang(_: dict[str, Any]) -> None:
        stopped.append(ranks_of(root)[-1])
        stopped[0].suspend()

    thread = meanwhile(root, "checkpointed", hang)
    summary, _, lines = run_study(config, root)
    thread.join(5)
    assert summary.exit_code == 0, lines
    assert any("hangs: no step, token or batch for" in line for line in lines)
    assert gone(stopped[0])
    assert [e["failure"] for e in events(root, "text", "branch_failed")] == ["hang"]
    assert result(config, root) == expected


def test_a_gang_that_fails_too_often_fails_its_chain_only(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    changes = LONG | {"resources.max_failures": 1, "resources.threads": 3}
    config, root = make_config(TEXT, **changes, grid={"seed": [0, 1]}), tmp_path / "root"
    killed: list[float] = []

    def kill() -> None:
        while len(killed) < 2:
            started = [e["time"] for e in events(root, "text", "checkpointed")]
            if (
                started
                and started[-1] > (killed or [0.0])[-1]
                and len(events(root, "text", "branch_failed")) == len(killed)
            ):
                ranks = ranks_of(root)
                for rank in ranks:
                    rank.kill()
                killed.extend([time.time()] if ranks else [])
            time.sleep(0.02)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    summary, _, lines = run_study(config, root)
    thread.join(5)
    assert (summary.chains_complete, summary.chains_failed, summary.exit_code) == (1, 1, 1), lines
    failed = events(root, "text", "branch_failed")
    assert [event["again"] for event in failed] == [True, False] and "a rank died" in failed[-1]["reason"]
    states = json.loads(harness("status", config, "--root", root, "--json").stdout)["chains"]
    assert sorted(state["state"] for state in states) == ["complete", "failed"]
    ((name, reason),) = summary.failures
    (lost,) = [state for state in states if state["state"] == "failed"]
    assert name == f"chain {lost['chain']} (seed {lost['seed']})" and reason == failed[-1]["reason"]
    (once,) = [line for line in lines if line.endswith(f"{name} failed: {reason}")]
    assert "trying again" not in once
    assert all(Path(log).exists() for log in reason.split("log: ")[1].rstrip(")").split(", "))
    (told,) = [state["detail"] for state in states if state["state"] == "failed"]
    assert told == reason, "status names the log too"
    summary, _, lines = run_study(config, root)
    assert (summary.chains_complete, summary.exit_code) == (2, 0), lines
    assert events(root, "text", "resumed"), "what the failed run had saved was not lost"


@pytest.mark.alone  # for others it would look as if the kernel had killed their ranks
@pytest.mark.kernel
def test_the_kernels_out_of_memory_killer_is_told_apart(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path, memory_group: Path
) -> None:
    config, root = make_config(TEXT, **LONG), tmp_path / "root"

    def starve(_: dict[str, Any]) -> None:
        rank = ranks_of(root)[0]
        (memory_group / "cgroup.procs").write_text(str(rank.pid))
        limit = next(
            memory_group / name
            for name in ("memory.limit_in_bytes", "memory.max")
            if (memory_group / name).exists()
        )
        limit.write_text(str(4 * 2**20))  # what it allocates from now on

    thread = meanwhile(root, "checkpointed", starve)
    summary, _, lines = run_study(config, root)
    thread.join(5)
    assert summary.exit_code == 0, lines
    (failed,) = events(root, "text", "branch_failed")
    assert failed["failure"] == "memory" and "lower resources.sample_batch" in failed["reason"]


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group whose memory can be limited."""
    for base in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        group = base / f"harness-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            if (group / "memory.limit_in_bytes").exists() or (group / "memory.max").exists():
                break
            group.rmdir()
    else:
        pytest.skip("no control group can be made here")
    yield group
    wait_for(lambda: not (group / "cgroup.procs").read_text().strip(), 10)
    group.rmdir()


def test_errors_are_classified_by_what_a_person_can_do() -> None:
    import torch

    with pytest.raises(RuntimeError) as host:
        torch.empty(2**60)
    assert classify(host.value)[0] == "memory"
    assert (
        classify(torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))[0]
        == "device_memory"
    )
    assert "resources.micro_batch" in classify(MemoryError())[1]
    full = OSError(28, "No space left on device", "/x/y")
    assert classify(full)[0] == "store" and "/x/y" in classify(full)[1]
    try:
        try:
            raise full
        except OSError as error:
            raise StoreError("/x cannot be committed") from error
    except StoreError as error:
        assert classify(error)[0] == "store"
    # a network's file system may give at the next try what it does not give now
    assert classify(StoreError("something else")) == ("crash", "something else")
    assert classify(DamagedError("a shard")) == ("crash", "a shard"), "set aside, and made again"
    for error in (
        StoreVersionError("a newer version"),
        LearnerError("nothing passes"),
        DataError("too small"),
    ):
        assert classify(error) == ("input", str(error))
    assert classify(ValueError("a\nb")) == ("crash", "ValueError: a")


def test_preemptions_and_failures_have_budgets_of_their_own() -> None:
    from harness.config.schema import Resources

    budget, limits = Budget(), Resources(max_failures=2, max_preemptions=1000)
    assert [budget.again("b", "crash", limits) for _ in range(2)] == [True, True] and budget.attempt("b") == 3
    assert all(budget.again("b", "preempted", limits) for _ in range(1000))
    assert not budget.again("b", "preempted", limits) and not budget.again("b", "hang", limits)
    budget.progress("b")
    assert (
        budget.again("b", "memory", limits)
        and budget.attempt("b") == 2
        and not budget.again("b", "input", limits)
    )


def test_an_override_gives_cells_their_grace_and_leases(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever cell is the first: a run has one grace period, and its owners one time for all leases."""
    from harness.coordinator import coordinator, session
    from harness.coordinator.scheduler import Capacity, Shape, Start

    more = {"when": {"data.num_examples": 40}, "set": {"resources.grace_s": 120, "resources.lease_s": 90}}
    config = make_config(
        GAUSSIAN, grid={"data.num_examples": [20, 40]}, overrides=[more], resources={"bundled": False}
    )
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "root"))
    with scratch:
        store = Store.open(tmp_path / "root")
        commit_data(prepared, store)
        with session._leases(store, prepared.study) as leases:
            assert leases.owner is not None and leases.owner.lease_s == 90
            experiment, found, stop = Experiment(store.root, "normal"), (Capacity(1, 0),), Stop()
            experiment.begin({}, [])
            run = coordinator.Coordinator(
                Inventory(prepared, store), experiment, leases, found, Quiet(), Mock(), stop
            )
            monkeypatch.setattr(coordinator, "GangHandle", Mock())
            number = run._start_gang(Start(Shape(1, 1, 0), "a branch"))
            assert coordinator.GangHandle.call_args.args[-1] == 90  # type: ignore[attr-defined]
            run.running[number], stop.at_once = Mock(), True
            monkeypatch.setattr(run, "experiment", Mock())
            run._drain()
            (saving,) = run.gangs[number].stop.call_args.args  # type: ignore[attr-defined]
            assert saving == pytest.approx(120 * (1 - coordinator.TEARDOWN_SHARE))


# --- nodes, head, driver ------------------------------------------------------------------------------------


def test_a_node_that_dies_is_left_and_the_grid_goes_on(
    make_config: Make, pictures: dict[str, Any], clean: Callable[..., Any], tmp_path: Path, tag: str
) -> None:
    """A cluster of two nodes with room for one gang each; the second is killed, raylet, workers and all."""
    config, root = (
        make_config(
            pictures,
            **LONG_IMAGES | {"learner.train.epochs": 120, "generations": 1, "resources.max_failures": 0},
            grid={"seed": [0, 1]},
        ),
        tmp_path / "root",
    )
    expected = clean(config)
    code = (
        "import sys; from ray.cluster_utils import Cluster\n"
        "from harness.coordinator.private import without_helpers\n"
        "with without_helpers():\n"
        "    c = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, include_dashboard=False, "
        "object_store_memory=10**8))\n"
        "    n = c.add_node(num_cpus=1, object_store_memory=10**8)\n"
        "c.wait_for_nodes(); print(c.address, flush=True)\n"
        "sys.stdin.readline(); c.remove_node(n, allow_graceful=False); sys.stdin.readline()"
    )
    environment = {**os.environ, "HARNESS_TEST_TAG": tag, "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert cluster.stdin is not None and cluster.stdout is not None
    address = cluster.stdout.readline().strip()
    run = start(tag, "run", config, "--root", root, "--address", address)
    wait_for(lambda: len({event["branch"] for event in events(root, "vae", "checkpointed")}) == 2)
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    out, err = run.communicate(timeout=200)
    assert run.returncode == 0, out + err
    assert [e["failure"] for e in events(root, "vae", "branch_failed")] == ["preempted"]
    assert result(config, root) == expected
    cluster.stdin.close()
    cluster.kill()
    cluster.wait()
    cluster.stdout.close()


def test_without_ray_or_its_driver_a_run_ends_at_once(
    make_config: Make, pictures: dict[str, Any], clean: Callable[..., Any], tmp_path: Path, tag: str
) -> None:
    config, root = make_config(pictures, **LONG_IMAGES | {"learner.train.epochs": 300}), tmp_path / "root"
    expected, saved = clean(config), 0
    for victim in ("gcs_server", "raylet", "driver"):
        run = start(tag, "run", config, "--root", root)
        await_event(root, "vae", "checkpointed", saved)
        family = psutil.Process(run.pid).children(recursive=True)
        for process in family if victim != "driver" else []:
            with contextlib.suppress(psutil.NoSuchProcess):  # what Ray runs for a moment only
                if process.name() == victim:
                    process.kill()
        if victim == "driver":
            run.kill()
        at = time.monotonic()
        _, err = run.communicate(timeout=30)
        wait_for(lambda: not tagged(tag), 10 - (time.monotonic() - at))
        if victim != "driver":
            assert run.returncode == 75 and "run the same command again" in err
        assert not list(Path("/tmp").glob(f"hr-{run.pid}-*"))
        saved = len(events(root, "vae", "checkpointed"))
    done = harness("run", config, "--root", root)
    assert done.returncode == 0, done.stderr
    assert (
        all(event["step"] > 0 for event in events(root, "vae", "resumed"))
        and result(config, root) == expected
    )


# --- signals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "changes", "signals"),
    [
        (TEXT, {"learner.train.epochs": 36, "resources.ranks": 2}, [signal.SIGTERM]),
        (None, {"learner.train.epochs": 300}, [signal.SIGINT, signal.SIGUSR1]),
    ],
    ids=["two ranks", "one rank"],
)
def test_signals_save_and_end_with_75_within_the_grace_period(
    make_config: Make,
    clean: Callable[..., Any],
    tmp_path: Path,
    tag: str,
    pictures: dict[str, Any],
    base: dict[str, Any] | None,
    changes: dict[str, Any],
    signals: list[signal.Signals],
) -> None:
    patient = {"generations": 0, "resources.checkpoint_s": 1000, "resources.grace_s": 30}
    base = base or pictures
    config, root = make_config(base, **changes | patient), tmp_path / "root"
    name = base["experiment"]
    for count, number in enumerate(signals):
        run = start(tag, "run", config, "--root", root)
        await_event(root, name, "fit_started", count)
        time.sleep(0.7)
        run.send_signal(number)
        at = time.monotonic()
        out, err = run.communicate(timeout=60)
        assert run.returncode == 75 and "run the same command again" in out and "Traceback" not in err, err
        assert time.monotonic() - at < 30
        wait_for(lambda: not tagged(tag), 20)
        saved = events(root, name, "checkpointed")
        assert len(saved) == count + 1, "one checkpoint, at the signal"
        assert not events(root, name, "released")[-1]["finished"]
        assert [event["step"] for event in events(root, name, "resumed")] == [
            event["step"] for event in saved[:-1]
        ]
    states = json.loads(harness("status", config, "--root", root, "--json").stdout)["chains"]
    assert [state["state"] for state in states] == ["interrupted"]
    done = harness("run", config, "--root", root)
    assert done.returncode == 0, done.stderr
    assert result(config, root) == clean(config)


def test_a_second_sigint_ends_at_once(
    make_config: Make, pictures: dict[str, Any], tmp_path: Path, tag: str
) -> None:
    config, root = make_config(pictures, **LONG_IMAGES | {"resources.checkpoint_s": 1000}), tmp_path / "root"
    run = start(tag, "run", config, "--root", root)
    wait_for(lambda: events(root, "vae", "fit_started"))
    run.send_signal(signal.SIGINT)
    time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    at = time.monotonic()
    _, err = run.communicate(timeout=30)
    assert run.returncode == 75 and time.monotonic() - at < 10 and "Traceback" not in err
    wait_for(lambda: not tagged(tag), 10)


# --- the store ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--recursive", "-l", folder], check=True)


@pytest.mark.kernel
def test_a_disk_that_fails_ends_the_run_with_one_message(
    make_config: Make, pictures: dict[str, Any], clean: Callable[..., Any], small_disk: Path, tag: str
) -> None:
    """Full before a run, full in the middle of a fit, read-only in the middle of a fit; then there is
    room."""
    config, root = make_config(pictures, **LONG_IMAGES), small_disk / "root"
    ballast = small_disk / "ballast"

    def fill() -> None:
        with contextlib.suppress(OSError):
            ballast.write_bytes(b"x" * 4 * 2**20)

    def forbid() -> None:
        # A mount of its own on top: what is open stays writable, as on a server that stops to take new files.
        subprocess.run(["mount", "--bind", root, root], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)

    for harm, told in ((fill, "No space left"), (forbid, "Read-only file system")):
        before = len(events(root, "vae", "checkpointed"))
        run = start(tag, "run", config, "--root", root)
        await_event(root, "vae", "checkpointed", before)
        harm()
        _, err = run.communicate(timeout=90)
        assert run.returncode == 1 and told in err and "defect" not in err and "Traceback" not in err, err
        assert len(err.splitlines()) < 6
        wait_for(lambda: not tagged(tag), 20)
        if harm is fill:
            done = harness("run", config, "--root", root)
            assert done.returncode in (1, 2) and told in done.stderr and "Traceback" not in done.stderr, (
                done.stderr
            )
            ballast.unlink()
        else:
            assert store_trouble(root) and harness("status", config, "--root", root).returncode == 0
            assert harness("run", config, "--root", root).returncode == 2
            subprocess.run(["umount", "-l", root], check=True)
        assert harness("doctor", "--store", "--root", root).returncode == 0, "nothing half-written counts"
    done = harness("run", config, "--root", root)
    assert done.returncode == 0, done.stderr
    assert result(config, root) == clean(config)


def test_damage_is_found_told_and_made_good(
    make_config: Make, tmp_path: Path, run_study: Callable[..., Any]
) -> None:
    config, root = make_config(TEXT, **{"retention.weights": "all"}), tmp_path / "root"
    run_study(config, root)
    before = result(config, root)
    assert harness("doctor", "--store", "--root", root).returncode == 0
    record = sorted(root.glob("evaluations/*/record.json"))[0]
    weights = sorted(root.glob("fits/*/model.safetensors"))[1]
    shard = sorted(root.glob("corpora/*/*.parquet"))[2]
    for path in (record, weights, shard):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0x10
        path.write_bytes(bytes(data))
    shutil.rmtree(sorted((root / "corpora").iterdir())[0])
    done = harness("doctor", "--store", "--root", root, "--json")
    assert done.returncode == 1
    found = [
        finding["where"] for finding in json.loads(done.stdout)["findings"] if finding["severity"] == "damage"
    ]
    for path in (record, weights):
        assert str(path.parent.relative_to(root)) in found
    assert sum(where.startswith("corpora/") for where in found) >= 1
    assert harness("doctor", "--store", "--repair", "--root", root).returncode == 1
    summary, _, lines = run_study(config, root)
    assert summary.exit_code == 0, lines
    assert result(config, root) == before
    assert harness("doctor", "--store", "--root", root).returncode == 0
    freed = json.loads(harness("gc", "--root", root, "--damaged", "--json").stdout)
    assert freed["damaged"] >= 2 and freed["weights"] == 0 and not (root / "damaged").exists()
    assert result(config, root) == before


def test_gc_frees_what_no_experiment_needs_and_nothing_else(
    make_config: Make, pictures: dict[str, Any], tmp_path: Path, run_study: Callable[..., Any]
) -> None:
    root = tmp_path / "root"
    keep = make_config(
        pictures, "keep.yaml", experiment="keep", generations=1, **{"retention.weights": "all"}
    )
    gone = make_config(
        pictures, "gone.yaml", experiment="gone", generations=1, seed=7, **{"retention.weights": "all"}
    )
    open_one = make_config(pictures, "open.yaml", experiment="open", generations=3, seed=8)
    for config in (keep, gone):
        run_study(config, root)
    run_study(open_one, root, "generations=1")
    # the experiment asks for more than it has: its chain is not complete
    from harness.config.load import load_file
    from harness.coordinator.session import describe_chains
    from harness.store import Experiment, Leases, Owner, Store
    from harness.study import open_study

    prepared, scratch = open_study(open_one, (), Store.read(root))
    scratch.cleanup()
    Experiment(root, "open").begin(load_file(open_one, ()).data, describe_chains(prepared))
    unfinished = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[-1]].fit
    store = Store.open(root)
    for key in (unfinished, "0" * 32, "1" * 32):
        (store.stage(key) / "x").write_text("x" * 1000)
    busy = Leases(root, Owner(root / "leases" / "owners"))
    assert busy.acquire("1" * 32)
    shutil.rmtree(root / "experiments" / "gone")
    before = {path.parent.name for path in root.glob("fits/*/model.safetensors")}
    dry = json.loads(harness("gc", "--root", root, "--dry-run", "--json").stdout)
    assert {path.parent.name for path in root.glob("fits/*/model.safetensors")} == before
    done = json.loads(harness("gc", "--root", root, "--json").stdout)
    assert done == dry and (done["weights"], done["work"]) == (2, 1)
    lost = before - {path.parent.name for path in root.glob("fits/*/model.safetensors")}
    prepared, scratch = open_study(gone, (), store)
    scratch.cleanup()
    assert lost == {node.fit for node in prepared.lineage.nodes.values()}
    assert {path.name for path in (root / "work").iterdir()} == {unfinished, "1" * 32}
    assert busy.owner is not None
    busy.owner.close()
    summary, _, _ = run_study(keep, root)
    assert summary.generations_computed == 0
    assert json.loads(harness("gc", "--root", root, "--json").stdout)["work"] == 1, "its owner has gone"


def test_weights_that_come_out_otherwise_are_a_recorded_replica(
    make_config: Make, pictures: dict[str, Any], tmp_path: Path, run_study: Callable[..., Any]
) -> None:
    config, root = make_config(pictures, generations=1, **{"retention.weights": "none"}), tmp_path / "root"
    run_study(config, root)
    fits = {json.loads(path.read_text())["generation"]: path.parent for path in root.glob("fits/*/spec.json")}
    sums = fits[0] / "checksums.json"
    content = json.loads(sums.read_text())
    content["model.safetensors"]["sha256"] = "0" * 64  # as if it had been fitted on another machine
    sums.write_text(json.dumps(content))
    longer = make_config(pictures, generations=2, **{"retention.weights": "none"})
    summary, _, lines = run_study(longer, root)
    assert summary.exit_code == 0, lines
    assert len(events(root, "vae", "weights_replicated")) == 1
    [replica] = json.loads((fits[0] / "replicas.json").read_text())
    assert replica["before"]["sha256"] == "0" * 64 and replica["provenance"]["device"]
    assert harness("doctor", "--store", "--root", root).returncode == 0


@pytest.mark.kernel
def test_a_full_disk_ends_a_bundled_grid_with_one_message(
    make_config: Make, small_disk: Path, tag: str
) -> None:
    grid = {"regime.synthetic_ratio": [0.1, 0.2, 0.5, 1.0], "seed": {"from": 0, "count": 3000}}
    config, root = (
        make_config(GAUSSIAN, grid=grid, generations=20, **{"resources.bundled": True}),
        small_disk / "root",
    )
    run = start(tag, "run", config, "--root", root)  # its rows take more than there is
    _, err = run.communicate(timeout=200)
    assert run.returncode == 1 and "No space left" in err and "Traceback" not in err, err
    assert len(err.splitlines()) == 1 and "make room" in err


# --- native builds ------------------------------------------------------------------------------------------


def test_the_lock_of_a_killed_build_alone_is_removed(tmp_path: Path) -> None:
    stale, held = tmp_path / "fused_adam" / "lock", tmp_path / "other" / "lock"
    for path in (stale, held):
        path.parent.mkdir()
    code = (
        "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(1, flush=True); "
        "time.sleep(600)"
    )
    builds = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for path in (stale, held)
    ]
    for build in builds:
        assert build.stdout is not None and build.stdout.readline()
        build.stdout.close()
    builds[0].kill()
    builds[0].wait()
    assert clear_stale_locks(tmp_path) == [stale] and held.exists()
    builds[1].kill()
    builds[1].wait()
    assert clear_stale_locks(tmp_path) == [held] and clear_stale_locks(tmp_path) == []


COMPILER = """#!/bin/sh
{real} "$@" || exit
test -e {place}/whole && exit
for last; do test "$before" = -o && target=$last; before=$last; done
case $target in *.main.so) ;; *) exit;; esac
head -c 100 "$target" > {place}/part; cp {place}/part "$target"; touch {place}/half; sleep 600
"""
BUILD = """
import typing
from harness.compiler import use_code_folder
use_code_folder()  # as a rank begins
import torch
from harness.learners.language_model.compiled import Loss, program

class Output(typing.NamedTuple):
    logits: torch.Tensor

class Table(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.arange(12.0).view(3, 4))

    def forward(self, use_cache, input_ids):
        return Output(self.weight[input_ids])

tokens = torch.tensor([[0, 1, 2]])
print(float(program("table")(Table(), {"input_ids": tokens}, Loss(tokens)).sum()))
"""


@pytest.mark.slow
def test_a_build_that_was_killed_is_made_again(tmp_path: Path) -> None:
    """The compiler has written half of a library when all of it is killed; what comes next loads none such.
    Nothing is written but into the folder for code, which is its owner's alone."""
    real, compiler, code, temporary = (
        shutil.which("g++"),
        *(tmp_path / name for name in ("g++", "code", "tmp")),
    )
    compiler.write_text(COMPILER.format(real=real, place=tmp_path))
    compiler.chmod(0o700)
    temporary.mkdir()
    given = {"CXX": str(compiler), PLACE: str(code), "TMPDIR": str(temporary)}
    # two steps that would take longer than all others
    given |= {"TORCHINDUCTOR_VEC_ISA_OK": "1", "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    command = [sys.executable, "-c", BUILD]
    build = subprocess.Popen(command, env={**os.environ, **given}, start_new_session=True)
    wait_for(lambda: (tmp_path / "half").exists() or build.poll() is not None)
    assert build.poll() is None
    os.killpg(build.pid, signal.SIGKILL)
    build.wait()
    halves = [path for path in code.rglob("*.so") if path.stat().st_size == 100]
    assert len(halves) == 1 and len(list(code.rglob("*" + UNFINISHED))) == 1
    (tmp_path / "whole").touch()
    again = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, timeout=120, check=False
    )
    assert again.returncode == 0, again.stderr[-4000:]
    nll = [math.log(sum(math.exp(j) for j in range(4))) - i for i in range(3)]
    assert float(again.stdout) == pytest.approx(sum(nll), rel=1e-5)
    assert not list(code.rglob("*" + UNFINISHED)) and halves[0].stat().st_size > 100
    assert code.stat().st_mode & 0o777 == 0o700
    assert not [path for path in temporary.rglob("*") if "torchinductor" in path.name]


def test_a_compilation_ticks_as_long_as_it_computes() -> None:
    """Itself or in a program that it has started; one that waits does not."""
    code = (
        "import subprocess, sys, time\n"
        "from harness.compiler import ticking\n"
        "for what in (lambda: [n for n in range(120) if sum(range(10**6))], lambda: time.sleep(1.2), "
        "lambda: subprocess.run([sys.executable, '-c', 'sum(range(10**8))'])):\n"
        "    ticks = []\n"
        "    with ticking(lambda: ticks.append(1), 0.5): what()\n"
        "    print(bool(ticks))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "True"]


def test_it_works_where_there_is_no_compiler(make_config: Make, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("env", "uname", "sh", "ps"):
        if shutil.which(name):
            (tools / name).symlink_to(str(shutil.which(name)))
    path = f"{Path(sys.executable).parent}:{tools}"
    assert not any(shutil.which(name, path=path) for name in ("gcc", "g++", "c++", "cc", "clang", "nvcc"))
    done = harness(
        "run", make_config(TEXT, generations=0), "--root", tmp_path / "root", PATH=path, CC="", CXX=""
    )
    assert done.returncode == 0, done.stderr


def test_reaping_kills_what_was_started_and_nothing_else() -> None:
    code = (
        "import subprocess, sys; c = subprocess.Popen(['sleep', '600']); print(c.pid, flush=True); c.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    known = this_process("node")
    found = psutil.Process(parent.pid)
    from dataclasses import replace

    reap([replace(known, pid=parent.pid, started=found.create_time() - 100)], patience_s=0)
    assert parent.poll() is None, "the number is the same, the process is another"
    reap([replace(known, pid=parent.pid, started=found.create_time())], patience_s=0)
    parent.wait(5)
    parent.stdout.close()
    assert gone(child)


# --- several coordinators -----------------------------------------------------------------------------------


def test_coordinators_on_one_store_share_the_work(
    make_config: Make, pictures: dict[str, Any], clean: Callable[..., Any], tmp_path: Path, tag: str
) -> None:
    grid = {"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]}
    config = make_config(pictures, grid=grid)
    root = tmp_path / "root"
    runs = [start(tag, "run", config, "--root", root, "--json") for _ in range(3)]
    summaries = []
    for run in runs:
        out, err = run.communicate(timeout=200)
        assert run.returncode == 0, err
        summaries.append(json.loads(out))
    planned = json.loads(harness("plan", config, "--root", tmp_path / "none", "--json").stdout)[
        "generations_unique"
    ]
    assert sum(summary["generations_computed"] for summary in summaries) == planned == 2 + 4
    assert all(summary["chains_complete"] == 4 for summary in summaries)
    for kind in ("fit_started", "fit_committed", "committed"):
        assert len(events(root, "vae", kind)) == planned, kind
    assert not events(root, "vae", "discarded") and not events(root, "vae", "fit_discarded")
    assert not [path for path in (root / "leases").iterdir() if path.name != "owners"]
    assert result(config, root) == clean(config)


def test_a_run_takes_over_from_one_that_died_elsewhere(make_config: Make, tmp_path: Path) -> None:
    """The owner's machine is not this one, so only its counter tells."""
    from harness.store import Leases, Owner, Store
    from harness.study import open_study

    config, root = make_config(GAUSSIAN), tmp_path / "root"
    prepared, scratch = open_study(config, (), Store.open(root))
    scratch.cleanup()
    first = next(iter(prepared.lineage.nodes))
    owner = Owner(root / "leases" / "owners", 4.0)
    path = root / "leases" / "owners" / f"{owner.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "elsewhere", "machine": "another"}))
    assert Leases(root, owner).acquire(first)
    at = time.monotonic()
    done = harness("run", config, "--root", root, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["generations_computed"] == 4, done.stderr
    assert time.monotonic() - at > 4.0 and "waits: elsewhere computes" in done.stderr


@pytest.mark.timeout(900)
def test_chaos(make_config: Make, pictures: dict[str, Any], tmp_path: Path) -> None:
    """The short version of what scripts/chaos does with 50 kills, on VAEs; it judges by itself."""
    chaos = yaml.safe_load((ROOT / "configs" / "chaos.yaml").read_text())
    same = {name: chaos[name] for name in ("experiment", "generations", "grid", "resources")}
    del same["resources"]["zero_stage"]
    config = make_config(pictures, **same, **{"learner.train.epochs": 100})
    options = ["--kills", "4", "--slack", "20", "--seed", "7", "--root", str(tmp_path / "chaos")]
    command = [sys.executable, str(ROOT / "scripts" / "chaos"), str(config), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False, cwd=ROOT)
    assert done.returncode == 0 and "as if nothing had happened" in done.stdout, done.stdout + done.stderr
