"""From the entries of a track to its table: what each resists, at what price, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.board.checked import Verification, badges
from harness.board.entry import Entry, SeedResult
from harness.board.ranking import Rank, pareto, rank, told_apart
from harness.board.rules import other_rules, worse_sign
from harness.components import FILTERS
from harness.config.track import BASELINE, Track
from harness.errors import InputError
from harness.reporting.growth import until
from harness.reporting.statistics import Aggregate, aggregate
from harness.terminal import counted, shown

HUGE = 1e150
"""The square of a number beyond is none, so that nothing can be said of its scatter."""
CONTRASTS = {
    "clean": ("clean", "baseline.clean"),
    "random": ("random", ""),
    "oracle": ("", "oracle"),
    "real": ("", "baseline.clean"),
}
"""By name, what is subtracted from what: how much more it worsens than the baseline where nothing is
synthetic (what it costs); how much more chance worsens than it; how much more it worsens than who knows what
is real, and than the baseline does where nothing is synthetic."""
TOLERANCE = 1e-9
"""Relative difference of two numbers of one key that is none: what writing and reading a number may do."""
DRAWN, DRAWN_TOLERANCE = ("self/", "gen0/"), 1e-4
"""Metrics of what a model gives its own text, whose last digits depend on how many texts were drawn at once:
two entries may differ by so much where they do not both say one number of them, the same."""


NO_EFFECT = f"cannot be told apart from {BASELINE}"
"""The badge of an entry of which it is not known whether it does anything."""


@dataclass(frozen=True)
class Scored:
    """One line of a track's table.

    Attributes:
        entry: The entry.
        rise: How far the track's metric has worsened from generation 0 to the last, over the seeds.
        benefit: How much less than the baseline's with the same seed; positive resists collapse.
        until: Generations until the worsening reaches the track's threshold, by seed in order; infinite where
            it never does. One that diverges has reached it then.
        beside: Other columns: in the last generation, and as a share of generation 0.
        controls: Against what its track runs beside it (`CONTRASTS`), by control, paired by seed.
        rank: None where it is not ranked.
        unranked: Why it is not; empty where it is.
        badges: What is to be known of it, in a word or two each.
        efficient: No other ranked entry resists as much for fewer device-hours.
        better: The ranks' own test says that it resists more than the baseline.
    """

    entry: Entry
    rise: Aggregate
    benefit: Aggregate
    until: tuple[float, ...]
    beside: Mapping[str, tuple[Aggregate, Aggregate]]
    controls: Mapping[str, Aggregate]
    rank: Rank | None = None
    unranked: str = ""
    badges: tuple[str, ...] = ()
    efficient: bool = False
    better: bool = False


@dataclass(frozen=True)
class TrackTable:
    """The table of a track.

    Attributes:
        track: What the track says.
        lines: Ranked ones first, the best first; then those that are not ranked, by name.
        superseded: Entries of a configuration of which there is a later or fuller one.
        name: Of its page: the track's, with a number where the board has several versions or data of it.
        checks: Verifications by their entries' names, the earliest first.
        newer: The table of the newest version of the track, where this is another one.
        stale: Why this one is not compared with that; empty where there is none.
    """

    track: Track
    lines: tuple[Scored, ...]
    superseded: tuple[Entry, ...]
    name: str
    checks: Mapping[str, tuple[Verification, ...]] = field(default_factory=dict)
    newer: str = ""
    stale: str = ""

    @property
    def controls(self) -> tuple[str, ...]:
        """The contrasts that any line has."""
        return tuple(name for name in CONTRASTS if any(name in line.controls for line in self.lines))

    @property
    def seeds(self) -> int:
        """How many seeds ranks are over."""
        return len(self.track.seeds)


def table_of(
    track: Track, entries: Sequence[Entry], name: str = "", checks: Iterable[Verification] = ()
) -> TrackTable:
    """Score and rank the entries of a track.

    Args:
        track: The track.
        entries: All that may be compared (`Entry.comparable`).
        name: Of its page; the track's when empty.
        checks: Verifications; those that are of none of the entries, as they are, are left out.

    Raises:
        InputError: Two entries have different numbers under one key.
    """
    _check_agreement(entries)
    current: dict[frozenset[str], Entry] = {}
    for entry in sorted(entries, key=_fullness):
        current[entry.chains] = entry
    kept = set(map(id, current.values()))
    superseded = tuple(sorted((e for e in entries if id(e) not in kept), key=lambda e: e.name))
    of_entry = _by_entry(entries, checks)
    lines = [_scored(track, entry, of_entry.get(entry.name, ())) for entry in current.values()]
    found = ranked([line for line in lines if not line.unranked])
    others = sorted((line for line in lines if line.unranked), key=lambda line: line.entry.mitigation)
    return TrackTable(track, (*found, *others), superseded, name or track.track, of_entry)


def ranked(lines: Sequence[Scored]) -> list[Scored]:
    """Lines with their ranks, and all that follows from these, the best first.

    Args:
        lines: Those that are to be ranked: all have a benefit with every seed of the track.
    """
    if not lines:
        return []
    benefits = np.array([line.benefit.values for line in lines])
    efficient = pareto(benefits.mean(axis=1), [line.entry.cost.device_hours for line in lines])
    found = [
        replace(line, rank=place, efficient=bool(best))
        for line, place, best in zip(_marked(lines, benefits), rank(benefits), efficient, strict=True)
    ]
    return sorted(found, key=_place)


def _marked(lines: Sequence[Scored], benefits: Any) -> list[Scored]:
    """Lines that say whether they are better than the baseline, with a badge where nothing tells them apart.

    Where the baseline is no entry its benefits, of 0 with every seed, are tested with the others all the
    same, and there is no badge.
    """
    place = next((at for at, line in enumerate(lines) if line.entry.mitigation == BASELINE), None)
    at = len(lines) if place is None else place
    apart = told_apart(np.vstack([benefits, np.zeros_like(benefits[:1])]) if place is None else benefits)
    same = ~(apart[at] | apart[:, at])
    return [
        replace(
            line,
            better=bool(apart[own, at]),
            badges=(*line.badges, NO_EFFECT) if same[own] and place not in (None, own) else line.badges,
        )
        for own, line in enumerate(lines)
    ]


def _by_entry(
    entries: Iterable[Entry], checks: Iterable[Verification]
) -> dict[str, tuple[Verification, ...]]:
    known = {entry.name: entry for entry in entries}
    found: dict[str, tuple[Verification, ...]] = {}
    for item in sorted(checks, key=lambda item: (item.time, item.name)):
        if item.entry in known and item.is_of(known[item.entry]):
            found[item.entry] = (*found.get(item.entry, ()), item)
    return found


def _place(line: Scored) -> tuple[int, float, str]:
    assert line.rank is not None
    return line.rank.rank, -(line.benefit.mean or 0.0), line.entry.mitigation


def _fullness(entry: Entry) -> tuple[int, int, str, str]:
    """Of two entries of one configuration the fuller one counts, then the later one."""
    ended = sum(result.state in ("complete", "diverged") for result in entry.seeds.values())
    return ended, len(entry.other_seeds), entry.provenance.finished, entry.name


def _scored(track: Track, entry: Entry, checks: Sequence[Verification]) -> Scored:
    metric, sign = track.score.metric, worse_sign(track.score.metric)
    rises, until_by_seed, diverged, lost = list[float](), list[float](), 0, 0
    length = entry.configuration["generations"] + 1
    for seed in map(str, track.seeds):
        mine = entry.seeds.get(seed)
        diverged += _has_diverged(mine)
        lost += _has_diverged(entry.baseline.get(seed))
        rise = _rise(mine, metric, sign, length)
        if rise is not None:
            rises.append(rise)
        if mine is not None and (rise is not None or _has_diverged(mine)):
            until_by_seed.append(_until(mine, metric, sign * (track.score.threshold or 0.0)))
    benefit = _paired(entry, entry.baseline, entry.seeds, length)
    badge = unranked = ""
    if diverged:
        badge, unranked = "diverged", f"{diverged} of {len(track.seeds)} seeds have diverged"
    elif lost:
        badge = "baseline diverged"
        unranked = f"the baseline has diverged with {lost} of {len(track.seeds)} seeds"
    elif len(benefit.values) < len(track.seeds):
        badge = "unreplicated"
        unranked = f"unreplicated: {len(benefit.values)} of the track's {len(track.seeds)} seeds"
    contrasts = _contrasts(entry, length)
    rise_of_all = aggregate(rises, diverged, len(track.seeds) - len(rises) - diverged)
    return Scored(
        entry=entry,
        rise=rise_of_all,
        benefit=benefit,
        until=tuple(until_by_seed),
        beside={name: _beside(track, entry, name, diverged) for name in track.score.beside},
        controls=contrasts,
        unranked=unranked,
        badges=(*_badges(entry, rise_of_all, contrasts, badge), *badges(checks)),
    )


def _contrasts(entry: Entry, length: int) -> dict[str, Aggregate]:
    """An entry against its controls."""
    results = {"": entry.seeds, **entry.controls}
    return {
        control: _paired(entry, results[more], results[less], length)
        for control, (more, less) in CONTRASTS.items()
        if more in results and less in results
    }


def _paired(
    entry: Entry, more: Mapping[str, SeedResult], less: Mapping[str, SeedResult], length: int
) -> Aggregate:
    """By how much the track's metric worsens more in the first than in the second, seed by seed.

    A seed with which either has diverged counts as diverged: the others are a selection then.
    """
    metric, sign = entry.track.score.metric, worse_sign(entry.track.score.metric)
    values, diverged, absent = list[float](), 0, 0
    for seed in map(str, entry.track.seeds):
        pair = more.get(seed), less.get(seed)
        one, other = (_rise(result, metric, sign, length) for result in pair)
        if one is not None and other is not None:
            values.append(one - other)
        elif any(map(_has_diverged, pair)):
            diverged += 1
        else:
            absent += 1
    return aggregate(values, diverged, absent)


def _has_diverged(result: SeedResult | None) -> bool:
    """Whether there is a chain, and it has diverged."""
    return result is not None and result.state == "diverged"


def plain(value: float | None) -> float | None:
    """A number that something can be said of; None in the place of others."""
    return value if value is not None and abs(value) < HUGE else None


def _rise(result: SeedResult | None, metric: str, sign: float, length: int) -> float | None:
    """Of a whole chain; what has other generations than its configuration says is none."""
    if result is None or result.state != "complete":
        return None
    values: Sequence[float | None] = result.metrics.get(metric, ())
    if len(values) != length:
        return None
    first, last = values[0], values[-1]
    return None if first is None or last is None else plain(sign * (last - first))


def _until(result: SeedResult, metric: str, change: float) -> float:
    """Generations until the metric has changed by the track's threshold, which may be 0: there is none."""
    values = result.metrics.get(metric, ())
    curve = {g: v for g, v in enumerate(values) if v is not None}
    return until(curve, change, ended=result.ended) if change else math.inf


