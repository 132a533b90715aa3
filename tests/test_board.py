"""Entries from stores, what of a changed one is found, and how they are scored."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from boards import METRIC, MITIGATIONS, compute, entries_of, one_by_one, with_data, with_value, write
from bundled import assert_mean, run_bundles
from chains import run_all
from conftest import harness

from harness.board.build import build_site, content_of, site_files, tables_of
from harness.board.entry import Entry, read_entry, write_entry
from harness.board.entry_page import _curve, entry_page
from harness.board.pages import track_page
from harness.board.rules import other_rules
from harness.board.score import NO_EFFECT, table_of
from harness.board.verify import compared, verified
from harness.config.shipped import tracks
from harness.config.track import read_track
from harness.errors import InputError
from harness.store import Store
from harness.store.experiment import Experiment
from harness.study import open_study


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Entry]]:
    return compute(tmp_path_factory.mktemp("board"))


def test_scores_are_what_theory_says(computed: Any) -> None:
    """The chance that two draws differ falls by 1/n a generation: alone by (1 - 1/n)^(g+1), with half of the
    examples real by less (Wright and Fisher)."""
    entries = computed[2]
    table = table_of(entries["none"].track, list(entries.values()))
    lines = {line.entry.mitigation: line for line in table.lines}
    n, truth, last = 40, 1 - 1 / 12, 6
    rises = np.array(lines["none"].rise.values)
    assert_mean(rises, truth * (1 - 1 / n) * (1 - (1 - 1 / n) ** last))
    assert all(value == 0 for value in lines["none"].benefit.values)
    assert lines["keep"].benefit.values == pytest.approx(rises - np.array(lines["keep"].rise.values)), (
        "paired by seed"
    )
    assert lines["none"].entry.cost.training_examples == 7 * n
    assert lines["accumulate"].entry.cost.times_baseline == pytest.approx(sum(range(1, 8)) / 7)
    assert not any(line.unranked for line in table.lines) and table.seeds == 8
    first = lines["none"].until[0]
    values = entries["none"].seeds["0"].metrics["discrete/heterozygosity"]
    fallen = [g for g, v in enumerate(values) if v is not None and values[0] - v >= 0.05]
    assert first == (fallen[0] if fallen else np.inf)


def test_an_honest_entry_is_verified_and_a_changed_one_is_not(computed: Any, tmp_path: Path) -> None:
    _, root, entries = computed
    honest = read_entry(write_entry(entries["keep"], tmp_path))
    assert honest == entries["keep"] and verified(honest, root).good

    def changed(change: Callable[[dict[str, Any]], None]) -> str:
        data = json.loads(honest.content)
        change(data)
        outcome = verified(Entry.model_validate_json(json.dumps(data)), root)
        assert not outcome.good
        return "\n".join(outcome.lines)

    def number(data: dict[str, Any]) -> None:
        values = data["seeds"]["3"]["metrics"]["discrete/heterozygosity"]
        values[-1] += 0.01

    assert "seeds.3.metrics.discrete/heterozygosity.6: the entry has" in changed(number)
    assert "seeds.5: is not in the entry" in changed(lambda data: data["seeds"].pop("5"))
    assert "baseline.0.state" in changed(lambda data: data["baseline"]["0"].update(state="diverged"))
    seeds = changed(lambda data: data["track"].update(seeds=[0, 1, 2, 3, 4]))
    assert "seeds.5: is not in the artifacts" in seeds
    assert "configuration" in changed(lambda data: data["configuration"].update(generations=5))


def test_a_track_with_other_rules_under_its_name_is_found(computed: Any, tmp_path: Path) -> None:
    """The rules of a track that comes with the harness are known: an entry with its own says so."""
    _, root, entries = computed
    entry = entries["keep"]
    shipped = read_track(tracks()["closed-form-discrete"]).track
    own = with_data(entry, lambda data: data.update(track=shipped.model_dump(mode="json")))
    assert not other_rules(entry.track) and not other_rules(own.track)

    def relaxed(data: dict[str, Any]) -> None:
        data["track"]["limits"]["real_share"] = 0.9
        data["track"]["seeds"] = data["track"]["seeds"][:5]

    forged = with_data(own, relaxed)
    outcome = verified(forged, root)
    assert not outcome.good and "is not the one of this name and version" in outcome.verdict
    assert outcome.lines == (
        "track.limits.real_share: is not what the track says",
        "track.seeds: is not what the track says",
    )
    several = [with_value(forged, "experiment", f"e{n}") for n in range(3)]
    tables = tables_of([own, *several])
    assert [(table.name, len(table.superseded)) for table in tables] == [
        ("closed-form-discrete", 0),
        ("closed-form-discrete-version-1", 2),
    ], "the one with other rules never has the track's page, however many there are"
    (line,) = tables[1].lines
    assert "other rules than the track's: limits.real_share, seeds" in line.badges
    assert any(badge.startswith("stale: other rules") for badge in line.badges)
    newer = with_data(own, lambda data: data["track"].update(version=shipped.version + 1))
    assert not other_rules(newer.track), "what another version says is not known here"
    write_entry(forged, tmp_path)
    (said, *_) = [line for line in build_site(tmp_path, tmp_path) if line.startswith("other rules")]
    assert "limits.real_share, seeds" in said and forged.name in said


def test_a_changed_file_is_no_entry(computed: Any, tmp_path: Path) -> None:
    place = write_entry(computed[2]["keep"], tmp_path)
    place.write_bytes(place.read_bytes().replace(b'"keep"', b'"kept"'))
    with pytest.raises(
        InputError, match="was changed after it was made: by its content its name is small/kept"
    ):
        read_entry(place)
    honest = computed[2]["keep"]
    place = write_entry(honest, tmp_path / "other")
    first, *rest = honest.content.splitlines(keepends=True)
    for content in (honest.content + b" ", b"".join([first, b'"experiment": "another",\n', *rest])):
        place.write_bytes(content)
        with pytest.raises(InputError, match="was changed after it was made: it says more, or otherwise"):
            read_entry(place)

    def without(**changes: Any) -> bytes:
        data = json.loads(honest.content)
        data["configuration"] |= changes
        return json.dumps(data).encode()

    for content, message in (
        (without(evaluation=None), "is no entry: configuration: Value error, has no evaluation"),
        (without(evaluation={}), "has no versions of metrics"),
        (without(learner=[]), "has no learner"),
        (without(generations="six"), "has no number of generations"),
        (b"{", "is no entry: Invalid JSON"),
        (b"[]", "is no entry"),
        (b'{"format": 2}', "is no entry: format"),
        (b'{"format": 1, "mitigation": "../x"}', "is no entry"),
    ):
        place.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_entry(place)


def test_a_field_that_came_later_changes_no_entry(computed: Any, tmp_path: Path) -> None:
    """An entry says every field that there is; a file that does not know one is read, and stays as it is."""
    entry = computed[2]["keep"]
    assert json.loads(entry.content) == entry.model_dump(mode="json"), "defaults are written out"
    data = json.loads(entry.content)
    for result in (*data["seeds"].values(), *data["baseline"].values()):
        del result["corpora"]
    del data["track"]["limits"]["overlap"]
    place = write_entry(Entry.model_validate_json(json.dumps(data)), tmp_path)
    assert b"corpora" not in place.read_bytes()
    read = read_entry(place)
    assert read.content == place.read_bytes() and read.seeds == entry.seeds
    assert read.comparable == entry.comparable


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"regime": {"kind": "augment", "synthetic_ratio": 0.5}},
            "regime.kind: found 'augment', allowed: replace",
        ),
        ({"regime.synthetic_ratio": 0.4}, "60.0% of generation 1 are real examples, allowed are 50.0%"),
        ({"regime.refresh": {"every": 2}}, "100.0% of generation 2 are real"),
        (
            {"regime.source": {"cell": {"mitigation": "none"}}},
            "source: reads what no chain of its own has wr",
        ),
    ],
)
def test_what_breaks_a_rule_is_no_entry(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    config = write(tmp_path / "study", {"cheat": settings})
    run_bundles(config, tmp_path / "root")
    with pytest.raises(InputError, match=f"study.yaml:[0-9]+: mitigations.cheat.regime.*{message}|{message}"):
        entries_of(config, tmp_path / "root")


@pytest.mark.slow
def test_a_broken_rule_is_said_before_anything_runs(tmp_path: Path) -> None:
    config = write(
        tmp_path, {"keep": {"regime.synthetic_ratio": 0.5}, "more": {"regime.synthetic_ratio": 0.2}}
    )
    for command in ("plan", "run"):
        done = harness(command, config, "--root", tmp_path / "root")
        assert done.returncode == 0, done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
        assert "study.yaml:" in line and "mitigations.more.regime: 80.0% of generation 1 are real" in line
        assert line.endswith("harness leaderboard add will refuse it")
    refused = harness("leaderboard", "add", config, "--root", tmp_path / "root", "--to", tmp_path / "board")
    assert refused.returncode == 2 and "mitigations.more.regime: 80.0%" in refused.stderr
    part = harness("plan", config, "--root", tmp_path / "root", "--set", "mitigation=more")
    assert part.returncode == 0 and "warning" not in part.stderr, "without the baseline nothing is compared"


def test_more_training_than_allowed(tmp_path: Path) -> None:
    config = write(tmp_path / "study", MITIGATIONS, limits={"examples": 3.9})
    run_bundles(config, tmp_path / "root")
    with pytest.raises(InputError, match="trains on 4 times the examples of the baseline, allowed are 3.9"):
        entries_of(config, tmp_path / "root")


def test_seeds_cannot_be_left_out(computed: Any, tmp_path: Path) -> None:
    """What is not there makes an entry unreplicated; what there is beside the track's seeds is in it."""
    config, root, _ = computed
    other = tmp_path / "root"
    run_bundles(config, other, "grid.seed=[0, 1, 2, 3, 4, 5, 99]")
    prepared, scratch = open_study(config, ("grid.seed=[99]",), Store.read(other))
    with scratch:
        chains = [
            {"chain": chain.id, "seed": chain.seed, "axes": prepared.axes(chain)["mitigation"]}
            for chain in prepared.chains
        ]
    strangers = [{"chain": "of another study", "seed": 77}]
    Experiment(other, "small").begin({}, [*chains, *strangers])
    entry = entries_of(config, other)["keep"]
    assert set(entry.seeds) == set(map(str, range(8))) and not entry.is_replicated
    assert entry.seeds["7"].state == "waiting" and set(entry.other_seeds) == {"99"}
    assert entry.other_seeds["99"].chain == next(c["chain"] for c in chains if c["axes"] == "keep")
    assert entry.other_seeds["99"].state == "complete"
    (line,) = table_of(entry.track, [entry]).lines
    assert line.rank is None and line.unranked == "unreplicated: 6 of the track's 8 seeds"
    assert "1 other seeds were run" in line.badges


