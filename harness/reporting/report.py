"""The report: one self-contained HTML page with curves, histograms and samples.

Every figure is there as PNG and PDF too.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from harness.components import LEARNERS
from harness.files import write_atomic
from harness.inventory.states import failures
from harness.metrics.catalogue import HEADLINES, METRICS, about, drawn
from harness.reporting import claims, figures, homogenisation
from harness.reporting.analysis import RATIO, critical_ratios, losses
from harness.reporting.answer import answers
from harness.reporting.growth import growths
from harness.reporting.ledger import cell_value
from harness.reporting.rows import Rows
from harness.reporting.statistics import SURVIVORS, curves
from harness.reporting.theory import expected
from harness.science import Chain
from harness.store import Experiment, Store
from harness.study import Prepared
from harness.terminal import visible

MAX_HISTOGRAMS = 12
WIDE_INCHES = 10.0
"""A figure that is wider has a row of its own."""
MAX_SAMPLE_CELLS = 12
MAX_REASONS = 20
"""Different reasons of failures that are shown."""


def build(prepared: Prepared, store: Store, rows: Iterable[Mapping[str, Any]], folder: Path) -> Path:
    """Write the report of an experiment.

    Args:
        prepared: The study.
        store: The store.
        rows: From `ledger.rows`.
        folder: Where ``report.html`` and ``figures/`` go.

    Returns:
        The page.
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    axes, seeds, rows = prepared.study.columns, prepared.study.seeds, Rows.of(rows)
    pages = curve_figures(rows, axes, seeds, lambda metric: theory_lines(prepared, metric))
    bands = figures.bands_figure(rows, axes)
    if bands is not None:
        pages.append(("frequency-bands", "over- and under-represented tokens in the last generation", bands))
    pages.extend(_histograms(prepared, store))
    return render(
        folder,
        prepared.study.base.experiment,
        rows,
        axes,
        seeds,
        pages,
        homogenisation=_homogenisation(prepared, store, folder),
        verdicts=[claims.describe(found) for found in claims.judge(prepared, rows)],
        losses=[
            {
                "cell": [_text(value) for value in found.cell],
                "share": found.share,
                "when": found.text,
                "by_seed": found.by_seed,
            }
            for found in losses(rows, axes)
        ],
        critical=critical_table(rows, axes, seeds),
        samples=_samples(prepared, store),
        pictures=_pictures(prepared, store, folder / "figures"),
        chains=len(prepared.chains),
        variance=variance(prepared),
        total=sum(len(chain.nodes) for chain in prepared.lineage.chains)
        + sum(c.generations + 1 for c in prepared.bundles),
        failed=_failed(prepared, store),
        study=visible(yaml.safe_dump(prepared.study.source.data, sort_keys=False, allow_unicode=True)),
    )


def curve_figures(
    rows: Rows,
    axes: Sequence[str],
    seeds: Sequence[int],
    theory: Callable[[str], dict[tuple[Any, ...], list[float]]] = lambda metric: {},
) -> list[tuple[str, str, Figure]]:
    """A figure of every metric that is drawn, with its name and label.

    Args:
        rows: From `ledger.rows`.
        axes: The axes that tell cells apart.
        seeds: Those that every cell is run with.
        theory: What theory says of a metric, by cell.
    """
    found = []
    for metric, label in _drawn(rows.names).items():
        figure = figures.metric_figure(rows, axes, metric, theory(metric), label, seeds)
        if figure is not None:
            found.append((metric.replace("/", "-"), label, figure))
    return found


def render(
    folder: Path,
    title: str,
    rows: Rows,
    axes: Sequence[str],
    seeds: Sequence[int],
    pages: Sequence[tuple[str, str, Figure]],
    **sections: Any,
) -> Path:
    """Write ``report.html`` and ``figures/`` to a folder; returns the page.

    Args:
        folder: The folder, made where there is none.
        title: Of the page.
        rows: What the table and the sentences are of.
        axes: The axes that tell cells apart.
        seeds: Those that every cell is run with; those with rows when empty.
        pages: Name, label and figure.
        sections: What else the page has (``report.html.jinja``).
    """
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"words": _words, "label": _label}
    template = environment.from_string(
        (files("harness.reporting") / "report.html.jinja").read_text(encoding="utf-8")
    )
    chains = len({(chain.cell, chain.seed) for chain in rows.series(axes)})
    known: dict[str, Any] = dict.fromkeys(
        ("homogenisation", "verdicts", "losses", "samples", "pictures", "failed"), ()
    )
    known |= {"critical": {"lines": ()}, "variance": "", "study": "", "chains": chains, "total": len(rows)}
    page = template.render(
        experiment=visible(title, lines=False),
        figures=[_save(folder, *item) for item in pages],
        answers=[visible(line, lines=False) for line in answers(rows, axes, seeds)],
        summary=summary_table(rows, axes, seeds),
        growth=growth_table(rows, axes, seeds),
        seeds=len(seeds) or len({chain.seed for chain in rows.series(axes)}),
        rows=len(rows),
        diverged=int(rows.diverged.sum()),
        **{**known, **sections},
    )
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def _failed(prepared: Prepared, store: Store) -> list[str]:
    """Why what is not there has failed, each reason once with how often."""
    reasons = failures(Experiment(store.root, prepared.study.base.experiment)).values()
    return [
        f"{visible(reason, lines=False)}{f' ({count} times)' if count > 1 else ''}"
        for reason, count in Counter(reasons).most_common(MAX_REASONS)
    ]


