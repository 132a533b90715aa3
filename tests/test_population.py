"""Populations: who reads how much of whom, equal bytes however they are run, and what theory says of them."""

from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from bundled import assert_mean, run_bundles, table
from chains import contents, open_prepared, run_all
from conftest import TEXT, merged
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.grid import expand
from harness.config.load import load_file
from harness.config.schema import Population, Regime
from harness.errors import InputError
from harness.inspection.examples import ExampleRows
from harness.population import Exchange, Rule
from harness.records import writer_of
from harness.reporting import ledger
from harness.reporting.claims import judge
from harness.reporting.populations import population_table
from harness.reporting.theory import expected
from harness.science import cut

REPLACE = {"kind": "replace", "synthetic_ratio": 1.0}
BASE: dict[str, Any] = {
    "experiment": "population",
    "data": {"source": "gaussian", "dim": 1, "num_examples": 60},
    "learner": {"kind": "gaussian"},
    "regime": REPLACE,
    "generations": 4,
    "tracking": {"wandb": "disabled"},
}
MIXED = {
    "members": {
        "a": None,
        "b": {"set": {"learner.estimator": "unbiased"}, "arrives": 1},
        "c": {"set": {"regime.synthetic_ratio": 0.5}, "retires": 3},
    },
    "exchange": "pool",
}
STREAM = {
    "regime": {"kind": "stream", "synthetic_ratio": 0.5},
    "filters": [
        {"kind": "label", "recall": 0.8, "false_positive_rate": 0.1},
        {"kind": "detector", "examples": 10},
    ],
}


def written(folder: Path, config: dict[str, Any], name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("assignment", "name", "member"),
    [
        ("c.set.regime.synthetic_ratio=0.25", "c", {"set": {"regime.synthetic_ratio": 0.25}, "retires": 3}),
        ("a.set.regime.synthetic_ratio=0.25", "a", {"set": {"regime.synthetic_ratio": 0.25}}),
        ("b.2.set.regime.synthetic_ratio=0.25", "b.2", {"set": {"regime.synthetic_ratio": 0.25}}),
        ("b.2.arrives=1", "b.2", {"arrives": 1}),
        (
            "b.set={regime.synthetic_ratio: 0.25}",
            "b",
            {"set": {"regime.synthetic_ratio": 0.25}, "arrives": 1},
        ),
    ],
)
def test_one_setting_of_a_member_may_be_assigned(
    tmp_path: Path, assignment: str, name: str, member: dict[str, Any]
) -> None:
    """As if the file had said so, names with dots too."""
    named = {**MIXED["members"], "b.2": {}}  # type: ignore[dict-item]
    regime = {"kind": "replace", "synthetic_ratio": 0.75, "real_part": "fixed"}

    def cells(members: dict[str, Any], *assignments: str) -> Any:
        population = {"members": members, "exchange": "pool"}
        path = written(tmp_path, {**BASE, "regime": regime, "population": population})
        return expand(load_file(path, assignments)).cells

    assert cells(named, f"population.members.{assignment}") == cells({**named, name: member})


# --- who reads how much of whom -----------------------------------------------------------------------------


@st.composite
def exchanges(draw: Any) -> Exchange:
    size = draw(st.integers(1, 5))
    names = [f"m{place}" for place in range(size)]
    arrives = [0, *(draw(st.integers(0, 2)) for _ in range(size - 1))]
    last = [draw(st.integers(start + 1, 5)) for start in arrives]
    rows: Any = draw(st.sampled_from(["pool", "self", "ring", "matrix"]))
    if rows == "matrix":
        rows = {}
        for reader in names:
            parts = [draw(st.integers(0, 4)) for _ in names]
            parts[names.index(reader)] += 1  # so that somebody is always there
            rows[reader] = {name: part / sum(parts) for name, part in zip(names, parts, strict=True)}
    members = {name: {"arrives": start} for name, start in zip(names, arrives, strict=True)}
    population = Population.model_validate({"members": members, "exchange": rows})
    kind = draw(
        st.sampled_from([REPLACE, {"kind": "accumulate"}, {"kind": "augment", "synthetic_ratio": 0.4}])
    )
    n = draw(st.integers(3, 40))
    regime = Regime.model_validate(kind)
    return Exchange(
        population,
        tuple(
            Rule(*of, regime, n, start, end) for of, start, end in zip(zip(names), arrives, last, strict=True)
        ),
    )


