"""Figures: metrics against generation, and the histogram of synthetic text under generation 0's model."""

from __future__ import annotations

import io
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from harness.config.naming import cell_name, cell_names
from harness.metrics.catalogue import about, drawn
from harness.reporting.explorer import HIDDEN_AXES
from harness.reporting.lettering import letter, width_of
from harness.reporting.palette import Style, styles
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, curves, thinned
from harness.terminal import counted

DPI = 130
MAX_POINTS = 400
"""More seeds than this make points that only hide the band."""
MAX_PANELS = 12
PANEL_COLUMNS = 4
MAX_LINES = 24
"""Lines of a panel: more cannot be told apart, or named in a legend."""
INSIDE = 8
"""Up to so many lines are named within a panel."""
LEGEND_LINES = 12
"""Lines of a legend below the panels; where more are needed, the numbers beside the figure have the names."""
LEGEND_SIZE = 7
"""Points of what stands in it."""
LEGEND_EMS = 5.5
"""What an entry has beside its name: the line, and the room around it."""
FLAT = 0.005
"""A metric that moves by a smaller share of itself is flat."""
WIDE = 30
"""Largest over smallest value beyond which a figure is on a log scale."""
ON_A_LINE = 1e-4
"""How far two scales of one quantity may be from a straight line, as a share of the range: rounding."""
DISTINCT = 6
"""Different values that two metrics have to have before their order says that they are one quantity."""


def panels(
    cells: Sequence[tuple[Any, ...]], axes: Sequence[str]
) -> tuple[int, list[tuple[str, list[tuple[Any, ...]]]]]:
    """Cells by panel.

    Where there are several axes, one panel per value of the first in which they differ and that all have;
    where that leaves more lines than a panel can name, one per pair of values of the first two, with a row
    for each value of the first.

    Returns:
        How many panels are in a row, and the panels row by row; one without cells has none in the grid.
    """
    values = [list(dict.fromkeys(cell[i] for cell in cells)) for i in range(len(axes))]
    dividing = [i for i, found in enumerate(values) if len(found) > 1 and None not in found]
    if len(axes) < 2 or not dividing:
        return 1, [("", list(cells))]
    at, columns = dividing[:1], min(len(values[dividing[0]]), PANEL_COLUMNS)
    if len(dividing) > 1 and max(Counter(cell[at[0]] for cell in cells).values()) > INSIDE:
        down, across = (len(values[i]) for i in dividing[:2])
        if across <= PANEL_COLUMNS and down * across <= MAX_PANELS:
            at, columns = dividing[:2], across
    return columns, [
        (
            cell_name(wanted, [axes[i] for i in at]),
            [cell for cell in cells if all(cell[i] == value for i, value in zip(at, wanted, strict=True))],
        )
        for wanted in itertools.product(*(values[i] for i in at))
    ]


@dataclass(frozen=True)
class ChosenMetrics:
    """Which metrics have a figure of their own.

    Attributes:
        drawn: Those that have, with their titles.
        same: Those that are one of these on another scale, with their titles.
        flat: Those that do not move, with their titles.
        sentences: What is to be said of the others.
    """

    drawn: Mapping[str, str]
    same: Mapping[str, str]
    flat: Mapping[str, str]
    sentences: Sequence[str]


def chosen(rows: Rows) -> ChosenMetrics:
    """Choose the metrics that are drawn: one for each quantity, and none that does not move.

    Two are one quantity where one is a straight line of the other, or of its logarithm, exponential or
    inverse: the perplexity is the exponential of the NLL. That few rows have the same order in both makes no
    quantity of two.
    """
    titles = _titles(rows.names)
    own, same, flat = dict[str, str](), dict[str, str](), dict[str, str]()
    sentences, ends = list[str](), dict[str, list[int]]()
    for metric, title in titles.items():
        values = rows.values(metric)
        absent = np.isnan(values)
        known = values[~absent] if absent.any() else values
        if not len(known):
            continue
        low, high = float(known.min()), float(known.max())
        del known  # of millions of rows it is much, beside what is compared below
        if high - low <= FLAT * max(abs(low), abs(high)):
            flat[metric] = title
            at = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
            sentences.append(f"{title} is flat: {at} everywhere.")
            continue
        twin = next(
            (
                name
                for name, places in ends.items()  # most pairs differ there already, and are not sorted
                if set(values[places].tolist()) == {low, high} and _one_quantity(values, rows.values(name))
            ),
            None,
        )
        if twin is None:
            own[metric], ends[metric] = title, [int(np.nanargmin(values)), int(np.nanargmax(values))]
        else:
            same[metric] = title
            sentences.append(f"{title} is {own[twin]} on another scale.")
    return ChosenMetrics(own, same, flat, sentences)


