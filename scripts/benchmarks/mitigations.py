"""What each mitigation costs: two generations of a small language model, with and without, in turn.

The model is the smallest preset, whose fit is the cheapest that there is: of larger ones shares are lower.
What runs a classifier is compared with that model's own forward pass. Processor seconds are compared, as
other work may run on the machine.
"""

import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from benchmarks.overhead import _NoLeases, _Observer
from harness.chain import Plan, Site, run_branch
from harness.components.filters import ClassifierFilter
from harness.curation.classifier import locate, log_odds
from harness.learners import Control, make_learner
from harness.learners.language_model.distributed import TorchRanks, open_store
from harness.preparation import load_data
from harness.science import cut
from harness.store import Owner, Store
from harness.study import commit_data, open_study

STUDY = {
    "experiment": "mitigations",
    "data": {
        "source": "python-stdlib",
        "tokenizer": {"kind": "bpe", "vocab_size": 512},
        "block_size": 32,
        "num_examples": 200,
    },
    "learner": {
        "kind": "language_model",
        "model": {"preset": "micro"},
        "train": {
            "epochs": 8,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "warmup_ratio": 0.2,
            "precision": "fp32",
        },
    },
    "regime": {"kind": "stream", "synthetic_ratio": 0.75, "pool": 3, "budget": "tokens"},
    "generations": 1,
    "tracking": {"wandb": "disabled"},
}
TRAIN, SAMPLE = "learner.train.", "learner.sample."
VARIANTS = {
    "deduplicate": {"filters": [{"kind": "deduplicate"}]},
    "repetition": {"filters": [{"kind": "repetition"}]},
    "near_duplicate": {"filters": [{"kind": "near_duplicate"}]},
    "random": {"filters": [{"kind": "random", "keep": 0.5}]},
    "verifier": {"filters": [{"kind": "verifier", "score": "distinct_2", "at_least": 0.5}]},
    "select likelihood": {
        "filters": [{"kind": "select", "score": "likelihood", "keep": 0.5, "reference": 100}]
    },
    "select entropy": {"filters": [{"kind": "select", "score": "entropy", "keep": 0.5}]},
    "diverse": {"filters": [{"kind": "diverse", "keep": 0.5}]},
    "curate": {"filters": [{"kind": "curate", "of": 2, "rewards": {"distinct_2": 1.0}}]},
    "detector": {"filters": [{"kind": "detector", "examples": 100}]},
    "watermark": {f"{SAMPLE}watermark": {"delta": 3.0}, "filters": [{"kind": "watermark"}]},
    "truncate": {f"{TRAIN}truncate": 0.9},
    "synthetic_weight": {f"{TRAIN}synthetic_weight": "golden"},
    "min_p": {f"{SAMPLE}min_p": 0.05},
    "typical_p": {f"{SAMPLE}typical_p": 0.9},
    "temperatures": {f"{SAMPLE}temperatures": [1.0, 1.1]},
    "previous": {"learner.init": "previous"},
    "merge": {"learner.init": "previous", f"{TRAIN}merge": 0.5},
    "merge uniform": {"learner.init": "previous", f"{TRAIN}merge": "uniform"},
    "neon": {"learner.init": "previous", f"{TRAIN}merge": -0.25},
    "detector likelihood": {
        "filters": [{"kind": "detector", "examples": 100, "features": "likelihood", "reference": 100}]
    },
    "anchor (runs a model)": {f"{TRAIN}anchor": {"weight": 0.1}},
}


def _changed(study, changes):
    found = yaml.safe_load(yaml.safe_dump(study))
    for field, value in changes.items():
        *path, last = field.split(".")
        place = found
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return found


def _seconds(study, ranks):
    """Processor seconds of a study's generations, without reading its data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(study))
        prepared, scratch = open_study(path, (), Store.open(Path(folder) / "root"))
        with scratch:
            store = Store(Path(folder) / "root")
            commit_data(prepared, store)
        data = load_data(prepared.specs[0].data, store)
        owner = Owner(store.root / "leases" / "owners", 6.0)
        execution, lineage = prepared.executions[0], prepared.lineage
        learner = make_learner("language_model", data, ranks, execution)
        site = Site(
            learner, store, data, ranks, _Observer(store.root), _NoLeases(store.root, owner), Control()
        )
        started = time.process_time()
        for branch in cut(lineage):
            plan = Plan(branch.id, execution, branch.nodes, lineage.nodes, lineage.examples)
            run_branch(plan, site)
        found = time.process_time() - started
        owner.close()
        return found


def mitigations(rounds, only=(), preset="micro"):
    """Rounds of each mitigation between two of the plain study: the median of what it takes more."""
    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=1)
    study = _changed(STUDY, {"learner.model.preset": preset})
    _seconds(study, ranks)  # what is loaded and compiled at first
    plain = _seconds(study, ranks)
    print(f"two generations of nothing: {plain:.2f} processor seconds", flush=True)
    for name in only or VARIANTS:
        found = []
        for _ in range(rounds):
            took = _seconds(_changed(study, VARIANTS[name]), ranks)
            after = _seconds(study, ranks)
            found.append(100 * (took / ((plain + after) / 2) - 1))
            plain = after
        spread = f"({min(found):+.1f} to {max(found):+.1f})"
        print(f"{name:24} {statistics.median(found):+6.1f} %  {spread}", flush=True)
    if not only:
        classifier(rounds)


def classifier(rounds, texts=3000, layers=4, width=192):
    """The filter ``classifier`` beside its model's own forward pass over the same tokens, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        made = _write_classifier(folder, layers, width)
        section = locate(ClassifierFilter(kind="classifier", model=made, label="b"), "filters.0")
        rng = random.Random(0)
        read = ["".join(rng.choices("abcdefgh ", k=rng.randint(70, 120))) for _ in range(texts)]
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found = []
        for turn in range(rounds + 1):
            started = time.process_time()
            log_odds(section, read)
            between = time.process_time()
            _forward(model, tokenizer(read)["input_ids"])
            if turn:  # the first one loads
                found.append((between - started) / (time.process_time() - between))
        spread = f"({min(found):.2f} to {max(found):.2f})"
        print(f"classifier, of its forward pass  {statistics.median(found):.2f} times  {spread}", flush=True)


def _forward(model, rows, tokens=4096):
    """The model alone: rows by length, each batch as long as its longest row."""
    rows = sorted(rows, key=len)
    with torch.inference_mode():
        while rows:
            size = max(1, tokens // len(rows[min(len(rows), tokens // len(rows[0])) - 1]))
            batch, rows = rows[:size], rows[size:]
            longest = len(batch[-1])
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in batch])
            mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
            model(input_ids=ids, attention_mask=mask)


def _write_classifier(folder, layers, width):
    """A BERT with new weights and a tokenizer of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(["[PAD]", *alphabet])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", model_input_names=names
    ).save_pretrained(folder)
    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 32}
    size |= {"intermediate_size": 4 * width, "max_position_embeddings": 256, "vocab_size": len(alphabet) + 1}
    BertForSequenceClassification(BertConfig(**size, id2label={0: "a", 1: "b"})).save_pretrained(folder)
    return folder
