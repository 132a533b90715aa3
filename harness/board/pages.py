"""The board's pages: tables that can be read without a script, sorted and filtered with one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import median

from harness.board.drawing import Scale, interval, text, time_of
from harness.board.entry import Entry
from harness.board.front import fronts
from harness.board.ranking import smallest_p
from harness.board.rules import worse_sign
from harness.board.score import Scored, TrackTable
from harness.config.track import BASELINE, Track
from harness.metrics.catalogue import about
from harness.reporting.statistics import Aggregate, aggregate
from harness.terminal import listed, visible

_HERE = Path(__file__).parent
STYLE = (_HERE / "board.css").read_text(encoding="utf-8")
SCRIPT = (_HERE / "board.js").read_text(encoding="utf-8")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def safe(value: object) -> str:
    """Text of anybody's for a page: nothing in it is markup, nothing turns or hides what is around it."""
    return escape(visible(str(value), lines=False))


def page(title: str, body: Iterable[str], script: str = "") -> str:
    """A whole page."""
    code = f"<script>{script}</script>" if script else ""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{safe(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}{code}</body></html>\n"
    )


def index_page(tables: Sequence[TrackTable], waiting: Sequence[Track] = ()) -> str:
    """The first page: every track with its answer, and those that have no entry yet."""
    body = ["<header><h1>What resists model collapse</h1>"]
    body.append(
        "<p>A model that is trained on its own output forgets the tails of the real distribution, and then "
        "the rest. Each track below is an environment with fixed data, budgets and seeds; each entry is a "
        "recipe that is meant to resist, computed from a store.</p></header><main>"
    )
    for table in sorted(tables, key=lambda table: bool(table.stale)):  # earlier ones behind all others
        link = f"{table.name}.html"
        body.append(f'<section><h2><a href="{link}">{safe(table.track.title)}</a></h2>')
        body.append(f'<p class="answer">{answer(table)}</p>')
        ranked = sum(line.rank is not None for line in table.lines)
        body.append(f'<p class="soft">{ranked} ranked entries over {table.seeds} seeds, ')
        body.append(f"{len(table.lines) - ranked} not ranked; version {table.track.version}</p>")
        body.append(
            f'<p class="soft">Stale: {safe(table.stale)}.</p></section>' if table.stale else "</section>"
        )
    if not tables:
        body.append("<p>There are no entries yet.</p>")
    if waiting:
        body.append("<section><h2>Without entries</h2>")
        body.append('<p class="soft">Tracks that come with the harness, planned or entered elsewhere.</p>')
        for track in waiting:
            body.append(f"<p><b>{safe(track.title)}</b> ({safe(track.track)}). {safe(track.about)}</p>")
        body.append("</section>")
    body.append("</main>")
    return page("What resists model collapse", body)


def answer(table: TrackTable) -> str:
    """What a track's table says, in one or two sentences."""
    ranked = [line for line in table.lines if line.rank is not None]
    others = [line for line in ranked if line.entry.mitigation != BASELINE]
    if not others:
        return "No entry is ranked yet."
    best = [line for line in ranked if line.rank is not None and line.rank.rank == 1]
    sure = [line for line in best if line.better]
    doubtful = len(best) - len(sure)
    names = listed([f"<b>{safe(line.entry.mitigation)}</b>" for line in sure], 5)
    tied = " (they cannot be told apart)" if len(sure) > 1 else ""
    baseline = next((line for line in ranked if line.entry.mitigation == BASELINE), None)
    metric, unit = about(table.track.score.metric).label, safe(table.track.score.unit)
    rise = ""
    if baseline is not None and baseline.rise.mean is not None:
        change = worse_sign(table.track.score.metric) * baseline.rise.mean
        verb = "falls" if change < 0 else "rises"
        rise = f" Without a mitigation, {safe(metric)} {verb} by {text(abs(change))} {unit}".rstrip() + "."
    if not sure:
        return f"No entry is better than the baseline beyond doubt.{rise}"
    verb = "resist" if len(sure) > 1 else "resists"
    others_say = ""
    if doubtful:
        others_say = f" {doubtful} more of rank 1 may be no better than the baseline."
    return f"{names} {verb} most{tied}.{others_say}{rise}"


