"""Sections of execution and claims, and the whole configuration of a cell."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.config.schema.base import PositiveInt, Seconds, Section
from harness.config.schema.data import Data, LinearData, data_tag
from harness.config.schema.learners import READS, LanguageModel, Learner, LinearRegression, Mixture, Sample, Vae
from harness.config.schema.regimes import (
    FILTER_PLUGINS,
    METRIC_PLUGINS,
    CorpusSource,
    DeduplicateFilter,
    Evaluate,
    Filter,
    ModelSource,
    Regime,
    RepetitionFilter,
    VerifierFilter,
)
from harness.registry import check_names, plugins
from harness.terminal import shown

NOT_IN_PROJECTS = "/\\#?%:"
"""Characters that W&B refuses in a project's name (wandb.Settings)."""


TRACKER_PLUGINS = plugins("trackers", ())
"""Trackers of other packages."""


class Resources(Section):
    """What one gang uses."""

    ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 2
    micro_batch: PositiveInt | None = None
    """Examples per forward pass and rank; batch_size / ranks when null, up to 64."""
    sample_batch: PositiveInt = 128
    """Examples sampled together; examples are computed in whole batches of this size."""
    threads: PositiveInt = 1
    """CPU threads per rank (and CPUs reserved for it)."""
    gpus_per_rank: Annotated[int, Field(ge=0, le=1)] | None = None
    """1 on a machine with GPUs, else 0, when null."""
    deterministic: bool = True
    """On GPUs: only kernels that add up in one order, so that a resumed fit equals an uninterrupted one bit for bit;
    false is a little faster, and a fit then has other last bits each time."""
    bundled: bool = True
    """Cheap learners: run many chains at once and keep records and parameters only; false runs each generation by itself, with its
    corpus on disk."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a gang may fail in one generation and try again before its chains are failed."""
    max_preemptions: Annotated[int, Field(ge=0)] = 1000
    """How often a gang may lose its machine in one generation; that is nobody's fault, and counted apart."""
    checkpoint_s: Seconds = 300.0
    """Seconds between the checkpoints of a fit: what a kill can cost at most."""
    watchdog_s: Seconds = 600.0
    """A gang that makes no step, token or batch for this many seconds hangs: it is ended and its branch tried again."""
    lease_s: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 60.0
    """Others on the store take over what a process held once it has shown no life for this many seconds."""
    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds that a run takes at most to save its work and end after SIGTERM, SIGINT or SIGUSR1."""


class Retention(Section):
    """What stays on disk once a chain is complete; records and corpora always stay."""

    weights: Literal["all", "last", "none"] = "last"
    """Whose weights stay: generation 0 and the last, all, or none."""


class Tracking(Section):
    """Where records are mirrored to."""

    wandb: Literal["offline", "online", "disabled"] = "offline"
    project: str = "model-collapse"
    entity: str | None = None

    @field_validator("project", "entity")
    @classmethod
    def _as_wandb_allows(cls, value: str | None) -> str | None:
        """What W&B itself would refuse, but only once everything is computed."""
        if value is not None and not (0 < len(value) <= 128 and value.isprintable() and not set(value) & set(NOT_IN_PROJECTS)):
            allowed = f"1 to 128 printable characters, none of {' '.join(NOT_IN_PROJECTS)}"
            raise ValueError(f"found {shown(value)}, allowed by W&B: {allowed}; the entity has a field of its own")
        return value

    trackers: tuple[str, ...] = ()
    """Trackers of other packages, by the names of their entry points (docs/plugins.md)."""

    @field_validator("trackers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return check_names(value, TRACKER_PLUGINS)

    bundles: Literal["cells", "chains"] = "cells"
    """Chains in bundles: one run for each cell, with means over its chains, or one for each chain."""


class Statistic(Section):
    """One number per seed, from the records of a cell."""

    metric: str
    of: Literal["first", "last", "change", "ratio", "log_ratio", "slope", "highest", "lowest", "exceeds_first", "lost"] = "change"
    """``first`` and ``last``: in generation 0 and in the last one; ``change``: last - first; ``ratio``: last / first;
    ``log_ratio``: its logarithm; ``slope``: least squares over the generations, per generation; ``highest``, ``lowest``: over the
    generations; ``exceeds_first``: 1 where the last one is above the 95 % interval of one more seed's generation 0, else 0;
    ``lost``: 1 where the last one is 0, else 0."""
    generation: Annotated[int, Field(ge=0)] | None = None
    """Taken as the last one; the chains' last when null."""
    baseline: Annotated[int, Field(ge=0)] = 0
    """Taken as the first one by ``first``, ``change``, ``ratio`` and ``log_ratio``."""
    where: dict[str, Any] = {}
    """Axes and their values, which name one cell."""
    minus: dict[str, Any] | None = None
    """Another cell, whose value for the same seed is subtracted."""


