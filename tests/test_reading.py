"""Commands that only read change nothing, say what they had to leave out, and are stopped by no file of
somebody else."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundled import run_bundles
from chains import run_all
from conftest import GAUSSIAN, Make, harness, harness_process

from harness.coordinator.session import describe_chains
from harness.errors import InputError, StoreError
from harness.inspection.status import chain_states
from harness.inventory.retention import Eviction, weights_gone
from harness.reporting import ledger
from harness.reporting.costs import costs
from harness.store import Experiment, Leases, Store
from harness.store.health import collect, examine, needs
from harness.study import open_study

pytestmark = pytest.mark.slow


def fingerprint(root: Path) -> dict[str, str]:
    """Every file with its content, every folder and link."""
    found = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = hashlib.sha256(str(content).encode()).hexdigest()
    return found


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for place in {0, len(content) // 4}:  # Parquet's first byte says nothing
        content[place] ^= 1
    path.write_bytes(content)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


HARMS: list[Callable[[Path], None]] = [flip, Path.unlink, folder, loop]


def opened(config: Path, root: Path) -> tuple[Any, Store]:
    store = Store.read(root)
    prepared, scratch = open_study(config, (), store)
    scratch.cleanup()
    return prepared, store


@pytest.mark.parametrize("harm", HARMS)
def test_export_and_status_tell_of_damage_and_touch_nothing(
    make_config: Make, tmp_path: Path, harm: Any
) -> None:
    config, root = make_config(GAUSSIAN, grid={"seed": [0, 1]}), tmp_path / "root"
    prepared, _ = run_all(config, root)
    key = prepared.lineage.chains[1].nodes[1]
    harm(root / "evaluations" / key / "record.json")
    before = fingerprint(root)
    prepared, store = opened(config, root)
    assert len(ledger.rows(prepared, store)) == 4 + 1, "the rest of the chain rests on it"
    assert [path for path in store.trouble if key in path]
    prepared, store = opened(config, root)
    states = [state.state for state in chain_states(prepared, store)]
    assert states == ["complete", "damaged"]
    assert fingerprint(root) == before
    assert not Store(root).sound("evaluations", key), "a run sets it aside"
    run_all(config, root)
    prepared, store = opened(config, root)
    assert len(ledger.rows(prepared, store)) == 8 and not store.trouble


def test_the_commands_say_so_and_end_with_1(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    prepared, _ = run_all(config, root)
    flip(root / "evaluations" / prepared.lineage.chains[0].nodes[2] / "record.json")
    before = fingerprint(root)
    for command in (["export"], ["status"], ["status", "--json"], ["report", "--out", tmp_path / "report"]):
        done = harness(command[0], config, *command[1:], "--root", root)
        assert done.returncode == 1 and "record.json does not match its checksum" in done.stderr, command
        assert "the next harness run makes what is damaged again" in done.stderr
    assert fingerprint(root) == before
    nothing = harness("export", config, "--root", tmp_path / "typo")
    assert (
        nothing.returncode == 2
        and "nothing has been run yet at --root" in nothing.stderr
        and nothing.stdout == ""
    )


def in_the_way(path: Path) -> None:
    path.write_text("a file")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("lay", [in_the_way, loop])
def test_a_root_that_is_no_folder_is_one_message(
    make_config: Make, tmp_path: Path, lay: Callable[[Path], None]
) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    lay(root)
    for command in (("plan",), ("status",), ("run",), ("explain", "--chain", "0")):
        for place in (root, root / "below"):
            done = harness(command[0], config, *command[1:], "--root", place)
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), (command, done.stderr)
            assert f"--root {place} cannot be " in done.stderr
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert harness("status", config, "--root", link).returncode == 0, "nothing is there yet"


@pytest.mark.parametrize("lay", [in_the_way, loop])
@pytest.mark.parametrize("name", ["packs", "bundles", "evaluations", "corpora"])
def test_what_lies_in_a_folders_place_is_named(
    make_config: Make, tmp_path: Path, name: str, lay: Callable[[Path], None]
) -> None:
    """Rows in it are missing, and a store of which a part cannot be had is not written to."""
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    run_all(config, root)
    if (root / name).exists():
        (root / name).rename(tmp_path / "kept")
    lay(root / name)
    before = fingerprint(root)
    prepared, store = opened(config, root)
    assert len(ledger.rows(prepared, store)) == (0 if name == "evaluations" else 4)
    assert store.trouble[str(root / name)] == f"{root / name} is no folder, and no link to one"
    chain_states(prepared, store)
    with pytest.raises(InputError, match=f"cannot be written: .*{name} is no folder"):
        Store.open(root)
    unasked = Store(root)  # a rank's: what was there when the run began may go
    assert unasked.committed("evaluations") == store.committed("evaluations")
    assert list(unasked.trouble) == ([str(root / "packs")] if name == "packs" else [])
    assert fingerprint(root) == before


def text(path: Path) -> None:
    path.write_text('"fits"')


def outside(path: Path) -> None:
    """The whole folder cannot be entered."""
    shutil.rmtree(path.parent)
    path.parent.symlink_to(path.parent.name)


@pytest.mark.parametrize("harm", [*HARMS, text, outside])
def test_an_experiment_that_cannot_be_read_frees_nothing(
    make_config: Make, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Both share generation 0, which the first keeps and the second does not."""
    root, kept, freed = tmp_path / "root", {"retention.weights": "all"}, {"retention.weights": "none"}
    prepared, store = run_all(make_config(GAUSSIAN, "a.yaml", experiment="a", generations=1, **kept), root)
    Experiment(root, "a").begin({}, describe_chains(prepared))
    harm(root / "experiments" / "a" / "keep.json")
    other = make_config(GAUSSIAN, "b.yaml", experiment="b", generations=3, **freed)
    prepared, store = run_all(other, root)
    experiment, lines = Experiment(root, "b"), list[str]()
    experiment.begin({}, describe_chains(prepared))
    eviction = Eviction(prepared, store, experiment, (), lines.append)
    nodes = prepared.lineage.chains[0].nodes
    for node in nodes:
        eviction.committed(node)
    assert all(store.has_weights(prepared.lineage.nodes[node].fit) for node in nodes)
    assert len(lines) == 1 and "/a" in lines[0] and "`harness gc` frees them" in lines[0]
    with pytest.raises(StoreError, match="a cannot be read .*what it needs is not known"):
        needs(store)
    first = root / "experiments" / "a"
    first.unlink() if harm is outside else shutil.rmtree(first)
    assert collect(store, Leases(root, None)).weights == len(nodes)