def list_chains(config: Path, root: Path, *assignments: str) -> None:
    """What a run does before anything else."""
    prepared, scratch = open_study(config, assignments, Store.open(root))
    with scratch:
        chains = [{"chain": chain.id, "seed": chain.seed} for chain in prepared.chains]
        Experiment(root, prepared.study.base.experiment).begin(prepared.study.source.data, chains)


def test_a_seed_that_was_begun_is_in_the_entry_though_gone(tmp_path: Path) -> None:
    config, root = write(tmp_path / "study"), tmp_path / "root"
    run_bundles(config, root, "grid.seed=[0, 1, 2, 3, 4, 5]")
    list_chains(config, root, "grid.seed=[0, 6, 99]")
    entry = entries_of(config, root)["keep"]
    assert [entry.seeds[n].state for n in ("5", "6", "7")] == ["complete", "begun", "waiting"]
    assert {n: (r.state, r.metrics) for n, r in entry.other_seeds.items()} == {"99": ("begun", {})}
    assert not entry.is_replicated and verified(entry, root).good
    assert ">begun<" in entry_page(None, entry, "small")


def test_a_seed_that_the_entry_leaves_out_is_an_error(computed: Any, tmp_path: Path) -> None:
    config, root, entries = computed
    shutil.copytree(root, tmp_path / "root")
    list_chains(config, tmp_path / "root", "grid.seed=[99]", "mitigation=keep")
    outcome = verified(entries["keep"], tmp_path / "root")
    assert not outcome.good and outcome.lines == (
        "other_seeds.99: the store has it, and the entry leaves it out; add the entry anew",
    )
    assert verified(entries["accumulate"], tmp_path / "root").good, "it was begun of another entry"
    begun = entries_of(config, tmp_path / "root")["keep"]
    run_bundles(config, tmp_path / "root", "grid.seed=[99]", "grid.mitigation=[none, keep]")
    whole = entries_of(config, tmp_path / "root")["keep"]
    assert verified(whole, tmp_path / "root").good
    (line,) = verified(begun, tmp_path / "root").lines[:1]
    assert line.startswith("other_seeds.99.")
    better = with_data(whole, lambda data: data["other_seeds"]["99"]["metrics"][METRIC].__setitem__(-1, 0.1))
    (line,) = verified(better, tmp_path / "root").lines
    assert line.startswith(f"other_seeds.99.metrics.{METRIC}.6: the entry has 0.1, the artifacts say")
    table = table_of(whole.track, [entries["keep"], whole])
    assert [line.entry.name for line in table.lines] == [whole.name], "the one that says more is shown"


