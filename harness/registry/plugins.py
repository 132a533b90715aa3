"""What is known of a kind: an object of one of these classes, the harness's own or a package's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from harness.records import Examples, Part
from harness.section import DataSection, HubItem, PositiveInt, Seconds, Section

Count = Annotated[int, Field(ge=0)]
Passing = Annotated[float, Field(gt=0, le=1)]
Cost = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
"""Seconds; 30 years of one example are a mistake, and sums of what is larger are no finite numbers."""
Version = Annotated[int, Field(ge=1)]
"""Part of keys as a whole number: what is none would be in them as the text that it is written as."""
EntryPointGroup = Literal[
    "learners", "filters", "regimes", "data", "metrics", "objectives", "tasks", "trackers"
]


@dataclass(frozen=True)
class Metric:
    """One column of the records.

    Attributes:
        name: The column; ``<...>`` stands for a part that the configuration or the data name.
        label: For people, without its unit.
        unit: Empty for a number without one.
        worse: Which way collapse moves it; empty where it has no one way.
        source: Who defined it, or reported it first for collapse.
        shown: Whether a run's lines show it.
        drawn: Whether a report draws it.
        needs: Field of a study without which no record has it, dotted (``evaluate.drift``); where it is a
            mapping, its names are the open parts. Claims are checked against it.
    """

    name: str
    label: str
    unit: str = ""
    worse: Literal["higher", "lower", ""] = ""
    source: str = ""
    shown: bool = False
    drawn: bool = True
    needs: str = ""

    @property
    def group(self) -> str:
        """The part of the name before the stroke."""
        return self.name.partition("/")[0]

    @property
    def title(self) -> str:
        """The label with its unit, for an axis."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


@dataclass(frozen=True)
class Known:
    """What a filter of a package may know besides the examples.

    Attributes:
        real: The real distribution (`harness.data.RealData`).
        seed: The chain's seed.
        generation: The generation that wrote the examples; of a pool, the one that trains on it.
        uniform: One number in [0, 1) per example, the same however long the corpus is: for filters that err.
        take: How many examples of a pool are trained on; 0 elsewhere.
        labelled: For filters of pools that ask for them: real examples, and some that generation 0 wrote and
            that arrive in no pool.
        learned: For filters of corpora that ask for them: examples that generation 0 wrote for them.
        told: For filters that keep one of several (`FilterPlugin.chooses`): they tell it once, of each
            example that they keep, in order, whether all from which it was chosen scored alike.
        before: For filters of pools: the sections of those of its kind that come before it in the cell.
    """

    real: Any
    seed: int
    generation: int
    uniform: npt.NDArray[np.float64]
    take: int = 0
    labelled: tuple[Examples, Examples] | None = None
    learned: Examples | None = None
    told: Callable[[npt.NDArray[np.bool_]], None] = lambda alike: None
    before: Sequence[Any] = ()


