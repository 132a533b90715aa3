"""What theory says of a metric by generation.

It does where a closed form is known; docs/oracles.md has the derivations.
"""

from __future__ import annotations

import math
from typing import Any

from harness.components import LEARNERS
from harness.components.merging import share_of_way
from harness.config.schema import Config
from harness.data.distributions import DiscreteTruth
from harness.registry import named


def expected(config: Config, metric: str) -> list[float] | None:
    """The expectation of a metric over chains, for every generation; None where no closed form is known.

    Args:
        config: The cell.
        metric: Name of the metric.
    """
    regime = config.regime
    plain = not config.filters and regime.source == "self" and regime.refresh is None
    plain = plain and regime.growth is None and not (config.population and config.population.mixes)
    whole = regime.kind == "accumulate" or regime.kind == "replace_grown" or regime.synthetic_ratio == 1
    if not plain or not whole:
        return None
    theory = LEARNERS[config.learner.kind].theory
    return named(theory)(config, metric) if theory else None


def gaussian(config: Any, metric: str) -> list[float] | None:
    """Moments of a normal distribution that is fitted again and again."""
    learner, data, kind, generations = config.learner, config.data, config.regime.kind, _all(config)
    if data.source != "gaussian" or learner.synthetic_weight != 1.0:
        return None
    n, mle = data.num_examples, learner.estimator == "mle"
    if learner.init == "previous":
        return _merged_gaussian(config, metric) if kind == "replace" and mle else None
    left = [(1 - 1 / n) ** (g + 1) if mle else 1.0 for g in generations]
    if kind == "replace" and metric == "gaussian/trace_ratio":
        # the mean of the unbiased variance is 1 for ever, and no finite set of chains shows it
        return left if mle else None
    if kind == "replace" and metric == "gaussian/mean_sq_error":
        drift = [1 - item for item in left] if mle else [(g + 1) / n for g in generations]
        return [data.dim * data.variance * item for item in drift]
    if kind == "replace" and metric == "gaussian/log_variance" and data.dim == 1:
        from scipy.special import digamma

        step = float(digamma((n - 1) / 2)) - math.log((n if mle else n - 1) / 2)
        return [math.log(data.variance) + (g + 1) * step for g in generations]
    if kind == "accumulate" and metric == "gaussian/trace_ratio" and mle:
        return [math.prod(1 - 1 / (n * i * i) for i in range(1, g + 2)) for g in generations]
    return None


def _merged_gaussian(config: Any, metric: str) -> list[float] | None:
    """Moments on the line from those before to the fitted ones (docs/oracles.md, row 23)."""
    data, generations = config.data, _all(config)
    n, shares = data.num_examples, [share_of_way(config.learner.merge, g) for g in generations]
    if config.learner.truncate is not None:
        return None  # what is left is a binomial number: tests have it (row 25), a line need not
    left = [(1 - 1 / n) * math.prod(1 - share / n for share in shares[1 : g + 1]) for g in generations]
    if metric == "gaussian/trace_ratio":
        return left
    if metric == "gaussian/mean_sq_error":
        errors = [1 / n + sum(shares[i + 1] ** 2 * left[i] for i in range(g)) / n for g in generations]
        return [data.dim * data.variance * error for error in errors]
    return None


def regression(config: Any, metric: str) -> list[float] | None:
    """The test error of least squares on labels that earlier fits gave."""
    learner, data, kind, generations = config.learner, config.data, config.regime.kind, _all(config)
    if metric != "regression/test_error":
        return None
    if learner.ridge or data.labels != "real":
        return None
    d, size, fixed = data.dim, data.num_examples, learner.design == "fixed"
    base = data.noise_variance * d / (size - d - 1)
    if kind == "replace":
        return [(g + 1) * base for g in generations]
    if kind == "accumulate" and fixed:
        return [base * sum(1 / i**2 for i in range(1, g + 2)) for g in generations]
    if kind == "replace_grown" and not fixed:
        return [
            data.noise_variance * sum(d / (size * i - d - 1) for i in range(1, g + 2)) for g in generations
        ]
    return None


def discrete(config: Any, metric: str) -> list[float] | None:
    """Heterozygosity under genetic drift."""
    data = config.data
    if data.stratified or metric != "discrete/heterozygosity" or config.regime.kind != "replace":
        return None
    start = 1 - float((DiscreteTruth(data).probabilities ** 2).sum())
    return [start * (1 - 1 / data.num_examples) ** (g + 1) for g in _all(config)]


def kde(config: Any, metric: str) -> list[float] | None:
    """The variance of a kernel density estimate of its own samples, at a fixed bandwidth."""
    bandwidth, data = config.learner.bandwidth, config.data
    fixed = data.source == "gaussian" and not isinstance(bandwidth, str)
    if not fixed or metric != "kde/variance" or config.regime.kind != "replace":
        return None
    found, inner = [], data.variance
    for generation in _all(config):
        inner = (1 - 1 / data.num_examples) * (inner + (bandwidth**2 if generation else 0.0))
        found.append(inner + bandwidth**2)
    return found


def _all(config: Any) -> range:
    return range(config.generations + 1)
