"""What a variational autoencoder knows of real images, and what its samples look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CLASSIFIER_EXAMPLES = 10_000
"""The classifier is trained on the first this many images of the training split."""
COUNTED_SHARE = 0.01
"""A class that fewer of the samples are in counts as lost."""


def bernoulli_nll(logits: npt.NDArray[np.floating], images: npt.NDArray[np.floating]) -> Array:
    """Cross-entropy of pixels in [0, 1] under Bernoullis, summed over the pixels.

    -sum_p [x_p log s(l_p) + (1 - x_p) log(1 - s(l_p))], s the logistic function, which is
    sum_p [log(1 + exp(-|l_p|)) + max(l_p, 0) - x_p l_p].

    Args:
        logits: Shape [num, pixels].
        images: Shape [num, pixels].

    Returns:
        Nats per image, shape [num].

    Source: Kingma & Welling 1312.6114, appendix C.1. For grey pixels it is a cross-entropy, not a normalised
        likelihood.
    """
    logits, images = logits.astype(np.float64), images.astype(np.float64)
    nll: Array = (np.log1p(np.exp(-np.abs(logits))) + np.maximum(logits, 0) - images * logits).sum(axis=1)
    return nll


def mean_image_elbo(train: npt.NDArray[np.floating], test: npt.NDArray[np.floating]) -> float:
    """Log-probability of test images under independent Bernoullis, one for each pixel, as the ELBO counts it.

    What a model has that knows the mean training image and nothing of any single one. A black and a white
    image are counted too, so that a pixel that is never lit may be.

    Args:
        train: Shape [num, pixels], in [0, 1].
        test: Likewise.

    Returns:
        Nats per image, mean over the test images.
    """
    lit = (train.sum(axis=0, dtype=np.float64) + 1) / (len(train) + 2)
    logits = np.log(lit) - np.log1p(-lit)
    return float(-bernoulli_nll(np.broadcast_to(logits, test.shape), test).mean())


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, diag exp log_variance) || N(0, I)) = 1/2 sum_d.

    Exp log_variance_d + mean_d^2 - 1 - log_variance_d.

    Args:
        mean: Shape [num, latent_dim].
        log_variance: Shape [num, latent_dim].

    Returns:
        Nats, shape [num].

    Source: Kingma & Welling 1312.6114, appendix B.
    """
    kl: Array = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance).sum(axis=1)
    return kl


def elbo_metrics(reconstruction: Array, kl: Array) -> Mapping[str, float]:
    """The evidence lower bound and its two terms, means over images.

    Args:
        reconstruction: E_q(z|x) -log p(x | z) of every image, nats, shape [num].
        kl: KL(q(z | x) || p(z)) of every image, nats, shape [num].

    Returns:
        ``vae/reconstruction``, ``vae/kl``, and ``vae/elbo`` = -(reconstruction + KL), nats per image.

    Source: Kingma & Welling 1312.6114, equation 3.
    """
    return {
        "vae/elbo": float(-(reconstruction + kl).mean()),
        "vae/reconstruction": float(reconstruction.mean()),
        "vae/kl": float(kl.mean()),
    }


def elbo_by_class(elbo: Array, labels: npt.NDArray[np.int64] | None) -> Mapping[str, float]:
    """The ELBO of real images, class by class.

    Args:
        elbo: Reconstruction and KL of every image, nats, shape [2, num].
        labels: Its class, shape [num].

    Returns:
        ``vae/elbo_<class>``, nats per image.
    """
    assert labels is not None
    return {
        f"vae/elbo_{label}": float(-elbo.sum(axis=0)[labels == label].mean()) for label in np.unique(labels)
    }


def latent_std(means: Array) -> float:
    """Standard deviation of the encoder's means over the samples.

    Root of the variance's mean over the coordinates.

    It is 0 where all samples are one image, which the standard deviation of all coordinates taken together is
    not.

    Args:
        means: Of generation 0's encoder, for the samples of a generation; shape [num, latent_dim].

    Source: Shumailov et al. 2305.17493, whose VAE is followed by this quantity.
    """
    return float(np.sqrt(means.var(axis=0).mean()))


def sample_std(samples: npt.NDArray[np.floating]) -> float:
    """Standard deviation of every pixel over the samples, mean over the pixels.

    Args:
        samples: The first axis is the sample.
    """
    return float(samples.astype(np.float64).std(axis=0).mean())


class Classifier:
    """Multinomial logistic regression on pixels: what it finds depends on its training images alone."""

    def __init__(self, images: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> None:
        """Train it (L-BFGS from zero, L2 penalty with C = 1: nothing is random).

        Args:
            images: Shape [num, pixels].
            labels: Shape [num], at least two different ones.
        """
        from sklearn.linear_model import LogisticRegression

        self._model = LogisticRegression(C=1.0, max_iter=1000).fit(images.astype(np.float64), labels)
        self.classes = tuple(int(label) for label in self._model.classes_)

    def probabilities(self, images: npt.NDArray[np.floating]) -> Array:
        """Shape [num, num_classes], in the order of ``classes``."""
        found: Array = self._model.predict_proba(images.astype(np.float64))
        return found


def class_metrics(probabilities: Array, classes: Sequence[int]) -> Mapping[str, float]:
    """How the samples are spread over the classes of the real images.

    Args:
        probabilities: A classifier's, shape [num_samples, num_classes].
        classes: The classes, in the order of the columns.

    Returns:
        ``vae/class_entropy``: entropy of the predicted classes, nats; ``vae/classes``: classes that at least
            1 % of the samples are
        in; ``vae/confidence``: mean of the largest probability; ``vae/share_<class>``.
    """
    counts = np.bincount(probabilities.argmax(axis=1), minlength=len(classes))
    shares = counts / counts.sum()
    present = shares[shares > 0]
    return {
        "vae/class_entropy": float((present * -np.log(present)).sum()),
        "vae/classes": float((shares >= COUNTED_SHARE).sum()),
        "vae/confidence": float(probabilities.max(axis=1).mean()),
        **{f"vae/share_{label}": float(share) for label, share in zip(classes, shares, strict=True)},
    }
