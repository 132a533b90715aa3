"""Components of other packages: tests/plugin as a user would install it, and packages that do not work."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from functools import partial
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import GAUSSIAN, ROOT, TASK, TEXT, Make
from forked import Forks

from harness import components
from harness.chain import given as given_by
from harness.components import METRICS
from harness.components.judging import DECISIONS
from harness.errors import LearnerError, PluginError
from harness.learners.analytic import Family
from harness.learners.protocol import Learner
from harness.metrics.added import added_metrics
from harness.records import Examples
from harness.registry import (
    DataKind,
    DataPlugin,
    FilterPlugin,
    Found,
    LearnerPlugin,
    Loaded,
    Metric,
    MetricPlugin,
    ObjectivePlugin,
    RegimePlugin,
    TaskPlugin,
    TrackerPlugin,
    gather,
    gathering,
    named,
)
from harness.registry.gathering import with_numbers
from harness.registry.given import as_array, as_number
from harness.registry.plugins import EntryPointGroup

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "experiment": "added",
    "data": {"source": "gaussian", "dim": 2, "num_examples": 40},
    "learner": {"kind": "laplace"},
    "filters": [{"kind": "every", "step": 3}],
    "evaluate": {"metrics": ["spread"]},
    "generations": 3,
    "grid": {
        "regime": [{"kind": "two_latest"}, {"kind": "replace", "synthetic_ratio": 1.0}],
        "learner.shrink": [0.0, 0.5],
        "seed": [0, 1],
    },
    "tracking": {"wandb": "disabled", "trackers": ["files"]},
}

OF = "collapse-plugin 0.3.0"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    options = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--disable-pip-version-check",
        "--target",
        str(folder),
    ]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(ROOT / "tests" / "plugin")],
        check=True,
        capture_output=True,
    )
    return folder


def given(folder: Path, package: str, entry_points: str, module: str = "") -> Path:
    """A package made by hand."""
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(entry_points)
    if module:
        (folder / f"{package}.py").write_text(module)
    return folder


FORKS = Forks()


def harness(*arguments: object, path: Any = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    environment = {"PYTHONPATH": os.pathsep.join(map(str, path))}
    done = FORKS.run(command, environment, 240)
    assert done is not None
    return done


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return path


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_package_adds_runs_like_what_is_built_in(site: Path, config: Path, tmp_path: Path) -> None:
    def export(root: Path, *options: str) -> list[dict[str, Any]]:
        done = harness("export", config, "--root", root, "--format", "json", *options, path=[site])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    done = harness("plan", config, "--json", path=[site])
    assert done.returncode == 0 and json.loads(done.stdout)["chains"] == 8
    done = harness("run", config, "--root", tmp_path / "bundled", "--json", path=[site])
    assert done.returncode == 0 and json.loads(done.stdout)["chains_complete"] == 8, done.stderr
    rows = export(tmp_path / "bundled")
    assert len(rows) == 32 and all(
        row["laplace/log_scale"] is not None and row["spread/p10_p90"] > 0 for row in rows
    )
    # One generation after another instead of a bundle: the same numbers, under the same chains.
    single = ("--set", "resources.bundled=false")
    done = harness("run", config, "--root", tmp_path / "single", *single, path=[site])
    assert done.returncode == 0 and "log scale falls from " in done.stdout, done.stdout + done.stderr
    drop = {"key", "parent_key"}
    assert [
        {k: v for k, v in row.items() if k not in drop} for row in export(tmp_path / "single", *single)
    ] == [{k: v for k, v in row.items() if k not in drop} for row in rows]
    # Halving the scale in every fit lowers its logarithm by log 2 a generation, sampling aside.
    last = {
        shrink: [
            r["laplace/log_scale"] for r in rows if r["learner.shrink"] == shrink and r["generation"] == 3
        ]
        for shrink in (0, 0.5)
    }
    assert sum(last[0]) / 4 - sum(last[0.5]) / 4 > 3 * 0.69 - 0.5
    # Every cell of bundles, and every chain that was run by itself, was told once to the tracker.
    told = [
        json.loads(path.read_text())
        for path in (tmp_path / "single/experiments/added/trackers/files").glob("*.json")
    ]
    assert len(told) == 8 and {len(found["rows"]) for found in told} == {4}
    assert len(list((tmp_path / "bundled/experiments/added/trackers/files").glob("*.json"))) == 4
    (tmp_path / "single/experiments/added/trackers/files" / f"{rows[0]['chain']}.json").unlink()
    assert harness("run", config, "--root", tmp_path / "single", *single, path=[site]).returncode == 0
    assert not (tmp_path / "single/experiments/added/trackers/files" / f"{rows[0]['chain']}.json").exists()
    specs = [json.loads(path.read_text()) for path in (tmp_path / "single" / "fits").glob("*/spec.json")]
    assert {spec["learner"]["version"] for spec in specs} == {"collapse-plugin/1"}
    sets = [spec["training_set"] for spec in specs if "training_set" in spec]
    assert {item["version"] for found in sets for item in found["filters"]} == {"collapse-plugin/1"}
    assert {found["version"] for found in sets} == {"collapse-plugin/1", 1}
    evaluations = [
        json.loads(path.read_text()) for path in (tmp_path / "single" / "evaluations").glob("*/spec.json")
    ]
    assert {found["evaluation"]["added"]["spread"] for found in evaluations} == {"collapse-plugin/1"}
    report = harness("report", config, "--root", tmp_path / "bundled", path=[site])
    assert report.returncode == 0 and "log scale by generation" in report.stdout
    assert (
        "10 % to 90 % of the samples"
        in (tmp_path / "bundled/experiments/added/report/report.html").read_text()
    )
    assert "log scale" in (tmp_path / "bundled/experiments/added/report/report.html").read_text()
    row = export(tmp_path / "single", *single, "--provenance")[0]
    assert row["provenance/versions/collapse-plugin"] == "0.3.0"
    # The package is gone: what it computed is not shown under another name, and nothing is computed.
    gone = harness("run", config, "--root", tmp_path / "bundled")
    assert gone.returncode == 2
    was = f"which the package {OF} added when this study was run here, and nothing adds now; allowed: "
    assert f"{config}:6: learner: found 'laplace', {was}language_model, " in gone.stderr
    assert f"filters.0: found 'every', {was}" in gone.stderr


@pytest.mark.ray
def test_a_board_has_columns_of_a_package(site: Path, tmp_path: Path) -> None:
    """A track of the package's learner, its metrics as the score and beside it, its filter as an entry."""
    track = {
        "track": "laplace",
        "version": 1,
        "title": "A Laplace distribution",
        "about": "Fitted to its own samples.",
        "rules": ["None."],
        "config": {name: STUDY[name] for name in ("data", "learner", "evaluate")}
        | {"regime": {"kind": "replace", "synthetic_ratio": 1.0}, "generations": 2},
        "seeds": [0, 1, 2, 3, 4],
        "score": {"metric": "laplace/log_scale", "threshold": 0.5, "beside": ["spread/p10_p90"]},
        "open": ["filters"],
        "limits": {"regimes": ["replace"]},
    }
    (tmp_path / "track.yaml").write_text(yaml.safe_dump(track))
    study = {
        "experiment": "board",
        "track": str(tmp_path / "track.yaml"),
        "tracking": {"wandb": "disabled"},
        "mitigations": {"none": {}, "every_third": {"filters": [{"kind": "every", "step": 3}]}},
    }
    config, board = tmp_path / "board.yaml", tmp_path / "board"
    config.write_text(yaml.safe_dump(study))
    place = (config, "--root", tmp_path / "root")
    for command in (
        ("run", *place),
        ("leaderboard", "add", *place, "--to", board),
        ("leaderboard", "build", board),
    ):
        done = harness(*command, path=[site])
        assert done.returncode == 0, done.stderr
    lines = list(csv.DictReader((board / "laplace.csv").open()))
    assert {line["entry"] for line in lines} == {"none", "every_third"}
    assert all(float(line["last spread/p10_p90"]) > 0 and float(line["rise"]) for line in lines)
    assert "10 % to 90 % of the samples" in (board / "laplace.html").read_text()


@pytest.mark.ray
def test_a_learner_of_a_package_on_several_ranks(site: Path, make_config: Make, tmp_path: Path) -> None:
    """Each rank counts every other one of 41 examples; its chains are no bundles."""
    data, root = {"source": "gaussian", "num_examples": 41}, tmp_path / "root"
    grid = {"regime": [{"kind": "replace", "synthetic_ratio": 1.0}]}
    changes = {"data": data, "learner": {"kind": "histogram"}, "filters": [], "generations": 1, "grid": grid}
    config = make_config({**STUDY, **changes, "resources": {"ranks": 2}})
    done = harness("run", config, "--root", root, path=[site])
    assert done.returncode == 0, done.stderr
    options = ("--format", "json", "--provenance")
    rows = json.loads(harness("export", config, "--root", root, *options, path=[site]).stdout)
    assert [row["provenance/world_size"] for row in rows] == [2, 2]
    assert [(row["histogram/counted"], row["histogram/by_rank_0"]) for row in rows] == 2 * [(41, 21)]
    assert (root / "experiments/added/trackers/files" / f"{rows[0]['chain']}.json").exists()


def test_a_text_of_a_package_is_known_by_its_content(site: Path, make_config: Make, tmp_path: Path) -> None:
    """The same documents from a file are the same science; every field that names a text takes the name."""
    changes = {"data.source": "lab-notes", "data.tokenizer.vocab_size": 270, "data.num_examples": 64}
    named = make_config(TEXT, "named.yaml", **changes)
    texts = [
        f"On day {day} the sample weighed {day * day % 97} grams, and {day % 7} of the mice slept."
        for day in range(900)
    ]
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    filed = make_config(TEXT, "filed.yaml", **{**changes, "data.source": str(tmp_path / "notes.jsonl")})
    chains = []
    for config in (named, filed):
        done = harness("status", config, "--root", tmp_path / "root", "--json", path=[site])
        assert done.returncode == 0, done.stderr
        chains.append([row["chain"] for row in json.loads(done.stdout)["chains"]])
    assert chains[0] == chains[1] != []
    for field in ("evaluate.others={lab: lab-notes}", "regime.source={corpus: lab-notes}"):
        done = harness("plan", make_config(TEXT), "--set", field, path=[site])
        assert done.returncode == 0, done.stderr
    assert "lab-notes" in harness("list", "data", path=[site]).stdout
    gone = harness("plan", named)
    assert gone.returncode == 2 and "data.source: found 'lab-notes', allowed: python-docs" in gone.stderr


