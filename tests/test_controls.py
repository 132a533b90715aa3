"""What a track runs beside every entry: the clean stream, chance, and who knows what is real."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from boards import entries_of, with_data, write
from bundled import run_bundles
from classifiers import write_classifier
from conftest import TEXT

from harness.board.entry import Entry
from harness.board.pages import track_page, values_of
from harness.board.rules import broken_rules
from harness.board.score import Scored, table_of
from harness.board.verify import verified
from harness.components import FILTERS
from harness.components.filters import TRUE_SCORES
from harness.config.grid import expand
from harness.config.load import load_file
from harness.errors import ConfigError, InputError
from harness.reporting import ledger
from harness.store import Store
from harness.study import prepare_study

SCORE = {"metric": "gaussian/kl", "beside": ["gaussian/trace_ratio", "pool/recall"]}
STREAM: dict[str, Any] = {
    "config": {
        "data": {"source": "gaussian", "dim": 1, "num_examples": 50},
        "learner": {"kind": "gaussian"},
        "regime": {"kind": "stream", "synthetic_ratio": 0.8},
        "generations": 4,
    },
    "seeds": list(range(12)),
    "score": SCORE,
    "open": ["regime.history", "regime.anchor", "filters"],
    "limits": {"regimes": ["stream"]},
    "controls": ["clean", "random", "oracle"],
}
LABEL = {"filters": [{"kind": "label", "recall": 0.9, "false_positive_rate": 0.1}]}
MITIGATIONS: dict[str, Any] = {"label": LABEL, "history": {"regime.history": "all"}}


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, pd.DataFrame, dict[str, Entry]]:
    folder = tmp_path_factory.mktemp("controls")
    config = write(folder, MITIGATIONS, **STREAM)
    prepared, store = run_bundles(config, folder / "root")
    rows = pd.DataFrame(ledger.rows(prepared, store))
    return config, folder / "root", rows, entries_of(config, folder / "root")


def test_controls_come_by_themselves(computed: Any) -> None:
    _, _, rows, entries = computed
    assert list(dict.fromkeys(rows["mitigation"])) == [
        *("none", "none.clean", "history", "history.clean"),
        *("label", "label.clean", "label.random", "label.oracle"),
    ]
    assert entries.keys() == {"none", "label", "history"}
    assert entries["label"].controls.keys() == {"clean", "random", "oracle", "baseline.clean"}
    assert entries["history"].controls.keys() == {"clean", "baseline.clean"}


def test_contrasts_are_paired_by_seed(computed: Any) -> None:
    _, _, rows, entries = computed
    of = rows.pivot_table(index=["mitigation", "seed"], columns="generation", values="gaussian/kl")
    rise = (of[4] - of[0]).unstack("mitigation")
    table = table_of(entries["none"].track, list(entries.values()))
    line = {line.entry.mitigation: line for line in table.lines}["label"]
    expected = {
        "clean": rise["label.clean"] - rise["none.clean"],
        "random": rise["label.random"] - rise["label"],
        "oracle": rise["label"] - rise["label.oracle"],
        "real": rise["label"] - rise["none.clean"],
    }
    assert line.controls.keys() == expected.keys()
    for name, values in expected.items():
        assert line.controls[name].values == pytest.approx(values.to_list())
    recall = rows[(rows.mitigation == "label") & (rows.generation == 4)]["pool/recall"].mean()
    assert values_of(line, table)["last pool/recall"] == pytest.approx(recall)
    assert abs(recall - 0.9) < 4 * np.sqrt(0.9 * 0.1 / (12 * 80))
    page = track_page(table)
    for heading in (
        "clean cost",
        "better than chance by",
        "worse than the oracle by",
        "a simulated detector",
    ):
        assert heading in page
    assert any("told what is real" in badge for badge in line.badges)


def test_who_beats_the_controls_is_flagged(computed: Any) -> None:
    """Nothing that a filter does is better than real data alone, or than choosing by the provenance."""
    _, _, _, entries = computed

    def cheat(data: dict[str, Any]) -> None:
        for seed, result in data["seeds"].items():
            values = result["metrics"]["gaussian/kl"]
            values[-1] = values[0] + 1e-3 + 1e-5 * int(seed)
        for results in (data["controls"]["oracle"], data["controls"]["baseline.clean"]):
            for seed, result in results.items():
                values = result["metrics"]["gaussian/kl"]
                values[-1] = values[0] + 5e-3 + 1e-5 * int(seed) ** 2

    line = _line(with_data(entries["label"], cheat))
    assert {b for b in line.badges if b.startswith("too good")} == {
        "too good: better than its oracle",
        "too good: better than the baseline without synthetic examples",
    }


def _line(entry: Entry) -> Scored:
    return table_of(entry.track, [entry]).lines[0]


def test_a_control_without_all_seeds_says_of_how_many_it_is(computed: Any) -> None:
    _, _, _, entries = computed

    def lose(data: dict[str, Any]) -> None:
        del data["controls"]["random"]["3"]
        data["controls"]["random"]["4"] |= {"state": "diverged"}

    found = _line(with_data(entries["label"], lose)).controls["random"]
    assert (len(found.values), found.absent, found.diverged, found.low) == (10, 1, 1, None)


def test_controls_are_verified(computed: Any) -> None:
    _, root, _, entries = computed
    assert verified(entries["label"], root).good

    def change(data: dict[str, Any]) -> None:
        data["controls"]["clean"]["5"]["metrics"]["gaussian/kl"][-1] += 0.1

    outcome = verified(with_data(entries["label"], change), root)
    assert not outcome.good and any("controls.clean.5" in line for line in outcome.lines)


def _judge(judge: str, **more: Any) -> dict[str, Any]:
    return {"filters": [{"kind": "judge", "judge": judge, **more}]}


def test_controls_of_judges(tmp_path: Path) -> None:
    """The same choice by the truth, and as many by lot; what is there already is not computed twice, and who
    takes the first answer, or learns from comparisons, has no chance beside it."""
    dpo = {"learner.objective": {"kind": "dpo"}, **_judge("self", choose="pairs")}
    mitigations = {
        "noisy": _judge("noisy", false_accept=0.2),
        "exact": _judge("exact", choose="threshold"),
        "itself": _judge("self", choose="best"),
        "short": _judge("proxy", choose="best", prefers="short"),
        "sure": _judge("self", choose="best", at_least=0.9),
        "dpo": dpo,
        "cold": {"learner.sample.temperature": 0.7},
    }
    config = tmp_path / "study.yaml"
    study = {"experiment": "judges", "track": "laptop-task", "mitigations": mitigations}
    config.write_text(yaml.safe_dump({**study, "tracking": {"wandb": "disabled"}}))
    found = expand(load_file(config, ()))
    by_name = {str(cell.axes["mitigation"]): cell.config.filters[0] for cell in found.cells}
    assert set(by_name) - {"none", *mitigations} == {
        *("noisy.random", "exact.random", "itself.random", "itself.oracle"),
        *("sure.random", "sure.oracle", "dpo.oracle"),
    }
    lots = {name: (judge.judge, judge.choose) for name, judge in by_name.items() if judge.by_lot}
    assert lots == {
        "noisy.random": ("noisy", "threshold"),
        "exact.random": ("exact", "threshold"),
        "itself.random": ("exact", "best"),
        "sure.random": ("self", "best"),
    }
    track, all_of = found.source.track.track, found.source.data["mitigations"]
    stands = {name: [track.control(name, c, all_of) for c in ("random", "oracle")] for name in mitigations}
    assert stands["noisy"] == ["noisy.random", "exact"] and stands["exact"] == ["exact.random", "exact"]
    assert stands["short"] == stands["itself"] == ["itself.random", "itself.oracle"]
    assert stands["dpo"] == [None, "dpo.oracle"] and stands["cold"] == [None, None]


@pytest.mark.parametrize(
    ("changes", "mitigations", "message"),
    [
        ({"open": ["regime", "filters"]}, {}, "regime is what the control clean sets, so it is not open"),
        ({"open": ["regime.select"]}, {}, "regime.select is what the control random sets"),
        (
            {"config": {**STREAM["config"], "regime": {"kind": "accumulate"}}},
            {},
            "controls need config.regime.kind stream, or prompts that are answered",
        ),
        ({"controls": ["placebo"]}, {}, "controls.0"),
        ({}, {"label.random": LABEL}, "label.random: is the name of a control of label"),
        ({}, {"more": {"regime.pool": 4}}, "the track small leaves open"),
    ],
)
def test_bad_input(tmp_path: Path, changes: Any, mitigations: Any, message: str) -> None:
    config = write(tmp_path / "study", mitigations or {"label": LABEL}, **{**STREAM, **changes})
    with pytest.raises(ConfigError) as error:
        load_file(config, ())
    assert message in str(error.value)


def test_what_has_learned_elsewhere_needs_the_tracks_word(tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "model")
    outside = {"filters": [{"kind": "classifier", "model": str(model), "label": "machine"}]}
    environment = {name: TEXT[name] for name in ("data", "learner", "evaluate")}
    environment |= {"regime": {"kind": "stream", "synthetic_ratio": 0.5}, "generations": 1}
    track = {**STREAM, "config": environment, "score": {"metric": "test/nll"}, "controls": []}
    for allowed in (False, True):
        limits = {"regimes": ["stream"], **({"classifiers": True} if allowed else {})}
        config = write(tmp_path / "study", {"outside": outside}, **{**track, "limits": limits})
        found = broken_rules(prepare_study(config, (), Store.read(tmp_path / "root"), tmp_path))
        if allowed:
            assert not found
        else:
            (line,) = found
            assert "mitigations.outside.filters" in line and "classifier has learned elsewhere" in line


KNOWING = {
    "verifier": {"score": "log_density"},
    "select": {"score": "log_density"},
    "curate": {"of": 2, "rewards": {"log_density": 0.03}},
}


def test_every_filter_with_a_true_score_says_so() -> None:
    """A board marks them, so that none of them leads it as if what it knows were to be had."""
    for kind in FILTERS:
        takes = any(score in json.dumps(FILTERS[kind].section.model_json_schema()) for score in TRUE_SCORES)
        assert takes == (kind in KNOWING), kind
    for kind, given in KNOWING.items():
        assert FILTERS[kind].knows(given), kind
    assert not FILTERS["select"].knows({"score": "entropy"})
    assert not FILTERS["curate"].knows({"of": 2, "outcomes": [1.0, 2.0]})
    assert not FILTERS["curate"].knows({"of": 3, "rewards": {"distinct_2": 1.0, "log_density": 0.0}})


def test_who_knows_the_truth_says_so(computed: Any) -> None:
    entry = computed[3]["label"]
    (plain,) = table_of(entry.track, [entry]).lines
    by_truth = [{"kind": "verifier", "score": "log_density"}]
    told = with_data(entry, lambda data: data["configuration"].update(filters=by_truth))
    (line,) = table_of(told.track, [told]).lines
    knows = "its filter knows the truth, which nobody has of real data"
    assert knows in line.badges and knows not in plain.badges
    for other in ("deduplicate", "of_a_package"):  # a field may be called so
        filters = [{"kind": other, "score": "log_density"}]
        told = with_data(entry, partial(_configured, filters=filters))
        assert knows not in table_of(told.track, [told]).lines[0].badges


def _configured(data: dict[str, Any], **fields: Any) -> None:
    data["configuration"].update(fields)


def test_nobody_has_real_examples_that_others_have_not(tmp_path: Path) -> None:
    track = {**STREAM, "controls": [], "open": ["regime.pool"]}
    config = write(tmp_path / "study", {"more": {"regime.pool": 4.0}}, **track)
    prepared, _ = run_bundles(config, tmp_path / "root")
    assert prepare_study(config, (), Store.read(tmp_path / "root"), tmp_path)
    with pytest.raises(InputError, match="reads real examples that no other entry has"):
        entries_of(config, tmp_path / "root")
