"""Entries of stores in which something is wrong: one message each, and nothing half-written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import METRIC, MITIGATIONS, TRACK, compute, entries_of, one_by_one, with_data, write
from bundled import run_bundles
from chains import run_all
from conftest import harness
from pydantic import ValidationError

from harness import proc
from harness.board.build import read_entries, read_verifications, tables_of
from harness.board.declared import _declaration
from harness.board.entry import Entry, SeedResult, read_entry, write_entry
from harness.board.score import table_of
from harness.board.seeds import listed_chains
from harness.board.values import MetricValues
from harness.board.verify import verified
from harness.config.grid import find_cells
from harness.errors import InputError
from harness.science import key_of
from harness.store import Store


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Entry]]:
    return compute(tmp_path_factory.mktemp("board"))


def test_records_that_are_missing(computed: Any, tmp_path: Path) -> None:
    """All of them, and those of one generation of one seed."""
    config, _, entries = computed
    Store.open(tmp_path / "empty")
    with pytest.raises(InputError, match="^keep: the store has none of its generations; harness run comp"):
        entries_of(config, tmp_path / "empty", "grid.mitigation=[keep, none]")
    with pytest.raises(InputError, match="none of its generations"):
        verified(entries["keep"], tmp_path / "empty")
    small = write(tmp_path / "study", {"keep": MITIGATIONS["keep"]}, seeds=[0, 1, 2, 3, 4])
    one_by_one(small, generations=1)
    prepared, store = run_all(small, tmp_path / "root")
    entry = entries_of(small, tmp_path / "root")["keep"]
    victim = next(chain for chain in prepared.lineage.chains if prepared.axes(chain)["mitigation"] == "keep")
    shutil.rmtree(store.path("evaluations", victim.nodes[1]))
    again = entries_of(small, tmp_path / "root")["keep"]
    assert not again.is_replicated and len(again.seeds[str(victim.seed)].keys) == 1
    outcome = verified(entry, tmp_path / "root")
    assert not outcome.good and any(line.startswith(f"seeds.{victim.seed}.") for line in outcome.lines)


def test_records_of_another_track(computed: Any, tmp_path: Path) -> None:
    """The same recipe in another environment has other keys, so its records are nobody's here."""
    entries, environment = (
        computed[2],
        {**TRACK["config"], "data": {**TRACK["config"]["data"], "outcomes": 13}},
    )
    other = write(tmp_path / "study", config=environment)
    run_bundles(other, tmp_path / "root")
    with pytest.raises(InputError, match="keep: the store has none of its generations"):
        verified(entries["keep"], tmp_path / "root")
    theirs, mine = entries_of(other, tmp_path / "root")["keep"], entries["keep"].model_dump(mode="json")
    claimed = with_data(theirs, lambda data: data.update(track=mine["track"]))
    with pytest.raises(InputError, match="none of its generations"):
        verified(claimed, tmp_path / "root")
    outcome = verified(claimed, computed[1])
    assert not outcome.good and any(line.startswith("configuration.data") for line in outcome.lines)
    assert [len(table.lines) for table in tables_of([entries["keep"], claimed])] == [1, 1]


