"""The report of a study: what is in a store of it, put together for the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.components import LEARNERS
from harness.files import write_atomic
from harness.inventory import Inventory, StoredChains
from harness.inventory.failed import without_logs
from harness.inventory.judging import remarks
from harness.reporting import claims, distributions, homogenisation, inside
from harness.reporting.baseline import Baseline, baselines
from harness.reporting.costs import costs, lineage
from harness.reporting.early import early_table
from harness.reporting.ledger import cell_value
from harness.reporting.page import FigureDrawing, Page, Tell, render
from harness.reporting.populations import population_table
from harness.reporting.rows import Rows
from harness.reporting.samples import pictures, samples
from harness.reporting.tables import critical_table, loss_lines
from harness.reporting.theory import expected
from harness.reporting.worth import worth_lines
from harness.store import Experiment, Store
from harness.study import Prepared
from harness.terminal import counted, visible

MAX_REASONS = 20
"""Different reasons of failures that are shown."""


def build(
    prepared: Prepared,
    store: Store,
    rows: Iterable[Mapping[str, Any]],
    folder: Path,
    tell: Tell = lambda line: None,
    baseline: Sequence[Baseline] | None = None,
) -> Path:
    """Write the report of an experiment.

    Args:
        prepared: The study.
        store: The store.
        rows: From `ledger.rows`.
        folder: Where ``report.html`` and ``figures/`` go.
        tell: Is told what is being made.
        baseline: From `baselines`, where they are known.

    Returns:
        The page.
    """
    page = Page(folder, tell)
    axes, seeds, rows = prepared.study.columns, prepared.study.seeds, Rows.of(rows)
    failed = failed_chains(prepared, store)
    return render(
        page,
        prepared.study.base.experiment,
        rows,
        axes,
        seeds,
        lambda metric: theory_lines(prepared, metric),
        drawings=_drawings(prepared, store, rows),
        remarks=[*failed_line(prepared, failed), *remarks(prepared, store)],
        homogenisation=_homogenisation(prepared, store, page),
        verdicts=[claims.describe(found) for found in claims.judge(prepared, rows)],
        losses=loss_lines(rows, axes),
        critical=critical_table(rows, axes, seeds),
        samples=samples(prepared, store),
        pictures=pictures(prepared, store, page),
        baseline=baselines(prepared, store, rows) if baseline is None else baseline,
        costs=costs(prepared, store),
        lineage=lineage(prepared),
        worth=worth_lines(prepared, rows),
        early=early_table(rows, axes),
        populations=population_table(prepared, store, rows),
        chains=len(prepared.chains),
        variance=variance(prepared),
        total=sum(chain.generations + 1 for chain in prepared.chains),
        failed=_reasons(failed),
        study=visible(yaml.safe_dump(prepared.study.source.data, sort_keys=False, allow_unicode=True)),
    )


def _drawings(prepared: Prepared, store: Store, rows: Rows) -> Iterator[FigureDrawing]:
    """The figures that are not of one metric by generation."""
    bands = distributions.bands_figure(rows, prepared.study.columns)
    if bands is not None:
        label = "over- and under-represented tokens in the last generation"
        yield FigureDrawing("frequency-bands", label, *bands)
    yield from inside.drawings(prepared, store)


def failed_chains(prepared: Prepared, store: Store) -> list[str]:
    """Why chains have failed: a reason for each that has, without its log, which is this machine's."""
    experiment = Experiment(store.root, prepared.study.base.experiment)
    if not any(event["event"] in ("branch_failed", "chain_failed") for event in experiment.events()):
        return []
    stored = StoredChains(prepared, store, Inventory(prepared, store))
    states = (stored.of(chain).progress(chain)[1] for chain in prepared.chains)
    return [without_logs(state.detail) for state in states if state.state == "failed"]


def failed_line(prepared: Prepared, reasons: Sequence[str]) -> list[str]:
    """How many chains have failed, in a line; none where none has.

    Args:
        prepared: The study.
        reasons: From `failed_chains`.
    """
    whole = counted(len(prepared.chains), "chain")
    return [f"{len(reasons)} of {whole} failed; harness status says why"] if reasons else []


def _reasons(reasons: Sequence[str]) -> list[str]:
    """Each reason once, with how many chains have it."""
    return [
        f"{visible(reason, lines=False)}{f' ({count} chains)' if count > 1 else ''}"
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
                "figure": page.add(FigureDrawing(name, label, figure, *homogenisation.numbers(result))),
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
