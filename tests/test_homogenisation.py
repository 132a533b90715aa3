"""How alike corpora are: values that follow from the definitions, and the report against real data."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chains import open_prepared, run_all
from conftest import GAUSSIAN, TEXT, Make, merged
from hypothesis import given
from hypothesis import strategies as st
from test_metrics import examples

from harness.metrics.homogenisation import effective_members, energy_distance, jaccard, jensen_shannon
from harness.records import Examples
from harness.reporting.homogenisation import (
    _TOKEN_MEASURES,
    MAX_PAIRS,
    SPLITS,
    _baseline,
    choose,
    compare,
    spoken_group,
    table,
    to_csv,
)
from harness.reporting.statistics import aggregate_pairs
from harness.store import Store

BUDGET = 10_000
rows = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=8)


def grams(lists: list[list[int]], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(items[i : i + n]) for items in lists for i in range(len(items) - n + 1))


@given(rows, rows, st.integers(1, 4))
def test_token_measures_are_those_of_a_plain_count(
    first: list[list[int]], second: list[list[int]], n: int
) -> None:
    a, b, p, q = examples(first), examples(second), grams(first, n), grams(second, n)
    divergence, overlap = jensen_shannon(a, b, n, BUDGET), jaccard(a, b, n, BUDGET)
    if p or q:
        assert overlap == pytest.approx(len(p.keys() & q.keys()) / len(p.keys() | q.keys()))
        assert overlap == jaccard(b, a, n, BUDGET)
    else:
        assert math.isnan(overlap)
    if not p or not q:
        assert math.isnan(divergence)
        return
    expected = (
        0.0  # half of each distribution's relative entropy to their mean, which is the other way to write it
    )
    for gram in p.keys() | q.keys():
        one, other = p[gram] / p.total(), q[gram] / q.total()
        for share in (one, other):
            expected += share / 2 * math.log2(2 * share / (one + other)) if share else 0.0
    assert divergence == pytest.approx(expected, abs=1e-9)
    assert divergence == pytest.approx(jensen_shannon(b, a, n, BUDGET), abs=1e-12)


@given(rows, st.integers(1, 3))
def test_equal_corpora_are_at_0_and_disjoint_ones_far(lists: list[list[int]], n: int) -> None:
    a = examples([items * 4 for items in lists])
    other = examples([[token + 6 for token in items * 4] for items in lists])
    assert jensen_shannon(a, a, n, BUDGET) == pytest.approx(0, abs=1e-12) and jaccard(a, a, n, BUDGET) == 1
    assert jensen_shannon(a, other, n, BUDGET) == pytest.approx(1) and jaccard(a, other, n, BUDGET) == 0


@given(rows, rows, st.integers(1, 3))
def test_two_members_are_as_many_as_their_divergence_says(one: Any, two: Any, n: int) -> None:
    """ln beta is the Jensen-Shannon divergence: two corpora are 2^bits members, whatever their order."""
    a, b = examples([items * 4 for items in one]), examples([items * 4 for items in two])
    budget = min(int(a.lengths.sum()), int(b.lengths.sum()))
    alpha, gamma, beta = effective_members((a, b), n, budget)
    assert beta == pytest.approx(2 ** jensen_shannon(a, b, n, budget), nan_ok=True)
    assert gamma == pytest.approx(alpha * beta, nan_ok=True)


def test_members_that_have_nothing_in_common_are_all_different() -> None:
    corpora = [examples([[10 * member + token for token in range(4)]]) for member in range(3)]
    assert effective_members(corpora, 1, BUDGET) == pytest.approx((4, 12, 3))
    assert effective_members([corpora[0]] * 3, 1, BUDGET) == pytest.approx((4, 4, 1))


def test_only_the_budget_is_read() -> None:
    a, b = examples([[1, 2, 3], [4, 4, 4]]), examples([[1, 2, 3], [5, 5, 5]])
    assert jensen_shannon(a, b, 1, 3) == 0 and jaccard(a, b, 2, 3) == 1
    assert jensen_shannon(a, b, 1, 6) == pytest.approx(0.5) and jaccard(a, b, 1, 6) == pytest.approx(3 / 5)


def test_energy_distance_by_hand_and_against_its_expectation() -> None:
    x, y = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    across = (0 + 1 + 5 + math.hypot(3, 3)) / 4
    assert energy_distance(x, y) == pytest.approx(2 * across - 5 - 1)
    assert energy_distance(x, y) == energy_distance(y, x)
    rng = np.random.default_rng(0)
    same = [energy_distance(*rng.standard_normal((2, 50, 3))) for _ in range(200)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(200), (
        "unbiased: 0 on average for one distribution"
    )
    # |X| of N(0, s) has mean s sqrt(2/pi): for N(0, 1) and N(0, 4), 2 sqrt(5) - sqrt(2) - sqrt(8) times
    # sqrt(2/pi).
    wide = [
        energy_distance(rng.standard_normal((100, 1)), 2 * rng.standard_normal((100, 1))) for _ in range(200)
    ]
    expected = math.sqrt(2 / math.pi) * (2 * math.sqrt(5) - math.sqrt(2) - math.sqrt(8))
    assert np.mean(wide) == pytest.approx(expected, abs=4 * np.std(wide) / math.sqrt(200))


def test_equal_samples_of_numbers_are_as_near_as_samples_can_be() -> None:
    """With y = x the cross term has n zero distances that the others leave out: the value is -2/n of the mean
    distance."""
    x = np.random.default_rng(1).standard_normal((40, 2))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert energy_distance(x, x) == pytest.approx(-2 / 40 * distances.sum() / (40 * 39))


# --- the report ---------------------------------------------------------------------------------------------


def test_a_pair_of_real_samples_lies_where_the_baseline_says() -> None:
    """Of pairs of fresh samples of one distribution, about 95 % lie in the baseline's range (it has 40
    splits: allow 80 %)."""
    rng = np.random.default_rng(3)
    pool = Examples.full(rng.zipf(1.5, (4000, 32)).clip(max=500).astype(np.int32))
    for name, found in _baseline(pool, 100, 3000, _TOKEN_MEASURES).items():
        assert found.low is not None and found.high is not None and len(found.values) == SPLITS
        fresh = [Examples.full(rng.zipf(1.5, (100, 32)).clip(max=500).astype(np.int32)) for _ in range(40)]
        values = [_TOKEN_MEASURES[name](a, b, 3000) for a, b in itertools.pairwise(fresh)]
        assert np.mean([found.low <= value <= found.high for value in values]) > 0.8
        other = Examples.full(rng.zipf(2.5, (100, 32)).clip(max=500).astype(np.int32))
        assert not found.low <= _TOKEN_MEASURES[name](fresh[0], other, 3000) <= found.high


def test_the_bootstrap_over_pairs_covers_the_mean_of_chains() -> None:
    """Values x_a + x_b have the mean 2 E x. Pairs share chains: of 200 studies of 12 chains, some 95 % of
    intervals hold it."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        x = rng.normal(1.0, 1.0, 12)
        pairs = {(f"{a:02d}", f"{b:02d}"): x[a] + x[b] for a, b in itertools.combinations(range(12), 2)}
        found = aggregate_pairs(pairs, rng)
        assert found.mean == pytest.approx(2 * x.mean()) and found.low is not None and found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert 170 <= covered <= 199
    alone = aggregate_pairs({("a", "b"): 0.5, ("a", "c"): math.nan}, rng)
    assert (alone.mean, alone.low, alone.missing) == (0.5, None, 1)
    assert aggregate_pairs({("a", "b"): math.nan}, rng).mean is None


