"""From a configuration to its lineage: reads the real data, resolves models, and puts the keys' parts together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import curation
from harness.config.grid import Cell, Study, expand, sequence_length
from harness.config.load import load_file
from harness.config.presets import resolve_model
from harness.config.schema import (
    Config,
    CorpusSource,
    GaussianData,
    ImageData,
    LanguageModel,
    PretrainedTokenizer,
    TextData,
    Vae,
    science,
)
from harness.data import images
from harness.data.base import RealData
from harness.data.documents import read_documents
from harness.data.gaussian import GaussianTruth
from harness.data.images import ImageSet
from harness.data.text import ExternalCorpus, TextCorpus, data_science, prepare, prepared_science, pretrained_fingerprint
from harness.errors import ConfigError, DataError
from harness.learners.base import LEARNERS
from harness.learners.language_model.identity import pretrained_identity
from harness.learners.language_model.sizes import architecture_of, num_parameters
from harness.lineage import CellScience, Chain, Lineage, build, chain_id, key_of
from harness.metrics import VERSIONS
from harness.regimes import check_supply, recipe
from harness.store import Store


@dataclass(frozen=True)
class PreparedData:
    """The real data of some cells.

    Attributes:
        spec: What enters keys.
        folder: Where prepared text lies: in the store, or a temporary folder until `commit_data`; None for analytic truths.
        key: Name of the folder in the store; None for analytic truths.
        real: The data.
    """

    spec: Mapping[str, Any]
    folder: Path | None
    key: str | None
    real: RealData


@dataclass(frozen=True)
class Prepared:
    """A study with everything resolved; nothing has been written to the store yet.

    Attributes:
        study: The expanded configuration.
        data: One entry per cell.
        sciences: One entry per cell.
        lineage: The graph of all generations.
        parameters: Parameters of each cell's model; None where unknown or not a language model.
        configs: What gangs get, one entry per cell: a hub model is pinned to the revision that its keys name.
        externals: Path and fingerprint of each cell's fixed corpus; None where there is none.
    """

    study: Study
    data: tuple[PreparedData, ...]
    sciences: tuple[CellScience, ...]
    lineage: Lineage
    parameters: tuple[int | None, ...]
    configs: tuple[Config, ...]
    externals: tuple[tuple[str, str] | None, ...]

    def cell(self, chain: Chain) -> Cell:
        """The cell of a chain."""
        return self.study.cells[chain.cell]

    def axes(self, chain: Chain) -> dict[str, Any]:
        """The values of a chain's axes, by column."""
        return dict(self.cell(chain).axes)


class _Data:
    """Prepares each distinct ``data`` section once."""

    def __init__(self, store: Store, scratch: Path) -> None:
        self.store, self.scratch = store, scratch
        self.found: dict[str, PreparedData] = {}

    def get(self, config: TextData | GaussianData | ImageData) -> PreparedData:
        name = config.model_dump_json()
        if name not in self.found:
            self.found[name] = self._prepare(config)
        return self.found[name]

    def _prepare(self, config: TextData | GaussianData | ImageData) -> PreparedData:
        if isinstance(config, ImageData):
            return self._images(config)
        return self._gaussian(config) if isinstance(config, GaussianData) else self._text(config)

    @staticmethod
    def _gaussian(config: GaussianData) -> PreparedData:
        return PreparedData({"kind": "gaussian", **science(config)}, None, None, GaussianTruth(config))

    def _images(self, config: ImageData) -> PreparedData:
        source = images.read_images(config)
        spec = images.data_science(config, source.fingerprint())
        key = key_of(prepared_science(spec))
        folder = self._folder(key, lambda folder: images.prepare(config, source, folder))
        return PreparedData(spec, folder, key, ImageSet(folder, config.num_examples))

    def _folder(self, key: str, prepare: Callable[[Path], None]) -> Path:
        """Where prepared data lie: in the store, or in scratch, where they are prepared if they are not there yet."""
        folder = self.store.path("data", key)
        if not self.store.sound("data", key):
            folder = self.scratch / key
            if not folder.exists():
                folder.mkdir(parents=True)
                prepare(folder)
        return folder

    def _text(self, config: TextData) -> PreparedData:
        documents = read_documents(config)
        tokenizer = config.tokenizer
        pretrained = pretrained_fingerprint(tokenizer) if isinstance(tokenizer, PretrainedTokenizer) else None
        spec = data_science(config, documents.fingerprint(), pretrained)
        key = key_of(prepared_science(spec))
        folder = self._folder(key, lambda folder: prepare(config, documents, folder))
        return PreparedData(spec, folder, key, TextCorpus(folder, config.num_examples))