@dataclass(frozen=True)
class FilterPlugin:
    """A filter.

    Attributes:
        section: Its section, with a ``kind``; its docstring is its line in ``harness list filters``.
        version: Part of every key; raise it when other examples pass.
        keep: Which examples pass, or ``module:function``; one truth value each. Of corpora: from the section,
            the examples that earlier filters left, and what is `Known`; whether an example passes may depend
            on those before it, never on those behind it. Of training sets: from the section, the origin of
            every example, and one number in [0, 1) for each. Of pools: as of corpora, and it may also give
            positions, in order, of which one may stand there several times.
        reads: Kinds of data that it can look at (``text``, ``gaussian``, ...); empty for all.
        of: What it looks at: corpora as they are read; training sets, in which it does not know what is
            real; or pools, which only some regimes have (`RegimePlugin.selects`) and all filters judge there.
        labelled: How many labelled examples of generation 0 it learns from, real and synthetic ones each, by
            its section.
        learns: Of corpora: how many examples that generation 0 wrote it learns from (`Known.learned`), by its
            section, and how many there are before them for each real training example: what is read for
            training sets that are as large as that of generation 0. It learns the same in every generation.
        facts: ``module:function`` from the section and what is `Known` to what records say of what it has
            learned, number by column; empty for nothing. Evaluations ask it.
        opposed: Of corpora with rewards: from its section to ``module:function`` that pairs what a generation
            wrote with what generation 0 wrote to the same prompts, or with solutions, in the place of
            ``keep``: from the section, both with their rewards and the solutions of the prompts
            (`harness.tasks.judges.opposed`); empty where it does not. And whether generation 0's is read.
        reference: How many of the chain's first real examples it reads (`Known.real`), by its section.
        check: Raises ValueError where the section does not fit a ``data`` section of some kind.
        passing: The share of examples that passes by its section alone, whatever they are.
        none: Why its section lets nothing of some ``data`` pass, whatever is drawn; else empty.
        neutral: Whether its section lets everything pass, whatever there is: a cell is as without it then.
        leaves: Of pools: how many of so many examples it leaves at most, by its section alone.
        drops: Of training sets: whether it drops every real example, and every synthetic one, by its section
            alone.
        chooses: Whether it keeps one of several examples, and says of how many it could not tell them apart
            (`Known.told`), which fits and bundles record (`harness.records.FilterCounts`).
        rewards: ``module:function`` that scores examples (as ``keep`` is called), one number each, before it
            decides: the note ``reward`` of what it decides about, and of what is trained on. Where there is
            one, evaluations know it, and measure it.
        together: Of filters with rewards: how many completions of one prompt, in a row, it looks at together,
            by its section; None where it judges each alone.
        choice: Of filters with rewards: how it chooses among them, by its section, in the word that
            objectives ask for (`ObjectivePlugin.chooses`); empty where none of these fits.
        elsewhere: Whether it has learned from other data than the study's, by its section: tracks allow that
            or not (``limits.classifiers``).
        knows: Whether it scores examples by the true distribution, from its settings as a board's entry has
            them: fields that are left out are not there.
        short: Fewer examples than a training set asks for may pass; it is shorter then, and no more are
            written.
        decides: ``module:function`` from the section, examples with their rewards, which of them pass
            (positions) and the real data to what is wrong with how it decides, as fits record it
            (a key of `harness.components.judging.DECISIONS`, or words) or empty. Empty where nothing is ever
            wrong.
        foreseen: The same from its section alone: what it decides whatever there is.
        votes: From its section to whether it compares final answers of completions, in which what finds these
            may fail.
        settle: ``module:function`` from the section and a cell's configuration to the section as it is
            executed, where some of it follows from the rest.
        locate: ``module:function`` from the section and its field in the configuration, for messages, to the
            section with the content of what it names, by which keys know that.
        hub_items: From the section and its field to what it needs of the hub.
        raised: By how much the version is higher in keys, where other examples pass for some sections alone:
            from the section as it is executed and those of the filters of its kind that come before it in the
            cell.
    """

    section: type[Section]
    version: Version
    keep: Callable[[Any, Any, Any], npt.NDArray[np.bool_]] | str
    reads: Collection[str] = ()
    of: Literal["corpora", "training sets", "pools"] = "corpora"
    labelled: Callable[[Any], Count] = lambda section: 0
    learns: Callable[[Any], tuple[Count, Count]] = lambda section: (0, 1)
    facts: str = ""
    opposed: Callable[[Any], tuple[str, bool]] = lambda section: ("", False)
    reference: Callable[[Any], Count] = lambda section: 0
    check: Callable[[Any, Any, str], None] = lambda section, data, kind: None
    passing: Callable[[Any], Passing] = lambda section: 1.0
    none: Callable[[Any, Any], str] = lambda section, data: ""
    neutral: Callable[[Any], bool] = lambda section: False
    leaves: Callable[[Any, int], Count] = lambda section, count: count
    drops: Callable[[Any], tuple[bool, bool]] = lambda section: (False, False)
    chooses: bool = False
    rewards: str = ""
    together: Callable[[Any], PositiveInt | None] = lambda section: None
    choice: Callable[[Any], str] = lambda section: ""
    elsewhere: Callable[[Any], bool] = lambda section: False
    knows: Callable[[Mapping[str, Any]], bool] = lambda given: False
    short: bool = False
    decides: str = ""
    foreseen: Callable[[Any], str] = lambda section: ""
    votes: Callable[[Any], bool] = lambda section: False
    settle: str = ""
    locate: str = ""
    hub_items: Callable[[Any, str], list[HubItem]] = lambda section, field: []
    raised: Callable[[Any, Sequence[Any]], Count] = lambda section, before: 0


