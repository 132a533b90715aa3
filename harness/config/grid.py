"""The grid: axes over any field, their product, and the overrides that parts of it need."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from harness.config.load import check_kinds, validate
from harness.config.messages import message_in, section_classes
from harness.config.mitigations import AXIS, SECTION, Mitigations, take_axis, take_mitigations
from harness.config.population import MEMBER, MEMBERS_SHARE, Membership, members
from harness.config.replaced import check_replaced
from harness.config.schema import Config, LanguageModel, Override
from harness.config.size import MAX_CELLS, MAX_CHAINS, check_axes, check_generations
from harness.config.source import Source, get, with_values, within
from harness.errors import ConfigError
from harness.terminal import nearest, shown

SHARED_SECTIONS = ("experiment", "tracking", "seed", "claims")
"""Fields that all cells of a grid share."""
WHOLE = ("population.exchange", "population.members")
"""Axes whose values are one thing however many fields they have: they are one column."""
SHAPED = 6
"""Generations that a chain has to have for its growth to have a shape (AICc of four parameters)."""
EXECUTION_SECTIONS = ("experiment", "resources", "retention", "tracking", "claims")
"""Fields that never change a result: an axis over one would ask for the same chain twice."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid, seeds aside.

    Attributes:
        config: The cell's whole configuration (its seed is that of the base).
        axes: Dotted field to value, one entry per column of ``export``.
    """

    config: Config
    axes: Mapping[str, Any]
    teacher: bool = False
    """Not in the grid: a pretrained model as it is, whose corpus other cells read."""
    point: int = 0
    """Number of its point in the product of the axes; the members of a population share one."""
    member: Membership | None = None
    """Its place in its population; None where it is in none."""
    places: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where a field's value stands when not at its own place, as of `Point`."""


@dataclass(frozen=True)
class Study:
    """A configuration file, expanded.

    Attributes:
        base: The first cell's configuration: experiment, resources, retention and tracking are the same in
            all, overrides aside.
        cells: The grid without its seeds.
        seeds: The seeds that every cell is run with.
        columns: The dotted names of the axes, as ``export`` shows them.
        generations_is_axis: Chains get a suffix ``-G<n>``.
        source: The file.
    """

    base: Config
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    columns: tuple[str, ...]
    generations_is_axis: bool
    source: Source

    @property
    def lease_s(self) -> float:
        """Seconds without a sign of life after which others take over: the most that any cell asks for."""
        return max(cell.config.resources.lease_s for cell in self.cells)

    @property
    def grace_s(self) -> float:
        """Seconds that a run has to save its work and end: the most that any cell asks for."""
        return max(cell.config.resources.grace_s for cell in self.cells)


def expand(source: Source, held: Callable[[str], bool] = lambda name: False) -> Study:
    """Expand a configuration file into its cells and seeds.

    Args:
        source: The file.
        held: Whether a name is that of a file or folder that is gone, and of which a store knows what it held
            (`harness.data.noted.Notes.gone`).

    Raises:
        ConfigError: Anything in it is wrong; nothing has been started or written.
    """
    check_kinds(source, held)
    parts = _parts(source)
    axes, overrides = dict(parts.axes), parts.overrides
    seeds = axes.pop("seed", None)
    columns = _columns(axes)
    cells, applied = list[Cell](), dict[int, Mapping[str, Any]]()
    for number, point in enumerate(points(source, parts)):
        config = validate(source, point.raw, point.places)
        named = {AXIS: point.mitigation}
        values = {n: named[n] if n in named else _given(point.raw, config, n) for n in columns}
        cell = Cell(config, values, point=number, places=point.places)
        cells += _cells(source, point, config, cell, len(cells))
        applied = {**point.applied, **applied}
    if any(cell.member is not None for cell in cells):
        columns.append(MEMBER)
        cells = [
            replace(cell, axes={**cell.axes, MEMBER: cell.member and cell.member.name}) for cell in cells
        ]
    for index, override in enumerate(overrides):
        # Where --set leaves only a part of the grid, what the file says of the rest is no mistake.
        if index not in applied and not any(map(source.is_set, override.when)):
            raise source.error(f"overrides.{index}.when", f"matches no cell: {shown(dict(override.when))}")
    fields = {name: values for name, values in axes.items() if name != AXIS}
    check_replaced(source, parts.data, fields, overrides, applied, parts.mitigations)
    base = cells[0].config
    seeds = [base.seed] if seeds is None else seeds
    for index, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**62:
            raise source.error(
                f"grid.seed.{index}", f"found {shown(seed)}, expected an integer from 0 to 2**62 - 1"
            )
    check_generations(source, [cell.config for cell in cells], len(seeds))
    cells += _teachers(source, cells)
    return Study(base, tuple(cells), tuple(seeds), tuple(columns), "generations" in axes, source)


