"""Aggregates over seeds, and over pairs of chains, each with its interval."""

from __future__ import annotations

import functools
import math
import re
from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from harness.reporting.rows import Rows

LEVEL = 0.95
BOOTSTRAP_DRAWS = 2000


MIN_BOOTSTRAP = 5
"""Nothing is bootstrapped over fewer seeds, or chains: too few distinct samples can be drawn from them."""
T = TypeVar("T")
FEW = 3
"""An interval over so few seeds says so: Student's t is right for them, and very wide."""


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly chosen from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]


def short(value: float, digits: int) -> str:
    """A number in so many digits, as people write it: 2420 and not 2.42e+03."""
    shown = f"{value:.{digits}g}"
    return f"{float(shown):.0f}" if "e+" in shown and abs(value) < 1e7 else shown


def with_half(value: float, half: float, few: bool = False) -> str:
    """A number with half its interval's width in two digits: as many decimals, four digits at most.

    One more where of ``few`` seeds a single digit would be left, and as many as the interval is narrow.
    """
    if not 1e-4 <= half < 1e7:
        return f"{short(value, 4)} ± {short(half, 2)}"
    decimals = max(0, 1 - math.floor(math.log10(float(f"{half:.2g}"))))
    plain, shown = _rounded(value, decimals), f"{half:.{decimals}f}" if decimals else short(half, 2)
    if few and _digits(plain) == 1:  # their interval says little of the mean's own digits
        plain = _rounded(value, decimals + 1)
    if decimals and _digits(plain) > 4 and abs(float(short(value, 4)) - value) < half:
        plain = short(value, 4)
    return f"{plain} ± {shown}"


