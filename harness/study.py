"""From a configuration to its lineage: reads the real data, resolves models, and puts the keys' parts together."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.components import FILTERS, LEARNERS, REGIMES
from harness.config.grid import Cell, Study, check_claims, expand, resolve_sources
from harness.config.load import load_file
from harness.config.schema import (
    CellSource,
    Config,
    CorpusSource,
    Evaluate,
    ModelSource,
    TextData,
    science,
)
from harness.data.analytic import Truth, make_teacher, truth_science
from harness.data.base import RealData
from harness.data.text import (
    ExternalCorpus,
    TextCorpus,
    corpus_science,
    other_science,
    prepared_science,
    read_other,
    write_other,
)
from harness.errors import ConfigError, DataError, InputError
from harness.learners.base import Execution, Resolved, check_installed, is_installed, resolve
from harness.learners.language_model.facts import ModelFacts
from harness.metrics import BYTES_OF_TOKENS, OTHERS_BYTES_OF_TOKENS, OTHERS_VERSION, versions
from harness.metrics.added import added_versions
from harness.preparation import DataOf, PreparedData, data_spec, rows_science
from harness.preparation import load_data as load_data
from harness.records import Examples
from harness.regimes import check_supply, recipe
from harness.registry import named
from harness.science import (
    KEY_FORMAT,
    BundledChain,
    CellSpec,
    Chain,
    DataSpec,
    Lineage,
    Measured,
    Part,
    blank,
    build,
    chain_id,
    in_order,
    key_of,
)
from harness.store import Store
from harness.store.shared import Recipe, commit_once
from harness.terminal import shown


@dataclass(frozen=True)
class Prepared:
    """A study with everything resolved; nothing has been written to the store yet.

    Attributes:
        study: The expanded configuration.
        data: One entry per cell.
        specs: What the chains of each cell have in common.
        lineage: The graph of all generations that are run one by one.
        bundles: The chains that are run in bundles.
        models: What each cell's model is; None where it is not a language model.
        executions: How the work of each cell is done.
        others: Fixed corpora, and other real texts that models are scored on, by the spec of their folder in the store.
    """

    study: Study
    data: tuple[PreparedData, ...]
    specs: tuple[CellSpec, ...]
    lineage: Lineage
    bundles: tuple[BundledChain, ...]
    models: tuple[ModelFacts | None, ...]
    executions: tuple[Execution, ...]
    others: tuple[tuple[Mapping[str, Any], Examples], ...]

    @property
    def chains(self) -> list[Chain | BundledChain]:
        """All chains, in the order of cells, then seeds."""
        place = {seed: index for index, seed in enumerate(self.study.seeds)}
        return sorted([*self.lineage.chains, *self.bundles], key=lambda chain: (chain.cell, place[chain.seed]))

    def cell(self, chain: Chain | BundledChain) -> Cell:
        """The cell of a chain."""
        return self.study.cells[chain.cell]

    def axes(self, chain: Chain | BundledChain) -> dict[str, Any]:
        """The values of a chain's axes, by column."""
        return dict(self.cell(chain).axes)

    def find_chain(self, name: str) -> Chain | BundledChain:
        """The chain with an id, or the only one whose id begins so.

        Raises:
            InputError: There is none, or more than one.
        """
        chains = self.chains
        found = [chain for chain in chains if chain.id == name] or [chain for chain in chains if chain.id.startswith(name)]
        if len(found) == 1:
            return found[0]
        known = [f"{chain.id} ({self._label(chain)})" for chain in (found or chains)[:12]]
        more = ", ..." if len(found or chains) > 12 else ""
        what = "several chains begin with" if found else "there is no chain"
        raise InputError(f"--chain: {what} {shown(name)}; allowed: {', '.join(known)}{more}")

    def _label(self, chain: Chain | BundledChain) -> str:
        return " ".join([*(f"{name}={value}" for name, value in self.axes(chain).items()), f"seed={chain.seed}"])


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
    check_claims(study)
    _check_libraries(study)
    study = replace(study, cells=tuple(replace(cell, config=_settled(cell.config)) for cell in study.cells))
    try:
        return _resolve(study, DataOf(store, scratch))
    except DataError as error:
        raise study.source.located(error) from None


