"""Where the code of components is: what they name as ``module:attribute``, which is imported when it is used.

What a package names may not be there, be something else, or not be called as the harness calls it. No frame
of the package's own code tells of that, so it is noted here which component names what, and errors say it.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from copy import copy
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from harness.errors import PluginError, reason_of
from harness.registry.blame import culprits_line
from harness.terminal import cut, shown, visible

PLACES = (
    *("family", "learner", "settle", "resolve", "hub_items", "theory", "whole"),
    *("keep", "facts", "rewards", "decides", "locate", "rule", "measure", "loss"),
    *("prepare", "load", "read", "problems", "check", "alphabet", "answer"),
    *("write", "where", "tracker"),
)
"""Fields of plug-ins that hold code, or name it."""
_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


_IMPORTS = threading.RLock()
"""Held while standard output is turned aside: two threads would put it back in the wrong order."""


class Whose(str):
    """A field of a package's component, in words.

    Attributes:
        group: The group of the component.
        kind: Its kind.
        short: It, as what a study has asked for: ``the rule of odd (package)``.
    """

    group: str
    kind: str
    short: str

    @classmethod
    def of(cls, group: str, kind: str, package: str, field: str) -> Whose:
        """What it is of.

        Args:
            group: The group, as entry points name it.
            kind: The kind.
            package: The package.
            field: The component's field, and the place that it names.
        """
        found = cls(f"{group.removesuffix('s')} {kind} of the package {package}: {field}")
        found.group, found.kind, found.short = group, kind, f"the {field} of {kind} ({package})"
        return found


class _Place(str):
    """A place that a package's component names.

    Attributes:
        whose: The component, its package, its field and the place.
    """

    whose: Whose


class _Code:
    """A function that a package's component holds, which says whose it is where it cannot be used.

    Attributes:
        code: The function, or a class.
        whose: The component, its package and its field.
    """

    def __init__(self, code: Callable[..., Any], whose: Whose, gives: Any = None) -> None:
        """Keep the function.

        Args:
            code: The function, or a class.
            whose: As above.
            gives: The type of what it gives, which is looked at; None where others look at it.
        """
        functools.update_wrapper(self, code, updated=())
        self.code, self.whose = code, whose
        self._gives = None if gives is None else TypeAdapter(gives)

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        """Call it.

        Raises:
            PluginError: It cannot be called so, or gives something else.
        """
        try:
            found = self.code(*arguments, **more)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise  # from inside, so its own frames say where
            raise PluginError(f"{self.whose} cannot be called as it is: {cut(reason_of(error))}") from error
        if self._gives is None:
            return found
        try:
            return self._gives.validate_python(plain(found), strict=True)
        except ValidationError as error:
            wrong = error.errors()[0]["msg"].replace("Input", "it")
            raise PluginError(f"{self.whose} gives {shown(found)}: {wrong}") from None


def plain(value: Any) -> Any:
    """A number of another library as Python's own, in a tuple too."""
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    return value.item() if isinstance(value, np.generic) else value


def check_places(plugin: Any) -> None:
    """Check that a package's component says where its code is, as far as that needs no import.

    Raises:
        TypeError: A field holds no code and names none.
        ValueError: What it names cannot be there.
    """
    for name in _functions(plugin):
        if not callable(getattr(plugin, name)):
            raise TypeError(f"its {name} is {shown(getattr(plugin, name))}, expected a function")
    for name, value, needed in _places(plugin):
        if callable(value) or (value == "" and not needed):
            continue
        if not isinstance(value, str) or name == "rule":
            place = "" if name == "rule" else " or 'module:attribute'"
            raise TypeError(f"its {name} is {shown(value)}, expected a function{place}")
        if not _FORM.fullmatch(value):
            raise ValueError(f"its {name} is {shown(value)}, expected 'module:attribute'")
        module = value.partition(":")[0].partition(".")[0]
        if find_spec(module) is None:
            raise ValueError(f"its {name} is {shown(value)}, and there is no module {module}")


def with_whose(plugin: Any, group: str, kind: str, package: str) -> Any:
    """A package's component whose places say whose they are.

    Args:
        plugin: The component.
        group: Its group.
        kind: Its kind.
        package: The package that adds it.
    """
    found, told = copy(plugin), dict[str, Any]()
    whose = partial(Whose.of, group, kind, package)
    for name, gives in _functions(plugin).items():
        told[name] = _Code(getattr(plugin, name), whose(name), gives)
    for name, value, _ in _places(plugin):
        if not isinstance(value, str):
            told.setdefault(name, _Code(value, whose(name)))
        elif value and not value.startswith("harness."):  # what of the harness fails is no package's fault
            told[name] = _Place(value)
            told[name].whose = whose(f"{name} {shown(value)}")
    for name, value in told.items():
        object.__setattr__(found, name, value)  # its class is frozen, and this is nobody else's yet
    return found


