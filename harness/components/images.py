"""Images: their section, and what the rest of the harness has to know of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.registry import DataKind
from harness.section import (
    DataSection,
    HubItem,
    Place,
    PositiveInt,
    Section,
    Segment,
    check_revision,
    hub_data,
    since,
)

DIGITS = "digits"
"""The handwritten digits that scikit-learn carries."""


class ImageSplit(Section):
    """The share of the images that is held out, by a fixed shuffle."""

    test: Annotated[float, Field(gt=0, lt=0.5)] = since(0.2)


class ImageData(DataSection):
    """Grey images as the real distribution, pixels in [0, 1]."""

    source: Place
    """``digits``, ``hf:NAME[/CONFIG]``, or a path: .npy (shape [N, H, W]) or .parquet."""
    kind: Literal["images"] = since("images")
    """Says of hub data and files that they are images, not text; ``digits`` is images without it."""
    image_field: str = since("image")
    """Column of .parquet and hub data that holds the image."""
    label_field: str | None = since("label")
    """Column of .parquet and hub data that holds the class, a whole number; null for none."""
    labels: Place | None = since(None)
    """For .npy: a second .npy file with the classes, shape [N]; null for none."""
    revision: str | None = since(None)
    """Revision of hub data."""
    num_examples: PositiveInt | None = since(None)
    """Training images; all when null. The rest is the reservoir of ``fresh_real``."""
    resample: bool = since(False)
    """Every seed trains on its own ``num_examples`` of the training split, drawn at random; otherwise all on
    the same ones."""
    segment: Segment | None = since(None)
    """Only this part of the training split, none of which other segments have (as populations give each
    member one)."""
    split: ImageSplit = since(ImageSplit(), introduced={})

    @model_validator(mode="after")
    def _of_the_hub(self) -> ImageData:
        check_revision(self.source, self.revision)
        return self

    @property
    def hub_items(self) -> list[HubItem]:
        """What it needs of the hub."""
        return hub_data("data.source", self.source, self.revision)


KIND = DataKind(
    section=ImageData,
    prepare="harness.data.images:prepared",
    load="harness.data.images:ImageSet",
    sources=(DIGITS,),
    places=("source", "kind", "image_field", "label_field", "labels", "revision"),
    example={"source": DIGITS, "num_examples": 1000},
)
