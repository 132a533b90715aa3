"""What arrives unlabelled, who chooses from it, and what the records say of it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from bundled import at, table
from chains import open_prepared, run_all
from conftest import TEXT, Make
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import binom, norm
from threadpoolctl import threadpool_limits

from harness.components.filters import DetectorFilter, SimilarFilter
from harness.config.schema import Regime
from harness.curation.detector import _fitted, detector, probabilities
from harness.curation.filters import Judge, judged
from harness.curation.selection import BigramModel
from harness.curation.similar import near_duplicate
from harness.errors import ConfigError, DataError
from harness.learners import SoloRanks
from harness.records import REAL, Counts, Examples, Selection
from harness.regimes import Drawn, check_supply, draw, recipe
from harness.registry import Known
from harness.streams import stream

STREAM = {"kind": "stream", "synthetic_ratio": 0.5}
LABEL = {"kind": "label", "recall": 0.8, "false_positive_rate": 0.1}
GAUSS: dict[str, Any] = {
    "experiment": "pool",
    "tracking": {"wandb": "disabled"},
    "data": {"source": "gaussian", "num_examples": 100},
    "learner": {"kind": "gaussian"},
    "regime": STREAM,
    "generations": 3,
}
SEEDS = {"seed": {"from": 0, "count": 40}}


@given(
    st.integers(10, 200),
    st.integers(0, 100),
    st.sampled_from([1.0, 1.5, 3.0]),
    st.sampled_from(["latest", "all"]),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(1, 5),
)
def test_a_pool_is_what_the_regime_says(
    n: int, percent: int, pool: float, history: Any, anchor: float, generation: int
) -> None:
    regime = Regime(kind="stream", synthetic_ratio=percent / 100, pool=pool, history=history, anchor=anchor)
    made = recipe(regime, n, generation)
    found = draw(made, n, 3, generation)
    known = len(found) - made.pooled
    assert known == int(anchor * n + 0.5) and made.size == n
    assert (found.origin[:known] == REAL).all() and (found.index[:known] < n).all()
    arrived = int(pool * n + 0.5)
    past = generation if history == "all" else 1
    assert made.pooled == arrived * past + (n if history == "all" else 0)
    synthetic = found.origin[known:] != REAL
    assert abs(synthetic.sum() / past - percent / 100 * arrived) <= 0.5 + 1e-9
    assert (found.origin[known:][synthetic] == generation - 1).all() or history == "all"
    real = found.index[known:][~synthetic]
    assert len(np.unique(real)) == len(real), "no real example arrives twice"
    if history == "latest" and generation > 1:
        before = recipe(regime, n, generation - 1)
        then = draw(before, n, 3, generation - 1)
        earlier = then.index[len(then) - before.pooled :][then.origin[len(then) - before.pooled :] == REAL]
        assert not set(real) & set(earlier) and (not len(real) or real.min() >= n)


def test_a_pool_is_shuffled_anew() -> None:
    made = recipe(Regime(kind="stream", synthetic_ratio=0.5), 100, 1)
    one, again, other = (draw(made, 100, seed, 1) for seed in (0, 0, 1))
    assert (one.origin == again.origin).all() and (one.index == again.index).all()
    assert (one.origin != other.origin).any()
    # Real among the first half: hypergeometric, 100 of 200 drawn, 100 real; 4 standard deviations are 14.2.
    assert abs((one.origin[:100] == REAL).sum() - 50) <= 14


def test_real_examples_that_arrive_must_exist() -> None:
    regime = Regime(kind="stream", synthetic_ratio=0.25, pool=2.0)
    check_supply(regime, 100, 2, 100 + 2 * 150, None)
    with pytest.raises(DataError, match="generation 2 needs 400 real examples"):
        check_supply(regime, 100, 2, 399, None)


def test_rates_are_those_that_the_filter_has() -> None:
    """Rates of 40 chains against the binomial distribution; who chooses by lot keeps as many."""
    rows = table(GAUSS, mitigations={
        "label": {"filters": [LABEL]},
        "random": {"filters": [LABEL], "regime.select": "random"},
        "oracle": {"filters": [LABEL], "regime.select": "oracle"},
        "clean": {"filters": [LABEL], "regime.synthetic_ratio": 0},
    }, grid=SEEDS)  # fmt: skip
    of = {name: part for name, part in rows.groupby("mitigation")}
    for column, rate in (("pool/recall", 0.8), ("pool/false_positive_rate", 0.1)):
        dropped = round(at(of["label"], column, 2).sum() * 100)
        low, high = binom.ppf([1e-5, 1 - 1e-5], 40 * 100, rate)
        assert low <= dropped <= high
    kept = at(of["label"], "pool/kept_share", 1)
    for name in ("random", "oracle"):
        assert (at(of[name], "pool/kept_share", 1) == kept).all(), (
            "generation 0 is shared, so are its verdicts"
        )
    lot = at(of["random"], "pool/trained_real_share", 2)
    assert abs(lot.mean() - 0.5) < 4 * lot.std(ddof=1) / np.sqrt(len(lot))
    assert (at(of["oracle"], "pool/trained_real_share", 2) == 1).all(), (
        "100 real ones arrive, 100 are trained on"
    )
    lost = np.maximum(0, 1 - 2 * at(of["oracle"], "pool/kept_share", 2))
    assert at(of["oracle"], "pool/false_positive_rate", 2) == pytest.approx(lost, abs=1e-12)
    assert (
        of["clean"]["pool/recall"].isna().all() and (at(of["clean"], "pool/trained_real_share", 3) == 1).all()
    )
    assert rows[rows.generation == 0]["pool/kept_share"].isna().all()


@pytest.mark.slow
def test_oracle_and_clean_stream_resist_and_chance_does_not() -> None:
    """The expected KL divergence of a maximum likelihood fit to n real numbers is 1/n + O(1/n^2)."""
    rows = table({**GAUSS, "generations": 6}, mitigations={
        "none": {"regime.synthetic_ratio": 1.0},
        "clean": {"regime.synthetic_ratio": 0},
        "oracle": {"filters": [{"kind": "label", "recall": 1.0}], "regime.synthetic_ratio": 0.5},
    }, grid={"seed": {"from": 0, "count": 200}})  # fmt: skip
    of = {name: at(part, "gaussian/kl", 6) for name, part in rows.groupby("mitigation")}
    for name in ("clean", "oracle"):  # n fresh real examples each time
        assert abs(of[name].mean() - 0.01) < 4 * of[name].std(ddof=1) / np.sqrt(200) + 0.001
    assert of["none"].mean() > 0.04, "seven fits in a row: about 7 times as much"


def test_records_equal_a_recount_from_provenance(make_config: Make, tmp_path: Path) -> None:
    filters = [LABEL, {"kind": "random", "keep": 0.7}]
    config = make_config({**GAUSS, "resources": {"bundled": False}, "filters": filters})
    prepared, store = run_all(config, tmp_path / "root")
    for node in prepared.lineage.nodes.values():
        metrics = store.json("evaluations", node.evaluation, "record.json")["metrics"]
        origin = load_file(store.path("fits", node.fit) / "training_set.safetensors")["origin"]
        if node.generation == 0:
            assert not any(name.startswith("pool/") for name in metrics)
            continue
        assert metrics["pool/trained"] == len(origin)
        assert metrics["pool/trained_real_share"] == (origin == REAL).mean()
        # what passes the first filter is what the second is given
        passed = 1 - (metrics["pool/label/recall"] + metrics["pool/label/false_positive_rate"]) / 2
        assert metrics["pool/label/kept_share"] == pytest.approx(passed)
        both = metrics["pool/label/kept_share"] * metrics["pool/random/kept_share"]
        assert metrics["pool/kept_share"] == pytest.approx(both)


def test_all_ranks_train_on_what_rank_0_has_chosen(make_config: Make, tmp_path: Path) -> None:
    class Second(SoloRanks):
        """A rank to which rank 0 says something else than what it has computed itself."""

        def broadcast(self, value: Any) -> Any:
            if isinstance(value, tuple) and isinstance(value[0], Drawn):
                drawn, selection = value
                said.append(drawn.take(np.arange(10)))
                return said[-1], selection
            return value

    said: list[Drawn] = []
    config = make_config({**GAUSS, "generations": 1, "resources": {"bundled": False}, "filters": [LABEL]})
    prepared, store = run_all(config, tmp_path / "root", ranks=Second())
    node = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[1]]
    found = load_file(store.path("fits", node.fit) / "training_set.safetensors")
    assert said and (found["index"] == said[0].index).all() and (found["origin"] == said[0].origin).all()


def test_the_columns_of_a_selection() -> None:
    steps = {"a": (Counts(4, 6), Counts(4, 3)), "b": (Counts(4, 3), Counts(3, 0))}
    found = Selection(Counts(4, 6), Counts(3, 0), steps, Counts(3, 0)).metrics()
    assert found["pool/recall"] == 1 and found["pool/false_positive_rate"] == 0.25
    assert (
        found["pool/a/recall"] == 0.5 and found["pool/b/recall"] == 1 and found["pool/b/kept_share"] == 3 / 7
    )
    alone = Selection(Counts(4, 0), Counts(4, 0), {"a": steps["a"]}, Counts(4, 0)).metrics()
    assert "pool/recall" not in alone and "pool/a/recall" not in alone


TOKENS = np.random.default_rng(0)
FAIR = Examples.full(TOKENS.integers(0, 50, (300, 12)).astype(np.int32))
NARROW = Examples.full(TOKENS.integers(0, 25, (300, 12)).astype(np.int32))


def known(take: int = 50) -> Known:
    first = np.arange(200)
    return Known(None, 0, 1, np.zeros(0), take, (FAIR.take(first), NARROW.take(first)))


def test_a_detector_tells_half_a_vocabulary_from_a_whole_one() -> None:
    new = np.arange(200, 300)
    section = DetectorFilter(kind="detector", ngram=1)
    assert detector(section, FAIR.take(new), known()).mean() > 0.95
    assert detector(section, NARROW.take(new), known()).mean() < 0.05
    with_rows = DetectorFilter(kind="detector")
    numbers = [Examples.full(TOKENS.normal(size=(300, 2)) * scale) for scale in (1.0, 0.2)]
    told = Known(
        None, 0, 1, np.zeros(0), 50, (numbers[0].take(np.arange(200)), numbers[1].take(np.arange(200)))
    )
    assert probabilities(with_rows, numbers[1].take(new), told).mean() > 0.75


def test_a_detectors_rates_are_those_of_the_region_it_keeps() -> None:
    """N(0, 1) against N(0, s^2): the likelihoods are equal at x^2 = 2 ln(1/s) / (1/s^2 - 1), so what is
    nearer to 0 is taken for synthetic; rates of new examples against the binomial distribution."""
    s, count, random = 0.5, 20_000, np.random.default_rng(5)
    labelled = tuple(Examples.full(random.normal(size=(4000, 1)) * scale) for scale in (1.0, s))
    told = Known(None, 0, 1, np.zeros(0), 50, labelled)
    section = DetectorFilter(kind="detector")
    places = np.linspace(-3, 3, 60_001)
    kept = detector(section, Examples.full(places[:, None]), told)
    low, high = places[~kept][[0, -1]]
    assert (~kept == ((low <= places) & (places <= high))).all(), "one interval is dropped"
    edge = math.sqrt(2 * math.log(1 / s) / (1 / s**2 - 1))
    assert (-low, high) == pytest.approx((edge, edge), abs=0.1)
    for scale in (1.0, s):
        dropped = ~detector(section, Examples.full(random.normal(size=(count, 1)) * scale), told)
        rate = norm.cdf(high / scale) - norm.cdf(low / scale)
        least, most = binom.ppf([1e-5, 1 - 1e-5], count, rate)
        assert least <= dropped.sum() <= most


def test_what_a_detector_learns_does_not_depend_on_threads() -> None:
    """A score is the same to the last bit however many threads multiply matrices."""
    found = []
    for threads in (1, 4):
        _fitted.clear()
        with threadpool_limits(limits=threads):
            found.append(probabilities(DetectorFilter(kind="detector"), FAIR, known()))
    assert np.array_equal(*found)


def test_a_detector_of_characters_sees_what_tokens_hide() -> None:
    """The same characters, by tokens that training has never seen."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz" * 2))
    decoding = SimpleNamespace(decode=lambda row: "".join(letters[row]))
    first, new = np.arange(200), np.arange(200, 300)
    rows = np.random.default_rng(1).integers(0, 26, (300, 12)).astype(np.int32)
    whole, half = Examples.full(rows), Examples.full(rows // 2)
    told = Known(decoding, 0, 1, np.zeros(0), 50, (whole.take(first), half.take(first)))
    others = [Examples.full(part.take(new).values + 26) for part in (whole, half)]
    kept = {}
    for unit in ("characters", "tokens"):
        section = DetectorFilter(kind="detector", ngram=1, unit=unit)
        kept[unit] = [detector(section, part, told).mean() for part in others]
    assert kept["characters"][0] > 0.9 and kept["characters"][1] < 0.1
    assert kept["tokens"][0] == kept["tokens"][1], "they look all alike"


def test_likelihood_features_are_those_of_bigrams_by_hand() -> None:
    """All by hand, from the counts alone; and they and the verdicts depend on an example alone."""
    random, size = np.random.default_rng(3), 40

    def walk(first: int) -> Any:
        return np.cumsum(np.r_[first, random.choice([1, 2, 7], 14, p=[0.6, 0.3, 0.1])]) % size

    whole = np.array([walk(first) for first in random.integers(0, size, 400)], dtype=np.int32)
    noise = random.integers(0, size, (130, 15)).astype(np.int32)
    real = SimpleNamespace(
        real=lambda seed, count: Examples.full(whole[:count]), counts=np.bincount(whole.reshape(-1))
    )
    told = Known(real, 0, 1, np.zeros(0), 50, tuple(Examples.full(part[:50]) for part in (whole, noise)))
    section = DetectorFilter(kind="detector", features="likelihood", examples=50, reference=100)

    reference = whole[50:150]  # behind the labelled ones
    pairs = Counter(pair for row in reference.tolist() for pair in itertools.pairwise(row))
    alone = np.bincount(reference.reshape(-1), minlength=size) + 1
    table = np.zeros((size, size))
    for before in range(size):
        behind = np.array([pairs[before, token] for token in range(size)])
        kinds = (behind > 0).sum()
        share = alone / alone.sum()
        table[before] = (behind + kinds * share) / (behind.sum() + kinds) if kinds else share
    assert table.sum(1) == pytest.approx(np.ones(size))

    def by_hand(row: Any) -> list[float]:
        loss = [-np.log(table[pair]) for pair in itertools.pairwise(row)]
        ranks = np.array(
            [1 + (table[a] > table[a, b] * (1 + 1e-12)).sum() for a, b in itertools.pairwise(row)]
        )
        bands = [(1, 1), (2, 10), (11, 100), (101, 1000), (1001, size)]
        return [
            np.mean(loss),
            np.var(loss),
            *(((low <= ranks) & (ranks <= high)).mean() for low, high in bands),
        ]

    pool = Examples.full(np.concatenate([whole[150:], noise[50:]]))
    found = BigramModel(Examples.full(reference)).features(pool, size)
    assert found == pytest.approx(np.array([by_hand(row) for row in pool.values]))
    assert found[:, 0] == pytest.approx(-BigramModel(Examples.full(reference)).mean_log_likelihood(pool))
    kept = detector(section, pool, told)
    assert kept[:250].mean() > 0.95 and kept[250:].mean() < 0.05
    synthetic = probabilities(section, pool, told)
    some = random.permutation(len(pool))[:9]
    assert (probabilities(section, pool.take(some), told) == synthetic[some]).all(), "bit for bit"
    one = Examples(pool.values, np.r_[1, pool.lengths[1:]])
    assert np.isfinite(probabilities(section, one, told)).all(), "an example of one token has no bigram"
    assert (probabilities(section, one, told)[1:] == synthetic[1:]).all()


def test_weights_draw_what_looks_real_and_at_most_so_often() -> None:
    pool = Examples.full(np.concatenate([FAIR.values[200:], NARROW.values[200:]]))
    section = DetectorFilter(kind="detector", use="weights", bias=2.0, repeats=3, ngram=1)
    chosen = detector(section, pool, known(take=60))
    assert len(chosen) == 60 and np.bincount(chosen).max() <= 3
    assert (chosen < 100).mean() > 0.85, "by lot it would be one half"
    assert (chosen == detector(section, pool, known(take=60))).all()
    all_of_it = detector(section, pool, known(take=10_000))
    assert len(all_of_it) == 600, "three copies of each"


TOSS = {"kind": "detector", "examples": 50, "use": "weights", "bias": 1e-9, "repeats": 2}
"""A draw by weights that are all alike: by lot."""


def test_two_draws_of_one_kind_have_noise_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the second draws of what the first has left is independent of it; the first is as it was alone."""
    sections = [DetectorFilter.model_validate({**TOSS, "unit": unit}) for unit in ("tokens", "characters")]
    monkeypatch.setattr(
        "harness.curation.detector.probabilities",
        lambda section, examples, known: np.full(len(examples), 0.5),
    )
    pool = Examples.full(np.arange(2000, dtype=np.int32)[:, None])
    judge = Judge(None, 7, 3)  # type: ignore[arg-type]

    def kept(*filters: Any) -> Any:
        found, _ = judged(filters, pool, np.zeros(2000, np.int32), judge, 1000, lambda count: (pool, pool))
        return found

    noise = stream(7, 3, "detector_draw").gumbel(size=(2000, 2))
    assert (kept(sections[0])[0] == np.sort(np.argsort(-noise, axis=None, kind="stable")[:1000] // 2)).all()
    first, second = kept(*sections)
    assert (first == kept(sections[0])[0]).all() and len(second) == 1000
    again = stream(7, 3, "detector_draw_1").gumbel(size=(1000, 2))
    wanted = first[np.sort(np.argsort(-again, axis=None, kind="stable")[:1000] // 2)]
    assert (second == wanted).all()
    dropped = DetectorFilter(kind="detector", threshold=0.6)
    assert (kept(dropped, sections[0])[1] == kept(sections[0])[0]).all(), "one draw has the noise that it had"


def test_a_second_draw_of_one_kind_has_another_key(make_config: Make, tmp_path: Path) -> None:
    plain = {"kind": "detector", "examples": 50}
    found = {}
    for name, filters in {
        "one": [TOSS],
        "two": [TOSS, {**TOSS, "bias": 1.0}],
        "drops first": [plain, TOSS],
        "drops last": [TOSS, plain],
        "three": [TOSS, plain, TOSS, {**TOSS, "bias": 1.0}],
    }.items():
        prepared, _ = open_prepared(make_config(GAUSS, filters=filters), tmp_path / "root")
        found[name] = [part.identity["version"] for part in prepared.specs[0].filters]
    assert found == {
        "one": [1],
        "two": [1, 2],
        "drops first": [1, 1],
        "drops last": [1, 1],
        "three": [1, 1, 2, 2],
    }


def test_what_a_detector_learns_from_never_arrives(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Known] = []

    def probed(section: Any, examples: Examples, known: Known) -> Any:
        told.append(known)
        return probabilities(section, examples, known)

    monkeypatch.setattr("harness.curation.detector.probabilities", probed)
    filters = [{"kind": "detector", "examples": 20}]
    config = make_config({**GAUSS, "resources": {"bundled": False}, "filters": filters})
    prepared, store = run_all(config, tmp_path / "root")
    for node in prepared.lineage.nodes.values():
        if node.generation:
            found = load_file(store.path("fits", node.fit) / "training_set.safetensors")
            assert found["index"][found["origin"] != REAL].max() < 100
    first = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[0]]
    written = store.corpora.load(first.corpus, 120).values
    assert told and all(known.labelled is not None for known in told)
    for known in told:
        real, synthetic = known.labelled  # type: ignore[misc]
        assert len(real) == 20 and (synthetic.values == written[100:120]).all()


texts = st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=12)


@given(texts, st.integers(1, 3), st.sampled_from([0.2, 0.5, 0.8]))
def test_near_duplicates_by_brute_force(rows: list[list[int]], n: int, limit: float) -> None:
    sets = [{tuple(row[i : i + n]) for i in range(len(row) - n + 1)} for row in rows]
    kept: list[int] = []
    for place, mine in enumerate(sets):
        if all(len(mine & sets[o]) / len(mine | sets[o]) <= limit for o in kept):
            kept.append(place)
    section = SimilarFilter(kind="near_duplicate", n=n, max_similarity=limit)
    found = near_duplicate(section, Examples.full(np.array(rows, dtype=np.int32)), known())
    assert np.flatnonzero(found).tolist() == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regime": {"kind": "stream"}}, "stream needs synthetic_ratio"),
        ({"regime": {**STREAM, "anchor": 1.0}}, "anchor must be below 1"),
        ({"regime": {**STREAM, "pool": 0}}, "regime.pool: found 0, expected greater than 0"),
        ({"regime": {**STREAM, "pool": 0.001}}, "regime.pool: 0.001 x 100 training examples is none"),
        ({"regime": {"kind": "accumulate", "pool": 3}}, "accumulate does not use pool; only stream does"),
        ({"regime": {**STREAM, "select": "oracle"}}, "as many examples as the filters would"),
        (
            {"regime": {"kind": "accumulate"}, "filters": [{"kind": "random", "keep": 0.5}]},
            "random chooses from what arrives unlabelled, so it needs regime.kind stream",
        ),
        ({"filters": [{"kind": "detector", "examples": 9}]}, "filters.0.examples: found 9"),
        ({"filters": [{"kind": "detector", "examples": 101}]}, "101 labelled real examples, there are 100"),
        (
            {"filters": [{"kind": "random", "keep": 0.5}, {"kind": "detector", "exmples": 20}]},
            "filters.1.exmples: unknown field (did you mean 'examples'?); allowed: kind, examples, ngram",
        ),
        ({"filters": [{"kind": "detector", "repeats": 2}]}, "use: threshold does not use repeats"),
        ({"filters": [{"kind": "detector", "unit": "characters"}]}, "unit: characters is of texts"),
        (
            {"filters": [{"kind": "detector", "features": "likelihood", "reference": 20}]},
            "detector.features: likelihood is of the tokens of text, not of gaussian data",
        ),
        ({"filters": [{"kind": "detector", "features": "likelihood"}]}, "likelihood needs reference"),
        ({"filters": [{"kind": "detector", "reference": 20}]}, "features: ngrams does not use reference"),
        (
            {"filters": [{"kind": "detector", "features": "likelihood", "reference": 9, "ngram": 2}]},
            "features: likelihood does not use ngram",
        ),
        ({"filters": [{"kind": "near_duplicate"}]}, "near_duplicate reads text, not gaussian data"),
    ],
)  # fmt: skip
def test_bad_input(make_config: Make, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError)) as error:
        run_all(make_config({**GAUSS, **changes}), tmp_path / "root")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "below"),
    [
        ({"mitigations": {"none": {}, "many": {"filters": [{"kind": "detector", "examples": 101}]}}}, 0),
        ({"grid": {"filters": [[], [{"kind": "detector", "examples": 101}]]}}, 2),
    ],
    ids=["mitigation", "second value of an axis"],
)
def test_what_the_data_refuse_is_named_where_it_stands(
    make_config: Make, tmp_path: Path, changes: dict[str, Any], below: int
) -> None:
    path = make_config({**GAUSS, **changes})
    with pytest.raises(ConfigError) as error:
        open_prepared(path, tmp_path / "root")
    [problem] = error.value.problems
    assert "filters: detector learns from 101" in str(problem)
    [line] = [n for n, text in enumerate(path.read_text().splitlines(), 1) if "filters:" in text]
    assert problem.line == line + below, "of the mitigation or the axis: the study itself has none"


def test_a_reference_lies_behind_what_is_labelled(make_config: Make, tmp_path: Path) -> None:
    filters = [{"kind": "detector", "examples": 20, "features": "likelihood", "reference": 13}]
    stream = {"regime": STREAM, "filters": filters, "data.num_examples": 32}
    with pytest.raises(
        ConfigError, match=r"learns from 33 real \(20 of them labelled\) examples, there are 32"
    ):
        open_prepared(make_config(TEXT, **stream), tmp_path / "root")


def test_a_pool_of_which_nothing_passes_fails_the_chain() -> None:
    with pytest.raises(AssertionError, match=r"none of the 200 examples that arrive in generation 1 passes"):
        table(GAUSS, filters=[{"kind": "select", "score": "log_density", "at_least": -0.91893853321}])
