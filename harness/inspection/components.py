"""Everything that a configuration can name, with one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from operator import attrgetter
from typing import Any

from pydantic import BaseModel

from harness.components import DATA, DATA_KINDS, FILTERS, LEARNERS, OBJECTIVES, REGIMES, TASKS, TRACKERS
from harness.components import METRICS as METRIC_PLUGINS
from harness.components.presets import preset_names, read_preset
from harness.config.described import first_line
from harness.config.shipped import studies, summary, tracks
from harness.config.track import read_track
from harness.metrics.catalogue import METRICS
from harness.registry import Found, named
from harness.terminal import cut

Listed = dict[str, Any]


def learners() -> dict[str, type[BaseModel]]:
    """The learners' sections by kind."""
    return {kind: LEARNERS[kind].section for kind in LEARNERS}


def _learners() -> list[Listed]:
    return [
        {
            "learner": kind,
            "reads": ", ".join(LEARNERS[kind].reads),
            "in bundles": "yes" if LEARNERS[kind].batchable else "",
            "version": LEARNERS.loaded[kind].version,
            "what": first_line(section),
        }
        for kind, section in learners().items()
    ]


def _kinds(
    column: str, group: Found[Any], what: Callable[[Any], Any] = attrgetter("section")
) -> list[Listed]:
    """The components of a group; ``what`` is of each the thing whose text says what it is."""
    return [
        {column: kind, "version": found.version, "what": first_line(what(found.plugin))}
        for kind, found in group.loaded.items()
    ]


def _metrics() -> list[Listed]:
    return [
        {
            "metric": found["name"],
            "what": found["label"],
            **{name: found[name] for name in ("unit", "worse", "source")},
        }
        for found in map(asdict, METRICS)
    ]


def _presets() -> list[Listed]:
    rows = []
    for name in preset_names():
        found = read_preset(name)
        sizes = f"{found['num_layers']} x {found['width']}"
        rows.append(
            {
                "preset": name,
                "architecture": found["architecture"],
                "layers x width": sizes,
                "source": found.get("source", ""),
            }
        )
    return rows


def _data() -> list[Listed]:
    rows = [{"source": name, "what": f"text: {_said_of(DATA[name].read)}"} for name in DATA]
    rows += [
        {
            "source": "hf:NAME[/CONFIG]",
            "what": "text, with kind: images or chat these, of the Hugging Face hub",
        },
        {
            "source": "PATH",
            "what": "text (.txt, .jsonl, .parquet, or a folder of them), images (.npy, .parquet), or "
            "chats (.jsonl, .csv, .parquet)",
        },
    ]
    return rows + [
        {"source": source, "what": first_line(kind.section)}
        for kind in (DATA_KINDS[name] for name in DATA_KINDS)
        for source in kind.sources
    ]


def _trackers() -> list[Listed]:
    trackers = [(name, TRACKERS[name]) for name in TRACKERS]
    return [{"tracker": name, "what": _said_of(item.write or item.tracker)} for name, item in trackers]


def _said_of(place: str) -> str:
    """The first line of a function; a package's module may not even load."""
    try:
        return first_line(named(place))
    except (Exception, SystemExit) as error:
        return f"cannot be read ({type(error).__name__}: {cut(str(error))})"


def _studies() -> list[Listed]:
    return [{"study": name, "what": summary(path)} for name, path in studies().items()]


def _tracks() -> list[Listed]:
    found = [read_track(path).track for path in tracks().values()]
    return [{"track": t.track, "version": t.version, "seeds": len(t.seeds), "what": t.title} for t in found]


LISTS: Mapping[str, Callable[[], list[Listed]]] = {
    "learners": _learners,
    "filters": partial(_kinds, "filter", FILTERS),
    "regimes": partial(_kinds, "regime", REGIMES, attrgetter("rule")),
    "tasks": partial(_kinds, "task", TASKS),
    "objectives": partial(_kinds, "objective", OBJECTIVES),
    "metrics": _metrics,
    "presets": _presets,
    "data": _data,
    "trackers": _trackers,
    "studies": _studies,
    "tracks": _tracks,
}
"""What can be listed."""
KINDS: Mapping[str, str] = {
    "learners": "models that chains are fitted with (learner.kind)",
    "filters": "what chooses among synthetic examples (filters)",
    "regimes": "what each generation is trained on (regime.kind)",
    "tasks": "prompts with right answers (data.task)",
    "objectives": "what later generations of a language model are trained towards (learner.objective)",
    "metrics": "columns of an export, and what claims are about",
    "presets": "sizes of language models (learner.model.preset)",
    "data": "where real examples come from (data.source)",
    "trackers": "where results are mirrored to (tracking.trackers; W&B has tracking.wandb)",
    "studies": "studies that come with the harness, each a CONFIG",
    "tracks": "tracks of the leaderboard (track)",
}
"""What each of `LISTS` is of."""
BROKEN: Mapping[str, Mapping[str, str]] = {
    "learners": LEARNERS.broken,
    "filters": FILTERS.broken,
    "regimes": REGIMES.broken,
    "tasks": TASKS.broken,
    "objectives": OBJECTIVES.broken,
    "data": DATA.broken,
    "metrics": METRIC_PLUGINS.broken,
    "trackers": TRACKERS.broken,
}
"""Kinds of packages that cannot be used, and why."""
