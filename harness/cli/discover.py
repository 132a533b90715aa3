"""The commands that say what there is: list, show, init."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated

import typer

from harness import terminal
from harness.cli.app import Assignments, ConfigPath, Json, JsonRows, app, expanded, path, print_json, say
from harness.cli.tables import print_rows
from harness.errors import InputError


def list_kinds(incomplete: str) -> list[str]:
    """How a shell may go on with a kind of list."""
    from harness.inspection.components import LISTS

    return [name for name in LISTS if name.startswith(incomplete)]


def learner_names(incomplete: str) -> list[str]:
    """How a shell may go on with a learner."""
    from harness.inspection.components import learners

    return [name for name in learners() if name.startswith(incomplete)]


@app.command("list", rich_help_panel="A study")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="KIND",
            autocompletion=list_kinds,
            help="learners, objectives, filters, regimes, metrics, presets, data, tasks, trackers, "
            "studies or tracks; says what each is when absent.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonRows = False,
) -> None:
    """List what a configuration can name, with a line each.

    Example: harness list learners
    """
    from harness.inspection.components import BROKEN, KINDS, LISTS

    if what is None:
        kinds = [{"kind": name, "what": line} for name, line in KINDS.items()]
        print_json(kinds) if json_output else print_rows(kinds[0], (row.values() for row in kinds))
        return
    if what not in LISTS:
        close = difflib.get_close_matches(what, LISTS, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"KIND: found {terminal.shown(what)}, allowed: {', '.join(LISTS)}{hint}")
    rows = LISTS[what]()
    if json_output:
        print_json(rows)
    else:
        print_rows(rows[0], (map(str, row.values()) for row in rows))
    for kind, reason in BROKEN.get(what, {}).items():
        say(f"{kind} is left out: {terminal.cut(reason)}")


@app.command(rich_help_panel="A study")
def show(
    config: ConfigPath,
    assignments: Assignments = None,
    number: Annotated[int, typer.Option("--cell", min=1, metavar="N", help="Which cell of the grid.")] = 1,
    json_output: Json = False,
) -> None:
    """Print every value that a cell has, and where each comes from; reads no data and starts nothing.

    Example: harness show quickstart --cell 3
    """
    from harness.inspection.resolved import as_text, resolved

    study = expanded(config, assignments)
    cells = [found for found in study.cells if not found.teacher]
    if number > len(cells):
        raise InputError(f"--cell: found {number}, allowed: 1 to {len(cells)}")
    values = resolved(study, number - 1)
    if json_output:
        print_json(
            {
                found.path: {"value": found.value, "from": found.origin}
                for found in values
                if not found.is_section
            }
        )
        return
    # a field that this cell's section does not have has no value here
    about = " ".join(f"{axis}={value}" for axis, value in cells[number - 1].axes.items() if value is not None)
    terminal.show(
        f"# cell {number} of {len(cells)}{f': {about}' if about else ''}; lines are those of {config}"
    )
    seeds = study.seeds if len(study.seeds) <= 10 else (*study.seeds[:3], "...", study.seeds[-1])
    if len(study.seeds) > 1:
        terminal.show(f"# seeds: {', '.join(map(str, seeds))}")
    terminal.show(as_text(values), end="")


@app.command(rich_help_panel="A study")
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the study, and of its file NAME.yaml.")],
    learner: Annotated[
        str,
        typer.Option(autocompletion=learner_names, help="Whose chains it is about (harness list learners)."),
    ] = "language_model",
    out: Annotated[
        Path | None,
        typer.Option(parser=path, metavar="FILE", help="Where to write it; NAME.yaml here when absent."),
    ] = None,
) -> None:
    """Write a study to start from.

    A small grid that runs as it is, and every field that a learner has, commented.

    Example: harness init forgetting --learner gaussian
    """
    from harness.files import write_atomic
    from harness.inspection.starter import starter

    name = name.removesuffix(".yaml")
    text, to_fill = starter(name, learner)
    place = Path(f"{name}.yaml") if out is None else out
    if place.exists():
        raise InputError(
            f"{place} exists, and is left as it is; choose another name, or another file with --out"
        )
    if not place.absolute().parent.is_dir():
        raise InputError(f"--out: the folder {place.absolute().parent} does not exist")
    write_atomic(place, text.encode())
    first = f"fill in {' and '.join(to_fill)}; then " if to_fill else ""
    terminal.show(f"{place}: {first}`harness plan {place}` says what it costs, `harness run {place}` runs it")
