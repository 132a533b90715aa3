"""Figures: metrics against generation, and the histogram of synthetic text under generation 0's model."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import matplotlib

matplotlib.use("Agg")

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from harness.metrics.catalogue import about
from harness.reporting.lettering import letter
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, curves

"""Metrics that have a figure, in the order of the report."""
_HIDDEN_AXES = ("generations",)
MAX_POINTS = 400
"""More seeds than this make points that only hide the band."""
MAX_PANELS = 12
PANEL_COLUMNS = 4
MAX_LINES = 24
"""Lines of a panel: more cannot be told apart, or named in a legend."""
LEGEND_INCHES = 0.09
"""Height that one more line of a legend below the panels takes, two to a row."""
T = TypeVar("T")


def _name(cell: Sequence[Any], axes: Sequence[str]) -> str:
    """A cell for people; an axis that it does not have is left out."""
    parts = [
        f"{axis.rpartition('.')[2].replace('_', ' ')} {value}"
        for axis, value in zip(axes, cell, strict=True)
        if value is not None
    ]
    return ", ".join(parts) or "all"


def panels(cells: Sequence[tuple[Any, ...]], axes: Sequence[str]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Cells by panel.

    Where there are several axes, one panel per value of the first in which they differ and that all have.
    """
    dividing = [
        i
        for i in range(len(axes))
        if len({cell[i] for cell in cells}) > 1 and all(cell[i] is not None for cell in cells)
    ]
    if len(axes) < 2 or not dividing:
        return [("", list(cells))]
    at = dividing[0]
    values = list(dict.fromkeys(cell[at] for cell in cells))
    return [
        (_name((value,), axes[at : at + 1]), [cell for cell in cells if cell[at] == value])
        for value in values
    ]


def metric_figure(
    rows: Iterable[Mapping[str, Any]],
    axes: Sequence[str],
    metric: str,
    theory: Mapping[tuple[Any, ...], Sequence[float]] | None = None,
    label: str = "",
    seeds: Collection[int] = (),
) -> Figure | None:
    """A metric against generation: one line per cell, the seeds as points, the interval as a band.

    None where nothing is finite.

    Where a seed has diverged, the mean of those that live is dotted and says of how many it is.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        metric: The metric.
        theory: Cell, by the values of all its axes, to what theory says of each generation: dashed lines.
        label: Of the metric; that of the catalogue when empty.
        seeds: Those that every cell is run with.
    """
    shown = [axis for axis in axes if axis not in _HIDDEN_AXES]
    found = curves(rows, shown, metric, seeds)
    found = {cell: curve for cell, curve in found.items() if any(point.values for point in curve.values())}
    if not found:
        return None
    whole = panels(list(found), shown)
    parts = [(title, thinned(cells, MAX_LINES)) for title, cells in thinned(whole, MAX_PANELS)]
    columns = min(len(parts), PANEL_COLUMNS)
    lines = max(len(cells) for _, cells in parts)
    down = -(-len(parts) // columns)
    figure = Figure(
        figsize=(max(6.0, 4.4 * columns), 3.6 * down + LEGEND_INCHES * max(0, lines - 12)),
        layout="constrained",
    )
    plots = figure.subplots(down, columns, squeeze=False, sharey=True).ravel()
    for plot in plots[len(parts) :]:
        plot.set_visible(False)
    for plot, (title, cells) in zip(plots, parts, strict=False):
        colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(cells)))
        for colour, cell in zip(colours, cells, strict=True):
            name = ", ".join(part for part in _name(cell, shown).split(", ") if part != title)
            _curve(plot, found[cell], colour, name)
            for wanted in [
                line for whole_cell, line in (theory or {}).items() if _shown(whole_cell, axes, shown) == cell
            ]:
                plot.plot(range(len(wanted)), wanted, color=colour, linestyle="--", linewidth=1.2)
        plot.set_title(title, fontsize=10)
        plot.set_xlabel("generation")
        plot.xaxis.get_major_locator().set_params(integer=True)
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
    for plot in plots[::columns]:
        plot.set_ylabel(label or about(metric).title, fontsize=9)
    _legend(figure, list(plots[: len(parts)]), lines)
    count, all_of_them = sum(len(cells) for _, cells in parts), sum(len(cells) for _, cells in whole)
    if count < all_of_them:
        figure.suptitle(f"{count} of {all_of_them} cells, evenly chosen; the table has all", fontsize=9)
    return figure