def _beside(track: Track, entry: Entry, name: str, diverged: int) -> tuple[Aggregate, Aggregate]:
    last, share = list[float | None](), list[float | None]()
    for seed in map(str, track.seeds):
        values = entry.seeds[seed].metrics.get(name, ()) if seed in entry.seeds else ()
        if seed in entry.seeds and entry.seeds[seed].state == "complete" and values:
            before, after = plain(values[0]), plain(values[-1])
            last.append(after)
            share.append(None if before is None or after is None or before == 0 else plain(after / before))
    absent = len(track.seeds) - len(last) - diverged
    return aggregate(last, diverged, absent), aggregate(share, diverged, absent)


def _badges(
    entry: Entry, rise: Aggregate, contrasts: Mapping[str, Aggregate], unranked: str
) -> tuple[str, ...]:
    """What is to be known of an entry; ``unranked`` says in a word or two why it is not ranked.

    What has another generation 0 than the baseline has less, or more, to lose; the rise does not show it.
    Better than generation 0, beyond the seeds' scatter, is flagged: nothing in a track is better data than
    its real examples, so this is more optimisation, a leak, or a mistake. Not where prompts are answered: a
    judge that knows what is right adds what solutions have not.
    """
    found = ["baseline"] if entry.mitigation == BASELINE else []
    found += [unranked] if unranked else []
    if changed := other_rules(entry.track):
        found.append(f"other rules than the track's: {', '.join(changed)}")
    if entry.provenance.dirty:
        found.append("source tree not clean")
    failed = sum(result.state == "failed" for result in entry.seeds.values())
    if failed:
        found.append(f"{counted(failed, 'seed')} failed")
    if rise.high is not None and rise.high < 0 and not entry.track.answers:
        found.append("too good: better than generation 0")
    for name, what in (("oracle", "its oracle"), ("real", "the baseline without synthetic examples")):
        high = contrasts[name].high if name in contrasts else None
        if high is not None and high < 0:
            found.append(f"too good: better than {what}")
    found += _of_filters(entry.configuration.get("filters", ()))
    if any(_start(entry.seeds[s], entry) != _start(entry.baseline[s], entry) for s in _both(entry)):
        found.append("begins elsewhere: generation 0 is not the baseline's")
    if entry.other_seeds:
        found.append(f"{len(entry.other_seeds)} other seeds were run")
    return tuple(found)


