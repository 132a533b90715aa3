"""Verdicts: what a paper says, beside what the records say, with the interval over seeds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from harness.config.grid import SHAPED, find_cells
from harness.config.naming import cell_name
from harness.config.schema import Claim, Statistic
from harness.metrics.catalogue import among
from harness.reporting.early import MIN_SEEDS as SCATTER_SEEDS
from harness.reporting.early import first_moves
from harness.reporting.growth import curvatures, evidence, leads, middle, slopes, until
from harness.reporting.populations import Curve, Group, as_one, whole
from harness.reporting.rows import Rows
from harness.reporting.statistics import LEVEL, aggregate, one_more, paired_shares
from harness.reporting.worth import exchange, undoing
from harness.study import Prepared
from harness.terminal import counted

ClaimVerdict = Literal["reproduced", "contradicted", "undecided"]
SHARES = ("exceeds_first", "lost")
"""Statistics that are 0 or 1 for a seed: their mean is a share, with Wilson's interval, and their difference
from another cell that of two shares, with Tango's."""
MIN_SEEDS = 5
"""With fewer seeds nothing is decided."""
MEDIAN_SEEDS = 6
"""Fewer give the median of an ``until`` no interval."""


@dataclass(frozen=True)
class Judgement:
    """A claim and what came of it.

    Attributes:
        claim: The claim.
        verdict: ``reproduced``: all of the interval lies where the claim says; ``contradicted``: none of it;
            else ``undecided``.
        value: Mean over seeds; None where there is none.
        low: Lower end of the interval.
        high: Upper end.
        seeds: Seeds with a value.
        reason: Why nothing is decided; empty otherwise.
    """

    claim: Claim
    verdict: ClaimVerdict
    value: float | None
    low: float | None
    high: float | None
    seeds: int
    reason: str = ""


@dataclass(frozen=True)
class _Known:
    """What the records say.

    Attributes:
        prepared: The study.
        series: Cell and metric to seed to values by generation.
        ended: Cell and seed to the generation in which the chain has diverged.
        populations: What stands for a population in the place of a cell (below 0).
    """

    prepared: Prepared
    series: dict[tuple[int, str], dict[int, Curve]]
    ended: dict[tuple[int, int], int]
    populations: dict[int, Group] = field(default_factory=dict)

    def cell(self, statistic: Statistic, where: Mapping[str, Any]) -> int:
        """The cell that a claim names; for one over a population what stands for it, with its curves."""
        found = find_cells(self.prepared.study, where)
        if statistic.over is None:
            return found[0]
        group, number = whole(self.prepared.study, found), -1 - len(self.populations)
        self.populations[number] = group
        for metric in filter(None, (statistic.metric, statistic.than)):
            of_cells = {cell: self.series.get((cell, metric), {}) for cell in group.cells}
            curves = as_one(group, of_cells, metric, statistic.over)
            self.series[number, metric] = {seed: dict(curve) for seed, curve in curves.items()}
        for cell, start in zip(group.cells, group.arrives, strict=True):
            for (of, seed), generation in list(self.ended.items()):
                if of == cell:
                    first = min(generation + start, self.ended.get((number, seed), generation + start))
                    self.ended[number, seed] = first
        return number

    def last(self, statistic: Statistic, cell: int) -> int:
        """The generation that is taken as the last one."""
        group = self.populations.get(cell)
        own = self.prepared.study.cells[cell].config.generations if group is None else group.last
        return own if statistic.generation is None else statistic.generation

    def diverged(self, statistic: Statistic, cells: Iterable[int]) -> dict[tuple[int, int], int]:
        """Cell and seed of chains of these cells to the generation in which they have diverged.

        Those that diverge behind the generation that is asked for are alive in it, and left out.
        """
        last = {cell: self.last(statistic, cell) for cell in cells}
        return {place: when for place, when in self.ended.items() if when <= last.get(place[0], -1)}


