"""What is asked of SLURM: the options of ``harness submit``, and the lab's defaults from a site file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.config.reading import join
from harness.errors import ConfigError, InputError, InputProblem, reason_of
from harness.section import PositiveInt
from harness.terminal import shown

SITE = Path("slurm/site.yaml")
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")
_MEMORY = re.compile(r"(\d+)([KMGT]?)B?", re.IGNORECASE)
_WORD = r"^[^\s#'\"`$\\;&|<>]+$"
"""A value of an ``#SBATCH`` line: one word, with nothing that a shell reads."""

_ALLOWED = {
    "gpus_per_node": "a number, or TYPE:NUMBER",
    "python": "an absolute path",
    "umask": "three octal digits, such as 0002",
    "tmp": "an absolute path of letters, digits and ._/-",
}


def _instead(field: str) -> str:
    return f"give {field} in a site file, or --{field.replace('_', '-')}"


_SAME = (
    *("partition", "account", "qos", "reservation", "constraint", "dependency"),
    *("array", "nodes", "gpus-per-node", "mem", "time"),
)
_OWN = {
    **{name: _instead(name.replace("-", "_")) for name in _SAME},
    "cpus-per-task": _instead("cpus_per_node"),
    "signal": _instead("signal_s"),
    **dict.fromkeys(("requeue", "no-requeue"), _instead("max_requeues")),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "tasks-per-node"), "every node has one task"),
    "job-name": "jobs are found by the experiment's name",
    **dict.fromkeys(("output", "error", "open-mode"), "logs lie with the submission"),
    **dict.fromkeys(("chdir", "workdir"), "jobs run where `harness submit` does"),
    "clusters": "jobs of another cluster are not found again",
    "test-only": "`harness submit --dry-run` shows the script",
    **dict.fromkeys(("wait", "wrap", "parsable", "help", "usage", "version"), "the job's id is read"),
}
"""Options of ``sbatch`` that a job script or the call has already, or with which no job's id is printed; why,
or what there is instead."""
_WHOLE = frozenset({"gpus"})
"""Options that are the beginning of one in `_OWN`; any other beginning sbatch takes for that one."""
_LETTERS = dict(
    zip(
        "pAqCdaNtcnJoeDMWhV",
        "partition account qos constraint dependency array nodes time cpus-per-task ntasks job-name output "
        "error chdir clusters wait help version".split(),
        strict=True,
    )
)
_FLAGS = {"extra": "--sbatch"}
"""Options of the command line that have another name than their field."""
_TYPES = {
    "tuple_type": "a list of lines",
    "dict_type": "NAME: VALUE, a line each",
    "int_parsing": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "path_type": "a path",
    "string_type": "one word",
}
_LIMITS = {"greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least")}
"""Kinds of errors of pydantic's: what is allowed."""
_FROM_ENVIRONMENT = ("partition", "account", "qos", "reservation", "constraint")
"""Options that people set for all their jobs, as ``SBATCH_ACCOUNT`` and so on."""

Word = Annotated[str, Field(pattern=_WORD, max_length=200)]


def parse_time(text: str) -> int:
    """Seconds of one of SLURM's times: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        ValueError: It is none of these.
    """
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            f"found {shown(text)}, allowed: MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS[:MINUTES[:SECONDS]]"
        )
    days, a, b, c = (found[name] for name in ("days", "a", "b", "c"))
    if days is not None:
        return ((int(days) * 24 + int(a)) * 60 + int(b or 0)) * 60 + int(c or 0)
    if c is not None:
        return (int(a) * 60 + int(b)) * 60 + int(c)
    return int(a) * 60 + int(b or 0)


def parse_memory(text: str) -> int:
    """MiB of one of SLURM's sizes: a number with K, M, G or T; M where it has none.

    Raises:
        ValueError: It is none.
    """
    found = _MEMORY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"found {shown(text)}, allowed: a number with K, M, G or T, such as 64G")
    return int(int(found[1]) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()])


