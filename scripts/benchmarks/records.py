"""The commands that read records, on a store that has very many."""

import resource
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
TRACK = """
track: tables
version: 1
title: A million records
about: Only to be measured.
rules: [None.]
config:
  data: {source: gaussian, dim: 1, num_examples: 10}
  learner: {kind: gaussian}
  regime: {kind: replace, synthetic_ratio: 1.0}
  generations: 99
seeds: SEEDS
score: {metric: gaussian/log_variance, threshold: 0.5}
open: [regime]
limits: {regimes: [replace], real_share: 1.0, examples: 100}
"""
ENTRIES = 49
"""Beside the baseline."""


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
        second = Path(folder) / "second.yaml"
        second.write_text(config.read_text().replace("experiment: tables", "experiment: second"))
        _tell(
            "compare, twice",
            "compare",
            str(config),
            str(second),
            "--root",
            str(root),
            "--out",
            str(out.with_suffix(".page")),
        )
    _board(records)


def _board(records: int) -> None:
    """Run, add and build a board of `ENTRIES` entries with about so many records."""
    with tempfile.TemporaryDirectory() as folder:
        config, track, root, board = (
            Path(folder) / n for n in ("config.yaml", "track.yaml", "root", "board")
        )
        seeds = -(-records // ((ENTRIES + 1) * GENERATIONS))
        track.write_text(TRACK.replace("SEEDS", str(list(range(seeds)))))
        lines = [f"  keep_{n}: {{regime.synthetic_ratio: {n / 100}}}" for n in range(1, ENTRIES + 1)]
        study = [
            "experiment: board",
            f"track: {track}",
            "tracking: {wandb: disabled}",
            "mitigations:",
            *lines,
        ]
        config.write_text("\n".join(study))
        place = [str(config), "--root", str(root)]
        took, _ = _timed("run", *place)
        print(
            f"run              {took:6.1f} s for {seeds * (ENTRIES + 1) * GENERATIONS:,} records of a track"
        )
        _tell("leaderboard add", "leaderboard", "add", *place, "--to", str(board))
        size = sum(path.stat().st_size for path in board.rglob("*.json"))
        print(f"                 {ENTRIES + 1} entries, {size / 1e6:,.0f} MB")
        _tell("leaderboard build", "leaderboard", "build", str(board))


def _tell(name: str, *arguments: str) -> None:
    before = _cpu()
    took, peak = _timed(*arguments)
    print(f"{name:16} {took:6.1f} s, {_cpu() - before:6.1f} CPU s, {peak / 2**20:,.0f} MiB", flush=True)


def _cpu() -> float:
    """CPU seconds of all commands so far: they hardly depend on what else runs."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


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