def judge(prepared: Prepared, rows: Iterable[Mapping[str, Any]]) -> list[Judgement]:
    """The verdict on every claim of a configuration.

    Args:
        prepared: The study.
        rows: From `ledger.rows`.
    """
    cells = {chain.id: chain.cell for chain in prepared.chains}
    series: dict[tuple[int, str], dict[int, Curve]] = {}
    metrics = {claim.statistic.metric for claim in prepared.study.base.claims}
    metrics |= {claim.statistic.than for claim in prepared.study.base.claims if claim.statistic.than}
    table = Rows.of(rows)
    chains = table.series(("chain",)) if metrics else []
    for metric in metrics:
        values = table.values(metric)
        for chain in chains:
            found = series.setdefault((cells[chain.cell[0]], metric), {}).setdefault(chain.seed, {})
            found |= table.curve(chain, values)
    ended = {(cells[chain.cell[0]], chain.seed): chain.ended for chain in chains if chain.ended is not None}
    known_all = _Known(prepared, series, ended)
    return [_judge(known_all, claim) for claim in prepared.study.base.claims]


def _judge(known: _Known, claim: Claim) -> Judgement:
    statistic = claim.statistic
    if not all(find_cells(known.prepared.study, where) for _, where in statistic.cells):
        return Judgement(claim, "undecided", None, None, None, 0, "--set leaves its cells out")
    cells = [known.cell(statistic, where) for _, where in statistic.cells]
    of_seeds: Mapping[int, Any]
    if statistic.beside:
        of_seeds = _triples(known, statistic, cells)
    else:
        of_seeds = _values(known, statistic, cells[0])
        if statistic.minus is not None:
            others = _values(known, statistic, cells[1])
            both = {seed: value - others[seed] for seed, value in of_seeds.items() if seed in others}
            of_seeds = {seed: value for seed, value in both.items() if not math.isnan(value)}
    total = len(known.prepared.study.seeds)
    ended = {seed for _, seed in known.diverged(statistic, cells)} - of_seeds.keys()
    if not of_seeds:
        why = _nothing(known, statistic, cells, len(ended), total)
        return Judgement(claim, "undecided", None, None, None, 0, why)
    value, low, high, least = _summary(known, statistic, cells, of_seeds)
    if value is not None and math.isnan(value):
        why = "as many seeds in which it moves and the other does not as the other way round"
        return Judgement(claim, "undecided", None, None, None, len(of_seeds), why)
    undefined = _undefined(known, statistic, cells)
    reason = _reservation(len(ended), len(of_seeds), total, least, undefined)
    if ended:
        # A mean over those that live says nothing of the cell: no verdict, and no interval.
        low = high = None
    elif not reason and low is None and statistic.beside:
        reason = "the metric may not change at all with the examples that it is divided by"
    verdict: ClaimVerdict = "undecided"
    if not reason and low is not None and high is not None:
        verdict = compare(claim, low, high)
    return Judgement(claim, verdict, value, low, high, len(of_seeds), reason)


def _reservation(ended: int, there: int, total: int, least: int, undefined: Mapping[int, str]) -> str:
    """Why nothing is decided; empty where nothing is in the way."""
    if ended:
        return f"{ended} of {total} seeds have diverged, and the value is of those that live"
    if there < total:
        unknown = total - there - len(undefined)
        reasons = [f"{why} in {n} of {total} seeds" for why, n in Counter(undefined.values()).items()]
        if unknown > 0:
            reasons.append(f"{unknown} of {total} seeds have no finite value, or are not finished")
        return "; ".join(reasons)
    return f"{counted(there, 'seed')}, {least} are needed" if there < least else ""