@settings(max_examples=60, deadline=None)
@given(exchanges())
def test_everybody_reads_its_shares_and_nobody_the_same(exchange: Exchange) -> None:
    read: dict[tuple[int, int, int], list[range]] = {}
    for number, rule in enumerate(exchange.rules):
        for generation in range(1, rule.last - rule.arrives + 1):
            made = exchange.recipe(number, generation)
            of_time: dict[int, dict[int, int]] = {}
            for part in made.parts:
                if part.origin < 0:
                    continue
                place, then = writer_of(part.origin)
                writer = number if place is None else made.writers[place]
                time = then + exchange.rules[writer].arrives
                assert exchange.rules[writer].there(time)
                assert time < rule.arrives + generation
                of_time.setdefault(time, {})[writer] = part.count
                if time == rule.arrives + generation - 1:
                    read.setdefault((writer, then, time), []).append(
                        range(part.offset, part.offset + part.count)
                    )
            for time, counts in of_time.items():
                shares = exchange.shares(number, time)
                assert sum(shares) == 1
                total = sum(counts.values())
                for writer, share in enumerate(shares):
                    assert abs(counts.get(writer, 0) - share * total) < 1
            assert made.size == sum(part.count for part in made.parts)
    for slices in read.values():
        assert sorted(place for part in slices for place in part) == list(range(sum(map(len, slices))))


def test_those_who_are_gone_leave_their_shares() -> None:
    population = Population.model_validate(
        {
            "members": {"a": {}, "b": {"retires": 1}, "c": {}},
            "exchange": {"a": {"a": 0.5, "b": 0.3, "c": 0.2}, "b": {"b": 1}, "c": {"a": 1}},
        }
    )
    regime = Regime.model_validate(REPLACE)
    rules = tuple(Rule(name, regime, 7, 0, last) for name, last in (("a", 3), ("b", 1), ("c", 3)))
    exchange = Exchange(population, rules)
    assert exchange.shares(0, 1) == [Fraction(1, 2), Fraction(3, 10), Fraction(1, 5)]
    assert exchange.shares(0, 2) == [Fraction(5, 7), 0, Fraction(2, 7)]
    assert exchange.counts(0, 2, 7) == [5, 0, 2]
    # 7 of (.5, .3, .2) are 3.5, 2.1, 1.4: one more for the largest remainder, which is the first one's
    assert exchange.counts(0, 1, 7) == [4, 2, 1]


# --- keys ---------------------------------------------------------------------------------------------------


def test_alone_a_member_is_a_chain(tmp_path: Path) -> None:
    """One member, or one that reads itself alone, has the keys of the chain without a population."""
    chain, _ = open_prepared(written(tmp_path, {**BASE, "resources": {"bundled": False}}), tmp_path / "root")
    one = {**BASE, "resources": {"bundled": False}, "population": {"members": 1}}
    single, _ = open_prepared(written(tmp_path, one), tmp_path / "root")
    assert single.lineage.nodes.keys() == chain.lineage.nodes.keys()
    filters = [{"kind": "verifier", "score": "log_density", "at_least": -3.0}]  # asks nobody else
    kept, _ = open_prepared(written(tmp_path, {**one, "filters": filters}), tmp_path / "root")
    assert len(kept.lineage.nodes) == len(chain.lineage.nodes)
    both = {**one, "population": {"members": 2, "exchange": "self", "segments": "shared"}}
    two, _ = open_prepared(written(tmp_path, both), tmp_path / "root")
    [first, second] = two.lineage.chains
    assert first.nodes == chain.lineage.chains[0].nodes
    assert not set(second.nodes) & set(first.nodes)
    assert len({first.id, second.id, chain.lineage.chains[0].id}) == 3


