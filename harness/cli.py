"""The commands: they turn errors into messages and exit codes, and wire the rest together.

Nothing heavy is imported before a command runs, so ``--help`` is quick and needs neither ray nor torch.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from harness import __version__, slurm_commands
from harness.coordinator.stop import Stop
from harness.errors import GangError, HarnessError, InputError, ResourceError

if TYPE_CHECKING:
    from harness.store import Store
    from harness.study import Prepared

EXIT_FAILED, EXIT_INPUT, EXIT_STOPPED = 1, 2, 75

app = typer.Typer(
    help="Studies of model collapse: recursive training chains from one YAML file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="The study's YAML file.", show_default=False)]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Set a field, or pin a grid axis; repeatable.")
]
Root = Annotated[Path, typer.Option("--root", envvar="HARNESS_ROOT", help="The store.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DEFAULT_ROOT = Path("runs")


def _prepare(config: Path, assignments: list[str] | None, root: Path, scratch: str) -> tuple[Prepared, Store]:
    """The study, with the store opened for reading only."""
    from harness.store import Store
    from harness.study import prepare_study

    store = Store.read(root)
    return prepare_study(config, tuple(assignments or ()), store, Path(scratch)), store


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def _say(line: str) -> None:
    """A line of progress, apart from what a command prints."""
    print(line, file=sys.stderr, flush=True)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
def run(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
    address: Annotated[str | None, typer.Option(help="A running Ray to join; without it one is started here.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Run on all nodes of the SLURM allocation that this is in.")] = False,
    idle_exit: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="End once others have computed all that is left for so long.")
    ] = None,
) -> None:
    """Run the grid, or what is left of it."""
    if slurm and address is not None:
        raise InputError("--slurm starts a Ray on the allocation, --address joins one that runs; give one of them")
    stop = Stop()
    listen = _signals(stop)
    listen()
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, _ = _prepare(config, assignments, root, scratch)
        if address is None and not slurm:
            _check_this_machine(prepared)
        job = slurm_commands.Job(prepared, root) if slurm else None  # before ray is imported, which then reads how to log in
        from harness.coordinator.cluster import Place
        from harness.coordinator.display import make_display
        from harness.coordinator.session import run_study

        def place() -> AbstractContextManager[Place]:
            return job.place() if job else nullcontext(Place(address))

        try:
            summary, warnings = run_study(
                prepared, root, prepared.study.source, place, lambda: make_display(json_output), stop, listen, idle_exit
            )
        except GangError as error:  # nothing was computed yet, and another try may find better machines
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(EXIT_STOPPED) from None
        if job:
            job.ended(summary)
    for warning in warnings:
        print(f"warning: W&B: {warning}", file=sys.stderr)
    for branch, reason in summary.failures:
        print(f"failed: branch {branch}: {reason}", file=sys.stderr)
    names = ("chains_complete", "chains_failed", "generations_computed", "generations_reused", "wall_s")
    found = {name: getattr(summary, name) for name in names}
    if json_output:
        _print_json(found)
    else:
        print(", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in found.items()))
        if summary.stopped:
            because = f" ({summary.reason})" if summary.reason else ""
            print(f"stopped early with work left{because}; run the same command again")
    raise typer.Exit(summary.exit_code)


def _check_this_machine(prepared: Prepared) -> None:
    """Refuse a gang with more threads than this machine has CPUs, before anything is started or written (Ray finds the GPUs)."""
    from harness.coordinator.base import shape_of
    from harness.coordinator.cluster import check_feasible, usable_cpus
    from harness.coordinator.scheduler import Capacity

    shapes = {replace(shape_of(cell.config, False), gpus=0) for cell in prepared.study.cells}
    try:
        check_feasible(shapes, [Capacity(usable_cpus(), 0)])
    except ResourceError as error:
        raise prepared.study.source.located(error) from None


def _signals(stop: Stop) -> Callable[[], None]:
    """A function that makes signals set ``stop``; after a second SIGINT nothing is saved, a third interrupts whatever goes on."""

    def heard(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            if stop.at_once:
                raise KeyboardInterrupt
            stop.at_once = True
        stop.set()

    def listen() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, heard)

    return listen


@app.command()
def plan(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
    nodes: Annotated[int, typer.Option(min=1, help="Machines of the simulated run.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="GPUs of each; 0 for a machine like this one.")] = 0,
) -> None:
    """Say what the grid is, what the store has of it, and what the rest will cost; writes nothing."""
    from harness.coordinator.base import shape_of
    from harness.coordinator.cluster import check_feasible, usable_cpus
    from harness.coordinator.planner import plan as make_plan
    from harness.coordinator.scheduler import Capacity

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = _prepare(config, assignments, root, scratch)
        # On GPU machines the GPUs are what runs out; a CPU is taken to be there for every thread that a rank asks for.
        threads = max(cell.config.resources.threads for cell in prepared.study.cells)
        cpus = gpus_per_node * threads if gpus_per_node else usable_cpus()
        machines = [Capacity(cpus, gpus_per_node)] * nodes
        try:
            check_feasible({shape_of(cell.config, gpus_per_node > 0) for cell in prepared.study.cells}, machines)
        except ResourceError as error:
            raise prepared.study.source.located(error) from None
        found = make_plan(prepared, store, machines)
    if json_output:
        _print_json(asdict(found))
        return
    from harness.coordinator.display import duration

    print(f"{found.experiment}: {found.cells} cells, {found.chains} chains")
    print(
        f"generations     {found.generations_requested} asked for, {found.generations_unique} after sharing "
        f"({found.fits_unique} fits), "
        f"{found.generations_stored} in the store, {found.generations_unique - found.generations_stored} to compute"
    )
    for shape in found.shapes:
        device = f"{shape['gpus']} GPU" if shape["gpus"] else f"{shape['cpus']} CPU"
        print(
            f"gang            {shape['ranks']} rank(s) x {device}, {shape['cells']} cells, "
            f"about {shape['memory_per_rank_bytes'] / 2**30:.2f} GiB of model and activations a rank"
        )
    print(f"device-hours    {found.device_hours:.2f} ({found.throughput} throughput)")
    print(f"disk            {found.disk_bytes / 2**20:.1f} MiB when complete")
    print(
        f"wall time       {duration(found.wall_s)} on {nodes} machine(s), "
        f"gangs idle or starting {100 * found.idle_share:.0f} % of it"
    )


@app.command()
def status(config: ConfigPath, assignments: Assignments = None, root: Root = DEFAULT_ROOT, json_output: Json = False) -> None:
    """Say what is committed, running, waiting and failed; reads only the store."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.coordinator.status import chain_states
    from harness.store import Experiment

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = _prepare(config, assignments, root, scratch)
        states = chain_states(prepared, store)
        name = prepared.study.base.experiment
        jobs, problem = slurm_commands.find_jobs(Experiment(store.root, name).path)
    if json_output:
        found = {"experiment": name, "chains": [asdict(state) for state in states], "jobs": slurm_commands.jobs_json(jobs)}
        _print_json(found)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("chain", *prepared.study.columns, "seed", "generations", "state"):
        table.add_column(name)
    for state in states:
        axes = [str(state.axes.get(name, "")) for name in prepared.study.columns]
        cells = [state.chain, *axes, str(state.seed), f"{state.committed}/{state.total}", f"{state.state} {state.detail}".strip()]
        table.add_row(*(Text(cell) for cell in cells))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)
    counts: dict[str, int] = {}
    for state in states:
        counts[state.state] = counts.get(state.state, 0) + 1
    print(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    slurm_commands.print_jobs(jobs, problem)


app.command()(slurm_commands.submit)
app.command()(slurm_commands.cancel)


@app.command()
def explain(
    config: ConfigPath,
    chain: Annotated[str, typer.Option(help="A chain's id, or how it begins (see status).", show_default=False)],
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    json_output: Json = False,
) -> None:
    """Say of every generation of a chain why it will run: new, failed, damaged, or which field of which generation changed."""
    from harness.coordinator.explain import ABSENT, Explainer, find_chain

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = _prepare(config, assignments, root, scratch)
        wanted = find_chain(prepared, chain)
        found = Explainer(prepared, store).explain(wanted)
    if json_output:
        _print_json({"chain": wanted.id, "generations": [asdict(item) for item in found]})
        return
    print(f"chain {wanted.id}")
    for item in found:
        print(f"generation {item.generation}: {item.reason}: {item.detail}")
        for difference in item.differences:
            place = "" if difference.generation == item.generation else f"generation {difference.generation}: "
            stored, wished = (value if value == ABSENT else json.dumps(value) for value in (difference.stored, difference.wanted))
            print(f"    {place}{difference.field}: {stored} (stored) -> {wished}")


def _existing_store(root: Path, writes: bool) -> Any:
    """The store at a root, which must be there; opened for writing only where that is needed."""
    from harness.store import Store

    if not (root / "format").exists():
        raise InputError(f"--root {root} is not a store of the harness")
    return Store.open(root) if writes else Store.read(root)


@app.command()
def doctor(
    root: Root = DEFAULT_ROOT,
    store_only: Annotated[
        bool, typer.Option("--store", help="Check every item of the store against its checksums, and nothing else.")
    ] = False,
    repair: Annotated[bool, typer.Option(help="With --store: set damaged items aside; the next run computes them again.")] = False,
    json_output: Json = False,
) -> None:
    """Check this machine, or all nodes of the SLURM job; with --store, the store instead. Exit code 1 where something fails."""
    if store_only:
        _examine_store(root, repair, json_output)
        return
    if repair:
        raise InputError("doctor: --repair goes with --store")
    from harness.launch.doctor.examination import examine
    from harness.launch.doctor.table import collect, show, summary

    checks = collect(examine(root))
    if json_output:
        _print_json(summary(checks))
    else:
        show(checks)
    raise typer.Exit(EXIT_FAILED if any(check.severity == "failure" for check in checks) else 0)


def _examine_store(root: Path, repair: bool, json_output: bool) -> None:
    """The store: damage, missing pieces, what killed processes have left; exit code 1 where something is damaged."""
    from harness.store import Leases
    from harness.store.health import examine

    store = _existing_store(root, writes=repair)
    findings = list(examine(store, Leases(store.root, None), repair))
    damage = sum(finding.severity == "damage" for finding in findings)
    if json_output:
        _print_json({"damage": damage, "findings": [asdict(finding) for finding in findings]})
    else:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for name in ("", "where", "what", "remedy"):
            table.add_column(name, overflow="fold")
        for finding in findings:
            table.add_row(finding.severity, *(Text(text) for text in (finding.where, finding.what, finding.remedy)))
        Console(soft_wrap=not sys.stdout.isatty()).print(table)
        print(f"{damage} damaged" if damage else "no damage")
    raise typer.Exit(EXIT_FAILED if damage else 0)


@app.command()
def gc(
    root: Root = DEFAULT_ROOT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    damaged: Annotated[bool, typer.Option(help="Also remove what was set aside as damaged.")] = False,
    json_output: Json = False,
) -> None:
    """Free weights and work that no experiment on the root needs; records and corpora always stay."""
    from harness.store import Leases
    from harness.store.health import collect

    store = _existing_store(root, writes=not dry_run)
    freed = collect(store, Leases(store.root, None), dry_run, damaged)
    if json_output:
        _print_json(asdict(freed))
        return
    size = 2**20
    print(
        f"{'would free' if dry_run else 'freed'}: weights of {freed.weights} fits ({freed.weights_bytes / size:,.1f} MiB), "
        f"unfinished work of {freed.work} keys ({freed.work_bytes / size:,.1f} MiB), {freed.leases} leases, "
        f"{freed.damaged} damaged items ({freed.damaged_bytes / size:,.1f} MiB)"
    )


@app.command()
def export(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    form: Annotated[str, typer.Option("--format", help="csv, json or parquet.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="The file; standard output when absent.")] = None,
    provenance: Annotated[bool, typer.Option(help="Add how, where and when.")] = False,
) -> None:
    """Write the tidy table of records, one row per chain and generation."""
    from harness.reporting import ledger

    if form not in ledger.FORMATS:
        raise InputError(f"--format: found {form!r}, allowed: {', '.join(ledger.FORMATS)}")
    if out is not None and not out.absolute().parent.is_dir():
        raise InputError(f"--out: the folder {out.absolute().parent} does not exist")
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, store = _prepare(config, assignments, root, scratch)
        part = Path(scratch) / "export"
        ledger.write(ledger.rows(prepared, store, provenance), form, part)
        content = part.read_bytes()
    if out is None:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
        return
    from harness.files import write_atomic

    try:
        write_atomic(out.absolute(), content)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror}") from None


@app.command()
def sync(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    watch: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="Look again so often until all chains are complete and sent.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Mirror what is committed to W&B, one run per chain; run it as often as you like, while jobs run or afterwards."""
    from harness.coordinator.sync import describe
    from harness.coordinator.sync import sync as send

    stop = Stop()
    _signals(stop)()
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, _ = _prepare(config, assignments, root, scratch)
        done = send(prepared, root, stop, watch, _say)
    _print_json(done.to_json()) if json_output else print(describe(done))
    raise typer.Exit(done.exit_code)


@app.command()
def fetch(
    config: ConfigPath,
    assignments: Assignments = None,
    cache: Annotated[
        Path | None, typer.Option(help="The shared cache; becomes HF_HOME. $HF_HOME or the library's own when absent.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Bring every model, tokenizer and data set that the grid needs from the hub into a cache, for jobs without a network."""
    from harness.config.grid import expand
    from harness.config.load import load_file
    from harness.errors import DataError
    from harness.fetch import describe
    from harness.fetch import fetch as bring

    study = expand(load_file(config, tuple(assignments or ())))
    try:
        found = bring(study, cache, _say)
    except DataError as error:
        raise study.source.located(error) from None
    if json_output:
        _print_json({"items": [item.to_json() for item in found]})
        return
    for item in found:
        print(describe(item))
    print(f"{len(found)} items, {sum(item.bytes for item in found) / 2**20:.1f} MiB" if found else "nothing of the hub is needed")


@app.command()
def report(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    out: Annotated[Path | None, typer.Option(help="Folder; experiments/NAME/report/ in the store when absent.")] = None,
) -> None:
    """Write a self-contained HTML page with curves, intervals and samples; figures as PNG and PDF beside it."""
    from harness.reporting import ledger
    from harness.reporting.claims import describe, judge
    from harness.reporting.report import build, summary_table
    from harness.store import Experiment, Store

    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        prepared, _ = _prepare(config, assignments, root, scratch)
        store = Store.open(root)
        rows = ledger.rows(prepared, store)
        folder = out or Experiment(store.root, prepared.study.base.experiment).path / "report"
        try:
            page = build(prepared, store, rows, folder)
        except OSError as error:
            raise InputError(f"--out: {folder} cannot be written: {error.strerror}") from None
        verdicts = [describe(found) for found in judge(prepared, rows)]
    width = shutil.get_terminal_size((120, 24)).columns - 10 * len(prepared.study.columns)
    _print_table(summary_table(rows, prepared.study.columns, most=max(3, min(11, width // 20))))
    _print_verdicts(verdicts)
    print(f"report: {page}")


def _print_verdicts(verdicts: list[dict[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not verdicts:
        return
    table = Table(title="claims", title_justify="left", box=None, pad_edge=False)
    for name in ("verdict", "wanted", "found", "claim", "source"):
        table.add_column(name, overflow="fold")
    for item in verdicts:
        verdict = f"{item['verdict']} ({item['reason']})" if item["reason"] else item["verdict"]
        table.add_row(*(Text(text) for text in (verdict, item["wanted"], item["found"], item["claim"], item["source"])))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def _print_table(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if summary["metric"] is None:
        print("nothing has been committed yet")
        return
    table = Table(title=f"{summary['metric']} by generation", title_justify="left", box=None, pad_edge=False)
    for axis in summary["axes"]:
        table.add_column(axis.rpartition(".")[2], min_width=min(8, len(axis)), overflow="fold")
    for generation in summary["generations"]:
        table.add_column(str(generation), justify="right", no_wrap=True)
    for line in summary["lines"]:
        table.add_row(*(Text(text) for text in (*line["cell"], *line["points"])))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def main() -> None:
    """The console script: every error is one message and an exit code, never a traceback."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT) from None
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(EXIT_FAILED) from None
    except OSError as error:
        from harness.coordinator.failures import classify

        kind, message = classify(error)
        if kind != "store":
            _defect(error)
        print(f"error: {message}; nothing that was committed is lost: make room, and run the command again", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
    except KeyboardInterrupt:
        print("interrupted; nothing committed is lost, run the same command again", file=sys.stderr)
        raise SystemExit(EXIT_STOPPED) from None
    except Exception as error:
        _defect(error)


def _defect(error: Exception) -> NoReturn:
    """Something that should not happen: the details go to a file."""
    path = Path(tempfile.mkstemp(prefix="harness-error-", suffix=".log")[1])
    path.write_text(traceback.format_exc(), encoding="utf-8")
    print(f"error: this is a defect of the harness: {type(error).__name__}: {error} (details: {path})", file=sys.stderr)
    raise SystemExit(EXIT_FAILED) from None


if __name__ == "__main__":
    main()
