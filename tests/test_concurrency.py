"""Others read, write and remove on the same store at the same moment."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from chains import Events, contents, run_all
from conftest import GAUSSIAN, ROOT, Make

from harness import proc
from harness.coordinator.revision import source_revision
from harness.data.reading import ReadLimit
from harness.errors import DamagedError, DataError
from harness.files import verify
from harness.proc import usable_cpus, usable_memory
from harness.science import key_of
from harness.store import Experiment, Leases, Store, own_leases
from harness.store.health import collect, examine, needs
from harness.store.shared import commit_once
from harness.store.store import WEIGHTS

SPEC = {"kind": "data"}
KEY = key_of(SPEC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


@contextmanager
def meanwhile(act: Callable[[], Any]) -> Iterator[None]:
    """Do something over and over in a thread; what it raises is raised at the end."""
    end, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not end.is_set():
                act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    if errors:
        raise errors[0]


def repeatedly(act: Callable[[], Any], seconds: float = 0.5) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        act()


def commit_fit(store: Store, key: str) -> None:
    staged = store.stage(key)
    (staged / WEIGHTS).write_bytes(b"w" * 1000)
    store.commit("fits", key, staged, {})


def test_what_is_being_written_is_nobodys_leftover(store: Store) -> None:
    seen: list[Any] = []

    def write(folder: Path) -> None:
        (folder / "content").write_text("x")
        seen.extend(examine(store, Leases(store.root, None)))
        seen.append(collect(store, Leases(store.root, None)))

    commit_once(store, "data", {KEY: (write, SPEC)}, {})
    *findings, freed = seen
    assert not [found for found in findings if found.severity != "note"]
    assert any("is being worked on" in found.what for found in findings) and freed.work == freed.leases == 0
    assert store.sound("data", KEY) and store.json("data", KEY, "spec.json") == SPEC
    assert not list((store.root / "work").iterdir()) and not list(
        (store.root / "leases" / "owners").iterdir()
    )


def test_one_writes_and_the_others_wait_for_it(store: Store) -> None:
    written: list[int] = []

    def write(folder: Path) -> None:
        written.append(1)
        time.sleep(0.3)
        (folder / "content").write_text("x")

    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(commit_once, store, "data", {KEY: (write, SPEC)}, {}) for _ in range(4)]
    assert [run.result() for run in runs] == [True] * 4
    assert written == [1] and store.sound("data", KEY)


def test_a_wait_for_others_can_be_stopped(store: Store) -> None:
    with own_leases(store.root) as other:
        assert other.acquire(KEY)
        looks = iter([False, False, True])
        assert not commit_once(
            store, "data", {KEY: (lambda folder: None, SPEC)}, {}, stopped=lambda: next(looks)
        )
    assert not store.has("data", KEY)


def test_who_failed_or_died_is_not_waited_for(store: Store) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        commit_once(store, "data", {KEY: (fail, SPEC)}, {})
    assert not list((store.root / "leases" / "owners").glob("*.beat"))
    code = (
        "import os, sys; from pathlib import Path; from harness.store import own_leases\nwith "
        "own_leases(Path(sys.argv[1]), 1000.0) as leases:\n    assert leases.acquire(sys.argv[2]); "
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(store.root), KEY], check=True)
    commit_once(store, "data", {KEY: (lambda folder: (folder / "content").write_text("x"), SPEC)}, {})
    assert store.sound("data", KEY)


def test_workplaces_come_and_go(store: Store) -> None:
    def once() -> None:
        commit_fit(store, "k")
        shutil.rmtree(store.path("fits", "k"), ignore_errors=True)

    with meanwhile(once), meanwhile(once):
        repeatedly(once)


def test_folders_that_go_while_they_are_made(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the one before meets by chance only: others made the key's folder, and removed it."""
    original, gone = Path.mkdir, list[OSError]()

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        if gone and "k" in path.parts:
            raise gone.pop()
        original(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    gone += [FileNotFoundError(), FileExistsError()]
    assert store.stage("k").is_dir() and not gone
    gone += [FileExistsError()]
    with own_leases(store.root) as leases:
        assert leases.acquire("k") is not None and not gone


def test_a_store_is_examined_and_swept_while_others_work_in_it(store: Store) -> None:
    def once() -> None:
        with own_leases(store.root) as leases:
            lease = leases.acquire("k")
            assert lease is not None
            staged = store.stage("k")
            for number in range(5):
                (staged.parent / f"checkpoint-{number}").mkdir()
                (staged.parent / f"checkpoint-{number}" / "model").write_text("x")
            store.commit("fits", "k", staged, {})
            leases.release(lease, finished=True)
            shutil.rmtree(store.path("fits", "k"))

    def look() -> None:
        # a fit that comes and goes, as here, may be damage; it must only be told
        list(examine(store, Leases(store.root, None)))
        collect(store, Leases(store.root, None), dry_run=True)

    with meanwhile(once):
        repeatedly(look)


def test_weights_that_are_freed_and_restored_are_no_damage(store: Store) -> None:
    commit_fit(store, "k")
    letters = itertools.cycle(b"wwvu")  # the same bits, and replicas with others

    def once() -> None:
        assert store.evict_weights("k", "test") == 1000
        staged = store.stage("k")
        (staged / WEIGHTS).write_bytes(bytes([next(letters)]) * 1000)
        store.restore_weights("k", staged, {})

    with meanwhile(once):
        repeatedly(lambda: verify(store.path("fits", "k")))


def test_two_may_free_the_same_weights(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_fit(store, "k")
    seen = Path.exists  # of the weights as a moment before
    monkeypatch.setattr(Path, "exists", lambda path, **_: path.name == WEIGHTS or seen(path))
    assert [store.evict_weights("k", "test") for _ in range(2)] == [1000, 0]


def test_a_corpus_that_is_about_to_get_its_spec_is_no_damage(store: Store) -> None:
    (store.root / "corpora" / KEY).mkdir()
    assert not [found for found in examine(store, Leases(store.root, None)) if found.severity == "damage"]
    (store.root / "corpora" / KEY / "spec.json").write_text("{}")
    assert [
        found.where for found in examine(store, Leases(store.root, None)) if found.severity == "damage"
    ] == [f"corpora/{KEY}/spec.json"]


def test_a_bundle_that_somebody_has_just_set_aside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.bundles, "names", lambda: ["gone.parquet"])
    assert store.bundles.index() == {}
    with pytest.raises(DamagedError, match="gone"):
        store.bundles.check("gone.parquet")


def test_an_experiment_cut_short_while_it_began_stops_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.store import experiment

    chain = {"chain": "c", "generations": [{"fit": "f", "corpus": "s", "evaluation": "e"}], "keep": ["f"]}
    written: list[str] = []

    def cut(path: Path, value: Any) -> None:
        if path.name in ("keep.json", "chains.json"):
            if written:
                raise KeyboardInterrupt
            written.append(path.name)
        original(path, value)

    original = experiment.write_json
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "write_json", cut)
        with pytest.raises(KeyboardInterrupt):
            Experiment(store.root, "cut").begin({}, [chain])
    assert needs(store).unfinished == frozenset()
    Experiment(store.root, "cut").begin({}, [chain])
    assert needs(store).weights == {"f"} and needs(store).unfinished == {"f", "s", "e"}


