"""What a fit allocates beside what `plan` says; activations that are computed anew; kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from chains import open_prepared
from conftest import TEXT, Make, harness
from group import run_ranks

from harness.config.load import load_file
from harness.config.schema import Model
from harness.errors import ConfigError, LearnerError, ResourceError
from harness.inventory import memory as checks
from harness.learners.language_model import model as models

ALLOCATED = """
import gc

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from harness.config.schema import Model, Train
from harness.learners.language_model import model as models
from harness.learners.language_model.distributed import device
from harness.learners.language_model.engine import Engine, Scattering
from harness.learners.language_model.scoring import sequence_nll
from harness.learners.language_model.sizes import Work, kept_values, memory_per_rank, num_parameters


def peak(recorded):
    events = [one for one in recorded.profiler.kineto_results.events() if one.name() == "[memory]"]
    sizes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
    return int(np.cumsum(sizes).max())


def fit(section, train, rows, size, stage, recompute):
    scattering = Scattering(train, size) if stage == 3 else None
    model = models.new_model(section, 256, 64, 0, 0, 5, scattering)
    engine = Engine(model, train, rows, size, stage, None, recompute)
    engine.train_mode(True)
    losses = []
    for step in range(2):
        tokens = torch.from_numpy(np.random.default_rng(step).integers(0, 256, (rows, 64))).to(device())
        torch.manual_seed(step)
        loss = sequence_nll(engine.logits(tokens), tokens).mean()
        engine.backward(loss)
        losses.append(float(loss))
    state = engine.state(True)
    engine.close()
    return losses, state


def measured(architecture, layers, width, rows, precision, size, stage, recompute, dropout=0.0):
    heads = {"num_heads": 4, "context": 64, "dropout": dropout}
    section = Model(architecture=architecture, num_layers=layers, width=width, **heads)
    train = Train(batch_size=rows * size, precision=precision, weight_decay=0.0)
    gc.collect()  # what an earlier fit has left would be freed within this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        found = fit(section, train, rows, size, stage, recompute)
    work = Work(rows * 64, 1, 64, precision == "bf16", size, stage, recompute, on_gpu=False)
    count, kept = num_parameters(section, 256, 64), kept_values(section)
    planned = memory_per_rank(count, layers, width, 256, kept, work)
    return peak(recorded), planned.fit, *found
"""
STATES = """
found = {
    f"{precision} {stage}": measured("llama", 2, 512, 2, precision, size, stage, False)[:2]
    for precision, stage in (("fp32", 0), ("bf16", 2), ("fp32", 3), ("bf16", 3))
}
"""


@pytest.mark.slow
def test_what_a_rank_allocates_is_what_the_plan_says() -> None:
    """Two ranks, of a model whose weights, gradients and optimizer take more than its activations."""
    for found in run_ranks(ALLOCATED + STATES, 2):
        for case, (peak, planned) in found.items():
            assert 0.85 < planned / peak < 1.25, (case, peak, planned)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("architecture", "precision", "stage", "dropout"),
    [("llama", "fp32", 0, 0.0), ("gpt2", "bf16", 0, 0.0), ("gpt2", "fp32", 3, 0.1)],
)
def test_activations_computed_anew_are_the_same_in_less_memory(
    ranks: Any, architecture: str, precision: str, stage: int, dropout: float
) -> None:
    """Both peaks are those that the plan says, but for dropout, whose draws have to come again."""
    here: dict[str, Any] = {}
    exec(compile(ALLOCATED, "allocated", "exec"), here)
    cases = [
        here["measured"](architecture, 4, 128, 32, precision, 1, stage, recompute, dropout)
        for recompute in (False, True)
    ]
    for peak, planned, _, _ in cases:
        assert dropout or 0.85 < planned / peak < 1.25, (peak, planned)
    (whole, _, losses, weights), (anew, _, again, others) = cases
    assert again == losses and anew < whole / 2
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())


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
    ],
)
def test_kernels_that_cannot_be_are_refused(make_config: Make, changes: dict[str, Any], message: str) -> None:
    from harness.config.grid import expand

    config = make_config(TEXT, **{"learner.train.precision": "fp32", **changes})
    with pytest.raises(ConfigError, match=r"config.yaml:\d+: resources") as caught:
        expand(load_file(config, ()))
    assert message in str(caught.value)


FLASH = {"resources.attention": "flash_attention_2", "resources.deterministic": False}


def test_kernels_that_this_machine_lacks_are_refused_before_anything_starts(
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
        checks.check_attention(prepared, gpus=True)
    monkeypatch.setattr(checks, "is_installed", lambda module: module == "flash_attn")
    checks.check_attention(prepared, gpus=True)


def test_a_rank_without_the_kernel_says_so() -> None:
    from harness.learners.language_model.kernels import prepare_fit

    section = Model(architecture="gpt2", num_layers=1, width=16, num_heads=2, context=16)
    model = models.new_model(section, 61, 16, 0, 0, 5)
    prepare_fit(model, torch.device("cpu"), "eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(LearnerError, match="resources.attention: FlashAttention2 .* installed"):
        prepare_fit(model, torch.device("cpu"), "flash_attention_2")


def test_resources_are_in_no_key(make_config: Make, tmp_path: Path) -> None:
    plain, _ = open_prepared(make_config(TEXT), tmp_path / "root")
    changes = {"resources.attention": "eager", "resources.activation_checkpointing": True}
    changed, _ = open_prepared(make_config(TEXT, **changes), tmp_path / "root")
    assert plain.lineage.nodes.keys() == changed.lineage.nodes.keys()


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