def _legend(figure: Figure, plots: Sequence[Any], lines: int) -> None:
    """Within the last panel where few lines are to be named, below all panels where many are."""
    if lines <= 12:
        labelled = [plot for plot in plots if plot.get_legend_handles_labels()[0]]
        if labelled:
            labelled[-1].legend(fontsize=8, frameon=False)
        return
    named = {
        name: handle for plot in plots for handle, name in zip(*plot.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        list(named.values()), list(named), fontsize=7, frameon=False, loc="outside lower center", ncols=2
    )


def thinned(items: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly chosen from the first to the last."""
    places = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[place] for place in places]


def _shown(cell: Sequence[Any], axes: Sequence[str], shown: Sequence[str]) -> tuple[Any, ...]:
    return tuple(value for axis, value in zip(axes, cell, strict=True) if axis in shown)


def _curve(plot: Any, curve: Mapping[int, Aggregate], colour: Any, name: str, style: str = "-") -> None:
    known = [(g, point) for g, point in curve.items() if point.mean is not None]
    if not known:
        return
    alive = [(g, point) for g, point in known if not point.diverged]
    survivors = [(g, point) for g, point in known if point.diverged]
    line: dict[str, Any] = {"color": colour, "linewidth": 1.8}
    plot.plot([g for g, _ in alive], [point.mean for _, point in alive], label=name, linestyle=style, **line)
    if survivors:
        dotted = [*alive[-1:], *survivors]
        plot.plot([g for g, _ in dotted], [point.mean for _, point in dotted], linestyle=":", **line)
        for g, point in survivors:
            text = f"{len(point.values)}/{point.total}"
            plot.annotate(
                text,
                (g, point.mean),
                xytext=(0, 4),
                textcoords="offset points",
                fontsize=6,
                color=colour,
                ha="center",
            )
    points = [(g, value) for g, point in known for value in point.values]
    if len(points) <= MAX_POINTS:
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


def histogram_figure(
    title: str, by_generation: Mapping[int, npt.NDArray[np.float64]], real: npt.NDArray[np.float64] | None
) -> Figure:
    """How likely generation 0's model finds what each generation wrote (Shumailov et al. 2023, figure 1b).

    Args:
        title: The cell.
        by_generation: Generation to nats per token of each synthetic sequence, shape [num_sequences].
        real: The same for real test text; None to leave it out.
    """
    everything = np.concatenate([*by_generation.values(), *([real] if real is not None else [])])
    edges = np.linspace(float(everything.min()), float(everything.max()), 41).tolist()
    figure = Figure(figsize=(6.0, 3.4), layout="constrained")
    plot = figure.subplots()
    if real is not None:
        plot.hist(real, bins=edges, density=True, color="0.8", label="real test text")
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(by_generation)))
    for colour, (generation, values) in zip(colours, by_generation.items(), strict=True):
        plot.hist(
            values,
            bins=edges,
            density=True,
            histtype="step",
            color=colour,
            linewidth=1.6,
            label=f"generation {generation}",
        )
    plot.set_title(title, fontsize=10)
    plot.set_xlabel("NLL under generation 0's model (nats/token)")
    plot.set_ylabel("density")
    plot.spines[["top", "right"]].set_visible(False)
    plot.legend(fontsize=8, frameon=False)
    return figure


def bands_figure(rows: Iterable[Mapping[str, Any]], axes: Sequence[str]) -> Figure | None:
    """Over- and under-representation of each frequency band in the last generation, one line per cell."""
    names = sorted(name for name in Rows.of(rows).names if name.startswith("text/band_"))
    if not names:
        return None
    shown = [axis for axis in axes if axis not in _HIDDEN_AXES]
    curves_of = {name: curves(rows, shown, name) for name in names}
    cells = thinned(list(curves_of[names[0]]), MAX_LINES)
    figure = Figure(figsize=(6.0, 3.4 + LEGEND_INCHES * max(0, len(cells) - 12)), layout="constrained")
    plot = figure.subplots()
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, len(cells)))
    for colour, cell in zip(colours, cells, strict=True):
        last = [curves_of[name][cell] for name in names]
        points = [curve[max(curve)] for curve in last]
        live = f" ({len(points[0].values)} of {points[0].total} live)" if points[0].diverged else ""
        plot.plot(
            range(1, len(names) + 1),
            [np.nan if p.mean is None else p.mean for p in points],
            marker="o",
            markersize=4,
            color=colour,
            label=_name(cell, shown) + live,
        )
    plot.axhline(1.0, color="0.5", linewidth=1, linestyle="--")
    plot.set_xticks(
        range(1, len(names) + 1), ["most\nfrequent", *[str(i) for i in range(2, len(names))], "rarest"]
    )
    plot.set_xlabel("frequency band, each a fifth of the real text")
    plot.set_ylabel("share in last generation / share in real text", fontsize=9)
    plot.spines[["top", "right"]].set_visible(False)
    _legend(figure, [plot], len(cells))
    return figure


def homogenisation_figure(
    lines: Mapping[str, Mapping[str, Mapping[int, Aggregate]]],
    baseline: Mapping[str, Mapping[int, Aggregate]],
    labels: Mapping[str, str],
) -> Figure:
    """How alike the corpora of different chains are against generation.

    One panel per measure, one line per group of pairs.

    Args:
        lines: Measure to group to generation to aggregate over pairs.
        baseline: Measure to generation to aggregate over pairs of real samples, drawn dashed. Pairs that
            differ in more than their seed are drawn dash-dotted.
        labels: Measure to its name with its unit.
    """
    groups = list(dict.fromkeys(group for found in lines.values() for group in found))
    legend = 0.1 * (len(groups) + 1) if len(groups) < 24 else 0.0  # inches; two columns below the plots
    figure = Figure(figsize=(max(6.0, 4.4 * len(lines)), 3.4 + legend), layout="constrained")
    plots = figure.subplots(1, len(lines), squeeze=False)[0]
    colours = dict(zip(groups, colormaps["viridis"](np.linspace(0.0, 0.85, len(groups))), strict=True))
    for plot, (measure, found) in zip(plots, lines.items(), strict=True):
        for group, curve in found.items():
            _curve(plot, curve, colours[group], group, "-" if group.startswith("other seed") else "-.")
        known = [(g, point) for g, point in baseline[measure].items() if point.mean is not None]
        at = [g for g, _ in known]
        plot.plot(
            at,
            [point.mean for _, point in known],
            color="0.4",
            linestyle="--",
            label="two samples of real data",
        )
        low, high = (
            [end for _, point in known if (end := getattr(point, side)) is not None]
            for side in ("low", "high")
        )
        if len(low) == len(at):
            plot.fill_between(at, low, high, color="0.5", alpha=0.15, linewidth=0)
        plot.set_xlabel("generation")
        plot.set_title(labels[measure], fontsize=9)
        plot.xaxis.get_major_locator().set_params(integer=True)
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
    if legend:
        handles, names = plots[0].get_legend_handles_labels()
        figure.legend(handles, names, fontsize=8, frameon=False, loc="outside lower center", ncols=2)
    return figure


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


def encode(figure: Figure, form: str) -> bytes:
    """A figure as PNG or PDF; without a date, so that equal figures are equal bytes."""
    letter(figure)
    buffer = io.BytesIO()
    metadata = {"CreationDate": None} if form == "pdf" else {"Software": None}
    figure.savefig(buffer, format=form, dpi=130, metadata=metadata)
    return buffer.getvalue()
