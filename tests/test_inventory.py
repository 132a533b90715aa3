"""One answer to "is it done?": plan, status, explain and run agree, whatever has become of a store."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from bundled import run_bundles
from chains import Events, open_prepared, run_all
from conftest import GAUSSIAN, Make

from harness.coordinator.scheduler import Capacity
from harness.coordinator.session import describe_chains
from harness.files import read_json, seal, write_json
from harness.inspection.explain import Explainer
from harness.inspection.planner import plan
from harness.inspection.status import chain_states
from harness.inventory import Inventory, NodeState, StoredChains
from harness.reporting import ledger
from harness.science import Chain, Node
from harness.store import Experiment, Store
from harness.store.health import needs
from harness.store.store import ItemKind
from harness.study import Prepared, open_study
from harness.tracking.views import Views, of_chain

ONE = {"regime": {"kind": "replace", "synthetic_ratio": 1.0}}
GROWN = {"grid": {"regime": [ONE["regime"], {"kind": "replace_grown"}]}}


def looked_at(config: Path, root: Path) -> tuple[Prepared, Store]:
    """As a command sees it that only reads."""
    prepared, scratch = open_study(config, (), Store.read(root))
    scratch.cleanup()
    return prepared, Store.read(root)


def touched(config: Path, root: Path) -> set[str]:
    """The nodes of which a run computes anything."""
    events = Events()
    run_all(config, root, observer=events)
    kinds = ("fit_committed", "weights_restored", "sample_committed", "committed")
    return {fields["evaluation"] for kind, fields in events.seen if kind in kinds}


def evaluation(store: Store, node: Node) -> None:
    shutil.rmtree(store.path("evaluations", node.evaluation))


def fit(store: Store, node: Node) -> None:
    shutil.rmtree(store.path("fits", node.fit))


def corpus(store: Store, node: Node) -> None:
    shutil.rmtree(store.path("corpora", node.corpus))


def record(store: Store, node: Node) -> None:
    (store.path("evaluations", node.evaluation) / "record.json").write_text("{}")


@pytest.mark.parametrize("damage", [None, evaluation, fit, corpus, record])
@pytest.mark.parametrize("generation", [0, 2])
def test_all_say_what_run_will_do(
    make_config: Make, tmp_path: Path, damage: Callable[[Store, Node], None] | None, generation: int
) -> None:
    config, root = make_config(GAUSSIAN, **ONE), tmp_path / "root"
    prepared, store = run_all(config, root)
    [chain] = prepared.lineage.chains
    if damage is not None:
        damage(store, prepared.lineage.nodes[chain.nodes[generation]])
    agree(config, root, {chain.nodes[generation]} if damage else set())


def test_a_grid_that_asks_for_more_of_a_corpus(make_config: Make, tmp_path: Path) -> None:
    """`replace_grown` reads more examples of generation 0 than `replace` did: its corpus is short, though
    everything is there."""
    root = tmp_path / "root"
    run_all(make_config(GAUSSIAN, **ONE), root)
    config = make_config(GAUSSIAN, "grown.yaml", **GROWN)
    prepared, store = looked_at(config, root)
    replace, grown = prepared.lineage.chains
    found = Inventory(prepared, store)
    assert [found.state(key).state for key in replace.nodes] == [
        "short",
        "committed",
        "committed",
        "committed",
    ]
    assert [found.state(key).state for key in grown.nodes] == ["short", "waiting", "waiting", "waiting"]
    agree(config, root, {replace.nodes[0], *grown.nodes[1:]})


def agree(config: Path, root: Path, expected: set[str]) -> None:
    """Before a run all say that these generations are open, the run touches these alone, and after it all say
    that none is."""
    prepared, store = looked_at(config, root)
    total = len(prepared.lineage.nodes)
    found = Inventory(prepared, store)
    assert found.left == expected
    planned = plan(prepared, store, [Capacity(2, 0)])
    assert planned.generations_stored == total - len(expected)
    there = {key for key in expected & store.committed("evaluations") if store.record(key) is not None}
    assert planned.generations_begun == len(there)
    Experiment(root, prepared.study.base.experiment).begin({}, describe_chains(prepared))
    damaged = expected & store.committed("evaluations") - there  # whose fits and corpora are whole
    assert expected - damaged <= needs(store).unfinished, "gc leaves alone what a run goes on with"
    states = {state.chain: state for state in chain_states(prepared, store)}
    for chain in prepared.lineage.chains:
        first = next((place for place, key in enumerate(chain.nodes) if key in expected), len(chain.nodes))
        assert states[chain.id].committed == first == found.committed(chain)
        assert (
            (states[chain.id].state == "complete") == (first == len(chain.nodes)) == found.is_complete(chain)
        )
        reasons = [item.reason for item in Explainer(prepared, store, chain).explain()]
        assert [reason == "committed" for reason in reasons] == [key not in expected for key in chain.nodes]
    assert touched(config, root) == expected
    prepared, store = open_prepared(config, root)
    done = Inventory(prepared, store)
    assert not done.left and plan(prepared, store, [Capacity(2, 0)]).generations_stored == total
    assert not needs(store).unfinished
    assert {state.state for state in chain_states(prepared, store)} == {"complete"}
    views = Views(prepared, store)
    assert all(views.whole(of_chain(chain)) for chain in prepared.lineage.chains)
    assert len(ledger.rows(prepared, store)) == sum(len(chain.nodes) for chain in prepared.lineage.chains)


def diverged(store: Store, key: str) -> None:
    """Let a committed generation say that it has no finite model."""
    folder = store.path("evaluations", key)
    record = read_json(folder / "record.json")
    write_json(folder / "record.json", {**record, "status": "diverged", "metrics": {}})
    seal(folder)


@pytest.mark.parametrize("last", [2, 3])
def test_a_chain_that_ended_before_a_shared_refresh_stays_ended(
    make_config: Make, tmp_path: Path, last: int
) -> None:
    """Two chains meet in generation 2; one has diverged before, so what they share there is the other's."""
    regimes = [{"kind": "replace", "synthetic_ratio": ratio, "refresh": {"at": [2]}} for ratio in (0.5, 1.0)]
    config, root = make_config(GAUSSIAN, generations=last, grid={"regime": regimes}), tmp_path / "root"
    prepared, store = run_all(config, root)
    ended, whole = prepared.lineage.chains
    assert ended.nodes[2] == whole.nodes[2] and ended.nodes[1] != whole.nodes[1]
    diverged(store, ended.nodes[1])
    for key in ended.nodes[3:]:
        evaluation(store, prepared.lineage.nodes[key])
    prepared, store = looked_at(config, root)
    found = Inventory(prepared, store)
    assert found.diverged == {ended.nodes[1]} and not found.left and found.gone == set(ended.nodes[3:])
    assert not Inventory(prepared, store).work_left
    assert plan(prepared, store, [Capacity(2, 0)]).generations_stored == len(prepared.lineage.nodes)
    assert [item.reason for item in Explainer(prepared, store, ended).explain()] == ["committed", "diverged"]
    assert [state.state for state in chain_states(prepared, store)] == ["diverged", "complete"]
    rows = [row["generation"] for row in ledger.rows(prepared, store) if row["chain"] == ended.id]
    assert rows == [0, 1], "what the other chain shares is not its own"
    assert touched(config, root) == set()


