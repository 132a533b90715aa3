"""Models that are built in parts: the same bits, and under ZeRO-3 no rank that holds a whole one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, PretrainedConfig

from harness.config.schema import Model
from harness.learners.language_model import deferred
from harness.learners.language_model import model as models
from harness.learners.language_model.deferred import Deferred, NotDeferrable
from harness.learners.language_model.parts import construct, new_in_parts, stored_in_parts

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
OURS = ("gpt2", "llama", "opt")
LIBRARYS = ("mistral", "qwen2", "gpt_neox", "mamba", "gemma2", "mixtral")


def config_of(name: str, **changes: Any) -> PretrainedConfig:
    if name in OURS:
        section = Model(architecture=name, num_layers=2, width=32, num_heads=4, dropout=0.1, **changes)
        return models.transformers_config(section, 61, 40, 0, 0)
    return AutoConfig.for_model(name, **SMALL)


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Parameters by all their names, and all buffers."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers()])


def assert_alike(one: Any, other: Any) -> None:
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]) and tensor.dtype == second[name].dtype, name
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in other.named_parameters()]


@pytest.mark.parametrize("name", [*OURS, *LIBRARYS])
def test_a_model_made_in_parts_has_every_bit_of_the_whole(name: str) -> None:
    config, kept = config_of(name), list[torch.nn.Parameter]()
    torch.manual_seed(7)
    whole, after = construct(config), torch.rand(4)
    parted = new_in_parts(config, 7, lambda model: None, kept.append)
    assert parted is not None
    assert torch.equal(torch.rand(4), after), "the generator stands where it stood"
    assert_alike(whole, parted)
    assert sorted(map(id, kept)) == sorted(map(id, parted.parameters())), "each once, tied ones too"


def test_parameters_are_let_go_as_they_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of 12 equal layers never more than one of them is there."""
    section = Model(architecture="gpt2", num_layers=12, width=64, num_heads=4, context=16)
    config = models.transformers_config(section, 61, 16, 0, 0)
    carry_out, most = deferred._carry_out, 0

    def watched(call: Any, real: dict[int, torch.UntypedStorage]) -> None:
        nonlocal most
        carry_out(call, real)
        most = max(most, sum(storage.nbytes() for storage in real.values()))

    def let_go(parameter: torch.nn.Parameter) -> None:
        parameter.data = torch.empty(0)

    monkeypatch.setattr(deferred, "_carry_out", watched)
    assert new_in_parts(config, 7, lambda model: None, let_go) is not None
    whole = sum(tensor.nbytes for tensor in construct(config).parameters())
    assert 0 < most < whole / 12


@pytest.mark.parametrize("name", [*OURS, "mistral"])
def test_a_stored_model_read_in_parts_is_the_stored_one(name: str, tmp_path: Path) -> None:
    model = construct(config_of(name))
    models.write_model(tmp_path, model.config, dict(model.named_parameters()))
    expected = models.read_model(tmp_path, torch.float32, torch.device("cpu"))
    kept: list[torch.nn.Parameter] = []
    assert_alike(expected, models.model_to_fit(tmp_path, kept.append))
    assert sorted(map(id, kept)) and len(kept) == len(list(expected.parameters())), "read in parts"


def test_what_the_library_would_rename_is_left_to_it(tmp_path: Path) -> None:
    config = config_of("gpt2")
    model = construct(config)
    state = dict(model.named_parameters())
    bare, shared = {n.removeprefix("transformer."): t for n, t in state.items()}, model.lm_head.weight
    cases = {
        "published without a head": (bare, True),
        "a weight too many": ({**state, "score.weight": torch.zeros(3)}, False),
        "a weight too few": (dict(list(state.items())[:-1]), False),
        "another shape": ({**state, "transformer.ln_f.bias": torch.zeros(3)}, False),
        "a shared weight twice": ({**state, "lm_head.weight": shared}, True),
        "a shared weight of two values, which is not shared then": (
            {**state, "lm_head.weight": 2 * shared},
            False,
        ),
    }
    for number, (says, (weights, fits)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file(
            {name: tensor.detach().clone() for name, tensor in weights.items()}, folder / "model.safetensors"
        )
        found = stored_in_parts(folder, config, lambda model: None, lambda parameter: None)
        assert (found is not None) == fits, says
        if found is not None:
            assert_alike(model, found)


def test_what_looks_at_values_is_not_deferred() -> None:
    config = config_of("llama")

    def looks() -> Any:
        model = construct(config)
        return model if float(model.model.norm.weight.sum()) else None

    def draws() -> Any:
        torch.tensor([0.0]).normal_()
        return construct(config)

    def hides() -> Any:
        model = construct(config)
        model.model.table = model.model.norm.weight * 2
        return model

    for build in (looks, draws, hides):
        before = torch.get_rng_state()
        with pytest.raises(NotDeferrable):
            Deferred(build)
        assert torch.equal(torch.get_rng_state(), before)
