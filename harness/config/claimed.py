"""Claims against the grid: whether the cells and generations that they name are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.config.grid import SHAPED, SHARED_SECTIONS, Study, check_name, find_cells
from harness.config.mitigations import AXIS
from harness.config.population import MEMBER, arrival
from harness.config.schema import Statistic

COMPARED = ("change", "ratio", "log_ratio", "undone")
"""Statistics of two generations."""


def check_claims(study: Study) -> None:
    """Check that each claim's cells are in the grid, as far as ``--set`` leaves it.

    Raises:
        ConfigError: A claim names no cell, or more than one.
    """
    for number, claim in enumerate(study.base.claims):
        for name, wanted in claim.statistic.cells:
            place = f"claims.{number}.statistic"
            for field in wanted:
                if field not in (AXIS, MEMBER) or field not in study.columns:
                    check_name(study.source, place, field)
                if field.split(".")[0] in SHARED_SECTIONS:
                    message = (
                        f"{name} {dict(wanted)}: {field} is the same in all cells; a claim is about all seeds"
                    )
                    raise study.source.error(place, message)
            found = find_cells(study, wanted)
            if not found and any(map(study.source.is_set, wanted)):
                continue
            if claim.statistic.over is not None:
                last = _last_of_population(study, found, f"{place}.over", name, wanted)
            else:
                last = _last_of_cell(study, found, place, name, wanted)
            if name == "minus" and found == find_cells(study, claim.statistic.where):
                raise study.source.error(
                    f"{place}.minus", f"{dict(wanted)} is the cell of where: their difference is always 0"
                )
            if not study.source.is_set("generations"):
                _check_generations(study, claim.statistic, place, last)


def _check_generations(study: Study, statistic: Statistic, place: str, last: int) -> None:
    """Check that what a claim is about has the generations that it asks for."""
    if statistic.of == "growth" and last + 1 < SHAPED:
        message = f"growth needs {SHAPED} generations to tell shapes apart, the cell has {last + 1}"
        raise study.source.error(f"{place}.of", message)
    for field in ("generation", "baseline"):
        asked = getattr(statistic, field)
        if asked is not None and asked > last:
            raise study.source.error(
                f"{place}.{field}", f"found {asked}, the cell has generations 0 to {last}"
            )
    asked = last if statistic.generation is None else statistic.generation
    if statistic.of in COMPARED and asked == statistic.baseline:
        raise study.source.error(
            f"{place}.{'baseline' if statistic.baseline else 'generation'}",
            f"of: {statistic.of} compares generation {asked} with itself; allowed: two generations",
        )


def _last_of_cell(
    study: Study, found: Sequence[int], place: str, name: str, wanted: Mapping[str, Any]
) -> int:
    """The last generation of the only cell that is found."""
    if len(found) != 1:
        cells = "; ".join(
            str(dict(study.cells[index].axes)) for index in (found or range(len(study.cells)))[:6]
        )
        what = f"{len(found)} cells match" if found else "no cell matches"
        raise study.source.error(
            place, f"{name} {wanted}: {what}, expected one; {'they are' if found else 'cells'}: {cells}"
        )
    return study.cells[found[0]].config.generations


def _last_of_population(
    study: Study, found: Sequence[int], place: str, name: str, wanted: Mapping[str, Any]
) -> int:
    """The last generation of the population whose members are all found, and nothing else is."""
    members = [study.cells[index].member for index in found]
    cells = {member.cells if member else () for member in members}
    if not found or cells != {tuple(found)}:
        several = len(cells - {()})
        what = f"{several} populations" if several > 1 else "no population, or not all of its members"
        raise study.source.error(
            place,
            f"{name} {dict(wanted)} names {what}; expected the axes of one population, without {MEMBER}",
        )
    return max(
        cell.config.generations + (arrival(cell.config, cell.member) if cell.member else 0)
        for cell in (study.cells[index] for index in found)
    )
