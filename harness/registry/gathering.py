"""The components of every group: the harness's own, and those that packages name in their metadata."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from harness.errors import reason_of
from harness.registry.blame import note_modules
from harness.registry.places import check_places, plain, prints_aside, with_whose
from harness.registry.plugins import Cost, DataKind, EntryPointGroup, LearnerPlugin, TrackerPlugin, Version
from harness.section import DataSection, PositiveInt, Seconds, Section
from harness.terminal import cut, nearest, shown

P = TypeVar("P")
Q = TypeVar("Q")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""Of a kind: keys, columns, folders and lists of kinds have it."""
_NUMBERS: Sequence[tuple[Any, str]] = (
    (Version, "a whole number from 1"),
    (PositiveInt, "a whole number from 1"),
    (Cost, "seconds from 0 to 1e9"),
    (Seconds, "finite seconds above 0"),
    (bool, "True or False"),
)
"""Types of what components declare as numbers and truth values, with what is allowed, in words."""


@dataclass(frozen=True)
class Loaded(Generic[P]):
    """A component.

    Attributes:
        plugin: What is known of it.
        package: The distribution that adds it; empty for the harness itself.
        release: That distribution's version.
    """

    plugin: P
    package: str = ""
    release: str = ""

    @property
    def version(self) -> int | str:
        """The component's version as it enters keys, with the package that adds it.

        A package's own version is not in keys: it changes for other reasons.
        """
        return self.raised(0)

    def raised(self, by: int) -> int | str:
        """A higher `version`."""
        version: int = self.plugin.version + by  # type: ignore[attr-defined]
        return f"{self.package}/{version}" if self.package else version