def _words(axes: Sequence[str]) -> list[str]:
    """Axes for people: their last part, unless two have the same."""
    short = [axis.rpartition(".")[2].replace("_", " ") for axis in axes]
    return short if len(set(short)) == len(short) else list(axes)


def _label(metric: str) -> str:
    """A metric for people, with its unit."""
    return about(metric).title


def _drawn(names: Collection[str]) -> dict[str, str]:
    """The metrics that are drawn, with their titles; closed forms score examples, which have no tokens."""
    titles = {metric.name: metric.title for metric in drawn(names)}
    if "test/perplexity" not in titles:
        titles |= {
            name: "NLL on real examples (nats)" for name in ("test/nll", "kde/test_nll") if name in titles
        }
    if "kde/test_nll" in titles:
        del titles["test/nll"]
    return titles


def variance(prepared: Prepared) -> str:
    """Which variance the intervals hold: what the seeds of a chain differ in."""
    sections = [cell.config.data for cell in prepared.study.cells]
    own = {section.own_examples for section in sections}
    closed = all(LEARNERS[cell.config.learner.kind].batchable for cell in prepared.study.cells)
    of_fits = "sampling" if closed else "initialisation, data order and sampling"
    if own == {True}:
        return f"Intervals are over seeds, which differ in {of_fits}, and in the training examples."
    asked = all("resample" in type(section).model_fields for section in sections)
    if own == {False}:
        hint = " (data.resample: true resamples them)" if asked else ""
        return f"Intervals are over seeds, which differ in {of_fits}, not in the data{hint}."
    where = "where data.resample is true" if asked else "of some cells"
    return f"Intervals are over seeds, which differ in {of_fits}; in the training examples only {where}."


def _save(folder: Path, name: str, label: str, figure: Figure) -> dict[str, Any]:
    """Write a figure as PNG and PDF; what the page shows of it."""
    image = figures.encode(figure, "png")
    write_atomic(folder / "figures" / f"{name}.png", image)
    write_atomic(folder / "figures" / f"{name}.pdf", figures.encode(figure, "pdf"))
    wide = float(figure.get_size_inches()[0]) > WIDE_INCHES
    return {"name": name, "label": label, "image": base64.b64encode(image).decode(), "wide": wide}


def _homogenisation(prepared: Prepared, store: Store, folder: Path) -> list[dict[str, Any]]:
    """How alike the corpora are: a figure and a table for each set of real data.

    All numbers go to ``homogenisation.csv``.
    """
    results = homogenisation.compare(prepared, store)
    if results:
        write_atomic(folder / "homogenisation.csv", homogenisation.to_csv(results))
    shown = []
    for index, result in enumerate(results):
        name = "homogenisation" if len(results) == 1 else f"homogenisation-{index}"
        figure = figures.homogenisation_figure(result.lines, result.baseline, homogenisation.LABELS)
        label = "how alike the corpora of different chains are" + (
            f": {result.title}" if result.title else ""
        )
        shown.append(
            {
                "title": result.title,
                "notes": "; ".join(result.notes),
                "figure": _save(folder, name, label, figure),
                **homogenisation.table(result),
            }
        )
    return shown


def theory_lines(prepared: Prepared, metric: str) -> dict[tuple[Any, ...], list[float]]:
    """What theory says of a metric, for the cells where it says something."""
    found = {}
    for cell in prepared.study.cells:
        line = expected(cell.config, metric)
        if line is not None:
            found[tuple(cell_value(cell.axes[name]) for name in prepared.study.columns)] = line
    return found


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
        ratio, of = "", f"{item.seeds} seeds"
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


