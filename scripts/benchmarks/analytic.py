"""Cheap learners: chains in bundles beside a plain numpy loop, and short chains through every part."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BUNDLES = """
experiment: bundles
data: {source: gaussian, dim: 1, num_examples: 10}
learner: {kind: gaussian}
generations: 99
grid:
  data.dim: [1, 3, 10, 31, 100]
  data.num_examples: [10, 32, 100, 316, 1000]
  regime: [{kind: replace, synthetic_ratio: 1.0}, {kind: accumulate}]
  seed: {from: 0, count: COUNT}
tracking: {wandb: disabled}
"""


def plain_loop(dim: int, size: int, accumulate: bool, fits: int = 100) -> float:
    """One chain as one would write it down, on one thread: seconds.

    With more, numpy's products wait for each other wherever something else runs: up to forty times as long.
    """
    import numpy as np
    from threadpoolctl import threadpool_limits

    random, at = np.random.default_rng(0), time.perf_counter()
    data = random.normal(size=(size, dim))
    with threadpool_limits(1):
        for _ in range(fits):
            mean, covariance = data.mean(axis=0), np.atleast_2d(np.cov(data.T, bias=True))
            new = random.multivariate_normal(mean, covariance, size, check_valid="ignore")
            data = np.concatenate([data, new]) if accumulate else new
    return time.perf_counter() - at


def bundles(seeds: int) -> None:
    """The whole command, Ray's start included: seconds, memory of all its processes, files."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        config, root = Path(folder) / "config.yaml", Path(folder) / "root"
        config.write_text(BUNDLES.replace("COUNT", str(seeds)))
        at, peak = time.perf_counter(), 0
        command = [sys.executable, "-m", "harness", "run", str(config), "--root", str(root), "--json"]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        driver = psutil.Process(run.pid)
        while run.poll() is None:
            total = 0
            for process in [driver, *driver.children(recursive=True)]:
                try:
                    total += process.memory_info().rss - process.memory_info().shared
                except psutil.Error:
                    continue
            peak = max(peak, total)
            time.sleep(0.25)
        took = time.perf_counter() - at
        found = json.loads(run.stdout.read())
        run.stdout.close()
        files = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    print(
        f"bundles              {found['chains_complete']} chains, {found['generations_computed']} fits in "
        f"{took:.1f} s, peak {peak / 2**20:.0f} MiB in all processes, {len(files)} files, "
        f"{sum(files) / 2**20:.0f} MiB"
    )
    plain = sum(
        plain_loop(d, n, pooled)
        for d in (1, 3, 10, 31, 100)
        for n in (10, 32, 100, 316, 1000)
        for pooled in (False, True)
    )
    print(
        f"plain loop           {plain:.2f} s for one seed, {plain * seeds:.0f} s for {seeds}: "
        f"ratio {plain * seeds / took:.1f}"
    )


CHAINS = """
experiment: chains
data: {source: gaussian, dim: 1, num_examples: 20, variance: 1.0}
learner: {kind: gaussian}
regime: {kind: replace, synthetic_ratio: 1.0}
generations: 2
grid: {seed: {from: 0, count: COUNT}}
resources: {bundled: false}
tracking: {wandb: offline}
"""


def chains(count: int) -> None:
    """Many short chains through everything; memory of the coordinator by chains done."""
    import psutil

    with tempfile.TemporaryDirectory() as folder:
        config, root = Path(folder) / "config.yaml", Path(folder) / "root"
        config.write_text(CHAINS.replace("COUNT", str(count)))
        command = [sys.executable, "-m", "harness", "run", str(config), "--root", str(root), "--json"]
        at = time.perf_counter()
        with open(Path(folder) / "log", "w") as log:
            run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        driver, seen = psutil.Process(run.pid), []
        while run.poll() is None:
            done = len(os.listdir(root / "evaluations")) if (root / "evaluations").is_dir() else 0
            try:
                ranks = [
                    p.memory_info().rss
                    for p in driver.children(recursive=True)
                    if "_Rank" in " ".join(p.cmdline())
                ]
                seen.append((done, driver.memory_info().rss, max(ranks, default=0), time.perf_counter() - at))
            except psutil.Error:
                pass
            time.sleep(0.5)
        took = time.perf_counter() - at
        found = json.loads(run.stdout.read())
        run.stdout.close()
        events = [
            json.loads(line) for line in (root / "experiments/chains/events.jsonl").read_text().splitlines()
        ]
        committed = [event["evaluation"] for event in events if event["event"] == "committed"]
        total = 3 * count
        print(
            f"counts               {found['chains_complete']} chains, {found['generations_computed']} "
            f"generations computed, {len(committed)} committed, {len(set(committed))} distinct "
            f"(expected {count}, {total})"
        )
        runs = len(list((root / "experiments/chains/wandb/wandb").glob("offline-run-*")))
        print(f"W&B                  {runs} offline runs")
        computing = next(t for done, _, _, t in seen if done >= total)
        print(
            f"time                 {took:.0f} s whole, {computing:.0f} s until the last generation was "
            f"committed, {1000 * computing / total:.1f} ms a generation"
        )
        for share in (0.1, 0.25, 0.5, 0.75, 1.0):
            done, rss, rank, _ = next(item for item in seen if item[0] >= share * total)
            print(
                f"memory at {done:6}     coordinator {rss / 2**20:.0f} MiB, "
                f"largest rank {rank / 2**20:.0f} MiB"
            )
        print(f"memory at the end    coordinator {seen[-1][1] / 2**20:.0f} MiB")