def copied(tmp_path: Path, grid: dict[str, Any], rewrite: Any) -> tuple[Any, Store]:
    """A study of the normal distribution, each corpus replaced by what ``rewrite`` makes of its generation
    and chain."""
    path = tmp_path / "config.yaml"
    changes = {
        "data.num_examples": 60,
        "data.dim": 2,
        "generations": 2,
        "grid": grid,
        "resources.bundled": False,
    }
    path.write_text(yaml.safe_dump(merged(GAUSSIAN, changes)))
    prepared, store = run_all(path, tmp_path / "root")
    for chain in prepared.lineage.chains:
        for generation, key in enumerate(chain.nodes):
            corpus = prepared.lineage.nodes[key].corpus
            for shard in (store.root / "corpora" / corpus).glob("*.parquet"):
                shard.unlink()
            store.corpora.append(corpus, 0, Examples.full(rewrite(generation, chain)))
    return prepared, store


def test_chains_that_write_the_same_are_nearer_than_samples(tmp_path: Path) -> None:
    """Generation 0: fresh real samples. Generation 1: all chains write one sample. Generation 2: each its own
    place."""
    rng = np.random.default_rng(7)
    same = rng.standard_normal((60, 2))
    places = iter(range(0, 3000, 50))

    def rewrite(generation: int, chain: Any) -> Any:
        return [rng.standard_normal((60, 2)), same, rng.standard_normal((60, 2)) + next(places)][generation]

    prepared, store = copied(
        tmp_path,
        {"seed": [0, 1, 2, 3, 4], "regime": [{"kind": "accumulate"}, {"kind": "replace_grown"}]},
        rewrite,
    )
    (found,) = compare(prepared, store)
    assert found.title == "" and list(found.lines) == ["energy"] and set(found.sizes.values()) == {60}
    assert found.pairs == {
        "other seed: kind accumulate": 10,
        "other seed: kind replace_grown": 10,
        "other regime.kind": 20,
    }
    baseline = found.baseline["energy"][0]
    distance = np.linalg.norm(same[:, None] - same[None], axis=-1).sum() / (60 * 59)
    for group, curve in found.lines["energy"].items():
        assert (
            all(baseline.low < value < baseline.high for value in curve[0].values)
            or group == "other regime.kind"
        )
        assert curve[1].values == pytest.approx([-2 / 60 * distance] * len(curve[1].values)), (
            "equal samples: see above"
        )
        assert curve[2].low > 40 > baseline.high
    text = table(found)
    assert text["generations"] == [0, 1, 2] and len(text["lines"]) == 4
    assert {line["pairs"] for line in text["lines"]} == {"40 of 40", "10 of 10", "12 of 20"}
    lines = to_csv([found]).decode().splitlines()
    assert lines[0].startswith("data,measure,group") and len(lines) == 1 + 3 * 4


