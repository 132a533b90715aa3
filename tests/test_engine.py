"""What a DeepSpeed engine leaves behind, and how the logits of an odd vocabulary and recorded steps compare
with the plain ones."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from harness.components.adapter import Lora
from harness.components.objectives import Anchor
from harness.config.schema import Model, Sample, Train
from harness.learners.language_model import adapter as adapters
from harness.learners.language_model import compiled, products, scoring
from harness.learners.language_model.behaviour import behaviour
from harness.learners.language_model.compiled import Loss, compile_fit, forget, loss_of, programs
from harness.learners.language_model.cuda import StepReader, align_head, can_step
from harness.learners.language_model.filling import hidden
from harness.learners.language_model.kernels import IN_FP32, _Gelu, fuse_layers, prepare_fit
from harness.learners.language_model.model import new_model
from harness.learners.language_model.sampling import Sampler, TokenReader, draw_batch
from harness.learners.language_model.scoring import IGNORED, sequence_nll

WHERE = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]


def small(
    architecture: str = "llama",
    vocab_size: int = 61,
    kv_heads: int | None = None,
    seed: int = 1,
    dropout: float = 0.0,
) -> Any:
    sizes = {"num_layers": 2, "width": 32, "num_heads": 2, "num_kv_heads": kv_heads, "context": 48}
    section = Model(architecture=architecture, dropout=dropout, **sizes)  # type: ignore[arg-type]
    return new_model(section, vocab_size, 48, 0, 0, seed=seed).eval()


def differential() -> Any:
    """A model whose attention makes other values of those that are kept, and other keys not."""
    from transformers import DiffLlamaConfig, DiffLlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return DiffLlamaForCausalLM(DiffLlamaConfig(vocab_size=61, num_key_value_heads=2, **sizes)).eval()


def held() -> int:
    """Bytes of all tensors that Python knows; those that a compiler traces with have none."""
    gc.collect()
    real, sizes = (torch.Tensor, nn.Parameter), dict[int, int]()
    for found in gc.get_objects():
        if type(found) in real:
            with contextlib.suppress(RuntimeError):  # a tracer's, which says that it has no memory
                sizes[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
    return sum(sizes.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "asked"), [("fp32", True), ("bf16", True), ("bf16", False)])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_fit_leaves_no_memory_behind(ranks: Any, stage: int, precision: str, asked: bool) -> None:
    from harness.learners.language_model.distributed import device
    from harness.learners.language_model.engine import Engine

    before = held()
    for _ in range(2):
        train = Train(batch_size=4, precision=precision)  # type: ignore[arg-type]
        engine = Engine(small(), train, 4, 1, stage, stage_asked=asked)
        parameters = sum(p.ds_numel if stage == 3 else p.numel() for p in engine.module.parameters())
        loss = (
            engine.logits(torch.zeros((4, 16), dtype=torch.long, device=device())).float().logsumexp(-1).sum()
        )
        engine.backward(loss)
        assert held() - before > 6 * parameters
        engine.close()
        del loss
        assert held() - before < parameters  # a byte; an engine that stays has 12 and more


def torchs_own() -> dict[str, Any]:
    """Everything of torch that a library could have replaced, by its name."""
    places: list[Any] = [torch, torch.Tensor, torch.autograd, torch.distributed, nn, nn.functional]
    places += [torch.nn.init, torch.optim.Optimizer, nn.Module]
    kinds = [nn.Module]
    for kind in kinds:
        kinds += [found for found in kind.__subclasses__() if found not in kinds]
    found = {f"{place.__name__}.{name}": value for place in places for name, value in vars(place).items()}
    return found | {f"{kind}.__init__": kind.__init__ for kind in kinds}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_fit_gives_back_what_is_torchs(ranks: Any, stage: int) -> None:
    """ZeRO-3 has a linear layer of its own, without which gathered weights would stay for the backward."""
    from harness.learners.language_model.engine import Engine, deepspeed

    before = torchs_own()
    assert before["torch.nn.functional.linear"] is torch._C._nn.linear
    engine = Engine(small("opt"), Train(batch_size=4, precision="bf16"), 4, 1, stage)
    inside = deepspeed.runtime.zero.linear.zero3_linear_wrap if stage == 3 else torch._C._nn.linear
    assert nn.functional.linear is inside
    tokens = torch.zeros((4, 16), dtype=torch.long, device=next(engine.module.parameters()).device)
    engine.backward(engine.logits(tokens).float().logsumexp(-1).sum())
    assert nn.functional.linear is inside
    engine.close()
    after = torchs_own()
    assert not [name for name, value in before.items() if after[name] is not value]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "asked"), [("fp32", True), ("bf16", True), ("bf16", False)])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_gradient_that_is_not_finite_is_never_passed_over(
    ranks: Any, stage: int, precision: str, asked: bool
) -> None:
    from harness.learners.language_model.distributed import device
    from harness.learners.language_model.engine import Engine

    train = Train(batch_size=4, precision=precision)  # type: ignore[arg-type]
    engine = Engine(small(), train, 4, 1, stage, stage_asked=asked)
    tokens = torch.zeros((4, 16), dtype=torch.long, device=device())
    for scale in (1.0, torch.inf):
        assert not engine.skipped
        engine.backward(engine.logits(tokens).float().logsumexp(-1).sum() * scale)
    weights = engine.state(True).values()
    assert engine.skipped or not all(bool(torch.isfinite(weight).all()) for weight in weights)
    engine.close()


def alone(case: str, asked: bool) -> Any:
    """One rank in bf16: in DeepSpeed's stage 2, or with copies of its own."""
    from harness.learners.language_model.engine import Engine

    train = Train(batch_size=4, precision="bf16", weight_decay=0.1)
    if case.startswith("odd"):  # lengths of both groups, or of one and so of both together
        sizes = {"num_layers": 1, "width": 31, "num_heads": 1, "context": 48}
        model = new_model(Model(architecture="gpt2", **sizes), 61 + (case == "odd sum"), 48, 0, 0, seed=1)  # type: ignore[arg-type]
    else:
        model = small("gpt2" if case == "lora" else case, dropout=0.1)
    if case == "lora":
        adapters.attach(model, SECTION, adapters.new_values(model, SECTION, 0, 0))
    if case == "llama":
        train = train.model_copy(update={"max_grad_norm": None})
    engine = Engine(model, train, 2, 1, 2, adapted=case == "lora", recompute=case == "opt", stage_asked=asked)
    assert (engine._masters is None) == asked
    engine.train_mode(True)
    return engine


