"""Configurations of published experiments: all can be planned, with small data and models under the real
names on a hub on loopback."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import ROOT, harness
from hub_endpoint import Hub, serve

from harness.config.grid import find_cells
from harness.coordinator.scheduler import Capacity
from harness.inspection.planner import plan
from harness.reporting.claims import MIN_SEEDS, judge
from harness.store import Store
from harness.study import open_study

PAPERS = ROOT / "configs" / "papers"
SMALL_FOLDER = PAPERS / "small"
SMALL = sorted(SMALL_FOLDER.glob("*.yaml"))
FULL = sorted(PAPERS.glob("*.yaml"))
TRACKS = sorted((ROOT / "configs" / "tracks").glob("*.yaml"))
PLANNED = [path for path in TRACKS if not (ROOT / "configs" / "entries" / path.name).exists()]
"""Tracks that nobody has run here."""


def name(path: Path) -> str:
    return str(path.relative_to(PAPERS))


def reads_hub(path: Path) -> bool:
    return "hf:" in path.read_text(encoding="utf-8")


def model(folder: Path, texts: list[str], kind: str) -> None:
    """A model of the kind with a context as long as the real one's, and its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        OPTConfig,
        OPTForCausalLM,
        PreTrainedTokenizerFast,
    )

    end = "</s>" if kind == "opt" else "<|endoftext|>"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:500], trainer=trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "opt":
        shape = {
            "hidden_size": 8,
            "word_embed_proj_dim": 8,
            "ffn_dim": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        }
        OPTForCausalLM(OPTConfig(**size, **shape, max_position_embeddings=2048)).save_pretrained(folder)
    elif kind == "llama":
        shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(**size, **shape, max_position_embeddings=8192)).save_pretrained(folder)
    elif kind == "gemma2":
        shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        shape |= {"num_key_value_heads": 1, "head_dim": 4, "max_position_embeddings": 8192}
        Gemma2ForCausalLM(Gemma2Config(**size, **shape)).save_pretrained(folder)
    else:
        GPT2LMHeadModel(GPT2Config(**size, n_positions=1024, n_embd=8, n_layer=1, n_head=2)).save_pretrained(
            folder
        )


