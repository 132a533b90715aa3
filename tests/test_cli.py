"""The command line, the report and the export, as a person and a script see them."""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from chains import open_prepared, run_all
from conftest import GAUSSIAN, ROOT, TEXT, Make, harness, within

from harness.board.texts import samples_of
from harness.cli.app import signals
from harness.errors import InputError, ResourceError
from harness.files import seal, write_json
from harness.reporting import ledger
from harness.reporting.statistics import aggregate, curves
from harness.stop import Stop
from harness.store import Store


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv=['harness','--help']\nfrom harness.cli import main\ntry: main()\nexcept "
        "SystemExit: pass\n"
    )
    code += "print(sorted({'ray','torch','deepspeed','wandb','transformers','duckdb'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("run", "plan", "status", "export", "report"):
        assert command in done.stdout


def test_help_breaks_lines_as_the_terminal_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the source that come between end amid the screen's."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    ended = {
        "export": "which filters it met, as Parquet files with a Croissant description.",
        "status": "something has changed, and the whole once nothing is left to wait for. With",
    }
    for command, line in ended.items():
        assert line in [found.strip() for found in harness(command, "--help").stdout.splitlines()]
    told = harness("reference", "build", "--help").stdout
    assert (
        "[OPTIONS] SOURCE" in told.replace("{", "").replace("}", "") and " source " not in told.split("╭")[0]
    )


