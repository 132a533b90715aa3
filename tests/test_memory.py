"""What a rank takes beside what `plan` says; models in parts, activations computed anew, kernels."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from chains import open_prepared
from conftest import TEXT, Make, harness
from group import run_ranks
from processes import events, result

from harness.compiler import missing
from harness.config.load import load_file
from harness.config.schema import Model
from harness.errors import ConfigError, LearnerError, ResourceError
from harness.files import seal
from harness.inventory import memory as checks
from harness.learners.language_model import model as models
from harness.learners.language_model.sizes import COMPILER, LIBRARIES
from harness.reporting import ledger
from harness.store import Store

FITS = """
import gc

import numpy as np
import torch

from group import Grown
from harness.config.schema import Model, Train
from harness.learners.language_model import model as models
from harness.learners.language_model.distributed import device
from harness.learners.language_model.engine import Engine, Scattering
from harness.learners.language_model.scoring import sequence_nll
from harness.learners.language_model.sizes import PassSizes, kept_values, memory_per_rank, num_parameters


def fit(section, train, rows, stage, recompute, asked=True):
    scattering = Scattering(train, size) if stage == 3 else None
    model = models.new_model(section, 256, 64, 0, 0, 5, scattering)
    engine = Engine(model, train, rows, size, stage, None, recompute, stage_asked=asked)
    engine.train_mode(True)
    losses = []
    for step in range(2):
        tokens = torch.from_numpy(np.random.default_rng(step).integers(0, 256, (rows, 64))).to(device())
        torch.manual_seed(step)
        loss = sequence_nll(engine.logits(tokens), tokens).mean()
        engine.backward(loss)
        losses.append(float(loss))
    return engine, losses


def measured(architecture, layers, width, rows, precision, stage, recompute=False, dropout=0.0, asked=True):
    heads = {"num_heads": 4, "context": 64, "dropout": dropout}
    section = Model(architecture=architecture, num_layers=layers, width=width, **heads)
    train = Train(batch_size=rows * size, precision=precision)
    with Grown() as grown:
        engine, losses = fit(section, train, rows, stage, recompute, asked)
    state = engine.state(True)
    engine.close()
    planned = stage if asked else 0  # as `needs.memory_needed` has it
    work = PassSizes(rows * 64, 1, 64, precision == "bf16", size, planned, recompute, on_gpu=False)
    count, kept = num_parameters(section, 256, 64), kept_values(section)
    return grown.bytes, memory_per_rank(count, layers, width, 256, kept, work).fit, losses, state
"""
MEASURED = """
gc.freeze()  # what was imported is not looked through again by each of the fits
measured("llama", 1, 64, 2, "fp32", 2)  # what is made once
found["states"] = {
    f"{precision} {stage}": measured("llama", 2, 512, 2, precision, stage)[:2]
    for precision, stage in (("fp32", 0), ("bf16", 2), ("fp32", 3), ("bf16", 3))
}
found["activations"] = {}
for architecture, width, rows, precision, stage in (
    ("llama", 128, 16, "fp32", 0), ("gpt2", 128, 16, "bf16", 0), ("gpt2", 64, 8, "fp32", 3)
):
    case = architecture, 4, width, rows, precision, stage
    dropout = 0.1 if case[-1] == 3 else 0.0
    whole, anew = (measured(*case, recompute, dropout) for recompute in (False, True))
    same = whole[2] == anew[2] and all(torch.equal(value, anew[3][name]) for name, value in whole[3].items())
    found["activations"][str(case)] = {"peaks": [whole[:2], anew[:2]], "same": same, "dropout": dropout}
"""


SCATTERED = """
def begin(precision, parted, architecture="gpt2"):
    train = Train(batch_size=4, precision=precision, weight_decay=0.1)
    section = Model(architecture=architecture, num_layers=2, width=32, num_heads=4, context=32)
    model = models.new_model(section, 61, 32, 0, 0, 5, Scattering(train, size) if parted else None)
    assert all((parameter.numel() == 0) == parted for parameter in model.parameters())
    return Engine(model, train, 2, size, 3)


