"""Mitigations as an axis, and studies of tracks: what they may say, and where they say it wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from bundled import run_bundles
from conftest import GAUSSIAN, ROOT, Make, harness

from harness import api
from harness.config.grid import Study, expand
from harness.config.load import load_file
from harness.config.shipped import tracks
from harness.config.track import read_track
from harness.errors import ConfigError, InputError
from harness.inspection.resolved import resolved
from harness.reporting import ledger
from harness.store import Store
from harness.study import open_study

FOUR = {
    "none": {},
    "keep": {"regime.synthetic_ratio": 0.9},
    "all": {"regime": {"kind": "accumulate"}},
    "detector": {"filters": [{"kind": "label", "recall": 0.5}]},
}


def study(path: Path, *assignments: str) -> Study:
    return expand(load_file(path, assignments))


def test_every_mitigation_is_a_cell_of_its_own(make_config: Make, tmp_path: Path) -> None:
    """Under the keys that the same cells have when they are written out, so with the same numbers."""
    seeds = {"grid": {"seed": [0, 1]}, "resources.bundled": True}
    config = make_config(GAUSSIAN, mitigations=FOUR, **seeds)
    found = study(config)
    assert [cell.axes for cell in found.cells] == [{"mitigation": name} for name in FOUR]
    prepared, store = run_bundles(config, tmp_path / "root")
    rows = ledger.rows(prepared, store).to_pandas()
    assert list(rows.groupby("mitigation", sort=False).groups) == list(FOUR)
    for name, settings in FOUR.items():
        alone = make_config(GAUSSIAN, f"{name}.yaml", **seeds, **settings)
        single, scratch = open_study(alone, (), Store.read(tmp_path / "root"))
        with scratch:
            mine = [chain.key for chain in prepared.bundles if prepared.axes(chain)["mitigation"] == name]
            assert [chain.key for chain in single.bundles] == mine


@pytest.mark.parametrize(
    ("assignment", "name", "settings"),
    [
        ("mitigations.keep.regime.synthetic_ratio=0.5", "keep", {"regime.synthetic_ratio": 0.5}),
        ("mitigations.none.data.num_examples=9", "none", {"data.num_examples": 9}),
        (
            "mitigations.all.regime.kind=accumulate_subsample",
            "all",
            {"regime": {"kind": "accumulate_subsample"}},
        ),
        ("mitigations.v1.2.regime.synthetic_ratio=0.5", "v1.2", {"regime.synthetic_ratio": 0.5}),
        ("mitigations.v1.2={data.num_examples: 9}", "v1.2", {"data.num_examples": 9}),
        ("mitigations.v1.data.num_examples=9", "v1", {"filters": [], "data.num_examples": 9}),
        ("mitigations.new.data.num_examples=9", "new", {"data.num_examples": 9}),
    ],
)
def test_one_setting_of_a_mitigation_may_be_assigned(
    make_config: Make, assignment: str, name: str, settings: dict[str, Any]
) -> None:
    """The others stay, and names with dots are known: all is as if the file had said so."""
    named = {**FOUR, "v1": {"filters": []}, "v1.2": {"regime.synthetic_ratio": 0.8}}
    regime = {"kind": "replace", "synthetic_ratio": 0.75, "real_part": "fixed"}
    config = make_config(GAUSSIAN, mitigations=named, regime=regime)
    written = make_config(GAUSSIAN, "written.yaml", mitigations={**named, name: settings}, regime=regime)
    assert study(config, assignment).cells == study(written).cells != study(config).cells


def test_an_assigned_setting_is_checked_as_one_of_the_file(make_config: Make) -> None:
    mitigations = {"keep": {"filters": []}}
    config = make_config(GAUSSIAN, mitigations=mitigations, regime={"kind": "accumulate"})
    for assignment, said in (
        ("keep.regime.synthetic_ratio=0.5", "regime: accumulate does not use synthetic_ratio"),
        ("keep.regime.ratio=0.5", "mitigations.keep.regime.ratio: unknown field 'regime.ratio'"),
        ("keep.filters.0.n=3", "mitigations.keep.filters.0.n: 0 would be a place in a list"),
    ):
        with pytest.raises(ConfigError) as caught:
            study(config, f"mitigations.{assignment}")
        assert said in str(caught.value) and str(caught.value).startswith("--set: "), str(caught.value)


def test_part_of_the_mitigations_and_other_axes(make_config: Make) -> None:
    grid = {"data.num_examples": [20, 40], "mitigation": ["keep", "none"]}
    config = make_config(GAUSSIAN, mitigations=FOUR, grid=grid)
    names = [(cell.axes["data.num_examples"], cell.axes["mitigation"]) for cell in study(config).cells]
    assert names == [(20, "keep"), (20, "none"), (40, "keep"), (40, "none")]
    values = {value.path: value.origin for value in resolved(study(config), 0)}
    assert values["regime.synthetic_ratio"].startswith("mitigation keep (line ")
    (one,) = study(make_config(GAUSSIAN, mitigations=FOUR), "mitigation=keep").cells
    assert one.axes == {"mitigation": "keep"} and one.config.regime.synthetic_ratio == 0.9


BAD: list[tuple[dict[str, Any], str]] = [
    ({"mitigations": 3}, "mitigations: found 3, expected names with settings"),
    ({"mitigations": {}}, "mitigations: found {}, expected names"),
    ({"mitigations": {"a b": {}}}, "mitigations.a b: found the name 'a b', allowed: letters"),
    ({"mitigations": {"a": 3}}, "mitigations.a: found 3, expected dotted fields"),
    (
        {"mitigations": {"a": {"regime.synthetic_rtio": 1}}},
        "unknown field 'regime.synthetic_rtio' .did you mean",
    ),
    ({"mitigations": {"a": {"seed": 1}}}, "mitigations.a.seed: seed cannot be in a mitigation"),
    ({"mitigations": {"a": {"resources.ranks": 2}}}, "resources cannot be in a mitigation"),
    ({"mitigations": {"a": {"regime.synthetic_ratio": 1.5}}}, "regime.synthetic_ratio: found 1.5"),
    ({"mitigations": {"a": {"regime.kind.x": 1}}}, "mitigations.a.regime.kind.x: unknown field|is 'replace'"),
    ({"mitigations": {"a": {}}, "mitigation": "b"}, "mitigation: found 'b', allowed: a"),
    ({"mitigation": "b"}, "mitigation: found 'b', but the file has no mitigations"),
    (
        {"mitigations": FOUR, "grid": {"regime.synthetic_ratio": [0.5, 1]}},
        "mitigations.keep.regime.synthetic_ratio: touches the same field as the axis",
    ),
    (
        {"mitigations": FOUR, "mitigation": "all", "regime.synthetic_ratio": 7},
        "regime.synthetic_ratio: found 7",
    ),
    (
        {"mitigations": {**FOUR, "odd": {"regime.synthetic_ratio": -1}}, "mitigation": "none"},
        "regime.synthetic_ratio: found -1",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=range(len(BAD)))
def test_what_a_mitigation_cannot_be(make_config: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(make_config(GAUSSIAN, **changes))


def test_two_mitigations_that_are_one(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, mitigations={"none": {}, "same": {"regime.synthetic_ratio": 1.0}})
    with pytest.raises(ConfigError, match="two cells are the same science: .*none.* and .*same"):
        open_study(config, (), Store.read(tmp_path))


# --- tracks ---


def entrant(folder: Path, **changes: Any) -> Path:
    path = folder / "study.yaml"
    base = {"experiment": "entrant", "track": "closed-form-gaussian", "tracking": {"wandb": "disabled"}}
    path.write_text(yaml.safe_dump({**base, **changes}))
    return path


def test_a_study_of_a_track_has_its_environment_and_seeds(tmp_path: Path) -> None:
    found = study(entrant(tmp_path, mitigations={"keep": {"regime.synthetic_ratio": 0.9}}))
    assert [cell.axes["mitigation"] for cell in found.cells] == ["none", "keep"], (
        "the baseline is always there"
    )
    assert found.seeds == tuple(range(20)) and found.base.data.num_examples == 100
    assert found.source.track is not None and found.source.track.track.track == "closed-form-gaussian"
    assert study(tmp_path / "study.yaml", "seed=3").seeds == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"track": "closed-form-gausian"}, "study.yaml:.: track: found 'closed-form-gausian'.*did you mean"),
        ({"track": "missing.yaml"}, "missing.yaml: cannot be read"),
        ({"generations": 3}, "generations: is fixed by the track closed-form-gaussian; mitigations may set"),
        ({"data": {"source": "gaussian"}}, "data: is fixed by the track"),
        ({"grid": {"data.num_examples": [1]}}, "grid.data.num_examples: is no axis of a track"),
        (
            {"mitigations": {"a": {"data.num_examples": 9}}},
            "data.num_examples: the track .* leaves open: regime",
        ),
        ({"mitigations": {"none": {"filters": []}}}, "none: is what entries are compared with"),
        ({"mitigations": ["a"]}, r"study.yaml:\d+: mitigations: found .'a'., expected names with settings"),
        ({"mitigations": 3}, "mitigations: found 3, expected names with settings"),
        ({"grid": [1]}, r"study.yaml:\d+: grid: found .1., expected fields with lists of values"),
        ({"mitigation": ["none"]}, "mitigation: found .'none'., allowed: none"),
        ({"grid": {"mitigation": [["none"]]}}, "mitigation.0: found .'none'., allowed: none"),
        (
            {"mitigations": {"a": {"regime.synthetic_ratio": 0.5, "regime": {"kind": "accumulate"}}}},
            "a.regime.synthetic_ratio: touches the same field as regime; give one of the two",
        ),
        ({"mitigations": {"a": {"regime.synthetic_ratio": 2}}}, "regime.synthetic_ratio: found 2"),
    ],
)
def test_what_a_study_of_a_track_cannot_say(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study(entrant(tmp_path, **changes))


def test_a_field_of_the_track_is_named_in_the_tracks_file(tmp_path: Path) -> None:
    track = yaml.safe_load(tracks()["closed-form-gaussian"].read_text())
    track["config"]["data"]["variance"] = -1.0
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(track))
    with pytest.raises(ConfigError, match=r"mine.yaml:\d+: config.data.variance: found -1.0|data.variance"):
        study(entrant(tmp_path, track="mine.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1, 2]}, "seeds: found .0, 1, 2."),
        ({"seeds": [0, 1, 2, 3, 3]}, "a seed is given twice"),
        ({"score": {}}, "score.metric: is required"),
        (
            {"open": ["regime", "generations"]},
            "open: .*'generations' is not for a mitigation to set; allowed",
        ),
        ({"open": ["evaluate.examples"]}, "'evaluate.examples' is not for a mitigation to set"),
        (
            {"open": ["fitlers"]},
            "'fitlers' is not for a mitigation to set; allowed: learner, regime, filters",
        ),
        ({"limits": {"examples": float("inf")}}, "limits.examples: found inf"),
        ({"score": {"metric": "gaussian/kl", "threshold": float("inf")}}, "score.threshold: found inf"),
        ({"opne": ["regime"]}, "opne: unknown field .did you mean 'open'"),
        ({"config": {"experiment": "x"}}, "config: .*experiment belongs to the study"),
    ],
)
def test_what_a_track_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    track = yaml.safe_load(tracks()["closed-form-gaussian"].read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**track, **changes}))
    with pytest.raises(ConfigError, match=message):
        study(entrant(tmp_path, track="mine.yaml"))


def test_a_track_of_a_study_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no file that a path could begin at; it begins where Python runs."""
    (tmp_path / "mine.yaml").write_bytes(tracks()["closed-form-gaussian"].read_bytes())
    monkeypatch.chdir(tmp_path)
    study = {
        "experiment": "x",
        "track": "mine.yaml",
        "mitigations": {"keep": {"regime.synthetic_ratio": 0.9}},
    }
    assert api.plan(study)["cells"] == 2
    assert api.plan({**study, "track": "closed-form-gaussian"})["cells"] == 2


