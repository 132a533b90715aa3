"""``harness sync``: the store's records at a recording W&B endpoint, with the real SDK; every line once,
whoever is killed when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chains import run_all
from conftest import GAUSSIAN, Make, harness
from test_inventory import diverged
from test_wandb import KEY, check, environment
from wandb_endpoint import PROJECT, Recorder, endpoint

from harness.stop import Stop
from harness.store import Leases, Owner, Store
from harness.study import open_study
from harness.tracking import login, run_id
from harness.tracking.login import unreachable
from harness.tracking.runs import ChainView
from harness.tracking.sync import Synced, describe
from harness.tracking.sync import sync as in_process
from harness.tracking.tracker import Tracker
from harness.tracking.views import Mirrored, Views

pytestmark = pytest.mark.slow

GRID = {"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]}


@pytest.fixture
def study(make_config: Make, tmp_path: Path) -> tuple[Path, Path]:
    """Four chains of which everything is committed; the file says offline."""
    config = make_config(GAUSSIAN, grid=GRID, **{"tracking.wandb": "offline"})
    run_all(config, tmp_path / "root")
    return config, tmp_path / "root"


def sync(
    config: Path, root: Path, recorder: Recorder, *arguments: object, code: int = 0, **changes: str
) -> dict[str, Any]:
    """Run it; returns what ``--json`` says."""
    folder = config.parent
    done = harness(
        "sync", config, "--root", root, "--json", *arguments, **(environment(recorder, folder) | changes)
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and KEY not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def start(config: Path, root: Path, recorder: Recorder, *arguments: object) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "harness",
        "sync",
        str(config),
        "--root",
        str(root),
        "--json",
        *map(str, arguments),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment(recorder, config.parent)},
    )


def wait_for(happened: Any, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_every_chain_once_and_twice_run_is_once_sent(study: tuple[Path, Path]) -> None:
    config, root = study
    with endpoint() as recorder:
        first = sync(config, root, recorder)
        assert (first["chains_sent"], first["generations_sent"], first["chains_complete"]) == (4, 16, 4)
        check(recorder, config, root)
        assert first["view"].startswith(f"{recorder.url}/e/{PROJECT}?nw=") and not first["view_missing"]
        before = (recorder.streams, len(recorder.upserts))
        again = sync(config, root, recorder)
        assert (again["chains_sent"], again["generations_sent"], again["chains_complete"]) == (0, 0, 4)
        assert (recorder.streams, len(recorder.upserts)) == before, "not one run was opened"
        other = sync(config, root, recorder, "--set", "tracking.trackers=[mlflow]")
        assert (other["chains_sent"], other["generations_sent"], other["chains_complete"]) == (4, 16, 4)
        assert (recorder.streams, len(recorder.upserts)) == before, "MLflow is told, W&B knows all"


def test_without_our_notes_the_server_keeps_lines_single(study: tuple[Path, Path]) -> None:
    config, root = study
    with endpoint() as recorder:
        sync(config, root, recorder)
        lines = {key: dict(value) for key, value in recorder.lines.items()}
        for note in (root / "experiments" / "normal" / "wandb" / "sent").rglob("*.json"):
            note.unlink()
        assert sync(config, root, recorder)["chains_sent"] == 4
        assert recorder.lines == lines


@pytest.mark.parametrize("keep", [None, 2, 0], ids=["all lines stored", "two lines stored", "no line stored"])
def test_killed_in_the_middle_of_sending(study: tuple[Path, Path], keep: int | None) -> None:
    """The server has stored all, a part or nothing of the chain's lines; nobody has noted it; the next sync
    sends the rest."""
    config, root = study
    with endpoint() as recorder:
        killed = threading.Event()
        recorder.keep = keep

        def kill(_: str) -> None:
            if not killed.is_set():
                killed.set()
                process.kill()

        recorder.on_stream = kill
        process = start(config, root, recorder)
        assert process.wait(timeout=120) == -signal.SIGKILL
        assert len(recorder.runs) == 1 and not list((root / "experiments").rglob("sent/*/*.json"))
        if keep is not None:
            assert [len(lines) for lines in recorder.lines.values()] == ([keep] if keep else [])
        sync(config, root, recorder)
        check(recorder, config, root)


def test_chains_that_are_not_complete_are_sent_and_appended_to(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, grid=GRID, **{"tracking.wandb": "online"}), tmp_path / "root"
    run_all(config, root, "generations=1")
    longer = ("--set", "generations=4")
    with endpoint() as recorder:
        found = sync(config, root, recorder, *longer)
        assert (found["generations_sent"], found["chains_complete"], found["chains"]) == (8, 0, 4)
        names = recorder.names()
        run_all(config, root, "generations=4")
        found = sync(config, root, recorder, *longer)
        assert (found["generations_sent"], found["chains_complete"]) == (12, 4)
        assert chains_of(recorder) == names, "the same four runs"
        assert len(recorder.names() - names) == 2, "cells are sent when their chains are whole"
        for name in recorder.names():
            assert sorted(recorder.generations(name)) == [0, 1, 2, 3, 4]


def test_bundled_chains_are_sent_by_cell_or_one_by_one(make_config: Make, tmp_path: Path) -> None:
    from bundled import run_bundles

    from harness.reporting import ledger
    from harness.reporting.statistics import aggregate
    from harness.study import open_study
    from harness.tracking.views import Views, mirrored

    changes = {"tracking.wandb": "offline", "resources.bundled": True}
    config, root = make_config(GAUSSIAN, grid=GRID, **changes), tmp_path / "root"
    prepared, store = run_bundles(config, root)
    with endpoint() as recorder:
        first = sync(config, root, recorder)
        assert (first["generations_sent"], first["chains"], first["cells"]) == (2 * 4, 2, 2)
        assert sync(config, root, recorder)["generations_sent"] == 0
        names = recorder.names()
        assert len(names) == 2 and all("cell-" in name for name in names)
        one_by_one = ("--set", "tracking.bundles=chains", "--set", "tracking.project=chains")
        assert sync(config, root, recorder, *one_by_one)["generations_sent"] == 16
        check(recorder, config, root, "chains", cells=0)
    rows = ledger.rows(prepared, store)
    for item in mirrored(prepared):
        for generation in Views(prepared, store).view(item).generations:
            of = [
                row
                for row in rows
                if row["generation"] == generation.record.generation
                and row["regime.synthetic_ratio"]
                == prepared.study.cells[item.cell].axes["regime.synthetic_ratio"]
            ]
            expected = aggregate([row["test/nll"] for row in of])
            metrics = generation.record.metrics
            found = [metrics[name] for name in ("test/nll", "test/nll.low", "test/nll.high")]
            assert found == pytest.approx([expected.mean, expected.low, expected.high])
            assert metrics["seeds/live"] == 2
    longer, _ = open_study(config, ("generations=5",), store)
    for item in mirrored(longer):
        assert len(Views(longer, store).view(item).generations) == 4, "no means over chains to come"


def test_what_was_sent_is_called_what_it_is() -> None:
    """Of chains in bundles, their cells."""
    assert describe(Synced(4, complete=4, chains_sent=1, generations_sent=1)) == (
        "1 generation of 1 chain sent, 4 of 4 chains complete"
    )
    assert describe(Synced(2, cells=2, complete=2)) == (
        "0 generations of 0 cells sent, 2 of 2 cells complete"
    )
    assert describe(Synced(3, cells=2)) == (
        "0 generations of 0 chains and cells sent, 0 of 3 chains and cells complete"
    )


def test_another_project_or_server_gets_everything(study: tuple[Path, Path]) -> None:
    config, root = study
    with endpoint() as recorder:
        sync(config, root, recorder)
        assert sync(config, root, recorder, "--set", "tracking.project=other")["chains_sent"] == 4
        check(recorder, config, root)
        check(recorder, config, root, "other")
    with endpoint() as another:
        assert sync(config, root, another)["chains_sent"] == 4
        check(another, config, root)


def test_offline_files_of_a_job_and_what_was_sent_differ(study: tuple[Path, Path]) -> None:
    config, root = study
    with endpoint() as recorder:
        sync(config, root, recorder)
        assert harness("run", config, "--root", root).returncode == 0
        folders = list((root / "experiments" / "normal" / "wandb" / "wandb").glob("offline-run-*"))
        assert len(folders) == 6, "the job writes its own files, though all was sent"
        assert sync(config, root, recorder)["chains_sent"] == 0, "and a sync after it sends nothing again"
        online = harness(
            "run",
            config,
            "--root",
            root,
            "--set",
            "tracking.wandb=online",
            **environment(recorder, config.parent),
        )
        assert online.returncode == 0 and not online.stderr, online.stderr
        check(recorder, config, root)


def chains_of(recorder: Recorder) -> set[str]:
    """Runs that are no means of cells."""
    return {name for name in recorder.names() if "-cell-" not in name}


def all_sent(recorder: Recorder, generations: int) -> bool:
    """Four chains, each up to this generation."""
    names = chains_of(recorder)
    return len(names) == 4 and all(len(recorder.generations(name)) == generations + 1 for name in names)


def test_watch_follows_jobs_until_all_is_sent(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, grid=GRID, **{"tracking.wandb": "offline"}), tmp_path / "root"
    with endpoint() as recorder:
        process = start(config, root, recorder, "--watch", 1)  # nothing is there yet, not even a store
        try:
            for generations in (0, 3):
                run_all(config, root, f"generations={generations}")
                wait_for(partial(all_sent, recorder, generations))
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert process.returncode == 0, err
        assert json.loads(out)["chains_complete"] == 4
        check(recorder, config, root)


class Told(Tracker):
    """Remembers what it was told; once a pass has looked around, somebody else finishes the study."""

    means = True

    def __init__(self, finish: Any) -> None:
        self.finish, self.known = finish, dict[str, list[str]]()

    def write(self, view: ChainView) -> None:
        self.known[view.chain] = view.evaluations

    def send(self, view: ChainView) -> int:
        self.write(view)
        return len(view.generations)

    def told(self, chain: str) -> list[str]:
        return self.known.get(chain, [])

    def is_due(self, views: Views, item: Mirrored) -> bool:
        due = views.committed(item) > len(self.told(item.id))
        if not self.known:
            self.finish()
        return due

    def is_complete(self, views: Views, item: Mirrored) -> bool:
        known = len(self.told(item.id))
        return known > item.generations or views.whole(item) and len(views.view(item).generations) == known


@pytest.mark.parametrize("every_s", [None, 0.01], ids=["once", "watch"])
def test_means_are_whole_when_all_chains_are(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float | None
) -> None:
    """The study is finished while a pass is under way: what it had seen before is no mean of the end."""
    config, root = make_config(GAUSSIAN, grid=GRID, **{"tracking.wandb": "offline"}), tmp_path / "root"
    run_all(config, root, "generations=1")
    tracker = Told(lambda: run_all(config, root))
    monkeypatch.setattr("harness.tracking.sync.open_trackers", lambda *_: [tracker])
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        done = in_process(prepared, root, Stop(), every_s, print)
    assert sorted(len(told) for told in tracker.known.values()) == [4] * (4 + 2), "four chains, two cells"
    assert (done.complete, done.means_due) == (4, 0)


def test_a_watch_ends_where_all_seeds_of_a_cell_have_diverged(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = make_config(GAUSSIAN, grid=GRID, **{"tracking.wandb": "offline"}), tmp_path / "root"
    prepared, store = run_all(config, root)
    for chain in prepared.lineage.chains[:2]:
        assert chain.cell == 0
        diverged(store, chain.nodes[1])
        for key in chain.nodes[2:]:
            shutil.rmtree(store.path("evaluations", key))
    tracker = Told(lambda: None)
    monkeypatch.setattr("harness.tracking.sync.open_trackers", lambda *_: [tracker])
    prepared, scratch = open_study(config, (), Store.read(root))
    stop, passes = Stop(), list[float]()
    monkeypatch.setattr(stop, "wait", lambda s: passes.append(s) or len(passes) > 3 and stop.set())
    with scratch:
        done = in_process(prepared, root, stop, 0.01, print)
    assert (done.complete, done.means_due, done.stopped) == (4, 0, False)
    assert sorted(len(told) for told in tracker.known.values()) == [2, 2, 2, 4, 4, 4]


def test_a_watch_ends_on_a_signal_with_work_left(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, grid=GRID, **{"tracking.wandb": "offline"}), tmp_path / "root"
    run_all(config, root, "generations=1")
    with endpoint() as recorder:
        process = start(config, root, recorder, "--watch", 600)
        try:
            wait_for(lambda: len(recorder.complete) == 4)
            time.sleep(1)
            process.send_signal(signal.SIGTERM)
            out, err = process.communicate(timeout=90)
        finally:
            process.kill()
        assert process.returncode == 75, err
        assert json.loads(out)["stopped"] and "Traceback" not in err


def test_another_writer_is_waited_for(study: tuple[Path, Path]) -> None:
    config, root = study
    chain = json.loads(harness("status", config, "--root", root, "--json").stdout)["chains"][0]["chain"]
    owner = Owner(root / "leases" / "owners", lease_s=30.0).start()
    leases = Leases(root, owner)
    lease = leases.acquire(f"wandb-{run_id('normal', chain)}")
    assert lease is not None
    short = ("--set", "resources.lease_s=3")
    with endpoint() as recorder:
        found = sync(config, root, recorder, *short, code=75)
        assert found["busy"] == [chain] and found["chains_sent"] == 3, (
            "the others are sent; this one is in other hands"
        )
        leases.release(lease, finished=True)
        owner.close()
        assert sync(config, root, recorder, *short)["chains_sent"] == 1
        check(recorder, config, root)


def test_what_a_sync_refuses(study: tuple[Path, Path], make_config: Make, tmp_path: Path) -> None:
    config, root = study
    with endpoint() as recorder:
        settings = environment(recorder, tmp_path)
        nobody = settings | {"WANDB_API_KEY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
        disabled = make_config(GAUSSIAN, "disabled.yaml")
        for arguments, given, expected in (
            ((config, "--root", root), nobody, "not logged in to W&B"),
            ((disabled, "--root", root), settings, "tracking.wandb: found disabled"),
            ((config, "--root", tmp_path / "nothing"), settings, "nothing has been run yet at --root"),
            ((config, "--root", root, "--watch", "0"), settings, "--watch"),
        ):
            done = harness("sync", *arguments, **given)
            assert done.returncode == 2, done.stdout + done.stderr
            assert expected in done.stderr and "Traceback" not in done.stderr
        recorder.refuse = True
        done = harness("sync", config, "--root", root, **settings)
        assert done.returncode == 2 and "refuses the login (HTTP 401)" in done.stderr, done.stderr
        assert KEY not in done.stdout + done.stderr and "Traceback" not in done.stderr
        assert not recorder.runs
    done = harness("sync", config, "--root", root, **settings)
    assert done.returncode == 1 and "cannot be reached (Connection refused)" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and KEY not in done.stderr


def test_whether_a_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the SDK would ask: through a proxy where there is one; a server that refuses does answer."""
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        for variable in (name, name.upper()):
            monkeypatch.delenv(variable, raising=False)

    def asked(url: str, proxy: str | None = None) -> str:
        return unreachable(SimpleNamespace(base_url=url, http_proxy=proxy, https_proxy=None))

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(login, "CONNECT_S", 0.2)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert asked(url) == "no answer within 0.2 s"
    assert asked(url) == "Connection refused"
    monkeypatch.setattr(login, "CONNECT_S", 5.0)
    assert "not known" in asked("https://wandb.invalid") or "resolution" in asked("https://wandb.invalid")
    with endpoint() as recorder:
        assert not asked(recorder.url)
        recorder.refuse = True
        assert not asked(recorder.url)
        assert not asked(f"{recorder.url}/elsewhere"), "where it points to is not asked"
        assert not asked("http://wandb.invalid", recorder.url)
        monkeypatch.setenv("HTTP_PROXY", recorder.url)
        assert (
            not asked("http://wandb.invalid") and asked("http://wandb.invalid", url) == "Connection refused"
        )


