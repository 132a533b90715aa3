"""The real data of a study.

Read, fingerprinted and prepared once, put into the store, and read from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from harness.components import DATA_KINDS
from harness.config.schema import Data, data_kind
from harness.data.base import PreparedData, RealData
from harness.registry import named
from harness.science import DataSpec, blank
from harness.store import Store


class DataOf:
    """Prepares each distinct ``data`` section once; a `harness.data.base.Room`."""

    def __init__(self, store: Store, scratch: Path) -> None:
        """Nothing is read.

        Args:
            store: Looked into for prepared data; not written to.
            scratch: A folder for data that the store has not.
        """
        self.store, self.scratch = store, scratch
        self.found: dict[str, PreparedData] = {}

    def get(self, config: Data) -> PreparedData:
        """The data of a section.

        Raises:
            DataError: They cannot be read, or are too few.
        """
        name = config.model_dump_json()
        if name not in self.found:
            self.found[name] = self._prepared(config)
        return self.found[name]

    def _prepared(self, config: Data) -> PreparedData:
        found: PreparedData = named(DATA_KINDS[data_kind(config)].prepare)(config, self)
        return replace(found, spec={**found.spec, **_mark(config)})

    def known(self, key: str) -> Path | None:
        """The folder of prepared data in the store; None where it has none that is sound."""
        return self.store.path("data", key) if self.store.sound("data", key) else None

    def folder(self, key: str, prepare: Callable[[Path], None]) -> Path:
        """Where prepared data lie: in the store, or in scratch.

        There they are prepared, if they are not there yet.
        """
        folder = self.known(key)
        if folder is None:
            folder = self.scratch / key
            if not folder.exists():
                folder.mkdir(parents=True)
                prepare(folder)
        return folder


def _mark(config: Data) -> dict[str, Any]:
    """What keys say of a package's kind of data: they are nobody else's, whatever it says of them itself."""
    kind = DATA_KINDS.loaded[data_kind(config)]
    return {"added": kind.version} if kind.package else {}


def teacher_spec(config: Data, real: RealData, changes: Mapping[str, Any]) -> DataSpec:
    """A fixed teacher as specs name it.

    Args:
        config: The section.
        real: The data that it describes.
        changes: Fields in which the teacher differs.

    Raises:
        DataError: The fields do not fit, or the truth is not known.
    """
    found = real.teacher(changes)
    return replace(found, identity={**found.identity, **_mark(config)})


def data_spec(config: Data, prepared: PreparedData) -> DataSpec:
    """Real data as specs name them: by content, with the number of examples that are trained on.

    Args:
        config: The section.
        prepared: What it was prepared to.
    """
    n = prepared.real.num_examples
    section = config if prepared.key is None else blank(config, *DATA_KINDS[data_kind(config)].places)
    return DataSpec(
        section.model_copy(update={"num_examples": n}), {**prepared.spec, "num_examples": n}, prepared.key
    )


def load_data(spec: DataSpec, store: Store) -> RealData:
    """The real data of a spec, from the store.

    Args:
        spec: What they are.
        store: Has them, where they have a folder.
    """
    folder = None if spec.folder is None else store.path("data", spec.folder)
    real = named(DATA_KINDS[data_kind(spec.section)].load)(spec.section, folder)
    return cast("RealData", real)