def _nothing(known: _Known, statistic: Statistic, cells: Sequence[int], ended: int, total: int) -> str:
    """Why no seed has a value."""
    if ended == total:
        return "all seeds have diverged"
    for name in filter(None, (statistic.metric, statistic.than)):
        found = [known.series.get((cell, name), {}) for cell in cells]
        if not all(any(of_cell.values()) for of_cell in found):
            return f"no record has a finite {name} there"
        firsts = sum(0 in curve for curve in found[0].values())
        if statistic.of == "lead" and firsts < SCATTER_SEEDS:
            have = counted(total, "seed")
            if firsts < total:
                have = f"{firsts} of {have} with a finite {name} in generation 0"
            return f"{have}, {SCATTER_SEEDS} are needed (for a verdict {MEDIAN_SEEDS})"
    undefined = _undefined(known, statistic, cells)
    if undefined:
        others = _reservation(0, 0, total - ended, 0, undefined)
        return f"{ended} of {total} seeds have diverged; of the others {others}" if ended else others
    if ended:
        return f"{ended} of {total} seeds have diverged, and no other has a value"
    generation = max(known.last(statistic, cell) for cell in cells)
    return f"no record of generation {generation} has a finite {statistic.metric} there"


def _undefined(known: _Known, statistic: Statistic, cells: Sequence[int]) -> dict[int, str]:
    """By seed why a statistic has no value though the metric has all of its own."""
    found: dict[int, str] = {}
    if statistic.of == "lead":
        mine, other = _moves(known, statistic, cells[0], known.last(statistic, cells[0]))
        still = (seed for seed in mine.keys() & other.keys() if math.isinf(mine[seed] + other[seed]))
        return {s: "neither metric moves" for s in sorted(still) if mine[s] == other[s]}
    if statistic.of == "until" and statistic.minus is not None:
        one, two = (_values(known, statistic, cell) for cell in cells)
        return {
            s: "it comes about in neither cell" for s in one if math.isinf(one[s]) and one[s] == two.get(s)
        }
    if statistic.of in ("ratio", "log_ratio"):
        for cell in cells:
            for seed, curve in known.series.get((cell, statistic.metric), {}).items():
                first, final = curve.get(statistic.baseline), curve.get(known.last(statistic, cell))
                if first is None or final is None:
                    continue
                if first == 0:
                    found[seed] = f"generation {statistic.baseline} has 0, of which there is no ratio,"
                elif statistic.of == "log_ratio" and final / first <= 0:
                    found[seed] = "the ratio is not above 0, and has no logarithm,"
    return found


def _summary(
    known: _Known, statistic: Statistic, cells: Sequence[int], of_seeds: Mapping[int, Any]
) -> tuple[float | None, float | None, float | None, int]:
    """The value over the seeds, its interval, and how many seeds have to be there."""
    numbers = [of_seeds[seed] for seed in sorted(of_seeds)]
    if statistic.beside:
        counts = [known.prepared.specs[cell].recipe(known.last(statistic, cell)).counts for cell in cells]
        ratio = (
            exchange(counts[0], counts[1:], of_seeds)
            if statistic.of == "worth"
            else undoing(counts[1][0] - counts[0][0], of_seeds)
        )
        return ratio.value, ratio.low, ratio.high, MIN_SEEDS
    if statistic.of in ("until", "lead"):
        return *middle(numbers), MEDIAN_SEEDS
    found = aggregate(numbers)
    low, high = found.low, found.high
    if statistic.of in SHARES and statistic.minus is not None:
        low, high = paired_shares(numbers.count(1), numbers.count(-1), len(numbers))
    elif statistic.of in SHARES:
        from scipy.stats import binomtest

        interval = binomtest(int(sum(numbers)), len(numbers)).proportion_ci(LEVEL, method="wilson")
        low, high = float(interval.low), float(interval.high)
    return found.mean, low, high, MIN_SEEDS


def _triples(
    known: _Known, statistic: Statistic, cells: Sequence[int]
) -> dict[int, tuple[float, float, float]]:
    """The three values of every seed that a claim about the value of real data compares."""
    found = [known.series.get((cell, statistic.metric), {}) for cell in cells]
    triples = {}
    for seed in set.intersection(*(set(of_cell) for of_cell in found)):
        last = [of_cell[seed].get(known.last(statistic, c)) for of_cell, c in zip(found, cells, strict=True)]
        if statistic.of == "undone":
            last = [found[0][seed].get(statistic.baseline), *last]
        one, two, three = last
        if one is not None and two is not None and three is not None:
            triples[seed] = (one, two, three)
    return triples


