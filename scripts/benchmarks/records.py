"""The commands that read records, on a store that has very many."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

STUDY = """
experiment: tables
data: {source: gaussian, dim: 1, num_examples: 10}
learner: {kind: gaussian}
regime: {kind: replace, synthetic_ratio: 1.0}
generations: 99
grid:
  data.num_examples: [10, 20]
  data.variance: [1.0, 2.0]
  seed: {from: 0, count: COUNT}
tracking: {wandb: disabled}
"""
CELLS, GENERATIONS = 4, 100


def tables(records: int) -> None:
    """Seconds and peak memory of each command, one process each, for about so many records."""
    with tempfile.TemporaryDirectory() as folder:
        config, root, out = (Path(folder) / name for name in ("config.yaml", "root", "out"))
        seeds = -(-records // (CELLS * GENERATIONS))
        config.write_text(STUDY.replace("COUNT", str(seeds)))
        place = [str(config), "--root", str(root)]
        took, _ = _timed("run", *place)
        print(f"run              {took:6.1f} s for {seeds * CELLS * GENERATIONS:,} records")
        for form in ("csv", "parquet", "json"):
            _tell(f"export {form}", "export", *place, "--format", form, "--out", str(out))
        for command in ("report", "status", "plan"):
            _tell(command, command, *place)


def _tell(name: str, *arguments: str) -> None:
    took, peak = _timed(*arguments)
    print(f"{name:16} {took:6.1f} s, {peak / 2**20:,.0f} MiB", flush=True)


def _timed(*arguments: str) -> tuple[float, int]:
    """Wall seconds of a command and the largest memory of its process."""
    at, peak = time.perf_counter(), 0
    command = subprocess.Popen(
        [sys.executable, "-m", "harness", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    process = psutil.Process(command.pid)
    while command.poll() is None:
        try:
            peak = max(peak, process.memory_info().rss)
        except psutil.Error:
            pass
        time.sleep(0.02)
    said = command.communicate()[1]
    if command.returncode:
        raise SystemExit(f"harness {arguments[0]}: exit code {command.returncode}\n{said.decode()}")
    return time.perf_counter() - at, peak
