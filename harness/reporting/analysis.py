"""What only many chains show: when minorities are lost, and up to which synthetic ratio a chain holds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.metrics.catalogue import about
from harness.reporting.rows import Rows
from harness.reporting.statistics import LEVEL, MIN_BOOTSTRAP
from harness.streams import stream

RATIO = "regime.synthetic_ratio"
RESAMPLES = 2000


@dataclass(frozen=True)
class LostShare:
    """When one share of one cell is lost.

    Attributes:
        cell: Values of the axes.
        share: Name of the share.
        lost: Seed to the first generation from which on it is 0; None where it comes back, or is there at the
            chain's end.
        ended: Of seeds in which it was still there: the generation in which the chain has diverged.
        open: Of seeds whose chain is not finished, so that a share that is 0 just now may come back: the last
            generation in which it was there.
    """

    cell: tuple[Any, ...]
    share: str
    lost: dict[int, int | None]
    ended: dict[int, int]
    open: dict[int, int]

    @property
    def text(self) -> str:
        """What was found, in a sentence."""
        when = sorted(generation for generation in self.lost.values() if generation is not None)
        others = [
            f"{len(part)} {what}"
            for part, what in ((self.ended, "diverged before"), (self.open, "not finished"))
            if part
        ]
        some = f"in {len(when) or 'none'} of {len(self.lost)}" if self.lost else "not known"
        if when:
            others.insert(0, f"median generation {median(when):g}, {when[0]} to {when[-1]}")
        return "; ".join([some, *others])

    @property
    def by_seed(self) -> str:
        """Every seed with its generation."""
        said = {seed: "never" if when is None else str(when) for seed, when in self.lost.items()}
        said |= {seed: f"diverged in {when}" for seed, when in self.ended.items()}
        said |= {seed: f"not by {when}" for seed, when in self.open.items()}
        return ", ".join(f"{seed}: {what}" for seed, what in sorted(said.items()))


def losses(rows: Iterable[Mapping[str, Any]], axes: Sequence[str]) -> list[LostShare]:
    """For every ``share/...`` and the seeds in which it is there in generation 0: from when on it is lost.

    A chain that has not come as far as another one of its cell is not finished: of it nothing is known yet.
    """
    table = Rows.of(rows)
    found: dict[tuple[tuple[Any, ...], str], LostShare] = {}
    shares = {name: table.values(name) for name in sorted(table.names) if name.startswith("share/")}
    every = table.series(axes) if shares else ()
    last: dict[tuple[Any, ...], int] = {}
    for series in every:
        last[series.cell] = max(last.get(series.cell, 0), int(table.generation[series.places[-1]]))
    for series in every:
        for name, values in shares.items():
            known = series.places[~np.isnan(values[series.places])]
            if not len(known) or table.generation[known[0]] or not values[known[0]] > 0:
                continue
            share = name.removeprefix("share/")
            of = found.setdefault((series.cell, share), LostShare(series.cell, share, {}, {}, {}))
            reached = int(table.generation[known[-1]])
            there, gone = _from_then_on(table.generation[known], values[known])
            if gone is None and series.ended is not None:
                of.ended[series.seed] = series.ended
            elif series.ended is None and reached < last[series.cell]:
                of.open[series.seed] = there
            else:
                of.lost[series.seed] = gone
    return list(found.values())


def _from_then_on(
    generations: npt.NDArray[np.int64], shares: npt.NDArray[np.float64]
) -> tuple[int, int | None]:
    """The last generation in which a share is there, and the first one from which on it is 0."""
    last = int(np.flatnonzero(shares > 0)[-1])
    return int(generations[last]), int(generations[last + 1]) if last + 1 < len(shares) else None


@dataclass(frozen=True)
class Critical:
    """The synthetic ratio up to which the last generation is no worse than the first.

    Attributes:
        cell: Values of the other axes.
        metric: What is compared.
        generation: The last generation, that of the longest chain.
        ratio: Where the mean worsening crosses the tolerance, by linear interpolation; the largest ratio
            where it never does; None where fewer than two seeds have come so far.
        low: Lower end of the bootstrap interval over seeds; infinite where it lies beyond the largest ratio;
            None with fewer than `MIN_BOOTSTRAP` seeds.
        high: Upper end; likewise.
        beyond: The tolerance is not crossed by any ratio of the grid.
        tolerance: Standard deviation of generation 0 over seeds: a chain that is worse by less is within what
            another seed does.
        ratios: How many ratios there are.
        seeds: How many seeds have come to the last generation, or diverged, with every ratio; the others are
            left out.
        unfinished: How many these are.
    """

    cell: tuple[Any, ...]
    metric: str
    generation: int
    ratio: float | None
    low: float | None
    high: float | None
    beyond: bool
    tolerance: float | None
    ratios: int
    seeds: int
    unfinished: int


def critical_ratios(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str], metric: str, seeds: Collection[int] = ()
) -> list[Critical]:
    """The critical ratio of every setting of the other axes that has three ratios or more.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        metric: Higher is worse, unless the catalogue says lower.
        seeds: Those that every cell is run with; those with rows when empty.
    """
    if RATIO not in axes:
        return []
    table, others = Rows.of(rows), [axis for axis in axes if axis != RATIO]
    values = table.values(metric)
    cells: dict[tuple[Any, ...], dict[float, dict[int, _Chain]]] = {}
    for series in table.series([*others, RATIO]):
        *cell, ratio = series.cell
        if ratio is not None:
            generations = table.generation[series.places].tolist()
            curve = dict(zip(generations, values[series.places].tolist(), strict=True))
            by_ratio = cells.setdefault(tuple(cell), {})
            by_ratio.setdefault(float(ratio), {})[series.seed] = _Chain(curve, series.ended is not None)
    found = (
        _critical(cell, by_ratio, metric, seeds) for cell, by_ratio in cells.items() if len(by_ratio) >= 3
    )
    return [item for item in found if item.seeds or item.unfinished]


@dataclass(frozen=True)
class _Chain:
    """A metric by generation, NaN where it is missing or not finite, and whether the chain has diverged."""

    curve: Mapping[int, float]
    diverged: bool


def _critical(
    cell: tuple[Any, ...], by_ratio: Mapping[float, Mapping[int, _Chain]], metric: str, seeds: Collection[int]
) -> Critical:
    sign = -1.0 if about(metric).worse == "lower" else 1.0
    ratios = sorted(by_ratio)
    last = max(
        generation for chains in by_ratio.values() for chain in chains.values() for generation in chain.curve
    )
    known = sorted(set(seeds) | {seed for chains in by_ratio.values() for seed in chains})

    def worsening(ratio: float, seed: int) -> float | None:
        """None where it is not known yet; a chain without a finite last model is as much worse as can be."""
        chain = by_ratio[ratio].get(seed, _Chain({}, False))
        first = chain.curve.get(0, math.nan)
        if math.isnan(first) or (last not in chain.curve and not chain.diverged):
            return None
        final = chain.curve.get(last, math.nan)
        return math.inf if math.isnan(final) else sign * (final - first)

    whole = {seed: [worsening(ratio, seed) for ratio in ratios] for seed in known}
    used = [seed for seed in known if None not in whole[seed]]
    counts = (len(ratios), len(used), len(known) - len(used))
    if len(used) < 2:
        return Critical(cell, metric, last, None, None, None, False, None, *counts)
    worse = np.array([whole[seed] for seed in used], dtype=np.float64).T
    tolerance = float(np.std([by_ratio[ratios[0]][seed].curve[0] for seed in used], ddof=1))
    ratio, low, high = _crossing(ratios, worse.mean(axis=1), tolerance), None, None
    if len(used) >= MIN_BOOTSTRAP:
        draws = stream(0, 0, "critical_ratio").integers(0, len(used), (RESAMPLES, len(used)))
        resampled = [_crossing(ratios, worse[:, draw].mean(axis=1), tolerance) for draw in draws]
        # Quantiles that are members of the sample: between a number and infinity there is nothing to
        # interpolate.
        ends = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="inverted_cdf")
        low, high = float(ends[0]), float(ends[1])
    beyond = math.isinf(ratio)
    return Critical(
        cell, metric, last, ratios[-1] if beyond else ratio, low, high, beyond, tolerance, *counts
    )


def _crossing(ratios: Sequence[float], worse: Any, tolerance: float) -> float:
    """Where a curve first rises above the tolerance; infinity if it never does."""
    above = np.flatnonzero(np.asarray(worse) > tolerance)
    if not len(above):
        return math.inf
    i = int(above[0])
    if i == 0:
        return ratios[0]
    share = (tolerance - worse[i - 1]) / (worse[i] - worse[i - 1])
    return float(ratios[i - 1] + share * (ratios[i] - ratios[i - 1]))
