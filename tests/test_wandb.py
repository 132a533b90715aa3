"""W&B's own SDK and its own sync, against a recording endpoint on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chains import run_all
from conftest import GAUSSIAN, TEXT, Make, harness
from wandb_endpoint import PROJECT, Recorder, endpoint

from harness.records import Record
from harness.tracking import ChainView, GenerationView, run_id
from harness.tracking.runs import _lineage, flat, short_tag, write_chain
from harness.tracking.staging import staged

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"


def environment(recorder: Recorder, folder: Path) -> dict[str, str]:
    return {
        "WANDB_BASE_URL": recorder.url,
        "WANDB_API_KEY": KEY,
        "WANDB_CONFIG_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }


def check(recorder: Recorder, config: Path, root: Path, project: str = PROJECT, cells: int = 2) -> None:
    """Every chain once, every generation and metric there, equal to export."""
    rows = json.loads(harness("export", config, "--root", root, "--format", "json").stdout)
    chains = {row["chain"] for row in rows}
    runs = {name.removeprefix("normal-") for name in recorder.names(project)}
    means = {name for name in runs if name.startswith("cell-")}
    assert runs - means == chains and len(means) == cells
    if cells:
        check_cells(recorder, rows, means, project)
    assert {upsert["groupName"] for upsert in recorder.upserts if upsert.get("groupName")} == {"normal"}
    identity = {
        "experiment",
        "chain",
        "seed",
        "generation",
        "fit",
        "key",
        "parent_key",
        "status",
        "regime.synthetic_ratio",
    }
    for chain in chains:
        mirrored = recorder.generations(run_id("normal", chain), project)
        expected = {row["generation"]: row for row in rows if row["chain"] == chain}
        assert mirrored.keys() == expected.keys()
        for generation, row in expected.items():
            for name in row.keys() - identity:
                assert mirrored[generation][name] == row[name]
            assert mirrored[generation]["fit"] == generation + 1


def check_cells(recorder: Recorder, rows: list[dict[str, Any]], cells: set[str], project: str) -> None:
    """Two cells of two seeds, a run each, with the means over their seeds."""
    ratios = {row["regime.synthetic_ratio"] for row in rows}
    assert len(cells) == len(ratios)
    metric, found = "gaussian/trace_ratio", set()
    for cell in cells:
        lines = recorder.generations(run_id("normal", cell), project)
        found.add(tuple(round(lines[g][metric], 12) for g in sorted(lines)))
        assert all(line["seeds/live"] == 2 and line["seeds/diverged"] == 0 for line in lines.values())
        assert all(line[f"{metric}.low"] < line[metric] < line[f"{metric}.high"] for line in lines.values())
    table = pd.DataFrame(rows).groupby(["regime.synthetic_ratio", "generation"])[metric].mean()
    assert found == {tuple(round(v, 12) for v in table[ratio]) for ratio in ratios}


def check_shown(recorder: Recorder, rows: list[dict[str, Any]]) -> None:
    """Readable names, tags of cell and seed, flat configurations; lineages as artifacts."""
    begun = {item["name"]: item for item in recorder.upserts if item.get("displayName")}
    for row in rows:
        shown, cell = (
            begun[run_id("normal", row["chain"])],
            f"synthetic ratio {row['regime.synthetic_ratio']}",
        )
        assert shown["displayName"] == f"{cell}, seed {row['seed']}"
        assert shown["tags"] == [cell, f"seed {row['seed']}"]
        config = {
            name: item["value"] for name, item in json.loads(shown["config"]).items() if name != "_wandb"
        }
        assert config["regime.synthetic_ratio"] == row["regime.synthetic_ratio"]
        assert config["chain"] == row["chain"] and config["seed"] == row["seed"]
        assert not any(isinstance(value, dict) and value for value in config.values())
    means = [item for name, item in begun.items() if name.startswith("normal-cell-")]
    assert sorted(item["displayName"] for item in means) == [
        "synthetic ratio 0.5, 2 seeds",
        "synthetic ratio 1.0, 2 seeds",
    ]
    lineage = {}
    for item in (item["input"] for item in recorder.artifacts):
        if item["artifactTypeName"] == "chain":
            lineage[item["runName"]] = json.loads(item["metadata"])["generations"]
    keys = {run_id("normal", row["chain"]): [] for row in rows}  # type: dict[str, list[str]]
    for row in sorted(rows, key=lambda row: row["generation"]):
        keys[run_id("normal", row["chain"])].append(row["key"])
    assert {run: [item["fit"] for item in found] for run, found in lineage.items()} == keys


@pytest.fixture
def study(make_config: Make, tmp_path: Path) -> Any:
    def make(mode: str) -> tuple[Path, Path]:
        grid = {"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]}
        config = make_config(GAUSSIAN, f"{mode}.yaml", grid=grid, **{"tracking.wandb": mode})
        run_all(config, tmp_path / mode)  # the chains; the command below only mirrors them
        return config, tmp_path / mode

    return make


def test_offline_files_synced_by_wandb_itself(study: Any, tmp_path: Path) -> None:
    config, root = study("offline")
    home = tmp_path / "home"
    home.mkdir()
    for _ in range(2):  # the second run finds everything sent and writes nothing
        done = harness("run", config, "--root", root, HOME=str(home))
        assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list(home.iterdir()), "nothing is written to a home folder"
    folders = sorted((root / "experiments" / "normal" / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == 6, "four chains, and the means of two cells"
    with endpoint() as recorder:
        wandb = Path(sys.executable).parent / "wandb"
        for folder in folders:
            subprocess.run(
                [wandb, "sync", "--yes", folder],
                check=True,
                capture_output=True,
                timeout=120,
                cwd=tmp_path,
                env={**os.environ, **environment(recorder, tmp_path)},
            )
        check(recorder, config, root)


def test_online_and_what_is_sent_again(study: Any, tmp_path: Path) -> None:
    config, root = study("online")
    home = tmp_path / "home"
    home.mkdir()
    with endpoint() as recorder:
        settings = environment(recorder, tmp_path) | {"HOME": str(home)}
        del settings["WANDB_CONFIG_DIR"], settings["WANDB_CACHE_DIR"]
        for _ in range(2):
            done = harness("run", config, "--root", root, **settings)
            assert done.returncode == 0 and not done.stderr, done.stderr
        assert not list(home.iterdir()), "nothing is written to a home folder"
        check(recorder, config, root)
        check_shown(
            recorder, json.loads(harness("export", config, "--root", root, "--format", "json").stdout)
        )
        assert len(recorder.complete) == 6


def test_what_a_killed_process_has_staged_is_removed(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    host = socket.gethostname()
    mine, other = f"stage-{host}@", f"stage-{host}-1@1-x"  # a host whose name begins as this one's
    names = [f"{mine}{gone.pid}-x", f"{mine}{os.getppid()}-x", other, f"{mine}{10**20}-x", "sent"]
    for name in names:
        (tmp_path / name / "inner").mkdir(parents=True)
    before = os.environ.get("WANDB_DATA_DIR")
    with staged(tmp_path) as place:
        assert place.parent == tmp_path and os.environ["WANDB_DATA_DIR"] == str(place)
        assert sorted(path.name for path in tmp_path.iterdir() if path != place) == sorted(names[1:])
    assert not place.exists() and os.environ.get("WANDB_DATA_DIR") == before


def test_a_lineage_is_only_pointed_at(tmp_path: Path) -> None:
    """W&B's own artifact: a reference for each place that is there, and no file."""
    there = tmp_path / "fits" / "f0" / "fit.json"
    there.parent.mkdir(parents=True)
    there.write_text("{}")
    record = Record(0, 0, "diverged", "f0", "c0", "e0", {})
    places = [{"fit": there.parent, "corpus": tmp_path / "corpora" / "c0"}]
    view = ChainView("x", "abc", "p", None, {}, [GenerationView(record, (), ())], places=places)
    found = _lineage(view)
    assert found.name == "chain-abc" and found.type == "chain"
    (entry,) = found.manifest.entries.values()
    assert (
        entry.path == "generation_0/fit/fit.json" and entry.ref == there.as_uri() and entry.local_path is None
    )
    assert found.metadata["generations"] == [
        {"generation": 0, "fit": "f0", "corpus": "c0", "evaluation": "e0"}
    ]


