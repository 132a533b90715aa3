"""Selection from a pool: by a score, and for diversity."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from bundled import at, run_bundles, table
from chains import run_all
from classifiers import write_classifier
from conftest import TEXT, merged
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.components import FILTERS
from harness.components.filters import DiverseFilter, SelectFilter
from harness.config import expand, load_file
from harness.curation.selection import BigramModel, diverse, entropies, select
from harness.errors import InputError
from harness.files import seal, write_json
from harness.inspection.examples import ExampleRows
from harness.inventory import judging
from harness.records import Examples
from harness.registry import Known
from harness.reporting import ledger

STREAM = {"kind": "stream", "synthetic_ratio": 1.0, "pool": 10.0}
BASE: dict[str, Any] = {
    "experiment": "selection",
    "data": {"source": "gaussian", "dim": 2, "num_examples": 40},
    "learner": {"kind": "gaussian"},
    "regime": STREAM,
    "generations": 3,
    "tracking": {"wandb": "disabled"},
}
REPLACE = {"kind": "replace", "synthetic_ratio": 0.5}
BIMODAL = {
    "source": "mixture",
    "components": [{"weight": 0.5, "mean": [mean], "std": 0.2} for mean in (-1.0, 1.0)],
}
LOW = {"kind": "select", "score": "uniqueness_4", "at_least": -0.1, "choose": "lowest"}
VARIED = {"kind": "curate", "of": 2, "rewards": {"uniqueness_4": 1.0}}
TOP = {"kind": "select", "score": "likelihood", "keep": 0.1, "reference": 40}


class Given:
    """Real data that are a few given examples."""

    def __init__(self, values: Any) -> None:
        self.examples = Examples.full(np.asarray(values))

    def real(self, seed: int, count: int) -> Examples:
        return self.examples.take(slice(count))


def known(real: Any, count: int) -> Known:
    uniform = np.random.default_rng(5).random(count)
    return Known(Given(real), 0, 1, uniform)


def section(**changes: Any) -> SelectFilter:
    return SelectFilter.model_validate({**TOP, **changes})


rows = st.lists(st.lists(st.integers(0, 5), min_size=2, max_size=6), min_size=2, max_size=6)


def examples(lists: list[list[int]]) -> Examples:
    lengths = np.array([len(row) for row in lists], dtype=np.int32)
    values = np.zeros((len(lists), lengths.max()), dtype=np.int32)
    for place, row in enumerate(lists):
        values[place, : len(row)] = row
    return Examples(values, lengths)


def test_the_likeliest_of_numbers_pass() -> None:
    """Against scipy's density of the normal distribution with the reference's moments."""
    random = np.random.default_rng(0)
    real, pool = random.normal(size=(40, 3)) * [1, 2, 3], random.normal(size=(100, 3)) * 3
    moments = {"mean": real.mean(0), "cov": np.cov(real, rowvar=False, bias=True)}
    density = stats.multivariate_normal(**moments).logpdf(pool)
    for choose, order in (("highest", np.argsort(-density)), ("lowest", np.argsort(density))):
        kept = select(section(choose=choose), Examples.full(pool), known(real, 100))
        assert set(np.flatnonzero(kept)) == set(order[:10])
    biased = stats.multivariate_normal(moments["mean"] + 2 * real.std(0), moments["cov"]).logpdf(pool)
    kept = select(section(bias=2.0), Examples.full(pool), known(real, 100))
    assert set(np.flatnonzero(kept)) == set(np.argsort(-biased)[:10])


@given(rows, rows)
def test_a_bigram_model_is_its_formula_and_a_distribution(real: Any, pool: Any) -> None:
    model, tokens = BigramModel(examples(real)), range(6)
    pairs = [pair for row in real for pair in itertools.pairwise(row)]
    unigrams = [token for row in real for token in row]
    size = max(max(unigrams), *(token for row in pool for token in row)) + 1

    def probability(before: int, token: int, vocabulary: int) -> float:
        alone = (unigrams.count(token) + 1) / (len(unigrams) + vocabulary)
        behind = [b for a, b in pairs if a == before]
        kinds = len(set(behind))
        return (behind.count(token) + kinds * alone) / (len(behind) + kinds) if behind else alone

    expected = [
        np.mean([math.log(probability(a, b, size)) for a, b in itertools.pairwise(row)]) for row in pool
    ]
    assert model.mean_log_likelihood(examples(pool)) == pytest.approx(expected)
    whole = examples([[before, token] for before in tokens for token in tokens])
    shares = np.exp(model.mean_log_likelihood(whole)).reshape(6, 6)
    assert shares.sum(1) == pytest.approx(np.ones(6)) or size > 6


@pytest.mark.parametrize("choose", ["highest", "lowest"])
def test_what_has_no_score_passes_last(choose: str) -> None:
    """An example of one token has no bigram."""
    pool = examples([[1], [1, 2, 3], [3, 2, 1]])
    kept = select(section(reference=2, keep=0.67, choose=choose), pool, known([[1, 2], [2, 3]], 3))
    assert kept.tolist() == [False, True, True]
    one_token = select(section(reference=2, keep=0.34), pool, known([[1], [1]], 3))
    assert one_token.sum() == 1, "a reference without bigrams has unigrams"


def test_a_reference_of_equal_examples_has_a_density() -> None:
    pool = Examples.full(np.array([[5.0], [1.5], [1.0]]))
    kept = select(section(reference=2, keep=0.34), pool, known([[1.0], [1.0]], 3))
    assert kept.tolist() == [False, False, True]


def test_entropy_by_hand() -> None:
    found = entropies(examples([[1, 1, 1, 1], [1, 2, 1, 2], [1, 2, 3, 4]]))
    assert found == pytest.approx([0, math.log(2), math.log(4)])


def test_errors_are_as_frequent_as_asked() -> None:
    """What should not pass does so with probability error x keep, within 4 standard errors."""
    count, error, keep = 20_000, 0.4, 0.25
    pool = Examples.full(np.random.default_rng(1).normal(size=(count, 1)))
    judge = known([[0.0], [1.0], [-1.0]], count)
    right = select(section(keep=keep, reference=3), pool, judge)
    noisy = select(section(keep=keep, reference=3, error=error), pool, judge)
    assert right.sum() == keep * count
    for passes, wanted in ((noisy[~right], error * keep), (noisy[right], 1 - error * (1 - keep))):
        assert abs(passes.mean() - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / len(passes))


@pytest.mark.parametrize("choose", ["highest", "lowest"])
def test_a_threshold_is_of_the_references_density(choose: str) -> None:
    """Against scipy's log density; of those judged by chance as large a share passes as of the others."""
    random, sign = np.random.default_rng(4), 1 if choose == "highest" else -1
    real, pool = random.normal(size=(40, 2)), random.normal(size=(20_000, 2)) * 2
    off = real.mean(0) + 0.5 * real.std(0)
    density = stats.multivariate_normal(off, np.cov(real, rowvar=False, bias=True)).logpdf(pool)
    given = {"keep": None, "at_least": -4.0, "bias": 0.5, "choose": choose}
    judge = known(real, len(pool))
    right = select(section(**given), Examples.full(pool), judge)
    sure = np.abs(density + 4) > 1e-4  # the covariance has a millionth of its mean variance added
    assert (right == (sign * (density + 4) >= 0))[sure].all() and 0 < right.mean() < 1
    noisy = select(section(**given, error=0.3), Examples.full(pool), judge)
    for passes, wanted in ((noisy[~right], 0.3 * right.mean()), (noisy[right], 1 - 0.3 * (1 - right.mean()))):
        assert abs(passes.mean() - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / len(passes))
    text = examples([[1], [1, 2, 3], [3, 2, 1]])
    by_text = section(keep=None, at_least=-99.0, reference=2)
    assert select(by_text, text, known([[1, 2], [2, 3]], 3)).tolist() == [False, True, True]


