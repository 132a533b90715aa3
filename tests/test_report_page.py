"""The page of a report: what it holds, what a browser makes of it, and that nothing runs but its own."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bundled import run_bundles
from conftest import Make
from test_board_pages import browser

from harness.config.naming import cell_name, cell_names, words
from harness.metrics.bigram import bigram_nll, unigram_nll
from harness.metrics.catalogue import about
from harness.reporting import figures, ledger
from harness.reporting.baseline import baselines
from harness.reporting.costs import costs
from harness.reporting.distributions import bands_figure
from harness.reporting.explorer import explorer
from harness.reporting.inside import _beyond, _by_rank
from harness.reporting.page import FigureDrawing, Page, _summary, render
from harness.reporting.palette import FEW, styles
from harness.reporting.report import build as build_report
from harness.reporting.rows import Rows
from harness.reporting.samples import marked
from harness.reporting.tables import _columns, summary_table, to_csv
from harness.reporting.worth import worth_lines
from harness.study import open_study

HOSTILE = "</script><script>document.title='owned'</script><!-- \u202e=cmd()"
AXES = ("learner.model.preset", "regime.kind", "regime.synthetic_ratio")
CELLS = [("small", "replace", 1.0), ("small", "replace", 0.5), (HOSTILE, "accumulate", None)]


def records(seeds: int = 5, generations: int = 4) -> Rows:
    """Three cells; a seed of the second diverges in generation 2."""
    random, rows = np.random.default_rng(4), []
    for number, cell in enumerate(CELLS):
        for seed in range(seeds):
            for g in range(generations):
                gone = number == 1 and seed == 0 and g == 2
                nll = 3 + 0.2 * number * g + 0.01 * float(random.normal())
                rows.append(
                    {
                        "experiment": "page",
                        "chain": f"{number}-{seed}",
                        "seed": seed,
                        "generation": g,
                        "status": "diverged" if gone else "ok",
                        **dict(zip(AXES, cell, strict=True)),
                        "test/perplexity": None if gone else float(np.exp(nll)),
                        "test/nll": None if gone else nll,
                        "text/distinct_2": None if gone else 0.2 + 0.01 * float(random.normal()),
                        "text/copy_share": 0.25,
                    }
                )
                if gone:
                    break
    return Rows.of(rows)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    return render(Page(folder), f"a {HOSTILE}", records(), AXES, range(5), lambda metric: (
        {CELLS[0]: [20.0, 20.0, 20.0]} if metric == "test/perplexity" else {}
    ))  # fmt: skip


def test_bands_keep_their_numbers_where_some_are_none() -> None:
    """Of few different tokens one may have all of several bands."""
    rows = [{**row, "text/band_1": 1.0, "text/band_4": 0.5, "text/band_5": 0.1} for row in records()]
    found = bands_figure(rows, AXES)
    assert found is not None
    figure, columns, numbers = found
    assert [row[columns.index("band")] for row in numbers] == [1, 4, 5] * len(CELLS)
    line, *_ = figure.axes[0].get_lines()
    assert line.get_xdata().tolist() == [1, 4, 5] and line.get_ydata().tolist() == [1.0, 0.5, 0.1]


def test_bands_are_of_cells_that_measure_them() -> None:
    """In a grid over learners one may write text, and another no text: it has no line, and no rows."""
    kinds = {"a": "language_model", "b": "kde"}
    shared = [{"chain": chain, "seed": 0, "learner.kind": kind} for chain, kind in kinds.items()]
    own = pa.table({"generation": [0, 0], "status": ["ok", "ok"], "text/band_1": [1.0, None]})
    rows = Rows(shared, np.array([0, 1]), own, (), {}, list(kinds.values()))
    found = bands_figure(rows, ["learner.kind"])
    assert found is not None and [row[1:] for row in found[2]] == [["language_model", 1, 1.0, 1]]
    assert len(found[0].axes[0].get_lines()) == 2, "one cell, and what real text has"
    no_text = Rows(shared, np.array([0, 1]), own, (), {}, ["kde", "kde"])
    assert bands_figure(no_text, ["learner.kind"]) is None


def test_a_cell_has_one_name() -> None:
    assert cell_name(CELLS[0], AXES, seed=0) == "small, replace 1.0, seed 0"
    assert cell_name((None, "accumulate", None), AXES) == "accumulate"
    assert (
        cell_name((0.7, True), ("learner.sample.temperature", "data.resample"))
        == "temperature 0.7, resample True"
    )
    assert words(["a.kind", "b.kind", "c.width_x"]) == ["a.kind", "b.kind", "width x"]
    assert cell_name((), ()) == "" and len(cell_name(("x" * 500,), ("a.b",))) < 140
    same = cell_names([("a", "b"), ("b", "a"), ("a", "b")], ("x.kind", "y.kind"))
    assert same[0] == "x.kind a, y.kind b" and same[1] == "b, a"


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 500])
def test_cells_look_different_and_stand_out(count: int) -> None:
    """Contrast of 3 : 1 with the ground (WCAG 2.2, 1.4.11), and no two alike up to as many as have hues."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = styles(range(count))
    assert len(found) == count and len({(s.light, s.dash) for s in found.values()}) > 0.95 * count
    dark_ground = luminance("#0d1117")
    for style in found.values():
        assert 1.05 / (luminance(style.light) + 0.05) >= 3
        assert (luminance(style.dark) + 0.05) / (dark_ground + 0.05) >= 3


