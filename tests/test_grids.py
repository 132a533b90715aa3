"""A cell alone is the cell in a grid: equal bytes under equal keys, for random grids, generation by
generation and in bundles."""

from __future__ import annotations

import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from bundled import run_bundles
from chains import Events, open_prepared, run_all
from conftest import TEXT, merged
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from harness.chain import Plan, Site, run_branch
from harness.coordinator.plans import plan_of
from harness.coordinator.session import describe_chains
from harness.learners import Control, SoloRanks, make_learner
from harness.preparation import load_data
from harness.reporting import ledger
from harness.science import Branch, FitSpec, Node
from harness.store import Experiment, Leases, Owner, Store
from harness.store.health import examine
from harness.study import Prepared

BASE: dict[str, Any] = {
    "experiment": "cells",
    "data": {"source": "gaussian", "dim": 1, "num_examples": 12},
    "learner": {"kind": "gaussian"},
    "regime": {"kind": "accumulate"},
    "generations": 4,
    "tracking": {"wandb": "disabled"},
}
TEACHER = {"model": {"variance": 4.0}}
REGIMES: list[dict[str, Any]] = [
    {"kind": "replace", "synthetic_ratio": 1.0},
    {"kind": "replace", "synthetic_ratio": 0.5},
    {"kind": "replace", "synthetic_ratio": 0.5, "real_part": "fixed"},
    {"kind": "replace", "synthetic_ratio": 0.0},
    {"kind": "replace", "synthetic_ratio": 1.0, "refresh": {"at": [2]}},
    {"kind": "replace", "synthetic_ratio": 1.0, "source": TEACHER},
    {"kind": "replace", "synthetic_ratio": 0.5, "source": {"model": {"variance": 9.0}}},
    {"kind": "replace_grown"},
    {"kind": "accumulate"},
    {"kind": "accumulate", "refresh": {"every": 2}},
    {"kind": "accumulate_subsample"},
    {"kind": "augment", "synthetic_ratio": 0.5},
    {"kind": "augment", "synthetic_ratio": 0.5, "source": TEACHER},
    {"kind": "fresh_real", "synthetic_ratio": 0.5},
    {"kind": "stream", "synthetic_ratio": 0.5},
    {"kind": "stream", "synthetic_ratio": 0.25, "history": "all", "anchor": 0.25, "pool": 1.5},
]
STREAM = {"kind": "stream", "synthetic_ratio": 0.5}
DETECTOR = {"kind": "label", "recall": 0.6, "false_positive_rate": 0.1}
VERIFIER = {"kind": "verifier", "score": "log_density", "at_least": -3.0, "false_accept": 0.1}
FILTERS: list[list[dict[str, Any]]] = [[], [DETECTOR], [VERIFIER], [VERIFIER, DETECTOR]]
Cell = dict[str, Any]
"""Settings by dotted name; the regime is always one of them."""
CELLS = st.fixed_dictionaries(
    {"regime": st.sampled_from(REGIMES)},
    optional={
        "filters": st.sampled_from(FILTERS),
        "evaluate.examples": st.sampled_from([12, 6]),
        "evaluate.ranges": st.just({"low": [-1.0, 0.0]}),
        "data.num_examples": st.sampled_from([10, 12]),
        "data.variance": st.sampled_from([1.0, 2.0]),
        "learner": st.sampled_from(
            [
                {"kind": "gaussian", "estimator": "unbiased"},
                {"kind": "gaussian", "init": "previous", "merge": -0.2},
                {"kind": "gaussian", "synthetic_weight": 0.5},
                {"kind": "kde", "bandwidth": 0.5},
                {"kind": "mixture", "components": 2, "covariance": "diag"},
            ]
        ),
        "retention.weights": st.sampled_from(["all", "none"]),
        "generations": st.sampled_from([2, 4]),
    },
)


def grid_of(cells: list[Cell], seeds: list[int], base: dict[str, Any] = BASE) -> dict[str, Any]:
    """A grid of exactly these cells: the axis is the regime, and overrides give each the rest."""
    rest = [
        ({"regime": cell["regime"]}, {name: cell[name] for name in cell if name != "regime"})
        for cell in cells
    ]
    overrides = [{"when": when, "set": changes} for when, changes in rest if changes]
    return {
        **base,
        "grid": {"regime": [cell["regime"] for cell in cells], "seed": seeds},
        "overrides": overrides,
    }


