"""Sections of regimes, sources, filters and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from harness.components import FILTERS, METRICS, REGIMES
from harness.components.filters import DeduplicateFilter, LabelFilter, RepetitionFilter, VerifierFilter
from harness.components.tasks import TaskMeasure
from harness.registry import check_names
from harness.section import Place, PositiveInt, Section, Share, since

if TYPE_CHECKING:
    RegimeKind = str
else:
    RegimeKind = Literal[tuple(REGIMES)]


class CorpusSource(Section):
    """Synthetic examples from a fixed corpus that someone else's model wrote."""

    corpus: Place
    """A .txt, .jsonl or .parquet file, or a folder of them; ``hf:NAME[/CONFIG]``, of which the split
    ``train`` is taken; or an embedded source, of which the training side is taken."""


class CellSource(Section):
    """Synthetic examples from another chain of the grid, with the same seed."""

    cell: Annotated[dict[str, Any], Field(min_length=1)]
    """Axes and their values; an axis that is not named has this cell's own value, regime.source is ``self``
    unless named."""
    generation: Annotated[int, Field(ge=0)] | None = since(None)
    """A fixed teacher: every generation reads what this one wrote; the same generation as the chain's own
    when null."""


class ModelSource(Section):
    """Synthetic examples from a fixed teacher."""

    model: Annotated[dict[str, Any], Field(min_length=1)] | Annotated[Place, Field(min_length=1)]
    """For text: a pretrained model, which writes one corpus as it is; for analytic data: fields of ``data``
    in which the teacher differs from the truth, and new examples each generation."""


_SOURCES: Mapping[str, type[Section]] = {"corpus": CorpusSource, "cell": CellSource, "model": ModelSource}


def _form_of(value: Any) -> str | None:
    """The tag of a source, by the fields that are given; None where these are of none, or of several."""
    if isinstance(value, Mapping):
        named = [name for name in _SOURCES if name in value]
        if not named and value.keys() & CellSource.model_fields.keys():
            named = ["cell"]
        return f"from a {named[0]}" if len(named) == 1 else None
    found = [name for name, section in _SOURCES.items() if isinstance(value, section)]
    return f"from a {found[0]}" if found else "self" if value == "self" else None


if TYPE_CHECKING:
    Source = Literal["self"] | CorpusSource | CellSource | ModelSource
else:
    _FORMS = (Annotated[section, Tag(f"from a {name}")] for name, section in _SOURCES.items())
    Source = Annotated[
        Union[(Annotated[Literal["self"], Tag("self")], *_FORMS)],  # noqa: UP007 (made of a list)
        Discriminator(
            _form_of,
            custom_error_type="form",
            custom_error_message="one of several forms",
            custom_error_context={"forms": "self, {corpus: FILE}, {cell: {AXIS: VALUE}}, {model: NAME}"},
        ),
    ]


@dataclass(frozen=True)
class Writer:
    """Who writes a chain's synthetic examples: the chain itself where nothing else is given.

    Attributes:
        cell: Axes and their values of another chain of the grid.
        generation: The only one of its generations that is read.
        corpus: A fixed corpus.
        pretrained: A pretrained model, which writes one corpus.
        changes: Fields of ``data`` in which a fixed teacher differs from the truth.
    """

    cell: Mapping[str, Any] | None = None
    generation: int | None = None
    corpus: str | None = None
    pretrained: str | None = None
    changes: Mapping[str, Any] | None = None

    @property
    def is_fixed(self) -> bool:
        """Whether all generations read what was written once, or what one teacher writes."""
        return (self.generation, self.corpus, self.pretrained, self.changes) != (None,) * 4


class Refresh(Section):
    """Every k-th generation trains on real data alone."""

    every: PositiveInt | None = since(None)
    """Generations k, 2k, 3k, ..."""
    at: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = since(None)
    """Or these generations."""
    init: Literal["scratch", "pretrained", "previous"] | None = since(None)
    """Where a refresh starts from; the learner's init when null."""
    examples: PositiveInt | None = since(None)
    """Real examples that a refresh trains on; data.num_examples when null."""

    @model_validator(mode="after")
    def _when(self) -> Refresh:
        if (self.every is None) == (self.at is None):
            raise ValueError("give exactly one of every or at")
        return self


class Growth(Section):
    """Training sets that become larger from generation to generation."""

    factor: Annotated[float, Field(gt=1, le=100)] | None = since(None)
    """Each has so many times the examples of the one before: n factor^g."""
    power: Annotated[float, Field(gt=0, le=10)] | None = since(None)
    """Or n (g + 1)^power."""

    @model_validator(mode="after")
    def _one(self) -> Growth:
        if (self.factor is None) == (self.power is None):
            raise ValueError("give exactly one of factor or power")
        return self


