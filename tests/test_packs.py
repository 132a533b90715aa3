"""Records of single chains in packs: read as from their folders, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from chains import open_prepared, run_all
from conftest import GAUSSIAN, Make, harness

from harness.coordinator import packing
from harness.errors import StoreError
from harness.files import remove_tree
from harness.inventory import Inventory
from harness.store import Leases, Store, packs
from harness.store import store as module
from harness.store.health import evaluations_by_chain, examine

SINGLE = {
    **GAUSSIAN,
    "generations": 3,
    "grid": {"seed": [0, 1], "regime.synthetic_ratio": [1.0, 0.5]},
    "resources": {"bundled": False},
}
"""Four chains, 14 different generations."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A configuration, and a store that has all of it in folders."""
    import yaml

    place = tmp_path_factory.mktemp("folders")
    config = place / "study.yaml"
    config.write_text(yaml.safe_dump(SINGLE))
    run_all(config, place / "root")
    return config, place / "root"


@pytest.fixture
def copy(folders: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, for one test."""
    shutil.copytree(folders[1], tmp_path / "root")
    return folders[0], tmp_path / "root"


def packed(root: Path) -> Store:
    store = Store.open(root)
    assert store.pack(evaluations_by_chain(store)) == 14
    assert not os.listdir(root / "evaluations") and not os.listdir(root / "work")
    return Store.open(root)


def contents(store: Store) -> dict[tuple[str, str], bytes]:
    """Every file of every evaluation."""
    names = ("spec.json", "record.json", "provenance.json", "continuations.json", "arrays.safetensors")
    return {
        (key, name): store.content("evaluations", key, name)
        for key in store.committed("evaluations")
        for name in names
    }


def test_each_file_is_the_same_to_the_byte(copy: tuple[Path, Path]) -> None:
    before = contents(Store.read(copy[1]))
    store = packed(copy[1])
    assert contents(store) == before == contents(Store.read(copy[1]))
    for key in store.committed("evaluations"):
        assert store.has("evaluations", key) and store.sound("evaluations", key)
        store.check("evaluations", key)
        assert store.place("evaluations", key).parent == copy[1] / "packs"
        assert store.packs.bytes_each(key) == store.place("evaluations", key).stat().st_size // 14
    assert store.pack(evaluations_by_chain(store)) == 0


@pytest.mark.slow
def test_commands_say_the_same(copy: tuple[Path, Path], tmp_path: Path) -> None:
    config, root = copy

    def said(*command: str) -> str:
        done = harness(*command, "--root", root)
        assert done.returncode == 0, done.stderr
        return done.stdout

    other = ("--set", "data.num_examples=21")
    chains = [
        json.loads(said("status", str(config), "--json", *more))["chains"][1]["chain"] for more in ((), other)
    ]
    commands = [
        ("status", str(config), "--json"),
        ("plan", str(config), "--json"),
        ("explain", str(config), "--chain", chains[0]),
        ("explain", str(config), "--chain", chains[1], *other),
        ("export", str(config), "--provenance"),
        ("gc", "--dry-run"),
        ("doctor", "--store"),
        ("report", str(config), "--out", str(tmp_path / "report")),
    ]
    before = [said(*command) for command in commands]
    disk = sum(file.stat().st_size for file in (root / "evaluations").glob("*/*"))
    page = (tmp_path / "report" / "report.html").read_text()
    said_of_it = json.loads(said("compact", "--json"))
    assert said_of_it == {"packed": 14, "packs": 1}
    assert not os.listdir(root / "evaluations")
    free = "free on its disk"
    for command, expected in zip(commands, before, strict=True):
        lines = [
            [line for line in text.splitlines() if free not in line] for text in (said(*command), expected)
        ]
        assert lines[0] == lines[1], command
    (pack,) = (root / "packs").iterdir()
    before_and_after = (f">{size / 1e6:.3g}<" for size in (disk, pack.stat().st_size // 14 * 14))
    assert (tmp_path / "report" / "report.html").read_text() == page.replace(*before_and_after)
    assert json.loads((root / "format").read_text())["format"] == module.PACKED


def test_a_run_goes_on_from_packs(
    copy: tuple[Path, Path], folders: tuple[Path, Path], tmp_path: Path
) -> None:
    config, root = copy
    packed(root)
    longer = ("generations=4",)
    run_all(config, root, *longer)
    assert len(os.listdir(root / "evaluations")) == 4, "only what is new has been computed"
    prepared, whole = run_all(config, tmp_path / "whole", *longer)
    records = [{key: store.record(key) for key in prepared.lineage.nodes} for store in (Store(root), whole)]
    assert records[0] == records[1]


@pytest.mark.parametrize("step", ["format", "pack", "first folder", "last folder", "rest"])
def test_a_crash_loses_nothing(copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    class Crash(BaseException):
        pass

    root, calls = copy[1], [0]
    before = contents(Store.read(root))
    store = Store.open(root)
    rename = os.rename

    def crashing(name: str) -> Callable[..., Any]:
        def crash(*arguments: Any, **options: Any) -> Any:
            raise Crash(name)

        return crash

    def renames(source: Any, target: Any) -> None:
        calls[0] += 1
        if calls[0] == {"first folder": 1, "last folder": 14}[step]:
            raise Crash
        rename(source, target)

    match step:
        case "format":
            monkeypatch.setattr(module, "write_json", crashing(step))
        case "pack":
            monkeypatch.setattr("harness.store.packs.link_once", crashing(step))
        case "rest":
            monkeypatch.setattr(store, "_leave", crashing(step))
        case _:
            monkeypatch.setattr(os, "rename", renames)
    with pytest.raises(Crash):
        store.pack(evaluations_by_chain(store))
    monkeypatch.undo()
    assert contents(Store.read(root)) == before
    again = Store.open(root)
    again.pack(evaluations_by_chain(again))
    assert not os.listdir(root / "evaluations")
    assert contents(Store.read(root)) == before
    assert not [found for found in examine(again, Leases(root, None)) if found.severity == "damage"]


def _damage(root: Path, at: float) -> Path:
    """One byte of a pack changed, so far from its beginning (a share of its length)."""
    (path,) = (root / "packs").glob("*.parquet")
    content = bytearray(path.read_bytes())
    content[min(int(at * len(content)), len(content) - 1)] ^= 0xFF
    path.write_bytes(content)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("at", [0.02, 0.3, 0.6, 0.9, 1 - 1e-9])
def test_a_damaged_pack_is_told_and_made_good(copy: tuple[Path, Path], at: float) -> None:
    config, root = copy
    prepared, _ = open_prepared(config, root)
    records = {key: Store.read(root).record(key) for key in prepared.lineage.nodes}
    packed(root)
    path = _damage(root, at)
    told = harness("export", config, "--root", root)
    assert told.returncode == 1 and told.stderr.count(path.name) == 1
    assert path.exists(), "reading changes nothing"
    damaged = harness("doctor", "--store", "--root", root)
    assert damaged.returncode == 1 and "\n1 damaged\n" in damaged.stdout
    assert path.name in damaged.stdout
    run_all(config, root)
    store = Store.open(root)
    assert {key: store.record(key) for key in prepared.lineage.nodes} == records
    assert harness("export", config, "--root", root).returncode == 0


def test_what_is_undamaged_gets_its_folder_back(
    copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy[1]
    before = contents(Store.read(root))
    monkeypatch.setattr(packs, "GROUP", 4)
    packed(root)
    _damage(root, 0.5)
    remedies = [
        f.remedy for f in examine(Store.open(root), Leases(root, None), repair=True) if f.severity == "damage"
    ]
    assert any("folders again" in remedy for remedy in remedies)
    assert not os.listdir(root / "packs")
    kept = contents(Store.read(root))
    assert len(before) * 8 / 14 <= len(kept) < len(before), "two of the four groups at most are lost"
    assert kept.items() <= before.items()
    # A pack that only has another name is whole inside.
    again = Store.open(root)
    again.pack(evaluations_by_chain(again))
    (path,) = (root / "packs").glob("*.parquet")
    path.rename(path.with_name(f"{'0' * 32}.parquet"))
    store = Store.open(root)
    assert all(store.sound("evaluations", key) for key, _ in kept)
    assert contents(store) == kept and not os.listdir(root / "packs")


@pytest.mark.parametrize(
    "wrong", [pa.ArrowMemoryError("malloc of size 64 failed"), OSError(errno.EIO, "I/O error")]
)
def test_a_pack_that_cannot_be_read_now_stays(
    copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, wrong: Exception
) -> None:
    """Want of memory, or a network that fails, says nothing about what is in it."""
    root = copy[1]
    packed(root)
    (name,), before = os.listdir(root / "packs"), contents(Store.read(root))

    def fails(*_: Any, **__: Any) -> Any:
        raise wrong

    for method in ("read_row_group", "__init__"):
        with monkeypatch.context() as patched:
            patched.setattr(packs.pq.ParquetFile, method, fails)
            store = Store.open(root)
            with pytest.raises((MemoryError, StoreError)) as found:
                contents(store) or store.content("evaluations", next(iter(before))[0], "record.json")
            assert isinstance(found.value, MemoryError) == isinstance(wrong, MemoryError)
            with pytest.raises((MemoryError, OSError)):
                store.unpack(name)
    assert os.listdir(root / "packs") == [name] and not (root / "damaged").exists()
    assert contents(Store.open(root)) == before


def test_a_pack_that_others_have_unpacked_is_read_from_folders(copy: tuple[Path, Path]) -> None:
    root = copy[1]
    packed(root)
    store, (name,) = Store.open(root), os.listdir(root / "packs")
    before, reader = contents(store), Store.read(root)
    assert len(reader.packs.keys()) == 14, "it has looked"
    Store.open(root).unpack(name)
    assert contents(store) == before
    assert all(reader.sound("evaluations", key) for key, _ in before) and not reader.trouble
    assert store.pack(evaluations_by_chain(store)) == 14 and os.listdir(root / "packs") == [name]
    assert contents(store) == before and not store.packs.damage(name)


def test_a_byte_may_be_damaged_anywhere(copy: tuple[Path, Path]) -> None:
    """Whatever it hits, what is read afterwards is what was written."""
    root = copy[1]
    before = contents(Store.read(root))
    packed(root)
    (path,) = (root / "packs").glob("*.parquet")
    content, lost = path.read_bytes(), 0
    places = [*range(0, len(content), len(content) // 40), len(content) - 1, len(content) - 6]
    for place in places:
        for folder in ("packs", "evaluations", "damaged"):
            shutil.rmtree(root / folder, ignore_errors=True)
            (root / folder).mkdir()
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x5A]) + content[place + 1 :])
        told = Store.read(root)
        assert not any(told.sound("evaluations", key) for key in told.committed("evaluations"))
        assert told.trouble
        store = Store.open(root)
        kept = [key for key in store.committed("evaluations") if store.sound("evaluations", key)]
        found = contents(Store.open(root)) if kept else {}
        assert found.items() <= before.items() and len(found) == 5 * len(kept)
        lost += len(kept) < 14
    assert lost < len(places), "sometimes all of it is there"


@pytest.mark.parametrize("wrong", ["e\0a", "../../outside", "", "\ud7ff" * 40])
def test_keys_that_are_damaged_are_found_again(copy: tuple[Path, Path], wrong: str) -> None:
    """What a row is follows from its spec, and no folder is made by another name."""
    root = copy[1]
    before, store = contents(Store.read(root)), Store.open(root)
    keys = sorted(store.committed("evaluations"))
    names = os.listdir(root / "evaluations" / keys[0])
    items = {key: {name: store.content("evaluations", key, name) for name in names} for key in keys}
    store.pack(keys)
    remove_tree(root / "packs")
    store = Store.open(root)
    store.unpack(store.packs.write({wrong if key == keys[3] else key: items[key] for key in keys}))
    assert sorted(os.listdir(root / "evaluations")) == keys
    assert contents(Store.open(root)) == before
    assert not (root.parent / "outside").exists() and not os.listdir(root / "work")


def test_damage_in_a_folder_stays_in_it(copy: tuple[Path, Path]) -> None:
    root = copy[1]
    key = sorted(os.listdir(root / "evaluations"))[3]
    (root / "evaluations" / key / "record.json").write_text("{}")
    store = Store.open(root)
    assert store.pack(evaluations_by_chain(store)) == 13
    assert os.listdir(root / "evaluations") == [key]


def test_a_damaged_folder_beside_its_pack_misleads_nobody(copy: tuple[Path, Path], tmp_path: Path) -> None:
    """As a crash between the two leaves it, or a file server that still shows what is gone."""
    root = copy[1]
    before = contents(Store.read(root))
    shutil.copytree(root / "evaluations", tmp_path / "evaluations")
    packed(root)
    shutil.copytree(tmp_path / "evaluations", root / "evaluations", dirs_exist_ok=True)
    for path in (root / "evaluations").glob("*/record.json"):
        path.write_text("{}")
    for store in (Store.read(root), Store.open(root)):
        assert all(store.sound("evaluations", key) for key, _ in before)
        assert contents(store) == before and not store.trouble
    assert store.pack(evaluations_by_chain(store)) == 14 and len(store.packs.names()) == 1
    assert contents(Store.read(root)) == before and not os.listdir(root / "evaluations")


def test_a_folder_with_a_note_of_somebody_stays(copy: tuple[Path, Path]) -> None:
    root = copy[1]
    noted, nested = sorted(os.listdir(root / "evaluations"))[3:5]
    (root / "evaluations" / noted / "NOTE.txt").write_text("look at this one")
    (root / "evaluations" / nested / "plots").mkdir()
    store = Store.open(root)
    assert store.pack(evaluations_by_chain(store)) == 12
    assert sorted(os.listdir(root / "evaluations")) == [noted, nested]
    assert (root / "evaluations" / noted / "NOTE.txt").exists()


def test_nothing_is_removed_that_does_not_read_back(
    copy: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(copy[1])
    monkeypatch.setattr(store.packs, "salvaged", lambda name: iter(()))
    with pytest.raises(StoreError, match="does not read back"):
        store.pack(evaluations_by_chain(store))
    assert len(os.listdir(copy[1] / "evaluations")) == 14


def _pack_all(root: Path) -> None:
    store = Store.open(root)
    store.pack(evaluations_by_chain(store))


def test_others_read_and_pack_meanwhile(copy: tuple[Path, Path]) -> None:
    config, root = copy
    prepared, _ = open_prepared(config, root)
    before = contents(Store.read(root))
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_pack_all, args=(root,)) for _ in range(2)]
    for other in others:
        other.start()
    looks = 0
    while looks < 3 or any(other.is_alive() for other in others):
        store = Store(root)  # one that mends: what it took for damaged would be set aside
        assert not Inventory(prepared, store).left
        assert contents(store) == before
        looks += 1
    for other in others:
        other.join()
        assert other.exitcode == 0
    assert not os.listdir(root / "evaluations") and not (root / "damaged").exists()


def test_a_key_that_is_packed_is_not_committed_again(copy: tuple[Path, Path]) -> None:
    store = packed(copy[1])
    key = min(store.committed("evaluations"))
    staged = store.stage(key)
    assert not store.commit("evaluations", key, staged, store.json("evaluations", key, "spec.json"))
    assert not os.listdir(copy[1] / "evaluations") and not os.listdir(copy[1] / "work")


def test_an_earlier_version_refuses_a_store_with_packs(copy: tuple[Path, Path], monkeypatch: Any) -> None:
    packed(copy[1])
    monkeypatch.setattr(module, "PACKED", module.FORMAT)
    with pytest.raises(StoreError, match="upgrade it"):
        Store.read(copy[1])


@pytest.mark.ray
def test_a_run_packs_what_it_has_completed(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "PACK_AT", 5)
    root = tmp_path / "root"
    config = make_config({**SINGLE, "grid": {"seed": [0, 1, 2]}, "generations": 2})
    summary, warnings, _ = run_study(config, root)
    assert (summary.chains_complete, warnings) == (3, [])
    assert len(os.listdir(root / "evaluations")) == 3, "two chains of three generations are one pack"
    assert len(list((root / "packs").glob("*.parquet"))) == 1
    remove_tree(root / "packs")

    def full(store: Store, keys: list[str]) -> int:
        raise StoreError("no room")

    monkeypatch.setattr(Store, "pack", full)
    summary, warnings, _ = run_study(config, root)
    assert summary.chains_complete == 3
    assert warnings == ["records stay in their folders, for they cannot be packed: no room"]
