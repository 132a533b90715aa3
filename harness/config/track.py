"""Tracks: an environment with fixed budgets and rules, in which mitigations are compared.

A study of a track names it (``track: NAME``, or a path) and gives mitigations; all else that is science comes
from the track's file, and its seeds do too, so what is compared is equal by construction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from harness.components import REGIMES
from harness.config.mitigations import AXIS, SECTION
from harness.config.shipped import tracks
from harness.config.source import Source, read_source
from harness.errors import ConfigError
from harness.section import PositiveInt, Section, Share, since
from harness.terminal import nearest, shown

MIN_SEEDS = 5
"""Nothing is ranked over fewer seeds."""
BASELINE = "none"
"""The mitigation that changes nothing: what every entry is compared with, seed by seed."""
OWN = ("experiment", "resources", "retention", "tracking", "claims", "grid", "seed", SECTION, AXIS)
"""What a study of a track may say itself: who does it and how, which mitigations, and which part of them."""
OPEN = ("learner", "regime", "filters")
"""Where mitigations may have their fields; with other data, metrics or generations nothing is compared."""

CONTROLS: Mapping[str, Mapping[str, Any]] = {
    "clean": {"regime.synthetic_ratio": 0},
    "random": {"regime.select": "random"},
    "oracle": {"regime.select": "oracle"},
}
"""What a track may run beside every mitigation, and the field in which it differs from it: the same where
nothing is synthetic (what it costs), and its filters' number of examples chosen by lot, or by who knows what
is real. The last two are of mitigations with filters."""


class Score(Section):
    """What entries are ranked by, and what is shown beside it."""

    metric: str
    """A column of ``export``; the score is how far it worsens from generation 0 to the last one."""
    unit: str = ""
    """Of the metric, for people."""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """A worsening at which a chain counts as collapsed: ``generations until`` it is reached."""
    beside: tuple[str, ...] = ()
    """Other columns, shown as last and as share of generation 0; never part of the rank."""


class Limits(Section):
    """What an entry may use."""

    regimes: tuple[str, ...] | None = None
    """Kinds of regimes; any where null."""
    real_share: Share | None = None
    """Real examples of a generation, behind generation 0, as a share of its training set; any where null."""
    examples: Annotated[float, Field(ge=1)] | None = None
    """Training examples of all generations together, times those of `BASELINE`; any number where null."""
    overlap: Share = 0.01
    """Share of the test set that may also be in what is trained on (whole examples, and 13-grams of text)."""


class Track(Section):
    """A track's file."""

    track: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    """Its name."""
    version: PositiveInt
    """Raised with every change of what is computed or compared; entries of other versions are not mixed."""
    title: str
    """In a few words."""
    about: str
    """What the environment is, and what it is good for, for people."""
    rules: Annotated[tuple[str, ...], Field(min_length=1)]
    """What an entry has to keep to, in words; ``open`` and ``limits`` are the same as code."""
    config: dict[str, Any]
    """The environment: a configuration without experiment and mitigations."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**62)], ...], Field(min_length=MIN_SEEDS)]
    """Those of every entry."""
    score: Score
    open: Annotated[tuple[str, ...], Field(min_length=1)]
    """Fields, or sections, that a mitigation may set."""
    limits: Limits = Limits()
    controls: tuple[Literal["clean", "random", "oracle"], ...] = since(())
    """What is run beside every entry (`CONTROLS`)."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is given twice")
        return value

    @field_validator("open")
    @classmethod
    def _of_mitigations(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for field in value:
            if field.split(".")[0] not in OPEN:
                raise ValueError(f"{shown(field)} is not for a mitigation to set; allowed: {', '.join(OPEN)}")
        return value

    @model_validator(mode="after")
    def _controllable(self) -> Track:
        regime = self.config.get("regime")
        kind = regime.get("kind") if isinstance(regime, Mapping) else None
        if self.controls and not (isinstance(kind, str) and kind in REGIMES and REGIMES[kind].selects):
            allowed = ", ".join(name for name in REGIMES if REGIMES[name].selects)
            raise ValueError(f"controls need config.regime.kind {allowed}, found {shown(kind)}")
        for control in self.controls:
            for name in CONTROLS[control]:
                taken = [field for field in self.open if f"{name}.".startswith(f"{field}.")]
                if taken:
                    raise ValueError(
                        f"open: {taken[0]} is what the control {control} sets, so it is not open"
                    )
        return self

    def with_controls(self, mitigations: Mapping[str, Any]) -> dict[str, Any]:
        """Mitigations, and behind each its controls by the name ``<mitigation>.<control>``.

        Args:
            mitigations: Name to settings, as in a file.
        """
        found: dict[str, Any] = {}
        for name, settings in mitigations.items():
            found[name] = settings
            given = dict(settings or {})
            filtered = given.get("filters", self.config.get("filters"))
            for control in self.controls:
                if control == "clean" or filtered:
                    found[f"{name}.{control}"] = {**given, **CONTROLS[control]}
        return found

    def controlled(self, name: str) -> str | None:
        """The mitigation of which a name is a control; None for a mitigation."""
        before, _, control = name.rpartition(".")
        return before if before and control in self.controls else None

    @field_validator("config")
    @classmethod
    def _without_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        found = [name for name in value if name in (*OWN, "track") and name not in ("resources", "retention")]
        if found:
            raise ValueError(
                f"{', '.join(found)} belongs to the study of an entry, or has a field of its own"
            )
        return value


@dataclass(frozen=True)
class Entered:
    """The track that a study is of, and its file.

    Attributes:
        track: Its content.
        source: The file, for lines.
    """

    track: Track
    source: Source


def read_track(path: Path) -> Entered:
    """Read a track's file.

    Raises:
        ConfigError: It is unreadable, or something in it is wrong.
    """
    source = read_source(path)
    try:
        return Entered(Track.model_validate(source.data), source)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            field = ".".join(str(part) for part in detail["loc"])
            message = str(detail["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
            if detail["type"] == "extra_forbidden":
                message = f"unknown field{nearest(field, Track.model_fields)}"
            elif detail["type"] == "missing":
                message = "is required"
            else:
                message = f"found {shown(detail['input'])}, expected {message}"
            problems.append(source.problem(field, message))
        raise ConfigError(problems) from None


def in_track(source: Source, folder: Path) -> Source:
    """A study of a track with the track's environment in it; any other study as it is.

    Args:
        source: The study's file.
        folder: Where a path of a track begins.

    Raises:
        ConfigError: The track is unknown or wrong, or the study says what the track fixes.
    """
    if "track" not in source.data:
        return source
    if {"rules", "config"} <= source.data.keys():
        message = "this is a track's file, not a study; a study names the track, and gives mitigations"
        raise source.error("track", message)
    name = source.data["track"]
    known = tracks()
    path = known.get(name) if isinstance(name, str) else None
    if path is None and isinstance(name, str) and name.endswith((".yaml", ".yml")):
        path = folder / name
    if path is None:
        allowed = f"allowed: {', '.join(known)}{nearest(str(name), known)}, or a path that ends in .yaml"
        raise source.error("track", f"found {shown(name)}, {allowed}")
    entered = read_track(path)
    track = entered.track
    for field in source.data:
        if field not in (*OWN, "track"):
            opened = ", ".join(track.open)
            raise source.error(field, f"is fixed by the track {track.track}; mitigations may set {opened}")
    grid = source.data.get("grid") or {}
    if not isinstance(grid, Mapping):
        raise source.error("grid", f"found {shown(grid)}, expected fields with lists of values")
    for axis in grid:
        if axis not in ("seed", AXIS):
            raise source.error(f"grid.{axis}", f"is no axis of a track; allowed: seed, {AXIS}")
    _check_open(source, track)
    seeds = {} if "seed" in source.data or "seed" in grid else {"seed": list(track.seeds)}
    given = {name: value for name, value in source.data.items() if name != "track"}
    mitigations = track.with_controls({BASELINE: {}, **(source.data.get(SECTION) or {})})
    data = {**track.config, **given, SECTION: mitigations, "grid": {**grid, **seeds}}
    return replace(source, data=data, track=entered)


def _check_open(source: Source, track: Track) -> None:
    given = source.data.get(SECTION) or {}
    if not isinstance(given, Mapping):
        raise source.error(
            SECTION, f"found {shown(given)}, expected names with settings: {{none: {{}}, ...}}"
        )
    for name, settings in given.items():
        place = f"{SECTION}.{name}"
        if (other := track.controlled(name)) is not None:
            raise source.error(place, f"is the name of a control of {other}, which the track runs by itself")
        if name == BASELINE and settings:
            raise source.error(place, "is what entries are compared with, so it changes nothing: {}")
        for field in settings if isinstance(settings, Mapping) else ():
            if not any(f"{field}.".startswith(f"{allowed}.") for allowed in track.open):
                allowed = ", ".join(track.open)
                message = f"the track {track.track} leaves open: {allowed}{nearest(field, track.open)}"
                raise source.error(f"{place}.{field}", message)
