"""What W&B stages lies under the store's root while it is at work, and is gone afterwards.

By itself its SDK keeps logs in a cache, artifacts in a data folder of the user's home, and media in the
system's temporary folder.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from harness.ending import claimed, clear_abandoned, kill

VARIABLES = ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR")
"""Where the SDK puts what nobody has asked for; settings and keys are read from where the user has them."""
GRACE_S = 20.0
"""How long W&B's service may take to end."""
_PREFIX = "stage-"


@contextlib.contextmanager
def staged(folder: Path | None) -> Iterator[Path]:
    """A block in which W&B is used; by one thread of a process at a time.

    Args:
        folder: The experiment's ``wandb/`` folder; None where there is no store yet.

    Returns:
        Where everything is staged.
    """
    prefix = f"{_PREFIX}{socket.gethostname()}@"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        clear_abandoned(folder, prefix)
    with claimed(folder or Path(tempfile.gettempdir()), prefix) as place:
        before = {name: os.environ.get(name) for name in VARIABLES}
        os.environ |= dict.fromkeys(VARIABLES, str(place))
        try:
            yield place
        finally:
            _end_service()
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _end_service() -> None:
    """End W&B's service, which writes until it ends.

    It may wait for ever for a request that nobody answers (seen a few times in a hundred, 0.31.0). Whatever
    was to be sent has been confirmed or given up before: after a grace it is killed.
    """
    if "wandb" not in sys.modules:
        return
    import wandb

    services = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # one that has just ended
            services += [child] if child.name() == "wandb-core" else []
    late = threading.Timer(GRACE_S, kill, [services])
    late.daemon = True
    late.start()
    try:
        wandb.teardown()
    except SystemExit:  # how the SDK hands on its service's exit code
        pass
    finally:
        late.cancel()


def media_in(place: Path) -> None:
    """Let tables and other media be made in a folder, not where the system keeps temporary files."""
    with contextlib.suppress(ImportError, AttributeError):
        from wandb.sdk.data_types._private import MEDIA_TMP

        MEDIA_TMP.cleanup()
        media = place / "media"
        media.mkdir(exist_ok=True)
        MEDIA_TMP.name = str(media)
