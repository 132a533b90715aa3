"""Verdicts: what is reproduced, contradicted and undecided, on data whose answer is known; critical ratios;
lost shares."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bundled import run_bundles
from conftest import TASK, TEXT, Make, harness, merged
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import digamma
from scipy.stats import multinomial

from harness.config.grid import expand
from harness.config.load import load_file
from harness.config.schema import Claim, Statistic
from harness.errors import ConfigError
from harness.metrics.catalogue import HEADLINES
from harness.reporting import ledger
from harness.reporting.analysis import critical_ratios, losses
from harness.reporting.claims import _of, compare, describe, judge
from harness.reporting.figures import metric_drawing
from harness.reporting.report import theory_lines
from harness.reporting.statistics import paired_shares
from harness.reporting.tables import critical_table
from harness.reporting.theory import expected
from harness.store import Store
from harness.study import Prepared, check_columns, open_study

COLLAPSE = {
    "text": "the variance collapses",
    "source": "theory",
    "statistic": {"metric": "gaussian/log_variance", "of": "slope"},
    "below": -0.02,
}
BASE = {
    "experiment": "claims",
    "data": {"source": "gaussian", "num_examples": 20},
    "learner": {"kind": "gaussian"},
    "generations": 30,
    "tracking": {"wandb": "disabled"},
}


def verdicts(config: Path, root: Path) -> list[Any]:
    prepared, store = run_bundles(config, root)
    return judge(prepared, ledger.rows(prepared, store))


def where(claim: dict[str, Any], cell: Any, **changes: Any) -> dict[str, Any]:
    return {
        **claim,
        **changes,
        "statistic": {**claim["statistic"], "where": cell, **changes.pop("statistic", {})},
    }


def test_what_collapses_is_reproduced_and_what_does_not_is_not(make_config: Make, tmp_path: Path) -> None:
    """Replace at n = 20 loses 0.105 of log variance a generation; trained on real data alone nothing
    collapses."""
    grid = {"regime.synthetic_ratio": [0.0, 1.0], "seed": {"from": 0, "count": 40}}
    cells = [{"regime.synthetic_ratio": 1.0}, {"regime.synthetic_ratio": 0.0}]
    claims = [where(COLLAPSE, cell) for cell in cells]
    claims.append({**COLLAPSE, "statistic": {**COLLAPSE["statistic"], "where": cells[0], "minus": cells[1]}})
    config = make_config(
        {**BASE, "regime": {"kind": "replace", "synthetic_ratio": 1.0}, "grid": grid, "claims": claims}
    )
    found = verdicts(config, tmp_path / "root")
    assert [item.verdict for item in found] == ["reproduced", "contradicted", "reproduced"]
    assert found[0].low < digamma(9.5) - np.log(10) < found[0].high, (
        "E ln of chi-square(19)/20, each generation"
    )
    assert abs(found[1].value) < 1e-12, "the same real examples every time"


def test_a_part_of_a_grid_decides_the_claims_about_it(make_config: Make, tmp_path: Path) -> None:
    """What --set leaves out of the grid, or cuts short, makes no claim wrong."""
    grid = {"regime.synthetic_ratio": [0.0, 1.0], "seed": {"from": 0, "count": 40}}
    claims = [where(COLLAPSE, {"regime.synthetic_ratio": ratio}) for ratio in (0.0, 1.0)]
    claims.append(
        where(COLLAPSE, {"regime.synthetic_ratio": 1.0}, statistic={"generation": 30, "of": "change"})
    )
    config = make_config(
        {**BASE, "regime": {"kind": "replace", "synthetic_ratio": 1.0}, "grid": grid, "claims": claims}
    )
    prepared, store = run_bundles(config, tmp_path / "root", "regime.synthetic_ratio=1.0", "generations=20")
    found = judge(prepared, ledger.rows(prepared, store))
    assert [item.verdict for item in found] == ["undecided", "reproduced", "undecided"]
    assert found[0].reason == "--set leaves its cells out" and "no record" in found[2].reason
    done = harness(
        "plan",
        config,
        "--root",
        tmp_path / "root",
        "--set",
        "regime.synthetic_ratio=0.5",
        "--set",
        "generations=3",
    )
    assert done.returncode == 0, done.stderr
    refused = harness(
        "plan", make_config({**BASE, "claims": claims}, "wrong.yaml"), "--root", tmp_path / "root"
    )
    assert refused.returncode == 2 and "no cell matches" in refused.stderr


@pytest.mark.parametrize(
    ("of", "value", "reason"),
    [
        ("ratio", 0.0, "generation 0 has 0, of which there is no ratio, in 6 of 6 seeds"),
        ("log_ratio", -2.0, "the ratio is not above 0, and has no logarithm, in 6 of 6 seeds"),
        ("change", math.nan, "no record of generation 9 has a finite test/nll there"),
    ],
)
def test_what_has_no_value_says_why(
    of: str, value: float, reason: str, make_config: Make, tmp_path: Path
) -> None:
    """Finite numbers are not called not finite."""
    claim = {**COLLAPSE, "statistic": {"metric": "test/nll", "of": of}}
    config = make_config(
        {**BASE, "generations": 9, "grid": {"seed": {"from": 0, "count": 6}}, "claims": [claim]}
    )
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "none"))
    scratch.cleanup()
    begins, ends = (1.0, value) if of == "change" else (value, 1.0)
    rows = [
        {"chain": chain.id, "seed": chain.seed, "generation": g, "status": "ok", "test/nll": number}
        for chain in prepared.chains for g, number in ((0, begins), (9, ends))
    ]  # fmt: skip
    assert judge(prepared, rows)[0].reason == reason


def test_what_diverges_later_is_alive_in_the_generation(make_config: Make, tmp_path: Path) -> None:
    """Asked for generation 4, a chain that diverges in 8 has come as far as one that lives: no way at all."""
    asked = {"metric": "test/nll", "generation": 4}
    until_1 = {**asked, "of": "until", "threshold": 1.0}
    lead = {**asked, "of": "lead", "than": "gaussian/log_variance"}
    claims = [{**COLLAPSE, "statistic": of} for of in (until_1, {**until_1, "generation": 8}, lead, asked)]
    config = make_config(
        {**BASE, "generations": 9, "grid": {"seed": {"from": 0, "count": 6}}, "claims": claims}
    )
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "none"))
    scratch.cleanup()
    rows = []
    for chain in prepared.chains:
        for g in range(10 if chain.seed % 2 else 9):
            dead = not chain.seed % 2 and g == 8
            place = {"chain": chain.id, "seed": chain.seed, "generation": g}
            values = {"gaussian/log_variance": chain.seed / 10 + (g == 4), "test/nll": chain.seed / 10}
            gone = {"status": "diverged", "gaussian/log_variance": None, "test/nll": None}
            rows.append({**place, **(gone if dead else {"status": "ok", **values})})
    until_4, until_8, moves, change = judge(prepared, rows)
    assert (until_4.value, until_4.seeds, until_4.reason) == (math.inf, 6, "")
    assert describe(until_4)["found"] == "never [never, never]"
    assert until_8.value == math.inf and until_8.low == 8, "by then three have come so far"
    assert (moves.value, moves.low, moves.seeds, moves.reason) == (-math.inf, -math.inf, 6, "")
    assert (change.seeds, change.reason) == (6, "")
    lacking = [
        row | ({"test/nll": None} if row["generation"] == 4 and row["seed"] < 2 else {}) for row in rows
    ]
    assert judge(prepared, lacking)[3].reason == "2 of 6 seeds have no finite value, or are not finished"


def test_few_seeds_and_values_not_finite_decide_nothing(make_config: Make, tmp_path: Path) -> None:
    config = make_config({**BASE, "grid": {"seed": [0, 1, 2, 3]}, "claims": [COLLAPSE]})
    (few,) = verdicts(config, tmp_path / "few")
    assert few.verdict == "undecided" and "4 seeds, 5 are needed" in few.reason
    nowhere = {**COLLAPSE, "statistic": {"metric": "test/nll"}}
    coins = {"data": {"source": "discrete", "probabilities": [0.5, 0.5], "num_examples": 20}}
    discrete = {**BASE, **coins, "learner": {"kind": "discrete"}, "claims": [nowhere]}
    (absent,) = verdicts(make_config(discrete), tmp_path / "absent")
    assert absent.verdict == "undecided" and absent.value is None
    singular = {"source": "gaussian", "dim": 9, "num_examples": 5}
    claim = {**COLLAPSE, "statistic": {"metric": "test/nll", "of": "change"}}
    config = make_config(
        {**BASE, "data": singular, "grid": {"seed": {"from": 0, "count": 9}}, "claims": [claim]}
    )
    (infinite,) = verdicts(config, tmp_path / "infinite")
    assert infinite.verdict == "undecided" and infinite.value is None


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(-5, 5))
def test_a_verdict_is_where_the_interval_lies(middle: float, half: float, bound: float) -> None:
    low, high = middle - half, middle + half
    base = {"text": "x", "source": "y", "statistic": {"metric": "m"}}
    above = compare(Claim.model_validate({**base, "above": bound}), low, high)
    below = compare(Claim.model_validate({**base, "below": bound}), low, high)
    assert above == ("reproduced" if low > bound else "contradicted" if high <= bound else "undecided")
    assert {above, below} != {"reproduced"} and (above == "reproduced") <= (below == "contradicted")


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_noise_alone_is_rarely_called_a_collapse(rate: float) -> None:
    """Records in which nothing happens: a claim at the truth itself is reproduced by at most 2.5 % of 2,000
    studies, + 4 errors."""
    random, wrong = np.random.Generator(np.random.PCG64(7)), 0
    claim = Claim.model_validate({"text": "x", "source": "y", "statistic": {"metric": "m"}, "above": 0.0})
    from harness.reporting.statistics import aggregate

    for _ in range(2000):
        found = aggregate(random.normal(size=5) * (1 + rate))
        assert found.low is not None and found.high is not None
        wrong += compare(claim, found.low, found.high) == "reproduced"
    assert wrong / 2000 < 0.025 + 4 * np.sqrt(0.025 * 0.975 / 2000)
    assert wrong > 10, "the interval is not so wide that nothing could ever be shown"


def test_a_change_is_counted_from_the_generation_that_is_named(make_config: Make, tmp_path: Path) -> None:
    """The log of a Gaussian chain's variance falls by E ln(chi-square(19)/20) a fit: half of it from
    generation 15 to 30."""
    claims = [
        {
            **COLLAPSE,
            "statistic": {"metric": "gaussian/log_variance", "of": "change", "baseline": first},
            "below": 0.0,
        }
        for first in (0, 15)
    ]
    config = make_config({**BASE, "grid": {"seed": {"from": 0, "count": 40}}, "claims": claims})
    prepared, store = run_bundles(config, tmp_path / "root")
    rows = ledger.rows(prepared, store)
    for found, first in zip(judge(prepared, rows), (0, 15), strict=True):
        assert found.low < (30 - first) * (digamma(9.5) - np.log(10)) < found.high  # type: ignore[operator]
        at = {
            g: np.mean([row["gaussian/log_variance"] for row in rows if row["generation"] == g])
            for g in (first, 30)
        }
        assert abs(found.value - (at[30] - at[first])) < 1e-12  # type: ignore[operator]


def test_a_drop_is_from_the_peak_to_the_last() -> None:
    drop, curve = Statistic(metric="task/pass_1", of="drop"), {0: 0.3, 1: 0.5, 2: 0.4, 3: 0.9}
    assert _of(curve, drop, 2, 0.0) == pytest.approx(0.1)
    assert _of(curve, drop, 3, 0.0) == 0 and _of(curve, drop, 4, 0.0) is None


def test_exceeding_generation_0_is_a_share_of_chains(make_config: Make, tmp_path: Path) -> None:
    """All chains' variance of the KDE grows (row 10): nearly all exceed; under the normal fit nearly none
    does."""
    grid = {
        "learner": [{"kind": "kde", "bandwidth": 1.0}, {"kind": "kde", "bandwidth": 0.01}],
        "seed": {"from": 0, "count": 30},
    }
    claim = {"text": "x", "source": "y", "statistic": {"metric": "kde/variance", "of": "exceeds_first"}}
    claims = [
        where(claim, {"learner.bandwidth": 1.0}, above=0.8),
        where(claim, {"learner.bandwidth": 0.01}, above=0.5),
    ]
    config = make_config({**BASE, "learner": {"kind": "kde"}, "grid": grid, "claims": claims})
    grown, shrunk = verdicts(config, tmp_path / "root")
    assert grown.verdict == "reproduced" and shrunk.verdict == "contradicted"
    assert 0 <= shrunk.low <= shrunk.high <= 1


def test_the_difference_of_two_shares_has_their_interval(make_config: Make, tmp_path: Path) -> None:
    """Five pairs that are alike are no certainty, and of six against none the claim about 0 is decided."""
    ratio = "regime.synthetic_ratio"
    statistic = {"metric": "test/nll", "of": "lost", "where": {ratio: 1.0}, "minus": {ratio: 0.0}}
    claims = [{"text": "x", "source": "y", "statistic": statistic, "above": above} for above in (0.9, 0.0)]
    base = {**BASE, "regime": {"kind": "replace", "synthetic_ratio": 1.0}, "generations": 1, "claims": claims}

    def judged(*differences: int) -> list[Any]:
        grid = {ratio: [0.0, 1.0], "seed": {"from": 0, "count": len(differences)}}
        prepared, scratch = open_study(make_config({**base, "grid": grid}), (), Store.read(tmp_path / "none"))
        scratch.cleanup()
        lost = {(float(cell), seed): (cell == 1) == (by > 0) for seed, by in enumerate(differences) if by
                for cell in (0, 1)}  # fmt: skip
        of = {chain.id: (prepared.axes(chain)[ratio], chain.seed) for chain in prepared.chains}
        return judge(prepared, [
            {"chain": chain, "seed": place[1], "generation": g, "status": "ok",
             "test/nll": float(g == 0 or not lost.get(place, False))}
            for chain, place in of.items() for g in (0, 1)
        ])  # fmt: skip

    all_of, some = judged(1, 1, 1, 1, 1)
    assert (all_of.value, all_of.verdict, some.verdict) == (1, "undecided", "reproduced")
    assert (some.low, some.high) == pytest.approx((0.1310, 1), abs=5e-5)
    none, of_none = judged(0, 0, 0, 0, 0, 0)
    assert (none.verdict, of_none.verdict) == ("contradicted", "undecided")
    assert none.low == pytest.approx(-none.high) and none.high == pytest.approx(0.3903, abs=5e-5)
    assert judged(-1, -1, 0, 1, -1, -1, -1)[1].value == pytest.approx(-4 / 7)


def test_the_interval_of_paired_shares_is_the_published_one() -> None:
    """Airway hyper-responsiveness of Bentur et al. 2009, -0.517 to -0.026 (Fagerland et al. 2014, Stat. Med.
    33:2850). It covers 95 % of the time on average, and 90 % at least where no pair is all but sure."""
    assert paired_shares(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    for count in (1, 5, 20):
        for more in range(count + 1):
            for fewer in range(count + 1 - more):
                low, high = paired_shares(more, fewer, count)
                assert -1 <= low <= (more - fewer) / count <= high <= 1 and low < high
                assert paired_shares(fewer, more, count) == pytest.approx((-high, -low))
    ends = {(b, c): paired_shares(b, c, 8) for b in range(9) for c in range(9 - b)}
    truths = [(x / 10, y / 10) for x in range(10) for y in range(10 - x)]
    held = [
        sum(
            multinomial.pmf((b, c, 8 - b - c), 8, (x, y, 1 - x - y))
            for (b, c), (low, high) in ends.items()
            if low - 1e-9 <= x - y <= high + 1e-9
        )
        for x, y in truths
    ]
    assert np.mean(held) >= 0.95 and min(held) >= 0.9


@pytest.mark.slow
def test_a_claim_must_name_one_cell_and_one_range(make_config: Make, tmp_path: Path) -> None:
    grid = {"data.num_examples": [10, 20]}
    cases = [
        ([{**COLLAPSE}], ("claims.0.statistic", "2 cells match")),
        ([where(COLLAPSE, {"data.num_examples": 30})], ("no cell matches", "10")),
        ([where(COLLAPSE, {"data.num_exmples": 10})], ("data.num_exmples", "num_examples")),
        (
            [where(COLLAPSE, {"data.num_examples": 10}, statistic={"generation": 50})],
            ("claims.0.statistic", "50", "0 to 30"),
        ),
        ([{**COLLAPSE, "above": 1.0}], ("exactly one of above, below or between",)),
        (
            [where({**COLLAPSE, "statistic": {"metric": "gaussian/log_varance"}}, {"data.num_examples": 10})],
            ("claims.0.statistic.metric: no record has the column 'gaussian/log_varance'", "log_variance"),
        ),
    ]
    for claims, words in cases:
        found = harness(
            "plan", make_config({**BASE, "grid": grid, "claims": claims}), "--root", tmp_path / "none"
        )
        assert found.returncode == 2, found.stdout
        assert all(word in found.stderr for word in words), found.stderr


@pytest.mark.parametrize(
    ("base", "changes", "metric", "why"),
    [
        (BASE, {}, "kde/variance", "it is of learner kde, not of gaussian"),
        (BASE, {}, "share/left", "it needs evaluate.ranges: {left: [from, to]}"),
        (BASE, {"evaluate.ranges": {"left": [-9, 0]}}, "share/left", ""),
        (BASE, {}, "test/nll", ""),
        (BASE, {}, "survival/count_1", "it needs evaluate.metrics: [survival]"),
        (BASE, {}, "pool/recall", "it is of regimes whose examples arrive unlabelled, not of replace"),
        (TEXT, {}, "drift/kl", "it needs evaluate.drift"),
        (TEXT, {"evaluate.drift": {}}, "drift/kl", ""),
        (TEXT, {}, "other/code/nll", "it needs evaluate.others"),
        (
            TEXT,
            {"evaluate.others": {"python": "python-stdlib"}},
            "other/code/nll",
            "evaluate.others has no 'code'; it has python",
        ),
        (TEXT, {"evaluate.others": {"python": "python-stdlib"}}, "other/python/nll", ""),
        (TEXT, {}, "test/nll/poems", "it needs evaluate.groups"),
        (TEXT, {}, "task/pass_1", "it needs data that are prompts (data.source: task, or data.kind: chat)"),
        (TEXT, {}, "judge/true_share", "it needs data that are prompts (data.source: task, or data"),
        (TASK, {}, "task/pass_4", ""),
        (TASK, {}, "task/kl_pretrained", "it needs evaluate.task.pretrained"),
    ],
)
def test_a_claim_is_about_what_a_cell_records(
    make_config: Make, base: dict[str, Any], changes: dict[str, Any], metric: str, why: str
) -> None:
    """What no record can have is said before anything runs, and not as a claim that stays open."""
    claim = {"text": "it falls", "source": "here", "statistic": {"metric": metric}, "below": 0.0}
    study = expand(load_file(make_config({**merged(base, changes), "claims": [claim]}), ()))
    with pytest.raises(ConfigError) if why else nullcontext() as raised:
        check_columns(study)
    if why:
        place = f"claims.0.statistic.metric: no record of the cell has the column {metric}: {why}"
        assert place in str(raised.value)


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        ({"where": {"seed": 0, "data.num_examples": 10}}, "seed is the same in all cells"),
        ({"minus": {"data.num_examples": 10}}, "the cell of where: their difference is always 0"),
        ({"of": "change", "generation": 0}, "of: change compares generation 0 with itself"),
        ({"of": "ratio", "generation": 3, "baseline": 3}, "of: ratio compares generation 3 with itself"),
        ({"of": "change", "baseline": 30}, "of: change compares generation 30 with itself"),
    ],
)
def test_a_claim_that_can_only_come_out_one_way(
    make_config: Make, tmp_path: Path, statistic: dict[str, Any], message: str
) -> None:
    """It would be about all seeds where it names one, or be 0 whatever is measured."""
    claim = {
        **COLLAPSE,
        "statistic": {**COLLAPSE["statistic"], "where": {"data.num_examples": 10}, **statistic},
    }
    grid = {"data.num_examples": [10, 20], "seed": [0, 1]}
    config = make_config({**BASE, "grid": grid, "claims": [claim]})
    with pytest.raises(ConfigError, match=message):
        open_study(config, (), Store.read(tmp_path / "absent"))


def test_claims_change_no_key(make_config: Make, tmp_path: Path) -> None:
    run_bundles(make_config(BASE), tmp_path / "root")
    before = sorted(path.name for path in (tmp_path / "root" / "bundles").iterdir())
    run_bundles(make_config({**BASE, "claims": [COLLAPSE]}), tmp_path / "root")
    assert sorted(path.name for path in (tmp_path / "root" / "bundles").iterdir()) == before


def test_a_critical_ratio_is_found_where_it_was_put() -> None:
    """Worsening = ratio - 0.4 + noise around a tolerance of 0.1: it crosses at 0.5."""
    random = np.random.Generator(np.random.PCG64(3))
    rows = []
    for ratio in np.linspace(0, 1, 9):
        for seed in range(40):
            first = 1 + 0.1 * random.normal()
            rows.append(
                {
                    "regime.synthetic_ratio": ratio,
                    "kind": "a",
                    "seed": seed,
                    "generation": 0,
                    "test/nll": first,
                }
            )
            last = first + ratio - 0.4 + 0.02 * random.normal()
            rows.append(
                {
                    "regime.synthetic_ratio": ratio,
                    "kind": "a",
                    "seed": seed,
                    "generation": 5,
                    "test/nll": last,
                }
            )
    (found,) = critical_ratios(rows, ["kind", "regime.synthetic_ratio"], "test/nll")
    assert (
        found.low < 0.4 + found.tolerance < found.high and abs(found.ratio - 0.5) < 0.05 and not found.beyond
    )
    flat = [{**row, "test/nll": 1.0 + 0.01 * (row["seed"] % 3)} for row in rows]
    (never,) = critical_ratios(flat, ["kind", "regime.synthetic_ratio"], "test/nll")
    assert never.beyond and never.ratio == 1.0 and never.low == never.high == np.inf


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        (
            name,
            -1
            if name
            in (
                "gaussian/log_variance",
                "regression/accuracy",
                "discrete/entropy",
                "vae/latent_std",
                "task/pass_1",
            )
            else 1,
        )
        for name in HEADLINES
    ],
)
def test_worse_is_what_each_headline_calls_worse(metric: str, direction: int) -> None:
    """Moving by the ratio in the bad direction crosses a tolerance of 0.3 at 0.3; in the good one it never
    does."""
    for sign in (direction, -direction):
        rows = [
            {
                "regime.synthetic_ratio": ratio,
                "seed": seed,
                "generation": g,
                metric: 0.3 * 2**0.5 * seed + sign * ratio * g,
            }
            for ratio in (0.0, 0.5, 1.0)
            for seed in (0, 1)
            for g in (0, 1)
        ]
        (found,) = critical_ratios(rows, ["regime.synthetic_ratio"], metric)
        assert found.tolerance == pytest.approx(0.3) and found.beyond == (sign != direction)
        assert found.beyond or found.ratio == pytest.approx(0.3)


def test_an_interval_end_that_no_ratio_reaches_is_no_number() -> None:
    """At the largest ratio half of the seeds worsen by 4, half by 0: the mean of a resample is under a
    tolerance of 1.5 in some."""
    first = [0.0, 3.0] * 4  # a standard deviation of 1.604
    rows = []
    for ratio in (0.0, 0.5, 0.9):
        for seed in range(8):
            worse = 4.0 * (seed // 2 % 2) if ratio == 0.9 else 0.0
            for generation, value in ((0, first[seed]), (3, first[seed] + worse)):
                rows.append(
                    {
                        "regime.synthetic_ratio": ratio,
                        "seed": seed,
                        "generation": generation,
                        "test/nll": value,
                    }
                )
    (found,) = critical_ratios(rows, ["regime.synthetic_ratio"], "test/nll")
    tolerance = float(np.std(first, ddof=1))
    assert found.tolerance == pytest.approx(tolerance) and not found.beyond
    assert found.ratio == pytest.approx(0.5 + 0.4 * tolerance / 2), "the mean worsening rises from 0 to 2"
    assert 0.5 < found.low < found.ratio and found.high == np.inf
    (line,) = critical_table(rows, ["regime.synthetic_ratio"])["lines"]
    assert line["ratio"].endswith("beyond the grid]")


def test_lost_shares_by_seed() -> None:
    rows = [
        {
            "cell": "a",
            "seed": seed,
            "generation": g,
            "share/blue": max(0.0, 0.3 - 0.1 * g * (seed + 1)),
            "share/red": 0.5,
        }
        for seed in (0, 1)
        for g in range(3)
    ]
    found = {item.share: item for item in losses(rows, ["cell"])}
    assert dict(found["blue"].lost) == {0: None, 1: 2} and found["red"].text == "in none of 2"
    assert found["blue"].by_seed == "0: never, 1: 2"
    back = [
        {"cell": "a", "seed": 0, "generation": g, "share/blue": share}
        for g, share in enumerate((0.1, 0.0, 0.2, 0.0, 0.0))
    ]
    assert dict(losses(back, ["cell"])[0].lost) == {0: 3}, "a share that comes back was not lost"
    # what is 0 just now may come back as well, where the chain goes on
    begun = [{**row, "seed": seed} for seed, far in ((1, 2), (2, 3)) for row in back[:far]]
    ended = [{**row, "seed": 3} for row in back[:2]]
    ended.append({"cell": "a", "seed": 3, "generation": 2, "status": "diverged", "share/blue": None})
    (found_of,) = losses([*back, *begun, *ended], ["cell"])
    assert dict(found_of.lost) == {0: 3, 3: 1} and dict(found_of.open) == {1: 0, 2: 2}
    assert found_of.text == "in 2 of 2; median generation 2, 1 to 3; 2 not finished"
    assert found_of.by_seed == "0: 3, 1: not by 0, 2: not by 2, 3: 1"


@pytest.mark.parametrize(
    ("changes", "metric"),
    [
        ({}, "gaussian/trace_ratio"),
        ({}, "gaussian/log_variance"),
        ({"learner.estimator": "unbiased"}, "gaussian/mean_sq_error"),
        ({"regime": {"kind": "accumulate"}}, "gaussian/trace_ratio"),
        (
            {"data": {"source": "linear", "num_examples": 60}, "learner": {"kind": "linear_regression"}},
            "regression/test_error",
        ),
        (
            {"data": {"source": "discrete", "outcomes": 5}, "learner": {"kind": "discrete"}},
            "discrete/heterozygosity",
        ),
        ({"learner": {"kind": "kde", "bandwidth": 0.5}}, "kde/variance"),
    ],
)
def test_the_dashed_lines_go_through_the_records(
    make_config: Make, tmp_path: Path, changes: dict[str, Any], metric: str
) -> None:
    """The report's theory against what the learners do: 400 chains, 4 standard errors, every third
    generation."""
    config = make_config({**BASE, "generations": 9, "grid": {"seed": {"from": 0, "count": 400}}}, **changes)
    prepared, store = run_bundles(config, tmp_path / "root")
    assert isinstance(prepared, Prepared)
    line = expected(prepared.study.base, metric)
    assert line is not None and len(line) == 10
    frame = pd.DataFrame(ledger.rows(prepared, store))
    for generation in (0, 3, 9):
        values = frame[frame.generation == generation][metric].to_numpy(dtype=float)
        assert abs(values.mean() - line[generation]) < 4 * values.std(ddof=1) / 20


@pytest.mark.slow
def test_the_report_shows_verdicts_theory_and_losses(make_config: Make, tmp_path: Path) -> None:
    data = {"source": "discrete", "probabilities": [0.9, 0.1], "num_examples": 20}
    claim = {
        "text": "<b>blue</b> dies",
        "source": "drift",
        "statistic": {"metric": "share/outcome_1", "of": "change"},
        "below": 0.5,
    }
    config = make_config(
        {
            **BASE,
            "data": data,
            "learner": {"kind": "discrete"},
            "grid": {"seed": list(range(6))},
            "claims": [claim],
        }
    )
    prepared, store = run_bundles(config, tmp_path / "root")
    done = harness("report", config, "--root", tmp_path / "root")
    assert done.returncode == 0, done.stderr
    rows, metric = ledger.rows(prepared, store), "discrete/heterozygosity"
    for lines in (theory_lines(prepared, metric), None):
        drawing = metric_drawing(rows, [], metric, lines)
        assert drawing is not None and ("dashed lines: theory" in drawing[0].get_suptitle()) == bool(lines)
    assert "reproduced" in done.stdout
    page = next((tmp_path / "root").glob("experiments/*/report/report.html")).read_text()
    assert "reproduced" in page and "&lt;b&gt;blue" in page and "<b>blue" not in page
    assert "What is lost, and when" in page and "outcome_1" in page