class Regime(Section):
    """How a generation's training set is built (generation 0 always trains on the real examples)."""

    kind: RegimeKind
    synthetic_ratio: Share | None = since(None)
    """Share of the training examples that models wrote; replace, augment and fresh_real need it."""
    real_part: Literal["resample", "fixed"] = since("resample")
    """replace: a new random subset of the real examples each generation (the default), or the same one."""
    growth: Growth | None = since(None)
    """replace: generation g trains on more than the n examples of generation 0; on n when null."""
    pool: Annotated[float, Field(gt=0, le=1000)] = since(2.0)
    """stream: examples that arrive in each generation, as a multiple of the real training examples."""
    history: Literal["latest", "all"] = since("latest")
    """stream: what can be trained on is what has just arrived, or everything that ever has (the real training
    examples too)."""
    anchor: Share = since(0.0)
    """stream: share of the training examples that are taken from the real training examples, which are known
    to be real."""
    select: Literal["filters", "random", "oracle"] = since("filters")
    """stream: what decides: the filters (the default), or, as controls, chance, or who knows what is real;
    both keep as many as the filters would."""
    source: Source = since("self")
    """Who wrote the synthetic examples: the chain itself, a fixed corpus, another chain of the grid, or a
    fixed teacher."""
    refresh: Refresh | None = since(None)
    budget: Literal["examples", "tokens", "steps"] = since("examples")
    """Held equal across regimes: passes over the examples (default), or the tokens seen or optimizer steps of
    as many passes over generation 0's."""

    @model_validator(mode="after")
    def _used_fields(self) -> Regime:
        found = REGIMES[self.kind]
        if found.uses_ratio and self.synthetic_ratio is None:
            raise ValueError(f"{self.kind} needs synthetic_ratio, a number from 0 to 1")
        if not found.uses_ratio and self.synthetic_ratio is not None:
            using = ", ".join(kind for kind in REGIMES if REGIMES[kind].uses_ratio)
            raise ValueError(f"{self.kind} does not use synthetic_ratio (it follows); only {using} do")
        for name in ("real_part", "growth", "pool", "history", "anchor", "select"):
            if name in self.model_fields_set and name not in found.uses:
                using = ", ".join(kind for kind in REGIMES if name in REGIMES[kind].uses)
                raise ValueError(f"{self.kind} does not use {name}; only {using} does")
        if self.anchor == 1:
            raise ValueError("anchor must be below 1; else nothing of what arrives is trained on")
        if self.history == "all" and self.writer.is_fixed:
            raise ValueError(
                "history: all pools a corpus of every generation; a fixed source goes with latest"
            )
        if self.kind == "augment" and self.synthetic_ratio == 1:
            raise ValueError("augment keeps all real examples, so synthetic_ratio must be below 1")
        if self.writer.is_fixed and found.pools:
            allowed = ", ".join(kind for kind in REGIMES if not REGIMES[kind].pools)
            raise ValueError(
                f"{self.kind} pools a corpus of every generation; a fixed source goes with {allowed}"
            )
        return self

    @property
    def reads_all(self) -> bool:
        """Whether a training set reads the corpora of all earlier generations."""
        return REGIMES[self.kind].pools or self.history == "all"

    @property
    def writer(self) -> Writer:
        """Who writes the synthetic examples."""
        match self.source:
            case CellSource(cell=cell, generation=generation):
                return Writer(cell=cell, generation=generation)
            case CorpusSource(corpus=corpus):
                return Writer(corpus=corpus)
            case ModelSource(model=str(name)):
                return Writer(pretrained=name)
            case ModelSource(model=changes):
                return Writer(changes=changes)  # type: ignore[arg-type]
        return Writer()


if TYPE_CHECKING:
    Filter = DeduplicateFilter | RepetitionFilter | VerifierFilter | LabelFilter
else:
    _SECTIONS = Union[tuple(FILTERS[kind].section for kind in FILTERS)]  # noqa: UP007 (made of a list)
    Filter = Annotated[_SECTIONS, Field(discriminator="kind")]


class Drift(Section):
    """How far a language model has moved from generation 0's, on fixed real text."""

    examples: PositiveInt = since(64)
    """Test examples that are read: the first so many."""


class Evaluate(Section):
    """What is measured in every generation."""

    prompts: Annotated[int, Field(ge=0, le=1000)] | tuple[Annotated[str, Field(min_length=1)], ...] = since(8)
    """Texts that every generation continues, or how many to take from the test split."""
    examples: PositiveInt = since(1024)
    """The metrics of the corpus read its first this many examples (at most as many as there are real
    ones)."""
    perplexity_batch: PositiveInt = since(8)
    """Test sequences in one batch of ``test/perplexity_batch_mean``."""
    max_duplicate_share: Share | None = since(None)
    """A chain fails where more of a generation's examples than this equal an earlier one; null never
    fails."""
    ranges: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], tuple[float, float]] = since({})
    """Names of ranges of the first coordinate, each from (included) to (excluded): ``share/<name>`` is the
    corpus's share in it."""
    others: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Annotated[Place, Field(min_length=1)]
    ] = since({})
    """Other real texts by name, each a source as in ``data.source``: ``other/<name>/nll`` is the model's on
    their test side; of prompts, ``other/<name>/forgotten`` is its rise from generation 0's (and, with
    ``task.pretrained``, ``other/<name>/forgotten_pretrained`` from the pretrained model's)."""
    groups: Annotated[str, Field(min_length=1)] | None = since(None)
    """Field or column of the data that names each document's group: ``test/nll/<group>`` is the NLL on the
    test side of each. Of images ``data.label_field``: ``vae/elbo_<class>`` on the test images of each
    class."""

    task: TaskMeasure = since(TaskMeasure(), introduced={})
    """data.source: task: what is measured on test prompts."""
    drift: Drift | None = since(None)
    """Of language models: entropy of what is predicted on real test text, its KL divergence from generation
    0's, and how alike the representations are; null measures none of it."""
    metrics: tuple[str, ...] = since(())
    """``survival``: which outcomes are still written, by how often the real examples hold them; or metrics of
    other packages, by the names of their entry points (docs/plugins.md)."""

    @field_validator("metrics")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(value, METRICS)

    @field_validator("ranges")
    @classmethod
    def _ordered(cls, value: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for name, (low, high) in value.items():
            if low >= high:
                raise ValueError(f"{name}: found [{low}, {high}], the first number must be below the second")
        return value
