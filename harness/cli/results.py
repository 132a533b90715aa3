"""The commands that turn records into tables and pages, and send them: export, report, sync."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import terminal
from harness.cli.app import (
    DEFAULT_ROOT,
    Assignments,
    ChainName,
    ConfigPath,
    Json,
    Root,
    WatchOption,
    app,
    config_names,
    config_path,
    existing_store,
    path,
    prepare,
    print_json,
    progress,
    say,
    signals,
    tell_absence,
    tell_damage,
)
from harness.cli.tables import GAP, cell, least_widths, print_lines, print_rows, screen_width
from harness.errors import InputError
from harness.imports import arrow_gives_back, arrow_without_pandas
from harness.proc import give_back
from harness.stop import Stop
from harness.terminal import counted, noun, shown

if TYPE_CHECKING:
    from harness.reporting.rows import Rows


MOST = 11
"""Generations that a table on the terminal shows at most, where there is room for them."""
LEGIBLE = 30
"""Characters of a line of text in a column, below which a table leaves out other columns."""
NOTHING = "nothing has been committed yet"
"""What stands in the place of a table without rows."""


def formats(incomplete: str) -> list[str]:
    """How a shell may go on with a format."""
    from harness.reporting import ledger

    return [name for name in ledger.FORMATS if name.startswith(incomplete)]


@app.command(rich_help_panel="Results")
def export(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORM",
            autocompletion=formats,
            help="csv, json or parquet; that of --out's suffix when absent, or csv.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="PATH", help="The file; standard output when absent.")
    ] = None,
    provenance: Annotated[bool, typer.Option(help="Add how, where and when.")] = False,
    sql: Annotated[
        str | None,
        typer.Option(metavar="SELECT", help="What DuckDB answers to it; the records are the table ledger."),
    ] = None,
    examples: Annotated[
        bool, typer.Option("--examples", help="Every training example with its origin, in place of records.")
    ] = False,
    to: Annotated[
        Path | None, typer.Option(parser=path, metavar="DIR", help="With --examples: a new folder.")
    ] = None,
) -> None:
    """Write the tidy table of records, one row per chain and generation.

    With --examples: every training example of every generation, who wrote it and which filters it met, as
    Parquet files with a Croissant description.

    Example: harness export study.yaml --out table.parquet

    Example: harness export study.yaml --sql 'SELECT generation, avg("test/nll") FROM ledger GROUP BY ALL'
    """
    from harness.reporting import ledger

    if examples or to is not None:
        if not examples or to is None or out is not None or provenance or form is not None or sql is not None:
            raise InputError(
                "--examples and --to DIR belong together, without --format, --out, --provenance, --sql"
            )
        _export_examples(config, assignments, root, to)
        return
    form = _form(form, out)
    if form == "parquet" and out is None and sys.stdout.isatty():
        raise InputError(
            "--format: parquet is not for reading; name a file with --out, or send it on through a pipe"
        )
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out: the folder {out.absolute().parent} does not exist")
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        existing_store(root, writes=False)
        prepared, store = prepare(config, assignments, root, scratch)
        part = Path(scratch) / "export"
        arrow_without_pandas()
        arrow_gives_back()
        records = ledger.rows(prepared, store, provenance)
        if not len(records):
            tell_absence(prepared, store)
        written = ledger.write(records, form, part, sql)
        if out is None and sys.stdout.isatty():  # a person reads; a terminal would obey what names may hold
            terminal.show(part.read_text(encoding="utf-8"), end="")
        elif out is None:
            with open(part, "rb") as content:
                shutil.copyfileobj(content, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        else:
            _write_out(out, part)
            what = noun(written, "record" if sql is None else "row")
            terminal.show(f"{written:,} {what}: {out}", sys.stderr)
    raise typer.Exit(tell_damage(store))


COMPRESSED = ("gz", "zst", "bz2", "xz", "zip")
"""What names of files that `export` does not write end in."""


def _form(form: str | None, out: Path | None) -> str:
    """The format that is asked for, or that a file's name says."""
    from harness.reporting import ledger

    if form is not None and form not in ledger.FORMATS:
        allowed = f"allowed: {', '.join(ledger.FORMATS)}{terminal.nearest(form, ledger.FORMATS)}"
        raise InputError(f"--format: found {shown(form)}, {allowed}")
    suffix = "" if out is None else out.suffix[1:].lower()
    named = suffix if suffix in ledger.FORMATS else None
    if suffix in COMPRESSED:
        allowed = ", ".join(f".{name}" for name in ledger.FORMATS)
        raise InputError(f"--out: {out}: no .{suffix} files are written; allowed: {allowed} (compressed)")
    if form and named and form != named:
        raise InputError(
            f"--format: found {form}, but --out {out} has the name of {named}; leave out one of them"
        )
    return form or named or "csv"