def _check_libraries(study: Study) -> None:
    """Look for the libraries that are not always installed, before anything needs them."""
    try:
        for kind in dict.fromkeys(cell.config.learner.kind for cell in study.cells):
            check_installed(kind)
    except DataError as error:
        raise study.source.located(error) from None
    wanted = study.base.tracking.wandb
    if wanted != "disabled" and not is_installed("wandb"):
        message = f"found {wanted!r}, but wandb is not installed; set disabled, or pip install 'model-collapse-harness[wandb]'"
        raise study.source.error("tracking.wandb", message)


def _resolve(study: Study, data_of: DataOf) -> Prepared:
    data, specs, resolved = [], [], list[Resolved]()
    packed: dict[tuple[str, str], ExternalCorpus] = {}
    scored: dict[tuple[str, str], ExternalCorpus] = {}
    others: dict[str, tuple[Mapping[str, Any], Examples]] = {}
    for cell, source in zip(study.cells, resolve_sources(study), strict=True):
        prepared = data_of.get(cell.config.data)
        real, learner = prepared.real, resolve(cell.config, prepared.real)
        fixed = _fixed_corpus(cell.config, prepared, data_of.store, packed)
        if fixed is not None:
            spec = corpus_science(prepared.spec, fixed.fingerprint)
            others[key_of(spec)] = (spec, fixed.examples)
        if getattr(cell.config.data, "resample", False) and real.num_examples >= real.supply:
            raise DataError(
                f"data.resample: every seed would train on all {real.supply} examples of the training split; set data.num_examples "
                "below that"
            )
        supply = None if fixed is None else len(fixed.examples)
        check_supply(cell.config.regime, real.num_examples, cell.config.generations, real.supply, supply)
        texts = _others(cell.config, real, scored)
        writer = _teacher(cell.config, real) if fixed is None else fixed.fingerprint
        found = cell_spec(cell.config, prepared, learner, texts, writer, source)
        for text in texts.values():
            spec = other_science(found.data.identity, text.fingerprint)
            others[key_of(spec)] = (spec, text.examples)
        data.append(prepared)
        resolved.append(learner)
        specs.append(found)
    _check_sources(study, specs)
    lineage, bundles = _lineage(study, specs)
    executions = tuple(_execution(cell.config, found) for cell, found in zip(study.cells, resolved, strict=True))
    models = tuple(found.facts for found in resolved)
    return Prepared(study, tuple(data), tuple(specs), lineage, bundles, models, executions, tuple(others.values()))


def _fixed_corpus(
    config: Config, data: PreparedData, store: Store, known: dict[tuple[str, str], ExternalCorpus]
) -> ExternalCorpus | None:
    """The fixed corpus of a cell, where its regime reads one; each is read once."""
    source, real = config.regime.source, data.real
    if not isinstance(source, CorpusSource):
        return None
    if not isinstance(real, TextCorpus):
        raise DataError("regime.source: a fixed corpus is text, the real data are not")
    assert isinstance(config.data, TextData)
    name = (source.corpus, config.data.model_dump_json())
    if name not in known:
        known[name] = real.external(source.corpus, config.data.split, partial(_packed, store, data.spec))
    return known[name]


def _settled(config: Config) -> Config:
    """The configuration with what its learner names of the hub settled."""
    settle = LEARNERS[config.learner.kind].settle
    return named(settle)(config) if settle else config


def _packed(store: Store, data: Mapping[str, Any], fingerprint: str) -> Examples | None:
    """The blocks of a fixed corpus, where the store has them."""
    key = key_of(corpus_science(data, fingerprint))
    return read_other(store.path("data", key)) if store.sound("data", key) else None


def resamples(config: Config) -> bool:
    """Whether every seed has training examples of its own: of a known distribution, or of a split where that is asked for."""
    return bool(getattr(config.data, "resample", True))


def _others(config: Config, real: RealData, known: dict[tuple[str, str], ExternalCorpus]) -> dict[str, ExternalCorpus]:
    """The other real texts of a cell, by name; each is read once."""
    if not isinstance(config.data, TextData) or not isinstance(real, TextCorpus):
        return {}
    found = {}
    for name, source in config.evaluate.others.items():
        which = (source, config.data.model_dump_json())
        found[name] = known.setdefault(which, known.get(which) or real.other(name, source, config.data.split))
    return found


def _teacher(config: Config, real: RealData) -> DataSpec | None:
    """The fixed teacher of a cell; None where it has none, or where that is a chain of the grid."""
    source = config.regime.source
    if not isinstance(source, ModelSource) or not isinstance(source.model, dict):
        return None
    if not isinstance(real, Truth):
        raise DataError(
            "regime.source: {model: ...} names fields of analytic data; for text, use {cell: ...} with a chain of a larger "
            "model, or {corpus: ...} with what a teacher wrote"
        )
    teacher = make_teacher(real.config, source)
    return DataSpec(teacher.config, truth_science(teacher))


