"""Which entries can be told apart, and what ranks follow from that.

Every entry has one number per seed: how much less it worsens than the baseline does with the same seed. Two
entries differ where a paired t test over the seeds says so after Holm's correction for all pairs of the board
(Holm 1979, Scand. J. Statist. 6:65), so the probability that any pair is told apart wrongly, or the wrong way
round, is at most 5 % for a whole board. An entry's rank is 1 + the number of entries that are better beyond
doubt; with those that are worse beyond doubt it bounds the true ranks of all entries at once (Mogstad,
Romano, Shaikh, Wilhelm 2024, Rev. Econ. Stud. 91:476). Entries that share a rank are a tie group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from harness.streams import stream

LEVEL = 0.95
DRAWS = 2000
"""Samples of seeds for ``first``."""
BLOCK = 200
"""Samples of seeds that are looked at together."""


@dataclass(frozen=True)
class Rank:
    """Where an entry stands.

    Attributes:
        rank: 1 + how many entries are better beyond doubt; entries with the same rank are tied.
        last: How many there are, less those that are worse beyond doubt: the true rank is between the two.
        first: Share of samples of the seeds in which its mean is the best; two that are equally good share.
    """

    rank: int
    last: int
    first: float


def rank(benefits: npt.NDArray[np.float64]) -> list[Rank]:
    """Rank entries.

    Args:
        benefits: Shape [entries, seeds]; higher is better, all of the same seeds in the same order.

    Returns:
        One rank per entry, in the order of the rows.

    Raises:
        ValueError: A number is not finite, or there are fewer than two seeds.
    """
    if benefits.ndim != 2 or benefits.shape[1] < 2 or not np.isfinite(benefits).all():
        raise ValueError("benefits must be finite, with two seeds or more")
    if not len(benefits):
        return []
    places, lasts = bounds(benefits)
    return [
        Rank(int(place), int(last), float(first))
        for place, last, first in zip(places, lasts, _firsts(benefits), strict=True)
    ]


def bounds(benefits: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The first and the last rank that each entry may truly have; each of shape [entries]."""
    better = told_apart(benefits)
    return 1 + better.sum(axis=0), len(benefits) - better.sum(axis=1)


def told_apart(benefits: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Whether row i is better than row j beyond doubt; shape [entries, entries]."""
    count, seeds = benefits.shape
    found = np.zeros((count, count), dtype=np.bool_)
    one, other = np.triu_indices(count, 1)
    if not len(one):
        return found
    p = np.concatenate([_p_values(benefits, one[a : a + 10_000], other[a : a + 10_000])
                        for a in range(0, len(one), 10_000)])  # fmt: skip
    order = np.argsort(p, kind="stable")
    rejected = p[order] <= (1 - LEVEL) / np.arange(len(p), 0, -1)
    stop = (
        len(p) if rejected.all() else int(np.argmin(rejected))
    )  # step down: none behind the first that stays
    apart = order[:stop]
    means = benefits.mean(axis=1)
    upper = means[one[apart]] > means[other[apart]]
    winners = np.where(upper, one[apart], other[apart])
    losers = np.where(upper, other[apart], one[apart])
    found[winners, losers] = True
    return found


def _p_values(
    benefits: npt.NDArray[np.float64], one: npt.NDArray[np.intp], other: npt.NDArray[np.intp]
) -> npt.NDArray[np.float64]:
    """Two-sided p of a paired t test for each pair of rows."""
    difference = benefits[one] - benefits[other]
    seeds = benefits.shape[1]
    mean, error = difference.mean(axis=1), difference.std(axis=1, ddof=1) / np.sqrt(seeds)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(mean) / error
    # Where all seeds say exactly the same, there is no error: apart unless they say that the two are equal.
    t = np.where(error > 0, t, np.where(mean == 0, 0.0, np.inf))
    found: npt.NDArray[np.float64] = 2 * stdtr(seeds - 1, -t)
    return found


def _firsts(benefits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    count, seeds = benefits.shape
    random, total = stream(0, 0, "board_first"), np.zeros(count)
    drawn = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS).astype(np.float64)
    for start in range(0, DRAWS, BLOCK):
        means = drawn[start : start + BLOCK] @ benefits.T
        best = np.isclose(means, means.max(axis=1, keepdims=True), rtol=1e-12, atol=0.0)
        total += (best / best.sum(axis=1, keepdims=True)).sum(axis=0)
    return total / DRAWS


def smallest_p(seeds: int) -> float:
    """The smallest p that seeds can give without an assumption about their distribution.

    All differences have one sign: two of the 2^seeds assignments of signs are as extreme (Fisher's
    randomisation test).
    """
    return float(2.0 ** (1 - seeds))


def pareto(benefit: Sequence[float], cost: Sequence[float]) -> list[bool]:
    """Whether no other entry is at least as good at no higher cost, and better in one of the two."""
    points = list(zip(benefit, cost, strict=True))
    return [
        not any(b >= mine and c <= price and (b > mine or c < price) for b, c in points)
        for mine, price in points
    ]