def test_one_quantity_is_one_figure_a_flat_one_a_sentence(page: Path) -> None:
    found = figures.chosen(records())
    assert list(found.drawn) == ["test/perplexity", "text/distinct_2"]
    assert list(found.same) == ["test/nll"] and list(found.flat) == ["text/copy_share"]
    text = page.read_text()
    assert "share copied from the training set is flat: 0.25 everywhere." in text
    assert f"{about('test/nll').title} is {about('test/perplexity').title} on another scale." in text
    names = {path.name for path in (page.parent / "figures").iterdir()}
    assert names == {
        f"{name}.{form}" for name in ("test-perplexity", "text-distinct_2") for form in ("png", "pdf", "csv")
    }


def test_a_common_order_alone_makes_no_quantity_of_two() -> None:
    """Twelve rows in which diversity and likelihood fall together are two quantities, and both are drawn."""
    rows = []
    for place in range(12):
        identity = {"chain": "a", "seed": 0, "generation": place, "status": "ok"}
        nll = 3.0 + 0.1 * place
        others = {
            "text/distinct_2": 0.2 + 0.01 * place + 0.003 * (place % 3),
            "test/perplexity": math.exp(nll),
        }
        rows.append({**identity, "test/nll": nll, "test/bits_per_byte": nll / 1.7, **others})
    found = figures.chosen(Rows.of(rows))
    assert list(found.same) == ["test/nll", "test/bits_per_byte"]
    assert list(found.drawn) == ["test/perplexity", "text/distinct_2"]


def test_the_answer_the_figure_the_contents_come_in_this_order(page: Path) -> None:
    text = page.read_text()
    places = [
        text.index(part) for part in ("What happens</h2>", 'class="headline"', "<nav", 'id="generations"')
    ]
    assert places == sorted(places)


def test_a_table_has_the_last_generation_in_sight() -> None:
    """As many generations as there is room for, the first and the last among them."""
    rows = [
        {"chain": f"{s}", "seed": s, "generation": g, "status": "ok", "test/nll": -1.23456 - s * 0.0123 * g}
        for s in range(3)
        for g in range(13)
    ]
    found = _summary(Rows.of(rows), (), (0, 1, 2))
    assert found["generations"][0] == 0 and found["generations"][-1] == 12
    assert 4 <= len(found["generations"]) < 11
    assert found["columns"] == "every 3rd generation"
    width = sum(15 + 8 * len(point) for point in found["lines"][0]["points"])
    assert width <= 1216
    short = [row for row in rows if row["generation"] < 4]
    assert _summary(Rows.of(short), (), (0, 1, 2))["generations"] == [0, 1, 2, 3]


def test_the_last_generation_of_a_shorter_cell_is_a_column() -> None:
    rows = [
        {"chain": cell, "a.cell": cell, "seed": 0, "generation": g, "status": "ok", "test/nll": float(g)}
        for cell, last in (("long", 20), ("short", 12), ("new", 0))
        for g in range(last + 1)
    ]
    found = summary_table(Rows.of(rows), ("a.cell",), (0,), 5)
    assert found["generations"] == [0, 6, 12, 18, 20]
    assert found["columns"] == "every 6th generation and the last one"
    assert [line["points"][2] for line in found["lines"]] == ["12", "12", ""]
    found = summary_table(Rows.of(rows), ("a.cell",), (0,), 4)
    assert found["generations"] == [0, 10, 12, 20]
    assert found["columns"] == "every 10th generation and the last ones of the cells"
    assert summary_table(Rows.of(rows), ("a.cell",), (0,), 2)["generations"] == [0, 20]


