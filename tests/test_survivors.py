"""Cells in which chains have diverged or are not finished: never a mean over those that are left without a
word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bundled import run_bundles
from conftest import Make
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.layout_engine import ConstrainedLayoutEngine

from harness.config.naming import cell_name
from harness.inventory import StoredChains
from harness.reporting import figures, ledger
from harness.reporting.analysis import critical_ratios, losses
from harness.reporting.claims import judge
from harness.reporting.lettering import letter
from harness.reporting.populations import population_table
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, aggregate, curves, with_half
from harness.reporting.tables import critical_table, summary_table
from harness.store import Store
from harness.study import open_study
from harness.tracking.views import Views, of_bundles

RATIO = "regime.synthetic_ratio"


def chain(seed: int, values: list[float | None], **axes: Any) -> list[dict[str, Any]]:
    """Rows of one chain; None is the generation in which it diverges."""
    return [
        {
            "seed": seed,
            "generation": g,
            "status": "diverged" if value is None else "ok",
            "test/nll": value,
            **axes,
        }
        for g, value in enumerate(values)
    ]


EXPLODED = [
    row
    for seed, values in enumerate(
        ([3.0, 4.0, 1.0], [3.2, 5.0, 3.0], [3.1, 9.0, None], [3.3, None], [3.4, None])
    )
    for row in chain(seed, values)
]


def test_three_of_five_explode() -> None:
    """The means fall to those of the survivors; every point says of how many it is, and the median does not
    fall."""
    curve = curves(EXPLODED, [], "test/nll")[()]
    assert [(len(p.values), p.diverged, p.total) for p in curve.values()] == [(5, 0, 5), (3, 2, 5), (2, 3, 5)]
    assert curve[0].low is not None and curve[1].low is None and curve[2].low is None, (
        "survivors have no interval"
    )
    assert [p.mean for p in curve.values()] == pytest.approx([3.2, 6.0, 2.0])
    assert (curve[1].median(), curve[2].median()) == (9.0, None)
    table = summary_table(EXPLODED, [])
    assert table["lines"][0]["points"] == [
        "3.20 ± 0.20",
        "6* (3 of 5 live, median 9)",
        "2* (2 of 5 live, median diverged)",
    ]
    assert "have diverged" in table["note"]
    brief = summary_table(EXPLODED, [], brief=True)
    assert (
        brief["lines"][0]["points"] == ["3.20 ± 0.20", "6* (3/5)", "2* (2/5)"]
        and "of how many seeds" in brief["note"]
    )


def test_the_median_counts_the_diverged_as_worst() -> None:
    found = aggregate([1.0, 2.0, 4.0], diverged=1)
    assert found.median() == 3.0 and found.median(higher_is_better=True) == 1.5
    assert aggregate([1.0], diverged=1).median() is None and aggregate([], diverged=2).text() == "diverged"
    assert aggregate([5.0, 7.0, 6.0]).median() == 6.0 and Aggregate(None, None, None, (), 0).median() is None


def test_every_point_says_of_how_many_seeds_it_is() -> None:
    rows = [*chain(0, [1.0, 2.0]), *chain(1, [1.0])]
    lines = summary_table(rows, [], seeds=[0, 1, 2])["lines"]
    assert lines[0]["points"] == ["1 ± 0 (2 of 3 seeds)", "2 (1 of 3 seeds)"]
    assert summary_table(rows, [])["lines"][0]["points"][0] == "1 ± 0 (2 seeds)", (
        "two seeds: a wide interval that says why"
    )
    assert aggregate([1.0, 2.0, 3.0, 4.0]).text() == f"2.5 ± {3.182446 * 1.290994 / 2:.2g}"
    assert aggregate([None, 1.0]).text() == "1 (1 of 2 seeds)" and aggregate([None]).text() == "not finite"


def worse(ratio: float, last: dict[int, float | None], generations: int = 2) -> list[dict[str, Any]]:
    """Chains that are at 0 and end at ``last``; a seed that is not in it has not come so far."""
    rows = []
    for seed in range(8):
        values: list[float | None] = [0.1 * seed] + [0.5] * (generations - 1)
        rows += chain(seed, [*values, last[seed]] if seed in last else values, **{RATIO: ratio})
    return rows


def test_the_critical_ratio_counts_unfinished_chains_apart() -> None:
    still = {seed: 0.1 * seed for seed in range(8)}
    up = {seed: 0.1 * seed + 1 for seed in range(8)}
    whole = worse(0.0, still) + worse(0.5, still) + worse(1.0, up)
    (found,) = critical_ratios(whole, [RATIO], "test/nll")
    part = worse(0.0, still) + worse(0.5, {0: 0.0}) + worse(1.0, up)
    (waits,) = critical_ratios(part, [RATIO], "test/nll")
    assert (
        found.unfinished == 0 and found.ratio is not None and 0.5 < found.ratio < 1 and found.low is not None
    )
    assert (waits.ratio, waits.seeds, waits.unfinished) == (None, 1, 7), (
        "no ratio from one seed, and none from a guess"
    )
    (five,) = critical_ratios(
        worse(0.0, still) + worse(0.5, {s: still[s] for s in range(4)}) + worse(1.0, up), [RATIO], "test/nll"
    )
    assert five.ratio == pytest.approx(0.5 + 0.5 * (five.tolerance or 0)) and five.low is None, (
        "four seeds are not bootstrapped"
    )
    line = critical_table(part, [RATIO])["lines"][0]
    assert line["ratio"] == "" and "7 more have not come to generation 2" in line["seeds"]


def test_a_diverged_chain_is_worse_than_any_tolerance() -> None:
    still = {seed: 0.1 * seed for seed in range(8)}
    rows = worse(0.0, still) + worse(0.5, still) + worse(1.0, {**still, 3: None})
    (found,) = critical_ratios(rows, [RATIO], "test/nll")
    assert found.ratio == 0.5 and not found.beyond and found.seeds == 8


def test_a_claim_on_survivors_has_no_verdict_and_no_interval(make_config: Make, tmp_path: Path) -> None:
    claims = [
        {
            "text": "it collapses",
            "source": "expected",
            "statistic": {"metric": "test/nll", "of": "last"},
            "below": 4.0,
        }
    ]
    data = {
        "data": {"source": "gaussian", "num_examples": 20},
        "learner": {"kind": "gaussian"},
        "generations": 2,
    }
    config = make_config({"experiment": "e", **data, "grid": {"seed": [0, 1, 2, 3, 4]}, "claims": claims})
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "none"))
    scratch.cleanup()
    ids = {c.seed: c.id for c in prepared.chains}
    (found,) = judge(prepared, [{**row, "chain": ids[row["seed"]]} for row in EXPLODED])
    assert found.verdict == "undecided" and "3 of 5 seeds have diverged" in found.reason and found.low is None
    unfinished = [
        {**row, "chain": ids[row["seed"]]} for seed in range(4) for row in chain(seed, [1.0, 1.0, 1.0])
    ]
    (open_,) = judge(prepared, unfinished)
    assert open_.verdict == "undecided" and "not finished" in open_.reason


@pytest.mark.parametrize("cells", [1, 13, 120])
def test_figures_stay_readable_at_any_number_of_cells(cells: int) -> None:
    rows = [
        row
        for i in range(cells)
        for seed in range(2)
        for row in chain(seed, [1.0, 1.0 + i], kind="ab"[i % 2], other=i)
    ]
    drawing = figures.metric_drawing(rows, ["other", "kind"], "test/nll")
    assert drawing is not None
    figure, columns, numbers = drawing
    width, height = figure.get_size_inches()
    assert width <= 18 and height <= 18
    named = figure.legends or any(axes.get_legend() for axes in figure.axes)
    assert named or cells == 120, "lines have names, unless there are too many to read"
    assert len({row[columns.index("cell")] for row in numbers}) == cells, "the numbers name every cell"


@pytest.mark.parametrize("name", ["a", "a rather long name of a value", "\u4e2d\u6587 $x$ and more of it"])
@pytest.mark.parametrize("sizes", [1, 4])
def test_no_legend_is_cut(name: str, sizes: int) -> None:
    """Measured where matplotlib has drawn it; and no larger than the room that was made for it."""
    cells = [(size, f"{name} {i}") for size in "abcd"[:sizes] for i in range(9)]
    rows = [
        row for size, kind in cells for row in chain(0, [1.0, 2.0], **{"data.size": size, "data.kind": kind})
    ]
    drawing = figures.metric_drawing(rows, ["data.size", "data.kind"], "test/nll")
    assert drawing is not None
    figure = drawing[0]
    letter(figure)
    ConstrainedLayoutEngine().execute(figure)  # as `encode` does
    [legend] = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1 and whole.y0 <= box.y0 < box.y1 <= whole.y1
    assert len(legend.get_texts()) == 9 * sizes and box.height < whole.height / 2


def test_panels_are_a_grid_where_one_axis_leaves_too_many_lines() -> None:
    """Two sizes of five rates of two kinds; one pair has no cells, and its place stays free."""
    cells = [(size, kind, rate) for size in "sl" for kind in "ab" for rate in range(5)]
    axes = ["size", "kind", "rate"]
    columns, found = figures.panels(cells, axes)
    assert columns == 2 and [title for title, _ in found] == [
        cell_name((size, kind), axes[:2]) for size in "sl" for kind in "ab"
    ]
    assert [cell for _, part in found for cell in part] == cells
    columns, few = figures.panels(cells[:3] + cells[10:13], axes)
    assert columns == 2 and len(few) == 2, "few lines stay together"
    rows = [
        row
        for size, kind, rate in cells
        if (size, kind) != ("s", "b")
        for row in chain(0, [1.0, 2.0], size=size, kind=kind, rate=rate)
    ]
    rows += [row for rate in range(5, 9) for row in chain(0, [1.0, 2.0], size="s", kind="a", rate=rate)]
    drawing = figures.metric_drawing(rows, axes, "test/nll")
    assert drawing is not None
    panels = drawing[0].axes
    assert [plot.get_visible() for plot in panels] == [True, False, True, True]
    assert [len(plot.get_lines()) for plot in panels] == [9, 0, 5, 5]


# --- rows as columns ----------------------------------------------------------------------------------------


def _plainly(
    rows: list[dict[str, Any]], axes: list[str], metric: str, seeds: set[int]
) -> dict[tuple[Any, ...], dict[int, tuple[list[float], int, int, int]]]:
    """What `curves` says, row by row: the finite values in the order of their seeds, and the three counts."""
    groups: dict[tuple[Any, ...], dict[int, dict[int, dict[str, Any]]]] = {}
    for row in rows:
        cell = tuple(row.get(axis) for axis in axes)
        groups.setdefault(cell, {}).setdefault(row["seed"], {})[row["generation"]] = row
    found: dict[tuple[Any, ...], dict[int, tuple[list[float], int, int, int]]] = {}
    for cell, chains in groups.items():
        ends = {
            seed: min((g for g, row in chain.items() if row["status"] == "diverged"), default=10**9)
            for seed, chain in chains.items()
        }
        for generation in sorted({g for chain in chains.values() for g in chain}):
            there = [
                chain[generation].get(metric)
                for seed, chain in chains.items()
                if generation in chain and generation < ends[seed]
            ]
            finite = [value for value in there if value is not None]
            diverged = sum(end <= generation for end in ends.values())
            absent = len(seeds | chains.keys()) - diverged - len(there)
            found.setdefault(cell, {})[generation] = finite, len(there) - len(finite), diverged, absent
    return found


_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "chain": st.sampled_from("ab"),
            "seed": st.integers(0, 3),
            "generation": st.integers(0, 4),
            "status": st.sampled_from(["ok", "ok", "ok", "diverged"]),
            "kind": st.sampled_from([None, "replace", 0.5, 1]),
        },
        optional={"test/nll": st.one_of(st.none(), st.floats(-10, 10))},
    ),
    max_size=40,
)


@given(_ROWS, st.sampled_from([[], ["kind"], ["kind", "chain"]]), st.sets(st.integers(0, 5)))
def test_columns_say_what_rows_say(rows: list[dict[str, Any]], axes: list[str], seeds: set[int]) -> None:
    found = curves(rows, axes, "test/nll", seeds)
    wanted = _plainly(rows, axes, "test/nll", seeds)
    assert list(found) == list(wanted)
    for cell, curve in wanted.items():
        assert list(found[cell]) == list(curve)
        for generation, (finite, missing, diverged, absent) in curve.items():
            point = found[cell][generation]
            assert (list(point.values), point.missing, point.diverged, point.absent) == (
                finite,
                missing,
                diverged,
                absent,
            )


@given(_ROWS)
def test_rows_kept_as_columns_are_the_same_rows(rows: list[dict[str, Any]]) -> None:
    kept = Rows.of(rows)
    there = [{name: value for name, value in row.items() if value is not None} for row in rows]
    assert [{k: v for k, v in row.items() if v is not None} for row in kept] == there
    assert len(kept) == len(rows) == kept.to_arrow().num_rows
    assert set(kept.names) >= {name for row in rows for name in row}


WILD = {"kind": "gaussian", "init": "previous", "merge": 1.15}
MEMBERS: dict[str, Any] = {
    "experiment": "writers",
    "data": {"source": "gaussian", "num_examples": 40, "dim": 4},
    "learner": {"kind": "gaussian"},
    "population": {"members": {"a": {}, "b": {"set": {"learner": WILD}}}, "exchange": "ring"},
    "generations": 4,
    "grid": {"seed": {"from": 0, "count": 12}},
    "claims": [
        {
            "text": "the population collapses",
            "source": "here",
            "statistic": {"metric": "gaussian/log_variance", "over": "mean"},
            "below": 0.0,
        }
    ],
    "tracking": {"wandb": "disabled"},
}


def test_chains_whose_writers_have_diverged(make_config: Make, tmp_path: Path) -> None:
    """They cannot go on, so those that can are a selection: as where they have diverged themselves."""
    prepared, store = run_bundles(make_config(MEMBERS), tmp_path / "root")
    rows = ledger.rows(prepared, store)
    stored = StoredChains(prepared, store)
    ends = {chain.id: stored.of(chain).progress(chain) for chain in prepared.chains}
    mine, theirs = (curves(rows, ["member"], "gaussian/log_variance")[(name,)] for name in ("a", "b"))
    states = [ends[chain.id][1].state for chain in prepared.chains if prepared.axes(chain)["member"] == "a"]
    stopped = states.count("unreachable")
    assert 0 < stopped < 12 and "diverged" not in states
    assert (mine[4].diverged, len(mine[4].values), mine[4].low) == (stopped, 12 - stopped, None)
    assert mine[0].low is not None and theirs[4].diverged >= stopped
    (population,) = [
        line for line in population_table(prepared, store, rows)["lines"] if line["generation"] == 4
    ]
    assert "*" in population["mean"] or population["mean"] == "diverged"
    (verdict,) = judge(prepared, rows)
    assert verdict.verdict == "undecided" and verdict.low is None and "diverged" in verdict.reason
    views = Views(prepared, store)
    (item,) = [item for item in of_bundles(prepared) if prepared.axes(item.chains[0])["member"] == "a"]
    last = views.view(item).generations[-1].record.metrics
    assert last["seeds/diverged"] == stopped and "gaussian/log_variance.low" not in last


def test_what_a_learner_does_not_measure_is_empty(make_config: Make, tmp_path: Path) -> None:
    """A healthy cell of another learner is not "not finite"."""
    config = {**MEMBERS, "population": None, "claims": [], "generations": 1}
    config["grid"] = {"learner": [{"kind": "gaussian"}, {"kind": "kde"}], "seed": [0, 1, 2]}
    config["data"] = {"source": "gaussian", "num_examples": 20}
    prepared, store = run_bundles(make_config(config), tmp_path / "root")
    rows = ledger.rows(prepared, store)
    table = summary_table(rows, ["learner.kind"])
    shown = {line["cell"][0]: line["points"] for line in table["lines"]}
    assert table["note"].endswith("cells without numbers: their learner does not measure it")
    assert shown["kde"] == ["", ""] and all("not finite" not in point for point in shown["gaussian"])
    assert len(curves(rows, ["learner.kind"], "test/nll")[("kde",)]) == 2


def test_shares_of_chains_that_ended_before() -> None:
    """What has diverged or is not finished has not kept a share for good."""
    known = ([0.2, 0.0, 0.0], [0.2, 0.1, 0.1], [0.2, 0.1, None], [0.2, 0.1])
    rows = [
        {**row, "share/far": row["test/nll"]}
        for seed, values in enumerate(known)
        for row in chain(seed, values)
    ]
    (found,) = losses(rows, [])
    assert found.text == "in 1 of 2; median generation 1, 1 to 1; 1 diverged before; 1 not finished"
    assert found.by_seed == "0: 1, 1: never, 2: diverged in 2, 3: not by 1"


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (0.1915, 0.07, "0.192 ± 0.070"),
        (-0.0705, 0.046, "-0.070 ± 0.046"),
        (0.001, 0.026, "0.001 ± 0.026"),
        (-0.5261, 15.0, "-1 ± 15"),
        (-0.00004, 0.0042, "0 ± 0.0042"),
        (49.037, 2.8, "49.0 ± 2.8"),
        (2420.0, 99.6, "2420 ± 100"),
        (1234.56, 0.5, "1235 ± 0.50"),
        (12345.678, 0.012, "12345.678 ± 0.012"),
        (5.0, 0.0, "5 ± 0"),
        (1.5, 1e-9, "1.5 ± 1e-09"),
    ],
)
def test_a_mean_has_the_decimals_of_its_interval(value: float, half: float, text: str) -> None:
    assert with_half(value, half) == text


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (-0.5261, 15.0, "-0.5 ± 15"),
        (-0.9902, 12.0, "-1.0 ± 12"),
        (0.06347, 2.3, "0.06 ± 2.3"),
        (0.1915, 0.07, "0.192 ± 0.070"),
    ],
)
def test_a_mean_of_few_seeds_has_two_digits(value: float, half: float, text: str) -> None:
    assert with_half(value, half, few=True) == text