def _export_examples(config: Path, assignments: list[str] | None, root: Path, to: Path) -> None:
    from harness.inspection.handed_on import hand_on

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        existing_store(root, writes=False)
        prepared, store = prepare(config, assignments, root, scratch)
        told = hand_on(prepared, store, to)
    dropped = "".join(f", {count:,} dropped by {name}" for name, count in told["dropped"].items())
    trained = f"{told['trained']:,} training {noun(told['trained'], 'example')}"
    terminal.show(f"{trained}, {told['real']:,} of them real{dropped}: {to}")
    if told["differ"]:
        say(
            f"chains that were run in bundles are run again for this, and {len(told['differ'])} of them come "
            "out otherwise here than their records say (another processor, or other versions): about.json"
        )
    raise typer.Exit(tell_damage(store))


def _write_out(out: Path, part: Path) -> None:
    """Replace a regular file in one step.

    What is a device, a pipe or a link is written through, and stays what it is.
    """
    from harness.files import write_atomic

    try:
        with open(part, "rb") as content:
            if out.exists() and not out.is_file():
                with open(out, "wb") as stream:
                    shutil.copyfileobj(content, stream)
            else:
                write_atomic(out.resolve(), content)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror}") from None


@app.command(rich_help_panel="Results")
def report(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=path, metavar="PATH", help="Folder; experiments/NAME/report/ in the store when absent."
        ),
    ] = None,
) -> None:
    """Write a self-contained HTML page with curves, intervals and samples; figures as PNG and PDF beside it.

    Example: harness report study.yaml --out page
    """
    from harness.inventory.judging import remarks
    from harness.metrics.catalogue import about
    from harness.reporting import ledger
    from harness.reporting.baseline import baselines
    from harness.reporting.claims import describe, judge
    from harness.reporting.report import build, failed_chains, failed_line, variance
    from harness.reporting.scope import rescoped
    from harness.store import Experiment

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        existing_store(root, writes=False)
        prepared, store = prepare(config, assignments, root, scratch)
        arrow_gives_back()
        rows = ledger.rows(prepared, store, keys=False)
        own = Experiment(store.root, prepared.study.base.experiment).path
        if not len(rows):
            tell_absence(prepared, store)
        if out is None and not len(rows) and not (own / "config.json").exists():
            terminal.show(NOTHING)  # and no page of it: its folder would look as if the study had been run
            raise typer.Exit(tell_damage(store))
        if out is None:
            existing_store(root, writes=True)
        folder = out or own / "report"
        known = baselines(prepared, store, rows)
        try:
            page = build(prepared, store, rows, folder, progress(), known)
            if less := rescoped(prepared, folder):
                say(less)
        except OSError as error:
            raise InputError(f"--out: {folder} cannot be written: {error.strerror}") from None
        verdicts = [describe(found, rows.names) for found in judge(prepared, rows)]
        failed = failed_line(prepared, failed_chains(prepared, store))
    more = [f"{about(found.metric).label}: {found.text}" for found in known if found.warning]
    more += [*failed, *remarks(prepared, store)]
    if len(prepared.study.seeds) > 1:
        more.append(variance(prepared))
    _print_answers(rows, prepared.study.columns, prepared.study.seeds, more=more)
    _print_verdicts(verdicts)
    terminal.show(f"report: {page}")
    raise typer.Exit(tell_damage(store))


