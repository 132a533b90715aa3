"""Several experiments in one table: whose each line is, and what is refused."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from bundled import run_bundles
from conftest import GAUSSIAN, Make, harness

from harness.errors import InputError
from harness.reporting import ledger
from harness.reporting.answer import answers
from harness.reporting.compare import _fixed, build, together
from harness.reporting.rows import Rows
from harness.reporting.tables import headline, summary_table
from harness.store import Experiment, Store
from harness.study import open_study


@pytest.mark.slow
def test_experiments_stay_apart(make_config: Make, tmp_path: Path) -> None:
    """Chains that two have in common are lines of both; where one has no axis, its one value stands."""
    root, seeds = tmp_path / "root", {"seed": [0, 1]}
    one = make_config(GAUSSIAN, "a.yaml", experiment="a", **{"resources.bundled": True}, grid=seeds)
    grid = {**seeds, "regime.synthetic_ratio": [0.5, 1.0]}
    two = make_config(GAUSSIAN, "b.yaml", experiment="b", **{"resources.bundled": True}, grid=grid)
    parts = [(*run_bundles(config, root), root) for config in (one, two)]
    both = [(prepared, ledger.rows(prepared, store), root) for prepared, store, root in parts]
    found = together(both)
    assert found.names == ("a", "b") and found.axes == ("experiment", "regime.synthetic_ratio")
    table = found.rows.to_pandas()
    assert len(table) == 3 * 2 * 4 and found.seeds == (0, 1)
    mine = table[table["experiment"] == "a"].set_index(["seed", "generation"])["gaussian/log_variance"]
    same = table[(table["experiment"] == "b") & (table["regime.synthetic_ratio"] == 1.0)]
    assert (mine == same.set_index(["seed", "generation"])["gaussian/log_variance"]).all()
    assert (table[table["experiment"] == "a"]["regime.synthetic_ratio"] == 1.0).all()
    page = build(found, tmp_path / "page").read_text()
    assert "<title>a and b: model collapse</title>" in page and page.count("<figure") > 2
    with pytest.raises(InputError, match="is given twice"):
        together([both[0], both[0]])
    nothing = [(prepared, Rows.of([]), root) for prepared, _, root in both]
    assert len(together(nothing).rows) == 0
    half = together([both[0], nothing[1]])
    assert half.rows.to_pandas()["experiment"].unique().tolist() == ["a"]


@pytest.mark.slow
def test_learners_that_measure_otherwise_have_own_tables(make_config: Make, tmp_path: Path) -> None:
    """What a learner does not measure is not called not finite; nobody misses another study's seeds."""
    root, bundled = tmp_path / "root", {"resources.bundled": True}
    one = make_config(GAUSSIAN, "a.yaml", experiment="a", **bundled, grid={"seed": [0, 1, 2, 3, 4]})
    discrete = {
        "data": {"source": "discrete", "num_examples": 50, "outcomes": 10},
        "learner": {"kind": "discrete"},
    }
    two = make_config({**GAUSSIAN, **discrete}, "b.yaml", experiment="b", **bundled, grid={"seed": [0, 1]})
    parts = [(*run_bundles(config, root), root) for config in (one, two)]
    found = together([(prepared, ledger.rows(prepared, store), root) for prepared, store, root in parts])
    assert [part.to_pandas()["experiment"].unique().tolist() for part, _ in found.tables] == [["a"], ["b"]]
    done = harness("compare", one, two, "--root", root, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page" / "report.html").read_text()
    for text in (done.stdout, page):
        assert "not finite" not in text and "of 5 seeds" not in text
    assert "log variance by generation" in done.stdout and page.count("By generation: ") == 2
    assert "7 chains, 2 to 5 seeds a cell" in page


@pytest.mark.slow
def test_studies_are_compared_in_what_all_measure(make_config: Make, tmp_path: Path) -> None:
    """A Gaussian begins with its log variance and a density estimate with its own: both have an NLL."""
    root, parts = tmp_path / "root", []
    for kind in ("gaussian", "kde"):
        changes = {
            "experiment": kind,
            "learner.kind": kind,
            "resources.bundled": True,
            "grid": {"seed": [0, 1]},
        }
        config = make_config(GAUSSIAN, f"{kind}.yaml", **changes)
        prepared, store = run_bundles(config, root)
        parts.append((prepared, ledger.rows(prepared, store), root))
    found = together(parts)
    ((table, axes),) = found.tables
    assert headline(table) == headline(found.rows) == "test/nll"
    assert table is found.rows, "a million rows are not there twice"
    assert np.shares_memory(table.generation, table.own["generation"].chunk(0).to_numpy())
    assert [line["cell"] for line in summary_table(table, axes)["lines"]] == [["gaussian"], ["kde"]]
    alone = together(parts[:1]).tables[0][0]
    assert headline(alone) == "gaussian/log_variance"


def test_what_another_study_sweeps_is_shown_of_one(make_config: Make, tmp_path: Path) -> None:
    """Fields that it has not, sections, and what its cells do not have alike, are empty."""
    grid = {"learner.merge": [0.5, -0.2]}
    config = make_config({**GAUSSIAN, "learner": {"kind": "gaussian", "init": "previous"}}, grid=grid)
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "root"))
    names = (
        "data.dim",
        "learner.init",
        "learner.sample.temperature",
        "regime",
        "learner.merge",
        "experiment",
    )
    with scratch:
        assert _fixed(prepared, names) == {
            **dict.fromkeys(names), "data.dim": 1, "learner.init": "previous"
        }  # fmt: skip