@pytest.mark.ray
def test_a_kind_of_data_of_a_package(site: Path, make_config: Make, tmp_path: Path) -> None:
    """Built-in learners and filters read it; its teachers differ; the package is in every key."""
    box = {"source": "box", "dim": 2, "num_examples": 30, "width": 2.0}
    changes = {"data": box, "generations": 2, "grid": {"learner.kind": ["gaussian", "kde"], "seed": [0, 1]}}
    config = make_config({**STUDY, **GAUSSIAN, "experiment": "boxes", "filters": []}, **changes)
    tables = []
    for bundled in ("true", "false"):
        root, options = tmp_path / bundled, ("--set", f"resources.bundled={bundled}")
        done = harness("run", config, "--root", root, "--json", *options, path=[site])
        assert done.returncode == 0 and json.loads(done.stdout)["chains_complete"] == 4, done.stderr
        done = harness("export", config, "--root", root, "--format", "json", *options, path=[site])
        tables.append([{k: v for k, v in r.items() if "key" not in k} for r in json.loads(done.stdout)])
    assert tables[0] == tables[1] and len(tables[0]) == 12
    first = [
        r["gaussian/log_variance"]
        for r in tables[0]
        if r["generation"] == 0 and r["learner.kind"] == "gaussian"
    ]
    assert np.mean(first) == pytest.approx(np.log(2.0**2 / 12), abs=0.5), (
        "the variance of a uniform distribution"
    )
    specs = [json.loads(path.read_text()) for path in (tmp_path / "false" / "fits").glob("*/spec.json")]
    assert {spec["data"]["added"] for spec in specs} == {"collapse-plugin/1"}
    teach = ("--set", "regime.source={model: {width: 1.0}}", "--set", "resources.bundled=false")
    done = harness("run", config, "--root", tmp_path / "taught", *teach, path=[site])
    assert done.returncode == 0, done.stderr
    wrong = harness("plan", config, "--set", "regime.source={model: {dim: 3}}", path=[site])
    assert wrong.returncode == 2 and "another shape than the real ones" in wrong.stderr
    wrong = harness("plan", config, "--set", "data.hight=1", path=[site])
    assert wrong.returncode == 2 and "data.hight: unknown field; allowed: source, dim" in wrong.stderr
    assert "Uniform between 0 and a width" in harness("list", "data", path=[site]).stdout
    gone = harness("plan", config)
    assert gone.returncode == 2 and "Traceback" not in gone.stderr, gone.stderr


SHELF = """
from typing import Literal
from harness.registry import DataKind
from harness.section import DataSection, PositiveInt, since
class Shelf(DataSection):
    "Rows that are counted, and kept in a folder."
    source: Literal["shelf"]
    rows: PositiveInt = since(40)
    num_examples: PositiveInt | None = since(None)
VERSION = 1
kind = DataKind(Shelf, prepare="shelf_rows:prepared", load="shelf_rows:load", sources=("shelf",),
                like="array", version=VERSION)
"""
SHELF_ROWS = """
import numpy as np
from shelf import VERSION
from harness.components.truths import ArrayData
from harness.data.real import PreparedData
from harness.data.rows import ROWS, ArrayTruth
def load(config, folder):
    return ArrayTruth(ArrayData(source="array", path=str(folder / ROWS), num_examples=config.num_examples))
def prepared(config, room):
    rows = VERSION * np.arange(config.rows, dtype=float)[:, None]
    folder = room.folder({"rows": config.rows}, lambda folder: np.save(folder / ROWS, rows))
    return PreparedData({"kind": "shelf", "rows": config.rows}, load(config, folder), {"source": "shelf"})
"""
"""What the folder holds depends on the kind's version, which its code names to nobody but the registry."""
LARGEST = """
import json, sys
from pathlib import Path
from harness.preparation import load_data
from harness.store import Store
from harness.study import commit_data, open_study
store = Store.open(Path(sys.argv[2]))
prepared, _ = open_study(Path(sys.argv[1]), (), store)
commit_data(prepared, store)
real = load_data(prepared.specs[0].data, store)
print(max(real.real(0, real.supply).values.max(), real.test.max()))
"""


def shelf(folder: Path, version: int) -> Path:
    """A package with a kind of finite data that keeps a folder."""
    module = SHELF.replace("VERSION = 1", f"VERSION = {version}")
    given(folder, "shelf", "[harness.data]\nshelf = shelf:kind\n", module)
    (folder / "shelf_rows.py").write_text(SHELF_ROWS)
    return folder


def test_another_version_of_a_kind_of_data_has_another_folder(make_config: Make, tmp_path: Path) -> None:
    """The version alone differs: what the other one has left in the store is not read."""
    config = make_config({**GAUSSIAN, "data": {"source": "shelf", "num_examples": 20}})
    for number, version in enumerate((1, 2, 1)):
        path = [shelf(tmp_path / f"site-{number}", version), ROOT]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
        command = [sys.executable, "-c", LARGEST, str(config), str(tmp_path / "root")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == 39 * version, "the last of 40 rows, from 0, as this version counts them"
    specs = [json.loads(path.read_text()) for path in (tmp_path / "root" / "data").glob("*/spec.json")]
    assert sorted(spec["added"] for spec in specs) == ["shelf/1", "shelf/2"]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("7", "prepare gives 7, expected harness.data.real.PreparedData of harness.data.RealData"),
        (
            "PreparedData({}, None, {})",
            "prepare gives None, expected harness.data.real.PreparedData of harness.data.RealData",
        ),
    ],
)
def test_what_a_kind_of_data_prepares_is_looked_at(
    make_config: Make, tmp_path: Path, gives: str, message: str
) -> None:
    path = shelf(tmp_path / "site", 1)
    code = f"from harness.data.real import PreparedData\ndef prepared(config, room): return {gives}\n"
    (path / "shelf_rows.py").write_text(code)
    config = make_config({**GAUSSIAN, "data": {"source": "shelf"}})
    at = f"{config}:{config.read_text().splitlines().index('  source: shelf') + 1}: data.source"
    done = harness("plan", config, path=[path])
    assert done.returncode == 2
    assert done.stderr == f"error: {at}: data shelf of the package shelf: {message}\n"


def test_finite_data_of_a_package_are_shared_by_seeds(make_config: Make, tmp_path: Path) -> None:
    """The message names no field that the section has not got, and goes where the section says no."""
    config = make_config({**GAUSSIAN, "data": {"source": "shelf"}})
    path = shelf(tmp_path / "site", 1)
    done = harness("plan", config, path=[path])
    assert done.returncode == 2 and "data.resample" not in done.stderr
    assert "data.source: every seed would train on all 36 examples of the training split; set " in done.stderr
    assert "own_examples of the section, which shelf defines, be False" in done.stderr
    assert harness("plan", config, "--set", "data.num_examples=35", path=[path]).returncode == 0
    module = (path / "shelf.py").read_text()
    for field in ("@property\n    def own_examples(self): return False", "resample: bool = since(False)"):
        (path / "shelf.py").write_text(module.replace("VERSION = 1", f"    {field}\nVERSION = 1"))
        done = harness("plan", config, path=[path])
        assert done.returncode == 0, done.stderr
    done = harness("plan", config, "--set", "data.resample=true", path=[path])
    assert done.returncode == 2 and "data.resample: every seed would train on all 36 " in done.stderr


def test_lists_messages_and_started_studies_know_it(site: Path, config: Path, tmp_path: Path) -> None:
    for what, kind, text in (
        ("learners", "laplace", "A Laplace distribution in every coordinate"),
        ("filters", "every", "Keeps every n-th example."),
        ("regimes", "two_latest", "Half of the training set is the last corpus"),
    ):
        rows = json.loads(harness("list", what, "--json", path=[site]).stdout)
        found = next(row for row in rows if kind in row.values())
        assert found["version"] == "collapse-plugin/1" and found["what"].startswith(text)
    assert "laplace/log_scale" in harness("list", "metrics", path=[site]).stdout
    lines = harness("list", "trackers", path=[site]).stdout.splitlines()
    assert "files    A file of JSON for every chain." in lines and lines[1].startswith("wandb ")
    started = harness("init", "mine", "--learner", "laplace", "--out", tmp_path / "mine.yaml", path=[site])
    assert started.returncode == 0, started.stderr
    assert (
        "# shrink: 0.0  # Share by which every fit makes the scale too small."
        in (tmp_path / "mine.yaml").read_text()
    )
    assert harness("show", tmp_path / "mine.yaml", path=[site]).returncode == 0
    for field, message in (
        ("filters=[{kind: every, step: 0}]", "filters.0.step: found 0"),
        ("filters=[{kind: every, stride: 2}]", "filters.0.stride: unknown field"),
        ("tracking.trackers=[file]", "tracking.trackers: found 'file', allowed: mlflow, files"),
        (
            "evaluate.metrics=[spred]",
            "evaluate.metrics: found 'spred', allowed: survival, spread (did you mean 'spread'?)",
        ),
        (
            "data={source: discrete, probabilities: [0.5, 0.5]}",
            "learner laplace reads gaussian, mixture, shape, array data",
        ),
    ):
        done = harness("plan", config, "--set", field, path=[site])
        assert done.returncode == 2 and message in done.stderr, done.stderr
    wrong = {
        **STUDY,
        "learner": {"kind": "laplace", "shrink": 2},
        "filters": [{"kind": "every", "stride": 2}],
    }
    config.write_text(yaml.safe_dump({**wrong, "grid": {}}, sort_keys=False))
    lines = config.read_text().splitlines()
    said = harness("plan", config, path=[site]).stderr
    for field, line in (
        ("learner.shrink: found 2", "  shrink: 2"),
        ("filters.0.stride: unknown", "  stride: 2"),
    ):
        assert f"{config}:{lines.index(line) + 1}: {field}" in said, said


FILLED = """
from typing import Annotated, Literal
from pydantic import Field, create_model
from harness.registry import DataKind, LearnerPlugin
from harness.section import DataSection, PositiveInt, Section, Share, since
class Part(Section):
    size: PositiveInt
    count: PositiveInt = since(1)
class Odd(Section):
    "What has to be told something."
    kind: Literal["odd"]
    needed: Share
    "How much of it."
    inner: Part
    several: list[int] = Field(default_factory=lambda: [1])
class Shelf(DataSection):
    source: Literal["shelf"]
    rows: PositiveInt
    num_examples: PositiveInt = since(20)
made = create_model("Made", __base__=Section, kind=(Literal["made"], ...))
shelf = DataKind(Shelf, prepare="filled:p", load="filled:l", sources=("shelf",))
odd = LearnerPlugin(Odd, 1, family="filled:F", reads=("shelf", "gaussian"))
half = LearnerPlugin(create_model("Half", __base__=Odd, kind=(Literal["half"], ...)), 1, family="filled:F",
                     reads=("gaussian",), example={"needed": 0.5, "inner": {"count": 2}})
bad = LearnerPlugin(create_model("Bad", __base__=Odd, kind=(Literal["bad"], ...)), 1, family="filled:F",
                    reads=("gaussian",), example={"needed": 7, "inner": {"size": 1}})
none = LearnerPlugin(create_model("Nothing", __base__=Odd, kind=(Literal["none"], ...)), 1, family="filled:F",
                     reads=("nothing",))
"""


