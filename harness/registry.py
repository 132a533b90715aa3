"""What packages beside the harness add to it: learners, filters, regimes, metrics and trackers.

A package names an object of one of the classes below in its metadata, under the kind that a study will call it by:

    [project.entry-points."harness.filters"]
    every_other = "my_package:every_other"

It is loaded when the harness's schema is, so the module that holds the object imports `harness.registry`, `harness.section` and
`harness.records` only; what is heavier is named as ``module:attribute``, and imported when it is used. A kind that comes from a
package has the package's name in the keys of everything that it computes, so that two packages never mean two things by one key.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.records import Examples, Part
from harness.section import Section
from harness.terminal import cut, shown

Group = Literal["learners", "filters", "regimes", "metrics", "trackers"]


@dataclass(frozen=True)
class Metric:
    """One column of the records.

    Attributes:
        name: The column; ``<...>`` stands for a part that the configuration or the data name.
        label: For people, without its unit.
        unit: Empty for a number without one.
        worse: Which way collapse moves it; empty where it has no one way.
        source: Who defined it, or reported it first for collapse.
        shown: Whether a run's lines show it.
        drawn: Whether a report draws it.
    """

    name: str
    label: str
    unit: str = ""
    worse: Literal["higher", "lower", ""] = ""
    source: str = ""
    shown: bool = False
    drawn: bool = True

    @property
    def group(self) -> str:
        """The part of the name before the stroke."""
        return self.name.partition("/")[0]

    @property
    def title(self) -> str:
        """The label with its unit, for an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Known:
    """What a filter of a package may know besides the examples.

    Attributes:
        real: The real distribution (`harness.data.RealData`).
        seed: The chain's seed.
        generation: The generation that wrote the examples.
        uniform: One number in [0, 1) per example, the same however long the corpus is: for filters that err.
    """

    real: Any
    seed: int
    generation: int
    uniform: npt.NDArray[np.float64]


@dataclass(frozen=True)
class FilterPlugin:
    """A filter over corpora.

    Attributes:
        section: Its section, with a ``kind``; its docstring is its line in ``harness list filters``.
        version: Part of every key; raise it when other examples pass.
        keep: Which examples pass, from the section, the examples that earlier filters left, and what is `Known`; one truth value
            each. Whether an example passes may depend on those before it, never on those behind it.
        reads: Kinds of data that it can look at (``text``, ``gaussian``, ...); empty for all.
    """

    section: type[Section]
    version: int
    keep: Callable[[Any, Examples, Known], npt.NDArray[np.bool_]]
    reads: Collection[str] = ()


@dataclass(frozen=True)
class RegimePlugin:
    """A way to build training sets.

    Attributes:
        rule: The parts of a generation's training set and, where only some of them are drawn, how many; from the regime's
            section, the number of real examples and the generation (1 and up). Its docstring is its line in
            ``harness list regimes``.
        version: Part of every key; raise it when other sets come out.
        uses_ratio: Whether ``synthetic_ratio`` has to be given.
    """

    rule: Callable[[Any, int, int], tuple[tuple[Part, ...], int | None]]
    version: int
    uses_ratio: bool = False


@dataclass(frozen=True)
class LearnerPlugin:
    """A family of cheap models (`harness.learners.analytic.Family`).

    Attributes:
        section: Its section, with a ``kind``; its docstring is its line in ``harness list learners``.
        version: Part of every key; raise it when it fits or samples otherwise.
        family: ``module:Class`` of the family.
        reads: Kinds of data that it can be fitted to.
        metrics: What it measures.
        metrics_version: Part of every evaluation's key; raise it when a metric changes.
        batchable: Whether many of its chains may be run in one call.
        seconds_per_example: Rough seconds of a generation per training example.
    """

    section: type[Section]
    version: int
    family: str
    reads: Sequence[str]
    metrics: Sequence[Metric] = ()
    metrics_version: int = 1
    batchable: bool = True
    seconds_per_example: float = 1e-6


@dataclass(frozen=True)
class MetricPlugin:
    """Numbers about a corpus, which a study asks for in ``evaluate.metrics``.

    Attributes:
        metrics: The columns that it gives; their names have a stroke, as ``text/rep_4``.
        version: Part of the key of every evaluation that has it; raise it when a number changes.
        measure: From the corpus and what is `Known` (its numbers are one per example) to a number for every column.
        reads: Kinds of data that it can look at; empty for all.
    """

    metrics: Sequence[Metric]
    version: int
    measure: Callable[[Examples, Known], Mapping[str, float]]
    reads: Collection[str] = ()