def compare(claim: Claim, low: float, high: float) -> ClaimVerdict:
    """Where an interval lies, seen from the range of a claim."""
    least = claim.above if claim.above is not None else claim.between[0] if claim.between else -math.inf
    most = claim.below if claim.below is not None else claim.between[1] if claim.between else math.inf
    # the median of what may never come about can have an infinite end, which an open range holds
    if (least < low or least == -math.inf) and (high < most or most == math.inf):
        return "reproduced"
    return "contradicted" if high <= least or low >= most else "undecided"


def _values(known: _Known, statistic: Statistic, cell: int) -> dict[int, float]:
    """The statistic of every seed of a cell that has one; infinite for what never comes about."""
    found = known.series.get((cell, statistic.metric), {})
    last = known.last(statistic, cell)
    if statistic.of == "until":
        return _untils(known, statistic, cell, found, last)
    if statistic.of == "lead":
        return _leads(known, statistic, cell, last)
    limit = math.inf
    firsts = [item[0] for item in found.values() if 0 in item]
    if statistic.of == "exceeds_first" and len(firsts) > 1:
        limit = sum(one_more(firsts))
    values = {}
    for seed, item in found.items():
        value = _of(item, statistic, last, limit)
        if value is not None and math.isfinite(value):
            values[seed] = value
    return values


def _untils(
    known: _Known, statistic: Statistic, cell: int, found: Mapping[int, Curve], last: int
) -> dict[int, float]:
    """Generations until the threshold, of every seed that has reached it, diverged, or come to its end."""
    values, ended = {}, known.diverged(statistic, [cell])
    for seed, item in found.items():
        curve = {g: value for g, value in item.items() if g <= last}
        when = until(curve, statistic.threshold or 0.0, statistic.baseline, ended.get((cell, seed)))
        if statistic.baseline in curve and (math.isfinite(when) or last in curve):
            values[seed] = when
    return values


def _leads(known: _Known, statistic: Statistic, cell: int, last: int) -> dict[int, float]:
    """By how many generations the metric moves before the other one; none where neither does."""
    mine, other = _moves(known, statistic, cell, last)
    both = {seed: (mine[seed], other[seed]) for seed in mine.keys() & other.keys()}
    return {seed: b - a for seed, (a, b) in both.items() if not (math.isinf(a) and math.isinf(b))}


def _moves(
    known: _Known, statistic: Statistic, cell: int, last: int
) -> tuple[dict[int, float], dict[int, float]]:
    """When both metrics of a lead move first, by seed."""
    assert statistic.than is not None
    mine, other = (
        first_moves(known.series.get((cell, name), {}), last) for name in (statistic.metric, statistic.than)
    )
    ended = known.diverged(statistic, [cell])  # what has ended might yet have moved
    return mine, {seed: when for seed, when in other.items() if (cell, seed) not in ended}


def _of(item: Curve, statistic: Statistic, last: int, limit: float) -> float | None:
    known = {g: value for g, value in item.items() if g <= last}
    first, final = item.get(statistic.baseline), known.get(last)
    if statistic.of == "first":
        return first
    if final is None:
        return None
    match statistic.of:
        case "last":
            return final
        case "lost":
            return float(final == 0)
        case "highest":
            return max(known.values())
        case "drop":
            return max(known.values()) - final
        case "lowest":
            return min(known.values())
        case "slope" | "curvature" | "growth":
            return _growth(known, statistic)
    return None if first is None else _against(first, final, statistic.of, limit)


def _against(first: float, final: float, of: str, limit: float) -> float | None:
    """A generation's value against the first one's."""
    ratio = final / first if first else math.nan
    match of:
        case "exceeds_first":
            return float(final > limit)
        case "change":
            return final - first
        case "ratio":
            return ratio
    return math.log(ratio) if ratio > 0 else None


def _growth(curve: Curve, statistic: Statistic) -> float | None:
    generations = np.array(sorted(curve), dtype=np.float64)
    values = np.array([[curve[int(g)] for g in generations]])
    if len(generations) < {"slope": 2, "curvature": 3}.get(statistic.of, SHAPED):
        return None
    if statistic.of == "growth":
        assert statistic.shape is not None
        return float(leads(evidence(generations, values), statistic.shape, statistic.against)[0])
    return float((slopes if statistic.of == "slope" else curvatures)(generations, values)[0])