def test_a_started_study_says_what_is_to_be_filled_in(tmp_path: Path) -> None:
    """A component need not have an example, and its sections need not be written as classes."""
    points = "[harness.data]\nshelf = filled:shelf\n[harness.learners]\n"
    points += "".join(f"{name} = filled:{name}\n" for name in ("odd", "half", "bad", "none"))
    folder = given(tmp_path / "site", "filled", points, FILLED)

    def start(learner: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        out = tmp_path / f"{learner}.yaml"
        return harness("init", learner, "--learner", learner, "--out", out, path=[folder]), out

    done, out = start("odd")
    assert done.returncode == 0, done.stderr
    fields = "data.rows and learner.needed and learner.inner"
    assert done.stdout.startswith(f"{out}: fill in {fields}; then `harness plan {out}` says what it costs")
    text = out.read_text()
    assert f"# Fill in {fields} first.\n" in text and "  source: shelf\n" in text
    assert "  needed:  # has to be filled in; How much of it.\n  inner:  # has to be filled in\n" in text
    assert "  # several: [1]\n" in text
    done = harness("plan", out, path=[folder])
    assert (
        done.returncode == 2
        and f"{out}:{text.splitlines().index('  inner:  # has to be filled in') + 1}:" in (done.stderr)
    )
    done, out = start("half")
    assert done.stdout.startswith(f"{out}: fill in learner.inner.size; then"), done.stdout + done.stderr
    assert "  needed: 0.5" in out.read_text() and "    size:  # has to be filled in\n" in out.read_text()
    done, out = start("bad")
    message = (
        "the example of 'bad', which a package gives, is none: learner.needed: Input should be less than"
    )
    assert done.returncode == 2 and message in done.stderr and not out.exists()
    done, out = start("none")
    message = "--learner: none reads nothing data, and there are none of these here"
    assert done.returncode == 2 and message in done.stderr and not out.exists()


SECTION = (
    "from typing import Literal\nfrom harness.registry import FilterPlugin, LearnerPlugin\n"
    "from harness.section import Section\nclass Odd(Section):\n    kind: Literal['{}']\n"
)
BROKEN = [
    (
        "[harness.data]\nshelf = broken:kind\n",
        "raise OSError('no licence')",
        "data.source: found 'shelf'; broken cannot be used for it: OSError: no licence",
    ),
    (
        "[harness.learners]\nlaplace = broken:learner\n",
        "raise OSError('no licence')",
        "broken cannot be used for it: OSError: no licence",
    ),
    (
        "[harness.learners]\nlaplace = broken:learner\n",
        "import sys\nsys.exit('this package needs a licence')",
        "broken cannot be used for it: SystemExit: this package needs a licence",
    ),
    (
        "[harness.learners]\nlaplace = broken:learner\n",
        "",
        "broken cannot be used for it: ModuleNotFoundError: No module named 'broken'",
    ),
    (
        "[harness.learners]\nlaplace = broken:learner\n",
        "learner = 3",
        "TypeError: broken:learner is a int, not a LearnerPlugin",
    ),
    (
        "[harness.filters]\nevery = broken:f\n",
        "from harness.registry import FilterPlugin\nfrom harness.section import Section\nclass "
        "Odd(Section):\n    step: int = 2\nf = FilterPlugin(Odd, 1, None)\n",
        "TypeError: the section of broken:f needs the field kind: Literal['every']",
    ),
    (
        "[harness.filters]\nevery = broken:f\n",
        f"{SECTION.format('every')}f = FilterPlugin(Odd, 1, None, of='all')\n",
        "ValueError: broken:f is of 'all', allowed: 'corpora', 'training sets'",
    ),
    (
        "[harness.learners]\nlaplace = broken:f\n",
        f"{SECTION.format('laplace')}    sample: int = 2\nf = LearnerPlugin(Odd, 1, reads=('gaussian',))\n",
        "TypeError: the section of broken:f has a field sample",
    ),
    (
        "[harness.learners]\nlaplace = broken:f\n",
        f"{SECTION.format('laplace')}    init: Literal['random'] = 'random'\n"
        "f = LearnerPlugin(Odd, 1, reads=('gaussian',))\n",
        "TypeError: the field init of broken:f can only be a Literal of 'scratch' and 'previous'",
    ),
    (
        "[harness.learners]\nlaplace = broken:f\n",
        f"{SECTION.format('laplace')}f = LearnerPlugin(Odd, 1, reads=('gaussian',), many_ranks=True)\n",
        "TypeError: broken:f has many_ranks, so it needs a learner, no family, and batchable=False",
    ),
]


def test_a_list_names_what_is_left_out(tmp_path: Path) -> None:
    """Where a package is registered, not all of the harness can be imported yet."""
    rest = f"{SECTION.format('every')}f = FilterPlugin(Odd, 1, len)\n"
    for folder, early, found in (
        ("good", "from harness.tasks import Checker, Problem, Verdict", True),
        ("bad", "import harness.learners.protocol", False),
    ):
        path = given(
            tmp_path / folder, "package", "[harness.filters]\nevery = package:f\n", f"{early}\n{rest}"
        )
        done = harness("list", "filters", "--json", path=[path])
        kinds = {kind for row in json.loads(done.stdout) for kind in row.values()}
        assert done.returncode == 0 and ("every" in kinds) == found
        left = (
            "every is left out: package cannot be used for it: ImportError: it imports what needs all kinds"
        )
        assert (left in done.stderr) != found


def test_what_a_package_prints_is_no_answer(tmp_path: Path) -> None:
    """When it is gathered, and when what it names is imported."""
    module = f"print('hello')\n{MADE}odd = shelf('array', num_examples=20)\n"
    module = module.replace("made:", "made_later:")
    folder = given(tmp_path / "site", "made", "[harness.data]\nodd = made:odd\n", module)
    later = """
from harness.data.analytic import Distribution
from harness.data.real import PreparedData
print("good morning")
class l(Distribution):
    def __init__(self, config, folder=None):
        super().__init__(config)
        self.width = 1
    def draw(self, streams, count):
        return streams("").normal(size=(count, 1))
def p(config, room):
    return PreparedData({"a": 1}, l(config), {})
"""
    (folder / "made_later.py").write_text(later)
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({**GAUSSIAN, "data": {"source": "odd"}}))
    done = harness("list", "data", "--json", path=[folder])
    assert any("odd" in row.values() for row in json.loads(done.stdout)) and done.stderr == "hello\n"
    done = harness("plan", path, "--root", tmp_path / "root", "--json", path=[folder])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chains"] and "hello\ngood morning\n" in done.stderr


def test_a_package_that_is_gone_is_named(site: Path, config: Path, tmp_path: Path) -> None:
    """Where the store has the study, in the order of lines; which is every message's."""
    root, one = tmp_path / "root", ("--set", "grid={seed: [0]}", "--set", "regime={kind: two_latest}")
    study = {**STUDY, "data": {"source": "box", "num_examples": 40}, "generations": 1}
    config.write_text(yaml.safe_dump(study, sort_keys=False))
    before = harness("plan", config, "--root", root)
    assert before.returncode == 2 and "need it installed" in before.stderr
    done = harness("run", config, "--root", root, *one, path=[site])
    assert done.returncode == 0, done.stderr
    known = json.loads((root / "experiments" / "added" / "packages.json").read_text())
    assert known == dict.fromkeys(("box", "laplace", "every", "spread", "two_latest", "files"), OF)
    for command in ("plan", "report"):
        done = harness(command, config, "--root", root)
        assert done.returncode == 2 and re.findall(r"yaml:(\d+)", done.stderr) == ["3", "5", "8"]
        for line, kind in zip(done.stderr.splitlines(), ("box", "laplace", "every"), strict=True):
            assert (
                f": found '{kind}', which the package {OF} added when this study was run here, and " in line
            )
    other = tmp_path / "other.yaml"
    for part, kind in (
        ({"grid": {"regime": [{"kind": "two_latest"}]}}, "two_latest"),
        ({"evaluate": {"metrics": ["spread"]}}, "spread"),
        ({"tracking": {"trackers": ["files"]}}, "files"),
    ):
        other.write_text(yaml.safe_dump({**GAUSSIAN, "regime": {}, "experiment": "added", **part}))
        done = harness("plan", other, "--root", root)
        assert done.returncode == 2 and f"found '{kind}', which the package {OF} added" in done.stderr
    (root / "experiments" / "added" / "packages.json").write_text("[")
    assert harness("plan", config, "--root", root).stderr == before.stderr


@pytest.mark.parametrize(("entry_points", "module", "message"), BROKEN, ids=range(len(BROKEN)))
def test_a_package_that_does_not_work_is_named(
    config: Path, tmp_path: Path, entry_points: str, module: str, message: str
) -> None:
    folder = given(tmp_path / "site", "broken", entry_points, module)
    other = ("--set", "data={source: shelf, rows: 2}") if "shelf" in entry_points else ()
    done = harness("plan", config, *other, path=[folder])
    assert done.returncode == 2 and message in done.stderr
    # Who does not ask for it is not concerned.
    plain = harness("show", "papers/small/kazdan_gaussian", path=[folder])
    assert plain.returncode == 0, plain.stderr


