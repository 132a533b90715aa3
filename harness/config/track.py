"""Tracks: an environment with fixed budgets and rules, in which mitigations are compared.

A study of a track names it (``track: NAME``, or a path) and gives mitigations; all else that is science comes
from the track's file, and its seeds do too, so what is compared is equal by construction.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator, model_validator

from harness.components import REGIMES
from harness.config.messages import message_in
from harness.config.mitigations import AXIS, SECTION
from harness.config.schema import Filter, science
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
is real. The last two are of mitigations with filters; where answers are judged, `of_judge` says what they
are."""
CHOICE = ("kind", "choose", "rejected", "solutions", "at_least", "of", "most", "deduplicate")
"""Of a judge's section: what is chosen, whoever judges."""


def of_judge(control: str, filters: Any) -> list[Any] | None:
    """The filters of a control of a mitigation that has a judge of answers.

    ``oracle``: the same choice by who knows which answers are right. ``random``: as many answers by lot;
    where a judge passes so many of every prompt, it does not matter which judge that is, and all have one
    control.

    Args:
        control: Its name.
        filters: The mitigation's, as in the file.

    Returns:
        None where there is no such control: nothing is judged, or what is learned from are comparisons, of
        which chance makes none.
    """
    if not isinstance(filters, list) or not filters:
        return None
    judge, *others = filters
    if not isinstance(judge, Mapping) or judge.get("kind") != "judge":
        return None
    choice = {name: value for name, value in judge.items() if name in CHOICE}
    by_truth = {**choice, "judge": "exact"}
    if control == "oracle":
        return [by_truth, *others]
    if judge.get("choose") in ("pairs", "all"):
        return None
    whole = judge.get("choose") == "best" and judge.get("at_least") is None
    return [{**(by_truth if whole else judge), "by_lot": True}, *others]


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
    classifiers: bool = since(False)
    """Whether filters may be models that have learned elsewhere (`classifier`): nobody here knows from what,
    the test set maybe."""
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
        selects = isinstance(kind, str) and kind in REGIMES and REGIMES[kind].selects
        if self.controls and not selects and not self.answers:
            allowed = ", ".join(name for name in REGIMES if REGIMES[name].selects)
            raise ValueError(
                f"controls need config.regime.kind {allowed}, or prompts that are answered "
                f"(config.data.source: task, config.data.kind: chat); found the regime {shown(kind)}"
            )
        for control in self.controls:
            for name in () if self.answers and control != "clean" else CONTROLS[control]:
                taken = [field for field in self.open if f"{name}.".startswith(f"{field}.")]
                if taken:
                    raise ValueError(
                        f"open: {taken[0]} is what the control {control} sets, so it is not open"
                    )
        return self

    @property
    def answers(self) -> bool:
        """Whether its models answer prompts."""
        data = self.config.get("data")
        return isinstance(data, Mapping) and (data.get("source") == "task" or data.get("kind") == "chat")

    def with_controls(self, mitigations: Mapping[str, Any]) -> dict[str, Any]:
        """Mitigations, and behind each its controls by the name ``<mitigation>.<control>``.

        A control that is another mitigation, or another one's control, is not there twice (`control`).

        Args:
            mitigations: Name to settings, as in a file.
        """
        known = {_canonical(settings): name for name, settings in mitigations.items()}
        found: dict[str, Any] = {}
        for name, settings in mitigations.items():
            found[name] = settings
            for control in self.controls:
                changed = self._controlling(control, settings)
                if changed is not None and known.setdefault(_canonical(changed), f"{name}.{control}") == (
                    f"{name}.{control}"
                ):
                    found[f"{name}.{control}"] = changed
        return found

    def control(self, mitigation: str, control: str, mitigations: Mapping[str, Any]) -> str | None:
        """Which of a study's mitigations is the control of one; None where it has none.

        Args:
            mitigation: Its name.
            control: The control's name.
            mitigations: All of the study's, with controls.
        """
        changed = self._controlling(control, mitigations.get(mitigation))
        if changed is None:
            return None
        wanted = _canonical(changed)
        return next((name for name, settings in mitigations.items() if _canonical(settings) == wanted), None)

    def _controlling(self, control: str, settings: Any) -> dict[str, Any] | None:
        """The settings of a control of a mitigation with these; None where it has no such control."""
        given = dict(settings) if isinstance(settings, Mapping) else {}
        if self.answers and control != "clean":
            judged = of_judge(control, given.get("filters"))
            return None if judged is None else {**given, "filters": judged}
        if control == "clean" or given.get("filters", self.config.get("filters")):
            return {**given, **CONTROLS[control]}
        return None

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


def _canonical(settings: Any) -> str:
    """Settings as one text; filters without what they leave at its default."""
    given = dict(settings) if isinstance(settings, Mapping) else {}
    with contextlib.suppress(ValidationError):  # which is reported where the cell is read
        if "filters" in given:
            sections = TypeAdapter(tuple[Filter, ...]).validate_python(given["filters"])
            given["filters"] = [science(section) for section in sections]
    return json.dumps(given, sort_keys=True, default=str)


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
            problems.append(source.problem(field, message_in(Track, detail)))
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
    grid = source.grid()
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
