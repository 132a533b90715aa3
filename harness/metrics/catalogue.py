"""What every metric is called, measured in and worse by.

Figures, tables, claims and ``harness list metrics`` read it here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from harness.components import LEARNERS
from harness.components import METRICS as METRIC_PLUGINS
from harness.components.columns import JUDGED, POOL
from harness.registry import LearnerPlugin, Metric

METRICS: tuple[Metric, ...] = (
    *(metric for kind in LEARNERS for metric in LEARNERS[kind].metrics),
    *POOL,
    *JUDGED,
    *(metric for kind in METRIC_PLUGINS for metric in METRIC_PLUGINS[kind].metrics),
)
"""All of them, those of packages last."""


def _headlines(learner: LearnerPlugin) -> Sequence[str]:
    """What a learner says; else what a run shows of it that collapse moves one way."""
    return learner.headlines or [m.name for m in learner.metrics if m.shown and m.worse]


HEADLINES = (*(name for kind in LEARNERS for name in _headlines(LEARNERS[kind])), "test/nll")
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
