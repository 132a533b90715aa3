"""Figures of what lies behind a generation's numbers: losses of fits, frequencies of words, likelihoods.

One panel for each cell (its first seed), one line for each generation, and the real data where they have one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.figure import Figure
from safetensors.numpy import load

from harness.errors import StoreError
from harness.inventory.judging import fit_facts
from harness.reporting.distributions import histogram_figure, histogram_numbers
from harness.reporting.figures import PANEL_COLUMNS, legend_columns, plain_ticks
from harness.reporting.page import FigureDrawing
from harness.reporting.samples import chain_title, first_chains
from harness.reporting.statistics import thinned
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared

MAX_PANELS = 12
MAX_GENERATIONS = 6
"""Lines of a panel: generations, evenly spread from the first to the last."""
MAX_POINTS = 200
"""Points of a line: means of as many steps, or ranks evenly spread on a log scale."""
MAX_EXAMPLES = 2_000
"""Examples of a corpus whose words are counted."""
Floats = npt.NDArray[np.float64]
Line = tuple[Floats, Floats]
Key = int | str
"""A generation, or ``real``."""


def drawings(prepared: Prepared, store: Store) -> Iterator[FigureDrawing]:
    """The figures of what happens inside chains, as far as there is something to draw."""
    yield from _histograms(prepared, store)
    chains = first_chains(prepared, MAX_PANELS)
    likely = _panels(prepared, chains, lambda chain: _tails(store, chain))
    if likely:
        yield _drawing(
            "tails", "tail of the text: what generation 0's model finds so unlikely, or more", likely,
            ("NLL under generation 0's model (nats/token)", "share of sequences beyond"), log=(False, True),
        )  # fmt: skip
    words = _panels(prepared, chains, lambda chain: _zipf(prepared, store, chain))
    if words:
        yield _drawing(
            "zipf", "frequency of tokens by rank (Zipf), real text and what the generations wrote", words,
            ("rank of the token", "share of all tokens"), log=(True, True),
        )  # fmt: skip
    losses = _panels(prepared, chains, lambda chain: _losses(prepared, store, chain))
    if losses:
        yield _drawing(
            "losses", "loss of the fits by step", losses, ("step", "training loss"), log=(False, False)
        )


def _panels(
    prepared: Prepared, chains: Sequence[Chain], lines: Callable[[Chain], Mapping[Key, Line]]
) -> dict[str, Mapping[Key, Line]]:
    found = {chain_title(prepared, chain): lines(chain) for chain in chains}
    return {title: known for title, known in found.items() if known}


def _drawing(
    name: str,
    label: str,
    panels: Mapping[str, Mapping[Key, Line]],
    axes: tuple[str, str],
    log: tuple[bool, bool],
) -> FigureDrawing:
    columns = min(len(panels), PANEL_COLUMNS - 1)
    down = -(-len(panels) // columns)
    figure = Figure(figsize=(max(5.0, 4.0 * columns), 3.2 * down + 0.3))
    plots = figure.subplots(down, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for plot in plots[len(panels) :]:
        plot.set_visible(False)
    generations = sorted({key for lines in panels.values() for key in lines if isinstance(key, int)})
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(generations)))
    colours: dict[Key, Any] = dict(zip(generations, shades, strict=True))
    numbers: list[list[Any]] = []
    for plot, (title, lines) in zip(plots, panels.items(), strict=False):
        for key, (x, y) in lines.items():
            real = key not in colours
            plot.plot(
                x, y,
                color=colours.get(key, "0.45"),
                linestyle="--" if real else "-",
                linewidth=1.4,
                label=key if real else f"generation {key}",
            )  # fmt: skip
            numbers += [[title, key, *pair] for pair in zip(x.tolist(), y.tolist(), strict=True)]
        plot.set_title(title, fontsize=9)
        plot.grid(alpha=0.25)
        plot.spines[["top", "right"]].set_visible(False)
    plots[0].set(xscale="log" if log[0] else "linear", yscale="log" if log[1] else "linear")
    for plot in plots:  # they share the scales, and not what writes their numbers
        for scaled, axis in zip(log, (plot.xaxis, plot.yaxis), strict=True):
            if scaled:
                plain_ticks(axis)
    figure.supxlabel(axes[0], fontsize=9)
    figure.supylabel(axes[1], fontsize=9)
    named = {text: line for plot in plots[: len(panels)]
             for line, text in zip(*plot.get_legend_handles_labels(), strict=True)}  # fmt: skip
    figure.legend(
        list(named.values()),
        list(named),
        fontsize=8,
        frameon=False,
        loc="outside upper center",
        ncols=legend_columns(list(named), figure.get_figwidth(), 8),
    )
    return FigureDrawing(name, label, figure, ["chain", "generation", *axes], numbers)


def _generations(chain: Chain, store: Store) -> list[int]:
    there = [g for g, key in enumerate(chain.nodes) if store.record(key) is not None]
    return thinned(there, MAX_GENERATIONS)


def _nll(store: Store, key: str) -> tuple[Floats, Floats] | None:
    """Nats per token of each sequence under generation 0's model: synthetic ones, and real ones."""
    arrays = load(store.content("evaluations", key, "arrays.safetensors"))
    if "gen0_nll" not in arrays:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        values = arrays["gen0_nll"] / arrays["tokens"]
        # a task may have no solutions
        real = arrays["test_nll"] / arrays["test_tokens"] if "test_nll" in arrays else np.zeros(0)
    return values[np.isfinite(values)].astype(np.float64), real[np.isfinite(real)].astype(np.float64)


