"""The losses of objectives are those of TRL."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow
TRL = Path(sys.prefix) / "trl"


def test_losses_and_gradients_are_those_of_trl() -> None:
    """On the same batch of the same model, within 1e-5: the script fails where one is not.

    Which tokens count, means of groups and their scale are TRL's own on its side.
    """
    if not TRL.is_dir():
        pytest.skip(f"needs TRL in {TRL}, where scripts/test puts it")
    search = os.pathsep.join([str(TRL), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "baselines" / "trl_losses.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compared = [line.split(":")[0] for line in done.stdout.splitlines() if "gradient apart" in line]
    reinforced = [f"reinforce, kl {how}" for how in ("0.0", "0.0, not scaled", "0.2")]
    assert compared == ["sft", "dpo, sigmoid", "dpo, sigmoid_norm", *reinforced]
