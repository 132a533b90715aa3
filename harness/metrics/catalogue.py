"""What every metric is called, measured in and worse by; figures, tables, claims and ``harness list metrics`` read it here."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from harness.config.schema import LEARNER_PLUGINS, METRIC_PLUGINS
from harness.registry import Metric

_SHUMAILOV, _KAZDAN = "Shumailov et al. 2023, arXiv 2305.17493", "Kazdan et al. 2024, arXiv 2410.16713"
_KINGMA = "Kingma and Welling 2013, arXiv 1312.6114"
_FORGETTING = "McCloskey and Cohen 1989"
NATS = "nats/token"

_OWN: tuple[Metric, ...] = (
    Metric("test/perplexity", "perplexity on real test text", "", "higher", _SHUMAILOV, shown=True),
    Metric("test/nll", "NLL on real test text", NATS, "higher"),
    Metric("test/bits_per_byte", "bits per byte on real test text", "", "higher"),
    Metric("test/perplexity_batch_mean", "mean over batches of the test perplexity", "", "higher", _SHUMAILOV, drawn=False),
    Metric("test/perplexity_sequence_mean", "mean over blocks of the test perplexity", "", "higher", drawn=False),
    Metric("other/<name>/nll", "NLL on other real text: <name>", NATS, "higher", _FORGETTING),
    Metric(
        "other/<name>/bits_per_byte",
        "bits per byte on other real text: <name>",
        "",
        "higher",
        _FORGETTING,
        drawn=False,
    ),
    Metric("gen0/nll_mean", "NLL of synthetic text under generation 0", NATS, "", _SHUMAILOV),
    Metric("gen0/nll_p05", "5 % quantile of the NLL of synthetic text under generation 0", NATS, "", _SHUMAILOV, drawn=False),
    Metric("gen0/nll_p50", "median of the NLL of synthetic text under generation 0", NATS, "", _SHUMAILOV, drawn=False),
    Metric("gen0/nll_p95", "95 % quantile of the NLL of synthetic text under generation 0", NATS, "", _SHUMAILOV, drawn=False),
    Metric("self/nll_mean", "NLL of synthetic text under its own model", NATS),
    Metric("text/distinct_2", "distinct-2", "", "", "Li et al. 2016, arXiv 1510.03055"),
    Metric("text/rep_4", "rep-4 (share of repeated 4-grams)", "", "", "Welleck et al. 2020, arXiv 1908.04319"),
    Metric("text/entropy_2", "bigram entropy", "nats"),
    Metric("text/type_token_ratio", "type-token ratio"),
    Metric("text/vocab_coverage", "vocabulary coverage", "", "lower"),
    Metric("text/tail_mass", "tail mass (rarest tokens, 10 % of real text)"),
    Metric("text/band_<k>", "share of frequency band <k>, over that in real text", drawn=False),
    Metric("text/duplicate_share", "share of duplicates", "", "higher"),
    Metric("text/copy_share", "share copied from the training set"),
    Metric("text/tokens", "tokens that the metrics of the corpus read", drawn=False),
    Metric("gaussian/log_variance", "log variance", "", "lower", _KAZDAN, shown=True),
    Metric("gaussian/trace_ratio", "trace of covariance, fitted / true", "", "", _KAZDAN),
    Metric("gaussian/det_ratio", "determinant of covariance, fitted / true", "", "", _KAZDAN),
    Metric("gaussian/mean_sq_error", "squared error of the mean", "", "higher", _KAZDAN),
    Metric("gaussian/covariance_error", "error of the covariance (Frobenius norm)", "", "higher", _KAZDAN),
    Metric("gaussian/wasserstein_2", "Wasserstein-2 distance to the truth", "", "higher", "Olkin and Pukelsheim 1982"),
    Metric("gaussian/kl", "KL(fit || truth)", "nats", "higher"),
    Metric("mixture/components", "components with more than half an example", "", "lower"),
    Metric("mixture/min_weight", "smallest weight of a component", drawn=False),
    Metric("mixture/log_variance", "log variance of the samples"),
    Metric("mixture/converged", "share of fits that converged", drawn=False),
    Metric("kde/test_nll", "NLL of real test examples", "nats/example", "higher", _KAZDAN),
    Metric("kde/variance", "variance of the density"),
    Metric("kde/log_variance", "log variance of the density", drawn=False),
    Metric("kde/bandwidth", "bandwidth", drawn=False),
    Metric("discrete/entropy", "entropy", "nats", "lower", _KAZDAN),
    Metric("discrete/outcomes", "outcomes that are left", "", "lower"),
    Metric("discrete/heterozygosity", "1 - sum of squared probabilities", "", "lower", "Wright 1931"),
    Metric("discrete/kl", "KL(fit || truth)", "nats", "higher", drawn=False),
    Metric("discrete/lost_mass", "true mass of the outcomes that are lost", "", "higher"),
    Metric("share/<name>", "share of <name>"),
    Metric("regression/test_error", "test error of the weights", "", "higher", "Gerstgrasser et al. 2024, arXiv 2404.01413"),
    Metric("regression/accuracy", "accuracy of the sign", "", "lower", "Feng et al. 2024, arXiv 2406.07515"),
    Metric("regression/norm", "length of the weights", drawn=False),
    Metric("vae/latent_std", "std of samples in generation 0's latent", "", "lower", _SHUMAILOV, shown=True),
    Metric("vae/elbo", "ELBO of real test images", "nats/image", "lower", _KINGMA, shown=True),
    Metric("vae/reconstruction", "reconstruction error of real test images", "nats/image", "higher", _KINGMA),
    Metric("vae/kl", "KL term of real test images", "nats/image", "", _KINGMA),
    Metric("vae/class_entropy", "entropy of the samples' classes", "nats", "lower"),
    Metric("vae/classes", "classes with at least 1 % of the samples", "", "lower"),
    Metric("vae/share_<class>", "share of class <class> in the samples", drawn=False),
    Metric("vae/confidence", "classifier's confidence in the samples"),
    Metric("vae/sample_std", "pixel standard deviation over the samples"),
)
METRICS: tuple[Metric, ...] = (
    *_OWN,
    *(metric for group in (LEARNER_PLUGINS, METRIC_PLUGINS) for found in group.loaded.values() for metric in found.plugin.metrics),
)
"""All of them, those of packages last."""
HEADLINES = (
    "test/perplexity",
    "gaussian/log_variance",
    "regression/accuracy",
    "regression/test_error",
    "discrete/entropy",
    "vae/latent_std",
    "test/nll",
)
"""What a report begins with: the first of these that its records have."""
SHOWN = tuple(metric.name for metric in METRICS if metric.shown)
"""On a run's lines, where a record has them."""