MADE = """
from typing import ClassVar, Literal
from pydantic import create_model
from harness.registry import DataKind, FilterPlugin, LearnerPlugin, MetricPlugin, ObjectivePlugin
from harness.registry import RegimePlugin, TaskPlugin, TrackerPlugin
from harness.section import DataSection, Section
class Odd(Section):
    kind: Literal["odd"]
class Shelf(DataSection):
    source: Literal["odd"]
def shelf(like, **fields):
    section = create_model("Own", __base__=Shelf, **{name: (int, value) for name, value in fields.items()})
    return DataKind(section, prepare="made:p", load="made:l", sources=("odd",), like=like)
class Own(Shelf):
    num_examples: int = 3
    resample: bool = False
class Prompts(Shelf):
    prompted: ClassVar[bool] = True
    num_examples: int = 3
"""
MADE_WRONG: list[tuple[str, str, str]] = [
    (
        "learners",
        "LearnerPlugin(Odd, 1, reads=('gaussian',))",
        "made:odd has no family, so it needs a learner, ",
    ),
    ("learners", "LearnerPlugin(Odd, 1, reads=(), family='made:F')", "made:odd reads no kind of data"),
    (
        "learners",
        "LearnerPlugin(Odd, 1, reads=('gaussian',), family='nowhere.models:F')",
        "its family is 'nowhere.models:F', and there is no module nowhere",
    ),
    (
        "learners",
        "LearnerPlugin(Odd, 1, reads=('gaussian',), family='made.F')",
        "its family is 'made.F', expected 'module:attribute'",
    ),
    ("filters", "FilterPlugin(Odd, 1, None)", "its keep is None, expected a function or 'module:attribute'"),
    ("filters", "FilterPlugin(Odd, 1, '')", "its keep is '', expected 'module:attribute'"),
    ("filters", "FilterPlugin(Odd, 1, 'made:k', passing=0.5)", "its passing is 0.5, expected a function"),
    ("regimes", "RegimePlugin('made:rule', 1)", "its rule is 'made:rule', expected a function"),
    ("trackers", "TrackerPlugin()", "made:odd needs write, or a tracker"),
    ("trackers", "TrackerPlugin(7)", "its write is 7, expected a function or 'module:attribute'"),
    ("data", "shelf('array')", "the section of made:odd needs the field num_examples"),
    (
        "data",
        "shelf('linear', num_examples=3)",
        "its section lacks dim, which readers of linear data ask for",
    ),
    (
        "data",
        "shelf('text', num_examples=3, block_size=4)",
        "its section lacks tokenizer, prepend_bos, filled, longest, which readers of text data ask for",
    ),
    (
        "data",
        "DataKind(Prompts, prepare='made:p', load='made:l', sources=('odd',))",
        "prompt_length, has_truth, has_solutions, named, more, which readers of task data ask for",
    ),
    (
        "data",
        "DataKind(Own, prepare='made:p', load='made:l', sources=('odd',), places=('resample',))",
        "places of made:odd name resample, which says more than where",
    ),
    *(
        (
            "filters",
            f"FilterPlugin(Odd, {found}, len)",
            f"its version is {found}, expected a whole number from 1",
        )
        for found in ("None", "'1'", "0", "-1", "True", "1.5")
    ),
    *(
        (group, made.format("version=0"), "its version is 0, expected a whole number from 1")
        for group, made in (
            ("learners", "LearnerPlugin(Odd, {}, reads=('gaussian',), family='made:F')"),
            ("regimes", "RegimePlugin(len, {})"),
            ("data", "DataKind(Own, prepare='made:p', load='made:l', sources=('odd',), {})"),
            ("metrics", "MetricPlugin((), {}, measure=len)"),
            ("objectives", "ObjectivePlugin(Odd, {})"),
            ("tasks", "TaskPlugin(Odd, {}, problems='made:p', check='made:c', alphabet='made:a')"),
        )
    ),
    *(
        (
            "learners",
            f"LearnerPlugin(Odd, 1, reads=('gaussian',), family='made:F', seconds_per_example={found})",
            f"its seconds_per_example is {said}, expected seconds from 0 to 1e9, or a function",
        )
        for found, said in (
            ("float('nan')", "nan"),
            ("float('inf')", "inf"),
            ("-1", "-1"),
            ("'1'", "'1'"),
            ("None", "None"),
            ("1e300", "1e+300"),
        )
    ),
    *(
        (
            "learners",
            f"LearnerPlugin(Odd, 1, reads=('gaussian',), family='made:F', {found})",
            f"its {message}",
        )
        for found, message in (
            ("metrics_version=0", "metrics_version is 0, expected a whole number from 1"),
            ("groups={'test': None}", "groups is {'test': None}, expected a whole number from 1 by name"),
            ("seeds=0.5", "seeds is 0.5, expected a whole number from 1"),
            ("many_ranks='no'", "many_ranks is 'no', expected True or False"),
        )
    ),
    (
        "tasks",
        "TaskPlugin(Odd, 1, problems='made:p', check='made:c', alphabet='made:a', check_s=float('inf'))",
        "its check_s is inf, expected finite seconds above 0",
    ),
    ("objectives", "ObjectivePlugin(Odd, 1, each=0)", "its each is 0, expected a whole number from 1"),
    ("data", "shelf('boxes', num_examples=3)", "its like is 'boxes', allowed: text, task, chat, images, "),
]
EXPECTED: dict[EntryPointGroup, Any] = {
    "learners": LearnerPlugin,
    "filters": FilterPlugin,
    "regimes": RegimePlugin,
    "trackers": TrackerPlugin,
    "data": (DataPlugin, DataKind),
    "metrics": MetricPlugin,
    "objectives": ObjectivePlugin,
    "tasks": TaskPlugin,
}


@pytest.fixture
def gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Found[Any]]:
    """What is found of a package, by its module and one entry point."""

    def found(group: EntryPointGroup, module: str, name: str = "odd") -> Found[Any]:
        (tmp_path / "made.py").write_text(module)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "made", raising=False)
        points = EntryPoints([EntryPoint(name, "made:odd", f"harness.{group}")])
        monkeypatch.setattr(gathering, "_entry_points", lambda: points)
        check = {"check": components._check_like} if group == "data" else {}
        return gather(group, EXPECTED[group], {}, **check)

    return found


@pytest.mark.parametrize(("group", "made", "message"), MADE_WRONG)
def test_a_component_that_cannot_work_is_left_out(
    gathered: Callable[..., Found[Any]], group: EntryPointGroup, made: str, message: str
) -> None:
    """Before anything of it is used, and without an import of its code."""
    found = gathered(group, f"{MADE}odd = {made}\n")
    assert not found.loaded and message in found.broken["odd"]
    assert found.broken["odd"].startswith("made cannot be used for it: ")


def test_declared_numbers_of_other_libraries_are_numbers(gathered: Callable[..., Found[Any]]) -> None:
    """And what the harness itself declares would be taken of a package."""
    made = "LearnerPlugin(Odd, np.int64(2), reads=('gaussian',), family='made:F', groups={'a': np.int64(3)}, "
    module = f"{MADE}import numpy as np\nodd = {made}seconds_per_example=np.float32(0.5))\n"
    plugin = gathered("learners", module)["odd"]
    assert (plugin.version, plugin.groups, plugin.seconds_per_example) == (2, {"a": 3}, 0.5)
    assert {type(plugin.version), type(plugin.groups["a"])} == {int}
    own = (components.LEARNERS, components.FILTERS, components.REGIMES, components.DATA_KINDS)
    for group in (*own, components.TASKS, components.OBJECTIVES, components.METRICS, components.TRACKERS):
        for item in group.loaded.values():
            assert with_numbers(item.plugin) == item.plugin


