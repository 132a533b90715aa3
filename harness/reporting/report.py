"""The report of a study: what is in a store of it, put together for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from harness.components import LEARNERS
from harness.config.naming import cell_name
from harness.files import write_atomic
from harness.inventory.states import failures
from harness.reporting import claims, distributions, figures, homogenisation
from harness.reporting.ledger import cell_value
from harness.reporting.page import Drawing, Page, Tell, render
from harness.reporting.rows import Rows
from harness.reporting.tables import critical_table, loss_lines
from harness.reporting.theory import expected
from harness.science import Chain
from harness.store import Experiment, Store
from harness.study import Prepared
from harness.terminal import visible

MAX_HISTOGRAMS = 12
MAX_SAMPLE_CELLS = 12
MAX_REASONS = 20
"""Different reasons of failures that are shown."""


def build(
    prepared: Prepared,
    store: Store,
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    tell: Tell = lambda line: None,
) -> Path:
    """Write the report of an experiment.

    Args:
        prepared: The study.
        store: The store.
        rows: From `ledger.rows`.
        folder: Where ``report.html`` and ``figures/`` go.
        tell: Is told what is being made.

    Returns:
        The page.
    """
    page = Page(folder, tell)
    axes, seeds, rows = prepared.study.columns, prepared.study.seeds, Rows.of(rows)
    return render(
        page,
        prepared.study.base.experiment,
        rows,
        axes,
        seeds,
        lambda metric: theory_lines(prepared, metric),
        drawings=_drawings(prepared, store, rows),
        homogenisation=_homogenisation(prepared, store, page),
        verdicts=[claims.describe(found) for found in claims.judge(prepared, rows)],
        losses=loss_lines(rows, axes),
        critical=critical_table(rows, axes, seeds),
        samples=_samples(prepared, store),
        pictures=_pictures(prepared, store, page),
        chains=len(prepared.chains),
        variance=variance(prepared),
        total=sum(len(chain.nodes) for chain in prepared.lineage.chains)
        + sum(c.generations + 1 for c in prepared.bundles),
        failed=_failed(prepared, store),
        study=visible(yaml.safe_dump(prepared.study.source.data, sort_keys=False, allow_unicode=True)),
    )


def _drawings(prepared: Prepared, store: Store, rows: Rows) -> Iterator[Drawing]:
    """The figures that are not of one metric by generation."""
    bands = distributions.bands_figure(rows, prepared.study.columns)
    if bands is not None:
        label = "over- and under-represented tokens in the last generation"
        yield Drawing("frequency-bands", label, *bands)
    yield from _histograms(prepared, store)


def _failed(prepared: Prepared, store: Store) -> list[str]:
    """Why what is not there has failed, each reason once with how often."""
    reasons = failures(Experiment(store.root, prepared.study.base.experiment)).values()
    return [
        f"{visible(reason, lines=False)}{f' ({count} times)' if count > 1 else ''}"
        for reason, count in Counter(reasons).most_common(MAX_REASONS)
    ]


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


def _homogenisation(prepared: Prepared, store: Store, page: Page) -> list[dict[str, Any]]:
    """How alike the corpora are: a figure and a table for each set of real data.

    All numbers go to ``homogenisation.csv``.
    """
    results = homogenisation.compare(prepared, store)
    if results:
        write_atomic(page.folder / "homogenisation.csv", homogenisation.to_csv(results))
    shown = []
    for index, result in enumerate(results):
        name = "homogenisation" if len(results) == 1 else f"homogenisation-{index}"
        figure = distributions.homogenisation_figure(result.lines, result.baseline, homogenisation.LABELS)
        label = "how alike the corpora of different chains are" + (
            f": {result.title}" if result.title else ""
        )
        shown.append(
            {
                "title": result.title,
                "notes": "; ".join(result.notes),
                "figure": page.add(Drawing(name, label, figure, *homogenisation.numbers(result))),
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


def _first_chains(prepared: Prepared, limit: int) -> list[Chain]:
    """One chain per cell, of its first seed."""
    found = {chain.cell: chain for chain in reversed(prepared.lineage.chains)}
    return [found[cell] for cell in sorted(found)][:limit]


def _title(prepared: Prepared, chain: Chain) -> str:
    values = prepared.axes(chain)
    return visible(cell_name([cell_value(v) for v in values.values()], list(values), chain.seed), lines=False)


def _histograms(prepared: Prepared, store: Store) -> Iterator[Drawing]:
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
            title = _title(prepared, chain)
            yield Drawing(
                f"histogram-{chain.id}",
                f"synthetic text under generation 0's model: {title}",
                distributions.histogram_figure(title, by_generation, real),
                ["text of generation", "nats per token"],
                distributions.histogram_numbers(by_generation, real),
            )


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


def _pictures(prepared: Prepared, store: Store, page: Page) -> list[dict[str, Any]]:
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
                name = f"samples-{chain.id}-generation-{generation}"
                write_atomic(page.folder / "figures" / f"{name}.png", image)
                strips.append({"generation": generation, "name": name} | page.image(image))
        if strips:
            shown.append({"title": _title(prepared, chain), "strips": strips})
    return shown