@pytest.mark.parametrize(
    ("last", "most", "generations", "columns"),
    [
        (9, 11, list(range(10)), ""),
        (11, 11, [0, 2, 4, 6, 8, 10, 11], "every 2nd generation and the last one"),
        (20, 11, list(range(0, 21, 2)), "every 2nd generation"),
        (100, 11, list(range(0, 101, 10)), "every 10th generation"),
        (101, 6, [0, 21, 42, 63, 84, 101], "every 21st generation and the last one"),
        (20, 2, [0, 20], "the first generation and the last one"),
    ],
)
def test_generations_of_a_table_are_equally_far_apart(
    last: int, most: int, generations: list[int], columns: str
) -> None:
    """But for the last one; and it is said that others are left out."""
    rows = [
        {"chain": "a", "seed": 0, "generation": g, "status": "ok", "test/nll": 1.0} for g in range(last + 1)
    ]
    found = summary_table(Rows.of(rows), (), (0,), most)
    assert (found["generations"], found["columns"]) == (generations, columns)
    tight = summary_table(Rows.of(rows), (), (0,), most, fits=lambda table: len(table["generations"]) < 4)
    assert len(tight["generations"]) <= 3 and tight["generations"][-1] == last


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="explorer-data">(.*?)</script>', page.read_text(), re.S
    )
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_figure_the_csv_and_the_page_have_the_same_numbers(page: Path) -> None:
    data = data_of(page)
    assert [m["name"] for m in data["metrics"]] == [
        "test/perplexity",
        "text/distinct_2",
        "test/nll",
        "text/copy_share",
    ]
    table = list(csv.DictReader((page.parent / "figures" / "test-perplexity.csv").open()))
    assert len(table) == 3 * 4
    for place, cell in enumerate(data["metrics"][0]["cells"]):
        rows = table[4 * place : 4 * place + 4]
        assert rows[0]["cell"][:5] == data["cells"][place]["name"][:5]
        for g, row in enumerate(rows):
            assert cell["m"][g] == pytest.approx(float(row["mean"]), rel=1e-4)
            assert cell["n"][g] == int(row["seeds"]) and cell["t"] == int(row["all_seeds"]) == 5
            assert (cell["l"][g] is None) == (row["low"] == "")
    second = data["metrics"][0]["cells"][1]
    assert second["d"] == [0, 0, 1, 1] and second["n"] == [5, 5, 4, 4] and second["l"][2:] == [None, None]
    assert [len(values) for values in second["s"]] == [5, 5, 4, 4]
    assert data["metrics"][0]["cells"][0]["w"] == [20, 20, 20, None]


def test_only_the_pages_own_scripts_may_run(page: Path) -> None:
    text = page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None and "'unsafe-inline'" not in policy[1].partition("script-src")[2]
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert [f"'sha256-{found}'" in policy[1] for found in hashes] == [True, True]
    assert "document.title='owned'" not in "".join(scripts) and "\u202e" not in text
    assert to_csv(["a"], [["=cmd()"], [-1.5]]) == b"a\n'=cmd()\n-1.5\n", "a spreadsheet runs nothing of it"


