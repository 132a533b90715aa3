"""Whether generation 0 has learned anything: what is better than nothing, and what nothing can beat.

For text, models that count words and pairs of words; for images the mean one; for closed forms, what the
truth itself would have. A collapse from a model that knew nothing is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.config.naming import cell_name
from harness.metrics.bigram import bigram_nll, unigram_nll
from harness.metrics.vae import mean_image_elbo
from harness.reporting.explorer import HIDDEN_AXES
from harness.reporting.ledger import cell_value
from harness.reporting.rows import Rows
from harness.reporting.statistics import curves
from harness.science import canonical_json
from harness.store import Store
from harness.study import Prepared

ELBO = "vae/elbo"
MAX_BLOCKS = 20_000
"""Training blocks that are counted, the first ones."""
MAX_IMAGES = 20_000
"""Training images whose mean is taken, the first ones."""
NO_BETTER = ", which is no better: it has learned less than that, and has little to lose"
MAX_DATA = 6
"""Sets of real data that have a line."""


@dataclass(frozen=True)
class Baseline:
    """What generation 0 is compared with, for some cells.

    Attributes:
        metric: The column.
        name: What it is, for people.
        value: What it has.
        found: What generation 0 has, the best and the worst of the cells.
        warning: What is wrong; empty where generation 0 has learned something.
        where: Which data, by the axes that tell them apart; empty where there is one set.
    """

    metric: str
    name: str
    value: float
    found: tuple[float, float]
    warning: str = ""
    where: str = ""

    @property
    def text(self) -> str:
        """What was found, in a sentence."""
        best, worst = self.found
        own = f"{best:.4g}" if f"{best:.4g}" == f"{worst:.4g}" else f"{best:.4g} to {worst:.4g}"
        before = f"{self.where}: " if self.where else ""
        return f"{before}{self.name} has {self.value:.4g}; generation 0 has {own}{self.warning}"


def baselines(prepared: Prepared, store: Store, rows: Rows) -> list[Baseline]:
    """The baselines of every set of real data that there are any for.

    Args:
        prepared: The study.
        store: The store, which has the data.
        rows: From `ledger.rows`.
    """
    found: list[Baseline] = []
    rows = rows.where(rows.generation == 0)
    seen: dict[str, list[int]] = {}
    for index, cell in enumerate(prepared.study.cells):
        if not cell.teacher:
            seen.setdefault(canonical_json(prepared.specs[index].data.identity), []).append(index)
    for cells in list(seen.values())[:MAX_DATA]:
        data, own = prepared.data[cells[0]], list[Baseline]()
        if data.real.counted:
            own += _of_text(prepared, prepared.real(cells[0], store), rows, cells)
        if (elbo := _first(prepared, rows, ELBO, cells)) is not None:
            own.append(_of_images(prepared.real(cells[0], store), elbo))
        for metric, value in data.real.own_metrics.items():
            if (first := _first(prepared, rows, metric, cells)) is not None:
                own.append(Baseline(metric, "the truth", value, first))
        where = _where(prepared, cells[0]) if len(seen) > 1 else ""
        found += [replace(item, where=where) for item in own]
    return found


def _of_images(real: Any, elbo: tuple[float, float]) -> Baseline:
    """What the mean image has, and the best and the worst of some cells: with an ELBO more is better."""
    value = mean_image_elbo(real.real(0, min(real.num_examples, MAX_IMAGES)).values, real.test.values)
    name = "the mean training image, its pixels independent,"
    worst, best = elbo
    return Baseline(ELBO, name, value, (best, worst), NO_BETTER if worst <= value else "")


def _where(prepared: Prepared, cell: int) -> str:
    """A cell by the axes that are of its data."""
    axes = {a: v for a, v in prepared.study.cells[cell].axes.items() if a.partition(".")[0] == "data"}
    return cell_name([cell_value(value) for value in axes.values()], list(axes))


def _of_text(prepared: Prepared, real: Any, rows: Rows, cells: Sequence[int]) -> list[Baseline]:
    first = _first(prepared, rows, "test/perplexity", cells)
    if first is None:
        return []
    train = real.real(0, min(real.num_examples, MAX_BLOCKS)).values
    bos, size, test = real.meta["bos"], real.meta["vocab_size"], real.test.values
    known = {
        "one that only counts tokens": unigram_nll(train, test, size),
        "an interpolated bigram model of the same tokens": bigram_nll(
            train, real.validation.values, test, bos, size
        ),
    }
    found = []
    for name, nll in known.items():
        warning = NO_BETTER if first[1] >= math.exp(nll) else ""
        found.append(Baseline("test/perplexity", name, math.exp(nll), first, warning))
    return found


def _first(prepared: Prepared, rows: Rows, metric: str, cells: Sequence[int]) -> tuple[float, float] | None:
    """Means over seeds of generation 0: of the best and of the worst of some cells."""
    if metric not in rows.names:
        return None
    axes = [axis for axis in prepared.study.columns if axis not in HIDDEN_AXES]
    wanted = {tuple(cell_value(prepared.study.cells[index].axes[axis]) for axis in axes) for index in cells}
    means = [
        curve[0].mean
        for cell, curve in curves(rows, axes, metric).items()
        if cell in wanted and 0 in curve and curve[0].mean is not None
    ]
    known = [mean for mean in means if mean is not None]
    return (min(known), max(known)) if known else None
