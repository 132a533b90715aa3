"""Figures of distributions: text under generation 0's model, frequency bands, how alike corpora are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure

from harness.config.naming import cell_names
from harness.metrics.lexical import NUM_BANDS
from harness.reporting.explorer import HIDDEN_AXES
from harness.reporting.figures import MAX_LINES, draw_curve, legend, legend_inches
from harness.reporting.homogenisation import spoken_group
from harness.reporting.palette import styles
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, curves, thinned

BASELINE = "two samples of real data"


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
    figure = Figure(figsize=(6.0, 3.4))
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


def histogram_numbers(
    by_generation: Mapping[int, npt.NDArray[np.float64]], real: npt.NDArray[np.float64] | None
) -> list[list[Any]]:
    """What a histogram is of: whose text, and the nats per token of a sequence, a row each."""
    known = [] if real is None else [["real", value] for value in np.sort(real).tolist()]
    return known + [[g, value] for g, values in by_generation.items() for value in np.sort(values).tolist()]


def bands_figure(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str]
) -> tuple[Figure, list[str], list[list[Any]]] | None:
    """Over- and under-representation of each frequency band in the last generation, one line per cell.

    With the columns and rows of its numbers; None where there are none.
    """
    names = sorted(name for name in Rows.of(rows).names if name.startswith("text/band_"))
    if not names:
        return None
    bands = [int(name.rpartition("_")[2]) for name in names]  # of few different tokens some have none
    shown = [axis for axis in axes if axis not in HIDDEN_AXES]
    curves_of = {name: curves(rows, shown, name) for name in names}
    every = list(curves_of[names[0]])
    looks, titles = styles(every), dict(zip(every, cell_names(every, shown), strict=True))
    # cells of a learner that writes no text have none
    every = [cell for cell in every if all(curves_of[name][cell] for name in names)]
    if not every:
        return None
    cells = thinned(every, MAX_LINES)
    figure = Figure(figsize=(6.0, 3.4 + legend_inches([titles[cell] for cell in cells], 6.0)))
    plot, numbers = figure.subplots(), list[list[Any]]()
    for cell in every:
        last = [curves_of[name][cell] for name in names]
        points = [curve[max(curve)] for curve in last]
        numbers += [
            [titles[cell], *cell, band, p.mean, len(p.values)] for band, p in zip(bands, points, strict=True)
        ]
        if cell not in cells:
            continue
        live = f" ({len(points[0].values)} of {points[0].total} live)" if points[0].diverged else ""
        plot.plot(
            bands,
            [np.nan if p.mean is None else p.mean for p in points],
            marker="o",
            markersize=4,
            color=looks[cell].light,
            linestyle=looks[cell].line,
            label=(titles[cell] or "all") + live,
        )
    plot.axhline(1.0, color="0.5", linewidth=1, linestyle="--")
    plot.set_xticks(
        range(1, NUM_BANDS + 1), ["most\nfrequent", *[str(i) for i in range(2, NUM_BANDS)], "rarest"]
    )
    plot.set_xlabel("frequency band, each a fifth of the real text")
    plot.set_ylabel("share in last generation / share in real text", fontsize=9)
    plot.spines[["top", "right"]].set_visible(False)
    legend(figure, [plot])
    return figure, ["cell", *shown, "band", "mean", "seeds"], numbers


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
    width, named = max(6.0, 4.4 * len(lines)), [*map(spoken_group, groups), BASELINE]
    below = legend_inches(named, width, len(lines))
    figure = Figure(figsize=(width, 3.4 + below))
    plots = figure.subplots(1, len(lines), squeeze=False)[0]
    looks = styles(groups)
    for plot, (measure, found) in zip(plots, lines.items(), strict=True):
        for group, curve in found.items():
            line = "-" if group.startswith("other seed") else "-."
            draw_curve(plot, curve, looks[group].light, spoken_group(group), line)
        known = [(g, point) for g, point in baseline[measure].items() if point.mean is not None]
        at = [g for g, _ in known]
        plot.plot(at, [point.mean for _, point in known], color="0.4", linestyle="--", label=BASELINE)
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
    legend(figure, list(plots))
    return figure
