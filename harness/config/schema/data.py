"""Sections of the real data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from harness.components.data import DATA_TAGS, DIGITS
from harness.section import Place, PositiveInt, Section, Share, since


class BpeTokenizer(Section):
    """A byte-level BPE trained on the real training split."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = since(512)
    """Tokens, the 256 bytes and the end-of-text token included."""


class PretrainedTokenizer(Section):
    """A tokenizer of the Hugging Face hub, or of a local folder."""

    kind: Literal["pretrained"]
    name: Place
    revision: str | None = since(None)


class Split(Section):
    """Shares of the real documents that are held out.

    A document falls on one side by the hash of its text.
    """

    validation: Annotated[float, Field(gt=0, lt=0.5)] = since(0.05)
    test: Annotated[float, Field(gt=0, lt=0.5)] = since(0.05)


class TextData(Section):
    """Text as the real distribution."""

    source: Place
    """``python-docs``, ``python-stdlib``, ``hf:NAME[/CONFIG]``, or a path: .txt, .jsonl, .parquet, or a
    folder of them."""
    text_field: str = since("text")
    """Field or column of .jsonl, .parquet and hub data that holds the text."""
    revision: str | None = since(None)
    """Revision of hub data."""
    tokenizer: Annotated[BpeTokenizer | PretrainedTokenizer, Field(discriminator="kind")] = since(
        BpeTokenizer(), introduced={"kind": "bpe"}
    )
    block_size: Annotated[int, Field(ge=2)] = since(64)
    """Tokens per example."""
    num_examples: Annotated[int, Field(gt=0)] | None = since(None)
    """Training examples; all when null. The rest is the reservoir of ``fresh_real``."""
    resample: bool = since(False)
    """Every seed trains on its own ``num_examples`` of the training split, drawn at random; otherwise all on
    the same ones."""
    separator: Literal["none", "eos"] = since("none")
    """``eos`` puts the end-of-text token behind every document; ``none`` joins documents by a blank line."""
    prepend_bos: bool = since(True)
    """Train with the beginning-of-text token before every example, so that its first token is learned too."""
    split: Split = since(Split(), introduced={})


class GaussianData(Section):
    """N(mean, variance x I) as the real distribution."""

    source: Literal["gaussian"]
    dim: PositiveInt = since(1)
    num_examples: Annotated[int, Field(ge=2)] = since(100)
    mean: float = since(0.0)
    variance: Annotated[float, Field(gt=0)] = since(1.0)


class DiscreteData(Section):
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


class LinearData(Section):
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


class MixtureData(Section):
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


class ShapeData(Section):
    """One of the standard shapes; its geometry is fixed, so training and test examples share it."""

    source: Literal["blobs", "moons", "circles", "swiss_roll"]
    num_examples: Annotated[int, Field(ge=2)] = since(100)
    noise: Annotated[float, Field(ge=0)] | None = since(None)
    """Standard deviation around the shape; 1 for blobs and 0.05 for the others when null."""


class ArrayData(Section):
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
    test: Annotated[float, Field(gt=0, lt=0.9)] = since(0.1)
    """Share of the rows that is held out."""


class ImageSplit(Section):
    """The share of the images that is held out, by a fixed shuffle."""

    test: Annotated[float, Field(gt=0, lt=0.5)] = since(0.2)


class ImageData(Section):
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
    split: ImageSplit = since(ImageSplit(), introduced={})

    @property
    def dim(self) -> int:
        """Numbers per example, as far as the configuration tells.

        Estimates of space use it, nothing else does.
        """
        return 8 * 8 if self.source == DIGITS else 28 * 28


def is_image_data(value: Any) -> bool:
    """Whether a ``data`` section, as plain data or as a model, is about images."""
    source, kind = (
        value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        for name in ("source", "kind")
    )
    return source == DIGITS or kind == "images"


def data_tag(value: Any) -> str:
    """The kind of a ``data`` section, as given or as a model: which learners can read it."""
    source = value.get("source") if isinstance(value, Mapping) else getattr(value, "source", None)
    if is_image_data(value):
        return "images"
    return DATA_TAGS.get(source, "text") if isinstance(source, str) else "text"


Data = Annotated[
    Annotated[TextData, Tag("text")]
    | Annotated[GaussianData, Tag("gaussian")]
    | Annotated[DiscreteData, Tag("discrete")]
    | Annotated[LinearData, Tag("linear")]
    | Annotated[MixtureData, Tag("mixture")]
    | Annotated[ShapeData, Tag("shape")]
    | Annotated[ArrayData, Tag("array")]
    | Annotated[ImageData, Tag("images")],
    Discriminator(data_tag),
]
AnalyticData = GaussianData | DiscreteData | LinearData | MixtureData | ShapeData | ArrayData
