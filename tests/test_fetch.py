"""``harness fetch`` and jobs without a network: the hub's real client against a hub on loopback, then without
any hub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TEXT, Make, harness, harness_each, merged
from hub_endpoint import SHA, Hub, environment

from harness.config.grid import expand
from harness.config.load import load_file
from harness.data.hub import Caches
from harness.fetch import OFFLINE, cache_environment, missing_files, needed

pytestmark = pytest.mark.slow

STUDY: dict[str, Any] = {
    "data": {
        "source": "hf:lab/split",
        "tokenizer": {"kind": "pretrained", "name": "lab/small"},
        "block_size": 16,
        "num_examples": 64,
    },
    "learner.model": {"architecture": "gpt2", "num_layers": 1, "width": 16, "num_heads": 2},
    "regime.source": {"model": "lab/small"},
    "evaluate": {"prompts": 2, "examples": 64, "others": {"elsewhere": "hf:lab/plain"}},
    "generations": 1,
}
"""A pupil and a pretrained teacher: a model with weights, a tokenizer, two data sets."""
NEWER = "f" * 40


@pytest.fixture(autouse=True)
def as_it_was(hub: Hub) -> Iterator[None]:
    hub.requests.clear()
    yield
    hub.sha.clear()
    hub.gated.clear()
    hub.cut.clear()


def without_network(cache: Path) -> dict[str, str]:
    return (
        cache_environment(cache)
        | OFFLINE
        | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    )


def fetch(config: Path, hub: Hub, cache: Path, *arguments: object, code: int = 0) -> Any:
    settings = environment(hub, cache.parent / "unused")
    done = harness("fetch", config, "--cache", cache, "--json", *arguments, **settings)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)["items"] if code == 0 else done.stderr


@pytest.fixture(scope="module")
def fetched(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with all that `STUDY` needs, to be copied."""
    folder = tmp_path_factory.mktemp("fetched")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(merged(TEXT, STUDY)))
    fetch(config, hub, folder / "cache")
    return folder / "cache"


def missing(config: Path, cache: Path, *assignments: str) -> list[str]:
    return missing_files(expand(load_file(config, assignments)), Caches.under(cache))


def keys(config: Path, root: Path, settings: dict[str, str]) -> list[str]:
    done = harness("export", config, "--root", root, "--format", "json", **settings)
    assert done.returncode == 0, done.stderr
    return sorted(row["key"] for row in json.loads(done.stdout))


@pytest.mark.ray
def test_fetched_on_one_machine_run_on_one_without_network(
    hub: Hub, make_config: Make, tmp_path: Path
) -> None:
    config, cache, root = make_config(TEXT, **STUDY), tmp_path / "cache", tmp_path / "root"
    assert len(missing(config, cache)) == 4
    items = fetch(config, hub, cache)
    assert {(item["kind"], item["name"]) for item in items} == {
        ("data", "hf:lab/split"),
        ("data", "hf:lab/plain"),
        ("tokenizer", "lab/small"),
        ("model", "lab/small"),
    }
    assert all(
        not item["there"] and item["bytes"] > 0 and Path(item["path"]).is_relative_to(cache) for item in items
    )
    assert not (tmp_path / "unused").exists(), "nothing lies anywhere else"
    assert missing(config, cache) == []
    done = harness("run", config, "--root", root, "--json", **without_network(cache))
    assert done.returncode == 0, done.stderr
    computed = json.loads(done.stdout)["generations_computed"]
    assert computed == 3
    online = environment(hub, tmp_path / "another")
    again = harness("run", config, "--root", root, "--json", **online)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["generations_computed"] == 0, "the same keys with the hub, and without"
    assert keys(config, root, online) == keys(config, root, without_network(cache))


