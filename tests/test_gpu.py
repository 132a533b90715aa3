"""The contract tests on CUDA: NCCL, ZeRO 0 to 3, bf16, sampling, resume. They skip where there is no
device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import Events, contents, run_all
from conftest import TEXT, Make
from group import run_ranks

from harness.compiler import missing
from harness.records import Examples


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chain_on_one_device_is_reproducible(
    ranks: Any, make_config: Make, tmp_path: Path, stage: int, precision: str
) -> None:
    config = make_config(
        TEXT, **{"resources.zero_stage": stage, "learner.train.precision": precision, "generations": 1}
    )
    first, store = run_all(config, tmp_path / "a", ranks=ranks)
    expected = contents(store, first)
    again, store = run_all(config, tmp_path / "b", ranks=ranks)
    assert contents(store, again) == expected


@pytest.mark.gpu
@pytest.mark.skipif(missing(gpu=True) is not None, reason="needs triton and a C compiler")
def test_a_compiled_chain_on_one_device_is_reproducible(
    ranks: Any, make_config: Make, tmp_path: Path
) -> None:
    """The second run's programs are made anew, from the folder for code."""
    from harness.learners.language_model.compiled import forget

    config = make_config(TEXT, **{"resources.compile": True, "generations": 1})
    first, store = run_all(config, tmp_path / "a", ranks=ranks)
    expected = contents(store, first)
    forget()
    again, store = run_all(config, tmp_path / "b", ranks=ranks)
    assert contents(store, again) == expected


@pytest.mark.gpu
def test_a_chain_that_crashed_continues_to_the_same_bytes(
    ranks: Any, make_config: Make, tmp_path: Path
) -> None:
    config = make_config(TEXT)
    clean, store = run_all(config, tmp_path / "clean", ranks=ranks)
    expected = contents(store, clean)

    def crash(kind: str, fields: Any) -> None:
        if kind == "fit_committed" and fields["generation"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(config, tmp_path / "root", ranks=ranks, observer=Events(crash))
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    assert contents(store, prepared) == expected


@pytest.mark.gpu
def test_sampling_on_the_device_draws_from_the_model(ranks: Any) -> None:
    import torch

    from harness.config.schema import Model, Sample
    from harness.learners.language_model import model as models
    from harness.learners.language_model.sampling import Sampler, draw_batch
    from harness.learners.language_model.scoring import score

    section = Model(architecture="llama", num_layers=2, width=32, num_heads=2, context=48)
    made = models.new_model(section, 40, 48, 0, 0, seed=1).to("cuda", torch.bfloat16).eval()
    sampler = Sampler(made, Sample(), bos=0, eos=0)
    first = draw_batch(sampler, None, 0, 16, seed=1, generation=0, start=0, size=4096)
    assert (first.values == draw_batch(sampler, None, 0, 16, 1, 0, 0, 4096).values).all()
    with torch.inference_mode():
        expected = torch.softmax(
            made(input_ids=torch.zeros((1, 1), dtype=torch.long, device="cuda")).logits[0, -1].double(), -1
        )
    counts, wanted = torch.bincount(torch.from_numpy(first.values[:, 0]), minlength=40), expected.cpu() * 4096
    distance = ((counts - wanted) ** 2 / wanted).sum()
    # The upper tail of a chi-squared distribution with 39 degrees of freedom.
    assert torch.special.gammaincc(torch.tensor(39 / 2, dtype=torch.float64), distance / 2) > 1e-4
    assert np.isfinite(score(made, Examples.full(first.values[:64]), bos=0)).all()


CURVE = """
from chains import run_all

import torch

prepared, store = run_all(Path(arguments["config"]), Path(arguments["root"]), ranks=ranks)
first = next(iter(prepared.lineage.nodes.values()))
found = store.json("fits", first.fit, "fit.json")["log"]["train_loss"] if rank == 0 else []
"""


@pytest.mark.multigpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_zero_stages_on_two_devices_agree(make_config: Make, tmp_path: Path, precision: str) -> None:
    """Over NCCL; bf16 stages round in other places, so their losses agree to a hundredth."""
    curves = {}
    for stage in (0, 1, 2, 3):
        resources = {"ranks": 2, "zero_stage": stage, "sample_batch": 32}
        config = make_config(
            TEXT,
            f"{stage}.yaml",
            **{"resources": resources, "learner.train.precision": precision, "generations": 1},
        )
        root = tmp_path / str(stage)
        curves[stage] = run_ranks(CURVE, 2, on_gpus=True, config=str(config), root=str(root))[0]
    for stage in (1, 2, 3):
        assert curves[stage] == pytest.approx(curves[0], rel=1e-4 if precision == "fp32" else 1e-2)