def named(place: str | Callable[..., Any], kind: type[Any] | None = None) -> Any:
    """What ``module:attribute`` names.

    Args:
        place: Where it is; a function is itself.
        kind: What it has to be a subclass of, or of a protocol, what methods it has to have.

    Raises:
        PluginError: A package names it, and it cannot be had, or is something else. What is given raises it
            where it cannot be called as it is.
    """
    if not isinstance(place, _Place | _Code):
        return _found(place)
    whose = place.whose
    try:
        found = place.code if isinstance(place, _Code) else _imported(place)
    except (Exception, SystemExit) as error:  # whatever somebody else's module raises when it is imported
        if hasattr(error, "ray_terminate_msg"):  # Ray ends the process
            raise
        reason = f"{type(error).__name__}: {cut(reason_of(error))}{_where(error)}"
        raise PluginError(f"{whose} cannot be used: {reason}") from error
    if wrong := _mismatch(found, kind):
        raise PluginError(f"{whose} {wrong}")
    return place if isinstance(place, _Code) else _Code(found, whose)


def asked(error: BaseException) -> Whose | None:
    """Whose function an error comes from, the innermost where one calls another; None where from none's."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        held = {_Code.__call__.__code__: "self", named.__code__: "place"}.get(frame.f_code)
        if held is not None and isinstance(found := frame.f_locals[held], _Place | _Code):
            return found.whose
    return None if error.__cause__ is None else asked(error.__cause__)


def raised(error: BaseException, whose: Whose) -> str:
    """That a function of a package has raised an error, and on which of its lines."""
    line, reason = culprits_line(error)[1], visible(cut(reason_of(error)), lines=False)
    said = f"{whose.short} raises {type(error).__name__}" + (f": {reason}" if reason else "")
    return said + (f" ({line})" if line else "")


@contextmanager
def no_verdict(*kinds: type[Exception]) -> Iterator[None]:
    """Where a package's function raises what pydantic would take for its verdict on a section.

    Args:
        kinds: The kinds of errors that are none.

    Raises:
        PluginError: In the place of one of these.
    """
    try:
        yield
    except kinds as error:
        if (whose := asked(error)) is None:
            raise
        raise PluginError(raised(error, whose)) from error


def _imported(place: str) -> Any:
    """What a place names; its module is imported, once in a process, with its prints aside."""
    if str(place).partition(":")[0] in sys.modules:
        return _found(place)
    with _IMPORTS, prints_aside():
        return _found(place)


def prints_aside() -> AbstractContextManager[Any]:
    """While a package's modules are imported, what they print goes to standard error.

    Standard output is what a command answers, as JSON too. What C code or another process writes to the file
    descriptor itself does not come by here: to turn that aside would turn aside what other threads write.
    """
    return redirect_stdout(sys.stderr)


def _functions(plugin: Any) -> dict[str, Any]:
    """Functions that a component gives in place of defaults, beside its code: the type of what each gives."""
    hints, found = get_type_hints(type(plugin), include_extras=True), dict[str, Any]()
    for item in dataclasses.fields(plugin):
        given, hint = getattr(plugin, item.name), hints[item.name]
        if item.name in PLACES or given is item.default:
            continue
        kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Callable]
        if kinds and (kinds == [hint] or callable(given)):
            found[item.name] = get_args(kinds[0])[1]
    return found


def _places(plugin: Any) -> list[tuple[str, Any, bool]]:
    """Fields that hold code: their names, values, and whether they have to be given."""
    fields = [item for item in dataclasses.fields(plugin) if item.name in PLACES]
    return [(item.name, getattr(plugin, item.name), item.default != "") for item in fields]


def _found(place: str | Callable[..., Any]) -> Any:
    if not isinstance(place, str):
        return place
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def _mismatch(found: Any, kind: type[Any] | None) -> str:
    """Why something is not what it should be; empty where it is."""
    if kind is None:
        return "" if callable(found) else f"is {shown(found)}, expected a function"
    expected = f"expected a class as {kind.__module__}.{kind.__name__}"
    if not isinstance(found, type):  # a function that makes one does
        return "" if callable(found) else f"is {shown(found)}, {expected}"
    if getattr(kind, "_is_protocol", False):
        methods = [name for name in vars(kind) if not name.startswith("_") and callable(vars(kind)[name])]
        lacks = [name for name in methods if not callable(getattr(found, name, None))]
    elif not issubclass(found, kind):
        return f"is no subclass of {kind.__name__}, {expected}"
    else:
        lacks = sorted(getattr(found, "__abstractmethods__", ())) if inspect.isabstract(found) else []
    return f"has no {', '.join(lacks)}, {expected}" if lacks else ""


def _where(error: BaseException) -> str:
    """The line of the package's code that an import has failed at; empty where none was executed."""
    at = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        name, file = str(frame.f_globals.get("__name__", "")), frame.f_code.co_filename
        if name.partition(".")[0] not in ("importlib", "harness") and not file.startswith("<"):
            at = f" ({Path(file).name}, line {line})"
    return at
