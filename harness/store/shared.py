"""Items that several runs may write at the same moment, all with the same content."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.store.leases import own_leases
from harness.store.store import ItemKind, Store

LOOK_S = 0.1

Making = tuple[Callable[[Path], object], Mapping[str, Any]]
"""What fills an item's empty folder, and the spec behind its key."""


def commit_once(
    store: Store,
    kind: ItemKind,
    items: Mapping[str, Making],
    about: Mapping[str, Any],
    lease_s: float = 60.0,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Commit what is not there yet; one run writes an item, others that want it meanwhile wait for it.

    Each is leased while it is written: without that, `harness gc` would take it for something that was left
    behind.

    Args:
        store: The store.
        kind: What the items are.
        items: By key.
        about: For people who look at the leases.
        lease_s: Others take over after so long when this process is dead.
        stopped: Says when to wait no longer.

    Returns:
        Whether all is there now: False where others were still writing when the wait was stopped.
    """
    if not items:
        return True
    with own_leases(store.root, lease_s, about) as leases:
        for key, (write, spec) in items.items():
            while (lease := leases.acquire(key)) is None and not store.has(kind, key):
                if stopped():
                    return False
                time.sleep(LOOK_S)
            if not store.sound(kind, key):
                staged = store.stage(key)
                write(staged)
                store.commit(kind, key, staged, spec)
            if lease is not None:
                leases.release(lease, finished=True)
    return True