def alone(cell: Cell, seed: int) -> dict[str, Any]:
    return merged(BASE, {**cell, "seed": seed})


def written(folder: Path, name: str, config: dict[str, Any], bundled: bool) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**config, "resources": {"bundled": bundled}}))
    return path


def export(prepared: Any, store: Any) -> pd.DataFrame:
    return pd.DataFrame(ledger.rows(prepared, store)).drop(columns=["regime"], errors="ignore")


def sorted_rows(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(["chain", "generation"], ignore_index=True)


def branch_of(nodes: Any, keys: tuple[str, ...]) -> Branch:
    return Branch(keys[0][:12], keys, frozenset(nodes[keys[0]].dependencies), 0.0)


class Forged(FitSpec):
    """A fit that says one thing and is another, as was possible when keys and work came from two objects."""

    __slots__ = ()

    def __post_init__(self) -> None:
        pass

    def to_json(self) -> dict[str, Any]:
        return SAID[self.key]


SAID: dict[str, dict[str, Any]] = {}


def without_filters(node: Node) -> Node:
    """A generation under its key, but with the filters of another cell, which has none."""
    right = node.spec.fit
    wrong = Forged(
        **{item.name: getattr(right, item.name) for item in fields(right) if item.init} | {"filters": ()}
    )
    object.__setattr__(wrong, "key", right.key)
    SAID[right.key] = right.to_json()
    return replace(node, spec=replace(node.spec, corpus=replace(node.spec.corpus, fit=wrong)))


def run_one(plan: Plan, prepared: Prepared, store: Store, leases: Leases, experiment: Experiment) -> None:
    """One branch in this process, its events in the experiment's folder."""
    spec = plan.nodes[plan.order[0]].spec.fit
    data = load_data(spec.data, store)
    learner = make_learner(spec.learner.section.kind, data, SoloRanks(), plan.execution)
    observer = Events(lambda kind, fields: kind.startswith("progress") or experiment.event(kind, **fields))
    assert (
        run_branch(plan, Site(learner, store, data, SoloRanks(), observer, leases, Control())).status == "ok"
    )


def assert_equal_where_both(store: Store, prepared: Prepared, other: Store, alone: Prepared) -> None:
    """Equal bytes under equal keys; a corpus may be longer where another cell reads more of it."""
    shared = alone.lineage.nodes.keys() & prepared.lineage.nodes.keys()
    assert shared
    for key in shared:
        for name in ("record.json", "continuations.json", "arrays.safetensors"):
            assert read(store, key, name) == read(other, key, name)
    for corpus in {alone.lineage.nodes[key].corpus for key in shared}:
        counts = store.corpora.count(corpus), other.corpora.count(corpus)
        if counts == (0, 0):  # of a generation that has diverged
            continue
        count = min(counts)
        assert count
        one, two = store.corpora.load(corpus, count), other.corpora.load(corpus, count)
        assert one.values.tobytes() == two.values.tobytes() and one.lengths.tolist() == two.lengths.tolist()


def read(store: Store, key: str, name: str) -> bytes:
    return (store.path("evaluations", key) / name).read_bytes()


@pytest.mark.slow
@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(CELLS, min_size=2, max_size=3, unique_by=lambda cell: str(cell["regime"])),
    st.sampled_from([[0], [3, 1]]),
)
@example(
    [
        {"regime": {"kind": "replace", "synthetic_ratio": 1.0}},
        {"regime": {"kind": "accumulate"}, "filters": [DETECTOR]},
        {"regime": {"kind": "replace", "synthetic_ratio": 0.5}},
    ],
    [0],
)
@example(
    [
        {"regime": {"kind": "accumulate", "refresh": {"every": 2}}, "filters": [DETECTOR]},
        {
            "regime": {"kind": "replace", "synthetic_ratio": 0.5, "refresh": {"every": 2}},
            "learner": {"kind": "kde"},
        },
    ],
    [0],
)
@example(
    [
        {"regime": STREAM, "filters": [VERIFIER, {"kind": "detector", "examples": 10}]},
        {"regime": {**STREAM, "select": "random"}, "filters": [DETECTOR]},
        {"regime": {**STREAM, "select": "oracle"}, "filters": [{"kind": "random", "keep": 0.5}]},
    ],
    [0],
)
def test_a_cell_alone_is_the_cell_in_the_grid(cells: list[Cell], seeds: list[int]) -> None:
    """Generation by generation, and in bundles with cells and seeds the other way round."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        grid, bundles = grid_of(cells, seeds), folder / "bundles"
        prepared, store = run_all(written(folder, "grid", grid, False), folder / "steps")
        rows = export(prepared, store)
        turned = written(folder, "bundles", grid_of(cells[::-1], seeds[::-1]), True)
        in_bundles = export(*run_bundles(turned, bundles))
        pd.testing.assert_frame_equal(*map(sorted_rows, (in_bundles[rows.columns], rows)), check_exact=True)
        for number, (cell, seed) in enumerate((cell, seed) for cell in cells for seed in seeds):
            own, own_store = run_all(
                written(folder, f"{number}", alone(cell, seed), False), folder / f"own{number}"
            )
            assert_equal_where_both(store, prepared, own_store, own)
            [chain] = own.lineage.chains
            mine = export(own, own_store)
            same = rows[rows.chain == chain.id].reset_index(drop=True)[mine.columns]
            pd.testing.assert_frame_equal(mine, same, check_exact=True)
            single = written(folder, f"single{number}", alone(cell, seed), True)
            in_bundle = export(*run_bundles(single, folder / f"single{number}"))
            pd.testing.assert_frame_equal(in_bundle[mine.columns], mine, check_exact=True)


@pytest.mark.slow
@settings(max_examples=5, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    st.lists(CELLS, min_size=4, max_size=4, unique_by=lambda cell: str(cell["regime"])),
    st.sampled_from([{}, {"generation": 0}, {"generation": 2}]),
    st.booleans(),
)
def test_a_reader_with_its_writer_alone(cells: list[Cell], which: dict[str, int], bundled: bool) -> None:
    """What a cell reads of another one depends on these two, whatever else is in the grid, and where."""
    alike = ("data.num_examples", "data.variance", "generations", "retention.weights")
    writer, reader, *others = [{name: cell[name] for name in cell if name not in alike} for cell in cells]
    source = {"cell": {"mitigation": "writer"}, **which}
    reader["regime"] = {"kind": "replace", "synthetic_ratio": 0.5, "source": source}
    pair = {"writer": writer, "reader": reader}
    all_cells = {"one": others[0], "reader": reader, "other": others[1], "writer": writer}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        two = {**BASE, "mitigations": pair, "grid": {"seed": [3, 1]}}
        four = {**BASE, "mitigations": all_cells, "grid": {"seed": [1, 3]}}
        [mine, all_] = [
            sorted_rows(export(*run(written(folder, name, grid, bundled), folder / f"{name}s")))
            for run in [run_bundles if bundled else run_all]
            for name, grid in (("two", two), ("four", four))
        ]
        same = all_[all_.chain.isin(mine.chain)].reset_index(drop=True)[mine.columns]
        assert len(mine.chain.unique()) == 4
        pd.testing.assert_frame_equal(mine, same, check_exact=True)


@pytest.mark.slow
def test_a_language_models_cell_alone_is_the_cell_in_the_grid(ranks: Any, tmp_path: Path) -> None:
    """Of cells that differ in how they sample, evaluate, filter and go on, and in who writes for them."""
    (tmp_path / "web.txt").write_text(
        "\n\n".join(f"Entry {i} says {i * 7} and then {i}." for i in range(900))
    )
    fixed = {"corpus": str(tmp_path / "web.txt")}
    cells: list[Cell] = [
        {"regime": {"kind": "replace", "synthetic_ratio": 1.0}, "evaluate.examples": 24},
        {"regime": {"kind": "replace", "synthetic_ratio": 0.5}, "learner.sample.temperature": 0.7},
        {"regime": {"kind": "replace", "synthetic_ratio": 1.0, "source": fixed}, "evaluate.prompts": 1},
        {"regime": {"kind": "augment", "synthetic_ratio": 0.5}, "learner.later": {"synthetic_weight": 0.5}},
        {"regime": {"kind": "accumulate"}, "filters": [{"kind": "deduplicate"}]},
        {"regime": {"kind": "replace_grown"}, "learner.init": "previous", "retention.weights": "all"},
    ]
    base = {**merged(TEXT, {"generations": 1, "data.num_examples": 48}), "regime": {"kind": "accumulate"}}
    config = tmp_path / "grid.yaml"
    config.write_text(yaml.safe_dump(grid_of(cells, [3, 1], base)))
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    rows = export(prepared, store)
    for number, cell in enumerate(cells):
        config = tmp_path / f"{number}.yaml"
        config.write_text(yaml.safe_dump(merged(base, {**cell, "seed": (3, 1)[number % 2]})))
        own, own_store = run_all(config, tmp_path / f"own{number}", ranks=ranks)
        assert_equal_where_both(store, prepared, own_store, own)
        [chain] = own.lineage.chains
        mine = export(own, own_store)
        same = rows[rows.chain == chain.id].reset_index(drop=True)[mine.columns]
        pd.testing.assert_frame_equal(mine, same, check_exact=True)


def test_what_a_branch_of_another_cell_computed_is_set_aside(tmp_path: Path) -> None:
    """As earlier versions did: one branch runs a shared generation and goes on into another cell, with the
    first cell's filters."""
    cells: list[Cell] = [
        {"regime": {"kind": "replace", "synthetic_ratio": 1.0}},
        {"regime": {"kind": "accumulate"}, "filters": [DETECTOR]},
    ]
    grid = written(tmp_path, "grid", grid_of(cells, [0, 1]), False)
    prepared, store = open_prepared(grid, tmp_path / "root")
    nodes = prepared.lineage.nodes
    experiment = Experiment(store.root, "cells")
    experiment.begin({}, describe_chains(prepared))
    owner = Owner(store.root / "leases" / "owners")
    try:
        for plain, filtered in zip(prepared.lineage.chains[:2], prepared.lineage.chains[2:], strict=True):
            mixed = replace(plan_of(prepared, branch_of(nodes, plain.nodes)), order=filtered.nodes)
            unfiltered = {key: without_filters(node) for key, node in nodes.items()}
            mixed = replace(mixed, nodes=unfiltered, examples=prepared.lineage.examples)
            rest = plan_of(prepared, branch_of(nodes, plain.nodes[1:]))
            for plan in (mixed, rest):
                experiment.event(
                    "branch_started", branch=plan.branch, gang=1, attempt=1, generations=len(plan.order)
                )
                run_one(plan, prepared, store, Leases(store.root, owner), experiment)
    finally:
        owner.close()
    wrong = export(prepared, store)
    found = [item for item in examine(store, Leases(store.root, None)) if item.severity == "damage"]
    generations = [node for chain in prepared.lineage.chains[2:] for node in chain.nodes[1:]]
    expected = {f"fits/{nodes[key].fit}" for key in generations} | {
        f"evaluations/{key}" for key in generations
    }
    assert {item.where for item in found} == expected | {
        f"corpora/{nodes[key].corpus}" for key in generations
    }
    list(examine(store, Leases(store.root, None), repair=True))
    run_all(grid, store.root)
    right, other = export(prepared, Store(store.root)), run_all(grid, tmp_path / "other")
    pd.testing.assert_frame_equal(right, export(*other), check_exact=True)
    assert not wrong.equals(right), "the fault changed nothing, so this test shows nothing"


def test_one_more_experiment_without_events_accuses_nobody(tmp_path: Path) -> None:
    cells: list[Cell] = [
        {"regime": {"kind": "replace", "synthetic_ratio": 1.0}},
        {"regime": {"kind": "accumulate"}, "filters": [DETECTOR]},
    ]
    prepared, store = run_all(written(tmp_path, "grid", grid_of(cells, [0]), False), tmp_path / "root")
    Experiment(store.root, "cells").begin({}, describe_chains(prepared))
    assert not [item for item in examine(store, Leases(store.root, None)) if item.severity == "damage"]
