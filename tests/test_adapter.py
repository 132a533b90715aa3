"""Adapters: W + alpha / rank B A; what is trained, stored, gone on from, and refused where senseless."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from chains import Events, contents, run_all
from conftest import TASK, TEXT, Make, installed, merged
from hub_endpoint import Hub

from harness.api import Results
from harness.components.adapter import Lora
from harness.config.schema import Model
from harness.errors import InputError, LearnerError
from harness.inspection.planner import disk_bytes
from harness.inspection.pull import pull
from harness.inventory.memory import memory_of
from harness.inventory.retention import kept_fits
from harness.science import Node
from harness.store import Store
from harness.study import Prepared, open_study

torch = pytest.importorskip("torch")
installed("deepspeed", "peft")
from safetensors.torch import load_file

from harness.learners.language_model import adapter as adapters
from harness.learners.language_model import model as models
from harness.learners.language_model import training
from harness.learners.language_model.behaviour import on_meta
from harness.learners.language_model.checkpoint import load_tree

RANK = 2
BASE = merged(
    TASK,
    {
        "learner.train": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-2, "precision": "fp32"},
        "learner.adapter": {"kind": "lora", "rank": RANK, "alpha": 4.0},
        "retention": {"weights": "all"},
    },
)
SEPARATE = {"learner.adapter.weights": "separate"}


def small(architecture: str) -> Any:
    sizes = Model(architecture=architecture, num_layers=2, width=16, num_heads=2)  # type: ignore[arg-type]
    return models.new_model(sizes, 40, 24, 0, 0, seed=1)


def settle(section: Lora, model: Any) -> tuple[Lora, int]:
    return adapters.settle_targets(section, list(adapters.linear_layers(model)), "it")


def prepare(config: Path, root: Path) -> Prepared:
    prepared, scratch = open_study(config, (), Store.read(root))
    scratch.cleanup()
    return prepared


def nodes_of(prepared: Prepared) -> list[Node]:
    return [prepared.lineage.nodes[key] for key in prepared.lineage.chains[0].nodes]


def weights(store: Store, node: Node) -> dict[str, Any]:
    return dict(load_file(store.weights_file(node.fit)))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, ranks: Any) -> dict[str, tuple[Prepared, Store]]:
    """A chain in full, one with merged and one with separate adapters, in one store."""
    place, found = tmp_path_factory.mktemp("adapters"), {}
    for name, changes in {"full": {"learner.adapter": None}, "merged": {}, "separate": SEPARATE}.items():
        (place / f"{name}.yaml").write_text(yaml.safe_dump(merged(BASE, {"experiment": name, **changes})))
        found[name] = run_all(place / f"{name}.yaml", place / "root", ranks=ranks)
    return found


@pytest.fixture
def published(hub: Hub, make_config: Make, tmp_path: Path) -> tuple[Path, Callable[..., Path]]:
    """A pretrained model's folder, and what makes a study of it on a small text."""
    folder = Path(shutil.copytree(hub.root / "models" / "lab" / "small", tmp_path / "model"))
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"Entry {i} is about the number {i * 7} and nothing else.\n\n" for i in range(600))
    )
    tokenizer = {"kind": "pretrained", "name": str(folder)}
    data = {"source": str(text), "tokenizer": tokenizer, "block_size": 16, "num_examples": 64}
    study = {"data": data, "learner.model": {"pretrained": str(folder)}, "learner.init": "pretrained"}
    return folder, lambda **changes: make_config(TEXT, **{**study, "generations": 1, **changes})


