"""Fixtures: small configurations, one Ray for the whole session, a recording W&B endpoint."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked_worker
import hypothesis
import psutil
import pytest
import yaml
from forked import HARNESS, Forks
from hub_endpoint import Hub, serve
from workers import (  # noqa: F401 (hooks)
    pytest_collection_modifyitems,
    pytest_configure,
    pytest_make_parametrize_id,
    pytest_runtest_protocol,
    pytest_xdist_auto_num_workers,
    pytest_xdist_make_scheduler,
)

from harness.stop import Stop

pytest.register_assert_rewrite("slurm_jobs")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# A Ray starts a worker for each core at once; most tests use one of them, or none.
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")

# How long an example takes depends on what else the machine does. Whether a change passes CI depends on the
# change and not on the examples that were drawn: those are drawn anew wherever else the tests run.
hypothesis.settings.register_profile("harness", deadline=None, derandomize="HARNESS_NO_SKIPS" in os.environ)
hypothesis.settings.load_profile("harness")

ROOT = Path(__file__).parents[1]

TASK: dict[str, Any] = {
    "experiment": "task",
    "data": {
        "source": "task",
        "task": {"kind": "boolean", "difficulty": [2, 3]},
        "num_examples": 24,
        "validation": 8,
        "test": 8,
    },
    "learner": {
        "kind": "language_model",
        "model": {"architecture": "gpt2", "num_layers": 1, "width": 16, "num_heads": 2},
        "init": "previous",
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3},
        "sample": {"per_prompt": 3},
    },
    "evaluate": {"prompts": 2, "task": {"prompts": 8, "completions": 4, "pass_k": [4]}},
    "generations": 2,
    "resources": {"sample_batch": 24},
    "tracking": {"wandb": "disabled"},
}
TEXT: dict[str, Any] = {
    "experiment": "text",
    "data": {
        "source": "python-docs",
        "tokenizer": {"kind": "bpe", "vocab_size": 300},
        "block_size": 16,
        "num_examples": 96,
        "split": {"validation": 0.005},  # or every fit would score twelve times what it is trained on
    },
    "learner": {
        "kind": "language_model",
        "model": {"architecture": "gpt2", "num_layers": 1, "width": 16, "num_heads": 2, "context": 48},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 3e-3},
        "sample": {"temperature": 1.0},
    },
    "regime": {"kind": "replace", "synthetic_ratio": 1.0},
    "evaluate": {"prompts": 2, "examples": 64},
    "generations": 2,
    "resources": {"sample_batch": 32},
    "tracking": {"wandb": "disabled"},
}
IMAGES: dict[str, Any] = {
    "experiment": "vae",
    "data": {"source": "digits", "num_examples": 96},
    "learner": {"kind": "vae", "latent_dim": 4, "channels": [4, 8], "train": {"epochs": 3, "batch_size": 16}},
    "regime": {"kind": "replace", "synthetic_ratio": 1.0},
    "evaluate": {"examples": 64},
    "generations": 1,
    "resources": {"sample_batch": 32},
    "tracking": {"wandb": "disabled"},
}
GAUSSIAN: dict[str, Any] = {
    "experiment": "normal",
    "data": {"source": "gaussian", "dim": 1, "num_examples": 20, "variance": 1.0},
    "learner": {"kind": "gaussian"},
    "regime": {"kind": "replace", "synthetic_ratio": 1.0},
    "generations": 3,
    "resources": {"bundled": False},
    "tracking": {"wandb": "disabled"},
}
"""A chain of milliseconds that goes through the store generation by generation, as large models do."""


def installed(*modules: str) -> None:
    """Skip a file where a library is missing; found without an import, which may take seconds."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {module}", allow_module_level=True)


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A deep copy with dotted changes; None removes a field.

    A source of a test's own is small, and has the usual shares.
    """
    result: dict[str, Any] = copy.deepcopy(base)
    for dotted, value in copy.deepcopy(changes).items():
        section = result
        *path, last = dotted.split(".")
        for part in path:
            section = section.setdefault(part, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
    data, before = result.get("data", {}), base.get("data", {})
    if data.get("source") != before.get("source") and data.get("split") == before.get("split"):
        data.pop("split", None)
    return result


def unlabelled(folder: Path) -> dict[str, Any]:
    """`IMAGES` without their classes, in a file of the folder.

    No rank fits a classifier then, for which it imports scikit-learn: a second of each that evaluates. For
    tests of what happens to runs, whatever their metrics are.
    """
    import numpy as np

    from harness.config.schema import ImageData
    from harness.data.images import read_images

    path = folder / "digits.npy"
    if not path.exists():
        part = folder / f"digits-{os.getpid()}.npy"
        np.save(part, read_images(ImageData(source="digits")).train.pixels)
        part.replace(path)
    return merged(IMAGES, {"data.source": str(path), "data.kind": "images"})


Make = Callable[..., Path]


@pytest.fixture
def make_config(tmp_path: Path) -> Make:
    """Write a configuration file: a base and dotted changes."""

    def make(base: dict[str, Any] = TEXT, name: str = "config.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(merged(base, changes), sort_keys=False), encoding="utf-8")
        return path

    return make


FORKS = Forks(*HARNESS)
WORKERS = pytest.StashKey[Any]()
LOOKING = ("export", "plan", "status", "explain", "show", "report", "compare")
"""Commands that change nothing: what they take to start is most of what they take."""


def harness(*arguments: object, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line: in this process where it only looks, otherwise in one of its own."""
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    if not environment and arguments[0] in LOOKING:
        return within(command)
    forked = FORKS.run(command, environment, timeout)
    return forked or harness_process(*arguments, timeout=timeout, **environment)


