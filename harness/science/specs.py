"""What a generation is: the specs of its fit, its corpus and its evaluation.

A spec holds sections of the configuration as they are executed, and its key is the hash of what they say. The
code that fits, samples and evaluates is given specs and reads nothing else of the configuration, so what is
not in a key cannot change a result. Fields that say where something lies (a path, the name of a data set) are
left out of the sections; what lies there is in the key by its content.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

from harness.components import FILTERS
from harness.config.schema import Evaluate, Section, science
from harness.records import REAL, Recipe
from harness.science.keys import KEY_FORMAT, key_of
from harness.section import per_prompt
from harness.streams import stream_seed

Prompts = Literal["none", "real", "previous", "fresh"]
"""What the examples of a corpus continue: nothing, the real training examples, those of the generation
before, or real ones that no generation has seen."""


S = TypeVar("S", bound=Section)


def blank(section: S, *names: str) -> S:
    """A section without some of its fields: they are not there, and whoever reads one is told (`Section`).

    A dotted name is a field of a section inside; names of fields that there are not are passed over.
    """
    emptied: dict[str, Any] = {}
    absent: list[str] = []
    for name in names:
        head, _, rest = name.partition(".")
        info = type(section).model_fields.get(head)
        if info is not None and rest:
            inside = emptied.get(head, getattr(section, head))
            emptied[head] = inside if inside is None else blank(inside, rest)
        elif info is not None:
            absent.append(head)
    found = section.model_copy(update=emptied)
    for name in absent:
        found.__dict__.pop(name, None)
    return found


@dataclass(frozen=True)
class Versioned:
    """A section as it is executed, with the version of the code that reads it.

    Attributes:
        section: The section, of whatever kind its code is for; fields that other specs hold are not there
            (`blank`).
        version: Of its code.
    """

    section: Any
    version: int | str

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """What enters keys."""
        return {**science(self.section), "version": self.version}


@dataclass(frozen=True)
class DataSpec:
    """Real data, or a fixed teacher, by content.

    Attributes:
        kind: Of data.
        section: The section, of whatever kind, without the fields that say where the data come from.
        identity: What enters keys.
        folder: Name of their folder under ``data`` in the store; None for what a section describes
            altogether.
    """

    kind: str
    section: Any
    identity: Mapping[str, Any]
    folder: str | None = None


@dataclass(frozen=True)
class Measured:
    """What an evaluation measures.

    Attributes:
        section: The section; fields that this learner's evaluation does not read are not there.
        identity: What enters keys: versions of the metrics, and the fields that are read.
        examples: How many examples of the corpus are read.
        others: Other real texts by name, as the hash of their content.
        judges: Filters whose rewards are measured.
    """

    section: Evaluate
    identity: Mapping[str, Any]
    examples: int
    others: Mapping[str, str] = field(default_factory=dict)
    judges: tuple[Versioned, ...] = ()


@dataclass(frozen=True, slots=True)
class FitSpec:
    """One fit: everything that its weights depend on.

    Attributes:
        data: The real data.
        learner: The learner, without what concerns sampling.
        init: ``scratch``, ``pretrained`` or ``previous``; None for a learner without weights to start from.
        seed: The chain's seed.
        generation: Index, from 0.
        recipe: The training set.
        corpora: Origin (a generation) to the key of the corpus that is read, in the recipe's order.
        filters: The filters that this training set goes through.
        writer: The fixed teacher that writes synthetic examples, where the recipe has such; else None.
        parent: Key of the fit whose weights it starts from; None unless ``init`` is ``previous``.
        reference: Key of the fit whose weights it compares with, where that is generation 0's.
        base: Key of generation 0's fit, where what is fitted is stored as what it adds to those weights.
        key: The hash of `to_json`.
    """

    data: DataSpec
    learner: Versioned
    init: str | None
    seed: int
    generation: int
    recipe: Recipe
    corpora: Mapping[int, str] = field(default_factory=dict)
    filters: tuple[Versioned, ...] = ()
    writer: DataSpec | None = None
    parent: str | None = None
    reference: str | None = None
    base: str | None = None
    key: str = field(init=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """What is hashed, and stored beside the fit."""
        found: dict[str, Any] = {
            "format": KEY_FORMAT,
            "data": self.data.identity,
            "learner": {**self.learner.identity, **({"init": self.init} if self.init else {})},
            "seed": self.seed,
            "generation": self.generation,
        }
        if self.generation:
            parts = {part.origin: part for part in self.recipe.parts}
            corpora: list[dict[str, Any]] = []
            for origin, key in self.corpora.items():
                # filters may learn from generation 0's: their sections say from how much of it
                part = parts.get(origin)
                read = {} if part is None else {"examples": part.count}
                if part is not None and part.offset:
                    read["offset"] = part.offset
                corpora.append({"corpus": key, **read})
            filters = {"filters": [part.identity for part in self.filters]} if self.filters else {}
            found["training_set"] = {**self.recipe.spec, "corpora": corpora, **filters}
        if self.parent is not None:
            found["parent"] = self.parent
        if self.reference is not None:
            found["reference"] = self.reference
        if self.base is not None:
            found["base"] = self.base
        return found

    def __post_init__(self) -> None:
        """Compute the key."""
        # What a cell gives to its specs is all in those of generations 0 and 1, which are checked.
        object.__setattr__(self, "key", key_of(self.to_json(), checked=self.generation > 1))


@dataclass(frozen=True, slots=True)
class CorpusSpec:
    """What a generation samples; example i depends on this and on i alone.

    Attributes:
        fit: The model that writes it.
        sampling: How.
        prompts: What its examples continue.
        previous: Key of the corpus that they continue; None unless ``prompts`` is ``previous``.
        judge: Key of the fit that is asked about them, where another than the one that writes them is.
        key: The hash of `to_json`.
    """

    fit: FitSpec
    sampling: Versioned
    prompts: Prompts = "none"
    previous: str | None = None
    judge: str | None = None
    key: str = field(init=False, compare=False)

    def prompt_of(self, example: int, n: int) -> int | None:
        """The place of the example that one of this corpus continues; None where it continues nothing.

        Args:
            example: Its place in this corpus.
            n: Real training examples; prompts begin again where there are too few.
        """
        if self.prompts == "none":
            return None
        behind = n * (self.fit.generation + 1) if self.prompts == "fresh" else 0
        return behind + example // per_prompt(self.sampling.section) % n

    def to_json(self) -> dict[str, Any]:
        """What is hashed, and stored beside the corpus."""
        prompts = {} if self.previous is None else {"prompts": self.previous}
        judge = {} if self.judge is None else {"judge": self.judge}
        own = {"format": KEY_FORMAT, "fit": self.fit.key, "sampling": self.sampling.identity}
        return {**own, **prompts, **judge}

    def __post_init__(self) -> None:
        """Compute the key."""
        object.__setattr__(self, "key", key_of(self.to_json(), checked=self.fit.generation > 1))


@dataclass(frozen=True, slots=True)
class EvaluationSpec:
    """What is measured of a generation; its key is the generation's identity.

    Attributes:
        corpus: The corpus, and with it the model.
        generation_0: Key of generation 0's fit, whose model scores the corpus too.
        measured: What is measured.
        learned: Key of generation 0's corpus, where a judge has learned from it.
        key: The hash of `to_json`.
    """

    corpus: CorpusSpec
    generation_0: str
    measured: Measured
    learned: str | None = None
    key: str = field(init=False, compare=False)

    @property
    def fit(self) -> FitSpec:
        """The model."""
        return self.corpus.fit

    def to_json(self) -> dict[str, Any]:
        """What is hashed, and stored beside the evaluation."""
        return {
            "format": KEY_FORMAT,
            "fit": self.fit.key,
            "corpus": self.corpus.key,
            "generation_0": self.generation_0,
            "evaluation": self.measured.identity,
            **({} if self.learned is None else {"learned": self.learned}),
        }

    def __post_init__(self) -> None:
        """Compute the key."""
        object.__setattr__(self, "key", key_of(self.to_json(), checked=self.fit.generation > 1))


@dataclass(frozen=True)
class Called:
    """What ids of chains, and keys of bundled ones, hold of a cell besides the parts of its specs.

    Attributes:
        regime: The regime.
        init: Where its fits start, as it is written; None where its learner has no such field.
        writer: Who writes for it, where that is not the chain of another cell.
        generation: The one generation of another cell that it reads; None for all others.
        evaluation: What its evaluations are asked for, with other texts by content.
        filters: The filters, those too that let everything pass.
        exchange: Who reads whom in its population.
    """

    regime: Versioned
    init: str | None
    writer: str | Mapping[str, Any]
    generation: int | None
    evaluation: Mapping[str, Any]
    filters: Sequence[Mapping[str, Any]]
    exchange: str | Sequence[Sequence[float]] = ""


@dataclass(frozen=True)
class CellSpec:
    """What the chains of a cell have in common: the parts of their specs.

    Attributes:
        called: What else of it is in the ids of its chains.
        data: The real data.
        learner: The learner, without what concerns sampling.
        sampling: How its models write.
        measured: What is measured.
        filters: The filters.
        recipe: Generation to training set.
        init: Where generation 0 starts from, and later ones too unless ``init_previous``; None for a learner
            without weights.
        init_previous: A generation starts from the weights of the one before.
        prompts: What examples continue; in generation 0, which has no previous one, real ones.
        n: Real training examples.
        generations: Index of the last generation.
        cost: Relative cost of one training example (for priorities).
        source: Index of the cell whose chain writes the synthetic examples, with the same seed; None for the
            chain itself.
        fixed: The hash of a fixed corpus that writes them instead; None for other sources.
        teacher: The fixed teacher that writes them instead; None for other sources.
        first: The learner of generation 0, where later ones have another.
        members: Indices of the cells of its population, itself among them; none where it is in none.
        number: Its place among them.
        arrives: The population's time of its generation 0.
        anchored: Whether fits after generation 0 compare with its weights.
        compared: Whether what they learn from are comparisons, of which real examples are no part.
        based: Whether they are stored as what they add to its weights.
        judge: Whose model is asked about what generations write, where it is not the one that writes.
    """

    called: Called
    data: DataSpec
    learner: Versioned
    sampling: Versioned
    measured: Measured
    filters: Sequence[Versioned]
    recipe: Callable[[int], Recipe]
    init: str | None
    init_previous: bool
    prompts: Prompts
    n: int
    generations: int
    cost: float = 1.0
    source: int | None = None
    fixed: str | None = None
    teacher: DataSpec | None = None
    first: Versioned | None = None
    members: tuple[int, ...] = ()
    number: int = 0
    arrives: int = 0
    anchored: bool = False
    compared: bool = False
    based: bool = False
    judge: Literal["initial", "previous"] | None = None

    def seed(self, seed: int) -> int:
        """The seed of its chain: members of a population have their own, the first one the grid's."""
        return stream_seed(seed, 0, "member", self.number) if self.number else seed

    def sampled(self, generation: int) -> Versioned:
        """How a generation writes: the section's ``at`` says it, where that differs between generations."""
        section = self.sampling.section
        here = section.at(generation) if hasattr(section, "at") else section
        return self.sampling if here is section else Versioned(here, self.sampling.version)

    def used_filters(self, recipe: Recipe) -> tuple[Versioned, ...]:
        """The filters that a training set goes through.

        All judge a pool; where else it is all real, only those that err at real examples.
        """
        if recipe.take is not None:
            return tuple(self.filters)
        synthetic = any(part.origin != REAL for part in recipe.parts)
        kinds = (FILTERS[str(item.identity["kind"])] for item in self.filters)
        used = zip(self.filters, kinds, strict=True)
        return tuple(item for item, kind in used if synthetic or kind.of == "training sets")

    def labelled(self, recipe: Recipe) -> int:
        """How many first examples of generation 0 are read for those that filters learn from; 0 for none."""
        if recipe.take is None:
            rows = learned_from([item.section for item in self.used_filters(recipe)], self.n)
            return 0 if rows is None else rows.stop
        asked = max(
            (FILTERS[str(item.identity["kind"])].labelled(item.section) for item in self.filters), default=0
        )
        return recipe.arriving + asked if asked else 0

    def drawn(self, recipe: Recipe, count: int) -> int:
        """How many examples of a corpus are read where so many may pass, with filters that draw no more."""
        kinds = [(FILTERS[str(item.identity["kind"])], item.section) for item in self.used_filters(recipe)]
        if not any(kind.short for kind, _ in kinds):
            return count
        return math.ceil(count / math.prod(kind.passing(section) for kind, section in kinds) - 1e-9)

    def opposed(self, recipe: Recipe) -> int:
        """How many first examples of generation 0 are read for pairs of more than the last one's."""
        filters = [] if recipe.take is not None else self.used_filters(recipe)
        used = any(FILTERS[str(item.identity["kind"])].opposed(item.section)[1] for item in filters)
        return max(part.end for part in recipe.parts) if used else 0

    @property
    def learned(self) -> int:
        """How many first examples of generation 0 are read for judges that learn from some; 0 for none."""
        rows = learned_from([item.section for item in self.measured.judges], self.n)
        return 0 if rows is None else rows.stop


def learned_from(sections: Sequence[Any], n: int) -> slice | None:
    """Which examples of generation 0 filters of corpora learn from; None where none does.

    Args:
        sections: Those of the filters; one of them learns at most.
        n: Real training examples.
    """
    for section in sections:
        count, before = FILTERS[section.kind].learns(section)
        if count:
            return slice(n * before, n * before + count)
    return None