# --- the formula --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_forward_is_the_formula(architecture: str) -> None:
    """Logits with the adapter are those of the weights W + alpha / r B A, summed up in plain Python."""
    torch.manual_seed(0)
    section = Lora(kind="lora", rank=3, alpha=5.0)
    section, _ = settle(section, small(architecture))
    adapted, plain, joined = (small(architecture) for _ in range(3))
    before = torch.get_rng_state()
    values = adapters.new_values(adapted, section, seed=4, generation=1)
    layers = adapters.targeted(plain, section)
    for number, name in enumerate(name for name in values if adapters.B in name):
        draws = np.random.default_rng(number).normal(size=values[name].shape)
        values[name] = torch.from_numpy(draws).float()
    adapters.attach(adapted, section, values)
    assert torch.equal(torch.get_rng_state(), before), "it draws from no generator of the process"
    for layer in layers:
        weight = plain.get_submodule(layer.name).weight
        a, b = (values[f"{adapters.PREFIX}{layer.name}{part}.weight"] for part in (adapters.A, adapters.B))
        for i in range(layer.outputs):
            for j in range(layer.inputs):
                added = 5.0 / 3 * sum(float(b[i, k]) * float(a[k, j]) for k in range(3))
                weight.data[(j, i) if architecture == "gpt2" else (i, j)] += added
    adapters.merge(joined, section, values)
    tokens = torch.arange(24).view(2, 12) % 40
    with torch.no_grad():
        expected = plain(tokens).logits
        assert (expected - small(architecture)(tokens).logits).abs().max() > 0.01
        torch.testing.assert_close(adapted(tokens).logits, expected, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(joined(tokens).logits, expected, atol=2e-5, rtol=1e-4)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(values) and all("lora_" in name for name in trained)


def test_without_its_adapter_a_model_is_what_it_was() -> None:
    adapted, plain = small("gpt2").train(), small("gpt2").eval()
    section, _ = settle(Lora(kind="lora"), adapted)
    values = {name: value + 0.1 for name, value in adapters.new_values(adapted, section, 0, 1).items()}
    adapters.attach(adapted, section, values)
    tokens = torch.arange(24).view(2, 12) % 40
    with torch.no_grad():
        expected = plain(tokens).logits
        assert torch.equal(adapters.Without(adapted)(input_ids=tokens).logits, expected)
    loss = adapted(tokens).logits
    assert (loss - expected).abs().max() > 0.01 and adapted.training
    loss.sum().backward()
    grads = {name for name, parameter in adapted.named_parameters() if parameter.grad is not None}
    assert len(grads) == len(values) and all("lora_" in name for name in grads)


ATTENTION = {
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "llama": ("self_attn.k_proj", "self_attn.o_proj", "self_attn.q_proj", "self_attn.v_proj"),
    "opt": ("self_attn.k_proj", "self_attn.out_proj", "self_attn.q_proj", "self_attn.v_proj"),
}
OTHERS = {
    "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    "llama": ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"),
    "opt": ("fc1", "fc2"),
}


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "opt"])
def test_targets_are_written_out(architecture: str) -> None:
    skeleton = on_meta(small(architecture).config)

    def settled(targets: Any) -> tuple[Any, int]:
        found, count = settle(Lora(kind="lora", rank=2, targets=targets), skeleton)
        return found.targets, count

    every = tuple(sorted(ATTENTION[architecture] + OTHERS[architecture]))
    assert settled(None)[0] == ATTENTION[architecture]
    assert settled("all-linear") == settled(every) and settled("all-linear")[0] == every
    last = OTHERS[architecture][-1]
    assert settled((last.rpartition(".")[2], last))[0] == tuple(
        name for name in every if name == last or name.endswith(f".{last.rpartition('.')[2]}")
    )
    # query, key, value and output are 16 x 16 in both of the blocks; GPT-2 has the first three in one
    widths = [16 + 48, 16 + 16] if architecture == "gpt2" else [16 + 16] * 4
    assert settled(None)[1] == 2 * 2 * sum(widths)


def test_a_new_adapter_follows_from_seed_generation_and_layer() -> None:
    model = small("gpt2")
    section, _ = settle(Lora(kind="lora"), model)
    one = adapters.new_values(model, section, 1, 2)
    again, seed, later = (adapters.new_values(model, section, *where) for where in ((1, 2), (2, 2), (1, 3)))
    for name, value in one.items():
        assert torch.equal(value, again[name])
        if adapters.B in name:
            assert not value.any()
        else:  # uniform within 1 / sqrt(16): variance 1 / 48, of 8 x 16 numbers
            assert value.abs().max() <= 0.25 and abs(float(value.var()) * 48 - 1) < 0.3
            assert not torch.equal(value, seed[name]) and not torch.equal(value, later[name])
    drawn = [value for name, value in one.items() if adapters.A in name]
    assert not any(torch.equal(drawn[0], other) for other in drawn[1:])