class Claim(Section):
    """What a paper says, as an interval that can be computed; ``harness report`` gives the verdict."""

    text: str
    source: str
    statistic: Statistic
    above: float | None = None
    below: float | None = None
    between: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_range(self) -> Claim:
        given = [name for name in ("above", "below", "between") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of above, below or between; found {', '.join(given) or 'none'}")
        if self.between is not None and self.between[0] >= self.between[1]:
            raise ValueError("between: the first number must be below the second")
        return self


class Override(Section):
    """Values that a part of the grid needs: where every ``when`` holds, ``set`` applies."""

    when: dict[str, Any]
    set: dict[str, Any]

    @field_validator("when", "set")
    @classmethod
    def _not_empty(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("is empty; give at least one dotted field")
        return value


class Config(Section):
    """One cell's configuration: what the YAML file holds, less ``grid`` and ``overrides``."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    data: Data
    learner: Learner
    regime: Regime = Regime(kind="replace", synthetic_ratio=1.0)
    filters: tuple[Filter, ...] = ()
    evaluate: Evaluate = Evaluate()
    generations: Annotated[int, Field(ge=0)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    resources: Resources = Resources()
    retention: Retention = Retention()
    tracking: Tracking = Tracking()
    claims: tuple[Claim, ...] = ()
    """What is expected; never part of a key."""

    @model_validator(mode="after")
    def _others_are_text(self) -> Config:
        if self.evaluate.others and not isinstance(self.learner, LanguageModel):
            raise ValueError(f"evaluate.others: holds texts, which learner {self.learner.kind} cannot score; remove it")
        return self

    @model_validator(mode="after")
    def _agree(self) -> Config:
        kind, found = self.learner.kind, data_tag(self.data)
        if found not in READS[kind]:
            hint = "; hub data and files are images with kind: images" if kind == "vae" else ""
            reads = ", ".join(READS[kind])
            raise ValueError(f"data.source: learner {kind} reads {reads} data, {self.data.source!r} is {found}{hint}")
        if isinstance(self.learner, Vae):
            self._check_images()
        elif isinstance(self.learner, LanguageModel):
            self._check_language_model(self.learner)
        else:
            self._check_closed_form()
        for item in self.filters:
            self._check_filter(item)
        for name in self.evaluate.metrics:
            readable = METRIC_PLUGINS.loaded[name].plugin.reads
            if readable and found not in readable:
                raise ValueError(f"evaluate.metrics: {name} reads {', '.join(readable)}, not {found} data")
        n, refresh = getattr(self.data, "num_examples", None), self.regime.refresh
        if refresh is not None and refresh.examples is not None and n is not None and refresh.examples > n:
            raise ValueError(f"regime.refresh.examples: {refresh.examples}, more than data.num_examples ({n})")
        if isinstance(self.regime.source, ModelSource) and isinstance(self.regime.source.model, str) != (found == "text"):
            raise ValueError(
                "regime.source.model: for text the name of a pretrained model, for analytic data fields of data in which it differs"
            )
        if self.regime.source != "self" and isinstance(self.regime.source, CorpusSource) and self.filters:
            raise ValueError("filters apply to what the chain writes; with regime.source {corpus: ...} filter the corpus itself")
        return self

    def _check_filter(self, item: Filter) -> None:
        found = data_tag(self.data)
        scores = {
            "agreement": ("linear",),
            "log_density": ("gaussian", "mixture"),
            "distinct_2": ("text",),
            "uniqueness_4": ("text",),
        }
        if isinstance(item, VerifierFilter) and found not in scores[item.score]:
            raise ValueError(f"filters: the score {item.score} reads {' or '.join(scores[item.score])} data, not {found}")
        if isinstance(item, VerifierFilter) and item.score == "agreement" and getattr(self.data, "labels", "") != "sign":
            raise ValueError("filters: the score agreement needs data.labels: sign")
        reads: Collection[str] = ()
        if isinstance(item, DeduplicateFilter | RepetitionFilter):
            reads = ("text",)
        elif item.kind in FILTER_PLUGINS.loaded:
            reads = FILTER_PLUGINS.loaded[item.kind].plugin.reads
        if reads and found not in reads:
            raise ValueError(f"filters: {item.kind} reads {', '.join(reads)}, not {found} data")

    def _check_closed_form(self) -> None:
        learner, data, refresh = self.learner, self.data, self.regime.refresh
        kind = learner.kind
        if self.resources.ranks != 1:
            raise ValueError(f"resources.ranks: found {self.resources.ranks}, learner {kind} runs on one rank")
        if self.regime.budget != "examples":
            raise ValueError(f"regime.budget: is not used by learner {kind}, which takes no steps")
        if refresh is not None and refresh.init is not None and not hasattr(learner, "init"):
            raise ValueError(f"regime.refresh.init: is not used by learner {kind}, which has no weights to start from")
        if self.evaluate.max_duplicate_share is not None:
            raise ValueError("evaluate.max_duplicate_share: counts equal texts; remove it for this learner")
        if refresh is not None and refresh.init == "pretrained":
            raise ValueError(f"regime.refresh.init: learner {kind} has no pretrained weights; allowed: scratch, previous")
        n = getattr(data, "num_examples", None)
        if isinstance(learner, Mixture) and n is not None and learner.components > n:
            raise ValueError(f"learner.components: {learner.components} components, but only {n} examples (data.num_examples)")
        if isinstance(learner, LinearRegression) and isinstance(data, LinearData):
            self._check_regression(learner, data)

    def _check_regression(self, learner: LinearRegression, data: LinearData) -> None:
        fewest = min(data.num_examples, (self.regime.refresh and self.regime.refresh.examples) or data.num_examples)
        if learner.ridge == 0 and data.dim >= fewest - 1:
            where = "data.dim" if fewest == data.num_examples else "regime.refresh.examples"
            raise ValueError(
                f"{where}: least squares needs dim < num_examples - 1, found {data.dim} and {fewest}; "
                "give more examples or learner.ridge"
            )
        if self.evaluate.ranges:
            raise ValueError("evaluate.ranges: is not used by learner linear_regression")

    def _check_beams(self, sample: Sample) -> None:
        """Beam search writes one example a prompt, and there are as many prompts as real examples."""
        ratio = self.regime.synthetic_ratio or 0.0
        grows = self.regime.kind == "replace_grown" or (self.regime.kind == "augment" and ratio > 0.5)
        if sample.num_beams > 1 and grows and self.regime.source == "self":
            raise ValueError(
                f"learner.sample.num_beams: above 1 writes one example a prompt, but {self.regime.kind} here reads more examples "
                "than there are prompts (the real examples); allowed: num_beams: 1, another regime, or augment with "
                "synthetic_ratio up to 0.5"
            )

    def _check_language_model(self, learner: LanguageModel) -> None:
        self._check_batch(learner.train.batch_size)
        if self.regime.refresh and self.regime.refresh.init == "pretrained" and learner.model.pretrained is None:
            raise ValueError("regime.refresh.init: pretrained needs learner.model: {pretrained: NAME}")
        if learner.train.max_steps is not None and self.regime.budget != "examples":
            raise ValueError("regime.budget equalises epochs; with learner.train.max_steps it is not used")
        if self.evaluate.ranges:
            raise ValueError("evaluate.ranges: reads numbers, and text has none")
        self._check_beams(learner.sample)

    def _check_images(self) -> None:
        if self.resources.ranks != 1:
            raise ValueError(f"resources.ranks: found {self.resources.ranks}, learner vae runs on one rank")
        if self.regime.budget == "tokens":
            raise ValueError("regime.budget: images have no tokens; allowed for learner vae: examples, steps")
        if self.regime.refresh is not None and self.regime.refresh.init == "pretrained":
            raise ValueError("regime.refresh.init: learner vae has no pretrained weights; allowed: scratch, previous")
        if isinstance(self.regime.source, CorpusSource | ModelSource):
            raise ValueError("regime.source: learner vae reads images; allowed: self, {cell: ...}")
        if self.evaluate.ranges:
            raise ValueError("evaluate.ranges: is not used by learner vae")
        if "prompts" in self.evaluate.model_fields_set:
            raise ValueError("evaluate.prompts: is not used by learner vae, which continues no text")

    def _check_batch(self, batch_size: int) -> None:
        ranks, micro = self.resources.ranks, self.resources.micro_batch
        if batch_size % ranks:
            raise ValueError(f"learner.train.batch_size {batch_size} is not a multiple of resources.ranks {ranks}")
        if micro is not None and (batch_size // ranks) % micro:
            raise ValueError(
                f"learner.train.batch_size {batch_size} is not a multiple of resources.ranks {ranks} x micro_batch {micro}"
            )

    @property
    def micro_batch(self) -> int:
        """Examples per forward pass and rank."""
        if self.resources.micro_batch is not None or not isinstance(self.learner, LanguageModel):
            return self.resources.micro_batch or 1
        per_rank = self.learner.train.batch_size // self.resources.ranks
        return max(size for size in range(1, min(per_rank, 64) + 1) if per_rank % size == 0)
