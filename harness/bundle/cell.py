"""The chains of one cell on their way through the generations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from harness.bundle.job import CellJob, is_drawn
from harness.curation import Chosen, taught, training_examples
from harness.errors import LearnerError
from harness.learners.analytic.family import (
    Array,
    Chains,
    Parameters,
    Summary,
    fitted,
    fold_origins,
    make_family,
    metrics_of,
    sampled,
    select,
)
from harness.metrics.added import added_metrics
from harness.records import REAL, TEACHER, Examples, Part, Recipe, Status, writer_of
from harness.science import Chain, FitSpec, Lineage
from harness.store.bundles import CHAIN, FILTER_COLUMNS, GENERATION, PARAMETERS
from harness.turn import turn


class CellRun:
    """The chains of one cell on their way through the generations."""

    def __init__(
        self, index: int, job: CellJob, seeds: tuple[int, ...], lineage: Lineage, writer: CellRun | None
    ) -> None:
        """Nothing is computed yet; ``writer`` is another cell, whose corpora they read."""
        self.index, self.job, self.spec = index, job, job.spec
        self.seeds, self.writer = tuple(job.spec.seed(seed) for seed in seeds), writer or self
        self.members: list[CellRun] = []
        """Of its population, itself among them."""
        self.filters: list[Any] = [part.section for part in job.spec.filters]
        self.family = make_family(job.spec.learner.section, job.truth)
        self.recipes = [job.spec.recipe(generation) for generation in range(job.spec.generations + 1)]
        self.nodes = {
            job.spec.seed(chain.seed): [lineage.nodes[key] for key in chain.nodes]
            for chain in lineage.chains
            if chain.cell == index
        }
        self.all_nodes = lineage.nodes
        first = self.nodes[self.seeds[0]]
        self.counts = [lineage.examples[node.corpus] for node in first]
        parts = [part for recipe in self.recipes for part in recipe.parts if part.origin == REAL]
        needed = max(job.spec.n, *(part.offset + part.count for part in parts))
        self.real = np.stack([job.truth.real(seed, needed).values for seed in self.seeds])
        self.read_by_others: frozenset[int] = frozenset()
        """Generations that another cell of the unit reads."""
        self.keeps_models = bool(self.filters)
        self.generation = 0
        self.alive = np.arange(len(self.seeds))
        """Chains that have a model; those of a writer that has none end too."""
        self.ended = self.alive[:0]
        """Those that have ended in this generation."""
        self.corpora: dict[int, Array] = {}
        """Generation to its corpus, for as long as it is read."""
        self.written: dict[int, npt.NDArray[np.int64]] = {}
        """Generation to the chains that its corpus is of: those that are alive, or in a population were."""
        self.pool: tuple[tuple[Part, ...], Summary] | None = None
        """Parts and their merged summary, for training sets that begin with them."""
        self.selected: dict[str, Array] = {}
        """What became of the pools of this generation, by column."""
        self.filtered: dict[str, Array] = {}
        """What filters of corpora have done for it, by column (`FilterCounts`)."""
        self.model: Parameters = {}
        self.models: dict[int, Parameters] = {}
        """Generation to its models, where filters may ask for more of its corpus."""
        self.pieces: list[pa.Table] = []
        self.whole = not self.filters and not any(is_drawn(recipe, job.spec.n) for recipe in self.recipes)
        self.last_use = {origin: g for g, node in enumerate(first) for origin in node.spec.fit.corpora}

    # --- the four steps -------------------------------------------------------------------------------------

    def begin(self, generation: int) -> None:
        """Come to a generation; chains whose writer has diverged before end here."""
        self.generation = generation
        for part in self.recipes[generation].parts:
            writer, then = self._writer(part.origin) if part.origin >= 0 else (self, 0)
            if writer is not self:
                there = np.isin(self.alive, writer.written.get(then, self.alive[:0]))
                if not there.all():
                    self._keep(there)

    def _writer(self, origin: int) -> tuple[CellRun, int]:
        """The cell that has written an origin in this generation's training set, and its generation."""
        place, generation = writer_of(origin)
        writers = self.recipes[self.generation].writers
        return (self.writer if place is None else self.members[writers[place]]), generation

    def step(self, generation: int) -> None:
        """One generation of every chain that is alive."""
        self.begin(generation)
        if len(self.alive):
            turn(self)

    @property
    def chains(self) -> Chains:
        """The chains that are alive."""
        return Chains(tuple(self.seeds[i] for i in self.alive), self.generation)

    def fit(self) -> Status:
        """Fit to every chain's training set; those without a finite model end here."""
        recipe, chains = self.recipes[self.generation], self.chains
        summary = self._training(recipe, chains)
        goes_on = recipe.init == "previous" or (recipe.init is None and self.spec.init_previous)
        with np.errstate(invalid="ignore", over="ignore"):
            self.model = fitted(
                self.family, summary, chains, self.model if goes_on and self.generation else None
            )
        sound = np.ones(len(self.alive), dtype=bool)
        for array in self.model.values():
            sound &= ~np.isnan(array).reshape(len(array), -1).any(axis=1)
        self.ended = self.alive[~sound]
        if not sound.any():
            self.alive = self.alive[sound]  # what it wrote before stays, for those who read it
            return "diverged"
        if len(self.ended):
            self._keep(sound)
        return "ok"

    def sample(self) -> None:
        """Write every chain's corpus, as long as anybody reads it."""
        real = self.real[self.alive][:, : self.spec.n] if self.family.reads_real else None
        count = self.counts[self.generation]
        self.corpora[self.generation] = sampled(self.family, self.model, self.chains, count, real)
        self.written[self.generation] = self.alive
        if self.keeps_models:
            self.models[self.generation] = self.model

    def evaluate(self, status: Status) -> None:
        """Measure and record every chain."""
        if len(self.ended):
            self._note(self.ended, {}, "diverged")
        if status == "diverged":
            return
        measured = self.spec.measured
        corpora = self.corpora[self.generation][:, : measured.examples]
        with np.errstate(invalid="ignore", over="ignore"):
            metrics = metrics_of(self.family, self.model, corpora, measured.section)
        metrics |= self.selected
        if measured.section.metrics:
            metrics |= self._added(self.chains, corpora, metrics)
        self._note(self.alive, metrics, "ok", self.filtered)
        self._forget(self.generation)

    def _added(self, chains: Chains, corpora: Array, there: Collection[str]) -> dict[str, Array]:
        """Metrics of other packages, which look at one corpus at a time."""
        names, truth = self.spec.measured.section.metrics, self.family.truth
        rows = [
            added_metrics(names, Examples.full(corpus), truth, seed, chains.generation, there)
            for corpus, seed in zip(corpora, chains.seeds, strict=True)
        ]
        return {column: np.array([row[column] for row in rows]) for column in rows[0]}

    def _keep(self, sound: npt.NDArray[np.bool_]) -> None:
        """Go on with some of the chains."""
        self.alive = self.alive[sound]
        self.model = select(self.model, sound)
        self.selected, self.filtered = select(self.selected, sound), select(self.filtered, sound)
        if not self.members:  # else others may read what those that have ended wrote before
            self.corpora = {then: corpus[sound] for then, corpus in self.corpora.items()}
            self.written = {then: alive[sound] for then, alive in self.written.items()}
        self.pool = None if self.pool is None else (self.pool[0], select(self.pool[1], sound))

    def _forget(self, generation: int) -> None:
        """Drop corpora that nobody reads any more, and those that the pool holds."""
        pooled = {part.origin for part in self.pool[0]} if self.pool is not None and self.whole else set()
        for origin in [
            origin
            for origin in self.corpora
            if self.last_use.get(origin, -1) <= generation or origin in pooled
        ]:
            if origin not in self.read_by_others:
                del self.corpora[origin]

    # --- the training set -----------------------------------------------------------------------------------

    def _training(self, recipe: Recipe, chains: Chains) -> Summary:
        self.selected, self.filtered = {}, {}
        if not is_drawn(recipe, self.spec.n) and not self.filters and self.family.synthetic_weight == 1.0:
            return self._merged(recipe.parts, chains)
        made = [self._drawn(chains, chain) for chain in range(len(chains))]
        found = [chosen.selection.metrics() for _, chosen in made if chosen.selection is not None]
        if found:  # equally many examples arrive in every chain of a cell, so all have the same columns
            self.selected = {name: np.array([row[name] for row in found]) for name in found[0]}
        counts = [chosen.filtered.to_json() for _, chosen in made]
        if any(any(row.values()) for row in counts):
            self.filtered = {
                FILTER_COLUMNS[name]: np.array([row[name] for row in counts]) for name in FILTER_COLUMNS
            }
        return {name: np.concatenate([summary[name] for summary, _ in made]) for name in made[0][0]}

    def _merged(self, parts: tuple[Part, ...], chains: Chains) -> Summary:
        """A training set of whole parts; one that only grows is kept, and the last parts added."""
        # a teacher's examples are new in each generation
        new = any(part.origin == TEACHER for part in parts)
        if self.pool is not None and not new and parts[: len(self.pool[0])] == self.pool[0]:
            known, found = self.pool
        else:
            known, found = parts[:1], self.family.summarise(self._rows(parts[0], chains))
        for part in parts[len(known) :]:
            found = self.family.merge(found, self.family.summarise(self._rows(part, chains)))
        if len(parts) > 1 and not new and (self.pool is None or len(parts) > len(self.pool[0])):
            grows = chains.generation + 1 < len(self.recipes) and any(
                later.parts[: len(parts)] == parts for later in self.recipes[chains.generation + 1 :]
            )
            self.pool = (parts, found) if grows else None
        return found

    def _rows(self, part: Part, chains: Chains) -> Array:
        if part.origin == REAL:
            return self.real[self.alive][:, part.offset : part.offset + part.count]
        if part.origin == TEACHER:
            specs = [self._spec(chains.generation, chain) for chain in range(len(chains))]
            return np.stack([taught(spec, part.count, self.job.truth).values for spec in specs])
        writer, generation = self._writer(part.origin)
        corpus, of = writer.corpora[generation], writer.written[generation]
        if len(of) > len(self.alive):
            corpus = corpus[np.searchsorted(of, self.alive)]
        return corpus[:, part.offset : part.offset + part.count]

    def _spec(self, generation: int, chain: int) -> FitSpec:
        """The fit of a chain that is alive."""
        return self.nodes[self.seeds[self.alive[chain]]][generation].spec.fit

    def _drawn(self, chains: Chains, chain: int) -> tuple[Summary, Chosen]:
        """One chain's training set, where it is drawn at random or filtered."""
        spec = self._spec(chains.generation, chain)
        chosen = training_examples(spec, self.job.truth, Held(self, chain))
        drawn, parts = chosen.drawn, []
        origins = list(dict.fromkeys(drawn.origin.tolist()))
        for origin in origins:
            rows = chosen.found[origin].values[drawn.index[drawn.origin == origin]]
            parts.append(self.family.summarise(rows[None]))
        sizes = [int((drawn.origin == origin).sum()) for origin in origins]
        return fold_origins(self.family, parts, origins, sizes), chosen

    def corpus(self, chain: int, origin: int, count: int) -> Array:
        """The first examples of a corpus that a chain reads."""
        writer, generation = self._writer(origin)
        place = np.searchsorted(writer.written[generation], self.alive[chain])
        found: Array = writer.corpora[generation][int(place)]
        if len(found) < count:
            found = _more(writer, writer.seeds[self.alive[chain]], generation, count)
        return found[:count]

    # --- records --------------------------------------------------------------------------------------------

    def _note(
        self,
        alive: npt.NDArray[np.int64],
        metrics: Mapping[str, Array],
        status: Status,
        beside: Mapping[str, Array] = MappingProxyType({}),
    ) -> None:
        """One row per chain; the status says where a metric is not finite. Null is what it does not have."""
        generation = self.generation
        finite = np.ones(len(alive), dtype=bool)
        columns: dict[str, Any] = {}
        for name, values in metrics.items():
            finite &= np.isfinite(values)
            columns[name] = pa.array(values)
        nodes = [self.nodes[self.seeds[i]][generation] for i in alive]
        before = [self.nodes[self.seeds[i]][generation - 1].fit if generation else None for i in alive]
        identity: dict[str, Any] = {
            "place": pa.array(alive),
            GENERATION: pa.array(np.full(len(alive), generation)),
            "status": pa.array(np.where(finite, status, "degenerate").tolist(), pa.string()),
            "fit": pa.array([node.fit for node in nodes], pa.string()),
            "corpus": pa.array([node.corpus for node in nodes], pa.string()),
            "evaluation": pa.array([node.evaluation for node in nodes], pa.string()),
            "parent": pa.array(before, pa.string()),
        }
        match self.job.weights:
            case "last":
                kept = generation in (0, self.spec.generations)
            case weights:
                kept = weights == "all"
        if kept and metrics:
            for name in self.family.parameters:
                flat = self.model[name].reshape(len(alive), -1)
                columns[PARAMETERS + name] = pa.FixedSizeListArray.from_arrays(
                    pa.array(flat.reshape(-1)), flat.shape[1]
                ).cast(pa.list_(pa.float64()))
        columns |= {name: pa.array(values) for name, values in beside.items()}
        self.pieces.append(pa.table({**identity, **columns}))

    def rows(self, chains: Sequence[Chain]) -> pa.Table:
        """All rows, with the chains' keys and seeds."""
        whole = pa.concat_tables(self.pieces, promote_options="default")
        place = whole["place"].to_numpy()
        keys, seeds = np.array([chain.key for chain in chains]), np.array(self.seeds)
        whole = whole.drop_columns(["place"]).add_column(
            0, CHAIN, pa.array(keys[place].tolist(), pa.string())
        )
        return whole.add_column(1, "seed", pa.array(seeds[place]))


def _more(writer: CellRun, seed: int, generation: int, count: int) -> Array:
    """A longer corpus of the chain that wrote it."""
    real = writer.real[:, : writer.spec.n] if writer.family.reads_real else None
    writer.corpora[generation] = sampled(
        writer.family, writer.models[generation], Chains((seed,), generation), count, real
    )
    rows: Array = writer.corpora[generation][0]
    return rows


@dataclass(frozen=True)
class Held:
    """Where the training examples of one chain come from: all in memory."""

    cell: CellRun
    chain: int

    def real(self, count: int) -> Examples:
        """The first real examples."""
        return Examples.full(self.cell.real[self.cell.alive[self.chain]][:count])

    def fixed(self, content: str) -> Examples:
        """Fixed corpora are refused for bundled chains, so there are none."""
        raise LearnerError(f"{content}: no fixed corpus has examples of this kind")

    def corpus(self, origin: int, count: int) -> Examples:
        """The first examples of a corpus."""
        return Examples.full(self.cell.corpus(self.chain, origin, count))
