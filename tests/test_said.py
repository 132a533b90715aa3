"""What commands say: of stores that lack a study, of what failed, and on narrow terminals."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import GAUSSIAN, Make, harness

from harness.science import cut
from harness.store import Experiment, Store
from harness.study import open_study


@pytest.mark.slow
def test_a_store_that_lacks_a_study_is_said(make_config: Make, tmp_path: Path) -> None:
    """What a command prints stays as it is; one that a run has begun is told apart."""
    config, root = make_config(GAUSSIAN, experiment="mine"), tmp_path / "root"
    Store.open(root)
    for name in ("one", "two"):
        Experiment(root, name).begin({}, [])
    said = f"nothing of mine is in {root}, which has one, two\n"
    for command in ("export", "report", "status"):
        done = harness(command, config, "--root", root)
        assert (done.returncode, done.stderr) == (0, said), command
    assert harness("export", config, "--root", root).stdout.startswith("experiment,chain,seed")
    assert not (root / "experiments" / "mine").exists()
    Experiment(root, "mine").begin({}, [])
    begun = harness("export", config, "--root", root, "--set", "data.num_examples=30")
    assert begun.returncode == 0 and begun.stderr == (
        f"nothing of this study is committed in {root}: mine has begun there, with these values or "
        "with others (harness status and harness explain say more)\n"
    )
    assert (done := harness("report", config, "--root", root)).returncode == 0, done.stderr
    assert (root / "experiments" / "mine" / "report" / "report.html").exists()


@pytest.mark.slow
def test_a_report_says_how_many_chains_failed(make_config: Make, tmp_path: Path) -> None:
    """Chains of bundles, and others; the page has each reason once."""
    grid = {"seed": [0, 1], "regime.synthetic_ratio": [1.0, 0.5]}
    alone = [{"when": {"regime.synthetic_ratio": 0.5}, "set": {"resources.bundled": False}}]
    config = make_config(GAUSSIAN, **{"resources.bundled": True}, grid=grid, overrides=alone)
    root = tmp_path / "root"
    prepared, scratch = open_study(config, (), Store.read(root))
    with scratch:
        Store.open(root)
        experiment = Experiment(root, "normal")
        experiment.begin({}, [])
        for chain in prepared.bundles:
            experiment.event("chain_failed", chain=chain.key, reason="it ends <b>here</b>")
        (branch, *_) = cut(prepared.lineage)
        experiment.event("branch_failed", branch=branch.id, again=False, reason="a rank died")
    done = harness("report", config, "--root", root)
    assert "3 of 4 chains failed; harness status says why" in done.stdout.splitlines()
    page = (root / "experiments" / "normal" / "report" / "report.html").read_text()
    assert "<li>3 of 4 chains failed; harness status says why</li>" in page
    assert "it ends &lt;b&gt;here&lt;/b&gt; (2 chains)" in page and "a rank died" in page