def harness_process(
    *arguments: object, timeout: float = 240, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


def harness_each(*commands: list[object], **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """Run several command lines one after another in one process of their own, in another environment."""
    script = (
        "import json, sys; from conftest import within\n"
        "for command in json.load(sys.stdin): done = within(command); "
        "print(json.dumps([done.returncode, done.stdout, done.stderr]))"
    )
    lines = [[sys.executable, "-m", "harness", *map(str, command)] for command in commands]
    search = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": search},
        check=True,
    )
    told = map(json.loads, done.stdout.splitlines())
    return [subprocess.CompletedProcess(*each) for each in zip(lines, *zip(*told, strict=True), strict=True)]


def within(command: list[str]) -> subprocess.CompletedProcess[str]:
    """The command line's own entry with streams that are kept, as ``python -m harness`` calls it."""
    from harness.cli import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    before, code = dict(os.environ), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command[2:])
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os.environ.clear()
            os.environ.update(before)
    told = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(command, code, *told)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def pictures(shared_folder: Path) -> dict[str, Any]:
    """`unlabelled`, one file for all tests, whatever process they run in."""
    return unlabelled(shared_folder)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A small GPT-2 with its tokenizer; data sets with splits of their own, without, with configurations, and
    of images."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("hub")
    texts = [f"Entry {i} is about the number {i * 7} and nothing else.\n" for i in range(800)]
    for name, splits in {
        "lab/plain": {"train": texts},
        "lab/split": {"train": texts[:600], "validation": texts[600:700], "test": texts[700:]},
    }.items():
        folder = root / "datasets" / name
        folder.mkdir(parents=True)
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text(
                "".join(json.dumps({"text": text}) + "\n" for text in rows)
            )
    folder = root / "datasets" / "lab" / "notes"  # two configurations, and an old name without organisation
    folder.mkdir()
    for name, rows in {"small": texts[:500], "large": texts[300:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files: small.jsonl\n- config_name: large\n  data_files: "
        "large.jsonl\n---\n"
    )
    folder = root / "datasets" / "lab" / "chats"  # one prompt of its training side is in each other side
    folder.mkdir()
    for name, part in {"train": range(20), "validation": range(19, 24), "test": range(24, 29)}.items():
        rows = [{"prompt": f"Number {i}?", "completion": f"It is {i * 7}."} for i in part]
        rows += [{"prompt": "Number 3?", "completion": "It is 3."}] if name == "test" else []
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = root / "datasets" / "lab" / "pictures"
    folder.mkdir()
    pictures = [
        {"image": [[(i * 37 + x * y) % 256 for x in range(4)] for y in range(4)], "label": i % 3}
        for i in range(60)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pictures))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=270, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    folder = root / "models" / "lab" / "small"
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=270, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    with serve(root) as found:
        found.renamed["notes"] = "lab/notes"
        yield found


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct, where `scripts/fetch_smollm2` has made it."""
    default = "~/.cache/model-collapse-harness/SmolLM2-135M-Instruct"
    folder = Path(os.environ.get("HARNESS_SMOLLM2") or default).expanduser()
    if not (folder / "model.safetensors").exists():
        pytest.skip(f"needs scripts/fetch_smollm2, which makes {folder}")
    return folder


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """One rank in this process, with its process group: DeepSpeed takes one group a process."""
    from harness.learners.language_model.distributed import TorchRanks, open_store

    store, _, _ = open_store(1)
    found = TorchRanks(0, 1, store, threads=1)
    yield found
    found.close()


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """One Ray for the session, on this machine, with room for two ranks."""
    import ray
    from ray.cluster_utils import Cluster

    from harness.coordinator.private import without_helpers

    forked_worker.take_workers()
    with without_helpers():
        cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 3, "include_dashboard": False, "object_store_memory": 10**8},
        )
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """A SLURM of three machines for the session; /tmp is each machine's own, but for this checkout and its
    environment."""
    from slurm_cluster import Cluster, missing_programs

    if lacking := missing_programs():
        pytest.skip(f"needs {', '.join(lacking)}")
    base = Path(f"/var/tmp/harness-slurm-{os.getpid()}")
    shutil.rmtree(base, ignore_errors=True)
    found = Cluster(base, shared=[path for path in {ROOT, Path(sys.prefix)} if path.is_relative_to("/tmp")])
    try:
        yield found.up()
    finally:
        found.down()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def tag() -> Iterator[str]:
    """A mark in the environment of everything that a test starts; whatever carries it at the end is
    killed."""
    value = uuid.uuid4().hex
    yield value
    from processes import tagged

    for process in tagged(value):
        with contextlib.suppress(psutil.Error):
            process.kill()


class Quiet:
    """A display for tests: keeps lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, done: int, total: int, running: Any) -> None:
        pass

    def line(self, text: str) -> None:
        self.lines.append(text)

    def close(self) -> None:
        pass


