"""The report: one self-contained HTML page with curves, histograms and samples, and every figure as PNG and PDF."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from harness.files import write_atomic
from harness.lineage import Chain
from harness.reporting import figures
from harness.reporting.statistics import curves
from harness.store import Store
from harness.study import Prepared

MAX_HISTOGRAMS = 12
MAX_SAMPLE_CELLS = 12


def build(prepared: Prepared, store: Store, rows: Sequence[Mapping[str, Any]], folder: Path) -> Path:
    """Write the report of an experiment.

    Args:
        prepared: The study.
        store: The store.
        rows: From `ledger.rows`.
        folder: Where ``report.html`` and ``figures/`` go.

    Returns:
        The page.
    """
    axes = prepared.study.columns
    drawn: list[tuple[str, str, Figure]] = []
    for metric, label in figures.LABELS.items():
        figure = figures.metric_figure(rows, axes, metric)
        if figure is not None:
            drawn.append((metric.replace("/", "-"), label, figure))
    bands = figures.bands_figure(rows, axes)
    if bands is not None:
        drawn.append(("frequency-bands", "over- and under-represented tokens in the last generation", bands))
    drawn.extend(_histograms(prepared, store))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    shown = []
    for name, label, figure in drawn:
        image = figures.encode(figure, "png")
        write_atomic(folder / "figures" / f"{name}.png", image)
        write_atomic(folder / "figures" / f"{name}.pdf", figures.encode(figure, "pdf"))
        shown.append({"name": name, "label": label, "image": base64.b64encode(image).decode()})
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((files("harness.reporting") / "report.html.jinja").read_text(encoding="utf-8"))
    page = template.render(
        experiment=prepared.study.base.experiment,
        figures=shown,
        summary=summary_table(rows, axes),
        samples=_samples(prepared, store),
        pictures=_pictures(prepared, store, folder / "figures"),
        chains=len(prepared.lineage.chains),
        seeds=len(prepared.study.seeds),
        rows=len(rows),
        total=sum(len(chain.nodes) for chain in prepared.lineage.chains),
        diverged=sum(row["status"] == "diverged" for row in rows),
    )
    write_atomic(folder / "report.html", page.encode())
    return folder / "report.html"


def headline(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The metric that the table shows: perplexity for text, log variance for the Gaussian, spread in the latent for a VAE."""
    names = {name for row in rows for name in row}
    return next((name for name in ("test/perplexity", "gaussian/log_variance", "vae/latent_std") if name in names), None)


def summary_table(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> dict[str, Any]:
    """One line per cell: the headline metric by generation, mean over seeds with its interval.

    Returns:
        ``metric``, ``axes``, ``generations`` and ``lines``; a line has ``cell`` and ``points`` (text per generation).
    """
    metric = headline(rows)
    if metric is None:
        return {"metric": None, "axes": list(axes), "generations": [], "lines": []}
    found = curves(rows, axes, metric)
    generations = sorted({g for curve in found.values() for g in curve})
    lines = []
    for cell, curve in found.items():
        points = []
        for g in generations:
            point = curve.get(g)
            if point is None or point.mean is None:
                points.append("" if point is None else "not finite")
            elif point.low is None or point.high is None:
                points.append(f"{point.mean:.4g}")
            else:
                points.append(f"{point.mean:.4g} ± {(point.high - point.low) / 2:.2g}")
        lines.append({"cell": ["" if value is None else str(value) for value in cell], "points": points})
    return {"metric": metric, "axes": list(axes), "generations": generations, "lines": lines}


def _first_chains(prepared: Prepared, limit: int) -> list[Chain]:
    """One chain per cell, of its first seed."""
    found = {chain.cell: chain for chain in reversed(prepared.lineage.chains)}
    return [found[cell] for cell in sorted(found)][:limit]


def _title(prepared: Prepared, chain: Chain) -> str:
    axes = ", ".join(f"{name.rpartition('.')[2]} {value}" for name, value in prepared.axes(chain).items() if value is not None)
    return f"{axes or prepared.study.base.experiment}, seed {chain.seed}"


def _histograms(prepared: Prepared, store: Store) -> list[tuple[str, str, Figure]]:
    drawn = []
    for chain in _first_chains(prepared, MAX_HISTOGRAMS):
        by_generation, real = {}, None
        for generation, key in enumerate(chain.nodes):
            path = store.path("evaluations", key) / "arrays.safetensors"
            if not path.exists():
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
            drawn.append((f"histogram-{chain.id}", label, figures.histogram_figure(_title(prepared, chain), by_generation, real)))
    return drawn


def _samples(prepared: Prepared, store: Store) -> list[dict[str, Any]]:
    """The prompts with every generation's continuation, for one chain of each cell."""
    shown = []
    for chain in _first_chains(prepared, MAX_SAMPLE_CELLS):
        by_prompt: dict[int, tuple[str, list[str]]] = {}
        generations = 0
        for key in chain.nodes:
            if not store.has("evaluations", key):
                break
            generations += 1
            for index, text in enumerate(store.json("evaluations", key, "continuations.json")):
                by_prompt.setdefault(index, (text["prompt"], []))[1].append(text["continuation"])
        if by_prompt:
            rows = [{"prompt": prompt, "continuations": texts} for prompt, texts in by_prompt.values()]
            shown.append({"title": _title(prepared, chain), "generations": generations, "rows": rows})
    return shown


def _pictures(prepared: Prepared, store: Store, folder: Path) -> list[dict[str, Any]]:
    """The first samples of every generation as pictures, one strip a generation, for one chain of each cell; files too."""
    shown = []
    for chain in _first_chains(prepared, MAX_SAMPLE_CELLS):
        strips = []
        for generation, key in enumerate(chain.nodes):
            path = store.path("evaluations", key) / "arrays.safetensors"
            if not path.exists():
                break
            pictures = load_file(path).get("pictures")
            if pictures is not None:
                image = figures.strip(pictures)
                write_atomic(folder / f"samples-{chain.id}-generation-{generation}.png", image)
                strips.append({"generation": generation, "image": base64.b64encode(image).decode()})
        if strips:
            shown.append({"title": _title(prepared, chain), "strips": strips})
    return shown