def test_dropout_keeps_the_mean_and_follows_the_example() -> None:
    dropout = adapters.Dropout(0.25, layer=3).train()
    x = torch.ones(4, 50, 40)
    dropout.place(1, 2, range(8, 12))
    before = torch.get_rng_state()
    found = dropout(x)
    assert torch.equal(torch.get_rng_state(), before)
    # 8,000 numbers: the share of zeros has a standard deviation of 0.0048
    assert found.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert abs(float((found == 0).float().mean()) - 0.25) < 0.02 and not torch.equal(found[0], found[1])
    dropout.place(1, 2, range(10, 12))
    assert torch.equal(dropout(x[:2].reshape(100, 40)).view(2, 50, 40), found[2:])
    other = adapters.Dropout(0.25, layer=4).train()
    other.place(1, 2, range(8, 12))
    assert not torch.equal(other(x), found)
    assert torch.equal(dropout.eval()(x), x)


# --- chains -------------------------------------------------------------------------------------------------


def ranks_of(before: dict[str, Any], now: dict[str, Any]) -> dict[str, int]:
    """The rank of what was added to each layer that has changed, up to rounding."""
    found = {}
    for name, tensor in now.items():
        if not torch.equal(tensor, before[name]):
            sizes = torch.linalg.svdvals((tensor - before[name]).double())
            found[name] = int((sizes > 1e-4 * sizes[0]).sum())
    return found


@pytest.mark.slow
def test_what_is_trained_and_how_it_grows(both: Any) -> None:
    """Merged adapters add up: rank r in generation 1, up to 2 r in generation 2. A separate one stays of
    rank r. All else is as generation 0 has left it."""
    prepared, store = both["merged"]
    zero, one, two = (weights(store, node) for node in nodes_of(prepared))
    layers = {f"transformer.h.0.attn.{name}.weight" for name in ("c_attn", "c_proj")}
    assert ranks_of(zero, one) == dict.fromkeys(layers, RANK)
    assert ranks_of(zero, two) == dict.fromkeys(layers, 2 * RANK)
    prepared, store = both["separate"]
    _, first, second = nodes_of(prepared)
    for node in (first, second):
        assert node.spec.fit.base == nodes_of(prepared)[0].fit
        assert set(weights(store, node)) == {
            f"{adapters.PREFIX}transformer.h.0.attn.{name}.lora_{part}.weight"
            for name in ("c_attn", "c_proj")
            for part in "AB"
        }
        assert not (store.path("fits", node.fit) / "model.safetensors").exists()
    model = small("gpt2")
    spec = second.spec.fit
    model = adapters.whole_model(spec, store.path("fits", spec.key), store.path("fits", str(spec.base)), {})
    assert ranks_of(zero, models.weights_of(model)) == dict.fromkeys(layers, RANK)


def test_the_first_adapter_is_the_same_wholeor_separate(both: Any) -> None:
    """Generation 0 is shared with the full fit; generation 1 writes the same corpus both ways, and measures
    the same: what is stored apart is what is sampled. From then on they part."""
    found = {name: [*map(tuple, _seen(*both[name]))] for name in both}
    assert found["full"][0] == found["merged"][0] == found["separate"][0]
    assert found["merged"][1] == found["separate"][1] != found["full"][1]
    assert found["merged"][2] != found["separate"][2]
    fits = {name: [node.fit for node in nodes_of(both[name][0])] for name in both}
    assert len({found[0] for found in fits.values()}) == 1 and len({found[1] for found in fits.values()}) == 3


