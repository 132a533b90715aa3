"""The commands that queue SLURM jobs and end them: submit, cancel."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import terminal
from harness.cli.app import (
    DEFAULT_ROOT,
    Assignments,
    ConfigPath,
    Json,
    Root,
    app,
    existing_store,
    expanded,
    options_of,
    path,
    print_json,
    sets,
)
from harness.errors import InputError

if TYPE_CHECKING:
    from harness.launch.options import Options
    from harness.launch.slurm import Partition, Slurm
    from harness.launch.validate import Work
    from harness.store import Store
    from harness.study import Prepared


def _work(prepared: Prepared, store: Store, options: Options) -> Work:
    from harness.coordinator.scheduler import Capacity
    from harness.coordinator.shapes import shape_of
    from harness.inspection.planner import plan
    from harness.launch.validate import GangNeed, Work, cpus_per_node, problems_of_gangs

    configs = [cell.config for cell in prepared.study.cells]
    shapes = {shape_of(config, options.gpus > 0) for config in configs}
    gangs = {GangNeed(shape.ranks, shape.cpus, shape.gpus) for shape in shapes}
    longest = max(config.resources.checkpoint_s for config in configs)
    grace = prepared.study.grace_s
    work = Work(gangs, 0.0, longest, grace, 0)
    machine = Capacity(cpus_per_node(work, options), options.gpus)
    if problems := problems_of_gangs(work, options):
        raise InputError("\n".join(problems))
    found = plan(prepared, store, [machine] * options.nodes)
    return Work(gangs, found.wall_s, longest, grace, found.generations_unique - found.generations_stored)


Text = str | None
PartitionOption = Annotated[Text, typer.Option("--partition", "-p", help="Partition.")]
AccountOption = Annotated[Text, typer.Option("--account", "-A", help="Account.")]
QosOption = Annotated[Text, typer.Option("--qos", "-q", help="Quality of service.")]
NodesOption = Annotated[int | None, typer.Option("--nodes", "-N", help="Nodes of each job.")]
GpusPerNodeOption = Annotated[Text, typer.Option(metavar="[TYPE:]N", help="GPUs of each node.")]
CpusPerNodeOption = Annotated[
    int | None, typer.Option(help="CPUs of each node; what its gangs need when absent.")
]
MemOption = Annotated[Text, typer.Option(help="Memory of each node, as 64G.")]
TimeOption = Annotated[Text, typer.Option("--time", "-t", help="Time limit, as 4:00:00 or 1-12.")]
ConstraintOption = Annotated[Text, typer.Option("--constraint", "-C", help="Features of the nodes.")]
ExclusiveOption = Annotated[bool | None, typer.Option("--exclusive", help="Share no node with other jobs.")]
ArrayOption = Annotated[
    Text,
    typer.Option(
        "--array", "-a", metavar="N[%M]", help="N allocations that share the work, M at once at most."
    ),
]
DependencyOption = Annotated[Text, typer.Option("--dependency", "-d", help="As for sbatch.")]
MailUserOption = Annotated[Text, typer.Option(help="Whom SLURM tells of the end.")]
ReservationOption = Annotated[Text, typer.Option(help="A reservation.")]
SetupOption = Annotated[
    list[str] | None, typer.Option(help="A line of shell that makes the environment; repeatable.")
]
PythonOption = Annotated[
    Text, typer.Option(help="The interpreter that has the harness, as compute nodes see it.")
]
ExtraOption = Annotated[
    list[str] | None, typer.Option("--sbatch", metavar="--NAME=VALUE", help="Another option; repeatable.")
]
CacheOption = Annotated[
    Path | None, typer.Option(parser=path, metavar="PATH", help="The hub's cache that harness fetch fills.")
]
SignalSOption = Annotated[
    int | None, typer.Option(help="Seconds before the time limit at which work is saved.")
]
MaxRequeuesOption = Annotated[int | None, typer.Option(help="How often a job requeues itself at most.")]
SiteOption = Annotated[
    Path | None,
    typer.Option(
        parser=path,
        metavar="PATH",
        help="The lab's defaults; slurm/site.yaml when absent.",
        show_default=False,
    ),
]
JoinOption = Annotated[bool, typer.Option("--join", help="Add to the jobs that the experiment has.")]
LookOption = Annotated[
    bool, typer.Option("--look/--no-look", help="Have a compute node look for the store first.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the job script; queue and write nothing.")
]


@app.command(rich_help_panel="On a cluster")
def submit(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    partition: PartitionOption = None,
    account: AccountOption = None,
    qos: QosOption = None,
    nodes: NodesOption = None,
    gpus_per_node: GpusPerNodeOption = None,
    cpus_per_node: CpusPerNodeOption = None,
    mem: MemOption = None,
    time: TimeOption = None,
    constraint: ConstraintOption = None,
    exclusive: ExclusiveOption = None,
    array: ArrayOption = None,
    dependency: DependencyOption = None,
    mail_user: MailUserOption = None,
    reservation: ReservationOption = None,
    setup: SetupOption = None,
    python: PythonOption = None,
    extra: ExtraOption = None,
    cache: CacheOption = None,
    signal_s: SignalSOption = None,
    max_requeues: MaxRequeuesOption = None,
    site: SiteOption = None,
    join: JoinOption = False,
    look: LookOption = True,
    dry_run: DryRunOption = False,
    json_output: Json = False,
) -> None:
    """Run the grid on a SLURM cluster: one allocation, or an array of allocations that share the work.

    Example: harness submit study.yaml --partition gpu --nodes 2 --gpus-per-node 8 --time 12:00:00
    """
    from harness.launch.options import Options, make_options, read_site
    from harness.launch.slurm import Slurm
    from harness.launch.submit import Request, check_alone, new_folder, script
    from harness.launch.submit import submit as send
    from harness.launch.validate import check

    named = {name: value for name, value in locals().items() if name in Options.model_fields}
    options = make_options(read_site(site), named)
    slurm = Slurm()
    partitions = _partitions(slurm, dry_run)
    from harness.launch.allocation import TMP_VARIABLE
    from harness.store import Experiment, Store
    from harness.study import commit_data, prepare_study

    given = tuple(assignments or ())
    with tempfile.TemporaryDirectory(prefix="harness-") as scratch:
        variables = _hub(options) | ({TMP_VARIABLE: options.tmp} if options.tmp else {})
        if not options.network:
            _check_files(config, given, options, root)
        store = Store.read(root)
        prepared = prepare_study(config, given, store, Path(scratch))
        work = _work(prepared, store, options)
        remarks = check(work, options, partitions)
        _check_memory(prepared, options, partitions)
        experiment = Experiment(root, prepared.study.base.experiment)
        entered, python = prepared.study.source.track, options.python or sys.executable
        track = Path(entered.source.name) if entered else None
        request = Request(experiment.path, root.absolute(), config, given, python, variables, track)
        Store.check_writable(root)
        if partitions is not None:  # a dry run also works where there is no cluster
            check_alone(experiment.path, slurm, join)
        if dry_run:
            terminal.write(script(request, options, work, new_folder(experiment.path)))
            _remark(remarks)
            return
        commit_data(prepared, Store.open(root))
        submission, more = send(request, options, work, slurm, look)
        remarks += more
    folder = experiment.path / "slurm" / submission.folder
    if json_output:
        print_json({**asdict(submission), "folder": str(folder), "remarks": remarks})
        return
    _tell(submission.job, options, work, folder)
    _remark(remarks)
    same = shlex.join([str(config), *options_of(root, assignments)])
    terminal.show(f"`harness status {same}` shows it, `harness cancel {same}` ends it")


def _check_memory(prepared: Prepared, options: Options, partitions: Mapping[str, Partition] | None) -> None:
    """Compare what a single chain needs at least with the memory of a node, as far as that is known."""
    from harness.errors import ResourceError
    from harness.inventory.memory import check_memory
    from harness.launch.validate import node_memory

    limit = node_memory(options, partitions)
    if limit is None:
        return
    try:
        check_memory(prepared, options.gpus > 0, limit, options.nodes)
    except ResourceError as error:
        raise prepared.study.source.located(error) from None


def _tell(job: str, options: Options, work: Work, folder: Path) -> None:
    shape = f"array of {options.tasks} allocations" if options.array else "one allocation"
    terminal.show(
        f"job {job}: {shape}, {terminal.counted(options.nodes, 'node')} each, {work.left} generations to "
        f"compute (files: {folder})"
    )


def _partitions(slurm: Slurm, dry_run: bool) -> Mapping[str, Partition] | None:
    """The cluster's partitions; a dry run also works where there is no SLURM to ask."""
    from harness.launch.slurm import SlurmError

    try:
        return slurm.partitions() if slurm.here() or not dry_run else None
    except SlurmError as error:
        if not dry_run:
            raise
        _remark([f"not checked against the cluster: {error}"])
        return None