def test_a_writer_that_ended_at_last_ends_its_reader(make_config: Make, tmp_path: Path) -> None:
    """Nothing of the writer is missing, and yet what it wrote last is nothing that can be read."""
    source = {"cell": {"learner.estimator": "unbiased"}}
    regimes = [{"kind": "replace", "synthetic_ratio": 1.0}, {**ONE["regime"], "source": source}]
    grid = {"learner.estimator": ["mle", "unbiased"], "regime": regimes}
    overrides = [
        {"when": {"learner.estimator": "unbiased"}, "set": {"generations": 2}},
        {"when": {"learner.estimator": "mle"}, "set": {"generations": 3}},
    ]
    config = make_config(GAUSSIAN, grid=grid, overrides=overrides)
    root = tmp_path / "root"
    prepared, store = looked_at(config, root)
    chains = {(chain.cell, len(chain.nodes)): chain for chain in prepared.lineage.chains}
    reader = next(c for c in chains.values() if len(c.nodes) == 4 and other(prepared, c))
    writer = next(c for c in chains.values() if c.nodes[-1] in other(prepared, reader))
    before = Inventory(prepared, store)
    writers = [chain.id for chain in prepared.lineage.chains if writer.nodes[1] in chain.nodes]
    assert before.state(reader.nodes[2]) == NodeState("waiting", f"for generation 1 of chain {writers[0]}")
    assert before.state(writer.nodes[2]) == NodeState("waiting")
    prepared, store = run_all(config, root)
    diverged(store, writer.nodes[-1])
    evaluation(store, prepared.lineage.nodes[reader.nodes[-1]])
    prepared, store = looked_at(config, root)
    found = Inventory(prepared, store)
    assert found.diverged == {writer.nodes[-1]} and reader.nodes[-1] in found.gone and not found.left
    assert Explainer(prepared, store, reader).explain()[-1].reason == "unreachable"
    assert touched(config, root) == set()