def test_tables_are_made_without_pandas_and_frames_with_it() -> None:
    code = """if True:
        import sys
        import numpy as np, pyarrow as pa
        from harness.imports import arrow_without_pandas
        from harness.inventory.columns import to_table
        arrow_without_pandas()
        rows = [{"a": 1, "b": "x", "m/c": None, "d": True}, {"a": 2.5, "b": None, "m/c": None, "d": None}]
        table = to_table(rows).append_column("e", pa.array(np.arange(2.0)))
        expected = [row | {"e": float(i)} for i, row in enumerate(rows)]
        print("pandas" in sys.modules, table.to_pylist() == expected)
        frame = table.to_pandas()
        print(frame["b"].isna().tolist(), pa.Table.from_pandas(frame)["b"].null_count)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False True", "[False, True] 1"]


@pytest.mark.parametrize(
    "arguments", [["run"], ["nonsense"], ["run", "a.yaml", "--bad"], ["plan", "x.yaml", "--nodes", "0"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    done = harness(*arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.slow
def test_one_message_for_roots_that_cannot_be(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN)
    done = harness("run", config, "--root", "/proc/nowhere")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "cannot be written" in done.stderr
    root = tmp_path / "newer"
    root.mkdir()
    write_json(root / "format", {"format": 7, "harness": "9.0"})
    for command in ("run", "plan", "status", "export"):
        done = harness(command, config, "--root", root)
        assert done.returncode == 2 and "upgrade" in done.stderr, command
    assert sorted(path.name for path in root.iterdir()) == ["format"]


def test_a_hangup_ends_a_run_well_and_nohup_does_not() -> None:
    before = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    }
    try:
        for ignored in (False, True):
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
            stop = Stop()
            signals(stop)()
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.is_set() is not ignored
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.is_set() and not stop.at_once
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_root_comes_from_the_environment_too(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN)
    run_all(config, tmp_path / "there")
    done = harness("plan", config, "--json", HARNESS_ROOT=str(tmp_path / "there"))
    assert json.loads(done.stdout)["generations_stored"] == 4


def test_a_plan_in_words(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, resources={"ranks": 1}), tmp_path / "root"
    words = harness("plan", config, "--root", root).stdout
    assert "1 cell, 1 chain\n" in words and " 1 rank x 1 CPU, 1 cell, " in words, words
    assert "less than a second on 1 machine, and some seconds to start and end\n" in words, words
    config = make_config(GAUSSIAN, "one_by_one.yaml")
    run_all(config, root)
    assert "wall time       none: the store has all of it\n" in harness("plan", config, "--root", root).stdout


def test_plan_json_has_the_names_that_scripts_rely_on(make_config: Make, tmp_path: Path) -> None:
    done = harness("plan", make_config(TEXT), "--root", tmp_path / "absent", "--json")
    found = json.loads(done.stdout)
    names = {
        "cells",
        "chains",
        "generations_requested",
        "generations_unique",
        "generations_stored",
        "device_hours",
        "disk_bytes",
        "wall_s",
    }
    assert names <= found.keys() and all(found[name] >= 0 for name in names)
    assert not (tmp_path / "absent").exists()


@pytest.mark.slow
def test_a_plan_of_many_devices_is_shorter_and_costs_the_same(make_config: Make) -> None:
    config = make_config(TEXT, "c.yaml", grid={"seed": {"from": 0, "count": 16}})
    one, four = (
        json.loads(harness("plan", config, "--nodes", n, "--gpus-per-node", 1, "--json").stdout)
        for n in (1, 4)
    )
    assert four["wall_s"] < one["wall_s"] / 2.5
    assert four["device_hours"] == one["device_hours"]


@pytest.mark.slow
def test_export_in_every_format(make_config: Make, tmp_path: Path) -> None:
    grid = {"regime": [{"kind": "replace", "synthetic_ratio": 1.0}, {"kind": "accumulate"}], "seed": [0, 1]}
    config, root = make_config(GAUSSIAN, grid=grid), tmp_path / "root"
    run_all(config, root)
    for form in ("csv", "json", "parquet"):
        out = f"--out=~/t.{form}"  # which no shell expands
        assert (
            harness("export", config, "--root", root, "--format", form, out, HOME=str(tmp_path)).returncode
            == 0
        )
    frames = [
        pd.read_csv(tmp_path / "t.csv"),
        pd.read_json(tmp_path / "t.json"),
        pd.read_parquet(tmp_path / "t.parquet"),
    ]
    identity = ["experiment", "chain", "seed", "generation", "fit", "key", "parent_key", "status"]
    for frame in frames:
        assert len(frame) == 4 * 4 and not frame.duplicated(["chain", "generation"]).any()
        assert list(frame.columns[:8]) == identity
        assert list(frame.columns[8:10]) == ["regime.kind", "regime.synthetic_ratio"]
        assert not frame.drop(columns=["parent_key", "regime.synthetic_ratio"]).isna().any().any()
        assert (frame["fit"] == frame["generation"] + 1).all()
        assert frame["gaussian/log_variance"].tolist() == pytest.approx(
            frames[0]["gaussian/log_variance"].tolist(), rel=1e-12
        )
    twice = harness("export", config, "--root", root).stdout
    assert twice == (tmp_path / "t.csv").read_text()
    assert (
        "provenance/host" in harness("export", config, "--root", root, "--provenance").stdout.splitlines()[0]
    )
    assert pd.read_csv(io.StringIO(twice)).shape == frames[0].shape
    wrong = harness("export", config, "--root", root, "--format", "xml")
    assert wrong.returncode == 2 and "allowed: csv, json, parquet" in wrong.stderr
    assert harness("export", config, "--root", root, "--out", tmp_path / "no" / "where.csv").returncode == 2


def test_a_table_is_asked_in_sql(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN, grid={"seed": [0, 1, 2]}), tmp_path / "root"
    prepared, store = run_all(config, root)
    rows, frame = ledger.rows(prepared, store), ledger.rows(prepared, store).to_pandas()
    # the table is read twice, and a semicolon and a remark end it
    query = """SELECT generation, avg("gaussian/log_variance") AS mean FROM ledger
        WHERE seed IN (SELECT max(seed) FROM ledger UNION SELECT 0) GROUP BY ALL ORDER BY 1; -- of two"""
    assert ledger.write(rows, "parquet", tmp_path / "t", query) == 4
    wanted = frame[frame["seed"] != 1].groupby("generation")["gaussian/log_variance"].mean()
    assert pd.read_parquet(tmp_path / "t")["mean"].tolist() == pytest.approx(wanted.tolist())
    done = harness("export", config, "--root", root, "--sql", "FROM ledger SELECT count(*) AS rows")
    assert (done.returncode, done.stdout) == (0, "rows\n12\n")
    for query, said in (
        ("SELECT nothing FROM ledger", r'column "nothing" not found[^$]*\nLINE 1: SELECT nothing'),
        ("SELECT\nnothing\nFROM ledger", "\nLINE 2: nothing\n"),
        ("SELECT 1 FROM recrods", r"recrods does not exist!\nThe table is ledger\.\n\nLINE 1: SELECT 1"),
        ("SELECT\n1 FROM a.b", r'schema "a" does not exist.\nThe table is ledger\.\n\nLINE 2: 1 FROM'),
        ("SELEC 1", r"syntax error[^$]*\nLINE 1: SELEC 1\n"),
        ("SELECT\n(", r"syntax error[^$]*\nLINE 2: \(\n"),
        ("SELECT error('\nLINE 7: no')", "\nLINE 7: no"),  # text of data stays as it is
        ("", "allowed: one SELECT"),
        ("SELECT 1; SELECT 2", "allowed: one SELECT"),
        ("COPY ledger TO 'x'", "allowed: one SELECT"),
        ("SELECT 1 FROM 'https://example.org/t.parquet'", "httpfs"),
    ):
        with pytest.raises(InputError, match=f"^--sql: (?s:.*){said}"):
            ledger.write(rows, "csv", tmp_path / "none", query)
    assert not (tmp_path / "none").exists()
    for own in (None, "FROM ledger"):  # the disk is full, whoever asks
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            ledger.write(rows, "csv", Path("/dev/full"), own)


@pytest.mark.slow
def test_a_number_that_is_not_finite_is_empty_and_never_zero(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, generations=0, **{"data.variance": 1e-320, "data.mean": 1.0})
    # the examples are equal, so the fitted variance is 0 and its logarithm is not finite
    run_all(config, tmp_path / "root")
    row = json.loads(harness("export", config, "--root", tmp_path / "root", "--format", "json").stdout)[0]
    assert row["gaussian/log_variance"] is None
    header, line = harness("export", config, "--root", tmp_path / "root").stdout.splitlines()
    assert dict(zip(header.split(","), line.split(","), strict=True))["gaussian/log_variance"] == ""
    assert aggregate([None, float("nan"), float("inf")]).mean is None
    found = aggregate([1.0, None, 3.0])
    assert (found.mean, found.missing) == (2.0, 1)
    assert found.low == pytest.approx(2 - 12.7062047 * 2**0.5 / 2**0.5) and aggregate([1.0]).low is None


@pytest.mark.slow
def test_the_report_escapes_what_models_wrote(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    config, root = (
        make_config(TEXT, generations=1, grid={"regime.synthetic_ratio": [0.5, 1.0]}),
        tmp_path / "root",
    )
    prepared, store = run_all(config, root, ranks=ranks)
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"
    path = store.path("evaluations", prepared.lineage.chains[0].nodes[-1]) / "continuations.json"
    texts = json.loads(path.read_text())
    shown = samples_of(prepared, store, prepared.lineage.chains[0].cell, [5, 0])  # of a board's entry
    assert [(item.prompt, item.texts["1"]) for item in shown] == [
        (text["prompt"], text["continuation"]) for text in texts[:3]
    ]
    write_json(path, [{"prompt": "the same prompt", "continuation": hostile} for _ in texts])
    seal(path.parent)
    done = harness("report", config, "--root", root, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    assert hostile not in page and html.escape("<script>alert(1)</script>") in page and "{{ 7*7 }}" in page
    assert page.count("<script") == 3, "the numbers, the library and what draws"
    assert not re.findall(r'(?:src|href)="(?!data:|figures/|#)', page), "self-contained"
    names = {path.stem for path in (tmp_path / "report" / "figures").glob("*.png")}
    assert {"test-perplexity", "text-tail_mass", "frequency-bands"} <= names
    assert {"zipf", "tails", "losses"} <= names
    titles = ("Has generation 0 learned anything?", "What was shared", "What it has cost")
    assert all(title in page for title in titles) and "one that only counts tokens has" in page
    assert "text-distinct_2" in names or "distinct-2 is flat: " in page
    assert sum(name.startswith("histogram-") for name in names) == 2
    assert names == {path.stem for path in (tmp_path / "report" / "figures").glob("*.pdf")}
    assert "perplexity on real test text by generation" in done.stdout
    untaught = "has learned less than that, and has little to lose"
    assert untaught in page and re.search(f"(?m)^perplexity on real test text: .*{untaught}$", done.stdout)
    assert ("Text narrows where" in page) == ("its text" in done.stdout)
    # Both chains share generation 0 and have parted in generation 1.
    assert (
        "How alike the corpora are" in page
        and "two samples of real data" in page
        and "homogenisation" in names
    )
    lines = (tmp_path / "report" / "homogenisation.csv").read_text().splitlines()
    assert [line.split(",")[1:4] for line in lines if ",js_1," in line and ",real," not in line] == [
        ["js_1", "other regime.synthetic_ratio", "1"]
    ]


def test_chains_that_share_generations_count_a_seed_once() -> None:
    rows = [
        {"generation": 0, "seed": seed, "generations": g, "x": float(seed)} for g in (1, 3) for seed in (0, 1)
    ]
    assert tuple(curves(rows, [], "x")[()][0].values) == (0.0, 1.0)


@pytest.mark.slow
def test_a_report_of_nothing_says_so(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    done = harness("report", config, "--root", root)
    assert done.returncode == 2 and not root.exists()
    assert f"error: nothing has been run yet at --root {root}; `harness run STUDY` does, or" in done.stderr
    Store.open(root)
    done = harness("report", config, "--root", root)
    assert done.returncode == 0 and done.stdout == "nothing has been committed yet\n"
    assert not any((root / "experiments").iterdir())


def test_status_of_a_study_that_has_not_begun(make_config: Make, tmp_path: Path) -> None:
    done = harness("status", make_config(GAUSSIAN, grid={"seed": [0, 1]}), "--root", tmp_path / "root")
    assert done.returncode == 0 and "2 waiting" in done.stdout
    assert (
        f"there is no store at --root {tmp_path / 'root'} yet" in done.stderr
        and not (tmp_path / "root").exists()
    )
    done = harness("status", tmp_path / "config.yaml", "--root=~/nothing", HOME=str(tmp_path))
    assert f"no store at --root {tmp_path / 'nothing'} yet" in done.stderr


def test_a_root_that_is_another_folder(make_config: Make, tmp_path: Path) -> None:
    """Commands that look say of it what a run would say; of an empty one that nothing has been run."""
    config, other, empty = make_config(GAUSSIAN), tmp_path / "other", tmp_path / "empty"
    for folder in (other, empty):
        folder.mkdir()
    (other / "letter.txt").write_text("mine")
    refused = (
        f"error: --root {other} is not empty and is not a store of the harness; name another directory\n"
    )
    for command in ("status", "plan", "run", "explain"):
        done = harness(command, config, "--root", other)
        assert (done.returncode, done.stderr, done.stdout) == (2, refused, ""), command
    for command in (("export", config), ("pull", config, "--generation", 0, "--to", tmp_path / "x"), ("gc",)):
        done = harness(*command, "--root", other)
        assert done.returncode == 2 and f"--root {other} is not a store of the harness; name" in done.stderr
        for root in (empty, tmp_path / "none"):
            done = harness(*command, "--root", root)
            assert done.returncode == 2 and f"nothing has been run yet at --root {root}; " in done.stderr
    assert harness("status", config, "--root", empty).returncode == 0
    assert [path.name for path in other.iterdir()] == ["letter.txt"] and not any(empty.iterdir())


@pytest.mark.parametrize("command", ["plan", "report", "export", "status"])
def test_an_interrupted_command_says_so(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Ctrl-C while it reads its study."""

    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt  # as Python does; where tests run in the background the signal is ignored

    config = make_config(GAUSSIAN)
    Store.open(tmp_path / "root")
    monkeypatch.setattr("harness.config.load.read_source", pressed)
    done = within([sys.executable, "-m", "harness", command, str(config), "--root", str(tmp_path / "root")])
    assert (done.returncode, done.stdout) == (75, "")
    assert done.stderr == "interrupted; nothing committed is lost, run the same command again\n"


