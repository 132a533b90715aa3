"""A small track with a study of it, and its entries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from bundled import run_bundles

from harness.board.entry import Entry, make_entries, track_of
from harness.store import Store
from harness.study import open_study

TRACK = {
    "track": "small",
    "version": 1,
    "title": "A <b>small</b> track",
    "about": "Twelve outcomes & their drift.",
    "rules": ["No new real examples."],
    "config": {
        "data": {"source": "discrete", "outcomes": 12, "num_examples": 40},
        "learner": {"kind": "discrete"},
        "regime": {"kind": "replace", "synthetic_ratio": 1.0},
        "generations": 6,
    },
    "seeds": [0, 1, 2, 3, 4, 5, 6, 7],
    "score": {"metric": "discrete/heterozygosity", "threshold": 0.05, "beside": ["discrete/outcomes"]},
    "open": ["regime", "filters"],
    "limits": {"regimes": ["replace", "accumulate"], "real_share": 0.5, "examples": 4},
}


MITIGATIONS: dict[str, Any] = {
    "accumulate": {"regime": {"kind": "accumulate"}},
    "keep": {"regime.synthetic_ratio": 0.5},
}


METRIC = "discrete/heterozygosity"


def write(folder: Path, mitigations: dict[str, Any] = MITIGATIONS, **track: Any) -> Path:
    """A study and its track."""
    folder.mkdir(exist_ok=True)
    (folder / "small.yaml").write_text(yaml.safe_dump({**TRACK, **track}))
    study = {"experiment": "small", "track": "small.yaml", "mitigations": mitigations}
    (folder / "study.yaml").write_text(yaml.safe_dump({**study, "tracking": {"wandb": "disabled"}}))
    return folder / "study.yaml"


def one_by_one(config: Path, **changes: Any) -> None:
    """Change the track of a study such that it is not run in bundles."""
    track = yaml.safe_load((config.parent / "small.yaml").read_text())
    track["config"] |= {"resources": {"bundled": False}, **changes}
    (config.parent / "small.yaml").write_text(yaml.safe_dump(track))


def entries_of(config: Path, root: Path, *assignments: str) -> dict[str, Entry]:
    """The entries of a study, by mitigation."""
    store = Store.read(root)
    prepared, scratch = open_study(config, assignments, store)
    with scratch:
        track = track_of(prepared)
        names = [str(cell.axes["mitigation"]) for cell in prepared.study.cells]
        names = [name for name in names if track.controlled(name) is None]
        return {entry.mitigation: entry for entry in make_entries(prepared, store, names)}


def with_data(entry: Entry, change: Callable[[dict[str, Any]], Any]) -> Entry:
    """An entry with something changed in it."""
    data = json.loads(entry.content)
    change(data)
    return Entry.model_validate_json(json.dumps(data))


def with_value(entry: Entry, field: str, value: Any) -> Entry:
    """An entry with another value at a field; the dotted name of one in a section names the section too."""

    def change(data: dict[str, Any]) -> None:
        *sections, name = field.split(".")
        for section in sections:
            data = data[section]
        data[name] = value

    return with_data(entry, change)


def compute(folder: Path) -> tuple[Path, Path, dict[str, Entry]]:
    """The study in a folder that has been run: its file, its store, and its entries by mitigation."""
    config, root = write(folder), folder / "root"
    run_bundles(config, root)
    return config, root, entries_of(config, root)