def test_a_lost_base_is_fitted_again_before_it_is_added_to(
    published: tuple[Path, Callable[..., Path]], tmp_path: Path, ranks: Any
) -> None:
    """An evaluation that needs generation 0's weights anew adds its adapter to these, and to no others."""
    _, make_study = published
    lora = {"kind": "lora", "rank": RANK, "weights": "separate", "generations": "later"}
    config = make_study(**{"learner.adapter": lora, "learner.init": "previous"})
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, last = nodes_of(prepared)
    assert last.spec.fit.base == first.fit and store.has_weights(last.fit)
    before, about = (
        store.json("evaluations", last.evaluation, f"{name}.json") for name in ("record", "provenance")
    )
    store.evict_weights(first.fit, "test")
    shutil.rmtree(store.path("evaluations", last.evaluation))
    observer = Events()
    _, store = run_all(config, tmp_path / "root", ranks=ranks, observer=observer)
    assert "weights_restored" in [kind for kind, _ in observer.seen]
    assert store.json("evaluations", last.evaluation, "record.json") == before
    again = store.json("evaluations", last.evaluation, "provenance.json")
    assert again["versions"] == about["versions"] and "peft" in about["versions"]


def _seen(prepared: Prepared, store: Store) -> list[list[Any]]:
    found = []
    for node in nodes_of(prepared):
        record = store.record(node.evaluation)
        assert record is not None
        examples = store.corpora.load(node.corpus, prepared.lineage.examples[node.corpus])
        found.append([examples.values.tobytes(), json.dumps(dict(record.metrics), sort_keys=True)])
    return found


def test_peft_opens_what_is_stored(both: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    prepared, store = both["separate"]
    chain = prepared.lineage.chains[0].id
    first, last = (pull(prepared, store, chain, g, tmp_path / str(g)) for g in (0, 2))
    assert last["base"] == first["fit"] and first["adapter"] is None
    opened = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(first["model"], dtype=torch.float32), last["adapter"]
    ).eval()
    about = json.loads((Path(last["adapter"]) / adapters.ADAPTER_CONFIG).read_text())
    assert (about["r"], about["lora_alpha"], about["peft_type"]) == (RANK, 4.0, "LORA")
    assert about["base_model_name_or_path"] == first["fit"] and about["fan_in_fan_out"]
    whole = AutoModelForCausalLM.from_pretrained(last["model"], dtype=torch.float32).eval()
    tokens = torch.arange(16).view(2, 8) % 10
    with torch.no_grad():
        expected = whole(tokens).logits
        torch.testing.assert_close(opened(input_ids=tokens).logits, expected, atol=1e-5, rtol=1e-5)
        with opened.disable_adapter():
            assert (opened(input_ids=tokens).logits - expected).abs().max() > 1e-3
    assert (Path(last["model"]) / "tokenizer.json").exists()
    with pytest.raises(InputError, match="is stored as an adapter in .*; harness pull writes the model"):
        Results(store.root).model(last["fit"])


def test_a_base_stays_while_what_adds_to_it_does(both: Any, make_config: Make, ranks: Any) -> None:
    """Retention counts it in; freed all the same, it is fitted again, and so are adapters, to the same
    bytes."""
    prepared, store = both["separate"]
    zero, one, two = nodes_of(prepared)
    assert kept_fits(prepared) == {zero.fit, one.fit, two.fit}
    bytes_ = {node.fit: store.weights_file(node.fit).read_bytes() for node in (zero, one, two)}
    for node in (zero, one, two):
        assert store.evict_weights(node.fit, "test") == len(bytes_[node.fit])
        assert not store.has_weights(node.fit) and Store(store.root).sound("fits", node.fit)
    run_all(make_config(BASE, **SEPARATE, **{"evaluate.prompts": 3}), store.root, ranks=ranks)
    for node in (zero, one, two):
        assert store.weights_file(node.fit).read_bytes() == bytes_[node.fit]
        assert not (store.path("fits", node.fit) / "replicas.json").exists()


