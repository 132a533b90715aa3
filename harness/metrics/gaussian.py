"""How far a fitted normal distribution is from the true one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def gaussian_metrics(mean: Array, covariance: Array, true_mean: float, true_variance: float) -> Mapping[str, float]:
    """Errors of a fit to N(true_mean, true_variance x I).

    Args:
        mean: Shape [dim].
        covariance: Shape [dim, dim].
        true_mean: Mean of every coordinate.
        true_variance: Variance of every coordinate.

    Returns:
        ``gaussian/mean_sq_error``: squared distance of the means; ``gaussian/trace_ratio`` and ``gaussian/det_ratio``: of the
        covariances, fitted over true; ``gaussian/log_variance``: log of the mean variance per coordinate.

    Source: Kazdan et al. 2410.16713 (quantities), Shumailov et al. 2305.17493 (what must come out).
    """
    dim = len(mean)
    trace = float(np.trace(covariance))
    _, log_det = np.linalg.slogdet(covariance)
    with np.errstate(divide="ignore", over="ignore"):
        return {
            "gaussian/mean_sq_error": float(((mean - true_mean) ** 2).sum()),
            "gaussian/trace_ratio": trace / (dim * true_variance),
            "gaussian/det_ratio": float(np.exp(log_det - dim * np.log(true_variance))),
            "gaussian/log_variance": float(np.log(trace / dim)) if trace > 0 else float("-inf"),
        }
