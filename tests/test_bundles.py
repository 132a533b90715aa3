"""Bundles: a chain's numbers are its own, whatever runs beside it; what is committed; what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from bundled import at, run_bundles, table
from chains import run_all
from conftest import Make, harness
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import start, tagged, wait_for

import harness.bundle as harness_bundle
from harness.config.schema import MixtureData, ShapeData
from harness.coordinator.bundles import BundleTask, run_task
from harness.data.truths import make_truth
from harness.errors import InputError
from harness.inspection.explain import Explainer
from harness.inspection.status import chain_states
from harness.inventory import Inventory
from harness.inventory.slices import make_slices, missing
from harness.learners.analytic.family import Chains, make_family, metrics_of
from harness.reporting import ledger
from harness.reporting.statistics import curves
from harness.store import Experiment, Leases, Owner, Store
from harness.store.bundles import CHAIN
from harness.study import commit_data, open_study

CASES: dict[str, dict[str, Any]] = {
    "gaussian": {
        "data": {"source": "gaussian", "dim": 3, "num_examples": 12},
        "learner": {"kind": "gaussian"},
    },
    "gaussian on moons": {
        "data": {"source": "moons", "num_examples": 12},
        "learner": {"kind": "gaussian", "estimator": "unbiased"},
    },
    "mixture": {
        "data": {"source": "blobs", "num_examples": 24},
        "learner": {"kind": "mixture", "components": 3},
    },
    "mixture goes on": {
        "data": {"source": "circles", "num_examples": 24},
        "learner": {"kind": "mixture", "components": 2, "covariance": "diag", "init": "previous"},
    },
    "kde": {
        "data": {"source": "swiss_roll", "num_examples": 12},
        "learner": {"kind": "kde", "bandwidth": 0.5},
    },
    "merged": {
        "data": {"source": "gaussian", "dim": 2, "num_examples": 40},
        "learner": {"kind": "gaussian", "init": "previous", "merge": -0.2},
    },
    "truncated": {
        "data": {"source": "gaussian", "dim": 2, "num_examples": 40},
        "learner": {"kind": "gaussian", "init": "previous", "truncate": 0.9},
    },
    "truncated mixture": {
        "data": {"source": "gaussian", "dim": 2, "num_examples": 40},
        "learner": {"kind": "mixture", "components": 1, "init": "previous", "truncate": 0.9},
    },
    "kde scott": {"data": {"source": "moons", "num_examples": 12}, "learner": {"kind": "kde"}},
    "discrete": {
        "data": {"source": "discrete", "outcomes": 7, "num_examples": 12},
        "learner": {"kind": "discrete"},
    },
    "regression": {
        "data": {"source": "linear", "dim": 3, "num_examples": 12},
        "learner": {"kind": "linear_regression"},
    },
    "regression fresh": {
        "data": {"source": "linear", "dim": 3, "num_examples": 12},
        "learner": {"kind": "linear_regression", "design": "fresh", "ridge": 0.1},
    },
}
REGIMES: list[dict[str, Any]] = [
    {"kind": "replace", "synthetic_ratio": 1.0},
    {"kind": "replace", "synthetic_ratio": 0.5, "real_part": "fixed"},
    {"kind": "replace_grown"},
    {"kind": "accumulate"},
    {"kind": "accumulate", "refresh": {"every": 2}},
    {"kind": "accumulate_subsample"},
    {"kind": "augment", "synthetic_ratio": 0.5},
    {"kind": "fresh_real", "synthetic_ratio": 0.5},
]
BASE = {"experiment": "bundles", "generations": 4, "tracking": {"wandb": "disabled"}}


def export(prepared: Any, store: Store) -> pd.DataFrame:
    return pd.DataFrame(ledger.rows(prepared, store))


def test_chains_that_left_no_generation_have_no_rows(make_config: Make, tmp_path: Path) -> None:
    """The reader of a chain that diverged at once is done, with nothing."""
    config = make_config({**BASE, **CASES["regression"], "grid": {"seed": [0, 1]}})
    prepared, store = run_bundles(config, tmp_path / "whole")
    rows_of = pq.read_table(store.bundles.folder / store.bundles.names()[0])
    chains = {chain.key: chain.generations for chain in prepared.bundles}
    provenance = store.bundles.provenance(store.bundles.names()[0])
    for name, kept in (
        ("none", rows_of.slice(0, 0)),
        ("one", rows_of.filter(pc.equal(rows_of[CHAIN], min(chains)))),
    ):
        other = Store.open(tmp_path / name)
        other.bundles.commit(kept, chains, provenance)
        rows = ledger.rows(prepared, other, provenance=True)
        assert len(rows) == len(kept) and {row["seed"] for row in rows} <= {0, 1}
        ledger.write(rows, "csv", tmp_path / "table.csv")
        assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + len(kept)
        assert len(curves(rows, [], "test/nll").get((), {})) == len(kept)


def test_each_chain_has_the_time_that_it_took(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that an example moves by a second; a bundle of an earlier version says nothing."""
    grid = {"data.num_examples": [20, 1000], "seed": [0, 1, 2]}
    config = make_config({**BASE, **CASES["gaussian"], "grid": grid})
    prepared, _ = open_study(config, (), Store.read(tmp_path / "root"))
    store = Store.open(tmp_path / "root")
    commit_data(prepared, store)
    clock, run_unit = [0.0], harness_bundle.run_unit

    def timed(unit: Any) -> Any:
        clock[0] += sum(prepared.specs[chain.cell].n for chain in unit.chains)
        return run_unit(unit)

    slices = tuple(make_slices(prepared, store))
    with monkeypatch.context() as patch:
        patch.setattr(harness_bundle, "run_unit", timed)
        patch.setattr("time.monotonic", lambda: clock[0])
        run_task(BundleTask(slices), str(store.root))
    frame = pd.DataFrame(ledger.rows(prepared, store, provenance=True))
    (whole,) = frame["provenance/seconds/bundle"].unique()
    assert whole == 3 * 20 + 3 * 1000
    assert (frame["provenance/seconds/chain"] == frame["data.num_examples"]).all() and len(frame) == 6 * 5
    (name,) = store.bundles.names()
    about = store.bundles.provenance(name)
    del about["chain_seconds"]
    earlier = Store.open(tmp_path / "earlier")
    chains = {chain.key: chain.generations for chain in prepared.bundles}
    earlier.bundles.commit(pq.read_table(store.bundles.folder / name), chains, about)
    assert "provenance/seconds/chain" not in pd.DataFrame(ledger.rows(prepared, earlier, provenance=True))


