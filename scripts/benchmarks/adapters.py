"""Full fits beside LoRA, each in a process of its own: memory, tokens/s, bytes of a checkpoint and of a fit.

  python scripts/benchmarks/adapters.py [--size tiny|135m] [--precision bf16] [--targets all-linear]

In turn, so that what else the machine does falls on both; where that is much, processor seconds say more. No
data: random tokens, the engine's own steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "tiny": {"architecture": "gpt2", "num_layers": 2, "width": 128, "num_heads": 4},
    "135m": {
        "architecture": "llama",
        "num_layers": 30,
        "width": 576,
        "num_heads": 9,
        "num_kv_heads": 3,
        "mlp_width": 1536,
    },
}
VOCABULARY = {"tiny": 512, "135m": 49_152}
BATCH, LENGTH = {"tiny": 16, "135m": 2}, {"tiny": 64, "135m": 256}


def measure(size, how, precision, rank, targets, steps):
    import torch

    from harness.components.adapter import Lora
    from harness.config.schema import Model, Train
    from harness.learners.language_model import adapter as adapters
    from harness.learners.language_model.distributed import TorchRanks, open_store
    from harness.learners.language_model.engine import Engine
    from harness.learners.language_model.model import new_model
    from harness.proc import peak_memory, reset_peak_memory

    store, _, _ = open_store(1)
    ranks = TorchRanks(0, 1, store, threads=torch.get_num_threads())
    vocabulary, batch, length = VOCABULARY[size], BATCH[size], LENGTH[size]
    if how == "lora":
        import peft  # noqa: F401 (its own memory is no part of the fit's)
    before = peak_memory()
    model = new_model(Model(**SIZES[size]), vocabulary, length, 0, 0, seed=0)
    whole = sum(p.numel() for p in model.parameters())
    if how == "lora":
        section = Lora(kind="lora", rank=rank, targets=None if targets == "attention" else targets)
        section, _ = adapters.settle_targets(section, list(adapters.linear_layers(model)), size)
        adapters.attach(model, section, adapters.new_values(model, section, 0, 1))
    train = Train(batch_size=batch, precision=precision, learning_rate=1e-4)
    engine = Engine(model, train, batch, 1, 0, adapted=how == "lora")
    del model
    reset_peak_memory()
    engine.train_mode(True)
    tokens = torch.randint(0, vocabulary, (batch, length))
    seconds, processor = [], []
    for _ in range(steps):
        at, worked = time.perf_counter(), time.process_time()
        logits = engine.logits(tokens)
        engine.backward(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten()))
        seconds.append(time.perf_counter() - at)
        processor.append(time.process_time() - worked)
    peak = peak_memory()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = sum(path.stat().st_size for path in engine.save(Path(folder)))
    kept = sum(tensor.numel() * tensor.element_size() for tensor in engine.state(True).values())
    trained = sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    engine.close()
    ranks.close()
    return {
        "parameters": whole,
        "trained": trained,
        "peak_mib": round(peak / 2**20),
        "fit_mib": round((peak - before) / 2**20),
        "tokens_per_s": round(batch * length / statistics.median(seconds[1:]), 1),
        "tokens_per_processor_s": round(batch * length / statistics.median(processor[1:]), 1),
        "checkpoint_bytes": checkpoint,
        "kept_bytes": kept,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--targets", choices=["attention", "all-linear"], default="all-linear")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--how", choices=["full", "lora"], help="one measurement, in this process")
    given = parser.parse_args()
    if given.how:
        told = (given.size, given.how, given.precision, given.rank, given.targets, given.steps)
        print(json.dumps(measure(*told)))
        return
    for how in ["full", "lora"] * given.rounds:
        command = [sys.executable, __file__, *sys.argv[1:], "--how", how]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        print(f"{how:5}", found.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
