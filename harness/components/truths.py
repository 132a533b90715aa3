"""Known distributions, and rows of numbers: their sections, and what the rest of the harness has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from harness.registry import DataKind
from harness.section import DataSection, Place, PositiveInt, Section, Segment, Share, since


class GaussianData(DataSection):
    """N(mean, variance x I) as the real distribution."""

    source: Literal["gaussian"]
    dim: PositiveInt = since(1)
    num_examples: Annotated[int, Field(ge=2)] = since(100)
    mean: float = since(0.0)
    variance: Annotated[float, Field(gt=0)] = since(1.0)


class DiscreteData(DataSection):
    """A distribution over K outcomes as the real one."""

    source: Literal["discrete"]
    probabilities: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = since(None)
    """One number per outcome; they sum to 1."""
    outcomes: Annotated[int, Field(ge=2, le=1_000_000)] | None = since(None)
    """K outcomes: equally likely, or by ``zipf``."""
    zipf: Annotated[float, Field(gt=0)] | None = since(None)
    """Outcome k = 1..K has a probability proportional to k to the power -zipf."""
    num_examples: Annotated[int, Field(ge=1)] = since(100)
    stratified: bool = since(False)
    """The real examples hold each outcome as often as its probability says, to the nearest example, instead
    of at random."""

    @model_validator(mode="after")
    def _one_way(self) -> DiscreteData:
        if (self.probabilities is None) == (self.outcomes is None):
            raise ValueError("give exactly one of probabilities or outcomes")
        if self.probabilities is not None:
            if len(self.probabilities) < 2:
                raise ValueError("probabilities: one outcome cannot collapse; give at least 2")
            if abs(sum(self.probabilities) - 1) > 1e-9:
                raise ValueError(f"probabilities: sum to {sum(self.probabilities):.6g}, expected 1")
            if self.zipf is not None:
                raise ValueError("zipf goes with outcomes, not with probabilities")
        return self


class LinearData(DataSection):
    """y = w.x + noise, x from N(0, I), w of length 1 with equal coordinates, as the real distribution."""

    source: Literal["linear"]
    dim: PositiveInt = since(10)
    num_examples: Annotated[int, Field(ge=2)] = since(100)
    noise_variance: Annotated[float, Field(ge=0)] = since(1.0)
    labels: Literal["real", "sign"] = since("real")
    """``sign``: y is the sign of w.x, without noise."""
    flipped: Share = since(0.0)
    """Share of the labels that are wrong, with ``labels: sign``."""
    shift: float = since(0.0)
    """Length of a fixed vector, at a right angle to w where dim allows, that is added to w: for a teacher
    that is wrong."""

    @model_validator(mode="after")
    def _flips_signs(self) -> LinearData:
        if self.flipped and self.labels != "sign":
            raise ValueError("flipped only goes with labels: sign")
        return self


class Component(Section):
    """One component of a mixture of normal distributions."""

    weight: Annotated[float, Field(gt=0, le=1)]
    mean: Annotated[tuple[float, ...], Field(min_length=1)]
    std: Annotated[float, Field(gt=0)]


class MixtureData(DataSection):
    """A mixture of isotropic normal distributions as the real one."""

    source: Literal["mixture"]
    components: Annotated[tuple[Component, ...], Field(min_length=1)]
    num_examples: Annotated[int, Field(ge=2)] = since(100)
    stratified: bool = since(False)
    """Each component gives as many of the real examples as its weight says, to the nearest example, instead
    of at random."""

    @model_validator(mode="after")
    def _agree(self) -> MixtureData:
        if len({len(component.mean) for component in self.components}) > 1:
            raise ValueError("components: all means need as many coordinates")
        total = sum(component.weight for component in self.components)
        if abs(total - 1) > 1e-9:
            raise ValueError(f"components: the weights sum to {total:.6g}, expected 1")
        return self


class ShapeData(DataSection):
    """One of the standard shapes; its geometry is fixed, so training and test examples share it."""

    source: Literal["blobs", "moons", "circles", "swiss_roll"]
    num_examples: Annotated[int, Field(ge=2)] = since(100)
    noise: Annotated[float, Field(ge=0)] | None = since(None)
    """Standard deviation around the shape; 1 for blobs and 0.05 for the others when null."""


class ArrayData(DataSection):
    """Rows of numbers from a file as the real distribution."""

    source: Literal["array"]
    path: Place
    """A .npy file of shape [rows] or [rows, columns], or a .parquet file."""
    columns: tuple[str, ...] | None = since(None)
    """Columns of a .parquet file; all when null."""
    num_examples: Annotated[int, Field(ge=2)] | None = since(None)
    """Training examples; all when null. The rest is the reservoir of ``fresh_real``."""
    resample: bool = since(False)
    """Every seed trains on its own ``num_examples`` of the training split, drawn at random; otherwise all on
    the same ones."""
    segment: Segment | None = since(None)
    """Only this part of the training split, none of which other segments have (as populations give each
    member one)."""
    test: Annotated[float, Field(gt=0, lt=0.9)] = since(0.1)
    """Share of the rows that is held out."""


AnalyticData = GaussianData | DiscreteData | LinearData | MixtureData | ShapeData | ArrayData


def _kind(
    section: type[DataSection], places: Sequence[str] = (), asked: Sequence[str] = (), **example: Any
) -> DataKind:
    return DataKind(
        section=section,
        prepare="harness.data.truths:prepared",
        load="harness.data.truths:load_truth",
        sources=get_args(section.model_fields["source"].annotation),
        places=places,
        asked=asked,
        example=example,
    )


KINDS: Mapping[str, DataKind] = {
    "gaussian": _kind(GaussianData, source="gaussian", dim=1, num_examples=100),
    "discrete": _kind(
        DiscreteData, source="discrete", probabilities=[0.5, 0.3, 0.15, 0.05], num_examples=100
    ),
    "linear": _kind(LinearData, asked=("dim",), source="linear", dim=10, num_examples=100),
    "mixture": _kind(MixtureData),
    "shape": _kind(ShapeData),
    "array": _kind(ArrayData, ("path", "columns")),
}