def _rounded(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if round(value, decimals) else "0"


def _digits(number: str) -> int:
    """Significant digits, as written."""
    return len(re.sub(r"^[-0.]+|[.]", "", number))


@dataclass(frozen=True)
class Aggregate:
    """A mean over seeds.

    Attributes:
        mean: Over the seeds with a finite value; None where there is none.
        low: Lower end of the interval; None with fewer than two seeds, and where a seed has diverged: what is
            left then is a selection, of which an interval would say nothing.
        high: Upper end.
        values: The seeds' finite values.
        missing: Seeds without a finite value, though they have a model.
        diverged: Seeds that have ended before, or here, without a finite model.
        absent: Seeds that have not come so far.
    """

    mean: float | None
    low: float | None
    high: float | None
    values: Sequence[float]
    missing: int
    diverged: int = 0
    absent: int = 0

    @property
    def total(self) -> int:
        """All seeds."""
        return len(self.values) + self.missing + self.diverged + self.absent

    def median(self, higher_is_better: bool = False) -> float | None:
        """The median of all seeds that have come so far, a diverged one worse than any value.

        None where it is such a one.
        """
        ordered = sorted(self.values, reverse=higher_is_better)
        count = len(ordered) + self.diverged
        middle = ordered[(count - 1) // 2 : count // 2 + 1] if count else []
        whole = len(middle) == (2 - count % 2 if count else 1)
        return sum(middle) / len(middle) if whole else None

    def text(self, higher_is_better: bool = False, brief: bool = False) -> str:
        """For people: the mean with its interval, and of how many seeds it is wherever that is not plain.

        Args:
            higher_is_better: Decides which end of the values is next to diverged, for the median.
            brief: For a narrow column: no words, and no median.
        """
        if self.mean is None:
            return "diverged" if self.diverged else "not finite" if self.missing else ""
        shown, count = short(self.mean, 4), f"{len(self.values)}/{self.total}"
        if self.diverged:
            middle = self.median(higher_is_better)
            median = "diverged" if middle is None else short(middle, 4)
            return (
                f"{shown}* ({count})"
                if brief
                else f"{shown}* ({count.replace('/', ' of ')} live, median {median})"
            )
        if self.low is not None and self.high is not None:
            shown = with_half(self.mean, (self.high - self.low) / 2, len(self.values) <= FEW)
        if len(self.values) < self.total:
            return f"{shown} ({count})" if brief else f"{shown} ({count.replace('/', ' of ')} seeds)"
        few = 1 < self.total <= FEW
        return f"{shown} ({self.total}{'' if brief else ' seeds'})" if few else shown


SURVIVORS = (
    "* mean of the chains that live: the others have diverged, or who writes for them has, so it is of a "
    "selection, and has no interval"
)
"""Below a table in which `Aggregate.text` has marked a mean."""


def aggregate(
    values: Iterable[float | None] | npt.NDArray[np.float64], diverged: int = 0, absent: int = 0
) -> Aggregate:
    """Mean with a 95 % interval by Student's t, over seeds.

    A value that is not finite is counted as missing, never as 0.

    Args:
        values: Of the seeds that have a model.
        diverged: Seeds that have none any more.
        absent: Seeds that have not come so far.
    """
    if not isinstance(values, np.ndarray):
        values = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    there = values[np.isfinite(values)]
    count, missing = len(there), len(values) - len(there)
    if not count:
        return Aggregate(None, None, None, (), missing, diverged, absent)
    mean = (float(np.add.accumulate(there)[-1]) + 0.0) / count  # in their order; + 0.0: a sum of -0.0 is 0
    low = high = None
    if count > 1 and not diverged:
        half = student(count - 1) * float(np.std(there, ddof=1)) / math.sqrt(count)
        low, high = mean - half, mean + half
    return Aggregate(mean, low, high, array("d", there.tobytes()), missing, diverged, absent)


@functools.cache
def student(freedom: int) -> float:
    """Half the width of Student's interval, in standard errors."""
    from scipy.special import stdtrit  # 0.2 s of every run, and many have one seed; scipy.stats takes more

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def paired_shares(more: int, fewer: int, count: int) -> tuple[float, float]:
    """The 95 % interval of the difference of two shares of the same seeds, by Tango's score test.

    It holds what the test of the difference does not reject (Tango 1998, Statist. Med. 17:891), as Wilson's
    does for one share: it has a width where all pairs are alike, and no end beyond -1 or 1. Where the
    difference is 0 the test is McNemar's, without a correction.

    Args:
        more: Pairs of which the first alone is 1.
        fewer: Pairs of which the second alone is 1.
        count: All pairs, at least one.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtri

    reach, found = float(ndtri((1 + LEVEL) / 2)), (more - fewer) / count

    def beyond(difference: float) -> float:
        """By how many standard errors what was found lies above a difference, were that the true one."""
        half = ((2 * count - more + fewer) * difference - more - fewer) / (4 * count)
        root = math.sqrt(max(0.0, half * half + fewer * difference * (1 - difference) / (2 * count)))
        variance = count * (2 * (root - half) + difference * (1 - difference))
        apart = more - fewer - count * difference
        # at an end there is no variance, and what is not the end itself is as far from it as can be
        return (
            apart / math.sqrt(variance) if variance > 0 else math.copysign(2 * reach, apart) if apart else 0.0
        )

    low = brentq(lambda at: beyond(at) - reach, -1.0, found) if found > -1 else -1.0
    high = brentq(lambda at: beyond(at) + reach, found, 1.0) if found < 1 else 1.0
    return float(low), float(high)


def one_more(values: Sequence[float]) -> tuple[float, float]:
    """Where one more value of a normal sample would lie with 95 %: the middle, and how far to either side.

    The interval of a prediction, not of the mean: t s sqrt(1 + 1/n).

    Args:
        values: At least two.
    """
    count = len(values)
    spread = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / count)
    return float(np.mean(values)), student(count - 1) * spread


def aggregate_pairs(values: Mapping[tuple[str, str], float], random: np.random.Generator) -> Aggregate:
    """Mean over pairs of chains, with a 95 % percentile bootstrap interval.

    Pairs with a chain in common are not independent, so chains are drawn with replacement, and not pairs: a
    pair counts the product of how often its chains were drawn (Snijders and Borgatti 1999, Connections
    22:161; here a chain makes no pair with itself).

    Args:
        values: Pair of chains to value; one that is not finite is counted as missing.
        random: Draws the chains.

    Returns:
        Without an interval where there are fewer than `MIN_BOOTSTRAP` chains.
    """
    finite = {pair: value for pair, value in values.items() if math.isfinite(value)}
    missing = len(values) - len(finite)
    if not finite:
        return Aggregate(None, None, None, (), missing)
    found = np.array(list(finite.values()))
    low = high = None
    names = {name: index for index, name in enumerate(sorted({name for pair in finite for name in pair}))}
    if len(names) >= MIN_BOOTSTRAP:
        first, second = (np.array([names[pair[side]] for pair in finite]) for side in (0, 1))
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=BOOTSTRAP_DRAWS)
        weights = (drawn[:, first] * drawn[:, second]).astype(np.float64)
        weights = weights[weights.sum(axis=1) > 0]
        low, high = _central(weights @ found / weights.sum(axis=1))
    return Aggregate(float(found.mean()), low, high, tuple(found.tolist()), missing)


def spread(values: Iterable[float]) -> Aggregate:
    """The mean of values and the range of their central 95 %.

    Where one more is expected, not how well the mean is known.
    """
    given = list(values)
    finite = np.array([value for value in given if math.isfinite(value)])
    if not len(finite):
        return Aggregate(None, None, None, (), len(given))
    low, high = _central(finite) if len(finite) > 1 else (None, None)
    return Aggregate(float(finite.mean()), low, high, tuple(finite.tolist()), len(given) - len(finite))


def _central(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def curves(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str], metric: str, seeds: Collection[int] = ()
) -> dict[tuple[Any, ...], dict[int, Aggregate]]:
    """A metric against generation for every cell: cell to generation to aggregate over seeds.

    Nothing of cells whose learner does not measure it.

    Args:
        rows: From `ledger.rows`.
        axes: The axes that tell cells apart.
        metric: A column.
        seeds: Those that every cell is run with, so that one without any row is counted too; those with rows
            when empty.
    """
    found = Rows.of(rows)
    values, known = found.values(metric), dict[tuple[Any, ...], set[int]]()
    measured = set[tuple[Any, ...]]()
    for series in found.series(axes):
        known.setdefault(series.cell, set()).add(series.seed)
        if series.cell not in measured and found.measures(series, metric):
            measured.add(series.cell)
    return {
        cell: {
            at: aggregate(values[step.places], step.diverged, total - step.diverged - len(step.places))
            for at, step in (steps.items() if cell in measured else ())
        }
        for cell, steps in found.steps(axes).items()
        for total in [len(known[cell].union(seeds))]
    }