def _titles(names: Collection[str]) -> dict[str, str]:
    """The metrics that can be drawn, with their titles; closed forms score examples, which have no tokens."""
    titles = {metric.name: metric.title for metric in drawn(names)}
    if "test/perplexity" not in titles:
        titles |= {
            name: "NLL on real examples (nats)" for name in ("test/nll", "kde/test_nll") if name in titles
        }
    if "kde/test_nll" in titles:
        del titles["test/nll"]
    return titles


def _one_quantity(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> bool:
    """Whether two metrics of the same rows are one number on two scales; NaN where there is no value."""
    known = ~np.isnan(one)
    if not np.array_equal(known, ~np.isnan(other)):
        return False
    if not known.all():
        one, other = one[known], other[known]
    if not _same_order(one, other):
        return False
    return any(_on_a_line(x, y) for x in _scales(one) for y in _scales(other))


def _same_order(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> bool:
    """Whether one rises, or falls, or stays wherever the other does, and both have values enough to tell."""
    order = np.argsort(one)
    rises, others = (_rises(values[order]) for values in (one, other))
    if np.count_nonzero(rises) < DISTINCT - 1:
        return False
    return np.array_equal(rises, others) or np.array_equal(rises, -others)


def _rises(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    """From each to the next: 1 up, -1 down, 0 where they are equal."""
    found: npt.NDArray[np.int8] = (values[1:] > values[:-1]).astype(np.int8) - (values[1:] < values[:-1])
    return found


def _scales(values: npt.NDArray[np.float64]) -> Iterator[npt.NDArray[np.float64]]:
    yield values
    if (values > 0).all():
        yield np.log(values)
        yield 1 / values


def _on_a_line(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> bool:
    x, y = ((v - v.mean()) / (np.ptp(v) or 1.0) for v in (x, y))
    slope = float(x @ y) / (float(x @ x) or 1.0)
    return float(np.abs(y - slope * x).max()) <= ON_A_LINE


def metric_drawing(
    rows: Iterable[Mapping[str, Any]],
    axes: Sequence[str],
    metric: str,
    theory: Mapping[tuple[Any, ...], Sequence[float]] | None = None,
    label: str = "",
    seeds: Collection[int] = (),
) -> tuple[Figure, list[str], list[list[Any]]] | None:
    """A metric against generation: one line per cell, the seeds as points, the interval as a band.

    Where a seed has diverged, the mean of those that live is dotted and says of how many it is.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        metric: The metric.
        theory: Cell, by the values of all its axes, to what theory says of each generation: dashed lines.
        label: Of the metric; that of the catalogue when empty.
        seeds: Those that every cell is run with.

    Returns:
        The figure, and the columns and rows of all numbers of all cells; None where nothing is finite.
    """
    table = Rows.of(rows)
    shown = [axis for axis in axes if axis not in HIDDEN_AXES]
    found = curves(table, shown, metric, seeds)
    looks = styles(found)  # by all cells, so that a cell looks the same in every figure
    found = {cell: curve for cell, curve in found.items() if any(point.values for point in curve.values())}
    if not found:
        return None
    expected = {_shown(cell, axes, shown): line for cell, line in (theory or {}).items()}
    names = dict(zip(found, cell_names(found, shown), strict=True))
    figure = _grid_figure(found, looks, names, expected, shown, label or about(metric).title)
    return figure, *_numbers(found, names, expected, shown)


def _grid_figure(
    found: Mapping[tuple[Any, ...], Mapping[int, Aggregate]],
    looks: Mapping[tuple[Any, ...], Style],
    names: Mapping[tuple[Any, ...], str],
    expected: Mapping[tuple[Any, ...], Sequence[float]],
    shown: Sequence[str],
    label: str,
) -> Figure:
    """Small multiples over the first axes in which cells differ."""
    columns, whole = panels(list(found), shown)
    parts = [(title, thinned(cells, MAX_LINES)) for title, cells in thinned(whole, MAX_PANELS)]
    lines = sum(len(cells) for _, cells in parts)
    down = -(-len(parts) // columns)
    width, named = max(6.0, 4.4 * columns), [names[cell] or "all" for _, cells in parts for cell in cells]
    figure = Figure(figsize=(width, 3.6 * down + legend_inches(named, width, len(parts))))
    plots = figure.subplots(down, columns, squeeze=False, sharey=True).ravel()
    for plot in plots[len(parts) :]:
        plot.set_visible(False)
    for plot, (title, cells) in zip(plots, parts, strict=False):
        plot.set_visible(bool(cells))
        for cell in cells:
            draw_curve(plot, found[cell], looks[cell].light, names[cell] or "all", looks[cell].line)
            if cell in expected:
                line = expected[cell]
                plot.plot(range(len(line)), line, color=looks[cell].light, linestyle="--", linewidth=1.0)
        plot.set_title(title, fontsize=10)
        plot.set_xlabel("generation")
        plot.xaxis.get_major_locator().set_params(integer=True)
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
    for plot in plots[::columns]:
        plot.set_ylabel(label, fontsize=9)
    legend(figure, list(plots[: len(parts)]))
    _scale(list(plots), (found[cell] for _, cells in parts for cell in cells))
    every = sum(len(cells) for _, cells in whole)
    notes = [f"{lines} of {every} cells, evenly chosen; the table has all"] if lines < every else []
    counts = {len(p.values) for _, cells in parts for cell in cells for p in found[cell].values() if p.values}
    least, most = min(counts), max(counts)
    many = f"{least} to {most} seeds" if least < most else counted(most, "seed")
    notes.append(f"{many} at every point")
    if any(cell in expected for _, cells in parts for cell in cells):
        notes.append("thin dashed lines: theory")
    figure.suptitle("; ".join(notes), fontsize=8)
    return figure


def plain_ticks(axis: Any) -> None:
    """Numbers of a logarithmic axis as text: as formulas they would be shown as they are written."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _scale(plots: Sequence[Any], curves_of: Iterable[Mapping[int, Aggregate]]) -> None:
    """A scale on which the values can be told apart.

    An interval over two or three seeds may be many times wider than all there is to see: it is cut. What
    spans more than a factor of `WIDE` is on a log scale.
    """
    points = [point for curve in curves_of for point in curve.values() if point.values]
    values = np.concatenate([point.values for point in points])
    ends = np.array([end for point in points for end in (point.low, point.high) if end is not None])
    low, high = float(values.min()), float(values.max())
    if low > 0 and high > WIDE * low:
        plots[0].set_yscale("log")
        plots[0].set_ylim(low / 1.3, high * 1.3)
        for plot in plots:  # they share the scale, and not what writes its numbers
            plain_ticks(plot.yaxis)
        return
    room = (high - low) or abs(high) or 1.0
    if len(ends) and (ends.min() < low - room or ends.max() > high + room):
        plots[0].set_ylim(max(ends.min(), low - room / 2), min(ends.max(), high + room / 2))


def _numbers(
    found: Mapping[tuple[Any, ...], Mapping[int, Aggregate]],
    names: Mapping[tuple[Any, ...], str],
    expected: Mapping[tuple[Any, ...], Sequence[float]],
    shown: Sequence[str],
) -> tuple[list[str], list[list[Any]]]:
    """The numbers behind the lines, of all cells: columns and rows."""
    columns = [
        "cell",
        *shown,
        "generation",
        "mean",
        "low",
        "high",
        "seeds",
        "diverged",
        "all_seeds",
        "theory",
    ]
    rows = []
    for cell, curve in found.items():
        line = expected.get(cell, ())
        for g, point in curve.items():
            theory = line[g] if g < len(line) else None
            numbers = [g, point.mean, point.low, point.high, len(point.values), point.diverged, point.total]
            rows.append([names[cell], *cell, *numbers, theory])
    return columns, rows


def legend_columns(names: Sequence[str], width: float, size: float) -> int:
    """How many columns of a legend fit into ``width`` inches, at a font of so many points."""
    widest = max((width_of(name, size) for name in names), default=0.0) + LEGEND_EMS * size / 72
    return max(1, min(len(names), int(width / widest)))


def legend_inches(names: Sequence[str], width: float, panels: int = 1) -> float:
    """Height that a legend below the panels takes."""
    rows = -(-len(names) // legend_columns(names, width, LEGEND_SIZE))
    return 0.0 if rows > LEGEND_LINES or (len(names) <= INSIDE and panels == 1) else 0.17 * rows


def legend(figure: Figure, plots: Sequence[Any]) -> None:
    """Within the panel where there is one with few lines, below all panels otherwise."""
    named = {
        name: handle for plot in plots for handle, name in zip(*plot.get_legend_handles_labels(), strict=True)
    }
    if len(named) <= INSIDE and len(plots) == 1 and named:
        plots[-1].legend(fontsize=8, frameon=False)
        return
    columns = legend_columns(list(named), figure.get_figwidth(), LEGEND_SIZE)
    if named and -(-len(named) // columns) <= LEGEND_LINES:
        figure.legend(
            list(named.values()),
            list(named),
            fontsize=LEGEND_SIZE,
            frameon=False,
            loc="outside lower center",
            ncols=columns,
        )


def _shown(cell: Sequence[Any], axes: Sequence[str], shown: Sequence[str]) -> tuple[Any, ...]:
    return tuple(value for axis, value in zip(axes, cell, strict=True) if axis in shown)


def _count(plot: Any, generation: int, point: Aggregate, colour: Any) -> None:
    """Beside a point: of how many of all seeds it is."""
    plot.annotate(
        f"{len(point.values)}/{point.total}",
        (generation, point.mean),
        xytext=(0, 4),
        textcoords="offset points",
        fontsize=6,
        color=colour,
        ha="center",
    )


def draw_curve(plot: Any, curve: Mapping[int, Aggregate], colour: Any, name: str, style: Any = "-") -> None:
    """A line of a panel: the mean, its interval as a band, the seeds as points; dotted beyond divergence."""
    known = [(g, point) for g, point in curve.items() if point.mean is not None]
    if not known:
        return
    alive = [(g, point) for g, point in known if not point.diverged]
    survivors = [(g, point) for g, point in known if point.diverged]
    line: dict[str, Any] = {"color": colour, "linewidth": 1.8}
    plot.plot([g for g, _ in alive], [point.mean for _, point in alive], label=name, linestyle=style, **line)
    for g, point in alive:
        if len(point.values) < point.total:  # not finite, or not there yet
            _count(plot, g, point, colour)
    if survivors:
        dotted = [*alive[-1:], *survivors]
        plot.plot([g for g, _ in dotted], [point.mean for _, point in dotted], linestyle=":", **line)
        for g, point in survivors:
            _count(plot, g, point, colour)
    if sum(len(point.values) for _, point in known) <= MAX_POINTS:
        points = [(g, value) for g, point in known for value in point.values]
        plot.scatter(
            [g for g, _ in points],
            [value for _, value in points],
            color=[colour],
            s=12,
            alpha=0.7,
            linewidths=0,
        )
    banded = [(g, point) for g, point in known if point.low is not None]
    if banded:
        plot.fill_between(
            [g for g, _ in banded],
            [p.low for _, p in banded],
            [p.high for _, p in banded],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )


def strip(pictures: npt.NDArray[np.float64], columns: int = 32, scale: int = 2) -> bytes:
    """Pictures side by side as one grey PNG, a pixel apart.

    Args:
        pictures: Values in [0, 1] (1 is ink, and dark), shape [num, height, width].
        columns: Pictures in a row.
        scale: Edge of a pixel.
    """
    num, height, width = pictures.shape
    rows = -(-num // columns)
    sheet = np.zeros((rows * (height + 1) - 1, min(num, columns) * (width + 1) - 1))
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = picture
    grey = np.round(255 * (1 - np.clip(np.nan_to_num(sheet), 0, 1))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey.repeat(scale, axis=0).repeat(scale, axis=1)).save(buffer, "PNG")
    return buffer.getvalue()


def encode(figure: Figure) -> tuple[bytes, bytes]:
    """A figure as PNG and as PDF; without a date, so that equal figures are equal bytes.

    Everything gets its place once, for both: `savefig` would do it for each, and draw all of it for that.
    """
    letter(figure)
    figure.set_dpi(DPI)
    ConstrainedLayoutEngine().execute(figure)
    return _saved(figure, "png", Software=None), _saved(figure, "pdf", CreationDate=None)


def _saved(figure: Figure, form: str, **metadata: None) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