BRIEF = ("gaussian", "discrete", "kde")
"""What a quick look takes of `CASES`."""


@pytest.mark.parametrize(
    "name", [name if name in BRIEF else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_a_chain_alone_beside_others_and_step_by_step_is_equal(
    make_config: Make, tmp_path: Path, name: str
) -> None:
    """Bit for bit, keys included: one seed alone, the same among 5 seeds and 8 regimes, and through the
    store's generations."""
    together = make_config(
        {**BASE, **CASES[name], "grid": {"regime": REGIMES, "seed": [0, 1, 2, 3, 4]}}, "all.yaml"
    )
    whole = export(*run_bundles(together, tmp_path / "all"))
    assert len(whole) == 8 * 5 * 5
    for index in (0, 3, 5):
        alone = make_config({**BASE, **CASES[name], "regime": REGIMES[index], "seed": 3}, "one.yaml")
        single = export(*run_bundles(alone, tmp_path / f"one-{index}"))
        same = whole[whole.chain == single.chain.iloc[0]].reset_index(drop=True)
        pd.testing.assert_frame_equal(single, same[single.columns], check_exact=True)
    steps = make_config(
        {**BASE, **CASES[name], "grid": {"regime": REGIMES, "seed": [3]}, "resources": {"bundled": False}},
        "s.yaml",
    )
    by_generation = export(*run_all(steps, tmp_path / "steps"))
    same = whole[whole.seed == 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(by_generation[same.columns], same, check_exact=True)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    beside=st.lists(st.integers(0, 2**40), min_size=1, max_size=9, unique=True),
    count=st.integers(1, 80),
    more=st.integers(0, 80),
    where=st.integers(0, 8),
)
def test_fits_and_samples_do_not_depend_on_the_batch(
    name: str, beside: list[int], count: int, more: int, where: int
) -> None:
    """Any chain in any company: fit, sample and metrics have the same bits; and fewer examples are a prefix
    of more."""
    from harness.config.schema import Config

    config = Config.model_validate({"experiment": "x", **CASES[name]})
    truth = make_truth(config.data)  # type: ignore[arg-type]
    family = make_family(config.learner, truth)
    me = where % len(beside)
    real = np.stack([truth.real(seed, truth.num_examples).values for seed in beside])
    everyone, alone = Chains(tuple(beside), 1), Chains((beside[me],), 1)
    many = family.fit(family.summarise(real), everyone, None)
    one = family.fit(family.summarise(real[me : me + 1]), alone, None)
    for part in many:
        assert many[part][me].tobytes() == one[part][0].tobytes(), part
    long = family.sample(many, everyone, count + more, real)
    short = family.sample(one, alone, count, real[me : me + 1])
    assert long[me, :count].tobytes() == short[0].tobytes()
    found = metrics_of(family, many, long, config.evaluate)
    single = metrics_of(family, one, long[me : me + 1], config.evaluate)
    for metric in found:
        assert found[metric][me].tobytes() == single[metric][0].tobytes(), metric


def test_longer_chains_more_seeds_and_what_is_there_already(make_config: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    small = {**BASE, **CASES["gaussian"], "grid": {"seed": [0, 1]}}
    run_bundles(make_config(small), root)
    for changes, computed in (
        ({}, 0),
        ({"grid": {"seed": [0, 1, 2]}}, 1),
        ({"generations": 2}, 0),
        ({"generations": 6}, 2),
    ):
        prepared, _ = open_study(make_config({**small, **changes}, "next.yaml"), (), Store.read(root))
        assert len(missing(prepared, Store.read(root).bundles.index())) == computed
    short, _ = open_study(make_config({**small, "generations": 2}, "short.yaml"), (), Store.read(root))
    frame = export(short, Store.read(root))
    assert sorted(frame.generation.unique()) == [0, 1, 2]


def test_slices_hold_every_chain_once_whatever_is_there(make_config: Make, tmp_path: Path) -> None:
    config = {
        **BASE,
        **CASES["gaussian"],
        "generations": 99,
        "grid": {"data.num_examples": [10, 1000], "seed": {"from": 0, "count": 50}},
    }
    prepared, _ = open_study(make_config(config), (), Store.read(tmp_path / "none"))
    slices = make_slices(prepared, Store.read(tmp_path / "none"))
    keys = sorted(chain.key for chain in prepared.bundles)
    assert sorted(chain.key for part in slices for chain in part.chains) == keys
    assert 1 < len(slices) < 50 and len({part.key for part in slices}) == len(slices)
    seconds = [part.seconds for part in slices[:-1]]
    assert max(seconds) < 2 * min(seconds)
    root = tmp_path / "root"
    run_bundles(
        make_config(
            {**config, "grid": {"data.num_examples": [10], "seed": {"from": 0, "count": 7}}}, "few.yaml"
        ),
        root,
    )
    later, _ = open_study(make_config(config), (), Store.read(root))
    left = {chain.key for chain in missing(later, Store.read(root).bundles.index())}
    assert len(left) == 93 and [part.key for part in make_slices(later, Store.read(root))] == [
        part.key for part in slices
    ]
    rest = [part.only(left) for part in slices]
    assert sorted(chain.key for part in rest if part for chain in part.chains) == sorted(left)
    assert slices[0].only(set()) is None


def test_a_failure_counts_until_the_chain_is_there(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event is taken back: one that came before the chain's bundle says nothing of a longer chain."""
    config, root = {**BASE, **CASES["gaussian"], "experiment": "e"}, tmp_path / "root"
    prepared, _ = open_study(make_config(config), (), Store.read(root))
    experiment, (chain,) = Experiment(root, "e"), prepared.bundles
    longer = make_config({**config, "generations": chain.generations + 1}, "longer.yaml")
    Store.open(root)
    experiment.begin({}, [])
    with monkeypatch.context() as earlier:
        now = time.time()
        earlier.setattr(time, "time", lambda: now - 60)
        experiment.event("chain_failed", chain=chain.key, reason="the first try")
    run_bundles(make_config(config), root)
    wanted, store = open_study(longer, (), Store.read(root))[0], Store.read(root)
    assert wanted.bundles[0].key == chain.key
    assert [state.state for state in chain_states(wanted, store)] == ["waiting"]
    experiment.event("chain_failed", chain=chain.key, reason="a later try")
    (state,) = chain_states(wanted, Store.read(root))
    assert (state.state, state.detail) == ("failed", "a later try")


def test_of_two_bundles_of_a_chain_the_first_counts(make_config: Make, tmp_path: Path) -> None:
    """Another kind of processor may have rounded otherwise; what was reported once must not change by it."""
    _, store = run_bundles(make_config({**BASE, **CASES["gaussian"]}), tmp_path / "root")
    (name,) = store.bundles.names()
    rows, how = pq.read_table(store.bundles.folder / name), store.bundles.provenance(name)
    chains = {key: place.generations for key, place in store.bundles.index().items()}
    for year in range(3):  # whatever their hashes
        store.bundles.commit(
            rows.slice(year), chains, {**how, "finished": f"{2990 + year}-01-01T00:00:00+00:00"}
        )
    for index in (Store.read(store.root).bundles.index(), store.bundles.index(), store.bundles.news()):
        assert {place.path.name for place in index.values()} == {name}
    first = store.bundles.commit(rows.slice(3), chains, {**how, "finished": "1990-01-01T00:00:00+00:00"})
    assert {place.path for place in store.bundles.index().values()} == {first}


def test_a_damaged_bundle_is_set_aside_and_made_again(make_config: Make, tmp_path: Path) -> None:
    root, config = tmp_path / "root", make_config({**BASE, **CASES["discrete"]})
    expected = export(*run_bundles(config, root))
    (bundle,) = (root / "bundles").iterdir()
    bundle.write_bytes(bundle.read_bytes()[:-9] + b"x" * 9)
    found = harness("doctor", "--store", "--root", root, "--json")
    assert (
        found.returncode == 1 and json.loads(found.stdout)["findings"][0]["where"] == f"bundles/{bundle.name}"
    )
    pd.testing.assert_frame_equal(export(*run_bundles(config, root)), expected, check_exact=True)
    assert len(list((root / "damaged").iterdir())) == 1


def test_a_collapsed_covariance_is_a_status() -> None:
    """Replace with n = 2 loses about ln 2 + 0.6 of log variance a generation: below the smallest number in
    1,200 generations."""
    frame = table(
        {**CASES["gaussian"], "data": {"source": "gaussian", "num_examples": 2}, "generations": 900}
    )
    assert (frame.generation == np.arange(901)).all()
    late = frame[frame.status == "degenerate"]
    assert len(late) and late["gaussian/log_variance"].isna().any()
    assert (frame["gaussian/trace_ratio"] >= 0).all(), "the variance itself is 0, never null"
    assert frame.status.iloc[0] == "ok"


def test_a_singular_covariance_has_no_density_and_says_so() -> None:
    frame = table(
        {**CASES["gaussian"], "data": {"source": "gaussian", "dim": 8, "num_examples": 5}, "generations": 3}
    )
    assert (frame.status == "degenerate").all() and frame["test/nll"].isna().all()
    assert (frame["gaussian/det_ratio"] == 0).all() and (frame["gaussian/trace_ratio"] > 0).all()


def test_a_mixture_that_admits_no_fit_has_diverged_and_ends() -> None:
    """Without regularisation, two components on a handful of points end on one point: no covariance is
    left."""
    changes = {
        "data": {"source": "gaussian", "num_examples": 3},
        "learner": {"kind": "mixture", "components": 3, "regularisation": 0.0},
    }
    frame = table({**changes, "generations": 3, "grid": {"seed": [0, 1, 2, 3]}})
    last = frame.groupby("seed").tail(1)
    assert (last.status == "diverged").sum() >= 2
    assert ((last.status == "diverged") | (last.generation == 3)).all(), (
        "a chain ends where it diverges, and nowhere else"
    )
    assert frame[frame.status == "diverged"]["test/nll"].isna().all()


def test_blue_cats_vanish() -> None:
    """10 blue and 90 yellow: as outcomes, blue is lost by drift; on the hue, green ones come first."""
    outcomes = table(
        {
            "data": {
                "source": "discrete",
                "probabilities": [0.1, 0.9],
                "num_examples": 100,
                "stratified": True,
            },
            "learner": {"kind": "discrete"},
            "generations": 60,
            "grid": {"seed": {"from": 0, "count": 200}},
        }
    )
    assert (at(outcomes, "share/outcome_0", 0) == 0.1).all(), "exactly 10 of 100"
    lost = [(at(outcomes, "share/outcome_0", g) == 0).mean() for g in (1, 10, 60)]
    assert lost[0] < 0.01 < lost[1] < lost[2] and lost[2] > 0.25
    hues = {
        "data": {
            "source": "mixture",
            "stratified": True,
            "num_examples": 100,
            "components": [
                {"weight": 0.1, "mean": [240.0], "std": 10.0},
                {"weight": 0.9, "mean": [60.0], "std": 10.0},
            ],
        },
        "evaluate": {"ranges": {"yellow": [30, 90], "green": [90, 210], "blue": [210, 270]}},
        "generations": 40,
        "grid": {"seed": {"from": 0, "count": 30}},
    }
    frame = table({**hues, "learner": {"kind": "kde", "bandwidth": 15.0}})
    green = frame[frame["share/green"] > 0].groupby("seed").generation.min()
    blue = frame[frame["share/blue"] == 0].groupby("seed").generation.min().reindex(range(30)).fillna(99)
    assert (green.reindex(range(30)).fillna(99) < blue).mean() > 0.8, (
        "green cats appear before blue ones are gone"
    )


def test_sources_of_another_cell(make_config: Make, tmp_path: Path) -> None:
    """A normal fitted to what a KDE chain writes: the same in bundles and by generations, and the writer does
    not change."""
    grid = {
        "learner": [{"kind": "kde", "bandwidth": 0.5}, {"kind": "gaussian"}],
        "regime.source": ["self", {"cell": {"learner": {"kind": "kde", "bandwidth": 0.5}}}],
    }
    config = {
        **BASE,
        "data": {"source": "moons", "num_examples": 10},
        "learner": {"kind": "gaussian"},
        "grid": {**grid, "seed": [0, 1]},
    }
    refused = make_config({**config, "regime": {"kind": "accumulate"}}, "refused.yaml")
    with pytest.raises(InputError, match=r"learner\.kind|depends on itself|no axis"):
        open_study(refused, (), Store.read(tmp_path / "none"))
    config = {**BASE, **CASES["gaussian"], "regime": {"kind": "replace", "synthetic_ratio": 1.0}}
    when = [
        {
            "when": {"learner.estimator": "unbiased"},
            "set": {"regime.source": {"cell": {"learner.estimator": "mle"}}},
        }
    ]
    config = {**config, "grid": {"learner.estimator": ["mle", "unbiased"], "seed": [0, 1]}, "overrides": when}
    bundled = export(*run_bundles(make_config(config, "two.yaml"), tmp_path / "b"))
    steps = export(
        *run_all(make_config({**config, "resources": {"bundled": False}}, "three.yaml"), tmp_path / "s")
    )
    pd.testing.assert_frame_equal(bundled, steps[bundled.columns], check_exact=True)
    plain = {name: value for name, value in config.items() if name not in ("overrides", "grid")}
    own = export(*run_bundles(make_config({**plain, "seed": 1}, "own.yaml"), tmp_path / "o"))
    written = bundled[(bundled["learner.estimator"] == "mle") & (bundled.seed == 1)]
    assert written["gaussian/log_variance"].tolist() == own["gaussian/log_variance"].tolist()


def test_a_generation_of_another_cell_as_a_fixed_teacher(make_config: Make, tmp_path: Path) -> None:
    """Every generation reads what the teacher's generation 0 wrote: with no real share all of them are the
    same fit."""
    when = {
        "when": {"learner.estimator": "unbiased"},
        "set": {"regime.source": {"cell": {"learner.estimator": "mle"}, "generation": 0}},
    }
    config = {
        **BASE,
        **CASES["gaussian"],
        "grid": {"learner.estimator": ["mle", "unbiased"]},
        "overrides": [when],
    }
    config["regime"] = {"kind": "replace", "synthetic_ratio": 1.0}
    bundled = export(*run_bundles(make_config(config, "a.yaml"), tmp_path / "a"))
    pupil = bundled[bundled["learner.estimator"] == "unbiased"]["gaussian/log_variance"].tolist()
    assert len(set(pupil[1:])) == 1 and pupil[0] != pupil[1]
    steps = export(
        *run_all(make_config({**config, "resources": {"bundled": False}}, "b.yaml"), tmp_path / "b")
    )
    pd.testing.assert_frame_equal(bundled, steps[bundled.columns], check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"regime.source": {"cell": {"learner.estimator": "mle"}}},
            ("regime.source", "learner.estimator", "axis"),
        ),
        (
            {
                "grid": {"learner.estimator": ["mle", "unbiased"]},
                "regime.source": {"cell": {"learner.estimator": "other"}},
            },
            ("regime.source", "no cell"),
        ),
        (
            {
                "grid": {"learner.estimator": ["mle", "unbiased"]},
                "regime.source": {"cell": {"learner.estimator": "mle"}},
            },
            ("regime.source", "depends on itself"),
        ),
        ({"regime.source": {"model": {"variance": -1}}}, ("regime.source.model.variance",)),
        ({"regime.source": {"model": {"dim": 2}}}, ("regime.source.model", "shape")),
        ({"regime.source": {"model": {"colour": 1}}}, ("regime.source.model.colour", "variance")),
        (
            {"data": {"source": "discrete", "outcomes": 1}, "learner": {"kind": "discrete"}},
            ("data.outcomes", "2"),
        ),
        (
            {"data": {"source": "discrete", "probabilities": [0.5, 0.6]}, "learner": {"kind": "discrete"}},
            ("probabilities", "1.1"),
        ),
        (
            {"data": {"source": "discrete", "probabilities": [1.0]}, "learner": {"kind": "discrete"}},
            ("at least 2",),
        ),
        (
            {"data": {"source": "moons", "num_examples": 3}, "learner": {"kind": "mixture", "components": 4}},
            ("components", "3"),
        ),
        ({"data": {"source": "moons"}, "learner": {"kind": "kde", "bandwidth": 0}}, ("bandwidth", "0")),
        (
            {
                "data": {"source": "linear", "dim": 10, "num_examples": 11},
                "learner": {"kind": "linear_regression"},
            },
            ("data.dim", "10", "11", "ridge"),
        ),
        ({"learner": {"kind": "discrete"}}, ("data.source", "discrete")),
        ({"data": {"source": "array", "path": "nowhere.npy"}}, ("data.path", "nowhere.npy")),
        ({"filters": [{"kind": "repetition"}]}, ("filters", "repetition", "text")),
        (
            {"filters": [{"kind": "verifier", "score": "agreement", "at_least": 1}]},
            ("filters", "agreement", "linear"),
        ),
        ({"evaluate.ranges": {"blue": [2, 1]}}, ("evaluate.ranges", "blue")),
    ],
)
def test_bad_input_is_one_message(
    make_config: Make, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    config = make_config(
        {**BASE, **CASES["gaussian"], "regime": {"kind": "replace", "synthetic_ratio": 1.0}}, **changes
    )
    found = harness("plan", config, "--root", tmp_path / "root")
    assert found.returncode == 2, found.stdout + found.stderr
    assert "Traceback" not in found.stderr
    for word in words:
        assert word in found.stderr, found.stderr
    assert not (tmp_path / "root").exists()


def test_filters_that_reject_everything_fail_the_chain(make_config: Make, tmp_path: Path) -> None:
    config = make_config(
        {
            **BASE,
            **CASES["gaussian"],
            "filters": [{"kind": "verifier", "score": "log_density", "at_least": -2.7569}],
        }
    )
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "root"))
    with scratch:
        store = Store.open(tmp_path / "root")
    from harness.coordinator.bundles import BundleTask, run_task

    (part,) = make_slices(prepared, store)
    assert "reject nearly everything" in next(
        iter(run_task(BundleTask((part,)), str(store.root)).failed.values())
    )
    assert store.bundles.names() == []


