"""What every metric is called, measured in and worse by.

Figures, tables, claims and ``harness list metrics`` read it here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from harness.components import LEARNERS
from harness.components import METRICS as METRIC_PLUGINS
from harness.registry import Metric

POOL = (
    Metric("pool/trained_real_share", "real share of what is trained on", worse="lower"),
    Metric("pool/kept_share", "share of the pool that passes"),
    Metric("pool/recall", "synthetic examples that are found and dropped", worse="lower"),
    Metric("pool/false_positive_rate", "real examples that are dropped", worse="higher"),
    Metric("pool/real_share", "real share of the pool", drawn=False),
    Metric("pool/trained", "training examples", drawn=False),
    Metric("pool/<filter>/kept_share", "share that passes <filter>", drawn=False),
    Metric("pool/<filter>/recall", "synthetic examples that <filter> drops", drawn=False),
    Metric("pool/<filter>/false_positive_rate", "real examples that <filter> drops", drawn=False),
)
"""What became of what arrived unlabelled: of records whose regime has a pool."""
JUDGED = (
    Metric("judge/true_share", "completions read for training that are right", worse="lower"),
    Metric("judge/precision", "completions trained on that are right", worse="lower"),
    Metric("judge/accepted_share", "completions that are trained on"),
    Metric("judge/reward", "reward of the completions read for training"),
    Metric("judge/heldout_auc", "right completions that a trained judge ranks above wrong ones, held out"),
    Metric("judge/heldout_accuracy", "held out completions of which a trained judge is right", drawn=False),
    Metric("judge/heldout_baseline", "the same of a judge that always says the same", drawn=False),
    Metric("judge/judged", "completions read for training", drawn=False),
    Metric("judge/checker_raised", "of these, the checker raised an error on", drawn=False),
    Metric("judge/checker_timed_out", "of these, the checker did not return in time on", drawn=False),
    Metric("judge/accepted", "completions trained on", drawn=False),
)
"""What judges let pass: of records whose data have a truth."""
METRICS: tuple[Metric, ...] = (
    *(metric for kind in LEARNERS for metric in LEARNERS[kind].metrics),
    *POOL,
    *JUDGED,
    *(metric for kind in METRIC_PLUGINS for metric in METRIC_PLUGINS[kind].metrics),
)
"""All of them, those of packages last."""
HEADLINES = (*(name for kind in LEARNERS for name in LEARNERS[kind].headlines), "test/nll")
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


def among(name: str, names: Collection[str]) -> Metric:
    """What is known of a column beside others: closed forms score examples, which are no text of tokens.

    Args:
        name: The column.
        names: All columns of the records.
    """
    forms = {other.partition("/")[0] for other in names} & set(LEARNERS)
    if name == "test/nll" and forms and "test/perplexity" not in names:
        return replace(about(name), label="NLL on real examples", unit="nats")
    return about(name)


def is_described(name: str) -> bool:
    """Whether somebody has described a column of this name."""
    return name in _PLAIN or about(name) != Metric(name, name)


def _around(metric: Metric) -> tuple[str, str, str]:
    """The name of a metric with an open part.

    What is before it, the part with its brackets, and what is behind it.
    """
    start, end = metric.name.index("<"), metric.name.index(">") + 1
    return metric.name[:start], metric.name[start:end], metric.name[end:]


def drawn(names: Collection[str]) -> list[Metric]:
    """Of some columns those that a report draws, in its order."""
    place = {metric.group: position for position, metric in reversed(list(enumerate(METRICS)))}
    order = {name: position for position, name in enumerate(_PLAIN)}
    known = [metric for metric in map(about, names) if metric.drawn and metric.group in place]
    return sorted(
        known, key=lambda metric: (place[metric.group], order.get(metric.name, len(order)), metric.name)
    )
