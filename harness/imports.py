"""Libraries without what they import and nobody here uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def hidden(module: str) -> Iterator[None]:
    """Imports inside do not find a module, unless it is imported already."""
    known = module in sys.modules
    if not known:
        sys.modules[module] = None  # type: ignore[assignment]  # Python's own way to say that there is none
    try:
        yield
    finally:
        if not known:
            del sys.modules[module]


def arrow_without_pandas() -> None:
    """From now on pyarrow makes columns of Python's and numpy's values without pandas: 0.4 s of a command.

    pyarrow imports pandas at the first array, wherever it is installed, for the case that its values are of
    pandas' types, which it does not know afterwards. So this is for the end of a command, when no code of
    other packages runs any more. Frames can still be made of tables.
    """
    import pyarrow as pa

    # Compiled code takes the None of a hidden module for the module.
    with hidden("pandas"), contextlib.suppress(AttributeError):
        pa.array([])
    with hidden("pandas"):
        pa.array([None])  # Arrow's own look for it, once a process


def arrow_gives_back() -> None:
    """From now on pyarrow asks the system for memory, which has at once what a command no longer needs.

    Its own allocator keeps much of it: 60 of the 515 MiB of a report of a million records, in the same time.
    It is the process's, so this is for commands and not for what others import.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