def test_what_is_committed_is_looked_at_side_by_side(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look waits until another one goes on at the same time."""
    config, root = make_config(GAUSSIAN, **ONE), tmp_path / "root"
    run_all(config, root)
    prepared, store = looked_at(config, root)
    assert len(prepared.lineage.nodes) % 2 == 0
    two, check = threading.Barrier(2), store.check

    def met(kind: ItemKind, key: str) -> None:
        two.wait(timeout=60)
        check(kind, key)

    monkeypatch.setattr(store, "check", met)
    assert Inventory(prepared, store).done == prepared.lineage.nodes.keys()


def test_explain_reads_what_it_is_asked_for(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One chain of many, each of whose generations is a folder to be read and compared."""
    config, root = make_config(GAUSSIAN, **ONE, grid={"seed": [0, 1, 2]}), tmp_path / "root"
    run_all(config, root)
    prepared, store = looked_at(config, root)
    asked, other, _ = prepared.lineage.chains
    record(store, prepared.lineage.nodes[asked.nodes[2]])
    record(store, prepared.lineage.nodes[other.nodes[1]])
    looked, check = list[str](), store.check
    monkeypatch.setattr(store, "check", lambda kind, key: (looked.append(key), check(kind, key)))
    found = Explainer(prepared, store, asked).explain()
    assert [item.reason for item in found] == ["committed", "committed", "damaged", "committed"]
    assert set(looked) == set(asked.nodes)


def test_a_run_looks_at_what_is_whole_once(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First through a store that is read, then through one that sets aside what is damaged."""
    config, root = make_config(GAUSSIAN, **ONE), tmp_path / "root"
    run_all(config, root)
    prepared, _ = looked_at(config, root)
    first, damaged, late, last = prepared.lineage.chains[0].nodes
    record(Store.read(root), prepared.lineage.nodes[damaged])
    (root / "evaluations" / late).rename(tmp_path / late)
    looked, check = list[str](), Store.check
    monkeypatch.setattr(Store, "check", lambda self, kind, key: (looked.append(key), check(self, kind, key)))
    found = Inventory(prepared, Store.read(root))
    assert sorted(looked) == sorted([first, damaged, last]) and found.left == {damaged, late}
    looked.clear()
    (tmp_path / late).rename(root / "evaluations" / late)  # by somebody else, meanwhile
    found.reopen(Store.open(root, found.store))
    assert sorted(looked) == sorted([damaged, late]) and found.left == {damaged}
    assert [path.name.split("-")[1] for path in (root / "damaged").iterdir()] == [damaged]
    assert found.store.record(first) is not None and len(looked) == 2


def other(prepared: Prepared, chain: Chain) -> set[str]:
    """What a chain reads of other chains."""
    read = {key for node in chain.nodes for key in prepared.lineage.nodes[node].corpora.values()}
    return read - set(chain.nodes)


def test_rows_are_the_same_columns_however_chains_are_kept(make_config: Make, tmp_path: Path) -> None:
    """A study of bundles and of single chains is one table, with how each was computed."""
    single = {"when": {"data.num_examples": 30}, "set": {"resources.bundled": False}}
    config = make_config(
        GAUSSIAN,
        grid={"data.num_examples": [20, 30], "seed": [0, 1]},
        overrides=[single],
        generations=1,
        **{"resources.bundled": True},
    )
    run_bundles(config, tmp_path / "root")
    prepared, store = run_all(config, tmp_path / "root")
    assert len(prepared.bundles) == len(prepared.lineage.chains) == 2
    rows = ledger.rows(prepared, store, provenance=True)
    frame = rows.to_pandas()
    assert len(frame) == 8
    assert frame["provenance/host"].nunique(dropna=False) == 1
    assert sorted(frame.groupby("data.num_examples")["provenance/bundle"].nunique()) == [0, 1]
    for form, read in (("csv", pd.read_csv), ("json", pd.read_json), ("parquet", pd.read_parquet)):
        ledger.write(rows, form, tmp_path / form)
        written = read(tmp_path / form)  # type: ignore[operator]
        assert written["provenance/host"].tolist() == frame["provenance/host"].tolist()
    keys = ["fit", "key", "parent_key"]
    bare = ledger.rows(prepared, store, provenance=True, keys=False).to_pandas()
    assert bare[keys].isna().all(axis=None) and not frame[["fit", "key"]].isna().any(axis=None)
    pd.testing.assert_frame_equal(bare.drop(columns=keys), frame.drop(columns=keys))


def test_what_others_finish_meanwhile_is_counted(make_config: Make, tmp_path: Path) -> None:
    """Between the look at a store and the question others go on: a chain is complete at its end alone."""
    config, root = make_config(GAUSSIAN, **ONE, generations=3), tmp_path / "root"
    prepared, store = looked_at(config, root)
    [chain] = prepared.lineage.chains

    def answer(before: Inventory) -> tuple[int, str]:
        count, found = StoredChains(prepared, store, before).of(chain).progress(chain)
        return count, found.state

    before = Inventory(prepared, store)
    assert answer(before) == (0, "waiting")
    for last, expected in ((1, (2, "waiting")), (3, (4, "committed"))):
        run_all(config, root, f"generations={last}")
        assert answer(before) == expected
