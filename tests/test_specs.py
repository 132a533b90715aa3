"""What is hashed is what is executed: every field is in a key or is execution, and what runs a node sees
nothing else."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import pytest
from chats import chat, study
from classifiers import write_classifier
from conftest import TASK, TEXT, Make, merged
from pydantic import BaseModel

from harness.components import DATA_KINDS, LEARNERS
from harness.config.schema import Config, Evaluate
from harness.coordinator.plans import plan_of
from harness.science import cut
from harness.store import Store
from harness.study import Prepared, commit_data, open_study

STREAM = {"kind": "stream", "synthetic_ratio": 0.5}
REPLACE = {"kind": "replace", "synthetic_ratio": 0.5}


def analytic(source: dict[str, Any], learner: dict[str, Any], **more: Any) -> dict[str, Any]:
    found = {"experiment": "specs", "data": source, "learner": learner, "regime": REPLACE, "generations": 2}
    return {**found, "resources": {"bundled": False}, "tracking": {"wandb": "disabled"}, **more}


NATURAL = {"prompt": "real_prefix", "keep_prompt": True, "length": "natural", "min_new_tokens": 2}
PREFIX = {"prompt": "real_prefix", "prompt_tokens": 4}
TEACHER = {"source": {"model": {"variance": 4.0}}}
VERIFIER = {"kind": "verifier", "score": "log_density", "at_least": -3.0}
NORMAL: dict[str, Any] = {"source": "gaussian", "num_examples": 20}
CHAT = study("sums.jsonl", "tokenizer")
BASES: dict[str, dict[str, Any]] = {
    "text": merged(TEXT, {"regime.synthetic_ratio": 0.5, "learner.model.dropout": 0.1}),
    "loops": merged(TEXT, {"filters": [{"kind": "repetition"}]}),
    "prefix": merged(TEXT, {"learner.sample": PREFIX}),
    "marked": merged(
        TEXT, {"learner.init": "previous", "learner.sample.watermark": {}, "filters": [{"kind": "watermark"}]}
    ),
    "natural": merged(TEXT, {"learner.sample": NATURAL}),
    "llama": merged(
        TEXT,
        {
            "learner.model": {
                "architecture": "llama",
                "num_layers": 1,
                "width": 16,
                "num_heads": 4,
                "context": 48,
            }
        },
    ),
    "task": merged(TASK, {"filters": [{"kind": "judge", "judge": "noisy"}]}),
    "likely": merged(TASK, {"filters": [{"kind": "judge", "judge": "self", "choose": "best"}]}),
    "long": merged(TASK, {"filters": [{"kind": "judge", "judge": "proxy", "choose": "best"}]}),
    "formal": merged(
        TASK,
        {"filters": [{"kind": "judge", "judge": "proxy", "choose": "best", "prefers": "form", "form": "T"}]},
    ),
    "dpo": merged(
        TASK,
        {
            "learner.objective": {"kind": "dpo"},
            "filters": [{"kind": "judge", "judge": "exact", "choose": "pairs"}],
        },
    ),
    "reinforce": merged(
        TASK,
        {
            "learner.objective": {"kind": "reinforce", "kl": 0.1},
            "filters": [{"kind": "judge", "judge": "exact", "choose": "all"}],
        },
    ),
    "anchored": merged(
        TEXT, {"learner.init": "previous", "generations": 2, "learner.train.anchor": {"weight": 0.5}}
    ),
    "mixed": merged(TEXT, {"learner.sample": {"mixture": [{"share": 0.5}, {"share": 0.5, "top_k": 5}]}}),
    "drifting": merged(TEXT, {"evaluate.drift": {}}),
    "adapted": merged(TEXT, {"learner.init": "previous", "learner.adapter": {"kind": "lora"}}),
    "chat": CHAT,
    "voted": {**CHAT, "filters": [{"kind": "judge", "judge": "majority"}]},
    "taught_judge": merged(TASK, {"filters": [{"kind": "judge", "judge": "trained", "choose": "best"}]}),
    "asked": merged(
        CHAT,
        {"learner.model.context": 256, "filters": [{"kind": "judge", "judge": "verdict", "choose": "best"}]},
    ),
    "spoken": merged(
        TASK,
        {
            "data.tokenizer": {"kind": "pretrained", "name": "a tokenizer"},
            "data.prompt_tokens": 64,
            "data.completion_tokens": 48,
        },
    ),
    "sums": merged(TASK, {"data.task": {"kind": "arithmetic"}}),
    "strings": merged(TASK, {"data.task": {"kind": "rewriting"}}),
    "gaussian": analytic(NORMAL, {"kind": "gaussian"}),
    "merged": analytic(NORMAL, {"kind": "gaussian", "init": "previous", "merge": 0.5}),
    "grown": analytic(
        NORMAL, {"kind": "gaussian"}, regime={**REPLACE, "synthetic_ratio": 1.0, "growth": {"factor": 2}}
    ),
    "grown_slowly": analytic(
        NORMAL, {"kind": "gaussian"}, regime={**REPLACE, "synthetic_ratio": 1.0, "growth": {"power": 1}}
    ),
    "population": analytic(
        NORMAL, {"kind": "gaussian"}, population={"members": {"a": {}, "b": {}}, "exchange": {"teacher": "a"}}
    ),
    "taught": analytic(NORMAL, {"kind": "gaussian"}, regime={**REPLACE, **TEACHER}),
    "refreshed": analytic(NORMAL, {"kind": "mixture"}, regime={**REPLACE, "refresh": {"every": 2}}),
    "filtered": analytic(NORMAL, {"kind": "gaussian"}, filters=[VERIFIER, {"kind": "label", "recall": 0.5}]),
    "stream": analytic(
        NORMAL,
        {"kind": "gaussian"},
        regime=STREAM,
        filters=[
            {"kind": "detector", "examples": 10},
            {"kind": "detector", "examples": 10, "use": "weights"},
            {"kind": "random", "keep": 0.5},
        ],
    ),
    "likelihoods": merged(
        TEXT,
        {
            "regime": STREAM,
            "data.num_examples": 32,
            "filters": [{"kind": "detector", "examples": 10, "features": "likelihood", "reference": 12}],
        },
    ),
    "selected": analytic(
        NORMAL,
        {"kind": "gaussian"},
        regime=STREAM,
        filters=[{"kind": "select", "score": "likelihood", "keep": 0.5, "reference": 10}],
    ),
    "diverse": merged(
        TEXT,
        {
            "regime": STREAM,
            "data.num_examples": 32,
            "filters": [
                {"kind": "diverse", "keep": 0.8},
                {"kind": "select", "score": "entropy", "keep": 0.8},
            ],
        },
    ),
    "curated": analytic(
        {"source": "discrete", "outcomes": 4, "num_examples": 20},
        {"kind": "discrete"},
        filters=[{"kind": "curate", "of": 2, "outcomes": [0.0, 1.0, 1.0, 0.0]}],
    ),
    "weighted": analytic(
        NORMAL,
        {"kind": "gaussian", "synthetic_weight": 0.5},
        filters=[{"kind": "curate", "of": 2, "rewards": {"log_density": 1.0}}],
    ),
    "classified": merged(
        TEXT,
        {
            "regime": STREAM,
            "data.num_examples": 32,
            "filters": [
                {"kind": "classifier", "label": "machine", "model": ""},
                {"kind": "classifier", "label": "machine", "model": "", "use": "weights"},
            ],
        },
    ),
    "alike": merged(
        TEXT,
        {
            "regime": STREAM,
            "data.num_examples": 32,
            "filters": [{"kind": "near_duplicate"}, {"kind": "detector", "examples": 10}],
        },
    ),
    "mixture": analytic(
        {
            "source": "mixture",
            "num_examples": 20,
            "components": [
                {"weight": 0.5, "mean": [0.0], "std": 1.0},
                {"weight": 0.5, "mean": [4.0], "std": 1.0},
            ],
        },
        {"kind": "mixture"},
    ),
    "kde": analytic({"source": "blobs", "num_examples": 20}, {"kind": "kde"}),
    "discrete": analytic({"source": "discrete", "outcomes": 4, "num_examples": 20}, {"kind": "discrete"}),
    "linear": analytic({"source": "linear", "dim": 2, "num_examples": 20}, {"kind": "linear_regression"}),
    "signs": analytic(
        {"source": "linear", "dim": 2, "num_examples": 20, "labels": "sign"}, {"kind": "linear_regression"}
    ),
    "array": analytic({"source": "array", "path": "rows.npy", "num_examples": 20}, {"kind": "gaussian"}),
    "segment": merged(TEXT, {"data.num_examples": 30, "data.segment": {"number": 1, "of": 2}}),
    "images": analytic(
        {"source": "digits", "num_examples": 40},
        {"kind": "vae", "latent_dim": 4, "channels": [4], "train": {"epochs": 1}},
    ),
}
CHANGES: dict[str, dict[str, Any]] = {
    "task": {
        "data.task.difficulty": [2, 4],
        "data.num_examples": 30,
        "data.reserve": 10,
        "data.validation": 12,
        "data.test": 12,
        "data.prompt_tokens": 20,
        "data.completion_tokens": 40,
        "learner.sample.per_prompt": 4,
        "learner.later": {"epochs": 3},
        "evaluate.task.prompts": 5,
        "evaluate.task.completions": 5,
        "evaluate.task.pass_k": [2],
        "filters.0.judge": "exact",
        "filters.0.choose": "best",
        "filters.0.at_least": 0.6,
        "filters.0.most": 2,
        "filters.0.deduplicate": False,
        "filters.0.by_lot": True,
        "filters.0.false_accept": 0.1,
        "filters.0.false_reject": 0.1,
    },
    "chat": {
        "data.answer": "result",
        "data.system": "Add.",
        "data.prompt_tokens": 60,
        "data.completion_tokens": 20,
        "data.num_examples": 20,
        "data.resample": True,
        "data.split.test": 0.3,
        "data.split.validation": 0.2,
    },
    "voted": {"data.extract": "#### (.*)"},
    "taught_judge": {
        "filters.0.examples": 60,
        "filters.0.ngram": 3,
        "filters.0.regularisation": 1.0,
        "filters.0.false_accept": 0.1,
        "filters.0.false_reject": 0.1,
    },
    "asked": {
        "filters.0.ask": "Is {completion} right? {prompt}",
        "filters.0.yes": "Right",
        "filters.0.no": "Wrong",
        "filters.0.by": "initial",
    },
    "spoken": {"data.system": "Be brief.", "data.instruction": "Evaluate {prompt}"},
    "likely": {"filters.0.per": "completion"},
    "long": {"filters.0.prefers": "short", "filters.0.form": None},
    "formal": {"filters.0.form": "F"},
    "dpo": {
        "learner.objective.kind": None,
        "learner.objective.beta": 0.2,
        "learner.objective.reference": "previous",
        "learner.objective.length_normalised": True,
        "filters.0.rejected": "initial",
        "filters.0.solutions": 0.5,
    },
    "reinforce": {
        "learner.objective.clip": 0.1,
        "learner.objective.kl": 0.2,
        "learner.objective.reference": "previous",
        "learner.objective.scaled": False,
    },
    "adapted": {
        "learner.adapter.rank": 4,
        "learner.adapter.alpha": 8.0,
        "learner.adapter.dropout": 0.1,
        "learner.adapter.targets": "all-linear",
        "learner.adapter.weights": "separate",
    },
    "anchored": {
        "learner.train.anchor.loss": "kl",
        "learner.train.anchor.weight": 0.4,
        "learner.train.anchor.reference": "previous",
    },
    "mixed": {
        "learner.sample.mixture.0.temperature": 0.5,
        "learner.sample.mixture.0.top_k": 4,
        "learner.sample.mixture.0.top_p": 0.9,
        "learner.sample.mixture.0.min_p": 0.1,
        "learner.sample.mixture.0.typical_p": 0.9,
        "learner.sample.mixture.0.share": None,
    },
    "merged": {"learner.merge": -0.5, "learner.init": None, "learner.truncate": 0.9},
    "drifting": {"evaluate.drift.examples": 8},
    "sums": {"data.task.difficulty": [2], "data.task.modulus": 9, "data.task.operators": "+-"},
    "strings": {"data.task.difficulty": [6], "data.task.rules": [["aa", "b"], ["bb", "a"], ["ab", ""]]},
    "text": {
        "data.block_size": 12,
        "data.num_examples": 95,
        "data.resample": True,
        "data.segment": {"number": 1, "of": 2},
        "data.separator": "eos",
        "data.prepend_bos": False,
        "data.split.test": 0.06,
        "data.split.validation": 0.06,
        "data.tokenizer.vocab_size": 301,
        "learner.init": "previous",
        "learner.model.num_layers": 2,
        "learner.model.width": 32,
        "learner.model.num_heads": 4,
        "learner.model.mlp_width": 24,
        "learner.model.context": 40,
        "learner.model.dropout": 0.2,
        "learner.model.tie_embeddings": False,
        "learner.model.architecture": "opt",
        "learner.train.epochs": 2,
        "learner.train.max_steps": None,
        "learner.train.batch_size": 4,
        "learner.train.learning_rate": 2e-3,
        "learner.train.schedule": "linear",
        "learner.train.min_learning_rate_ratio": 0.2,
        "learner.train.warmup_ratio": 0.2,
        "learner.train.precision": "fp32",
        "learner.train.weight_decay": 0.1,
        "learner.train.betas": [0.9, 0.99],
        "learner.train.eps": 1e-7,
        "learner.train.max_grad_norm": 2.0,
        "learner.train.weights": "best",
        "learner.train.truncate": 0.9,
        "learner.train.synthetic_weight": 0.5,
        "learner.sample.min_p": 0.1,
        "learner.sample.typical_p": 0.9,
        "learner.sample.watermark": {},
        "learner.sample.temperature": 0.9,
        "learner.sample.top_k": 5,
        "learner.sample.top_p": 0.9,
        "learner.sample.prompt": "real_prefix",
        "learner.sample.length": "natural",
        "learner.sample.forbid_eos": True,
        "learner.sample.repetition_penalty": 1.2,
        "regime.synthetic_ratio": 0.25,
        "regime.real_part": "fixed",
        "regime.budget": "tokens",
        "regime.source": {"corpus": "python-stdlib"},
        "evaluate.prompts": 3,
        "evaluate.examples": 32,
        "evaluate.perplexity_batch": 4,
        "evaluate.max_duplicate_share": 0.9,
        "evaluate.others": {"stdlib": "python-stdlib"},
        "seed": 1,
        "filters": [{"kind": "deduplicate"}],
    },
    "prefix": {
        "learner.sample.prompt_tokens": 5,
        "learner.sample.keep_prompt": True,
        "learner.sample.num_beams": 2,
    },
    "loops": {"filters.0.n": 3, "filters.0.max_share": 0.3},
    "marked": {
        "learner.train.merge": 0.5,
        "learner.sample.watermark.gamma": None,
        "learner.sample.watermark.delta": 1.0,
        "learner.sample.watermark.context": None,
        "filters.0.threshold": 3.0,
        "filters.0.gamma": None,
        "filters.0.context": None,
    },
    "natural": {"learner.sample.min_new_tokens": 3, "learner.train.loss": "continuation"},
    "llama": {"learner.model.num_kv_heads": 2},
    "gaussian": {
        "learner.estimator": "unbiased",
        "data.dim": 2,
        "data.num_examples": 21,
        "data.mean": 1.0,
        "data.variance": 2.0,
        "regime.kind": "fresh_real",
        "regime.refresh": {"every": 2},
        "evaluate.ranges": {"low": [-1.0, 0.0]},
        "population": {"members": 2},
        "regime.growth": {"factor": 1.1},
    },
    "grown": {"regime.growth.factor": 3},
    "grown_slowly": {"regime.growth.power": 2},
    "population": {
        "population.members": {"a": {}, "b": {}, "c": {}},
        "population.members.b.set": {"learner.estimator": "unbiased"},
        "population.members.b.arrives": 1,
        "population.members.a.retires": 1,
        "population.exchange": "self",
        "population.exchange.teacher": "b",
        "population.segments": "shared",
    },
    "taught": {"regime.source.model": {"variance": 5.0}},
    "refreshed": {
        "regime.refresh.every": 1,
        "regime.refresh.init": "previous",
        "regime.refresh.examples": 10,
    },
    "filtered": {
        "filters.0.score": None,
        "filters.0.at_least": -2.0,
        "filters.0.false_accept": 0.1,
        "filters.0.false_reject": 0.1,
        "filters.1.recall": 0.6,
        "filters.1.false_positive_rate": 0.1,
    },
    "stream": {
        "regime.pool": 3,
        "regime.history": "all",
        "regime.anchor": 0.2,
        "regime.select": "random",
        "filters.0.examples": 12,
        "filters.0.regularisation": 2.0,
        "filters.0.threshold": 0.6,
        "filters.0.temperature": 2.0,
        "filters.1.use": "threshold",
        "filters.1.bias": 2.0,
        "filters.1.repeats": 2,
        "filters.2.keep": 0.6,
    },
    "likelihoods": {"filters.0.features": None, "filters.0.reference": 13},
    "selected": {
        "filters.0.keep": 0.6,
        "filters.0.reference": 12,
        "filters.0.choose": "lowest",
        "filters.0.bias": 1.0,
        "filters.0.error": 0.1,
    },
    "diverse": {"filters.0.keep": 0.9, "filters.0.n": 1, "filters.1.score": "distinct_2"},
    "curated": {"filters.0.of": 4, "filters.0.outcomes": [0.0, 1.0, 2.0, 3.0], "filters.0.choose": "best"},
    "weighted": {"learner.synthetic_weight": "golden", "filters.0.rewards": {"log_density": 2.0}},
    "classified": {
        "filters.0.label": "human",
        "filters.0.max_tokens": 32,
        "filters.0.threshold": 0.6,
        "filters.0.use": "weights",
        "filters.0.temperature": 2.0,
        "filters.1.bias": 2.0,
        "filters.1.repeats": 2,
    },
    "alike": {
        "filters.0.n": 2,
        "filters.0.max_similarity": 0.4,
        "filters.1.ngram": 2,
        "filters.1.unit": "characters",
    },
    "mixture": {
        "data.stratified": True,
        "data.num_examples": 22,
        "data.components.0.weight": None,
        "data.components.0.mean": [1.0],
        "data.components.0.std": 2.0,
        "learner.components": 3,
        "learner.covariance": "diag",
        "learner.tolerance": 1e-2,
        "learner.max_iterations": 50,
        "learner.regularisation": 1e-5,
        "learner.init": "previous",
        "learner.truncate": None,
    },
    "kde": {
        "learner.kernel": None,
        "learner.bandwidth": 0.5,
        "data.num_examples": 22,
        "data.noise": 2.0,
        "data.source": "moons",
    },
    "discrete": {"data.outcomes": 5, "data.zipf": 1.0, "data.num_examples": 22, "data.stratified": True},
    "linear": {
        "data.dim": 3,
        "data.num_examples": 22,
        "data.noise_variance": 2.0,
        "data.labels": "sign",
        "data.shift": 0.5,
        "learner.design": "fresh",
        "learner.ridge": 0.1,
    },
    "signs": {"data.flipped": 0.1},
    "array": {
        "data.num_examples": 21,
        "data.resample": True,
        "data.test": 0.2,
        "data.segment": {"number": 1, "of": 2},
    },
    "segment": {"data.segment.number": 0, "data.segment.of": 3},
    "images": {
        "data.num_examples": 41,
        "data.resample": True,
        "data.segment": {"number": 1, "of": 2},
        "data.split.test": 0.3,
        "learner.latent_dim": 5,
        "learner.channels": [5],
        "learner.init": "previous",
        "learner.train.epochs": 2,
        "learner.train.batch_size": 128,
        "learner.train.learning_rate": 2e-3,
        "learner.train.weight_decay": 1e-4,
        "learner.train.beta": 2.0,
        "learner.sample.binary": True,
        "evaluate.groups": "label",
    },
}
"""Base to changes of it; None where a field has but one value, or a change needs a second one
(`TOGETHER`)."""
TOGETHER: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("gaussian", {}, {"learner": {"kind": "gaussian", "init": "previous", "merge": 0.5}}),
    (
        "text",
        {"learner.sample": {"mixture": [{"share": 0.5, "top_k": 5}, {"share": 0.5}]}},
        {"learner.sample": {"mixture": [{"share": 0.4, "top_k": 5}, {"share": 0.6}]}},
    ),
    (
        "selected",
        {"filters": [{"kind": "select", "score": "likelihood", "at_least": -2.0, "reference": 10}]},
        {"filters": [{"kind": "select", "score": "likelihood", "at_least": -1.0, "reference": 10}]},
    ),
    (
        "likelihoods",
        {"filters": [{"kind": "detector", "examples": 10}]},
        {"filters": [{"kind": "detector", "examples": 10, "features": "likelihood", "reference": 12}]},
    ),
    *(
        (
            "marked",
            {},
            {"learner.sample.watermark": {name: value}, "filters": [{"kind": "watermark", name: value}]},
        )
        for name, value in (("gamma", 0.5), ("context", 2))
    ),
    ("text", {"learner.train": {"epochs": 1}}, {"learner.train": {"max_steps": 9}}),
    (
        "text",
        *({"filters": [VERIFIER | {"at_least": 0.1, "score": s}]} for s in ("distinct_2", "uniqueness_4")),
    ),
    ("text", *({"regime.source": {"corpus": name}} for name in ("python-docs", "python-stdlib"))),
    (
        "text",
        {"learner.sample.repetition_penalty": 1.2},
        {"learner.sample": {"repetition_penalty": 1.2, "penalize_prompt": False}},
    ),
    (
        "text",
        {"learner.sample": {"temperatures": [1.0, 0.9]}},
        {"learner.sample": {"temperatures": [1.0, 0.8]}},
    ),
    ("text", {"learner.model": {"preset": "tiny"}}, {"learner.model": {"preset": "small"}}),
    (
        "gaussian",
        {"regime": {**REPLACE, "refresh": {"at": [1]}}},
        {"regime": {**REPLACE, "refresh": {"at": [2]}}},
    ),
    ("signs", {"filters": [{**VERIFIER, "score": "agreement"}]}, {}),
    (
        "task",
        {"learner.sample.fresh_prompts": True, "data.reserve": 72},
        {"learner.sample.fresh_prompts": False, "data.reserve": 72},
    ),
    ("task", {"data.resample": True, "data.reserve": 10}, {"data.reserve": 10}),
    (
        "mixture",
        {"learner": {"kind": "mixture", "init": "previous"}},
        {"learner": {"kind": "mixture", "init": "previous", "truncate": 0.9}},
    ),
    (
        "mixture",
        {},
        {
            "data.components": [
                {"weight": 0.25, "mean": [0.0], "std": 1.0},
                {"weight": 0.75, "mean": [4.0], "std": 1.0},
            ]
        },
    ),
    (
        "discrete",
        {"data": {"source": "discrete", "probabilities": [0.5, 0.5], "num_examples": 20}},
        {"data": {"source": "discrete", "probabilities": [0.9, 0.1], "num_examples": 20}},
    ),
]
EXECUTION = ("Resources", "Retention", "Tracking", "Claim", "Statistic", "Override")
"""Sections of which nothing enters a key, nor says what a node is."""
ELSEWHERE = {
    ("Lora", "generations"): "tests/test_adapter.py: generation 0 has one where its model is pretrained",
    ("JudgeFilter", "of"): "tests/test_posttraining.py: follows from learner.sample.per_prompt",
    ("TaskMeasure", "pretrained"): "tests/test_chat.py: a pretrained model has to be there",
    ("Model", "pretrained"): "tests/test_models.py and tests/test_hub.py: by content",
    ("Model", "revision"): "the same",
    ("Split", "own_test"): "tests/test_hub.py: the hub's data alone have one",
    ("ClassifierFilter", "model"): "tests/test_classifier.py: by content",
    ("ClassifierFilter", "content"): "the same",
    ("ClassifierFilter", "revision"): "says which content is meant",
    ("PretrainedTokenizer", "name"): "tests/test_hub.py: by content",
    ("PretrainedTokenizer", "revision"): "the same",
    ("CellSource", "cell"): "tests/test_switches.py: by the keys of what the other chain writes",
    ("CellSource", "generation"): "the same",
    ("Evaluate", "metrics"): "tests/test_plugins.py: by the package's version",
    ("TaskData", "tokenizer"): "tests/test_chat.py: by content",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import numpy as np
    import yaml

    folder = tmp_path_factory.mktemp("specs")
    chat(folder)
    classifier_folder = write_classifier(folder / "classifier")
    np.save(folder / "rows.npy", np.random.default_rng(0).normal(size=(60, 1)))
    known: dict[str, Prepared] = {}

    def find(config: dict[str, Any]) -> Prepared:
        if "path" in config["data"]:
            config = merged(config, {"data.path": str(folder / "rows.npy")})
        if config["data"].get("kind") == "chat":
            config = {**config, "data": {**config["data"], "source": str(folder / "sums.jsonl")}}
        if (config["data"].get("tokenizer") or {}).get("kind") == "pretrained":
            config = merged(config, {"data.tokenizer.name": str(folder / "tokenizer")})
        place = {"model": str(classifier_folder)}
        filters = config.get("filters", [])
        if any(item.get("kind") == "classifier" for item in filters):
            config = {**config, "filters": [{**item, **place} for item in filters]}
        text = yaml.safe_dump(config)
        if text not in known:
            (folder / "config.yaml").write_text(text)
            store = Store.open(folder / "root")
            known[text], scratch = open_study(folder / "config.yaml", (), store)
            with scratch:
                commit_data(known[text], store)  # so that nothing is read twice
        return known[text]

    return find


def keys(prepared: Prepared) -> set[str]:
    nodes = prepared.lineage.nodes.values()
    return {key for node in nodes for key in (node.fit, node.corpus, node.evaluation)}


@pytest.mark.parametrize(
    ("base", "field", "value"),
    [
        (base, field, value)
        for base, found in CHANGES.items()
        for field, value in found.items()
        if value is not None
    ],
)
def test_a_changed_field_changes_a_key(base: str, field: str, value: Any, prepared: Any) -> None:
    changed = _with(BASES[base], field, value)
    assert keys(prepared(changed)) != keys(prepared(BASES[base]))


@pytest.mark.parametrize("which", range(len(TOGETHER)))
def test_fields_that_come_together_change_a_key(which: int, prepared: Any) -> None:
    base, one, two = TOGETHER[which]
    assert keys(prepared(merged(BASES[base], one))) != keys(prepared(merged(BASES[base], two)))


def _with(config: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A change by dotted name; a number is a place in a list."""
    head, _, rest = field.partition(".")
    if not rest:
        return {**config, head: value}
    inner: Any = config.get(head, {})
    if isinstance(inner, list):
        place, _, name = rest.partition(".")
        return {
            **config,
            head: [
                _with(item, name, value) if number == int(place) else item
                for number, item in enumerate(inner)
            ],
        }
    return {**config, head: _with(inner, rest, value)}