def test_who_else_is_there_is_in_no_key_that_does_not_read_it(tmp_path: Path) -> None:
    def nodes(members: dict[str, Any], exchange: Any) -> dict[str, tuple[str, ...]]:
        population = {"members": members, "exchange": exchange, "segments": "shared"}
        config = {**BASE, "resources": {"bundled": False}, "population": population}
        prepared, _ = open_prepared(written(tmp_path, config), tmp_path / "root")
        return {str(prepared.axes(chain)["member"]): chain.nodes for chain in prepared.lineage.chains}

    pair = {"a": {"b": 1}, "b": {"a": 1}}
    two, three = nodes({"a": {}, "b": {}}, pair), nodes({"a": {}, "b": {}, "c": {}}, {**pair, "c": {"c": 1}})
    assert {name: three[name] for name in two} == two
    other = nodes({"a": {}, "b": {"set": {"learner.estimator": "unbiased"}}}, pair)
    assert other["a"][0] == two["a"][0]
    assert not set(other["a"][1:]) & set(two["a"]), "what another one has written is in the key"


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [{"population": MIXED},
     {"population": {"members": 3, "exchange": "ring"}, "regime": {"kind": "accumulate"}},
     {"population": {"members": 2, "exchange": {"teacher": "m2"}}, **STREAM},
     {"population": {"members": 3}, "learner": {"kind": "kde", "bandwidth": 0.5}},
     {"population": {"members": 2, "exchange": {"m1": {"m1": 1}, "m2": {"m1": 0.5, "m2": 0.5}}},
      "data": {"source": "linear", "dim": 5, "num_examples": 14}, "learner": {"kind": "linear_regression"},
      "regime": {"kind": "accumulate_subsample"}, "grid": {"seed": {"from": 0, "count": 8}}}],
    ids=["mixed", "ring", "stream", "kde", "diverging"],
)  # fmt: skip
def test_bundles_equal_single_chains(tmp_path: Path, change: dict[str, Any]) -> None:
    config = {**BASE, "grid": {"seed": [0, 5]}, **change}
    frames = []
    prepared, store = run_bundles(written(tmp_path, config), tmp_path / "bundled")
    frames.append(pd.DataFrame(ledger.rows(prepared, store)))
    config["resources"] = {"bundled": False}
    prepared, store = run_all(written(tmp_path, config), tmp_path / "single")
    frames.append(pd.DataFrame(ledger.rows(prepared, store)))
    whole = sum(len(chain.nodes) for chain in prepared.lineage.chains)
    assert len(frames[0]) == whole if "data" not in change else (frames[0].status == "diverged").any()
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    alone = {**config, "population": config["population"], "grid": {"seed": [5]}}
    prepared, other = run_all(written(tmp_path, alone), tmp_path / "alone")
    assert contents(other, prepared) == contents(store, prepared)


def test_members_fill_in_for_nobody(tmp_path: Path) -> None:
    """What is trained on is what the recipe says: of each corpus its own slice, and everything once."""
    config = {**BASE, "population": {"members": 3}, "resources": {"bundled": False}}
    prepared, store = run_all(written(tmp_path, config), tmp_path / "root")
    rows = pd.concat(table.to_pandas() for table in ExampleRows(prepared, store))
    written_ones = rows[(rows.origin == "synthetic") & (rows.generation == 1)]
    assert sorted(written_ones.groupby("key").size()) == [20, 20, 20]
    assert (written_ones.writer_generation == 0).all()
    assert written_ones.groupby("key").writer.nunique().tolist() == [3, 3, 3]
    assert not written_ones.duplicated(["writer", "example"]).any()
    assert set(written_ones.seed) == {0}, "the grid's seed, by which members are found"