def headline(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The metric that the table shows: perplexity for text, and what each other learner loses first."""
    names = Rows.of(rows).names
    # What a package's learner measures is in no list here: then it is the first metric of those that it
    # describes.
    return next((name for name in (*HEADLINES, *(metric.name for metric in METRICS)) if name in names), None)


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
        most: Generations that are shown at most, evenly spread from the first to the last.
        brief: For a terminal: numbers without words, which the note explains.

    Returns:
        ``metric``, ``axes``, ``generations``, ``lines`` and ``note``; a line has ``cell`` and ``points``
        (text per generation), the note says what marks mean.
    """
    metric = headline(rows)
    if metric is None:
        return {"metric": None, "axes": list(axes), "generations": [], "lines": [], "note": ""}
    found = curves(rows, axes, metric, seeds)
    generations = sorted({g for curve in found.values() for g in curve})
    if len(generations) > most:
        generations = [generations[i] for i in np.linspace(0, len(generations) - 1, most).round().astype(int)]
    lines = []
    for cell, curve in found.items():
        points = [
            curve[g].text(about(metric).worse == "lower", brief) if g in curve else "" for g in generations
        ]
        lines.append({"cell": ["" if value is None else str(value) for value in cell], "points": points})
    points = [point for line in lines for point in line["points"]]
    notes = [SURVIVORS] if any("*" in point for point in points) else []
    if brief and any("(" in point for point in points):
        notes.append(
            "in brackets: of how many seeds; an interval over two or three is very wide (Student's t)"
        )
    note = "\n".join(notes)
    return {"metric": metric, "axes": list(axes), "generations": generations, "lines": lines, "note": note}


def _first_chains(prepared: Prepared, limit: int) -> list[Chain]:
    """One chain per cell, of its first seed."""
    found = {chain.cell: chain for chain in reversed(prepared.lineage.chains)}
    return [found[cell] for cell in sorted(found)][:limit]


def _title(prepared: Prepared, chain: Chain) -> str:
    axes = ", ".join(
        f"{name.rpartition('.')[2]} {value}"
        for name, value in prepared.axes(chain).items()
        if value is not None
    )
    return f"{axes or prepared.study.base.experiment}, seed {chain.seed}"


def _histograms(prepared: Prepared, store: Store) -> list[tuple[str, str, Figure]]:
    found = []
    for chain in _first_chains(prepared, MAX_HISTOGRAMS):
        by_generation, real = {}, None
        for generation, key in enumerate(chain.nodes):
            path = store.path("evaluations", key) / "arrays.safetensors"
            if store.record(key) is None:
                break
            arrays = load_file(path)
            if "gen0_nll" not in arrays:
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                values = arrays["gen0_nll"] / arrays["tokens"]
                by_generation[generation] = values[np.isfinite(values)]
                if generation == 0:
                    real = arrays["test_nll"] / arrays["test_tokens"]
        if by_generation:
            label = f"synthetic text under generation 0's model: {_title(prepared, chain)}"
            found.append(
                (
                    f"histogram-{chain.id}",
                    label,
                    figures.histogram_figure(_title(prepared, chain), by_generation, real),
                )
            )
    return found


def _samples(prepared: Prepared, store: Store) -> list[dict[str, Any]]:
    """The prompts with every generation's continuation, for one chain of each cell."""
    shown = []
    for chain in _first_chains(prepared, MAX_SAMPLE_CELLS):
        by_prompt: dict[int, tuple[str, list[str]]] = {}
        generations = 0
        for key in chain.nodes:
            if store.record(key) is None:
                break
            generations += 1
            for index, text in enumerate(store.json("evaluations", key, "continuations.json")):
                by_prompt.setdefault(index, (text["prompt"], []))[1].append(text["continuation"])
        if by_prompt:
            rows = [{"prompt": prompt, "continuations": texts} for prompt, texts in by_prompt.values()]
            shown.append({"title": _title(prepared, chain), "generations": generations, "rows": rows})
    return shown


def _pictures(prepared: Prepared, store: Store, folder: Path) -> list[dict[str, Any]]:
    """The first samples of every generation as pictures, one strip a generation, for one chain of each cell.

    Files too.
    """
    shown = []
    for chain in _first_chains(prepared, MAX_SAMPLE_CELLS):
        strips = []
        for generation, key in enumerate(chain.nodes):
            path = store.path("evaluations", key) / "arrays.safetensors"
            if store.record(key) is None:
                break
            pictures = load_file(path).get("pictures")
            if pictures is not None:
                image = figures.strip(pictures)
                write_atomic(folder / f"samples-{chain.id}-generation-{generation}.png", image)
                strips.append({"generation": generation, "image": base64.b64encode(image).decode()})
        if strips:
            shown.append({"title": _title(prepared, chain), "strips": strips})
    return shown