@dataclass(frozen=True)
class RegimePlugin:
    """A way to build training sets.

    Attributes:
        rule: The parts of a generation's training set and, where only some of them are drawn, how many; from
            the regime's section, the number of real examples and the generation (1 and up). Its docstring is
            its line in ``harness list regimes``.
        version: Part of every key; raise it when other sets come out.
        uses_ratio: Whether ``synthetic_ratio`` has to be given.
        pools: Whether it reads corpora of generations before the last, so that no fixed source can stand in
            for them.
        unseen: Whether its real examples have to be ones that no earlier generation has seen.
        selects: Whether what arrives is an unlabelled pool (`Part.pooled`), in which filters decide; then
            ``how many`` is how many of those that pass are trained on.
        uses: Fields of the regime that it uses, besides ``synthetic_ratio`` and those that all use.
    """

    rule: Callable[[Any, int, int], tuple[tuple[Part, ...], int | None]]
    version: Version
    uses_ratio: bool = False
    pools: bool = True
    unseen: bool = False
    selects: bool = False
    uses: Collection[str] = ()


NUMBERS = ("gaussian", "mixture", "shape", "array")
"""Kinds of data that are rows of numbers."""


def moments_numbers(section: Any, size: FitSize) -> int:
    """Numbers that a learner of moments holds: a scatter matrix and three that are made from it."""
    return 4 * size.width**2


def moments_seconds(width: int) -> float:
    """Rough seconds per training example of ``width`` numbers, for a learner that needs moments only."""
    return 1e-7 + 1.2e-8 * width + 1.5e-10 * width**2


@dataclass(frozen=True)
class FitSize:
    """What a chain's fits are of, in numbers of examples.

    Attributes:
        width: Numbers in an example.
        real: Real training examples of generation 0.
        largest: Those of the largest training set.
        test: Test examples.
    """

    width: int
    real: int
    largest: int
    test: int


