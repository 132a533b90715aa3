"""The store: whole or absent, the first commit wins, damage is found and set aside."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from harness.chain.earlier import ARRAYS, Earlier
from harness.errors import DamagedError, InputError, StoreError, StoreVersionError
from harness.files import PROBE, write_atomic, write_json
from harness.metrics import SCORES_VERSION
from harness.records import Examples, Record
from harness.science import key_of
from harness.store import Experiment, Store
from harness.store.corpora import digest
from harness.store.store import REPLICAS

SPEC = {"a": 1}
KEY = key_of(SPEC)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "root")


def staged(store: Store, key: str, content: str = "x") -> Path:
    folder = store.stage(key)
    (folder / "model.safetensors").write_text(content)
    return folder


@pytest.mark.parametrize("there", [False, True])
def test_many_that_open_a_new_root_at_once_all_find_a_store(tmp_path: Path, there: bool) -> None:
    for index in range(10):
        root, start, opened = tmp_path / str(index), threading.Barrier(8), []
        if there:
            root.mkdir()

        def join(root: Path = root, start: threading.Barrier = start, opened: list[Store] = opened) -> None:
            start.wait()
            opened.append(Store.open(root))

        threads = [threading.Thread(target=join) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 8 and {path.name for path in root.iterdir()} > {"format", "work"}


def test_a_commit_is_whole_and_keeps_the_spec(store: Store) -> None:
    assert not store.has("fits", KEY)
    assert store.commit("fits", KEY, staged(store, KEY), SPEC)
    assert store.json("fits", KEY, "spec.json") == SPEC
    assert Store(store.root).sound("fits", KEY)
    assert not list((store.root / "work").iterdir())


def test_the_first_commit_of_a_key_wins(store: Store) -> None:
    first, second = staged(store, KEY, "first"), staged(store, KEY, "second")
    assert store.commit("fits", KEY, first, SPEC)
    second.mkdir(parents=True, exist_ok=True)
    (second / "model.safetensors").write_text("second")
    assert not store.commit("fits", KEY, second, SPEC)
    assert (store.path("fits", KEY) / "model.safetensors").read_text() == "first"


def test_of_many_racing_commits_exactly_one_survives(store: Store) -> None:
    folders = [staged(store, f"race-{i}", str(i)) for i in range(8)]
    won: list[int] = []
    barrier = threading.Barrier(8)

    def commit(i: int) -> None:
        barrier.wait()
        if store.commit("fits", "race", folders[i], {}):
            won.append(i)

    threads = [threading.Thread(target=commit, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (store.path("fits", "race") / "model.safetensors").read_text() == str(won[0])


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "another's"])
def test_damage_is_found_and_set_aside(store: Store, harm: str) -> None:
    store.commit("fits", KEY, staged(store, KEY, "weights"), SPEC)
    path = store.path("fits", KEY) / "model.safetensors"
    if harm == "flip":
        path.write_text("weightz")
    elif harm == "truncate":
        path.write_text("wei")
    elif harm == "remove":
        path.unlink()
    else:  # sound in itself, under the wrong key
        other = key_of({"a": 2})
        store.commit("fits", other, staged(store, other, "weights"), {"a": 2})
        shutil.rmtree(path.parent)
        store.path("fits", other).rename(path.parent)
    assert not Store(store.root).sound("fits", KEY)
    assert not store.has("fits", KEY)
    assert len(list((store.root / "damaged").iterdir())) == 1


def test_evicted_weights_come_back_or_are_replaced_by_a_replica(store: Store) -> None:
    store.commit("fits", KEY, staged(store, KEY, "weights"), SPEC)
    assert store.evict_weights(KEY, "test") == len("weights")
    assert Store(store.root).sound("fits", KEY) and not store.has_weights(KEY)
    assert store.restore_weights(KEY, staged(store, KEY, "weights"), {"device": "this"})
    assert store.has_weights(KEY) and Store(store.root).sound("fits", KEY)
    assert not (store.path("fits", KEY) / REPLICAS).exists()
    store.evict_weights(KEY, "test")
    assert not store.restore_weights(KEY, staged(store, KEY, "Weights"), {"device": "another"})
    assert store.has_weights(KEY) and Store(store.root).sound("fits", KEY)
    [replica] = store.json("fits", KEY, REPLICAS)
    assert (
        replica["provenance"] == {"device": "another"}
        and replica["before"]["sha256"] != replica["now"]["sha256"]
    )
    (store.path("fits", KEY) / "model.safetensors").write_text("weights")
    assert not Store(store.root).sound("fits", KEY), "the replica's checksums count now"


def test_roots(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        Store.open(Path("/proc/nowhere"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not empty"):
        Store.open(tmp_path)
    for left_behind in (".format.0123abcd", f"{PROBE}0123abcd"):  # by a run that was killed, and by a doctor
        (tmp_path / left_behind).mkdir()
        (tmp_path / left_behind / left_behind).write_text("")
        Store.open(tmp_path / left_behind)
    root = tmp_path / "newer"
    Store.open(root)
    write_json(root / "format", {"format": 99, "harness": "9.9"})
    for opened in (Store.open, Store.read):
        with pytest.raises(StoreVersionError, match="format 99.*upgrade"):
            opened(root)
    write_json(root / "format", {})
    with pytest.raises(StoreError):
        Store.read(root)


def test_reading_a_root_that_does_not_exist_makes_nothing(tmp_path: Path) -> None:
    store = Store.read(tmp_path / "absent")
    assert store.committed("fits") == set() and store.record("k") is None
    assert not (tmp_path / "absent").exists()


def tokens(count: int, start: int = 0, width: int = 5) -> Examples:
    values = (np.arange(start * width, (start + count) * width) % 97).reshape(count, width).astype(np.int32)
    return Examples(values, np.full(count, width, dtype=np.int32))


@settings(deadline=None)  # every shard is flushed to disk
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8), st.integers(1, 30)
)
def test_a_corpus_is_its_longest_prefix_of_shards(shards: list[tuple[int, int]], count: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        store.corpora.create("c", {})
        covered = set()
        for start, size in shards:
            store.corpora.append("c", start, tokens(size, start), np.arange(start, start + size) / 3)
            covered.update(range(start, start + size))
        prefix = next(i for i in range(100) if i not in covered)
        assert store.corpora.count("c") == prefix
        if count <= prefix:
            assert (store.corpora.load("c", count).values == tokens(count).values).all()
            assert (store.corpora.scores("c", count) == np.arange(count) / 3).all()
        else:
            assert store.corpora.scores("c", count) is None
            with pytest.raises(DamagedError):
                store.corpora.load("c", count)


def test_numbers_and_lengths_survive(store: Store) -> None:
    store.corpora.create("c", {"a": 1})
    values = np.array([[0.1, -1e300], [np.pi, 5e-324]])
    store.corpora.append("c", 0, Examples(values, np.array([2, 1], dtype=np.int32)))
    found = store.corpora.load("c", 2)
    assert (found.values == values).all() and found.lengths.tolist() == [2, 1]


def test_scores_are_those_of_all_examples_or_none(store: Store) -> None:
    store.corpora.create("c", {})
    store.corpora.append("c", 0, tokens(4), np.arange(4.0))
    store.corpora.append("c", 4, tokens(4, 4))  # as an earlier version, or a learner that does not know them
    assert (store.corpora.scores("c", 3) == np.arange(3.0)).all()
    assert store.corpora.scores("c", 5) is None
    assert (store.corpora.load("c", 8).values == tokens(8).values).all()


def test_a_damaged_shard_is_set_aside(store: Store) -> None:
    store.corpora.create("c", {})
    store.corpora.append("c", 0, tokens(4))
    path = next((store.root / "corpora" / "c").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    at = data.index(tokens(4).values.tobytes()[4:12]) if tokens(4).values.tobytes()[4:12] in data else 30
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(DamagedError, match="does not match"):
        store.corpora.load("c", 4)
    assert store.corpora.count("c") == 0


def test_a_shard_is_whole_or_damaged_wherever_a_byte_is_wrong(store: Store) -> None:
    """Arrow calls some of it unreadable, others not Parquet; none of it is taken for a disk that fails."""
    store.corpora.create("c", {})
    whole, scores = tokens(4), np.arange(4) / 3
    store.corpora.append("c", 0, whole, scores)
    path = next((store.root / "corpora" / "c").glob("*.parquet"))
    content, damaged = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        try:
            found = store.corpora.check("c", 0, 4, set_aside=False)
        except DamagedError:
            damaged += 1
        else:
            assert digest(found) == digest(whole), place
        kept = store.corpora.scores("c", 4)
        assert kept is None or (kept == scores).all(), place
    assert len(content) / 4 < damaged < len(content)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"a": 1})

    def fail(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, b"new")
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["f.json"]


def test_records_round_trip_and_nothing_becomes_zero(store: Store) -> None:
    record = Record(1, 0, "degenerate", "f", "c", "e", {"x": None, "y": 0.5})
    # Earlier versions: the parent in the record, and ok where a metric is not finite.
    for key, content in {
        "e": record.to_json(),
        "old": {**record.to_json(), "parent": "p", "status": "ok"},
    }.items():
        folder = store.stage(key)
        write_json(folder / "record.json", content)
        store.commit("evaluations", key, folder, {})
        assert store.record(key) == record


def test_a_band_that_real_text_has_not_is_no_collapse(store: Store) -> None:
    """Earlier versions recorded one without a token as no number, and the record as degenerate."""
    band = {"text/band_1": 1.1, "text/band_2": None}
    for key, metrics in {"band": band, "both": {**band, "text/rep_4": None}, "none": {"x": None}}.items():
        written = Record(0, 0, "diverged" if key == "none" else "degenerate", "f", "c", key, metrics)
        folder = store.stage(key)
        write_json(folder / "record.json", written.to_json())
        store.commit("evaluations", key, folder, {})
    assert store.record("band").status == "ok" and store.record("band").metrics == {"text/band_1": 1.1}
    assert store.record("both").status == "degenerate" and store.record("none").status == "diverged"


def test_no_first_event_overwrites_another(tmp_path: Path) -> None:
    """Whoever writes first looks whether the last line is whole, while others write."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(250):
            Experiment(tmp_path, str(number)).event("begun")
            experiment, together = Experiment(tmp_path, str(number)), threading.Barrier(4)

            def write(experiment: Experiment = experiment, together: threading.Barrier = together) -> None:
                together.wait()
                for _ in range(5):
                    experiment.event("x", text="y" * 500)

            threads = [threading.Thread(target=write) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(list(experiment.events())) == 21
    finally:
        sys.setswitchinterval(interval)


def test_events_of_many_writers_are_whole_lines(tmp_path: Path) -> None:
    experiment = Experiment(tmp_path, "e")
    threads = [
        threading.Thread(target=lambda: [experiment.event("x", text="y" * 500) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(experiment.events())) == 200


@pytest.mark.parametrize(
    "content", ["[]", "{}x", '{"model.safetensors": 3}', '{"model.safetensors": {"bytes": 7}}']
)
def test_damaged_checksums_are_damage(store: Store, content: str) -> None:
    store.commit("fits", KEY, staged(store, KEY, "weights"), SPEC)
    (store.path("fits", KEY) / "checksums.json").write_text(content)
    assert not Store(store.root).sound("fits", KEY) and not store.has("fits", KEY)


def test_a_predecessor_that_wakes_up_in_its_commit_loses(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor removes its workplace at that moment: the item is committed whole, or not at all."""
    import shutil

    from harness.store import Workplace

    old, new = staged(store, "k", "old"), store.stage("k")
    plain, tried = shutil.rmtree, []

    def wakes_up(path: Path, **options: object) -> None:
        if not tried:
            tried.append(1)
            with pytest.raises(OSError):
                os.rename(old, store.path("fits", "k"))
        plain(path, **options)

    monkeypatch.setattr(shutil, "rmtree", wakes_up)
    Workplace(new).adopt(lambda about: None)
    assert tried and not store.has("fits", "k")


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({"metrics": {"likelihood": 2, "task": 1}}, True),  # computed from the values that are kept
        ({"added": {"mine": "package/2"}}, True),
        ({"examples": 9}, True),
        ({"metrics": {"likelihood": 1, "task": 2}}, False),  # answers are given in another way
        ({"metrics": {"likelihood": 1, "task": 1, "theirs": "package/2"}}, False),  # a package's own learner
        ({"task": {"completions": 8}}, False),
        ({"others": {"texts": {"a": "1"}}}, True),
    ],
)
def test_what_an_earlier_evaluation_leaves_for_another(
    store: Store, change: dict[str, object], taken: bool
) -> None:
    """Values per example are taken where they would be computed in the same way, and nowhere else."""

    def spec(**changes: object) -> dict[str, object]:
        about = {
            "metrics": {"likelihood": 1, "task": 1},
            "task": {"completions": 4},
            "examples": 5,
            **changes,
        }
        return {"format": 1, "fit": "f", "corpus": "c", "generation_0": "f", "evaluation": about}

    before = key_of(spec())
    folder = store.stage(before)
    metadata = {"scores": str(SCORES_VERSION)}
    save_file({"answers": np.arange(3.0)}, folder / ARRAYS, metadata=metadata)
    store.commit("evaluations", before, folder, spec())
    node: Any = SimpleNamespace(evaluation=key_of(spec(**change)), fit=KEY)
    found = Earlier(store, node, node, spec(**change)).array("answers", 2)
    assert (found is not None and found.tolist() == [0.0, 1.0]) == taken


def test_another_study_of_the_same_name_is_told(tmp_path: Path) -> None:
    """Not so where a grid grows, is run in parts, or goes further."""
    experiment = Experiment(tmp_path, "one")

    def others(chain: str, kind: str = "gaussian", axes: Any = (), **more: Any) -> int:
        config = {"experiment": "one", "learner": {"kind": kind}, **more}
        found = experiment.begin(config, [{"chain": chain, "keep": [], "axes": dict(axes)}])
        assert not found.measured
        return found.count

    assert others("a") == 0 == others("b", grid={"seed": [1]}) == others("c", seed=3, generations=9)
    assert others("a", "kde") == 0, "a chain of it is there"
    assert others("d", "linear") == 3 and others("d", "linear") == 0
    swept = {"regime.ratio": 0.5}
    assert others("d", "linear", swept, grid={"regime.ratio": [0.5]}, regime={"kind": "replace"}) == 0
    pinned = {"kind": "replace", "ratio": 0.1}
    assert others("e", "linear", regime=pinned) == 0 == others("f", "linear", regime={"kind": "replace"})
    assert others("g", "linear", regime={"kind": "augment"}) == 6