@pytest.mark.parametrize("name", ["../../../esc", "a.b", "_a", "a b", "", "a/b", "\u001b[2J", "é"])
def test_a_kind_has_a_plain_name(gathered: Callable[..., Found[Any]], name: str) -> None:
    """Trackers have a folder of their name."""
    module = f"{MADE}odd = TrackerPlugin('made:write')\n"
    found = gathered("trackers", module, name)
    assert not found.loaded and "a name has letters, digits, - and _" in found.broken[name]
    assert gathered("trackers", module, "lab-notes_2").loaded


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("", "AttributeError: module 'code_of_it' has no attribute 'Fam'"),
        (
            "import nothing_like_it",
            "ModuleNotFoundError: No module named 'nothing_like_it' (code_of_it.py, line 1)",
        ),
        ("import sys\nsys.exit('no licence')", "SystemExit: no licence (code_of_it.py, line 2)"),
        ("Fam = (", "SyntaxError: '(' was never closed (code_of_it.py, line 1)"),
    ],
)
def test_code_that_cannot_be_had_is_its_packages(
    gathered: Callable[..., Found[Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    message: str,
) -> None:
    """None of these errors has a frame of what its entry point names."""
    (tmp_path / "code_of_it.py").write_text(code)
    monkeypatch.delitem(sys.modules, "code_of_it", raising=False)
    made = "LearnerPlugin(Odd, 1, reads=('gaussian',), family='code_of_it:Fam')"
    plugin = gathered("learners", f"{MADE}odd = {made}\n")["odd"]
    with pytest.raises(PluginError) as failed:
        named(plugin.family)
    assert str(failed.value) == (
        f"learner odd of the package made: family 'code_of_it:Fam' cannot be used: {message}"
    )


@pytest.mark.parametrize(
    ("code", "kind", "message"),
    [
        ("7", None, "is 7, expected a function"),
        ("7", Family, "is 7, expected a class as harness.learners.analytic.family.Family"),
        (
            "type('Fam', (), {})",
            Family,
            "is no subclass of Family, expected a class as harness.learners.anal",
        ),
        (
            "type('Fam', (Family,), {'fit': len})",
            Family,
            "has no evaluate, sample, expected a class as harness",
        ),
        (
            "type('Fam', (), {'fit': len})",
            Learner,
            "has no sample, evaluate, reset_peak, describe, expected a ",
        ),
    ],
)
def test_code_that_is_something_else_is_its_packages(
    gathered: Callable[..., Found[Any]], code: str, kind: type[Any] | None, message: str
) -> None:
    made = "LearnerPlugin(Odd, 1, reads=('gaussian',), family='made:Fam')"
    module = f"{MADE}from harness.learners.analytic.family import Family\nFam = {code}\nodd = {made}\n"
    plugin = gathered("learners", module)["odd"]
    with pytest.raises(PluginError) as failed:
        named(plugin.family, kind)
    assert str(failed.value).startswith(f"learner odd of the package made: family 'made:Fam' {message}")


def test_code_that_takes_something_else_is_its_packages(gathered: Callable[..., Found[Any]]) -> None:
    """A function of too few arguments; what is wrong inside of one stays what it is."""
    module = f"{MADE}def keep(section, examples): return len(7)\n"
    for place in ("keep", "'made:keep'"):
        plugin = gathered("filters", f"{module}odd = FilterPlugin(Odd, 1, {place})\n")["odd"]
        whose = "filter odd of the package made: keep" + " 'made:keep'" * (place != "keep")
        with pytest.raises(PluginError) as failed:
            named(plugin.keep)(1, 2, 3)
        assert str(failed.value) == (
            f"{whose} cannot be called as it is: keep() takes 2 positional arguments but 3 were given"
        )
        with pytest.raises(TypeError, match=r"object of type 'int' has no len\(\)"):
            named(plugin.keep)(1, 2)


@pytest.mark.parametrize(
    ("field", "code", "gives"),
    [
        ("passing", "lambda section: 0.25", 0.25),
        ("passing", "lambda section: np.float32(0.25)", 0.25),
        ("passing", "lambda section: 0", "gives 0: it should be greater than 0"),
        ("passing", "lambda section: 'half'", "gives 'half': it should be a valid number"),
        ("passing", "lambda section: None", "gives None: it should be a valid number"),
        (
            "passing",
            "lambda: 1.0",
            "cannot be called as it is: <lambda>() takes 0 positional arguments but 1",
        ),
        ("learns", "lambda section: (np.int64(3), 1)", (3, 1)),
        ("learns", "lambda section: 3", "gives 3: it should be a valid tuple"),
        ("labelled", "lambda section: -1", "gives -1: it should be greater than or equal to 0"),
        ("labelled", "lambda section: 1.5", "gives 1.5: it should be a valid integer"),
        ("neutral", "lambda section: 'no'", "gives 'no': it should be a valid boolean"),
        ("together", "lambda section: None", None),
        ("choice", "lambda section: 7", "gives 7: it should be a valid string"),
    ],
)
def test_what_small_functions_give_is_looked_at(
    gathered: Callable[..., Found[Any]], field: str, code: str, gives: Any
) -> None:
    """Before anything is computed with it."""
    module = f"{MADE}import numpy as np\nodd = FilterPlugin(Odd, 1, 'made:keep', {field}={code})\n"
    function = getattr(gathered("filters", module)["odd"], field)
    if not isinstance(gives, str):
        assert function(None) == gives
        return
    with pytest.raises(PluginError) as failed:
        function(None)
    assert str(failed.value).startswith(f"filter odd of the package made: {field} {gives}")


def test_a_filter_raises_its_version_for_some_sections(gathered: Callable[..., Found[Any]]) -> None:
    raised = "raised=lambda section, before: len(before)"
    found = gathered("filters", f"{MADE}odd = FilterPlugin(Odd, 3, 'made:keep', {raised})\n")
    loaded = found.loaded["odd"]
    versions = [loaded.raised(loaded.plugin.raised(None, before)) for before in ((), (None,))]
    assert versions == [loaded.version, "made/4"] == ["made/3", "made/4"]
    wrong = gathered("filters", f"{MADE}odd = FilterPlugin(Odd, 1, 'made:keep', raised=lambda *of: -1)\n")[
        "odd"
    ]
    with pytest.raises(
        PluginError, match="filter odd of the package made: raised gives -1: it should be greater"
    ):
        wrong.raised(None, ())


def test_a_shared_function_is_the_callers(gathered: Callable[..., Found[Any]]) -> None:
    module = f"{MADE}from os.path import basename as keep\nodd = FilterPlugin(Odd, 1, keep)\n"
    one = gathered("filters", module)["odd"]
    other = gathered("filters", module.replace('"odd"', '"even"'), "even")["even"]
    for plugin, kind in ((one, "odd"), (other, "even")):
        with pytest.raises(PluginError, match=f"^filter {kind} of the package made: keep cannot be called"):
            named(plugin.keep)(1, 2, 3)


def test_commands_name_the_component_whose_code_is_not_there(tmp_path: Path, make_config: Make) -> None:
    """Where it is used for the first time."""
    parts = {
        "learners": "LearnerPlugin(Odd, 1, reads=('gaussian',), family='made:Fam')",
        "data": "shelf('array', num_examples=20)",
        "trackers": "TrackerPlugin(tracker='made:Tracker')",
    }
    module = MADE + "".join(f"{group} = {made}\n" for group, made in parts.items())
    points = "".join(f"[harness.{group}]\nodd = made:{group}\n" for group in parts)
    folder, made = given(tmp_path / "site", "made", points, module), "odd of the package made:"
    for command, setting, message in (
        ("plan", "data={source: odd}", f"data.source: data {made} prepare 'made:p' cannot be used: Attr"),
        ("run", "learner={kind: odd}", f"learner.kind: learner {made} family 'made:Fam' cannot be used: "),
        (
            "run",
            "tracking.trackers=[odd]",
            f"tracking.trackers.0: tracker {made} tracker 'made:Tracker' cannot ",
        ),
        (
            "sync",
            "tracking.trackers=[odd]",
            f"tracking.trackers.0: tracker {made} tracker 'made:Tracker' cannot ",
        ),
    ):
        options = ("--root", tmp_path / "root", "--set", setting, "--set", "resources.bundled=true")
        done = harness(command, make_config(GAUSSIAN), *options, path=[folder])
        assert done.returncode == 2 and done.stderr.startswith(f"error: --set: {message}"), done.stderr


def test_a_package_cannot_take_a_name_that_exists(site: Path, config: Path, tmp_path: Path) -> None:
    points = "[harness.learners]\ngaussian = collapse_plugin:learner\nlaplace = collapse_plugin:learner\n"
    folder = given(tmp_path / "site", "aaa", points)
    listed = json.loads(harness("list", "learners", "--json", path=[site, folder]).stdout)
    assert next(row for row in listed if row["learner"] == "gaussian")["version"] == 2
    points = "[harness.trackers]\nmlflow = collapse_plugin:tracker\n"
    folder = given(tmp_path / "another", "bbb", points)
    done = harness("plan", config, "--set", "tracking.trackers=[mlflow]", path=[site, folder])
    assert done.returncode == 0, "a name of the harness's own stays its own"
    # Two packages with one name: the first by name has it, so that it is the same one on every machine.
    assert next(row for row in listed if row["learner"] == "laplace")["version"] == "aaa/1"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            "1 / 0",
            "odd.yaml:11: regime.kind: the rule of odd (odd) raises ZeroDivisionError: division by zero "
            "(odd.py, line 4) (details: ",
        ),
        ("int('x')", "regime.kind: the rule of odd (odd) raises ValueError: invalid literal for int()"),
        ("7", "regime.kind: the rule of odd (odd) gives 7 for generation 1, expected a tuple of parts"),
        (
            "((3,), None)",
            "the rule of odd (odd) gives ((3,), None) for generation 1, expected a tuple of parts",
        ),
    ],
)
def test_a_regime_that_fails_is_named(tmp_path: Path, rule: str, message: str) -> None:
    """A package's fault is not called the harness's."""
    code = (
        "from harness.registry import RegimePlugin\n\ndef rule(regime, n, generation):\n"
        f"    return {rule}\n\nodd = RegimePlugin(rule, 1)\n"
    )
    folder = given(tmp_path / "site", "odd", "[harness.regimes]\nodd = odd:odd\n", code)
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({**GAUSSIAN, "regime": {"kind": "odd"}}))
    done = harness("plan", path, "--root", tmp_path / "root", path=[folder])
    assert done.returncode != 0 and message in done.stderr and "defect" not in done.stderr, done.stderr


ASKED = """
import sys
from typing import Literal
from harness.registry import DataKind, FilterPlugin, LearnerPlugin, MetricPlugin, Metric, RegimePlugin
from harness.section import DataSection, Section
class Model(Section):
    kind: Literal["model"]
class Pass(Section):
    kind: Literal["pass"]
class Shelf(DataSection):
    source: Literal["shelf"]
    num_examples: int = 20
    resample: bool = False
def fails(*asked):
    raise KeyError("mine")
def verdict(*asked):
    raise ValueError("too many of them")
def asserts(*asked):
    assert False
def leaves(*asked):
    sys.exit("no licence")
def gives(*asked):
    return 7
def rule(regime, n, generation):
    return fails()
MODEL = dict(version=1, family="asked:Family", reads=("gaussian", "shelf"))
"""


ASKED_FOR = {
    "model": ("learners", "LearnerPlugin(Model, {}, **MODEL)"),
    "pass": ("filters", "FilterPlugin(Pass, 1, fails, {})"),
    "every": ("regimes", "RegimePlugin({}, 1)"),
    "shelf": (
        "data",
        "DataKind(Shelf, prepare='asked:{}', load='asked:fails', sources=('shelf',), like='array')",
    ),
}


@pytest.mark.parametrize(
    ("kind", "given_as", "said"),
    [
        (
            "model",
            "check=fails",
            "3: learner.kind: the check of model (asked) raises KeyError: 'mine' (asked.py",
        ),
        (
            "model",
            "check=asserts",
            "3: learner.kind: the check of model (asked) raises AssertionError (asked.py",
        ),
        ("model", "check=verdict", "3: learner: too many of them\n"),
        (
            "model",
            "seconds_per_example=fails",
            "3: learner.kind: the seconds_per_example of model (asked) raises",
        ),
        (
            "model",
            "seconds_per_example=lambda width: float('nan')",
            "3: learner.kind: learner model of the package asked: seconds_per_example gives nan: it should",
        ),
        (
            "model",
            "least_numbers=fails",
            "3: learner.kind: the least_numbers of model (asked) raises KeyError",
        ),
        (
            "model",
            "reads_pools_anew=fails",
            "3: learner.kind: the reads_pools_anew of model (asked) raises KeyE",
        ),
        (
            "pass",
            "check=fails",
            "4: filters.1.kind: the check of pass (asked) raises KeyError: 'mine' (asked.py",
        ),
        ("pass", "check=verdict", "4: filters.1: too many of them\n"),
        (
            "pass",
            "reference=fails",
            "4: filters.1.kind: the reference of pass (asked) raises KeyError: 'mine' (asked",
        ),
        (
            "pass",
            "neutral=leaves",
            "4: filters.1.kind: the neutral of pass (asked) raises SystemExit: no licence",
        ),
        (
            "every",
            "rule",
            "5: regime.kind: the rule of every (asked) raises KeyError: 'mine' (asked.py, line 15)",
        ),
        ("every", "lambda *asked: 7", "5: regime.kind: the rule of every (asked) gives 7 for generation 1"),
        (
            "shelf",
            "fails",
            "2: data.source: the prepare 'asked:fails' of shelf (asked) raises KeyError: 'mine'",
        ),
        (
            "shelf",
            "nothing",
            "2: data.source: data shelf of the package asked: prepare 'asked:nothing' cannot be used: Attri",
        ),
        ("shelf", "gives", "2: data.source: data shelf of the package asked: prepare gives 7, expected "),
    ],
)
def test_what_fails_in_a_plan_is_told_at_its_line(
    tmp_path: Path, kind: str, given_as: str, said: str
) -> None:
    """Of functions of all kinds, and on an axis too."""
    group, made = ASKED_FOR[kind]
    module = f"{ASKED}made = {made.format(given_as)}\n"
    folder = given(tmp_path / "site", "asked", f"[harness.{group}]\n{kind} = asked:made\n", module)
    filters = "{kind: verifier, score: log_density, at_least: -50}, {kind: pass}"
    lines = {
        "experiment": "asked",
        "data": f"{{source: {'shelf' if kind == 'shelf' else 'gaussian'}, num_examples: 20}}",
        "learner": f"{{kind: {'model' if kind == 'model' else 'gaussian'}}}",
        "filters": f"[{filters if kind == 'pass' else ''}]",
        "grid": f"{{{'regime: [{kind: every}]' if kind == 'every' else 'seed: [0]'}}}",
        "tracking": "{wandb: disabled}",
    }
    path = tmp_path / "study.yaml"
    path.write_text("".join(f"{field}: {value}\n" for field, value in lines.items()))
    done = harness("plan", path, "--root", tmp_path / "root", path=[folder])
    assert done.returncode == 2 and f"error: {path}:{said}" in done.stderr, done.stderr


