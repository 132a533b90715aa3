"""The command that makes reference sets."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from harness import terminal
from harness.cli.app import (
    DEFAULT_ROOT,
    Json,
    Root,
    app,
    config_names,
    config_path,
    path,
    prepare,
    print_json,
)

reference = typer.Typer(
    help="Curated real text that studies and tracks can name.\n\n"
    "Example: harness reference build new.jsonl --to reference --licence CC-BY-4.0",
    no_args_is_help=True,
)
app.add_typer(reference, name="reference", rich_help_panel="A study")


@reference.command()
def build(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="As data.source: a name, hf:NAME, a file or a folder.")
    ],
    to: Annotated[Path, typer.Option("--to", parser=path, metavar="DIR", help="A new folder.")],
    licence: Annotated[
        str, typer.Option("--licence", "--license", metavar="TEXT", help="Of the text: a name or an address.")
    ],
    snapshot: Annotated[
        str | None, typer.Option(metavar="DAY", help="When the source was as it is; today when absent.")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="CONFIG",
            parser=config_path,
            autocompletion=config_names,
            help="A study with whose training text it is compared; repeatable.",
        ),
    ] = None,
    drop: Annotated[
        bool, typer.Option("--drop", help="Leave out documents that share 13 tokens in a row with it.")
    ] = False,
    text_field: Annotated[str, typer.Option(metavar="NAME", help="Field that holds the text.")] = "text",
    revision: Annotated[str | None, typer.Option(metavar="TEXT", help="Of hub data.")] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="One of the source's own splits; all text when absent.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
) -> None:
    """Make a reference set: real text with its date, licence and hash, and its overlap with training text.

    Name the folder DIR/text in data.source or evaluate.others: the hash of the text is in every key.

    Example: harness reference build new.jsonl --to reference --licence CC-BY-4.0 --against study.yaml
    """
    from harness.inspection.reference import Origin, snapshot_of
    from harness.inspection.reference import build as make

    origin = Origin(source, licence, snapshot_of(snapshot), text_field, revision, split)
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        studies = []
        for number, config in enumerate(against or ()):
            place = Path(scratch) / str(number)
            place.mkdir()
            studies.append(prepare(config, None, root, str(place))[0])
        about = make(origin, studies, drop, to)
    if json_output:
        print_json(about)
        return
    left = ", ".join(f"{count:,} {why}" for why, count in about["dropped"].items() if count)
    kept = f"{about['documents']:,} {terminal.noun(about['documents'], 'document')}"
    terminal.show(f"{kept}{f' (left out: {left})' if left else ''}: {to}")
    for found in about["overlap"]:
        shares = ", ".join(f"{found[n]:.2%} of {n}" for n in ("whole examples", "13-grams") if n in found)
        terminal.show(f"in the training text of {found['study']}: {shares or 'it fills no block'}")
    terminal.show(f"data.source or evaluate.others: {to / 'text'}, content {about['content']}")