def test_a_tracks_file_is_no_study() -> None:
    done = harness("plan", ROOT / "configs" / "tracks" / "closed-form-gaussian.yaml")
    assert done.returncode == 2 and "is a track's file, not a study" in done.stderr


def test_a_study_without_a_track_has_no_entry(make_config: Make, tmp_path: Path) -> None:
    from harness.board.entry import track_of

    prepared, scratch = open_study(make_config(GAUSSIAN), (), Store.read(tmp_path))
    with scratch, pytest.raises(InputError, match="is no study of a track"):
        track_of(prepared)


@pytest.mark.parametrize("name", sorted(tracks()))
def test_shipped_tracks_and_entries_are_whole(tmp_path: Path, name: str) -> None:
    """Every track takes a study, and runs beside it what it says; every shipped entry is within its track."""
    track = read_track(tracks()[name]).track
    cells = study(entrant(tmp_path, track=name, mitigations={"x": {"filters": []}})).cells
    names = [str(cell.axes["mitigation"]) for cell in cells if not cell.teacher]
    clean = "clean" in track.controls
    assert names == (["none", "none.clean", "x", "x.clean"] if clean else ["none", "x"])
    entries = ROOT / "configs" / "entries" / f"{name}.yaml"
    if entries.is_file():
        mitigations = [n for n in study(entries).source.data["mitigations"] if track.controlled(n) is None]
        assert len(mitigations) >= 6 and mitigations[0] == "none"
    else:
        assert "has run it yet" in track.about