def test_members_are_compared_at_one_time(tmp_path: Path) -> None:
    """Who arrives late has its generation 0 beside the others' generation of that time."""
    members = {"a": {}, "b": {}, "late": {"arrives": 2}, "gone": {"retires": 1}}
    changes = {
        "data.num_examples": 120,
        "regime": {"kind": "replace", "synthetic_ratio": 1.0},
        "generations": 3,
        "population": {"members": members},
        "resources.bundled": False,
        "grid": {"seed": [0]},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(merged(GAUSSIAN, changes)))
    prepared, store = run_all(path, tmp_path / "root")
    (found,) = compare(prepared, store)
    [curve] = found.lines["energy"].values()
    count = found.sizes[0]
    chains = {prepared.axes(chain)["member"]: chain for chain in prepared.lineage.chains}
    spans = {"a": range(4), "b": range(4), "late": range(2, 4), "gone": range(2)}
    for time in range(4):
        corpora = [
            store.corpora.load(prepared.lineage.nodes[chains[name].nodes[time - span[0]]].corpus, count)
            for name, span in spans.items()
            if time in span
        ]
        distances = [energy_distance(a.values, b.values) for a, b in itertools.combinations(corpora, 2)]
        assert len(distances) == 3 and sorted(curve[time].values) == pytest.approx(sorted(distances))


