"""Small figures of the board, as SVG that a page holds itself: intervals on a shared scale, and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
LEFT, BOTTOM, TOP = 64, 40, 18


@dataclass(frozen=True)
class Scale:
    """From numbers to pixels.

    Attributes:
        low: The number at ``start``.
        high: The number at ``stop``.
        start: A pixel.
        stop: A pixel.
    """

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """The pixel of a number."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, about)
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def text(value: float) -> str:
    """A number as people read it, in four digits."""
    return f"{value:.4g}".replace("-", "\u2212")


def time_of(hours: float) -> str:
    """Hours as people read them, in the largest unit of which there is one."""
    seconds = 3600 * hours
    size, unit = next((pair for pair in ((3600, "h"), (60, "min")) if seconds >= pair[0]), (1, "s"))
    return f"{seconds / size:.3g} {unit}"


def interval(
    mean: float | None, low: float | None, high: float | None, scale: Scale, width: int = 180
) -> str:
    """A mean with its interval, and a line at zero, in a table's cell; what goes on beyond has an arrow."""
    if mean is None:
        return ""

    def within(value: float) -> float:
        return min(max(scale(value), scale.start), scale.stop)

    parts = [f'<line class="zero" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="0" y2="20"/>']
    if low is not None and high is not None:
        parts.append(f'<line class="range" x1="{within(low):.1f}" x2="{within(high):.1f}" y1="10" y2="10"/>')
    for end, edge, step in ((low, scale.start, 5), (high, scale.stop, -5)):
        at = scale(mean if end is None else end)
        if at < edge - 0.1 if step > 0 else at > edge + 0.1:
            parts.append(f'<path class="beyond" d="M{edge + step} 5L{edge} 10L{edge + step} 15"/>')
    if within(mean) == scale(mean):
        parts.append(f'<circle class="mean" cx="{scale(mean):.1f}" cy="10" r="4"/>')
    return f'<svg class="interval" viewBox="0 0 {width} 20" aria-hidden="true">{"".join(parts)}</svg>'


@dataclass(frozen=True)
class PlottedCurve:
    """A line of a figure.

    Attributes:
        label: What it is.
        style: Class of its colour and dashes.
        means: A value a generation; None where there is none.
        lows: Lower ends of intervals, likewise.
        highs: Upper ends.
    """

    label: str
    style: str
    means: Sequence[float | None]
    lows: Sequence[float | None]
    highs: Sequence[float | None]


def curves(lines: Sequence[PlottedCurve], title: str, unit: str) -> str:
    """Lines over generations with their intervals; what they show is in the tables too."""
    known = [
        v for line in lines for part in (line.means, line.lows, line.highs) for v in part if v is not None
    ]
    if not known:
        return ""
    low, high = min(known), max(known)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    last = max(len(line.means) for line in lines) - 1
    x = Scale(0, max(last, 1), LEFT, WIDTH - 12)
    y = Scale(low - margin, high + margin, HEIGHT - BOTTOM, TOP)
    parts = [f"<title>{escape(title)}</title>"]
    for tick in ticks(y.low, y.high):
        at = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 12}" y1="{at}" y2="{at}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="4" text-anchor="end">{text(tick)}</text>'
        )
    for tick in (t for t in ticks(0, max(last, 1), 8) if t == int(t)):
        parts.append(
            f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">'
            f"{int(tick)}</text>"
        )
    middle = (LEFT + WIDTH - 12) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">generation</text>')
    for line in lines:
        band = [(g, a, b) for g, (a, b) in enumerate(zip(line.lows, line.highs, strict=True))
                if a is not None and b is not None]  # fmt: skip
        if len(band) > 1:
            upper = [f"{x(g):.1f},{y(b):.1f}" for g, _, b in band]
            lower = [f"{x(g):.1f},{y(a):.1f}" for g, a, _ in reversed(band)]
            parts.append(f'<polygon class="band {line.style}" points="{" ".join(upper + lower)}"/>')
        points = [f"{x(g):.1f},{y(v):.1f}" for g, v in enumerate(line.means) if v is not None]
        parts.append(f'<polyline class="curve {line.style}" points="{" ".join(points)}"/>')
    drawn = f'<svg class="figure" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
    legend = "".join(
        f'<li><svg viewBox="0 0 24 8" aria-hidden="true"><line class="curve {line.style}" x1="0" x2="24" '
        f'y1="4" y2="4"/></svg>{escape(line.label)}</li>'
        for line in lines
    )
    caption = (
        f"{escape(title)}{f', {escape(unit)}' if unit else ''}: mean over the seeds, with its 95 % interval"
    )
    return f'<figure>{drawn}<figcaption>{caption}<ul class="legend">{legend}</ul></figcaption></figure>'
