"""A published model is what its key says, or is refused before anything starts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import run_all
from conftest import TEXT, Make
from hub_endpoint import Hub

from harness.config.grid import expand
from harness.config.load import load_file
from harness.config.schema import Model, Sample
from harness.errors import InputError, LearnerError
from harness.store import Store
from harness.study import Prepared, open_study

torch = pytest.importorskip("torch")
import transformers as tf
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file

from harness.learners.language_model import model as models
from harness.learners.language_model.behaviour import behaviour
from harness.learners.language_model.identity import pretrained_identity
from harness.learners.language_model.sampling import Sampler

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 1234\n"
KNOWN = 270
"""Tokens of the hub's small tokenizer."""


@pytest.fixture
def folder(hub: Hub, tmp_path: Path) -> Path:
    """A model's folder with its tokenizer, to do something to."""
    return Path(shutil.copytree(hub.root / "models" / "lab" / "small", tmp_path / "model"))


@pytest.fixture
def make_study(hub: Hub, make_config: Make, tmp_path: Path) -> Callable[..., Path]:
    """A study of a pretrained model in a folder, with its tokenizer, on a small text."""
    text = tmp_path / "text.txt"
    text.write_text(
        "".join(f"Entry {i} is about the number {i * 7} and nothing else.\n\n" for i in range(600))
    )

    def make(folder: Path, **changes: Any) -> Path:
        tokenizer = folder if (folder / "tokenizer.json").exists() else hub.root / "models" / "lab" / "small"
        data = {
            "source": str(text),
            "tokenizer": {"kind": "pretrained", "name": str(tokenizer)},
            "block_size": 16,
            "num_examples": 64,
        }
        model = {"pretrained": str(folder)}
        return make_config(
            TEXT,
            **{
                "data": data,
                "learner.model": model,
                "learner.init": "pretrained",
                "generations": 1,
                **changes,
            },
        )

    return make


def prepare(config: Path, root: Path) -> Prepared:
    prepared, scratch = open_study(config, (), Store.read(root))
    scratch.cleanup()
    return prepared


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(
        change(load_weights(folder / "model.safetensors")),
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def configure(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **changes}))


def shards(folder: Path) -> None:
    """The same weights in two files with an index, of which one is gone."""
    weights = load_weights(folder / "model.safetensors")
    names = sorted(weights)
    places = {name: f"model-0000{1 + (i >= 4)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file(
            {name: weights[name] for name in names if places[name] == file},
            folder / file,
            metadata={"format": "pt"},
        )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").unlink()


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