CLAIM = {
    "text": "half real keeps half of the loss away",
    "source": "theory",
    "statistic": {"metric": METRIC, "of": "last", "where": {"mitigation": "keep"}},
    "above": 0.5,
}


def with_claim(config: Path, **changes: Any) -> Path:
    study = yaml.safe_load(config.read_text())
    other = config.with_name(f"{len(list(config.parent.iterdir()))}.yaml")
    other.write_text(yaml.safe_dump({**study, "claims": [{**CLAIM, **changes}]}))
    return other


@pytest.mark.parametrize("single", [False, True])
def test_an_entry_says_what_was_claimed_before_the_first_fit(tmp_path: Path, single: bool) -> None:
    """Claims that were changed when a first part had been run are other claims, and later."""
    write(tmp_path, {"keep": MITIGATIONS["keep"]}, seeds=[0, 1, 2, 3, 4])
    if single:
        one_by_one(tmp_path / "study.yaml", generations=1)
    config, root = with_claim(tmp_path / "study.yaml"), tmp_path / "root"
    for part in ("seed=0", "grid.seed=[1, 2]"):  # a study may be run in parts
        list_chains(config, root, part)
        run_all(config, root, part) if single else run_bundles(config, root, part)
    entry = entries_of(config, root)["keep"]
    assert entry.declared is not None and entry.declared.before and entry.declared.claims[0] == CLAIM
    assert verified(entry, root).good and "1 claims, before the first fit" in entry_page(None, entry, "small")
    late = with_claim(tmp_path / "study.yaml", above=0.6)
    never = entries_of(late, root)["keep"].declared
    assert never is not None and never.time is None and not never.before
    list_chains(late, root)
    (place,) = root.glob(f"experiments/*/declared/{never.hash}.json")
    said = json.loads(place.read_text())
    # an hour later: records say to the second when they were made
    place.write_text(json.dumps({**said, "time": said["time"] + 3600}))
    after = entries_of(late, root)["keep"]
    assert after.declared is not None and after.declared.time and not after.declared.before
    assert after.declared.hash != entry.declared.hash and verified(after, root).good
    for field, value in (("before", True), ("time", entry.declared.time), ("claims", [])):
        changed = with_value(after, f"declared.{field}", value)
        outcome = verified(changed, root)
        assert not outcome.good and outcome.lines[0].startswith(f"declared.{field}"), field
    place.write_text(place.read_text().replace("0.6", "0.7"))
    with pytest.raises(InputError, match="is damaged: it is not the declaration that its name says"):
        entries_of(late, root)
    assert entries_of(tmp_path / "study.yaml", root)["keep"].declared is None, "a study without claims"


