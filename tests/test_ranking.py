"""Ranks of the board on synthetic entries whose truth is known: how often they say something wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from harness.board.ranking import bounds, pareto, rank, smallest_p, told_apart


def wrong(benefits: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the true ranks of any entry lie outside of what is said of it."""
    first, last = bounds(benefits)
    better = truth[:, None] > truth[None, :]
    return bool((first > 1 + better.sum(axis=0)).any() or (last < len(truth) - better.sum(axis=1)).any())


@pytest.mark.parametrize("seeds", [5, 20])
@pytest.mark.parametrize("noise", ["normal", "laplace"])
def test_a_board_is_wrong_anywhere_in_one_of_20(seeds: int, noise: str) -> None:
    """Twelve entries in groups of equals, with what seeds have in common; 2,000 boards: at most 5 % are
    wrong anywhere, but for the scatter of 2,000 (three standard errors: 1.5 %)."""
    random = np.random.default_rng(1)
    truth = np.repeat([0.0, 0.1, 0.3, 1.0], 3)
    count = 0
    for _ in range(2000):
        shared = random.normal(size=(1, seeds))
        own = getattr(random, noise)(size=(len(truth), seeds)) * 0.2
        count += wrong(truth[:, None] + shared + own, truth)
    assert count / 2000 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


@pytest.mark.slow
def test_a_board_of_300_entries() -> None:
    """Nobody is placed wrongly on more than 5 % of boards (three standard errors above), and entries that
    are far apart are told apart."""
    random = np.random.default_rng(2)
    truth = np.repeat(np.arange(10) * 0.5, 30)
    count, apart = 0, list[float]()
    for _ in range(60):
        benefits = truth[:, None] + random.normal(size=(300, 10)) * 0.1
        count += wrong(benefits, truth)
        apart.append(float(told_apart(benefits)[-30:, :30].mean()))
    assert count / 60 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)
    assert np.mean(apart) > 0.99, "nine steps of five standard deviations"


def test_equals_are_told_apart_rarely_and_all_alike_never() -> None:
    same = np.ones((4, 6))
    assert not told_apart(same).any()
    assert [(item.rank, item.last, item.first) for item in rank(same)] == [(1, 4, 0.25)] * 4
    better = np.stack([np.ones(6), np.full(6, 2.0)])
    assert [(item.rank, item.last, item.first) for item in rank(better)] == [(2, 2, 0.0), (1, 1, 1.0)]


def test_first_is_how_often_an_entry_would_be_first() -> None:
    """Two seeds that disagree: of the four samples of two seeds one has the second seed alone, and two are
    equal parts."""
    benefits = np.array([[3.0, 0.0], [0.0, 1.0]])
    found = [item.first for item in rank(benefits)]
    assert found == pytest.approx([0.75, 0.25], abs=0.04) and sum(found) == pytest.approx(1)


@given(arrays.arrays(np.float64, (5, 6), elements=st.floats(-10, 10).map(lambda x: round(x, 3))))
def test_ranks_agree_with_each_other(benefits: np.ndarray) -> None:
    found = rank(benefits)
    means = benefits.mean(axis=1)
    assert min(item.rank for item in found) == 1 and max(item.last for item in found) == 5
    assert sum(item.first for item in found) == pytest.approx(1)
    better = told_apart(benefits)
    assert not (better & better.T).any()
    assert all(means[i] > means[j] for i, j in zip(*np.nonzero(better), strict=True))
    order = np.array([3, 1, 4, 0, 2])
    again = rank(benefits[order])
    assert [(a.rank, a.last) for a in again] == [(found[i].rank, found[i].last) for i in order]


def test_what_cannot_be_ranked() -> None:
    assert rank(np.zeros((0, 5))) == []
    for bad in (np.zeros((3, 1)), np.full((2, 5), np.nan)):
        with pytest.raises(ValueError, match="finite"):
            rank(bad)
    assert smallest_p(5) == 0.0625, "two of 32 assignments of signs"


def test_pareto() -> None:
    assert pareto([1, 2, 2, 3], [1, 1, 2, 5]) == [False, True, False, True]
    assert pareto([1, 1], [1, 1]) == [True, True]
