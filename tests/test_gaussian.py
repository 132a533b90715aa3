"""The chain generation by generation, with the Gaussian learner: crashes at every boundary, corpora,
damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import Events, contents, open_prepared, run_all
from conftest import GAUSSIAN, Make, harness

from harness.config.schema import Gaussian, Mixture
from harness.learners.analytic.family import Chains
from harness.learners.analytic.gaussian import GaussianFamily
from harness.learners.analytic.mixture import MixtureFamily
from harness.records import REAL


class Crash(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["replace", "accumulate", "replace_grown", "accumulate_subsample", "augment", "fresh_real"]
)
def test_a_chain_crashed_at_any_boundary_has_the_same_bytes(
    make_config: Make, tmp_path: Path, kind: str
) -> None:
    ratio = {"synthetic_ratio": 0.5} if kind in ("replace", "augment", "fresh_real") else {}
    config = make_config(GAUSSIAN, regime={"kind": kind, **ratio}, generations=3)
    clean, store = run_all(config, tmp_path / "clean")
    expected = contents(store, clean)
    observer = Events()
    run_all(config, tmp_path / "count", observer=observer)
    for stop in range(len(observer.seen)):
        heard = Events()

        def crash(event: str, fields: Any, heard: Events = heard, stop: int = stop) -> None:
            if len(heard.seen) == stop + 1:
                raise Crash

        heard.on = crash
        root = tmp_path / f"stop-{stop}"
        with pytest.raises(Crash):
            run_all(config, root, observer=heard)
        prepared, store = run_all(config, root)
        assert contents(store, prepared) == expected


def test_every_example_of_a_fit_is_kept_with_its_origin(make_config: Make, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    prepared, store = run_all(
        make_config(GAUSSIAN, regime={"kind": "accumulate"}, generations=2), tmp_path / "root"
    )
    for generation, key in enumerate(prepared.lineage.chains[0].nodes):
        kept = load_file(store.path("fits", prepared.lineage.nodes[key].fit) / "training_set.safetensors")
        assert sorted(set(kept["origin"].tolist())) == [REAL, *range(generation)]
        assert len(kept["origin"]) == 20 * (generation + 1)


def test_a_corpus_is_extended_by_appending(make_config: Make, tmp_path: Path) -> None:
    small, root = make_config(GAUSSIAN, generations=1), tmp_path / "root"
    prepared, store = run_all(small, root)
    node = prepared.lineage.nodes[prepared.lineage.chains[0].nodes[0]]
    before = store.corpora.load(node.corpus, 20)
    grown = make_config(GAUSSIAN, "grown.yaml", generations=1, regime={"kind": "replace_grown"})
    observer = Events()
    run_all(grown, root, observer=observer)
    after = store.corpora.load(node.corpus, 40)
    assert (after.values[:20] == before.values).all()
    assert [f["start"] for kind, f in observer.seen if kind == "sample_started"] == [20, 0]
    assert [f["generation"] for kind, f in observer.seen if kind == "fit_started"] == [1], (
        "generation 0 is not fitted again"
    )


def test_a_damaged_corpus_and_a_damaged_fit_are_made_again(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, generations=1)
    prepared, store = run_all(config, tmp_path / "root")
    expected = contents(store, prepared)
    first, last = (prepared.lineage.nodes[key] for key in prepared.lineage.chains[0].nodes)
    shard = next((store.root / "corpora" / first.corpus).glob("*.parquet"))
    shard.write_bytes(b"not parquet")
    (store.path("fits", last.fit) / "model.safetensors").write_bytes(b"damaged")
    (store.path("evaluations", last.evaluation) / "record.json").write_text("{}")
    prepared, store = run_all(config, tmp_path / "root")
    assert contents(store, prepared) == expected
    assert len(list((store.root / "damaged").iterdir())) == 3


@pytest.mark.slow
def test_a_record_with_a_changed_digit_is_not_believed(make_config: Make, tmp_path: Path) -> None:
    import json

    config, root = make_config(GAUSSIAN, generations=1), tmp_path / "root"
    prepared, store = run_all(config, root)
    expected = contents(store, prepared)
    path = store.path("evaluations", prepared.lineage.chains[0].nodes[-1]) / "record.json"
    path.write_text(path.read_text().replace("0.", "1.", 1))
    rows = json.loads(harness("export", config, "--root", root, "--format", "json").stdout)
    assert [row["generation"] for row in rows] == [0]
    done = harness("run", config, "--root", root, "--json")
    assert json.loads(done.stdout)["generations_computed"] == 1, done.stderr
    prepared, store = run_all(config, root)
    assert contents(store, prepared) == expected


def test_prepared_twice_is_prepared_once(make_config: Make, tmp_path: Path) -> None:
    first, _ = open_prepared(make_config(GAUSSIAN), tmp_path / "a")
    second, _ = open_prepared(make_config(GAUSSIAN), tmp_path / "b")
    assert list(first.lineage.nodes) == list(second.lineage.nodes)


def test_a_covariance_that_is_none_has_diverged() -> None:
    """Far beyond the fit lies no normal distribution; what is singular is one."""
    family = GaussianFamily(Gaussian(kind="gaussian", init="previous", merge=-1.0), None)
    parent = {"mean": np.zeros((3, 2)), "covariance": np.stack([np.eye(2)] * 3)}
    fitted = np.stack([np.diag([1.5, 1.0]), np.diag([2.0, 1.0]), np.diag([2.5, 1.0])])
    summary = {"count": np.full(3, 10.0), "mean": np.zeros((3, 2)), "scatter": 10 * fitted}
    found = family.fit(summary, Chains((0, 1, 2), 1), parent)
    assert np.allclose(found["covariance"][:2], [np.diag([0.5, 1.0]), np.diag([0.0, 1.0])])
    assert np.isnan(found["covariance"][2]).all()


def test_what_the_model_before_finds_likely_is_not_learned() -> None:
    """The Gaussian leaves out what its definition says, example by example; a mixture of one component leaves
    out the same; where nothing is left the chain has diverged, and only that one."""
    values = np.random.default_rng(0).normal(size=(3, 40, 2)) * [1.0, 3.0]
    values[2] = 0.0
    before = {"mean": np.zeros((3, 2)), "covariance": np.array([[[1.0, 0.5], [0.5, 4.0]]] * 3)}
    inverse = np.linalg.inv(before["covariance"][0])
    section = Gaussian(kind="gaussian", init="previous", truncate=0.6)
    family, chains = GaussianFamily(section, None), Chains((0, 1, 2), 1)  # type: ignore[arg-type]
    parts = [family.summarise(values[:, :25]), family.summarise(values[:, 25:])]
    found = family.fit(family.merge(*parts), chains, before)
    one_component = Mixture(
        kind="mixture", components=1, init="previous", truncate=0.6, regularisation=0.0, tolerance=1e-9
    )
    mixture = MixtureFamily(one_component, None)  # type: ignore[arg-type]
    one = {name + "s": array[:, None] for name, array in before.items()} | {"weights": np.ones((3, 1))}
    same = mixture.fit({"values": values}, chains, one)
    for chain in (0, 1):
        kept = np.array([row for row in values[chain] if np.exp(-0.5 * row @ inverse @ row) <= 0.6])
        assert 0 < len(kept) < 40
        for mean, covariance in (
            (found["mean"][chain], found["covariance"][chain]),
            (same["means"][chain, 0], same["covariances"][chain, 0]),
        ):
            assert np.allclose(mean, kept.mean(axis=0))
            assert np.allclose(covariance, np.cov(kept, rowvar=False, bias=True))
    assert np.isnan(found["covariance"][2]).all() and np.isnan(same["covariances"][2]).all()
    assert np.array_equal(
        family.fit(family.merge(*parts), chains, None)["mean"], family.merge(*parts)["mean"]
    ), "generation 0 has no model before it"
