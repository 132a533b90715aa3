"""Every switch that changes published results (docs/switches.md) changes the key and the result of what it is
said to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chains import open_prepared, run_all
from chats import chat
from conftest import TASK, TEXT, merged

from harness.errors import ConfigError, LearnerError
from harness.preparation import load_data
from harness.science import Node
from harness.store import Store

pytest.importorskip("torch")

NATURAL = {"learner.sample.length": "natural"}
PROMPTED = {"learner.sample.prompt": "real_prefix", "learner.sample.prompt_tokens": 4}
KEPT = {**PROMPTED, "learner.sample.keep_prompt": True}
PENALISED = {**PROMPTED, "learner.sample.repetition_penalty": 2.0}
MARKED = {"learner.sample.watermark": {}}
MIXTURE = {"mixture": [{"share": 0.5, "temperature": 0.5}, {"share": 0.5, "top_k": 5}]}
ANCHOR = {"learner.train.anchor": {"weight": 0.5}}
MIXED = {"regime.synthetic_ratio": 0.5}
GROWN = {"regime": {"kind": "accumulate"}}
ARRIVING = {"regime": {"kind": "stream", "synthetic_ratio": 0.5, "pool": 2.0}}
DETECTOR = {"kind": "detector", "examples": 16}
SIMILAR = {"kind": "near_duplicate", "n": 1, "max_similarity": 0.3}
CURATED = {"kind": "curate", "of": 2, "rewards": {"distinct_2": 1.0}, "choose": "best"}
LIKELY = {"kind": "select", "score": "likelihood", "keep": 0.5, "reference": 16}
OVERFITTED = {
    "data.num_examples": 16,
    "learner.train": {"epochs": 40, "batch_size": 8, "learning_rate": 0.05, "schedule": "constant"},
    "generations": 0,
}

SWITCHES: list[tuple[str, dict[str, Any], dict[str, Any], str, int]] = [
    # the switch, what both chains have, what one has more, what must differ, in which generation
    ("init: previous", {}, {"learner.init": "previous"}, "weights", 1),
    ("prompt: real_prefix", {}, PROMPTED, "corpus", 0),
    ("prompt: previous_prefix", PROMPTED, {"learner.sample.prompt": "previous_prefix"}, "corpus", 1),
    ("prompt_tokens", PROMPTED, {"learner.sample.prompt_tokens": 16}, "corpus", 0),
    ("keep_prompt", PROMPTED, {"learner.sample.keep_prompt": True}, "corpus", 0),
    ("temperature", {}, {"learner.sample.temperature": 0.5}, "corpus", 0),
    ("temperatures", {}, {"learner.sample": {"temperatures": [1.0, 0.5]}}, "corpus", 1),
    ("mixture", {}, {"learner.sample": MIXTURE}, "corpus", 0),
    ("top_k", {}, {"learner.sample.top_k": 5}, "corpus", 0),
    ("top_p", {}, {"learner.sample.top_p": 0.5}, "corpus", 0),
    ("min_p", {}, {"learner.sample.min_p": 0.2}, "corpus", 0),
    ("typical_p", {}, {"learner.sample.typical_p": 0.5}, "corpus", 0),
    ("watermark", {}, MARKED, "corpus", 0),
    ("watermark: gamma", MARKED, {"learner.sample.watermark": {"gamma": 0.5}}, "corpus", 0),
    ("watermark: delta", MARKED, {"learner.sample.watermark": {"delta": 4.0}}, "corpus", 0),
    ("watermark: context", MARKED, {"learner.sample.watermark": {"context": 2}}, "corpus", 0),
    ("filter: watermark", MARKED, {"filters": [{"kind": "watermark", "threshold": 4.0}]}, "weights", 1),
    ("truncate", {}, {"learner.train.truncate": 0.05}, "weights", 0),
    ("synthetic_weight", MIXED, {"learner.train.synthetic_weight": 0.5}, "weights", 1),
    ("synthetic_weight: golden", MIXED, {"learner.train.synthetic_weight": "golden"}, "weights", 1),
    ("anchor", {}, ANCHOR, "weights", 1),
    ("anchor: loss", ANCHOR, {"learner.train.anchor": {"weight": 0.5, "loss": "kl"}}, "weights", 1),
    ("anchor: weight", ANCHOR, {"learner.train.anchor": {"weight": 0.9}}, "weights", 1),
    ("merge", {"learner.init": "previous"}, {"learner.train.merge": 0.5}, "weights", 1),
    ("num_beams", PROMPTED, {"learner.sample.num_beams": 3}, "corpus", 0),
    (
        "number of beams",
        {**PENALISED, "learner.sample.num_beams": 2},
        {"learner.sample.num_beams": 5},
        "corpus",
        0,
    ),
    ("repetition_penalty", PROMPTED, {"learner.sample.repetition_penalty": 2.0}, "corpus", 0),
    ("penalize_prompt", PENALISED, {"learner.sample.penalize_prompt": False}, "corpus", 0),
    (
        "penalised beams",
        {**PROMPTED, "learner.sample.num_beams": 2},
        {"learner.sample.repetition_penalty": 2.0},
        "corpus",
        0,
    ),
    ("length", {}, NATURAL, "corpus", 0),
    ("min_new_tokens", NATURAL, {"learner.sample.min_new_tokens": 8}, "corpus", 0),
    ("forbid_eos", {}, {"learner.sample.forbid_eos": True}, "corpus", 0),
    ("separator", {}, {"data.separator": "none"}, "weights", 0),
    ("prepend_bos", PROMPTED, {"data.prepend_bos": False}, "weights", 0),
    ("loss", KEPT, {"learner.train.loss": "continuation"}, "weights", 0),
    (
        "masked prompt_tokens",
        {**KEPT, "learner.train.loss": "continuation"},
        {"learner.sample.prompt_tokens": 8},
        "weights",
        0,
    ),
    ("weights: best", OVERFITTED, {"learner.train.weights": "best"}, "weights", 0),
    ("mix: ratio", {}, {"regime.synthetic_ratio": 0.5}, "weights", 1),
    ("mix: fixed real part", {"regime.synthetic_ratio": 0.5}, {"regime.real_part": "fixed"}, "weights", 1),
    ("mix: replace_grown", {}, {"regime": {"kind": "replace_grown"}}, "weights", 1),
    ("mix: accumulate", {"regime": {"kind": "replace_grown"}}, GROWN, "weights", 1),
    ("mix: accumulate_subsample", {}, {"regime": {"kind": "accumulate_subsample"}}, "weights", 1),
    ("mix: augment", GROWN, {"regime": {"kind": "augment", "synthetic_ratio": 0.25}}, "weights", 1),
    (
        "mix: fresh_real",
        {"regime.synthetic_ratio": 0.5},
        {"regime": {"kind": "fresh_real", "synthetic_ratio": 0.5}},
        "weights",
        1,
    ),
    ("budget: steps", GROWN, {"regime.budget": "steps"}, "weights", 1),
    (
        "budget: tokens",
        {**GROWN, **NATURAL, "regime.budget": "steps"},
        {"regime.budget": "tokens"},
        "weights",
        1,
    ),
    ("filter: deduplicate", NATURAL, {"filters": [{"kind": "deduplicate"}]}, "weights", 1),
    ("filter: repetition", {}, {"filters": [{"kind": "repetition", "n": 1, "max_share": 0.4}]}, "weights", 1),
    ("filter: near_duplicate", ARRIVING, {"filters": [SIMILAR]}, "weights", 1),
    ("filter: curate", ARRIVING, {"filters": [CURATED]}, "weights", 1),
    ("filter: select", ARRIVING, {"filters": [LIKELY]}, "weights", 1),
    ("filter: diverse", ARRIVING, {"filters": [{"kind": "diverse", "keep": 0.5}]}, "weights", 1),
    ("filter: random", ARRIVING, {"filters": [{"kind": "random", "keep": 0.5}]}, "weights", 1),
    ("filter: label", ARRIVING, {"filters": [{"kind": "label", "recall": 0.9}]}, "weights", 1),
    ("stream: history", ARRIVING, {"regime.history": "all"}, "weights", 1),
    ("stream: anchor", ARRIVING, {"regime.anchor": 0.5}, "weights", 1),
    ("growth", {}, {"regime.growth": {"power": 1.0}}, "weights", 1),
    ("filter: detector", ARRIVING, {"filters": [DETECTOR]}, "weights", 1),
    (
        "filter: detector: features",
        {**ARRIVING, "filters": [DETECTOR]},
        {"filters": [{**DETECTOR, "features": "likelihood", "reference": 16}]},
        "weights",
        1,
    ),
    ("perplexity_batch", {}, {"evaluate.perplexity_batch": 3}, "metrics", 0),
    ("drift", {}, {"evaluate.drift": {}}, "metrics", 1),
    ("drift: examples", {"evaluate.drift": {}}, {"evaluate.drift": {"examples": 8}}, "metrics", 1),
    ("seed", {}, {"seed": 1}, "corpus", 0),
]
KEYS: dict[str, Callable[[Node], str]] = {
    "weights": lambda node: node.fit,
    "corpus": lambda node: node.corpus,
    "metrics": lambda node: node.evaluation,
}


def output(store: Store, node: Node, what: str) -> Any:
    if what == "weights":
        return (store.path("fits", node.fit) / "model.safetensors").read_bytes()
    if what == "corpus":
        found = store.corpora.load(node.corpus, 32)
        return found.values.tobytes() + found.lengths.tobytes()
    record = store.record(node.evaluation)
    assert record is not None
    return record.metrics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Short documents with the end-of-text token behind each, so that a tiny model learns where texts end."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    words = ["red", "green", "blue", "one two", "three", "four five six", "up", "down", "left and right"]
    lines = (
        f"{words[i % 9]} {words[i * i % 7]} {i % 83}\n\n" if i % 3 else f"{i % 89} {words[i % 5]}\n\n"
        for i in range(4000)
    )
    path.write_text("".join(lines))
    changes = {
        "data.source": str(path),
        "data.tokenizer.vocab_size": 280,
        "data.separator": "eos",
        "learner.train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.01},
        "generations": 1,
        "evaluate.prompts": 1,
    }
    return merged(TEXT, changes)


@pytest.fixture(scope="module")
def chain_of(
    ranks: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any]], tuple[Store, list[Node]]]:
    """Run a configuration on a store that all share: a switch computes no more than what it changes."""
    folder = tmp_path_factory.mktemp("switches")

    def run(config: dict[str, Any]) -> tuple[Store, list[Node]]:
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        prepared, store = run_all(path, folder / "root", ranks=ranks)
        return store, [prepared.lineage.nodes[key] for key in prepared.lineage.chains[0].nodes]

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("common", "changed", "what", "generation"), [pytest.param(*rest, id=name) for name, *rest in SWITCHES]
)
def test_a_switch_changes_the_key_and_the_result(
    base: dict[str, Any],
    chain_of: Any,
    common: dict[str, Any],
    changed: dict[str, Any],
    what: str,
    generation: int,
) -> None:
    without, with_switch = merged(base, common), merged(base, {**common, **changed})
    (store, first), (_, second) = chain_of(without), chain_of(with_switch)
    a, b = first[generation], second[generation]
    assert KEYS[what](a) != KEYS[what](b)
    assert output(store, a, what) != output(store, b, what)


TRAINED = {"kind": "judge", "judge": "trained", "choose": "best", "examples": 60, "false_accept": 0.5}
VERDICT = {"kind": "judge", "judge": "verdict", "choose": "best"}
LIKELIEST = {"kind": "judge", "judge": "self", "choose": "best"}
FIRST = {"kind": "judge", "judge": "noisy", "false_accept": 1.0}
LEARNED = {  # so long that answers end, and are judged
    "learner.train": {"epochs": 30, "batch_size": 8, "learning_rate": 1e-2, "precision": "fp32"},
    "learner.later": {"epochs": 1},
}
JUDGES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    # the judge's switch, the filter of one chain, and of the other; what is learned from them must differ
    ("trained", FIRST, TRAINED),
    ("trained: examples", TRAINED, {**TRAINED, "examples": 40}),
    ("trained: ngram", TRAINED, {**TRAINED, "ngram": 1}),
    ("trained: regularisation", TRAINED, {**TRAINED, "regularisation": 1000.0}),
    ("trained: false_accept", TRAINED, {**TRAINED, "false_accept": 0.2}),
    ("verdict", LIKELIEST, VERDICT),
    ("verdict: ask", VERDICT, {**VERDICT, "ask": "{completion}? {prompt}"}),
    ("verdict: yes and no", VERDICT, {**VERDICT, "yes": "No", "no": "Yes"}),
    ("verdict: by", VERDICT, {**VERDICT, "by": "initial"}),
    ("by_lot", LIKELIEST, {**LIKELIEST, "by_lot": True}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("one", "other"), [pytest.param(*rest, id=name) for name, *rest in JUDGES])
def test_a_judges_switch_changes_the_key_and_the_result(
    chain_of: Any, tmp_path_factory: pytest.TempPathFactory, one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Of the fit of generation 2, which reads what generation 1 wrote."""
    config = TASK
    if "verdict" in (one["judge"], other["judge"]):
        folder = tmp_path_factory.getbasetemp() / "questions"
        folder.mkdir(exist_ok=True)
        config = merged(chat(folder), {"learner.model.context": 256, "generations": 2, **LEARNED})
    (store, first), (_, second) = (chain_of({**config, "filters": [item]}) for item in (one, other))
    assert first[2].fit != second[2].fit and first[0].fit == second[0].fit
    assert output(store, first[2], "weights") != output(store, second[2], "weights")