@dataclass(frozen=True)
class Column:
    """A column of a track's table.

    Attributes:
        key: Its name in the address and in the CSV.
        heading: For people.
        what: An explanation; empty where there is nothing to explain.
        cell: From a line to what it is sorted by, and to what is shown, as HTML.
        style: Class of its cells.
    """

    key: str
    heading: str
    what: str
    cell: Callable[[Scored], tuple[str, str]]
    style: str = ""


EMPTY = aggregate(())
LONG = 24
"""A longer heading has a wider column, so that the table's head is no higher than four lines."""
WIDEST = 5.0
"""The scale of a table's intervals ends at so many times what half of them reach."""
AGAINST = {
    "clean": ("clean cost", "how much more it worsens than the baseline where nothing is synthetic"),
    "random": ("better than chance by", "as many examples, chosen by lot"),
    "oracle": ("worse than the oracle by", "the same choice by who knows what is real, or right"),
}
"""Columns of controls: heading and explanation."""


def _columns(table: TrackTable) -> list[Column]:
    score, scale = table.track.score, _scale(table)
    unit = f", {score.unit}" if score.unit else ""
    higher = worse_sign(score.metric) < 0

    def mean(found: Aggregate) -> tuple[str, str]:
        return _plain(found.mean), safe(found.text(higher, True))

    def until(line: Scored) -> tuple[str, str]:
        found = median(line.until) if line.until else math.nan
        return (_plain(found), text(found)) if math.isfinite(found) else ("", "never" if line.until else "")

    def kept(name: str) -> Callable[[Scored], tuple[str, str]]:
        return lambda line: _kept(line.beside[name][1])

    def last(name: str) -> Callable[[Scored], tuple[str, str]]:
        return lambda line: _number_cell(line.beside[name][0].mean)

    def against(name: str) -> Callable[[Scored], tuple[str, str]]:
        return lambda line: mean(line.controls[name]) if name in line.controls else ("", "")

    def figure(line: Scored) -> tuple[str, str]:
        found = line.benefit
        return _plain(found.mean), interval(found.mean, found.low, found.high, scale)

    ranks = "1 + how many are better beyond doubt; up to the last rank that it may truly have"
    less = "how much less it worsens than the baseline with the same seed"
    worse = f"{about(score.metric).label}, from generation 0 to the last"
    found = [
        Column("rank", "rank", ranks, _rank_cell),
        Column("entry", "entry", "", _entry_cell, "name"),
        Column("benefit", f"resists{unit}", less, lambda line: mean(line.benefit)),
        Column("figure", "interval", "of the column before", figure),
        Column("rise", f"worsens by{unit}", worse, lambda line: mean(line.rise)),
        Column(
            "first",
            "best in",
            "of samples of the seeds",
            lambda line: _share(line.rank.first if line.rank else None),
        ),
    ]
    if score.threshold is not None:
        heading = f"generations until {text(score.threshold)}{unit}"
        found.append(Column("until", heading, "median of the seeds", until))
    found += [
        Column(f"against:{name}", heading, what, against(name))
        for name, (heading, what) in AGAINST.items()
        if name in table.controls
    ]
    for name in score.beside:
        if any(line.beside[name][1].values for line in table.lines):
            heading = f"{about(name).label}, share kept"
            found.append(Column(f"beside:{name}", heading, "last, over generation 0", kept(name)))
        else:
            found.append(Column(f"beside:{name}", about(name).label, "last generation", last(name)))
    return [
        *found,
        Column("examples", "training examples", "times the baseline's", _examples_cell),
        Column("hours", "device time", "of all seeds", _time_cell),
    ]


