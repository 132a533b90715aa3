"""From a submission to its job script; pure text.

The template is slurm/job.sh.jinja, for one allocation and for arrays alike.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from harness.launch.options import Options

TEMPLATE = "job.sh.jinja"
_PLACES = (Path(__file__).parent / "templates", Path(__file__).parents[2] / "slurm")


@dataclass(frozen=True)
class Job:
    """What a script needs to know besides the options.

    Attributes:
        experiment: Name of the jobs.
        folder: The submission's folder, which holds the script and the configuration.
        root: The store.
        directory: Where the jobs run, for relative paths in the configuration.
        python: The interpreter that has the harness.
        cpus: CPUs of every node.
        signal_s: Seconds before the limit at which the run is told.
        assignments: ``--set`` items.
        variables: To export, besides the options'; they say where the hub's cache is, and whether there is a
            network.
    """

    experiment: str
    folder: Path
    root: Path
    directory: Path
    python: str
    cpus: int
    signal_s: int
    assignments: Sequence[str]
    variables: Mapping[str, str]


@cache
def _templates() -> Environment:
    loader = FileSystemLoader([str(place) for place in _PLACES])
    # A script for a shell is not HTML; what goes into it is quoted for the shell below.
    return Environment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )  # noqa: S701


def render(job: Job, options: Options) -> str:
    """The job script."""
    arguments = [f"--set {shlex.quote(item)}" for item in job.assignments]
    if options.array:
        arguments.append(f"--idle-exit {options.idle_s:g}")
    variables = {**job.variables, **options.environment}
    template = _templates().get_template(TEMPLATE)
    text = template.render(
        sbatch=_sbatch(job, options),
        setup=options.setup,
        umask=options.umask,
        signal_s=job.signal_s,
        offline=not options.network,
        variables={name: shlex.quote(value) for name, value in variables.items()},
        python=shlex.quote(job.python),
        folder=shlex.quote(str(job.folder)),
        config=shlex.quote(str(job.folder / "config.yaml")),
        root=shlex.quote(str(job.root)),
        max_requeues=options.max_requeues,
        arguments=arguments,
    )
    return text.rstrip("\n") + "\n"


def _literal(folder: Path) -> str:
    """A folder as the beginning of SLURM's pattern of a log's name."""
    return f"{folder}/".replace("%", "%%")


def _sbatch(job: Job, options: Options) -> list[str]:
    """The ``#SBATCH`` lines; SLURM reads quotes in them as a shell does."""
    log = "%A_%a.log" if options.array else "%j.log"
    lines = [f"--job-name={job.experiment}"]
    named = ("partition", "account", "qos", "reservation", "constraint", "dependency")
    lines += [f"--{name}={shlex.quote(getattr(options, name))}" for name in named if getattr(options, name)]
    if options.array:
        count, _, limit = options.array.partition("%")
        lines.append(f"--array=0-{int(count) - 1}{'%' + limit if limit else ''}")
    lines += [f"--nodes={options.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={job.cpus}"]
    if options.gpus:
        lines.append(f"--gpus-per-node={options.gpus_per_node}")
    lines += [f"--{name}={getattr(options, name)}" for name in ("mem", "time") if getattr(options, name)]
    if options.exclusive:
        lines.append("--exclusive")
    if options.mail_user:
        lines += [
            f"--mail-user={options.mail_user}",
            f"--mail-type={options.mail_type or 'END,FAIL,REQUEUE'}",
        ]
    lines += options.extra
    lines += ["--requeue", "--open-mode=append", f"--signal=B:USR1@{job.signal_s}"]
    return [
        *lines,
        f"--chdir={shlex.quote(str(job.directory))}",
        f"--output={shlex.quote(_literal(job.folder) + log)}",
    ]
