"""``hf:`` data and ``pretrained:`` models through the hub's real client, against a hub on loopback."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
from classifiers import write_classifier
from conftest import TEXT, Make, harness, harness_each
from hub_endpoint import REQUEST, SHA, Hub, environment
from huggingface_hub import constants

from harness.config.schema import Model, PretrainedTokenizer
from harness.data import reach
from harness.data.hub import Caches, load_hub
from harness.data.tokenizers import load_pretrained
from harness.errors import DataError
from harness.learners.language_model.converted import with_safetensors
from harness.learners.language_model.identity import pretrained_identity

pytestmark = pytest.mark.ray


CHANGES: dict[str, Any] = {
    "data": {
        "source": "hf:lab/split",
        "tokenizer": {"kind": "pretrained", "name": "lab/small"},
        "block_size": 16,
        "num_examples": 64,
    },
    "learner.model": {"pretrained": "lab/small"},
    "learner.init": "pretrained",
    "generations": 1,
}


def test_a_chain_of_a_pretrained_model_on_hub_data(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    config, root, cache = make_config(TEXT, **CHANGES), tmp_path / "root", tmp_path / "cache"
    done = harness("run", config, "--root", root, "--json", **environment(hub, cache))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["generations_computed"] == 2
    assert any("/lab/small/resolve/" in request for request in hub.requests)
    assert any("/datasets/lab/split/resolve/" in request for request in hub.requests)
    spec = json.loads(next((root / "fits").glob("*/spec.json")).read_text())
    assert spec["learner"]["model"] == {"pretrained": f"hub:lab/small@{SHA}"}, "the key names the revision"
    assert "content" in spec["data"]["tokenizer"]
    for prepared in cache.rglob("*.arrow"):
        prepared.write_bytes(b"")  # a revision is known once it has been read, and need not be read again
    offline = environment(hub, cache) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    again = harness("run", config, "--root", root, "--json", **offline)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["generations_reused"] == 2, "the cache has all, and the keys are the same"
    away = harness("plan", config, "--root", root, "--json", **{**offline, "HF_HUB_OFFLINE": ""})
    assert json.loads(away.stdout)["generations_stored"] == 2, "and where the hub cannot be reached"
    assert away.stderr.count("the hub cannot be reached (ConnectError: ") == 1, away.stderr


def test_groups_of_hub_data_and_a_classifier_of_the_hub(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    """What `fetch` gets is all that a run without it needs: a column of the data, and the filter's model."""
    write_classifier(hub.root / "models" / "lab" / "judge")
    folder = hub.root / "datasets" / "lab" / "languages"
    folder.mkdir()
    for name, part in {"train": range(600), "validation": range(600, 700), "test": range(700, 800)}.items():
        rows = [{"text": f"Entry {i} is number {i * 7}.\n", "lang": ("de", "en", None)[i % 3]} for i in part]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"kind": "classifier", "model": "lab/judge", "label": "machine", "use": "weights"}
    asked = {"source": "hf:lab/languages", "tokenizer": {"kind": "bpe", "vocab_size": 270}, "block_size": 16}
    stream = {"kind": "stream", "synthetic_ratio": 0.5, "pool": 2.0}
    base = {"data": {**asked, "num_examples": 32}, "regime": stream, "filters": [judge], "generations": 1}
    config, cache, root = make_config(TEXT, **base), tmp_path / "cache", tmp_path / "root"
    columns = ("--set", "evaluate.groups=lang")
    got = harness("fetch", config, *columns, "--cache", cache, **environment(hub, tmp_path / "unused"))
    assert got.returncode == 0, got.stderr
    offline = environment(hub, cache) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    done = harness("run", config, *columns, "--root", root, "--json", **offline)
    assert done.returncode == 0 and json.loads(done.stdout)["generations_computed"] == 2, done.stderr
    metrics = [json.loads(file.read_text())["metrics"] for file in root.glob("evaluations/*/record.json")]
    assert all(found["test/nll/de"] > 0 and found["test/nll/en"] > 0 for found in metrics)
    assert sum(found.get("pool/kept_share", 0) > 0 for found in metrics) == 1, "generation 1 chose"
    specs = [json.loads(file.read_text()) for file in root.glob("fits/*/spec.json")]
    (found,) = (item["training_set"]["filters"][0] for item in specs if item["generation"] == 1)
    assert found["content"] == f"hub:lab/judge@{SHA}" and "model" not in found, "the key names the revision"
    label = json.dumps([{**judge, "label": "robot"}])
    wrong = {
        "evaluate.groups=language": "'language'",
        f"filters={label}": "lab/judge knows: 'human', 'machine'",
    }
    told = harness_each(*(["plan", config, "--root", root, "--set", item] for item in wrong), **offline)
    for done, expected in zip(told, wrong.values(), strict=True):
        assert done.returncode == 2 and expected in done.stderr, done.stdout + done.stderr