def _cells(source: Source, point: Point, config: Config, cell: Cell, start: int) -> list[Cell]:
    """A point's cell, or one for each member of its population; ``start`` cells are there already."""
    if config.population is None:
        return [cell]
    found = list(members(source, config, point.raw, point.places, partial(_check_members, source)))
    if start + len(found) > MAX_CELLS:
        raise source.error("population.members", f"asks for more than {MAX_CELLS:,} cells in all")
    numbers = tuple(range(start, start + len(found)))
    return [
        replace(cell, config=own, places=places, member=Membership(name, number, numbers))
        for number, (name, own, places) in enumerate(found)
    ]


@dataclass(frozen=True)
class Parts:
    """What a file says, taken apart.

    Attributes:
        data: What all cells share.
        axes: Dotted field to values; over the names of mitigations, `AXIS`; the seeds too.
        overrides: What parts of the grid need, in the order in which they apply.
        mitigations: Name to dotted fields with their values.
    """

    data: Mapping[str, Any]
    axes: Mapping[str, Sequence[Any]]
    overrides: Sequence[Override]
    mitigations: Mitigations


@dataclass(frozen=True)
class Point:
    """A cell's data before they are validated.

    Attributes:
        raw: The file's content with the values of the axes, of the mitigation and of the overrides that
            apply.
        places: Where a field's value stands when not at its own place: dotted field to the dotted path in the
            file.
        applied: An override's number to the data as they are when it has been applied, and none behind it.
        mitigation: The name of its mitigation; None where the file has none.
    """

    raw: Mapping[str, Any]
    places: Mapping[str, str]
    applied: Mapping[int, Mapping[str, Any]]
    mitigation: str | None = None


def points(source: Source, parts: Parts) -> Iterator[Point]:
    """The product of the axes, the seed aside, with what mitigations and overrides change in it."""
    axes = {name: list(enumerate(values)) for name, values in parts.axes.items() if name != "seed"}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        _, mitigation = chosen.pop(AXIS, (0, None))
        settings = {} if mitigation is None else parts.mitigations[mitigation]
        places = {name: f"grid.{name}.{index}" for name, (index, _) in chosen.items()}
        places |= {name: f"{SECTION}.{mitigation}.{name}" for name in settings}
        applied = dict[int, Mapping[str, Any]]()
        try:
            raw = with_values(parts.data, {name: value for name, (_, value) in chosen.items()})
            raw = with_values(raw, settings)
            for index, override in enumerate(parts.overrides):
                if all(_value(source, raw, name) == wanted for name, wanted in override.when.items()):
                    raw = applied[index] = with_values(raw, override.set)
                    places.update({name: f"overrides.{index}" for name in override.set})
        except TypeError as error:
            raise source.error("grid", str(error)) from None
        yield Point(raw, places, applied, mitigation)


def point_of(source: Source, number: int) -> Point:
    """The data of one cell, by its number in the grid, and where they come from."""
    return next(itertools.islice(points(source, _parts(source)), number, None))


def _parts(source: Source) -> Parts:
    """What all cells share, the axes, the overrides and the mitigations."""
    data = dict(source.data)
    data.pop("grid", None)
    overrides = _overrides(source, data.pop("overrides", None))
    mitigations = take_mitigations(source, data, partial(_check_setting, source))
    axes = take_axis(source, data, _axes(source), mitigations)
    check_axes(source, axes)
    return Parts(data, axes, overrides, mitigations)


def _check_setting(source: Source, place: str, name: str) -> None:
    """Check that a mitigation may set a field."""
    check_name(source, place, name)
    section = name.split(".")[0]
    if section in (*SHARED_SECTIONS, *EXECUTION_SECTIONS):
        why = "it is the same in all cells, or changes no result"
        raise source.error(place, f"{section} cannot be in a mitigation: {why}")


def _check_members(source: Source, place: str, name: str) -> None:
    """Check that a population's member may set a field."""
    check_name(source, place, name)
    section = name.split(".")[0]
    if section in (*SHARED_SECTIONS, *MEMBERS_SHARE):
        raise source.error(place, f"{section} is the same in all members of a population")