def _remark(remarks: Sequence[str]) -> None:
    for remark in remarks:
        terminal.show(f"note: {remark}", sys.stderr)


def _check_files(config: Path, given: Sequence[str], options: Options, root: Path) -> None:
    """Look for what the jobs need of the hub where they will look, and say how to fetch it."""
    from harness.fetch import missing_files

    if missing := missing_files(expanded(config, given, root)):
        cache = ["--cache", str(options.cache)] if options.cache else []
        fetch = shlex.join(["harness", "fetch", str(config), *sets(given), *cache])
        raise InputError("\n".join(missing).replace("harness fetch CONFIG", fetch))


def _hub(options: Options) -> dict[str, str]:
    """Let the hub's libraries see what the jobs will see, before they are imported.

    Returns what jobs export for that.
    """
    from harness.fetch import OFFLINE, cache_environment

    os.environ.update({} if options.network else OFFLINE)
    found = {} if options.network and options.cache is None else cache_environment(options.cache)
    os.environ.update(found)
    return found if options.network else {**found, **OFFLINE, "WANDB_MODE": "offline"}


@app.command(rich_help_panel="On a cluster")
def cancel(
    config: ConfigPath,
    assignments: Assignments = None,
    root: Root = DEFAULT_ROOT,
    job: Annotated[
        list[str] | None, typer.Option(help="Only this job or task, as 12 or 12_3; repeatable.")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="Do not wait until work is saved.")] = False,
    json_output: Json = False,
) -> None:
    """End the experiment's SLURM jobs; running ones save their work first.

    Example: harness cancel study.yaml
    """
    from harness.config.load import load_file
    from harness.launch.slurm import Slurm
    from harness.launch.submit import cancel as end
    from harness.store import Experiment

    name = str(load_file(config, tuple(assignments or ())).data.get("experiment"))
    slurm = Slurm()
    if not slurm.here():
        slurm.call("squeue")
    existing_store(root, writes=False)
    ended = end(Experiment(root, name).path, slurm, tuple(job or ()), now)
    if json_output:
        print_json({"cancelled": [task.job for task in ended]})
    elif not ended:
        terminal.show(f"experiment {name} has no jobs that wait or run")
    else:
        terminal.show(
            f"cancelled: {', '.join(task.job for task in ended)}"
            + ("" if now else "; running jobs save their work first")
        )
