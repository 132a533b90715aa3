"""The configuration: frozen pydantic models, one per section of the YAML file.

Fields that belong to the science enter the keys; a field marked `execution()` never does. A science field at the default that it
had when it was introduced is left out of the key, so that a field added later changes no old key: a changed default keeps its
``introduced`` value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A section of the configuration: unknown fields, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def since(default: Any, **kwargs: Any) -> Any:
    """A science field with a default; the default is recorded as the one at introduction."""
    extra = {"introduced": kwargs.pop("introduced", default)}
    return Field(default=default, json_schema_extra=extra, **kwargs)


def execution(default: Any, **kwargs: Any) -> Any:
    """A field that decides how something is computed, never what; not part of any key."""
    return Field(default=default, json_schema_extra={"execution": True}, **kwargs)


def science(section: BaseModel) -> dict[str, Any]:
    """What of a section belongs to its key, as plain data (see the module's text)."""
    found: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        value, extra = getattr(section, name), info.json_schema_extra
        marks = extra if isinstance(extra, Mapping) else {}
        if marks.get("execution") or ("introduced" in marks and value == marks["introduced"]):
            continue
        found[name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return science(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


# --- data -----------------------------------------------------------------------------------------------------------------


class BpeTokenizer(Section):
    """A byte-level BPE trained on the real training split."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: Annotated[int, Field(ge=257, le=1_000_000)] = since(512)
    """Tokens, the 256 bytes and the end-of-text token included."""


class PretrainedTokenizer(Section):
    """A tokenizer of the Hugging Face hub, or of a local folder."""

    kind: Literal["pretrained"]
    name: str
    revision: str | None = since(None)


class Split(Section):
    """Shares of the real documents that are held out; a document falls on one side by the hash of its text."""

    validation: Annotated[float, Field(gt=0, lt=0.5)] = since(0.05)
    test: Annotated[float, Field(gt=0, lt=0.5)] = since(0.05)


class TextData(Section):
    """Text as the real distribution."""

    source: str
    """``python-docs``, ``python-stdlib``, ``hf:NAME[/CONFIG]``, or a path: .txt, .jsonl, .parquet, or a folder of them."""
    text_field: str = since("text")
    """Field or column of .jsonl, .parquet and hub data that holds the text."""
    revision: str | None = since(None)
    """Revision of hub data."""
    tokenizer: Annotated[BpeTokenizer | PretrainedTokenizer, Field(discriminator="kind")] = since(BpeTokenizer())
    block_size: Annotated[int, Field(ge=2)] = since(64)
    """Tokens per example."""
    num_examples: Annotated[int, Field(gt=0)] | None = since(None)
    """Training examples; all when null. The rest is the reservoir of ``fresh_real``."""
    separator: Literal["none", "eos"] = since("none")
    """``eos`` puts the end-of-text token behind every document; ``none`` joins documents by a blank line."""
    prepend_bos: bool = since(True)
    """Train with the beginning-of-text token before every example, so that its first token is learned too."""
    split: Split = since(Split())


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
    """The real examples hold each outcome as often as its probability says, to the nearest example, instead of at random."""

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
    """Length of a fixed vector, at a right angle to w where dim allows, that is added to w: for a teacher that is wrong."""

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
    """Each component gives as many of the real examples as its weight says, to the nearest example, instead of at random."""

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
    path: str
    """A .npy file of shape [rows] or [rows, columns], or a .parquet file."""
    columns: tuple[str, ...] | None = since(None)
    """Columns of a .parquet file; all when null."""
    num_examples: Annotated[int, Field(ge=2)] | None = since(None)
    """Training examples; all when null. The rest is the reservoir of ``fresh_real``."""
    test: Annotated[float, Field(gt=0, lt=0.9)] = since(0.1)
    """Share of the rows that is held out."""


DATA_TAGS = {
    "gaussian": "gaussian",
    "discrete": "discrete",
    "linear": "linear",
    "mixture": "mixture",
    "blobs": "shape",
    "moons": "shape",
    "circles": "shape",
    "swiss_roll": "shape",
    "array": "array",
}
"""Source to section; every other source is text."""


class ImageSplit(Section):
    """The share of the images that is held out, by a fixed shuffle."""

    test: Annotated[float, Field(gt=0, lt=0.5)] = since(0.2)


class ImageData(Section):
    """Grey images as the real distribution, pixels in [0, 1]."""

    source: str
    """``digits``, ``hf:NAME[/CONFIG]``, or a path: .npy (shape [N, H, W]) or .parquet."""
    kind: Literal["images"] = since("images")
    """Says of hub data and files that they are images, not text; ``digits`` is images without it."""
    image_field: str = since("image")
    """Column of .parquet and hub data that holds the image."""
    label_field: str | None = since("label")
    """Column of .parquet and hub data that holds the class, a whole number; null for none."""
    labels: str | None = since(None)
    """For .npy: a second .npy file with the classes, shape [N]; null for none."""
    revision: str | None = since(None)
    """Revision of hub data."""
    num_examples: PositiveInt | None = since(None)
    """Training images; all when null. The rest is the reservoir of ``fresh_real``."""
    split: ImageSplit = since(ImageSplit())

    @property
    def dim(self) -> int:
        """Numbers per example, as far as the configuration tells: estimates of space use it, nothing else does."""
        return 8 * 8 if self.source == DIGITS else 28 * 28


DIGITS = "digits"
"""The handwritten digits that scikit-learn carries."""


def is_image_data(value: Any) -> bool:
    """Whether a ``data`` section, as plain data or as a model, is about images."""
    source, kind = (value.get(name) if isinstance(value, Mapping) else getattr(value, name, None) for name in ("source", "kind"))
    return source == DIGITS or kind == "images"


def _data_tag(value: Any) -> str:
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
    Discriminator(_data_tag),
]
AnalyticData = GaussianData | DiscreteData | LinearData | MixtureData | ShapeData | ArrayData

# --- learners -------------------------------------------------------------------------------------------------------------


class Model(Section):
    """A causal language model: a preset, a pretrained model, or an architecture with its sizes."""

    preset: str | None = since(None)
    pretrained: str | None = since(None)
    revision: str | None = since(None)
    architecture: Literal["gpt2", "llama", "opt"] | None = since(None)
    num_layers: PositiveInt | None = since(None)
    width: PositiveInt | None = since(None)
    num_heads: PositiveInt | None = since(None)
    num_kv_heads: PositiveInt | None = since(None)
    mlp_width: PositiveInt | None = since(None)
    context: PositiveInt | None = since(None)
    """Longest sequence in tokens; what the prompts and blocks need when null."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = since(0.0)
    tie_embeddings: bool = since(True)

    @model_validator(mode="after")
    def _one_way(self) -> Model:
        ways = [name for name in ("preset", "pretrained", "architecture") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError(f"give exactly one of preset, pretrained or architecture; found {', '.join(ways) or 'none'}")
        sizes = ("num_layers", "width", "num_heads")
        given = [name for name in sizes if getattr(self, name) is not None]
        if ways == ["architecture"]:
            missing = [name for name in sizes if getattr(self, name) is None]
            if missing:
                raise ValueError(f"architecture needs {', '.join(missing)} too")
            if self.width is not None and self.num_heads is not None and self.width % self.num_heads:
                raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        elif given:
            raise ValueError(f"{', '.join(given)} only go with architecture, not with {ways[0]}")
        shape = {"num_kv_heads", "mlp_width", "context", "dropout", "tie_embeddings"} & self.model_fields_set
        if self.pretrained is not None and shape:
            raise ValueError(f"{', '.join(sorted(shape))} cannot be changed in a pretrained model")
        if self.pretrained is None and self.revision is not None:
            raise ValueError("revision only goes with pretrained")
        return self


class Train(Section):
    """How one generation is fitted."""

    epochs: PositiveInt = since(1)
    """Passes over the training set."""
    max_steps: Annotated[int, Field(ge=0)] | None = since(None)
    """Optimizer steps, instead of epochs; 0 takes a pretrained model as it is."""
    batch_size: PositiveInt = since(16)
    """Examples per optimizer step, all ranks together."""
    learning_rate: Annotated[float, Field(gt=0)] = since(1e-3)
    schedule: Literal["constant", "cosine", "linear"] = since("cosine")
    """The learning rate after the warm-up; cosine and linear end at min_learning_rate_ratio of the peak."""
    min_learning_rate_ratio: Share = since(0.1)
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = since(0.1)
    """Share of the steps in which the learning rate rises linearly from 0."""
    precision: Literal["fp32", "bf16"] = since("bf16")
    weight_decay: Annotated[float, Field(ge=0)] = since(0.01)
    betas: tuple[Share, Share] = since((0.9, 0.999))
    eps: Annotated[float, Field(gt=0)] = since(1e-8)
    max_grad_norm: Annotated[float, Field(gt=0)] | None = since(1.0)
    """Gradients are clipped to this norm; null never clips."""
    weights: Literal["last", "best"] = since("last")
    """``best``: the weights with the lowest validation loss at the end of an epoch."""
    loss: Literal["all", "continuation"] = since("all")
    """``continuation``: the first prompt_tokens tokens of every example, real ones too, are read but not learned."""

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            raise ValueError("give epochs or max_steps, not both")
        if self.weights == "best" and self.max_steps is not None:
            raise ValueError("weights: best compares epochs; give epochs, not max_steps")
        return self


class Sample(Section):
    """How a generation writes its corpus."""

    temperature: Annotated[float, Field(gt=0)] = since(1.0)
    top_k: Annotated[int, Field(ge=0)] = since(0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = since(1.0)
    """Keep the smallest set of tokens with this probability."""
    prompt: Literal["bos", "real_prefix", "previous_prefix"] = since("bos")
    prompt_tokens: PositiveInt | None = since(None)
    """Length of the prefix, for real_prefix and previous_prefix; half a block when null."""
    keep_prompt: bool = since(False)
    """The prefix is part of the example (which then still has block_size tokens)."""
    length: Literal["block", "natural"] = since("block")
    """``natural`` ends an example at the end-of-text token."""
    min_new_tokens: Annotated[int, Field(ge=0)] = since(0)
    """With ``length: natural``: the end-of-text token cannot be among the first this many tokens."""
    forbid_eos: bool = since(False)
    """With ``length: block``: the end-of-text token is never written; otherwise it is a token like any other."""
    repetition_penalty: Annotated[float, Field(gt=0)] = since(1.0)
    """Tokens that have occurred become this much less likely (CTRL's penalty); 1 is none."""
    penalize_prompt: bool = since(True)
    """The tokens before the first new one count as occurred."""
    num_beams: Annotated[int, Field(ge=1, le=256)] = since(1)
    """Width of a deterministic beam search; 1 draws."""

    @model_validator(mode="after")
    def _length_fields(self) -> Sample:
        if self.min_new_tokens and self.length == "block":
            raise ValueError("min_new_tokens needs length: natural; in a block, forbid_eos keeps the end-of-text token out")
        if self.forbid_eos and self.length == "natural":
            raise ValueError("forbid_eos needs length: block; with length: natural use min_new_tokens")
        if not self.penalize_prompt and self.repetition_penalty == 1:
            raise ValueError("penalize_prompt is not used where repetition_penalty is 1")
        return self

    @model_validator(mode="after")
    def _beam_fields(self) -> Sample:
        if self.num_beams == 1:
            return self
        drawing = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        used = [name for name, default in drawing.items() if getattr(self, name) != default]
        if used:
            raise ValueError(f"num_beams above 1 draws nothing, so {', '.join(used)} must stay at the default")
        if self.prompt == "bos":
            raise ValueError(
                "num_beams above 1 needs prompt: real_prefix or previous_prefix; beam search is deterministic, so all examples "
                "behind prompt: bos would be equal"
            )
        if self.length == "natural":
            raise ValueError("num_beams above 1 needs length: block; beams of different lengths are not compared")
        return self

    @model_validator(mode="after")
    def _prompt_fields(self) -> Sample:
        if self.prompt == "bos" and (self.prompt_tokens is not None or self.keep_prompt):
            raise ValueError("prompt: bos has no prompt_tokens or keep_prompt; use real_prefix or previous_prefix")
        if self.prompt == "previous_prefix" and self.length == "natural":
            raise ValueError(
                "prompt: previous_prefix needs length: block; examples of natural length may be shorter than the prefix"
            )
        return self


class LanguageModel(Section):
    """Causal language models, trained through DeepSpeed."""

    kind: Literal["language_model"]
    model: Model
    init: Literal["scratch", "pretrained", "previous"] = since("scratch")
    """``scratch``: new weights each generation; ``pretrained``: the pretrained ones each time; ``previous``: go on from g-1."""
    train: Train = since(Train())
    sample: Sample = since(Sample())

    @model_validator(mode="after")
    def _init_fits(self) -> LanguageModel:
        if self.init == "pretrained" and self.model.pretrained is None:
            raise ValueError("init: pretrained needs model: {pretrained: NAME}")
        if self.train.max_steps == 0 and self.init != "pretrained":
            raise ValueError("train.max_steps: 0 steps leave new weights as they are; it goes with init: pretrained")
        if self.train.loss == "continuation" and not self.sample.keep_prompt:
            raise ValueError("train.loss: continuation needs sample.keep_prompt: true; without it examples hold no prompt to mask")
        return self


class Gaussian(Section):
    """A multivariate normal distribution, fitted in closed form."""

    kind: Literal["gaussian"]
    estimator: Literal["mle", "unbiased"] = since("mle")
    """Divide the scatter matrix by n (mle) or n - 1 (unbiased)."""


class Mixture(Section):
    """A mixture of normal distributions, fitted by expectation-maximisation (scikit-learn's)."""

    kind: Literal["mixture"]
    components: PositiveInt = since(2)
    covariance: Literal["full", "diag"] = since("full")
    tolerance: Annotated[float, Field(gt=0)] = since(1e-3)
    """The fit ends when the mean log-likelihood gains less than this."""
    max_iterations: PositiveInt = since(100)
    regularisation: Annotated[float, Field(ge=0)] = since(1e-6)
    """Added to the diagonal of every covariance."""
    init: Literal["scratch", "previous"] = since("scratch")
    """``scratch``: k-means each generation; ``previous``: go on from the previous generation's parameters."""


class Kde(Section):
    """A kernel density estimate."""

    kind: Literal["kde"]
    kernel: Literal["gaussian"] = since("gaussian")
    bandwidth: Annotated[float, Field(gt=0)] | Literal["scott", "silverman"] = since("scott")
    """Standard deviation of the kernel in every coordinate, or a rule: scott n^(-1/(d+4)), silverman (n(d+2)/4)^(-1/(d+4))."""


class Discrete(Section):
    """Frequencies of outcomes."""

    kind: Literal["discrete"]


class LinearRegression(Section):
    """Least squares; samples new labels with the data's noise."""

    kind: Literal["linear_regression"]
    design: Literal["fixed", "fresh"] = since("fixed")
    """``fixed``: every generation labels the real examples' x anew; ``fresh``: new x each generation."""
    ridge: Annotated[float, Field(ge=0)] = since(0.0)
    """Added to the diagonal of X'X."""


class VaeTrain(Section):
    """How one generation of a VAE is fitted: Adam at a constant learning rate."""

    epochs: PositiveInt = since(30)
    """Passes over the training set."""
    batch_size: PositiveInt = since(256)
    """Images per optimizer step."""
    learning_rate: Annotated[float, Field(gt=0)] = since(1e-3)
    weight_decay: Annotated[float, Field(ge=0)] = since(1e-5)
    """Adam's own: an L2 penalty in the gradient."""
    beta: Annotated[float, Field(ge=0)] = since(1.0)
    """Weight of the KL term in the loss; metrics always take 1."""


class VaeSample(Section):
    """How a VAE writes its corpus."""

    binary: bool = since(False)
    """Draw every pixel, 0 or 1, from the decoder's Bernoulli; otherwise an image is the decoder's mean, in grey."""


class Vae(Section):
    """A convolutional variational autoencoder with a normal latent and a Bernoulli decoder."""

    kind: Literal["vae"]
    latent_dim: PositiveInt = since(20)
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = since((32, 64))
    """Of the encoder's convolutions, each of which halves height and width; the decoder is its mirror image."""
    init: Literal["scratch", "previous"] = since("scratch")
    """``scratch``: new weights each generation; ``previous``: go on from g-1."""
    train: VaeTrain = since(VaeTrain())
    sample: VaeSample = since(VaeSample())


Learner = Annotated[LanguageModel | Gaussian | Mixture | Kde | Discrete | LinearRegression | Vae, Field(discriminator="kind")]
READS: Mapping[str, tuple[str, ...]] = {
    "language_model": ("text",),
    "gaussian": ("gaussian", "mixture", "shape", "array"),
    "mixture": ("gaussian", "mixture", "shape", "array"),
    "kde": ("gaussian", "mixture", "shape", "array"),
    "discrete": ("discrete",),
    "linear_regression": ("linear",),
    "vae": ("images",),
}
"""Learner to the kinds of data that it can be fitted to."""
BUNDLED = ("gaussian", "mixture", "kde", "discrete", "linear_regression")
"""Learners so cheap that many chains are run and committed together."""

# --- regime, filters, evaluation ----------------------------------------------------------------------------------------------

RegimeKind = Literal["replace", "replace_grown", "accumulate", "accumulate_subsample", "augment", "fresh_real"]
RATIO_REGIMES = ("replace", "augment", "fresh_real")
CORPUS_SOURCE_REGIMES = ("replace", "replace_grown", "augment", "fresh_real")


class CorpusSource(Section):
    """Synthetic examples from a fixed corpus that someone else's model wrote."""

    corpus: str
    """A .txt, .jsonl or .parquet file, or a folder of them; or an embedded source, of which the training side is taken."""


class CellSource(Section):
    """Synthetic examples from another chain of the grid, with the same seed."""

    cell: Annotated[dict[str, Any], Field(min_length=1)]
    """Axes and their values; an axis that is not named has this cell's own value, regime.source is ``self`` unless named."""
    generation: Annotated[int, Field(ge=0)] | None = since(None)
    """A fixed teacher: every generation reads what this one wrote; the same generation as the chain's own when null."""


class ModelSource(Section):
    """Synthetic examples from a fixed teacher."""

    model: Annotated[dict[str, Any], Field(min_length=1)] | Annotated[str, Field(min_length=1)]
    """For text: a pretrained model, which writes one corpus as it is; for analytic data: fields of ``data`` in which the teacher
    differs from the truth, and new examples each generation."""


class Refresh(Section):
    """Every k-th generation trains on real data alone."""

    every: PositiveInt | None = since(None)
    """Generations k, 2k, 3k, ..."""
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = since(None)
    """Or these generations."""
    init: Literal["scratch", "pretrained", "previous"] | None = since(None)
    """Where a refresh starts from; the learner's init when null."""
    examples: PositiveInt | None = since(None)
    """Real examples that a refresh trains on; data.num_examples when null."""

    @model_validator(mode="after")
    def _when(self) -> Refresh:
        if (self.every is None) == (self.at is None):
            raise ValueError("give exactly one of every or at")
        return self


class Regime(Section):
    """How a generation's training set is built (generation 0 always trains on the real examples)."""

    kind: RegimeKind
    synthetic_ratio: Share | None = since(None)
    """Share of the training examples that models wrote; replace, augment and fresh_real need it."""
    real_part: Literal["resample", "fixed"] = since("resample")
    """replace: a new random subset of the real examples each generation (the default), or the same one."""
    source: Literal["self"] | CorpusSource | CellSource | ModelSource = since("self")
    """Who wrote the synthetic examples: the chain itself, a fixed corpus, another chain of the grid, or a fixed teacher."""
    refresh: Refresh | None = since(None)
    budget: Literal["examples", "tokens", "steps"] = since("examples")
    """Held equal across regimes: passes over the examples (default), tokens seen, or optimizer steps of generation 0."""

    @model_validator(mode="after")
    def _used_fields(self) -> Regime:
        if self.kind in RATIO_REGIMES and self.synthetic_ratio is None:
            raise ValueError(f"{self.kind} needs synthetic_ratio, a number from 0 to 1")
        if self.kind not in RATIO_REGIMES and self.synthetic_ratio is not None:
            raise ValueError(f"{self.kind} does not use synthetic_ratio (it follows); only {', '.join(RATIO_REGIMES)} do")
        if self.kind != "replace" and "real_part" in self.model_fields_set:
            raise ValueError(f"{self.kind} does not use real_part; only replace does")
        if self.kind == "augment" and self.synthetic_ratio == 1:
            raise ValueError("augment keeps all real examples, so synthetic_ratio must be below 1")
        fixed = isinstance(self.source, CellSource) and self.source.generation is not None
        if (fixed or isinstance(self.source, CorpusSource | ModelSource)) and self.kind not in CORPUS_SOURCE_REGIMES:
            raise ValueError(
                f"{self.kind} pools a corpus of every generation; a fixed source goes with {', '.join(CORPUS_SOURCE_REGIMES)}"
            )
        return self


class DeduplicateFilter(Section):
    """Drops an example that equals an earlier one of the same corpus."""

    kind: Literal["deduplicate"]


class RepetitionFilter(Section):
    """Drops an example in which too many n-grams repeat."""

    kind: Literal["repetition"]
    n: PositiveInt = since(4)
    max_share: Share = since(0.2)
    """Largest allowed share of n-grams that occurred before in the example."""


class VerifierFilter(Section):
    """Keeps synthetic examples whose score is high enough; it may err."""

    kind: Literal["verifier"]
    score: Literal["agreement", "log_density", "distinct_2", "uniqueness_4"]
    """``agreement``: 1 where the sign of a label is the truth's, else 0 (linear data); ``log_density``: under the truth (gaussian
    and mixture data); ``distinct_2``: distinct over all bigrams of the example; ``uniqueness_4``: 1 - repeated 4-grams (text)."""
    at_least: float
    false_accept: Share = since(0.0)
    """Probability that an example below ``at_least`` is kept all the same."""
    false_reject: Share = since(0.0)
    """Probability that an example that should be kept is dropped."""


class LabelFilter(Section):
    """Drops training examples that a detector takes for synthetic."""

    kind: Literal["label"]
    recall: Share
    """Probability that a synthetic example is recognised, and dropped."""
    false_positive_rate: Share = since(0.0)
    """Probability that a real example is taken for synthetic, and dropped."""


Filter = Annotated[DeduplicateFilter | RepetitionFilter | VerifierFilter | LabelFilter, Field(discriminator="kind")]


class Evaluate(Section):
    """What is measured in every generation."""

    prompts: Annotated[int, Field(ge=0, le=1000)] | tuple[Annotated[str, Field(min_length=1)], ...] = since(8)
    """Texts that every generation continues, or how many to take from the test split."""
    examples: PositiveInt = since(1024)
    """The metrics of the corpus read its first this many examples (at most as many as there are real ones)."""
    perplexity_batch: PositiveInt = since(8)
    """Test sequences in one batch of ``test/perplexity_batch_mean``."""
    max_duplicate_share: Share | None = since(None)
    """A chain fails where more of a generation's examples than this equal an earlier one; null never fails."""
    ranges: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], tuple[float, float]] = since({})
    """Names of ranges of the first coordinate, each from (included) to (excluded): ``share/<name>`` is the corpus's share in it."""
    others: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Annotated[str, Field(min_length=1)]] = since({})
    """Other real texts by name, each a source as in ``data.source``: ``other/<name>/nll`` is the model's on their test side."""

    @field_validator("ranges")
    @classmethod
    def _ordered(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in value.items():
            if low >= high:
                raise ValueError(f"{name}: found [{low}, {high}], the first number must be below the second")
        return value


# --- execution ------------------------------------------------------------------------------------------------------------


class Resources(Section):
    """What one gang uses."""

    ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    micro_batch: PositiveInt | None = None
    """Examples per forward pass and rank; batch_size / ranks when null, up to 64."""
    sample_batch: PositiveInt = 128
    """Examples sampled together; examples are computed in whole batches of this size."""
    threads: PositiveInt = 1
    """CPU threads per rank (and CPUs reserved for it)."""
    gpus_per_rank: Annotated[int, Field(ge=0, le=1)] | None = None
    """1 on a machine with GPUs, else 0, when null."""
    bundled: bool = True
    """Cheap learners: run many chains at once and keep records and parameters only; false runs each generation by itself, with its
    corpus on disk."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a gang may fail in one generation and try again before its chains are failed."""
    max_preemptions: Annotated[int, Field(ge=0)] = 1000
    """How often a gang may lose its machine in one generation; that is nobody's fault, and counted apart."""
    checkpoint_s: Seconds = 300.0
    """Seconds between the checkpoints of a fit: what a kill can cost at most."""
    watchdog_s: Seconds = 600.0
    """A gang that makes no step, token or batch for this many seconds hangs: it is ended and its branch tried again."""
    lease_s: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 60.0
    """Others on the store take over what a process held once it has shown no life for this many seconds."""
    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds that a run takes at most to save its work and end after SIGTERM, SIGINT or SIGUSR1."""


class Retention(Section):
    """What stays on disk once a chain is complete; records and corpora always stay."""

    weights: Literal["all", "last", "none"] = "last"
    """Whose weights stay: generation 0 and the last, all, or none."""


class Tracking(Section):
    """Where records are mirrored to."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "model-collapse"
    entity: str | None = None


class Statistic(Section):
    """One number per seed, from the records of a cell."""

    metric: str
    of: Literal["first", "last", "change", "ratio", "log_ratio", "slope", "highest", "lowest", "exceeds_first", "lost"] = "change"
    """``first`` and ``last``: in generation 0 and in the last one; ``change``: last - first; ``ratio``: last / first;
    ``log_ratio``: its logarithm; ``slope``: least squares over the generations, per generation; ``highest``, ``lowest``: over the
    generations; ``exceeds_first``: 1 where the last one is above the 95 % interval of one more seed's generation 0, else 0;
    ``lost``: 1 where the last one is 0, else 0."""
    generation: Annotated[int, Field(ge=0)] | None = None
    """Taken as the last one; the chains' last when null."""
    baseline: Annotated[int, Field(ge=0)] = 0
    """Taken as the first one by ``first``, ``change``, ``ratio`` and ``log_ratio``."""
    where: dict[str, Any] = {}
    """Axes and their values, which name one cell."""
    minus: dict[str, Any] | None = None
    """Another cell, whose value for the same seed is subtracted."""


class Claim(Section):
    """What a paper says, as an interval that can be computed; ``harness report`` gives the verdict."""

    text: str
    source: str
    statistic: Statistic
    above: float | None = None
    below: float | None = None
    between: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_range(self) -> Claim:
        given = [name for name in ("above", "below", "between") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of above, below or between; found {', '.join(given) or 'none'}")
        if self.between is not None and self.between[0] >= self.between[1]:
            raise ValueError("between: the first number must be below the second")
        return self


class Override(Section):
    """Values that a part of the grid needs: where every ``when`` holds, ``set`` applies."""

    when: dict[str, Any]
    set: dict[str, Any]

    @field_validator("when", "set")
    @classmethod
    def _not_empty(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("is empty; give at least one dotted field")
        return value


class Config(Section):
    """One cell's configuration: what the YAML file holds, less ``grid`` and ``overrides``."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    data: Data
    learner: Learner
    regime: Regime = Regime(kind="replace", synthetic_ratio=1.0)
    filters: tuple[Filter, ...] = ()
    evaluate: Evaluate = Evaluate()
    generations: Annotated[int, Field(ge=0)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    resources: Resources = Resources()
    retention: Retention = Retention()
    tracking: Tracking = Tracking()
    claims: tuple[Claim, ...] = ()
    """What is expected; never part of a key."""

    @model_validator(mode="after")
    def _others_are_text(self) -> Config:
        if self.evaluate.others and not isinstance(self.learner, LanguageModel):
            raise ValueError(f"evaluate.others: holds texts, which learner {self.learner.kind} cannot score; remove it")
        return self

    @model_validator(mode="after")
    def _agree(self) -> Config:
        kind, found = self.learner.kind, _data_tag(self.data)
        if found not in READS[kind]:
            hint = "; hub data and files are images with kind: images" if kind == "vae" else ""
            reads = ", ".join(READS[kind])
            raise ValueError(f"data.source: learner {kind} reads {reads} data, {self.data.source!r} is {found}{hint}")
        if isinstance(self.learner, Vae):
            self._check_images()
        elif isinstance(self.learner, LanguageModel):
            self._check_language_model(self.learner)
        else:
            self._check_closed_form()
        for item in self.filters:
            self._check_filter(item)
        n, refresh = getattr(self.data, "num_examples", None), self.regime.refresh
        if refresh is not None and refresh.examples is not None and n is not None and refresh.examples > n:
            raise ValueError(f"regime.refresh.examples: {refresh.examples}, more than data.num_examples ({n})")
        if isinstance(self.regime.source, ModelSource) and isinstance(self.regime.source.model, str) != (found == "text"):
            raise ValueError(
                "regime.source.model: for text the name of a pretrained model, for analytic data fields of data in which it differs"
            )
        if self.regime.source != "self" and isinstance(self.regime.source, CorpusSource) and self.filters:
            raise ValueError("filters apply to what the chain writes; with regime.source {corpus: ...} filter the corpus itself")
        return self

    def _check_filter(self, item: Filter) -> None:
        found = _data_tag(self.data)
        scores = {
            "agreement": ("linear",),
            "log_density": ("gaussian", "mixture"),
            "distinct_2": ("text",),
            "uniqueness_4": ("text",),
        }
        if isinstance(item, VerifierFilter) and found not in scores[item.score]:
            raise ValueError(f"filters: the score {item.score} reads {' or '.join(scores[item.score])} data, not {found}")
        if isinstance(item, VerifierFilter) and item.score == "agreement" and getattr(self.data, "labels", "") != "sign":
            raise ValueError("filters: the score agreement needs data.labels: sign")
        if isinstance(item, DeduplicateFilter | RepetitionFilter) and found != "text":
            raise ValueError(f"filters: {item.kind} reads text, not {found} data")

    def _check_closed_form(self) -> None:
        learner, data, refresh = self.learner, self.data, self.regime.refresh
        kind = learner.kind
        if self.resources.ranks != 1:
            raise ValueError(f"resources.ranks: found {self.resources.ranks}, learner {kind} runs on one rank")
        if self.regime.budget != "examples":
            raise ValueError(f"regime.budget: is not used by learner {kind}, which takes no steps")
        if refresh is not None and refresh.init is not None and not hasattr(learner, "init"):
            raise ValueError(f"regime.refresh.init: is not used by learner {kind}, which has no weights to start from")
        if self.evaluate.max_duplicate_share is not None:
            raise ValueError("evaluate.max_duplicate_share: counts equal texts; remove it for this learner")
        if refresh is not None and refresh.init == "pretrained":
            raise ValueError(f"regime.refresh.init: learner {kind} has no pretrained weights; allowed: scratch, previous")
        n = getattr(data, "num_examples", None)
        if isinstance(learner, Mixture) and n is not None and learner.components > n:
            raise ValueError(f"learner.components: {learner.components} components, but only {n} examples (data.num_examples)")
        if isinstance(learner, LinearRegression) and isinstance(data, LinearData):
            self._check_regression(learner, data)

    def _check_regression(self, learner: LinearRegression, data: LinearData) -> None:
        fewest = min(data.num_examples, (self.regime.refresh and self.regime.refresh.examples) or data.num_examples)
        if learner.ridge == 0 and data.dim >= fewest - 1:
            where = "data.dim" if fewest == data.num_examples else "regime.refresh.examples"
            raise ValueError(
                f"{where}: least squares needs dim < num_examples - 1, found {data.dim} and {fewest}; "
                "give more examples or learner.ridge"
            )
        if self.evaluate.ranges:
            raise ValueError("evaluate.ranges: is not used by learner linear_regression")

    def _check_beams(self, sample: Sample) -> None:
        """Beam search writes one example a prompt, and there are as many prompts as real examples."""
        ratio = self.regime.synthetic_ratio or 0.0
        grows = self.regime.kind == "replace_grown" or (self.regime.kind == "augment" and ratio > 0.5)
        if sample.num_beams > 1 and grows and self.regime.source == "self":
            raise ValueError(
                f"learner.sample.num_beams: above 1 writes one example a prompt, but {self.regime.kind} here reads more examples "
                "than there are prompts (the real examples); allowed: num_beams: 1, another regime, or augment with "
                "synthetic_ratio up to 0.5"
            )

    def _check_language_model(self, learner: LanguageModel) -> None:
        self._check_batch(learner.train.batch_size)
        if self.regime.refresh and self.regime.refresh.init == "pretrained" and learner.model.pretrained is None:
            raise ValueError("regime.refresh.init: pretrained needs learner.model: {pretrained: NAME}")
        if learner.train.max_steps is not None and self.regime.budget != "examples":
            raise ValueError("regime.budget equalises epochs; with learner.train.max_steps it is not used")
        if self.evaluate.ranges:
            raise ValueError("evaluate.ranges: reads numbers, and text has none")
        self._check_beams(learner.sample)

    def _check_images(self) -> None:
        if self.resources.ranks != 1:
            raise ValueError(f"resources.ranks: found {self.resources.ranks}, learner vae runs on one rank")
        if self.regime.budget == "tokens":
            raise ValueError("regime.budget: images have no tokens; allowed for learner vae: examples, steps")
        if self.regime.refresh is not None and self.regime.refresh.init == "pretrained":
            raise ValueError("regime.refresh.init: learner vae has no pretrained weights; allowed: scratch, previous")
        if isinstance(self.regime.source, CorpusSource | ModelSource):
            raise ValueError("regime.source: learner vae reads images; allowed: self, {cell: ...}")
        if self.evaluate.ranges:
            raise ValueError("evaluate.ranges: is not used by learner vae")
        if "prompts" in self.evaluate.model_fields_set:
            raise ValueError("evaluate.prompts: is not used by learner vae, which continues no text")

    def _check_batch(self, batch_size: int) -> None:
        ranks, micro = self.resources.ranks, self.resources.micro_batch
        if batch_size % ranks:
            raise ValueError(f"learner.train.batch_size {batch_size} is not a multiple of resources.ranks {ranks}")
        if micro is not None and (batch_size // ranks) % micro:
            raise ValueError(
                f"learner.train.batch_size {batch_size} is not a multiple of resources.ranks {ranks} x micro_batch {micro}"
            )

    @property
    def micro_batch(self) -> int:
        """Examples per forward pass and rank."""
        if self.resources.micro_batch is not None or not isinstance(self.learner, LanguageModel):
            return self.resources.micro_batch or 1
        per_rank = self.learner.train.batch_size // self.resources.ranks
        return max(size for size in range(1, min(per_rank, 64) + 1) if per_rank % size == 0)