def test_an_internal_error_is_one_line(tmp_path: Path) -> None:
    code = (
        "import harness.cli as cli\ndef broken(prog_name): raise KeyError('x')\ncli.app = broken\ncli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert (
        done.returncode == 1
        and "defect of the harness: KeyError" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert "Traceback" in next(tmp_path.glob("harness-error-*.log")).read_text()


def test_links_in_the_documents_lead_somewhere() -> None:
    import re

    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page}: {target}"


@pytest.mark.slow
def test_what_no_memory_holds_is_refused_at_once(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, regime={"kind": "accumulate"}, **{"data.num_examples": 10**12})
    for command in ("plan", "run"):
        done = harness(command, config, "--root", tmp_path / "root")
        assert done.returncode == 2, done.stderr
        # Generation 3 accumulates 4e12 numbers of 8 bytes.
        assert re.search(
            r"config.yaml:\d+: data.num_examples: generation 3 has 4000000000000 training examples",
            done.stderr,
        )
        assert f"{2 * 8 * 4e12 / 2**30:,.1f} GiB" in done.stderr
    assert not (tmp_path / "root").exists()


def test_a_models_states_are_compared_with_the_memory(make_config: Make, tmp_path: Path) -> None:
    """Mixed precision under Adam takes 16 bytes a parameter without ZeRO; a model that is only sampled from
    takes 2."""
    from harness.inventory.memory import check_memory, memory_of

    prepared, _ = open_prepared(make_config(TEXT, **{"resources.zero_stage": 0}), tmp_path / "root")
    parameters = prepared.models[0].parameters  # type: ignore[union-attr]
    check_memory(prepared, gpus=False, limit=16 * parameters)
    with pytest.raises(ResourceError, match="learner.model: weights, gradients and optimizer"):
        check_memory(prepared, gpus=False, limit=16 * parameters - 1)
    check_memory(prepared, gpus=True, limit=16 * parameters - 1)
    assert memory_of(prepared, 0, gpus=False).total > 16 * parameters  # type: ignore[union-attr]


