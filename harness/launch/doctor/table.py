"""The table of checks: for people on a terminal, one line a check for `grep` elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from harness import terminal
from harness.launch.doctor.checks import Check

STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def shown_at(names: str) -> str:
    """Machines, in a few characters."""
    each = names.split(", ")
    return names if len(names) <= 14 or len(each) == 1 else f"{len(each)} machines"


def merged(checks: Iterable[Check]) -> list[Check]:
    """One line for machines that say the same.

    Those that are all well share one, with what the first of them has.
    """
    lines: dict[tuple[str, ...], Check] = {}
    for check in checks:
        key = (check.name, check.severity, *(() if check.severity == "ok" else (check.found, check.remedy)))
        if key not in lines:
            lines[key] = check
            continue
        first = lines[key]
        found = first.found
        if check.found != found and " (others alike)" not in found:
            found = f"{first.where}: {found} (others alike)"
        lines[key] = replace(first, where=f"{first.where}, {check.where}", found=found)
    return list(lines.values())


def summary(checks: Sequence[Check]) -> dict[str, Any]:
    """For machines.

    Args:
        checks: All of them.
    """
    counts = {severity: sum(check.severity == severity for check in checks) for severity in STYLES}
    fields = ("name", "where", "severity", "found", "remedy")
    return {**counts, "checks": [{name: asdict(check)[name] for name in fields} for check in checks]}


def collect(checks: Iterable[Check]) -> list[Check]:
    """All checks; says on a terminal how far it is."""
    from rich.console import Console

    console, found = Console(stderr=True), []
    with console.status("examining") as status:
        for check in checks:
            found.append(check)
            status.update(f"examining: {len(found)} checks, {check.name} done")
    return found


def show(checks: Sequence[Check]) -> None:
    """Print the table, and a line that counts."""
    if sys.stdout.isatty():
        _show_table(merged(checks))
    else:
        for check in checks:
            terminal.show(
                f"{check.severity}: {check.name}: {check.where}: {check.found}"
                + (f" -> {check.remedy}" if check.remedy else "")
            )
    counts = {name: sum(check.severity == name for check in checks) for name in STYLES}
    plural = {name: name if name == "ok" or count == 1 else f"{name}s" for name, count in counts.items()}
    terminal.show(", ".join(f"{count} {plural[name]}" for name, count in counts.items() if count))


def _show_table(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "check", "where", "found, and what to do"):
        table.add_column(name, overflow="fold")
    for check in checks:
        found = Text(terminal.visible(check.found))
        if check.remedy:
            found.append(f"\n-> {check.remedy}", style="bold")
        severity = Text(check.severity, style=STYLES[check.severity])
        table.add_row(severity, Text(check.name), Text(terminal.visible(shown_at(check.where))), found)
    Console().print(table)
