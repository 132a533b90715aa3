"""Regimes: sizes, shares and the origin of every training example, for any n, ratio and generation."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.components import REGIMES
from harness.components.regimes import augment_count, synthetic_count
from harness.config.schema import Regime
from harness.errors import DataError
from harness.records import EXTERNAL, REAL, Part
from harness.regimes import check_supply, draw, is_refresh, recipe
from harness.registry import Loaded, RegimePlugin

INT: Any = np.int64
LAST: Any = "last"
"""What the types of a part do not allow, and a package may give all the same."""

sizes = st.integers(2, 200)
generations = st.integers(0, 8)
seeds = st.integers(0, 2**40)
ratios = st.integers(0, 100).map(lambda percent: percent / 100)
below_one = st.integers(0, 90).map(lambda percent: percent / 100)


def drawn(regime: Regime, n: int, generation: int, seed: int = 0):  # type: ignore[no-untyped-def]
    made = recipe(regime, n, generation)
    found = draw(made, n, seed, generation)
    assert len(found) == made.size
    return found


def test_rounding_is_to_the_nearest_example_in_decimal() -> None:
    assert [synthetic_count(ratio, 10) for ratio in (0.0, 0.04, 0.05, 0.15, 0.25, 0.94, 0.95, 1.0)] == [
        0,
        0,
        1,
        2,
        3,
        9,
        10,
        10,
    ]
    assert [augment_count(ratio, 100) for ratio in (0.0, 0.1, 0.5, 0.9)] == [0, 11, 100, 900]


@given(sizes, st.sampled_from(sorted(REGIMES)), seeds)
def test_generation_0_is_the_n_real_examples_under_every_regime(n: int, kind: str, seed: int) -> None:
    ratio = 0.5 if REGIMES[kind].uses_ratio else None
    found = drawn(Regime(kind=kind, synthetic_ratio=ratio), n, 0, seed)
    assert (found.origin == REAL).all() and (found.index == np.arange(n)).all()
    assert recipe(Regime(kind=kind, synthetic_ratio=ratio), n, 0).spec == {}


@given(sizes, ratios, st.integers(1, 8), seeds, st.sampled_from(["resample", "fixed"]))
def test_replace(n: int, ratio: float, generation: int, seed: int, real_part: str) -> None:
    found = drawn(Regime(kind="replace", synthetic_ratio=ratio, real_part=real_part), n, generation, seed)
    synthetic = found.origin == generation - 1
    assert len(found) == n
    assert abs(synthetic.sum() - ratio * n) <= 0.5 + 1e-9, "0.7 is no binary fraction"
    assert (synthetic | (found.origin == REAL)).all()
    real = found.index[found.origin == REAL]
    assert len(set(real)) == len(real) and set(real) <= set(range(n))
    assert (found.index[synthetic] == np.arange(synthetic.sum())).all()


@pytest.mark.parametrize(
    ("ratio", "growth", "message"),
    [
        (0.5, {"factor": 3}, "generation 1 needs 15 real examples, there are 10"),
        (1.0, {"factor": 100}, r"generation 4 would train on 1e\+09 examples; allowed are 100,000,000"),
    ],
)
def test_growth_needs_what_there_is(ratio: float, growth: dict[str, float], message: str) -> None:
    regime = Regime(kind="replace", synthetic_ratio=ratio, growth=growth)
    with pytest.raises(DataError, match=message):
        check_supply(regime, 10, 4, 1000, None)


@given(
    st.integers(1, 60),
    st.integers(1, 6),
    st.sampled_from([{"factor": 1.5}, {"factor": 2}, {"power": 0.5}, {"power": 2}]),
)
def test_training_sets_grow(n: int, generation: int, growth: dict[str, float]) -> None:
    """n factor^g or n (g + 1)^power to the nearest, by the ratio; generation 0 has n."""
    regime = Regime(kind="replace", synthetic_ratio=1.0, growth=growth)
    exact = n * (
        growth["factor"] ** generation if "factor" in growth else (generation + 1) ** growth["power"]
    )
    made = recipe(regime, n, generation)
    assert abs(made.size - exact) <= 0.5 and recipe(regime, n, 0).size == n
    assert [part.origin for part in made.parts] == [generation - 1]
    assert made.spec != recipe(Regime(kind="replace", synthetic_ratio=1.0), n, generation).spec
    half = recipe(Regime(kind="replace", synthetic_ratio=0.5, growth=growth), n, generation)
    assert half.size == made.size and half.counts[1] == synthetic_count(0.5, made.size)


@given(seeds)
def test_the_real_part_is_drawn_anew_or_stays(seed: int) -> None:
    def real(part: str, generation: int) -> list[int]:
        found = drawn(Regime(kind="replace", synthetic_ratio=0.5, real_part=part), 200, generation, seed)
        return found.index[found.origin == REAL].tolist()

    assert real("fixed", 1) == real("fixed", 2)
    assert real("resample", 1) != real("resample", 2)
    assert real("resample", 1) == real("resample", 1)


@given(sizes, st.integers(1, 8))
def test_replace_grown_is_as_large_as_accumulate(n: int, generation: int) -> None:
    found = drawn(Regime(kind="replace_grown"), n, generation)
    assert len(found) == n * (generation + 1) == len(drawn(Regime(kind="accumulate"), n, generation))
    assert (found.origin == generation - 1).all()
    assert len(set(found.index)) == len(found)


@given(sizes, st.integers(1, 8))
def test_accumulate_is_everything_once(n: int, generation: int) -> None:
    found = drawn(Regime(kind="accumulate"), n, generation)
    pairs = set(zip(found.origin.tolist(), found.index.tolist(), strict=True))
    assert pairs == {(origin, i) for origin in [REAL, *range(generation)] for i in range(n)}
    assert len(found) == len(pairs)


@given(sizes, st.integers(1, 8), seeds)
def test_accumulate_subsample_is_n_of_the_pool(n: int, generation: int, seed: int) -> None:
    found = drawn(Regime(kind="accumulate_subsample"), n, generation, seed)
    pairs = set(zip(found.origin.tolist(), found.index.tolist(), strict=True))
    assert len(found) == len(pairs) == n
    assert pairs <= {(origin, i) for origin in [REAL, *range(generation)] for i in range(n)}


def test_accumulate_subsample_draws_evenly() -> None:
    counts = np.zeros(4)
    for seed in range(200):
        found = drawn(Regime(kind="accumulate_subsample"), 50, 3, seed)
        counts += np.bincount(found.origin + 1, minlength=4)
    # Hypergeometric: 200 draws of 50 out of 200, a quarter each; standard error of a count about 43.
    assert np.abs(counts - 2500).max() < 4 * np.sqrt(200 * 50 * 0.25 * 0.75 * 150 / 199)


@given(sizes, below_one, st.integers(1, 8))
def test_augment_keeps_all_real(n: int, ratio: float, generation: int) -> None:
    found = drawn(Regime(kind="augment", synthetic_ratio=ratio), n, generation)
    assert sorted(found.index[found.origin == REAL]) == list(range(n))
    synthetic = int((found.origin == generation - 1).sum())
    assert synthetic + n == len(found)
    assert abs(synthetic - ratio / (1 - ratio) * n) <= 0.5 + 1e-9


@given(sizes, ratios, st.integers(1, 6))
def test_fresh_real_never_shows_a_real_example_twice(n: int, ratio: float, last: int) -> None:
    regime = Regime(kind="fresh_real", synthetic_ratio=ratio)
    seen = list(range(n))
    for generation in range(1, last + 1):
        found = drawn(regime, n, generation)
        assert len(found) == n
        seen += found.index[found.origin == REAL].tolist()
    assert len(seen) == len(set(seen))
    check_supply(regime, n, last, len(seen), None)
    if len(seen) > n:
        with pytest.raises(DataError, match="1 are missing"):
            check_supply(regime, n, last, len(seen) - 1, None)


@given(
    st.integers(1, 4), generations, st.sampled_from(["replace_grown", "accumulate", "accumulate_subsample"])
)
def test_refresh_trains_every_kth_generation_on_real_data_alone(
    every: int, generation: int, kind: str
) -> None:
    regime = Regime(kind=kind, refresh={"every": every, "init": "scratch"})
    made = recipe(regime, 10, generation)
    if generation and generation % every == 0:
        assert is_refresh(regime, generation)
        assert [part.origin for part in made.parts] == [REAL] and made.size == 10 and made.init == "scratch"
    else:
        assert made == recipe(Regime(kind=kind), 10, generation)


@pytest.mark.parametrize("kind", ["replace", "replace_grown", "augment", "fresh_real"])
def test_a_fixed_corpus_takes_the_place_of_the_chains_own(kind: str) -> None:
    ratio = None if kind == "replace_grown" else 0.5
    regime = Regime(kind=kind, synthetic_ratio=ratio, source={"corpus": "somewhere.txt"})
    own = recipe(Regime(kind=kind, synthetic_ratio=ratio), 10, 2)
    made = recipe(regime, 10, 2, "fingerprint")
    assert [(p.origin, p.count) for p in made.parts] == [
        (EXTERNAL if p.origin >= 0 else p.origin, p.count) for p in own.parts
    ]
    assert made.spec["source"] == {"corpus": "fingerprint"}
    with pytest.raises(DataError, match="regime.source"):
        check_supply(regime, 10, 2, 1000, 4)


def test_the_key_holds_only_what_the_training_set_depends_on() -> None:
    fixed = recipe(Regime(kind="replace", synthetic_ratio=1.0, real_part="fixed"), 10, 1).spec
    assert fixed == recipe(Regime(kind="replace", synthetic_ratio=1.0), 10, 1).spec
    assert (
        recipe(Regime(kind="replace", synthetic_ratio=0.5, real_part="fixed"), 10, 1).spec
        != recipe(Regime(kind="replace", synthetic_ratio=0.5), 10, 1).spec
    )


def test_refresh_at_named_generations_with_fewer_examples() -> None:
    regime = Regime(kind="accumulate", refresh={"at": [2], "init": "scratch", "examples": 7})
    assert [is_refresh(regime, g) for g in range(5)] == [False, False, True, False, False]
    made = recipe(regime, 20, 2)
    assert made.size == 7 and made.spec["examples"] == 7
    drawn = draw(made, 20, 0, 2)
    assert drawn.origin.tolist() == [REAL] * 7 and drawn.index.tolist() == list(range(7))
    every = recipe(Regime(kind="accumulate", refresh={"every": 2}), 20, 2)
    same = recipe(Regime(kind="accumulate", refresh={"at": [2]}), 20, 2)
    assert every == same, "however a refresh is named, what it trains on is the same"


def test_a_fixed_teacher_writes_one_generation_for_all() -> None:
    regime = Regime(kind="replace", synthetic_ratio=0.5, source={"cell": {"a.b": 1}, "generation": 0})
    for generation in (1, 2, 5):
        assert [part.origin for part in recipe(regime, 10, generation).parts] == [REAL, 0]
    with pytest.raises(ValueError, match="fixed source"):
        Regime(kind="accumulate", source={"cell": {"a.b": 1}, "generation": 0})


def package_regime(monkeypatch: pytest.MonkeyPatch, rule: Any, **about: Any) -> None:
    """`replace` is a package's from here on, whose rule reads `anchor`."""
    plugin = RegimePlugin(rule, 1, uses_ratio=True, pools=False, uses=("anchor",), **about)
    monkeypatch.setitem(REGIMES.loaded, "replace", Loaded(plugin, "lab", "1.0"))