def test_names_of_any_length_are_tags_of_their_own(tmp_path: Path) -> None:
    """W&B's own SDK takes no tag of more than 64 characters."""
    begin = "small/accumulate_subsample/learning rate 0.0003/temperature 0.9/"
    names = [begin[:63] + "é", begin + "n 1000", begin + "n 2000"]
    generations = [GenerationView(Record(0, 0, "ok", "f0", "c0", "e0", {"test/nll": 1.0}), (), ())]
    views = [
        ChainView("x", f"abc{number}", "p", None, {}, generations, tags=(name, "seed 0"))
        for number, name in enumerate(names)
    ]
    with staged(tmp_path):
        for view in views:
            write_chain(view, tmp_path)
    short = [short_tag(name) for name in names]
    assert [len(tag) for tag in short] == [64, 64, 64] and len(set(short)) == 3 and short[0] == names[0]
    for view, tag in zip(views, short, strict=True):
        (file,) = tmp_path.rglob(f"*{run_id('x', view.chain)}.wandb")
        assert tag.encode() in file.read_bytes()


def test_a_damaged_note_of_offline_files_is_made_again(tmp_path: Path) -> None:
    generations = [GenerationView(Record(0, 0, "ok", "f0", "c0", "e0", {"test/nll": 1.0}), (), ())]
    view, note = ChainView("x", "abc", "p", None, {}, generations), tmp_path / "written" / "abc.json"
    with staged(tmp_path):
        write_chain(view, tmp_path)
        whole = note.read_text()
        note.write_text("{")
        write_chain(view, tmp_path)
    assert note.read_text() == whole and len([*tmp_path.rglob("*.wandb")]) == 1


