"""The real data of a study.

Read, fingerprinted and prepared once, put into the store, and read from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.schema import AnalyticData, ArrayData, ImageData, PretrainedTokenizer, Section, TextData
from harness.data import images
from harness.data.analytic import ArrayTruth, make_truth, truth_science
from harness.data.base import RealData
from harness.data.documents import read_documents
from harness.data.images import ImageSet
from harness.data.remembered import recall, remember
from harness.data.text import TextCorpus, data_science, prepare, prepared_science, pretrained_fingerprint
from harness.science import DataSpec, blank, key_of
from harness.store import Store

ROWS = "rows.npy"


def rows_science(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an array's science that decides its folder in the store: its content."""
    return {"kind": "array", "content": spec["content"]}


@dataclass(frozen=True)
class PreparedData:
    """The real data of some cells.

    Attributes:
        spec: What enters keys.
        folder: Where prepared text lies: in the store, or a temporary folder until `commit_data`; None for
            analytic truths.
        key: Name of the folder in the store; None for analytic truths.
        real: The data.
        about: What was read, for people: the source, and of text its files and documents.
    """

    spec: Mapping[str, Any]
    folder: Path | None
    key: str | None
    real: RealData
    about: Mapping[str, Any]


class DataOf:
    """Prepares each distinct ``data`` section once."""

    def __init__(self, store: Store, scratch: Path) -> None:
        """Nothing is read.

        Args:
            store: Looked into for prepared data; not written to.
            scratch: A folder for data that the store has not.
        """
        self.store, self.scratch = store, scratch
        self.found: dict[str, PreparedData] = {}

    def get(self, config: TextData | ImageData | AnalyticData) -> PreparedData:
        """The data of a section.

        Raises:
            DataError: They cannot be read, or are too few.
        """
        name = config.model_dump_json()
        if name not in self.found:
            self.found[name] = self._prepare(config)
        return self.found[name]

    def _prepare(self, config: TextData | ImageData | AnalyticData) -> PreparedData:
        if isinstance(config, ImageData):
            return self._images(config)
        return self._text(config) if isinstance(config, TextData) else self._analytic(config)

    def _analytic(self, config: AnalyticData) -> PreparedData:
        truth = make_truth(config)
        spec = truth_science(truth)
        if not isinstance(truth, ArrayTruth):
            return PreparedData(spec, None, None, truth, {"source": config.source})
        key = key_of(rows_science(spec))
        folder = self.store.path("data", key)
        if not self.store.sound("data", key):
            folder = self.scratch / key
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / ROWS, truth.rows, allow_pickle=False)
        return PreparedData(spec, folder, key, truth, {"source": str(getattr(config, "path", config.source))})

    def _images(self, config: ImageData) -> PreparedData:
        source = images.read_images(config)
        spec = images.data_science(config, source.fingerprint())
        key = key_of(prepared_science(spec))
        folder = self._folder(key, lambda folder: images.prepare(config, source, folder))
        return PreparedData(
            spec,
            folder,
            key,
            ImageSet(folder, config.num_examples, config.resample),
            {"source": config.source},
        )

    def _folder(self, key: str, prepare: Callable[[Path], None]) -> Path:
        """Where prepared data lie: in the store, or in scratch.

        There they are prepared, if they are not there yet.
        """
        folder = self.store.path("data", key)
        if not self.store.sound("data", key):
            folder = self.scratch / key
            if not folder.exists():
                folder.mkdir(parents=True)
                prepare(folder)
        return folder

    def _text(self, config: TextData) -> PreparedData:
        tokenizer = config.tokenizer
        pretrained = pretrained_fingerprint(tokenizer) if isinstance(tokenizer, PretrainedTokenizer) else None
        use = f"text {config.text_field}"
        known = recall(config.source, config.revision, use)
        if known is not None:
            spec = data_science(config, known["fingerprint"], pretrained)
            key = key_of(prepared_science(spec))
            if self.store.sound("data", key):  # so nothing of it has to be read
                real = TextCorpus(self.store.path("data", key), config.num_examples, config.resample)
                return PreparedData(spec, real.folder, key, real, {"source": config.source, **known["about"]})
        documents = read_documents(config)
        spec = data_science(config, documents.fingerprint(), pretrained)
        if known is None:
            remember(
                config.source,
                config.revision,
                use,
                {"fingerprint": spec["content"], "about": documents.about()},
            )
        key = key_of(prepared_science(spec))
        folder = self._folder(key, lambda folder: prepare(config, documents, folder))
        return PreparedData(
            spec,
            folder,
            key,
            TextCorpus(folder, config.num_examples, config.resample),
            {"source": config.source, **documents.about()},
        )


def data_spec(config: TextData | ImageData | AnalyticData, prepared: PreparedData) -> DataSpec:
    """Real data as specs name them: by content, with the number of examples that are trained on.

    Args:
        config: The section.
        prepared: What it was prepared to.
    """
    n = prepared.real.num_examples
    section = blank(config, *PLACES[type(config)]) if type(config) in PLACES else config
    if isinstance(section, TextData) and isinstance(section.tokenizer, PretrainedTokenizer):
        section = section.model_copy(update={"tokenizer": blank(section.tokenizer, "name", "revision")})
    return DataSpec(
        section.model_copy(update={"num_examples": n}), {**prepared.spec, "num_examples": n}, prepared.key
    )


PLACES: Mapping[type[Section], tuple[str, ...]] = {
    TextData: ("source", "text_field", "revision"),
    ImageData: ("source", "image_field", "label_field", "labels", "revision"),
    ArrayData: ("path", "columns"),
}
"""Fields that say where data lie, of the sections whose data are in the store."""


def load_data(spec: DataSpec, store: Store) -> RealData:
    """The real data of a spec, from the store.

    Args:
        spec: What they are.
        store: Has them, where they have a folder.
    """
    section = spec.section
    if spec.folder is None:
        assert isinstance(section, AnalyticData)
        return make_truth(section)
    folder = store.path("data", spec.folder)
    if isinstance(section, ImageData):
        return ImageSet(folder, section.num_examples, section.resample)
    if isinstance(section, ArrayData):
        return make_truth(section.model_copy(update={"path": str(folder / ROWS)}))
    assert isinstance(section, TextData)
    return TextCorpus(folder, section.num_examples, section.resample)
