"""MLflow, the tracker that comes with the harness, on its own database file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chains import run_all
from conftest import GAUSSIAN, Make

from harness.components import TRACKERS
from harness.config.schema import Tracking
from harness.errors import InputError
from harness.records import GenerationView, Record
from harness.registry.gathering import Loaded
from harness.registry.plugins import TrackerPlugin
from harness.stop import Stop
from harness.store import Experiment, Store
from harness.study import Prepared, open_study
from harness.tracking import ChainView, others
from harness.tracking.mlflow import TAG, parameters, where
from harness.tracking.others import WholeChains
from harness.tracking.sync import sync
from harness.tracking.tracker import open_trackers
from harness.tracking.views import Views, of_chain

GRID = {"grid": {"regime.synthetic_ratio": [0.5, 1.0]}, "tracking.trackers": ["mlflow"]}


def runs(folder: Path) -> dict[str, Any]:
    """Chain to its run, as somebody else reads them."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'trackers' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("normal")
    found = client.search_runs([experiment.experiment_id])
    assert len({run.data.tags[TAG] for run in found}) == len(found), "no chain is there twice"
    return {
        run.data.tags[TAG]: (
            run,
            {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics},
        )
        for run in found
    }


def mirror(prepared: Prepared, store: Store, folder: Path) -> list[str]:
    [tracker], views = open_trackers(prepared.study.base.tracking, folder), Views(prepared, store)
    return [line for chain in prepared.lineage.chains for line in tracker.tell(views.view(of_chain(chain)))]


@pytest.mark.slow
def test_every_generation_of_every_chain_is_in_the_database(make_config: Make, tmp_path: Path) -> None:
    prepared, store = run_all(make_config(GAUSSIAN, **GRID), tmp_path / "root")
    folder = tmp_path
    assert mirror(prepared, store, folder) == []
    found = runs(folder)
    assert found.keys() == {chain.id for chain in prepared.lineage.chains}
    for chain in prepared.lineage.chains:
        run, history = found[chain.id]
        assert run.info.status == "FINISHED"
        ratio = prepared.cell(chain).axes["regime.synthetic_ratio"]
        assert run.data.params["regime.synthetic_ratio"] == str(ratio)
        for generation, key in enumerate(chain.nodes):
            record = store.record(key)
            assert record is not None
            finite = {name: value for name, value in record.metrics.items() if value is not None}
            there = {n: p.value for n, points in history.items() for p in points if p.step == generation}
            assert there == finite


@pytest.mark.slow
def test_a_chain_that_was_cut_short_or_grew_is_there_once(make_config: Make, tmp_path: Path) -> None:
    config, folder = make_config(GAUSSIAN, **GRID), tmp_path
    prepared, store = run_all(config, tmp_path / "root")
    assert mirror(prepared, store, folder) == []
    before = {chain: run.info.run_id for chain, (run, _) in runs(folder).items()}
    assert mirror(prepared, store, folder) == []
    assert {chain: run.info.run_id for chain, (run, _) in runs(folder).items()} == before, "told already"
    for note in folder.glob("trackers/mlflow/sent/*.json"):
        note.unlink()  # as if the process had died before it could take note
    assert mirror(prepared, store, folder) == []
    assert runs(folder).keys() == before.keys()
    longer, store = run_all(config, tmp_path / "root", "generations=4")
    assert mirror(longer, store, folder) == []
    assert all(max(p.step for p in points) == 4 for _, h in runs(folder).values() for points in h.values())


@pytest.mark.slow
def test_sync_tells_trackers_of_chains_that_are_whole(make_config: Make, tmp_path: Path) -> None:
    """W&B is disabled here, so nobody has to be logged in; what was told before is not told again."""
    config, root = make_config(GAUSSIAN, **GRID), tmp_path / "root"
    prepared, store = run_all(config, root)
    folder = Experiment(root, "normal").path
    done = sync(prepared, root, Stop(), None, print)
    assert (done.chains, done.complete, done.errors, done.exit_code) == (2, 2, {}, 0)
    before = {chain: run.info.run_id for chain, (run, _) in runs(folder).items()}
    assert before.keys() == {chain.id for chain in prepared.lineage.chains}
    assert sync(prepared, root, Stop(), None, print).complete == 2
    assert {chain: run.info.run_id for chain, (run, _) in runs(folder).items()} == before
    longer, scratch = open_study(config, ("generations=5",), store)
    with scratch:
        done = sync(longer, root, Stop(), None, print)
    assert (done.complete, done.exit_code) == (0, 0), "chains that are not whole are left for later"
    plain, scratch = open_study(config, ("tracking.trackers=[]",), store)
    with scratch, pytest.raises(InputError, match="tracking.wandb: found disabled"):
        sync(plain, root, Stop(), None, print)