def test_a_second_fetch_downloads_nothing(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    config, cache = make_config(TEXT, **STUDY), tmp_path / "cache"
    first = fetch(config, hub, cache)
    assert hub.downloads()
    hub.requests.clear()
    second = fetch(config, hub, cache)
    assert not [
        request
        for request in hub.downloads()
        if not request.endswith((".py", "README.md", ".huggingface.yaml"))
    ]
    assert [item | {"there": True} for item in first] == second
    hub.sha["lab/small"] = NEWER
    third = {(item["kind"], item["name"]): item for item in fetch(config, hub, cache)}
    assert not third["model", "lab/small"]["there"] and third["data", "hf:lab/split"]["there"]
    assert Path(third["model", "lab/small"]["path"]).name == NEWER
    assert missing(config, cache) == []


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("models--lab--small/snapshots/*/model.safetensors", "regime.source.model: lab/small"),
        ("models--lab--small/snapshots/*/tokenizer_config.json", "data.tokenizer.name: lab/small"),
        ("models--lab--small/snapshots/*/tokenizer.json", "data.tokenizer.name: lab/small"),
        ("../datasets/lab___split", "data.source: hf:lab/split"),
        ("../datasets/lab___plain", "evaluate.others.elsewhere: hf:lab/plain"),
    ],
)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "unlisted"])
def test_what_a_job_would_miss_is_said_before(
    fetched: Path, make_config: Make, tmp_path: Path, lost: str, expected: str, listed: bool
) -> None:
    config, cache = make_config(TEXT, **STUDY), tmp_path / "cache"
    shutil.copytree(fetched, cache, symlinks=True)
    if not listed:  # a cache that was filled by other means has no listing of a repository's files
        for listing in cache.rglob("trees"):
            shutil.rmtree(listing)
    for path in (cache / "hub").glob(lost):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    found = missing(config, cache)
    if (
        not listed and "tokenizer_config" in lost
    ):  # which cannot be known then: not every tokenizer has such a file
        assert found == []
        return
    assert len(found) == 1 and found[0].startswith(expected), found
    assert found[0].endswith("run `harness fetch CONFIG`") and str(cache) in found[0]
    if lost.startswith("../") and listed:
        done = harness("plan", config, "--root", tmp_path / "root", **without_network(cache))
        assert done.returncode == 2 and "harness fetch CONFIG" in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_weights_are_only_needed_where_they_are_used(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    data = {"source": "python-docs", "tokenizer": {"kind": "bpe", "vocab_size": 270}, "block_size": 16}
    config = make_config(
        TEXT, data=data, **{"learner.model": {"pretrained": "lab/small"}, "learner.init": "scratch"}
    )
    fetch(config, hub, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert missing(config, tmp_path / "cache") == []
    done = harness("plan", config, "--root", tmp_path / "root", **without_network(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr


def test_name_and_configuration_offline(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    """``hf:NAME/CONFIG`` looks like ``hf:ORG/NAME``; offline the cache knows which is meant."""
    from harness.data.documents import read_named

    cache, contents = tmp_path / "cache", {}
    for name in ("small", "large"):
        data = {
            "source": f"hf:notes/{name}",
            "tokenizer": {"kind": "bpe", "vocab_size": 270},
            "block_size": 16,
        }
        config = make_config(TEXT, f"{name}.yaml", data=data)
        assert "data.source: hf:notes/" in missing(config, cache)[0], (
            "the other configuration is not this one"
        )
        fetch(config, hub, cache)
        assert missing(config, cache) == []
        done = harness("plan", config, "--root", tmp_path / "root", **without_network(cache))
        assert done.returncode == 0, done.stderr
    probe = "from harness.data.documents import read_named; print(read_named('hf:notes/{}').fingerprint())"
    for name in ("small", "large"):
        found = {
            subprocess.run(
                [sys.executable, "-c", probe.format(name)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, **settings},
            ).stdout
            for settings in (without_network(cache), environment(hub, tmp_path / "online"))
        }
        assert len(found) == 1, "the same fingerprint online and offline"
        contents[name] = found.pop()
    assert contents["small"] != contents["large"]
    assert read_named("python-docs").whole


def test_images_and_a_corpus_of_the_hub(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    pictures = make_config(
        {
            "experiment": "pictures",
            "tracking": {"wandb": "disabled"},
            "generations": 1,
            "data": {"source": "hf:lab/pictures", "kind": "images"},
            "regime": {"kind": "replace", "synthetic_ratio": 1.0},
            "learner": {"kind": "vae", "latent_dim": 2, "channels": [4]},
        },
        "pictures.yaml",
    )
    corpus = make_config(TEXT, "corpus.yaml", **{"regime.source": {"corpus": "hf:lab/plain"}})
    for config, item in ((pictures, "hf:lab/pictures"), (corpus, "hf:lab/plain")):
        assert [found["name"] for found in fetch(config, hub, cache)] == [item]
        done = harness("plan", config, "--root", tmp_path / "root", **without_network(cache))
        assert done.returncode == 0, done.stderr


def test_a_revision_is_a_revision_offline_too(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    """Of two revisions in the cache, each is found by its name; the newest is the one that was fetched as
    such."""
    cache, source = tmp_path / "cache", hub.root / "datasets" / "lab" / "moving"
    source.mkdir()
    data = {"source": "hf:lab/moving", "tokenizer": {"kind": "bpe", "vocab_size": 270}, "block_size": 16}
    config = make_config(TEXT, data=data)
    for commit, count in ((SHA, 300), (NEWER, 500)):
        (source / "train.jsonl").write_text(
            "".join(json.dumps({"text": f"Line {i} of {count}.\n"}) + "\n" for i in range(count))
        )
        hub.sha["lab/moving"] = commit
        fetch(config, hub, cache)
    for revision, documents in ((SHA, 300), (NEWER, 500), (None, 500)):
        probe = (
            "from harness.data.documents import read_named; print(len(read_named('hf:lab/moving', 'text', "
            f"{revision!r}).whole))"
        )
        done = subprocess.run(
            [sys.executable, "-c", probe],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **without_network(cache)},
        )
        assert int(done.stdout) == documents
    assert missing(config, cache, f"data.revision={SHA}") == []
    assert "at revision other" in missing(config, cache, "data.revision=other")[0]
    message = fetch(config, hub, cache, "--set", "data.revision=other", code=2)
    assert "data.revision" in message and "has no revision 'other'" in message
    shutil.rmtree(source)


def test_a_fetch_that_is_killed_leaves_nothing_that_counts(
    hub: Hub, make_config: Make, tmp_path: Path
) -> None:
    config, cache = make_config(TEXT, **STUDY), tmp_path / "cache"
    hub.cut.add("model.safetensors")
    command = [sys.executable, "-m", "harness", "fetch", str(config), "--cache", str(cache)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment(hub, tmp_path / "unused")},
    )
    deadline = time.monotonic() + 120
    while not any("model.safetensors" in request for request in hub.downloads()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    hub.cut.clear()
    assert list((cache / "hub").rglob("*.incomplete")), "half of it has come"
    assert [message.split(":")[0] for message in missing(config, cache)] == ["regime.source.model"]
    fetch(config, hub, cache)
    assert missing(config, cache) == []
    fetched = next((cache / "hub").glob("models--lab--small/snapshots/*/model.safetensors"))
    assert fetched.read_bytes() == (hub.root / "models" / "lab" / "small" / "model.safetensors").read_bytes()


REFUSED = [
    (
        {"learner.model": {"pretrained": "lab/nothing"}},
        "learner.model.pretrained: 'lab/nothing': the hub has no such repository",
    ),
    ({"data.tokenizer": {"kind": "pretrained", "name": "lab/gone"}}, "data.tokenizer.name: 'lab/gone'"),
    (
        {"data.source": "hf:lab/absent"},
        "data.source: hf:lab/absent cannot be loaded (the hub has no such data set",
    ),
    ({"evaluate.others": {"x": "hf:lab/absent"}}, "evaluate.others.x: hf:lab/absent"),
    (
        {"learner.model": {"pretrained": "lab/unsafe"}},
        "no safetensors weights, and pickled ones are never loaded",
    ),
    ({"learner.model": {"pretrained": "lab/closed"}}, "learner.model.pretrained: 'lab/closed' is gated"),
    (
        {"learner.model": {"pretrained": "lab/small", "revision": "v9"}},
        "at revision v9: the hub has no such revision",
    ),
]


def test_what_cannot_be_fetched_is_one_line(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    for name, files in {
        "unsafe": ("config.json", "pytorch_model.bin"),
        "closed": ("config.json", "model.safetensors"),
    }.items():
        folder = hub.root / "models" / "lab" / name
        folder.mkdir(exist_ok=True)
        for file in files:
            (folder / file).write_text("{}")
    hub.gated.add("lab/closed")
    base = {
        **STUDY,
        "learner.model": {"pretrained": "lab/small"},
        "learner.init": "pretrained",
        "regime.source": None,
    }
    commands = [
        ["fetch", make_config(TEXT, f"{number}.yaml", **{**base, **changes}), "--cache", tmp_path / "cache"]
        for number, (changes, _) in enumerate(REFUSED)
    ]
    told = harness_each(*commands, **environment(hub, tmp_path / "unused"))
    for done, (_, expected) in zip(told, REFUSED, strict=True):
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1 and expected in errors[0], done.stderr
    assert not list((tmp_path / "cache").rglob("*.bin"))


def test_a_hub_that_cannot_be_reached(hub: Hub, make_config: Make, tmp_path: Path) -> None:
    config = make_config(TEXT, **STUDY)
    settings = environment(hub, tmp_path / "cache") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = harness("fetch", config, **settings)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "fetch needs the hub, which cannot be reached (ConnectError: " in done.stderr
    done = harness("fetch", config, **settings, HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "HF_HUB_OFFLINE" in done.stderr and "unset it" in done.stderr
    done = harness("fetch", make_config(TEXT, "local.yaml"), **settings)
    assert done.returncode == 0 and "nothing of the hub is needed" in done.stdout


def test_each_thing_is_needed_once(make_config: Make) -> None:
    grid = {"learner.init": ["pretrained", "scratch"], "learner.train.learning_rate": [1e-3, 2e-3]}
    config = make_config(
        TEXT, **{**STUDY, "regime.source": None, "learner.model": {"pretrained": "lab/small"}}, grid=grid
    )
    items = needed(expand(load_file(config, ())))
    assert [(item.kind, item.weights) for item in items] == [
        ("data", False),
        ("tokenizer", False),
        ("data", False),
        ("model", True),
    ]