def test_a_fuller_entry_takes_the_place_of_another(computed: Any, tmp_path: Path) -> None:
    config, root, entries = computed
    run_bundles(config, tmp_path / "root", "grid.seed=[0, 1]")
    part = entries_of(config, tmp_path / "root")["keep"]
    table = table_of(part.track, [entries["keep"], part, entries["none"]])
    assert [line.entry.name for line in table.lines] == [entries["keep"].name, entries["none"].name]
    assert [entry.name for entry in table.superseded] == [part.name]


def test_no_mitigation_takes_the_place_of_another(tmp_path: Path) -> None:
    """Where a fit starts from is in no identity that all fits of a cell share, and tells cells apart all the
    same."""
    mixture = {
        "data": {
            "source": "mixture",
            "num_examples": 60,
            "components": [{"weight": 0.5, "mean": [x], "std": 1.0} for x in (-2.0, 2.0)],
        },
        "learner": {"kind": "mixture", "components": 2},
        "regime": {"kind": "replace", "synthetic_ratio": 1.0},
        "generations": 1,
    }
    mitigations = {"previous": {"learner.init": "previous"}, **MITIGATIONS}
    score = {"metric": "mixture/components"}
    track = {
        "open": ["learner", "regime"],
        "config": mixture,
        "score": score,
        "limits": {},
        "seeds": [0, 1, 2, 3, 4],
    }
    config = write(tmp_path / "study", mitigations, **track)
    run_bundles(config, tmp_path / "root")
    entries = entries_of(config, tmp_path / "root")
    assert len({entry.configuration_hash for entry in entries.values()}) == len(entries)
    table = table_of(entries["none"].track, list(entries.values()))
    assert {line.entry.mitigation for line in table.lines} == {"none", *mitigations} and not table.superseded