def _differences(one: Any, two: Any) -> Iterator[tuple[str, str]]:
    """Fields, with their sections, in which two sections differ; of sections within them, theirs."""
    for name in type(one).model_fields:
        before, after = getattr(one, name), getattr(two, name)
        if before == after:
            continue
        pairs = list(
            zip(*(list(v) if isinstance(v, list | tuple) else [v] for v in (before, after)), strict=False)
        )
        inner = [pair for pair in pairs if isinstance(pair[0], BaseModel) and type(pair[0]) is type(pair[1])]
        if not inner:
            yield type(one).__name__, name
        for pair in inner:
            yield from _differences(*pair)


def test_no_field_is_left_out() -> None:
    """Every field of every section is changed above, is execution, or says where something lies that is known
    by its content."""
    changed: set[tuple[str, str]] = set()
    for base, config in BASES.items():
        whole = Config.model_validate(config)
        for field, value in CHANGES.get(base, {}).items():
            *path, name = field.split(".")
            if value is not None:
                changed.add((type(reduce(_step, path, whole)).__name__, name))
    for base, *pair in TOGETHER:
        one, two = (Config.model_validate(merged(BASES[base], changes)) for changes in pair)
        changed |= set(_differences(one, two))
    kinds = [DATA_KINDS[name] for name in DATA_KINDS]
    places = {(kind.section.__name__, name) for kind in kinds for name in kind.places}
    missing = []
    for section in _sections(Config):
        for name, info in section.model_fields.items():
            key = (section.__name__, name)
            one_value = len(get_args(info.annotation)) == 1 and str(info.annotation).startswith(
                "typing.Literal"
            )
            if (
                section.__name__ not in EXECUTION
                and key not in changed | places | ELSEWHERE.keys()
                and not one_value
            ):
                missing.append(".".join(key))
    allowed = {
        "Config." + name
        for name in (
            "experiment",
            "data",
            "learner",
            "evaluate",
            "regime",
            "generations",
            "claims",
            "grid",
            "overrides",
        )
    }
    allowed |= {
        "Config.resources",
        "Config.retention",
        "Config.tracking",
        "LanguageModel.model",
        "LanguageModel.train",
        "LanguageModel.later",
        "LanguageModel.objective",
        "LanguageModel.adapter",
        "Train.anchor",
        "Sample.mixture",
        "MixtureData.components",
        "TaskData.task",
        "Evaluate.task",
        "Evaluate.drift",
    }
    allowed |= {
        "LanguageModel.sample",
        "Vae.train",
        "Vae.sample",
        "TextData.tokenizer",
        "TextData.split",
        "ChatData.tokenizer",
        "ChatData.split",
        "ImageData.split",
    }
    assert set(missing) <= allowed, sorted(set(missing) - allowed)