def _rank_cell(line: Scored) -> tuple[str, str]:
    if line.rank is None:
        return "", "not ranked"
    place, last = line.rank.rank, line.rank.last
    return str(place), str(place) if place == last else f"{place} to {last}"


def _entry_cell(line: Scored) -> tuple[str, str]:
    """Its name, and below it what has to be known of it."""
    name = line.entry.mitigation
    efficient = ["efficient"] if line.efficient and name != BASELINE else []
    badges = "".join(f'<span class="badge">{safe(note)}</span>' for note in [*line.badges, *efficient])
    below = "".join(f"<div>{part}</div>" for part in (badges, safe(line.unranked)) if part)
    return name, f'<a href="{safe(file_of(line.entry))}">{safe(name)}</a>{below}'


def _examples_cell(line: Scored) -> tuple[str, str]:
    times = line.entry.cost.times_baseline
    return _plain(times), f"{text(times)} \u00d7"


def _number_cell(value: float | None) -> tuple[str, str]:
    return _plain(value), "" if value is None else text(value)


def _time_cell(line: Scored) -> tuple[str, str]:
    hours = line.entry.cost.device_hours
    return _plain(hours), time_of(hours)


def _share(value: float | None) -> tuple[str, str]:
    return _plain(value), "" if value is None else f"{100 * value:.0f} %"


def _kept(found: Aggregate) -> tuple[str, str]:
    """A mean share, with its number of seeds where it is not of all."""
    value, shown = _share(found.mean)
    partly = shown and len(found.values) < found.total
    return value, f"{shown} ({len(found.values)}/{found.total})" if partly else shown


def track_page(table: TrackTable) -> str:
    """The table of a track."""
    track, score = table.track, table.track.score
    body = [f'<header><nav><a href="index.html">all tracks</a></nav><h1>{safe(track.title)}</h1>']
    body.append(f'<p class="answer">{answer(table)}</p>')
    if table.stale:
        newest = f'<a href="{safe(table.newer)}.html">the newest table</a>'
        body.append(f"<p><b>Stale</b>: {safe(table.stale)}. Not to be compared with {newest}.</p>")
    body.append("</header><main>")
    body.append('<p><label>Filter <input id="filter" type="search" autocomplete="off"></label> ')
    body.append('<span id="count" class="soft" role="status"></span></p>')
    body.append('<div class="scroll" tabindex="0" role="region" aria-label="Entries"><table data-sort>')
    columns, heads = _columns(table), []
    for column in columns:
        title = f' title="{safe(column.what)}"' if column.what else ""
        classes = [
            *(["left", column.style] if column.style else []),
            *(["long"] if len(column.heading) > LONG else []),
        ]
        label, left = safe(column.heading), f' class="{" ".join(classes)}"' if classes else ""
        button = f'<button type="button">{label}</button>'
        heads.append(f'<th scope="col" data-key="{safe(column.key)}"{title}{left}>{button}</th>')
    body.append(f"<thead><tr>{''.join(heads)}</tr></thead><tbody>")
    body += _lines(table, columns)
    body.append("</tbody></table></div>")
    body.append(
        '<p class="note">Intervals are of means over seeds, 95 %, by Student\u2019s t. Two entries are told '
        "apart where a paired t test over the seeds says so after Holm\u2019s correction for all pairs; "
        "entries with the same rank are tied (between lines), and the second number is the last rank that "
        f"an entry may truly have. Without assuming how seeds scatter, {table.seeds} of them can give "
        f"a p of {smallest_p(table.seeds):.2g} at best. Efficient: no ranked entry resists as much for less "
        f'device time. The same numbers: <a href="{safe(table.name)}.csv">CSV</a>, '
        '<a href="board.json">JSON</a>, <a href="feed.xml">feed</a>.</p>'
    )
    figures = list(fronts(table, lambda line: file_of(line.entry)))
    body += ["<h2>What it gains, and what it costs</h2>", *figures] if figures else []
    body.append(f"<h2>The environment</h2><p>{safe(track.about)}</p><h2>The rules</h2><ul>")
    body += [f"<li>{safe(rule)}</li>" for rule in track.rules]
    opened = ", ".join(f"<code>{safe(name)}</code>" for name in track.open)
    body.append(f"</ul><p>An entry may set {opened}. Ranked by {safe(about(score.metric).label)} ")
    body.append(f"(<code>{safe(score.metric)}</code>), version {track.version} of the track.</p>")
    if table.superseded:
        body.append("<h2>Earlier entries</h2><ul>")
        body += [
            f'<li><a href="{safe(file_of(e))}">{safe(e.mitigation)}</a>, {safe(e.provenance.finished)}</li>'
            for e in table.superseded
        ]
        body.append("</ul>")
    body.append("</main>")
    return page(track.title, body, SCRIPT)


