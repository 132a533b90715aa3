"""What every metric is called, measured in and worse by.

Figures, tables, claims and ``harness list metrics`` read it here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from harness.components import LEARNERS, REGIMES
from harness.components import METRICS as METRIC_PLUGINS
from harness.components.columns import JUDGED, POOL
from harness.registry import LearnerPlugin, Metric
from harness.terminal import shown

if TYPE_CHECKING:
    from harness.config.schema import Config

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
    metric = _described(name)
    if metric is None or metric.name == name:
        return metric or Metric(name, name)
    part, found = _around(metric)[1], _open_part(metric, name).replace("_", " ")
    return replace(metric, name=name, label=metric.label.replace(part, found))


def _described(name: str) -> Metric | None:
    """What describes a column, as it was written; None where nobody has."""
    return _PLAIN.get(name) or next((metric for metric in _OPEN if _open_part(metric, name)), None)


def measures(kind: str, name: str) -> bool:
    """Whether a learner may measure a column: all may but for what others alone have declared.

    Args:
        kind: The learner's.
        name: The column.
    """
    if kind not in LEARNERS or name.startswith("share/") or (name == "test/nll" and LEARNERS[kind].family):
        return True
    owners = [other for other in LEARNERS if _among(name, LEARNERS[other].metrics)]
    return not owners or kind in owners


def lacking(name: str, config: Config) -> str:
    """Why no record of a cell has a column; empty where they can have it.

    Args:
        name: A column that is described (`is_described`).
        config: The cell.
    """
    kind, evaluate = config.learner.kind, config.evaluate
    learner = LEARNERS[kind]
    if name.startswith("share/") and "ranges" in learner.evaluates and not _among(name, learner.metrics):
        part = name.removeprefix("share/")
        return "" if part in evaluate.ranges else f"it needs evaluate.ranges: {{{part}: [from, to]}}"
    if not measures(kind, name):
        owners = " or ".join(other for other in LEARNERS if _among(name, LEARNERS[other].metrics))
        return f"it is of learner {owners}, not of {kind}"
    added = [item for item in METRIC_PLUGINS if _among(name, METRIC_PLUGINS[item].metrics)]
    if added and not set(added) & set(evaluate.metrics):
        return f"it needs evaluate.metrics: [{added[0]}]"
    if _among(name, POOL) and not REGIMES[config.regime.kind].selects:
        return f"it is of regimes whose examples arrive unlabelled, not of {config.regime.kind}"
    metric = _described(name)
    return "" if metric is None or not metric.needs else _ungiven(metric, name, config)


def _ungiven(metric: Metric, name: str, config: Config) -> str:
    """Which field that a column needs a cell does not give."""
    given = attrgetter(metric.needs)(config)
    if not given:
        return f"it needs {_SAID.get(metric.needs, metric.needs)}"
    if isinstance(given, Mapping) and (part := _open_part(metric, name)) not in given:
        return f"{metric.needs} has no {shown(part)}; it has {', '.join(given)}"
    return ""


_SAID = {"data.prompted": "data that are prompts (data.source: task, or data.kind: chat)"}
"""What a study has to have, where no field is called so."""


def _among(name: str, metrics: Sequence[Metric]) -> bool:
    return any(metric.name == name or _open_part(metric, name) for metric in metrics)


def _open_part(metric: Metric, name: str) -> str:
    """What a column's name has for the open part of a metric; empty where it is another one."""
    if "<" not in metric.name:
        return ""
    before, _, after = _around(metric)
    fits = name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
    return name[len(before) : len(name) - len(after)] if fits else ""


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
    return _described(name) is not None


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