_PLAIN: dict[str, Metric] = {metric.name: metric for metric in METRICS if "<" not in metric.name}
_OPEN = [metric for metric in METRICS if "<" in metric.name]


def about(name: str) -> Metric:
    """What is known of a column; of one that nobody has described, its name."""
    if name in _PLAIN:
        return _PLAIN[name]
    for metric in _OPEN:
        before, part, after = _around(metric)
        if name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after):
            found = name[len(before) : len(name) - len(after)].replace("_", " ")
            return replace(metric, name=name, label=metric.label.replace(part, found))
    return Metric(name, name)


def _around(metric: Metric) -> tuple[str, str, str]:
    """The name of a metric with an open part: what is before it, the part with its brackets, and what is behind it."""
    start, end = metric.name.index("<"), metric.name.index(">") + 1
    return metric.name[:start], metric.name[start:end], metric.name[end:]


def drawn(names: Collection[str]) -> list[Metric]:
    """Of some columns those that a report draws, in its order."""
    place = {metric.group: position for position, metric in reversed(list(enumerate(METRICS)))}
    order = {name: position for position, name in enumerate(_PLAIN)}
    known = [metric for metric in map(about, names) if metric.drawn and metric.group in place]
    return sorted(known, key=lambda metric: (place[metric.group], order.get(metric.name, len(order)), metric.name))