def test_what_is_far_apart_is_diverse() -> None:
    """Of points in three clusters, three that are kept are of one cluster each; the first is always kept."""
    centres = np.repeat([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]], 10, axis=0)
    pool = Examples.full(centres + np.random.default_rng(2).normal(size=(30, 2)) * 0.1)
    kept = np.flatnonzero(diverse(DiverseFilter(kind="diverse", keep=0.1), pool, known([[0.0]], 30)))
    assert kept[0] == 0 and sorted(kept // 10) == [0, 1, 2]
    text = examples([[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 9], [6, 7, 8, 9]])
    half = diverse(DiverseFilter(kind="diverse", keep=0.5), text, known([[0]], 4))
    assert half.tolist() == [True, False, False, True]


@given(rows, st.floats(0.1, 1))
def test_the_farthest_is_taken_next(lists: Any, keep: float) -> None:
    """Against the definition: each next one is at the largest distance from those before it."""
    pool = examples(lists)
    kept = np.flatnonzero(
        diverse(DiverseFilter(kind="diverse", keep=keep, n=1), pool, known([[0]], len(pool)))
    )
    sets = [set(row) for row in lists]
    far = [[1 - len(a & b) / len(a | b) for b in sets] for a in sets]
    chosen: list[int] = []
    for _ in kept:
        left = [i for i in range(len(lists)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (min((far[i][j] for j in chosen), default=0.0), -i)))
    assert sorted(chosen) == kept.tolist()


def test_neutral_settings_change_nothing_and_others_do(tmp_path: Path) -> None:
    """The switch: where a section lets everything pass, models and keys are those without a filter."""
    found, reached = {}, {name: value for name, value in TOP.items() if name != "keep"}
    for name, filters in {
        "none": [],
        "all": [{**TOP, "keep": 1.0}],
        "diverse": [{"kind": "diverse", "keep": 1.0}],
        "random": [{"kind": "random", "keep": 1.0}, {"kind": "label", "recall": 0.0}],
        "deceived": [{"kind": "verifier", "score": "log_density", "at_least": 0.0, "false_accept": 1.0}],
        "top": [TOP],
        "surprise": [{**TOP, "choose": "lowest"}],
        "far": [{"kind": "diverse", "keep": 0.5}],
        "everything": [{**reached, "at_least": -1e9}],
        "threshold": [{**reached, "at_least": -3.0}],
    }.items():
        frame = table(
            {**BASE, "regime": {**STREAM, "pool": 2.0}, "filters": filters, "grid": {"seed": [0, 1]}}
        )
        found[name] = frame
    means = {name: tuple(at(frame, "gaussian/log_variance", 3)) for name, frame in found.items()}
    neutral = ("none", "all", "diverse", "random", "deceived")
    assert all(means[name] == means["none"] for name in (*neutral, "everything"))
    assert len(set(means.values())) == 5
    assert (found["top"]["pool/kept_share"].dropna() == 0.1).all()
    keys = {name: set(frame[frame.generation == 1].key) for name, frame in found.items()}
    assert all(keys[name] == keys["none"] for name in neutral)
    told_apart = [name for name in keys if name not in neutral[1:]]
    assert all(not keys[a] & keys[b] for a, b in itertools.combinations(told_apart, 2))


@pytest.mark.parametrize("choose", ["highest", "lowest"])
def test_selecting_the_likely_narrows_and_the_unlikely_widens(choose: str) -> None:
    """The reference has the moments of generation 0's model: r^2 of its examples is exponential with mean 2
    (chi-squared, 2 degrees of freedom), and the 40 of 400 that are kept have the mean of that tail."""
    tail = stats.expon(scale=2)
    low, high = (0.0, tail.ppf(0.1)) if choose == "highest" else (tail.ppf(0.9), np.inf)
    squares = tail.expect(lambda x: x, lb=low, ub=high, conditional=True)
    grid = {"seed": {"from": 0, "count": 40}}
    frame = table({**BASE, "filters": [{**TOP, "choose": choose}], "generations": 1, "grid": grid})
    ratio = at(frame, "gaussian/trace_ratio", 1) / at(frame, "gaussian/trace_ratio", 0)
    assert ratio.mean() == pytest.approx(squares / 2 * (1 - 1 / 40), rel=0.1)


def test_the_records_rates_are_those_of_the_training_sets(tmp_path: Path) -> None:
    config = {
        **BASE,
        "regime": {**STREAM, "synthetic_ratio": 0.5, "pool": 2.0},
        "filters": [{**TOP, "keep": 0.5}],
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    prepared, store = run_bundles(path, tmp_path / "root")
    records = {row["generation"]: row for row in ledger.rows(prepared, store)}
    rows = pd.concat(found.to_pandas() for found in ExampleRows(prepared, store))
    for generation in (1, 2, 3):
        own = rows[rows.generation == generation]
        passed = own[own.dropped_by.isna() | (own.dropped_by != "select")]
        synthetic, real = (own[own.origin == kind] for kind in ("synthetic", "real"))
        assert len(own) == 80 and len(passed) == 40
        recall = 1 - (passed.origin == "synthetic").sum() / len(synthetic)
        assert records[generation]["pool/recall"] == pytest.approx(recall)
        loss = 1 - (passed.origin == "real").sum() / len(real)
        assert records[generation]["pool/false_positive_rate"] == pytest.approx(loss)


@pytest.mark.slow
def test_every_filters_rates_are_recounted_from_origins(ranks: Any, tmp_path: Path) -> None:
    """Each of what earlier ones have left, by the origin and the fate of every example that arrives."""
    machine = write_classifier(tmp_path / "classifier")
    filters: list[dict[str, Any]] = [
        {"kind": "deduplicate"},
        {"kind": "repetition", "n": 1, "max_share": 0.5},
        {"kind": "near_duplicate", "n": 2, "max_similarity": 0.1},
        {"kind": "verifier", "score": "distinct_2", "at_least": 1.0, "false_accept": 0.5},
        {"kind": "watermark", "threshold": 2.0},
        {"kind": "random", "keep": 0.9},
        {"kind": "select", "score": "likelihood", "keep": 0.8, "reference": 40, "error": 0.1},
        {"kind": "diverse", "keep": 0.9},
        {"kind": "label", "recall": 0.2, "false_positive_rate": 0.05},
        {"kind": "classifier", "model": str(machine), "label": "machine", "threshold": 0.8},
        {"kind": "curate", "of": 2, "rewards": {"distinct_2": 1.0}},
        {"kind": "detector", "examples": 40, "use": "weights", "bias": 2.0, "repeats": 2},
    ]
    changes = {
        "learner.sample.watermark": {"delta": 0.5},
        "regime": {"kind": "stream", "synthetic_ratio": 0.6, "pool": 5.0},
        "filters": filters,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(merged(TEXT, changes)))
    prepared, store = run_all(path, tmp_path / "root", ranks=ranks)
    records = {row["generation"]: row for row in ledger.rows(prepared, store)}
    table = pd.concat(found.to_pandas() for found in ExampleRows(prepared, store))
    assert {item["kind"] for item in filters} >= {kind for kind in FILTERS if kind != "judge"}
    for generation in (1, 2):
        record, own = records[generation], table[table.generation == generation]
        trained = own[own.dropped_by.isna()]
        assert len(trained) == record["pool/trained"]
        assert (trained.origin == "real").mean() == pytest.approx(record["pool/trained_real_share"])
        arrived = left = own.drop_duplicates(["origin", "example"])
        assert len(arrived) == 480 and (arrived.origin == "real").mean() == record["pool/real_share"]
        for name in (item["kind"] for item in filters):
            passed = left[left.dropped_by != name]
            assert_rates(f"pool/{name}/", left, passed, record)
            left = passed
        assert_rates("pool/", arrived, left, record)
        assert own.dropped_by.nunique() > 9, "most of them have dropped something"


def assert_rates(column: str, given: pd.DataFrame, passed: pd.DataFrame, record: Mapping[str, Any]) -> None:
    """A record's rates are those of what was given and what of it has passed."""
    assert record[column + "kept_share"] == pytest.approx(len(passed) / len(given))
    for kind, name in (("synthetic", "recall"), ("real", "false_positive_rate")):
        before, after = ((part.origin == kind).sum() for part in (given, passed))
        assert record.get(column + name) == (pytest.approx(1 - after / before) if before else None)


@pytest.mark.parametrize("choose", ["best", "bradley_terry"])
@pytest.mark.parametrize("regime", ["replace", "stream"])
def test_choices_among_examples_that_score_alike_are_recorded(
    tmp_path: Path, regime: str, choose: str
) -> None:
    """As corpora say that are there one by one; in bundles as many; and both are said by cell and generation.

    What was stored without them says nothing.
    """
    rewards = [0.0, 1.0, 1.0]
    curator = {"kind": "curate", "of": 2, "outcomes": rewards, "choose": choose}
    config = {
        **BASE,
        "data": {"source": "discrete", "probabilities": [0.6, 0.3, 0.1], "num_examples": 30},
        "learner": {"kind": "discrete"},
        "regime": STREAM if regime == "stream" else {"kind": "replace", "synthetic_ratio": 1.0},
        "grid": {"filters": [[curator], []], "seed": [0, 1]},
        "generations": 6,
    }
    said = []
    for bundled, run in ((True, run_bundles), (False, run_all)):
        path = tmp_path / f"{bundled}.yaml"
        path.write_text(yaml.safe_dump({**config, "resources": {"bundled": bundled}}))
        prepared, store = run(path, tmp_path / str(bundled))
        made = judging._recorded(prepared, store, {0}).tolist()
        (line,) = judging.remarks(prepared, store)
        assert ": curate: so many of its choices are among examples that score alike" in line
        said.append((sorted(tuple(row[1:4]) for row in made), line))
    assert said[0] == said[1] and len(said[0][0]) == 12
    for chain in prepared.lineage.chains:
        nodes = [prepared.lineage.nodes[key] for key in chain.nodes]
        for before, node in itertools.pairwise(nodes):
            recorded = store.json("fits", node.fit, "fit.json").get("choices")
            if chain.cell:
                assert recorded is None
            elif regime == "replace":
                wrote = store.corpora.load(before.corpus, 60).values[:, 0].astype(int)
                pairs = np.asarray(rewards)[wrote].reshape(-1, 2)
                alike = int((pairs[:, 0] == pairs[:, 1]).sum())
                assert {"made": 30, "alike": alike, "passed": 30} == {
                    k: recorded[k] for k in ("made", "alike", "passed")
                }
                assert recorded["read"] in (59, 60), "up to the last one that was needed"
        assert "choices" not in store.json("fits", nodes[0].fit, "fit.json")
        for node in nodes[1:]:
            folder = store.path("fits", node.fit)
            fit = store.json("fits", node.fit, "fit.json")
            write_json(folder / "fit.json", {name: fit[name] for name in fit if name != "choices"})
            seal(folder)
    assert judging.remarks(prepared, store) == [] and len(ledger.rows(prepared, store)) == 28


def test_thresholds_that_none_reaches_where_none_need(tmp_path: Path) -> None:
    """Of a stream with an anchor the known real examples are left; without models nobody asks a filter."""
    beyond = {"kind": "select", "score": "log_density", "at_least": 0.0}
    never = {"kind": "verifier", "score": "log_density", "at_least": 0.0}
    for changes in (
        {"regime": {**STREAM, "anchor": 0.5}, "filters": [beyond]},
        {"generations": 0, "filters": [beyond]},
        {"regime": {**REPLACE, "synthetic_ratio": 0.0}, "filters": [never]},
    ):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**BASE, **changes}))
        assert expand(load_file(path)).base.filters