def _of_filters(sections: Sequence[Any]) -> list[str]:
    """What filters know that nobody has."""
    found = []
    if any(map(_is_told, sections)):
        found.append("a simulated detector: it is told what is real, and errs at given rates")
    if any(map(_knows, sections)):
        found.append("its filter knows the truth, which nobody has of real data")
    return found


def _is_told(section: Any) -> bool:
    """Whether a filter, as an entry has it, is told what is real."""
    kind = section.get("kind") if isinstance(section, Mapping) else None
    return isinstance(kind, str) and kind in FILTERS and FILTERS[kind].of == "training sets"


def _knows(section: Any) -> bool:
    """Whether a filter, as an entry has it, scores examples by the true distribution."""
    kind = section.get("kind") if isinstance(section, Mapping) else None
    return isinstance(kind, str) and kind in FILTERS and bool(FILTERS[kind].knows(section))


def _both(entry: Entry) -> list[str]:
    """Seeds of which the entry and its baseline have a generation 0."""
    known = entry.seeds.keys() & entry.baseline.keys()
    return [s for s in known if _start(entry.seeds[s], entry) and _start(entry.baseline[s], entry)]


def _start(result: SeedResult, entry: Entry) -> tuple[float | None, ...]:
    """The track's metric in generation 0; empty where there is none."""
    return result.metrics.get(entry.track.score.metric, ())[:1]