def _overrides(source: Source, items: Any) -> list[Override]:
    if items is None:
        return []
    if not isinstance(items, list):
        raise source.error(
            "overrides", f"found {shown(items)}, expected a list of {{when: {{...}}, set: {{...}}}}"
        )
    found = []
    for index, item in enumerate(items):
        try:
            found.append(Override.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["overrides", str(index), *(str(part) for part in first["loc"])])
            raise source.error(where, message_in(Override, first)) from None
        for name in (*found[-1].when, *found[-1].set):
            check_name(source, f"overrides.{index}", name)
            if name.split(".")[0] in SHARED_SECTIONS:
                message = (
                    f"{name} is the same in all cells: {', '.join(SHARED_SECTIONS)} cannot be in an override"
                )
                raise source.error(f"overrides.{index}", message)
    return found


def check_name(source: Source, place: str, name: str) -> None:
    """Check that a dotted name is a field of the configuration.

    Any of the forms that its sections take may have it.
    """
    sections: list[type[BaseModel]] = [Config]
    for part in name.split("."):
        allowed = sorted({field for section in sections for field in section.model_fields})
        if part.isdigit() and sections:
            message = f"{shown(name)} is a part of a list, which is given as a whole; name the list"
            raise source.error(place, message)
        if part not in allowed:
            raise source.error(
                place, f"unknown field {shown(name)}{nearest(part, allowed)}; allowed: {', '.join(allowed)}"
            )
        found = [
            section.model_fields[part].annotation for section in sections if part in section.model_fields
        ]
        sections = [inner for annotation in found for inner in section_classes(annotation)]


def _value(source: Source, raw: Mapping[str, Any], name: str) -> Any:
    """A cell's value of a field: as given, else the default that it has."""
    given = get(raw, name)
    if given is not None:
        return given
    try:
        return _given(raw, validate(source, raw), name)
    except ConfigError:
        # What is missing may be what the override sets; the cell is validated when all are applied.
        return None


def _axes(source: Source) -> dict[str, Sequence[Any]]:
    """The axes with their values, checked against each other."""
    axes = {str(name): _axis_values(source, str(name), values) for name, values in source.grid().items()}
    for name in axes:
        if name == AXIS:
            continue
        check_name(source, f"grid.{name}", name)
        if name.split(".")[0] in EXECUTION_SECTIONS:
            message = (
                "changes how a chain is computed, not its result, so it cannot be an axis; use overrides"
            )
            raise source.error(f"grid.{name}", message)
        for other in axes:
            if other != name and (name + ".").startswith(other + "."):
                raise source.error(f"grid.{name}", f"touches the same field as the axis {other}")
    return axes


def _axis_values(source: Source, name: str, values: Any) -> Sequence[Any]:
    place = f"grid.{name}"
    if isinstance(values, Mapping):
        if (
            set(values) != {"from", "count"}
            or not all(type(v) is int for v in values.values())
            or values["count"] < 1
        ):
            raise source.error(
                place,
                f"found {shown(dict(values))}, expected a list of values, or {{from: INTEGER, count: INTEGER "
                ">= 1}",
            )
        if values["count"] > MAX_CHAINS:
            raise source.error(place, f"asks for {values['count']:,} values; allowed are {MAX_CHAINS:,}")
        return range(values["from"], values["from"] + values["count"])
    if not isinstance(values, list):
        *_, part = name.split(".")
        whole = name.removesuffix(f".{part}")
        hint = f" ({part} is of a range, and {whole} has none)" if part in ("from", "count") else ""
        raise source.error(
            place,
            f"found {shown(values)}{hint}, expected a list of values, or {{from: INTEGER, count: INTEGER "
            ">= 1}",
        )
    if not values:
        raise source.error(place, "is an empty axis; give at least one value")
    seen: set[str] = set()
    for index, value in enumerate(values):
        text = json.dumps(value, sort_keys=True, default=str)
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # too large for a float: its digits tell it apart
                text = repr(float(value))
        if text in seen:
            raise source.error(f"{place}.{index}", f"the value {shown(value)} is given twice")
        seen.add(text)
    return values


def _given(raw: Mapping[str, Any], config: Config, name: str) -> Any:
    """A cell's value of a field: as given, else its default; None where its kinds do not read such a field.

    An object on an axis need not name every field that another one names.
    """
    given = get(raw, name)
    if given is None and not within(name, config.unread):
        given = get(config.model_dump(mode="json", include={name.partition(".")[0]}), name)
    return given


