"""A chain that is interrupted anywhere, and goes on, ends with the bytes of one that was not."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import Events, contents, run_all, stopping
from chats import chat
from conftest import TEXT, Make, installed

from harness.learners.protocol import Control
from harness.store import Experiment, Store, Workplace
from harness.store.experiment import weights_kept

installed("deepspeed")
import torch

from harness.learners.language_model import training
from harness.learners.language_model.checkpoint import load_tree, save_tree

pytestmark = pytest.mark.slow


class Crash(Exception):
    pass


def crash_at(kind: str, count: int, **wanted: Any) -> Events:
    """An observer that plays a crash when an event happens for the ``count``-th time."""
    seen: list[int] = []

    def on(found: str, fields: dict[str, Any]) -> None:
        if found == kind and all(fields.get(name) == value for name, value in wanted.items()):
            seen.append(1)
            if len(seen) == count:
                raise Crash

    return Events(on)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks look up after every step."""
    monkeypatch.setattr(training, "LOOK_S", 0.0)


EVERY_STEP = {"resources.checkpoint_s": 1e-9}
CASES = [
    {"resources.zero_stage": 0},
    {"resources.zero_stage": 1},
    {"resources.zero_stage": 2},
    {"resources.zero_stage": 3},
    {"resources.zero_stage": 0, "learner.train.precision": "fp32"},
    {"resources.zero_stage": 2, "learner.train.precision": "fp32"},
    {"resources.zero_stage": 2, "resources.micro_batch": 2, "learner.model.dropout": 0.2},
    {"resources.zero_stage": 1, "learner.train.weights": "best", "learner.train.epochs": 3},
    {"resources.zero_stage": 3, "learner.train.weights": "best", "learner.train.epochs": 3},
    {"resources.zero_stage": 2, "learner.init": "previous"},
    {},  # no stage asked for: one rank in bf16
    {"resources.micro_batch": 2, "learner.model.dropout": 0.2, "learner.init": "previous"},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", CASES, ids=lambda case: ",".join(f"{k.split('.')[-1]}={v}" for k, v in case.items())
)
def test_a_crashed_fit_goes_on_to_the_same_bytes(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None, changes: dict[str, Any]
) -> None:
    never = make_config(TEXT, "never.yaml", generations=1, **changes)
    prepared, store = run_all(never, tmp_path / "never", ranks=ranks)
    expected = contents(store, prepared)
    config = make_config(TEXT, generations=1, **EVERY_STEP, **changes)
    root = tmp_path / "root"
    for generation, step in ((0, 1), (0, 4), (1, 7)):
        observer = crash_at("checkpointed", 1, generation=generation, step=step)
        with pytest.raises(Crash):
            run_all(config, root, ranks=ranks, observer=observer)
    events = Events()
    prepared, store = run_all(config, root, ranks=ranks, observer=events)
    resumed = [fields for kind, fields in events.seen if kind == "resumed"]
    assert [(fields["generation"], fields["step"]) for fields in resumed] == [(1, 7)]
    assert contents(store, prepared) == expected
    for node in prepared.lineage.nodes.values():
        weights = [
            Store(tmp_path / name).path("fits", node.fit) / "model.safetensors" for name in ("never", "root")
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert store.json("fits", node.fit, "fit.json") == Store(tmp_path / "never").json(
            "fits", node.fit, "fit.json"
        )
    assert not list((root / "work").iterdir()), "nothing is left of the work"


BIASED = {"learner.model.architecture": "opt", "resources.zero_stage": 3, "generations": 1}
"""Its linear layers have biases, which DeepSpeed's own linear layer adds after it has rounded."""


def test_what_a_fit_under_zero_3_has_changed_is_undone(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's linear layer is there in fits alone, in whatever way they end; so what samples and scores
    behind a fit computes what a process does that finds it done."""
    from harness.learners.language_model import engine

    deepspeed = engine.deepspeed
    own, theirs = torch._C._nn.linear, deepspeed.runtime.zero.linear.zero3_linear_wrap
    config, seen = make_config(TEXT, **BIASED), list[tuple[str, Any]]()

    def on(kind: str, fields: dict[str, Any]) -> None:
        seen.append((kind, torch.nn.functional.linear))

    prepared, store = run_all(config, tmp_path / "whole", ranks=ranks, observer=Events(on))
    assert {found for kind, found in seen if kind == "progress fit"} == {theirs}
    assert {found for kind, found in seen if kind != "progress fit"} == {own}
    assert {"fit_committed", "progress sample"} <= {kind for kind, _ in seen}
    for generation, kind in ((0, "progress fit"), (0, "fit_committed"), (1, "fit_committed")):
        with pytest.raises(Crash):
            observer = crash_at(kind, 1, generation=generation)
            run_all(config, tmp_path / "root", ranks=ranks, observer=observer)
        assert torch.nn.functional.linear is own
    stopped = Control()
    run_all(
        config, tmp_path / "stop", ranks=ranks, observer=stopping(stopped, "progress fit"), control=stopped
    )
    assert torch.nn.functional.linear is own
    found, root = run_all(config, tmp_path / "root", ranks=ranks)
    assert contents(root, found) == contents(store, prepared)

    def fails(**given: Any) -> None:
        seen.append(("initialize", torch.nn.functional.linear))
        raise Crash

    monkeypatch.setattr(deepspeed, "initialize", fails)
    with pytest.raises(Crash):
        run_all(config, tmp_path / "fails", ranks=ranks)
    assert seen[-1] == ("initialize", theirs) and torch.nn.functional.linear is own


def test_a_chain_on_chats_goes_on_to_the_same_bytes(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None
) -> None:
    """Prompts that are filled up, completions that a model is asked about: inside fits, between shards, and
    after pieces of an evaluation."""
    judge = {"kind": "judge", "judge": "verdict", "choose": "best", "by": "initial"}
    base = {**chat(tmp_path, answer="result", extract=r"#### (\S+)"), "filters": [judge]}
    changes = {"learner.model.context": 256, "retention.weights": "all"}
    prepared, store = run_all(make_config(base, "never.yaml", **changes), tmp_path / "never", ranks=ranks)
    expected = contents(store, prepared)
    config, root = make_config(base, **changes, **EVERY_STEP), tmp_path / "root"
    for kind, count, wanted in (
        ("checkpointed", 1, {"generation": 0, "step": 2}),
        ("progress sample", 2, {"generation": 0}),
        ("checkpointed", 1, {"generation": 1, "step": 2}),
        ("progress sample", 1, {"generation": 1}),
        ("progress evaluate", 3, {"generation": 1}),
    ):
        with pytest.raises(Crash):
            run_all(config, root, ranks=ranks, observer=crash_at(kind, count, **wanted))
    prepared, store = run_all(config, root, ranks=ranks)
    assert contents(store, prepared) == expected
    for node in prepared.lineage.nodes.values():
        files = [
            Store(tmp_path / name).path("fits", node.fit) / "model.safetensors" for name in ("never", "root")
        ]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert f"{node.corpus}/verdict" in expected
    [first] = [node for node in prepared.lineage.nodes.values() if not node.generation]
    assert len(store.corpora.shards(first.corpus)) == 3


def test_a_run_that_was_asked_to_stop_saves_and_goes_on(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None
) -> None:
    config = make_config(TEXT, generations=1)
    prepared, store = run_all(config, tmp_path / "never", ranks=ranks)
    root, stops = tmp_path / "root", []
    for kind, wanted in (
        ("fit_started", {"generation": 0}),
        ("sample_started", {"generation": 0}),
        ("progress sample", {"generation": 0}),
        ("progress evaluate", {"generation": 0}),
        ("progress fit", {"generation": 1, "done": 10}),
        ("claimed", {"generation": 1}),
    ):
        control = Control()

        def on(
            found: str, fields: dict[str, Any], kind: Any = kind, wanted: Any = wanted, control: Any = control
        ) -> None:
            if found == kind and all(fields.get(name) == value for name, value in wanted.items()):
                control.stop(30)

        events = Events(on)
        run_all(config, root, ranks=ranks, observer=events, control=control)
        assert control.stopping, f"{kind} was never reached"
        names = [found for found, _ in events.seen]
        stops.append(names[-1])
        assert names[-1] == "released" and not events.seen[-1][1]["finished"]
    last = Events()
    run_all(config, root, ranks=ranks, observer=last)
    assert [fields["step"] for kind, fields in last.seen if kind == "resumed"] == [10], (
        "the step of that report"
    )
    assert contents(Store(root), prepared) == contents(store, prepared)


def test_a_stop_without_time_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    control = Control()
    looks = training._Looks(control, 1000.0, 0)
    assert looks.decide(5)[:2] == (False, False)
    looks.has_saved(3.0)
    control.stop(4.0)
    assert looks.decide(6)[:2] == (False, True), "4 seconds are not enough for what took 3"
    control.stop(10.0)
    assert looks.decide(6)[:2] == (True, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"resources.zero_stage": 0}, {"resources.zero_stage": 3}, "flip", "no manifest"]
)
def test_a_checkpoint_that_cannot_be_used_starts_a_fit_anew(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None, change: Any
) -> None:
    config = make_config(TEXT, generations=0, **EVERY_STEP)
    root = tmp_path / "root"
    with pytest.raises(Crash):
        run_all(config, root, ranks=ranks, observer=crash_at("checkpointed", 1, step=5))
    (folder,) = root.glob("work/*/*/checkpoint-*")
    if change == "flip":
        path = next(folder.rglob("*optim_states*"))
        data = bytearray(path.read_bytes())
        data[-3] ^= 1
        path.write_bytes(bytes(data))
    elif change == "no manifest":
        (folder / "checksums.json").unlink()
    else:
        config = make_config(TEXT, generations=0, **EVERY_STEP, **change)
    events = Events()
    prepared, store = run_all(config, root, ranks=ranks, observer=events)
    (refused,) = [fields for kind, fields in events.seen if kind == "checkpoint_refused"]
    assert refused["again_from_step"] == 0
    assert {"flip": "does not match its checksum", "no manifest": "missing"}.get(
        str(change), "ZeRO stage 2"
    ) in refused["reason"]
    assert not [kind for kind, _ in events.seen if kind == "resumed"]
    other = make_config(TEXT, "clean.yaml", generations=0, **(change if isinstance(change, dict) else {}))
    clean, clean_store = run_all(other, tmp_path / "clean", ranks=ranks)
    assert contents(store, prepared) == contents(clean_store, clean)


@pytest.mark.parametrize("asked", [True, False])
def test_a_checkpoint_of_zero_2_is_gone_on_from_without(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None, asked: bool
) -> None:
    """And the other way round: what one rank in bf16 has of its own is stored as DeepSpeed's stage 2 is."""
    stages = [2, None] if asked else [None, 2]
    first, then = (
        make_config(TEXT, f"{stage}.yaml", generations=0, **EVERY_STEP, **{"resources.zero_stage": stage})
        for stage in stages
    )
    expected = [
        contents(store, prepared)
        for prepared, store in (
            run_all(config, tmp_path / config.stem, ranks=ranks) for config in (first, then)
        )
    ]
    assert expected[0] == expected[1]
    root, events = tmp_path / "root", Events()
    with pytest.raises(Crash):
        run_all(first, root, ranks=ranks, observer=crash_at("checkpointed", 1, step=5))
    prepared, store = run_all(then, root, ranks=ranks, observer=events)
    (resumed,) = [fields for kind, fields in events.seen if kind == "resumed"]
    assert resumed["step"] == 5 and "other_class" not in resumed
    assert contents(store, prepared) == expected[0]


def test_another_library_version_goes_on_and_says_so(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None
) -> None:
    config = make_config(TEXT, generations=0, **EVERY_STEP)
    root = tmp_path / "root"
    with pytest.raises(Crash):
        run_all(config, root, ranks=ranks, observer=crash_at("checkpointed", 1, step=5))
    (folder,) = root.glob("work/*/*/checkpoint-*")
    about = json.loads((folder / "about.json").read_text())
    about["versions"]["torch"] = "1.0"
    (folder / "about.json").write_text(json.dumps(about))
    sums = json.loads((folder / "checksums.json").read_text())
    from harness.files import checksum

    sums["about.json"] = checksum(folder / "about.json")
    (folder / "checksums.json").write_text(json.dumps(sums))
    events = Events()
    run_all(config, root, ranks=ranks, observer=events)
    (resumed,) = [fields for kind, fields in events.seen if kind == "resumed"]
    assert resumed["step"] == 5 and resumed["other_class"]["versions"]["torch"] == "1.0"


def test_an_evaluation_goes_on_from_its_pieces(
    make_config: Make, tmp_path: Path, ranks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.learners.language_model import inference as module

    config = make_config(TEXT, generations=1)
    prepared, store = run_all(config, tmp_path / "never", ranks=ranks)
    scored: list[int] = []
    plain = module.score

    def counted(*arguments: Any, **options: Any) -> Any:
        scored.append(len(arguments[1]))
        # Generation 0: test; generation 1: test, corpus under generation 0. Its own scores came with drawing.
        if len(scored) == 3:
            raise Crash
        return plain(*arguments, **options)

    monkeypatch.setattr(module, "score", counted)
    with pytest.raises(Crash):
        run_all(config, tmp_path / "root", ranks=ranks)
    run_all(config, tmp_path / "root", ranks=ranks)
    assert len(scored) == 4, "only the piece that was not done is computed again"
    assert contents(Store(tmp_path / "root"), prepared) == contents(store, prepared)


def test_a_damaged_piece_is_not_believed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    place = Workplace(store.stage("k"))
    place.write_piece("a", np.arange(5.0))
    assert (place.read_piece("a") == np.arange(5.0)).all() and place.read_piece("b") is None
    path = place.folder / "piece-a.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    assert place.read_piece("a") is None
    path.write_bytes(bytes(data[:20]))
    assert place.read_piece("a") is None


def test_a_tree_comes_back_and_what_could_execute_is_refused(tmp_path: Path) -> None:
    import torch

    from harness.errors import LearnerError

    tree = {
        "a": [torch.arange(3), (1, None, "x")],
        0: {"s": {1, 2}, "d": torch.bfloat16, "t": torch.ones(2, dtype=torch.bfloat16)},
    }
    save_tree(tree, tmp_path / "tree")
    found = load_tree(tmp_path / "tree")
    assert found["a"][0].tolist() == [0, 1, 2] and found["a"][1] == (1, None, "x")
    assert (
        found[0]["s"] == {1, 2} and found[0]["d"] is torch.bfloat16 and found[0]["t"].dtype is torch.bfloat16
    )
    with pytest.raises(LearnerError, match=r"\.a\.0 \(function\)"):
        save_tree({"a": [lambda: None]}, tmp_path / "bad")


def test_a_sampling_computes_only_the_shards_that_are_missing(
    make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    config = make_config(TEXT, generations=0, **{"resources.sample_batch": 16})
    prepared, store = run_all(config, tmp_path / "never", ranks=ranks)
    (node,) = prepared.lineage.nodes.values()
    root = tmp_path / "root"
    with pytest.raises(Crash):
        run_all(config, root, ranks=ranks, observer=crash_at("progress sample", 3))
    corpus = root / "corpora" / node.corpus
    assert len(list(corpus.glob("*.parquet"))) == 3
    first = next(path for path in corpus.glob("0000000000*.parquet"))
    first.unlink()
    kept = {path: path.stat().st_ino for path in corpus.glob("*.parquet")}
    events = Events()
    run_all(config, root, ranks=ranks, observer=events)
    (started,) = [fields for kind, fields in events.seen if kind == "sample_started"]
    assert (started["start"], started["stop"], started["shards"]) == (0, 64, 2)
    assert all(path.stat().st_ino == inode for path, inode in kept.items())
    found, expected = (place.corpora.scores(node.corpus, 64) for place in (Store(root), store))
    assert (found == expected).all()
    assert contents(Store(root), prepared) == contents(store, prepared)


@pytest.mark.parametrize(("before", "after"), [(16, 4), (4, 64), (24, 16)])
def test_a_sampling_goes_on_in_batches_of_another_size(
    make_config: Make, tmp_path: Path, ranks: Any, before: int, after: int
) -> None:
    """As where less memory is free than before: shards may overlap, and what they say is the same."""
    config = make_config(TEXT, generations=0)
    size = "resources.sample_batch"
    prepared, store = run_all(config, tmp_path / "never", f"{size}={after}", ranks=ranks)
    (node,) = prepared.lineage.nodes.values()
    root = tmp_path / "root"
    with pytest.raises(Crash):
        run_all(config, root, f"{size}={before}", ranks=ranks, observer=crash_at("progress sample", 2))
    corpus = root / "corpora" / node.corpus
    next(path for path in corpus.glob("0000000000*.parquet")).unlink()
    run_all(config, root, f"{size}={after}", ranks=ranks)
    assert {path.name for path in corpus.glob("*.parquet")} > {f"{0:010d}-{after:010d}.parquet"}
    both = [place.corpora.load(node.corpus, 64) for place in (Store(root), store)]
    assert np.array_equal(both[0].values, both[1].values)
    assert np.array_equal(both[0].lengths, both[1].lengths)


def test_what_is_missing_of_a_complete_generation_is_made_again(
    make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    config = make_config(TEXT, generations=1, **{"retention.weights": "all"})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    before = contents(store, prepared)
    first = next(iter(prepared.lineage.nodes.values()))
    shutil.rmtree(store.path("fits", first.fit))
    shutil.rmtree(tmp_path / "root" / "corpora" / first.corpus)
    events = Events()
    run_all(config, tmp_path / "root", ranks=ranks, observer=events)
    done = [kind for kind, _ in events.seen if kind.startswith(("fit_c", "sample_c", "committed"))]
    assert done == ["fit_committed", "sample_committed"]
    assert contents(Store(tmp_path / "root"), prepared) == before


def test_events_of_several_hosts_are_read_in_the_order_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    for number, host in enumerate(["n1", "n2", "n1", "n3"]):
        monkeypatch.setattr(socket, "gethostname", partial(str, host))
        Experiment(tmp_path, "e").event("x", number=number)
    names = sorted(path.name for path in (tmp_path / "experiments" / "e").iterdir())
    assert names == ["events-n2.jsonl", "events-n3.jsonl", "events.jsonl"]
    assert [event["number"] for event in Experiment(tmp_path, "e").events()] == [0, 1, 2, 3]


def test_a_checkpoint_that_cannot_be_loaded_starts_a_fit_anew(
    make_config: Make, tmp_path: Path, ranks: Any, eager: None
) -> None:
    """As when another version of a library wrote it: every checksum is right, and loading raises.

    The first checkpoint of the fit that begins anew has its name.
    """
    from harness.files import seal

    prepared, store = run_all(make_config(TEXT, "never.yaml", generations=0), tmp_path / "never", ranks=ranks)
    expected = contents(store, prepared)
    config, root = make_config(TEXT, generations=0, **EVERY_STEP), tmp_path / "root"
    with pytest.raises(Crash):
        run_all(config, root, ranks=ranks, observer=crash_at("checkpointed", 1, step=1))
    (checkpoint,) = root.glob("work/*/*/checkpoint-*")
    next(checkpoint.rglob("*optim_states*")).write_bytes(b"another format")
    seal(checkpoint)
    events = Events()
    prepared, store = run_all(config, root, ranks=ranks, observer=events)
    assert contents(store, prepared) == expected
    refused = [fields for kind, fields in events.seen if kind == "checkpoint_refused"]
    assert len(refused) == 1 and refused[0]["again_from_step"] == 0, [kind for kind, _ in events.seen]


def test_a_part_of_a_grid_does_not_free_what_the_rest_needs(make_config: Make, tmp_path: Path) -> None:
    from harness.coordinator.session import describe_chains
    from harness.store.health import needs

    whole, part = make_config(TEXT, grid={"seed": [0, 1]}), make_config(TEXT, "part.yaml", grid={"seed": [0]})
    from chains import open_prepared

    prepared, store = open_prepared(whole, tmp_path / "root")
    experiment = Experiment(store.root, "text")
    experiment.begin({}, describe_chains(prepared))
    before = needs(store)
    experiment.begin({}, describe_chains(open_prepared(part, tmp_path / "root")[0]))
    assert needs(store) == before and len(before.unfinished) == 2 * 3 * 3


def test_parts_that_begin_at_the_same_time_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One begins while another is about to write down what it has read."""
    merge = Experiment._merge
    entries = {name: {"chain": name, "generations": [], "keep": [f"fit-{name}"]} for name in ("a", "b")}
    others = [entries["b"]]

    def late(self: Experiment, parts: Any) -> None:
        if others:
            Experiment(tmp_path, "grid").begin({}, [others.pop()])
        merge(self, parts)

    monkeypatch.setattr(Experiment, "_merge", late)
    Experiment(tmp_path, "grid").begin({}, [entries["a"]])
    assert weights_kept(tmp_path / "experiments" / "grid") == {"fit-a", "fit-b"}
    chains = json.loads((tmp_path / "experiments" / "grid" / "chains.json").read_text())
    assert sorted(entry["chain"] for entry in chains) == ["a", "b"]