@app.command(rich_help_panel="Results")
def compare(
    configs: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG...", parser=config_path, autocompletion=config_names, help="Two studies or more."
        ),
    ],
    root: Annotated[
        list[Path] | None,
        typer.Option(
            "--root", metavar="PATH", parser=path, help="The store; once for all, or once for each."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, metavar="PATH", help="Folder for a page with the curves.")
    ] = None,
) -> None:
    """Put several experiments, or the same one of several stores, into one table, and on one page.

    Example: harness compare a.yaml b.yaml --out page
    """
    from harness.reporting import ledger
    from harness.reporting.compare import build, together

    roots = root or [path(os.environ.get("HARNESS_ROOT") or DEFAULT_ROOT)]
    roots = roots * len(configs) if len(roots) == 1 else roots
    if len(configs) < 2 or len(roots) != len(configs):
        given = f"{counted(len(configs), 'study', 'studies')} and {counted(len(roots), 'store')}"
        raise InputError(
            f"found {given}, expected two studies or more, and --root once for all or once for each (in the "
            "order of the studies)"
        )
    damaged, studies, parts = 0, [], []
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        for number, (config, store_root) in enumerate(zip(configs, roots, strict=True)):
            existing_store(store_root, writes=False)
            place = Path(scratch) / str(number)
            place.mkdir()
            studies.append(prepare(config, None, store_root, str(place)))
        arrow_without_pandas()
        arrow_gives_back()
        for (prepared, store), store_root in zip(studies, roots, strict=True):
            parts.append((prepared, ledger.rows(prepared, store, keys=False), store_root))
            damaged = max(damaged, tell_damage(store))
        found = together(parts)
        # the rows alone are needed: of millions, their chains are much
        del studies, parts, prepared, store
        give_back()
    if not len(found.rows) and not damaged:
        raise InputError("; ".join(found.absent))
    _print_answers(found.rows, found.axes, found.seeds, found.tables, found.absent)
    if out is not None:
        try:
            terminal.show(f"report: {build(found, out, progress())}")
        except OSError as error:
            raise InputError(f"--out: {out} cannot be written: {error.strerror}") from None
    raise typer.Exit(damaged)


@app.command(rich_help_panel="Results")
def sync(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    watch: WatchOption = None,
    json_output: Json = False,
) -> None:
    """Mirror what is committed to W&B, one run per chain, and to the other trackers of the study.

    In W&B a saved view shows all of it; its address is printed.

    Run it as often as you like, while jobs run or afterwards.

    Example: harness sync study.yaml --watch 60
    """
    from harness.tracking.sync import describe
    from harness.tracking.sync import sync as send

    stop = Stop()
    signals(stop)()
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, _ = prepare(config, assignments, root, scratch)
        done = send(prepared, root, stop, watch, say)
    print_json(done.to_json()) if json_output else terminal.show(describe(done))
    raise typer.Exit(done.exit_code)


def _print_verdicts(verdicts: Sequence[Mapping[str, str]]) -> None:
    """The claims with their verdicts; of what each is and who says it as far as there is room."""
    if not verdicts:
        return
    names = {"claim": "claim", "verdict": "verdict", "found": "found", "wanted": "wanted"}
    more = {"in_words": "statistic", "source": "source"}
    rows = []
    for item in verdicts:
        reason = f" ({item['reason']})" if item["reason"] else ""
        rows.append({**item, "verdict": f"{item['verdict']}{reason}"})

    def least(name: str, head: str) -> int:
        widest = max(cell(text).cell_len for text in (head, *(row[name] for row in rows)))
        return GAP + (widest if name in ("found", "wanted") else min(widest, LEGIBLE))

    room = screen_width() + GAP - sum(least(*column) for column in names.items())
    for name, head in more.items():
        room -= least(name, head)
        if room >= 0 or not sys.stdout.isatty():
            names[name] = head
    print_rows(names.values(), ([row[name] for name in names] for row in rows), "claims", whole=(2, 3))
    left_out = [f"the {head}" for name, head in more.items() if name not in names]
    if left_out:
        print_lines([f"report.html also has {' and '.join(left_out)} of each claim"])