@pytest.mark.slow
def test_a_tracks_study_begins_with_what_its_track_ranks_by(make_config: Make, tmp_path: Path) -> None:
    """Beside a study of no track, both begin with what the learner loses first."""
    root, path = tmp_path / "root", tmp_path / "entrant.yaml"
    entrant = {"experiment": "entrant", "track": "closed-form-gaussian", "tracking": {"wandb": "disabled"}}
    path.write_text(yaml.safe_dump(entrant))
    plain = make_config(GAUSSIAN, **{"resources.bundled": True})
    parts = [(*run_bundles(config, root), root) for config in (path, plain)]
    entered, own = both = [(prepared, ledger.rows(prepared, store), root) for prepared, store, root in parts]
    assert [headline(rows) for _, rows, _ in both] == ["gaussian/kl", "gaussian/log_variance"]
    (said,) = answers(entered[1], entered[0].study.columns, entered[0].study.seeds)
    assert "KL(fit || truth) rises from" in said
    ((table, _),) = together(both).tables
    assert headline(table) == "gaussian/log_variance"
    assert headline(together([entered, (*entered[:2], tmp_path)]).rows) == "gaussian/kl"


@pytest.mark.slow
def test_one_study_of_two_stores(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, experiment="a", **{"resources.bundled": True, "generations": 1})
    run_bundles(config, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    roots = [word for name in ("one", "two") for word in ("--root", tmp_path / name)]
    done = harness("compare", config, config, *roots, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^a \(.*?/(one|two)\) +(.*)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in lines] == ["one", "two"] and lines[0][1] == lines[1][1]
    assert (tmp_path / "page" / "report.html").exists()
    for arguments in ((config,), (config, config, config, *roots)):
        wrong = harness("compare", *arguments, *(() if len(arguments) > 1 else roots[:2]))
        assert wrong.returncode == 2 and "expected two studies or more, and --root once" in wrong.stderr


@pytest.mark.slow
def test_what_is_not_there_yet_is_counted(make_config: Make, tmp_path: Path) -> None:
    """One cell at one of four generations, a seed of it without any, beside a whole one."""
    root, bundled = tmp_path / "root", {"resources.bundled": True}
    one = make_config(GAUSSIAN, "a.yaml", experiment="a", **bundled, grid={"seed": [0, 1]})
    two = make_config(GAUSSIAN, "b.yaml", experiment="b", **bundled, **{"regime.synthetic_ratio": 0.5})
    run_bundles(one, root, "seed=0", "generations=0")
    run_bundles(two, root)
    done = harness("compare", one, two, "--root", root, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page" / "report.html").read_text()
    assert "3 chains, " in page and "5 of 12 generations are committed" in page


@pytest.mark.slow
def test_a_study_that_a_store_does_not_have_is_named(make_config: Make, tmp_path: Path) -> None:
    """On the terminal and on the page; where none has anything the input is wrong."""
    root, bundled = tmp_path / "root", {"resources.bundled": True}
    one = make_config(GAUSSIAN, "a.yaml", experiment="a", **bundled, generations=1)
    two = make_config(GAUSSIAN, "b.yaml", experiment="b", **bundled, **{"regime.synthetic_ratio": 0.5})
    run_bundles(one, root)
    done = harness("compare", one, two, "--root", root, "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr
    said = f"nothing of b is in {root}, where no experiment has begun"
    assert said in done.stdout.splitlines()
    assert f"<li>{said}</li>" in (tmp_path / "page" / "report.html").read_text()
    Store.open(tmp_path / "empty")
    Experiment(tmp_path / "empty", "c").begin({}, [])
    done = harness("compare", one, two, "--root", tmp_path / "empty", "--out", tmp_path / "none")
    assert done.returncode == 2 and not (tmp_path / "none").exists()
    assert (
        done.stderr
        == "error: "
        + "; ".join(f"nothing of {name} is in {tmp_path / 'empty'}, which has c" for name in "ab")
        + "\n"
    )
