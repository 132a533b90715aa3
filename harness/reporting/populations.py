"""Populations as a whole: the mean, the best and the worst of their members, and how different they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from harness.config.grid import Study
from harness.config.naming import cell_name
from harness.config.population import MEMBER, arrival
from harness.errors import StoreError
from harness.metrics.catalogue import about
from harness.metrics.homogenisation import effective_members
from harness.records import Examples
from harness.reporting.homogenisation import TOKEN_BUDGET
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, aggregate
from harness.reporting.tables import headline
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared

Over = Literal["mean", "best", "worst"]
Curve = dict[int, float]
"""Generation to value, for one seed; without values that are not finite."""
MAX_SEEDS = 5
"""Chains whose corpora are read for how different the members are: those of the first seeds."""


@dataclass(frozen=True)
class Group:
    """A population of a study.

    Attributes:
        cells: Of its members, in order.
        arrives: The population's generation in which each is fitted for the first time.
        lasts: And for the last time.
    """

    cells: tuple[int, ...]
    arrives: tuple[int, ...]
    lasts: tuple[int, ...]

    @property
    def last(self) -> int:
        """The population's last generation."""
        return max(self.lasts)

    def there(self, generation: int) -> list[int]:
        """The cells of the members that are fitted in a generation of the population."""
        spans = zip(self.cells, self.arrives, self.lasts, strict=True)
        return [cell for cell, start, stop in spans if start <= generation <= stop]


def groups(study: Study) -> list[Group]:
    """The populations of a study."""
    first = [cell.member for cell in study.cells if cell.member is not None and not cell.member.number]
    return [whole(study, member.cells) for member in first]


def whole(study: Study, cells: Sequence[int]) -> Group:
    """The population whose members these cells are."""
    members = [study.cells[index] for index in cells]
    arrives = tuple(arrival(other.config, other.member) for other in members if other.member)
    lasts = tuple(a + m.config.generations for a, m in zip(arrives, members, strict=True))
    return Group(tuple(cells), arrives, lasts)


def as_one(
    group: Group, of_cells: Mapping[int, Mapping[int, Curve]], metric: str, over: Over
) -> dict[int, Curve]:
    """Seed to one curve of a population, by its own generations.

    A generation in which a member that is there has no value has none.

    Args:
        group: The population.
        of_cells: Cell to seed to the member's curve, by the member's generations.
        metric: Its name, which says what is best.
        over: The mean of the members, or the best or worst of them.
    """
    up = about(metric).worse == "lower"
    combine: Callable[[Sequence[float]], Any] = np.mean
    if over != "mean":
        combine = max if up == (over == "best") else min
    start = dict(zip(group.cells, group.arrives, strict=True))
    found: dict[int, Curve] = {}
    for seed in sorted({seed for cell in group.cells for seed in of_cells.get(cell, {})}):
        curve = {}
        for generation in range(group.last + 1):
            there = group.there(generation)
            values = [of_cells.get(cell, {}).get(seed, {}).get(generation - start[cell]) for cell in there]
            if values and all(value is not None for value in values):
                curve[generation] = float(combine([value for value in values if value is not None]))
        found[seed] = curve
    return found


def population_table(prepared: Prepared, store: Store, rows: Rows) -> dict[str, Any]:
    """The populations of a study as text: ``metric`` and ``lines``; no lines where there are none.

    A line has its ``name``, the ``members`` there, the ``generation``, their ``mean``, ``best`` and
    ``worst``, and, where corpora of tokens are kept, how many different ones they are (``distinct``).
    """
    metric, found = headline(rows), groups(prepared.study)
    if metric is None or all(len(group.cells) == 1 for group in found):
        return {"metric": metric, "lines": []}
    values, cells = rows.values(metric), {chain.id: chain.cell for chain in prepared.chains}
    of_cells: dict[int, dict[int, dict[int, float]]] = {}
    ended: dict[tuple[int, int], int] = {}
    for series in rows.series(("chain",)):
        of_cells.setdefault(cells[series.cell[0]], {})[series.seed] = rows.curve(series, values)
        if series.ended is not None:
            ended[cells[series.cell[0]], series.seed] = series.ended
    lines = []
    for group in found:
        start = dict(zip(group.cells, group.arrives, strict=True))
        ends = [(seed, start[cell] + end) for (cell, seed), end in ended.items() if cell in start]
        axes = {name: v for name, v in prepared.study.cells[group.cells[0]].axes.items() if name != MEMBER}
        curves = {over: as_one(group, of_cells, metric, over) for over in get_args(Over)}
        for generation in dict.fromkeys((min(group.arrives), group.last)):
            gone = {seed for seed, end in ends if end <= generation}
            of = {
                over: aggregate(
                    [c[generation] for s, c in by_seed.items() if generation in c and s not in gone],
                    len(gone),
                )
                for over, by_seed in curves.items()
            }
            lines.append(
                {
                    "name": cell_name(list(axes.values()), list(axes)) or "the population",
                    "members": len(group.there(generation)),
                    "generation": generation,
                    **{over: _text(value, len(prepared.study.seeds)) for over, value in of.items()},
                    "distinct": _distinct(prepared, store, group, generation),
                }
            )
    return {"metric": metric, "lines": lines}


def _text(found: Aggregate, seeds: int) -> str:
    if found.mean is None:
        return found.text()
    all_there = len(found.values) == seeds or found.diverged  # which the text counts
    return f"{found.text()}{'' if all_there else f' ({len(found.values)} of {seeds} seeds)'}"


def _distinct(prepared: Prepared, store: Store, group: Group, generation: int) -> str:
    """How many different corpora the members write, by their bigrams; empty where they keep no tokens."""
    start, there = dict(zip(group.cells, group.arrives, strict=True)), group.there(generation)
    chains = {(c.cell, c.seed): c for c in prepared.lineage.chains if c.cell in there}
    found = []
    for seed in prepared.study.seeds[:MAX_SEEDS]:
        own = [chains[cell, seed] for cell in there if (cell, seed) in chains]
        corpora = [_corpus(prepared, store, chain, generation - start[chain.cell]) for chain in own]
        read = [corpus for corpus in corpora if corpus is not None]
        if not read or len(read) < len(there) or not np.issubdtype(read[0].values.dtype, np.integer):
            continue
        budget = min(TOKEN_BUDGET, *(int(corpus.lengths.sum()) for corpus in read))
        alpha, gamma, beta = effective_members(read, 2, budget)
        found.append((alpha, gamma, beta))
    if not found:
        return ""
    alpha, gamma, beta = np.mean(found, axis=0)
    many = f"effective bigrams: {alpha:,.0f} in each, {gamma:,.0f} in all"
    return f"{beta:.2f} of {len(there)} ({many})"


def _corpus(prepared: Prepared, store: Store, chain: Chain, generation: int) -> Examples | None:
    node = prepared.lineage.nodes[chain.nodes[generation]]
    count = node.spec.measured.examples
    try:
        return store.corpora.load(node.corpus, count) if store.corpora.count(node.corpus) >= count else None
    except StoreError as error:
        store.trouble.setdefault(str(store.path("corpora", node.corpus)), str(error))
        return None
