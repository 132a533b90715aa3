"""The saved view of a study: W&B's own wandb-workspaces, against the recording endpoint on loopback."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from chains import run_all
from conftest import GAUSSIAN, Make
from test_wandb import KEY, environment
from wandb_endpoint import PROJECT, Recorder, endpoint

from harness.metrics.catalogue import HEADLINES, drawn
from harness.stop import Stop
from harness.store import Store
from harness.study import open_study
from harness.tracking.staging import staged
from harness.tracking.sync import Synced, describe
from harness.tracking.sync import sync as in_process
from harness.tracking.workspace import content, save

HEADLINE = "gaussian/log_variance"
HOSTILE = "</td><script>alert(1)</script>\u202e\x1b[2J"
SHOWN = "</td><script>alert(1)</script>\\u202e\\u001b[2J"


def panels(view: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Title of a section to the metrics of each of its panels."""
    bank = json.loads(view["spec"])["section"]["panelBankConfig"]
    found: dict[str, list[list[str]]] = {}
    for section in bank["sections"]:
        assert all(panel["viewType"] == "Run History Line Plot" for panel in section["panels"])
        configs = [panel["config"] for panel in section["panels"]]
        assert all(config["xAxis"] == "generation" and config["groupAgg"] == "mean" for config in configs)
        found[section["name"]] = [config["metrics"] for config in configs]
    return found


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """An endpoint at which W&B's SDK is logged in, in this process, with a home folder of its own."""
    import wandb

    wandb.teardown()  # it knows the environment from when it was set up
    with endpoint() as found:
        for name, value in environment(found, tmp_path).items():
            monkeypatch.setenv(name, value)
        for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
            monkeypatch.delenv(name)
        (tmp_path / "home").mkdir()
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        yield found
        wandb.teardown()
        assert not list((tmp_path / "home").iterdir()), "nothing is written to a home folder"