def test_segments_are_equally_large(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", np.random.default_rng(0).normal(size=(15, 1)))
    data = {"source": "array", "path": str(tmp_path / "rows.npy")}
    config = {**BASE, "data": data, "population": {"members": 3}}
    prepared, _ = open_prepared(written(tmp_path, config), tmp_path / "root")
    assert [data.real.num_examples for data in prepared.data] == [4, 4, 4], "13 of 15 rows are for training"
    parts = [tuple(data.real.real(0, 9).values[:, 0]) for data in prepared.data]
    assert [len(part) for part in parts] == [4, 4, 4] and len(set().union(*parts)) == 12
    with pytest.raises(InputError, match="fewer training examples than segments"):
        open_prepared(written(tmp_path, {**config, "population": {"members": 14}}), tmp_path / "root")


def test_slices_stay_where_they_were_when_a_member_refreshes() -> None:
    population = Population.model_validate({"members": {"a": {}, "b": {}}, "exchange": "pool"})
    accumulate = Regime.model_validate({"kind": "accumulate"})
    refreshed = Regime.model_validate({"kind": "accumulate", "refresh": {"at": [2]}})
    rules = (Rule("a", refreshed, 10, 0, 3), Rule("b", accumulate, 10, 0, 3))
    exchange = Exchange(population, rules)
    for place in (0, 1):
        made = exchange.recipe(place, 3)
        read = [part for part in made.parts if part.origin >= 0 and writer_of(part.origin)[1] == 1]
        assert [part.offset for part in read] == [5 * place] * 2
    copy = pickle.loads(pickle.dumps(exchange))
    assert copy == exchange and not copy._known, "what has been worked out stays behind"


def test_disjoint_segments_are_the_first_examples_together(tmp_path: Path) -> None:
    config = merged(TEXT, {"population": {"members": 3}, "data.num_examples": 48})
    prepared, _ = open_prepared(written(tmp_path, config), tmp_path / "root")
    whole, _ = open_prepared(written(tmp_path, merged(TEXT, {"data.num_examples": 48})), tmp_path / "root")
    parts = [data.real.real(0, data.real.num_examples).values for data in prepared.data]
    assert [len(part) for part in parts] == [16, 16, 16]
    assert np.array_equal(np.stack(parts, 1).reshape(48, -1), whole.data[0].real.real(0, 48).values)
    assert len({data.kept.key for data in prepared.data if data.kept}) == 1, "one folder for all"


def test_language_models_of_two_kinds_read_each_other(tmp_path: Path, ranks: Any) -> None:
    population = {
        "members": {"small": {}, "wide": {"set": {"learner.model.width": 32}, "arrives": 1}},
        "exchange": {"small": {"small": 1}, "wide": {"small": 0.5, "wide": 0.5}},
    }
    config = merged(TEXT, {"population": population, "generations": 2})
    prepared, store = run_all(written(tmp_path, config), tmp_path / "root", ranks=ranks)
    rows = pd.DataFrame(ledger.rows(prepared, store))
    assert rows.groupby("member").generation.max().to_dict() == {"small": 2, "wide": 1}
    assert (rows.status == "ok").all()
    [small, wide] = prepared.lineage.chains
    reads = prepared.lineage.nodes[wide.nodes[1]].spec.fit.to_json()["training_set"]["corpora"]
    corpora = [prepared.lineage.nodes[key].corpus for key in (small.nodes[1], wide.nodes[0])]
    assert [(item["corpus"], item["examples"]) for item in reads] == [(key, 24) for key in corpora]
    [branch] = [branch for branch in cut(prepared.lineage) if wide.nodes[1] in branch.nodes]
    assert branch.nodes == (wide.nodes[1],) and small.nodes[1] in branch.needs


# --- theory -------------------------------------------------------------------------------------------------


@pytest.mark.oracle
def test_row_22_means_follow_the_exchange_matrix() -> None:
    """Second moments of three normal models that read each other, after 1, 3 and 6 generations; 3,000 seeds.

    Derivation in docs/oracles.md.
    """
    shares, n = np.array([[0.5, 0.3, 0.2], [0.0, 0.4, 0.6], [1.0, 0.0, 0.0]]), 20
    generations, count = 6, 3000
    names = ["m1", "m2", "m3"]
    rows = {a: {b: float(shares[i, j]) for j, b in enumerate(names)} for i, a in enumerate(names)}
    frame = table(
        {
            "data": {"source": "gaussian", "num_examples": 3 * n},
            "learner": {"kind": "gaussian"},
            "regime": REPLACE,
            "population": {"members": 3, "exchange": rows},
            "generations": generations,
            "grid": {"seed": {"from": 0, "count": count}},
        }
    )
    assert np.allclose(shares * n, np.round(shares * n)), "how many examples come from whom does not vary"
    means, variances = np.eye(3) / n, np.full(3, 1 - 1 / n)  # of generation 0: E m m', E v
    for generation in range(1, generations + 1):
        second = shares @ (np.diag(means) + variances)
        means = shares @ means @ shares.T + np.diag(shares @ variances / n)
        variances = second - np.diag(means)
        if generation in (1, 3, 6):
            now = frame[frame.generation == generation]
            for number, name in enumerate(names):
                own = now[now.member == name]
                assert len(own) == count
                assert_mean(own["gaussian/mean_sq_error"].to_numpy(), means[number, number])
                assert_mean(own["gaussian/trace_ratio"].to_numpy(), variances[number])


# --- claims and reports -------------------------------------------------------------------------------------


def test_claims_are_about_the_population_as_a_whole(tmp_path: Path) -> None:
    """Mean, best and worst of the members that are there in each of its generations."""
    where = {"population.exchange": "pool"}
    statistic = {"metric": "gaussian/kl", "of": "last", "where": where}
    claims = [
        {"text": over, "source": "here", "statistic": {**statistic, "over": over}, "above": 0}
        for over in ("mean", "best", "worst")
    ]
    grid = {"population.exchange": ["pool", "self"], "seed": {"from": 0, "count": 6}}
    config = {**BASE, "population": MIXED, "grid": grid, "claims": claims}
    prepared, store = run_bundles(written(tmp_path, config), tmp_path / "root")
    rows = pd.DataFrame(ledger.rows(prepared, store))
    pool = rows[rows["population.exchange"] == "pool"]
    # in generation 4 of the population, a is in its 4th and b in its 3rd; c has had its last in generation 3
    last = pd.concat(
        [pool[(pool.member == name) & (pool.generation == g)] for name, g in (("a", 4), ("b", 3))]
    )
    by_seed = last.groupby("seed")["gaussian/kl"]
    assert (by_seed.size() == 2).all()
    expected = [by_seed.mean().mean(), by_seed.min().mean(), by_seed.max().mean()]
    assert [found.value for found in judge(prepared, rows.to_dict("records"))] == pytest.approx(expected)
    table = population_table(prepared, store, ledger.rows(prepared, store))
    assert [(line["name"], line["generation"], line["members"]) for line in table["lines"]] == [
        *(("exchange pool", 0, 2), ("exchange pool", 4, 2)),
        *(("exchange self", 0, 2), ("exchange self", 4, 2)),
    ]
    late = {**config, "population": {"members": {"a": {"arrives": 1}, "b": {"arrives": 1}}}, "claims": []}
    prepared, store = run_bundles(written(tmp_path, late), tmp_path / "late")
    table = population_table(prepared, store, ledger.rows(prepared, store))
    assert [(line["generation"], line["members"]) for line in table["lines"][:2]] == [(1, 2), (4, 2)]
    lone = {**claims[0], "statistic": {**statistic, "over": "mean", "where": {**where, "member": "a"}}}
    with pytest.raises(InputError, match="names no population, or not all of its members"):
        open_prepared(written(tmp_path, {**config, "claims": [lone]}), tmp_path / "root")


@pytest.mark.parametrize("exchange", ["self", "pool"])
def test_the_theory_of_a_chain_is_not_that_of_a_population(tmp_path: Path, exchange: str) -> None:
    population = {"members": 2, "exchange": exchange}
    prepared, _ = open_prepared(written(tmp_path, {**BASE, "population": population}), tmp_path / "root")
    found = expected(prepared.study.cells[0].config, "gaussian/trace_ratio")
    assert (found is None) == (exchange == "pool")


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"population": {"members": {"a": {}, "b": {}}, "exchange": {"a": {"a": 0.5}, "b": {"b": 1}}}},
            "config.yaml:18: population.exchange: a: the shares sum to 0.5, expected 1",
        ),
        (
            {
                "population": {
                    "members": {"a": {}, "b": {}},
                    "exchange": {"a": {"a": 2, "b": -1}, "b": {"b": 1}},
                }
            },
            "config.yaml:18: population.exchange: a.a: found 2, a share is from 0 to 1",
        ),
        (
            {"population": {"members": {"a": {}, "b": {}}, "exchange": {"a": {"a": "x"}, "b": {"b": 1}}}},
            "config.yaml:18: population.exchange: a.a: found 'x', a share is from 0 to 1",
        ),
        (
            {"population": {"members": {"a": {}, "b": {}}, "exchange": {"a": 1, "b": {"b": 1}}}},
            "config.yaml:18: population.exchange: a: found 1, expected the shares of those it reads",
        ),
        (
            {
                "population": {
                    "members": {"a": {}, "b": {"set": {"filters": [{"kind": "detector", "examples": 31}]}}}
                },
                "regime": {"kind": "stream", "synthetic_ratio": 0.5},
            },
            "config.yaml:19: filters: detector learns from 31 labelled real",
        ),
        (
            {"population": {"members": {"a": {}, "b": {}}, "exchange": {"a": {"a": 1}}}},
            "exchange: has no row for b; every member needs one",
        ),
        (
            {"population": {"members": {"able": {}, "b": {}}, "exchange": {"teacher": "abel"}}},
            "teacher: found 'abel', which is no member; allowed: able, b (did you mean 'able'?)",
        ),
        (
            {"population": {"members": {"a": {}, "b": {"arrives": 2}}, "exchange": {"teacher": "b"}}},
            "population.exchange: a arrives in generation 0 and reads b, which arrives in generation 2",
        ),
        (
            {"population": {"members": {"a": {}, "b": {"retires": 1}}, "exchange": {"teacher": "b"}}},
            "nobody whom a reads is there in generation 2, and it trains in generation 3",
        ),
        (
            {"population": {"members": {"a": {}, "b": {"arrives": 9}}}},
            "population.members.b.arrives: found 9, the population has generations 0 to 4",
        ),
        (
            {"population": {"members": {"a": {"arrives": 3, "retires": 2}}}},
            "retires: found 2, before it arrives (arrives: 3)",
        ),
        (
            {"population": {"members": {"a": {"set": {"data.num_examples": 9}}}}},
            "population.members.a.set.data.num_examples: data is the same in all members",
        ),
        (
            {"population": {"members": {"a": {"set": {"learner.estimater": "mle"}}}}},
            "unknown field 'learner.estimater' (did you mean 'estimator'?)",
        ),
        (
            {"population": {"members": {"a": {"set": {"learner.estimator": "mean"}}}}},
            "config.yaml:18: learner.estimator: found 'mean'",
        ),
        ({"population": {"members": 100}}, "100 disjoint parts of 60 real examples"),
        ({"population": {"members": 0}}, "population.members"),
        (
            {
                "population": {"members": 2},
                "evaluate": {"ranges": {"left": [-9.0, 0.0]}},
                "claims": [
                    {
                        "text": "x",
                        "source": "y",
                        "above": 0,
                        "statistic": {"metric": "share/left", "of": "last", "over": "best"},
                    }
                ],
            },
            "found best, and it is not known which way share/left worsens; allowed: mean",
        ),
        (
            {"population": {"members": 2}, "regime": {**REPLACE, "source": {"model": {"variance": 2.0}}}},
            "in a population the exchange says who writes",
        ),
        (
            {
                "population": {"members": 2},
                "filters": [{"kind": "verifier", "score": "log_density", "at_least": -3.0}],
            },
            "filters: verifier asks a model to write until enough of it passes, and cannot ask other members",
        ),
    ],
)
def test_one_message(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        open_prepared(written(tmp_path, {**BASE, **change}), tmp_path / "root")
    assert message in str(error.value), str(error.value)
