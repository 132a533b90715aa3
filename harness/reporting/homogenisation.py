"""How alike the corpora of different chains become with generations.

Against what two samples of real data have in common.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.config.population import arrival
from harness.errors import StoreError
from harness.metrics.homogenisation import energy_distance, jaccard, jensen_shannon
from harness.records import Examples
from harness.reporting.statistics import Aggregate, aggregate_pairs, spread, thinned
from harness.science import Chain, canonical_json
from harness.store import Store
from harness.streams import stream, stream_seed
from harness.study import Prepared

MAX_PAIRS = 12
"""Pairs of chains compared in a group and generation: a random subset, the same one in every generation and
report."""
MAX_CELLS = 12
"""Cells whose chains are compared, a random subset."""
MAX_SEEDS = 20
"""Chains of a cell that are compared: its first seeds."""
MAX_GENERATIONS = 12
"""Generations that are compared, evenly spaced from the first to the last."""
TOKEN_BUDGET = 16_384
"""Tokens that are read of a corpus."""
MAX_POINTS = 512
"""Examples that are read of a corpus of numbers: the energy distance compares each with each."""
SPLITS = 40
"""Pairs of disjoint random samples of the real data behind a baseline."""

LABELS = {
    "js_1": "Jensen-Shannon divergence of tokens (bits)",
    "js_2": "Jensen-Shannon divergence of bigrams (bits)",
    "jaccard_4": "share of 4-grams in common (Jaccard)",
    "energy": "squared energy distance",
}
"""The measures; a small divergence or distance and a large share mean that corpora are alike."""
_TOKEN_MEASURES: Mapping[str, Callable[[Examples, Examples, int], float]] = {
    "js_1": lambda a, b, size: jensen_shannon(a, b, 1, size),
    "js_2": lambda a, b, size: jensen_shannon(a, b, 2, size),
    "jaccard_4": lambda a, b, size: jaccard(a, b, 4, size),
}
_NUMBER_MEASURES: Mapping[str, Callable[[Examples, Examples, int], float]] = {
    "energy": lambda a, b, size: energy_distance(a.values[:size], b.values[:size])
}

Pair = tuple[Chain, Chain]


@dataclass(frozen=True)
class Homogenisation:
    """How alike the corpora over one set of real data are.

    Attributes:
        title: The axes of the data; empty where all chains have the same.
        lines: Measure to group of pairs to generation to aggregate over pairs, with a bootstrap interval.
        baseline: Measure to generation to aggregate over pairs of disjoint samples of the real data, as large
            as the corpora are read there, with the range of their central 95 %.
        sizes: Generation to what is read of every corpus: tokens, or examples of numbers.
        pairs: Group to the number of pairs there are; at most `MAX_PAIRS` of them are compared.
        notes: What was left out, for people.
    """

    title: str
    lines: Mapping[str, Mapping[str, Mapping[int, Aggregate]]]
    baseline: Mapping[str, Mapping[int, Aggregate]]
    sizes: Mapping[int, int]
    pairs: Mapping[str, int]
    notes: Sequence[str]


def compare(prepared: Prepared, store: Store) -> list[Homogenisation]:
    """Compare the stored corpora of a study, chain with chain.

    One result per real data that chains have in common.

    Corpora of different tokenizers or blocks are not compared. A pair whose chains share a corpus (they agree
    on everything so far) counts once they have parted.

    Args:
        prepared: The study.
        store: The store; a damaged corpus that is met is set aside there.
    """
    by_data: dict[str, list[Chain]] = {}
    for chain in prepared.lineage.chains:
        spec = {
            name: value
            for name, value in prepared.data[chain.cell].spec.items()
            if name not in ("num_examples", "prepend_bos", "segment")
        }
        by_data.setdefault(canonical_json(spec), []).append(chain)
    found = (_compare(prepared, store, chains, len(by_data) > 1) for chains in by_data.values())
    return [result for result in found if result is not None]


def choose(
    prepared: Prepared, chains: Sequence[Chain]
) -> tuple[dict[str, list[Pair]], dict[str, int], list[str]]:
    """The pairs to compare.

    Pairs are grouped by the axes in which they differ, and by the values of the others. Chains of one cell
    differ by their seed; chains of different cells have different seeds too, because chains of one seed share
    their random numbers (in a study of one seed they do share them).

    Args:
        prepared: The study.
        chains: Chains over one set of real data.

    Returns:
        Group to the pairs that are compared, group to the number of pairs there are, and notes on what was
        left out.
    """
    cells, notes = sorted({chain.cell for chain in chains}), []
    if len(cells) > MAX_CELLS:
        notes.append(f"{MAX_CELLS} of {len(cells)} cells, chosen at random")
        cells = sorted(stream(0, 0, "homogenisation cells").choice(cells, MAX_CELLS, replace=False).tolist())
    used = [chain for cell in cells for chain in [c for c in chains if c.cell == cell][:MAX_SEEDS]]
    if any(sum(c.cell == cell for c in chains) > MAX_SEEDS for cell in cells):
        notes.append(f"the first {MAX_SEEDS} seeds of a cell")
    several = len({chain.seed for chain in used}) > 1
    if not several:
        notes.append("chains of one seed, which share their random numbers")
    groups: dict[str, list[Pair]] = {}
    for a, b in itertools.combinations(used, 2):
        # members of a population have random numbers of their own, and those of one seed read each other
        member = prepared.study.cells[a.cell].member
        together = a.cell != b.cell and member is not None and b.cell in member.cells
        if (a.seed == b.seed) if together else (a.cell == b.cell or not several or a.seed != b.seed):
            groups.setdefault(_group(prepared, a, b), []).append((a, b))
    chosen = {}
    for index, (name, pairs) in enumerate(sorted(groups.items())):
        if len(pairs) > MAX_PAIRS:
            drawn = stream(0, 0, "homogenisation pairs", index).choice(len(pairs), MAX_PAIRS, replace=False)
            pairs = [pairs[position] for position in sorted(drawn.tolist())]
        chosen[name] = pairs
    if any(len(groups[name]) > MAX_PAIRS for name in groups):
        notes.append(f"at most {MAX_PAIRS} pairs of a group, chosen at random, the same in every generation")
    return chosen, {name: len(pairs) for name, pairs in groups.items()}, notes


def _group(prepared: Prepared, a: Chain, b: Chain) -> str:
    """What a pair differs in, and what it has in common."""
    mine, other = prepared.axes(a), prepared.axes(b)
    differing = [axis for axis in mine if mine[axis] != other[axis]]
    common = [
        f"{axis.rpartition('.')[2]} {mine[axis]}"
        for axis in mine
        if axis not in differing and mine[axis] is not None
    ]
    return f"other {', '.join(differing) or 'seed'}" + (f": {', '.join(common)}" if common else "")


_NAME = re.compile(r"(?:^|(?<=, ))[a-z0-9_]+(?= )")


def spoken_group(group: str) -> str:
    """A group of pairs for people: fields by their last part, in words; the CSV has them in full."""
    differing, colon, common = group.removeprefix("other ").partition(": ")
    fields = (field.rpartition(".")[2].replace("_", " ") for field in differing.split(", "))
    return f"other {', '.join(fields)}{colon}" + _NAME.sub(lambda name: name[0].replace("_", " "), common)


def _compare(
    prepared: Prepared, store: Store, chains: Sequence[Chain], titled: bool
) -> Homogenisation | None:
    groups, totals, notes = choose(prepared, chains)
    used = {chain.id: chain for pairs in groups.values() for pair in pairs for chain in pair}
    if not any(
        store.corpora.shards(prepared.lineage.nodes[chain.nodes[0]].corpus) for chain in used.values()
    ):
        return None
    cell = min(chain.cell for chain in used.values())
    real = prepared.real(cell, store)
    count = min(*(prepared.specs[chain.cell].measured.examples for chain in used.values()), real.supply // 2)
    if count < 2:
        return None
    pool = real.real(stream_seed(0, 0, "homogenisation real"), min(real.supply, 2 * count * SPLITS))
    tokens = np.issubdtype(pool.values.dtype, np.integer)
    measures = _TOKEN_MEASURES if tokens else _NUMBER_MEASURES
    lines: dict[str, dict[str, dict[int, Aggregate]]] = {name: {} for name in measures}
    baseline: dict[str, dict[int, Aggregate]] = {name: {} for name in measures}
    sizes: dict[int, int] = {}
    of_size: dict[int, dict[str, Aggregate]] = {}
    generations = max(_arrives(prepared, chain) + len(chain.nodes) for chain in used.values())
    compared = thinned(range(generations), MAX_GENERATIONS)
    if len(compared) < generations:
        notes.append(f"{len(compared)} of {generations} generations, evenly spaced")
    for generation in compared:
        corpora = _read(prepared, store, used.values(), generation, count)
        if len(corpora) < 2:
            continue
        sizes[generation] = size = min(_size(found, tokens) for found in corpora.values())
        if size not in of_size:
            of_size[size] = _baseline(pool, count, size, measures)
        parted = {group: _parted(prepared, pairs, corpora, generation) for group, pairs in groups.items()}
        for name, measure in measures.items():
            baseline[name][generation] = of_size[size][name]
            for index, (group, pairs) in enumerate(parted.items()):
                values = {(a.id, b.id): measure(corpora[a.id], corpora[b.id], size) for a, b in pairs}
                if values:
                    random = stream(0, generation, "homogenisation bootstrap", index)
                    lines[name].setdefault(group, {})[generation] = aggregate_pairs(values, random)
    shown = {
        name: found
        for name, found in lines.items()
        if any(p.values for curve in found.values() for p in curve.values())
    }
    axes = prepared.axes(next(iter(used.values())))
    title = (
        ", ".join(f"{name} {value}" for name, value in axes.items() if name.startswith("data."))
        if titled
        else ""
    )
    kept = {name: baseline[name] for name in shown}
    return Homogenisation(title, shown, kept, sizes, totals, notes) if shown else None


def _arrives(prepared: Prepared, chain: Chain) -> int:
    """The generation of a population in which a member has its first; 0 for other chains."""
    cell = prepared.study.cells[chain.cell]
    return 0 if cell.member is None else arrival(cell.config, cell.member)


def _corpus(prepared: Prepared, chain: Chain, generation: int) -> str:
    return prepared.lineage.nodes[chain.nodes[generation - _arrives(prepared, chain)]].corpus


def _parted(
    prepared: Prepared, pairs: Sequence[Pair], corpora: Mapping[str, Examples], generation: int
) -> list[Pair]:
    """The pairs with a corpus each, and not the same one."""
    there = [(a, b) for a, b in pairs if a.id in corpora and b.id in corpora]
    return [(a, b) for a, b in there if _corpus(prepared, a, generation) != _corpus(prepared, b, generation)]


def _read(prepared: Prepared, store: Store, chains: Any, generation: int, count: int) -> dict[str, Examples]:
    """What there is of the corpora of a generation, by chain; of members at one time of their population."""
    found: dict[str, Examples] = {}
    for chain in chains:
        if 0 <= generation - _arrives(prepared, chain) < len(chain.nodes):
            key = _corpus(prepared, chain, generation)
            try:
                if store.corpora.count(key) >= count:
                    found[chain.id] = store.corpora.load(key, count)
            except StoreError as error:
                store.trouble.setdefault(str(store.path("corpora", key)), str(error))
    return found


def _size(examples: Examples, tokens: bool) -> int:
    return min(TOKEN_BUDGET, int(examples.lengths.sum())) if tokens else min(MAX_POINTS, len(examples))


def _baseline(
    pool: Examples, count: int, size: int, measures: Mapping[str, Callable[[Examples, Examples, int], float]]
) -> dict[str, Aggregate]:
    """The measures between disjoint random samples of the real data, as many examples as corpora have."""
    values: dict[str, list[float]] = {name: [] for name in measures}
    for split in range(SPLITS):
        order = stream(0, 0, "homogenisation splits", split).permutation(len(pool))
        first, second = pool.take(order[:count]), pool.take(order[count : 2 * count])
        for name, measure in measures.items():
            values[name].append(measure(first, second, size))
    return {name: spread(found) for name, found in values.items()}


def table(result: Homogenisation) -> dict[str, Any]:
    """The numbers as text, one line per measure and group.

    Returns:
        ``generations``, ``sizes`` (per generation), and ``lines`` with ``measure``, ``group``, ``pairs`` and
        ``points`` (mean and interval per generation).
    """
    generations = sorted(result.sizes)
    lines = []
    for measure, groups in result.lines.items():
        rows = [("two samples of real data", SPLITS, result.baseline[measure])]
        rows += [(group, result.pairs[group], curve) for group, curve in groups.items()]
        for group, total, curve in rows:
            most = max((len(point.values) for point in curve.values()), default=0)
            points = [_text(curve[g], most) if g in curve else "" for g in generations]
            lines.append(
                {
                    "measure": LABELS[measure],
                    "group": spoken_group(group),
                    "pairs": f"{most} of {total}",
                    "points": points,
                }
            )
    return {"generations": generations, "sizes": [result.sizes[g] for g in generations], "lines": lines}


def _text(point: Aggregate, most: int) -> str:
    """With the number of pairs where some are gone, or have not come so far."""
    if point.mean is None:
        return "not finite"
    shown = (
        f"{point.mean:.3g}" if point.low is None else f"{point.mean:.3g} [{point.low:.3g}, {point.high:.3g}]"
    )
    return shown if len(point.values) == most else f"{shown} ({len(point.values)} pairs)"


NUMBERS = ["data", "measure", "group", "generation", "mean", "low", "high", "pairs", "size"]


def numbers(result: Homogenisation) -> tuple[list[str], list[list[Any]]]:
    """All numbers of one set of real data: columns, and a row for each measure, group and generation.

    The group ``real`` is the baseline; ``pairs`` are those compared.
    """
    found = []
    for measure, groups in result.lines.items():
        for group, curve in {"real": result.baseline[measure], **groups}.items():
            for generation, point in curve.items():
                ends = ["" if value is None else repr(value) for value in (point.mean, point.low, point.high)]
                size = result.sizes[generation]
                found.append([result.title, measure, group, generation, *ends, len(point.values), size])
    return NUMBERS, found


def to_csv(results: Sequence[Homogenisation]) -> bytes:
    """All numbers of all sets of real data."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(NUMBERS)
    for result in results:
        writer.writerows(numbers(result)[1])
    return buffer.getvalue().encode()