class Options(BaseModel):
    """What one submission asks of SLURM, and how its jobs behave. The names are those of ``sbatch``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    nodes: PositiveInt = 1
    gpus_per_node: Annotated[str, Field(pattern=r"^([A-Za-z0-9][\w.-]*:)?\d+$")] = "0"
    """GPUs of every node, as ``8`` or with their type, as ``a100:8``."""
    cpus_per_node: PositiveInt | None = None
    """CPUs of every node; what one node's gangs need when null."""
    mem: Word | None = None
    """Memory of every node, as 64G; SLURM's default when null."""
    time: Word | None = None
    """Time limit of every job; SLURM's default when null."""
    constraint: Annotated[str, Field(pattern=r"^[\w&|*\[\](),.:!-]+$", max_length=200)] | None = None
    exclusive: bool = False
    array: Word | None = None
    """Tasks of a job array, as ``8`` or ``8%4`` (four at once at most), each an allocation of its own; one
    allocation when null."""
    dependency: Word | None = None
    mail_user: Word | None = None
    mail_type: Word | None = None
    reservation: Word | None = None
    setup: tuple[str, ...] = ()
    """Lines of shell that a job begins with: ``module load cuda``."""
    python: Annotated[str, Field(pattern=r"^/[^\x00-\x1f]*$")] | None = None
    """The interpreter that has the harness, as compute nodes see it; the one that submits when null."""
    umask: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] | None = None
    """Of the job's files, as ``0002`` on a store that a group shares; the user's own when null."""
    tmp: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]*$", max_length=20)] | None = None
    """A local folder of every node with a short name, for Ray's sockets and temporary files; ``/tmp`` when
    null."""
    environment: dict[str, str] = {}
    """Variables to export."""
    extra: tuple[str, ...] = ()
    """Further options for ``#SBATCH`` lines, each as ``--name=value``."""
    cache: Path | None = None
    """The hub's shared cache (HF_HOME), which ``harness fetch`` fills; the environment's when null."""
    network: bool = False
    """Compute nodes reach the hub and W&B, so jobs need no cache and may send to W&B themselves."""
    signal_s: Annotated[int, Field(ge=10)] | None = None
    """Seconds before the time limit at which the run saves its work; twice ``resources.grace_s``, at least
    60, when null."""
    max_requeues: Annotated[int, Field(ge=0)] = 50
    """How often a job puts itself back into the queue."""
    idle_s: Annotated[float, Field(ge=0)] = 120.0
    """An array's task ends after this many seconds in which all that is left is being computed by others."""

    @field_validator("time")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None:
            parse_time(value)
        return value

    @field_validator("mem")
    @classmethod
    def _a_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_memory(value)
        return value

    @field_validator("array")
    @classmethod
    def _tasks(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[1-9]\d*(%[1-9]\d*)?", value):
            raise ValueError(
                f"found {shown(value)}, allowed: a number of tasks, such as 8, or 8%4 for at most four at "
                "once"
            )
        return value

    @field_validator("setup", "extra", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return lines_of(value)

    @field_validator("cache", "python", mode="before")
    @classmethod
    def _home(cls, value: Any) -> Any:
        return os.path.expanduser(value) if isinstance(value, str | Path) else value

    @field_validator("setup")
    @classmethod
    def _lines(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any("\n" in line for line in value):
            raise ValueError("give a list of single lines")
        return value

    @field_validator("extra")
    @classmethod
    def _long_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for option in value:
            own = _own(option)
            if own or not re.fullmatch(r"--[a-z][a-z-]*(=[^\s#'\"`$\\;&|<>]+)?", option):
                raise ValueError(
                    f"found {shown(option)}, allowed: --name or --name=value, one word each"
                    + (f", of what the harness does not set itself ({own})" if own else "")
                )
        return value

    @field_validator("environment")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"found the name {shown(name)}, allowed: letters, digits and _")
        return value

    @model_validator(mode="after")
    def _agree(self) -> Options:
        if self.mail_type is not None and self.mail_user is None:
            raise ValueError("mail_type: needs mail_user")
        return self

    @property
    def gpus(self) -> int:
        """GPUs of every node."""
        return int(self.gpus_per_node.rpartition(":")[2])

    @property
    def tasks(self) -> int:
        """Tasks of the array; 1 for one allocation."""
        return int(self.array.partition("%")[0]) if self.array else 1

    @property
    def time_s(self) -> int | None:
        """The time limit in seconds."""
        return parse_time(self.time) if self.time else None


def _own(option: str) -> str:
    """The option of `_OWN` that somebody means, and what is said of it; empty where it is none of them."""
    found = re.match(r"--([A-Za-z-]+)|-([A-Za-z])", option.strip())
    if found is None:
        return ""
    name = found[1] or _LETTERS.get(found[2], "")
    # sbatch takes the beginning of a name for the name
    names = [own for own in _OWN if own == name] or [own for own in _OWN if name and own.startswith(name)]
    if not names or name in _WHOLE:
        return ""
    return f"--{names[0]}: {_OWN[names[0]]}"


def lines_of(value: Any) -> Any:
    """Lines of a site file: one may stand by itself."""
    return (value,) if isinstance(value, str) else value


def read_site(path: Path | None) -> dict[str, Any]:
    """The lab's defaults.

    Args:
        path: The file; when None, ``$HARNESS_SITE``, else ``slurm/site.yaml`` where there is one.

    Raises:
        InputError: A file that was named is missing, or one is wrong.
    """
    named = path or (Path(os.environ["HARNESS_SITE"]) if os.environ.get("HARNESS_SITE") else None)
    path = named or SITE
    if not path.is_file():
        if named is not None:
            raise InputError(f"--site: {named} does not exist")
        return {}
    try:
        # As text: YAML itself would read 4:00:00 as a number to the base of 60.
        text = path.read_text(encoding="utf-8")
        found = _nulls(yaml.load(text, Loader=yaml.BaseLoader))  # noqa: S506
        twice = list(_given_twice(yaml.compose(text, Loader=yaml.BaseLoader)))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        reason = getattr(error, "problem", None) or reason_of(error)
        raise ConfigError([InputProblem(str(path), line, "", f"is not YAML: {reason}")]) from None
    if twice:
        raise ConfigError([InputProblem(str(path), line, name, "is given twice") for name, line in twice])
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ConfigError(
            [InputProblem(str(path), 1, "", "expected a mapping of options, such as partition: gpu")]
        )
    _check(
        {name: value for name, value in found.items() if value is not None},
        {name: (str(path), _line_of(path, name)) for name in map(str, found)},
    )
    return found


def _given_twice(node: yaml.Node | None, path: str = "") -> Iterator[tuple[str, int]]:
    """Keys that a mapping has had before, of which YAML itself takes the last: dotted, with their lines."""
    seen = set[str]()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = join(path, str(key.value))
        if name in seen:
            yield name, key.start_mark.line + 1
        seen.add(name)
        yield from _given_twice(value, name)


def _nulls(value: Any) -> Any:
    """The same with None for what YAML takes for nothing."""
    if isinstance(value, dict):
        return {name: _nulls(item) for name, item in value.items()}
    return None if value in ("", "~", "null") else value


def make_options(site: Mapping[str, Any], given: Mapping[str, Any]) -> Options:
    """The options of a submission.

    Those given, else the site's, else those of sbatch's own variables, else the defaults.

    Args:
        site: From `read_site`.
        given: From the command line; None for what was not given. ``setup`` and ``extra`` come after the
            site's.

    Raises:
        InputError: An option's value is wrong.
    """
    told = {name: value for name, value in given.items() if value is not None}
    usual = {name: value for name in _FROM_ENVIRONMENT if (value := os.environ.get(f"SBATCH_{name.upper()}"))}
    merged = {**usual, **{name: value for name, value in site.items() if value is not None}, **told}
    for name in ("setup", "extra"):
        merged[name] = (*lines_of(site.get(name) or ()), *told.get(name, ()))
    places = {name: (f"SBATCH_{name.upper()}", None) for name in usual if name not in site}
    _check(
        merged, places | {name: (_FLAGS.get(name) or f"--{name.replace('_', '-')}", None) for name in told}
    )
    return Options(**merged)


def _check(values: Mapping[str, Any], places: Mapping[str, tuple[str, int | None]]) -> None:
    """Check options, with messages that say where each was given."""
    problems = [
        InputProblem(*places.get(name, ("site file", None)), name, f"is unknown{_nearest(name)}")
        for name in map(str, values)
        if name not in Options.model_fields
    ]
    if not problems:
        try:
            Options(**values)
        except ValidationError as error:
            for item in error.errors():
                name, kind = str(item["loc"][0]) if item["loc"] else "", item["type"]
                message, allowed = item["msg"].removeprefix("Value error, "), _TYPES.get(kind)
                if kind == "string_pattern_mismatch":
                    allowed = _ALLOWED.get(name, "one word without quotes or signs of the shell")
                elif kind in _LIMITS:
                    limit, words = _LIMITS[kind]
                    allowed = f"{words} {item['ctx'][limit]:g}"
                elif kind == "string_too_long":
                    allowed = f"{item['ctx']['max_length']} characters at most"
                if allowed is not None:
                    message = f"found {shown(item['input'])}, allowed: {allowed}"
                where, line = places.get(name, ("site file", None))
                problems.append(
                    InputProblem(where, line, "" if where.startswith(("--", "SBATCH_")) else name, message)
                )
    if problems:
        raise ConfigError(problems)


def _nearest(name: str) -> str:
    near = get_close_matches(name, Options.model_fields, 1)
    return f"; did you mean {near[0]}?" if near else f"; allowed: {', '.join(Options.model_fields)}"


def _line_of(path: Path, name: str) -> int | None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if re.match(rf"['\"]?{re.escape(name)}['\"]?\s*:", line):
            return number
    return None