def test_hub_data_without_splits_are_split_here(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    data = {"source": "hf:lab/plain", "tokenizer": {"kind": "bpe", "vocab_size": 270}, "block_size": 16}
    done = harness(
        "plan",
        make_config(TEXT, data=data),
        "--root",
        tmp_path / "r",
        "--json",
        **environment(hub, tmp_path / "c"),
    )
    assert done.returncode == 0, done.stderr


def test_a_model_in_a_folder_is_known_by_its_content(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    """Another path is the same science; what is known of the model and its tokenizer is not asked again."""
    from safetensors import safe_open

    configs, root = {}, tmp_path / "root"
    for name in ("here", "there", "elsewhere"):
        shutil.copytree(hub.root / "models" / "lab" / "small", tmp_path / name)
        configs[name] = make_config(
            TEXT,
            f"{name}.yaml",
            **{
                **CHANGES,
                "data.source": "python-docs",
                "data.num_examples": 64,
                "learner.model": {"pretrained": str(tmp_path / name)},
                "data.tokenizer": {"kind": "pretrained", "name": str(tmp_path / name)},
            },
        )
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = harness("run", configs["here"], "--root", root, "--json", **alone)
    assert json.loads(done.stdout)["generations_computed"] == 2, done.stderr
    done = harness("plan", configs["there"], "--root", root, "--json", **alone, PYTHONPROFILEIMPORTTIME="1")
    plan = json.loads(done.stdout)
    assert plan["generations_stored"] == 2
    assert not re.search(r"\| +(torch|transformers)\n", done.stderr) and "pydantic" in done.stderr
    with safe_open(tmp_path / "there" / "model.safetensors", "np") as file:
        parameters = sum(file.get_tensor(key).size for key in file.keys())  # noqa: SIM118 (not a mapping)
    assert plan["memory_per_rank_bytes"] > 16 * parameters, "weights, gradients, AdamW's in bf16, activations"
    about = tmp_path / "elsewhere" / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"model_type": "bert"}))
    done = harness("plan", configs["elsewhere"], "--root", root, **alone)
    assert done.returncode == 2 and f"{tmp_path / 'elsewhere'}" in done.stderr, "another content is opened"


ABSENT = [
    ({"data.source": "hf:lab/absent/x"}, "data.source: hf:lab/absent/x cannot be loaded"),
    ({"data.source": "hf:a/b/c/d"}, "expected hf:NAME"),
    ({"data.text_field": "body"}, "no column 'body'"),
    ({"learner.model": {"pretrained": "lab/nothing"}}, "learner.model.pretrained: 'lab/nothing'"),
    ({"data.tokenizer": {"kind": "pretrained", "name": "lab/nothing"}}, "data.tokenizer.name: 'lab/nothing'"),
    ({"data.block_size": 33}, "context of 32"),
]


