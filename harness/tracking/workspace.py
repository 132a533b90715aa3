"""The saved view of a study in its W&B project: the study's runs by cell, its metrics by generation.

It is made by W&B's own library, wandb-workspaces, which not everybody has: it is imported only here. Metrics
are those of the registry that the records have; nothing is typed here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import harness
from harness.errors import HarnessError, reason_of
from harness.files import write_json
from harness.metrics.catalogue import HEADLINES, SHOWN, about, drawn
from harness.terminal import cut, visible
from harness.tracking.runs import noted

CELL = "cell_name"
"""The field of a run's configuration that names its cell: W&B would take dots in a name for sections."""
ENDS = (".low", ".high")
"""What stands behind a metric's name at the ends of its interval."""
LINES = 10, 100
"""Cells that a panel shows at least, if there are as many, and at most."""
TOKEN = 11
"""Characters of a view's name, as W&B's own have."""
LATE = "did not respond in time"
"""What W&B's SDK says of its own service when a server has refused until its time was over."""

Content = dict[str, Any]
"""What a view shows, as JSON: its ``sections``, each with a title, whether it is open, and of each panel the
metrics; ``cells``, and the ``version`` of the harness that drew it."""


def content(names: Collection[str], intervals: bool, cells: int) -> Content:
    """What the view of a study shows.

    Args:
        names: Metrics that its records have.
        intervals: Whether runs with means over seeds, and their intervals, are there.
        cells: How many there are.
    """
    headlines = [name for name in HEADLINES if name in names]
    shown = [name for name in SHOWN if name in names and name not in headlines]
    first = [*headlines, *shown]
    others = [metric.name for metric in drawn(names) if metric.name not in first]
    means = [[name, *(name + end for end in ENDS)] for name in first or others] if intervals else []
    found = (
        ("headline", True, [[name] for name in headlines]),
        ("means over seeds, with 95 % intervals", True, means),
        ("shown while it runs", True, [[name] for name in shown]),
        ("other metrics", not first, [[name] for name in others]),
    )
    sections = [[title, is_open, panels] for title, is_open, panels in found if panels]
    return {"sections": sections, "cells": cells, "version": harness.__version__}


def save(experiment: str, target: Mapping[str, str], wanted: Content, note: Path) -> str:
    """Make a study's view, or bring the one that is there up to date.

    It has one name for a study in a project, so there is never a second. One that shows what is wanted
    already is left as it is: people may have changed it.

    Args:
        experiment: The study's name, which is the view's, and the group of its runs.
        target: ``entity`` and ``project``.
        wanted: From `content`.
        note: File that remembers what was saved.

    Returns:
        Its address.

    Raises:
        HarnessError: It cannot be made; in one line, without secrets.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise _failed("wandb-workspaces is not installed; pip install 'model-collapse-harness[workspaces]'")
    try:
        return _save(experiment, target, wanted, note)
    except Exception as error:  # whatever its library and W&B's raise
        raise _failed(error) from None


def _save(experiment: str, target: Mapping[str, str], wanted: Content, note: Path) -> str:
    from wandb_workspaces.workspaces import internal

    entity, project = target["entity"], target["project"]
    token = hashlib.sha256("\n".join((entity, project, experiment)).encode()).hexdigest()[:TOKEN]
    view = _workspace(experiment, entity, project, wanted)
    view._internal_name = f"nw-{token}-v"
    try:
        view._internal_id = internal.get_view_dict(entity, project, token)["id"]
    except ValueError:  # its library's word for a view that is not there
        is_saved = False
    else:
        is_saved = noted(note) == wanted
    if not is_saved:
        view.save()
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, wanted)
    return quote(_public(view.url), safe=":/?=&%[]")


def _workspace(experiment: str, entity: str, project: str, wanted: Content) -> Any:
    from wandb_workspaces import workspaces

    least, most = LINES
    sections = [
        workspaces.Section(name=title, is_open=is_open, panels=[_panel(names) for names in panels])
        for title, is_open, panels in wanted["sections"]
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=experiment,
        sections=sections,
        settings=workspaces.WorkspaceSettings(
            x_axis="generation", max_runs=min(max(least, wanted["cells"]), most)
        ),
        runset_settings=workspaces.RunsetSettings(
            filters=workspaces.And(workspaces.Metric("Group") == experiment),
            groupby=[workspaces.Config(CELL)],
            order=[workspaces.Ordering(workspaces.Metric("Name"))],
        ),
    )


def _panel(names: list[str]) -> Any:
    """A line for each cell, the mean over its runs, and from the least of them to the greatest an area.

    The run with their mean changes neither. Ends of an interval are lines of their own, which this run alone
    has.
    """
    from wandb_workspaces.reports.v2 import LinePlot

    title = visible(about(names[0]).title, lines=False)
    area = "minmax" if len(names) == 1 else "none"
    return LinePlot(title=title, x="generation", y=names, groupby_aggfunc="mean", groupby_rangefunc=area)


def _failed(why: object) -> HarnessError:
    reason = cut(_public(reason_of(why))) or type(why).__name__
    if LATE in reason:
        reason = "its server refuses, or does not answer in time"
    after = "its runs are there all the same, the next sync tries again"
    return HarnessError(f"W&B: the study's view was not saved ({reason}); {after}")


def _public(text: str) -> str:
    """Without who logs in to an address."""
    return re.sub(r"://[^\s/@]*@", "://", text)
