"""Linear layers whose products oneDNN computes: torch's own, up to rounding, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from harness import proc
from harness.config.schema import Train
from harness.learners.language_model import products
from harness.learners.language_model.compiled import Loss
from harness.learners.language_model.kernels import fuse_layers, prepare_fit
from tests.test_engine import small


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's processor is one of those, and no product is too small."""
    monkeypatch.setattr(products, "is_faster", lambda: True)
    monkeypatch.setattr(products, "MANY", 0)


def layer(kind: type, inputs: int, outputs: int, bias: bool) -> nn.Module:
    torch.manual_seed(0)
    if kind is Conv1D:
        made = Conv1D(outputs, inputs)
        nn.init.normal_(made.bias)
        return made
    return nn.Linear(inputs, outputs, bias)


@pytest.mark.parametrize("frozen", [(), ("weight",), ("bias",), ("x",), ("weight", "bias")])
@pytest.mark.parametrize(("inputs", "outputs"), [(24, 40), (40, 24)])
@pytest.mark.parametrize(("kind", "bias"), [(nn.Linear, True), (nn.Linear, False), (Conv1D, True)])
def test_a_layer_is_its_definition(
    kind: type, bias: bool, inputs: int, outputs: int, frozen: tuple[str, ...], wanted: None
) -> None:
    """x W^T + b and its gradients, in fp64; none of what is frozen."""
    holder = nn.ModuleList([layer(kind, inputs, outputs, bias)])
    holder.device = torch.device("cpu")
    made = products.use_onednn(holder)[0]
    assert isinstance(made, kind) and type(made) is not kind
    x = torch.randn(3, 50, inputs, requires_grad="x" not in frozen)
    towards = torch.randn(3, 50, outputs)
    for name, parameter in made.named_parameters():
        parameter.requires_grad = name not in frozen
    found = made(x)
    (found * towards).sum().backward()
    known = {"x": x, **dict(made.named_parameters())}
    exact = {n: p.detach().double().requires_grad_(p.requires_grad) for n, p in known.items()}
    weight = exact["weight"].t() if kind is Conv1D else exact["weight"]
    meant = linear(exact["x"], weight, exact.get("bias"))
    (meant * towards.double()).sum().backward()
    torch.testing.assert_close(found.double(), meant, rtol=1e-5, atol=1e-5)
    for name, parameter in known.items():
        gradient = exact[name].grad
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None:
            assert parameter.grad is not None and parameter.grad.shape == parameter.shape
            torch.testing.assert_close(parameter.grad.double(), gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_models_layers_keep_their_names(
    architecture: str, dtype: torch.dtype, wanted: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what they compute; in bf16 to the bit, for there torch calls oneDNN itself."""
    model, tokens = small(architecture).to(dtype), torch.arange(60).view(3, 20)
    names, calls, plain = list(model.state_dict()), list[torch.Size](), products._multiply
    before = model(tokens).logits

    def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        calls.append(x.shape)
        return plain(x, weight, bias)

    monkeypatch.setattr(products, "_multiply", multiply)
    prepare_fit(model, torch.device("cpu"), "sdpa")
    model.set_attn_implementation("sdpa")
    after = model(tokens).logits
    assert list(model.state_dict()) == names
    layers = sum(isinstance(part, nn.Linear | Conv1D) for part in model.modules())
    assert len(calls) == (layers if dtype == torch.float32 else 0)
    assert torch.equal(after, before) or dtype == torch.float32
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


def test_a_model_for_a_gpu_keeps_torchs_layers(wanted: None) -> None:
    """It is prepared before it is there; and a layer that is moved later calls torch."""
    model = small("gpt2")
    prepare_fit(model, torch.device("cuda"))
    assert not any(isinstance(part, products._Linear | products._Conv1D) for part in model.modules())
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    assert products._suits(x, weight) and not products._suits(x.to("meta"), weight.to("meta"))
    assert not products._suits(x, weight, least=3)


def test_small_products_stay_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call of oneDNN costs is more than it saves there; what a row gives depends on shapes alone."""
    monkeypatch.setattr(products, "is_faster", lambda: True)
    monkeypatch.setattr(products, "MANY", 20 * 1500)
    calls = list[torch.Size]()
    monkeypatch.setattr(products, "_multiply", lambda x, w, b: calls.append(x.shape) or linear(x, w, b))
    model = fuse_layers(small("llama"))
    with torch.inference_mode():
        model(torch.zeros((1, 20), dtype=torch.int64))
    wide = [part for part in model.modules() if isinstance(part, nn.Linear) and part.weight.numel() >= 1500]
    assert 0 < len(calls) == len(wide) < sum(isinstance(part, nn.Linear) for part in model.modules())


@pytest.fixture
def forgotten() -> Iterator[None]:
    """What is asked of the processor is asked anew, before and after."""
    asked = products.is_faster, proc.processor_maker
    for function in asked:
        function.cache_clear()
    yield
    for function in asked:
        function.cache_clear()


@pytest.mark.parametrize(
    ("line", "capability", "meant"),
    [
        ("vendor_id\t: AuthenticAMD\n", "AVX512", True),
        ("vendor_id\t: AuthenticAMD\n", "AVX2", False),
        ("vendor_id\t: GenuineIntel\n", "AVX512", False),
        ("", "AVX512", False),
    ],
)
def test_which_processors_have_it(
    line: str, capability: str, meant: bool, forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those on which it was seen to be faster: MKL is as fast on its maker's own."""
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n" + line)
    monkeypatch.setattr(proc, "_PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products.is_faster() == meant
    model = fuse_layers(small("llama"))
    assert any(type(part) is products._Linear for part in model.modules()) == meant


def test_a_compiler_leaves_the_product_whole(wanted: None) -> None:
    """Torch's own lowering of oneDNN's function takes only weights of a form that no fit has."""
    holder = nn.ModuleList([nn.Linear(8, 12)])
    holder.device = torch.device("cpu")
    made = products.use_onednn(holder)[0]
    x = torch.randn(5, 8)
    found = torch.compile(made, fullgraph=True)(x)
    found.sum().backward()
    assert torch.equal(found, made(x))
    torch.testing.assert_close(made.weight.grad, x.sum(dim=0).expand(12, 8))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_taken_away_come_back(ranks: Any, wanted: None) -> None:
    """ZeRO stage 3 empties each parameter between its uses."""
    from harness.learners.language_model.engine import Engine

    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (4, 20)))
    found = dict[int, list[float]]()
    for stage in (0, 3):
        train = Train(batch_size=4, precision="fp32", learning_rate=1e-2)
        engine = Engine(small("gpt2"), train, 4, 1, stage)
        engine.train_mode(True)
        assert any(isinstance(part, products._Conv1D) for part in engine.module.modules())
        found[stage] = []
        for _ in range(4):
            loss = engine.token_nll(tokens, Loss(tokens.roll(-1, dims=1))).mean()
            engine.backward(loss)
            found[stage].append(float(loss.detach()))
        engine.close()
    assert found[3] == pytest.approx(found[0], rel=1e-5) and found[0][-1] < 0.95 * found[0][0]
