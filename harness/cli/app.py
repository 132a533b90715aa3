"""The application, and what its commands share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import __version__, terminal
from harness.errors import HarnessError, InputError
from harness.files import foreign, is_foreign, no_store, path_of
from harness.stop import Stop

if TYPE_CHECKING:
    from harness.config.grid import Study
    from harness.store import Store
    from harness.study import Prepared

EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED = 1, 2, 75
MAX_DAMAGE = 10
"""Damaged items that are named one by one."""

app = typer.Typer(
    help="Studies of model collapse: recursive training chains from one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def path(text: str | Path) -> Path:
    """A path with ``~`` for the home folder, which a shell leaves alone behind ``=``.

    Raises:
        InputError: Nobody has that name, or no file can have it.
    """
    try:
        return path_of(str(text))
    except ValueError as error:
        raise InputError(str(error)) from None


def config_path(text: str | Path) -> Path:
    """A study's file, or the name of one that comes with the harness where no file has it."""
    from harness.config.shipped import study_file  # not before: it reads the schema

    return study_file(str(path(text)), "CONFIG")


def config_names(incomplete: str) -> list[str]:
    """How a shell may go on with a study: shipped ones, and files of this folder.

    Empty where no shipped study is called so: then shells complete all files by themselves.
    """
    from harness.config.shipped import studies

    known = [name for name in studies() if name.startswith(incomplete)]
    files = [path.name for path in Path().glob("*.yaml") if path.name.startswith(incomplete)]
    return known and sorted(files) + known


def chain_names(context: typer.Context, incomplete: str) -> list[str]:
    """How a shell may go on with a chain's id: those that runs of the study have noted on the store."""
    from harness.config.source import read_source
    from harness.files import read_json
    from harness.store import Experiment

    # whatever has been typed so far: a shell is told of no mistake in it
    with contextlib.suppress(HarnessError, OSError, KeyError, TypeError, ValueError):
        # click does not go on behind an option that has no value yet: what is no option is left over
        config = context.params.get("config") or [*context.args, ""][0]
        name = read_source(config_path(config)).data["experiment"]
        root = context.params.get("root") or usual_root()
        chains = read_json(Experiment(root, name).path / "chains.json")
        return sorted(item["chain"] for item in chains if item["chain"].startswith(incomplete))
    return []


ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG",
        parser=config_path,
        autocompletion=config_names,
        help="The study's YAML file, or its name in harness list studies.",
        show_default=False,
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Set a field, or pin a grid axis; repeatable."),
]
Root = Annotated[
    Path, typer.Option("--root", envvar="HARNESS_ROOT", metavar="PATH", parser=path, help="The store.")
]
ChainName = Annotated[
    str,
    typer.Option(
        "--chain",
        metavar="ID",
        autocompletion=chain_names,
        help="A chain's id, or how it begins (`harness status CONFIG` lists them); of one chain not needed.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
JsonRows = Annotated[bool, typer.Option("--json", help="A JSON array of objects on standard output.")]
WatchOption = Annotated[
    float | None,
    typer.Option(min=1, metavar="SECONDS", help="Look again so often, until nothing is left to wait for."),
]
DEFAULT_ROOT = Path("runs")


def prepare(config: Path, assignments: list[str] | None, root: Path, scratch: str) -> tuple[Prepared, Store]:
    """The study, with the store opened for reading only."""
    from harness.store import Store
    from harness.study import prepare_study

    store = Store.read(root)
    # what cannot be looked into is told of by the store; of one that has lost its `format` there is still
    # something to tell
    with contextlib.suppress(OSError):
        if root.is_dir() and is_foreign(root) and not (root / "experiments").is_dir():
            raise foreign(root)
    return prepare_study(config, tuple(assignments or ()), store, Path(scratch)), store


def expanded(config: Path, assignments: Sequence[str] | None, root: Path | None = None) -> Study:
    """The study's cells, without its data; the store is asked only what it knows of what is gone.

    Args:
        config: Its file.
        assignments: ``--set`` items.
        root: The store; the usual one where a command takes none.
    """
    from harness.config.load import load_file
    from harness.data import noted

    return noted.expanded(load_file(config, tuple(assignments or ())), root or usual_root())


def usual_root() -> Path:
    """The store where none is named."""
    return path(os.environ.get("HARNESS_ROOT") or DEFAULT_ROOT)


def sets(assignments: Sequence[str] | None) -> list[str]:
    """Assignments as the options that they were given with."""
    return [word for assignment in assignments or () for word in ("--set", assignment)]


def options_of(root: Path, assignments: list[str] | None) -> list[str]:
    """The options with which another command finds the same study, beyond what it takes by itself."""
    found = [] if root == usual_root() else ["--root", str(root)]
    return found + sets(assignments)


def print_json(value: Any) -> None:
    """One JSON value on a line of standard output."""
    terminal.show(json.dumps(value, ensure_ascii=not terminal.has_unicode(sys.stdout), allow_nan=False))


def say(line: str) -> None:
    """A line of progress, apart from what a command prints."""
    terminal.show(line, sys.stderr)


def progress() -> Callable[[str], None]:
    """What tells what is being made: one line of a terminal, over and over; nothing elsewhere.

    An empty text takes the line away.
    """
    if not sys.stderr.isatty():
        return lambda text: None
    return lambda text: terminal.write(f"\r\x1b[K{terminal.visible(text)[:78]}", sys.stderr)


def existing_store(root: Path, writes: bool) -> Any:
    """The store at a root, which must be there; opened for writing only where that is needed."""
    from harness.store import Store

    if not (root / "format").exists():
        raise no_store(root)
    return Store.open(root) if writes else Store.read(root)


def tell_absence(prepared: Prepared, store: Store) -> None:
    """Say that a store has no record of a study, and what else it has: it may be the wrong one.

    Nothing is said where records were left out as damaged, which `tell_damage` names.
    """
    from harness.store.experiment import nothing_of

    if not store.trouble:
        say(nothing_of(store.root, prepared.study.base.experiment))


def tell_damage(store: Store) -> int:
    """Say what a command that only reads has met and left out; returns its exit code."""
    reasons = Counter(store.trouble.values())  # a pack is the same reason for all that is in it
    for number, (reason, count) in enumerate(reasons.items()):
        if number == MAX_DAMAGE:
            terminal.show(f"and {len(reasons) - number} more", sys.stderr)
            break
        terminal.show(f"left out{f' ({count:,} records)' if count > 1 else ''}: {reason}", sys.stderr)
    if store.trouble:
        terminal.show(
            "the next harness run makes what is damaged again; harness doctor --store lists everything",
            sys.stderr,
        )
    return EXIT_FAILED if store.trouble else 0


def signals(stop: Stop) -> Callable[[], None]:
    """A function that makes signals set ``stop``.

    After a second SIGINT nothing is saved, a third interrupts whatever goes on.
    """

    def heard(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            if stop.at_once:
                raise KeyboardInterrupt
            stop.at_once = True
        stop.set()

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            # nohup asks not to hear it
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, heard)

    return listen


def _version(value: bool) -> None:
    if value:
        terminal.show(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