@pytest.mark.ray
def test_a_field_that_a_packages_rule_reads_is_in_keys(tmp_path: Path) -> None:
    """Two values of one field, after each other on one store: the second run computes its own chain."""
    code = (
        "from harness.records import REAL, Part\nfrom harness.registry import RegimePlugin\n"
        "def rule(regime, n, generation):\n"
        "    return (Part(REAL, int(n * regime.anchor)), Part(generation - 1, n)), None\n"
        "odd = RegimePlugin(rule, 1, uses=('anchor',))\n"
    )
    folder = given(tmp_path / "site", "odd", "[harness.regimes]\nodd = odd:odd\n", code)
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({**GAUSSIAN, "regime": {"kind": "odd", "anchor": 0.5}}))
    for anchor, reused in ((0.5, 0), (0.25, 1)):
        options = ("--set", f"regime.anchor={anchor}", "--set", "resources.bundled=false")
        done = harness("run", path, "--root", tmp_path / "root", "--json", *options, path=[folder])
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["generations_reused"] == reused, "generation 0 alone is shared"


@pytest.mark.parametrize(
    "names",
    [
        ("Laplace", "LaplaceFamily", "learner"),
        ("Every", "keep", "filter_"),
        ("two_latest", "regime"),
        ("spread", "metric"),
        ("write", "tracker"),
    ],
)
def test_a_component_is_at_most_40_lines(names: tuple[str, ...]) -> None:
    """Its section, what it does and its registration, without blank lines: as the package here shows it."""
    found, seen = 0, set[str]()
    for path in (ROOT / "tests" / "plugin").glob("*.py"):
        text = path.read_text()
        for node in ast.parse(text).body:
            target = node.targets[0] if isinstance(node, ast.Assign) else node
            if (name := getattr(target, "id", getattr(target, "name", ""))) in names:
                seen.add(name)
                found += sum(map(bool, map(str.strip, text.splitlines()[node.lineno - 1 : node.end_lineno])))
    assert seen == set(names) and found <= 40


def test_what_a_regime_reads_is_asked_of_its_rule(tmp_path: Path) -> None:
    """A package's regime that reads no real example is refused what `replace_grown` is refused."""
    code = (
        "from harness.records import Part\nfrom harness.registry import RegimePlugin\n"
        "def rule(regime, n, generation): return (Part(generation - 1, n),), None\n"
        "odd = RegimePlugin(rule, 1)\n"
    )
    folder = given(tmp_path / "site", "odd", "[harness.regimes]\nodd = odd:odd\n", code)
    path = tmp_path / "odd.yaml"
    path.write_text(yaml.safe_dump({**GAUSSIAN, "regime": {"kind": "odd"}}))
    assert harness("plan", path, path=[folder]).returncode == 0
    done = harness("plan", path, "--set", "learner.synthetic_weight=0", path=[folder])
    message = "learner.synthetic_weight: found 0, and in odd no training example is real"
    assert done.returncode == 2 and message in done.stderr, done.stderr
    (folder / "odd.py").write_text(code.replace("(Part(generation - 1, n),), None", "7"))
    done = harness("plan", path, "--set", "learner.synthetic_weight=0", path=[folder])
    assert done.returncode == 2 and "the rule of odd (odd) gives 7" in done.stderr, done.stderr


def test_a_package_cannot_have_the_harness_columns(tmp_path: Path) -> None:
    """What a column means does not depend on what is installed."""
    module = (
        "from harness.registry import Metric, MetricPlugin\n"
        "def loaded(name):\n"
        "    return MetricPlugin((Metric(name, 'mine'),), 1, lambda corpus, known: {name: 0.0})\n"
        "whole, part, own = map(loaded, ('test/nll', 'pool/mine/recall', 'mine/recall'))\n"
    )
    points = "".join(f"{name} = odd:{name}\n" for name in ("whole", "part", "own"))
    folder = given(tmp_path / "site", "odd", f"[harness.metrics]\n{points}", module)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**GAUSSIAN, "evaluate": {"metrics": ["whole", "part"]}}))
    done = harness("plan", path, path=[folder])
    assert done.returncode == 2, done.stderr
    assert "odd cannot be used for it: ValueError: the harness has a column test/nll" in done.stderr
    done = harness("plan", path, "--set", "evaluate.metrics=[part]", path=[folder])
    assert "a column pool/<filter>/recall, and pool/mine/recall would be one of it" in done.stderr
    done = harness("plan", path, "--set", "evaluate.metrics=[own]", path=[folder])
    assert done.returncode == 0, done.stderr


def test_a_name_of_nothing_here(config: Path, tmp_path: Path) -> None:
    """What a package would add, where it is not installed, and a slip of the pen."""
    for setting, message in {
        "learner.kind=laplace": "linear_regression, vae; those of a package need it installed",
        "learner.kind=gausian": "vae (did you mean 'gaussian'?)\n",
        "data.source=box": "data.source: found 'box', allowed: python-docs, ",
        "data.source=gausian": "(did you mean 'gaussian'?); hf:NAME, or a path; names of a package need it",
    }.items():
        done = harness("plan", config, "--set", setting)
        assert done.returncode == 2 and message in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("keep", "message", "bundled"),
    [
        ("lambda config, examples, known: [True]", "expected [40] truth values", True),
        ("lambda config, examples, known: 1 / 0", "the package odd (odd.py, line 6): ZeroDivision", True),
        ("lambda config, examples, known: __import__('sys').exit('no licence')", "SystemExit: no lic", True),
        ("lambda config, examples, known: __import__('sys').exit('no licence')", "SystemExit: no lic", False),
    ],
)
@pytest.mark.ray
@pytest.mark.slow
def test_a_filter_that_fails_says_which(
    site: Path, config: Path, tmp_path: Path, keep: str, message: str, bundled: bool
) -> None:
    module = (
        "from typing import Literal\nfrom harness.registry import FilterPlugin\nfrom harness.section import "
        f"Section\nclass Odd(Section):\n    kind: Literal['odd']\nf = FilterPlugin(Odd, 1, {keep})\n"
    )
    folder = given(tmp_path / "site", "odd", "[harness.filters]\nodd = odd:f\n", module)
    smaller = (
        "--set",
        "filters=[{kind: odd}]",
        "--set",
        "grid={seed: [0]}",
        "--set",
        "resources.max_failures=0",
        "--set",
        f"resources.bundled={str(bundled).lower()}",
    )
    done = harness("run", config, "--root", tmp_path / "root", *smaller, path=[site, folder])
    assert done.returncode == 1 and message in done.stdout + done.stderr
    said = harness("explain", config, "--root", tmp_path / "root", *smaller, path=[site, folder])
    assert f"generation {0 if bundled else 1}: failed: will " in said.stdout and message in said.stdout, (
        said.stdout + said.stderr
    )


def test_a_package_gives_the_columns_it_declares_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(gives: str) -> Loaded:
        plugin = MetricPlugin(
            (Metric("mine/number", "a number"),), 1, lambda corpus, known: {gives: float(len(known.uniform))}
        )
        return Loaded(plugin, "mine", "1.0")

    corpus = Examples.full(np.zeros((3, 2)))
    monkeypatch.setitem(METRICS.loaded, "number", loaded("mine/number"))
    assert added_metrics(["number"], corpus, None, 0, 1, {"test/nll"}) == {"mine/number": 3.0}
    with pytest.raises(LearnerError, match=r"number \(mine\) gives mine/number, which exists already"):
        added_metrics(["number"], corpus, None, 0, 1, {"mine/number"})
    monkeypatch.setitem(METRICS.loaded, "number", loaded("test/nll"))
    with pytest.raises(LearnerError, match=r"number \(mine\) gives test/nll, declared are mine/number"):
        added_metrics(["number"], corpus, None, 0, 1, set())


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        ("text", "{} gives 'text', expected a mapping by name"),
        (None, "{} gives None, expected a mapping by name"),
        ({1: 2.0}, "{} gives 1 as a name, expected a text"),
        ({"mine/number": "text"}, "{}: mine/number is 'text', expected a number"),
        ({"mine/number": None}, "{}: mine/number is None, expected a number"),
        ({"mine/number": 1j}, "{}: mine/number is 1j, expected a number"),
        ({"mine/number": np.zeros(2)}, "{}: mine/number is array([0., 0.]), expected a number"),
    ],
)
def test_a_metric_of_a_package_is_a_number(monkeypatch: pytest.MonkeyPatch, gives: Any, message: str) -> None:
    plugin = MetricPlugin((Metric("mine/number", "a number"),), 1, lambda corpus, known: gives)
    monkeypatch.setitem(METRICS.loaded, "number", Loaded(plugin, "mine", "1.0"))
    corpus = Examples.full(np.zeros((3, 2)))
    with pytest.raises(LearnerError) as failed:
        added_metrics(["number"], corpus, None, 0, 1, set())
    assert str(failed.value) == message.format("evaluate.metrics: number (mine)")
    for number in (True, 1, np.int32(1), np.float32(1), np.ones(1), Fraction(1)):
        gives = partial(_given, {"mine/number": number})
        plugin = MetricPlugin((Metric("mine/number", "a number"),), 1, gives)
        monkeypatch.setitem(METRICS.loaded, "number", Loaded(plugin, "mine", "1.0"))
        assert added_metrics(["number"], corpus, None, 0, 1, set()) == {"mine/number": 1.0}


def _given(found: Any, *_: Any) -> Any:
    return found


