"""The tables of a report, as text: the headline metric by generation, its growth, critical ratios."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.metrics.catalogue import HEADLINES, METRICS, about
from harness.reporting.analysis import RATIO, critical_ratios, losses
from harness.reporting.growth import growths
from harness.reporting.rows import Rows
from harness.reporting.statistics import SURVIVORS, curves, thinned
from harness.terminal import counted


def to_csv(columns: Sequence[str], numbers: Sequence[Sequence[Any]]) -> bytes:
    """Numbers as CSV, for any program that reads it; nothing in it is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in numbers:
        writer.writerow([f"'{v}" if isinstance(v, str) and v[:1] in tuple("=+-@\t\r") else v for v in row])
    return out.getvalue().encode()


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def critical_table(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str], seeds: Sequence[int] = ()
) -> dict[str, Any]:
    """The critical synthetic ratios, as text: ``metric``, ``axes`` and ``lines``."""
    metric = headline(rows)
    found = critical_ratios(rows, axes, metric, seeds) if metric else []
    lines = []
    for item in found:
        ratio, of = "", counted(item.seeds, "seed")
        if item.unfinished:
            of += f"; {item.unfinished} more have not come to generation {item.generation} with every ratio"
        if item.ratio is not None:
            ratio = f"above {item.ratio:.3g}, the largest here" if item.beyond else f"{item.ratio:.3g}"
        if item.low is not None and item.high is not None and math.isfinite(item.low):
            ratio += (
                f" [{item.low:.3g}, {item.high:.3g}]"
                if math.isfinite(item.high)
                else f" [{item.low:.3g}, beyond the grid]"
            )
        lines.append(
            {
                "cell": [_text(value) for value in item.cell],
                "ratio": ratio,
                "tolerance": "" if item.tolerance is None else f"{item.tolerance:.3g}",
                "generation": item.generation,
                "seeds": of,
            }
        )
    return {"metric": metric, "axes": [axis for axis in axes if axis != RATIO], "lines": lines}


def growth_table(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str], seeds: Sequence[int] = ()
) -> dict[str, Any]:
    """How the headline metric grows in every cell, as text: ``metric``, ``axes`` and ``lines``."""
    metric = headline(rows)
    found = growths(rows, axes, metric, seeds) if metric else {}
    lines = []
    for cell, growth in found.items():
        best = max(growth.leads, key=lambda shape: growth.leads[shape].mean or -math.inf, default=None)
        shown = "" if best is None else f"{best}: {growth.leads[best].text()}"
        bent = "" if growth.curvature is None else growth.curvature.text()
        of = growth.slope
        lines.append(
            {
                "cell": [_text(value) for value in cell],
                "slope": of.text(),
                "curvature": bent,
                "lead": shown,
                "shape": growth.shape or ("diverged" if of.diverged else "one seed: not known"),
                "generations": growth.generations,
            }
        )
    return {"metric": metric, "axes": list(axes), "lines": lines}


def headline(rows: Iterable[Mapping[str, Any]], led: bool = True) -> str | None:
    """The metric that the table shows.

    What a study's track ranks by; else perplexity for text, and what each other learner loses first.

    Args:
        rows: From `ledger.rows`.
        led: Whether what a track ranks by comes first.
    """
    table = Rows.of(rows)
    # What a package's learner measures is in no list here: then it is the first metric of those that it
    # describes.
    known = (*(table.leads if led else ()), *HEADLINES, *(metric.name for metric in METRICS))
    return next((name for name in known if name in table.names), None)


def summary_table(
    rows: Iterable[Mapping[str, Any]],
    axes: Sequence[str],
    seeds: Sequence[int] = (),
    most: int = 11,
    brief: bool = False,
) -> dict[str, Any]:
    """One line per cell: the headline metric by generation, mean over seeds with its interval.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        seeds: Those that every cell is run with.
        most: Generations that are shown at most, evenly spread from the first to the last, but for the last
            ones of cells that have fewer.
        brief: For a terminal: numbers without words, which the note explains.

    Returns:
        ``metric``, ``axes``, ``generations``, ``lines`` and ``note``; a line has ``cell`` and ``points``
        (text per generation), the note says what marks mean.
    """
    metric = headline(rows)
    if metric is None:
        return {"metric": None, "axes": list(axes), "generations": [], "lines": [], "note": ""}
    found = curves(rows, axes, metric, seeds)
    generations = _columns(found.values(), most)
    lines = []
    for cell, curve in found.items():
        points = [
            curve[g].text(about(metric).worse == "lower", brief) if g in curve else "" for g in generations
        ]
        lines.append({"cell": [_text(value) for value in cell], "points": points})
    points = [point for line in lines for point in line["points"]]
    notes = [SURVIVORS] if any("*" in point for point in points) else []
    if brief and any("(" in point for point in points):
        notes.append(
            "in brackets: of how many seeds; an interval over two or three is very wide (Student's t)"
        )
    note = "\n".join(notes)
    return {"metric": metric, "axes": list(axes), "generations": generations, "lines": lines, "note": note}


def _columns(curves_of: Iterable[Mapping[int, Any]], most: int) -> list[int]:
    """Generations of a table, evenly spread; the last one of a shorter cell takes its neighbour's place."""
    curves_of = [curve for curve in curves_of if curve]
    found = thinned(sorted({g for curve in curves_of for g in curve}), most)
    lasts = {max(curve) for curve in curves_of}
    for last in sorted(lasts - set(found)):
        inner = [g for g in found[1:] if g not in lasts]
        if inner:
            found[found.index(min(inner, key=lambda g: abs(g - last)))] = last
            found.sort()
    return found


def loss_lines(rows: Iterable[Mapping[str, Any]], axes: Sequence[str]) -> list[dict[str, Any]]:
    """When shares are lost, a line for each cell and share."""
    return [
        {
            "cell": [_text(value) for value in found.cell],
            "share": found.share,
            "when": found.text,
            "by_seed": found.by_seed,
        }
        for found in losses(rows, axes)
    ]