@dataclass(frozen=True)
class TrackerPlugin:
    """Where a run's chains are mirrored to besides W&B; a study asks for it in ``tracking.trackers``.

    Attributes:
        write: ``module:function``, called with a chain (`harness.tracking.ChainView`) when all its generations are committed,
            and with the folder that is the tracker's own in this experiment. What it raises becomes a warning, and the next run
            calls it again.
    """

    write: str


Plugin = FilterPlugin | RegimePlugin | LearnerPlugin | MetricPlugin | TrackerPlugin
_CLASSES: Mapping[str, type[Any]] = {
    "filters": FilterPlugin,
    "regimes": RegimePlugin,
    "learners": LearnerPlugin,
    "metrics": MetricPlugin,
    "trackers": TrackerPlugin,
}


@dataclass(frozen=True)
class Loaded:
    """A component of a package.

    Attributes:
        plugin: What the package gives.
        package: The distribution's name.
        release: The distribution's version.
    """

    plugin: Any
    package: str
    release: str

    @property
    def version(self) -> str:
        """As it enters keys: the package, and the component's version (not the package's, which changes for other reasons)."""
        return f"{self.package}/{self.plugin.version}"


@dataclass
class Found:
    """The components that packages add to one group.

    Attributes:
        loaded: By kind.
        broken: Kind to why it cannot be used; studies without it are not concerned.
    """

    loaded: dict[str, Loaded] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)


@cache
def plugins(group: Group, builtin: tuple[str, ...]) -> Found:
    """The components of a group that packages add.

    Args:
        group: Which.
        builtin: Kinds that exist already.
    """
    found = Found()
    for point in sorted(entry_points(group=f"harness.{group}"), key=lambda point: (point.name, _package(point))):
        package = _package(point)
        try:
            if point.name in builtin:
                raise ValueError("the harness has a kind of that name")
            if point.name in found.loaded:
                raise ValueError(f"{found.loaded[point.name].package} gives a kind of that name too")
            plugin = _checked(point, _CLASSES[group])
        except Exception as error:  # whatever somebody else's code raises
            reason = (str(error).strip().splitlines() or [""])[0]
            found.broken.setdefault(point.name, f"{package} cannot be used for it: {type(error).__name__}: {reason}")
            continue
        found.loaded[point.name] = Loaded(plugin, package, point.dist.version if point.dist else "")
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value.partition(":")[0]


def _checked(point: EntryPoint, expected: type[Any]) -> Any:
    """The object of an entry point, if it is what the group is for and answers to the name that it has there."""
    plugin = point.load()
    if not isinstance(plugin, expected):
        raise TypeError(f"{point.value} is a {type(plugin).__name__}, not a {expected.__name__}")
    if any("/" not in metric.name for metric in getattr(plugin, "metrics", ())):
        raise ValueError(f"the columns of {point.value} need names with a stroke, as text/rep_4")
    section = getattr(plugin, "section", None)
    if section is None:
        return plugin
    if not (isinstance(section, type) and issubclass(section, Section)):
        raise TypeError(f"the section of {point.value} is not a harness.section.Section")
    kind = section.model_fields.get("kind")
    if kind is None or typing.get_args(kind.annotation) != (point.name,):
        raise TypeError(f"the section of {point.value} needs the field kind: Literal[{point.name!r}]")
    return plugin


def check_names(names: tuple[str, ...], found: Found) -> tuple[str, ...]:
    """Names of components of packages, for a field that lists them.

    Raises:
        ValueError: One is unknown or broken, or stands there twice.
    """
    for name in names:
        if name in found.broken:
            raise ValueError(f"found {shown(name)}; {cut(found.broken[name])}")
        if name not in found.loaded:
            allowed = ", ".join(found.loaded) or "none, no package adds any"
            raise ValueError(f"found {shown(name)}, allowed: {allowed}")
    if len(set(names)) < len(names):
        raise ValueError("names one twice")
    return names


def releases(*found: Found) -> dict[str, str]:
    """The packages that components come from, with their versions, for provenance."""
    return {item.package: item.release for group in found for item in group.loaded.values()}


def named(place: str) -> Any:
    """What ``module:attribute`` names."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