def steps(engine: Any, numbers: range, scale: float = 1.0) -> list[torch.Tensor]:
    """Losses of two micro-batches a step, and then all weights and what the optimizer holds."""
    from harness.learners.language_model.distributed import device

    found = []
    for number in numbers:
        tokens = torch.from_numpy(np.random.default_rng(number).integers(0, 61, (2, 2, 20))).to(device())
        engine.set_learning_rate(1e-2 / (number + 1))
        for part in tokens:
            torch.manual_seed(number)
            engine.place(0, 0, range(number, number + 2))
            loss = engine.token_nll(part, Loss(part.roll(-1, dims=1))).mean() * 10 * scale
            engine.backward(loss)
            found.append(loss.detach())
    stored = engine._engine.optimizer if engine._masters is None else engine._masters
    stored = stored.state_dict() if stored is not engine._masters else stored.tree()["optimizer_state_dict"]
    found += [*engine.state(True).values(), *stored["single_partition_of_fp32_groups"]]
    for group in stored["base_optimizer_state"]["state"].values():
        found += [group[name] for name in ("step", "exp_avg", "exp_avg_sq")]
    return [value.cpu().clone() for value in found]


def equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    """To the bit, what is no number too."""
    return all(
        a.dtype == b.dtype and a.numpy(force=True).tobytes() == b.numpy(force=True).tobytes()
        for a, b in ((x.float(), y.float()) for x, y in zip(one, other, strict=True))
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["gpt2", "llama", "opt", "odd", "odd sum", "lora"])
def test_one_rank_in_bf16_computes_what_zero_2_does(ranks: Any, tmp_path: Path, case: str) -> None:
    """With accumulated, shortened and infinite gradients, and after a checkpoint of either."""
    found = []
    for asked in (True, False):
        engine = alone(case, asked)
        before = steps(engine, range(3))
        engine.save(tmp_path / str(asked))
        found.append([*before, *steps(engine, range(3, 5)), *steps(engine, range(5, 7), math.inf)])
        engine.close()
    assert equal(*found), "stage 2 and without"
    assert not all(bool(value.isfinite().all()) for value in found[0])
    rest = found[0][len(before) :]
    for asked, written in itertools.product((True, False), (True, False)):
        engine = alone(case, asked)
        engine.load(tmp_path / str(written))
        assert equal([*steps(engine, range(3, 5)), *steps(engine, range(5, 7), math.inf)], rest)
        engine.close()


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Programs are traced as ever, forward and backward, and then computed with torch's own kernels: building
    the others takes most of a minute (tests/test_faults.py does)."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    monkeypatch.setattr(compiled, "OPTIONS", None)
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "disabled", True)  # pytest would keep it all
    forget()
    yield
    forget()


