"""The commands about machines and what lies on them: doctor, gc, compact, fetch."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import terminal
from harness.cli.app import (
    DEFAULT_ROOT,
    EXIT_FAILED,
    Assignments,
    ConfigPath,
    Json,
    Root,
    app,
    existing_store,
    expanded,
    path,
    print_json,
    say,
)
from harness.cli.tables import cell, print_rows
from harness.errors import InputError
from harness.terminal import counted, noun

if TYPE_CHECKING:
    from harness.launch.doctor.checks import Check


@app.command(rich_help_panel="Machine and store")
def doctor(
    root: Root = DEFAULT_ROOT,
    store_only: Annotated[
        bool,
        typer.Option(
            "--store", help="Check every item of the store against its checksums, and nothing else."
        ),
    ] = False,
    repair: Annotated[
        bool, typer.Option(help="With --store: set damaged items aside; the next run computes them again.")
    ] = False,
    json_output: Json = False,
) -> None:
    """Check this machine, or all nodes of the SLURM job; with --store, the store instead.

    Exit code 1 where something fails.

    Example: harness doctor --root /shared/runs
    """
    if store_only:
        _examine_store(root, repair, json_output)
        return
    if repair:
        raise InputError("doctor: --repair goes with --store")
    from rich.console import Console

    from harness.launch.doctor.examination import by_severity, examine

    checks = []
    with Console(stderr=True).status("examining") as status:
        for check in examine(root):
            checks.append(check)
            status.update(f"examining: {len(checks)} checks, {check.name} done")
    counts = by_severity(checks)
    if json_output:
        fields = ("name", "where", "severity", "found", "remedy")
        print_json({**counts, "checks": [{f: getattr(check, f) for f in fields} for check in checks]})
    else:
        _show(checks)
        parts = (
            counted(count, name, "ok" if name == "ok" else "") for name, count in counts.items() if count
        )
        terminal.show(", ".join(parts))
    raise typer.Exit(EXIT_FAILED if counts["failure"] else 0)


def _show(checks: list[Check]) -> None:
    """The table of checks: for people on a terminal, one line a check for `grep` elsewhere."""
    from rich.text import Text

    from harness.launch.doctor.examination import merged

    if not sys.stdout.isatty():
        for check in checks:
            remedy = f" -> {check.remedy}" if check.remedy else ""
            terminal.show(f"{check.severity}: {check.name}: {check.where}: {check.found}{remedy}")
        return
    styles, rows = {"ok": "green", "warning": "yellow", "failure": "bold red"}, list[list[str | Text]]()
    for check in merged(checks):
        machines = check.where.split(", ")
        where = check.where if len(check.where) <= 14 or not machines[1:] else f"{len(machines)} machines"
        found = cell(check.found).append(f"\n-> {check.remedy}" if check.remedy else "", style="bold")
        rows.append([Text(check.severity, style=styles[check.severity]), check.name, where, found])
    print_rows(("", "check", "where", "found, and what to do"), rows)


def _examine_store(root: Path, repair: bool, json_output: bool) -> None:
    """The store: damage, missing pieces, what killed processes have left.

    Exit code 1 where something is damaged.
    """
    from harness.store import Leases
    from harness.store.health import examine

    store = existing_store(root, writes=repair)
    findings = list(examine(store, Leases(store.root, None), repair))
    damage = sum(finding.severity == "damage" for finding in findings)
    if json_output:
        print_json({"damage": damage, "findings": [asdict(finding) for finding in findings]})
    else:
        rows = [(finding.severity, finding.where, finding.what, finding.remedy) for finding in findings]
        print_rows(("", "where", "what", "remedy"), rows)
        terminal.show(f"{damage} damaged" if damage else "no damage")
    raise typer.Exit(EXIT_FAILED if damage else 0)


@app.command(rich_help_panel="Machine and store")
def gc(
    root: Root = DEFAULT_ROOT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    damaged: Annotated[bool, typer.Option(help="Also remove what was set aside as damaged.")] = False,
    json_output: Json = False,
) -> None:
    """Free weights and work that no experiment on the root needs; records and corpora always stay.

    Example: harness gc --dry-run
    """
    from harness.store import Leases
    from harness.store.health import collect

    store = existing_store(root, writes=not dry_run)
    freed = collect(store, Leases(store.root, None), dry_run, damaged)
    if json_output:
        print_json(asdict(freed))
        return
    size = 2**20
    terminal.show(
        f"{'would free' if dry_run else 'freed'}: weights of {counted(freed.weights, 'fit')} "
        f"({freed.weights_bytes / size:,.1f} MiB), unfinished work of {counted(freed.work, 'key')} "
        f"({freed.work_bytes / size:,.1f} MiB), {counted(freed.leases, 'lease')}, "
        f"{counted(freed.damaged, 'damaged item')} "
        f"({freed.damaged_bytes / size:,.1f} MiB)"
    )


@app.command(rich_help_panel="Machine and store")
def compact(root: Root = DEFAULT_ROOT, json_output: Json = False) -> None:
    """Put records that have a folder of six files each into a few large files.

    A run does so by itself with the records of complete chains, once it has 2,048. Every command reads both.

    Example: harness compact
    """
    from harness.store.health import evaluations_by_chain

    store = existing_store(root, writes=True)
    folders = store.pack(evaluations_by_chain(store))
    packs = len(store.packs.names())
    if json_output:
        print_json({"packed": folders, "packs": packs})
    else:
        packed = f"packed the records of {folders:,} {noun(folders, 'generation')}"
        terminal.show(f"{packed}; {counted(packs, 'pack')} in {root / 'packs'}")


@app.command(rich_help_panel="On a cluster")
def fetch(
    config: ConfigPath,
    assignments: Assignments = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            parser=path,
            metavar="PATH",
            help="The shared cache; becomes HF_HOME. $HF_HOME or the library's own when absent.",
        ),
    ] = None,
    json_output: Json = False,
) -> None:
    """Bring every model, tokenizer and data set that the grid needs from the hub into a cache.

    Jobs without a network find them there.

    Example: harness fetch study.yaml --cache /shared/hf
    """
    from harness.errors import DataError
    from harness.fetch import describe
    from harness.fetch import fetch as bring

    study = expanded(config, assignments)
    try:
        found = bring(study, cache, say)
    except DataError as error:
        raise study.source.located(error) from None
    if json_output:
        print_json({"items": [item.to_json() for item in found]})
        return
    for item in found:
        terminal.show(describe(item))
    size = sum(item.bytes for item in found) / 2**20
    items = f"{counted(len(found), 'item')}, {size:.1f} MiB"
    terminal.show(items if found else "nothing of the hub is needed")