def test_a_generation_has_the_key_of_its_own_temperature(base: dict[str, Any], tmp_path: Path) -> None:
    """One temperature for all, or the same for each, is the same science; another one later changes nothing
    before it, and then the corpus but not the fit that writes it."""

    def nodes(sample: dict[str, Any]) -> list[Node]:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(merged(base, {"learner.sample": sample})))
        prepared, _ = open_prepared(path, tmp_path / "root")
        return list(prepared.lineage.nodes.values())

    plain, each = nodes({"temperature": 0.5}), nodes({"temperatures": [0.5, 0.5]})
    assert [node.evaluation for node in plain] == [node.evaluation for node in each]
    later = nodes({"temperatures": [0.5, 0.9]})
    assert later[0].evaluation == plain[0].evaluation
    assert later[1].fit == plain[1].fit and later[1].corpus != plain[1].corpus
    assert all(node.spec.corpus.sampling.section.temperature == 0.9 for node in later[1:])
    with pytest.raises(ConfigError, match="temperatures are in the place of temperature"):
        nodes({"temperature": 0.5, "temperatures": [0.5]})
    with pytest.raises(ConfigError, match="so top_k must be in its items"):
        nodes({**MIXTURE, "top_k": 5})
    with pytest.raises(ConfigError, match=r"the shares sum to 0.9, not to 1"):
        nodes({"mixture": [{"share": 0.5}, {"share": 0.4}]})
    with pytest.raises(ConfigError, match=r"mixture.0.share: found 0"):
        nodes({"mixture": [{"share": 0}, {"share": 1}]})