def test_what_a_package_trains_on_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its rule reads and gives: numbers of parts, which examples, and how many are drawn."""
    ways: list[Any] = [
        lambda r, n, g: ((Part(REAL, synthetic_count(r.anchor, n)), Part(g - 1, n)), None),
        lambda r, n, g: ((Part(REAL, n, "resample"), Part(g - 1, n)), None),
        lambda r, n, g: ((Part(REAL, n, offset=n), Part(g - 1, n)), None),
        lambda r, n, g: ((Part(REAL, n), Part(g - 1, n)), None),
        lambda r, n, g: ((Part(REAL, n), Part(g - 1, n)), n),
        lambda r, n, g: ((Part(REAL, INT(n)), Part(g - 1, n)), INT(n - 1)),
    ]
    regime = Regime(kind="replace", synthetic_ratio=1.0)
    specs = []
    for anchor, way in [(0.25, ways[0]), *((0.5, way) for way in ways)]:
        package_regime(monkeypatch, way)
        found = recipe(regime.model_copy(update={"anchor": anchor}), 20, 2)
        assert found.spec["version"] == "lab/1"
        specs.append(json.dumps(found.spec))
    assert len(set(specs)) == len(specs)


@pytest.mark.parametrize(
    ("parts", "some", "selects", "expected"),
    [
        ((Part(1, -5),), None, False, "no count or offset below 0"),
        ((Part(REAL, 5, offset=-1),), None, False, "no count or offset below 0"),
        ((Part(1, 5.0),), None, False, "whole numbers as origin, count and offset"),  # type: ignore[arg-type]
        ((Part(2, 5),), None, False, "origins of REAL or a generation from 0 to 1"),
        ((Part(EXTERNAL, 5),), None, False, "origins of REAL or a generation from 0 to 1"),
        ((Part(1, 5, LAST),), None, False, "a draw of first, resample, fixed, unseen"),
        ((Part(1, 5), Part(1, 5, offset=5)), None, False, "each corpus in one part"),
        ((Part(1, 5, pooled=True),), None, False, "pooled parts only where the regime has selects=True"),
        ((Part(1, 5, pooled=True),), None, True, "how many of the pool to take"),
        ((Part(1, 0),), None, False, "at least one example"),
        ((), None, False, "at least one example"),
        ((Part(REAL, 5), Part(1, 5)), 11, False, "to draw from 0 to 10 examples"),
        ((Part(REAL, 5),), -1, False, "to draw from 0 to 5 examples"),
        ([Part(REAL, 5)], None, False, "a tuple of parts, and a number of examples or None"),
        ((Part(REAL, 5),), 2.5, False, "a tuple of parts, and a number of examples or None"),
    ],
)
def test_what_no_package_can_train_on(
    monkeypatch: pytest.MonkeyPatch, parts: Any, some: Any, selects: bool, expected: str
) -> None:
    package_regime(monkeypatch, lambda regime, n, generation: (parts, some), selects=selects)
    with pytest.raises(DataError, match="regime.kind: the rule of replace .lab. gives") as caught:
        recipe(Regime(kind="replace", synthetic_ratio=1.0), 20, 2)
    assert f"for generation 2, expected {expected}" in str(caught.value)


def test_a_package_reads_no_more_real_examples_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    package_regime(monkeypatch, lambda regime, n, g: ((Part(REAL, g * n), Part(g - 1, n)), None))
    regime = Regime(kind="replace", synthetic_ratio=1.0)
    check_supply(regime, 20, 2, 40, None)
    with pytest.raises(DataError, match="generation 3 needs 60 real examples in all, the training split has"):
        check_supply(regime, 20, 3, 59, None)
