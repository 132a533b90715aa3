"""The page of one entry: its numbers by seed, curves, samples, settings and how to compute it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from harness.board.checked import Verification
from harness.board.drawing import PlottedCurve, curves, text, time_of
from harness.board.entry import Entry, SeedResult
from harness.board.pages import page, safe
from harness.board.rules import other_rules, worse_sign
from harness.board.score import Scored, plain
from harness.config.shipped import tracks
from harness.config.track import BASELINE
from harness.metrics.catalogue import about
from harness.reporting.statistics import Aggregate, aggregate
from harness.terminal import visible


def entry_page(line: Scored | None, entry: Entry, table: str, checks: Sequence[Verification] = ()) -> str:
    """What is to be known of an entry: its line, None where it has none any more, in the table of a name."""
    track, metric = entry.track, entry.track.score.metric
    body = [
        f'<header><nav><a href="../index.html">all tracks</a> \u203a <a href="../{safe(table)}.html">'
        f"{safe(track.title)}</a></nav><h1>{safe(entry.mitigation)}</h1>"
    ]
    if line is None:
        body.append('<p class="answer">There is a later or fuller entry of the same settings.</p>')
    if line is not None:
        body.append(f'<p class="answer">{_verdict(line)}</p>')
        body += [f'<span class="badge">{safe(badge)}</span>' for badge in line.badges]
    body.append("</header><main><h2>What it changes</h2>")
    if entry.settings:
        body.append('<div class="scroll" tabindex="0"><table><thead><tr><th scope="col">field</th>')
        body.append('<th scope="col" class="left">value</th></tr></thead><tbody>')
        for name, value in entry.settings.items():
            shown = safe(json.dumps(value, ensure_ascii=False, sort_keys=True))
            body.append(f'<tr><td>{safe(name)}</td><td class="words"><code>{shown}</code></td></tr>')
        body.append("</tbody></table></div>")
    else:
        body.append("<p>Nothing: it is what all entries are compared with.</p>")
    body.append("<h2>By generation</h2>")
    for name in (metric, *track.score.beside):
        unit = about(name).unit or ""
        lines = [_curve(entry.mitigation, "one", entry.seeds, name)]
        if entry.mitigation != BASELINE:
            lines.append(_curve(f"{BASELINE} (baseline)", "two", entry.baseline, name))
        body.append(curves(lines, about(name).label, unit))
    body += _samples(entry)
    body += _seed_table(entry)
    body.append("<h2>Cost and origin</h2><dl>")
    facts: list[tuple[str, str]] = [
        ("training examples of a seed", f"{entry.cost.training_examples:,}"),
        *_tokens(entry),
        ("times the baseline's", text(entry.cost.times_baseline)),
        ("device time of all seeds", time_of(entry.cost.device_hours)),
        ("devices", ", ".join(entry.provenance.devices) or "not known"),
        ("source", ", ".join(entry.provenance.commits) or "not known"),
        ("finished", entry.provenance.finished or "not known"),
        ("configuration", entry.configuration_hash),
        ("data", entry.data),
    ]
    if entry.declared is not None:
        when = "before" if entry.declared.before else "NOT before"
        said = f"{entry.declared.hash}, {len(entry.declared.claims)} claims, {when} the first fit"
        facts.append(("declared", f"{said}: {entry.declared.time or 'never by a run'}"))
    facts += [(f"test set in the training set, {n}", f"{100 * v:.2g} %") for n, v in entry.overlap.items()]
    versions = {name: found for name, found in entry.provenance.versions.items() if found}
    facts.append(("versions", ", ".join(f"{n} {' or '.join(v)}" for n, v in sorted(versions.items()))))
    body += [f"<dt>{safe(name)}</dt><dd>{safe(value)}</dd>" for name, value in facts]
    file = entry.name.rpartition("/")[2]
    body.append("</dl><h2>Run it again</h2><p>A study that makes this entry, with its baseline and the ")
    body.append("seeds of its track:</p>")
    body.append(f'<pre tabindex="0">{_study(entry)}</pre>')
    body.append('<h2>Check it</h2><pre tabindex="0">')
    body.append(safe(f"harness leaderboard verify {file} --root STORE\n").replace("\\u000a", "\n"))
    body.append(safe(f"harness leaderboard verify {file} --replay {track.seeds[0]}"))
    body.append(f'</pre><p><a href="{safe(file)}">The entry\u2019s file</a></p>')
    body += [f"<p>{safe(_check(item))}</p>" for item in reversed(checks)]
    body.append("</main>")
    return page(f"{entry.mitigation}: {track.title}", body)


def _tokens(entry: Entry) -> list[tuple[str, str]]:
    """Of text in blocks, which are full: tokens of the training sets. Answers to prompts have any length."""
    data = entry.track.config.get("data")
    size = data.get("block_size") if isinstance(data, Mapping) and not entry.track.answers else None
    return [("tokens in them", f"{entry.cost.training_examples * size:,}")] if type(size) is int else []


def _study(entry: Entry) -> str:
    """The commands that compute an entry anew, as HTML: a file that is written, run and added."""
    own = entry.track.track
    shipped = own in tracks() and not other_rules(entry.track)
    file = {"experiment": own, "track": own if shipped else f"{own}.yaml"}
    lines = [f"{name}: {json.dumps(value)}" for name, value in file.items()]
    # YAML reads what JSON writes
    settings = json.dumps(entry.settings, ensure_ascii=False, sort_keys=True)
    lines += ["mitigations:", f"  {entry.mitigation}: {settings}", "tracking: {wandb: disabled}"]
    before = (
        []
        if shipped
        else [f"# {own}.yaml: version {entry.track.version} of the track, as in the entry's file"]
    )
    commands = [
        *before,
        "cat > study.yaml <<'EOF'",
        *lines,
        "EOF",
        "harness run study.yaml",
        f"harness leaderboard add study.yaml --mitigation {entry.mitigation} --to board",
    ]
    return "\n".join(safe(line) for line in commands)


def _samples(entry: Entry) -> list[str]:
    """The same prompts, continued by some generations; nothing where there are none."""
    generations = sorted({g for sample in entry.samples for g in sample.texts}, key=lambda g: (len(g), g))
    if not generations:
        return []
    body = [f"<h2>What it writes</h2><p>Seed {entry.track.seeds[0]}; written by models, and cut.</p>"]
    body.append('<div class="scroll" tabindex="0" role="region" aria-label="Samples"><table><thead><tr>')
    heads = ["prompt", *(f"generation {g}" for g in generations)]
    body += [f'<th scope="col" class="left">{safe(head)}</th>' for head in heads]
    body.append("</tr></thead><tbody>")
    for sample in entry.samples:
        cells = [sample.prompt, *(sample.texts.get(g, "") for g in generations)]
        shown = (escape(visible(cell)) for cell in cells)
        body.append("<tr>" + "".join(f'<td class="words"><pre>{cell}</pre></td>' for cell in shown) + "</tr>")
    return [*body, "</tbody></table></div>"]


def _check(item: Verification) -> str:
    place = f"{item.host}, {item.device}, harness {item.versions.get('harness', '')} {item.commit}".rstrip()
    who = f" by {item.who}" if item.who else ""
    return f"{item.time[:10]}{who} on {place}: {item.verdict}" + "".join(f"; {line}" for line in item.lines)


def _verdict(line: Scored) -> str:
    if line.rank is None:
        return f"Not ranked: {safe(line.unranked)}."
    tied = "" if line.rank.last == line.rank.rank else f"; its true rank may be as low as {line.rank.last}"
    unit = safe(line.entry.track.score.unit)
    by = f"{safe(line.benefit.text())} {unit}".rstrip()
    if line.entry.mitigation == BASELINE:
        return f"The baseline. Rank {line.rank.rank}{tied}."
    return f"Worsens by {by} less than the baseline. Rank {line.rank.rank}{tied}."


def _curve(label: str, style: str, seeds: Mapping[str, SeedResult], name: str) -> PlottedCurve:
    found: list[Aggregate] = []
    rows = [(list(result.metrics.get(name, ())), result.ended) for result in seeds.values()]
    for generation in range(max((len(row) for row, _ in rows), default=0)):
        # a chain that has diverged must not leave a mean in silence
        live = [row for row, ended in rows if ended is None or generation < ended]
        values = [plain(row[generation]) for row in live if len(row) > generation]
        found.append(aggregate(values, len(rows) - len(live), len(live) - len(values)))
    # generation 0 has no pool, and has lost no seed where nobody measures it there
    measured = found[1:] if found and found[0].missing == len(rows) else found
    fewest = min((len(a.values) for a in measured), default=0)
    whole = (
        f"{label}, {len(seeds)} seeds" if fewest == len(seeds) else f"{label}, {fewest} to {len(seeds)} seeds"
    )
    return PlottedCurve(
        whole, style, [a.mean for a in found], [a.low for a in found], [a.high for a in found]
    )


def _seed_table(entry: Entry) -> list[str]:
    metric, sign = entry.track.score.metric, worse_sign(entry.track.score.metric)
    label = about(metric).label
    body = ['<h2>Every seed</h2><div class="scroll" tabindex="0"><table><thead><tr>']
    heads = ("seed", "state", f"{label}, generation 0", "last", "worsens by", "the baseline by")
    body += [f'<th scope="col">{safe(name)}</th>' for name in heads]
    body.append("</tr></thead><tbody>")
    both: list[tuple[str, SeedResult, SeedResult | None]] = [
        (seed, result, entry.baseline.get(seed)) for seed, result in entry.seeds.items()
    ]
    both += [(f"{seed} (not of the track)", result, None) for seed, result in entry.other_seeds.items()]
    for seed, result, baseline in both:
        values = result.metrics.get(metric, ())
        first, last = (values[0], values[-1]) if values else (None, None)
        state = f"{result.state}: {result.detail}" if result.detail else result.state
        cells = [seed, state, _number(first), _number(last), _change(result, metric, sign)]
        cells.append(_change(baseline, metric, sign) if baseline else "")
        body.append("<tr>" + "".join(f"<td>{safe(cell)}</td>" for cell in cells) + "</tr>")
    return [*body, "</tbody></table></div>"]


def _number(value: float | None) -> str:
    return "" if value is None else text(value)


def _change(result: SeedResult, metric: str, sign: float) -> str:
    values: Any = result.metrics.get(metric, ())
    if result.state != "complete" or not values or values[0] is None or values[-1] is None:
        return ""
    return _number(plain(sign * (values[-1] - values[0])))