def _print_answers(
    rows: Rows,
    axes: Sequence[str],
    seeds: Sequence[int],
    tables: Sequence[tuple[Rows, Sequence[str]]] = (),
    more: Sequence[str] = (),
) -> None:
    """What has come of the headline metric, and by generation, as many as the terminal has room for.

    Args:
        rows: Of what the sentences are.
        axes: The axes that tell cells apart.
        seeds: Those that every cell is run with.
        tables: The rows, and their axes, that have a table each; one of all when empty.
        more: What else there is to say before the tables.
    """
    from harness.reporting.answer import answers, reserved

    print_lines([*answers(rows, axes, seeds), *reserved(rows, axes, seeds), *more])
    for part, own in tables or ((rows, axes),):
        _print_table(part, own, seeds)


def _print_table(rows: Rows, axes: Sequence[str], seeds: Sequence[int]) -> None:
    from harness.config.naming import short_names
    from harness.metrics.catalogue import among
    from harness.reporting.tables import summary_table

    heads, before = short_names(axes), range(len(axes))

    def drawn(summary: dict[str, Any]) -> list[list[str]]:
        return [[*heads, *map(str, summary["generations"])], *_cells(summary)]

    def fits(summary: dict[str, Any]) -> bool:
        table = drawn(summary)
        # elsewhere than on a terminal nothing is broken, so that names of cells take all of their width
        whole = [number for number in range(len(table[0])) if number not in before or not sys.stdout.isatty()]
        return sum(width + GAP for width in least_widths(table, whole)) - GAP <= screen_width()

    summary = summary_table(rows, axes, seeds, MOST, brief=True, fits=fits)
    if summary["metric"] is None:
        terminal.show(NOTHING)
        return
    names, *lines = drawn(summary)
    numbers = range(len(heads), len(names))
    # apart from the table, which would break it into lines of its own width
    print_lines([f"{among(summary['metric'], rows.names).title} by generation"])
    print_rows(names, lines, right=numbers, whole=numbers)
    left_out = f"{summary['columns']}; harness export has all generations" if summary["columns"] else ""
    print_lines(filter(None, (*summary["note"].split("\n"), left_out)))


def _cells(summary: dict[str, Any]) -> list[list[str]]:
    return [[*line["cell"], *line["points"]] for line in summary["lines"]]


@app.command(rich_help_panel="Results")
def pull(
    config: ConfigPath,
    generation: Annotated[int, typer.Option(min=0, help="Which generation.")],
    to: Annotated[Path, typer.Option(parser=path, metavar="DIR", help="A new folder.")],
    chain: ChainName = "",
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
) -> None:
    """Copy a generation as an ordinary Hugging Face model folder and data set.

    The model has its tokenizer, the data set is the corpus. Other learners' models are their parameters.

    Example: harness pull quickstart --chain 1a2b --generation 2 --to g2, then
        AutoModelForCausalLM.from_pretrained("g2/model") and
    load_dataset("g2/corpus")
    """
    from harness.inspection.pull import pull as copy

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        existing_store(root, writes=False)
        prepared, store = prepare(config, assignments, root, scratch)
        found = copy(prepared, store, chain, generation, to)
    if json_output:
        print_json(found)
        return
    if found["model"] is None:
        whose = f"generation {generation}" if found["adapter"] is None else "what the adapter adds to"
        kept = ", ".join(map(str, found["generations_with_weights"])) or "none"
        terminal.show(
            f"no model: the weights of {whose} were freed (retention.weights); this chain has those of "
            f"generations: {kept}",
            sys.stderr,
        )
    else:
        other = "" if Path(found["model"], "config.json").exists() else " (parameters; no language model)"
        terminal.show(f"model    {found['model']}{other}")
    if found["adapter"] is not None:
        terminal.show(f"adapter  {found['adapter']}")
    terminal.show(f"corpus   {found['corpus']} ({found['examples']:,} {noun(found['examples'], 'example')})")