@pytest.mark.ray
@pytest.mark.slow
def test_a_damaged_fit_keeps_no_other_chain_back(
    run_study: Callable[..., Any], make_config: Make, tmp_path: Path
) -> None:
    """A complete chain whose fit is damaged is set aside and made again; the others run on and are told."""
    config, root = make_config(GAUSSIAN, **GRID), tmp_path / "root"
    prepared, store = run_all(config, root)
    first, other = prepared.lineage.chains
    fit = prepared.lineage.nodes[first.nodes[-1]].fit
    (root / "fits" / fit / "fit.json").unlink()
    (store.path("evaluations", other.nodes[-1]) / "record.json").write_text("{}")
    done = sync(prepared, root, Stop(), None, print)
    assert done.errors.keys() == {first.id} and "fit.json is missing" in done.errors[first.id]
    summary, warnings, _ = run_study(config, root)
    assert summary.generations_computed == 1 and summary.chains_failed == 0
    assert [line.partition(": ")[0] for line in warnings] == [first.id] and "is missing; set" in warnings[0]
    assert runs(Experiment(root, "normal").path).keys() == {other.id}
    assert fit in "".join(path.name for path in (root / "damaged").iterdir())
    _, warnings, _ = run_study(config, root)
    assert warnings == [] and (root / "fits" / fit / "fit.json").exists()
    assert runs(Experiment(root, "normal").path).keys() == {first.id, other.id}


def test_a_server_that_does_not_answer_is_a_warning(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, store = run_all(make_config(GAUSSIAN, **GRID), tmp_path / "root")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'no' / 'such' / 'folder'}.db")
    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no").write_text("")
    lines = mirror(prepared, store, tmp_path)
    assert len(lines) == 2 and all("tracker mlflow: " in line for line in lines)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirror(prepared, store, tmp_path) == [], "the next run tells it again"
    assert len(runs(tmp_path)) == 2


def test_nested_values_are_dotted_and_texts_stay_texts() -> None:
    found = parameters({"a": {"b": 1, "c": {}}, "d": "x" * 600, "e": [1, 2], "f": None})
    assert found == {"a.b": "1", "a.c": "{}", "d": "x" * 500, "e": "[1, 2]", "f": "null"}


@pytest.mark.parametrize(
    ("name", "field", "off"),
    [("mlflow", "tracking.trackers", "leave it out"), ("wandb", "tracking.wandb", "set disabled")],
)
def test_libraries_that_are_not_installed_are_named(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, field: str, off: str
) -> None:
    monkeypatch.setattr("harness.study.is_installed", lambda module: module != name)
    config = make_config(GAUSSIAN, **{**GRID, "tracking.wandb": "offline"})
    with pytest.raises(InputError, match=rf"{field}: .*needs {name}, .*; {off}, .*harness\[{name}\]"):
        open_study(config, (), Store.read(tmp_path / "root"))


def test_wandb_has_a_field_of_its_own(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, **{"tracking.trackers": ["wandb"]})
    own = r"which has a field of its own \(tracking.wandb: offline, online, disabled\)$"
    with pytest.raises(InputError, match=f"tracking.trackers: found 'wandb', {own}"):
        open_study(config, (), Store.read(tmp_path / "root"))


@pytest.mark.parametrize(
    "note", [["e0"], {"evaluations": ["e0"]}, {"where": "here"}, [], 5, None, "not JSON"]
)
@pytest.mark.parametrize("place", ["", "its:where"])
def test_a_note_of_another_form_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, note: Any, place: str
) -> None:
    """As of a package that has learned, or forgotten, to say where it writes; damaged ones too."""
    written: list[str] = []
    plugin = TrackerPlugin(write="its:write", where=place)
    monkeypatch.setitem(TRACKERS.loaded, "mine", Loaded(plugin))
    monkeypatch.setattr(
        others, "named", lambda name: lambda *_: "here" if name == place else written.append(name)
    )
    tracker = WholeChains("mine", Tracking(), tmp_path)
    path = tracker.folder / others.SENT / "abc.json"
    path.parent.mkdir(parents=True)
    path.write_text("{" if note == "not JSON" else json.dumps(note))
    record = Record(0, 0, "ok", "f0", "c0", "e0", {})
    view = ChainView("x", "abc", "p", None, {}, [GenerationView(record, (), ())])
    known = note == ["e0"] and not place
    assert tracker.told("abc") == (["e0"] if known else [])
    for _ in range(2):
        assert tracker.tell(view) == []
    assert written == ([] if known else ["its:write"]) and tracker.told("abc") == ["e0"]


@pytest.mark.slow
def test_another_place_is_told_and_no_password_is_kept(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server is told anew, and one that does not answer says no secret.

    A quote in a path is no part of a query.
    """
    prepared, store = run_all(make_config(GAUSSIAN, **GRID), tmp_path / "root")
    folder = tmp_path / "the lab's"
    assert mirror(prepared, store, folder) == [] and len(runs(folder)) == 2
    before = where(folder / "trackers" / "mlflow")
    assert where(tmp_path / "elsewhere") != before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'server.db'}")
    assert where(folder / "trackers" / "mlflow") != before and mirror(prepared, store, folder) == []
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert (tmp_path / "server.db").stat().st_size > 0, "another place has to be told too"
    for note in folder.glob("trackers/mlflow/sent/*.json"):
        note.unlink()
    assert mirror(prepared, store, folder) == [] and len(runs(folder)) == 2, "replaced, not doubled"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:s3cret@127.0.0.1:9/")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    lines = mirror(prepared, store, folder)
    assert len(lines) == 2 and not any("s3cret" in line for line in lines)
    assert not any("s3cret" in path.read_text() for path in folder.glob("trackers/mlflow/sent/*.json"))