def losses(compiled: bool, precision: str, asked: bool, seed: int = 1) -> tuple[list[float], torch.Tensor]:
    """Of three steps of a model with dropout; and its logits at the end, as validation asks for them."""
    from harness.learners.language_model.distributed import device
    from harness.learners.language_model.engine import Engine

    train = Train(batch_size=4, precision=precision, learning_rate=1e-3)  # type: ignore[arg-type]
    engine = Engine(small(seed=seed, dropout=0.2), train, 4, 1, 2, compiled=compiled, stage_asked=asked)
    made = torch.Generator().manual_seed(seed)
    tokens, targets = (torch.randint(0, 61, (4, 16), generator=made).to(device()) for _ in range(2))
    targets[:, :3] = IGNORED
    engine.train_mode(True)
    found = []
    for step in range(3):
        torch.manual_seed(step)
        nll = engine.token_nll(tokens, Loss(targets))
        engine.backward(nll.sum() / 52)
        found.append(float(nll.detach().sum()) / 52)
    engine.train_mode(False)
    with torch.no_grad():
        logits = engine.logits(tokens)
        plain = type(engine.module).forward(engine.module, input_ids=tokens, use_cache=False).logits
        assert torch.equal(logits, plain), "it is not compiled"
    engine.close()
    return found, logits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "asked"), [("fp32", True), ("bf16", True), ("bf16", False)])
def test_a_compiled_fit_is_the_plain_one_up_to_rounding(
    ranks: Any, traced: None, precision: str, asked: bool
) -> None:
    """Dropout draws the same numbers. The program is made once and leaves no memory behind."""
    near = {"fp32": 1e-5, "bf16": 1e-3}[precision]
    before, made = held(), programs()
    for seed in (1, 2):
        (plain, logits), (found, other) = (
            losses(compiled, precision, asked, seed) for compiled in (False, True)
        )
        assert found == pytest.approx(plain, rel=near) and found[-1] < found[0]
        assert losses(True, precision, asked, seed)[0] == found
        del logits, other
    assert held() - before < 20_000
    assert programs() == made + 1


SECTION = Lora(kind="lora", rank=2, targets=("attn.c_proj",))