def _columns(axes: Mapping[str, Sequence[Any]]) -> list[str]:
    """One column per axis; for an axis of whole objects one per field in which they differ."""
    columns = []
    for name, values in axes.items():
        if name in WHOLE or not any(isinstance(value, Mapping) for value in values):
            columns.append(name)
            continue
        flat = [_flatten(value, name) for value in values]
        fields = sorted({field for item in flat for field in item})
        differing = [f for f in fields if len({json.dumps(item.get(f), default=str) for item in flat}) > 1]
        columns.extend(differing or fields)
    return columns


def _flatten(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    return {
        field: leaf
        for key, inner in value.items()
        for field, leaf in _flatten(inner, f"{path}.{key}").items()
    }


def _teachers(source: Source, cells: Sequence[Cell]) -> list[Cell]:
    """One cell for every pretrained model that is named as a teacher, beside the same data and sampling."""
    found: list[Cell] = []
    for cell in cells:
        if cell.config.regime.writer.pretrained is not None:
            made = _teacher(source, cell)
            if made not in found:
                found.append(made)
    return found


def _teacher(source: Source, cell: Cell) -> Cell:
    written_by = cast("LanguageModel", cell.config.learner)
    raw = cell.config.model_dump(mode="json")
    learner = {
        "kind": "language_model",
        "model": {"pretrained": cell.config.regime.writer.pretrained},
        "init": "pretrained",
        "train": {"max_steps": 0, "precision": written_by.train.precision},
        "sample": written_by.sample.model_dump(mode="json", exclude_unset=True),
    }
    regime = {"kind": "replace", "synthetic_ratio": 1.0}
    config = validate(
        source, {**raw, "learner": learner, "regime": regime, "filters": [], "generations": 0, "claims": []}
    )
    return Cell(config, dict.fromkeys(cell.axes), teacher=True)


def find_cells(study: Study, wanted: Mapping[str, Any]) -> list[int]:
    """The cells whose axes have these values; a field inside an axis of whole objects can be named too."""
    found = []
    for index, cell in enumerate(study.cells):
        if cell.teacher:
            continue
        values = {
            name: cell.axes[name] if name in cell.axes else get(cell.config.model_dump(mode="json"), name)
            for name in wanted
        }
        if all(_same(values[name], value) for name, value in wanted.items()):
            found.append(index)
    return found


def _same(found: Any, wanted: Any) -> bool:
    return (
        json.dumps(found, sort_keys=True, default=str) == json.dumps(wanted, sort_keys=True, default=str)
        or found == wanted
    )


def resolve_sources(study: Study) -> list[int | None]:
    """The cell that writes each cell's synthetic examples.

    None where there is no ``regime.source: {cell: ...}``.

    Raises:
        ConfigError: It is not in the grid, is not one cell, or depends on itself.
    """
    found: list[int | None] = []
    for cell in study.cells:
        writer = cell.config.regime.writer
        if writer.cell is not None:
            found.append(_find_cell(study, cell, writer.cell))
        elif writer.pretrained is not None:
            found.append(study.cells.index(_teacher(study.source, cell)))
        else:
            found.append(None)
    for index in range(len(found)):
        path = [index]
        while (following := found[path[-1]]) is not None:
            if following in path:
                names = " -> ".join(str(dict(study.cells[step].axes)) for step in (*path, following))
                raise study.source.error("regime.source", f"the cell depends on itself: {names}")
            path.append(following)
    return found


def _find_cell(study: Study, cell: Cell, wanted: Mapping[str, Any]) -> int:
    for name in wanted:
        if name not in study.columns:
            allowed = ", ".join(study.columns) or "none, the grid has no axes"
            raise study.source.error(
                "regime.source",
                f"cell names {shown(name)}, which is no axis{nearest(name, study.columns)}; axes: {allowed}",
            )
    target = {
        **cell.axes,
        **({"regime.source": "self"} if "regime.source" in study.columns else {}),
        **wanted,
    }
    in_grid = [(index, other) for index, other in enumerate(study.cells) if not other.teacher]
    matches = [
        index for index, other in in_grid if all(other.axes[name] == target[name] for name in study.columns)
    ]
    if not matches:
        raise study.source.error("regime.source", f"no cell of the grid has {target}")
    return matches[0]