def prepare_study(path: Path, assignments: tuple[str, ...], store: Store, scratch: Path) -> Prepared:
    """Read a configuration and everything that its keys depend on.

    Args:
        path: The configuration file.
        assignments: ``--set`` items.
        store: Looked into for prepared data; not written to.
        scratch: A temporary folder for data that the store has not.

    Raises:
        InputError: Anything the user gave is wrong.
    """
    study = expand(load_file(path, assignments))
    try:
        return _resolve(study, _Data(store, scratch))
    except DataError as error:
        raise study.source.located(error) from None


def _resolve(study: Study, data_of: _Data) -> Prepared:
    data, sciences, parameters, externals = [], [], [], []
    packed: dict[tuple[str, str], ExternalCorpus] = {}
    for cell in study.cells:
        prepared = data_of.get(cell.config.data)
        real, source = prepared.real, cell.config.regime.source
        count = _parameters(cell.config, real)
        external = None
        if isinstance(source, CorpusSource):
            if not isinstance(real, TextCorpus):
                raise DataError("regime.source: a fixed corpus is text, the real data are not")
            name = (source.corpus, cell.config.data.model_dump_json())
            external = packed.setdefault(name, packed.get(name) or real.external(source.corpus))
        supply = len(external.examples) if external else None
        check_supply(cell.config.regime, real.num_examples, cell.config.generations, real.supply, supply)
        data.append(prepared)
        parameters.append(count)
        externals.append((str(Path(source.corpus).absolute()), external.fingerprint) if external and source != "self" else None)
        sciences.append(_science(cell.config, prepared, external.fingerprint if external else None, count))
    lineage = _lineage(study, sciences)
    configs = tuple(_pinned(cell.config) for cell in study.cells)
    return Prepared(study, tuple(data), tuple(sciences), lineage, tuple(parameters), configs, tuple(externals))


def _pinned(config: Config) -> Config:
    """The configuration with a hub model's revision resolved, so that every generation loads what the key names."""
    learner = config.learner
    if not isinstance(learner, LanguageModel) or learner.model.pretrained is None:
        return config
    revision = pretrained_identity(learner.model).revision
    model = learner.model.model_copy(update={"revision": revision})
    return config.model_copy(update={"learner": learner.model_copy(update={"model": model})})


def open_study(path: Path, assignments: tuple[str, ...], store: Store) -> tuple[Prepared, tempfile.TemporaryDirectory[str]]:
    """`prepare_study` with a scratch folder of its own, which goes when the caller lets go of it."""
    scratch = tempfile.TemporaryDirectory(prefix="harness-")
    return prepare_study(path, assignments, store, Path(scratch.name)), scratch


def commit_data(prepared: Prepared, store: Store) -> None:
    """Put prepared data into the store, where gangs find them."""
    for item in {item.key: item for item in prepared.data if item.key and item.folder}.values():
        assert item.key and item.folder
        if item.folder != store.path("data", item.key):
            staged = store.stage(item.key)
            shutil.copytree(item.folder, staged, dirs_exist_ok=True)
            store.commit("data", item.key, staged, prepared_science(item.spec))


def load_data(config: Config, store: Store, key: str | None) -> RealData:
    """The real data of a cell, from the store."""
    if isinstance(config.data, GaussianData):
        return GaussianTruth(config.data)
    assert key is not None
    if isinstance(config.data, ImageData):
        return ImageSet(store.path("data", key), config.data.num_examples)
    return TextCorpus(store.path("data", key), config.data.num_examples)


