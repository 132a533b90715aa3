"""Why a generation will run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bundled import run_bundles
from chains import open_prepared, run_all
from conftest import GAUSSIAN, Make, harness

from harness.errors import InputError
from harness.inspection.explain import Explainer, Explanation
from harness.inspection.status import chain_states
from harness.store import Experiment, Leases, Owner, Store
from harness.study import open_study


def explained(config: Path, root: Path, *assignments: str) -> list[Explanation]:
    store = Store.read(root)
    prepared, scratch = open_study(config, assignments, store)
    with scratch:
        return Explainer(prepared, store, prepared.lineage.chains[0]).explain()


def reasons(found: list[Explanation]) -> list[str]:
    return [item.reason for item in found]


def fields(item: Explanation) -> set[tuple[int, str, Any, Any]]:
    return {(d.generation, d.field, d.stored, d.wanted) for d in item.differences}


def test_new_committed_and_longer(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    assert reasons(explained(config, root)) == ["new", "waiting", "waiting", "waiting"]
    run_all(config, root)
    assert reasons(explained(config, root)) == ["committed"] * 4
    longer = explained(config, root, "generations=4")
    assert reasons(longer) == ["committed"] * 4 + ["new"]


@pytest.mark.parametrize(
    ("assignment", "generation", "difference"),
    [
        ("learner.estimator=unbiased", 0, (0, "learner.estimator", "(default)", "unbiased")),
        ("data.num_examples=30", 0, (0, "data.num_examples", 20, 30)),
        ("seed=5", 0, (0, "seed", 0, 5)),
        ("regime.synthetic_ratio=0.5", 1, (1, "regime.synthetic_ratio", 1.0, 0.5)),
    ],
)
def test_the_field_that_changed_is_named(
    make_config: Make, tmp_path: Path, assignment: str, generation: int, difference: tuple[int, str, Any, Any]
) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    run_all(config, root)
    found = explained(config, root, assignment)
    assert reasons(found)[: generation + 2] == ["committed"] * generation + ["changed", "waiting"]
    assert difference in fields(found[generation])
    assert len(fields(found[generation])) <= 2  # the ratio also changes how many examples are read


def test_a_change_in_an_ancestor_is_followed_to_its_field(make_config: Make, tmp_path: Path) -> None:
    """Generation 1 of the other seed has nothing of its own that differs but the seed and what it read."""
    config, root = make_config(GAUSSIAN, generations=1), tmp_path / "root"
    run_all(config, root)
    prepared, store = open_prepared(config, root, "learner.estimator=unbiased")
    run_all(config, root, "learner.estimator=unbiased")
    last = prepared.lineage.chains[0].nodes[-1]
    shutil.rmtree(store.path("evaluations", last))
    shutil.rmtree(store.path("fits", prepared.lineage.nodes[last].fit))
    found = explained(config, root, "learner.estimator=unbiased")
    assert reasons(found) == ["committed", "changed"]
    assert (0, "learner.estimator", "(default)", "unbiased") in fields(found[1])
    assert not any(field.endswith("corpus") for _, field, _, _ in fields(found[1])), (
        "a key says nothing to a person"
    )


def test_damage_missing_pieces_failures_and_work_in_progress(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    prepared, store = run_all(config, root)
    nodes = [prepared.lineage.nodes[key] for key in prepared.lineage.chains[0].nodes]
    store.set_aside(store.path("evaluations", nodes[3].evaluation))
    shutil.rmtree(root / "corpora" / nodes[1].corpus)
    shutil.rmtree(store.path("fits", nodes[0].fit))
    found = explained(config, root)
    assert reasons(found) == ["missing", "missing", "committed", "damaged"]
    assert "damaged/evaluations-" in found[3].detail
    shutil.rmtree(root / "damaged")
    experiment = Experiment(root, "normal")
    branch = nodes[0].evaluation[:12]
    experiment.event("branch_failed", branch=branch, reason="it broke", again=False)
    for item in store.committed("evaluations"):
        shutil.rmtree(store.path("evaluations", item))
    found = explained(config, root)
    assert (
        found[0].reason == "failed"
        and "it broke" in found[0].detail
        and reasons(found)[1:] == ["waiting"] * 3
    )
    (state,) = chain_states(prepared, Store.read(root))
    assert (state.state, state.detail) == ("failed", "it broke")
    owner = Owner(root / "leases" / "owners")
    assert Leases(root, owner).acquire(nodes[0].evaluation)
    assert explained(config, root)[0].reason == "running"
    (state,) = chain_states(prepared, Store.read(root))
    assert state.state == "running" and "process" in state.detail
    owner.close()
    experiment.event("branch_started", branch=branch)
    (state,) = chain_states(prepared, Store.read(root))
    assert state.state == "waiting"
    store.stage(nodes[0].fit)
    (state,) = chain_states(prepared, Store.read(root))
    assert state.state == "interrupted"


def test_generations_that_are_alike_are_one_line(make_config: Make, tmp_path: Path) -> None:
    """What is stored is not called new, though a bundled chain that is to be longer runs as a whole."""
    config, root = make_config(GAUSSIAN, **{"resources.bundled": True}), tmp_path / "root"

    def lines(*options: str) -> list[str]:
        return harness("explain", config, "--root", root, *options).stdout.splitlines()[1:]

    nothing = "generations 0 to 3: new: will run with the whole chain, which no bundle in the store has"
    assert lines() == [nothing]
    run_bundles(config, root)
    (path,) = (root / "bundles").iterdir()
    named = f"bundle {path.name[:12]}"
    assert lines() == [f"generations 0 to 3: committed: is in {named}"]
    again = (
        f"is stored, as {named} has the chain up to generation 3; it will run again: a bundled chain that is "
        "to be longer runs as a whole"
    )
    longer = ("--set", "generations=9")
    assert lines(*longer) == [
        f"generations 0 to 3: committed: {again}",
        "generations 4 to 9: new: will run with the whole chain",
    ]
    found = json.loads(harness("explain", config, "--root", root, *longer, "--json").stdout)["generations"]
    assert [item["reason"] for item in found] == ["committed"] * 4 + ["new"] * 6
    alone = lines("--set", "resources.bundled=false", *longer)
    assert alone == [
        "generation 0: new: will run: nothing like it is stored",
        "generations 1 to 9: waiting: will run one after the other",
    ]


def test_a_chain_is_named_by_how_its_id_begins(make_config: Make, tmp_path: Path) -> None:
    config = make_config(GAUSSIAN, grid={"seed": [0, 1]})
    prepared, scratch = open_study(config, (), Store.read(tmp_path / "none"))
    scratch.cleanup()
    first, second = prepared.lineage.chains
    assert prepared.find_chain(first.id[:6]) == first and prepared.find_chain(second.id) == second
    with pytest.raises(InputError, match=f"no chain 'zz'; allowed: {first.id} .seed 0., {second.id}"):
        prepared.find_chain("zz")
    with pytest.raises(InputError, match="several chains"):
        prepared.find_chain("")
    alone, scratch = open_study(config, ("grid.seed=[1]",), Store.read(tmp_path / "none"))
    scratch.cleanup()
    assert alone.find_chain("") == second, "of one chain no name is needed"


@pytest.mark.slow
def test_the_commands(make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(GAUSSIAN), tmp_path / "root"
    prepared, _ = run_all(config, root)
    chain = prepared.lineage.chains[0].id
    done = harness("explain", config, "--root", root, "--chain", chain, "--json")
    assert [item["reason"] for item in json.loads(done.stdout)["generations"]] == ["committed"] * 4
    other = json.loads(harness("status", config, "--root", root, "--set", "seed=3", "--json").stdout)[
        "chains"
    ][0]["chain"]
    done = harness("explain", config, "--root", root, "--set", "seed=3", "--chain", other)
    assert "generation 0: changed" in done.stdout and "    seed: 0 (stored) -> 3" in done.stdout
    assert harness("explain", config, "--root", root, "--chain", "zz").returncode == 2
    for command in (["doctor", "--store"], ["gc"]):
        done = harness(*command, "--root", tmp_path / "none")
        assert (
            done.returncode == 2
            and "nothing has been run yet at --root" in done.stderr
            and not (tmp_path / "none").exists()
        )
    assert harness("doctor", "--repair", "--root", root).returncode == 2
