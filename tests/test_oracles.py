"""Closed forms that the learners must meet: expected values come from theory, bounds from the standard error
of the sample.

Every expectation is derived in docs/oracles.md. A correct program fails with a probability of about 6e-5 for
each value that is compared; the streams are fixed, so it either always does or never.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from bundled import assert_mean, at, table
from scipy.special import psi
from scipy.stats import binom, chi2, norm

pytestmark = pytest.mark.oracle

REPLACE = {"kind": "replace", "synthetic_ratio": 1.0}


def seeds(count: int) -> dict[str, Any]:
    return {"seed": {"from": 0, "count": count}}


def gaussian(
    estimator: str, regime: dict[str, Any], n: int, generations: int, count: int, dim: int = 1
) -> Any:
    data = {"source": "gaussian", "num_examples": n, "dim": dim}
    learner = {"kind": "gaussian", "estimator": estimator}
    return table(
        {"data": data, "learner": learner, "regime": regime, "generations": generations, "grid": seeds(count)}
    )


def regression(design: str, regime: dict[str, Any], generations: int, count: int, **data: Any) -> Any:
    found = {"source": "linear", "dim": 10, "num_examples": 111, "noise_variance": 1.0, **data}
    learner = {"kind": "linear_regression", "design": design}
    return table(
        {
            "data": found,
            "learner": learner,
            "regime": regime,
            "generations": generations,
            "grid": seeds(count),
        }
    )


# --- rows 6 to 8: the normal distribution -------------------------------------------------------------------


@pytest.mark.parametrize("dim", [1, 3])
def test_row_6_replace_mle(dim: int) -> None:
    """N = 10, 2,000 chains: E var_t = (1 - 1/N)^t; E |mu_t - mu|^2 = dim (1 - (1 - 1/N)^t); t = g + 1
    fits."""
    frame = gaussian("mle", REPLACE, 10, 9, 2000, dim)
    for generation in (0, 1, 4, 9):
        left = (1 - 1 / 10) ** (generation + 1)
        assert_mean(at(frame, "gaussian/trace_ratio", generation), left)
        assert_mean(at(frame, "gaussian/mean_sq_error", generation), dim * (1 - left))


def test_growing_sets_keep_what_their_sizes_say() -> None:
    """N_t = 10 t^2, 2,000 chains: E var_T = prod_{t<=T} (1 - 1/N_t), which stays above 0 for ever."""
    frame = gaussian("mle", {**REPLACE, "growth": {"power": 2}}, 10, 9, 2000)
    for generation in (0, 1, 4, 9):
        left = math.prod(1 - 1 / (10 * t**2) for t in range(1, generation + 2))
        assert_mean(at(frame, "gaussian/trace_ratio", generation), left)
        assert_mean(at(frame, "gaussian/mean_sq_error", generation), 1 - left)


def test_row_7_replace_unbiased() -> None:
    """N = 10, 2,000 chains: E ln var_t = t [psi((N-1)/2) - ln((N-1)/2)]; E sd_t = c4^t; E (mu_t - mu)^2 =
    t/N.

    The variance's own mean is 1 for ever and is not tested: few chains carry it.
    """
    frame = gaussian("unbiased", REPLACE, 10, 29, 2000)
    c4 = math.sqrt(2 / 9) * math.exp(math.lgamma(5) - math.lgamma(4.5))
    for generation in (0, 4, 9, 29):
        fits = generation + 1
        assert_mean(at(frame, "gaussian/log_variance", generation), fits * (psi(4.5) - math.log(4.5)))
        if generation < 10:
            assert_mean(np.exp(at(frame, "gaussian/log_variance", generation) / 2), c4**fits)
    assert_mean(at(frame, "gaussian/mean_sq_error", 4), 5 / 10)
    median = np.median(at(frame, "gaussian/log_variance", 29))
    # trigamma(4.5) = 0.2490 for each fit; a median's standard error
    spread = math.sqrt(math.pi / 2 * 30 * 0.2490 / 2000)
    assert abs(median - 30 * (psi(4.5) - math.log(4.5))) < 4 * spread + 0.05, (
        "almost normal by the central limit theorem"
    )


@pytest.mark.slow
def test_row_8_accumulate_mle() -> None:
    """N = 10, 2,000 chains: E var_t = prod (1 - 1/(N i^2)), which tends to sin(pi/sqrt N) / (pi/sqrt N) =
    0.843."""
    frame = gaussian("mle", {"kind": "accumulate"}, 10, 60, 2000)
    for generation in (0, 1, 5, 60):
        assert_mean(
            at(frame, "gaussian/trace_ratio", generation),
            math.prod(1 - 1 / (10 * i * i) for i in range(1, generation + 2)),
        )
    root = math.pi / math.sqrt(10)
    assert abs(math.prod(1 - 1 / (10 * i * i) for i in range(1, 62)) - math.sin(root) / root) < 2e-3


@pytest.mark.slow
def test_subsampling_lies_between_replacing_and_accumulating() -> None:
    """N = 20, 500 chains, generation 30: the mean log variance is ordered, each gap above 4 standard errors
    (Kazdan et al.)."""
    kinds: list[dict[str, Any]] = [REPLACE, {"kind": "accumulate_subsample"}, {"kind": "accumulate"}]
    found = [at(gaussian("mle", kind, 20, 30, 500), "gaussian/log_variance", 30) for kind in kinds]
    for worse, better in zip(found, found[1:], strict=False):
        error = math.hypot(worse.std(), better.std()) / math.sqrt(500)
        assert better.mean() - worse.mean() > 4 * error


# --- rows 1 to 5: least squares -----------------------------------------------------------------------------

BASE = 10 / (111 - 10 - 1)
"""sigma^2 d / (T - d - 1)."""


def test_row_1_replace_with_the_same_design() -> None:
    """d = 10, T = 111, 600 chains: test error after n fits is n sigma^2 d / (T - d - 1)."""
    frame = regression("fixed", REPLACE, 9, 600)
    for generation in (0, 4, 9):
        assert_mean(at(frame, "regression/test_error", generation), (generation + 1) * BASE)


def test_row_2_accumulate_with_the_same_design() -> None:
    """The factor is sum 1/i^2, below pi^2/6 for ever."""
    frame = regression("fixed", {"kind": "accumulate"}, 19, 600)
    for generation in (0, 4, 19):
        factor = sum(1 / i**2 for i in range(1, generation + 2))
        assert factor < math.pi**2 / 6
        assert_mean(at(frame, "regression/test_error", generation), factor * BASE)


def test_row_3_a_grown_set_of_the_latest_model_alone() -> None:
    """Fit i sees T i fresh examples and adds sigma^2 d / (T i - d - 1): about sum 1/i, so O(log n)."""
    frame = regression("fresh", {"kind": "replace_grown"}, 9, 600)
    for generation in (0, 4, 9):
        expected = sum(10 / (111 * i - 11) for i in range(1, generation + 2))
        assert_mean(at(frame, "regression/test_error", generation), expected)


def test_row_4_replace_with_fresh_designs() -> None:
    """Every fit adds sigma^2 d / (T - d - 1) of its own (Dohmatob et al. 2402.07712, isotropic, T = T0, sigma
    = sigma0)."""
    frame = regression("fresh", REPLACE, 6, 600)
    for generation in (0, 6):
        assert_mean(at(frame, "regression/test_error", generation), (generation + 1) * BASE)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_row_5_strong_collapse(share: float) -> None:
    """A share p of a teacher whose weights are c away leaves p^2 c^2, however many examples: sigma^2 d/n +
    p^2 c^2, to O(d/n).

    d = 20, n = 20,000, c = 1, 40 chains. The next order is p (1 - p) c^2 d/n (Dohmatob et al. 2410.04840,
    corollary 1).
    """
    regime = {"kind": "replace", "synthetic_ratio": share, "source": {"model": {"shift": 1.0}}}
    frame = regression("fresh", regime, 1, 40, dim=20, num_examples=20_000)
    expected = 20 / 20_000 + share**2
    found = at(frame, "regression/test_error", 1)
    allowed = 4 * found.std(ddof=1) / math.sqrt(40) + 2 * 20 / 20_000 * share
    assert abs(found.mean() - expected) < allowed
    assert np.allclose(at(frame, "regression/test_error", 0).mean(), 20 / 20_000, rtol=0.3), (
        "generation 0 has no teacher"
    )


# --- rows 9 and 10: discrete distributions and kernel densities ---------------------------------------------


@pytest.mark.parametrize(("outcomes", "n"), [(2, 20), (10, 50)])
def test_row_9_heterozygosity(outcomes: int, n: int) -> None:
    """2,000 chains: E [1 - sum p^2] = (1 - 1/K) (1 - 1/N)^t (Wright's drift)."""
    data = {"source": "discrete", "outcomes": outcomes, "num_examples": n}
    frame = table(
        {
            "data": data,
            "learner": {"kind": "discrete"},
            "regime": REPLACE,
            "generations": 19,
            "grid": seeds(2000),
        }
    )
    for generation in (0, 4, 19):
        expected = (1 - 1 / outcomes) * (1 - 1 / n) ** (generation + 1)
        assert_mean(at(frame, "discrete/heterozygosity", generation), expected)


def test_a_rare_outcome_is_lost_as_often_as_drift_says() -> None:
    """p = 0.01, N = 100, 4,000 chains: generation 0 misses it with probability (1 - p)^N; and E p_g = p:
    drift has no direction."""
    data = {"source": "discrete", "probabilities": [0.99, 0.01], "num_examples": 100}
    frame = table(
        {
            "data": data,
            "learner": {"kind": "discrete"},
            "regime": REPLACE,
            "generations": 3,
            "grid": seeds(4000),
        }
    )
    assert_mean((at(frame, "share/outcome_1", 0) == 0).astype(float), 0.99**100)
    for generation in (0, 3):
        assert_mean(at(frame, "share/outcome_1", generation), 0.01)
    # Lost in generation 1: a second draw of N at the fitted p, E (1 - p_0)^N over p_0 = Binomial(N, p)/N.
    counts = np.arange(101)
    weights = np.array([math.comb(100, k) * 0.01**k * 0.99 ** (100 - k) for k in counts])
    assert_mean(
        (at(frame, "share/outcome_1", 1) == 0).astype(float),
        float((weights * (1 - counts / 100) ** 100).sum()),
    )


@pytest.mark.slow
def test_row_10_a_fixed_bandwidth_inflates_the_variance() -> None:
    """n = 20, h = 0.5, 2,000 chains: S^2 <- (1 - 1/n)(S^2 + h^2), with the fixed point (n - 1) h^2."""
    data = {"source": "gaussian", "num_examples": 20}
    learner = {"kind": "kde", "bandwidth": 0.5}
    frame = table(
        {"data": data, "learner": learner, "regime": REPLACE, "generations": 40, "grid": seeds(1000)}
    )
    inner = 1.0
    for generation in range(41):
        inner = (1 - 1 / 20) * (inner + (0.25 if generation else 0.0))
        if generation in (0, 1, 10, 40):
            assert_mean(np.exp(at(frame, "kde/log_variance", generation)), inner + 0.25)
    assert inner > 3 and abs((1 - 1 / 20) * (19 * 0.25 + 0.25) - 19 * 0.25) < 1e-12


# --- row 11: verification -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("recall", "false_positives"), [(0.0, 0.0), (2 / 3, 0.0), (0.9, 0.0), (0.6, 0.2)])
def test_row_11_verification_has_a_threshold(recall: float, false_positives: float) -> None:
    """With keep rates phi for right and psi for wrong examples, p* = 1/(1 + psi/phi): accuracy -> 1 below, 0
    above (Feng et al.).

    The wrong examples are a teacher's whose labels are all flipped. d = 5, n = 4,000, 10 chains, 0.08 to
    either side of p*.
    """
    psi_, phi = 1 - recall, 1 - false_positives
    threshold = 1 / (1 + psi_ / phi)
    for side, expected in ((-0.08, 1.0), (0.05 if threshold > 0.9 else 0.08, 0.0)):
        regime = {
            "kind": "replace",
            "synthetic_ratio": round(threshold + side, 4),
            "source": {"model": {"flipped": 1.0}},
        }
        filters = [{"kind": "label", "recall": round(recall, 6), "false_positive_rate": false_positives}]
        data = {"source": "linear", "dim": 5, "num_examples": 4000, "labels": "sign"}
        frame = table(
            {
                "data": data,
                "learner": {"kind": "linear_regression", "design": "fresh"},
                "regime": regime,
                "filters": filters,
                "generations": 1,
                "grid": seeds(10),
            }
        )
        accuracy = at(frame, "regression/accuracy", 1)
        # At a net share s of right labels the weights are s w + noise of variance d/m: the angle is about
        # noise over s.
        kept = (threshold + side) * psi_ + (1 - threshold - side) * phi
        signal = abs((1 - threshold - side) * phi - (threshold + side) * psi_) / kept * math.sqrt(2 / math.pi)
        angle = math.atan2(math.sqrt(5 / (4000 * kept)), signal) / math.pi
        assert np.all(np.abs(accuracy - expected) < 3 * angle), (accuracy, expected, angle)
        assert norm.cdf(signal / math.sqrt(1 / (4000 * kept))) > 0.999, (
            "the sample is large enough to tell the sides apart"
        )


@pytest.mark.parametrize("merge", [0.5, -0.5, "uniform"])
@pytest.mark.parametrize("dim", [1, 3])
def test_row_23_moments_merged_with_those_before(merge: Any, dim: int) -> None:
    """Averaging slows both the loss of variance and the drift of the mean, the mean of all fits most of all;
    extrapolating away from the fit turns the first into growth, and the mean drifts all the same."""
    n, generations = 40, 6
    config = {
        "data": {"source": "gaussian", "num_examples": n, "dim": dim},
        "learner": {"kind": "gaussian", "init": "previous", "merge": merge},
        "regime": REPLACE,
        "generations": generations,
        "grid": seeds(2000),
    }
    frame = table(config)
    error, variance = 1 / n, 1 - 1 / n
    for generation in range(generations + 1):
        if generation:
            share = 1 / (generation + 1) if merge == "uniform" else merge
            error += share**2 * variance / n
            variance *= 1 - share / n
        assert_mean(at(frame, "gaussian/mean_sq_error", generation), dim * error)
        assert_mean(at(frame, "gaussian/trace_ratio", generation), variance)
    growing = (
        at(frame, "gaussian/trace_ratio", generations).mean() > at(frame, "gaussian/trace_ratio", 0).mean()
    )
    assert growing == (merge == -0.5)


@pytest.mark.parametrize(("dim", "share"), [(1, 0.85), (3, 0.85), (1, 0.995)])
def test_row_25_truncated_likelihood(dim: int, share: float) -> None:
    """Examples at z of the model before are learned from where |z|^2 >= c^2 = -2 ln(share): k of n, binomial
    with q = P(chi^2_d >= c^2). They have the same mean, and s = P(chi^2_{d+2} >= c^2) / q times the variance.

    2,000 chains of n = 40: E var <- s (1 - E 1/k) var; E |mean error|^2 grows by d s E(1/k) var.
    """
    n, generations = 40, 4
    frame = table(
        {
            "data": {"source": "gaussian", "num_examples": n, "dim": dim},
            "learner": {"kind": "gaussian", "init": "previous", "truncate": share},
            "regime": REPLACE,
            "generations": generations,
            "grid": seeds(2000),
        }
    )
    limit = -2 * math.log(share)
    q = chi2.sf(limit, dim)
    stretch = chi2.sf(limit, dim + 2) / q
    if dim == 1:  # the second moment of a normal variable beyond c on either side, by parts
        c = math.sqrt(limit)
        assert stretch == pytest.approx(1 + c * norm.pdf(c) / norm.sf(c))
    k = np.arange(1, n + 1)
    inverse = float((binom.pmf(k, n, q) / k).sum())  # no example is left in one of 10^10 fits
    error, variance = 1 / n, 1 - 1 / n
    for generation in range(generations + 1):
        if generation:
            error += stretch * inverse * variance
            variance *= stretch * (1 - inverse)
        assert_mean(at(frame, "gaussian/mean_sq_error", generation), dim * error)
        assert_mean(at(frame, "gaussian/trace_ratio", generation), variance)


# --- rows 18 to 20: weights of origins, counts that survive, curation ---------------------------------------


@pytest.mark.parametrize("weight", [1.0, "golden", 0.3])
def test_row_18_weights_of_real_and_synthetic_examples(weight: Any) -> None:
    """Errors of the mean follow an exact recursion with the fitted variance, and go to what is stated where
    that is known."""
    n, ratio, generations = 40, 0.5, 12
    frame = table(
        {
            "data": {"source": "gaussian", "num_examples": n},
            "learner": {"kind": "gaussian", "synthetic_weight": weight},
            "regime": {"kind": "fresh_real", "synthetic_ratio": ratio},
            "generations": generations,
            "grid": seeds(2000),
        }
    )
    real = synthetic = n // 2
    share = (math.sqrt(5) - 1) / 2 if weight == "golden" else real / (real + weight * synthetic)
    error, variance = 1 / n, 1 - 1 / n
    for generation in range(generations + 1):
        if generation:
            before = error, variance
            error = share**2 / real + (1 - share) ** 2 * (before[1] / synthetic + before[0])
            variance = share + (1 - share) * (before[1] + before[0]) - error
        if generation in (0, 1, 3, generations):
            assert_mean(at(frame, "gaussian/mean_sq_error", generation), error)
            assert_mean(np.exp(at(frame, "gaussian/log_variance", generation)), variance)
    stated = (share**2 / real + (1 - share) ** 2 / synthetic) / (1 - (1 - share) ** 2)
    assert error == pytest.approx(stated, rel=0.05), "the fitted variance is a little below the true one"
    if weight == "golden":
        assert stated * real == pytest.approx(0.618, abs=5e-4)


@pytest.mark.parametrize(("generations", "stated"), [(5, 0.790), (10, 0.577)])
def test_row_19_outcomes_survive_by_their_count(generations: int, stated: float) -> None:
    """An outcome with count c = 5 of many lives on for k generations with probability 1 - (1 - s_k)^c,
    s <- 1 - exp(-s) (a branching process with Poisson offspring)."""
    alive, outcomes = 1.0, 400
    for _ in range(generations):
        alive = 1 - math.exp(-alive)
    expected = 1 - (1 - alive) ** 5
    assert expected == pytest.approx(stated, abs=6e-4)
    data = {"source": "discrete", "outcomes": outcomes, "num_examples": 5 * outcomes, "stratified": True}
    frame = table(
        {
            "data": data,
            "learner": {"kind": "discrete"},
            "regime": REPLACE,
            "generations": generations,
            "grid": seeds(60),
        }
    )
    left = at(frame, "discrete/outcomes", generations) / outcomes
    # offspring are multinomial, not Poisson: a relative difference of 1 / N a generation
    error = 4 * left.std(ddof=1) / math.sqrt(len(left)) + generations / (5 * outcomes)
    assert abs(left.mean() - expected) < error


@pytest.mark.parametrize("of", [2, 3])
def test_row_20_curation_moves_mass_to_the_highest_reward(of: int) -> None:
    """Of K examples one is kept with probability in proportion to exp(reward): the next distribution is a sum
    over all K outcomes that may be drawn."""
    rewards, n, generations = np.array([0.0, 0.5, 1.0, 1.5]), 20_000, 3
    frame = table(
        {
            "data": {"source": "discrete", "outcomes": 4, "num_examples": n, "stratified": True},
            "learner": {"kind": "discrete"},
            "regime": REPLACE,
            "filters": [{"kind": "curate", "of": of, "outcomes": rewards.tolist()}],
            "generations": generations,
            "grid": seeds(12),
        }
    )
    p = np.full(4, 0.25)
    for generation in range(generations + 1):
        if generation:
            new = np.zeros(4)
            for drawn in np.ndindex(*[4] * of):
                weights = np.exp(rewards[list(drawn)])
                for place, outcome in enumerate(drawn):
                    new[outcome] += p[list(drawn)].prod() * weights[place] / weights.sum()
            p = new
        for outcome in range(4):
            found = at(frame, f"share/outcome_{outcome}", generation)
            # the map is curved, so the mean is off by the variance of p, of order 1/n
            error = 4 * found.std(ddof=1) / math.sqrt(len(found)) + 5 / n
            assert abs(found.mean() - p[outcome]) < error, (generation, outcome, found.mean(), p[outcome])