def test_two_entries_that_contradict_each_other(computed: Any) -> None:
    entry = computed[2]["keep"]
    data = json.loads(entry.content)
    data["seeds"]["2"]["metrics"]["discrete/outcomes"][3] += 1
    with pytest.raises(InputError, match="different numbers under one key .seed 2, discrete/outcomes of gen"):
        table_of(entry.track, [entry, Entry.model_validate_json(json.dumps(data))])


def test_damaged_artifacts_are_named(tmp_path: Path) -> None:
    """Of chains that are run one by one: a record, a fit, a corpus."""
    config = write(tmp_path / "study", {"keep": {"regime.synthetic_ratio": 0.5}}, seeds=[0, 1, 2, 3, 4])
    one_by_one(config, generations=1)
    run_all(config, tmp_path / "root")
    entry = entries_of(config, tmp_path / "root")["keep"]
    assert entry.is_replicated and verified(entry, tmp_path / "root").good
    for place in ("corpora/*/*.parquet", "fits/*/fit.json", "evaluations/*/record.json"):
        copy = tmp_path / place.split("/")[0]
        shutil.copytree(tmp_path / "root", copy)
        victim = sorted(copy.glob(place))[0]
        victim.write_bytes(victim.read_bytes()[:-20])
        outcome = verified(entry, copy)
        assert not outcome.good and "damaged or missing" in outcome.verdict, place
        assert any(victim.parent.name in line for line in outcome.lines)


def test_a_damaged_bundle_is_named(computed: Any, tmp_path: Path) -> None:
    config, root, entries = computed
    shutil.copytree(root, tmp_path / "root")
    for bundle in (tmp_path / "root" / "bundles").glob("*.parquet"):
        bundle.write_bytes(bundle.read_bytes()[:500])
    outcome = verified(entries["keep"], tmp_path / "root")
    assert not outcome.good and "damaged or missing" in outcome.verdict
    assert "seed 0: in no bundle; bundles/" in outcome.lines[0]
    with pytest.raises(InputError, match=r"none of its generations \(left out: bundles/.* does not match"):
        entries_of(config, tmp_path / "root")


def test_another_corpus_in_the_place_of_one_is_found(tmp_path: Path) -> None:
    """It matches its own checksum, and the entry knows that it is not what was measured."""
    config = write(tmp_path / "study", {"keep": {"regime.synthetic_ratio": 0.5}}, seeds=[0, 1, 2, 3, 4])
    one_by_one(config, generations=1)
    prepared, _ = run_all(config, tmp_path / "root")
    entry = entries_of(config, tmp_path / "root")["keep"]
    mine, other = (prepared.lineage.nodes[chain.nodes[1]].corpus for chain in prepared.lineage.chains[:2])
    (target,), (source,) = ((tmp_path / "root" / "corpora" / key).glob("*.parquet") for key in (mine, other))
    shutil.copy(source, target)
    outcome = verified(entry, tmp_path / "root")
    assert not outcome.good and any(".0.corpora.1: the entry has" in line for line in outcome.lines)


