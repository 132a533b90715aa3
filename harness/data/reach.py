"""Whether the Hugging Face hub can be reached: it is asked once, before its libraries ask it.

By themselves they ask six times within 23 seconds for each file, and for ten seconds more each time where a
firewall swallows what is sent; only then do they look into their cache.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

from harness import terminal
from harness.errors import reason_of

ANSWER_S = 10.0
AGAIN_S = 60.0
"""Whether the hub answers is asked again after so long."""


def offline() -> bool:
    """Whether the hub must not be asked.

    ``HF_HUB_OFFLINE``, ``HF_DATASETS_OFFLINE`` or ``TRANSFORMERS_OFFLINE``.
    """
    names = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in names)


def unreached() -> str:
    """Why the hub cannot be reached, in one line; empty where it answers, with whatever status."""
    return _asked(int(time.monotonic() / AGAIN_S))


@lru_cache(maxsize=1)
def _asked(when: int) -> str:
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_S, follow_redirects=False)
    except Exception as error:  # whatever the transport raises
        return f"{type(error).__name__}: {reason_of(error)}"
    return ""


@cache
def tell_unreached(why: str) -> None:
    """Say, once, that what is asked of the hub is looked for in the cache."""
    terminal.show(f"the hub cannot be reached ({why}); looking into its cache", sys.stderr)


@contextlib.contextmanager
def asking(name: str) -> Iterator[None]:
    """Within it the hub's libraries may ask it; where it cannot be reached, they only look into the cache.

    Args:
        name: What they are asked for; of a folder the hub is asked nothing.
    """
    why = "" if offline() or Path(name).is_dir() else unreached()
    if not why:
        yield
        return
    from huggingface_hub import constants

    tell_unreached(why)
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True  # which its libraries read at each request
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def hub_error(error: BaseException) -> str:
    """Why the hub, or its libraries, did not give something, in one line; ends with what helps, if known."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    found: BaseException | None = error
    while found is not None and not isinstance(found, LocalEntryNotFoundError | OfflineModeIsEnabled):
        found = found.__cause__ or found.__context__
    if found is not None and (offline() or unreached()):
        why = "is offline" if offline() else f"cannot be reached ({unreached()})"
        return f"the hub {why}, and the cache has it not: run `harness fetch CONFIG` where there is a network"
    reason = reason_of(error)
    return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
