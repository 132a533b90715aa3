"""What commands say: of stores that lack a study, of what failed, and on narrow terminals."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import ray
from bundled import run_bundles
from chains import run_all
from conftest import GAUSSIAN, Make, Quiet, harness
from rich.cells import cell_len

from harness.cli.grid import _tell
from harness.cli.results import _print_answers, _print_verdicts
from harness.cli.tables import print_rows
from harness.config.schema import Claim, Statistic, Tracking
from harness.coordinator.bundles import BundleRun, BundleTask
from harness.coordinator.session import _told, describe_chains
from harness.coordinator.summary import RunSummary
from harness.inspection.status import chain_states
from harness.inventory.failed import with_logs, without_logs
from harness.reporting import ledger
from harness.reporting.claims import Judgement, describe
from harness.reporting.rows import Rows
from harness.reporting.scope import rescoped
from harness.science import cut
from harness.stop import Stop
from harness.store import Experiment, Store
from harness.store.experiment import Others
from harness.study import commit_data, open_study
from harness.terminal import counted, noun


@pytest.mark.slow
def test_a_store_that_lacks_a_study_is_said(make_config: Make, tmp_path: Path) -> None:
    """What a command prints stays as it is; one that a run has begun is told apart."""
    config, root = make_config(GAUSSIAN, experiment="mine"), tmp_path / "root"
    Store.open(root)
    for name in ("one", "two"):
        Experiment(root, name).begin({}, [])
    said = f"nothing of mine is in {root}, which has one, two\n"
    for command in ("export", "report", "status"):
        done = harness(command, config, "--root", root)
        assert (done.returncode, done.stderr) == (0, said), command
    assert harness("export", config, "--root", root).stdout.startswith("experiment,chain,seed")
    assert not (root / "experiments" / "mine").exists()
    Experiment(root, "mine").begin({}, [])
    begun = harness("export", config, "--root", root, "--set", "data.num_examples=30")
    assert begun.returncode == 0 and begun.stderr == (
        f"nothing of this study is committed in {root}: mine has begun there, with these values or "
        "with others (harness status and harness explain say more)\n"
    )
    assert (done := harness("report", config, "--root", root)).returncode == 0, done.stderr
    assert (root / "experiments" / "mine" / "report" / "report.html").exists()


@pytest.mark.slow
def test_a_report_says_how_many_chains_failed(make_config: Make, tmp_path: Path) -> None:
    """Chains of bundles, and others; the page has each reason once."""
    grid = {"seed": [0, 1], "regime.synthetic_ratio": [1.0, 0.5]}
    alone = [{"when": {"regime.synthetic_ratio": 0.5}, "set": {"resources.bundled": False}}]
    config = make_config(GAUSSIAN, **{"resources.bundled": True}, grid=grid, overrides=alone)
    root = tmp_path / "root"
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        Store.open(root)
        experiment = Experiment(root, "normal")
        experiment.begin({}, [])
        for chain in prepared.bundles:
            experiment.event("chain_failed", chain=chain.key, reason="it ends <b>here</b>")
        (branch, *_) = cut(prepared.lineage)
        experiment.event("branch_failed", branch=branch.id, again=False, reason="a rank died")
    done = harness("report", config, "--root", root)
    assert "3 of 4 chains failed; harness status says why" in done.stdout.splitlines()
    page = (root / "experiments" / "normal" / "report" / "report.html").read_text()
    assert "<li>3 of 4 chains failed; harness status says why</li>" in page
    assert "it ends &lt;b&gt;here&lt;/b&gt; (2 chains)" in page and "a rank died" in page


def test_a_page_of_less_than_was_there_says_so(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, grid={"seed": [0, 1], "data.num_examples": [20, 30]}), tmp_path / "r"
    Store.open(root)
    Experiment(root, "normal").begin({}, [])
    folder = root / "experiments" / "normal" / "report"
    for assignment, was, now in (
        ("seed=0", "", ""),  # nobody knows what was there
        ("generations=5", "", ""),  # a seed more
        ("grid.seed=[0]", "2 cells and 2 seeds", "2 cells and 1 seed"),
        ("grid.seed=[0, 2]", "", ""),
        ("data.num_examples=30", "2 cells and 2 seeds", "1 cell and 2 seeds"),
    ):
        done = harness("report", config, "--root", root, "--set", assignment)
        assert done.returncode == 0
        said = [line for line in done.stderr.splitlines() if line.startswith("note: the page")]
        assert len(said) == bool(was), done.stderr
        what = f"{folder} had cells or seeds that this one has not: it was of {was}, this one is of {now}; "
        assert not was or what in said[0] and "--out writes elsewhere" in said[0]
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        for wrong in ("[", "[]", "{}", '{"seeds": [[]], "columns": 1, "cells": []}'):
            (folder / "scope.json").write_text(wrong)
            assert rescoped(prepared, folder) == ""
        assert rescoped(prepared, folder) == rescoped(prepared, tmp_path / "none" / "there") == ""


class Screen(io.StringIO):
    """Standard output that is a terminal."""

    def isatty(self) -> bool:
        return True


def on_screen(monkeypatch: pytest.MonkeyPatch, columns: int, draw: Callable[[], None]) -> list[str]:
    """The lines that are drawn on a terminal of a width, without colours."""
    screen = Screen()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", screen)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("NO_COLOR", "1")
        draw()
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_no_terminal_breaks_a_word(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Ids, names and paths are copied; sentences are broken between words, as the width wants it."""
    path = "/a/very/long/path/to/experiments/quickstart/logs/gang-0-rank-0.log"
    said = f"failed a rank has died\nand left a log: {path} 漢字"
    rows = [("0a1b2c3d4e5f", "learner_of_a_package", "0.5", said), ("9f8e", "gaussian", "", "complete")]
    names = ("chain", "kind", "synthetic ratio", "state")
    lines = on_screen(monkeypatch, columns, lambda: print_rows(names, rows))
    words = " ".join(lines).split()
    assert {*said.split(), "0a1b2c3d4e5f", "learner_of_a_package", "synthetic", "ratio", "0.5"} <= {*words}
    assert lines == [line.rstrip() for line in lines]
    assert (lines[0] == "chain         kind                  synthetic ratio  state") == (columns >= 80)
    if columns >= 60:
        others = [line for line in lines if path not in line]
        assert max(map(cell_len, others)) <= max(columns, 14 + 22 + 11 + 24)


