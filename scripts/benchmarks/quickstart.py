"""What the quickstart takes on this machine: start-up, tokens/s, idle share, peak memory."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness.store import Store

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def quickstart(root=None):
    """Figures of the run under a root, or of a new one: start-up, tokens/s, idle share, peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            root, at = Path(folder) / "runs", time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "harness", "run", str(QUICKSTART), "--root", str(root)], check=True
            )
            print(f"quickstart           {time.perf_counter() - at:.0f} s")
        run_figures(Path(root))


def run_figures(root: Path) -> None:
    """Figures of a run, from its events and provenance."""
    events = [
        json.loads(line)
        for line in (root / "experiments" / "quickstart" / "events.jsonl").read_text().splitlines()
    ]
    started = {}
    for event in events:
        if event["event"] == "branch_started":  # which is given to gangs in parts
            started.setdefault(event["branch"], event)
    ended = {e["branch"]: e for e in events if e["event"] == "branch_ended"}
    first_fit = {}
    for event in events:
        if event["event"] == "fit_started":
            first_fit.setdefault(event["branch"], event["time"])
    last = max(e["time"] for e in ended.values())
    born = {}
    for branch, event in started.items():
        delay = first_fit.get(branch, event["time"]) - event["time"]  # a fit may be another branch's
        born.setdefault(event["gang"], (event["time"], delay))
    store = Store.read(root)
    evaluations = sorted(store.committed("evaluations"))
    provenance = [store.json("evaluations", key, "provenance.json") for key in evaluations]
    busy = sum(sum(p["seconds"].values()) for p in provenance)
    alive = sum(last - at for at, _ in born.values())
    print(f"gang start-up        {', '.join(f'{delay:.1f}' for _, delay in born.values())} s")
    print(f"gangs not computing  {100 * (1 - busy / alive):.1f} % of {alive:.0f} gang-seconds")
    print(f"peak memory of rank  {max(p['peak_memory_bytes'] for p in provenance) / 2**20:.0f} MiB")
    models = {}
    for key, about in zip(evaluations, provenance, strict=True):
        fit = store.json("evaluations", key, "spec.json")["fit"]
        width = store.json("fits", fit, "spec.json")["learner"]["model"]["width"]
        models.setdefault(width, []).append(about["tokens_per_s"])
    for width, rates in sorted(models.items()):
        middle = {
            phase: statistics.median(rate[phase] for rate in rates if phase in rate)
            for phase in ("fit", "sample")
        }
        print(
            f"width {width:<6}         fit {middle['fit']:,.0f} tokens/s, "
            f"sample {middle['sample']:,.0f} tokens/s (median)"
        )
