"""A configuration with every value that it has in a cell, and where each of them comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from harness.components import LEARNERS
from harness.config.grid import Point, Study, point_of
from harness.config.mitigations import SECTION
from harness.config.population import SECTION as POPULATION
from harness.config.source import get, has, put, within


@dataclass(frozen=True)
class Value:
    """One field of a cell's configuration.

    Attributes:
        path: Dotted name.
        value: Plain data; None of a section that has fields of its own.
        origin: ``line 7``, ``line 7 of the track``, ``--set``, ``grid, value 2 of 3 (line 20)``,
            ``override (line 25)``, ``mitigation none (line 9)``, ``preset small``, ``default``.
        is_section: Its fields follow.
    """

    path: str
    value: Any
    origin: str
    is_section: bool


def resolved(study: Study, number: int) -> list[Value]:
    """Every field of a cell that it reads, sections before their fields.

    Args:
        study: The study.
        number: The cell's number; one that the harness has added for a teacher has no place in the file.
    """
    cell = study.cells[number]
    data = cell.config.model_dump(mode="json")
    point = Point(data, {}, {}) if cell.teacher else point_of(study.source, cell.point)
    learner = cell.config.learner
    values, origin = LEARNERS[learner.kind].stands_for(learner)
    for name, value in values.items():
        put(data, f"learner.{name}", value)
    origins = {f"learner.{name}": origin for name in values}
    place = point.places.get(POPULATION, POPULATION)
    if cell.member is not None and cell.config.population is not None:
        name = cell.member.name
        for field in ("data.num_examples", "data.segment", "generations"):
            if not has(point.raw, field) or get(point.raw, field) != get(data, field):
                origins[field] = f"population ({_line(study, place)})"
        for field in cell.config.population.named[name].set:
            origins[field] = f"member {name} ({_line(study, f'{place}.members.{name}.set.{field}')})"
    unread = cell.config.unread
    found = [item for item in _walk(study, point, data, "", origins) if not within(item.path, unread)]
    return _with_seeds(study, found) if has(study.source.data, "grid.seed") else found


def _with_seeds(study: Study, values: list[Value]) -> list[Value]:
    """The seeds of the grid in the place of the one that a cell without would have."""
    seeds = Value("grid.seed", list(study.seeds), f"a chain for each ({_line(study, 'grid.seed')})", False)
    return [*(item for item in values if item.path != "seed"), Value("grid", None, "", True), seeds]


def _line(study: Study, place: str) -> str:
    """The line of the study's file or of its track, or that it is an assignment."""
    at = study.source.problem(place, "")
    if at.where == "--set":
        return at.where
    line = f"line {at.line}" if at.line else "seeds"
    return line if at.where == study.source.name else f"{line} of the track"


def _walk(
    study: Study, point: Point, data: Mapping[str, Any], above: str, origins: Mapping[str, str]
) -> Iterator[Value]:
    for name, value in data.items():
        path = f"{above}.{name}" if above else name
        if isinstance(value, Mapping) and value:
            yield Value(path, None, "", True)
            yield from _walk(study, point, value, path, origins)
        else:
            yield Value(path, value, _origin(study, point, path, origins), False)


def _origin(study: Study, point: Point, path: str, origins: Mapping[str, str]) -> str:
    source = study.source
    member = next((found for field, found in origins.items() if f"{path}.".startswith(f"{field}.")), "")
    if member.startswith(("member ", "population ")):  # over what the file says of all
        return member
    # of a section that is given, the fields that it does not name; null where a preset has a value names none
    if not has(point.raw, path) or path in origins and get(point.raw, path) is None:
        return origins.get(path, "default")
    place = next((place for field, place in point.places.items() if f"{path}.".startswith(f"{field}.")), None)
    if place is not None:
        where = f" ({_line(study, place)})"
        if place.startswith("overrides."):
            return f"override{where}"
        if place.startswith(f"{SECTION}."):
            return f"mitigation {point.mitigation}{where}"
        axis, _, index = place.removeprefix("grid.").rpartition(".")
        return f"grid, value {int(index) + 1} of {len(source.data['grid'][axis])}{where}"
    return _line(study, path)


def as_text(values: list[Value]) -> str:
    """The values as YAML that says the same, each with its origin behind it."""
    rows = []
    for item in values:
        indent, name = "  " * item.path.count("."), item.path.rpartition(".")[2]
        if item.is_section:
            rows.append((f"{indent}{name}:", ""))
        else:
            rows.append((f"{indent}{name}: {_inline(item.value)}", item.origin))
    width = min(60, max(len(text) for text, origin in rows if origin))
    return "\n".join(f"{text:{width}}  # {origin}" if origin else text for text, origin in rows) + "\n"


def _inline(value: Any) -> str:
    """A value on one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