@dataclass(frozen=True)
class LearnerPlugin:
    """A learner: most are a family of cheap models (`harness.learners.analytic.Family`).

    Attributes:
        section: Its section, with a ``kind``; its docstring is its line in ``harness list learners``.
        version: Part of every key; raise it when it fits or samples otherwise.
        reads: Kinds of data that it can be fitted to.
        family: ``module:Class`` of the family; empty for what is not one.
        learner: ``module:Class`` of the learner (`harness.learners.protocol.Learner`).
        settle: ``module:function`` from a configuration to one in which what it names of the hub is settled.
        resolve: ``module:function`` that gives `harness.learners.protocol.Resolved`, where its specs hold
            more than its section.
        hub_items: ``module:function`` from a configuration, the field that names its model and the caches of
            the hub (`harness.data.hub.Caches`, or None) to what it needs of it (`harness.section.HubItem`).
        metrics: What it measures.
        metrics_version: Part of every evaluation's key; raise it when a metric changes.
        groups: Several groups of metrics with their versions, in the place of one.
        headlines: What a report begins with, and its sentences are about: the first of these metrics that its
            records have; when empty, of those that a run shows and that collapse moves one way.
        evaluates: Fields of ``evaluate`` that it reads; what else is given is an error.
        names_examples: Whether an evaluation's key always says how many examples are read.
        batchable: Whether many of its chains may be run in one call.
        many_ranks: Whether it runs on more than one rank; then it is a `learner` of its own, whose chains run
            one by one.
        micro_batch: Examples per forward pass and rank, from a cell's configuration.
        zero_stage: DeepSpeed's ZeRO stage, in the same way; None where it does not apply.
        extra: The extra of the harness's package that brings its libraries.
        modules: Their modules.
        seconds_per_example: Rough seconds of a generation per training example, or a function of the numbers
            in an example.
        least_numbers: From its section and a `FitSize` to the numbers of 8 bytes that a fit or its evaluation
            holds at once, at least, beside the examples: a study that no memory holds is refused before it
            starts.
        turn_seconds: From a `harness.learners.protocol.Turn` to the seconds of its fit, sampling and
            evaluation on its gang; None where they are no matter.
        reads_pools_anew: Whether a pool that only grows is read as a whole in each generation, by its
            section.
        theory: ``module:function`` from a cell's configuration and a metric to its expectation over chains in
            every generation, or None: the dashed lines of a report. Only cells without filters, refreshes and
            other sources are asked for, whose synthetic ratio is 1 or follows.
        whole: ``module:function`` that writes a fit that is stored as what it adds to other weights as an
            ordinary model (`harness.learners.language_model.adapter.write_whole`).
        check: Raises ValueError where its section does not fit the rest of a configuration.
        stands_for: From its section to the values that one field of it stands for, by dotted field, and what
            to say of where they come from (``harness show``).
        example: Settings that are small enough for a laptop (``harness init``).
        seeds: How many seeds such a study has.
    """

    section: type[Section]
    version: Version
    _: KW_ONLY
    reads: Sequence[str]
    family: str = ""
    learner: str = "harness.learners.analytic.learner:AnalyticLearner"
    settle: str = ""
    resolve: str = ""
    hub_items: str = ""
    metrics: Sequence[Metric] = ()
    metrics_version: Version = 1
    groups: Mapping[str, Version] = field(default_factory=dict)
    headlines: Sequence[str] = ()
    evaluates: Collection[str] = ("examples", "ranges")
    names_examples: bool = False
    batchable: bool = True
    many_ranks: bool = False
    micro_batch: Callable[[Any], PositiveInt] = lambda config: config.resources.micro_batch or 1
    zero_stage: Callable[[Any], int | None] = lambda config: config.resources.zero_stage
    extra: str = ""
    modules: Sequence[str] = ()
    seconds_per_example: Cost | Callable[[int], Cost] = 1e-6
    least_numbers: Callable[[Any, FitSize], Count] = lambda section, size: 0
    turn_seconds: Callable[[Any], Cost] | None = None
    reads_pools_anew: Callable[[Any], bool] = lambda section: False
    theory: str = ""
    whole: str = ""
    check: Callable[[Any], None] = lambda config: None
    stands_for: Callable[[Any], tuple[Mapping[str, Any], str]] = lambda section: ({}, "")
    example: Mapping[str, Any] = field(default_factory=dict)
    seeds: PositiveInt = 20


@dataclass(frozen=True)
class MetricPlugin:
    """Numbers about a corpus, which a study asks for in ``evaluate.metrics``.

    Attributes:
        metrics: The columns that it gives; their names have a stroke, as ``text/rep_4``.
        version: Part of the key of every evaluation that has it; raise it when a number changes.
        measure: From the corpus and what is `Known` (its numbers are one per example) to a number for every
            column; or ``module:function``.
        reads: Kinds of data that it can look at; empty for all.
    """

    metrics: Sequence[Metric]
    version: Version
    measure: Callable[[Examples, Known], Mapping[str, float]] | str
    reads: Collection[str] = ()


@dataclass(frozen=True)
class DataKind:
    """A kind of real data: what learners, filters and metrics say that they read.

    Attributes:
        section: Its section; the docstring is its line in ``harness list data``.
        prepare: ``module:function`` that reads the data: from the section and a `harness.data.real.Room` to
            `harness.data.real.PreparedData`.
        load: ``module:attribute`` that gives them (`harness.data.RealData`): from the section and the folder
            that they were prepared in; None where they have none.
        sources: Values of ``data.source`` that mean this kind.
        version: Of a package's kind: part of every key beside what ``prepare`` says, of the folder's too;
            raise it when other examples come out.
        like: The kind whose readers (learners, filters, metrics) read these data too; empty for none.
        asked: What readers of a built-in kind ask its section, besides ``num_examples``: sections of kinds
            that are ``like`` it need it too, as a field or a property.
        places: Fields that say where the data lie, dotted where they are of a section inside: nothing of them
            is in keys or specs.
        example: Settings that need no file and no network (``harness init``).
    """

    section: type[DataSection]
    _: KW_ONLY
    prepare: str
    load: str
    sources: Sequence[str] = ()
    version: Version = 1
    like: str = ""
    asked: Sequence[str] = ()
    places: Sequence[str] = ()
    example: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataPlugin:
    """A text that studies name in ``data.source``, ``evaluate.others`` and ``regime.source.corpus``.

    It has no version: what is in keys is the hash of its content.

    Attributes:
        read: ``module:function`` that gives its documents, one text each, the same ones in the same order
            every time. Its docstring is its line in ``harness list data``.
    """

    read: str