class Crash(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(("how", "stage"), [("merged", 0), ("separate", 2), ("separate", 3)])
def test_a_crashed_fit_goes_on_to_the_same_bytes(
    make_config: Make, tmp_path: Path, ranks: Any, monkeypatch: Any, how: str, stage: int
) -> None:
    """In bf16 and with dropout, in stage 2 with activations computed anew; a checkpoint holds nothing of the
    base."""
    monkeypatch.setattr(training, "LOOK_S", 0.0)
    changes = {
        "learner.adapter.weights": how,
        "learner.adapter.dropout": 0.2,
        "learner.train.precision": "bf16",
        "resources.zero_stage": stage,
        "resources.activation_checkpointing": stage == 2,
        "generations": 2,
    }
    prepared, store = run_all(make_config(BASE, "never.yaml", **changes), tmp_path / "never", ranks=ranks)
    config, root = make_config(BASE, **changes, **{"resources.checkpoint_s": 1e-9}), tmp_path / "root"
    kept: list[Path] = []

    def on(kind: str, fields: dict[str, Any]) -> None:
        if kind == "checkpointed" and (fields["generation"], fields["step"]) == (2, 3):
            kept.extend(root.glob(f"work/{fields['fit']}/*/**/*model_states.pt"))
            names = [name for path in kept for name in load_tree(path)["module"]]
            assert names and all("lora_" in name for name in names)
            raise Crash

    with pytest.raises(Crash):
        run_all(config, root, ranks=ranks, observer=Events(on))
    events = Events()
    run_all(config, root, ranks=ranks, observer=events)
    assert [f["step"] for kind, f in events.seen if kind == "resumed" and f["generation"] == 2] == [3]
    assert contents(Store(root), prepared) == contents(store, prepared)
    for node in nodes_of(prepared):
        one, two = (found.weights_file(node.fit).read_bytes() for found in (Store(root), store))
        assert one == two


@pytest.mark.slow
def test_members_of_a_population_have_adapters(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """Each its own, of its own rank, on its own base; both learn from what both have answered."""
    members = {"small": {}, "wide": {"set": {"learner.adapter.rank": 2 * RANK}}}
    changes = {"population": {"members": members, "exchange": "pool", "segments": "shared"}, "generations": 1}
    prepared, store = run_all(make_config(BASE, **changes), tmp_path / "root", ranks=ranks)
    found = {}
    for chain in prepared.lineage.chains:
        zero, one = (prepared.lineage.nodes[key] for key in chain.nodes)
        changed = ranks_of(weights(store, zero), weights(store, one))
        assert changed and set(changed.values()) == {RANK * (1 + chain.cell)}
        reads = one.spec.fit.to_json()["training_set"]["corpora"]
        found[chain.cell] = {item["corpus"] for item in reads}
    assert len(found[0]) == 2 and found[0] == found[1]


JUDGE = {"kind": "judge", "judge": "noisy", "false_accept": 0.5, "false_reject": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["initial", "previous"])
def test_dpo_with_an_adapter(make_config: Make, tmp_path: Path, ranks: Any, reference: str) -> None:
    """Its reference is the base, or the adapter of the generation before: where a fit begins as its
    reference, its first loss is log 2."""
    changes = {
        **SEPARATE,
        "learner.objective": {"kind": "dpo", "reference": reference},
        "filters": [{**JUDGE, "choose": "pairs"}],
        "data.num_examples": 48,
        "learner.train.batch_size": 4,
    }
    prepared, store = run_all(make_config(BASE, **changes), tmp_path / "root", ranks=ranks)
    first = [
        store.json("fits", node.fit, "fit.json")["log"]["train_loss"][0] for node in nodes_of(prepared)[1:]
    ]
    assert first[0] == pytest.approx(np.log(2), abs=1e-4)
    assert (first[1] == pytest.approx(np.log(2), abs=1e-4)) == (reference == "previous")


@pytest.mark.slow
def test_reinforce_goes_on_with_what_was_sampled(make_config: Make, tmp_path: Path, ranks: Any) -> None:
    """A batch of all completions has advantages that add up to 0, and a fit begins as the model that wrote
    them: its first loss is 0, whether that had an adapter (generation 2) or not."""
    changes = {
        **SEPARATE,
        "learner.objective": {"kind": "reinforce", "kl": 0.1, "reference": "previous"},
        "filters": [{**JUDGE, "choose": "all"}],
        "learner.later": {"batch_size": 24, "epochs": 4, "learning_rate": 1e-2},
    }
    prepared, store = run_all(make_config(BASE, **changes), tmp_path / "root", ranks=ranks)
    for node in nodes_of(prepared)[1:]:
        losses = store.json("fits", node.fit, "fit.json")["log"]["train_loss"]
        assert losses[0] == pytest.approx(0, abs=1e-4) and losses[-1] < -1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 3), ("alpha", 8.0), ("dropout", 0.3), ("targets", ["c_attn"]), ("targets", "all-linear")],
)
def test_every_field_changes_what_comes_out(
    both: Any, make_config: Make, ranks: Any, field: str, value: Any
) -> None:
    prepared, store = both["merged"]
    before = nodes_of(prepared)[:2]
    config = make_config(BASE, generations=1, **{f"learner.adapter.{field}": value})
    found, _ = run_all(config, store.root, ranks=ranks)
    zero, one = nodes_of(found)
    assert zero.fit == before[0].fit and one.fit != before[1].fit
    changed = ranks_of(weights(store, zero), weights(store, one))
    assert set(changed.values()) == {value if field == "rank" else RANK}
    parts = {"attn.c_attn", "attn.c_proj"} - ({"attn.c_proj"} if value == ["c_attn"] else set())
    parts |= {"mlp.c_fc", "mlp.c_proj"} if value == "all-linear" else set()
    assert set(changed) == {f"transformer.h.0.{part}.weight" for part in parts}
    assert not any(
        torch.equal(weights(store, one)[name], weights(store, before[1])[name]) for name in changed
    )