def _check_sources(study: Study, specs: list[CellSpec]) -> None:
    """Check that a chain can read what its source writes."""
    for cell, item in zip(study.cells, specs, strict=True):
        if item.source is None:
            continue
        other, who = study.cells[item.source], specs[item.source]
        where = f"regime.source: cell {dict(other.axes)}"
        if {**item.data.identity, "num_examples": 0} != {**who.data.identity, "num_examples": 0}:
            raise DataError(f"{where} has other data than the cell that reads it; both need the same data section")
        source = cell.config.regime.source
        fixed = source.generation if isinstance(source, CellSource) else 0
        needed = cell.config.generations - 1 if fixed is None else fixed
        if other.config.generations < needed:
            raise DataError(
                f"{where} has generations up to {other.config.generations}, the cell that reads it needs generation {needed}"
            )
        if is_bundled(other.config) != is_bundled(cell.config):
            raise DataError(f"{where}: resources.bundled must be the same in both cells")


def is_bundled(config: Config) -> bool:
    """Whether a cell's chains are run in bundles."""
    return LEARNERS[config.learner.kind].batchable and config.resources.bundled


def _execution(config: Config, resolved: Resolved) -> Execution:
    """How a cell's work is done."""
    resources = config.resources.model_copy(update={"micro_batch": config.micro_batch})
    return Execution(config.experiment, resources, resolved.models)


def open_study(path: Path, assignments: tuple[str, ...], store: Store) -> tuple[Prepared, tempfile.TemporaryDirectory[str]]:
    """`prepare_study` with a scratch folder of its own, which goes when the caller lets go of it."""
    scratch = tempfile.TemporaryDirectory(prefix="harness-")
    return prepare_study(path, assignments, store, Path(scratch.name)), scratch