@pytest.mark.parametrize(
    ("values", "unranked"),
    [
        ([0.9, 0.8], "unreplicated: 7 of the track's 8 seeds"),
        ([], "unreplicated: 7 of the track's 8 seeds"),
        ([-1e308, 0, 0, 0, 0, 0, 1e308], "unreplicated: 7 of the track's 8 seeds"),
        ([0.9, 0, 0, 0, 0, 0, None], "unreplicated: 7 of the track's 8 seeds"),
    ],
)
def test_a_seed_without_its_number_is_not_ranked(computed: Any, values: list[Any], unranked: str) -> None:
    """A chain that is called complete and has fewer generations, or numbers that have no scatter."""
    entries = computed[2]
    changed = with_data(entries["keep"], lambda data: data["seeds"]["3"]["metrics"].update({METRIC: values}))
    table = table_of(changed.track, [entries["none"], changed])
    assert [line.entry.mitigation for line in table.lines] == ["none", "keep"]
    assert table.lines[1].rank is None and table.lines[1].unranked == unranked
    for name, content in site_files([table]):
        assert not re.search(r"(?<![a-z])(nan|inf)(?![a-z])", content_of(content).decode(), re.IGNORECASE), (
            name
        )


def test_who_has_diverged_is_said(computed: Any) -> None:
    """A diverged seed counts as collapsed when it ended, and stays in no mean in silence."""
    entries = computed[2]

    def diverged(where: str) -> Entry:
        result = json.loads(entries["keep"].content)[where]["3"]
        # as stores have it: a row without a metric is the generation that has diverged
        short = {name: [*values[:1], None] for name, values in result["metrics"].items()}
        return with_value(entries["keep"], f"{where}.3", {**result, "state": "diverged", "metrics": short})

    mine, theirs = diverged("seeds"), diverged("baseline")
    (line,) = table_of(mine.track, [mine]).lines
    assert line.unranked == "1 of 8 seeds have diverged" and "diverged" in line.badges
    assert len(line.until) == 8 and line.until[3] == 1
    assert "(7/8)" in track_page(table_of(mine.track, [mine])).partition("<tbody>")[2].partition("x</td>")[0]
    assert "keep, 7 to 8 seeds" in entry_page(None, mine, "small")
    (line,) = table_of(theirs.track, [theirs]).lines
    assert line.unranked == "the baseline has diverged with 1 of 8 seeds"
    assert "baseline diverged" in line.badges and "diverged" not in line.badges


@pytest.mark.parametrize("bundled", [True, False])
def test_a_seed_has_diverged_when_its_store_says(tmp_path: Path, bundled: bool) -> None:
    """Three components on three points: after some generations no covariance is left. It counts as
    collapsed in that one, and the others have no interval from there on."""
    metric = "mixture/components"
    score = {"metric": metric, "threshold": 100}  # nobody loses so many
    config = {
        "data": {"source": "gaussian", "num_examples": 3},
        "learner": {"kind": "mixture", "components": 3, "regularisation": 0.0},
        "regime": {"kind": "replace", "synthetic_ratio": 1.0},
        "generations": 3,
    }
    study = write(tmp_path, {"keep": MITIGATIONS["keep"]}, config=config, score=score, limits={})
    if bundled:
        run_bundles(study, tmp_path / "root")
    else:
        one_by_one(study)
        run_all(study, tmp_path / "root")
    entry = entries_of(study, tmp_path / "root")["none"]
    (line,) = table_of(entry.track, [entry]).lines
    ends = [int(r.detail.split()[-1]) if r.state == "diverged" else None for r in entry.seeds.values()]
    assert [result.ended for result in entry.seeds.values()] == ends
    found = [(end, result.metrics[metric]) for end, result in zip(ends, entry.seeds.values(), strict=True)]
    whole = [end for end, values in found if end or values[-1] is not None]
    assert [*line.until] == [math.inf if end is None else end for end in whole]
    for end, values in found:
        assert not end or (len(values) == end + 1 and values[end] is None and values[end - 1] is not None)
    assert None in ends and any(ends), "some live, and some do not"
    curve = _curve("none", "one", entry.seeds, metric)
    for generation in range(4):
        lost = any(end is not None and end <= generation for end in ends)
        assert (curve.lows[generation] is None) == lost