@pytest.fixture
def run_study(ray_address: str, tmp_path: Path) -> Callable[..., Any]:
    """Run a configuration in this process on the session's Ray; returns the summary and the mirror's
    warnings."""
    from harness.coordinator import session
    from harness.coordinator.cluster import RayPlace
    from harness.store import Store
    from harness.study import open_study

    def run(
        config: Path, root: Path, *assignments: str, stop: Stop | None = None, idle_s: float | None = None
    ) -> Any:
        prepared, scratch = open_study(config, assignments, Store.read(root))
        with scratch:
            display = Quiet()
            place = contextlib.nullcontext(RayPlace(ray_address))
            summary, warnings = session.run_study(
                prepared,
                root,
                prepared.study.source,
                lambda: place,
                lambda: display,
                stop or Stop(),
                lambda: None,
                idle_s,
            )
        return summary, warnings, display.lines

    return run


def pytest_sessionstart(session: pytest.Session) -> None:
    """One process from which ranks are forked, for all processes that run tests."""
    session.config.stash[WORKERS] = forked_worker.start()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """GPU tests skip with a reason where there are too few devices."""
    wanted = 2 if item.get_closest_marker("multigpu") else 1 if item.get_closest_marker("gpu") else 0
    if wanted:
        import torch

        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if found < wanted:
            pytest.skip(f"needs {wanted} CUDA device(s), this machine has {found}")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """What a test has left is collected, and what is still there is not looked at again.

    A fit has two collections, and each would look at a million objects of libraries.
    """
    gc.collect()
    gc.freeze()


_skipped: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Where tests run in several processes, their reports arrive in the one that collects them, by this way
    too."""
    if report.skipped and not {"gpu", "multigpu", "kernel"} & report.keywords.keys():
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that skips itself as a whole."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where every component must be there, a skipped test is a failure (GPUs, and what only root may ask of a
    kernel, apart)."""
    gc.unfreeze()  # for libraries that look at their end whether all that was theirs is gone
    if os.environ.get("HARNESS_NO_SKIPS") and _skipped:
        print("\nskipped, but must run here:", *_skipped, sep="\n  ")
        session.exitstatus = 1