@dataclass(frozen=True)
class TaskPlugin:
    """A task: prompts, and a checker that knows which completions are right.

    Attributes:
        section: Its section, with a ``kind``; its docstring is its line in ``harness list tasks``.
        version: Part of every key; raise it when other prompts come out, or other completions are right.
        problems: ``module:function`` from the section to an iterator of `harness.tasks.Problem`, endless or
            not: the same ones in the same order every time. Each is put on one side of the split by the hash
            of its prompt; one that came before is passed over.
        check: ``module:function`` from the section, a prompt and a completion to whether the completion is
            right: a truth value, or a `harness.tasks.Verdict`.
        answer: ``module:function`` from the section and a completion to the final answer in it, by which a
            majority votes, or None where it has none. Empty: the whole completion.
        alphabet: ``module:function`` from the section to the characters that prompts and completions are
            written in.
        lengths: From the section to the most characters of a prompt and of a completion; None where
            ``data.prompt_tokens`` and ``data.completion_tokens`` have to say it.
        check_s: Seconds that the checker of a package may take for one completion; then it counts as wrong.
            It runs in a process of its own, which is ended. The harness's own always end.
        solutions: Whether its problems have one. Without them nothing is learned from solutions and nothing
            is measured on them: a chain begins with a pretrained model as it is.
    """

    section: type[Section]
    version: Version
    _: KW_ONLY
    problems: str
    check: str
    alphabet: str
    answer: str = ""
    lengths: Callable[[Any], tuple[PositiveInt, PositiveInt] | None] = lambda section: None
    check_s: Seconds = 1.0
    solutions: bool = True


@dataclass(frozen=True)
class ObjectivePlugin:
    """What a language model's generations after the first minimise, on completions of a task.

    Attributes:
        section: Its section, with a ``kind``; its docstring is its line in ``harness list objectives``.
        version: Part of every key; raise it when a fit comes out otherwise.
        loss: ``module:Class`` of a `harness.learners.language_model.objectives.Objective`; empty for the
            cross-entropy.
        chooses: What the judge's choice has to be (`FilterPlugin.choice`); empty where that does not matter.
        reference: From the section to whose weights it compares with: ``initial``, ``previous``, or None.
        each: Training examples of a unit of its loss, of which a batch has ``train.batch_size``.
    """

    section: type[Section]
    version: Version
    loss: str = ""
    _: KW_ONLY
    chooses: str = ""
    reference: Callable[[Any], Literal["initial", "previous"] | None] = lambda section: None
    each: PositiveInt = 1


@dataclass(frozen=True)
class TrackerPlugin:
    """Where a study's chains are mirrored to.

    Attributes:
        write: ``module:function``, called with a chain (`harness.tracking.ChainView`) when all its
            generations are committed, and with the folder that is the tracker's own in this experiment. What
            it raises becomes a warning, and the next run calls it again. Empty where ``tracker`` says all.
        where: ``module:function`` from the tracker's folder to a text that says where it writes: a chain is
            told again where that has changed. Empty for the folder itself.
        extra: The extra of the harness's package that brings its libraries.
        modules: Their modules.
        tracker: ``module:Class`` of the `harness.tracking.tracker.Tracker` that runs and syncs ask.
        field: The field of a study that asks for it.
        off: How a study does without it.
    """

    write: str = ""
    extra: str = ""
    modules: Sequence[str] = ()
    where: str = ""
    tracker: str = "harness.tracking.others:WholeChains"
    field: str = "tracking.trackers"
    off: str = "leave it out"
