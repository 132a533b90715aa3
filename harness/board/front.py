"""What a mitigation gains against what it costs: entries as points, and the front that none of them beats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

from harness.board.drawing import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Scale, text, ticks
from harness.board.ranking import pareto
from harness.board.score import Scored, TrackTable
from harness.terminal import visible

MAX_NAMED = 20
"""Entries of a front that have a number in the figure and a name below it."""
LETTER = 13
"""Width of a letter on a phone, in a figure's own pixels."""
SPREAD = 20
"""Largest over smallest cost beyond which costs are on a log scale."""


@dataclass(frozen=True)
class FrontPoint:
    """An entry of a figure.

    Attributes:
        name: Of the entry.
        cost: Its cost.
        benefit: What it gains, the mean over the seeds.
        low: Lower end of its interval; None where there is none.
        high: Upper end.
        best: No other point gains as much at no higher cost.
    """

    name: str
    cost: float
    benefit: float
    low: float | None
    high: float | None
    best: bool


ALIKE = 0.001
"""Costs that differ by no larger share are one: chains of one bundle share its time in equal parts."""
CLEAN = "Clean cost: how much more it worsens than the baseline where nothing is synthetic."


def fronts(table: TrackTable, link: Callable[[Scored], str]) -> Iterator[str]:
    """A figure for every cost that the ranked entries of a track have.

    Args:
        table: The track's table.
        link: The page of an entry.
    """
    unit = f" ({table.track.score.unit})" if table.track.score.unit else ""
    ranked = [line for line in table.lines if line.rank is not None]
    hours = [line.entry.cost.device_hours for line in ranked]
    size, word = next(
        (pair for pair in ((1, "hours"), (60, "minutes")) if max(hours, default=0) * pair[0] >= 1),
        (3600, "seconds"),
    )
    costs: list[tuple[str, Sequence[float | None]]] = [
        (f"device-{word} of all seeds", [size * each for each in hours])
    ]
    if "clean" in table.controls:
        clean = [line.controls["clean"].mean if "clean" in line.controls else None for line in ranked]
        costs.append((f"clean cost{unit}", clean))
    for label, prices in costs:
        whole = [(line, price) for line, price in zip(ranked, prices, strict=True) if price is not None]
        if len(whole) < 2:
            continue
        low, high = (pick(price for _, price in whole) for pick in (min, max))
        if high - low <= ALIKE * high:
            yield f'<p class="note">All ranked entries cost alike: {text(high)} {escape(label)}.</p>'
        else:
            yield _figure(whole, label, f"resists{unit}", link)


def _figure(
    lines: Sequence[tuple[Scored, float]], label: str, benefit: str, link: Callable[[Scored], str]
) -> str:
    gains = [line.benefit.mean or 0.0 for line, _ in lines]
    best = pareto(gains, [price for _, price in lines])
    points = [
        FrontPoint(line.entry.mitigation, price, gain, line.benefit.low, line.benefit.high, efficient)
        for (line, price), gain, efficient in zip(lines, gains, best, strict=True)
    ]
    front = sorted(
        (i for i, point in enumerate(points) if point.best), key=lambda i: (points[i].cost, points[i].benefit)
    )
    named = {place: number for number, place in enumerate(front[:MAX_NAMED], 1)}
    items = "".join(
        f'<li>{number}: <a href="{escape(visible(link(lines[place][0]), lines=False))}">'
        f"{escape(visible(points[place].name, lines=False))}</a>, {text(points[place].benefit)} for "
        f"{text(points[place].cost)}</li>"
        for place, number in named.items()
    )
    more = f"<li>and {len(front) - MAX_NAMED} more</li>" if len(front) > MAX_NAMED else ""
    caption = (
        f"What an entry gains against its {escape(label)}, with the 95 % interval of what it gains. On the "
        "line: no other ranked entry gains as much for less; the means decide, whether or not they can be "
        "told apart." + (f" {CLEAN}" if label.startswith("clean cost") else "")
    )
    return (
        f"<figure>{_drawing(points, named, front, label, benefit)}<figcaption>{caption}"
        f'<ol class="front">{items}{more}</ol></figcaption></figure>'
    )


def _scale(costs: Sequence[float]) -> tuple[Callable[[float], float], list[float]]:
    """From costs to pixels, and the costs that are written below the axis."""
    low, high = min(costs), max(costs)
    if low > 0 and high > SPREAD * low:
        inner = Scale(log10(low) - 0.1, log10(high) + 0.1, LEFT, WIDTH - 12)
        marks = [10.0**power for power in range(ceil(log10(low)), floor(log10(high)) + 1)]
        return lambda cost: inner(log10(cost)), marks or [low, high]
    margin = 0.06 * (high - low) or abs(high) * 0.06 or 1.0
    plain = Scale(low - margin, high + margin, LEFT, WIDTH - 12)
    return plain, ticks(plain.low, plain.high)


def _within(at: float, label: str) -> float:
    """The middle of a label, moved to where all of it is within the figure, on a phone too."""
    half = LETTER * len(label) / 2
    return min(max(at, half), WIDTH - half)


def _drawing(
    points: Sequence[FrontPoint], named: dict[int, int], front: Sequence[int], label: str, benefit: str
) -> str:
    ends = [v for p in points for v in (p.benefit, p.low, p.high) if v is not None]
    margin = 0.06 * (max(ends) - min(ends)) or 1.0
    y = Scale(min(ends) - margin, max(ends) + margin, HEIGHT - BOTTOM, TOP)
    x, marks = _scale([point.cost for point in points])
    parts = [f"<title>{escape(benefit)} against {escape(label)}</title>"]
    for mark in ticks(y.low, y.high):
        at = f"{y(mark):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{text(mark)}</text>'
        )
    parts += [
        f'<text class="tick" x="{_within(x(mark), text(mark)):.1f}" y="{HEIGHT - BOTTOM + 16}" '
        f'text-anchor="middle">{text(mark)}</text>'
        for mark in marks
    ]
    middle = (LEFT + WIDTH - 12) / 2
    parts.append(
        f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>'
    )
    steps = list[str]()
    for before, place in zip([None, *front], front, strict=False):
        if before is not None:  # what costs less gains so much until the next one begins
            steps.append(f"{x(points[place].cost):.1f},{y(points[before].benefit):.1f}")
        steps.append(f"{x(points[place].cost):.1f},{y(points[place].benefit):.1f}")
    parts.append(f'<polyline class="curve one" points="{" ".join(steps)}"/>')
    written = list[tuple[float, float]]()
    for place, point in enumerate(points):
        at = f"{x(point.cost):.1f}"
        if point.low is not None and point.high is not None:
            y1, y2 = (f"{y(end):.1f}" for end in (point.low, point.high))
            parts.append(f'<line class="whisker" x1="{at}" x2="{at}" y1="{y1}" y2="{y2}"/>')
        style = "mean" if point.best else "other"
        parts.append(f'<circle class="{style}" cx="{at}" cy="{y(point.benefit):.1f}" r="4"/>')
        if place in named:
            right, above = x(point.cost) + 7, y(point.benefit) - 6
            while any(abs(right - a) < 2 * LETTER and abs(above - b) < 18 for a, b in written):
                above += 18
            written.append((right, above))
            parts.append(f'<text class="number" x="{right:.1f}" y="{above:.1f}">{named[place]}</text>')
    return f'<svg class="figure" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