def test_five_hundred_cells_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what would be too much loses the single seeds first, then generations in between."""
    random = np.random.default_rng(0)
    rows = Rows.of(
        [
            {
                "chain": f"{c}-{s}",
                "seed": s,
                "generation": g,
                "status": "ok",
                "axis": c,
                **{f"m/{k}": float(random.normal()) for k in range(4)},
            }
            for c in range(500)
            for s in range(5)
            for g in range(6)
        ]  # fmt: skip
    )
    metrics = {f"m/{k % 4}": "m" for k in range(4)}
    data = explorer(rows, ("axis",), range(5), metrics)
    assert len(json.dumps(data)) < 3_000_000 and data["every_seed"]
    assert sum(cell["on"] for cell in data["cells"]) == 24
    monkeypatch.setattr("harness.reporting.explorer.NUMBERS", 20_000)
    small = explorer(rows, ("axis",), range(5), metrics)
    assert small["steps"][0] == 0 and small["steps"][-1] == 5 and len(small["steps"]) < 6
    assert not small["every_seed"] and "s" not in small["metrics"][0]["cells"][0]


def test_static_figures_beyond_the_room_are_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.reporting.page.EMBEDDED_BYTES", 120_000)
    told: list[str] = []
    page = Page(tmp_path, told.append)
    figure, *numbers = figures.metric_drawing(records(), AXES, "test/nll") or pytest.fail("nothing drawn")
    found = [page.add(FigureDrawing(f"f{n}", "x", figure, *numbers)) for n in range(3)]
    assert found[0]["image"] and not found[2]["image"] and (tmp_path / "figures" / "f2.png").exists()
    assert told == ["figure f0", "figure f1", "figure f2"]


DRIVER = """<script>
addEventListener('load',function(){setTimeout(function(){
 var out={},q=function(s){return document.querySelector(s);},texts=function(s){
  return [].map.call(document.querySelectorAll(s),function(o){return o.textContent;});};
 function fire(e,type,more){
  e.dispatchEvent(new(more?KeyboardEvent:Event)(type,Object.assign({bubbles:true},more)));}
 out.metrics=texts('#ex-metric option');out.count=q('#ex-count').textContent;
 out.canvases=document.querySelectorAll('.plot canvas').length;
 var plot=q('.plot');plot.focus();out.first=q('#ex-said').textContent;
 fire(plot,'keydown',{key:'ArrowRight'});fire(plot,'keydown',{key:'ArrowRight'});
 fire(plot,'keydown',{key:'ArrowDown'});
 out.moved=q('#ex-said').textContent;
 fire(plot,'keydown',{key:'+'});out.zoomed=q('#ex-said').textContent;
 var boxes=document.querySelectorAll('#ex-cells input');boxes[1].click();
 out.toggled=q('#ex-count').textContent;
 q('#ex-metric').selectedIndex=2;fire(q('#ex-metric'),'change');
 q('.plot').focus();out.metric=q('.plot').getAttribute('aria-label');
 q('#ex-panels').selectedIndex=1;fire(q('#ex-panels'),'change');
 out.panels=texts('.plot h3');
 q('#ex-filter').value='accum';fire(q('#ex-filter'),'input');q('#ex-none').click();
 out.left=q('#ex-count').textContent;
 out.title=document.title;
 var pre=document.createElement('pre');pre.id='out';pre.textContent=JSON.stringify(out);
 document.body.append(pre);
},300);});
</script></body>"""


@pytest.mark.slow
def test_a_browser_shows_what_the_csv_says(page: Path, tmp_path: Path) -> None:
    """Keys, toggles, another metric, panels and the filter; no error, and the hostile name is only text."""
    dom, said = browser(page.as_uri())
    assert not said and "<canvas" in dom, "under its own policy"
    driven = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    (tmp_path / "driven.html").write_text(driven.replace("</body>", DRIVER))
    dom, said = browser((tmp_path / "driven.html").as_uri(), "--virtual-time-budget=3000")
    assert not said
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)
    assert found is not None
    out = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert len(out["metrics"]) == 4 and out["count"] == "3 of 3 cells shown" and out["canvases"] == 1
    row = next(r for r in csv.DictReader((page.parent / "figures" / "test-perplexity.csv").open())
               if r["regime.synthetic_ratio"] == "0.5" and r["generation"] == "2")  # fmt: skip
    assert out["first"].startswith("small, replace 1.0; generation 0:")
    assert (
        f"small, replace 0.5; generation 2: {float(row['mean']):.4g}; 4 of 5 seeds, 1 diverged"
        in out["moved"]
    )
    assert out["zoomed"] == out["moved"] and out["toggled"] == "2 of 3 cells shown"
    assert out["metric"].startswith(about("test/nll").title)
    assert out["panels"][0] == "preset small" and out["left"] == "1 of 3 cells shown"
    assert out["title"] != "owned"


def test_what_a_text_has_new_is_marked() -> None:
    first, second, third = marked(["the cat sat", "the dog sat", "the dog sat"])
    assert first == [(False, "the cat sat")] and third == [(False, "the dog sat")]
    assert [part for new, part in second if new] == ["dog"]
    hostile = ["<b>a</b>" * 500, "x y " * 3000, "\x1b[2J" * 50]
    assert ["".join(part for _, part in parts) for parts in marked(hostile)] == hostile, "nothing is lost"


def test_ranks_and_tails_are_those_of_the_sample() -> None:
    rank, share = _by_rank(np.array([[5, 5, 5, 2], [2, 9, 5, 5]]))
    assert rank.tolist() == [1, 2, 3] and share.tolist() == [5 / 8, 2 / 8, 1 / 8]
    at, beyond = _beyond(np.array([3.0, 1.0, 2.0, 4.0]))
    assert at.tolist() == [1, 2, 3, 4] and beyond.tolist() == [1, 0.75, 0.5, 0.25]
    long = _beyond(np.random.default_rng(0).exponential(size=100_000))
    assert len(long[0]) == 200 and np.interp(2.0, *long) == pytest.approx(math.exp(-2), rel=0.05)


def test_a_scale_on_which_values_can_be_told_apart() -> None:
    """Two seeds have an interval many times as wide as all there is; a factor of 30 needs a log scale."""

    def of(values: list[list[float]]) -> Any:
        rows = [
            {"chain": str(s), "seed": s, "generation": g, "status": "ok", "test/nll": v}
            for s, curve in enumerate(values)
            for g, v in enumerate(curve)
        ]
        drawing = figures.metric_drawing(rows, (), "test/nll")
        assert drawing is not None
        return drawing[0].axes[0]

    low, high = of([[1.0, 2.0], [1.1, 2.4]]).get_ylim()
    assert -0.5 <= low < 1 and 2.4 < high <= 4
    log = of([[1.0, 80.0], [1.1, 90.0]])
    assert log.get_yscale() == "log" and log.yaxis.get_major_formatter()(100, 0) == "100"


def test_a_model_that_counts_tokens_knows_their_entropy() -> None:
    """Of independent tokens, the unigram model has their entropy and the bigram model gains nothing."""
    random, p = np.random.default_rng(2), np.array([0.5, 0.25, 0.125, 0.125])
    blocks = random.choice(4, size=(6000, 16), p=p).astype(np.int32)
    entropy = -(p * np.log(p)).sum()
    assert unigram_nll(blocks[:4000], blocks[5000:], 4) == pytest.approx(entropy, abs=0.02)
    parts = blocks[:4000], blocks[4000:5000], blocks[5000:]
    assert bigram_nll(*parts, 0, 4) == pytest.approx(entropy, abs=0.02)
    wide = bigram_nll(*parts, 0, 200_000)
    assert wide == pytest.approx(entropy, abs=0.02), "a large vocabulary takes no table of all pairs"


@pytest.mark.slow
def test_the_sections_of_a_grid_in_closed_form(make_config: Make, tmp_path: Path) -> None:
    """The truth beside generation 0, the cost, and what a real example is worth at every corner."""
    config = make_config(
        {
            "experiment": "grid",
            "data": {"source": "gaussian", "num_examples": 40, "dim": 5},
            "learner": {"kind": "gaussian", "estimator": "unbiased"},
            "regime": {"kind": "fresh_real", "synthetic_ratio": 0.5},
            "generations": 3,
            "tracking": {"wandb": "disabled"},
            "grid": {
                "data.num_examples": [40, 80],
                "regime.synthetic_ratio": [0.25, 0.5, 0.75],
                "seed": {"from": 0, "count": 40},
            },
        }
    )
    prepared, store = run_bundles(config, tmp_path / "root")
    rows = ledger.rows(prepared, store)
    lines = worth_lines(prepared, rows)
    assert [(line["cell"], line["real"], line["synthetic"]) for line in lines] == [
        ("num examples 40, synthetic ratio 0.5", "20", "20"),
        ("num examples 40, synthetic ratio 0.75", "10", "30"),
    ]
    truths = {item.metric: item for item in baselines(prepared, store, rows)}
    assert truths["gaussian/log_variance"].value == 0.0 and not truths["gaussian/log_variance"].warning
    found = costs(prepared, store)
    assert [line["phase"] for line in found["lines"]] == ["bundles of chains, all phases"]
    assert found["total"] > 0 and found["lines"][0]["disk"] > 0
    # A study that has a tenth of the bundles' chains has about a tenth of their costs, and all parts are all.
    seeds = [f"grid.seed={list(range(start, start + 4))}" for start in range(0, 40, 4)]
    parts = []
    for part in seeds:
        own, scratch = open_study(config, (part,), store)
        with scratch:
            parts.append(costs(own, store))
    assert sum(part["total"] for part in parts) == pytest.approx(found["total"])
    assert sum(part["lines"][0]["disk"] for part in parts) == pytest.approx(
        found["lines"][0]["disk"], rel=0.01
    )
    page = build_report(prepared, store, rows, tmp_path / "report").read_text()
    for title in ("What a real example is worth", "Has generation 0 learned anything?", "What it has cost"):
        assert title in page
    assert "What happens" in page and "Text narrows" not in page, "there is no text"


def test_the_note_says_which_last_generations_are_there() -> None:
    """Where there is no room for the last one of every cell it does not say that they are all there."""
    curves_of = [dict.fromkeys(range(last + 1), 0.0) for last in (5, 8, 11, 20)]
    shown, said = _columns(curves_of, 4)
    assert shown == [0, 8, 11, 20] and said.endswith("and the last ones of some cells")
    assert _columns(curves_of, 5)[1].endswith("and the last ones of the cells")
    assert _columns([dict.fromkeys(range(20), 0.0)], 3) == (
        [0, 10, 19],
        "every 10th generation and the last one",
    )
