"""The variational autoencoder: its section, and what the rest of the harness has to know of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from harness.registry import LearnerPlugin, Metric
from harness.section import PositiveInt, Section, since


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
    """Draw every pixel, 0 or 1, from the decoder's Bernoulli; otherwise an image is the decoder's mean, in
    grey."""


class Vae(Section):
    """A convolutional variational autoencoder with a normal latent and a Bernoulli decoder."""

    kind: Literal["vae"]
    latent_dim: PositiveInt = since(20)
    channels: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = since((32, 64))
    """Of the encoder's convolutions, each of which halves height and width; the decoder is its mirror
    image."""
    init: Literal["scratch", "previous"] = since("scratch")
    """``scratch``: new weights each generation; ``previous``: go on from g-1."""
    train: VaeTrain = since(VaeTrain(), introduced={})
    sample: VaeSample = since(VaeSample(), introduced={})


def check(config: Any) -> None:
    """Check its section against the rest of a configuration.

    Raises:
        ValueError: They do not fit.
    """
    regime = config.regime
    if regime.budget == "tokens":
        raise ValueError("regime.budget: images have no tokens; allowed for learner vae: examples, steps")
    if regime.refresh is not None and regime.refresh.init == "pretrained":
        raise ValueError(
            "regime.refresh.init: learner vae has no pretrained weights; allowed: scratch, previous"
        )
    writer = regime.writer
    if writer.is_fixed and writer.cell is None:
        raise ValueError("regime.source: learner vae reads images; allowed: self, {cell: ...}")


def turn_seconds(turn: Any) -> float:
    """Seconds of one generation (`harness.learners.protocol.Turn`): 1 us a pixel and epoch (docs/LOG.md)."""
    pixels: int = turn.real.example_bytes // 4
    return float(1e-6 * turn.config.learner.train.epochs * turn.recipe.size * pixels)


_SHUMAILOV, _KINGMA = "Shumailov et al. 2023, arXiv 2305.17493", "Kingma and Welling 2013, arXiv 1312.6114"
COMPONENT = LearnerPlugin(
    section=Vae,
    version=1,
    learner="harness.learners.vae.learner:VaeLearner",
    reads=("images",),
    extra="images",
    modules=("torch",),
    batchable=False,
    check=check,
    metrics=(
        Metric(
            "vae/latent_std", "std of samples in generation 0's latent", "", "lower", _SHUMAILOV, shown=True
        ),
        Metric("vae/elbo", "ELBO of real test images", "nats/image", "lower", _KINGMA, shown=True),
        Metric(
            "vae/elbo_<class>",
            "ELBO of real test images of class <class>",
            "nats/image",
            "lower",
            needs="evaluate.groups",
        ),
        Metric(
            "vae/reconstruction", "reconstruction error of real test images", "nats/image", "higher", _KINGMA
        ),
        Metric("vae/kl", "KL term of real test images", "nats/image", "", _KINGMA),
        Metric("vae/class_entropy", "entropy of the samples' classes", "nats", "lower"),
        Metric("vae/classes", "classes with at least 1 % of the samples", "", "lower"),
        Metric("vae/share_<class>", "share of class <class> in the samples", drawn=False),
        Metric("vae/confidence", "classifier's confidence in the samples"),
        Metric("vae/sample_std", "pixel standard deviation over the samples"),
    ),
    groups={"vae": 1},
    headlines=("vae/latent_std",),
    evaluates=("examples", "groups"),
    names_examples=True,
    seconds_per_example=1.5e-3,
    turn_seconds=turn_seconds,
    example={
        "latent_dim": 10,
        "channels": [16, 32],
        "train": {"epochs": 40, "batch_size": 64, "learning_rate": 3e-3},
    },
    seeds=1,
)