@pytest.mark.slow
def test_nothing_has_drifted_in_generation_0(base: dict[str, Any], chain_of: Any) -> None:
    """And nothing does where the weights stay as they are; elsewhere it is told from that."""
    found = {}
    for share in (0.0, 1.0):
        changes = {
            "learner.init": "previous",
            "learner.train.merge": share,
            "evaluate.drift": {"examples": 8},
        }
        store, nodes = chain_of(merged(base, changes))
        found[share] = [output(store, node, "metrics") for node in nodes]
    for same in (found[1.0][0], found[0.0][1]):
        assert same["drift/kl"] == 0 and same["drift/cka"] == pytest.approx(1)
    moved = found[1.0][1]
    assert moved["drift/kl"] > 0 and moved["drift/cka"] < 1 - 1e-6
    assert 0 < moved["drift/entropy"] < np.log(280)


@pytest.mark.slow
def test_merging_goes_so_far_along_the_way(base: dict[str, Any], chain_of: Any) -> None:
    """0 of the way is where it began, to the bit; half of it is the mean; -1 is as far on the other side."""
    from safetensors.torch import load_file

    common = {"learner.init": "previous", "learner.train.precision": "fp32"}
    weights: dict[Any, Any] = {}
    for share in (1.0, 0.0, 0.5, -1.0, "uniform"):
        store, nodes = chain_of(merged(base, {**common, "learner.train.merge": share}))
        weights[share] = load_file(store.path("fits", nodes[1].fit) / "model.safetensors")
    before = load_file(store.path("fits", nodes[0].fit) / "model.safetensors")
    for name, first in before.items():
        whole = weights[1.0][name]
        assert (weights[0.0][name] == first).all()
        assert (weights["uniform"][name] == weights[0.5][name]).all(), "the mean of two generations"
        assert np.allclose(weights[0.5][name], (first + whole) / 2, atol=1e-6)
        assert np.allclose(weights[-1.0][name], 2 * first - whole, atol=1e-6)
    assert any((whole != before[name]).any() for name, whole in weights[1.0].items())