def go_on(engine, numbers):
    for number in numbers:
        tokens = torch.from_numpy(np.random.default_rng(10 * number + rank).integers(0, 61, (2, 20)))
        engine.set_learning_rate(1e-2)
        engine.backward(engine.logits(tokens.to(device())).float().logsumexp(-1).mean())
    return engine.state(True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


found["same"], found["built"] = {}, {}
for precision, architecture in (("fp32", "gpt2"), ("bf16", "gpt2"), ("bf16", "llama")):
    at_first, fitted, resumed = [], [], []
    folder = Path(arguments["folder"]) / f"{precision}-{architecture}"
    for parted in (False, True):
        engine = begin(precision, parted, architecture)
        at_first.append(engine.state(True))
        go_on(engine, range(2))
        if parted:
            if rank == 0:
                folder.mkdir()
            ranks.barrier()
            engine.save(folder)
            ranks.barrier()
        fitted.append(go_on(engine, range(2, 4)))
        engine.close()
    for parted in (False, True):
        engine = begin(precision, parted, architecture)
        engine.load(folder)
        resumed.append(go_on(engine, range(2, 4)))
        engine.close()
    found["same"][f"{precision} {architecture}"] = {
        "at first": same(*at_first),
        "changed": not same(at_first[0], fitted[0]),
        "fitted": same(*fitted),
        "resumed": [same(one, fitted[0]) for one in resumed],
    }

section = Model(architecture="llama", num_layers=6, width=512, num_heads=4, context=32)
for name, keep in {"parts": Scattering(Train(batch_size=2, precision="fp32"), size), "whole": None}.items():
    with Grown() as grown:
        model = models.new_model(section, 512, 32, 0, 0, 5, keep)
    found["built"][name] = grown.bytes
found["built"]["size"] = sum(parameter.nbytes for parameter in model.parameters())
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks found, over gloo."""
    folder = str(tmp_path_factory.mktemp("checkpoints"))
    return run_ranks(FITS + MEASURED + SCATTERED, 2, own_pages=True, folder=folder)


@pytest.mark.slow
def test_no_rank_of_zero_3_holds_a_whole_model(measured: list[dict[str, Any]]) -> None:
    """Weights, fits and checkpoints have every bit of the ordinary construction."""
    for found in measured:
        for case, same in found["same"].items():
            assert same == {"at first": True, "changed": True, "fitted": True, "resumed": [True, True]}, case
        size, parts, whole = (found["built"][name] for name in ("size", "parts", "whole"))
        # Half of every parameter and a few whole ones; the ordinary construction has all of them.
        assert size / 2 <= parts < 0.65 * size and whole >= size, (size, parts, whole)


@pytest.mark.slow
def test_what_a_rank_takes_is_what_the_plan_says(measured: list[dict[str, Any]]) -> None:
    """Of a model whose weights, gradients and optimizer take more than its activations."""
    for found in measured:
        for case, (peak, planned) in found["states"].items():
            assert 0.85 < planned / peak < 1.25, (case, peak, planned)


@pytest.mark.slow
def test_one_rank_in_bf16_takes_less_than_zero_2() -> None:
    """Of the same model, to the same bits."""
    program = """
gc.freeze()
for asked in (True, False, True, False):  # the first two find what is made once
    found[str(asked)] = measured("llama", 2, 512, 2, "bf16", 2, asked=asked)
states = [states for *_, states in found.values()]
same = all(torch.equal(value, states[1][name]) for name, value in states[0].items())
found = {asked: values[:3] for asked, values in found.items()} | {"same": same}
"""
    (found,) = run_ranks(FITS + program, 1, own_pages=True)
    (peak, planned, losses), (less, planned_less, same) = found["True"], found["False"]
    assert losses == same and found["same"]
    assert less < 0.97 * peak and planned_less < 0.97 * planned, (found["True"], found["False"])
    assert 0.85 < planned_less / less < 1.25


@pytest.mark.slow
def test_activations_computed_anew_are_the_same_in_less_memory(measured: list[dict[str, Any]]) -> None:
    """Both peaks are those that the plan says, but for dropout, whose draws have to come again."""
    for found in measured:
        for case, about in found["activations"].items():
            assert about["same"], case
            (whole, planned), (anew, planned_anew) = about["peaks"]
            if not about["dropout"]:
                assert anew < 0.6 * whole, (case, whole, anew)
                assert 0.8 < planned / whole < 1.25 and 0.8 < planned_anew / anew < 1.25, (case, about)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources.attention": "flash"}, "found 'flash', allowed"),
        ({"resources.attention": "flash_attention_2"}, "deterministic is true; allowed: attention: sdpa, or"),
        (
            {"resources.attention": "flash_attention_2", "resources.deterministic": False},
            "flash_attention_2 computes in bf16, learner.train.precision is fp32",
        ),
        (
            {
                "resources.attention": "flash_attention_2",
                "resources.deterministic": False,
                "resources.gpus_per_rank": 0,
            },
            "needs a GPU, and gpus_per_rank is 0",
        ),
        (
            {"resources.compile": True, "resources.zero_stage": 3},
            "compile: true needs whole weights on every rank, and zero_stage is 3; allowed: zero_stage: 0",
        ),
        (
            {
                "resources.compile": True,
                "learner.init": "previous",
                "learner.adapter": {"kind": "lora", "dropout": 0.1},
            },
            "learner.adapter.dropout is 0.1; allowed: compile: false, or dropout: 0",
        ),
    ],
)
def test_kernels_that_cannot_be_are_refused(make_config: Make, changes: dict[str, Any], message: str) -> None:
    from harness.config.grid import expand

    config = make_config(TEXT, **{"learner.train.precision": "fp32", **changes})
    with pytest.raises(ConfigError, match=r"config.yaml:\d+: resources") as caught:
        expand(load_file(config, ()))
    assert message in str(caught.value)


FLASH = {"resources.attention": "flash_attention_2", "resources.deterministic": False}


@pytest.mark.slow
def test_kernels_that_this_machine_lacks_are_refused_early(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(TEXT, **FLASH)
    if not checks.has_gpus():
        for command in ("plan", "run"):
            done = harness(command, config, "--root", tmp_path / "root")
            assert done.returncode == 2 and not (tmp_path / "root").exists()
            assert "config.yaml:" in done.stderr and "this machine has none" in done.stderr
    prepared, _ = open_prepared(config, tmp_path / "other")
    monkeypatch.setattr(checks, "is_installed", lambda module: False)
    with pytest.raises(ResourceError, match="needs the package flash-attn, which is not installed"):
        checks.check_kernels(prepared, gpus=True)
    monkeypatch.setattr(checks, "is_installed", lambda module: module == "flash_attn")
    checks.check_kernels(prepared, gpus=True)


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_machine_without_a_compiler_is_told_early(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    config = make_config(TEXT, **{"resources.compile": True, "resources.gpus_per_rank": 0})
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = harness(
        command,
        config,
        "--root",
        tmp_path / "root",
        **({} if command == "plan" else {"CXX": "no-such-compiler"}),
    )
    assert done.returncode == 2 and not (tmp_path / "root").exists()
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "config.yaml:" in lines[0]
    assert "resources.compile: true needs a C++ compiler (no-such-compiler; " in lines[0]
    assert lines[0].endswith("install it, or set false")


def test_what_compiling_needs_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gcc", "g++"):
        (tmp_path / name).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert missing(gpu=True) is None and missing(gpu=False) is None
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert missing(gpu=False) == f"Python's header files (there is no {tmp_path / 'Python.h'})"
    for name, gpu in (("gcc", True), ("g++", False)):
        (tmp_path / name).unlink()
        assert f"a C{'' if gpu else '++'} compiler" in str(missing(gpu))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton" in str(missing(gpu=True))


def test_a_rank_without_the_kernel_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.learners.language_model import compiled
    from harness.learners.language_model.kernels import prepare_fit

    section = Model(architecture="gpt2", num_layers=1, width=16, num_heads=2, context=16)
    model = models.new_model(section, 61, 16, 0, 0, 5)
    prepare_fit(model, torch.device("cpu"), "eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(LearnerError, match="resources.attention: FlashAttention2 .* installed"):
        prepare_fit(model, torch.device("cpu"), "flash_attention_2")
    monkeypatch.setattr(compiled, "missing", lambda gpu: "a compiler")
    with pytest.raises(LearnerError, match="resources.compile: true needs a compiler, which .* not have"):
        compiled.compile_fit(model, "any")


def test_resources_are_in_no_key(make_config: Make, tmp_path: Path) -> None:
    plain, _ = open_prepared(make_config(TEXT), tmp_path / "root")
    changes = {"resources.attention": "eager", "resources.activation_checkpointing": True}
    changes |= {"resources.compile": True}
    changed, _ = open_prepared(make_config(TEXT, **changes), tmp_path / "root")
    assert plain.lineage.nodes.keys() == changed.lineage.nodes.keys()
    before, after = (checks.memory_of(prepared, 0, gpus=False) for prepared in (plain, changed))
    assert before is not None and after is not None
    assert before.fit < COMPILER < after.fit, "a compiler takes more than a small fit"


def test_kernels_that_an_architecture_lacks_are_refused(tmp_path: Path) -> None:
    """Mamba has no attention that could be computed otherwise."""
    from transformers import MambaConfig

    from harness.config.schema import Resources
    from harness.errors import DataError
    from harness.learners.language_model.facts import check_kernels

    sizes = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    model = models.construct(MambaConfig(**sizes))
    models.write_model(tmp_path, model.config, dict(model.named_parameters()))
    section = Model(pretrained=str(tmp_path))
    check_kernels(section, Resources(activation_checkpointing=True))
    with pytest.raises(DataError, match="has no sdpa; allowed: eager"):
        check_kernels(section, Resources(attention="sdpa"))


@pytest.mark.parametrize(
    ("ranks", "precision", "given", "used"),
    [(1, "fp32", None, 0), (1, "bf16", None, 2), (2, "fp32", None, 2), (1, "fp32", 2, 2), (2, "bf16", 0, 0)],
)
def test_one_rank_in_fp32_has_no_zero_stage_unless_given(
    make_config: Make, tmp_path: Path, ranks: int, precision: str, given: int | None, used: int
) -> None:
    """Nothing is divided there; what is used is what memory is planned for and what gangs are told."""
    changes = {"resources.ranks": ranks, "learner.train.precision": precision, "resources.zero_stage": given}
    prepared, _ = open_prepared(make_config(TEXT, **changes), tmp_path / "root")
    assert prepared.executions[0].resources.zero_stage == used
    written_out = {**changes, "resources.zero_stage": used}
    same, _ = open_prepared(make_config(TEXT, "same.yaml", **written_out), tmp_path / "root")
    memory, other = (checks.memory_of(study, 0, gpus=False) for study in (prepared, same))
    assert memory is not None and other is not None
    alone = (ranks, precision, given) == (1, "bf16", None)  # without DeepSpeed's stage 2, and its bucket
    assert other.buffers == (other.gradients * ranks if used else 0)
    assert memory == (replace(other, buffers=0) if alone else other)
    assert prepared.executions[0].stage_asked == (given is not None) and same.executions[0].stage_asked
    assert list(prepared.lineage.nodes) == list(same.lineage.nodes)


def test_batches_are_the_largest_that_memory_holds(make_config: Make, tmp_path: Path) -> None:
    """Where the configuration leaves them open; a smaller batch takes less of the same estimate."""
    prepared, _ = open_prepared(make_config(TEXT, **{"resources.sample_batch": None}), tmp_path / "root")
    execution, whole = prepared.executions[0], checks.memory_of(prepared, 0, gpus=False)
    assert whole is not None
    micro, together = (execution.batches[name] for name in ("micro_batch", "sample_batch"))
    assert [size for size, _ in micro] == [8, 4, 2, 1]  # of a batch of 8
    assert [size for size, _ in together] == [128, 64, 32, 16, 8, 4, 2, 1]
    assert micro[0][1] == whole.fit and together[0][1] == whole.sampling
    for sizes in (micro, together):
        assert all(more > less for (_, more), (_, less) in pairwise(sizes))
        for size, needed in sizes:
            name = "micro_batch" if sizes is micro else "sample_batch"
            assert getattr(execution.within(needed).resources, name) == size
            assert getattr(execution.within(needed - 1).resources, name) == max(1, size // 2)
    assert execution.within(math.inf).resources == execution.resources
    given = {"resources.sample_batch": 100, "resources.micro_batch": 2}
    said, _ = open_prepared(make_config(TEXT, "said.yaml", **given), tmp_path / "root")
    assert said.executions[0].batches == {} and said.executions[0].within(0).resources.sample_batch == 100


@pytest.mark.ray
def test_a_rank_lowers_its_batches_and_says_so(
    run_study: Callable[..., Any], make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with room for samples in batches of 16: the bytes of a run that was asked for these."""
    config = make_config(TEXT, generations=1, **{"resources.sample_batch": None})
    prepared, _ = open_prepared(config, tmp_path / "root")
    needed = dict(prepared.executions[0].batches["sample_batch"])[16]
    micro = prepared.executions[0].within(needed).resources.micro_batch
    assert micro is not None and micro < 8
    monkeypatch.setattr("harness.coordinator.shapes.rank_bytes", lambda *_: LIBRARIES + needed)
    monkeypatch.setattr("harness.coordinator.coordinator.POLL_S", 3600)  # it ends before the second look
    _, _, lines = run_study(config, tmp_path / "root")
    (said,) = events(tmp_path / "root", "text", "batches_lowered")
    assert said["batches"] == f"micro_batch {micro} in place of 8, sample_batch 16 in place of 128"
    assert any(f"{said['batches']}: the same results but for their last bits" in line for line in lines)
    store, names = Store(tmp_path / "root"), ("provenance/micro_batch", "provenance/sample_batch")
    rows = pd.DataFrame(ledger.rows(prepared, store, provenance=True))
    assert rows[list(names)].drop_duplicates().to_numpy().tolist() == [[micro, 16]]
    for path in (tmp_path / "root" / "evaluations").glob("*/provenance.json"):  # as they were written before
        about = json.loads(path.read_text())
        assert (about.pop("micro_batch"), about.pop("sample_batch")) == (micro, 16)
        path.write_text(json.dumps(about))
        seal(path.parent)
    earlier = pd.DataFrame(ledger.rows(prepared, Store(tmp_path / "root"), provenance=True))
    assert len(earlier) == len(rows) > 0 and earlier[list(names)].isna().all(axis=None)
    asked = make_config(TEXT, "asked.yaml", generations=1, **{"resources.micro_batch": micro})
    run_study(asked, tmp_path / "asked")
    assert result(config, tmp_path / "root") == result(asked, tmp_path / "asked")


FREED = """
import resource

import psutil
import torch

from harness.learners.threads import compute_with
from harness.proc import give_back

SIZE = 200 * 2**20


def fill(times: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.ones(SIZE // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


compute_with(1)
fill(20)  # where they lie is by chance, and the first few find no place yet
filled = fill(20) * resource.getpagesize() / SIZE
held = psutil.Process().memory_info().rss
give_back()
print(filled, (held - psutil.Process().memory_info().rss) / SIZE)
"""


@pytest.mark.slow
def test_freed_memory_is_used_again_and_given_back_in_the_end() -> None:
    """By pages that the kernel had to fill, and by what the process holds.

    In a process of its own: once an allocation has failed, glibc serves the thread from another arena, whose
    large blocks always come from the kernel.
    """
    given = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FREED], capture_output=True, text=True, env=given, check=False
    )
    assert done.returncode == 0, done.stderr
    filled, returned = map(float, done.stdout.split())
    assert filled < 0.1, "of 20 times"
    assert returned > 0.9
