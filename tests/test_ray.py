"""Grids on a real Ray with real DeepSpeed gangs."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chains import contents, open_prepared
from conftest import GAUSSIAN, IMAGES, TEXT, Make, harness
from group import run_ranks
from processes import events, result

from harness.coordinator import shares
from harness.errors import GangError, InputError
from harness.store import Store
from harness.study import open_study

pytestmark = pytest.mark.ray


def test_a_grid_computes_what_the_plan_says_and_never_twice(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    root = tmp_path / "root"
    grid = {"regime.synthetic_ratio": [0.5, 1.0], "generations": [1, 3], "seed": [0, 1]}
    config = make_config(IMAGES, grid=grid)
    planned = json.loads(harness("plan", config, "--root", root, "--json").stdout)
    assert (planned["cells"], planned["chains"], planned["generations_requested"]) == (4, 8, 24)
    assert (planned["generations_unique"], planned["generations_stored"]) == (14, 0)
    summary, _, _ = run_study(config, root)
    assert (summary.generations_computed, summary.generations_reused) == (14, 0)
    assert (summary.chains_complete, summary.chains_failed, summary.exit_code) == (8, 0, 0)
    assert len(events(root, "vae", "committed")) == len(events(root, "vae", "fit_committed")) == 14
    shutil.rmtree(root / "experiments" / "vae")
    (root / "experiments" / "vae").mkdir()  # as another run, or a submission, leaves it for a moment
    again, _, _ = run_study(config, root)
    assert (again.generations_computed, again.generations_reused) == (0, 14)
    assert len(json.loads((root / "experiments" / "vae" / "chains.json").read_text())) == 8, (
        "or gc would free what it needs"
    )
    more = make_config(IMAGES, "more.yaml", grid=grid | {"seed": [0, 1, 2]})
    assert json.loads(harness("plan", more, "--root", root, "--json").stdout)["generations_stored"] == 14
    third, _, _ = run_study(more, root)
    assert (third.generations_computed, third.generations_reused) == (7, 14)
    assert [event["seed"] for event in events(root, "vae", "committed")] == [2] * 7
    rows = json.loads(harness("export", config, "--root", root, "--format", "json").stdout)
    assert len(rows) == 24 and {row["status"] for row in rows} == {"ok"}
    assert all(value is not None for row in rows for name, value in row.items() if name != "parent_key")
    weights = sorted(path.parent.name for path in (root / "fits").glob("*/model.safetensors"))
    kept = json.loads((root / "experiments" / "vae" / "keep.json").read_text())
    assert weights == sorted(kept), (
        "generation 0 and the last generations keep their weights, the others have gone"
    )


STAGES = """
import chains
from chains import open_prepared, run_all
from harness.store import Leases, Owner

listed = found["listed"] = []
run_branch, running = chains.run_branch, False

def note(event, arguments):
    if running and event in ("os.listdir", "os.scandir"):
        listed.append(str(arguments[0]))

def watched(*arguments):
    global running
    running = True
    try:
        return run_branch(*arguments)
    finally:
        running = False

sys.addaudithook(note)
chains.run_branch = watched
for config in map(Path, arguments["configs"]):
    root = config.with_suffix("")
    if rank == 0:
        open_prepared(config, root)
    ranks.barrier()
    owner = Owner(root / "leases" / "owners") if rank == 0 else None
    run_all(config, root, ranks=ranks, leases=Leases(root, owner))
    if owner is not None:
        owner.close()
