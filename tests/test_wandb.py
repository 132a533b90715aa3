"""W&B's own SDK and its own sync, against a recording endpoint on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from chains import run_all
from conftest import GAUSSIAN, TEXT, Make, harness
from wandb_endpoint import PROJECT, Recorder, endpoint

from harness.tracking import run_id

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"


def environment(recorder: Recorder, folder: Path) -> dict[str, str]:
    return {
        "WANDB_BASE_URL": recorder.url,
        "WANDB_API_KEY": KEY,
        "WANDB_CONFIG_DIR": str(folder),
        "WANDB_CACHE_DIR": str(folder),
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_SILENT": "true",
    }


def check(recorder: Recorder, config: Path, root: Path, project: str = PROJECT) -> None:
    """Every chain once, every generation and metric there, equal to export."""
    rows = json.loads(harness("export", config, "--root", root, "--format", "json").stdout)
    chains = {row["chain"] for row in rows}
    assert recorder.names(project) == {run_id("normal", chain) for chain in chains}
    assert {upsert["groupName"] for upsert in recorder.upserts if upsert.get("groupName")} == {"normal"}
    identity = {
        "experiment",
        "chain",
        "seed",
        "generation",
        "fit",
        "key",
        "parent_key",
        "status",
        "regime.synthetic_ratio",
    }
    for chain in chains:
        mirrored = recorder.generations(run_id("normal", chain), project)
        expected = {row["generation"]: row for row in rows if row["chain"] == chain}
        assert mirrored.keys() == expected.keys()
        for generation, row in expected.items():
            for name in row.keys() - identity:
                assert mirrored[generation][name] == row[name]
            assert mirrored[generation]["fit"] == generation + 1


@pytest.fixture
def study(make_config: Make, tmp_path: Path) -> Any:
    def make(mode: str) -> tuple[Path, Path]:
        grid = {"regime.synthetic_ratio": [0.5, 1.0], "seed": [0, 1]}
        config = make_config(GAUSSIAN, f"{mode}.yaml", grid=grid, **{"tracking.wandb": mode})
        run_all(config, tmp_path / mode)  # the chains; the command below only mirrors them
        return config, tmp_path / mode

    return make


def test_offline_files_synced_by_wandb_itself(study: Any, tmp_path: Path) -> None:
    config, root = study("offline")
    for _ in range(2):  # the second run finds everything sent and writes nothing
        done = harness("run", config, "--root", root)
        assert done.returncode == 0 and not done.stderr, done.stderr
    folders = sorted((root / "experiments" / "normal" / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == 4
    with endpoint() as recorder:
        wandb = Path(sys.executable).parent / "wandb"
        for folder in folders:
            subprocess.run(
                [wandb, "sync", "--yes", folder],
                check=True,
                capture_output=True,
                timeout=120,
                cwd=tmp_path,
                env={**os.environ, **environment(recorder, tmp_path)},
            )
        check(recorder, config, root)


def test_online_and_what_is_sent_again(study: Any, tmp_path: Path) -> None:
    config, root = study("online")
    with endpoint() as recorder:
        for _ in range(2):
            done = harness("run", config, "--root", root, **environment(recorder, tmp_path))
            assert done.returncode == 0 and not done.stderr, done.stderr
        check(recorder, config, root)
        assert len(recorder.complete) == 4


def test_a_failing_wandb_is_a_warning_and_loses_nothing(study: Any, tmp_path: Path) -> None:
    config, root = study("online")
    with endpoint() as recorder:
        settings = environment(recorder, tmp_path) | {
            "WANDB_API_KEY": "",
            "HOME": str(tmp_path),
            "NETRC": str(tmp_path / "none"),
        }
        done = harness("run", config, "--root", root, **settings)
        assert done.returncode == 0
        assert (
            "not logged in to W&B" in done.stderr
            and "Traceback" not in done.stderr
            and KEY not in done.stderr
        )
        harness("run", config, "--root", root, **environment(recorder, tmp_path))
        check(recorder, config, root)


def test_loss_curves_and_samples_of_a_language_model(ranks: Any, make_config: Make, tmp_path: Path) -> None:
    config, root = make_config(TEXT, generations=1, **{"tracking.wandb": "online"}), tmp_path / "root"
    prepared, store = run_all(config, root, ranks=ranks)
    with endpoint() as recorder:
        done = harness("run", config, "--root", root, **environment(recorder, tmp_path))
        assert done.returncode == 0 and not done.stderr, done.stderr
        lines = recorder.history(run_id("text", prepared.lineage.chains[0].id))
    for generation, key in enumerate(prepared.lineage.chains[0].nodes):
        losses = store.json("fits", prepared.lineage.nodes[key].fit, "fit.json")["log"]["train_loss"]
        name = f"loss/generation_{generation}"
        assert [(line["fit_step"], line[name]) for line in lines if name in line] == list(
            enumerate(losses, start=1)
        )
    tables = [line["samples"] for line in lines if "samples" in line]
    assert len(tables) == 1 and (tables[0]["nrows"], tables[0]["ncols"]) == (4, 3)
    assert sum("status" in line for line in lines) == 2


def test_disabled_writes_nothing(study: Any) -> None:
    config, root = study("disabled")
    assert harness("run", config, "--root", root).returncode == 0
    assert not (root / "experiments" / "normal" / "wandb").exists()


def test_a_longer_chain_replaces_its_offline_file(study: Any, tmp_path: Path) -> None:
    config, root = study("offline")
    harness("run", config, "--root", root)
    longer = ("--set", "generations=4")
    done = harness("run", config, "--root", root, *longer)
    assert done.returncode == 0, done.stderr
    folders = list((root / "experiments" / "normal" / "wandb" / "wandb").glob("offline-run-*"))
    assert len(folders) == 4
    shutil.rmtree(root)