@pytest.mark.parametrize(
    "case",
    ["llama", "anchor", "among", "filled", "recomputed", "adapted", "odd vocabulary", "bf16", "onednn"],
)
def test_what_a_fit_is_asked_for_can_be_compiled(
    case: str, traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one program without breaks, with the gradients of the plain one."""
    tokens = torch.from_numpy(np.random.default_rng(0).integers(1, 50, (3, 20)))
    tokens[:, :4] = 0
    fill = 0 if case == "filled" else None
    reference = torch.randn((3, 20, 61)) if case == "anchor" else None
    anchor = Anchor(loss="kl", weight=0.5) if case == "anchor" else None
    loss = Loss(tokens.roll(-1, dims=1), 50 if case == "among" else None, anchor, reference)
    monkeypatch.setattr(products, "is_faster", lambda: case == "onednn")
    monkeypatch.setattr(products, "MANY", 0)
    found = []
    for is_compiled in (False, True):
        model = small("llama" if case == "llama" else "gpt2", dropout=0.1).train()
        if case == "adapted":
            values = adapters.new_values(model, SECTION, 0, 0)
            adapters.attach(model, SECTION, {name: value + 0.1 for name, value in values.items()})
        if case == "odd vocabulary":
            align_head(model)
        model = model.bfloat16() if case == "bf16" else model
        prepare_fit(model, torch.device("cpu"), None, case == "recomputed")
        inputs = {"input_ids": tokens, **hidden(tokens, fill)}
        torch.manual_seed(3)
        if is_compiled:
            compile_fit(model, case)
            nll = model(loss=loss, **inputs)
        else:
            nll = loss_of(model(use_cache=False, **inputs).logits, loss)
        nll.sum().backward()
        grads = [
            p.grad.flatten().float() for p in model.parameters() if p.requires_grad and p.grad is not None
        ]
        found.append((nll.detach(), torch.cat(grads)))
    near = 1e-5 if case != "bf16" else 2e-2
    torch.testing.assert_close(found[1][0], found[0][0], rtol=near, atol=near)
    assert float((found[1][1] - found[0][1]).norm() / found[0][1].norm()) < near


@pytest.mark.parametrize("device", WHERE)
def test_logits_of_an_odd_vocabulary_are_the_same(device: torch.device) -> None:
    plain, padded = small("gpt2").to(device), small("gpt2").to(device)
    align_head(padded)
    tokens = torch.arange(40, device=device).view(2, 20)
    for model in (plain, padded):
        model(input_ids=tokens).logits.float().logsumexp(-1).sum().backward()
    assert padded(input_ids=tokens).logits.shape == (2, 20, 61)
    torch.testing.assert_close(padded(input_ids=tokens).logits, plain(input_ids=tokens).logits)
    for (name, one), (_, other) in zip(plain.named_parameters(), padded.named_parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_recorded_steps_read_what_plain_ones_read(architecture: str, device: torch.device) -> None:
    model = small(architecture).to(device)
    assert can_step(model)
    if (
        architecture == "opt" and device.type == "cuda"
    ):  # its forward pass asks for a length, which a recording cannot answer
        sampler = Sampler(model, Sample(), bos=0, eos=0)
        assert isinstance(sampler._reader(3, 20), TokenReader)
        return
    texts = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (3, 20))).to(device)
    step = StepReader(model, 3, 20)
    with torch.inference_mode():
        for start in (5, 1, 5):  # texts of other lengths one after another, through one recorded step
            plain, first = TokenReader(model, cached=True), slice(0, start)
            step.restart()
            torch.testing.assert_close(step(texts[:, first]), plain(texts[:, first]))
            for position in range(start, 20):
                new = texts[:, position : position + 1]
                torch.testing.assert_close(step(new), plain(new))


@pytest.mark.parametrize(
    ("architecture", "kv_heads"),
    [("gpt2", None), ("llama", None), ("llama", 1), ("opt", None), ("diffllama", None)],
)
def test_a_reader_with_room_reads_what_a_whole_pass_does(architecture: str, kv_heads: int | None) -> None:
    """Attention is computed in both of its ways, and the room grows; also where heads share keys, and where
    values are others than those that are kept (DiffLlama)."""
    model = small(architecture, kv_heads=kv_heads) if architecture != "diffllama" else differential()
    texts = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (3, 45)))
    with torch.inference_mode():
        whole = model(input_ids=texts, use_cache=False).logits
        for start in (5, 1, 33):
            read = TokenReader(model, cached=True, length=45)
            torch.testing.assert_close(read(texts[:, :start]), whole[:, start - 1])
            for position in range(start, 45):
                torch.testing.assert_close(read(texts[:, position : position + 1]), whole[:, position])
            for room in read._cache.layers[0]._room:
                assert room.is_contiguous() and room.shape[2] == 64 and not room[:, :, 45:].any()


def test_attention_of_one_token_in_bf16_loses_nothing() -> None:
    """Read token by token in bf16, logits are as near to those in fp32 as a whole pass in bf16 is."""
    texts = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (8, 40)))
    exact, model = small(kv_heads=1), small(kv_heads=1).bfloat16()
    with torch.inference_mode():
        wanted = exact(input_ids=texts, use_cache=False).logits
        whole = model(input_ids=texts, use_cache=False).logits.float()
        read = TokenReader(model, cached=True, length=40)
        steps = torch.stack([read(texts[:, at : at + 1]) for at in range(40)], dim=1).float()
    assert (steps - wanted).square().mean() < 1.5 * (whole - wanted).square().mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_reading_models_layers_are_those_of_torch(architecture: str, dtype: torch.dtype) -> None:
    model = small(architecture).to(dtype)
    tokens = torch.randint(0, 61, (3, 40), generator=torch.Generator().manual_seed(0))
    plain = model(tokens).logits.float()
    with torch.inference_mode():
        found = fuse_layers(model)(tokens).logits.float()
    layers = sum(type(part).__name__ == "_LinearGelu" for part in model.modules())
    has_it = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert layers == (2 if architecture == "gpt2" and has_it else 0)
    assert torch.allclose(found, plain, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.02)
    assert torch.equal(found, plain) == (layers == 0)


def test_only_what_reads_has_layers_of_onednn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that will be fitted keeps the library's layers, which have gradients and a file's names."""
    from harness.learners.language_model import inference, model

    made = small("gpt2")
    model.write_model(tmp_path, made.config, model.weights_of(made))
    section = SimpleNamespace(train=Train(precision="fp32"))
    monkeypatch.setattr(inference, "fitted", lambda spec: section)
    reads = inference.Inference(*[SimpleNamespace(models=None)] * 3)  # type: ignore[arg-type]
    reads.device = torch.device("cpu")
    for found, layers in ((reads.model(None, tmp_path), 2), (model.model_to_fit(tmp_path, None), 0)):
        assert sum(type(part).__name__ == "_LinearGelu" for part in found.modules()) == layers


def test_a_compiled_gelu_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-30, 30, 6001)
    wanted = torch.nn.functional.gelu(x.double(), approximate="tanh")
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(_Gelu()(x).double(), wanted, rtol=1e-5, atol=1e-7)
    assert torch.equal(_Gelu()(x.bfloat16()), _Gelu()(x.bfloat16().float()).bfloat16())


