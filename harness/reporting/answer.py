"""The answer of a study in sentences: which cells worsen, by how much, and which kind of collapse it is."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.config.naming import cell_name
from harness.metrics.catalogue import HEADLINES, about, among
from harness.registry import Metric
from harness.reporting.rows import Rows
from harness.reporting.statistics import Aggregate, aggregate, short
from harness.terminal import counted

SHOWN = 8
"""Cells that have a sentence of their own, those that worsen most."""
CLEAR = 0.02
"""Relative change of a measure of diversity below which nothing is said of its direction."""
DIVERSITY = ("text/distinct_2", "text/entropy_2")
"""What says whether text narrows or broadens; both have to agree."""
TAILS = ("text/tail_mass", "text/vocab_coverage")
"""Shown beside them, and apart from them where they go the other way."""
PART = re.compile("test/nll/(.+)|other/([^/]+)/nll")
"""Columns of groups of the test text, and of other texts."""
MOST_PARTS = 4
"""Of these the sentence of a cell names the ones that move most."""
REWARD = "task/judged_reward"
"""Of tasks, what the judge sees, beside which the truth is shown in the place of the text."""

ONE_SEED = "One seed: there are no intervals, and differences may be chance."
"""What stands below the answer of a study whose cells have one seed each."""

GONE, LOST = ("has diverged", "have diverged"), ("is not finite any more", "are not finite any more")
IN_SOME = " in some seeds"
PARTLY_GONE, PARTLY_LOST = ((one + IN_SOME, many + IN_SOME) for one, many in (GONE, LOST))
WORSE, SAME = ("worsens less", "worsen less"), ("does not change beyond doubt", "do not change beyond doubt")
BETTER = ("improves", "improve")
WAYS = (GONE, PARTLY_GONE, LOST, PARTLY_LOST, WORSE, SAME, BETTER)
"""What becomes of cells that have no sentence, of one and of several, in this order."""


@dataclass(frozen=True)
class Change:
    """What a metric does in a cell from generation 0 to the last.

    Attributes:
        first: In generation 0.
        last: In the last one.
        by: Of the same seed, the difference.
        lost: Seeds with a finite value in generation 0 and none in the last one, though they have a model.
    """

    first: Aggregate
    last: Aggregate
    by: Aggregate
    lost: int = 0


def answers(
    rows: Iterable[Mapping[str, Any]], axes: Sequence[str], seeds: Collection[int], most: int = SHOWN
) -> list[str]:
    """One sentence for each of the cells that worsen most, in that order.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        seeds: Those that every cell is run with; each its own when empty.
        most: Cells that have a sentence; how many more there are, and what becomes of them, is one more line.
    """
    table = Rows.of(rows)
    headlines = [name for name in dict.fromkeys((*table.leads, *HEADLINES)) if name in table.names]
    if not headlines:
        return []
    passes = [name for name in table.names if name.startswith("task/pass_")]
    most_drawn = max(passes, key=lambda name: int(name.rpartition("_")[2]), default="")
    truths = (REWARD, most_drawn) if most_drawn else ()
    parts = [name for name in table.names if PART.fullmatch(name)]
    found, lasts = _changes(table, axes, seeds, (*headlines, *DIVERSITY, *TAILS, *truths, *parts))
    # cells may be of several learners, and have no metric in common
    own = {
        cell: next((name for name in headlines if changes[name].first.mean is not None), None)
        for cell, changes in found.items()
    }
    gone = [cell for cell in found if own[cell] is None and found[cell][headlines[0]].by.diverged]
    known = {cell: name for cell, name in own.items() if name is not None}
    order = sorted(known, key=lambda cell: _place(found[cell], known[cell], headlines))
    lines = [
        f"{_where(cell, axes)}{by.diverged} of {by.total} seeds have diverged, no other is finished"
        for cell, by in ((cell, found[cell][headlines[0]].by) for cell in gone[:most])
    ]
    for cell in order[: most - len(lines)]:
        # cells that are not equally far are not compared in silence
        last = lasts[cell] if len({lasts[c] for c in known}) > 1 else None
        metric = among(known[cell], table.names)
        lines.append(f"{_where(cell, axes, last)}{_sentence(found[cell], known[cell], metric)}")
    left = [*gone, *order][len(lines) :]
    if not left:
        return lines
    if len(set(known.values())) > 1:  # what changes less by one metric is not told from another's change
        return [
            *lines,
            f"{counted(len(left), 'more cell')} {'is' if len(left) == 1 else 'are'} in the tables",
        ]
    ways = Counter(_way(found[cell][known[cell]], known[cell]) if cell in known else GONE for cell in left)
    return [*lines, _more(ways)]


def seed_counts(rows: Rows, axes: Sequence[str], seeds: Collection[int]) -> list[int]:
    """How many seeds cells have, from the fewest: all the same where it is said with which they are run."""
    own: dict[tuple[Any, ...], set[int]] = {}
    for chain in rows.series(axes):
        own.setdefault(chain.cell, set()).add(chain.seed)
    return [len(seeds)] if seeds else sorted(len(found) for found in own.values()) or [0]


def reserved(rows: Iterable[Mapping[str, Any]], axes: Sequence[str], seeds: Collection[int]) -> list[str]:
    """What there is to say of the answers below them: a line where no cell has more than one seed.

    Args:
        rows: From `ledger.rows`.
        axes: The grid's axes.
        seeds: As for `answers`.
    """
    table = Rows.of(rows)
    return [ONE_SEED] if len(table) and seed_counts(table, axes, seeds)[-1] == 1 else []


def _way(change: Change, headline: str) -> tuple[str, str]:
    """What becomes of a cell, of one and of several: `WAYS`."""
    by = change.by
    if by.mean is None:
        return LOST
    if by.diverged or change.lost:  # the mean is of those that live, and says nothing of the cell
        return PARTLY_GONE if by.diverged else PARTLY_LOST
    if by.mean == 0 or _in_doubt(by):
        return SAME
    return WORSE if _sign(headline) * by.mean > 0 else BETTER


def _more(ways: Mapping[tuple[str, str], int]) -> str:
    """How many more cells there are, and what becomes of each kind of them."""
    whole = counted(sum(ways.values()), "more cell")
    parts = [(ways[way], way[ways[way] > 1]) for way in WAYS if way in ways]
    if len(parts) == 1:
        return f"{whole} {parts[0][1]}"
    return f"{whole}: {', '.join(f'{count} {what}' for count, what in parts)}"


def _sign(headline: str) -> float:
    return -1.0 if about(headline).worse == "lower" else 1.0


def _place(
    changes: Mapping[str, Change], headline: str, headlines: Sequence[str]
) -> tuple[int, float, float]:
    """By metric, then by the share of seeds that have no number any more, then what worsens most.

    Such a seed has worsened beyond all, so that the mean of the others does not place its cell.
    """
    change = changes[headline]
    by = change.by
    gone = 1.0 if by.mean is None else (by.diverged + change.lost) / by.total
    return headlines.index(headline), -gone, 0.0 if by.mean is None else -_sign(headline) * by.mean


def _changes(
    table: Rows, axes: Sequence[str], seeds: Collection[int], metrics: Sequence[str]
) -> tuple[dict[tuple[Any, ...], dict[str, Change]], dict[tuple[Any, ...], int]]:
    """Of every cell, over the chains that have come as far as any of it, and how far that is."""
    values = {name: table.values(name) for name in metrics if name in table.names}
    series = table.series(axes)
    longest, ended = dict[tuple[Any, ...], int](), dict[tuple[Any, ...], int]()
    for part in series:
        longest[part.cell] = max(longest.get(part.cell, 0), int(table.generation[part.places[-1]]))
        ended[part.cell] = ended.get(part.cell, 0) + (part.ended is not None)
    ends: dict[tuple[Any, ...], list[tuple[int, int]]] = {
        cell: [] for cell, last in longest.items() if last > 0 or ended[cell]
    }
    for part in series:
        first, last = part.places[0], part.places[-1]
        if (
            part.ended is None
            and 0 < table.generation[last] == longest[part.cell]
            and not table.generation[first]
        ):
            ends[part.cell].append((int(first), int(last)))
    # where nobody says with which seeds, those of another cell say nothing of this one
    everyone, own = set(seeds) | {part.seed for part in series}, dict[tuple[Any, ...], set[int]]()
    for part in series:
        own.setdefault(part.cell, set()).add(part.seed)
    found = {
        cell: {
            name: _change(column[places], ended[cell], len(everyone if seeds else own[cell]))
            for name, column in values.items()
        }
        for cell, places in (
            (cell, np.array(pairs, dtype=np.int64).reshape(-1, 2)) for cell, pairs in ends.items()
        )
    }
    return found, longest


def _change(pairs: npt.NDArray[np.float64], ended: int, count: int) -> Change:
    absent = max(0, count - ended - len(pairs))
    finite = np.isfinite(pairs)
    whole, lost = finite.all(axis=1, keepdims=True), int((finite[:, 0] & ~finite[:, 1]).sum())
    if whole.any():  # the ends are means of the same seeds
        pairs = np.where(whole, pairs, math.nan)
    first, last = pairs[:, 0], pairs[:, 1]
    start, end, by = (aggregate(column, ended, absent) for column in (first, last, last - first))
    return Change(start, end, by, lost)


def _where(cell: tuple[Any, ...], axes: Sequence[str], last: int | None = None) -> str:
    """A cell by the values of its axes and how far it is, with a colon; empty for the only cell."""
    known = [cell_name(cell, axes)] if any(value is not None for value in cell) else []
    known += [] if last is None else [f"up to generation {last}"]
    return f"{', '.join(known)}: " if known else ""


def _sentence(changes: Mapping[str, Change], headline: str, metric: Metric) -> str:
    change, higher = changes[headline], _sign(headline) < 0
    by = change.by
    if change.by.mean is None:
        return f"{metric.label} is {_mean(change.first)} in generation 0, and not finite in the last one"
    unit = f" {metric.unit}" if metric.unit else ""
    if _in_doubt(change.by):
        both = f"{_mean(change.first)} and {_mean(change.last)}{unit}"
        text = f"{metric.label} does not change beyond doubt, {both}"
    elif change.by.mean == 0:
        text = f"{metric.label} stays at {_mean(change.first)}{unit}"
    else:
        verb = "rises" if change.by.mean > 0 else "falls"
        text = f"{metric.label} {verb} from {_mean(change.first)} to {_mean(change.last)}{unit}"
        if change.by.mean < 0:  # the verb says which way already
            by, higher = _turned(by), not higher
    if by.total > 1:
        text += f" (by {by.text(higher)})"
    kind = _judged(changes) if headline.startswith("task/") else _kind(changes)
    return "; ".join([text, *filter(None, (kind, _of_parts(changes)))])


def _of_parts(changes: Mapping[str, Change]) -> str:
    """What becomes of groups of the text, and of other texts, those that move most first."""
    parts = [(found[1] or found[2], changes[found[0]].by) for found in map(PART.fullmatch, changes) if found]
    moved = [(part, by.mean) for part, by in parts if not _in_doubt(by)]
    known = sorted(((part, by) for part, by in moved if by), key=lambda pair: -abs(pair[1]))
    said, before = [], ""
    for part, by in known[:MOST_PARTS]:
        verb = "rises " if by > 0 else "falls "
        said.append(f"{'' if verb == before else verb}by {short(abs(by), 3)} on {part}")
        before = verb
    more = f" ({len(known) - MOST_PARTS} more in the table)" if len(known) > MOST_PARTS else ""
    return f"NLL in nats/token {', '.join(said)}{more}" if said else ""


def _turned(by: Aggregate) -> Aggregate:
    """The same change, counted the other way."""
    assert by.mean is not None
    low, high = (None if end is None else -end for end in (by.high, by.low))
    return replace(by, mean=-by.mean, low=low, high=high, values=[-value for value in by.values])


def _in_doubt(by: Aggregate) -> bool:
    """Whether a change may be none, by its interval."""
    return by.low is not None and by.high is not None and by.low <= 0 <= by.high


def _judged(changes: Mapping[str, Change]) -> str:
    """What the judge sees, and how often one of several completions is right."""
    parts = []
    for name, change in changes.items():
        if (name == REWARD or name.startswith("task/pass_")) and name != "task/pass_1":
            if change.by.mean is not None:
                label = "its judge sees" if name == REWARD else about(name).label.partition(" ")[0]
                parts.append(f"{label} {_ends(change)}")
    return ", ".join(parts)


def _kind(changes: Mapping[str, Change]) -> str:
    """Which way the text goes, by which numbers; empty where it goes none clearly."""
    shares = [_share(changes[name]) for name in DIVERSITY if name in changes]
    if len(shares) < len(DIVERSITY) or not all(map(math.isfinite, shares)):
        return ""
    if abs(shares[0]) < CLEAR or shares[0] * shares[1] < 0:
        return ""
    if any(_in_doubt(changes[name].by) for name in DIVERSITY):
        return ""
    sign = math.copysign(1.0, shares[0])
    clear = [
        name
        for name in TAILS
        if name in changes and abs(_share(changes[name])) >= CLEAR and not _in_doubt(changes[name].by)
    ]
    with_it = [DIVERSITY[0], *(name for name in clear if _share(changes[name]) * sign > 0)]
    text = f"its text {'narrows' if sign < 0 else 'broadens'} ("
    text += ", ".join(f"{_called(name)} {_ends(changes[name])}" for name in with_it) + ")"
    against = [name for name in clear if name not in with_it]
    if against:
        verb = "rises" if sign < 0 else "falls"
        text += ", but " + ", and ".join(
            f"{_called(name)} {verb}, {_ends(changes[name])}" for name in against
        )
    return text


def _called(name: str) -> str:
    """A metric's label without what stands in brackets."""
    return about(name).label.partition(" (")[0]


def _ends(change: Change) -> str:
    """Both ends of a change."""
    return f"{_mean(change.first)} to {_mean(change.last)}"


def _share(change: Change) -> float:
    if change.first.mean is None or change.by.mean is None or change.first.mean == 0:
        return math.nan
    return change.by.mean / abs(change.first.mean)


def _mean(found: Aggregate) -> str:
    return "not finite" if found.mean is None else short(found.mean, 3)