def test_numbers_of_a_table_end_at_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a", "1"), ("b", "12.5")]
    drawn = on_screen(monkeypatch, 80, lambda: print_rows(("axis", "generation"), rows, "title", right=[1]))
    assert drawn == ["title", "axis  generation", "a              1", "b           12.5"]


@pytest.mark.slow
def test_a_narrow_terminal_shows_what_it_has_room_for(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`report`: all generations that fit, and the last one; `status`: axes by their short names."""
    regimes = [{"kind": "replace", "synthetic_ratio": 0.5}, {"kind": "accumulate"}]
    config = make_config(GAUSSIAN, regime=None, grid={"regime": regimes}, **{"resources.bundled": True})
    root = tmp_path / "root"
    prepared, store = run_bundles(config, root)
    rows = ledger.rows(prepared, store)
    wide = on_screen(monkeypatch, 80, lambda: _print_answers(rows, prepared.study.columns, [0]))
    assert wide[-4:-2] == ["log variance by generation", wide[-3]]
    assert wide[-3].split() == ["kind", "synthetic_ratio", "0", "1", "2", "3"]
    slim = on_screen(monkeypatch, 50, lambda: _print_answers(rows, prepared.study.columns, [0]))
    assert slim[-5].split() == ["kind", "synthetic_ratio", "0", "2", "3"]
    assert slim[-2:] == ["every 2nd generation and the last one; harness", "  export has all generations"]
    counts, head, *lines = harness("status", config, "--root", root).stdout.splitlines()
    assert counts == "2 complete" and head.split() == [
        "chain",
        "kind",
        "synthetic_ratio",
        "seed",
        "generations",
        "state",
    ]
    assert [line.split()[1:] for line in lines] == [
        ["replace", "0.5", "0", "4/4", "complete"],
        ["accumulate", "0", "4/4", "complete"],
    ]


def grown(seeds: int = 5) -> Rows:
    """Ten generations of a cell, with intervals."""
    random = np.random.default_rng(1)
    return Rows.of(
        {
            "chain": str(seed),
            "seed": seed,
            "generation": g,
            "status": "ok",
            "learner.ridge": 0.0,
            "regression/test_error": 0.1 + g + random.normal(),
        }
        for seed in range(seeds)
        for g in range(10)
    )


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_interval_is_broken(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Sentences come first, as wide as the terminal; in a pipe each is a line, and tables are no wider."""
    rows = grown()
    lines = on_screen(monkeypatch, columns, lambda: _print_answers(rows, ["learner.ridge"], range(5)))
    assert max(map(cell_len, lines)) <= columns
    title = lines.index("test error of the weights by generation")
    assert lines[0].startswith("ridge 0.0: test error of the weights rises from ")
    assert all(line.startswith("  ") for line in lines[1:title]) and len(lines[1:title]) == (columns < 80)
    assert len(re.findall(r"\S ± \S", lines[title + 2])) == len(lines[title + 1].split()) - 1
    assert lines[title + 3].startswith("every ")
    pipe = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", pipe)
        patch.setenv("COLUMNS", str(columns))
        _print_answers(rows, ["learner.ridge"], range(5))
    first, *table = pipe.getvalue().splitlines()
    assert first == " ".join(line.strip() for line in lines[:title])
    assert table == [*lines[title : title + 3], " ".join(line.strip() for line in lines[title + 3 :])]


def test_many_chains_are_counted_by_cell(make_config: Make, tmp_path: Path) -> None:
    """Those that have begun, or failed, have a line of their own; with --all every chain has one."""
    grid = {"regime.synthetic_ratio": [1.0, 0.5], "seed": {"from": 0, "count": 25}}
    config = make_config(GAUSSIAN, grid=grid, **{"resources.bundled": True})
    root, half = tmp_path / "root", ("--set", "grid.regime.synthetic_ratio=[0.5]")
    prepared, _ = run_bundles(config, root, half[1])
    experiment = Experiment(root, "normal")
    experiment.begin({}, [])
    (other,) = (chain for chain in open_study(config, (), Store.read(root))[0].bundles if chain.seed == 3
                and chain.key not in {known.key for known in prepared.bundles})  # fmt: skip
    experiment.event("chain_failed", chain=other.key, reason="it ends here")

    def lines(*options: str) -> list[str]:
        return harness("status", config, "--root", root, *options).stdout.splitlines()

    counts, *cells, title, head, failed = lines()
    assert counts == "25 complete, 1 failed, 24 waiting"
    assert [line.split() for line in cells] == [
        ["synthetic_ratio", "chains", "complete", "waiting", "failed"],
        ["1.0", "25", "24", "1"],
        ["0.5", "25", "25"],
    ]
    assert title == "chains that have begun and are not complete (--all: all chains)"
    assert head.split() == ["chain", "synthetic_ratio", "seed", "generations", "state"]
    assert failed.split() == [other.id, "1.0", "3", "0/4", "failed", "it", "ends", "here"]
    everything = lines("--all")
    assert everything[:2] == [counts, everything[1]] and len(everything) == 2 + 50
    assert len(json.loads("\n".join(lines("--json")))["chains"]) == 50
    assert len(lines(*half)) == 2 + 25, "few chains have a line each"


def test_claims_begin_with_what_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the verdict and what was found, in one piece; where there is room the statistic in words, and the
    source."""
    where, unit = {"learner.ridge": 0.0}, "regression/test_error"
    told = [
        Statistic(metric="test/nll", of="slope", where=where),
        Statistic(metric=unit, of="drop", where=where, minus={"learner.ridge": 1.0}),
        Statistic(metric=unit, of="lead", than="test/nll"),
        Statistic(metric=unit, of="lost"),
        Statistic(metric=unit, of="ratio", over="worst"),
    ]
    claims = [Claim(text="errors only grow", source="expected", statistic=of, above=0.0) for of in told]
    found = [describe(Judgement(claim, "undecided", 0.5, 0.0123, 1.25, 5)) for claim in claims]
    assert [item["in_words"] for item in found] == [
        "slope per generation of NLL on real test text (nats/token); ridge 0.0",
        "drop from the peak of test error of the weights; ridge 0.0 minus ridge 1.0",
        "generations by which test error of the weights moves before NLL on real test text (median)",
        "share of seeds in which test error of the weights is 0",
        "ratio of test error of the weights, worst of the members",
    ]
    closed = describe(Judgement(claims[0], "undecided", 0.5, None, None, 5), ("test/nll", "kde/variance"))
    assert closed["in_words"] == "slope per generation of NLL on real examples (nats); ridge 0.0"
    heads = ["claim", "verdict", "found", "wanted", "statistic", "source"]
    for columns, shown in ((66, 4), (92, 5), (120, 6)):
        title, head, *lines = on_screen(monkeypatch, columns, lambda: _print_verdicts(found))
        assert (title, head.split()) == ("claims", heads[:shown])
        assert lines[0].startswith("errors only grow  undecided  0.5 [0.0123, 1.25]  above 0")
        left_out = {4: "the statistic and the source", 5: "the source", 6: ""}[shown]
        said = f"report.html also has {left_out} of each claim"
        assert (lines[-1] == said) == bool(left_out) and max(map(cell_len, [head, *lines])) <= columns


@pytest.mark.slow
def test_a_files_name_says_the_format(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, **{"resources.bundled": True}), tmp_path / "root"
    run_bundles(config, root)
    begins = {"t.parquet": b"PAR1", "T.JSON": b"[\n", "t.csv": b"experiment,", "t.txt": b"experiment,"}
    for name, begin in begins.items():
        done = harness("export", config, "--root", root, "--out", tmp_path / name)
        assert done.returncode == 0 and (tmp_path / name).read_bytes().startswith(begin), name
    done = harness("export", config, "--root", root, "--format", "json", "--out", tmp_path / "u.txt")
    assert done.returncode == 0 and (tmp_path / "u.txt").read_bytes().startswith(b"[\n")
    wrong = harness("export", config, "--root", root, "--format", "csv", "--out", tmp_path / "v.parquet")
    assert wrong.returncode == 2 and not (tmp_path / "v.parquet").exists()
    place = tmp_path / "v.parquet"
    assert wrong.stderr == (
        f"error: --format: found csv, but --out {place} has the name of parquet; leave out one of them\n"
    )
    for extra in ([], ["--format", "csv"]):
        wrong = harness("export", config, "--root", root, "--out", tmp_path / "w.csv.gz", *extra)
        assert wrong.returncode == 2 and not (tmp_path / "w.csv.gz").exists()
        assert "w.csv.gz: no .gz files are written; allowed: .csv, .json, .parquet (compr" in wrong.stderr
    wrong = harness("export", config, "--root", root, "--format", "parkuet")
    assert "allowed: csv, json, parquet (did you mean 'parquet'?)" in wrong.stderr


@pytest.mark.slow
def test_one_thing_has_no_s(make_config: Make, tmp_path: Path) -> None:
    assert [counted(number, "study", "studies") for number in (0, 1, 2)] == [
        "0 studies",
        "1 study",
        "2 studies",
    ]
    assert [noun(number, "file") for number in (0, 1, 2)] == ["files", "file", "files"]
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    run_all(config, root)
    done = harness("report", config, "--root", root)
    assert done.returncode == 0, done.stderr
    page = (root / "experiments" / "normal" / "report" / "report.html").read_text()
    assert "1 chain, 1 seed a cell; 4 of 4 generations are committed" in page
    assert "1 chain has 4 generations, of which 4 are different" in page
    said = ["One seed: there are no intervals, and differences may be chance."]
    assert f"{said[0]}</p>" in page
    for command in (("report", config), ("compare", config, make_config(GAUSSIAN, "b.yaml", experiment="b"))):
        lines = harness(*command, "--root", root).stdout.splitlines()
        assert [line for line in lines if line.startswith("One seed")] == said, command
    done = harness("compare", config, "--root", root)
    assert "found 1 study and 1 store, expected two studies or more" in done.stderr
    done = harness("compact", "--root", root)
    assert done.stdout == f"packed the records of 4 generations; 1 pack in {root / 'packs'}\n"
    done = harness("plan", config, "--root", root)
    assert "(4 fits), 4 in the store" in done.stdout


def test_a_study_that_measures_more_is_no_other_one(make_config: Make, tmp_path: Path) -> None:
    root, said = tmp_path / "root", "experiment normal has 2 chains of "
    config = make_config(GAUSSIAN, grid={"seed": [0, 1]}, generations=1)
    run_all(config, root)
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        experiment, data = Experiment(root, "normal"), prepared.study.source.data
        assert experiment.begin(data, describe_chains(prepared)) == Others()
        begun = experiment.begin({**data, "evaluate": {"critical": True}}, [])
        assert begun == Others(2, measured=True)
        experiment.begin(data, [])
        assert experiment.begin({**data, "learner": {"kind": "kde"}}, []) == Others(2)
    silent = Tracking(wandb="disabled")
    (line,) = _told(experiment, begun, silent)
    assert line.startswith(f"{said}this study with another `evaluate` on this store: they stay, and no model")
    (line,) = _told(experiment, Others(1), silent)
    assert line.startswith("experiment normal has 1 chain of another study on this store: they stay, but")
    assert _told(experiment, Others(), silent) == []


def test_equal_reasons_of_failures_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its first chain and its log, and how many more there are."""
    chains = [(f"chain {number}", "it ends \x1b[31m here") for number in range(100)]
    branches = [(f"branch {name}", with_logs("a rank died", [Path(f"/l/{name}.log")])) for name in "ab"]
    _tell(
        RunSummary(0, 102, 0, 0, 1.0, failures=(*chains, *branches, ("branch c", "no (log: here"))), [], False
    )
    assert capsys.readouterr().err.splitlines() == [
        "failed: chain 0 and 99 more: it ends \\u001b[31m here",
        "failed: branch a and 1 more: a rank died (log: /l/a.log)",
        "failed: branch c: no (log: here",
    ]
    assert with_logs("x", []) == "x" and without_logs(with_logs("x", [Path("/a"), Path("/b")])) == "x"


def run_of_dying_workers(config: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> BundleRun:
    """A run of bundles whose tasks all end as where their worker has died."""
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        store, experiment = Store.open(root), Experiment(root, "normal")
        commit_data(prepared, store)
    experiment.begin({}, [])
    run = BundleRun(prepared, store, experiment, Mock(), Quiet(), Stop())
    monkeypatch.setattr(ray, "get", Mock(side_effect=ray.exceptions.WorkerCrashedError()))
    monkeypatch.setattr(run, "_close", Mock())
    return run


@pytest.mark.slow
def test_chains_of_a_worker_that_died_are_failed(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up, they were said to be waiting: nothing was written down of them."""
    grid = {"seed": [0, 1]}
    config = make_config(GAUSSIAN, grid=grid, **{"resources.bundled": True, "resources.max_failures": 0})
    run = run_of_dying_workers(config, tmp_path / "root", monkeypatch)
    run._finish(None, BundleTask(tuple(run.ready)))
    states = chain_states(run.prepared, run.store)
    assert [state.state for state in states] == ["failed", "failed"]
    assert {state.detail for state in states} == {*run.failed.values()} and len(run.failed) == 2
    called = [f"chain {state.chain} (seed {state.seed})" for state in states]
    assert [name for name, _ in run._summary(1.0, "").failures] == called, "as status calls them"


@pytest.mark.slow
def test_chains_of_a_bundle_fail_as_often_as_their_cells_may(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One task holds all of them; an override says of one cell how often."""
    rare = {"when": {"regime.synthetic_ratio": 0.5}, "set": {"resources.max_failures": 1}}
    grid = {"regime.synthetic_ratio": [1.0, 0.5]}
    bundled = {"resources.bundled": True, "resources.max_failures": 0}
    config = make_config(GAUSSIAN, grid=grid, overrides=[rare], **bundled)
    run = run_of_dying_workers(config, tmp_path / "root", monkeypatch)
    once, twice = (chain.key for chain in run.prepared.bundles)
    run._finish(None, BundleTask(tuple(run.ready)))
    assert list(run.failed) == [once]
    (again,) = run.again
    assert [chain.key for chain in again.chains] == [twice] and again.attempt == 2
    run._finish(None, again)
    assert list(run.failed) == [once, twice] and len(run.again) == 1


def test_a_watched_status_ends_when_nothing_is_left(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, generations=1, resources={"bundled": False}), tmp_path / "root"
    command = [sys.executable, "-m", "harness", "status", str(config), "--root", str(root), "--watch", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        assert watching.stderr.readline() == "1 waiting\n"
        run_all(config, root)
        out, _ = watching.communicate(timeout=60)
    assert (
        watching.returncode == 0 and out.startswith("1 complete\n") and out.count("\n") == 3 and "2/2" in out
    )
    other = make_config(GAUSSIAN, "other.yaml", seed=7, resources={"bundled": False})
    command[4] = str(other)
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["chains"][0]["state"] == "waiting"
        watching.send_signal(signal.SIGINT)
        assert watching.wait(timeout=60) == 0
