"""The tables of a report, as text: the headline metric by generation, its growth, critical ratios."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.metrics.catalogue import HEADLINES, METRICS, about
from harness.reporting.analysis import RATIO, critical_ratios, losses
from harness.reporting.growth import growths
from harness.reporting.rows import Rows
from harness.reporting.statistics import SURVIVORS, Aggregate, curves
from harness.terminal import counted

LEAST = 3
"""Generations that a table shows, however little room there is."""


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
    up, lines = metric is not None and about(metric).worse == "lower", list[dict[str, Any]]()
    for cell, growth in found.items():
        best = max(growth.leads, key=lambda shape: growth.leads[shape].mean or -math.inf, default=None)
        shown = "" if best is None else "none"  # seeds that each have another one ahead agree on none
        if best is not None and (growth.leads[best].mean or 0.0) > 0:
            shown = f"{best}: {_without_median(growth.leads[best])}"
        bent = "" if growth.curvature is None else _without_median(growth.curvature)
        of = growth.slope
        lines.append(
            {
                "cell": [_text(value) for value in cell],
                "slope": of.text(up),
                "curvature": bent,
                "lead": shown,
                "shape": growth.shape or ("diverged" if of.diverged else "one seed: not known"),
                "generations": growth.generations,
            }
        )
    return {"metric": metric, "axes": list(axes), "lines": lines}


def _without_median(found: Aggregate) -> str:
    """As text; where chains have diverged there is no median of what has no worse end."""
    return found.text(brief=bool(found.diverged))


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
    fits: Callable[[dict[str, Any]], bool] | None = None,
) -> dict[str, Any]:
    """One line per cell: the headline metric by generation, mean over seeds with its interval.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        seeds: Those that every cell is run with.
        most: Generations that are shown at most: from 0 on in equal steps, the last one, and the last ones of
            cells that have fewer.
        brief: For a terminal: numbers without words, which the note explains.
        fits: Whether there is room for a table; while there is none fewer generations are shown, `LEAST` at
            least.

    Returns:
        ``metric``, ``axes``, ``generations``, ``lines``, ``note`` and ``columns``; a line has ``cell`` and
        ``points`` (text per generation), the note says what marks mean, ``columns`` which generations are
        shown where some are not.
    """
    metric = headline(rows)
    if metric is None:
        return {"metric": None, "axes": list(axes), "generations": [], "lines": [], "note": "", "columns": ""}
    found = curves(rows, axes, metric, seeds)
    known: dict[str, Any] = {"metric": metric, "axes": list(axes)}
    higher_is_better = about(metric).worse == "lower"
    for count in range(most, min(most, LEAST) - 1, -1):
        generations, columns = _columns(found.values(), count)
        lines = []
        for cell, curve in found.items():
            points = [curve[g].text(higher_is_better, brief) if g in curve else "" for g in generations]
            lines.append({"cell": [_text(value) for value in cell], "points": points})
        table = {**known, "generations": generations, "lines": lines}
        if fits is None or fits(table):
            break
    points = [point for line in table["lines"] for point in line["points"]]
    notes = [SURVIVORS] if any("*" in point for point in points) else []
    if not all(found.values()):
        notes.append("cells without numbers: their learner does not measure it")
    if brief and any("(" in point for point in points):
        notes.append(
            "in brackets: of how many seeds; an interval over two or three is very wide (Student's t)"
        )
    return {**table, "note": "\n".join(notes), "columns": columns}


def _columns(curves_of: Iterable[Mapping[int, Any]], most: int) -> tuple[list[int], str]:
    """Generations of a table, and which they are in words; no words where they are all.

    In equal steps from the first one, with the last one, and with the last ones of shorter cells as far as
    there is room for them.
    """
    curves_of = [curve for curve in curves_of if curve]
    every = sorted({g for curve in curves_of for g in curve})
    if len(every) <= most:
        return every, ""
    shorter = sorted({max(curve) for curve in curves_of} - {every[0], every[-1]}, reverse=True)
    kept = {every[-1], *shorter[: max(0, most - 2)]}
    step, found = 1, every
    while len(found) > max(most, 2):
        step += 1
        found = sorted({*every[::step], *kept})
    steps = every[::step] if step < len(every) - 1 else every[:1]
    said = f"every {_nth(step)} generation" if len(steps) > 1 else "the first generation"
    beside = {*found} - {*steps}
    if beside:
        some = "some" if set(shorter) - {*found} else "the"
        said += " and the last one" + ("" if beside == {every[-1]} else f"s of {some} cells")
    return found, said


def _nth(number: int) -> str:
    """The ordinal of a number, in figures."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"{number}{ending}"


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