@pytest.mark.slow
def test_dropout_does_not_depend_on_micro_batches(
    both: Any, make_config: Make, tmp_path: Path, ranks: Any
) -> None:
    """In fp32, to 1e-4: gradients are added up in another order."""
    found = []
    for size in (2, 8):
        changes = {"learner.adapter.dropout": 0.3, "resources.micro_batch": size, "generations": 1}
        root = shutil.copytree(both["merged"][1].root, tmp_path / str(size))
        prepared, store = run_all(make_config(BASE, **changes), root, ranks=ranks)
        node = nodes_of(prepared)[1]
        found.append((store.json("fits", node.fit, "fit.json")["log"]["train_loss"], weights(store, node)))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    for name, value in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_an_anchor_is_the_base_without_the_adapter(
    both: Any, make_config: Make, tmp_path: Path, ranks: Any, monkeypatch: Any
) -> None:
    """Losses are those that a model of its own gives, which is there under ZeRO-3 and in merged weights'
    generation 2."""
    made, found = [], {}
    real = adapters.Without
    monkeypatch.setattr(adapters, "Without", lambda model: made.append(stage) or real(model))
    for stage in (0, 3):
        changes = {"learner.later.anchor": {"loss": "kl", "weight": 0.5}, "resources.zero_stage": stage}
        root = shutil.copytree(both["merged"][1].root, tmp_path / str(stage))
        prepared, store = run_all(make_config(BASE, **changes), root, ranks=ranks)
        fits = [node.fit for node in nodes_of(prepared)[1:]]
        found[stage] = [store.json("fits", fit, "fit.json")["log"]["train_loss"] for fit in fits]
    assert made == [0]
    np.testing.assert_allclose(found[0], found[3], atol=1e-4)


@pytest.mark.slow
def test_half_of_the_way_is_half_of_what_is_added(both: Any, make_config: Make, ranks: Any) -> None:
    """Averages of weights, and with them Neon, take merged adapters as they take full fits."""
    prepared, store = both["merged"]
    zero, one = (weights(store, node) for node in nodes_of(prepared)[:2])
    changes = {"learner.later": {"merge": 0.5}, "generations": 1}
    half, _ = run_all(make_config(BASE, **changes), store.root, ranks=ranks)
    for name, value in weights(store, nodes_of(half)[1]).items():
        torch.testing.assert_close(value, (zero[name] + one[name]) / 2)