def test_gangs_that_are_alike_take_what_the_largest_takes(make_config: Make, tmp_path: Path) -> None:
    """Of two sizes of models; no more than a machine has, so that one always has room."""
    from harness.coordinator.scheduler import Capacity
    from harness.coordinator.shapes import held_back, shapes_of
    from harness.inventory.memory import rank_bytes

    two = [{"when": {"learner.model.width": width}, "set": {"resources.ranks": 2}} for width in (32, 128)]
    config = make_config(TEXT, grid={"learner.model.width": [16, 256, 32, 128]}, overrides=two)
    prepared, _ = open_prepared(config, tmp_path / "root")
    most = {
        ranks: max(
            rank_bytes(prepared, index, False)
            for index, cell in enumerate(prepared.study.cells)
            if cell.config.resources.ranks == ranks
        )
        for ranks in (1, 2)
    }
    for memory, fewer in ((10 * most[1], 0), (2 * most[1], 1), (most[1] // 2, 1)):
        machines = [Capacity(3, 0, memory)]
        shapes = shapes_of(prepared, machines)
        assert {shape.ranks: shape.memory for shape in shapes} == {
            ranks: min(size, memory // ranks) for ranks, size in most.items()
        }
        assert len(set(shapes)) == 2 and len(held_back(shapes, machines)) == fewer
    assert {shape.memory for shape in shapes_of(prepared, [Capacity(4, 2)])} == {0}, "a GPU's own memory"


def test_a_small_machine_makes_no_rank_small_that_another_holds(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank of 10 bytes on machines of which the one with fewest processors has 3: it asks for all 10, and
    so never lies there; where no machine has as much, for as much as a gang of so many ranks can have."""
    from harness.coordinator.scheduler import Capacity, at_once
    from harness.coordinator.shapes import held_back, shapes_of

    monkeypatch.setattr("harness.coordinator.shapes.rank_bytes", lambda *_: 10)
    small, large = Capacity(2, 0, 3), Capacity(8, 0, 25)
    for ranks, machines, each, together in (
        (1, [small, large], 10, 2),
        (2, [small, large], 10, 1),
        (3, [small, large], 8, 1),  # 25 / 3
        (8, [small, large], 3, 1),  # one on the small machine, seven of 25 / 7
        (10, [small, large], 1, 1),  # all processors: 3 / 2
        (1, [small, small], 3, 2),
        (3, [small, Capacity(8, 0, math.inf)], 10, 2),
        (11, [small, large], 0, 0),  # refused by the count of processors
    ):
        resources = {"resources.ranks": ranks, "resources.threads": 1, "learner.train.batch_size": 8 * ranks}
        config = make_config(TEXT, f"{ranks}.yaml", **resources)
        prepared, _ = open_prepared(config, tmp_path / "root")
        (shape,) = shapes_of(prepared, machines)
        assert (shape.memory, at_once(shape, machines)) == (each, together), ranks
    (shape,) = shapes_of(prepared, [])
    assert shape.memory == 0 and held_back([shape], [small, large]) == []


def test_what_a_closed_form_makes_must_fit_into_memory(make_config: Make, tmp_path: Path) -> None:
    """A covariance of 10,000,000 coordinates takes 800 TB, however few the examples are."""
    for command in ("plan", "run"):
        done = harness(command, make_config(GAUSSIAN, **{"data.dim": 10**7}), "--root", tmp_path / "root")
        assert done.returncode == 2 and not (tmp_path / "root").exists()
        assert re.search(
            r"config.yaml:\d+: data.dim: a gaussian learner of .* 10,000,000 numbers", done.stderr
        )
        assert f"{4 * 8 * 1e14 / 2**30:,.1f} GiB" in done.stderr


@pytest.mark.parametrize(
    ("learner", "source", "numbers"),
    [
        ({"kind": "gaussian"}, "gaussian", 4 * 100**2),
        ({"kind": "mixture", "components": 5}, "gaussian", 5 * (4 * 100**2 + 2 * 50)),
        ({"kind": "mixture", "components": 5, "covariance": "diag"}, "gaussian", 5 * (2 * 100**2 + 2 * 50)),
        ({"kind": "kde"}, "gaussian", 2 * 500 * 50),
        ({"kind": "linear_regression", "ridge": 1.0}, "linear", 4 * 100**2),
    ],
)
def test_each_closed_form_takes_at_least_what_it_holds(
    make_config: Make, tmp_path: Path, learner: dict[str, Any], source: str, numbers: int
) -> None:
    """What numpy has allocated at once, at most, is no less than what is refused as too much."""
    from harness.inventory.memory import check_memory, rank_bytes
    from harness.learners.analytic.family import Chains, make_family

    data = {"source": source, "dim": 100, "num_examples": 50}
    config = make_config(GAUSSIAN, data=data, learner=learner, generations=1)
    prepared, _ = open_prepared(config, tmp_path / "root")
    check_memory(prepared, gpus=False, limit=8 * numbers)
    with pytest.raises(ResourceError, match=rf"data.dim: a {learner['kind']} learner of 50 examples"):
        check_memory(prepared, gpus=False, limit=8 * numbers - 1)
    truth: Any = prepared.data[0].real
    examples = 8 * 50 * truth.width
    assert rank_bytes(prepared, 0, gpus=False) == 2 * examples + 8 * numbers
    family, chains = make_family(prepared.specs[0].learner.section, truth), Chains((0,), 0)
    values, _ = truth.real(0, 50).values[None], truth.test
    family.evaluate(family.fit(family.summarise(values), chains, None), values)  # imports, caches
    tracemalloc.start()
    model = family.fit(family.summarise(values), chains, None)
    family.evaluate(model, values)
    family.sample(model, chains, 50, values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 8 * numbers <= peak


@pytest.mark.slow
def test_large_grids_are_planned_quickly(make_config: Make) -> None:
    """100,000 generations; the bound is several times what it takes, so only another order of growth fails
    it."""
    grid: dict[str, Any] = {
        "regime.synthetic_ratio": [i / 100 for i in range(1, 101)],
        "seed": {"from": 0, "count": 100},
    }
    config = make_config(GAUSSIAN, generations=9, grid=grid)
    done = harness("plan", config, "--json", timeout=100)
    found = json.loads(done.stdout)
    assert (found["generations_requested"], found["generations_unique"]) == (100_000, 100 * (1 + 100 * 9))


def test_how_a_study_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.cli.app import options_of

    monkeypatch.delenv("HARNESS_ROOT", raising=False)
    assert options_of(Path("runs"), None) == []
    assert options_of(Path("/shared/runs"), ["a=1", "b=x y"]) == [
        "--root",
        "/shared/runs",
        "--set",
        "a=1",
        "--set",
        "b=x y",
    ]
    monkeypatch.setenv("HARNESS_ROOT", "/shared/runs")
    assert options_of(Path("/shared/runs"), None) == [] and options_of(Path("runs"), None) == [
        "--root",
        "runs",
    ]
