"""Which libraries are installed, and these without what they import and nobody here uses."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.machinery
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.files import machine_folder, write_atomic
from harness.proc import large_blocks_apart


def is_installed(module: str) -> bool:
    """Whether a top-level module can be imported."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


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
    Large blocks of others (numpy) go back as soon, too.
    It is the process's, so this is for commands and not for what others import.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    large_blocks_apart()


class _Names:
    """Makes transformers remember which of its modules defines which name.

    Whenever it is imported it reads the source of all its models for that, some 3,300 files: 0.3 s of a
    processor, and as many questions to a file server where one holds the environment.
    """

    MODULE = "transformers.utils.import_utils"

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != cls.MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            execute, origin = spec.loader.exec_module, Path(spec.origin)

            def then_remember(module: Any) -> None:
                execute(module)
                module.define_import_structure = _remembered(module.define_import_structure, origin)

            spec.loader.exec_module = then_remember  # type: ignore[method-assign]
        return spec


def _remembered(real: Callable[..., Any], origin: Path) -> Callable[..., Any]:
    """``define_import_structure``, with what it found for all models in a file of this user's.

    Args:
        real: transformers' own.
        origin: The module that it is in.
    """
    models = origin.parents[1] / "models"

    @functools.wraps(real)
    def define(module_path: Any, prefix: str | None = None) -> Any:
        if Path(module_path) not in (models, models / "__init__.py"):
            return real(module_path, prefix)
        # Another installation has other times, and so has a package that was updated in its place.
        looks = [(str(path), (found := path.stat()).st_mtime_ns, found.st_ino) for path in (origin, models)]
        note = machine_folder() / f"transformers-{hashlib.sha256(repr(looks).encode()).hexdigest()[:16]}.json"
        try:
            known = {frozenset(needs): names for needs, names in json.loads(note.read_bytes())}
        except (OSError, ValueError):
            known = real(models)
            plain = [
                [sorted(needs), {key: sorted(found) for key, found in names.items()}]
                for needs, names in known.items()
            ]
            with contextlib.suppress(OSError):  # it is found anew each time, then
                write_atomic(note, json.dumps(plain).encode())
        before = "" if prefix is None else f"{prefix}."
        return {
            needs: {before + key: set(found) for key, found in names.items()}
            for needs, names in known.items()
        }

    return define


def quick_transformers() -> None:
    """From now on the import of transformers is quicker (`_Names`); for processes that are the harness's.

    Only of a package that was installed: one that is worked on changes without another version.
    """
    found = importlib.machinery.PathFinder.find_spec("transformers")
    installed = found is not None and {"site-packages", "dist-packages"} & set(Path(str(found.origin)).parts)
    if installed and _Names not in sys.meta_path and _Names.MODULE not in sys.modules:
        sys.meta_path.insert(0, _Names)
