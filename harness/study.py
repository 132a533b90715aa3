"""From a configuration to its lineage.

Reads the real data, resolves models, and puts the keys' parts together.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from harness.cells import cell_spec, is_bundled, lineage_of, with_populations
from harness.components import DATA_KINDS, FILTERS, LEARNERS, REGIMES, TRACKERS
from harness.config.asking import placed
from harness.config.claimed import check_claims
from harness.config.grid import Cell, Study, find_cells, resolve_sources
from harness.config.load import load_file
from harness.config.naming import cell_name
from harness.config.schema import Config, data_kind
from harness.config.source import Source
from harness.data.noted import Notes, expanded, notes_of
from harness.data.packing import corpus_science, other_science, write_other
from harness.data.real import PreparedData, RealData
from harness.errors import DataError, InputError
from harness.imports import is_installed
from harness.learners.language_model.facts import ModelFacts
from harness.learners.language_model.needs import batches
from harness.learners.protocol import Execution, Resolved, check_installed, resolve
from harness.metrics.catalogue import METRICS, about, is_described, lacking
from harness.metrics.overlap import overlaps
from harness.preparation import DataOf, TextsOf, load_data, teacher_spec
from harness.records import REAL, Examples, Part, on_a_line
from harness.regimes import check_supply, recipe
from harness.registry import named
from harness.science import CellSpec, Chain, DataSpec, Lineage, key_of
from harness.section import DataSection, per_prompt
from harness.store import Store
from harness.store.shared import Making, commit_once
from harness.terminal import nearest, shown


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
        others: Fixed corpora, and other real texts that models are scored on, by the spec of their folder in
            the store.
        notes: What is to be known of the study's files when they are gone.
    """

    study: Study
    data: tuple[PreparedData, ...]
    specs: tuple[CellSpec, ...]
    lineage: Lineage
    bundles: tuple[Chain, ...]
    models: tuple[ModelFacts | None, ...]
    executions: tuple[Execution, ...]
    others: tuple[tuple[Mapping[str, Any], Examples], ...]
    notes: Notes

    def real(self, cell: int, store: Store) -> RealData:
        """The real data of a cell: those in the store, where it has them and they are sound."""
        found = self.data[cell]
        stored = found.kept is None or store.sound("data", found.kept.key)
        return load_data(self.specs[cell].data, store) if stored else found.real

    @cached_property
    def chains(self) -> Sequence[Chain]:
        """All chains, in the order of cells, then seeds."""
        place = {seed: index for index, seed in enumerate(self.study.seeds)}
        return sorted(
            [*self.lineage.chains, *self.bundles], key=lambda chain: (chain.cell, place[chain.seed])
        )

    def cell(self, chain: Chain) -> Cell:
        """The cell of a chain."""
        return self.study.cells[chain.cell]

    def axes(self, chain: Chain) -> dict[str, Any]:
        """The values of a chain's axes, by column."""
        return dict(self.cell(chain).axes)

    @cached_property
    def bundled(self) -> Mapping[str, Chain]:
        """Bundled chains by key, of those with one key the longest: the others are its beginning."""
        return {chain.key: chain for chain in sorted(self.bundles, key=lambda chain: chain.generations)}

    def find_chain(self, name: str) -> Chain:
        """The chain with an id, or the only one whose id begins so; of a study of one chain that one.

        Raises:
            InputError: There is none, or more than one.
        """
        chains = self.chains
        found = [chain for chain in chains if chain.id == name] or [
            chain for chain in chains if chain.id.startswith(name)
        ]
        if len(found) == 1:
            return found[0]
        known = [f"{chain.id} ({self._label(chain)})" for chain in (found or chains)[:12]]
        more = ", ..." if len(found or chains) > 12 else ""
        what = f"several chains begin with {shown(name)}" if found else f"there is no chain {shown(name)}"
        if not name:
            what = "there are several chains, and none is named (`harness status` lists them)"
        raise InputError(f"--chain: {what}; allowed: {', '.join(known)}{more}")

    def _label(self, chain: Chain) -> str:
        axes = self.axes(chain)
        return cell_name(list(axes.values()), list(axes), chain.seed)


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
    study = expanded(load_file(path, assignments), store.root)
    check_claims(study)
    check_columns(study)
    _check_libraries(study)
    try:
        with placed(study.source):
            study = replace(study, cells=tuple(_settled(study.source, cell) for cell in study.cells))
            notes = Notes(notes_of(store.root, study.base.experiment))
            prepared = _resolve(study, DataOf(store, scratch, notes), TextsOf(store, notes))
            notes.tell()
        return prepared
    except DataError as error:
        raise study.source.located(error) from None


