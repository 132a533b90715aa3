"""Sections of the learners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import Field, model_validator

from harness.config.schema.base import Place, PositiveInt, Section, Share, since
from harness.registry import plugins


class Model(Section):
    """A causal language model: a preset, a pretrained model, or an architecture with its sizes."""

    preset: str | None = since(None)
    pretrained: Place | None = since(None)
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
            self._check_heads()
        elif given:
            raise ValueError(f"{', '.join(given)} only go with architecture, not with {ways[0]}")
        shape = {"num_kv_heads", "mlp_width", "context", "dropout", "tie_embeddings"} & self.model_fields_set
        if self.pretrained is not None and shape:
            raise ValueError(f"{', '.join(sorted(shape))} cannot be changed in a pretrained model")
        if self.pretrained is None and self.revision is not None:
            raise ValueError("revision only goes with pretrained")
        return self

    def _check_heads(self) -> None:
        """Check that the heads divide the width, and how llama groups and turns them."""
        assert self.width is not None and self.num_heads is not None
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.architecture != "llama":
            if self.num_kv_heads is not None:
                raise ValueError(f"num_kv_heads: architecture {self.architecture} does not use it; only llama does")
            return
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.width // self.num_heads % 2:
            raise ValueError(
                f"width {self.width} / num_heads {self.num_heads} is {self.width // self.num_heads}; llama turns coordinates in "
                "pairs, so it must be even"
            )


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

    def prompt_length(self, block_size: int) -> int:
        """Tokens of the prefix that an example continues; 0 for ``prompt: bos``."""
        return 0 if self.prompt == "bos" else self.prompt_tokens or block_size // 2

    def sequence_length(self, block_size: int) -> int:
        """The longest sequence, in tokens, that sampling or training feeds to the model."""
        return block_size if self.keep_prompt else self.prompt_length(block_size) + block_size


class LanguageModel(Section):
    """Causal language models, trained through DeepSpeed."""

    kind: Literal["language_model"]
    model: Model
    init: Literal["scratch", "pretrained", "previous"] = since("scratch")
    """``scratch``: new weights each generation; ``pretrained``: the pretrained ones each time; ``previous``: go on from g-1."""
    train: Train = since(Train(), introduced={})
    sample: Sample = since(Sample(), introduced={})

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
    train: VaeTrain = since(VaeTrain(), introduced={})
    sample: VaeSample = since(VaeSample(), introduced={})


_READS: Mapping[str, tuple[str, ...]] = {
    "language_model": ("text",),
    "gaussian": ("gaussian", "mixture", "shape", "array"),
    "mixture": ("gaussian", "mixture", "shape", "array"),
    "kde": ("gaussian", "mixture", "shape", "array"),
    "discrete": ("discrete",),
    "linear_regression": ("linear",),
    "vae": ("images",),
}
LEARNER_PLUGINS = plugins("learners", tuple(_READS))
"""Learners of other packages."""
_ADDED = {kind: found.plugin for kind, found in LEARNER_PLUGINS.loaded.items()}
if TYPE_CHECKING:
    Learner = LanguageModel | Gaussian | Mixture | Kde | Discrete | LinearRegression | Vae
else:
    _OWN = (LanguageModel, Gaussian, Mixture, Kde, Discrete, LinearRegression, Vae)
    _SECTIONS = Union[(*_OWN, *(plugin.section for plugin in _ADDED.values()))]  # noqa: UP007 (made of a list)
    Learner = Annotated[_SECTIONS, Field(discriminator="kind")]
READS: Mapping[str, tuple[str, ...]] = {**_READS, **{kind: tuple(plugin.reads) for kind, plugin in _ADDED.items()}}
"""Learner to the kinds of data that it can be fitted to."""
BUNDLED = (
    "gaussian",
    "mixture",
    "kde",
    "discrete",
    "linear_regression",
    *(kind for kind, plugin in _ADDED.items() if plugin.batchable),
)
"""Learners so cheap that many chains are run and committed together."""