def _step(section: Any, name: str) -> Any:
    if isinstance(section, dict):
        return section[name]
    return section[int(name)] if name.isdigit() else getattr(section, name)


def _sections(section: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A section and all that it can hold, the harness's own."""
    seen: set[type[BaseModel]] = set()
    todo: list[Any] = [section]
    while todo:
        found = todo.pop()
        if isinstance(found, type) and issubclass(found, BaseModel):
            if found not in seen and found.__module__.startswith("harness."):
                seen.add(found)
                todo += [info.annotation for info in found.model_fields.values()]
        else:
            todo += list(get_args(found))
    yield from seen


def test_what_runs_a_node_is_told_nothing_else(make_config: Make, tmp_path: Path) -> None:
    """No configuration travels, and no place where data lie: only what the keys hold, and how it is
    executed."""
    text = "".join(f"Paragraph {number} tells of {number * number} things.\n\n" for number in range(900))
    for name in ("data", "corpus", "other"):
        (tmp_path / f"where-the-{name}-lies.txt").write_text(text.replace("things", name))
    place = {name: str(tmp_path / f"where-the-{name}-lies.txt") for name in ("data", "corpus", "other")}
    changes = {
        "data.source": place["data"],
        "data.tokenizer.vocab_size": 270,
        "regime.source": {"corpus": place["corpus"]},
        "evaluate.others": {"other": place["other"]},
    }
    prepared, scratch = open_study(make_config(TEXT, **changes), (), Store.read(tmp_path / "absent"))
    scratch.cleanup()
    for branch in cut(prepared.lineage):
        sent = pickle.dumps(plan_of(prepared, branch))
        assert b"where-the" not in sent
        assert not {type(found).__name__ for found in _reachable(pickle.loads(sent))} & {
            "Config",
            "Regime",
            "LanguageModel",
        }


def test_a_fit_does_not_see_how_is_sampled(prepared: Any) -> None:
    config = merged(BASES["images"], {"learner.sample": {"binary": True}, "learner.init": "previous"})
    (spec,) = prepared(config).specs
    for field in ("sample", "init"):
        with pytest.raises(AttributeError, match=rf"Vae\.{field}: is in no key here"):
            getattr(spec.learner.section, field)
    assert spec.sampling.section.binary


@pytest.mark.parametrize("base", BASES)
def test_what_no_key_holds_cannot_be_read(base: str, prepared: Any) -> None:
    """Every field of what a node is given either changes a key (the tests above), or reading it raises."""
    found = prepared(BASES[base])
    for node in found.lineage.nodes.values():
        fit, measured = node.spec.fit, node.spec.measured
        data, learner = fit.data, LEARNERS[fit.learner.section.kind]
        read = {"metrics", *learner.evaluates} - {"others"}
        assert vars(measured.section).keys() == read
        places = () if data.folder is None else DATA_KINDS[data.kind].places
        for section, names in (
            (measured.section, set(Evaluate.model_fields) - read),
            (fit.learner.section, {"sample", "init"} & set(type(fit.learner.section).model_fields)),
            (data.section, set(places)),
        ):
            for name in names:
                with pytest.raises(AttributeError, match="is in no key here|has no attribute"):
                    reduce(_step, name.split("."), section)


def _reachable(thing: Any) -> Iterator[Any]:
    """A thing and all that it holds."""
    seen: set[int] = set()
    todo = [thing]
    while todo:
        found = todo.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        if isinstance(found, dict):
            todo += [*found.keys(), *found.values()]
        elif isinstance(found, list | tuple | set | frozenset):
            todo += list(found)
        elif hasattr(found, "__slots__") or hasattr(found, "__dict__"):
            names = [*getattr(found, "__dict__", {}), *getattr(type(found), "__slots__", ())]
            todo += [getattr(found, name) for name in names if isinstance(name, str) and hasattr(found, name)]