def test_pairs_are_a_fixed_subset_and_the_notes_say_so(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    estimators = ["mle", "unbiased"]
    grid = {"seed": {"from": 0, "count": 25}, "learner.estimator": estimators}
    path.write_text(yaml.safe_dump(merged(GAUSSIAN, {"grid": grid, "resources.bundled": False})))
    prepared, _ = open_prepared(path, tmp_path / "root")
    chosen, totals, notes = choose(prepared, prepared.lineage.chains)
    assert {name: len(pairs) for name, pairs in chosen.items()} == dict.fromkeys(totals, MAX_PAIRS)
    assert totals == {
        "other seed: estimator mle": 190,
        "other seed: estimator unbiased": 190,
        "other learner.estimator": 380,
    }
    assert choose(prepared, prepared.lineage.chains)[0] == chosen
    assert all(a.seed != b.seed for pairs in chosen.values() for a, b in pairs)
    assert notes == [
        "the first 20 seeds of a cell",
        "at most 12 pairs of a group, chosen at random, the same in every generation",
    ]
    alone = [chain for chain in prepared.lineage.chains if chain.seed == 0]
    pairs, _, notes = choose(prepared, alone)
    assert list(pairs) == ["other learner.estimator"] and notes == [
        "chains of one seed, which share their random numbers"
    ]


@pytest.mark.slow
def test_chains_that_have_not_parted_are_not_compared(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    config = make_config(TEXT, generations=1, grid={"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    (found,) = compare(prepared, store)
    assert set(found.lines) == {"js_1", "js_2", "jaccard_4"} and found.sizes == {0: 64 * 16, 1: 64 * 16}
    assert set(found.pairs) == {
        "other seed: synthetic_ratio 0.5",
        "other seed: synthetic_ratio 1.0",
        "other regime.synthetic_ratio",
    }
    for measure in ("js_1", "js_2"):
        for curve in found.lines[measure].values():
            assert all(0 < value < 1 for point in curve.values() for value in point.values)
    one_seed, _ = open_prepared(config, tmp_path / "root", "grid.seed=[0]")
    (alone,) = compare(one_seed, store)
    for curves in alone.lines.values():
        assert list(curves["other regime.synthetic_ratio"]) == [1], "in generation 0 both chains are the same"


def test_a_damaged_corpus_is_left_out(tmp_path: Path) -> None:
    prepared, store = copied(
        tmp_path, {"seed": [0, 1, 2]}, lambda generation, chain: np.full((60, 2), float(chain.seed))
    )
    corpus = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[1]].corpus
    (shard,) = (store.root / "corpora" / corpus).glob("*.parquet")
    shard.write_bytes(b"damaged")
    (found,) = compare(prepared, store)
    (curve,) = found.lines["energy"].values()
    assert [len(curve[g].values) for g in range(3)] == [3, 1, 3]
    assert sorted(curve[0].values) == pytest.approx([2 * 2**0.5, 2 * 2**0.5, 4 * 2**0.5]), (
        "2 |a - b| between two points"
    )


def test_chains_over_other_real_data_are_not_compared(tmp_path: Path) -> None:
    prepared, store = copied(
        tmp_path,
        {"seed": [0, 1], "data.variance": [1.0, 4.0]},
        lambda generation, chain: np.full((60, 2), float(chain.seed)),
    )
    found = compare(prepared, store)
    assert [result.title for result in found] == ["data.variance 1.0", "data.variance 4.0"]
    assert all(len(result.pairs) == 1 for result in found)


def test_groups_are_spoken_of_with_their_values_whole() -> None:
    """A value may look like a field: 0.5 has a point, and so has the name of a file."""
    spoken = {
        "other seed": "other seed",
        "other learner.sample.temperature: synthetic_ratio 0.5": "other temperature: synthetic ratio 0.5",
        "other a.b_c, d.e: source my_own.text.txt": "other b c, e: source my_own.text.txt",
    }
    assert {group: spoken_group(group) for group in spoken} == spoken
