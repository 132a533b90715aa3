"""A convolutional variational autoencoder (Kingma & Welling 1312.6114) for grey images of any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config.schema import Vae
from harness.streams import stream_seed

WEIGHTS = "model.safetensors"
EVALUATED_TOGETHER = 256
"""Images in one forward pass of an evaluation; always this many, so that an image's bits do not depend on the
others' number."""


class ConvVae(nn.Module):
    """q(z | x) = N(mean, diag exp log_variance), p(z) = N(0, I), p(x | z) = Bernoulli(sigmoid of the logits).

    Pixel by pixel.

    The encoder is one 3 x 3 convolution of stride 2 per entry of ``channels``, each with a ReLU, and a linear
    layer to the latent; the decoder mirrors it with transposed convolutions.
    """

    def __init__(self, shape: tuple[int, int], latent_dim: int, channels: Sequence[int]) -> None:
        """Make the layers, with torch's own random initialisation.

        Args:
            shape: Height and width.
            latent_dim: Numbers in a latent.
            channels: Of the encoder's convolutions.
        """
        super().__init__()
        sizes = [shape]
        for _ in channels:
            height, width = sizes[-1]
            sizes.append(((height + 1) // 2, (width + 1) // 2))
        widths = [1, *channels]
        self.inner = (widths[-1], *sizes[-1])
        flat = widths[-1] * sizes[-1][0] * sizes[-1][1]
        self.encoder = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.to_latent = nn.Linear(flat, 2 * latent_dim)
        self.from_latent = nn.Linear(latent_dim, flat)
        # A transposed convolution makes 2 n - 1 of n pixels; where the encoder had an even number, one is
        # added.
        missing = [(1 - height % 2, 1 - width % 2) for height, width in sizes]
        self.decoder = nn.ModuleList(
            nn.ConvTranspose2d(widths[i + 1], widths[i], 3, 2, 1, missing[i])
            for i in reversed(range(len(channels)))
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), each of shape [batch, latent_dim].

        Images have the shape [batch, height, width].
        """
        hidden = images[:, None]
        for layer in self.encoder:
            hidden = F.relu(layer(hidden))
        mean, log_variance = self.to_latent(hidden.flatten(1)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, latent: Tensor) -> Tensor:
        """Logits of the pixels, shape [batch, height, width], for latents of shape [batch, latent_dim]."""
        hidden = F.relu(self.from_latent(latent)).reshape(-1, *self.inner)
        for number, layer in enumerate(self.decoder, start=1):
            hidden = layer(hidden)
            if number < len(self.decoder):
                hidden = F.relu(hidden)
        return hidden[:, 0]

    def loss(self, images: Tensor, noise: Tensor, beta: float) -> Tensor:
        """Mean over the images of: cross-entropy summed over pixels, + beta KL(q(z | x) || p(z)), in nats.

        Args:
            images: Shape [batch, height, width].
            noise: Standard normals, shape [batch, latent_dim]: z = mean + exp(log_variance / 2) noise.
            beta: Weight of the KL term.
        """
        mean, log_variance = self.encode(images)
        logits = self.decode(mean + torch.exp(0.5 * log_variance) * noise)
        reconstruction = F.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        kl = 0.5 * (log_variance.exp() + mean**2 - 1 - log_variance).sum()
        return (reconstruction + beta * kl) / len(images)


def new_model(config: Vae, shape: tuple[int, int], seed: int, generation: int) -> ConvVae:
    """A model with random weights that are a function of seed and generation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(seed, generation, "init"))
        return ConvVae(shape, config.latent_dim, config.channels)


def write_model(model: ConvVae, folder: Path) -> None:
    """Write the weights as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)


def read_model(config: Vae, shape: tuple[int, int], folder: Path) -> ConvVae:
    """The fitted model in a folder."""
    return with_weights(config, shape, load_file(folder / WEIGHTS))


def with_weights(config: Vae, shape: tuple[int, int], weights: Mapping[str, Tensor]) -> ConvVae:
    """A model with these weights."""
    model = new_model(config, shape, 0, 0)
    model.load_state_dict(dict(weights))
    return model.eval()


def _padded(rows: npt.NDArray[np.float32], size: int) -> Tensor:
    """Rows as a batch of a fixed size; zeros fill it up."""
    batch = np.zeros((size, *rows.shape[1:]), dtype=np.float32)
    batch[: len(rows)] = rows
    return torch.from_numpy(batch)


def decoded(
    model: ConvVae, latent: npt.NDArray[np.float32], size: int = EVALUATED_TOGETHER
) -> npt.NDArray[np.float32]:
    """Logits of latents, a fixed number at a time; float32, shape [num, height, width].

    Args:
        model: The model.
        latent: Shape [num, latent_dim].
        size: How many are decoded together.
    """
    with torch.no_grad():
        parts = [
            model.decode(_padded(rows, size))[: len(rows)].numpy()
            for rows in (latent[start : start + size] for start in range(0, len(latent), size))
        ]
    return np.concatenate(parts)


def encoded(
    model: ConvVae, images: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means and log variances of images of shape [num, height, width], padded as above.

    Each of shape [num, latent_dim].
    """
    means, log_variances = [], []
    with torch.no_grad():
        for start in range(0, len(images), EVALUATED_TOGETHER):
            rows = images[start : start + EVALUATED_TOGETHER]
            mean, log_variance = model.encode(_padded(rows, EVALUATED_TOGETHER))
            means.append(mean[: len(rows)].double().numpy())
            log_variances.append(log_variance[: len(rows)].double().numpy())
    return np.concatenate(means), np.concatenate(log_variances)