@pytest.mark.slow
def test_init_pretrained_always_starts_from_the_same_weights(
    base: dict[str, Any], chain_of: Any, tmp_path: Path
) -> None:
    """At a learning rate of nearly 0 the fit is where it started: at the pretrained weights, or at new
    ones."""
    import torch
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    from harness.config.schema import Model
    from harness.learners.language_model import model as models

    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    prepared, store = open_prepared(tmp_path / "base.yaml", tmp_path / "root")
    tokenizer = load_data(prepared.specs[0].data, store).tokenizer  # type: ignore[attr-defined]
    folder = tmp_path / "pretrained"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    made = models.new_model(
        Model(architecture="gpt2", num_layers=1, width=16, num_heads=2, context=48), 280, 48, 0, 0, seed=5
    )
    models.write_model(folder, made.config, dict(made.named_parameters()))
    common = {
        "data.tokenizer": {"kind": "pretrained", "name": str(folder)},
        "learner.model": {"pretrained": str(folder)},
        "learner.train": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-12, "precision": "fp32"},
    }
    start = made.transformer.wte.weight.detach()
    keys, distances = [], []
    for init in ("pretrained", "scratch"):
        store, nodes = chain_of(merged(base, {**common, "learner.init": init}))
        keys.append([node.fit for node in nodes])
        weights = [
            load_file(store.path("fits", node.fit) / "model.safetensors")["transformer.wte.weight"]
            for node in nodes
        ]
        distances.append([float((found.float() - start).abs().max()) for found in weights])
    assert set(keys[0]).isdisjoint(keys[1])
    assert max(distances[0]) < 1e-6 and min(distances[1]) > 0.01
    assert torch.isfinite(start).all()


