"""Progress: live bars on a terminal, plain lines in a log."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness import terminal
from harness.config.naming import cell_name
from harness.metrics.catalogue import SHOWN
from harness.records import Record
from harness.science import Branch, Chain
from harness.study import Prepared

STALLED_S = 120.0
"""Seconds without progress after which a chain is marked."""
HEARTBEAT_S = 60.0
"""Seconds between plain lines when nothing is committed."""

NEWS = {
    "batches_lowered": "for want of memory {batches}: the same results but for their last bits, more slowly",
    "resumed": "generation {generation} seed {seed} goes on from step {step}",
    "checkpoint_refused": (
        "generation {generation} seed {seed} cannot go on from {reason}; again from step {again_from_step}"
    ),
}
"""Events that are shown."""


def duration(seconds: float) -> str:
    """Seconds for people: ``42s``, ``3m05s``, ``2h10m``."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    return (
        f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    )


def axes_text(axes: Mapping[str, Any], seed: int) -> str:
    """A chain as people read of it everywhere."""
    return cell_name(list(axes.values()), list(axes), seed)


def _generation(row: Mapping[str, Any]) -> str:
    return f"generation {row['generation']} " if "generation" in row else ""


class PlainDisplay:
    """Lines with the time; for logs, pipes and ``--json`` (then on standard error)."""

    def __init__(self, stream: TextIO) -> None:
        """A display that writes lines to a stream."""
        self.stream, self._last = stream, -math.inf

    def update(self, done: int, total: int, running: Sequence[Mapping[str, Any]]) -> None:
        """A heartbeat at once, and then now and again."""
        if time.monotonic() - self._last > HEARTBEAT_S:
            phases = ", ".join(
                f"{axes_text(r['axes'], r['seed'])} {_generation(r)}{r.get('phase', 'starting')}"
                for r in running
            )
            self.line(f"{done}/{total} generations; {phases or 'waiting'}")

    def line(self, text: str) -> None:
        """One line."""
        self._last = time.monotonic()
        terminal.show(f"{time.strftime('%H:%M:%S')} {text}", self.stream)

    def close(self) -> None:
        """Close the display; lines need nothing for it."""


class SilentDisplay:
    """Says nothing: for who asks for a result and not for its story."""

    def update(self, done: int, total: int, running: Sequence[Mapping[str, Any]]) -> None:
        """Show nothing."""

    def line(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Close the display, which showed nothing."""


class LiveDisplay:
    """A table of what runs, redrawn in place, under a bar for the grid."""

    def __init__(self, console: Console) -> None:
        """Start drawing."""
        self.console, self._started = console, time.monotonic()
        self._first: int | None = None
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._live.start()

    def update(self, done: int, total: int, running: Sequence[Mapping[str, Any]]) -> None:
        """Redraw."""
        if self._first is None:
            self._first = done
        self._live.update(Group(self._grid_bar(done, total), self._table(running)))

    def _grid_bar(self, done: int, total: int) -> Table:
        elapsed, new = time.monotonic() - self._started, done - (self._first or 0)
        left = f"about {duration(elapsed / new * (total - done))} left" if new else "estimating"
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(
            "grid",
            ProgressBar(total=max(total, 1), completed=done),
            f"{done}/{total} {duration(elapsed)} {left}",
        )
        return bar

    def _table(self, running: Sequence[Mapping[str, Any]]) -> Table:
        room = max(1, self.console.size.height - 3)
        table = Table(box=None, expand=True, pad_edge=False)
        for name in ("chain", "gen", "phase", "progress", "tokens/s", "left"):
            table.add_column(name, no_wrap=True, ratio=2 if name == "progress" else None, overflow="ellipsis")
        for row in running[:room]:
            label = Text(terminal.visible(axes_text(row["axes"], row["seed"]), lines=False))
            if "phase" not in row:
                table.add_row(label, "", Text("starting", style="dim"), "", "", "")
                continue
            done, total, rate = row["done"], max(row["total"], 1), row["rate"]
            age = time.time() - row.get("updated", time.time())
            left = "stalled?" if age > STALLED_S else duration(row["left_s"]) if row["left_s"] else ""
            bar = ProgressBar(total=total, completed=done)
            table.add_row(
                label,
                f"{row['generation']}/{row['last']}" if "generation" in row else "",
                row["phase"],
                bar,
                f"{rate:,.0f}" if rate else "",
                left,
            )
        return table

    def line(self, text: str) -> None:
        """A line above the bars; the text is not read as markup."""
        self._live.console.print(Text(f"{time.strftime('%H:%M:%S')} {terminal.visible(text)}"))

    def close(self) -> None:
        """Stop drawing and leave the terminal as it was."""
        self._live.stop()


def make_display(json_output: bool) -> PlainDisplay | LiveDisplay:
    """Live on a terminal, plain otherwise; with ``--json`` standard output is left to the result."""
    if json_output:
        return PlainDisplay(sys.stderr)
    console = Console()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(sys.stdout)


def computed_by(prepared: Prepared, node: str, others: int) -> str:
    """The cell that computes a generation, and how many other chains have it too."""
    known = prepared.lineage.nodes[node]
    label = axes_text(prepared.study.cells[known.cell].axes, known.grid_seed)
    return f"{label} and {others} more chain{'s' if others > 1 else ''}" if others else label


def chain_of(prepared: Prepared, node: str) -> str:
    """The chain that computes a generation, as other commands know it: its id, its cell and its seed."""
    known = prepared.lineage.nodes[node]
    own = (known.cell, known.grid_seed)
    found = next(chain for chain in prepared.lineage.chains if (chain.cell, chain.seed) == own)
    return chain_name(prepared, found)


def chain_name(prepared: Prepared, chain: Chain) -> str:
    """A chain with its id, its cell and its seed."""
    return f"chain {chain.id} ({axes_text(prepared.axes(chain), chain.seed)})"


def described(record: Record | None) -> str:
    """A generation that is complete, in a line; its record may be gone again."""
    if record is None:
        return "committed a generation whose record cannot be read"
    shown = [name for name in SHOWN if record.metrics.get(name) is not None]
    values = "".join(f" {name} {record.metrics[name]:.4g}" for name in shown)
    return f"generation {record.generation} {record.status}{values} (fit {record.fit[:12]})"


def running_row(prepared: Prepared, branch: Branch, progress: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a branch that runs."""
    first, last = (prepared.lineage.nodes[branch.nodes[place]] for place in (0, -1))
    axes = prepared.study.cells[first.cell].axes
    return {"branch": branch.id, "axes": axes, "seed": first.grid_seed, "last": last.generation, **progress}