@pytest.mark.slow
def test_a_verifier_keeps_the_variance_up(make_config: Make, tmp_path: Path) -> None:
    """A verifier that errs lies between none and a perfect one; in bundles and by generations alike."""
    data = {"source": "linear", "dim": 3, "num_examples": 40, "labels": "sign"}
    regime = {"kind": "replace", "synthetic_ratio": 1.0, "source": {"model": {"flipped": 0.4}}}
    base = {
        **BASE,
        "data": data,
        "learner": {"kind": "linear_regression", "design": "fresh"},
        "regime": regime,
        "generations": 1,
    }
    perfect = {"kind": "verifier", "score": "agreement", "at_least": 1}
    found = []
    for filters in ([], [{**perfect, "false_accept": 0.5}], [perfect]):
        frame = table({**base, "filters": filters, "grid": {"seed": {"from": 0, "count": 200}}})
        found.append(at(frame, "regression/accuracy", 1))
    assert found[0].mean() < found[1].mean() < found[2].mean()
    config = {
        **base,
        "regime": REGIMES[3],
        "filters": [{**perfect, "false_accept": 0.5, "false_reject": 0.2}],
        "generations": 3,
    }
    config["filters"].append({"kind": "label", "recall": 0.3, "false_positive_rate": 0.1})
    a = export(*run_bundles(make_config(config, "a.yaml"), tmp_path / "a"))
    b = export(*run_all(make_config({**config, "resources": {"bundled": False}}, "b.yaml"), tmp_path / "b"))
    pd.testing.assert_frame_equal(a, b[a.columns], check_exact=True)


