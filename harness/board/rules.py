"""A track's acceptance rules as code: what an entry may use, looked at in what would be, or was, executed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from harness.components import FILTERS
from harness.config.grid import find_cells
from harness.config.mitigations import AXIS, SECTION
from harness.config.schema import Config, science
from harness.config.shipped import tracks
from harness.config.track import BASELINE, Limits, Track, read_track
from harness.data.real import PreparedData
from harness.errors import InputError
from harness.metrics.catalogue import about
from harness.metrics.overlap import overlaps
from harness.records import REAL, Recipe
from harness.study import Prepared
from harness.terminal import shown


def check_rules(
    prepared: Prepared, track: Track, cell: int, baseline: int, overlap: Mapping[str, float]
) -> tuple[int, float]:
    """Check that a cell keeps to its track's limits.

    Args:
        prepared: The study.
        track: Its track.
        cell: Number of the cell.
        baseline: Number of the baseline's cell.
        overlap: From `overlap_of`, of the cell's data.

    Returns:
        Training examples of all generations together, and as a multiple of the baseline's.

    Raises:
        InputError: With the field that breaks a rule.
    """
    worse_sign(track.score.metric)
    config, spec, limits = prepared.study.cells[cell].config, prepared.specs[cell], track.limits
    name = prepared.study.cells[cell].axes[AXIS]

    def refuse(field: str, message: str) -> InputError:
        place = f"{SECTION}.{name}.{field}"
        return InputError(str(prepared.study.source.problem(place, f"{message} (track {track.track})")))

    if (broken := _broken_kind(config, prepared.study.cells[baseline].config, limits)) is not None:
        raise refuse(*broken)
    recipes = [spec.recipe(generation) for generation in range(config.generations + 1)]
    for generation, recipe in enumerate(recipes[1:], start=1):
        if _real_examples(recipe) > _real_examples(prepared.specs[baseline].recipe(generation)):
            raise refuse("regime", f"generation {generation} reads real examples that no other entry has")
        share = _real_share(recipe)
        if limits.real_share is not None and share > limits.real_share + 1e-9:
            message = f"{share:.1%} of generation {generation} are real examples, allowed are "
            raise refuse("regime", f"{message}{limits.real_share:.1%}")
    total = sum(recipe.size for recipe in recipes)
    of_baseline = sum(prepared.specs[baseline].recipe(g).size for g in range(config.generations + 1))
    times = total / of_baseline
    if limits.examples is not None and times > limits.examples:
        message = f"trains on {times:.3g} times the examples of the baseline, allowed are {limits.examples:g}"
        raise refuse("regime", message)
    for what, found in overlap.items():
        if found > limits.overlap:
            message = f"{found:.1%} of the test set ({what}) are in the training set, allowed are "
            raise refuse("data", f"{message}{limits.overlap:.1%}")
    return total, times


def _broken_kind(config: Config, baseline: Config, limits: Limits) -> tuple[str, str] | None:
    """The field that says what its track does not allow, and why; None where all is of an allowed kind."""
    if limits.regimes is not None and config.regime.kind not in limits.regimes:
        return "regime.kind", f"found {config.regime.kind!r}, allowed: {', '.join(limits.regimes)}"
    if config.regime.writer != baseline.regime.writer:
        return "regime.source", "reads what no chain of its own has written"
    for number, section in enumerate(config.filters):
        if FILTERS[section.kind].elsewhere(section) and not limits.classifiers:
            why = f"{section.kind} has learned elsewhere, which limits.classifiers does not allow"
            return f"filters.{number}", why
    return None


def broken_rules(prepared: Prepared) -> list[str]:
    """What of a study of a track can be no entry, a line each: known before anything of it runs.

    Nothing of other studies, and of a part of one that leaves out the baseline.
    """
    if prepared.study.source.track is None:
        return []
    track, found = prepared.study.source.track.track, []
    nothing = next(iter(find_cells(prepared.study, {AXIS: BASELINE})), None)
    for index, cell in enumerate(prepared.study.cells):
        name = str(cell.axes.get(AXIS))
        if nothing is None or cell.teacher or track.controlled(name) is not None:
            continue
        try:
            # what is in the data is the same for all of the track, and takes long to look at
            check_rules(prepared, track, index, nothing, {})
        except InputError as error:
            found.append(str(error))
    return list(dict.fromkeys(found))


def worse_sign(metric: str) -> float:
    """1 where a metric worsens upwards, else -1.

    Raises:
        InputError: Nobody has said which way it worsens, so nothing can be ranked by it.
    """
    worse = about(metric).worse
    if worse not in ("higher", "lower"):
        raise InputError(
            f"score.metric: found {shown(metric)}, and it is not known which way that worsens, so nothing "
            "can be ranked by it; harness list metrics says it of others"
        )
    return -1.0 if worse == "lower" else 1.0


def other_rules(track: Track) -> list[str]:
    """What a track says otherwise than the one of its name and version that comes with the harness, by field.

    Nothing for tracks of others, and of other versions: whose rules they are nobody here knows.
    """
    path = tracks().get(track.track)
    known = None if path is None else _shipped(path)
    if known is None or known.version != track.version:
        return []
    mine, theirs = science(track), science(known)
    found = []
    for name in sorted(mine.keys() | theirs.keys()):
        one, other = mine.get(name), theirs.get(name)
        if one != other and isinstance(one, dict) and isinstance(other, dict):
            fields = sorted(f for f in one.keys() | other.keys() if one.get(f) != other.get(f))
            found += [f"{name}.{field}" for field in fields]
        elif one != other:
            found.append(name)
    return found


@cache
def _shipped(path: Path) -> Track:
    return read_track(path).track


def _real_examples(recipe: Recipe) -> int:
    """How many real examples have arrived where this is trained on."""
    return max((part.offset + part.count for part in recipe.parts if part.draw == "unseen"), default=0)


def _real_share(recipe: Recipe) -> float:
    size = sum(part.count for part in recipe.parts)
    return sum(part.count for part in recipe.parts if part.origin == REAL) / size if size else 0.0


def overlap_of(data: PreparedData) -> dict[str, float]:
    """Share of the test examples that the training split has too: whole ones, and n-grams of text.

    Empty where the truth is known, so that nothing is held out.
    """
    real = data.real
    if data.kept is None or not hasattr(real, "test"):
        return {}
    return overlaps(real.test.values, real.real(0, real.supply).values)
