"""Every Ray that a process with this folder in its ``PYTHONPATH`` starts forks its workers.

For processes that tests start through others, as SLURM does: they cannot be told by `take_workers`.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

TOLD = "ray._private.parameter"


class _Telling(importlib.abc.MetaPathFinder):
    """Waits until Ray's module is imported, which most processes never do."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != TOLD:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def told(module: ModuleType) -> None:
            execute(module)
            sys.path.append(str(Path(__file__).parents[1]))
            from forked_worker import take_workers

            take_workers()

        spec.loader.exec_module = told  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Telling())
