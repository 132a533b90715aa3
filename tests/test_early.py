"""What moves first, and which rare outcomes survive."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from bundled import at, run_bundles, table
from chains import open_prepared
from scipy import stats

from harness.components.survival import BANDS, column
from harness.config.schema import Claim
from harness.errors import InputError
from harness.metrics.survival import survival
from harness.records import Examples
from harness.registry import Known
from harness.reporting import ledger
from harness.reporting.claims import compare, judge
from harness.reporting.early import early_table, first_moves
from harness.reporting.rows import Rows

REPLACE = {"kind": "replace", "synthetic_ratio": 1.0}
DISCRETE: dict[str, Any] = {
    "experiment": "early",
    "data": {"source": "discrete", "outcomes": 400, "num_examples": 2000, "stratified": True},
    "learner": {"kind": "discrete"},
    "regime": REPLACE,
    "evaluate": {"metrics": ["survival"], "examples": 2000},
    "generations": 9,
    "tracking": {"wandb": "disabled"},
}


class Given:
    """Real data that are a few given examples."""

    def __init__(self, values: Any) -> None:
        self.examples = Examples.full(np.asarray(values))
        self.num_examples = len(self.examples)

    def real(self, seed: int, count: int) -> Examples:
        return self.examples.take(slice(count))


def known(values: Any) -> Known:
    return Known(Given(values), 0, 0, np.zeros(0))


def test_survival_by_hand() -> None:
    """Tokens 1 (once), 2 (twice), 3 (once) and 4 (four times) are real; 1, 4 and an unknown 9 are written."""
    real = np.array([[1, 2, 2, 3], [4, 4, 4, 4]], dtype=np.int32)
    corpus = Examples.full(np.array([[1, 4, 9, 9]], dtype=np.int32))
    found = survival(corpus, known(real))
    assert found[column(1, 2)] == 0.5 and found[column(2, 4)] == 0.0 and found[column(4, 8)] == 1.0
    assert found[column(8, 16)] == 1.0, "nothing is there to lose"
    assert set(found) == {column(low, high) for low, high in zip(BANDS, BANDS[1:], strict=False)}
    padded = Examples(np.array([[1, 3, 2]], dtype=np.int32), np.array([1], dtype=np.int32))
    assert survival(padded, known(real))[column(1, 2)] == 0.5, (
        "what lies behind an example's end is none of it"
    )


@pytest.mark.oracle
def test_outcomes_survive_in_corpora_as_theory_says() -> None:
    """Of 400 outcomes with 5 examples each, 1 - (1 - s)^5 are in the corpus of generation g, s <- 1 - exp(-s)
    g + 1 times from 1; 60 chains."""
    frame = table({**DISCRETE, "grid": {"seed": {"from": 0, "count": 60}}})
    alive = 1.0
    for generation in range(10):
        alive = 1 - math.exp(-alive)
        left = at(frame, "survival/count_4_7", generation)
        # offspring are multinomial, not Poisson: a relative difference of 1 / N a generation
        error = 4 * left.std(ddof=1) / math.sqrt(60) + (generation + 1) / 2000
        assert abs(left.mean() - (1 - (1 - alive) ** 5)) < error
    assert (frame["survival/count_1"] == 1).all(), "no outcome has one example"


def test_a_move_is_out_of_the_scatter_of_one_more_seed() -> None:
    firsts = [1.0, 2.0, 3.0, 4.0]
    reach = stats.t.ppf(0.975, 3) * np.std(firsts, ddof=1) * math.sqrt(1 + 1 / 4)
    curves = {
        0: {0: 1.0, 1: 2.5 + reach * 0.99, 2: 2.5 + reach * 1.01},
        1: {0: 2.0, 1: 2.5 - reach * 1.01, 2: 2.0},
        2: {0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0},
        3: {0: 4.0, 1: 4.0, 3: 99.0},
    }
    assert first_moves(curves) == {0: 2, 1: 1, 2: math.inf, 3: 3}
    assert first_moves(curves, last=1) == {0: math.inf, 1: 1, 2: math.inf, 3: math.inf}
    assert first_moves({seed: curves[seed] for seed in (0, 1)}) == {}
    short = {**curves, 2: {0: 3.0, 1: 3.0}}
    assert first_moves(short) == {0: 2, 1: 1, 3: 3}, "one that has not come to the end may yet move"


def test_the_chance_of_moving_by_chance_is_what_it_says() -> None:
    """One more generation of the same scatter is outside with 5 %: 20 seeds, 2,000 times."""
    random = np.random.default_rng(3)
    share = np.mean(
        [
            np.isfinite(first_moves({s: {0: a, 1: b} for s, (a, b) in enumerate(pairs)})[0])
            for pairs in random.normal(size=(2000, 20, 2))
        ]
    )
    assert abs(share - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 2000)


def test_claims_and_reports_say_what_moves_first(tmp_path: Path) -> None:
    """Of many outcomes the rare ones go first."""
    statistic = {"metric": "survival/count_4_7", "of": "lead", "than": "survival/count_8_15"}
    claims = [{"text": "rare ones go no later", "source": "expected", "statistic": statistic, "above": -0.5}]
    data = {"source": "discrete", "outcomes": 400, "num_examples": 2000}
    config = {**DISCRETE, "data": data, "claims": claims, "grid": {"seed": {"from": 0, "count": 8}}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    prepared, store = run_bundles(path, tmp_path / "root")
    rows = ledger.rows(prepared, store)
    [found] = judge(prepared, rows)
    frame = pd.DataFrame(rows)

    def moves(metric: str) -> dict[int, float]:
        pivot = frame.pivot_table(index="seed", columns="generation", values=metric)
        return first_moves({int(seed): row.to_dict() for seed, row in pivot.iterrows()})

    mine, other = moves("survival/count_4_7"), moves("survival/count_8_15")
    leads = [other[seed] - mine[seed] for seed in mine if math.isfinite(mine[seed])]
    assert len(leads) == 8 and found.value == np.median(leads) and found.value > 0
    assert found.verdict == "reproduced"
    [line] = early_table(Rows.of(rows), ())
    assert line["cell"] == "the only cell"
    first = line["moves"][0]
    assert "share of outcomes of 4 to 7 real occurrences" in first["metrics"] and first["generation"] == "1"


def test_nothing_is_decided_by_chains_that_are_not_finished(tmp_path: Path) -> None:
    """Nor by those that have ended: of none of them is it known when the other metric would have moved."""
    statistic = {"metric": "discrete/outcomes", "of": "lead", "than": "discrete/entropy"}
    claims = [{"text": "x", "source": "y", "statistic": statistic, "above": 0}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**DISCRETE, "claims": claims, "grid": {"seed": {"from": 0, "count": 6}}}))
    prepared, _ = open_prepared(path, tmp_path / "root")

    def rows(last: int, status: str) -> list[dict[str, Any]]:
        return [
            {"chain": chain.id, "seed": chain.seed, "generation": g,
             "status": status if g == last else "ok",
             "discrete/outcomes": 400.0 - chain.seed - 99 * g, "discrete/entropy": 5.0 + chain.seed}
            for chain in prepared.chains for g in range(last + 1)
        ]  # fmt: skip

    for last, status, seeds in ((2, "ok", 0), (3, "diverged", 0), (9, "ok", 6)):
        [found] = judge(prepared, rows(last, status))
        assert (found.seeds, found.verdict) == (seeds, "reproduced" if seeds else "undecided")

    def of(generations: int, still: int, seeds: int = 6) -> str:
        """Why nothing is decided where in so many seeds neither metric moves."""
        chosen = [chain for chain in prepared.chains if chain.seed < seeds]
        found = rows(generations, "ok")
        for row in found:
            if row["seed"] < still:
                row["discrete/outcomes"] = 400.0 - row["seed"]
        return judge(prepared, [row for row in found if row["chain"] in {c.id for c in chosen}])[0].reason

    assert of(9, 0, 2) == (
        "2 of 6 seeds with a finite discrete/outcomes in generation 0, 3 are needed (for a verdict 6)"
    )
    assert of(9, 1) == "neither metric moves in 1 of 6 seeds"
    assert of(9, 6) == "neither metric moves in 6 of 6 seeds"
    assert of(9, 2, 5) == (
        "neither metric moves in 2 of 6 seeds; 1 of 6 seeds have no finite value, or are not finished"
    )
    assert of(8, 6) == "no record of generation 9 has a finite discrete/outcomes there"
    prepared, _ = open_prepared(path, tmp_path / "root", "grid.seed=[0, 1]")
    assert of(9, 0) == "2 seeds, 3 are needed (for a verdict 6)"
    prepared, _ = open_prepared(path, tmp_path / "root")
    turned = Claim(text="x", source="y", statistic=prepared.study.base.claims[0].statistic, below=0.0)
    assert compare(turned, -math.inf, -2.0) == "reproduced" and compare(turned, -math.inf, 1.0) == "undecided"
    assert compare(turned, 1.0, math.inf) == "contradicted"


@pytest.mark.parametrize(
    ("statistic", "message"),
    [
        ({"metric": "discrete/entropy", "of": "lead"}, "of: lead needs a than"),
        ({"metric": "discrete/entropy", "of": "last", "than": "test/nll"}, "of: last has no than"),
        (
            {"metric": "discrete/entropy", "of": "lead", "than": "test/nll", "minus": {}},
            "lead compares two metrics already",
        ),
    ],
)
def test_one_message(tmp_path: Path, statistic: dict[str, Any], message: str) -> None:
    claims = [{"text": "x", "source": "y", "statistic": statistic, "above": 0}]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**DISCRETE, "claims": claims}))
    with pytest.raises(InputError, match=message):
        run_bundles(path, tmp_path / "root")
