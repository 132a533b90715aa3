"""A model that scores more tokens than its tokenizer knows: only the known ones are drawn, so what is said of
completions that it drew is said of the distribution over these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import run_all
from chats import chat
from conftest import Make, installed, merged

from harness.preparation import load_data

installed("deepspeed")

import torch

from harness.learners.language_model.model import read_model
from harness.learners.language_model.scoring import score

pytestmark = pytest.mark.slow
SCORED = 512
"""Tokens that the model scores; its tokenizer knows some 300."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small GPT-2 that answers sums as it is in generation 0, mostly to an end."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    found = chat(tmp_path_factory.mktemp("padded"), answer="result", extract="#### (.*)")
    folder = Path(found["data"]["tokenizer"]["name"])
    torch.manual_seed(0)
    sizes = {"n_positions": 96, "n_embd": 16, "n_layer": 1, "n_head": 2, "initializer_range": 0.5}
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=SCORED, **sizes, **no_dropout))
    end = PreTrainedTokenizerFast.from_pretrained(folder).eos_token_id
    with torch.no_grad():  # the end becomes likelier, by 4 nats in the mean
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[end] = 4.0 * torch.eye(16)[0]
    model.save_pretrained(folder)
    as_it_is = {"max_steps": 0, "batch_size": 24, "precision": "fp32"}
    return merged(
        found,
        {"learner.model": {"pretrained": str(folder)}, "learner.train": as_it_is, "retention.weights": "all"},
    )


def nodes(prepared: Any) -> list[Any]:
    return sorted(prepared.lineage.nodes.values(), key=lambda node: node.generation)


def test_a_model_is_at_no_distance_from_itself(
    base: dict[str, Any], make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    """No completion passes, so nothing is learned: all generations have the pretrained model's weights."""
    nothing = {"learner.later": {"max_steps": 1}, "filters": [{"kind": "judge", "judge": "exact"}]}
    config = make_config(base, **{"evaluate.task.pretrained": True, **nothing})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second = nodes(prepared)
    records = [store.record(node.evaluation).metrics for node in (first, second)]
    for record in records:
        assert record["task/kl"] == pytest.approx(0, abs=1e-6)
        assert record["task/kl_pretrained"] == pytest.approx(0, abs=1e-6)
    examples = store.corpora.load(first.corpus, 24)
    model = read_model(store.path("fits", first.fit), torch.float32, torch.device("cpu"))
    data = load_data(prepared.specs[0].data, store)
    known = int(data.meta["vocab_size"])
    assert known < SCORED
    drawn = np.nansum(examples.notes["logprob"].astype(np.float64), axis=1)
    of_all = -score(model, examples, None, masked=data.prompt_tokens, fill=data.fill)
    tokens = examples.lengths - data.prompt_tokens
    assert (drawn - of_all).sum() > 0.2 * tokens.sum(), "what nobody can write takes a good part of the mass"
    of_known = -score(model, examples, None, masked=data.prompt_tokens, fill=data.fill, tokens=known)
    np.testing.assert_allclose(of_known, drawn, atol=1e-4)


def test_what_is_drawn_is_reinforced_as_it_was_drawn(
    base: dict[str, Any], make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    """At the first step the model is the one that drew, and its reference: all ratios are 1, and the loss of
    whole groups is minus the sum of their advantages, which is 0."""
    judge = {"kind": "judge", "judge": "noisy", "false_accept": 0.5, "choose": "all"}
    reinforced = {
        "learner.objective": {"kind": "reinforce", "kl": 1.0},
        "learner.later": {"max_steps": 1},
        "filters": [judge],
    }
    prepared, store = run_all(make_config(base, **reinforced), tmp_path / "root", ranks=ranks)
    fit = store.json("fits", nodes(prepared)[1].fit, "fit.json")
    assert fit.get("judge", "") == "" and fit["log"]["steps"] == 1
    known = int(load_data(prepared.specs[0].data, store).meta["vocab_size"])
    assert nodes(prepared)[1].spec.fit.to_json()["learner"]["objective"]["tokens"] == known
    assert fit["log"]["train_loss"][0] == pytest.approx(0, abs=1e-5)
