"""How alike corpora are: values that follow from the definitions, and the report against real data."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.metrics.homogenisation import energy_distance, jaccard, jensen_shannon
from harness.records import Examples

BUDGET = 10_000
rows = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=1, max_size=8)


def examples(lists: list[list[int]]) -> Examples:
    values = np.zeros((len(lists), max(map(len, lists))), dtype=np.int32)
    for row, items in enumerate(lists):
        values[row, : len(items)] = items
    return Examples(values, np.array([len(items) for items in lists], dtype=np.int32))


def grams(lists: list[list[int]], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(items[i : i + n]) for items in lists for i in range(len(items) - n + 1))


@given(rows, rows, st.integers(1, 4))
def test_token_measures_are_those_of_a_plain_count(first: list[list[int]], second: list[list[int]], n: int) -> None:
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
    expected = 0.0  # half of each distribution's relative entropy to their mean, which is the other way to write it
    for gram in p.keys() | q.keys():
        one, other = p[gram] / p.total(), q[gram] / q.total()
        for share in (one, other):
            expected += share / 2 * math.log2(2 * share / (one + other)) if share else 0.0
    assert divergence == pytest.approx(expected, abs=1e-9)
    assert divergence == pytest.approx(jensen_shannon(b, a, n, BUDGET), abs=1e-12)


@given(rows, st.integers(1, 3))
def test_equal_corpora_are_at_0_and_disjoint_ones_at_the_other_end(lists: list[list[int]], n: int) -> None:
    a = examples([items * 4 for items in lists])
    other = examples([[token + 6 for token in items * 4] for items in lists])
    assert jensen_shannon(a, a, n, BUDGET) == pytest.approx(0, abs=1e-12) and jaccard(a, a, n, BUDGET) == 1
    assert jensen_shannon(a, other, n, BUDGET) == pytest.approx(1) and jaccard(a, other, n, BUDGET) == 0


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
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(200), "unbiased: 0 on average for one distribution"
    # |X| of N(0, s) has mean s sqrt(2/pi): for N(0, 1) and N(0, 4), 2 sqrt(5) - sqrt(2) - sqrt(8) times sqrt(2/pi).
    wide = [energy_distance(rng.standard_normal((100, 1)), 2 * rng.standard_normal((100, 1))) for _ in range(200)]
    expected = math.sqrt(2 / math.pi) * (2 * math.sqrt(5) - math.sqrt(2) - math.sqrt(8))
    assert np.mean(wide) == pytest.approx(expected, abs=4 * np.std(wide) / math.sqrt(200))


def test_equal_samples_of_numbers_are_as_near_as_samples_can_be() -> None:
    """With y = x the cross term has n zero distances that the others leave out: the value is -2/n of the mean distance."""
    x = np.random.default_rng(1).standard_normal((40, 2))
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert energy_distance(x, x) == pytest.approx(-2 / 40 * distances.sum() / (40 * 39))