def _parameters(config: Config, real: RealData) -> int | None:
    """Parameters of a language model; checks a pretrained one against the data."""
    if not isinstance(config.learner, LanguageModel) or not isinstance(real, TextCorpus):
        return None
    model = resolve_model(config.learner.model)
    if model.pretrained is None:
        return num_parameters(model, int(real.meta["vocab_size"]), model.context or sequence_length(config))
    found = pretrained_identity(model).config
    context, vocabulary = found.get("max_position_embeddings") or found.get("n_positions"), found.get("vocab_size")
    if context is not None and sequence_length(config) > context:
        raise DataError(
            f"data.block_size: sequences of {sequence_length(config)} tokens, more than {model.pretrained!r}'s context of {context}"
        )
    if vocabulary is not None and real.meta["vocab_size"] > vocabulary:
        raise DataError(f"data.tokenizer: {real.meta['vocab_size']} tokens, but {model.pretrained!r} knows {vocabulary}")
    known = architecture_of(found)
    return num_parameters(known, int(vocabulary), int(context or 0)) if known and vocabulary else None


def _science(config: Config, data: PreparedData, external: str | None, parameters: int | None) -> CellScience:
    """The parts of a cell's keys."""
    learner, n = config.learner, data.real.num_examples
    version = LEARNERS[learner.kind][0]
    fit: dict[str, Any] = {**science(learner), "version": version}
    sampling: dict[str, Any] = {"version": version, **fit.pop("sample", {})}
    cost, init = 1.0, None
    if isinstance(learner, LanguageModel) and isinstance(config.data, TextData):
        model = resolve_model(learner.model)
        if model.pretrained is not None:
            fit["model"] = {"pretrained": pretrained_identity(model).content}
        else:
            fit["model"] = {**science(model), "context": model.context or sequence_length(config)}
        fit.pop("init", None)
        first = "pretrained" if model.pretrained else "scratch"
        init = first if learner.init == "previous" else learner.init
        cost = 6.0 * (parameters or 1e8) * config.data.block_size
    if isinstance(learner, Vae):
        fit.pop("init", None)
        init = "scratch"
    evaluated = min(n, config.evaluate.examples)
    evaluation: dict[str, Any] = {"metrics": VERSIONS[learner.kind]}
    if isinstance(learner, LanguageModel):
        evaluation |= {**science(config.evaluate), "examples": evaluated}
    if isinstance(learner, Vae):
        evaluation |= {"examples": evaluated}
    return CellScience(
        data={**data.spec, "num_examples": n},
        fit=fit,
        sampling=sampling,
        evaluation=evaluation,
        filters=[{**science(item), "version": curation.VERSIONS[item.kind]} for item in config.filters],
        recipe=partial(recipe, config.regime, n, external=external),
        init=init,
        init_previous=isinstance(learner, LanguageModel | Vae) and learner.init == "previous",
        previous_prompts=isinstance(learner, LanguageModel) and learner.sample.prompt == "previous_prefix",
        n=n,
        evaluated=evaluated,
        generations=config.generations,
        cost=cost,
    )


def _lineage(study: Study, sciences: list[CellScience]) -> Lineage:
    names: list[dict[str, Any]] = []
    for cell, item in zip(study.cells, sciences, strict=True):
        names.append(
            {
                "data": item.data,
                "learner": dict(item.fit) | {"init": getattr(cell.config.learner, "init", None), "version": None},
                "sampling": dict(item.sampling) | {"version": None},
                "evaluation": science(cell.config.evaluate),
                "filters": [science(found) for found in cell.config.filters],
                "regime": science(cell.config.regime) | {"source": _source_name(item)},
            }
        )

    def name(index: int, seed: int) -> str:
        suffix = f"-G{study.cells[index].config.generations}" if study.generations_is_axis else ""
        return chain_id(names[index], seed, suffix)

    first: dict[str, int] = {}
    for index, cell in enumerate(study.cells):
        other = first.setdefault(name(index, study.seeds[0]), index)
        if other != index:
            both = f"{dict(study.cells[other].axes)} and {dict(cell.axes)}"
            raise ConfigError([study.source.problem("grid", f"two cells are the same science: {both}")])
    return build(sciences, name, study.seeds)


def _source_name(item: CellScience) -> Any:
    """The source of synthetic examples as generation 1 sees it: a fixed corpus by content, never by path."""
    return item.recipe(1).spec.get("source", "self")
