"""The commands of the leaderboard: entries of tracks from a store, and the pages that rank them."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import terminal
from harness.cli.app import (
    DEFAULT_ROOT,
    EXIT_FAILED,
    Assignments,
    ConfigPath,
    JsonRows,
    Root,
    app,
    existing_store,
    path,
    prepare,
    print_json,
    tell_damage,
)
from harness.errors import InputError
from harness.imports import arrow_gives_back

if TYPE_CHECKING:
    from harness.board.entry import Entry

board = typer.Typer(
    help="Entries of tracks, and the board that ranks them.\n\n"
    "Example: harness leaderboard add entry.yaml --to board, then harness leaderboard build board",
    no_args_is_help=True,
)
app.add_typer(board, name="leaderboard", rich_help_panel="Results")


@board.command()
def add(
    config: ConfigPath,
    to: Annotated[Path, typer.Option("--to", parser=path, metavar="DIR", help="The folder of entries.")],
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    mitigation: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this one; repeatable. All of the study when absent."),
    ] = None,
    json_output: JsonRows = False,
) -> None:
    """Compute entries of a track from what a store has, and add them to a folder.

    Example: harness leaderboard add entries.yaml --to board
    """
    from harness.board.entry import make_entries, track_of, write_entry
    from harness.config.mitigations import AXIS
    from harness.terminal import nearest, shown

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        existing_store(root, writes=False)
        prepared, store = prepare(config, assignments, root, scratch)
        track = track_of(prepared)
        names = [str(cell.axes[AXIS]) for cell in prepared.study.cells if not cell.teacher]
        names = [name for name in names if track.controlled(name) is None]
        for name in mitigation or ():
            if name not in names:
                allowed = f"allowed: {', '.join(names)}{nearest(name, names)}"
                raise InputError(f"--mitigation: found {shown(name)}, {allowed}")
        arrow_gives_back()
        # all before any is written: a study that breaks a rule adds nothing
        entries = make_entries(prepared, store, mitigation or names)
        written = [(entry, write_entry(entry, to)) for entry in entries]
    for entry, place in written:
        if not json_output:
            whole = "" if entry.is_replicated else " (unreplicated: not all seeds of the track are there)"
            terminal.show(f"{entry.mitigation}: {place}{whole}")
    if json_output:
        print_json([{"mitigation": entry.mitigation, "path": str(place)} for entry, place in written])
    raise typer.Exit(tell_damage(store))


@board.command()
def verify(
    entries: Annotated[
        list[Path],
        typer.Argument(
            parser=path,
            metavar="ENTRY...",
            help="Files of entries; verifications that lie beside them are passed over.",
        ),
    ],
    root: Root = DEFAULT_ROOT,
    replay: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Run this seed again, in a store of its own, and compare."),
    ] = None,
) -> None:
    """Compute every number of entries again from the artifacts in a store, or by running a seed again.

    What came of it, who did it, where and with which versions, is kept in a file beside each entry.

    Example: harness leaderboard verify board/digits/none-0a1b2c3d-0123456789ab.json --replay 0
    """
    from harness.board.checked import SUFFIX
    from harness.board.entry import read_entry

    # a pattern of a shell matches what an earlier verification has left beside an entry, too
    places = [place for place in entries if not place.name.endswith(SUFFIX)]
    if not places:
        raise InputError(f"ENTRY: found only verifications ({terminal.listed(list(map(str, entries)))})")
    known = [(place, read_entry(place)) for place in places]  # all, before a seed of any is run
    if replay is None:
        existing_store(root, writes=False)
    good = [_verify(found, place, root, replay) for place, found in known]
    raise typer.Exit(0 if all(good) else EXIT_FAILED)


def _verify(found: Entry, place: Path, root: Path, replay: int | None) -> bool:
    """Verify one entry, say what came of it and keep it; whether it is good."""
    from harness.board.checked import verification
    from harness.board.immutable import write_beside
    from harness.board.verify import replayed, verified

    outcome = verified(found, root) if replay is None else replayed(found, replay)
    for line in outcome.lines:
        terminal.show(line)
    terminal.show(f"{place.name}: {outcome.verdict}")
    try:
        terminal.show(f"kept in {write_beside(verification(found, replay, outcome), place)}")
    except OSError as error:  # of somebody else's board the answer is worth having all the same
        terminal.show(f"not kept: {place.parent} cannot be written: {error.strerror}", sys.stderr)
    return outcome.good


@board.command()
def build(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="DIR", help="The folder of entries.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=path, metavar="DIR", help="The folder of the pages; DIR when absent."),
    ] = None,
) -> None:
    """Rank the entries in a folder, and write the board as pages that need no server and no network.

    Example: harness leaderboard build board
    """
    from harness.board.build import build_site

    out = out or folder
    for line in list(build_site(folder, out, answers=True)):
        terminal.show(line)
    terminal.show(f"board: {out / 'index.html'}")


@board.command()
def serve(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="DIR", help="The folder of the pages.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
) -> None:
    """Show a board in a browser on this machine, and to nobody else, until Ctrl-C.

    Example: harness leaderboard serve board
    """
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    if not (folder / "index.html").is_file():
        raise InputError(f"{folder} has no index.html; harness leaderboard build makes one")
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError as error:
        raise InputError(f"--port: {port} cannot be used: {error.strerror}") from None
    terminal.show(f"http://127.0.0.1:{server.server_port}/")
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