def test_a_filter_that_drops_nothing_is_said(tmp_path: Path) -> None:
    """Nobody publishes "with a filter" that never fired; one that drops something is not told of."""
    idle = {"kind": "verifier", "score": "log_density", "at_least": -1e6}
    busy = {"kind": "verifier", "score": "log_density", "at_least": -1.5}
    config = {
        **BASE,
        "data": {"source": "gaussian", "num_examples": 30},
        "learner": {"kind": "gaussian"},
        "regime": {"kind": "replace", "synthetic_ratio": 0.5},
        "grid": {"filters": [[idle], [busy], []], "seed": [0, 1]},
        "generations": 3,
    }
    said = []
    for bundled, run in ((True, run_bundles), (False, run_all)):
        path = tmp_path / f"{bundled}.yaml"
        path.write_text(yaml.safe_dump({**config, "resources": {"bundled": bundled}}))
        prepared, store = run(path, tmp_path / str(bundled))
        said.append(judging.remarks(prepared, store))
        rows = judging._recorded(prepared, store, {0, 1, 2})
        for cell, _, _, _, read, passed in rows[(rows[:, 1] == 2) & (rows[:, 0] < 2)].tolist():
            assert passed == 15 and (read > 15 if cell else read == 15)
        assert {0, 1} <= set(rows[:, 0].tolist()) and not rows[rows[:, 0] == 2][:, 4:].any()
    (line,) = said[0]
    text = "verifier: drops none of the 90 synthetic examples that it has read: the cell is as without it"
    assert line.endswith(text) and said[0] == said[1]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {**BASE, "filters": [{"kind": "label", "recall": 1.0, "false_positive_rate": 1.0}]},
            "nothing of the 400 examples that arrive in generation 1 is left behind label, which drops every "
            "real and every synthetic one",
        ),
        (
            {
                **BASE,
                "regime": {**STREAM, "synthetic_ratio": 0.5},
                "filters": [
                    {"kind": "label", "recall": 1.0},
                    {"kind": "label", "recall": 0.0, "false_positive_rate": 1.0},
                ],
            },
            "nothing of the 400 examples that arrive in generation 1 is left behind label, which drops every",
        ),
        (
            {
                **BASE,
                "regime": {"kind": "replace", "synthetic_ratio": 1.0},
                "filters": [{"kind": "label", "recall": 1.0}],
            },
            "nothing of the 40 examples to train on in generation 1 is left behind label, which drops every",
        ),
        (
            {**BASE, "filters": [{**TOP, "reference": 41}]},
            "select learns from 41 real examples, there are 40",
        ),
        ({**BASE, "filters": [{"kind": "select", "score": "likelihood", "keep": 0.1}]}, "needs reference"),
        ({**BASE, "filters": [{**TOP, "score": "log_density"}]}, "log_density does not use reference"),
        ({**BASE, "filters": [{"kind": "select", "score": "entropy", "keep": 0.1}]}, "entropy reads text"),
        ({**BASE, "filters": [{**TOP, "keep": 0.0}]}, "filters.0.keep: found 0.0"),
        ({**BASE, "filters": [{**TOP, "at_least": 1.0}]}, "give one of the two"),
        ({**BASE, "filters": [{**TOP, "keep": None}]}, "give one of the two"),
        (
            {**BASE, "filters": [{**TOP, "keep": 0.5}, {**TOP, "keep": 0.002}]},
            "nothing of the 400 examples that arrive in generation 1 is left behind select",
        ),
        (
            {**BASE, "filters": [{"kind": "curate", "of": 500, "rewards": {"log_density": 1.0}}]},
            "nothing of the 400 examples that arrive in generation 1 is left behind curate",
        ),
        (
            merged(TEXT, {"data.block_size": 4, "regime": STREAM, "filters": [VARIED]}),
            "the score uniqueness_4 is the same for all examples of 4 tokens (data.block_size)",
        ),
        (
            {**BASE, "filters": [{"kind": "select", "score": "log_density", "at_least": -1.837}]},
            "select.at_least is -1.837, and log_density is -1.83788 at most with these data, so nothing",
        ),
        (
            merged(
                BASE,
                {"regime": REPLACE, "filters": [{"kind": "verifier", "score": "log_density", "at_least": 0}]},
            ),
            "verifier.at_least is 0, and log_density is -1.83788 at most",
        ),
        (
            merged(
                {**BASE, "data": BIMODAL},
                {"regime": REPLACE, "filters": [{"kind": "verifier", "score": "log_density", "at_least": 1}]},
            ),
            "verifier.at_least is 1, and log_density is 0.690499 at most",
        ),
        (
            merged(TEXT, {"regime": STREAM, "filters": [LOW]}),
            "select.at_least is -0.1, and uniqueness_4 is 0 at least",
        ),
        (
            merged(TEXT, {"filters": [{"kind": "verifier", "score": "distinct_2", "at_least": 1.01}]}),
            "verifier.at_least is 1.01, and distinct_2 is 1 at most",
        ),
        ({**BASE, "regime": {"kind": "accumulate"}, "filters": [TOP]}, "select chooses from what arrives"),
        (
            merged(TEXT, {"regime": STREAM, "filters": [{**TOP, "bias": 1.0}]}),
            "select.bias is of numbers, not of text",
        ),
    ],
)
def test_one_message(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(InputError) as error:
        run_bundles(path, tmp_path / "root")
    assert message in str(error.value), str(error.value)