@pytest.mark.slow
def test_one_view_for_a_study_that_later_syncs_keep_up_to_date(
    recorder: Recorder, make_config: Make, tmp_path: Path
) -> None:
    grid = {"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]}
    config = make_config(GAUSSIAN, generations=1, grid=grid, **{"tracking.wandb": "offline"})
    root = tmp_path / "root"
    run_all(config, root)

    def sync(*assignments: str) -> Synced:
        """With names of cells that others may have chosen."""
        prepared, scratch = open_study(config, assignments, Store.read(root))
        cells = [
            replace(cell, axes={"regime.synthetic_ratio": f"{HOSTILE} {number}"})
            for number, cell in enumerate(prepared.study.cells)
        ]
        prepared = replace(prepared, study=replace(prepared.study, cells=tuple(cells)))
        with scratch:
            done = in_process(prepared, root, Stop(), None, print)
        assert (done.exit_code, done.view_missing) == (0, "")
        return done

    address = sync("grid.seed=[0]").view
    (first,) = recorder.saved
    (number,) = recorder.views
    token = first["name"].removeprefix("nw-").removesuffix("-v")
    assert address == f"{recorder.url}/e/{PROJECT}?nw={token}"
    assert (first["entityName"], first["projectName"], first["displayName"]) == ("e", PROJECT, "normal")
    (runs,) = json.loads(first["spec"])["section"]["runSets"]
    (only,) = runs["filters"]["filters"]
    assert (only["key"], only["op"], only["value"]) == ({"section": "run", "name": "group"}, "=", "normal")
    assert runs["grouping"] == [{"section": "config", "name": "cell_name.value"}]
    begun = [upsert for upsert in recorder.upserts if upsert.get("groupName") == "normal"]
    cells = {json.loads(upsert["config"])["cell_name"]["value"] for upsert in begun}
    assert cells == {f"synthetic ratio {SHOWN} {number}" for number in range(2)}
    assert {upsert["displayName"] for upsert in begun} == {f"{cell}, seed 0" for cell in cells}
    shown = panels(first)
    assert shown["headline"] == [[name] for name in HEADLINES if name in (HEADLINE, "test/nll")]
    assert ["gaussian/trace_ratio"] in shown["other metrics"] and len(shown) == 2

    done = sync()
    assert done.view == address and describe(done).endswith(f"\nsaved view: {address}")
    assert list(recorder.views) == [number] and len(recorder.saved) == 2, "another seed: means over both"
    means = panels(recorder.views[number])["means over seeds, with 95 % intervals"]
    assert [HEADLINE, f"{HEADLINE}.low", f"{HEADLINE}.high"] in means
    mean = next(name for name in recorder.names() if "-cell-" in name)
    assert {name for names in means for name in names} <= recorder.generations(mean)[1].keys()

    assert sync().view == address and len(recorder.saved) == 2, "nothing new: what people changed stays"
    folder = root / "experiments" / "normal" / "wandb"
    assert [path.name for path in folder.iterdir()] == ["sent"], "nothing that was staged is left"


@pytest.mark.slow
def test_runs_are_sent_whatever_becomes_of_their_view(
    recorder: Recorder, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that refuses, and no library: a line that says what to do, and nothing else changes."""
    config, root = make_config(GAUSSIAN, generations=1, **{"tracking.wandb": "offline"}), tmp_path / "root"
    run_all(config, root)
    monkeypatch.setattr("harness.tracking.sync.PROGRESS_CHAINS", 1)

    def sync(project: str) -> str:
        """Returns the line."""
        lines = list[str]()
        prepared, scratch = open_study(config, (f"tracking.project={project}",), Store.read(root))
        with scratch:
            done = in_process(prepared, root, Stop(), None, lines.append)
        assert (done.exit_code, done.chains_sent, done.complete) == (0, 1, 1)
        assert len(recorder.names(project)) == 1 and not recorder.views
        assert done.view == "" and "view" not in describe(done)
        progress, line = lines
        assert progress == "sent 1 of 1 chain" and line == done.view_missing and "\n" not in line
        return line

    recorder.no_views = f"permission denied\nTraceback {KEY}"
    line = sync("refused")
    assert "permission denied" in line and "the next sync tries again" in line
    assert KEY not in line and "Traceback" not in line
    monkeypatch.setattr("wandb.Api._HTTP_TIMEOUT", 1)
    recorder.no_views = 503
    assert "(its server refuses, or does not answer in time)" in sync("broken")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert sync("bare") == (
        "W&B: the study's view was not saved (wandb-workspaces is not installed; pip install "
        "'model-collapse-harness[workspaces]'); its runs are there all the same, the next sync tries again"
    )


TARGET = {"entity": "lab", "project": "a;b (2)"}


def test_a_view_that_is_gone_is_made_again(recorder: Recorder, tmp_path: Path) -> None:
    recorder.runs["a;b (2)", "run"] = {}
    note, wanted = tmp_path / "sent" / "view.json", content({"test/nll"}, False, 2)
    with staged(tmp_path / "wandb"):
        address = save("normal", TARGET, wanted, note)
        assert address.startswith(f"{recorder.url}/lab/a%3Bb%20%282%29?nw=")
        assert save("normal", TARGET, wanted, note) == address and len(recorder.saved) == 1
        note.write_text("{")
        assert save("normal", TARGET, wanted, note) == address
        assert len(recorder.saved) == 2 and len(recorder.views) == 1, "a damaged note does no harm"
        recorder.views.clear()
        assert save("normal", TARGET, wanted, note) == address
        assert len(recorder.saved) == 3 and len(recorder.views) == 1
        assert save("other", TARGET, wanted, tmp_path / "other.json") != address and len(recorder.views) == 2


def test_what_a_view_shows_comes_from_the_registry() -> None:
    names = {"test/perplexity", "test/nll", "distinct/2", "pool/recall", "unknown", "pool/trained"}
    found = content(names, True, 3)
    shown = {title: of for title, _, of in found["sections"]}
    headlines = [name for name in HEADLINES if name in names]
    assert shown["headline"] == [[name] for name in headlines] and headlines[0] == "test/perplexity"
    assert shown["means over seeds, with 95 % intervals"] == [
        [name, f"{name}.low", f"{name}.high"] for name in headlines
    ]
    others = [metric.name for metric in drawn(names) if metric.name not in headlines]
    assert shown["other metrics"] == [[name] for name in others] and "pool/recall" in others
    assert not content(set(), True, 1)["sections"]