def test_what_is_finished_before_the_lease_is_not_done_again(make_config: Make, tmp_path: Path) -> None:
    """The other run has committed, given its leases back, and freed the weights, which nobody needs any
    more."""
    config = make_config(GAUSSIAN, **{"retention.weights": "none"})
    prepared, done = run_all(config, tmp_path / "done")

    def finish(kind: str, fields: dict[str, Any]) -> None:
        if kind == "claimed" and not (tmp_path / "root" / "evaluations" / fields["evaluation"]).exists():
            for name in ("fits", "corpora", "evaluations"):
                shutil.copytree(done.root / name, tmp_path / "root" / name, dirs_exist_ok=True)
            for path in (tmp_path / "root" / "fits").glob(f"*/{WEIGHTS}"):
                path.unlink()

    observer = Events(finish)
    _, store = run_all(config, tmp_path / "root", observer=observer)
    kinds = [kind for kind, _ in observer.seen]
    assert "claimed" in kinds and "fit_started" not in kinds
    assert contents(store, prepared) == contents(done, prepared)


PEAK = """
import sys

import numpy as np

from harness.proc import keep_freed, peak_memory, reset_peak_memory

if sys.argv[1:]:
    keep_freed()
try:
    np.ones(2**50)  # once an allocation has failed, glibc serves the thread from another arena
except MemoryError:
    pass
SIZE = 64_000_000
reset_peak_memory()
there = peak_memory()
for _ in range(2):
    block = np.ones(SIZE // 8)
    reset_peak_memory()
    print((peak_memory() - there) / SIZE)
    del block
    reset_peak_memory()
    print((peak_memory() - there) / SIZE)
"""