def test_the_hidden_confound_can_be_had_and_left_out(base: dict[str, Any], chain_of: Any) -> None:
    """Where the separator may not be written, real text holds it and synthetic text never does."""
    found = {}
    for separator in ("eos", "none"):
        for forbidden in (False, True):
            changes = {"data.separator": separator, "learner.sample.forbid_eos": forbidden}
            store, nodes = chain_of(merged(base, changes))
            found[separator, forbidden] = (
                store.corpora.load(nodes[0].corpus, 96).values == 0
            ).mean()  # token 0 ends a text
    assert found["eos", False] > 0.05 and found["eos", True] == found["none", True] == 0
    assert found["none", False] < 0.01, "a model that never saw the separator hardly writes it"


def test_natural_length_may_not_end_too_soon(base: dict[str, Any], chain_of: Any) -> None:
    store, nodes = chain_of(merged(base, {**NATURAL, "learner.sample.min_new_tokens": 8}))
    lengths = store.corpora.load(nodes[0].corpus, 96).lengths
    assert lengths.min() > 8 and (lengths < 16).any()


def test_beams_differ_through_their_prompts_alone(base: dict[str, Any], chain_of: Any) -> None:
    store, nodes = chain_of(
        merged(base, {**PROMPTED, "learner.sample.num_beams": 4, "resources.sample_batch": 128})
    )
    corpus = store.corpora.load(
        nodes[0].corpus, 128
    ).values  # a batch is always whole: 96 are needed, 128 are there
    assert (corpus[96:] == corpus[:32]).all() and len(np.unique(corpus[:96], axis=0)) > 1


def test_a_fit_that_reads_prompts_has_their_length_in_its_key(base: dict[str, Any], tmp_path: Path) -> None:
    def fit(loss: str, prompt_tokens: int) -> str:
        changes = {**KEPT, "learner.train.loss": loss, "learner.sample.prompt_tokens": prompt_tokens}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(merged(base, changes)))
        prepared, _ = open_prepared(tmp_path / "c.yaml", tmp_path / "root")
        return next(iter(prepared.lineage.nodes.values())).fit

    assert fit("all", 4) == fit("all", 8)
    assert fit("continuation", 4) != fit("continuation", 8)


def test_the_three_perplexities_differ_and_only_one_has_a_batch(base: dict[str, Any], chain_of: Any) -> None:
    store, nodes = chain_of(base)
    eight = output(store, nodes[0], "metrics")
    store, nodes = chain_of(merged(base, {"evaluate.perplexity_batch": 3}))
    three = output(store, nodes[0], "metrics")
    assert {name for name in eight if eight[name] != three[name]} == {"test/perplexity_batch_mean"}
    assert eight["test/perplexity"] < eight["test/perplexity_sequence_mean"], "Jensen"
    assert eight["test/perplexity"] != three["test/perplexity_batch_mean"], "the last batch is short"


def test_too_many_duplicates_end_a_chain_before_its_record(base: dict[str, Any], chain_of: Any) -> None:
    # all examples are equal: 63 of the 64 that are evaluated are duplicates
    same = {"learner.sample.top_k": 1, "generations": 0}
    store, free = chain_of(merged(base, same))
    assert output(store, free[0], "metrics")["text/duplicate_share"] == pytest.approx(63 / 64)
    with pytest.raises(
        LearnerError,
        match=r"max_duplicate_share: 0.9844 of the first 64 examples of generation 0 .* at most 0.9",
    ):
        chain_of(merged(base, {**same, "evaluate.max_duplicate_share": 0.9}))
    _, allowed = chain_of(merged(base, {**same, "evaluate.max_duplicate_share": 0.99}))
    assert (free[0].fit, free[0].corpus) == (allowed[0].fit, allowed[0].corpus) and free[
        0
    ].evaluation != allowed[0].evaluation
    assert output(store, free[0], "metrics") == output(store, allowed[0], "metrics")