def check_columns(study: Study) -> None:
    """Check that claims, and what a track scores, are of columns that records can have.

    Raises:
        ConfigError: No record has such a column; or none of a cell that a claim names.
    """
    asked = [
        (study.source, f"claims.{number}.statistic.{field}", getattr(claim.statistic, field))
        for number, claim in enumerate(study.base.claims)
        for field in ("metric", "than")
    ]
    if study.source.track is not None:
        scored, source = study.source.track.track.score, study.source.track.source
        asked += [(source, f"score.beside.{place}", name) for place, name in enumerate(scored.beside)]
        asked.append((source, "score.metric", scored.metric))
    for source, place, name in asked:
        if name is not None and not is_described(name):
            hint = nearest(name, (metric.name for metric in METRICS))
            raise source.error(
                place,
                f"no record has the column {shown(name)}{hint}; harness list metrics says which there are",
            )
    for number, claim in enumerate(study.base.claims):
        named_cells = {index for _, wanted in claim.statistic.cells for index in find_cells(study, wanted)}
        for field in ("metric", "than"):
            name = getattr(claim.statistic, field)
            for cell in (study.cells[index] for index in sorted(named_cells) if name is not None):
                if why := lacking(name, cell.config):
                    which = f" {dict(cell.axes)}" if cell.axes else ""
                    raise study.source.error(
                        f"claims.{number}.statistic.{field}",
                        f"no record of the cell{which} has the column {name}: {why}",
                    )


def _check_libraries(study: Study) -> None:
    """Look for the libraries that are not always installed, before anything needs them."""
    try:
        for kind in dict.fromkeys(cell.config.learner.kind for cell in study.cells):
            check_installed(kind)
    except DataError as error:
        raise study.source.located(error) from None
    for name in study.base.tracking.names:
        tracker = TRACKERS[name]
        missing = [module for module in tracker.modules if not is_installed(module)]
        if missing:
            message = (
                f"tracker {name} needs {', '.join(missing)}, not installed here; {tracker.off}, or pip "
                f"install 'model-collapse-harness[{tracker.extra}]'"
            )
            raise study.source.error(tracker.field, message)


@contextmanager
def _placed(source: Source, cell: Cell) -> Iterator[None]:
    """Name the line at which what is wrong with a cell stands: that of its axis or mitigation, say."""
    try:
        yield
    except DataError as error:
        raise source.located(error, cell.places) from None


def _resolve(study: Study, data_of: DataOf, texts_of: TextsOf) -> Prepared:
    data, specs, resolved = [], [], list[Resolved]()
    others: dict[str, tuple[Mapping[str, Any], Examples]] = {}
    for cell, source in zip(study.cells, resolve_sources(study), strict=True):
        with _placed(study.source, cell):
            prepared = data_of.get(cell.config.data)
            real, learner = prepared.real, resolve(cell.config, prepared.real)
            fixed = texts_of.fixed(cell.config, prepared)
            if fixed is not None:
                spec = corpus_science(prepared.spec, fixed.fingerprint)
                others[key_of(spec)] = (spec, fixed.examples)
            if real.num_examples < 1:
                raise DataError("data.segment: there are fewer training examples than segments")
            _check_own_examples(cell.config.data, real)
            supply = None if fixed is None else len(fixed.examples)
            _check_labelled(cell.config, real, study.seeds[0])
            check_supply(cell.config.regime, real.num_examples, cell.config.generations, real.supply, supply)
            _check_left(cell.config, real.num_examples)
            texts = texts_of.scored(cell.config, prepared)
            content, teacher = None if fixed is None else fixed.fingerprint, _teacher(cell.config, real)
            found = cell_spec(cell.config, prepared, learner, texts, content, teacher, source)
            for text in texts.values():
                spec = other_science(found.data.identity, text.fingerprint)
                others[key_of(spec)] = (spec, text.examples)
            data.append(prepared)
            resolved.append(learner)
            specs.append(found)
    specs = with_populations(study, specs)
    _check_sources(study, specs)
    _check_counts(study, specs)
    lineage, bundles = lineage_of(study, specs)
    executions = tuple(
        _execution(cell.config, found) for cell, found in zip(study.cells, resolved, strict=True)
    )
    models = tuple(found.facts for found in resolved)
    return Prepared(
        study,
        tuple(data),
        tuple(specs),
        lineage,
        bundles,
        models,
        executions,
        tuple(others.values()),
        data_of.notes,
    )