def test_drift_is_what_its_formulas_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all tokens at once, in fp64; representations that are turned and shifted are the same."""
    from harness.learners.language_model import drift
    from harness.records import Examples

    made = np.random.default_rng(0)
    values, lengths = made.integers(0, 61, (7, 12)).astype(np.int32), made.integers(3, 13, 7).astype(np.int32)
    models = small("gpt2"), small("llama")
    monkeypatch.setattr(drift, "BATCH_TOKENS", {"cpu": 24})
    found = drift.drift(*models, Examples(values, lengths), 0, 2, lambda: None)
    used = torch.from_numpy((np.arange(12) >= 2) & (np.arange(12) < lengths[:, None]))
    inputs = torch.from_numpy(np.pad(values[:, :-1], ((0, 0), (1, 0)))).long()
    with torch.inference_mode():
        read = [model(input_ids=inputs, output_hidden_states=True) for model in models]
    p, q = (one.logits[used].double().softmax(-1) for one in read)
    x, y = (one.hidden_states[-1][used].double() for one in read)
    assert found[0] == pytest.approx(float(-(p * p.log()).sum(-1).mean()), rel=1e-5)
    assert found[1] == pytest.approx(float((q * (q / p).log()).sum(-1).mean()), rel=1e-4)
    x, y = x - x.mean(0), y - y.mean(0)
    norms = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    assert found[2] == pytest.approx(float(torch.linalg.matrix_norm(y.T @ x) ** 2 / norms), rel=1e-5)
    turned, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))
    alike = drift.Similarity()
    for part in (slice(0, 20), slice(20, None)):
        alike.add(x[part], 3 * x[part] @ turned + 5)
    assert alike.value() == pytest.approx(1)


@pytest.mark.parametrize("device", WHERE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_losses_of_some_tokens_at_a_time_keep_every_bit(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn((3, 20, 61), device=device).to(dtype)
    targets = torch.randint(0, 61, (3, 20), device=device)
    targets[:, 17:] = IGNORED
    weights = torch.rand(3, device=device)
    found = []
    for few, entries in ((10**9, 1), (0, 10**9), (0, 7 * 61), (0, 1)):
        monkeypatch.setattr(scoring, "FEW", few)
        monkeypatch.setattr(scoring, "ENTRIES", dict.fromkeys(scoring.ENTRIES, entries))
        own = logits.detach().requires_grad_()
        nll = sequence_nll(own, targets)
        (nll * weights).sum().backward()
        with torch.inference_mode():
            assert torch.equal(sequence_nll(logits, targets), nll)
        found.append((nll.detach(), own.grad))
    for nll, gradient in found:
        assert torch.equal(nll, found[0][0]) and torch.equal(gradient, found[0][1])
    exact = logits.detach().double().requires_grad_()
    wide = torch.nn.functional.cross_entropy(exact.transpose(1, 2), targets, reduction="none").sum(dim=1)
    (wide * weights).sum().backward()
    assert exact.grad is not None
    assert torch.allclose(found[0][0].double(), wide, rtol=1e-5)
    near = {"rtol": torch.finfo(dtype).eps, "atol": 1e-6}  # rounded once
    assert torch.allclose(found[0][1].double(), exact.grad, **near)
    assert sequence_nll(logits[:, :0], targets[:, :0]).tolist() == [0.0] * 3


@pytest.mark.gpu
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_a_batch_is_the_same_whatever_was_drawn_before(architecture: str) -> None:
    model = small(architecture).to("cuda", torch.bfloat16)
    sampler = Sampler(model, Sample(), bos=0, eos=0)
    first = [draw_batch(sampler, None, 0, 24, 1, 0, start, 64).values for start in (0, 64, 128)]
    other = Sampler(model, Sample(), bos=0, eos=0)
    for number in (2, 0, 1):
        assert (draw_batch(other, None, 0, 24, 1, 0, 64 * number, 64).values == first[number]).all()


class _Scattered(nn.Module):
    """An operation without a deterministic kernel on a GPU."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(values, scale_factor=2.0, mode="linear")