W = "model.safetensors"
BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "names with a prefix": (
        lambda f: rewrite(f, lambda s: {f"_orig_mod.{k}": v for k, v in s.items()}),
        "missing.*left over",
    ),
    "names with another prefix": (
        lambda f: rewrite(f, lambda s: {f"module.{k}": v for k, v in s.items()}),
        "left over",
    ),
    "a layer is missing": (
        lambda f: rewrite(f, lambda s: {k: v for k, v in s.items() if ".mlp." not in k}),
        "4 weights are missing",
    ),
    "one weight is missing": (
        lambda f: rewrite(f, lambda s: {k: v for k, v in s.items() if "ln_f.bias" not in k}),
        r"1 weights are missing \(transformer.ln_f.bias\)",
    ),
    "a layer too many": (
        lambda f: rewrite(
            f, lambda s: {**s, **{k.replace(".0.", ".1."): v.clone() for k, v in s.items() if ".0." in k}}
        ),
        "left over",
    ),
    "a wrong shape": (lambda f: configure(f, n_inner=48), "of the wrong shape"),
    "whole numbers": (
        lambda f: rewrite(f, lambda s: {k: v.to(torch.int8) for k, v in s.items()}),
        "quantised.*I8",
    ),
    "said to be quantised": (
        lambda f: configure(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "quantised",
    ),
    "weights are a pointer": (lambda f: (f / W).write_text(LFS), f"{W} is a Git LFS pointer.*git lfs pull"),
    "the tokenizer is a pointer": (
        lambda f: (f / "tokenizer.json").write_text(LFS),
        "data.tokenizer.name: .*Git LFS pointer",
    ),
    "the configuration is a pointer": (
        lambda f: (f / "config.json").write_text(LFS),
        "Git LFS pointer|cannot be loaded",
    ),
    "weights are truncated": (lambda f: cut(f / W, 2000), "is truncated: 2000 bytes"),
    "the header is truncated": (lambda f: cut(f / W, 100), "is truncated: 100 bytes"),
    "weights are empty": (lambda f: (f / W).write_text(""), f"{W} is empty"),
    "weights are something else": (
        lambda f: (f / W).write_bytes(b"\x05" + bytes(7) + b"hello" * 9),
        "is no safetensors file",
    ),
    "weights are longer": (lambda f: (f / W).write_bytes((f / W).read_bytes() + b"x"), "is damaged"),
    "a shard is missing": (shards, "lacks model-00002-of-00002.safetensors"),
    "an adapter beside the weights": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "holds an adapter .adapter_config.json., which is not read",
    ),
    "weights under another name": (
        lambda f: (f / W).rename(f / "best.safetensors"),
        "holds neither model.safetensors nor",
    ),
    "a broken configuration": (
        lambda f: (f / "config.json").write_text('{"model_type": "gpt2",'),
        "not JSON|cannot be loaded",
    ),
    "a configuration that is a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        "no JSON object|cannot be loaded",
    ),
    "an unknown architecture": (lambda f: configure(f, model_type="tomorrow"), "cannot be loaded"),
    "sizes that do not fit": (
        lambda f: configure(f, n_head=3),
        "divisible|no model can be built|cannot be run",
    ),
    "a size that is no number": (lambda f: configure(f, n_layer="two"), "cannot be loaded"),
    "a vocabulary without end": (
        lambda f: configure(f, vocab_size=10**9),
        "do not fit the configuration beside them",
    ),
    "more than all is dropped": (lambda f: configure(f, attn_pdrop=5), "has attn_pdrop 5, allowed: 0 to 1"),
    "the configuration is a folder": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "data.tokenizer.name: .*config.json cannot be read: Is a directory",
    ),
    "the tokenizer is a pipe": (
        lambda f: ((f / "tokenizer.json").unlink(), os.mkfifo(f / "tokenizer.json")),
        "data.tokenizer.name: .*tokenizer.json is no regular file",
    ),
    "layers without end": (lambda f: configure(f, n_layer=10**9), "has 1000000000 layers, allowed: 1 to"),
    "a tokenizer of a later version": (
        lambda f: (f / "tokenizer.json").write_text(
            json.dumps(
                {**json.loads((f / "tokenizer.json").read_text()), "pre_tokenizer": {"type": "Future"}}
            )
        ),
        "data.tokenizer.name: .*cannot be loaded",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_folder_that_is_not_its_model_is_refused_at_once(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    breaking, expected = BREAKS[name]
    prepare(make_study(folder), tmp_path / "root")
    moved = folder.rename(folder.with_name("broken"))  # identities are remembered by path
    breaking(moved)
    with pytest.raises(InputError, match=expected):
        prepare(make_study(moved), tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_a_model_may_end_in_several_ways(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    """As published ones do that answer in a chat."""
    configure(folder, eos_token_id=[0, 1])
    prepare(make_study(folder), tmp_path / "root")


SIZES: dict[str, Any] = {
    "vocab_size": KNOWN,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}


def openai(**changes: Any) -> Any:
    return tf.OpenAIGPTConfig(
        **{"vocab_size": KNOWN, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, **changes}
    )


@pytest.mark.parametrize(
    ("config", "causal", "cached"),
    [
        (tf.GPT2Config(), True, True),  # of the published size: a smaller copy is asked
        (tf.LlamaConfig(**GROUPED), True, True),
        (tf.OPTConfig(), True, True),
        (tf.GPTNeoXConfig(), True, True),
        (tf.GPTNeoConfig(), True, True),
        (tf.MistralConfig(), True, True),
        (tf.Qwen2Config(), True, True),
        (tf.Gemma2Config(), True, True),
        (tf.PhiConfig(**SIZES), True, True),
        (openai(), True, False),
        (tf.RobertaConfig(**SIZES), False, True),
        (tf.RobertaConfig(), False, True),
        (tf.RobertaConfig(**SIZES, is_decoder=True), True, True),
        (tf.BertConfig(**SIZES), False, True),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_how_an_architecture_reads_is_asked_of_it(config: Any, causal: bool, cached: bool) -> None:
    before = torch.random.get_rng_state()
    found = behaviour(config)
    assert found.causal is causal
    if causal:
        assert found.cached is cached
        decoder = config.model_type == "roberta"  # counts positions from what fills up
        assert found.hides is not decoder
    assert (torch.random.get_rng_state() == before).all(), "no random stream is touched"


def test_a_bidirectional_model_is_refused(make_study: Callable[..., Path], tmp_path: Path) -> None:
    folder = save(tf.RobertaForCausalLM(tf.RobertaConfig(**SIZES)), tmp_path / "roberta")
    with pytest.raises(InputError, match="bidirectional"):
        prepare(make_study(folder), tmp_path / "root")


def test_a_tokenizer_beyond_the_models_vocabulary_is_refused(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save(
        tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**{**SIZES, "vocab_size": KNOWN - 1})), tmp_path / "small"
    )
    with pytest.raises(InputError, match=f"data.tokenizer: {KNOWN} tokens, but .* knows {KNOWN - 1}"):
        prepare(make_study(folder), tmp_path / "root")


def test_the_size_of_any_architecture_is_that_of_its_model(
    make_study: Callable[..., Path], tmp_path: Path
) -> None:
    made = tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**SIZES))
    facts = prepare(make_study(save(made, tmp_path / "neox")), tmp_path / "root").models[0]
    assert facts is not None
    assert facts.parameters == sum(parameter.numel() for parameter in made.parameters())
    assert (facts.num_layers, facts.width, facts.vocab_size) == (2, 32, KNOWN)


def test_a_model_in_two_files_is_the_model(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    whole = load_weights(folder / W)
    shards(folder)
    rest = {
        k: v for k, v in whole.items() if k not in load_weights(folder / "model-00001-of-00002.safetensors")
    }
    save_file(rest, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    prepare(make_study(folder), tmp_path / "root")
    loaded = models.pretrained_model(Model(pretrained=str(folder)), KNOWN).state_dict()
    assert all((loaded[name] == tensor).all() for name, tensor in whole.items())


def test_a_folder_is_named_by_what_is_loaded_of_it_alone(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    def fits(place: Path) -> list[str]:
        return [node.fit for node in prepare(make_study(place), tmp_path / "root").lineage.nodes.values()]

    def beside(name: str, *files: str) -> Path:
        """A copy with files that a download, or a pull of earlier versions, has left in it."""
        copied = shutil.copytree(folder, tmp_path / name)
        for file in files:
            save_file({"array": torch.zeros(3)}, copied / file)
        return copied

    others = ("training_set.safetensors", "model-00001-of-00002.safetensors", "optimizer.bin")
    assert fits(beside("whole", *others)) == fits(folder)
    shards(folder)
    names = ("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    save_file({"rest": torch.zeros(3)}, folder / names[2])
    moved = folder.rename(folder.with_name("in two files"))  # identities are remembered by path
    text = "".join(f"{name}:{hashlib.sha256((moved / name).read_bytes()).hexdigest()}\n" for name in names)
    expected = hashlib.sha256(text.encode()).hexdigest()[:32]  # as it was when other files counted too
    assert pretrained_identity(Model(pretrained=str(moved))).content == expected
    save_file({"array": torch.zeros(3)}, moved / "training_set.safetensors")
    again = moved.rename(folder.with_name("again"))
    assert pretrained_identity(Model(pretrained=str(again))).content == expected


@pytest.mark.parametrize("steps", [0, 3])
def test_a_model_that_is_not_finite_diverges(
    ranks: Any, folder: Path, make_study: Callable[..., Path], tmp_path: Path, steps: int
) -> None:
    def spoil(state: dict[str, Any]) -> dict[str, Any]:
        state["transformer.h.0.mlp.c_fc.weight"][0, 0] = float("nan")
        return state

    rewrite(folder, spoil)
    config = make_study(
        folder, **{"learner.train": {"max_steps": steps, "batch_size": 8, "precision": "fp32"}}
    )
    prepared, store = run_all(config, tmp_path / "root", ranks=ranks)
    first, second = prepared.lineage.chains[0].nodes
    record = store.record(first)
    assert record is not None and (record.status, dict(record.metrics)) == ("diverged", {})
    assert store.record(second) is None
    assert not store.has_weights(record.fit)


@pytest.mark.parametrize("published", ["float16", "bfloat16", "float32"])
def test_new_weights_are_drawn_in_fp32_whatever_was_published(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path, published: str
) -> None:
    as_it_was = models.new_model(Model(pretrained=str(folder)), KNOWN, 32, 0, 0, seed=3).state_dict()
    plain = prepare(make_study(folder, **{"learner.init": "scratch"}), tmp_path / "root")
    moved = folder.rename(folder.with_name("published"))
    configure(moved, dtype=published)
    found = models.new_model(Model(pretrained=str(moved)), KNOWN, 32, 0, 0, seed=3).state_dict()
    assert all(
        found[name].dtype == torch.float32 and (found[name] == tensor).all()
        for name, tensor in as_it_was.items()
    )
    marked = prepare(make_study(moved, **{"learner.init": "scratch"}), tmp_path / "root")
    keys = [set(item.learner.identity["model"]) for prepared in (plain, marked) for item in prepared.specs]
    assert keys == [{"pretrained"}, {"pretrained"} | ({"new_weights"} if published != "float32" else set())]
    pretrained = prepare(make_study(moved), tmp_path / "root")
    assert set(pretrained.specs[0].learner.identity["model"]) == {"pretrained"}, (
        "loaded weights never took that type"
    )


def test_a_model_without_a_cache_reads_everything_again() -> None:
    made = tf.OpenAIGPTLMHeadModel(openai()).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8.0)
    prompts = np.random.default_rng(0).integers(0, KNOWN, (6, 3))
    settings = {"prompt": "real_prefix", "prompt_tokens": 3}
    greedy = Sampler(made, Sample(top_k=1, **settings), None, 0, cached=False)  # type: ignore[arg-type]
    drawn = greedy.draw(prompts, 9, np.zeros((6, 9)))
    tokens = torch.from_numpy(prompts)
    with torch.inference_mode():
        for _ in range(9):
            tokens = torch.cat([tokens, made(input_ids=tokens).logits[:, -1:].argmax(-1)], dim=1)
    assert (drawn.values == tokens[:, 3:].numpy()).all()
    # Where the beam is wide, the search finds what is at least as likely as going greedily.
    searched = Sampler(made, Sample(num_beams=8, **settings), None, 0, cached=False).draw(
        prompts, 9, np.zeros((6, 9))
    )  # type: ignore[arg-type]

    def likelihood(values: Any) -> Any:
        whole = torch.cat([torch.from_numpy(prompts), torch.from_numpy(values.astype(np.int64))], dim=1)
        with torch.inference_mode():
            scores = made(input_ids=whole).logits.log_softmax(-1)[:, 2:-1]
        return scores.gather(-1, whole[:, 3:, None]).sum((1, 2))

    assert (likelihood(searched.values) >= likelihood(drawn.values) - 1e-4).all()


def test_a_chain_of_a_model_without_a_cache(
    ranks: Any, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    folder = save(tf.OpenAIGPTLMHeadModel(openai()), tmp_path / "openai")
    with pytest.raises(InputError, match="learner.train.precision: .* cannot be trained in bf16"):
        prepare(make_study(folder), tmp_path / "root")
    prepared, store = run_all(
        make_study(folder, **{"learner.train.precision": "fp32"}), tmp_path / "root", ranks=ranks
    )
    nodes = [prepared.lineage.nodes[key] for key in prepared.lineage.chains[0].nodes]
    assert all(store.complete(node, prepared.lineage.examples[node.corpus]) for node in nodes)
    assert nodes[0].spec.corpus.to_json()["sampling"]["context"] == "whole"


def test_tokens_unknown_to_the_tokenizer_are_never_drawn(
    ranks: Any, make_study: Callable[..., Path], tmp_path: Path
) -> None:
    """Most published models have a table that is padded to a round number."""
    torch.manual_seed(0)
    sizes = {"n_positions": 64, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    made = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=2 * KNOWN, **sizes))
    folder = save(made, tmp_path / "padded")
    # half of what the model scores is unknown, and stays likely
    train = {"max_steps": 0, "precision": "fp32"}
    prepared, store = run_all(make_study(folder, **{"learner.train": train}), tmp_path / "root", ranks=ranks)
    for key in prepared.lineage.chains[0].nodes:
        node = prepared.lineage.nodes[key]
        assert store.corpora.load(node.corpus, 64).values.max() < KNOWN
        assert node.spec.corpus.to_json()["sampling"]["tokens"] == KNOWN
    logits = torch.randn((5, 2 * KNOWN))
    settings = {"prompt": "real_prefix", "prompt_tokens": 3}
    prompts = np.zeros((4000, 3), dtype=np.int64)
    uniform = (np.arange(4000)[:, None] + 0.5) / 4000  # an even comb instead of chance
    drawn = Sampler(made.eval(), Sample(**settings), None, 0, vocab_size=KNOWN).draw(prompts, 1, uniform)
    with torch.inference_mode():
        logits = made(input_ids=torch.zeros((1, 3), dtype=torch.int64)).logits[0, -1].double()
    expected = torch.softmax(logits[:KNOWN], 0).numpy() * 4000
    assert np.abs(np.bincount(drawn.values[:, 0], minlength=KNOWN) - expected).max() <= 1.0
    beams = Sampler(made, Sample(num_beams=4, **settings), None, 0, vocab_size=KNOWN)
    assert beams.draw(prompts[:3], 5, np.zeros((3, 5))).values.max() < KNOWN


def test_gangs_load_what_was_planned_wherever_they_are(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative folder means the one that the command saw, and a folder that has changed since is not
    loaded."""
    monkeypatch.chdir(tmp_path)
    config = make_study(folder, **{"learner.model": {"pretrained": "model"}})
    prepared = prepare(config, tmp_path / "root")
    [sent] = prepared.executions[0].models.values()
    absolute = prepare(make_study(folder), tmp_path / "root")
    assert sent.pretrained == str(folder)
    assert prepared.lineage.nodes.keys() == absolute.lineage.nodes.keys(), "a path is in no key"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    torch.manual_seed(5)
    save(tf.GPT2LMHeadModel(tf.GPT2Config.from_pretrained(folder)), elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    loaded = models.pretrained_model(sent, KNOWN).state_dict()
    assert all((loaded[name] == tensor).all() for name, tensor in load_weights(folder / W).items())
    changed = sent.model_copy(update={"pretrained": str(elsewhere / "model")})
    for load in (
        lambda: models.pretrained_model(changed, KNOWN),
        lambda: models.new_model(changed, KNOWN, 32, 0, 0, 1),
    ):
        with pytest.raises(LearnerError, match="is not what it was when this run began"):
            load()
    gone = sent.model_copy(update={"pretrained": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="there is no folder"):
        models.pretrained_model(gone, KNOWN)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learner.model.revision": "main"}, "learner.model.revision: .* is a folder"),
        ({"data.tokenizer.revision": "main"}, "data.tokenizer.revision: .* is a folder"),
    ],
)
def test_a_folder_has_no_revision(
    folder: Path, make_study: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        prepare(make_study(folder, **changes), tmp_path / "root")


LLAMA = {"architecture": "llama", "num_layers": 1, "width": 24, "num_heads": 6}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learner.model": {**LLAMA, "num_kv_heads": 4}}, "num_heads 6 is not a multiple of num_kv_heads 4"),
        ({"learner.model": {**LLAMA, "num_heads": 8}}, "must be even"),
        ({"learner.model.num_kv_heads": 1}, "num_kv_heads: architecture gpt2 does not use it"),
        ({"grid": {"learner.model.num_kv_heads": [1, 2]}}, "num_kv_heads: architecture gpt2 does not use it"),
        (
            {"learner.model.architecture": "opt", "grid": {"learner.model.num_kv_heads": [1, 2]}},
            "opt does not use it",
        ),
        ({"learner.model": {"preset": "gpt2-124m", "num_kv_heads": 2}}, "preset gpt2-124m: num_kv_heads"),
        (
            {"learner.model": LLAMA, "grid": {"learner.model.num_kv_heads": [2, 4]}},
            "not a multiple of num_kv_heads 4",
        ),
    ],
)
def test_sizes_that_an_architecture_cannot_have(
    make_config: Make, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        expand(load_file(make_config(TEXT, **changes)))


ASKED = """
import sys
import transformers.utils.import_utils as asks
found = {name: getattr(asks, f"is_{name}_available") for name in ("scipy", "accelerate", "peft")}
assert all(ask() for ask in found.values())
import harness.learners.language_model.imports
print([name for name, ask in found.items() if ask() or name in sys.modules])
"""


@pytest.mark.slow
def test_a_package_may_have_asked_transformers_before() -> None:
    """It remembers what is installed, and would import from what a rank's import of it leaves out."""
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