@dataclass
class Found(Generic[P]):
    """The components of one group.

    Attributes:
        loaded: By kind.
        broken: Kind to why a package's component cannot be used; studies without it are not concerned.
    """

    loaded: dict[str, Loaded[P]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, kind: str) -> P:
        """What is known of a kind."""
        return self.loaded[kind].plugin

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the kinds."""
        return iter(self.loaded)

    def of(self, kind: type[Q]) -> Found[Q]:
        """Those that are objects of a class."""
        chosen = {name: item for name, item in self.loaded.items() if isinstance(item.plugin, kind)}
        return Found(cast("dict[str, Loaded[Q]]", chosen), self.broken)

    def where(self, holds: Callable[[P], bool]) -> Found[P]:
        """Those of which something holds."""
        return Found({name: item for name, item in self.loaded.items() if holds(item.plugin)}, self.broken)

    @property
    def added(self) -> dict[str, Loaded[P]]:
        """Those of packages, by kind."""
        return {kind: item for kind, item in self.loaded.items() if item.package}


def gather(
    group: EntryPointGroup,
    expected: type[P] | tuple[type[P], ...],
    own: Mapping[str, P],
    taken: Collection[str] = (),
    columns: Collection[str] = (),
    check: Callable[[P], None] = lambda plugin: None,
) -> Found[P]:
    """The components of a group: the harness's own, and those that packages add.

    Args:
        group: Which.
        expected: What a package's object has to be, or one of several.
        own: The harness's own by kind.
        taken: Other names that a package cannot have.
        columns: Metrics that a package cannot declare, with their open parts (``<group>``).
        check: Raises what is wrong with a package's object, beyond what is of all groups.
    """
    found: Found[P] = Found({kind: Loaded(plugin) for kind, plugin in own.items()})
    points = _entry_points().select(group=f"harness.{group}")
    for point in sorted(points, key=lambda point: (point.name, _package(point))):
        package = _package(point)
        try:
            if not _NAME.fullmatch(point.name):
                raise ValueError("a name has letters, digits, - and _, and begins with a letter or a digit")
            if point.name in (*own, *taken):
                raise ValueError("the harness has a kind of that name")
            if point.name in found.loaded:
                raise ValueError(f"{found.loaded[point.name].package} gives a kind of that name too")
            plugin = _checked(point, expected)
            _check_columns(plugin, columns)
            check_places(plugin)
            check(plugin)
        except (Exception, SystemExit) as error:  # whatever somebody else's code raises, sys.exit too
            reason = reason_of(error)
            if isinstance(error, ImportError) and "partially initialized module 'harness" in reason:
                reason = (
                    "it imports what needs all kinds, which are being gathered; import that in functions, or "
                    "in the modules that the registration names"
                )
            found.broken.setdefault(
                point.name, f"{package} cannot be used for it: {type(error).__name__}: {reason}"
            )
            continue
        note_modules(package, point.module)
        plugin = with_whose(plugin, group, point.name, package)
        found.loaded[point.name] = Loaded(plugin, package, point.dist.version if point.dist else "")
    return found


@functools.cache
def _entry_points() -> Any:
    """What all installed packages offer: each look for one group would read the lists of all of them anew."""
    return entry_points()


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(":")[0]


def _checked(point: EntryPoint, expected: type[Any] | tuple[type[Any], ...]) -> Any:
    """The object of an entry point, if it is what its group is for and answers to its name there."""
    with prints_aside():
        plugin = point.load()
    if not isinstance(plugin, expected):
        names = [kind.__name__ for kind in (expected if isinstance(expected, tuple) else (expected,))]
        raise TypeError(f"{point.value} is a {type(plugin).__name__}, not a {' or a '.join(names)}")
    plugin = with_numbers(plugin)
    if any("/" not in metric.name for metric in getattr(plugin, "metrics", ())):
        raise ValueError(f"the columns of {point.value} need names with a stroke, as text/rep_4")
    if isinstance(plugin, TrackerPlugin) and not plugin.write and plugin.tracker == TrackerPlugin.tracker:
        raise TypeError(f"{point.value} needs write, or a tracker")
    if hasattr(plugin, "section"):
        _check_section(point, plugin)
    if isinstance(plugin, LearnerPlugin):
        _check_learner(point.value, plugin)
    if getattr(plugin, "of", "corpora") not in ("corpora", "training sets", "pools"):
        raise ValueError(f"{point.value} is of {plugin.of!r}, allowed: 'corpora', 'training sets', 'pools'")
    return plugin


def _check_section(point: EntryPoint, plugin: Any) -> None:
    """A section says which kind it is of, and of data how many examples."""
    section, of_data = plugin.section, isinstance(plugin, DataKind)
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise TypeError(f"the section of {point.value} is not a harness.section.Section")
    if of_data and (not issubclass(section, DataSection) or plugin.sources != (point.name,)):
        raise TypeError(f"{point.value} needs a harness.section.DataSection, and sources=({point.name!r},)")
    name = "source" if of_data else "kind"
    kind = section.model_fields.get(name)
    if kind is None or typing.get_args(kind.annotation) != (point.name,):
        raise TypeError(f"the section of {point.value} needs the field {name}: Literal[{point.name!r}]")
    if of_data and (says := {"num_examples", "resample", "segment"} & set(plugin.places)):
        raise TypeError(f"places of {point.value} name {', '.join(sorted(says))}, which says more than where")
    if of_data and "num_examples" not in section.model_fields:
        raise TypeError(
            f"the section of {point.value} needs the field num_examples; None may be all there are"
        )


def with_numbers(plugin: Any) -> Any:
    """A component whose numbers and truth values (versions, costs, limits) are Python's own.

    Raises:
        TypeError: One is not what its field allows.
    """
    hints, told = typing.get_type_hints(type(plugin), include_extras=True), dict[str, Any]()
    for item in dataclasses.fields(plugin):
        hint, value = hints[item.name], plain(getattr(plugin, item.name))
        inner = typing.get_args(hint)
        for kind, allowed in _NUMBERS:
            by_name = kind in inner and typing.get_origin(hint) is Mapping
            or_function = kind in inner and not by_name
            if (kind != hint and kind not in inner) or (or_function and callable(value)):
                continue
            wanted: Any = dict[str, kind] if by_name else kind  # type: ignore[valid-type]
            value = (
                {name: plain(each) for name, each in value.items()} if isinstance(value, Mapping) else value
            )
            try:
                told[item.name] = TypeAdapter(wanted).validate_python(value, strict=True)
            except ValidationError:
                allowed += " by name" * by_name + ", or a function" * or_function
                raise TypeError(f"its {item.name} is {shown(value)}, expected {allowed}") from None
    changed = {name: value for name, value in told.items() if value is not getattr(plugin, name)}
    return dataclasses.replace(plugin, **changed) if changed else plugin


def has_field(section: type[Section], name: str) -> bool:
    """Whether sections have something of that name: a field, a property, or what all of them share."""
    return name in section.model_fields or hasattr(section, name)


def _check_columns(plugin: Any, columns: Collection[str]) -> None:
    """A column means one thing, whoever is installed."""
    for metric in plugin.metrics if columns else ():
        for column in columns:
            if fnmatchcase(metric.name, re.sub("<[^>]*>", "*", column)):
                raise ValueError(f"the harness has a column {column}, and {metric.name} would be one of it")


def _check_learner(place: str, plugin: LearnerPlugin) -> None:
    """Two names mean something to the harness: a fit gets neither, so its family would see defaults."""
    section = plugin.section
    if plugin.many_ranks and (plugin.family or plugin.batchable):
        raise TypeError(f"{place} has many_ranks, so it needs a learner, no family, and batchable=False")
    if "sample" in section.model_fields:
        raise TypeError(
            f"the section of {place} has a field sample, which is the harness's; name it otherwise"
        )
    init = section.model_fields.get("init")
    allowed = {"scratch", "previous"}
    if init is not None and not set(typing.get_args(init.annotation)) <= allowed:
        raise TypeError(f"the field init of {place} can only be a Literal of 'scratch' and 'previous'")
    if not plugin.reads:
        raise TypeError(f"{place} reads no kind of data; name some in reads")
    if plugin.batchable and not plugin.family:
        raise TypeError(f"{place} has no family, so it needs a learner, and batchable=False")


def check_names(names: tuple[str, ...], found: Found[Any]) -> tuple[str, ...]:
    """Names of components of packages, for a field that lists them.

    Raises:
        ValueError: One is unknown or broken, or stands there twice.
    """
    for name in names:
        if name in found.loaded:
            continue
        if name in found.broken:
            raise ValueError(f"found {shown(name)}; {cut(found.broken[name])}")
        allowed = ", ".join(found.loaded) or "none, no package adds any"
        raise ValueError(f"found {shown(name)}, allowed: {allowed}{nearest(name, found.loaded)}")
    if len(set(names)) < len(names):
        raise ValueError("names one twice")
    return names


def releases(*found: Found[Any]) -> dict[str, str]:
    """The packages that components come from, with their versions, for provenance."""
    return {item.package: item.release for group in found for item in group.added.values()}


def packages_of(*found: Found[Any]) -> dict[str, str]:
    """Kind to the package that adds it, with its version; or to both that add a kind of this name."""
    named: dict[str, dict[str, None]] = {}
    for group in found:
        for kind, item in group.added.items():
            named.setdefault(kind, {})[f"{item.package} {item.release}"] = None
    return {kind: " or ".join(packages) for kind, packages in named.items()}