def test_a_configuration_is_flat() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": [1, {"e": 2}]}, "f": {}, "g": None}) == {
        "a.b.c": 1,
        "a.d": [1, {"e": 2}],
        "f": {},
        "g": None,
    }


def test_a_failing_wandb_is_a_warning_and_loses_nothing(study: Any, tmp_path: Path) -> None:
    config, root = study("online")
    with endpoint() as recorder:
        settings = environment(recorder, tmp_path) | {
            "WANDB_API_KEY": "",
            "HOME": str(tmp_path),
            "NETRC": str(tmp_path / "none"),
        }
        done = harness("run", config, "--root", root, **settings)
        assert done.returncode == 0
        assert (
            "not logged in to W&B" in done.stderr
            and "Traceback" not in done.stderr
            and KEY not in done.stderr
        )
        harness("run", config, "--root", root, **environment(recorder, tmp_path))
        check(recorder, config, root)


def test_loss_curves_and_samples_of_a_language_model(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(TEXT, generations=1, **{"tracking.wandb": "online"}), tmp_path / "root"
    prepared, store = run_all(config, root, ranks=ranks)
    with endpoint() as recorder:
        done = harness("run", config, "--root", root, **environment(recorder, tmp_path))
        assert done.returncode == 0 and not done.stderr, done.stderr
        lines = recorder.history(run_id("text", prepared.lineage.chains[0].id))
    for generation, key in enumerate(prepared.lineage.chains[0].nodes):
        losses = store.json("fits", prepared.lineage.nodes[key].fit, "fit.json")["log"]["train_loss"]
        name = f"loss/generation_{generation}"
        assert [(line["fit_step"], line[name]) for line in lines if name in line] == list(
            enumerate(losses, start=1)
        )
    tables = [line["samples"] for line in lines if "samples" in line]
    assert len(tables) == 1 and (tables[0]["nrows"], tables[0]["ncols"]) == (4, 3)
    assert sum("status" in line for line in lines) == 2


def test_disabled_writes_nothing(study: Any) -> None:
    config, root = study("disabled")
    assert harness("run", config, "--root", root).returncode == 0
    assert not (root / "experiments" / "normal" / "wandb").exists()


def test_a_longer_chain_replaces_its_offline_file(study: Any, tmp_path: Path) -> None:
    config, root = study("offline")
    harness("run", config, "--root", root)
    longer = ("--set", "generations=4")
    done = harness("run", config, "--root", root, *longer)
    assert done.returncode == 0, done.stderr
    folders = list((root / "experiments" / "normal" / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == 6
    shutil.rmtree(root)