def _histograms(prepared: Prepared, store: Store) -> Iterator[FigureDrawing]:
    for chain in first_chains(prepared, MAX_PANELS):
        by_generation, real = {}, None
        for generation in _generations(chain, store):
            found = _nll(store, chain.nodes[generation])
            if found is not None:
                by_generation[generation] = found[0]
                real = found[1] if generation == 0 and len(found[1]) else real
        if by_generation:
            title = chain_title(prepared, chain)
            yield FigureDrawing(
                f"histogram-{chain.id}",
                f"synthetic text under generation 0's model: {title}",
                histogram_figure(title, by_generation, real),
                ["text of generation", "nats per token"],
                histogram_numbers(by_generation, real),
            )


def _tails(store: Store, chain: Chain) -> dict[Key, Line]:
    """The share of sequences that are at least so unlikely, of every generation and of real text."""
    lines: dict[Key, Line] = {}
    for generation in _generations(chain, store):
        found = _nll(store, chain.nodes[generation])
        if found is not None and len(found[0]):
            if generation == 0 and len(found[1]):
                lines["real"] = _beyond(found[1])
            lines[generation] = _beyond(found[0])
    return lines


def _beyond(values: Floats) -> Line:
    ordered = np.sort(values)
    share = 1 - np.arange(len(ordered)) / len(ordered)
    at = thinned(range(len(ordered)), MAX_POINTS)
    return ordered[at], share[at]


def _zipf(prepared: Prepared, store: Store, chain: Chain) -> dict[Key, Line]:
    """The share of the most frequent token, of the second, and so on (Zipf 1935)."""
    lines: dict[Key, Line] = {}
    for generation in _generations(chain, store):
        key = prepared.lineage.nodes[chain.nodes[generation]].corpus
        try:
            count = min(store.corpora.count(key), MAX_EXAMPLES)
            tokens = store.corpora.load(key, count).values if count else np.zeros(0)
        except StoreError as error:
            store.trouble.setdefault(str(store.path("corpora", key)), str(error))
            continue
        if not np.issubdtype(tokens.dtype, np.integer) or not tokens.size:
            continue
        if not lines:
            real = prepared.real(chain.cell, store)
            lines["real"] = _by_rank(real.real(0, min(count, real.num_examples)).values)
        lines[generation] = _by_rank(tokens)
    return lines


def _by_rank(tokens: npt.NDArray[Any]) -> Line:
    counts = np.sort(np.unique(tokens, return_counts=True)[1])[::-1]
    at = np.unique(np.geomspace(1, len(counts), min(len(counts), MAX_POINTS)).round().astype(int))
    return at.astype(np.float64), counts[at - 1] / counts.sum()


def _losses(prepared: Prepared, store: Store, chain: Chain) -> dict[Key, Line]:
    """The training loss of every generation's fit, as means of neighbouring steps."""
    lines: dict[Key, Line] = {}
    for generation in _generations(chain, store):
        fit = prepared.lineage.nodes[chain.nodes[generation]].fit
        log = fit_facts(store, fit).get("log")
        found = log.get("train_loss") or [] if isinstance(log, Mapping) else []
        losses = np.array([np.nan if value is None else value for value in found], dtype=np.float64)
        if len(losses):
            parts = np.array_split(losses, min(len(losses), MAX_POINTS))
            ends = np.cumsum([len(part) for part in parts])
            means = np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in parts])
            lines[generation] = ends.astype(np.float64), means
    return lines