"""
"""Two ranks for all of the studies, for each rank takes seconds to start."""


def test_zero_stages_agree_and_a_rerun_is_equal_to_the_bit(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    """Stages sum the same gradients in other orders and buckets: in fp32 the losses of 12 steps agree to
    1e-4, not to the bit. The rerun is on Ray, in ranks that have done nothing before.

    Which files there are is rank 0's to say: on a file server another machine's list may be older.
    """
    configs = []
    for stage in (0, 1, 2, 3):
        changes = {
            "resources": {"ranks": 2, "zero_stage": stage, "sample_batch": 32},
            "learner.train.precision": "fp32",
            "generations": 1,
        }
        configs.append(make_config(TEXT, f"{stage}.yaml", **changes))
    first, second = run_ranks(STAGES, 2, configs=[str(config) for config in configs])
    stores = tuple(str(config.with_suffix("")) for config in configs)
    seen, seen_by_another = (
        [path for path in rank["listed"] if path.startswith(stores)] for rank in (first, second)
    )
    assert any("/corpora/" in path for path in seen)
    # transformers looks into the folder of a fit for files of a kind that we do not write
    assert not [path for path in seen_by_another if "/fits/" not in path]
    curves = {}
    for stage, config in enumerate(configs):
        root = tmp_path / str(stage)
        prepared, scratch = open_study(config, (), Store.read(root))
        scratch.cleanup()
        fit = next(iter(prepared.lineage.nodes.values())).fit
        curves[stage] = Store.read(root).json("fits", fit, "fit.json")["log"]["train_loss"]
    for stage in (1, 2, 3):
        assert curves[stage] == pytest.approx(curves[0], rel=1e-4)
    rerun = tmp_path / "rerun"
    summary, _, lines = run_study(configs[3], rerun)
    assert summary.exit_code == 0, lines
    assert result(configs[3], rerun) == result(configs[3], tmp_path / "3")


def test_the_best_weights_of_two_ranks_under_zero_3(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    train = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "weights": "best"}
    changes = {
        "learner.train": train,
        "resources": {"ranks": 2, "zero_stage": 3, "sample_batch": 32},
        "generations": 1,
    }
    config = make_config(TEXT, **changes)
    summary, _, lines = run_study(config, tmp_path / "root")
    assert summary.exit_code == 0, lines
    for path in (tmp_path / "root" / "fits").glob("*/fit.json"):
        assert len(json.loads(path.read_text())["log"]["validation"]) == 3


def test_filters_find_the_weights_that_they_need(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_config(TEXT, filters=[{"kind": "repetition", "n": 1, "max_share": 0.07}])
    summary, _, lines = run_study(config, tmp_path / "root")
    assert summary.exit_code == 0, lines
    assert len(events(tmp_path / "root", "text", "sample_started")) > 3, (
        "the filter rejects some, and more is sampled"
    )
    assert not events(tmp_path / "root", "text", "weights_restored")
    assert len(events(tmp_path / "root", "text", "weights_evicted")) == 1


def test_a_branch_run_second_equals_one_in_a_fresh_gang(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    only_one_gang_fits = {"resources.threads": 3, "generations": 1}
    both = make_config(TEXT, "both.yaml", grid={"seed": [0, 1]}, **only_one_gang_fits)
    run_study(both, tmp_path / "both")
    started = events(tmp_path / "both", "text", "branch_started")
    assert len(started) == 2 and len({event["gang"] for event in started}) == 1
    alone = {}
    for seed in (0, 1):
        config = make_config(TEXT, f"{seed}.yaml", seed=seed, **only_one_gang_fits)
        run_study(config, tmp_path / str(seed))
        alone |= result(config, tmp_path / str(seed))
    assert result(both, tmp_path / "both") == alone


def test_a_branch_in_parts_is_the_branch_at_once(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each generation another branch may come first; nothing that is computed knows of it."""
    config = make_config(IMAGES, grid={"regime.synthetic_ratio": [0.5, 1.0], "generations": [1, 2]})
    found = {}
    for name, seconds in (("at once", 1e9), ("in parts", 0.0)):
        monkeypatch.setattr(shares, "TURN_S", seconds)
        root = tmp_path / name
        summary, _, _ = run_study(config, root)
        assert (summary.generations_computed, summary.chains_complete, summary.exit_code) == (5, 4, 0)
        begun = [event["generations"] for event in events(root, "vae", "branch_started")]
        assert sum(begun) == 5 and (max(begun) == 1) == (name == "in parts")
        prepared, store = open_prepared(config, root)
        found[name] = contents(store, prepared)
    assert found["in parts"] == found["at once"]