def test_weights_stay_while_others_need_them(make_config: Make, tmp_path: Path) -> None:
    """A longer chain of another study goes on from them, and another part of this one keeps them."""
    root = tmp_path / "root"
    learner = {"learner": {"kind": "gaussian", "init": "previous", "merge": 0.5}}

    def study(name: str, weights: str, **changes: Any) -> Path:
        changes = {"experiment": name, "retention.weights": weights, **changes}
        return make_config({**GAUSSIAN, **learner}, f"{name}.yaml", **changes)

    def ended(config: Path, *part: str) -> list[bool]:
        """Which weights are there, once a run has committed all of it."""
        prepared, store = run_all(config, root, *part)
        experiment = Experiment(root, prepared.study.base.experiment)
        experiment.begin({}, describe_chains(prepared))
        eviction, nodes = Eviction(prepared, store, experiment, (), print), prepared.lineage.chains[0].nodes
        for node in nodes:
            eviction.committed(node)
        return [store.has_weights(prepared.lineage.nodes[node].fit) for node in nodes]

    longer = opened(study("b", "none", generations=4), root)[0]
    Store.open(root)
    Experiment(root, "b").begin({}, describe_chains(longer))
    assert ended(study("a", "none", generations=2)) == [True, False, True], "b goes on from 2, beside 0"
    assert ended(study("b", "none", generations=4)) == [False] * 5, "nobody is left who needs them"
    shutil.rmtree(root)
    both = study("c", "last", grid={"generations": [2, 4]})
    assert ended(both, "grid.generations=[2]") == [True, False, True]
    assert ended(both, "grid.generations=[4]") == [True, False, True, False, True], "the other part keeps 2"