def test_a_service_that_does_not_end_is_ended(tmp_path: Path) -> None:
    """W&B's own service, which the SDK waits for without limit."""
    script = (
        "import os, psutil, signal, wandb; from pathlib import Path; from harness.tracking import staging\n"
        "staging.GRACE_S = 0.3\n"
        f"with staging.staged(Path({str(tmp_path)!r})):\n"
        "    wandb.setup().ensure_service()\n"
        "    service, = psutil.Process().children()\n"
        "    assert service.name() == 'wandb-core', service\n"
        "    service.send_signal(signal.SIGSTOP)\n"
        "assert not service.is_running() or service.status() == 'zombie'\n"
        "print('over')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "WANDB_CONFIG_DIR": str(tmp_path), "WANDB_ERROR_REPORTING": "false"},
    )
    assert (done.returncode, done.stdout) == (0, "over\n"), done.stderr


def test_lines_that_the_server_refuses_are_not_taken_for_sent(study: tuple[Path, Path]) -> None:
    """The SDK ends such a run without an error; what is noted is what the server says it has."""
    config, root = study
    with endpoint() as recorder:
        recorder.broken = 400
        found = sync(
            config,
            root,
            recorder,
            "--set",
            "grid.seed=[0]",
            "--set",
            "grid.regime.synthetic_ratio=[1.0]",
            code=1,
        )
        assert found["chains_sent"] == 0 and found["chains_failed"] == 1
        assert all(
            "the server has its lines up to step -1, not 3000" in reason
            for reason in found["errors"].values()
        )
        recorder.broken = 0
        assert sync(config, root, recorder)["chains_sent"] == 4
        check(recorder, config, root)