# --- pretrained models --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_adapter_of_a_pretrained_model(ranks: Any, published: Any, tmp_path: Path) -> None:
    """Generation 0 has one too unless it is asked not to; with init: pretrained each generation has a new
    one on the same weights, with init: previous the one before goes on."""
    folder, make_study = published
    lora = {"learner.adapter": {"kind": "lora", "rank": RANK, "weights": "separate"}, "generations": 1}
    prepared, store = run_all(make_study(**lora), tmp_path / "root", ranks=ranks)
    for node in nodes_of(prepared):
        assert store.weights_file(node.fit).name == "adapter_model.safetensors"
        assert node.spec.fit.base is None
        about = store.json("fits", node.fit, adapters.ADAPTER_CONFIG)
        assert about["base_model_name_or_path"] == node.spec.fit.to_json()["learner"]["model"]["pretrained"]
    found = pull(prepared, store, prepared.lineage.chains[0].id, 1, tmp_path / "pulled")
    before = load_file(folder / "model.safetensors")
    now = load_file(Path(found["model"]) / "model.safetensors")
    changed = {
        name
        for name in now
        if name in before and not torch.equal(now[name], before[name].to(now[name].dtype))
    }
    assert changed == {f"transformer.h.0.attn.{name}.weight" for name in ("c_attn", "c_proj")}
    keys = {
        name: [node.fit for node in nodes_of(prepare(make_study(**{**lora, **changes}), tmp_path))]
        for name, changes in {
            "as it is": {},
            "all": {"learner.adapter.generations": "all"},
            "later": {"learner.adapter.generations": "later"},
            "full": {"learner.adapter": None},
            "previous": {"learner.init": "previous"},
        }.items()
    }
    assert keys["as it is"] == keys["all"] and keys["later"][0] == keys["full"][0] != keys["all"][0]
    assert keys["later"][1] != keys["full"][1]
    assert keys["previous"][0] == keys["all"][0] and keys["previous"][1] != keys["all"][1]


@pytest.mark.slow
def test_no_steps_leave_the_pretrained_model(ranks: Any, published: Any, tmp_path: Path) -> None:
    folder, make_study = published
    changes: dict[str, Any] = {"learner.train": {"max_steps": 0, "batch_size": 8}, "generations": 0}
    found = []
    for name, adapter in {"full": None, "lora": {"kind": "lora", "rank": 2, "weights": "separate"}}.items():
        more = {} if adapter is None else {"learner.adapter": adapter}
        prepared, store = run_all(make_study(**changes, **more), tmp_path / name, ranks=ranks)
        found.append(_seen(prepared, store))
    assert found[0] == found[1]


REFRESH = {"kind": "replace", "synthetic_ratio": 1.0, "refresh": {"at": [1], "init": "previous"}}
LATER = {"kind": "lora", "rank": RANK, "weights": "separate", "generations": "later"}


@pytest.mark.parametrize("refresh", [{"at": [3, 1]}, {"every": 1}])
def test_no_adapter_is_read_on_other_weights(published: Any, tmp_path: Path, refresh: Any) -> None:
    """Generation 1 would be fitted on generation 0's weights, and read on the pretrained model's."""
    make_study = published[1]
    regime = {**REFRESH, "refresh": {**refresh, "init": "previous"}}
    study = {"regime": regime, "learner.adapter": LATER}
    message = (
        r"config.yaml:\d+: regime.refresh.init: found previous, and generation 1 is a refresh.* allowed: "
        "pretrained, a first refresh behind generation 1, adapter.weights: merged, or learner.init: previous"
    )
    with pytest.raises(InputError, match=message):
        prepare(make_study(**study), tmp_path / "absent")
    for name, changes in {
        "begins": {"regime": {**regime, "refresh": {**refresh, "init": "pretrained"}}},
        "later": {"regime": {**regime, "refresh": {"every": 2, "init": "previous"}}},
        "merged": {"learner.adapter": {**LATER, "weights": "merged"}},
        "all": {"learner.adapter": {**LATER, "generations": "all"}},
        "goes on": {"learner.init": "previous"},
    }.items():
        assert prepare(make_study(**{**study, **changes}), tmp_path / "absent"), name
    study |= {"learner.init": "previous", "regime": {**regime, "refresh": {**refresh, "init": "pretrained"}}}
    with pytest.raises(
        InputError, match="found pretrained, but .* of generation 0's weights; allowed: previous"
    ):
        prepare(make_study(**study), tmp_path / "absent")


