"""The page of a report: one file that needs no network, with its figures beside it as PNG, PDF and CSV."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from harness.config.naming import words
from harness.files import write_atomic
from harness.metrics.catalogue import among
from harness.proc import give_back
from harness.reporting import figures
from harness.reporting.answer import ONE_SEED, answers, seed_counts
from harness.reporting.explorer import Theory, explorer
from harness.reporting.rows import Rows
from harness.reporting.tables import growth_table, headline, summary_table, to_csv
from harness.terminal import counted, noun, visible

ROOM_PX, LETTER_PX, GAP_PX = 1216, 8, 15
"""Width of a page's text on a wide screen, of a digit, and of what is between two columns."""
LEAST = 4
"""Generations that a table shows, room or not."""
WIDE_INCHES = 10.0
"""A figure that is wider has a row of its own."""
EMBEDDED_BYTES = 3_000_000
"""So many bytes of static figures are in the page; what comes behind them is a link to the file beside it."""
SECTIONS = (
    "verdicts", "losses", "homogenisation", "pictures", "samples", "failed", "costs", "lineage", "worth",
    "baseline", "early",
)  # fmt: skip
"""What a page may lack."""
Tell = Callable[[str], None]


@dataclass(frozen=True)
class FigureDrawing:
    """A figure with the numbers behind it.

    Attributes:
        name: Of its files.
        label: For people.
        figure: The figure.
        columns: Names of the columns of its numbers.
        numbers: The numbers, a row each.
    """

    name: str
    label: str
    figure: Figure
    columns: Sequence[str]
    numbers: Sequence[Sequence[Any]]


class Page:
    """A page in the making: it writes every figure as soon as it has it, so that none is kept."""

    def __init__(self, folder: Path, tell: Tell = lambda line: None) -> None:
        """Make the folder.

        Args:
            folder: Where ``report.html`` and ``figures/`` go.
            tell: Is told what is being made.
        """
        self.folder, self.tell, self._embedded = folder, tell, 0
        (folder / "figures").mkdir(parents=True, exist_ok=True)

    def add(self, drawing: FigureDrawing) -> dict[str, Any]:
        """Write a figure as PNG, PDF and CSV; what the page shows of it."""
        self.tell(f"figure {drawing.name}")
        name, figure = drawing.name, drawing.figure
        image, vectors = figures.encode(figure)
        write_atomic(self.folder / "figures" / f"{name}.png", image)
        write_atomic(self.folder / "figures" / f"{name}.pdf", vectors)
        write_atomic(self.folder / "figures" / f"{name}.csv", to_csv(drawing.columns, drawing.numbers))
        wide = float(figure.get_size_inches()[0]) > WIDE_INCHES
        return {
            "name": name,
            "label": visible(drawing.label, lines=False),
            "wide": wide,
            "first": False,
        } | self.image(image)

    def image(self, content: bytes) -> dict[str, Any]:
        """A picture within the page, as long as there is room."""
        self._embedded += len(content)
        room = self._embedded <= EMBEDDED_BYTES
        return {"image": base64.b64encode(content).decode() if room else ""}


def render(
    page: Page,
    title: str,
    rows: Rows,
    axes: Sequence[str],
    seeds: Sequence[int],
    theory: Callable[[str], Theory] = lambda metric: {},
    tables: Sequence[tuple[Rows, Sequence[str]]] = (),
    **sections: Any,
) -> Path:
    """Write ``report.html`` and its figures; returns the page.

    Args:
        page: Where they go.
        title: Of the page.
        rows: What the table and the sentences are of.
        axes: The axes that tell cells apart.
        seeds: Those that every cell is run with; those with rows when empty.
        theory: What theory says of a metric, by cell.
        tables: The rows, and their axes, that have a table of their own by generation; one of all when empty.
        sections: What else the page has (``report.html.jinja``); ``drawings`` are more figures,
            ``remarks`` more lines of the answer.
    """
    give_back()
    chosen = figures.chosen(rows)
    page.tell("numbers of the interactive figure")
    data = explorer(rows, axes, seeds, {**chosen.drawn, **chosen.same, **chosen.flat}, theory)
    give_back()  # what is free lies between what is not, and figures ask for blocks of other sizes
    first, shown = headline(rows), []
    for metric, label in chosen.drawn.items():
        drawing = figures.metric_drawing(rows, axes, metric, theory(metric), label, seeds)
        if drawing is not None:
            found = page.add(FigureDrawing(metric.replace("/", "-"), label, *drawing))
            shown.append(found | {"first": metric == first})
    shown += [page.add(drawing) for drawing in sections.pop("drawings", ())]
    give_back()  # figures refer to themselves
    scripts = [_asset("uplot.min.js"), _asset("explorer.js")] if data["metrics"] else []
    lines = [*answers(rows, axes, seeds), *sections.pop("remarks", ())]
    apart = tables or ((rows, axes),)
    summaries = [_summary(part, of, seeds) for part, of in apart]
    growing = [growth_table(part, of, seeds) for part, of in apart]
    counts = seed_counts(rows, axes, seeds)
    known: dict[str, Any] = dict.fromkeys(SECTIONS, ())
    chains = len({(chain.cell, chain.seed) for chain in rows.series(axes)})
    known |= {
        "critical": {"lines": ()},
        "populations": {"lines": ()},
        "variance": "",
        "study": "",
        "chains": chains,
        "total": len(rows),
    }
    content = _template(rows.names).render(
        experiment=visible(title, lines=False),
        style=_asset("report.css") + (_asset("uplot.min.css") if scripts else ""),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c"),
        figures=shown,
        chosen=chosen,
        answers=[visible(line, lines=False) for line in lines],
        summary=summaries[0],
        summaries=summaries,
        growths=[table for table in growing if table["lines"]],
        seeds=max(counts, default=0),
        one_seed=ONE_SEED,
        each=str(counts[0]) if counts[:1] == counts[-1:] else f"{counts[0]} to {counts[-1]}",
        rows=len(rows),
        diverged=int(rows.diverged.sum()),
        **{**known, **sections},
    )
    write_atomic(page.folder / "report.html", content.encode())
    page.tell("")
    return page.folder / "report.html"


def _summary(rows: Rows, axes: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """The table by generation with as many columns as there is room for: the last one matters most."""
    found = summary_table(rows, axes, seeds)
    # a heading is broken between its words
    heads = [max(name.split() or [""], key=len) for name in words(found["axes"])]
    cells = [[*line["cell"], *line["points"]] for line in found["lines"]]
    cells.append([*heads, *map(str, found["generations"])])
    widths = [GAP_PX + LETTER_PX * max(map(len, column)) for column in zip(*cells, strict=True)]
    before, each = sum(widths[: len(found["axes"])]), max(widths[len(found["axes"]) :], default=0)
    most = (ROOM_PX - before) // each if each else LEAST
    fits = len(found["generations"]) <= most
    return found if fits else summary_table(rows, axes, seeds, max(LEAST, most))


def _template(names: Collection[str]) -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_plain,
    )
    environment.filters |= {"words": words, "label": lambda metric: among(str(metric), names).title}
    environment.filters |= {"counted": counted, "noun": noun}
    text = (files("harness.reporting") / "report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)


def _plain(value: Any) -> Any:
    """Text without what a browser would obey: controls, and what turns the direction of text."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _asset(name: str) -> str:
    return (files("harness.reporting") / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """By which a page's policy knows the scripts that may run: no other text on it can be one."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
