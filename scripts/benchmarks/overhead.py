"""What checkpoints and leases cost: one fit in this process with both, and without either, in turn."""

import shutil
import statistics
import tempfile
from pathlib import Path

from harness.chain import Plan, Site, run_branch
from harness.learners import Control, make_learner
from harness.learners.language_model.distributed import TorchRanks, open_store
from harness.preparation import load_data
from harness.science import cut
from harness.store import Experiment, Lease, Leases, Owner, Store
from harness.study import commit_data, open_study

STUDY = """
experiment: overhead
data: {source: python-docs, tokenizer: {kind: bpe, vocab_size: 512}, block_size: 64, num_examples: 1773}
learner:
  kind: language_model
  model: {preset: tiny}
  train: {epochs: 4, batch_size: 16, learning_rate: 4e-3, warmup_ratio: 0.2, precision: bf16}
generations: 0
tracking: {wandb: disabled}
"""


class _NoLeases(Leases):
    """Everything is free."""

    def acquire(self, key, about=None):
        return Lease(key, 1)

    def release(self, lease, finished):
        pass


class _Observer:
    """Writes events down, and nothing else."""

    def __init__(self, root):
        self.experiment = Experiment(root, "overhead")

    def event(self, kind, **fields):
        self.experiment.event(kind, **fields)

    def progress(self, node, phase, done, total, rate):
        pass


def _fit(folder, ranks, checkpoint_s):
    """Seconds of a fit, and its checkpoints; without leases and checkpoints where no interval is given."""
    path = folder / "config.yaml"
    path.write_text(
        STUDY + f"resources: {{checkpoint_s: {checkpoint_s or 1e6}, zero_stage: 2, lease_s: 6}}\n"
    )
    prepared, scratch = open_study(path, (), Store.open(folder / "root"))
    with scratch:
        found = Store(folder / "root")
        commit_data(prepared, found)
    (branch,) = cut(prepared.lineage)
    execution, lineage, spec = prepared.executions[0], prepared.lineage, prepared.specs[0]
    plan = Plan(branch.id, execution, branch.nodes, lineage.nodes, lineage.examples)
    data = load_data(spec.data, found)
    owner = Owner(found.root / "leases" / "owners", 6.0)
    if checkpoint_s:
        owner.start()
    leases = (Leases if checkpoint_s else _NoLeases)(found.root, owner)
    learner = make_learner("language_model", data, ranks, execution)
    run_branch(plan, Site(learner, found, data, ranks, _Observer(found.root), leases, Control()))
    owner.close()
    (evaluation,) = found.committed("evaluations")
    saved = sum(event["event"] == "checkpointed" for event in Experiment(found.root, "overhead").events())
    return found.json("evaluations", evaluation, "provenance.json")["seconds"]["fit"], saved


def overhead(pairs):
    """Pairs of fits, with leases and a checkpoint every fifteenth of the fit, and without either."""
    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=1)
    with tempfile.TemporaryDirectory() as folder:
        ratios, counts, interval = [], [], None
        for number in range(pairs + 1):
            times = {}
            for protected in (True, False) if number % 2 else (False, True):
                place = Path(folder) / f"{number}-{protected}"
                place.mkdir()
                times[protected], saved = _fit(place, ranks, interval or 1.0 if protected else None)
                counts += [saved] if protected and number else []
                shutil.rmtree(place)
            interval = interval or times[False] / 15
            if number:
                ratios.append(times[True] / times[False])
                says = f"fit {times[False]:.1f} s without, {times[True]:.1f} s with {counts[-1]} checkpoints"
                print(f"  {says}: {ratios[-1]:.4f}")
    ratios.sort()
    about = (
        f"of {pairs} pairs ({ratios[0]:.4f} to {ratios[-1]:.4f}), {min(counts)} to {max(counts)} checkpoints"
    )
    print(f"overhead             median ratio {statistics.median(ratios):.4f} {about} a fit")
    ranks.close()