def test_results_that_changed_are_not_mixed_with_what_was_sent(study: tuple[Path, Path]) -> None:
    config, root = study
    with endpoint() as recorder:
        sync(config, root, recorder)
        note = sorted((root / "experiments" / "normal" / "wandb" / "sent").rglob("*.json"))[0]
        content = json.loads(note.read_text())
        note.write_text(json.dumps({**content, "evaluations": ["another", *content["evaluations"][1:-1]]}))
        found = sync(config, root, recorder, code=1)
        assert found["chains_failed"] == 1 and "--set tracking.project=NAME" in found["errors"][note.stem]
        check(recorder, config, root)


def test_neither_ray_nor_torch_is_imported(study: tuple[Path, Path], tmp_path: Path) -> None:
    config, root = study
    script = tmp_path / "probe.py"
    script.write_text(
        "import sys\nfrom harness.cli import app\ntry:\n    app(sys.argv[1:], "
        "standalone_mode=False)\nfinally:\n    print([name for name in ('ray', 'torch', 'transformers', "
        "'deepspeed') if name in sys.modules])\n"
    )
    with endpoint() as recorder:
        command = [sys.executable, str(script), "sync", str(config), "--root", str(root)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, **environment(recorder, tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
        names = recorder.names(PROJECT)
        assert len(names) == 6 and sum("-cell-" in name for name in names) == 2, "four chains of two cells"
