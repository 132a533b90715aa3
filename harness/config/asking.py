"""Errors of packages' functions are told at the field that asks for the kind.

While a study is planned, and by the process that runs it; gangs and bundles have their own way.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from harness.config.source import Source
from harness.errors import ConfigError, HarnessError, InputProblem, PluginError
from harness.registry.places import Whose, asked, raised

P = ParamSpec("P")
R = TypeVar("R")
_FIELDS: Mapping[str, str] = {
    "learners": "learner.kind",
    "filters": "filters.kind",
    "regimes": "regime.kind",
    "data": "data.source",
    "tasks": "data.task.kind",
    "objectives": "learner.objective.kind",
    "metrics": "evaluate.metrics",
    "trackers": "tracking.trackers",
}
"""The field of a study that names a kind of a group."""


@contextlib.contextmanager
def placed(source: Source) -> Iterator[None]:
    """Tell of an error of a package's function where the study asks for that component.

    Args:
        source: The study's file.

    Raises:
        ConfigError: In the place of what such a function has raised, or of what is wrong with it.
    """
    try:
        yield
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises, sys.exit too
        whose = asked(error)
        if whose is None or (isinstance(error, HarnessError) and not isinstance(error, PluginError)):
            raise
        message = str(error) if isinstance(error, PluginError) else raised(error, whose)
        raise ConfigError([_problem(source, whose, message)]) from error


def planning(function: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """A function of a prepared study whose errors are told as `placed` does."""

    @functools.wraps(function)
    def called(prepared: Any, /, *arguments: P.args, **more: P.kwargs) -> R:
        with placed(prepared.study.source):
            return function(prepared, *arguments, **more)

    return called


def _problem(source: Source, whose: Whose, message: str) -> InputProblem:
    """A problem of a component, at the line that names its kind, on an axis or in a mitigation too."""
    field = _FIELDS[whose.group]
    at = next((path for path in _paths(source.data, whose.kind) if _is_of(path, field)), field)
    found = source.problem(at, message)
    own = at.split(".")[0] == field.split(".")[0]
    return InputProblem(found.where, found.line, at if own else field, message)


def _is_of(path: str, field: str) -> bool:
    """Whether a path of a study, of an axis or of a mitigation say, is of a field."""
    names = [part for part in path.split(".") if not part.isdigit()]
    return names[-1] == field.split(".")[-1] and field.split(".")[0] in names


def _paths(value: Any, text: str, path: str = "") -> Iterator[str]:
    """Where a text stands in a study, dotted."""
    inner = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, each in inner:
        at = f"{path}.{name}" if path else str(name)
        if each == text:
            yield at
        yield from _paths(each, text, at)