@pytest.mark.gpu
def test_what_cannot_be_reproduced_is_refused(ranks: Any) -> None:
    from harness.errors import LearnerError
    from harness.learners.language_model.cuda import deterministic

    values = torch.ones((1, 2, 8), device="cuda", requires_grad=True)
    with pytest.raises(LearnerError, match="resources.deterministic"), deterministic(values.device, True):
        _Scattered()(values).sum().backward()
    with deterministic(values.device, False):
        _Scattered()(values).sum().backward()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_kernels_of_a_fit_give_the_librarys_gradients(architecture: str, precision: torch.dtype) -> None:
    """The library's own model in fp32 is the truth; that in bf16 says how much rounding moves a gradient."""
    from transformers import AutoModelForCausalLM

    heads = {"num_kv_heads": 2} if architecture == "llama" else {}
    section = Model(architecture=architecture, num_layers=2, width=32, num_heads=4, context=48, **heads)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (3, 33)))

    def gradients(model: Any) -> torch.Tensor:
        model.eval()(input_ids=tokens, labels=tokens).loss.backward()
        return torch.cat([p.grad.flatten().float() for p in model.parameters()])

    ours = new_model(section, 61, 48, 0, 0, seed=1)
    theirs, rounded = (AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32) for _ in range(2))
    for other in (theirs, rounded):
        other.load_state_dict(ours.state_dict())
    prepare_fit(ours, torch.device("cpu"))
    assert ours.config._attn_implementation == IN_FP32
    truth, found = gradients(theirs), gradients(ours.to(precision))
    norm = float(truth.norm())
    rounding = float((gradients(rounded.to(precision)) - truth).norm()) / norm
    allowed = 1e-5 if precision == torch.float32 else 1.2 * rounding
    assert float((found - truth).norm()) / norm <= allowed


def test_sparse_attention_leaves_out_what_it_has_not_selected() -> None:
    """In a fit and in what is written, as in the library; from the first token on that is not selected."""
    from transformers import AutoModelForCausalLM, DeepseekV32Config

    sizes = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 2}
    # with few heads many tokens have the same score, 0, and which of these are selected is open
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "index_n_heads": 16, "index_head_dim": 16}
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    parts = {**sizes, **heads, **ranks, **experts, "v_head_dim": 16, "vocab_size": 61}
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 61, (3, 60)))
    found = {}
    for topk in (48, 60):
        torch.manual_seed(0)
        config = DeepseekV32Config(**parts, index_topk=topk)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            wanted = model(input_ids=tokens, use_cache=False).logits
            reader = TokenReader(model, behaviour(config).cached, length=60)
            written = torch.stack([reader(token) for token in tokens.split(1, dim=1)], dim=1)
            prepare_fit(model, torch.device("cpu"))
            found[topk] = model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(written, wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found[topk], wanted, rtol=1e-4, atol=1e-4)
    later = (found[48] - found[60]).abs().amax(dim=(0, 2))
    assert later[:48].max() < 1e-4 < later[48:].max()


def test_an_architecture_is_asked_with_a_reach_that_its_texts_exceed() -> None:
    """A window of 4,096 tokens is no window for the 40 that are read."""
    from transformers import AutoConfig

    from harness.learners.language_model.behaviour import REACH, _copies

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 61}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    for kind, name in (("mistral", "sliding_window"), ("llama4_text", "attention_chunk_size")):
        config = AutoConfig.for_model(kind, **sizes, **heads)
        assert getattr(config, name) > REACH
        assert all(getattr(copied, name) == REACH for copied in _copies(config))
        assert behaviour(config).cached and getattr(config, name) > REACH