def _check_counts(study: Study, specs: Sequence[CellSpec]) -> None:
    """Check what claims ask of metrics, and that cells differ where the value of real data is claimed."""
    for number, claim in enumerate(study.base.claims):
        statistic = claim.statistic
        if statistic.over in ("best", "worst") and not about(statistic.metric).worse:
            message = f"found {statistic.over}, and it is not known which way {statistic.metric} worsens"
            raise study.source.error(f"claims.{number}.statistic.over", f"{message}; allowed: mean")
        found = [find_cells(study, cell) for _, cell in statistic.cells]
        if not statistic.beside or not all(found):
            continue
        last = (specs[index].generations for (index,) in found)
        generation = min(last) if statistic.generation is None else statistic.generation
        (at, *beside) = (specs[index].recipe(generation).counts for (index,) in found)
        shown = "; ".join(f"{real:g} real and {synthetic:g} synthetic" for real, synthetic in (at, *beside))
        place = f"claims.{number}.statistic.beside"
        if statistic.of == "undone" and beside[0][0] <= at[0]:
            raise study.source.error(place, f"needs a cell with more real examples than where; found {shown}")
        if statistic.of == "worth" and on_a_line(at, beside):
            raise study.source.error(
                place,
                "needs two cells that differ from where, and not both in the same proportion, in real and "
                f"in synthetic examples; found {shown} in generation {generation}",
            )


def _check_own_examples(section: DataSection, real: RealData) -> None:
    """Check that seeds that shall have examples of their own do not all have the same ones."""
    if not section.own_examples or real.num_examples < real.supply:
        return
    field, remedy = "data.resample", "set data.num_examples below that"
    if "reserve" in type(section).model_fields:  # its supply is num_examples and what is set beside them
        remedy = "set data.reserve, to have further ones to draw from"
    if "resample" not in type(section).model_fields:  # so its kind is a package's, which may be at fault
        package = DATA_KINDS.loaded[data_kind(section)].package
        field = "data.source"
        remedy += f", or let own_examples of the section, which {package} defines, be False"
    raise DataError(
        f"{field}: every seed would train on all {real.supply} examples of the training split; {remedy}"
    )


MAX_IN_TEST = 0.05
"""At most so many of the labelled real examples of a detector may stand in the test set."""


def _check_labelled(config: Config, real: RealData, seed: int) -> None:
    """Check that there are as many real examples as filters learn from, and that the test set is not theirs.

    Raises:
        DataError: They are too few, or a detector would learn from test examples.
    """
    n = real.num_examples
    for item in config.filters:
        filter_ = FILTERS[item.kind]
        labelled = filter_.labelled(item)
        behind = f"real ({labelled} of them labelled)" if labelled else "real"
        for asked, what in ((labelled, "labelled real"), (filter_.reference(item), behind)):
            if asked > n:
                raise DataError(
                    f"filters: {item.kind} learns from {asked} {what} examples, there are {n} real training "
                    "examples"
                )
        test, asked = getattr(real, "test", None), labelled and max(labelled, filter_.reference(item))
        if asked and isinstance(test, Examples):
            found = overlaps(real.real(seed, asked).values, test.values)["whole examples"]
            if found > MAX_IN_TEST:
                raise DataError(
                    f"filters: {item.kind} learns from {asked} real examples, of which {found:.0%} stand in "
                    f"the test set too; allowed: {MAX_IN_TEST:.0%}. Leave out what data.source holds twice"
                )


def _check_left(config: Config, n: int) -> None:
    """Check that filters whose sections say how many examples they leave leave some.

    Raises:
        DataError: Nothing would ever be left of what arrives in generation 1, or of a training set.
    """
    if REGIMES[config.regime.kind].selects:
        if config.generations:
            _check_pool(config, n)
        return
    if not any(any(FILTERS[item.kind].drops(item)) for item in config.filters):
        return
    for generation in range(1, config.generations + 1):
        _check_kinds(config, recipe(config.regime, n, generation, "").parts, generation)


def _check_pool(config: Config, n: int) -> None:
    made = recipe(config.regime, n, 1, "")
    _check_kinds(config, [part for part in made.parts if part.pooled], 1)
    left = made.pooled
    for item in config.filters:
        left = FILTERS[item.kind].leaves(item, left)
        if not left:
            raise DataError(
                f"filters: nothing of the {made.pooled} examples that arrive in generation 1 is left behind "
                f"{item.kind}; let it keep more, or raise regime.pool or data.num_examples"
            )


def _check_kinds(config: Config, parts: Sequence[Part], generation: int) -> None:
    """Check that filters that drop all real examples, or all synthetic ones, leave others of these."""
    there = [sum(part.count for part in parts if (part.origin == REAL) == real) for real in (True, False)]
    what, whole = "that arrive in" if any(part.pooled for part in parts) else "to train on in", sum(there)
    for item in config.filters:
        dropped = FILTERS[item.kind].drops(item)
        there = [0 if gone else count for gone, count in zip(dropped, there, strict=True)]
        if whole and not sum(there):
            raise DataError(
                f"filters: nothing of the {whole} examples {what} generation {generation} is left behind "
                f"{item.kind}, which drops every {_dropped(dropped)} one; let it keep some"
            )