def test_a_chain_that_fails_or_diverges_is_told(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    rejects_all = [{"kind": "repetition", "n": 1, "max_share": 0.0}]
    grid = {"filters": [[], rejects_all], "learner.train.learning_rate": [3e-3, 1e30]}
    config = make_config(
        TEXT, generations=1, grid=grid, **{"learner.train.max_grad_norm": None, "data.block_size": 47}
    )
    root = tmp_path / "root"
    for _ in range(2):
        summary, _, lines = run_study(config, root)
        assert (summary.chains_complete, summary.chains_failed, summary.exit_code) == (3, 1, 1)
        assert any("filters reject nearly everything" in line and ".log" in line for line in lines)
    assert summary.generations_computed == 0
    failed = {event["reason"].split(":")[0] for event in events(root, "text", "branch_failed")}
    assert failed == {"filters"}, "nothing is tried behind a diverged generation"
    states = json.loads(harness("status", config, "--root", root, "--json").stdout)["chains"]
    assert sorted(state["state"] for state in states) == ["complete", "diverged", "diverged", "failed"]
    assert "filters" in next(state["detail"] for state in states if state["state"] == "failed")
    rows = json.loads(harness("export", config, "--root", root, "--format", "json").stdout)
    diverged = [row for row in rows if row["status"] == "diverged"]
    assert len(diverged) == 2 and all(row["test/nll"] is None for row in diverged)


def test_a_cell_that_fails_does_not_stop_those_that_share_its_fit(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    """The first cell fits generation 0 of both, and its texts, all alike, are refused."""
    grid = {"learner.sample.top_k": [1, 0]}
    config = make_config(TEXT, generations=1, grid=grid, **{"evaluate.max_duplicate_share": 0.9})
    summary, _, lines = run_study(config, tmp_path / "root")
    assert (summary.chains_complete, summary.chains_failed, summary.generations_computed) == (1, 1, 2), lines
    assert "max_duplicate_share" in summary.failures[0][1] and len(summary.failures) == 1


def test_a_fit_that_fails_is_tried_for_one_of_those_that_share_it(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    rejects_all = [{"kind": "repetition", "n": 1, "max_share": 0.0}]
    changes = {"filters": rejects_all, "data.block_size": 47}  # a longer text has some word twice
    config = make_config(TEXT, generations=1, grid={"evaluate.examples": [32, 64]}, **changes)
    summary, _, lines = run_study(config, tmp_path / "root")
    assert (summary.chains_complete, summary.chains_failed, summary.generations_computed) == (0, 2, 2), lines
    assert len(events(tmp_path / "root", "text", "branch_failed")) == 1


def test_a_cell_that_shares_a_diverged_fit_diverges_too(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    train = {"epochs": 1, "batch_size": 8, "learning_rate": 1e30, "max_grad_norm": None}
    grid = {"learner.sample.temperature": [1.0, 0.8]}
    config, root = make_config(TEXT, grid=grid, **{"learner.train": train}), tmp_path / "root"
    summary, _, lines = run_study(config, root)
    assert (summary.chains_complete, summary.exit_code) == (2, 0), lines
    assert len(events(root, "text", "fit_started")) == 1 and len(events(root, "text", "committed")) == 2
    assert run_study(config, root)[0].exit_code == 0


def test_sizes_with_other_rank_counts_are_packed_in_one_grid(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    overrides = [{"when": {"learner.model.width": 32}, "set": {"resources.ranks": 2}}]
    config = make_config(
        TEXT, generations=1, grid={"learner.model.width": [16, 32], "seed": [0, 1]}, overrides=overrides
    )
    summary, _, lines = run_study(config, tmp_path / "root")
    assert (summary.chains_complete, summary.generations_computed) == (4, 8), lines
    sizes = [
        json.loads(path.read_text())["world_size"]
        for path in (tmp_path / "root" / "evaluations").glob("*/provenance.json")
    ]
    assert sorted(sizes) == [1, 1, 1, 1, 2, 2, 2, 2]


def test_gangs_that_cannot_fit_are_refused_first(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_config(TEXT, **{"resources.ranks": 8})
    line = next(n for n, text in enumerate(config.read_text().splitlines(), 1) if "ranks:" in text)
    with pytest.raises(InputError, match=f":{line}: resources.ranks: this grid asks for 8 CPUs a gang"):
        run_study(config, tmp_path / "root")
    assert not (tmp_path / "root").exists()
    done = harness("run", config, "--root", tmp_path / "local")
    assert (
        done.returncode == 2 and "asks for 8 CPUs a gang" in done.stderr and not (tmp_path / "local").exists()
    )
    done = harness("plan", config, "--nodes", 2, "--gpus-per-node", 2)
    assert done.returncode == 2 and "asks for 8 GPUs a gang" in done.stderr
    assert (
        harness("run", make_config(TEXT), "--root", tmp_path / "b", "--address", "127.0.0.1:1").returncode
        == 2
    )
    assert not (tmp_path / "b").exists()


@pytest.mark.fast
def test_cheap_learners_run_without_a_process_group(
    make_config: Make, run_study: Callable[..., Any], tmp_path: Path
) -> None:
    config = make_config(GAUSSIAN, grid={"seed": {"from": 0, "count": 5}})
    summary, _, _ = run_study(config, tmp_path / "root")
    assert (summary.chains_complete, summary.generations_computed) == (5, 20)


def test_chains_that_memory_cannot_hold_together_wait(
    run_study: Callable[..., Any], make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processors are free, and each chain takes more than half of the memory: one after the other."""
    import ray

    found = {}
    for name, share in (("held", 0.6), ("free", 0.0)):

        def each(*_: Any, share: float = share) -> int:
            return int(share * ray.nodes()[0]["Resources"]["memory"])

        monkeypatch.setattr("harness.coordinator.shapes.rank_bytes", each)
        config = make_config(GAUSSIAN, f"{name}.yaml", experiment=name, grid={"seed": [0, 1, 2]})
        summary, _, lines = run_study(config, tmp_path / name)
        assert summary.chains_complete == 3
        gangs = {event["gang"] for event in events(tmp_path / name, name, "branch_started")}
        found[name] = (len(gangs), [line for line in lines if "gangs at a time: 1, where" in line])
    assert found == {"held": (1, found["held"][1]), "free": (3, [])} and len(found["held"][1]) == 1


def test_a_gang_retires_when_its_memory_has_grown_too_far() -> None:
    from harness.coordinator.gang import MEMORY_GROWTH_BYTES, GangHandle, Outcome

    gang = GangHandle.__new__(GangHandle)
    gang.first_rss = None
    sizes = [10**9, 10**9 + MEMORY_GROWTH_BYTES, 10**9 + MEMORY_GROWTH_BYTES + 1]
    assert [
        gang.outgrown([Outcome("ok", rss_bytes=10**9), Outcome("ok", rss_bytes=size)]) for size in sizes
    ] == [False, False, True]


def test_one_model_learns_from_what_another_writes(
    make_config: Make, tmp_path: Path, run_study: Callable[..., Any]
) -> None:
    """``source: {cell: ...}`` between two sizes: the reader's training sets are the writer's corpora, and it
    writes its own too."""
    reads = {
        "when": {"learner.model.width": 32},
        "set": {"regime.source": {"cell": {"learner.model.width": 16}}},
    }
    config, root = (
        make_config(TEXT, grid={"learner.model.width": [16, 32]}, overrides=[reads]),
        tmp_path / "root",
    )
    summary, _, _ = run_study(config, root)
    assert summary.exit_code == 0 and summary.chains_complete == 2
    prepared, store = open_prepared(config, root)
    writer, reader = (
        [prepared.lineage.nodes[key] for key in chain.nodes]
        for chain in sorted(prepared.lineage.chains, key=lambda c: c.cell)
    )
    for generation in (1, 2):
        spec = store.json("fits", reader[generation].fit, "spec.json")
        assert [part["corpus"] for part in spec["training_set"]["corpora"]] == [writer[generation - 1].corpus]
        assert spec["learner"]["model"]["width"] == 32
    assert {node.corpus for node in reader} & {node.corpus for node in writer} == set()
    again, _, _ = run_study(config, root)
    assert again.generations_computed == 0


def test_a_run_that_is_not_needed_ends(
    make_config: Make, tmp_path: Path, run_study: Callable[..., Any]
) -> None:
    """Somebody else computes the only branch that is left: with a limit the run ends, and says why; a fork to
    come keeps it."""
    from harness.coordinator.coordinator import IDLE
    from harness.store import Leases, Owner, Store
    from harness.study import open_study

    root = tmp_path / "root"
    one = make_config(GAUSSIAN, "one.yaml")
    run_study(one, root, "generations=0")
    prepared, scratch = open_study(one, (), Store.read(root))
    scratch.cleanup()
    owner = Owner(root / "leases" / "owners", 60.0).start()
    leases = Leases(root, owner)
    try:
        lease = leases.acquire(prepared.lineage.chains[0].nodes[1])
        assert lease is not None
        summary, _, _ = run_study(one, root, idle_s=1.0)
        assert (summary.exit_code, summary.reason, summary.generations_computed) == (75, IDLE, 0)
        forked = make_config(
            GAUSSIAN, "forked.yaml", grid={"regime.synthetic_ratio": [0.5, 1.0]}, experiment="forked", seed=3
        )
        prepared, scratch = open_study(forked, (), Store.read(root))
        scratch.cleanup()
        trunk = leases.acquire(prepared.lineage.chains[0].nodes[0])
        assert trunk is not None
        threading.Timer(4.0, lambda: leases.release(trunk, finished=False)).start()
        summary, _, _ = run_study(forked, root, idle_s=1.0)
        assert summary.exit_code == 0, "two branches will come free behind the one that is held"
    finally:
        owner.close()


def test_a_run_that_is_to_stop_does_not_wait_for_its_machines(ray_address: str) -> None:
    from harness.coordinator.cluster import RayPlace, connected
    from harness.stop import Stop

    stop, joined = Stop(), list[str]()
    stop.set()
    with pytest.raises(GangError, match="stopped before all machines"):
        with connected(
            RayPlace(ray_address, nodes=99, wait_s=100),
            lambda reason: None,
            lambda: joined.append("signals"),
            stop,
        ):
            pass
    assert joined == ["signals"]
