"""Distances of fitted distributions from the truth, for many chains at once.

Arrays have the chains as their first axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
MAX_SHARES = 12
"""Outcomes up to this number have a column of their own."""


def moments(values: Array) -> tuple[Array, Array]:
    """Mean [chains, dim] and mean variance per coordinate [chains] of rows of shape [chains, rows, dim]."""
    rows, dim = values.shape[1:]
    mean = (np.ones((1, rows)) @ values)[:, 0] / rows
    centred = (values - mean[:, None]).reshape(len(values), -1)
    return mean, (centred**2).sum(axis=1) / (rows * dim)


def gaussian_metrics(
    mean: Array, covariance: Array, log_det: Array, true_mean: float, true_variance: float
) -> dict[str, Array]:
    """Errors of fits to N(true_mean, true_variance x I).

    Args:
        mean: Shape [chains, dim].
        covariance: Shape [chains, dim, dim].
        log_det: Log determinants, shape [chains].
        true_mean: Mean of every coordinate.
        true_variance: Variance of every coordinate.

    Returns:
        ``gaussian/mean_sq_error``: squared distance of the means; ``gaussian/covariance_error``: Frobenius
            norm of the difference;
        ``gaussian/trace_ratio`` and ``gaussian/det_ratio``: of the covariances, fitted over true;
        ``gaussian/log_variance``: log of the mean variance per coordinate; ``gaussian/wasserstein_2``:
        between the two normal distributions (Olkin and Pukelsheim 1982; the true covariance commutes with
        every other); ``gaussian/kl``: from the fit to the truth, KL(fit || truth), nats. Each of shape
        [chains].

    Source: Kazdan et al. 2410.16713 (quantities), Shumailov et al. 2305.17493 (what must come out).
    """
    dim = mean.shape[1]
    apart = ((mean - true_mean) ** 2).sum(axis=1)
    trace = np.trace(covariance, axis1=1, axis2=2)
    finite = np.isfinite(trace)
    spectrum = np.full(mean.shape, np.nan)
    spectrum[finite] = np.linalg.eigvalsh(covariance[finite]) if dim > 1 else covariance[finite][:, :, 0]
    stretch = (np.sqrt(np.clip(spectrum, 0.0, None)) - true_variance**0.5) ** 2
    wrong = (covariance - true_variance * np.eye(dim)).reshape(len(mean), -1)
    relative = log_det - dim * np.log(true_variance)
    with np.errstate(divide="ignore", over="ignore"):
        return {
            "gaussian/mean_sq_error": apart,
            "gaussian/covariance_error": np.sqrt((wrong**2).sum(axis=1)),
            "gaussian/trace_ratio": trace / (dim * true_variance),
            "gaussian/det_ratio": np.exp(relative),
            "gaussian/log_variance": np.log(trace / dim),
            "gaussian/wasserstein_2": np.sqrt(apart + stretch.sum(axis=1)),
            "gaussian/kl": 0.5 * ((trace + apart) / true_variance - dim - relative),
        }


def normal_nll(mean: Array, root: Array, log_det: Array, points: Array, spread: float | Array) -> Array:
    """Mean NLL of real examples under N(mean, root root'), nats.

    Args:
        mean: Shape [chains, dim].
        root: Shape [chains, dim, dim].
        log_det: Log determinant of the covariance, shape [chains]; infinite where it is singular, and so is
            the NLL.
        points: Shape [points, dim]: examples, or the one mean of a normal truth.
        spread: Variance per coordinate of a normal truth around ``points`` (the NLL is then its exact
            expectation), 0 for examples.

    Returns:
        Shape [chains].
    """
    dim = mean.shape[1]
    found = np.full(len(mean), np.inf)
    whole = np.isfinite(log_det)
    if whole.any():
        inverse = np.linalg.inv(root[whole])
        distance = (points[None] - mean[whole][:, None]) @ inverse.transpose(0, 2, 1)
        squared = (distance.reshape(len(inverse), -1) ** 2).sum(axis=1) / len(points)
        trace = (inverse.reshape(len(inverse), -1) ** 2).sum(axis=1)
        found[whole] = 0.5 * (dim * np.log(2 * np.pi) + log_det[whole] + squared + spread * trace)
    return found


def mixture_log_density(points: Array, weights: Array, means: Array, covariances: Array) -> Array:
    """Log density of one mixture at points: [points, dim], [k], [k, dim], [k, dim, dim] to [points].

    NaN if undefined.
    """
    if not np.isfinite(covariances).all():
        return np.full(len(points), np.nan)
    logs = []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        try:
            lower = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return np.full(len(points), np.nan)
        distance = np.linalg.solve(lower, (points - mean).T)
        log_det = 2 * np.log(np.diagonal(lower)).sum()
        with np.errstate(divide="ignore"):
            logs.append(
                np.log(weight)
                - 0.5 * ((distance**2).sum(axis=0) + log_det + points.shape[1] * np.log(2 * np.pi))
            )
    return np.asarray(np.logaddexp.reduce(logs, axis=0))


def log_kernel_sums(points: Array, values: Array, bandwidth: Array) -> Array:
    """Log of the sum of normal kernels at points.

    Args:
        points: Shape [points, dim].
        values: Where the kernels stand, shape [chains, rows, dim].
        bandwidth: Standard deviation of the kernels, shape [chains].

    Returns:
        Shape [chains, points].
    """
    dim = points.shape[1]
    found = np.empty((len(values), len(points)))
    for chain, (rows, width) in enumerate(zip(values, bandwidth, strict=True)):
        squared = np.zeros((len(points), len(rows)))
        for axis in range(dim):
            squared += ((points[:, axis, None] - rows[None, :, axis]) / width) ** 2
        squared *= -0.5
        highest = squared.max(axis=1, keepdims=True)
        found[chain] = (
            np.log(np.exp(squared - highest).sum(axis=1))
            + highest[:, 0]
            - dim * np.log(width * np.sqrt(2 * np.pi))
        )
    return found


def discrete_metrics(probabilities: Array, truth: Array) -> dict[str, Array]:
    """What is left of a discrete distribution.

    Args:
        probabilities: Fitted, shape [chains, outcomes].
        truth: True, shape [outcomes].

    Returns:
        ``discrete/entropy`` (nats), ``discrete/outcomes``: with a probability above 0,
        ``discrete/heterozygosity``: 1 - sum p^2,
        ``discrete/kl``: KL(fit || truth), nats, ``discrete/lost_mass``: true mass of the outcomes that are
            lost, and for up to
        `MAX_SHARES` outcomes ``share/outcome_<k>``. Each of shape [chains].

    Source: heterozygosity under drift, Wright 1931 (E[1 - sum p^2] falls by 1 - 1/N a generation); Kazdan et
        al. 2410.16713.
    """
    present = probabilities > 0
    safe = np.where(present, probabilities, 1.0)
    true = np.broadcast_to(np.where(truth > 0, truth, 1.0), probabilities.shape)
    found = {
        "discrete/entropy": -(probabilities * np.log(safe)).sum(axis=1),
        "discrete/outcomes": present.sum(axis=1).astype(np.float64),
        "discrete/heterozygosity": 1 - (probabilities**2).sum(axis=1),
        "discrete/kl": (probabilities * np.log(safe / true)).sum(axis=1),
        "discrete/lost_mass": np.where(present, 0.0, truth).sum(axis=1),
    }
    if probabilities.shape[1] <= MAX_SHARES:
        found |= {
            f"share/outcome_{k}": np.ascontiguousarray(probabilities[:, k])
            for k in range(probabilities.shape[1])
        }
    return found


def regression_metrics(weights: Array, truth: Array, signs: bool) -> dict[str, Array]:
    """How far fitted weights are from the true ones.

    Args:
        weights: Shape [chains, dim].
        truth: Shape [dim].
        signs: Whether labels are signs.

    Returns:
        ``regression/test_error``: E (w.x - w*.x)^2 for x from N(0, I), which is |w - w*|^2;
            ``regression/norm``: |w|; for labels
        that are signs ``regression/accuracy``: 1 - angle / pi, the share of x whose sign is right. Each of
        shape [chains].

    Source: Dohmatob et al. 2402.07712, Gerstgrasser et al. 2404.01413 (test error without the label's own
        noise).
    """
    norm = np.sqrt((weights**2).sum(axis=1))
    found = {"regression/test_error": ((weights - truth) ** 2).sum(axis=1), "regression/norm": norm}
    if signs:
        with np.errstate(invalid="ignore"):
            cosine = (weights * truth).sum(axis=1) / (norm * np.sqrt((truth**2).sum()))
        found["regression/accuracy"] = 1 - np.arccos(np.clip(cosine, -1, 1)) / np.pi
    return found


def range_shares(first: Array, ranges: Mapping[str, tuple[float, float]]) -> dict[str, Array]:
    """Share of each corpus in named ranges of the first coordinate.

    [chains, rows] to ``share/<name>`` of shape [chains].
    """
    return {
        f"share/{name}": ((first >= low) & (first < high)).sum(axis=1) / first.shape[1]
        for name, (low, high) in ranges.items()
    }
