"""The members of a population, each as a cell of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from harness.components import FILTERS, REGIMES
from harness.config.load import validate
from harness.config.schema import Config, Population, data_kind
from harness.config.source import Source, with_values
from harness.terminal import shown

MEMBER = "member"
"""The column of ``export`` that names a population's member."""
SECTION = "population"
MEMBERS_SHARE = ("data", "generations", "population")
"""Sections that all members share, besides those that all cells share: they learn one real distribution at
one time."""


@dataclass(frozen=True)
class Membership:
    """A cell's place in a population.

    Attributes:
        name: Of the member.
        number: Its place among the members.
        cells: The cells of all members, by their number in the study.
    """

    name: str
    number: int
    cells: tuple[int, ...]


def arrival(config: Config, member: Membership) -> int:
    """The population's generation in which a member is fitted for the first time."""
    assert config.population is not None
    return config.population.named[member.name].arrives


def members(
    source: Source,
    config: Config,
    raw: Mapping[str, Any],
    places: Mapping[str, str],
    check_setting: Callable[[str, str], None],
) -> Iterator[tuple[str, Config, Mapping[str, str]]]:
    """Every member of a point's population with its own configuration, and ``places`` of its own.

    Args:
        source: The file.
        config: The point, which has a population.
        raw: Its data.
        places: Where a field's value stands when not at its own place.
        check_setting: Checks that a dotted field (second) may be set at a place in the file (first).

    Raises:
        ConfigError: A member's settings are wrong, or it is never there.
    """
    population = config.population
    assert population is not None
    place = places.get(SECTION, SECTION)
    _check_data(source, place, config, population)
    for number, (name, member) in enumerate(population.named.items()):
        at = f"{place}.members.{name}"
        for field in member.set:
            check_setting(f"{at}.set.{field}", field)
        last = config.generations if member.retires is None else min(member.retires, config.generations)
        if last < member.arrives:
            raise source.error(
                f"{at}.arrives", f"found {member.arrives}, the population has generations 0 to {last}"
            )
        values = {**member.set, **_own_data(config, population, number), "generations": last - member.arrives}
        try:
            own = with_values(raw, values)
        except TypeError as error:
            raise source.error(f"{at}.set", str(error)) from None
        own_places = {**{field: f"{at}.set.{field}" for field in member.set}, **places}
        found = validate(source, own, own_places)
        _check_reading(source, at, found, population)
        yield name, found, own_places


def _check_data(source: Source, place: str, config: Config, population: Population) -> None:
    """Check that the real data can be divided."""
    data, size = config.data, len(population.named)
    if population.segments == "shared" or size == 1:
        return
    given = data.num_examples
    if given is not None and given < size:
        raise source.error(
            f"{place}.segments",
            f"{size} disjoint parts of {given} real examples (data.num_examples) are none",
        )
    for name, is_given in (("resample", data.resampled), ("segment", data.own_part is not None)):
        if is_given:
            raise source.error(
                f"{place}.segments",
                f"the members' parts are disjoint, so data.{name} cannot be given; leave it out, or set "
                "segments: shared",
            )
    if "segment" not in type(data).model_fields and not data.own_examples:
        raise source.error(
            f"{place}.segments", f"{data_kind(data)} data have no disjoint parts; allowed: shared"
        )


def _own_data(config: Config, population: Population, number: int) -> dict[str, Any]:
    """What is particular to a member's real data: its part of them, and how many these are."""
    size = len(population.named)
    if population.segments == "shared" or size == 1:
        return {}
    found: dict[str, Any] = {}
    given = config.data.num_examples
    if given is not None:
        found["data.num_examples"] = given // size
    if "segment" in type(config.data).model_fields:
        found["data.segment"] = {"number": number, "of": size}
    return found


def _check_reading(source: Source, place: str, config: Config, population: Population) -> None:
    """Check that a member can read what others write."""
    if config.regime.source != "self":
        raise source.error(
            place,
            f"regime.source: found {shown(config.regime.source)}; in a population the exchange says who "
            "writes",
        )
    if not population.mixes or REGIMES[config.regime.kind].selects:
        return
    short = any(FILTERS[item.kind].short for item in config.filters)
    for item in config.filters:
        if FILTERS[item.kind].opposed(item)[0]:
            raise source.error(
                place,
                f"filters: {item.kind} pairs what one chain wrote; in a population it needs exchange: self",
            )
        if FILTERS[item.kind].of == "corpora" and not short:
            selecting = ", ".join(kind for kind in REGIMES if REGIMES[kind].selects)
            raise source.error(
                place,
                f"filters: {item.kind} asks a model to write until enough of it passes, and cannot ask other "
                f"members; in a population filters go with regime.kind {selecting}, or with exchange: self",
            )