def test_a_baseline_that_diverged_leaves_no_interval(computed: Any) -> None:
    """Of what is paired with it: the seeds in which it lived are a selection. What the entry itself has come
    to is of all its seeds."""
    entry = computed[2]["keep"]

    (whole,) = table_of(entry.track, [entry]).lines
    for both in (False, True):

        def diverged(data: dict[str, Any], mine: bool = both) -> None:
            for seed in ("1", "3", "5"):
                data["baseline"][seed]["state"] = "diverged"
            if mine:
                data["seeds"]["3"]["state"] = "diverged"

        lost = with_data(entry, diverged)
        table = table_of(lost.track, [lost])
        (line,) = table.lines
        benefit, rise = line.benefit, line.rise
        assert line.rank is None and (benefit.diverged, benefit.absent) == (3, 0)
        assert [*benefit.values] == [v for n, v in enumerate(whole.benefit.values) if n not in (1, 3, 5)]
        assert [*rise.values] == [v for n, v in enumerate(whole.rise.values) if n != 3 or not both]
        assert rise.diverged == both and rise.total == 8
        files = dict(site_files([table]))
        (row,) = json.loads(content_of(files["board.json"]))["tracks"]["small"]["entries"]
        (cells,) = csv.DictReader(content_of(files["small.csv"]).decode().splitlines())
        for end in ("low", "high"):
            assert getattr(benefit, end) is row[f"benefit_{end}"] is None and not cells[f"benefit_{end}"]
            own = None if both else getattr(whole.rise, end)
            assert getattr(rise, end) == row[f"rise_{end}"] == own and (cells[f"rise_{end}"] == "") == both
        assert row["benefit"] == benefit.mean and row["seeds"] == 5
        page = content_of(files["small.html"]).decode()
        assert f">{benefit.text(brief=True)}<" in page and benefit.text(brief=True).endswith("* (5/8)")


def test_what_does_nothing_measurable_says_so(computed: Any) -> None:
    entries = computed[2]

    def idle(data: dict[str, Any]) -> None:
        """As the baseline in every second seed a little better, and a little worse in the others."""
        for seed, result in data["seeds"].items():
            metrics = {name: list(values) for name, values in data["baseline"][seed]["metrics"].items()}
            metrics[METRIC][-1] += 0.001 * (-1) ** int(seed)
            result["metrics"] = metrics

    for keep, said in ((entries["keep"], False), (with_data(entries["keep"], idle), True)):
        lines = table_of(keep.track, [entries["none"], keep]).lines
        assert {line.entry.mitigation: NO_EFFECT in line.badges for line in lines} == {
            "none": False,
            "keep": said,
        }
        shown = track_page(table_of(keep.track, [entries["none"], keep]))
        assert ("cannot be told apart from none" in shown) == said
    alone = table_of(entries["keep"].track, [entries["keep"]]).lines
    assert not any(NO_EFFECT in line.badges for line in alone), "there is nothing to tell it apart from"


def test_what_worsens_in_no_known_way_ranks_nothing(computed: Any) -> None:
    for metric in ("nobody/knows", "text/mean_length"):
        odd = with_value(computed[2]["keep"], "track.score.metric", metric)
        with pytest.raises(
            InputError, match=f"score.metric: found '{metric}', and it is not known which way"
        ):
            table_of(odd.track, [odd])


def test_the_baseline_of_an_entry_is_the_entry_none(computed: Any) -> None:
    """They have the same chains, so they have the same numbers."""
    entries = computed[2]

    def better(data: dict[str, Any]) -> None:
        data["baseline"]["2"]["metrics"][METRIC][-1] -= 0.1

    with pytest.raises(
        InputError, match="different numbers under one key .seed 2, discrete/heterozygosity of"
    ):
        table_of(entries["none"].track, [entries["none"], with_data(entries["keep"], better)])


def test_versions_of_what_a_track_fixes_are_not_mixed(computed: Any) -> None:
    entries = list(computed[2].values())
    for name in ("learner", "sampling"):
        newer = [with_value(entry, f"configuration.{name}.version", 2) for entry in entries[:2]]
        assert sorted(len(table.lines) for table in tables_of([*entries, *newer])) == [2, 3]