def file_of(entry: Entry) -> str:
    """The page of an entry, from the board's folder."""
    return entry.name.removesuffix(".json") + ".html"


def values_of(line: Scored, table: TrackTable) -> dict[str, float | str | None]:
    """The numbers of a line by column, as the CSV and the JSON have them."""
    mean = line.benefit
    found: dict[str, float | str | None] = {
        "rank": line.rank.rank if line.rank else None,
        "rank_last": line.rank.last if line.rank else None,
        "entry": line.entry.mitigation,
        "benefit": mean.mean,
        "benefit_low": mean.low,
        "benefit_high": mean.high,
        "rise": line.rise.mean,
        "rise_low": line.rise.low,
        "rise_high": line.rise.high,
        "first": line.rank.first if line.rank else None,
        "seeds": len(mean.values),
    }
    if table.track.score.threshold is not None:
        until = median(line.until) if line.until else math.nan
        found["until"] = until if math.isfinite(until) else None
    for name, (last, kept) in line.beside.items():
        found[f"last {name}"], found[f"kept {name}"] = last.mean, kept.mean
    for name in table.controls:
        against = line.controls.get(name, EMPTY)
        found |= {f"against {name}": against.mean}
        found |= {f"against {name} low": against.low, f"against {name} high": against.high}
    found |= {
        "training_examples": line.entry.cost.training_examples,
        "times_baseline": line.entry.cost.times_baseline,
        "device_hours": line.entry.cost.device_hours,
        "efficient": "yes" if line.efficient else "",
        "notes": "; ".join([*line.badges, *([line.unranked] if line.unranked else [])]),
        "file": line.entry.name,
    }
    return found


def _scale(table: TrackTable) -> Scale:
    """Of all intervals of a table, but for parts of some that would leave no room to tell others apart."""
    found = [line.benefit for line in table.lines]
    ends = [[end for end in (each.mean, each.low, each.high) if end is not None] for each in found]
    reach = [max(map(abs, each)) for each in ends if each]
    limit = WIDEST * median(reach) if reach else 0.0
    shown = [min(max(end, -limit), limit) for each in ends for end in each] if limit else []
    return Scale(min([0.0, *shown]), max([0.0, *shown]) or 1.0, 6, 174)


def _lines(table: TrackTable, columns: Sequence[Column]) -> Iterable[str]:
    before = 0
    for line in table.lines:
        number = line.rank.rank if line.rank else 0
        begins = number != before and before > 0
        before = number
        cells = []
        for column in columns:
            value, shown = column.cell(line)
            style = f' class="{column.style}"' if column.style else ""
            cells.append(f'<td data-value="{safe(value)}"{style}>{shown}</td>')
        classes = " ".join([*(["group"] if begins else []), *([] if line.rank else ["unranked"])])
        yield f'<tr class="{classes}" data-begins="{int(begins)}">{"".join(cells)}</tr>'


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:.12g}"