FAMILY_MODULE = """
from typing import Literal
import numpy as np
from harness.registry import LearnerPlugin, Metric
from harness.section import Section, since
class Odd(Section):
    kind: Literal["odd"]
    wrong: str = since("")
class Own(Section):
    kind: Literal["own"]
    wrong: str = since("")
odd = LearnerPlugin(Odd, 1, family="odd_code:Fam", reads=("gaussian",), metrics=(Metric("odd/mean", "mean"),))
own = LearnerPlugin(Own, 1, learner="odd_code:Own", reads=("gaussian",), batchable=False)
"""
FAMILY_CODE = """
import numpy as np
from harness.learners.analytic import Family
from harness.learners.protocol import Evaluation, FitOutcome
from harness.records import Examples
class Fam(Family):
    parameters = ("mean",)
    def fit(self, summary, chains, parent):
        mean = summary["values"].mean(axis=1)
        return {
            "nothing": None, "lacks": {"median": mean}, "one": {"mean": 1.0}, "words": {"mean": ["a"]}
        }.get(self.learner.wrong, {"mean": mean})
    def sample(self, model, chains, count, real):
        shape = {"fewer": (count - 1, 2), "narrow": (count, 1), "more": (count + 1, 2)}
        found = np.zeros((len(chains), *shape.get(self.learner.wrong, (count, 2))))
        return {"ragged": [[[1.0], [1.0, 2.0]]], "none": None}.get(self.learner.wrong, found)
    def evaluate(self, model, corpus):
        chains = len(corpus)
        return {
            "text": {"odd/mean": "text"}, "number": {"odd/mean": 1.0}, "list": [1.0] * chains
        }.get(self.learner.wrong, {"odd/mean": np.full(chains, np.nan)})
class Own:
    def __init__(self, data, ranks, execution): pass
    def fit(self, task):
        (task.out / "model.safetensors").write_bytes(b"")
        return FitOutcome("ok", {}, 1, 1)
    def sample(self, task):
        wrong, rows = task.spec.fit.learner.section.wrong, task.stop - task.start
        shape = {"fewer": (rows - 1, 2), "narrow": (rows, 1)}.get(wrong, (rows, 2))
        task.append(task.start, Examples.full(np.zeros(shape)))
        return rows
    def evaluate(self, task):
        return Evaluation({"odd/mean": {"text": "text"}.get(task.spec.fit.learner.section.wrong, 1.0)})
    def reset_peak(self): pass
    def describe(self): return {"device": "cpu", "zero_stage": None, "versions": {}}
"""
EXAMPLES = "expected numbers of the shape [1, 40, 2] (chains, examples, numbers in an example)"
FAMILY_WRONG = {
    "nothing": "fit gives None, expected a mapping by name",
    "lacks": "fit gives no mean, which its parameters name",
    "one": "fit: mean has the shape [], expected numbers of the shape [1, ...] (chains, and any)",
    "words": "fit: mean is ['a'], expected numbers of the shape [1, ...] (chains, and any)",
    "fewer": f"sample: what it gives has the shape [1, 39, 2], {EXAMPLES}",
    "more": f"sample: what it gives has the shape [1, 41, 2], {EXAMPLES}",
    "narrow": f"sample: what it gives has the shape [1, 40, 1], {EXAMPLES}",
    "ragged": "sample: what it gives is [[[1.0], [1.0, 2.0]]], " + EXAMPLES,
    "none": f"sample: what it gives is None, {EXAMPLES}",
    "text": "evaluate: odd/mean is 'text', expected numbers of the shape [1] (chains)",
    "number": "evaluate: odd/mean has the shape [], expected numbers of the shape [1] (chains)",
    "list": "evaluate gives [1.0], expected a mapping by name",
}
OWN_WRONG = {
    "fewer": "sample: it appends examples up to 39, 40 are needed",
    "narrow": "sample: what it appends has the shape [40, 1], expected [40, 2] (examples, numbers in an "
    "example)",
    "text": "evaluate: odd/mean is 'text', expected a number",
}
BOTH_WAYS = """
import json, sys
from pathlib import Path
from bundled import run_bundles
from chains import run_all
from harness.errors import LearnerError
found = []
for number, (path, bundled) in enumerate(json.loads(sys.argv[1])):
    root = Path(sys.argv[2]) / str(number)
    try:
        (run_bundles if bundled else run_all)(Path(path), root)
        found.append("")
    except LearnerError as error:
        found.append(str(error))
    except AssertionError as error:  # with the chains that failed
        found += error.args[0].values()
print(json.dumps(found))
"""


def test_what_a_learner_of_a_package_gives_is_looked_at(make_config: Make, tmp_path: Path) -> None:
    """A bundle and a chain by itself say the same; what is not finite is no fault of form."""
    points = "[harness.learners]\nodd = odd:odd\nown = odd:own\n"
    package = given(tmp_path / "site", "odd", points, FAMILY_MODULE)
    (package / "odd_code.py").write_text(FAMILY_CODE)
    study = {**GAUSSIAN, "data": {"source": "gaussian", "dim": 2, "num_examples": 40}, "generations": 1}
    asked, expected = [], []
    for kind, wrong in (("odd", FAMILY_WRONG), ("own", OWN_WRONG)):
        for name, message in {"": "", **wrong}.items():
            changed = {**study, "learner": {"kind": kind, "wrong": name}}
            for bundled in (True, False) if kind == "odd" else (False,):
                file = f"{kind}-{name}-{bundled}.yaml"
                asked.append(
                    (str(make_config({**changed, "resources": {"bundled": bundled}}, file)), bundled)
                )
                expected.append(message and f"learner {kind} of the package odd: {message}")
    search = [str(package), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", BOTH_WAYS, json.dumps(asked), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == expected


FIELDS_MODULE = """
from typing import Literal
import numpy as np
from harness.registry import FilterPlugin
from harness.section import Section, since
class Odd(Section):
    kind: Literal["odd"]
    model: float = since(2.0)
    of: int = since(3)
    score: str = since("log_density")
    choose: str = since("pairs")
def keep(section, examples, known): return np.ones(len(examples), dtype=bool)
def rewards(section, examples, known): return np.ones(len(examples))
odd = FilterPlugin(Odd, 1, keep, rewards="odd:rewards"{})
"""


def test_what_a_filter_is_its_section_does_not_say(make_config: Make, tmp_path: Path) -> None:
    """A package's field that is called as one of the harness's has nothing to do with it."""
    points = "[harness.filters]\nodd = odd:odd\n"
    plain = given(tmp_path / "plain", "odd", points, FIELDS_MODULE.format(""))
    said = "elsewhere=lambda odd: True, together=lambda odd: odd.of, choice=lambda odd: 'pairs'"
    says = given(tmp_path / "says", "odd", points, FIELDS_MODULE.format(f", {said}"))
    track = {
        "track": "normal",
        "version": 1,
        "title": "A normal distribution",
        "about": "Fitted to its own samples.",
        "rules": ["None."],
        "config": {name: GAUSSIAN[name] for name in ("data", "learner", "regime", "generations")},
        "seeds": [0, 1, 2, 3, 4],
        "score": {"metric": "gaussian/kl"},
        "open": ["filters"],
    }
    (tmp_path / "track.yaml").write_text(yaml.safe_dump(track))
    board = {"experiment": "board", "track": str(tmp_path / "track.yaml"), "tracking": GAUSSIAN["tracking"]}
    odd = {"filters": [{"kind": "odd"}]}
    board |= {"mitigations": {"none": {}, "odd": odd}}
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(board))
    reads = {"when": {"filters": odd["filters"]}, "set": {"regime.source": {"cell": {"filters": []}}}}
    sourced = make_config(GAUSSIAN, "sourced.yaml", grid={"filters": [[], odd["filters"]]}, overrides=[reads])
    pairs = {"learner.objective": {"kind": "dpo"}, "filters": odd["filters"], "learner.sample.per_prompt": 3}
    learner = make_config(TASK, "pairs.yaml", **pairs, regime={"kind": "replace", "synthetic_ratio": 1.0})
    for config, message in (
        (tmp_path / "board.yaml", "odd has learned elsewhere, which limits.classifiers does not allow"),
        (sourced, "writes 1 completions of each prompt, the judge looks at 3"),
    ):
        done = harness("plan", config, "--root", tmp_path / "root", path=[says])
        assert message in done.stdout + done.stderr, done.stdout + done.stderr
        done = harness("plan", config, "--root", tmp_path / "root", path=[plain])
        assert done.returncode == 0 and message not in done.stdout + done.stderr, done.stderr
    done = harness("plan", learner, "--root", tmp_path / "root", path=[plain])
    assert done.returncode == 2 and "learner.objective: dpo needs a judge" in done.stderr, done.stderr
    done = harness("plan", learner, "--root", tmp_path / "root", path=[says])
    assert done.returncode == 0, done.stderr


def test_numbers_of_other_libraries_are_numbers() -> None:
    """What is masked is none, as it was before it was looked at; texts are no numbers."""
    torch = pytest.importorskip("torch")
    one = [
        Decimal("1"),
        np.array(1.0, dtype=object),
        np.float32(1),
        True,
        np.ma.array([1.0, 9.0], mask=[0, 1]).mean(),
    ]
    one += [torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.0, requires_grad=True)]
    assert [as_number(value, "it") for value in one] == [1.0] * len(one)
    hidden = np.ma.masked_array([1.0, 2.0], mask=[True, True])
    assert np.isnan(as_number(hidden.mean(), "it")) and np.isnan(as_number(float("nan"), "it"))
    for odd in ("1", b"1", None, [1.0, 2.0], np.ones(2), {}):
        with pytest.raises(LearnerError, match="it is .*, expected a number"):
            as_number(odd, "it")
    with pytest.raises(LearnerError, match="it is masked in part"):
        as_array(np.ma.masked_array([1.0, 2.0], mask=[False, True]), (2,), "it", "numbers")