def describe(found: Judgement, names: Collection[str] = ()) -> dict[str, str]:
    """A verdict as text: what is claimed, what was found.

    Args:
        found: From `judge`.
        names: All columns of the records, by which some metrics are called.
    """
    claim, statistic = found.claim, found.claim.statistic
    wanted = (
        f"above {claim.above:g}"
        if claim.above is not None
        else f"below {claim.below:g}"
        if claim.below is not None
        else f"between {claim.between[0]:g} and {claim.between[1]:g}"
        if claim.between is not None
        else ""
    )
    where = _cell_text(statistic.where) or "the only cell"
    minus = "" if statistic.minus is None else f" minus {_cell_text(statistic.minus)}"
    if statistic.beside:
        minus = f", against {' and '.join(map(_cell_text, statistic.beside))}"
    value = _number_text(found.value)
    if found.low is not None and found.high is not None:
        value += f" [{_number_text(found.low)}, {_number_text(found.high)}]"
    over = f", {statistic.over} of the members" if statistic.over else ""
    since = f" since generation {statistic.baseline}" if statistic.baseline else ""
    return {
        "verdict": found.verdict,
        "claim": claim.text,
        "statistic": f"{_statistic_text(statistic)}{over}{since}, {where}{minus}",
        "in_words": _in_words(statistic, names),
        "wanted": wanted,
        "found": value,
        "seeds": str(found.seeds),
        "reason": found.reason,
        "source": claim.source,
    }


def _cell_text(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in where.items())


def _in_words(statistic: Statistic, names: Collection[str]) -> str:
    """What a statistic is of, without the names of columns and axes, and in which unit."""
    metric = among(statistic.metric, names)
    known = {
        "slope": "slope per generation",
        "log_ratio": "logarithm of the ratio",
        "drop": "drop from the peak",
    }
    known |= {of: f"{of} value" for of in ("first", "last", "highest", "lowest")}
    if statistic.of in SHARES:
        ends = "is 0" if statistic.of == "lost" else "is beyond generation 0's scatter"
        text = f"share of seeds in which {metric.label} {ends}"
    elif statistic.of in ("until", "lead", "growth", "worth", "undone"):
        than = None if statistic.than is None else among(statistic.than, names).label
        text = _statistic_text(statistic.model_copy(update={"metric": metric.label, "than": than}))
    else:
        named = known.get(statistic.of, statistic.of)
        text = f"{named} of {metric.label if 'ratio' in statistic.of else metric.title}"
    over = f", {statistic.over} of the members" if statistic.over else ""
    cells = [cell_name(list(where.values()), list(where)) for _, where in statistic.cells]
    joined = " minus " if statistic.minus is not None else " against "
    where = cells[0] + (joined if cells[1:] else "") + " and ".join(cells[1:])
    return f"{text}{over}{f'; {where}' if where else ''}"


def _number_text(value: float | None) -> str:
    if value is None or math.isinf(value):
        return "" if value is None else "never" if value > 0 else "always before"
    return f"{value:.4g}"


def _statistic_text(statistic: Statistic) -> str:
    """What a statistic is, in words."""
    name = statistic.metric
    if statistic.of == "until":
        verb = "rises" if (statistic.threshold or 0) > 0 else "falls"
        return f"generations until {name} {verb} by {abs(statistic.threshold or 0):g} (median)"
    if statistic.of == "lead":
        return f"generations by which {name} moves before {statistic.than} (median)"
    if statistic.of == "growth":
        return f"AICc lead of {statistic.shape} over {statistic.against or 'the other shapes'} for {name}"
    if statistic.of == "worth":
        return f"synthetic examples that change {name} as one more real example does"
    if statistic.of == "undone":
        return f"more real examples that undo the change of {name}"
    return f"{statistic.of.replace('_', ' ')} of {name}"