def pictures(path: Path, count: int, seed: int) -> None:
    """A .parquet file of MNIST's columns: encoded pictures of 28 x 28 and their classes."""
    import datasets
    from PIL import Image

    values = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    encoded = []
    for value in values:
        buffer = io.BytesIO()
        Image.fromarray(value).save(buffer, format="png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    labels = [index % 10 for index in range(count)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict({"image": encoded, "label": labels}, features=features).to_parquet(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all, as on a machine."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    from harness.data.documents import named_documents

    root = tmp_path_factory.mktemp("hub")
    texts = list(named_documents("python-stdlib"))
    wikitext = root / "datasets" / "Salesforce" / "wikitext"
    configs = []
    for config in (
        "wikitext-103-raw-v1",
        "wikitext-2-raw-v1",
    ):  # more than one, so that a configuration has to be named
        files = []
        for number, split in enumerate(("train", "validation", "test")):
            path = wikitext / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                "".join(json.dumps({"text": text}) + "\n" for text in ["", *texts[number:3000:3]])
            )
            files.append({"split": split, "path": f"{config}/{split}.jsonl"})
        configs.append({"config_name": config, "data_files": files})
    (wikitext / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    stories = root / "datasets" / "roneneldan" / "TinyStories"
    stories.mkdir(parents=True)
    for split, part in (("train", texts), ("validation", texts[:50])):
        (stories / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    mnist, files = root / "datasets" / "ylecun" / "mnist", []
    (mnist / "mnist").mkdir(parents=True)
    for number, (split, count) in enumerate({"train": 60, "test": 20}.items()):
        files.append({"split": split, "path": f"mnist/{split}-00000-of-00001.parquet"})
        pictures(mnist / files[-1]["path"], count, number)
    one = yaml.safe_dump({"configs": [{"config_name": "mnist", "data_files": files}]})
    (mnist / "README.md").write_text(f"---\n{one}---\n")
    chats, name = root / "datasets" / "nvidia" / "HelpSteer2", root / "models" / "google" / "gemma-2-2b"
    chats.mkdir(parents=True)
    for split, count in (("train", 60), ("validation", 20)):
        rows = [
            {"prompt": f"{split} {n}", "response": text[:80] or "none"}
            for n, text in enumerate(texts[:count])
        ]
        (chats / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sums, size = root / "datasets" / "openai" / "gsm8k", {"train": 7473, "test": 1319}  # as the real one
    (sums / "main").mkdir(parents=True)
    for split, count in size.items():
        rows = [{"question": f"{split} {n} + 1?", "answer": f"One more. #### {n + 1}"} for n in range(count)]
        (sums / "main" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [{"split": split, "path": f"main/{split}.jsonl"} for split in size]
    one = yaml.safe_dump({"configs": [{"config_name": "main", "data_files": files}]})
    (sums / "README.md").write_text(f"---\n{one}---\n")
    web = {"Skylion007/openwebtext": "plain_text", "HuggingFaceFW/fineweb-edu": "sample-10BT"}
    for dataset, config in web.items():
        folder = root / "datasets" / dataset
        (folder / config).mkdir(parents=True)
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts[:1000])
        (folder / config / "train.jsonl").write_text(rows)
        files = [{"split": "train", "path": f"{config}/train.jsonl"}]
        one = yaml.safe_dump({"configs": [{"config_name": config, "data_files": files}]})
        (folder / "README.md").write_text(f"---\n{one}---\n")
    model(root / "models" / "meta-llama" / "Llama-3.2-1B", texts, "llama")
    model(name, texts, "gemma2")
    model(root / "models" / "facebook" / "opt-125m", texts, "opt")
    model(root / "models" / "openai-community" / "gpt2", texts, "gpt2")
    model(root / "models" / "gpt2", texts, "gpt2")
    model(root / "models" / "distilbert" / "distilgpt2", texts, "gpt2")
    with serve(root) as found:
        yield found


def check_text(path: Path) -> dict[str, Any]:
    """What the file itself must hold; its content."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# "), "what the paper leaves open, and what is scaled, stands above"
    content: dict[str, Any] = yaml.safe_load(text)
    assert content["claims"], "what the paper says"
    return content


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in [*FULL, *SMALL] if not reads_hub(path)], ids=name)
def test_what_needs_no_hub_can_be_planned_and_judged(path: Path, tmp_path: Path) -> None:
    check_text(path)
    store = Store.read(tmp_path / "none")
    prepared, scratch = open_study(path, (), store)
    with scratch:
        base, seeds = prepared.study.base, len(prepared.study.seeds)
        assert seeds >= MIN_SEEDS, "fewer decide nothing"
        for claim in base.claims:
            for where in filter(None, (claim.statistic.where, claim.statistic.minus)):
                [first, *others] = [prepared.study.cells[cell] for cell in find_cells(prepared.study, where)]
                members = (
                    1 if claim.statistic.over is None or first.member is None else len(first.member.cells)
                )
                assert len(others) + 1 == members
        assert [found.verdict for found in judge(prepared, [])] == ["undecided"] * len(base.claims), (
            "nothing has been run"
        )
        found = plan(prepared, store, [Capacity(2, 0)])
    assert found.chains == found.cells * seeds
    assert found.generations_stored == 0 < found.generations_unique <= found.generations_requested


def planned(path: Path, hub: Hub, cache: Path, folder: Path, *more: str) -> dict[str, Any]:
    """What ``harness plan`` says of a study that reads the hub."""
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = harness("plan", path, "--root", folder / "none", "--json", *more, **environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", PLANNED, ids=lambda path: path.stem)
def test_a_track_that_nobody_has_run_can_be_planned(
    path: Path, hub: Hub, cache: Path, tmp_path: Path
) -> None:
    """With an entry beside its baseline, and the controls of both; of a web there is less than the file asks
    for, word problems are as many as in the real data."""
    track = yaml.safe_load(path.read_text(encoding="utf-8"))
    data, chosen = track["config"]["data"], {"kind": "repetition"}
    if data.get("kind") == "chat":
        chosen = {"kind": "judge", "judge": "exact"}
    else:
        data["num_examples"] = 8
        (tmp_path / "track.yaml").write_text(yaml.safe_dump(track))
    name = path.stem if data.get("kind") == "chat" else "track.yaml"
    study = {"experiment": "planned", "track": name, "mitigations": {"other": {"filters": [chosen]}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    found = planned(tmp_path / "study.yaml", hub, cache, tmp_path, "--gpus-per-node", "8")
    assert found["cells"] >= 2 and found["chains"] == found["cells"] * len(track["seeds"])
    generations = track["config"]["generations"] + 1
    assert found["generations_requested"] == found["chains"] * generations
    assert found["fits_unique"] == len(track["seeds"]) * (1 + found["cells"] * (generations - 1))
    owner, dataset = data["source"].removeprefix("hf:").split("/")[:2]
    assert any(f"/datasets/{owner}/{dataset}/resolve/" in request for request in hub.requests)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FULL if reads_hub(path)], ids=name)
def test_what_needs_the_hub_can_be_planned(path: Path, hub: Hub, cache: Path, tmp_path: Path) -> None:
    """``harness plan`` checks that each claim names one cell; only the number of examples is smaller than in
    the file."""
    content = check_text(path)
    smaller = ["data.num_examples=24"] if "num_examples" in content["data"] else []
    for name, settings in content.get("mitigations", {}).items():
        # a detector is to learn from no more examples than there are
        filters = [found | ({"examples": 12} if found["kind"] == "detector" else {})
                   for found in settings.get("filters", [])]  # fmt: skip
        smaller += [f"mitigations.{name}.filters={json.dumps(filters)}"] if filters else []
    few = [word for assignment in smaller for word in ("--set", assignment)]
    found = planned(path, hub, cache, tmp_path, *few)
    assert found["chains"] >= MIN_SEEDS * found["cells"], "fewer decide nothing"
    assert 0 < found["fits_unique"] <= found["generations_unique"] <= found["generations_requested"]
    source = content["data"]["source"].removeprefix("hf:").removesuffix("/wikitext-2-raw-v1")
    assert any(f"/datasets/{source}/resolve/" in request for request in hub.requests)


@pytest.mark.parametrize("path", SMALL, ids=name)
def test_a_scaled_configuration_stands_beside_a_full_one(path: Path) -> None:
    """The same axes of the science, and no claim about what the full one says nothing of."""
    full = PAPERS / path.name
    assert full in FULL and f"configs/papers/{path.name}" in path.read_text(encoding="utf-8").splitlines()[0]
    small, large = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in (path, full))
    metrics = [{claim["statistic"]["metric"] for claim in content["claims"]} for content in (small, large)]
    assert metrics[0] <= metrics[1] | {"test/nll"}
    assert small["experiment"] == f"small-{large['experiment']}"
    assert small["learner"]["kind"] == large["learner"]["kind"]


@pytest.mark.parametrize("path", SMALL, ids=name)
def test_the_page_has_every_claim(path: Path) -> None:
    """docs/papers.md was written from these configurations: a claim that is changed afterwards needs a new
    page."""
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    (section,) = [part for part in page.split("\n## ") if part.splitlines()[0] == path.stem]
    claims = yaml.safe_load(path.read_text(encoding="utf-8"))["claims"]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[1] for row in rows] == [claim["text"] for claim in claims]


@pytest.mark.ray
def test_one_command_runs_a_configuration_and_writes_its_rows(tmp_path: Path) -> None:
    """Strong collapse has a closed form, p^2 c^2, so its verdicts are known; what has not been run is
    undecided."""
    out = tmp_path / "papers.md"
    config = SMALL_FOLDER / "strong_collapse.yaml"
    command = [sys.executable, ROOT / "scripts" / "papers", config, "--root", tmp_path / "root", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    page = out.read_text(encoding="utf-8")
    summary = {
        line.split("](")[0][3:]: line.split(" | ")[1:4]
        for line in page.splitlines()
        if line.startswith("| [")
    }
    assert set(summary) == {path.stem for path in SMALL}
    assert summary.pop("strong_collapse") == ["2", "0", "0"]
    assert all(counts[:2] == ["0", "0"] for counts in summary.values())
    assert (tmp_path / "root" / "experiments" / "small-strong-collapse" / "report" / "report.html").is_file()
    absent = subprocess.run(
        [*command[:2], tmp_path / "absent.yaml"], capture_output=True, text=True, timeout=60, check=False
    )
    assert absent.returncode == 2 and "is not a configuration in configs/papers/small" in absent.stderr
