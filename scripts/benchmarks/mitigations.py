"""What each mitigation costs: two generations of a small language model, with and without, in turn.

The model is the smallest preset, whose fit is the cheapest that there is: of larger ones shares are lower.
Processor seconds are compared, as other work may run on the machine.
"""

import statistics
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.overhead import _NoLeases, _Observer
from harness.chain import Plan, Site, run_branch
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
    "merge": {"learner.init": "previous", f"{TRAIN}merge": 0.5},
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


def mitigations(rounds, only=()):
    """Rounds of each mitigation between two of the plain study: the median of what it takes more."""
    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=1)
    _seconds(STUDY, ranks)  # what is loaded and compiled at first
    plain = _seconds(STUDY, ranks)
    print(f"two generations of nothing: {plain:.2f} processor seconds", flush=True)
    for name in only or VARIANTS:
        found = []
        for _ in range(rounds):
            took = _seconds(_changed(STUDY, VARIANTS[name]), ranks)
            after = _seconds(STUDY, ranks)
            found.append(100 * (took / ((plain + after) / 2) - 1))
            plain = after
        spread = f"({min(found):+.1f} to {max(found):+.1f})"
        print(f"{name:24} {statistics.median(found):+6.1f} %  {spread}", flush=True)
