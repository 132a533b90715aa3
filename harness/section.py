"""What all sections share: no unknown fields, and which fields are science."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from harness.files import path_of
from harness.terminal import shown

PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


def _as_place(text: str) -> str:
    path = path_of(text)
    return str(path) if text.startswith("~") else text


Place = Annotated[str, AfterValidator(_as_place)]
"""A path, or the name of something that lies elsewhere; ``~`` is the home folder."""


class Section(BaseModel):
    """A section of the configuration: unknown fields, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    if not TYPE_CHECKING:  # or any name would pass for a field

        def __getattr__(self, name: str) -> Any:
            """A field that is not there: specs have sections without what no key holds."""
            if name in type(self).model_fields:
                raise AttributeError(
                    f"{type(self).__name__}.{name}: is in no key here, so what runs cannot read it; who does "
                    "has to say so (LearnerPlugin.evaluates, DataKind.places)"
                )
            return super().__getattr__(name)


HUB = "hf:"
"""Begins the names of data on the Hugging Face hub."""


@dataclass(frozen=True)
class HubItem:
    """One thing of the Hugging Face hub.

    Attributes:
        kind: What it is.
        field: The configuration's field that asks for it, for messages.
        name: As the field names it.
        revision: As the configuration names it; None for the newest.
        weights: A model's weights are needed too, not only its configuration.
    """

    kind: Literal["model", "tokenizer", "data"]
    field: str
    name: str
    revision: str | None
    weights: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.name}" + (f" at {self.revision}" if self.revision else "")


def hub_data(field: str, source: str, revision: str | None = None) -> list[HubItem]:
    """The data that a source names, where they are on the hub."""
    return [HubItem("data", field, source, revision)] if source.startswith(HUB) else []


def check_revision(source: str, revision: str | None) -> None:
    """Check that what a revision is given of can have one.

    Raises:
        ValueError: It is not of the hub, so the revision would say nothing.
    """
    if revision is not None and not source.startswith(HUB):
        raise ValueError(
            f"revision: found {shown(revision)}, and only data of the hub ({HUB}NAME) have revisions"
        )


class DataSection(Section):
    """A section of real data.

    Attributes:
        prompted: Whether an example is a prompt and a completion, which alone is learned.
    """

    prompted: ClassVar[bool] = False

    @property
    def hub_items(self) -> list[HubItem]:
        """What it needs of the hub."""
        return []

    @property
    def resampled(self) -> bool:
        """Whether every seed draws its own examples from the training split."""
        return bool(getattr(self, "resample", False))

    @property
    def own_part(self) -> Segment | None:
        """The part of the training split that is this section's; None for all of it."""
        found: Segment | None = getattr(self, "segment", None)
        return found

    @property
    def own_examples(self) -> bool:
        """Whether every seed has training examples of its own.

        The field ``resample`` says it, where there is one; what has none is a known distribution, which draws
        them. A section of other data without that field has to say False here.
        """
        return bool(getattr(self, "resample", True))

    @model_validator(mode="after")
    def _one_choice(self) -> DataSection:
        if self.resampled and self.own_part is not None:
            raise ValueError(
                "resample: every seed draws from the whole split, and segment is a part of it; give one of "
                "the two"
            )
        return self


class Segment(Section):
    """One of several disjoint parts of the training examples."""

    number: Annotated[int, Field(ge=0)]
    """Which, from 0."""
    of: PositiveInt
    """How many there are."""

    @model_validator(mode="after")
    def _there(self) -> Segment:
        if self.number >= self.of:
            raise ValueError(f"number: found {self.number}, allowed: 0 to {self.of - 1}")
        return self


def begins(learner: Section) -> str | None:
    """What a learner's fits begin from, its field ``init``; None where it has none, or leaves it open."""
    found: str | None = getattr(learner, "init", None)
    return found


def per_prompt(sampling: Section) -> int:
    """Completions that are written for each prompt; 1 where nothing is sampled so."""
    found: int = getattr(sampling, "per_prompt", 1)
    return found


def since(default: Any, **kwargs: Any) -> Any:
    """A science field with a default; the default is recorded as the one at introduction.

    Args:
        default: Today's default.
        kwargs: ``introduced``: the default at introduction, where it is another one today. For a section it
            is what `science` made of it then, and has to be written out: what the section's own fields
            default to may change like any other default. The rest goes to pydantic's ``Field``.
    """
    introduced = kwargs.pop("introduced", _WRITTEN_OUT if isinstance(default, BaseModel) else default)
    if introduced is _WRITTEN_OUT:
        raise TypeError(
            f"since({type(default).__name__}()) needs introduced=..., the section's science at introduction"
        )
    return Field(default=default, json_schema_extra={"introduced": _plain(introduced)}, **kwargs)


_WRITTEN_OUT = object()


def execution(default: Any, **kwargs: Any) -> Any:
    """A field that decides how something is computed, never what; not part of any key."""
    return Field(default=default, json_schema_extra={"execution": True}, **kwargs)


def science(section: BaseModel) -> dict[str, Any]:
    """What of a section belongs to its key, as plain data (see the module's text)."""
    found: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        if name not in section.__dict__:  # taken out of a spec (`science.specs.blank`)
            continue
        value, extra = _plain(getattr(section, name)), info.json_schema_extra
        marks = extra if isinstance(extra, Mapping) else {}
        if marks.get("execution") or ("introduced" in marks and value == marks["introduced"]):
            continue
        found[name] = value
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return science(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value