@pytest.mark.parametrize("kept", [False, True], ids=["let go", "kept"])
def test_the_peak_of_memory_is_a_generations_own(kept: bool) -> None:
    """Whatever the process has allocated before: one allocation that fails moves it to another arena."""
    done = subprocess.run([sys.executable, "-c", PEAK, *["kept"] * kept], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    blocks = [float(size) for size in done.stdout.split()]
    assert blocks == pytest.approx([1, 0, 1, 0], abs=0.2), "above what there was, in blocks"


def test_only_the_sources_repository_names_its_revision(tmp_path: Path) -> None:
    """An environment inside somebody's project: its commit says nothing about the package that is installed
    there."""
    package = tmp_path / "venv" / "harness"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / ".gitignore").write_text("venv\n")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], check=True, capture_output=True, text=True
        ).stdout

    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "x")
    assert source_revision(package) == ""
    git("add", "-f", "venv")
    git("commit", "-qm", "y")
    assert source_revision(package) == git("rev-parse", "--short=12", "HEAD").strip()
    (package / "__init__.py").write_text("changed")
    assert source_revision(package).endswith("+dirty")


MIB = 2**20


@pytest.mark.parametrize(
    ("groups", "limits", "cpus", "memory"),
    [
        ("0::/", {"cpu.max": "100000 100000"}, 1, None),
        ("0::/", {"cpu.max": "50000 100000"}, 1, None),
        ("0::/", {"cpu.max": "350000 100000"}, 3, None),
        ("0::/", {"cpu.max": "max 100000", "memory.max": "max"}, 64, None),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4, None),
        ("0::/a/b", {"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, 2, None),
        ("0::/a/b", {"a/b/memory.max": f"{8 * MIB}", "a/memory.max": f"{4 * MIB}"}, 64, 4 * MIB),
        ("0::/a/b", {"a/b/memory.max": f"{2 * MIB}", "a/memory.max": "max"}, 64, 2 * MIB),
        ("0::/seen/from/outside", {"memory.max": f"{2 * MIB}"}, 64, 2 * MIB),
        ("4:memory:/a", {"memory/a/memory.limit_in_bytes": f"{MIB}"}, 64, MIB),
        ("4:memory:/a", {"memory/memory.limit_in_bytes": "9223372036854771712"}, 64, None),
        (
            "3:cpu,cpuacct:/a",
            {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}
            | {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            2,
            None,
        ),
    ],
    ids=range(12),
)
def test_a_containers_limits_are_what_a_run_uses(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    groups: str,
    limits: dict[str, str],
    cpus: int,
    memory: int | None,
) -> None:
    """Limits of all levels hold together, so the least is what there is."""
    for name, text in {"cgroup": groups, **{f"fs/{name}": text for name, text in limits.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(proc, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(proc, "_CONTROL_GROUPS", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_cpus() == cpus
    assert usable_memory() == (memory or psutil.virtual_memory().total)
    if memory is not None:
        # What would be refused by the machine's memory is refused by the container's.
        with pytest.raises(DataError, match=f"more than {memory / 4 / 2**30:,.1f} GiB"):
            ReadLimit("data.source").take(tmp_path, memory // 4 + 1)
        ReadLimit("data.source").take(tmp_path, memory // 4)


def test_one_thread_is_one_of_every_library() -> None:
    """Of libraries too that are loaded later, and each has its own number again afterwards."""
    code = """
import numpy
from threadpoolctl import threadpool_info
from harness.proc import one_thread

def numbers():
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

with one_thread():
    one = numbers()
import scipy.linalg
with one_thread():
    two = numbers()
print(one, two, numbers())
"""
    settings = {"OPENBLAS_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[1] [1, 1] [2, 2]\n"
