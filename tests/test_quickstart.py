"""The quickstart as it is shipped: it must show real collapse of models that have learned something."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT, harness

from harness.data.text import TextCorpus
from harness.metrics.bigram import bigram_nll
from harness.store import Store
from harness.study import open_study

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)]
CONFIG = ROOT / "configs" / "quickstart.yaml"


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("quickstart") / "runs"
    done = harness("run", CONFIG, "--root", root, "--json", timeout=1700)
    assert done.returncode == 0, done.stderr
    export = root.parent / "table.csv"
    assert harness("export", CONFIG, "--root", root, "--format", "csv", "--out", export).returncode == 0
    return json.loads(done.stdout), pd.read_csv(export), root


def test_generation_0_beats_a_bigram_model_of_the_same_tokens(quickstart: Any) -> None:
    _, table, root = quickstart
    prepared, scratch = open_study(CONFIG, (), Store.read(root))
    with scratch:
        corpus = prepared.data[0].real
        assert isinstance(corpus, TextCorpus)
        train = corpus.real(0, corpus.num_examples).values
        baseline = bigram_nll(
            train, corpus.validation.values, corpus.test.values, corpus.meta["bos"], corpus.meta["vocab_size"]
        )
    first = table[table.generation == 0]["test/perplexity"]
    assert len(first) == 4 and first.nunique() == 1, "all chains share generation 0"
    assert first.iloc[0] < math.exp(baseline), f"{first.iloc[0]} against a bigram's {math.exp(baseline):.1f}"


def test_collapse_is_real_and_half_the_ratio_lies_between(quickstart: Any) -> None:
    _, table, _ = quickstart
    for _, rows in table.groupby("learner.sample.temperature"):
        curve = rows.pivot(index="generation", columns="regime.synthetic_ratio", values="test/perplexity")
        last = curve.iloc[-1]
        assert last[1.0] >= 1.3 * curve.loc[0, 1.0]
        assert curve.loc[0, 0.5] < last[0.5] < last[1.0]


def test_both_faces_are_seen_and_named(quickstart: Any) -> None:
    """At temperature 1 text drifts away and broadens, at a lower one words are lost; both less with half real
    text, where a single seed does not say more."""
    _, table, root = quickstart
    by = ["learner.sample.temperature", "regime.synthetic_ratio", "generation"]
    cells = table.set_index(by).sort_index()
    for metric in ("text/distinct_2", "text/entropy_2"):
        change = {(t, r): cells[metric][t, r, 2] - cells[metric][t, r, 0] for t, r, _ in cells.index}
        assert change[1.0, 1.0] > 0 > change[0.7, 1.0], metric
        assert change[1.0, 0.5] < change[1.0, 1.0] and change[0.7, 0.5] > change[0.7, 1.0], metric
    assert cells["text/vocab_coverage"][0.7, 1.0, 2] < 0.95 * cells["text/vocab_coverage"][0.7, 1.0, 0]
    said = harness("report", CONFIG, "--root", root).stdout
    rises = [line for line in said.splitlines() if ": perplexity on real test text rises from" in line]
    lines = {line.partition(":")[0]: line for line in rises}
    assert len(lines) == 4
    for temperature, says, never in ((0.7, "narrows", "broadens"), (1.0, "broadens", "narrows")):
        assert f"its text {says} (distinct-2 " in lines[f"temperature {temperature}, synthetic ratio 1.0"]
        assert never not in lines[f"temperature {temperature}, synthetic ratio 0.5"]
    for line in lines.values():  # what stands beside a word agrees with it
        for word, numbers in re.findall(r"its text (\w+) \((.*?)\)", line):
            pairs = re.findall(r"([\d.]+) to ([\d.]+)", numbers)
            assert pairs and all((float(a) > float(b)) == (word == "narrows") for a, b in pairs), line
    assert said.splitlines()[4] == "One seed: there are no intervals, and differences may be chance."


def test_the_table_is_whole(quickstart: Any) -> None:
    summary, table, root = quickstart
    assert (summary["chains_complete"], summary["chains_failed"]) == (4, 0)
    assert len(table) == 4 * 3 and not table.duplicated(["chain", "generation"]).any()
    assert not table.drop(columns=["parent_key"]).isna().any().any()
    again = json.loads(harness("run", CONFIG, "--root", root, "--json").stdout)
    assert (again["generations_computed"], again["generations_reused"]) == (
        0,
        summary["generations_computed"],
    )
    planned = json.loads(harness("plan", CONFIG, "--root", root, "--json").stdout)["memory_per_rank_bytes"]
    peaks = [
        json.loads(path.read_text())["peak_memory_bytes"]
        for path in root.glob("evaluations/*/provenance.json")
    ]
    assert 0.5 < planned / max(peaks) < 1.5, "what a rank takes is what the plan says"


def test_its_speed_is_told_from_what_it_left(quickstart: Any) -> None:
    """Two cells share generation 0's fit, so that one generation has no rate of its own."""
    command = [sys.executable, str(ROOT / "scripts" / "bench"), "quickstart", "--root", str(quickstart[2])]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert re.search(r"gangs not computing +[\d.]+ % of", said.stdout), said.stdout
    assert re.search(r"width 128 +fit [\d,]+ tokens/s, sample [\d,]+ tokens/s", said.stdout), said.stdout
