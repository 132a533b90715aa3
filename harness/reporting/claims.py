"""Verdicts: what a paper says, beside what the records say, with the interval over seeds."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from harness.config.grid import find_cells
from harness.config.schema import Claim, Statistic
from harness.reporting.rows import Rows
from harness.reporting.statistics import LEVEL, aggregate
from harness.study import Prepared

Verdict = Literal["reproduced", "contradicted", "undecided"]
SHARES = ("exceeds_first", "lost")
"""Statistics that are 0 or 1 for a seed; their mean is a share, with Wilson's interval."""
MIN_SEEDS = 5
"""With fewer seeds nothing is decided."""
Series = dict[int, float]
"""Generation to value, for one seed; without values that are not finite."""


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
    verdict: Verdict
    value: float | None
    low: float | None
    high: float | None
    seeds: int
    reason: str = ""


def judge(prepared: Prepared, rows: Iterable[Mapping[str, Any]]) -> list[Judgement]:
    """The verdict on every claim of a configuration.

    Args:
        prepared: The study.
        rows: From `ledger.rows`.
    """
    cells = {chain.id: chain.cell for chain in prepared.chains}
    series: dict[tuple[int, str], dict[int, Series]] = {}
    metrics = {claim.statistic.metric for claim in prepared.study.base.claims}
    table = Rows.of(rows)
    chains = table.series(("chain",))
    for metric in metrics:
        values = table.values(metric)
        for chain in chains:
            known = chain.places[~np.isnan(values[chain.places])]
            found = series.setdefault((cells[chain.cell[0]], metric), {}).setdefault(chain.seed, {})
            found |= zip(table.generation[known].tolist(), values[known].tolist(), strict=True)
    diverged = {(cells[chain.cell[0]], chain.seed) for chain in chains if chain.ended is not None}
    return [_judge(prepared, series, diverged, claim) for claim in prepared.study.base.claims]


def _judge(
    prepared: Prepared,
    series: Mapping[tuple[int, str], dict[int, Series]],
    diverged: Collection[tuple[int, int]],
    claim: Claim,
) -> Judgement:
    statistic = claim.statistic
    if not all(
        find_cells(prepared.study, where) for where in (statistic.where, statistic.minus) if where is not None
    ):
        return Judgement(claim, "undecided", None, None, None, 0, "--set leaves its cells out")
    values = _values(prepared, series, statistic, statistic.where)
    ended = {seed for cell, seed in diverged if cell in find_cells(prepared.study, statistic.where)}
    if statistic.minus is not None:
        others = _values(prepared, series, statistic, statistic.minus)
        values = {seed: value - others[seed] for seed, value in values.items() if seed in others}
        ended |= {seed for cell, seed in diverged if cell in find_cells(prepared.study, statistic.minus)}
    missing = len(prepared.study.seeds) - len(values)
    ended -= values.keys()
    numbers = [values[seed] for seed in sorted(values)]
    if not numbers:
        why = (
            "all seeds have diverged"
            if len(ended) == missing
            else f"no record has a finite {statistic.metric} there"
        )
        return Judgement(claim, "undecided", None, None, None, 0, why)
    found = aggregate(numbers)
    low, high = found.low, found.high
    if statistic.of in SHARES and statistic.minus is None:
        interval = stats.binomtest(int(sum(numbers)), len(numbers)).proportion_ci(LEVEL, method="wilson")
        low, high = float(interval.low), float(interval.high)
    reason = ""
    if ended:
        # A mean over those that live says nothing of the cell: no verdict, and no interval.
        low = high = None
        reason = (
            f"{len(ended)} of {len(prepared.study.seeds)} seeds have diverged, and the value is of those "
            "that live"
        )
    elif missing:
        reason = f"{missing} of {missing + len(numbers)} seeds have no finite value, or are not finished"
    elif len(numbers) < MIN_SEEDS:
        reason = f"{len(numbers)} seeds, {MIN_SEEDS} are needed"
    verdict: Verdict = "undecided"
    if not reason and low is not None and high is not None:
        verdict = compare(claim, low, high)
    return Judgement(claim, verdict, found.mean, low, high, len(numbers), reason)


def compare(claim: Claim, low: float, high: float) -> Verdict:
    """Where an interval lies, seen from the range of a claim."""
    least = claim.above if claim.above is not None else claim.between[0] if claim.between else -math.inf
    most = claim.below if claim.below is not None else claim.between[1] if claim.between else math.inf
    if least < low and high < most:
        return "reproduced"
    return "contradicted" if high <= least or low >= most else "undecided"


def _values(
    prepared: Prepared,
    series: Mapping[tuple[int, str], dict[int, Series]],
    statistic: Statistic,
    where: Mapping[str, Any],
) -> dict[int, float]:
    """The statistic of every seed of a cell that has one."""
    (cell,) = find_cells(prepared.study, where)
    found = series.get((cell, statistic.metric), {})
    last = (
        prepared.study.cells[cell].config.generations
        if statistic.generation is None
        else statistic.generation
    )
    limit = math.inf
    firsts = [item[0] for item in found.values() if 0 in item]
    if statistic.of == "exceeds_first" and len(firsts) > 1:
        # Where one more seed's generation 0 would lie: the interval of a prediction, not of the mean.
        spread = float(np.std(firsts, ddof=1)) * math.sqrt(1 + 1 / len(firsts))
        limit = float(np.mean(firsts)) + float(stats.t.ppf((1 + LEVEL) / 2, len(firsts) - 1)) * spread
    values = {}
    for seed, item in found.items():
        value = _of(item, statistic, last, limit)
        if value is not None and math.isfinite(value):
            values[seed] = value
    return values


def _of(item: Series, statistic: Statistic, last: int, limit: float) -> float | None:
    known = {g: value for g, value in item.items() if g <= last}
    first, final = item.get(statistic.baseline), known.get(last)
    if statistic.of == "first":
        return first
    if final is None:
        return None
    alone = {
        "last": final,
        "lost": float(final == 0),
        "highest": max(known.values()),
        "lowest": min(known.values()),
    }
    if statistic.of in alone:
        return alone[statistic.of]
    if statistic.of == "slope":
        return float(np.polyfit(list(known), list(known.values()), 1)[0]) if len(known) > 1 else None
    if first is None:
        return None
    ratio = final / first if first else math.nan
    against_first = {"exceeds_first": float(final > limit), "change": final - first, "ratio": ratio}
    if statistic.of in against_first:
        return against_first[statistic.of]
    return math.log(ratio) if ratio > 0 else None


def describe(found: Judgement) -> dict[str, str]:
    """A verdict as text: what is claimed, what was found."""
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
    where = ", ".join(f"{name} {value}" for name, value in statistic.where.items()) or "the only cell"
    minus = (
        ""
        if statistic.minus is None
        else " minus " + ", ".join(f"{name} {value}" for name, value in statistic.minus.items())
    )
    value = "" if found.value is None else f"{found.value:.4g}"
    if found.low is not None and found.high is not None:
        value += f" [{found.low:.4g}, {found.high:.4g}]"
    since = f" since generation {statistic.baseline}" if statistic.baseline else ""
    return {
        "verdict": found.verdict,
        "claim": claim.text,
        "statistic": f"{statistic.of.replace('_', ' ')} of {statistic.metric}{since}, {where}{minus}",
        "wanted": wanted,
        "found": value,
        "seeds": str(found.seeds),
        "reason": found.reason,
        "source": claim.source,
    }