def _dropped(kinds: tuple[bool, bool]) -> str:
    return " and every ".join(name for name, gone in zip(("real", "synthetic"), kinds, strict=True) if gone)


def _settled(source: Source, cell: Cell) -> Cell:
    """A cell with what its learner names of the hub settled, and what its filters name."""
    config = cell.config
    with _placed(source, cell):
        filters = tuple(
            named(FILTERS[item.kind].locate)(item, f"filters.{place}") if FILTERS[item.kind].locate else item
            for place, item in enumerate(config.filters)
        )
        if filters != tuple(config.filters):
            config = config.model_copy(update={"filters": filters})
        settle = LEARNERS[config.learner.kind].settle
        return replace(cell, config=named(settle)(config) if settle else config)


def _teacher(config: Config, real: RealData) -> DataSpec | None:
    """The fixed teacher of a cell; None where it has none, or where that is a chain of the grid."""
    changes = config.regime.writer.changes
    return None if changes is None else teacher_spec(config.data, real, changes)


def _check_sources(study: Study, specs: list[CellSpec]) -> None:
    """Check that a chain can read what its source writes."""
    for cell, item in zip(study.cells, specs, strict=True):
        if any(is_bundled(study.cells[index].config) != is_bundled(cell.config) for index in item.members):
            raise DataError("population: resources.bundled must be the same in all members")
        if item.source is None:
            continue
        other, who = study.cells[item.source], specs[item.source]
        where = f"regime.source: cell {dict(other.axes)}"
        if who.members:
            raise DataError(f"{where} is a member of a population; allowed: cells that are in none")
        if _distribution(item) != _distribution(who):
            raise DataError(
                f"{where} has other data than the cell that reads it; both need the same data section"
            )
        _check_judges(item, who, where)
        writer = cell.config.regime.writer
        fixed = 0 if writer.pretrained is not None else writer.generation
        needed = cell.config.generations - 1 if fixed is None else fixed
        if other.config.generations < needed:
            raise DataError(
                f"{where} has generations up to {other.config.generations}, the cell that reads it needs "
                f"generation {needed}"
            )
        if is_bundled(other.config) != is_bundled(cell.config):
            raise DataError(f"{where}: resources.bundled must be the same in both cells")


def _check_judges(item: CellSpec, who: CellSpec, where: str) -> None:
    """Check that judges look at the completions of one prompt together, as many as the writer writes."""
    written = per_prompt(who.sampling.section)
    for part in item.filters:
        together = FILTERS[str(part.identity["kind"])].together(part.section)
        if together not in (None, written):
            raise DataError(
                f"{where} writes {written} completions of each prompt, the judge looks at {together}; "
                "learner.sample.per_prompt has to be the same in both"
            )


def _distribution(item: CellSpec) -> dict[str, Any]:
    """What a cell's real data are, however many it has of them."""
    own = ("num_examples", "segment")
    return {name: value for name, value in item.data.identity.items() if name not in own}


def _execution(config: Config, resolved: Resolved) -> Execution:
    """How a cell's work is done."""
    settled = {
        "micro_batch": config.micro_batch,
        "sample_batch": config.resources.sampled_together,
        "zero_stage": config.zero_stage,
    }
    resources = config.resources.model_copy(update=settled)
    sizes = {} if resolved.facts is None else batches(config, resolved.facts)
    asked = config.resources.zero_stage is not None
    return Execution(config.experiment, resources, resolved.models, sizes, asked)


def open_study(
    path: Path, assignments: tuple[str, ...], store: Store
) -> tuple[Prepared, tempfile.TemporaryDirectory[str]]:
    """`prepare_study` with a scratch folder of its own, which goes when the caller lets go of it."""
    scratch = tempfile.TemporaryDirectory(prefix="harness-")
    return prepare_study(path, assignments, store, Path(scratch.name)), scratch


def commit_data(prepared: Prepared, store: Store, stopped: Callable[[], bool] = lambda: False) -> bool:
    """Put prepared data into the store, where gangs find them.

    False where others were at it when ``stopped`` said so.
    """
    items: dict[str, Making] = {}
    for item in prepared.data:
        kept = item.kept
        if kept is not None and kept.path != store.path("data", kept.key):
            items[kept.key] = partial(shutil.copytree, kept.path, dirs_exist_ok=True), kept.spec
    for other, blocks in prepared.others:
        if not store.sound("data", key_of(other)):
            items[key_of(other)] = partial(write_other, blocks=blocks), other
    about = {"experiment": prepared.study.base.experiment, "data": True}
    there = commit_once(store, "data", items, about, prepared.study.lease_s, stopped)
    if there:
        prepared.notes.write()
    return there