@pytest.mark.slow
def test_a_fit_refuses_a_base_that_it_would_not_name(
    ranks: Any, published: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_study = published[1]
    monkeypatch.setattr("harness.components.language_model.check_refresh", lambda config: None)
    config = make_study(**{"regime": REFRESH, "learner.adapter": LATER})
    zero, one = nodes_of(prepare(config, tmp_path / "absent"))
    message = f"generation 1 begins with the weights of fit {zero.fit}, .* to those of the pretrained model; "
    with pytest.raises(LearnerError, match=message):
        run_all(config, tmp_path / "root", ranks=ranks)
    store = Store(tmp_path / "root")
    assert store.sound("fits", zero.fit) and not store.sound("fits", one.fit)


# --- plans --------------------------------------------------------------------------------------------------


def test_a_plan_knows_what_is_trained(published: Any, tmp_path: Path) -> None:
    """Gradients and optimizer are of the adapter; a store holds the adapter alone where it is separate."""
    folder, make_study = published
    lora = {"kind": "lora", "rank": RANK, "weights": "separate"}
    keep = {"retention": {"weights": "all"}}
    full = prepare(make_study(**keep), tmp_path)
    adapted = prepare(make_study(**{"learner.adapter": lora}, **keep), tmp_path)
    parameters = sum(p.numel() for p in small_pretrained(folder).parameters())
    count = RANK * ((16 + 48) + (16 + 16))
    one, two = memory_of(full, 0, False), memory_of(adapted, 0, False)
    assert one is not None and two is not None
    assert (one.weights, one.gradients, one.optimizer) == (2 * parameters, 2 * parameters, 12 * parameters)
    assert (two.weights, two.gradients, two.optimizer) == (2 * (parameters + count), 2 * count, 12 * count)
    facts = adapted.models[0]
    assert facts is not None and facts.training_flops == 4 * (parameters + count) + 2 * count
    assert disk_bytes(full) - disk_bytes(adapted) == 2 * 2 * (parameters - count)


def small_pretrained(place: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(place)


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner.adapter.rank": 0}, r"config.yaml:\d+: learner.adapter.rank: .*greater than 0"),
        (
            {"learner.adapter.rank": 17},
            r"learner.adapter.rank: found 17, and attn.c_\w+ of architecture gpt2 is 16 x \d+; allowed: 1 to "
            "16",
        ),
        (
            {"learner.adapter.targets": ["c_atn"]},
            r"learner.adapter.targets: found 'c_atn', and architecture gpt2 has no such layer; allowed: "
            r"all-linear or some of attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj",
        ),
        ({"learner.adapter.targets": []}, "learner.adapter.targets"),
        ({"learner.adapter.kind": "lorra"}, "learner.adapter.kind: .*lora"),
        ({"learner.adapter.dropout": 1.0}, "learner.adapter.dropout"),
        ({"learner.init": "scratch"}, "adapter: with init: scratch every generation begins with random"),
        ({"learner.adapter.generations": "all"}, "adapter.generations: found all, but generation 0 begins"),
        (
            {"learner.train.merge": 0.5, **SEPARATE},
            "adapter.weights: found separate, but train.merge makes weights",
        ),
        (
            {
                "regime": {
                    "kind": "replace",
                    "synthetic_ratio": 0.5,
                    "refresh": {"every": 2, "init": "scratch"},
                }
            },
            "regime.refresh.init: found scratch, and an adapter",
        ),
    ],
)
def test_adapters_that_do_not_fit_are_refused(
    make_config: Make, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(make_config(BASE, **changes), tmp_path / "absent")


def test_without_peft_one_line_says_so(make_config: Make, tmp_path: Path, monkeypatch: Any) -> None:
    there = adapters.is_installed
    monkeypatch.setattr(adapters, "is_installed", lambda name: name != "peft" and there(name))
    with pytest.raises(InputError, match=r"learner.adapter: needs peft, which is not installed; pip install"):
        prepare(make_config(BASE), tmp_path / "absent")