def test_what_the_hub_has_not_is_one_message(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    commands = [
        ["plan", make_config(TEXT, f"{number}.yaml", **{**CHANGES, **changes}), "--root", tmp_path / "root"]
        for number, (changes, _) in enumerate(ABSENT)
    ]
    told = harness_each(*commands, **environment(hub, tmp_path / "cache"))
    for done, (_, expected) in zip(told, ABSENT, strict=True):
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr and "Traceback" not in done.stderr


def test_a_pretrained_model_teaches_one_from_scratch(make_config: Make, tmp_path: Path, hub: Hub) -> None:
    """``regime.source: {model: NAME}``: the teacher writes one corpus, as it is; every generation learns from
    it."""
    changes = {
        **CHANGES,
        "learner.model": {"architecture": "gpt2", "num_layers": 1, "width": 16, "num_heads": 2},
    }
    config = make_config(
        TEXT,
        **{
            **changes,
            "learner.init": "scratch",
            "generations": 2,
            "regime.source": {"model": "lab/small"},
            "retention.weights": "all",
        },
    )
    root = tmp_path / "root"
    done = harness("run", config, "--root", root, **environment(hub, tmp_path / "cache"))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(
        harness(
            "export", config, "--root", root, "--format", "json", **environment(hub, tmp_path / "cache")
        ).stdout
    )
    assert sorted(row["generation"] for row in rows) == [0, 0, 1, 2], (
        "the teacher is a chain of one generation"
    )
    from safetensors.numpy import load_file
    from safetensors.torch import load_file as load_weights

    teacher = next(row for row in rows if [r["chain"] for r in rows].count(row["chain"]) == 1)
    weights = load_weights(root / "fits" / teacher["key"] / "model.safetensors")
    original = load_weights(next((tmp_path / "cache").rglob("model.safetensors")))
    assert set(original) == set(weights)
    assert all((original[name].to(weights[name].dtype) == weights[name]).all() for name in weights), (
        "not one step was taken"
    )
    pupil = {row["generation"]: row for row in rows if row["chain"] != teacher["chain"]}
    origins = [
        load_file(root / "fits" / pupil[g]["key"] / "training_set.safetensors")["origin"] for g in (1, 2)
    ]
    assert all((origin == 0).all() for origin in origins)


@pytest.mark.parametrize(
    ("author", "revision", "same"),
    [
        ("SFconvertbot", None, True),
        ("SFconvertbot", SHA, True),
        ("SFconvertbot", SHA, False),
        ("somebody", None, True),
    ],
)
def test_weights_that_the_hub_has_converted_are_found(
    hub: Hub, make_config: Make, tmp_path: Path, author: str, revision: str | None, same: bool
) -> None:
    """A model that was published as a pickle, as facebook/opt-125m: its safetensors are in the bot's pull
    request; for a revision that is named, where it adds to these very files."""
    title = "Adding `safetensors` variant of this model"
    models = hub.root / "models" / "lab"
    for name in ("pickled", "pickled.pr"):
        shutil.copytree(models / "small", models / name)
    (models / "pickled" / "model.safetensors").rename(models / "pickled" / "pytorch_model.bin")
    shutil.copy(models / "pickled" / "pytorch_model.bin", models / "pickled.pr")
    (models / "pickled.pr" / "README.md").write_text("only describes")
    if not same:
        (models / "pickled.pr" / "pytorch_model.bin").write_bytes(b"other weights")
    hub.requests_of["lab/pickled"] = {"num": 7, "author": author, "title": title}
    config, cache, root = (
        make_config(
            TEXT, **{**CHANGES, "learner.model": {"pretrained": "lab/pickled", "revision": revision}}
        ),
        tmp_path / "c",
        tmp_path / "r",
    )
    try:
        fetched = harness("fetch", config, "--cache", cache, **environment(hub, tmp_path / "unused"))
        if author != "SFconvertbot" or not same:
            assert fetched.returncode == 2 and "has no safetensors weights" in fetched.stderr, fetched.stderr
            return
        assert fetched.returncode == 0, fetched.stderr
        offline = environment(hub, cache) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
        if revision is not None:
            (commit,) = (cache / "hub" / "models--lab--pickled" / "snapshots").iterdir()
            assert commit.name == REQUEST and (commit / "model.safetensors").exists()
            planned = harness("plan", config, "--root", root, **offline)
            assert planned.returncode == 0, planned.stderr
            return
        done = harness("run", config, "--root", root, "--json", **offline)
        assert done.returncode == 0, done.stderr
        specs = [
            json.loads(path.read_text())["learner"]["model"] for path in (root / "fits").glob("*/spec.json")
        ]
        assert specs == [{"pretrained": f"hub:lab/pickled@{REQUEST}"}] * 2, (
            "the key names the revision that has the weights"
        )
    finally:
        for name in ("pickled", "pickled.pr"):
            shutil.rmtree(models / name)
        hub.requests_of.clear()


def test_a_hub_that_cannot_be_reached_is_asked_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    model = Model(pretrained="lab/never-asked-before")
    assert with_safetensors(model, Caches.under(tmp_path)) == model and not slept


def test_one_question_for_all_files(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Models, tokenizers and data: no library asks by itself, and each message says what to do."""
    asked: list[str] = []

    def refuse(self: httpx2.HTTPTransport, request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.method} {request.url.path}")
        raise httpx2.ConnectError("[Errno 111] Connection refused")

    monkeypatch.setattr(httpx2.HTTPTransport, "handle_request", refuse)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    reach._asked.cache_clear()
    reach.tell_unreached.cache_clear()
    told = (
        "cannot be reached (ConnectError: [Errno 111] Connection refused), and the cache has it not: run "
        "`harness fetch CONFIG` where there is a network"
    )
    model = Model(pretrained="lab/nowhere")
    with pytest.raises(
        DataError, match=re.escape(f"'lab/nowhere' is no folder, and no model (the hub {told}")
    ):
        pretrained_identity(model)
    with pytest.raises(DataError, match=re.escape(told)):
        load_pretrained(PretrainedTokenizer(kind="pretrained", name="lab/nowhere"))
    with pytest.raises(DataError, match="hf:lab/nowhere is not in .* run `harness fetch CONFIG` first"):
        load_hub("hf:lab/nowhere", None)
    assert with_safetensors(model, Caches.under(tmp_path)) == model
    assert asked == ["HEAD /"] and not slept
    assert capsys.readouterr().err.count("looking into its cache") == 1
    assert not constants.HF_HUB_OFFLINE, "what else this process asks of the hub is not ours to stop"
    reach._asked.cache_clear()


def test_chats_of_the_hub_keep_their_splits_and_share_no_prompt(
    hub: Hub, make_config: Make, tmp_path: Path
) -> None:
    """What training shares with another side is left out of it, and counted."""
    data = {"kind": "chat", "source": "hf:lab/chats", "template": "none"}
    data |= {"tokenizer": {"kind": "pretrained", "name": "lab/small"}, "prompt_tokens": 16}
    base = {**{name: TEXT[name] for name in ("experiment", "tracking")}, "data": data, "generations": 1}
    base["learner"] = {"kind": "language_model", "model": {"pretrained": "lab/small"}, "init": "previous"}
    config = make_config({**base, "data": {**data, "completion_tokens": 16}})
    done = harness("plan", config, "--root", tmp_path / "r", "--json", **environment(hub, tmp_path / "c"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["data"][0]
    assert found["prompts"] == {"train": 18, "validation": 5, "test": 6} and found["on_two_sides"] == 2
    # The revision is known once it has been read, and need not be read again for the same tokens.
    own = ("--root", tmp_path / "r", "--set", "generations=0", "--set", "evaluate.task.prompts=2")
    done = harness("run", config, *own, "--json", **environment(hub, tmp_path / "c"))
    assert done.returncode == 0 and json.loads(done.stdout)["generations_computed"] == 1, done.stderr
    read = {file: file.read_bytes() for file in (tmp_path / "c").rglob("*.arrow")}
    for file in read:
        file.write_bytes(b"")
    done = harness("run", config, *own, "--json", **environment(hub, tmp_path / "c"))
    assert done.returncode == 0 and json.loads(done.stdout)["generations_reused"] == 1, done.stderr
    other = ("--set", "data.completion_tokens=18")
    done = harness("plan", config, *own, *other, **environment(hub, tmp_path / "c"))
    assert done.returncode != 0, "other tokens have to be read"
    for file, content in read.items():
        file.write_bytes(content)
    wrong = make_config({**base, "data": {**data, "completion": "answer"}})
    done = harness("plan", wrong, "--root", tmp_path / "r", **environment(hub, tmp_path / "c"))
    assert done.returncode == 2
    assert "data.completion: hf:lab/chats (train) has no column 'answer'; it has prompt, comp" in done.stderr


def test_the_sources_own_test_side(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    """Whole, and nothing of it is trained on; the rest of the source is split by shares."""
    folder = hub.root / "datasets" / "lab" / "halves"
    folder.mkdir()
    rows = [
        {"text": f"Entry {i} is number {i * 7}.\n" * 9, "prompt": f"{i} + {i} =", "completion": str(i + i)}
        | {"lang": ("de", "en")[i % 2]}
        for i in range(260)
    ]
    for name, part in {"train": rows[:210], "test": rows[200:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    tokenizer, settings = {"kind": "pretrained", "name": "lab/small"}, environment(hub, tmp_path / "c")
    asked = {"source": "hf:lab/halves", "tokenizer": tokenizer}
    chats = make_config(
        {
            **{name: TEXT[name] for name in ("experiment", "tracking")},
            "data": {
                **asked,
                "kind": "chat",
                "template": "none",
                "prompt_tokens": 16,
                "completion_tokens": 8,
            },
            "learner": {"kind": "language_model", "model": {"pretrained": "lab/small"}, "init": "previous"},
            "generations": 1,
        },
        "chats.yaml",
    )
    texts = make_config(TEXT, "texts.yaml", data={**asked, "block_size": 16}, generations=0)
    own, root = ("--set", "data.split.own_test=true"), ("--root", tmp_path / "r", "--json")
    done = harness_each(
        *(["plan", chats, *root, *more] for more in ((), own)),
        ["run", texts, *root, *own, "--set", "evaluate.groups=lang"],
        ["plan", texts, *root, "--set", "data.source=hf:lab/plain", *own],
        ["plan", texts, *root, "--set", "data.source=python-docs", *own],
        **settings,
    )
    shares, whole = (json.loads(each.stdout)["data"][0]["prompts"] for each in done[:2])
    assert sum(shares.values()) == 210 and shares["test"] not in (0, 60)
    assert whole["test"] == 60 and whole["train"] + whole["validation"] == 200 and whole["validation"]
    assert json.loads(done[1].stdout)["data"][0]["on_two_sides"] == 10
    assert done[2].returncode == 0, done[2].stderr
    (meta,) = (json.loads(file.read_text()) for file in (tmp_path / "r").glob("data/*/meta.json"))
    assert meta["documents"]["test"] == 60
    assert meta["documents"]["train"] + meta["documents"]["validation"] == 200
    (record,) = (json.loads(file.read_text()) for file in (tmp_path / "r").glob("evaluations/*/record.json"))
    assert {"test/nll/de", "test/nll/en"} <= record["metrics"].keys()
    assert "data.split.own_test: hf:lab/plain has no split 'test'; it has train" in done[3].stderr
    assert "data.split.own_test: found true, and only data of the hub (hf:NAME)" in done[4].stderr