def commit_data(prepared: Prepared, store: Store, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Put prepared data into the store, where gangs find them; False where others were at it when ``stopped`` said so."""
    items: dict[str, Recipe] = {}
    for item in prepared.data:
        if item.key and item.folder and item.folder != store.path("data", item.key):
            spec = rows_science(item.spec) if isinstance(item.real, Truth) else prepared_science(item.spec)
            items[item.key] = partial(shutil.copytree, item.folder, dirs_exist_ok=True), spec
    for other, blocks in prepared.others:
        if not store.sound("data", key_of(other)):
            items[key_of(other)] = partial(write_other, blocks=blocks), other
    base = prepared.study.base
    return commit_once(store, "data", items, {"experiment": base.experiment, "data": True}, base.resources.lease_s, stopped)


def cell_spec(
    config: Config,
    data: PreparedData,
    resolved: Resolved,
    texts: Mapping[str, ExternalCorpus],
    writer: str | DataSpec | None,
    source: int | None,
) -> CellSpec:
    """What the chains of a cell have in common: the one place where a configuration becomes specs.

    Args:
        config: The cell.
        data: Its real data.
        resolved: What its learner is.
        texts: The other real texts of its evaluation.
        writer: The hash of its fixed corpus, or its fixed teacher; None for other sources.
        source: Index of the cell whose chain writes for it; None for the chain itself.
    """
    n = data.real.num_examples
    external = writer.identity if isinstance(writer, DataSpec) else writer
    filters = [FILTERS.loaded[item.kind] for item in config.filters]
    return CellSpec(
        data=data_spec(config.data, data),
        learner=resolved.fit,
        sampling=resolved.sampling,
        measured=_measured(config, data.real, texts),
        filters=tuple(Part(item, found.version) for item, found in zip(config.filters, filters, strict=True)),
        detectors=tuple(found.plugin.of == "training sets" for found in filters),
        recipe=partial(recipe, config.regime, n, external=external),
        init=resolved.init,
        init_previous=getattr(config.learner, "init", None) == "previous",
        prompts=resolved.prompts,
        n=n,
        generations=config.generations,
        cost=resolved.cost,
        source=source,
        writer=writer,
    )


def _measured(config: Config, real: RealData, texts: Mapping[str, ExternalCorpus]) -> Measured:
    """What a cell's evaluations measure; of the section only what its learner reads."""
    learner, asked = LEARNERS[config.learner.kind], config.evaluate
    examples = min(real.num_examples, asked.examples)
    metrics = versions(config.learner.kind)
    if isinstance(real, TextCorpus) and not real.is_plain(real.test.values):
        metrics = {**metrics, **BYTES_OF_TOKENS}
    identity: dict[str, Any] = {"metrics": dict(metrics)}
    if asked.metrics:  # apart: a package's name for a metric may be one of the groups' here
        identity["added"] = added_versions(asked.metrics)
    section = blank(asked, *(set(Evaluate.model_fields) - {"metrics", *learner.evaluates}))
    found = science(section)
    for name in ("metrics", "others"):  # by their versions, and by their content
        found.pop(name, None)
    counted = learner.names_examples or "examples" in found or "ranges" in found
    identity |= {**found, **({"examples": examples} if counted else {})}
    contents = {name: text.fingerprint for name, text in texts.items()}
    if contents:
        plain = isinstance(real, TextCorpus) and all(real.is_plain(text.examples.values) for text in texts.values())
        identity["others"] = {"version": OTHERS_VERSION if plain else OTHERS_BYTES_OF_TOKENS, "texts": contents}
    return Measured(blank(section, "others"), identity, examples, contents)


def _lineage(study: Study, specs: list[CellSpec]) -> tuple[Lineage, tuple[BundledChain, ...]]:
    names: list[dict[str, Any]] = []
    for cell, item in zip(study.cells, specs, strict=True):
        regime = science(cell.config.regime) | {"source": _source_name(item)}
        names.append(
            {
                "data": item.data.identity,
                "learner": {**item.learner.identity, "init": getattr(cell.config.learner, "init", None), "version": None},
                "sampling": {**item.sampling.identity, "version": None},
                "evaluation": {**science(cell.config.evaluate), **_texts(item)},
                "filters": [science(found) for found in cell.config.filters],
                "regime": regime,
            }
        )
    order = in_order(dict(enumerate(specs)))
    for index in order:
        source = specs[index].source
        if source is not None:
            names[index]["regime"]["source"] = {"cell": key_of({"cell": names[source]}), **_fixed(study.cells[index].config)}

    def name(index: int, seed: int) -> str:
        suffix = f"-G{study.cells[index].config.generations}" if study.generations_is_axis else ""
        return chain_id(names[index], seed, suffix)

    first: dict[str, int] = {}
    for index, cell in enumerate(study.cells):
        other = first.setdefault(name(index, study.seeds[0]), index)
        if other != index:
            both = f"{dict(study.cells[other].axes)} and {dict(cell.axes)}"
            raise ConfigError([study.source.problem("grid", f"two cells are the same science: {both}")])
    bundled = [index for index, cell in enumerate(study.cells) if is_bundled(cell.config)]
    identities: dict[int, dict[str, Any]] = {}
    for index in order:
        if index in bundled:
            identities[index] = _bundle_identity(study.cells[index].config, specs[index], identities)
    chains = tuple(
        BundledChain(
            name(index, seed), index, seed, key_of({**identities[index], "seed": seed}), study.cells[index].config.generations
        )
        for index in bundled
        for seed in study.seeds
    )
    single = {index: item for index, item in enumerate(specs) if index not in set(bundled)}
    return build(single, name, study.seeds), chains


def _texts(item: CellSpec) -> dict[str, Any]:
    """The other real texts of an evaluation, by content, in the place of where they lie."""
    return {"others": item.measured.identity["others"]} if item.measured.others else {}


def _fixed(config: Config) -> dict[str, int]:
    """The generation of a source cell that every generation reads, where there is one."""
    source = config.regime.source
    return {"generation": source.generation} if isinstance(source, CellSource) and source.generation is not None else {}


def _bundle_identity(config: Config, item: CellSpec, others: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the chains of a cell are known by in bundles: all of its science but seed and length."""
    source = _source_name(item) if item.source is None else {"cell": key_of(others[item.source]), **_fixed(config)}
    return {
        "format": KEY_FORMAT,
        "data": item.data.identity,
        "learner": {**item.learner.identity, **({"init": config.learner.init} if hasattr(config.learner, "init") else {})},
        "sampling": item.sampling.identity,
        "evaluation": item.measured.identity,
        "filters": [part.identity for part in item.filters],
        "regime": {**science(config.regime), "source": source, "version": REGIMES.loaded[config.regime.kind].version},
    }


def _source_name(item: CellSpec) -> Any:
    """The source of synthetic examples: a fixed corpus by content, never by path; a teacher by what it is."""
    if item.writer is None:
        return "self"
    return {"corpus": item.writer} if isinstance(item.writer, str) else {"model": item.writer.identity}