def _check_agreement(entries: Sequence[Entry]) -> None:
    """Check that what has one key has one number, where the same machine and software computed it.

    Another execution class may round otherwise; then both are true, and the fuller entry is shown.
    """
    known: dict[tuple[str, ...], tuple[Entry, str, SeedResult]] = {}
    for entry in entries:
        machine = str((entry.provenance.devices, sorted(entry.provenance.versions.items())))
        limits, sizes = [(machine, DRAWN_TOLERANCE)], entry.provenance.sample_batches
        if len(sizes) == 1:
            limits.append((f"{machine}, {sizes[0]} drawn at once", TOLERANCE))
        for which, results in (("", entry.seeds), (" of the baseline", entry.baseline)):
            for seed, result in results.items():
                if not result.keys:
                    continue
                # a baseline is an entry too, with the same chains, and has the same numbers in both places
                said = entry, f"seed {seed}{which}", result
                for alike, drawn in limits:
                    first, where, other = known.setdefault((alike, result.chain, *result.keys), said)
                    if other is not result and (what := _differ(other, result, drawn)):
                        raise InputError(
                            f"{entry.name} and {first.name} have different numbers under one key ({where}, "
                            f"{what}): one of them was changed, or they are of two stores and one is "
                            "wrong; harness leaderboard verify tells which"
                        )


def _differ(one: SeedResult, other: SeedResult, drawn: float) -> str:
    """What differs first; empty where nothing does. ``drawn``: the tolerance of `DRAWN`."""
    for name in one.metrics.keys() & other.metrics.keys():
        if one.metrics[name] == other.metrics[name]:
            continue
        tolerance = drawn if name.startswith(DRAWN) else TOLERANCE
        for generation, (a, b) in enumerate(zip(one.metrics[name], other.metrics[name], strict=False)):
            equal = a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=tolerance))
            if not equal:
                return f"{name} of generation {generation}: {shown(a)} and {shown(b)}"
    return ""
