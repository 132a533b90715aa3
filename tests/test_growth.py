"""Slopes, shapes, generations to a threshold, and the value of real data: on curves of known truth, with the
coverage of every interval counted, and on Gaussian chains whose errors have a closed form."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundled import run_bundles
from conftest import Make, harness
from scipy import optimize

from harness.reporting import ledger
from harness.reporting.claims import describe, judge
from harness.reporting.growth import SHAPES, curvatures, evidence, growths, leads, middle, slopes, until
from harness.reporting.rows import Rows
from harness.reporting.tables import growth_table
from harness.reporting.worth import exchange, ratio_of_means, undoing

G = np.arange(10, dtype=float)
CURVES = {
    "linear": 3 + 0.5 * G,
    "exponential": 3 + 0.2 * np.exp(0.35 * G),
    "saturating": 8 - 4 * np.exp(-0.4 * G),
}


def test_slope_and_curvature_are_those_of_the_curve() -> None:
    values = np.stack([2 - 0.7 * G, 1 + 3 * G**2])
    assert slopes(G, values)[0] == pytest.approx(-0.7)
    assert curvatures(G, values) == pytest.approx([0, 6], abs=1e-9)
    random = np.random.default_rng(3)
    noisy = random.normal(size=(5, 10))
    assert slopes(G, noisy) == pytest.approx([np.polyfit(G, row, 1)[0] for row in noisy])
    assert curvatures(G, noisy) == pytest.approx([2 * np.polyfit(G, row, 2)[0] for row in noisy])


@pytest.mark.parametrize("truth", SHAPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_shape_that_made_a_curve_fits_it_best(truth: Any, sign: int) -> None:
    """Also one that falls, and one without noise."""
    random = np.random.default_rng(1)
    values = sign * CURVES[truth] + 0.05 * random.normal(size=(200, 10))
    lead = leads(evidence(G, values), truth)
    assert (lead > 0).mean() > 0.9 and lead.mean() > 2
    exact = evidence(G, sign * CURVES[truth][None])
    assert leads(exact, truth)[0] > (0 if truth == "linear" else 20)


def test_the_least_sum_of_squares_is_found() -> None:
    """Against a general optimiser from many starts, of the same model."""
    random = np.random.default_rng(2)
    values = CURVES["exponential"][None] + 0.3 * random.normal(size=(6, 10))
    found = evidence(G, values)
    for row, aicc in zip(values, found["exponential"], strict=True):

        def left(log_rate: float, row: Any = row) -> float:
            basis = np.stack([np.ones(10), np.exp(np.exp(log_rate) * (G - 9))], axis=1)
            return float(np.sum((row - basis @ np.linalg.lstsq(basis, row, rcond=None)[0]) ** 2))

        starts = [optimize.minimize_scalar(left, bounds=(a, a + 0.7), method="bounded").fun
                  for a in np.arange(math.log(0.05 / 9), math.log(3) - 0.69, 0.35)]  # fmt: skip
        assert aicc == pytest.approx(10 * math.log(min(starts) / 10) + 8 + 2 * 4 * 5 / 5, abs=1e-3)


@pytest.mark.parametrize("wanders", [False, True])
def test_chance_alone_is_rarely_called_a_curve(wanders: bool) -> None:
    """Straight lines with noise, and with random walks: a shape other than linear is named by at most 5 %
    of 400 studies (and 3 standard errors), for the curvatures of its seeds have to agree."""
    random, named = np.random.default_rng(5), 0
    for _ in range(400):
        noise = random.normal(size=(5, 10))
        values = 2 * G + (np.cumsum(noise, axis=1) if wanders else noise)
        rows = [
            {"chain": str(s), "seed": s, "generation": g, "status": "ok", "a/b": float(values[s, g])}
            for s in range(5) for g in range(10)
        ]  # fmt: skip
        named += growths(rows, (), "a/b")[()].shape != "linear"
    assert named / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_growth_names_shapes_and_omits_the_unfinished() -> None:
    random = np.random.default_rng(6)
    rows = []
    for shape, curve in {**CURVES, "flat": np.full(10, 4.0)}.items():
        for seed in range(6):
            for g, value in enumerate(curve + 0.05 * random.normal(size=10)):
                if not (shape == "linear" and seed == 5 and g > 7):  # not finished
                    rows.append(
                        {
                            "chain": f"{shape}{seed}",
                            "seed": seed,
                            "generation": g,
                            "kind": shape,
                            "a/b": value,
                        }
                    )
    found = growths(rows, ("kind",), "a/b", range(6))
    assert {cell[0]: growth.shape for cell, growth in found.items()} == {
        **{shape: shape for shape in SHAPES}, "flat": "undecided"
    }  # fmt: skip
    assert (found["linear",].slope.absent, len(found["linear",].slope.values)) == (1, 5)
    assert found["linear",].slope.low < 0.5 < found["linear",].slope.high


def test_growth_misses_no_seed_of_another_cell() -> None:
    """Of studies that are compared each has its own seeds, where these are not the same."""
    rows = [
        {"study": study, "chain": f"{study}{seed}", "seed": seed, "generation": g, "a/b": g * (5.0 + seed)}
        for study, count in (("a", 3), ("b", 5))
        for seed in range(count)
        for g in range(4)
    ]
    few, all_of = growths(rows, ["study"], "a/b").values()
    assert (few.slope.total, few.slope.absent, all_of.slope.total) == (3, 0, 5)
    assert few.curvature is not None and few.curvature.absent == 0
    assert growths(rows, ["study"], "a/b", range(5))["a",].slope.absent == 2, "who is to be there is missed"
    (line, _) = growth_table(
        [{**row, "test/perplexity": row["a/b"], "status": "ok"} for row in rows], ["study"]
    )["lines"]
    assert line["slope"].endswith("(3 seeds)"), line


def test_what_is_not_told_apart_from_flat_is_undecided() -> None:
    """A slope of 5 +- 24 is not flat; where seeds disagree about the shape none is ahead."""

    def line(curves: list[Any]) -> dict[str, Any]:
        rows = [
            {"chain": str(seed), "seed": seed, "generation": g, "status": "ok", "test/nll": float(value)}
            for seed, curve in enumerate(curves)
            for g, value in enumerate(curve)
        ]
        return dict(growth_table(Rows.of(rows), (), range(len(curves)))["lines"][0])

    noise = np.random.default_rng(4)
    unlike = line([slope * G + noise.normal(size=10) for slope in (-3, 2, 16)])
    assert unlike["shape"] == "undecided" and unlike["slope"] == "4.9 ± 24 (3 seeds)"
    for level in (4.0, 0.1, 1e-7 / 3):
        assert line([np.full(10, level)] * 3)["shape"] == "flat"
    assert line([CURVES["linear"]] * 3)["lead"].startswith("linear: ")
    bent = CURVES["exponential"] + 0.1 * noise.normal(size=10)
    assert line([bent, -bent[::-1]])["lead"] == "none", "the one is exponential, its mirror image saturating"


def test_generations_until_a_threshold() -> None:
    curve = {0: 1.0, 1: 1.2, 2: 1.6, 4: 0.2}
    assert until(curve, 0.5) == 2 and until(curve, -0.5) == 4 and until(curve, 0.7) == math.inf
    assert until(curve, 0.3, first=1) == 1, "counted from the generation that it is compared with"
    assert until(curve, 0.7, ended=5) == 5 and until(curve, 0.5, ended=5) == 2
    assert until({1: 3.0}, 0.5) == math.inf, "without a first value nothing is known"
    assert until({0: 0.1, 1: 0.1 + 0.2}, 0.2) == 1, "rounding is no difference"


@pytest.mark.parametrize("count", [6, 9, 20])
def test_the_interval_of_a_median_covers_it(count: int) -> None:
    """Of values that scatter lopsidedly, a fifth of which never come about; at least 95 % of 2,000."""
    random, held = np.random.default_rng(8), 0
    truth = -math.log(1 - 0.5 / 0.8)
    for _ in range(2000):
        values = np.where(random.random(count) < 0.2, math.inf, random.exponential(size=count))
        _, low, high = middle(values.tolist())
        held += low <= truth <= high  # type: ignore[operator]
    assert held / 2000 >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 2000)
    assert middle([1, 2, 3, 4, 5]) == (3, None, None) and middle([1, math.inf] * 3)[0] == math.inf
    assert middle([5, 1, 2, 4, 3, 6]) == (3.5, 1, 6)


@pytest.mark.parametrize("seeds", [5, 20])
def test_the_interval_of_a_ratio_covers_it(seeds: int) -> None:
    """Two correlated means with a ratio of 3; what has no interval counts as covered, and is rare here."""
    random, held, without = np.random.default_rng(9), 0, 0
    for _ in range(3000):
        shared = random.normal(size=seeds)
        below = 2 + 0.5 * random.normal(size=seeds) + 0.3 * shared
        found = ratio_of_means((6 + random.normal(size=seeds) - shared).tolist(), below.tolist())
        without += found.low is None
        held += found.low is None or found.low <= 3 <= found.high  # type: ignore[operator]
    assert abs(held / 3000 - 0.95) <= 3 * math.sqrt(0.05 * 0.95 / 3000) and without < 30
    nothing = ratio_of_means(random.normal(size=seeds).tolist(), random.normal(size=seeds).tolist())
    assert nothing.value is not None and nothing.low is None, "what may be divided by 0 has no interval"


def test_exact_numbers_give_exact_rates() -> None:
    """y = 10 - 2 real - 0.5 synthetic: four synthetic ones buy what one real one buys."""

    def y(real: float, synthetic: float) -> float:
        return 10 - 2 * real - 0.5 * synthetic

    at, beside = (3.0, 1.0), [(5.0, 0.0), (3.0, 2.0)]
    values = {seed: tuple(seed + y(*place) for place in (at, *beside)) for seed in range(5)}
    assert exchange(at, beside, values).value == pytest.approx(4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one line"):
        exchange(at, [(4.0, 2.0), (5.0, 3.0)], values)  # type: ignore[arg-type]
    assert undoing(4, {seed: (1.0, 7.0 + seed * 0, 5.0) for seed in range(5)}).value == pytest.approx(12)


EXCHANGE = {
    "experiment": "worth",
    "data": {"source": "gaussian", "num_examples": 40, "dim": 20},
    "learner": {"kind": "gaussian", "estimator": "unbiased"},
    "regime": {"kind": "fresh_real", "synthetic_ratio": 0.5},
    "generations": 4,
    "tracking": {"wandb": "disabled"},
}


def squared_error(real: int, synthetic: int, generations: int) -> float:
    """Of the mean: that of the mixture of real examples and of the last fit's; variance 1 all along.

    E(g) = (s/n)^2 (E(g-1) + 1/s) + (r/n)^2 / r with n = r + s, and E(0) = 1/n.
    """
    n, found = real + synthetic, 1 / (real + synthetic)
    for _ in range(generations):
        found = (synthetic / n) ** 2 * found + synthetic / n**2 + real / n**2
    return found


@pytest.mark.slow
@pytest.mark.oracle
def test_the_value_of_real_data_is_that_of_theory(make_config: Make, tmp_path: Path) -> None:
    """Gaussian chains: at 20 real and 20 synthetic examples the limit of the squared error is
    (r + s) / (r (r + 2 s)), so one real example buys 1 + 2 c + 2 c^2 = 5 synthetic ones, c = s / r."""
    cells = [(40, 0.5), (50, 0.4), (50, 0.6)]
    axis = [{"data.num_examples": n, "regime.synthetic_ratio": ratio} for n, ratio in cells]
    counts = [(n - round(n * ratio), round(n * ratio)) for n, ratio in cells]
    where = [dict(item) for item in axis]
    statistic = {"metric": "gaussian/mean_sq_error", "of": "worth", "where": where[0], "beside": where[1:]}
    undone = {**statistic, "of": "undone", "beside": where[1:2]}
    claims = [
        {"text": "w", "source": "theory", "statistic": statistic, "above": 1.0},
        {"text": "u", "source": "theory", "statistic": undone, "above": 1.0},
    ]
    grid = {
        "data.num_examples": [40, 50],
        "regime.synthetic_ratio": [0.4, 0.5, 0.6],
        "seed": {"from": 0, "count": 1500},
    }
    config = make_config({**EXCHANGE, "grid": grid, "claims": claims})
    prepared, store = run_bundles(config, tmp_path / "root")
    worth, undo = judge(prepared, ledger.rows(prepared, store))
    base, more_real, more_synthetic = (squared_error(*count, 4) for count in counts)
    rate = (more_real - base) / (more_synthetic - base)
    assert worth.low < rate < worth.high < 2 * rate, describe(worth)
    assert rate == pytest.approx(5, rel=0.2), "near the slopes, at which it is 5 in the limit"
    undone = 10 * (base - 1 / 40) / (base - more_real)
    assert undo.low < undone < undo.high < 1.5 * undone, describe(undo)
    assert worth.verdict == undo.verdict == "reproduced"


def test_until_and_growth_are_claimed_in_a_study(make_config: Make, tmp_path: Path) -> None:
    """The log of the variance falls by 0.105 a generation at n = 20: by 1 after about 9.5, in a straight
    line."""
    until_1 = {"metric": "gaussian/log_variance", "of": "until", "threshold": -1.0}
    never = {**until_1, "threshold": 50.0}
    straight = {"metric": "gaussian/log_variance", "of": "curvature"}
    shape = {"metric": "gaussian/log_variance", "of": "growth", "shape": "exponential", "against": "linear"}
    # it has been some 0.1 / (2 x 0.105) above generation 0 before: the peak of a walk that drifts down
    drop = {"metric": "gaussian/log_variance", "of": "drop"}
    claims = [
        {"text": "t", "source": "theory", "statistic": drop, "between": [3.0, 4.5]},
        {"text": "t", "source": "theory", "statistic": until_1, "between": [3.0, 15.0]},
        {"text": "t", "source": "theory", "statistic": never, "above": 3.0},
        {"text": "t", "source": "theory", "statistic": straight, "between": [-0.01, 0.01]},
        {"text": "t", "source": "theory", "statistic": shape, "below": 5.0},
    ]
    config = make_config(
        {
            "experiment": "claims",
            "data": {"source": "gaussian", "num_examples": 20},
            "learner": {"kind": "gaussian"},
            "generations": 30,
            "tracking": {"wandb": "disabled"},
            "grid": {"seed": {"from": 0, "count": 60}},
            "claims": claims,
        }
    )
    prepared, store = run_bundles(config, tmp_path / "root")
    found = judge(prepared, ledger.rows(prepared, store))
    assert [item.verdict for item in found] == ["reproduced"] * 5, [describe(item) for item in found]
    assert describe(found[2])["found"] == "never [never, never]"
    prepared, store = run_bundles(config, tmp_path / "root", "grid.seed=[0, 1, 2, 3, 4]")
    few = judge(prepared, ledger.rows(prepared, store))[1]
    assert few.verdict == "undecided" and "6 are needed" in few.reason


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        ({"of": "until"}, "of: until needs a threshold"),
        ({"of": "change", "threshold": 0.5}, "of: change has no threshold"),
        ({"of": "until", "threshold": 0.0}, "0 is no change"),
        ({"of": "growth"}, "of: growth needs a shape"),
        ({"of": "growth", "shape": "linear"}, "growth needs 6 generations"),
        ({"of": "growth", "shape": "linear", "against": "linear"}, "another shape"),
        ({"of": "worth"}, "found 0 cells, of: worth has 2"),
        ({"of": "undone", "beside": [{"regime.synthetic_ratio": 1.0}]}, "more real examples"),
        (
            {"of": "worth", "beside": [{"regime.synthetic_ratio": 0.0}, {"regime.synthetic_ratio": 1.0}]},
            "not both in the same proportion",
        ),
        ({"of": "undone", "beside": [{"regime.synthetic_ratio": 0.3}]}, "no cell matches"),
    ],
)
def test_a_statistic_that_makes_no_sense_is_one_message(
    statistic: dict[str, Any], message: str, make_config: Make, tmp_path: Path
) -> None:
    claim = {"text": "t", "source": "s", "above": 0.0, "statistic": {
        "metric": "test/nll", "where": {"regime.synthetic_ratio": 0.5}, **statistic}}  # fmt: skip
    config = make_config(
        {
            **EXCHANGE,
            "regime": {"kind": "replace", "synthetic_ratio": 0.5},
            "generations": 3,
            "grid": {"regime.synthetic_ratio": [0.0, 0.5, 1.0]},
            "claims": [claim],
        }
    )
    done = harness("plan", config, "--root", tmp_path / "root")
    assert done.returncode == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert "config.yaml:" in done.stderr and "Traceback" not in done.stderr


def test_over_few_generations_it_is_said_which_way_it_bends() -> None:
    """Four generations are too few for AICc: a parabola whose seeds agree is bent, and a line is a line."""
    noise = np.random.default_rng(3)

    def shape(bend: float) -> str:
        rows = [
            {
                "seed": seed,
                "chain": str(seed),
                "generation": g,
                "a/b": g + bend * g * g + 0.01 * noise.normal(),
            }
            for seed in range(6)
            for g in range(4)
        ]
        return growths(rows, (), "a/b")[()].shape

    assert (shape(0.2), shape(0.0), shape(-0.1)) == ("ever faster", "linear", "ever slower")


@pytest.mark.parametrize("count", [3, 4, 5, 8, 40])
def test_rounding_bends_no_line_and_moves_no_level(count: int) -> None:
    """What seeds agree about is the last digit of a line's numbers; a bend of a millionth is one."""
    at = np.arange(count, dtype=float)

    def growth(curves: list[Any]) -> Any:
        rows = [
            {"chain": str(seed), "seed": seed, "generation": g, "a/b": float(value)}
            for seed, curve in enumerate(curves)
            for g, value in enumerate(curve)
        ]
        (found,) = growths(rows, (), "a/b").values()
        return found

    rates = (5.0, 5.1, 5.2, 0.3)
    lines = [20 + 0.3 * seed + rate * at for seed, rate in enumerate(rates)]
    assert growth(lines).shape == "linear" and growth(lines).curvature.values == array("d", [0.0] * 4)
    assert not curvatures(at, np.array([[0.1, -1e-9, 1e9]] * 2).T[:, :1] * (1 + at / 3)).any()
    bent = growth([line + 1e-6 * at**2 for line in lines])
    assert bent.curvature.mean == pytest.approx(2e-6, rel=1e-3)
    assert count > 5 or bent.shape == "ever faster", "of more generations AICc decides"
    level = [np.where(at % 2, 0.3, 0.1 + 0.2), np.where(at < 1, 0.3, 0.1 + 0.2)]
    assert np.ptp(level[0]) and growth(level).shape == "flat" and growth(level).slope.mean == 0


def test_the_median_of_a_slope_counts_diverged_as_worst() -> None:
    """Of a metric that is worse when lower diverged chains are lowest; leads and curvature have no end."""
    rows = [
        {"seed": seed, "generation": g, "status": "ok", "gaussian/log_variance": -0.1 * seed * g}
        for seed in range(5)
        for g in range(3)
    ]
    rows += [
        {"seed": 5 + n, "generation": 0, "status": "diverged", "gaussian/log_variance": None} for n in (0, 1)
    ]
    (line,) = growth_table(rows, [])["lines"]
    assert line["slope"] == "-0.2* (5 of 7 live, median -0.3)" and "median" not in line["curvature"]


def test_seeds_that_each_lack_a_generation_are_not_stacked() -> None:
    """Their numbers are of other generations, however many they are."""
    rows = [
        {
            "seed": seed,
            "generation": g,
            "status": "ok",
            "gaussian/log_variance": None if g == 1 + seed else 2.0 * g,
        }
        for seed in range(2)
        for g in range(4)
    ]
    (found,) = growths(rows, [], "gaussian/log_variance").values()
    assert found.slope.mean == pytest.approx(2.0) and (len(found.slope.values), found.slope.absent) == (1, 1)