@pytest.mark.parametrize("harm", HARMS)
def test_one_bad_bundle_stops_no_other_study(make_config: Make, tmp_path: Path, harm: Any) -> None:
    cheap = {
        "data": {"source": "gaussian"},
        "learner": {"kind": "gaussian"},
        "generations": 1,
        "tracking": {"wandb": "disabled"},
    }
    one = make_config({"experiment": "one", **cheap}, "one.yaml")
    two = make_config({"experiment": "two", **cheap, "seed": 7}, "two.yaml")
    run_bundles(one, tmp_path / "root")
    (bad,) = (tmp_path / "root" / "bundles").iterdir()
    run_bundles(two, tmp_path / "root")
    harm(bad)
    prepared, store = opened(two, tmp_path / "root")
    assert [state.state for state in chain_states(prepared, store)] == ["complete"]
    assert len(ledger.rows(prepared, store)) == 2 and (str(bad) in store.trouble) == (harm is not Path.unlink)
    assert Store.open(tmp_path / "root").bundles.index().keys() == {chain.key for chain in prepared.bundles}


def test_what_cannot_be_read_is_named_and_not_set_aside(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's file, or a disk that fails: nobody knows that it is damaged."""
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    prepared, _ = run_all(config, root)
    key = prepared.lineage.chains[0].nodes[1]
    plain = Path.read_bytes

    def fails(path: Path) -> bytes:
        if key in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", fails)
    with pytest.raises(StoreError, match="cannot be read: Permission denied"):
        Store(root).sound("evaluations", key)
    assert Store(root).has("evaluations", key) and not (root / "damaged").exists()
    store = Store.read(root)
    assert store.record(key) is None and "Permission denied" in "".join(store.trouble.values())
    store = Store.read(root)
    whole = [line["generations"] for line in costs(prepared, store)["lines"]]
    assert whole == [len(prepared.lineage.nodes) - 1] * len(whole) and whole, "what can be read is told"
    assert "Permission denied" in "".join(store.trouble.values())


@pytest.mark.parametrize(
    "content", ["", '{"time": 1, "ev', "[]\n", '{"time": 1, "event": "x"}\n', "[" * 100_000]
)
def test_torn_events_stop_nothing(tmp_path: Path, content: str) -> None:
    experiment = Experiment(tmp_path, "e")
    experiment.path.mkdir(parents=True)
    (experiment.path / "events.jsonl").write_text(content)
    experiment.event("one", n=1)
    Experiment(tmp_path, "e").event("two", n=2)
    assert [event["event"] for event in experiment.events() if "n" in event] == ["one", "two"]


def test_a_torn_last_line_takes_no_other_with_it(tmp_path: Path) -> None:
    Experiment(tmp_path, "e").event("one")
    with open(tmp_path / "experiments" / "e" / "events.jsonl", "a") as file:
        file.write('{"time": 2, "event": "cut')
    Experiment(tmp_path, "e").event("two")
    assert [event["event"] for event in Experiment(tmp_path, "e").events()] == ["one", "two"]


@pytest.mark.parametrize("content", ["", "{}", "[1]", "garbage", '{"format": "1"}'])
def test_a_damaged_format_says_what_to_do(tmp_path: Path, content: str) -> None:
    Store.open(tmp_path / "root")
    (tmp_path / "root" / "format").write_text(content)
    for way in (Store.open, Store.read):
        with pytest.raises(StoreError, match=r'write it anew \(echo \'\{"format": 1\}\' > .*doctor --store'):
            way(tmp_path / "root")


def test_data_that_are_gone_are_made_again(make_config: Make, tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.Generator(np.random.PCG64(1)).normal(size=(60, 2)))
    data = {"source": "array", "path": str(tmp_path / "rows.npy"), "num_examples": 50}
    config, root = make_config(GAUSSIAN, data=data, generations=1), tmp_path / "root"
    run_all(config, root)
    (made,) = (root / "data").iterdir()
    (made / "rows.npy").unlink()
    for command in ("report", "export", "status"):
        done = harness(command, config, "--root", root)
        assert done.returncode in (0, 1) and "defect" not in done.stderr, done.stderr
    again = harness("run", config, "--root", root, "--json", "--address", "127.0.0.1:1")
    assert again.returncode == 0, again.stderr
    assert (root / "data" / made.name / "rows.npy").exists()
    assert not [item for item in examine(Store(root), Leases(root, None)) if item.severity == "damage"]


def test_whatever_file_is_harmed_is_named_and_made_again(make_config: Make, tmp_path: Path) -> None:
    """Every file of every item in the store, in two ways each; then a run gives the same rows."""
    np.save(tmp_path / "rows.npy", np.random.Generator(np.random.PCG64(1)).normal(size=(60, 2)))
    data = {"source": "array", "path": str(tmp_path / "rows.npy"), "num_examples": 50}
    config, root = make_config(GAUSSIAN, data=data, generations=1), tmp_path / "root"
    run_all(config, root)
    rows = list(ledger.rows(*opened(config, root)))
    kinds = ("data", "fits", "corpora", "evaluations")
    files = [path for kind in kinds for path in sorted((root / kind).rglob("*")) if path.is_file()]
    assert len({path.name for path in files}) > 8
    for number, path in enumerate(files):
        item = "/".join(path.relative_to(root).parts[:2])
        for harm in (HARMS[number % 4], HARMS[(number + 1) % 4]):
            harm(path)
            found = list(examine(Store(root), Leases(root, None), repair=True))
            named = [each for each in found if each.severity == "damage" and each.where.startswith(item)]
            shorter = harm is Path.unlink and path.suffix == ".parquet"  # of a corpus that no record needs
            assert named or shorter, (path, harm, found)
            run_all(config, root)
            assert list(ledger.rows(*opened(config, root))) == rows, (path, harm)
            left = [each.severity for each in examine(Store(root), Leases(root, None))]
            assert "damage" not in left, (path, harm)


def test_out_writes_through_what_is_no_regular_file(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, generations=0), tmp_path / "root"
    run_all(config, root)
    whole = harness("export", config, "--root", root).stdout
    target, link = tmp_path / "real.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    assert harness("export", config, "--root", root, "--out", link).returncode == 0
    assert link.is_symlink() and target.read_text() == whole
    assert harness_process("export", config, "--root", root, "--out", "/dev/stdout").stdout == whole
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    assert harness("export", config, "--root", root, "--out", pipe).returncode == 0
    assert os.read(reader, 65536).decode() == whole and not pipe.is_file()
    os.close(reader)
    assert json.loads(harness("export", config, "--root", root, "--format", "json").stdout)


def test_weights_that_retention_would_keep_are_counted(make_config: Make, tmp_path: Path) -> None:
    """`retention.weights: all` after `last`: nothing is fitted again for it, so plan and run say what is
    missing."""
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    prepared, store = run_all(config, root)
    first, second, *_ = prepared.lineage.nodes.values()
    assert weights_gone(prepared, store) == 0
    store.evict_weights(second.fit, "retention")
    assert weights_gone(prepared, store) == 0, "the second is not among those that `last` keeps"
    everything = ("--set", "retention.weights=all")
    assert (
        json.loads(harness("plan", config, "--root", root, "--json", *everything).stdout)["weights_gone"] == 1
    )
    done = harness("run", config, "--root", root, *everything)
    assert done.returncode == 0 and "1 fit that retention.weights keeps was freed before" in done.stderr
    answer, reserved, counts = done.stdout.splitlines()
    assert reserved == "One seed: there are no intervals, and differences may be chance."
    assert answer.startswith("log variance ") and counts.startswith("chains complete: 1")
    assert answer in harness("report", config, "--root", root).stdout.splitlines(), "whole, in a pipe too"
    store.evict_weights(first.fit, "retention")
    assert weights_gone(prepared, store) == 1
    explained = harness("explain", config, "--root", root).stdout.splitlines()
    freed = [line.endswith("; its weights were freed (retention.weights)") for line in explained[1:]]
    assert freed == [True, True, False, False]
    store.weights_file(
        prepared.lineage.chains[0].nodes and list(prepared.lineage.nodes.values())[3].fit
    ).unlink()
    assert weights_gone(prepared, store) == 1, "what is missing was not freed"