def test_what_all_ranks_append_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank knows what it has appended itself; whether anything is missing the store says."""
    monkeypatch.setattr(given_by, "_is_added", lambda node: True)
    monkeypatch.setattr(given_by, "_whose", lambda node, what: "it")
    data = SimpleNamespace(real=lambda seed, count: Examples.full(np.zeros((count, 2))))
    node: Any = SimpleNamespace(seed=0, corpus="c")
    kept: list[Any] = []
    written = given_by.Written(node, data, (), lambda *given: kept.append(given))  # type: ignore[arg-type]
    half = Examples.full(np.zeros((25, 2)))
    written.append(0, half)
    written.append(0, half, np.ones(25, dtype=np.float32))
    assert kept[0][3] is None and kept[1][3].dtype == np.float64
    with pytest.raises(
        LearnerError, match=r"scores of what it appends have the shape \[24\], expected the shape \[25\]"
    ):
        written.append(0, half, np.ones(24))
    for odd in (["a"] * 25, [[1.0], 2.0]):
        with pytest.raises(LearnerError, match="the scores of what it appends are no numbers"):
            written.append(0, half, odd)  # type: ignore[arg-type]
    written.check(50, [(25, 50)])
    with pytest.raises(LearnerError, match="it appends examples up to 25, 50 are needed"):
        written.check(50, [(30, 50)])


ASK = """
import json, sys
from dataclasses import astuple
from harness.components.tasks import TASKS
from harness.tasks import Checker
kind, pairs = sys.argv[1], json.loads(sys.argv[2])
checker = Checker(TASKS[kind].section(kind=kind))
found = checker([prompt for prompt, _ in pairs], [completion for _, completion in pairs])
verdicts = [[verdict.correct, verdict.trouble] for verdict in found]
answers = [astuple(checker.answer(completion)) for _, completion in pairs]
checker.close()
print(json.dumps([verdicts, answers]))
"""


def ask(kind: str, pairs: list[list[str]], path: Any) -> tuple[list[Any], list[Any]]:
    """What a task's checker says of completions, and the answers that it finds in them."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    done = subprocess.run(
        [sys.executable, "-c", ASK, kind, json.dumps(pairs)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts, answers = json.loads(done.stdout)
    return verdicts, answers


def test_a_task_of_a_package_is_checked_in_a_process_of_its_own(site: Path, tmp_path: Path) -> None:
    found = ask("turned", [["abcd<", "dcba"], ["abcd<", "dcb"]], [site])
    assert found == ([[True, ""], [False, ""]], [["dcba", ""], ["dcb", ""]])
    listed = harness("list", "tasks", "--json", path=[site])
    assert "turned" in listed.stdout and "Words, to be written from behind" in listed.stdout
    config = tmp_path / "study.yaml"
    study = {
        "experiment": "turned",
        "data": {"source": "task", "task": {"kind": "turned"}, "num_examples": 80, "test": 20},
        "learner": {"kind": "language_model", "model": {"preset": "micro"}},
        "generations": 1,
        "tracking": {"wandb": "disabled"},
    }
    config.write_text(yaml.safe_dump({**study, "data": {**study["data"], "validation": 10}}))
    done = harness("plan", config, "--root", tmp_path / "root", "--json", path=[site])
    assert done.returncode == 0 and json.loads(done.stdout)["chains"] == 1, done.stderr
    config.write_text(yaml.safe_dump({**study, "data": {**study["data"], "num_examples": 400}}))
    done = harness("plan", config, "--root", tmp_path / "root", path=[site])
    assert done.returncode == 2 and "data.num_examples: 400 different prompts" in done.stderr


BAD_TASK = """
import itertools, sys, time
from typing import Literal
from harness.registry import TaskPlugin
from harness.section import Section

class Bad(Section):
    kind: Literal["bad"]

class Bare(Section):
    kind: Literal["bare"]

def problems(section):
    from harness.tasks import Problem

    for letters in itertools.product("abc", repeat=4):
        yield Problem("".join(letters), "b" if section.kind == "bad" else None)

def check(section, prompt, completion):
    print("a checker may print")
    if completion == "raise" or prompt[:2] == "aa":
        raise RuntimeError("no")
    if completion == "exit":
        sys.exit(3)
    while completion == "hang" or prompt == "baaa":
        time.sleep(1)
    return completion in ("right", "b")

def answer(section, completion):
    if completion in ("raise", "b"):
        raise RuntimeError("no")
    while completion == "hang":
        time.sleep(1)
    return completion[:1]

def alphabet(section):
    return "abc"

places = {name: f"bad_task:{name}" for name in ("problems", "check", "answer", "alphabet")}
task = TaskPlugin(Bad, 1, **places, check_s=0.5)
bare = TaskPlugin(Bare, 1, **places, solutions=False)
"""
BAD_POINTS = "[harness.tasks]\nbad = bad_task:task\nbare = bad_task:bare\n"


def test_a_checker_that_raises_or_never_returns_is_counted(tmp_path: Path) -> None:
    package = given(tmp_path / "bad", "bad_task", BAD_POINTS, BAD_TASK)
    completions = ["right", "raise", "wrong", "hang", "right", "exit", "wrong", "hang"]
    found, answers = ask("bad", [[f"prompt {n}", text] for n, text in enumerate(completions)], [package])
    expected = {"right": [True, ""], "wrong": [False, ""], "raise": [False, "raised"]}
    expected |= {"hang": [False, "timed_out"], "exit": [False, "raised"]}
    assert found == [expected[text] for text in completions]
    none = {"raise": [None, "raised"], "hang": [None, "timed_out"]}
    assert answers == [none.get(text, [text[0], ""]) for text in completions]
    # one whose asker is gone does not go on for ever
    lines = [{"kind": "bad", "section": {"kind": "bad"}}, {"prompt": "", "completion": "hang"}]
    alone = subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.tasks.apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])},
    )
    assert alone.stdin is not None
    alone.stdin.write("\n".join(map(json.dumps, lines)).encode() + b"\n")
    alone.stdin.flush()
    assert alone.wait(timeout=60) == -signal.SIGALRM
    alone.stdin.close()
    # one that is not there is no checker that raises
    (package / "bad_task.py").write_text(BAD_TASK.replace("def check(", "def checks("))
    with pytest.raises(AssertionError, match="LearnerError: task bad of the package bad_task: check 'bad_t"):
        ask("bad", [["prompt", "right"]], [package])


CHAINS = """
import json, sys
from pathlib import Path
import torch, yaml
from transformers import LlamaConfig, LlamaForCausalLM
from chains import run_all
from chats import write_tokenizer
from harness.errors import ConfigError
from harness.inventory.judging import remarks
from harness.learners.language_model.distributed import TorchRanks, open_store
from harness.store import Store
from harness.study import open_study

folder = Path(sys.argv[1])
pretrained = write_tokenizer(folder / "model")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=304, max_position_embeddings=64, **sizes)).save_pretrained(pretrained)
ranks = TorchRanks(0, 1, open_store(1)[0], threads=1)
found = []
for study in json.loads(sys.argv[2]):
    config = folder / f"{study['experiment']}.yaml"
    config.write_text(yaml.safe_dump(study))
    try:
        prepared, store = run_all(config, folder / "root", ranks=ranks)
    except ConfigError as error:
        found.append(str(error))
        continue
    data = prepared.data[0].real
    chain = [prepared.lineage.nodes[key] for key in prepared.lineage.chains[0].nodes]
    written = store.corpora.load(chain[0].corpus, 40)
    found.append({
        "fits": [store.json("fits", node.fit, "fit.json") for node in chain],
        "records": [store.record(node.evaluation).metrics for node in chain],
        "written": list(zip(data.prompts(written), data.completions(written))),
        "remarks": remarks(prepared, store),
    })
ranks.close()
print(json.dumps(found))
"""


def test_a_chain_on_a_task_of_a_package(tmp_path: Path) -> None:
    """One with solutions, whose checker raises on some prompts and hangs on one, and finds no answer where it
    is right; one without, which begins with a pretrained model as it is, and what is refused there."""
    package = given(tmp_path / "bad", "bad_task", BAD_POINTS, BAD_TASK)
    base = {
        **TASK,
        "data": {"source": "task", "num_examples": 20, "validation": 4, "test": 4, "completion_tokens": 2},
        "generations": 1,
        "evaluate": {"prompts": 1, "task": {"prompts": 4, "completions": 2, "pass_k": [2]}},
    }
    sample, exact = {"per_prompt": 2}, [{"kind": "judge", "judge": "exact"}]
    learns = {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2}
    solved = {
        **base,
        "experiment": "solved",
        "data": {**base["data"], "task": {"kind": "bad"}, "prompt_tokens": 4},
        "learner": {**TASK["learner"], "train": learns, "sample": sample},
        "filters": exact,
    }
    voted = {**solved, "experiment": "voted", "filters": [{"kind": "judge", "judge": "majority"}]}
    model = str(tmp_path / "model")
    tokens = {"tokenizer": {"kind": "pretrained", "name": model}, "prompt_tokens": 32}
    bare = {
        **base,
        "experiment": "bare",
        "data": {**base["data"], "task": {"kind": "bare"}, **tokens, "completion_tokens": 4},
        "learner": {
            "kind": "language_model",
            "model": {"pretrained": model},
            "init": "previous",
            "train": {"max_steps": 0, "batch_size": 4},
            "later": {"epochs": 1},
            "sample": sample,
        },
        "filters": [{"kind": "judge", "judge": "self", "choose": "best"}],
    }
    learner = bare["learner"]
    pairs = {"kind": "judge", "judge": "self", "choose": "pairs", "solutions": 0.5}
    refused: list[tuple[dict[str, Any], str]] = [
        (
            {"learner": {**learner, "train": {"batch_size": 4}}},
            "learner.train.max_steps: found None, but gen",
        ),
        ({"regime": {"kind": "accumulate"}}, "regime: reads solutions after generation 0"),
        (
            {"regime": {"kind": "replace", "synthetic_ratio": 1.0, "refresh": {"at": [1]}}},
            "regime.refresh: reads solutions after generation 0",
        ),
        ({"learner": {**learner, "later": {"epochs": 1, "weights": "best"}}}, "learner.later.weights: best"),
        (
            {"filters": [pairs], "learner": {**learner, "objective": {"kind": "dpo"}}},
            "filters: judge: solutions: found a share",
        ),
        ({"evaluate": {"drift": {"examples": 2}}}, "evaluate.drift: is on test solutions"),
    ]
    bad = [{**bare, "experiment": f"no-{n}", **changes} for n, (changes, _) in enumerate(refused)]
    search = [str(package), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", CHAINS, str(tmp_path), json.dumps([solved, voted, bare, *bad])],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, votes, two, *messages = json.loads(done.stdout.splitlines()[-1])

    ended = [(prompt, text) for prompt, text in one["written"] if text is not None]
    raised = sum(prompt[:2] == "aa" for prompt, _ in ended)
    hung = sum(prompt == "baaa" for prompt, _ in ended)
    right = {p for p, text in ended if text == "b" and p[:2] != "aa" and p != "baaa"}
    record = one["records"][1]
    assert raised and hung and right, "or nothing is shown"
    assert record["judge/checker_raised"] == raised and record["judge/checker_timed_out"] == hung
    assert record["judge/accepted"] == len(right) and one["fits"][1]["log"]["steps"] > 0
    assert one["remarks"] == [f"generation 1: {DECISIONS['troubled']}"] and record["test/nll"] > 0

    unanswered = sum(text == "b" and prompt[:2] != "aa" and prompt != "baaa" for prompt, text in ended)
    assert votes["written"] == one["written"] and unanswered, "of one generation 0"
    again = votes["records"][1]
    assert again["judge/checker_raised"] == raised + unanswered, "each completion once"
    assert (
        again["judge/checker_timed_out"] == hung and again["judge/true_share"] == record["judge/true_share"]
    )
    assert votes["remarks"] == one["remarks"]
    before, after = (found["records"][0] for found in (one, votes))
    assert after["task/pass_1"] == before["task/pass_1"]
    assert after["task/checker_raised"] > before.get("task/checker_raised", 0), "of test prompts too"

    assert [fit["log"]["steps"] for fit in two["fits"]] == [0, 5]
    assert two["fits"][1]["log"]["validation"] == []
    for found in two["records"]:
        assert found["task/pass_1"] is not None and found["text/entropy_2"] > 0
        assert not {"test/nll", "test/perplexity", "text/band_1", "text/tail_mass"} & set(found)
    for message, (_, expected) in zip(messages, refused, strict=True):
        assert expected in message and "task bare has no solutions" in message