def test_costs_and_other_seeds_are_verified_too(computed: Any) -> None:
    _, root, entries = computed

    for field, value in (("training_examples", 1), ("times_baseline", 0.5), ("device_hours", 1e-9)):
        found = verified(with_value(entries["keep"], f"cost.{field}", value), root)
        assert not found.good and f"cost.{field}: the entry has" in found.lines[0], field
    seed = json.loads(entries["keep"].content)["seeds"]["0"]
    found = verified(with_value(entries["keep"], "other_seeds.99", seed), root)
    assert not found.good and found.lines == ("other_seeds.99: is not in the artifacts",)
    of_another_day = with_value(entries["keep"], "provenance.commits", ["a" * 12])
    found = verified(with_value(of_another_day, "provenance.finished", "2001"), root)
    assert found.good and "device-hours, claims, source and machine are not those" in found.lines[0]


@pytest.mark.parametrize("part", ["mitigation=keep", "grid.mitigation=[keep]"])
def test_an_entry_needs_the_baseline(computed: Any, part: str) -> None:
    config, root, _ = computed
    with pytest.raises(InputError, match="none is not in the part of the study that is asked for"):
        entries_of(config, root, part)


def test_a_damaged_list_of_chains_hides_no_seed(computed: Any, tmp_path: Path) -> None:
    config, root, _ = computed
    shutil.copytree(root, tmp_path / "root")
    (tmp_path / "root" / "experiments" / "lost").mkdir(parents=True)
    for content in ("[", '[{"chain": "a"}]', '[{"chain": "a", "seed": "x"}]', "[1]", "3"):
        (tmp_path / "root" / "experiments" / "lost" / "chains.json").write_text(content)
        with pytest.raises(InputError, match="chains.json is damaged, so it is not known which seeds"):
            entries_of(config, tmp_path / "root")


def test_too_good_is_flagged(computed: Any) -> None:
    data = json.loads(computed[2]["keep"].content)
    for number, result in data["seeds"].items():
        values = result["metrics"]["discrete/heterozygosity"]
        values[-1] = values[0] + 0.01 + 1e-4 * int(number)
    (line,) = table_of(computed[2]["keep"].track, [Entry.model_validate_json(json.dumps(data))]).lines
    assert "too good: better than generation 0" in line.badges
    (line,) = table_of(computed[2]["keep"].track, [computed[2]["keep"]]).lines
    assert not [badge for badge in line.badges if badge.startswith("too good")]


def test_who_begins_elsewhere_is_flagged(computed: Any) -> None:
    """A worse generation 0 has less to lose."""
    entry = computed[2]["keep"]

    def worse(data: dict[str, Any]) -> None:
        data["seeds"]["3"]["metrics"][METRIC][0] -= 0.1

    for found, flagged in ((entry, False), (with_data(entry, worse), True)):
        (line,) = table_of(entry.track, [found]).lines
        assert any(badge.startswith("begins elsewhere") for badge in line.badges) == flagged


@pytest.mark.ray
@pytest.mark.slow
def test_a_seed_is_run_again(computed: Any, tmp_path: Path) -> None:
    config, root, _ = computed
    done = harness(
        "leaderboard", "add", config, "--root", root, "--to", tmp_path, "--mitigation", "keep", "--json"
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    again = harness("leaderboard", "verify", row["path"], "--replay", 4)
    assert again.returncode == 0, again.stderr
    assert "seed 4 gives the same numbers, digit by digit" in again.stdout
    wrong = harness("leaderboard", "verify", row["path"], "--replay", 44)
    assert wrong.returncode == 2 and "found 44, the track small has the seeds 0, 1" in wrong.stderr


def test_a_seed_that_comes_out_otherwise(computed: Any) -> None:
    entry = computed[2]["keep"]

    def with_change(by: float) -> Entry:
        data = json.loads(entry.content)
        data["seeds"]["4"]["metrics"]["discrete/heterozygosity"][-1] -= by
        return Entry.model_validate_json(json.dumps(data))

    last = [r.metrics["discrete/heterozygosity"][-1] for n, r in entry.seeds.items() if n != "4"]
    spread = float(np.std(np.array(last, dtype=float), ddof=1))
    assert "digit by digit" in compared(entry, entry, 4).verdict
    near, far = (compared(with_change(factor * spread), entry, 4) for factor in (1.0, 5.0))
    assert near.good and "within the spread" in near.verdict
    assert not far.good and "does NOT agree" in far.verdict and "better by" in far.lines[0]