TEACHERS: dict[str, Any] = {
    "gaussian": {"variance": 4.0},
    "discrete": {"zipf": 1.0},
    "regression fresh": {"shift": 1.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_teaches_anew_under_every_regime(make_config: Make, tmp_path: Path, name: str) -> None:
    """In bundles as by generations; no two generations of a teacher's pupil are the same fit."""
    for index in (0, 1, 2, 6, 7):
        regime = {**REGIMES[index], "source": {"model": TEACHERS[name]}}
        config = {**BASE, **CASES[name], "regime": regime, "grid": {"seed": [0, 1]}}
        bundled = export(*run_bundles(make_config(config, f"a{index}.yaml"), tmp_path / f"a{index}"))
        steps = export(
            *run_all(
                make_config({**config, "resources": {"bundled": False}}, f"b{index}.yaml"),
                tmp_path / f"b{index}",
            )
        )
        pd.testing.assert_frame_equal(bundled, steps[bundled.columns], check_exact=True)
        metric = next(
            column
            for column in ("gaussian/log_variance", "discrete/entropy", "regression/norm")
            if column in bundled
        )
        assert bundled[bundled.seed == 0][metric].nunique() == 5


def test_keys_hold_what_changes_the_result(make_config: Make, tmp_path: Path) -> None:
    def keys(changes: dict[str, Any], name: str) -> list[str]:
        path = make_config({**BASE, **CASES["gaussian"], **changes}, f"{name}.yaml")
        prepared, _ = open_study(path, (), Store.read(tmp_path / "none"))
        return [prepared.bundles[0].key, prepared.bundles[0].id]

    def taught(variance: float) -> dict[str, Any]:
        source = {"model": {"variance": variance}}
        return {
            "regime": {"kind": "replace", "synthetic_ratio": 1.0, "source": source, "refresh": {"at": [1]}}
        }

    a, b = keys(taught(4.0), "a"), keys(taught(100.0), "b")
    assert a[0] != b[0] and a[1] != b[1], "a teacher that generation 1 does not hear is heard later"
    label = {"kind": "label", "recall": 0.5, "false_positive_rate": 0.4}
    verifier = {"kind": "verifier", "score": "log_density", "at_least": -99}
    real = {"regime": {"kind": "replace", "synthetic_ratio": 0.0}, "generations": 2}
    frames = [
        table({**CASES["gaussian"], **real, "filters": filters}) for filters in ([label], [verifier, label])
    ]
    assert frames[0]["key"].tolist() == frames[1]["key"].tolist()
    assert frames[0]["gaussian/log_variance"].tolist() == frames[1]["gaussian/log_variance"].tolist(), (
        "one key, one result"
    )


def test_a_singular_chain_ends_alone(make_config: Make, tmp_path: Path) -> None:
    """7 examples for 5 weights, drawn from a pool that repeats its design: some chains draw too few rows, the
    others go on."""
    config = {
        "data": {"source": "linear", "dim": 5, "num_examples": 7},
        "learner": {"kind": "linear_regression"},
        "regime": {"kind": "accumulate_subsample"},
        "generations": 2,
    }
    frame = table({**config, "grid": {"seed": {"from": 0, "count": 60}}})
    ended = set(frame[frame.status == "diverged"].seed)
    assert 0 < len(ended) < 60
    seed = min(ended)
    alone = table({**config, "seed": seed})
    assert alone["status"].tolist() == frame[frame.seed == seed]["status"].tolist()


@pytest.mark.slow
def test_a_reader_ends_with_the_chain_that_writes_for_it(make_config: Make, tmp_path: Path) -> None:
    """Not a failure that every run repeats: its later generations do not exist, under either engine, and
    status says why."""
    config = {
        **BASE,
        "data": {"source": "linear", "dim": 5, "num_examples": 7},
        "learner": {"kind": "linear_regression"},
        "regime": {"kind": "accumulate_subsample"},
        "generations": 3,
        "grid": {"learner.design": ["fresh", "fixed"], "seed": {"from": 0, "count": 20}},
        "overrides": [{"when": {"learner.design": "fresh"}, "set": {"regime": {
            "kind": "replace", "synthetic_ratio": 0.5, "source": {"cell": {"learner.design": "fixed"}}}}}],
    }  # fmt: skip
    bundled = run_bundles(make_config(config, "a.yaml"), tmp_path / "a")
    steps = run_all(make_config({**config, "resources": {"bundled": False}}, "b.yaml"), tmp_path / "b")
    frame = export(*bundled)
    pd.testing.assert_frame_equal(frame, export(*steps)[frame.columns], check_exact=True)
    writers, readers = (
        frame[frame["learner.design"] == design].groupby("seed") for design in ("fixed", "fresh")
    )
    own = {seed for seed, rows in readers if "diverged" in rows.status.tolist()}
    ended = {
        seed for seed, rows in writers if rows.status.iloc[-1] == "diverged" and rows.generation.max() < 3
    } - own
    assert ended and len(ended) < 20
    for seed, rows in readers:
        last = writers.get_group(seed).generation.max() if seed in ended else 3
        assert seed in own or rows.generation.max() == last
    for prepared, store in (bundled, steps):
        states = {(s.axes["learner.design"], s.seed): s.state for s in chain_states(prepared, store)}
        assert {
            seed for (design, seed), state in states.items() if design == "fresh" and state == "unreachable"
        } == ended
        assert not Inventory(prepared, store).work_left
        chain = next(
            c for c in prepared.chains if c.seed in ended and prepared.axes(c)["learner.design"] == "fresh"
        )
        assert Explainer(prepared, store, chain).explain()[-1].reason == "unreachable"


@pytest.mark.parametrize("generation", [2, 4])
def test_any_generation_of_a_writer_can_be_read_and_filtered(
    make_config: Make, tmp_path: Path, generation: int
) -> None:
    source = {"cell": {"learner.estimator": "mle"}, "generation": generation}
    keep = [{"kind": "verifier", "score": "log_density", "at_least": -5.0}]
    when = {"when": {"learner.estimator": "unbiased"}, "set": {"regime.source": source, "filters": keep}}
    config = {
        **BASE,
        **CASES["gaussian"],
        "grid": {"learner.estimator": ["mle", "unbiased"]},
        "overrides": [when],
    }
    config["regime"] = {"kind": "replace", "synthetic_ratio": 1.0}
    bundled = export(*run_bundles(make_config(config, "a.yaml"), tmp_path / "a"))
    steps = export(
        *run_all(make_config({**config, "resources": {"bundled": False}}, "b.yaml"), tmp_path / "b")
    )
    pd.testing.assert_frame_equal(bundled, steps[bundled.columns], check_exact=True)


def test_arrays_come_from_files_and_are_known_by_their_content(make_config: Make, tmp_path: Path) -> None:
    rows = np.random.Generator(np.random.PCG64(1)).normal(size=(50, 2))
    np.save(tmp_path / "rows.npy", rows)
    pd.DataFrame(rows, columns=["x", "y"]).to_parquet(tmp_path / "rows.parquet")
    frames = []
    for name in ("rows.npy", "rows.parquet"):
        data = {"source": "array", "path": str(tmp_path / name), "num_examples": 30}
        config = make_config(
            {**BASE, "data": data, "learner": {"kind": "gaussian"}, "regime": REGIMES[0]}, f"{name}.yaml"
        )
        frames.append(export(*run_bundles(config, tmp_path / name.replace(".", "-"))))
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    assert frames[0]["test/nll"].notna().all()


def test_shapes_have_the_geometry_of_scikit_learn() -> None:
    """Means and variances per coordinate of 20,000 examples, within 5 standard errors of each other."""
    from sklearn import datasets

    count = 20_000
    makers = {
        "moons": lambda: datasets.make_moons(count, noise=0.05, random_state=0)[0],
        "circles": lambda: datasets.make_circles(count, noise=0.05, random_state=0)[0],
        "swiss_roll": lambda: datasets.make_swiss_roll(count, noise=0.05, random_state=0)[0],
        "blobs": lambda: datasets.make_blobs(count, centers=[[-6, -4], [0, 6], [6, -4]], random_state=0)[0],
    }
    for name, make in makers.items():
        ours, theirs = make_truth(ShapeData(source=name, num_examples=10)).real(0, count).values, make()
        for power in (1, 2, 4):
            a, b = ours**power, theirs**power
            error = np.hypot(a.std(axis=0), b.std(axis=0)) / np.sqrt(count)
            assert (np.abs(a.mean(axis=0) - b.mean(axis=0)) < 5 * error).all(), (name, power)
    truth = make_truth(ShapeData(source="blobs", num_examples=10))
    assert np.allclose(truth.real(0, 5).values, truth.real(0, 500).values[:5]), "fewer are a prefix of more"


def test_stratified_examples_are_exact() -> None:
    parts = [{"weight": 0.1, "mean": [100.0], "std": 1.0}, {"weight": 0.9, "mean": [0.0], "std": 1.0}]
    truth = make_truth(
        MixtureData.model_validate(
            {"source": "mixture", "components": parts, "num_examples": 100, "stratified": True}
        )
    )
    for seed in range(5):
        assert (truth.real(seed, 100).values > 50).sum() == 10


@pytest.mark.ray
@pytest.mark.slow
def test_the_commands_on_a_bundled_grid(make_config: Make, tmp_path: Path) -> None:
    root = tmp_path / "root"
    config = make_config(
        {
            **BASE,
            **CASES["gaussian"],
            "grid": {"regime": REGIMES, "seed": [0, 1]},
            "tracking": {"wandb": "offline"},
        }
    )
    plan = json.loads(harness("plan", config, "--root", root, "--json").stdout)
    assert (plan["cells"], plan["chains"], plan["generations_unique"], plan["generations_stored"]) == (
        8,
        16,
        80,
        0,
    )
    done = harness("run", config, "--root", root, "--json")
    found = json.loads(done.stdout)
    assert (found["chains_complete"], found["generations_computed"]) == (16, 80), done.stderr
    again = json.loads(harness("run", config, "--root", root, "--json").stdout)
    assert (again["chains_complete"], again["generations_computed"], again["generations_reused"]) == (
        16,
        0,
        80,
    )
    assert json.loads(harness("plan", config, "--root", root, "--json").stdout)["generations_stored"] == 80
    states = json.loads(harness("status", config, "--root", root, "--json").stdout)["chains"]
    assert [state["state"] for state in states] == ["complete"] * 16
    explained = json.loads(
        harness("explain", config, "--root", root, "--chain", states[0]["chain"], "--json").stdout
    )
    assert [item["reason"] for item in explained["generations"]] == ["committed"] * 5
    assert harness("report", config, "--root", root).returncode == 0
    assert "provenance/bundle" in harness("export", config, "--root", root, "--provenance").stdout
    assert harness("doctor", "--store", "--root", root).returncode == 0
    assert harness("gc", "--root", root).returncode == 0
    runs = list((root / "experiments" / "bundles" / "wandb" / "wandb").glob("offline-run-*"))
    assert len(runs) == 8, "one for each cell"
    # Chains that are the beginning of others are rows of theirs, and counted once.
    beginnings = ("--set", "grid.generations=[2, 4]", "--root", root, "--json")
    plan = json.loads(harness("plan", config, *beginnings).stdout)
    assert (plan["chains"], plan["generations_unique"], plan["generations_stored"]) == (32, 80, 80)
    assert json.loads(harness("run", config, *beginnings).stdout)["generations_reused"] == 80


@pytest.mark.ray
@pytest.mark.slow
def test_runs_that_begin_together_share_the_chains(make_config: Make, tmp_path: Path, tag: str) -> None:
    """Somebody else holds everything until both wait, so neither is ahead."""
    changes = {
        "data": {"source": "moons", "num_examples": 60},
        "learner": {"kind": "kde"},
        "generations": 400,
    }
    config, root = (
        make_config({**BASE, **changes, "grid": {"seed": {"from": 0, "count": 60}}}),
        tmp_path / "root",
    )
    prepared, scratch = open_study(config, (), Store.open(root))
    with scratch:
        commit_data(prepared, Store.open(root))
    gate = Owner(root / "leases" / "owners")
    slices, leases = make_slices(prepared, Store.read(root)), Leases(root, gate)
    assert len(slices) > 10 and all(leases.acquire(part.key) for part in slices)
    cpus = os.sched_getaffinity(0)
    # two workers each: with many, one run could take all at its first look
    os.sched_setaffinity(0, sorted(cpus)[:2])
    try:
        runs = [start(tag, "run", config, "--root", root, "--json") for _ in range(2)]
    finally:
        os.sched_setaffinity(0, cpus)
    wait_for(
        lambda: (
            sum(event["event"] == "bundles_started" for event in Experiment(root, "bundles").events()) == 2
        )
    )
    gate.close()
    summaries = []
    for run in runs:
        out, err = run.communicate(timeout=200)
        assert run.returncode == 0, err
        summaries.append(json.loads(out))
    assert [summary["chains_complete"] for summary in summaries] == [60, 60]
    assert sum(summary["generations_computed"] for summary in summaries) == 60 * 401
    assert all(summary["generations_computed"] for summary in summaries), "both had a part in it"
    files = list((root / "bundles").glob("*.parquet"))
    chains = [
        key for path in files for key in set(pd.read_parquet(path, columns=["bundle_chain"])["bundle_chain"])
    ]
    assert len(chains) == 60, "no chain twice"
    assert [path.name for path in (root / "leases").iterdir()] == ["owners"]


@pytest.mark.ray
def test_a_run_waits_for_others_and_takes_over_from_the_dead(
    make_config: Make, tmp_path: Path, run_study: Callable[..., Any]
) -> None:
    config, root = make_config({**BASE, **CASES["gaussian"], "grid": {"seed": [0, 1]}}), tmp_path / "root"
    prepared, scratch = open_study(config, (), Store.open(root))
    with scratch:
        commit_data(prepared, Store.open(root))
    (part,) = make_slices(prepared, Store.read(root))
    other = Owner(root / "leases" / "owners")
    assert Leases(root, other).acquire(part.key)
    shown = json.loads(harness("status", config, "--root", root, "--json").stdout)["chains"]
    holder = f"slice of 2, process {os.getpid()} on {socket.gethostname()}"
    assert [(chain["state"], chain["detail"]) for chain in shown] == [("running", holder)] * 2
    summary, _, lines = run_study(config, root, idle_s=1.5)
    assert (summary.exit_code, summary.generations_computed, summary.reason) == (
        75,
        0,
        "others compute all that is left",
    )
    assert any("some chains wait" in line for line in lines)
    threading.Timer(2.0, other.close).start()
    summary, _, lines = run_study(config, root)
    assert (summary.exit_code, summary.generations_computed) == (0, 10), lines


@pytest.mark.ray
@pytest.mark.slow
def test_killed_workers_and_signals_cost_a_task_and_no_more(
    make_config: Make, tmp_path: Path, tag: str
) -> None:
    """A worker is killed: its task is tried again. SIGTERM: the run ends with 75 and keeps what is committed.
    Then it goes on."""
    changes = {"data": {"source": "moons", "num_examples": 60}, "learner": {"kind": "kde"}, "generations": 40}
    grid = {"regime": [REGIMES[0], REGIMES[3]], "seed": {"from": 0, "count": 30}}
    config, root = make_config({**BASE, **changes, "grid": grid}), tmp_path / "root"

    def committed() -> int:
        return len(Store.read(root).bundles.names())

    def workers() -> list[Any]:
        return [process for process in tagged(tag) if at_work(process)]

    def at_work(process: Any) -> bool:
        try:
            return "run_task" in " ".join(process.cmdline())
        except psutil.Error:
            return False

    def kill_one() -> bool:
        """Stopped first: a task that has just ended takes nothing with it."""
        for worker in workers():
            with contextlib.suppress(psutil.Error):
                worker.suspend()
                if at_work(worker):
                    worker.kill()
                    return True
                worker.resume()
        return False

    run = start(tag, "run", config, "--root", root, "--json")
    wait_for(lambda: committed() >= 1 and kill_one())
    wait_for(lambda: any(True for _ in Experiment(root, "bundles").events() if _["event"] == "bundle_failed"))
    before = committed()
    wait_for(lambda: committed() > before)
    run.terminate()
    out, err = run.communicate(timeout=60)
    assert run.returncode == 75, out + err
    kept = committed()
    wait_for(lambda: not workers(), 10)
    done = harness("run", config, "--root", root, "--json")
    assert json.loads(done.stdout)["chains_complete"] == 60 and committed() > kept, done.stderr
    clean = tmp_path / "clean"
    run_bundles(config, clean)
    frames = [
        export(open_study(config, (), Store.read(place))[0], Store.read(place)) for place in (root, clean)
    ]
    pd.testing.assert_frame_equal(*frames, check_exact=True)


def test_a_plan_says_which_chains_run_again_from_the_start(make_config: Make, tmp_path: Path) -> None:
    grid, root = {"seed": [0, 1], "regime.synthetic_ratio": [0.5, 1.0]}, tmp_path / "root"
    config = make_config({**BASE, **CASES["gaussian"], "generations": 2}, grid=grid)
    run_bundles(config, root, "seed=0")

    def planned(*sets: str) -> tuple[int, list[str]]:
        options = [word for item in sets for word in ("--set", item)]
        told = harness("plan", config, "--root", root, *options).stdout.splitlines()
        found = json.loads(harness("plan", config, "--root", root, "--json", *options).stdout)
        return found["chains_again"], [line for line in told if line.startswith("bundles ")]

    assert planned() == planned("generations=1") == (0, [])
    said = "in closed form {} in the store up to an earlier generation; {} again from the start"
    longer, few = ("generations=3",), ("generations=3", "regime.synthetic_ratio=0.5")
    assert planned(*longer) == (2, [f"bundles         2 chains {said.format('are', 'they run')}"])
    assert planned(*few) == (1, [f"bundles         1 chain {said.format('is', 'it runs')}"])