def test_processors_of_two_models_may_round_otherwise(
    computed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry names the model of its processor; only where that is the same do two contradict each other."""
    entry, names = computed[2]["keep"], []
    cpu = entry.provenance.devices
    assert cpu == (proc.cpu_device(),) and cpu[0].startswith("cpu, ")
    for model in ("AMD  EPYC 9B14", "Intel(R) Xeon(R) Platinum 8581C", ""):
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: {model}\n" * 2)
        monkeypatch.setattr(proc, "_PROCESSORS", tmp_path / "cpuinfo")
        proc.cpu_device.cache_clear()
        names.append(proc.cpu_device())
    proc.cpu_device.cache_clear()
    assert names[:2] == ["cpu, AMD EPYC 9B14", "cpu, Intel(R) Xeon(R) Platinum 8581C"]
    assert len(names[2]) > len("cpu, ")

    def on(name: str, digit: float) -> Entry:
        def change(data: dict[str, Any]) -> None:
            data["provenance"]["devices"] = [name]
            data["seeds"]["3"]["metrics"][METRIC][-1] += digit

        return with_data(entry, change)

    table_of(entry.track, [on(names[0], 0.0), on(names[1], 1e-6)])
    with pytest.raises(InputError, match="different numbers under one key"):
        table_of(entry.track, [on(names[0], 0.0), on(names[0], 1e-6)])


@pytest.mark.parametrize(
    ("drawn", "value", "contradicts"),
    [
        (((), ()), 3.0001, False),
        (((128,), ()), 3.0001, False),
        (((128,), (16,)), 3.0001, False),
        (((16, 128), (16, 128)), 3.0001, False),
        (((128,), (16,)), 3.01, True),
        (((128,), (128,)), 3.0001, True),
        (((128,), (128,)), 3.0 + 1e-7, True),
        (((128,), (128,)), 3.0 + 1e-10, False),
    ],
)
def test_last_digits_of_own_text(
    computed: Any, drawn: tuple[tuple[int, ...], ...], value: float, contradicts: bool
) -> None:
    """They depend on how many texts were drawn at once: where that was the same they must not differ."""
    entry = computed[2]["keep"]

    def with_nll(value: float, sizes: tuple[int, ...], metric: str = "self/nll_mean") -> Entry:
        def change(data: dict[str, Any]) -> None:
            count = len(data["seeds"]["3"]["metrics"][METRIC])
            data["seeds"]["3"]["metrics"][metric] = [value] * count
            if sizes:
                data["provenance"]["sample_batches"] = sizes

        return with_data(entry, change)

    pair = [with_nll(3.0, drawn[0]), with_nll(value, drawn[1])]
    if contradicts:
        message = r"different numbers under one key .*self/nll_mean of generation 0"
        with pytest.raises(InputError, match=message):
            table_of(entry.track, pair)
    else:
        table_of(entry.track, pair)
    with pytest.raises(InputError, match="different numbers under one key"):  # whatever the sizes
        table_of(entry.track, [with_nll(v, d, METRIC) for v, d in zip((3.0, 3.0 + 1e-7), drawn, strict=True)])


DRAWN_ANEW = "its texts were drawn 20 at once, by the artifacts 10, 20: they may be drawn anew"


def drawn_in(store: Store, key: str, count: int, sizes: Sequence[int], noted: bool = True) -> None:
    """A corpus as if so many of its examples had been drawn at a time."""
    examples, start = store.corpora.load(key, count), 0
    for path in (store.root / "corpora" / key).glob("*.parquet"):
        path.unlink()
    for size in sizes:
        part = examples.take(slice(start, start + size))
        store.corpora.append(key, start, part, np.zeros(len(part)) if noted else None)
        start += len(part)


def test_an_entry_says_how_many_were_drawn_at_once(tmp_path: Path) -> None:
    """Of all that metrics read, the baseline's too; nothing where scores were not kept as they were drawn."""
    config = write(tmp_path / "study", {"keep": {"regime.synthetic_ratio": 0.5}}, seeds=list(range(5)))
    one_by_one(config, generations=1)
    prepared, store = run_all(config, tmp_path / "root")

    def sizes() -> tuple[int, ...]:
        return entries_of(config, store.root)["keep"].provenance.sample_batches

    assert sizes() == ()
    nodes = [prepared.lineage.nodes[key] for c in prepared.lineage.chains for key in c.nodes]
    read = {node.corpus: node.spec.measured.examples for node in nodes}
    assert set(read.values()) == {40}
    for key in read:
        drawn_in(store, key, 40, [20, 20])
    entry = entries_of(config, store.root)["keep"]
    assert sizes() == (20,) and verified(entry, store.root).lines == ()
    older = with_data(entry, lambda data: data["provenance"].pop("sample_batches"))
    assert verified(older, store.root).lines == (), "the same runs, of which it says less"
    late = with_data(older, lambda data: data["cost"].update(device_hours=1e-9))
    assert any(line.startswith("cost.device_hours") for line in verified(late, store.root).lines)
    (none,) = find_cells(prepared.study, {"mitigation": "none"})
    key = next(prepared.lineage.nodes[c.nodes[1]] for c in prepared.lineage.chains if c.cell == none).corpus
    store.corpora.append(key, 40, store.corpora.load(key, 16), np.zeros(16))
    assert sizes() == (20,), "nobody who reads the first 40 cares what another study has drawn behind them"
    for parts, noted, said in (([20, 10, 10], True, (10, 20)), ([20, 20], False, ())):
        drawn_in(store, key, 40, parts, noted)
        assert sizes() == said
        found = verified(entry, store.root)
        assert found.good and found.lines == (() if not said else (DRAWN_ANEW,))


def test_all_entries_that_say_one_size_are_held_together(computed: Any) -> None:
    """Also where the first of them says none."""
    entry = computed[2]["keep"]

    def with_nll(value: float, *sizes: int) -> Entry:
        def change(data: dict[str, Any]) -> None:
            count = len(data["seeds"]["3"]["metrics"][METRIC])
            data["seeds"]["3"]["metrics"]["self/nll_mean"] = [value] * count
            data["provenance"]["sample_batches"] = sizes

        return with_data(entry, change)

    table_of(entry.track, [with_nll(3.0), with_nll(3.0001, 128), with_nll(2.9999, 16)])
    with pytest.raises(InputError, match="different numbers under one key"):
        table_of(entry.track, [with_nll(3.0), with_nll(3.0001, 128), with_nll(2.9999, 128)])


def test_values_of_a_metric_are_as_a_tuple(computed: Any) -> None:
    """They take 8 bytes each, and read and are written as a tuple of numbers and None does."""
    entry = computed[2]["keep"]
    for plain in ((1.5, None, -0.0, 1e-7, 3.0), (0.1, 0.2), (None,), ()):
        values = MetricValues(plain)
        assert values == plain and plain == tuple(values) and hash(values) == hash(plain)
        assert values == MetricValues(plain) and values != MetricValues((*plain, 1.0))
        assert (len(values), repr(values), values[:1]) == (len(plain), repr(plain), plain[:1])
        assert [values[g] for g in range(-len(plain), len(plain))] == [*plain, *plain]

        def change(data: dict[str, Any], plain: Any = plain) -> None:
            data["seeds"]["3"]["metrics"][METRIC] = plain

        changed = with_data(entry, change)
        assert changed.seeds["3"].metrics[METRIC] == plain and isinstance(
            changed.seeds["3"].metrics[METRIC], MetricValues
        )
        assert json.loads(changed.content)["seeds"]["3"]["metrics"][METRIC] == [*plain]
    assert MetricValues((1.0, None)) != (1.0, 0.0) and MetricValues((1.0,)) != [1.0]
    with pytest.raises(IndexError):
        MetricValues(())[0]
    for odd, found in (([1.0, "x"], "1.*unable to parse"), ([float("inf")], "0.*finite"), ("ab", ".*tuple")):
        with pytest.raises(ValidationError, match=rf"(?s)metrics\.x\.?{found}"):
            SeedResult(chain="c", state="complete", metrics={"x": odd})


@pytest.mark.parametrize("commits", [(), ("",), ("0123456789ab", "0123456789ab+dirty")])
def test_a_source_tree_with_changes_is_marked(computed: Any, commits: tuple[str, ...]) -> None:
    clean = with_data(computed[2]["keep"], lambda data: data["provenance"].update(commits=["0123456789ab"]))
    other = with_data(clean, lambda data: data["provenance"].update(commits=list(commits)))
    marks = ["source tree not clean" in table_of(e.track, [e]).lines[0].badges for e in (clean, other)]
    assert marks == [False, True]


@pytest.mark.slow
def test_commands_say_what_is_wrong_in_one_message(computed: Any, tmp_path: Path) -> None:
    config, root, entries = computed
    missing = harness("leaderboard", "add", config, "--root", tmp_path / "none", "--to", tmp_path / "board")
    assert missing.returncode == 2 and "nothing has been run yet at --root" in missing.stderr
    assert not (tmp_path / "board").exists()
    place = write_entry(entries["keep"], tmp_path / "board")
    place.write_text(place.read_text().replace("0.5", "0.6"))
    edited = harness("leaderboard", "verify", place, "--root", root)
    assert edited.returncode == 2 and "was changed after it was made" in edited.stderr
    for done in (missing, edited):
        assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_odd_files_among_verifications(computed: Any, tmp_path: Path) -> None:
    """Nobody waits for a pipe, and no link is followed to nowhere."""
    folder = write_entry(computed[2]["keep"], tmp_path).parent
    os.mkfifo(folder / "a.verification.json")
    (folder / "b.verification.json").symlink_to("nowhere")
    (tmp_path / "c.verification.json").write_text("{}")
    _, foreign = read_entries(tmp_path)
    names = ["c.verification.json", "small/a.verification.json", "small/b.verification.json"]
    assert sorted(map(str, foreign)) == names and read_verifications(tmp_path) == []


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_entry_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "pipe.json" if kind == "pipe" else Path("/dev/zero")
    if kind == "pipe":
        os.mkfifo(place)
    with pytest.raises(InputError, match=f"{place} is no entry: it is no regular file"):
        read_entry(place)


@pytest.mark.parametrize("time", [1e300, -1e300, 1e12, float("nan"), float("inf"), "x", None])
def test_a_declaration_of_no_time(tmp_path: Path, time: Any) -> None:
    """What says when a study claimed something, and says nothing that a calendar has, is damaged."""
    said = {"claims": []}
    place = tmp_path / "experiments" / "x" / "declared" / f"{key_of(said)}.json"
    place.parent.mkdir(parents=True)
    place.write_text(json.dumps({"declaration": said, "time": time}))
    with pytest.raises(InputError, match=f"{place.name} is damaged"):
        _declaration(Store.read(tmp_path), key_of(said))


@pytest.mark.parametrize("content", ["{}", "5", '"x"', '[{"chain": "a", "seed": 1e999}]', "[[]]"])
def test_a_list_of_chains_that_is_none(tmp_path: Path, content: str) -> None:
    place = tmp_path / "experiments" / "x" / "chains.json"
    place.parent.mkdir(parents=True)
    place.write_text(content)
    with pytest.raises(InputError, match="chains.json is damaged, so it is not known which seeds were run"):
        listed_chains(Store.read(tmp_path))
