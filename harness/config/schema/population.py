"""The section of populations: several models that train on what all of them write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from harness.section import Section, Share
from harness.terminal import nearest, shown

MAX_MEMBERS = 256
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]


class Member(Section):
    """One model of a population."""

    set: dict[str, Any] = {}
    """Dotted fields with the values that this member has instead: its model, training, sampling, regime,
    filters."""
    arrives: Annotated[int, Field(ge=0)] = 0
    """The population's generation in which it is fitted for the first time, to real data as every generation
    0."""
    retires: Annotated[int, Field(ge=0)] | None = None
    """The population's generation in which it is fitted for the last time; never when null."""

    @model_validator(mode="after")
    def _some_time(self) -> Member:
        if self.retires is not None and self.retires < self.arrives:
            raise ValueError(
                f"retires: found {self.retires}, before it arrives (arrives: {self.arrives}); "
                f"allowed: {self.arrives} and more, or null"
            )
        return self


class TeacherExchange(Section):
    """All members, itself too, read what one of them writes."""

    teacher: Name
    """The member whose examples all train on."""


def _form_of(value: Any) -> str | None:
    """The tag of an exchange; None where it has no form of one."""
    if isinstance(value, TeacherExchange):
        return "from a teacher"
    if isinstance(value, Mapping):
        of_one = list(value) == ["teacher"] and not isinstance(value["teacher"], Mapping)
        return "from a teacher" if of_one else "a matrix"
    return "a name" if value in ("pool", "self", "ring") else None


ExchangeForm = Annotated[
    Annotated[Literal["pool", "self", "ring"], Tag("a name")]
    | Annotated[TeacherExchange, Tag("from a teacher")]
    | Annotated[dict[Name, dict[Name, Share]], Tag("a matrix")],
    Discriminator(
        _form_of,
        custom_error_type="form",
        custom_error_message="one of several forms",
        custom_error_context={"forms": "pool, self, ring, {teacher: MEMBER}, {READER: {WRITER: SHARE}}"},
    ),
]


class Population(Section):
    """Several models that train in each generation on what all of them wrote in the one before."""

    members: (
        Annotated[int, Field(ge=1, le=MAX_MEMBERS)]
        | Annotated[dict[Name, Member | None], Field(min_length=1, max_length=MAX_MEMBERS)]
    )
    """How many, all alike (``m1``, ``m2``, ...); or their names with what is particular to each."""
    exchange: ExchangeForm = "pool"
    """Who writes a member's synthetic examples: all members in equal shares, itself alone, the member before
    it, one teacher, or a matrix: for each member the shares of those it reads, which sum to 1."""
    segments: Literal["disjoint", "shared"] = "disjoint"
    """Every member has its own part of the data.num_examples real examples (equally many, a remainder left
    out), so that the population trains on as many as one chain; or each has all of them."""

    @field_validator("exchange", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        """A matrix's numbers, before it is asked what else it could be."""
        if isinstance(value, Mapping) and set(value) != {"teacher"}:
            for name, row in value.items():
                if not isinstance(row, Mapping):
                    raise ValueError(f"{name}: found {shown(row)}, expected the shares of those it reads")
                for writer, share in row.items():
                    if not isinstance(share, int | float) or not 0 <= share <= 1:
                        raise ValueError(f"{name}.{writer}: found {shown(share)}, a share is from 0 to 1")
        return value

    @field_validator("exchange")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            for name, row in value.items():
                total = sum(row.values())
                if abs(total - 1) > 1e-9:
                    raise ValueError(f"{name}: the shares sum to {total:.6g}, expected 1")
        return value

    @model_validator(mode="after")
    def _known_names(self) -> Population:
        match self.exchange:
            case TeacherExchange(teacher=name):
                named = {name: "teacher"}
            case dict() as rows:
                named = {name: "exchange" for name in rows}
                named |= {name: f"exchange.{reader}" for reader, row in rows.items() for name in row}
            case _:
                named = {}
        known = list(self.named)
        for name, where in named.items():
            if name not in known:
                allowed = f"allowed: {', '.join(known[:20])}{nearest(name, known)}"
                raise ValueError(f"{where}: found {shown(name)}, which is no member; {allowed}")
        if isinstance(self.exchange, dict):
            missing = [name for name in known if name not in self.exchange]
            if missing:
                raise ValueError(
                    f"exchange: has no row for {', '.join(missing[:20])}; every member needs one"
                )
        return self

    @property
    def named(self) -> dict[str, Member]:
        """The members by name."""
        if isinstance(self.members, int):
            return {f"m{number + 1}": Member() for number in range(self.members)}
        return {name: member or Member() for name, member in self.members.items()}

    @property
    def mixes(self) -> bool:
        """Whether members read one another."""
        return self.exchange != "self" and len(self.named) > 1

    def share(self, reader: str, writer: str) -> float | None:
        """The share that a matrix or a teacher gives; None where it follows from who is there."""
        match self.exchange:
            case TeacherExchange(teacher=name):
                return float(writer == name)
            case dict() as rows:
                return float(rows[reader].get(writer, 0.0))
        return None
