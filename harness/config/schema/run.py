"""Sections of execution and claims, and the whole configuration of a cell."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from harness.components import FILTERS, LEARNERS, METRICS, REGIMES, TRACKERS, readable
from harness.components.regimes import usual_parts
from harness.config.schema.data import Data, data_kind, unknown_source
from harness.config.schema.learners import Learner
from harness.config.schema.population import Population
from harness.config.schema.regimes import Evaluate, Filter, Regime
from harness.imports import is_installed
from harness.records import REAL
from harness.registry import check_names, no_verdict
from harness.section import PositiveInt, Seconds, Section, begins
from harness.terminal import shown

NOT_IN_PROJECTS = "/\\#?%:"
"""Characters that W&B refuses in a project's name (wandb.Settings)."""
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""What an experiment may be called: its folder has the name."""


class Resources(Section):
    """What one gang uses."""

    ranks: PositiveInt = 1
    zero_stage: Annotated[int, Field(ge=0, le=3)] | None = None
    """DeepSpeed's ZeRO stage; 2 when null, but 0 for one rank in fp32, where it divides nothing and takes
    longer. One rank in bf16 then computes what stage 2 does without it."""
    micro_batch: PositiveInt | None = None
    """Examples per forward pass and rank; batch_size / ranks when null, up to 64, or as many as memory
    holds."""
    sample_batch: PositiveInt | None = None
    """Examples sampled together; examples are computed in whole batches of this size. 128 when null, or as
    many as memory holds."""
    threads: PositiveInt = 1
    """CPU threads per rank (and CPUs reserved for it)."""
    gpus_per_rank: Annotated[int, Field(ge=0, le=1)] | None = None
    """1 on a machine with GPUs, else 0, when null."""
    deterministic: bool = True
    """On GPUs: only kernels that add up in one order, so that a resumed fit equals an uninterrupted one bit
    for bit; false is a little faster, and a fit then has other last bits each time."""
    activation_checkpointing: bool = False
    """A fit keeps what goes into each layer, and computes what else its gradient needs once more: less
    memory, up to a third more time, the same gradients."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """What computes attention in fits: torch's own kernels (``sdpa``), plain products (``eager``), or the
    package flash-attn; what the library takes by itself when null. Results differ in rounding."""
    compile: bool = False
    """Fits are compiled for the machine (``torch.compile``): up to a minute before the first step of the
    first one, up to a sixth less for each step. Results differ in rounding."""
    bundled: bool = True
    """Cheap learners: run many chains at once and keep records and parameters only; false runs each
    generation by itself, with its corpus on disk."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a gang may fail in one generation and try again before its chains are failed."""
    max_preemptions: Annotated[int, Field(ge=0)] = 1000
    """How often a gang may lose its machine in one generation; that is nobody's fault, and counted apart."""
    checkpoint_s: Seconds = 300.0
    """Seconds between the checkpoints of a fit: what a kill can cost at most."""
    watchdog_s: Seconds = 600.0
    """A gang that makes no step, token or batch for this many seconds hangs: it is ended and its branch tried
    again."""
    lease_s: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 60.0
    """Others on the store take over what a process held once it has shown no life for this many seconds."""
    grace_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds that a run takes at most to save its work and end after SIGTERM, SIGINT or SIGUSR1."""

    @property
    def sampled_together(self) -> int:
        """`sample_batch`, or the most that it is when null."""
        return self.sample_batch or 128

    @model_validator(mode="after")
    def _compilable(self) -> Resources:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "compile: true needs whole weights on every rank, and zero_stage is 3; allowed: zero_stage: "
                "0, 1 or 2, or compile: false"
            )
        return self

    @model_validator(mode="after")
    def _reproducible(self) -> Resources:
        if self.attention != "flash_attention_2":
            return self
        if self.deterministic:
            raise ValueError(
                "attention: flash_attention_2 adds up gradients in another order each time, and "
                "deterministic is true; allowed: attention: sdpa, or deterministic: false"
            )
        if self.gpus_per_rank == 0:
            raise ValueError("attention: flash_attention_2 needs a GPU, and gpus_per_rank is 0")
        return self


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
        if value is not None and not (
            0 < len(value) <= 128 and value.isprintable() and not set(value) & set(NOT_IN_PROJECTS)
        ):
            allowed = f"1 to 128 printable characters, none of {' '.join(NOT_IN_PROJECTS)}"
            raise ValueError(
                f"found {shown(value)}, allowed by W&B: {allowed}; the entity has a field of its own"
            )
        return value

    trackers: tuple[str, ...] = ()
    """``mlflow``, or trackers of other packages by the names of their entry points (docs/plugins.md)."""

    @field_validator("trackers")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in set(value) & set(TRACKERS):
            field = TRACKERS[name].field
            if field != "tracking.trackers":
                own = cls.model_fields[field.rpartition(".")[2]]
                allowed = ", ".join(typing.get_args(own.annotation))
                raise ValueError(f"found {shown(name)}, which has a field of its own ({field}: {allowed})")
        return check_names(value, TRACKERS.where(lambda plugin: plugin.field == "tracking.trackers"))

    @property
    def names(self) -> tuple[str, ...]:
        """All trackers that are told."""
        return (*self.trackers, *(() if self.wandb == "disabled" or self.without else ("wandb",)))

    @property
    def without(self) -> bool:
        """Whether W&B is left out for it is not installed, and the file does not ask for it."""
        return "wandb" not in self.model_fields_set and not is_installed("wandb")

    bundles: Literal["cells", "chains"] = "cells"
    """Chains in bundles: one run for each cell, with means over its chains, or one for each chain."""


GrowthShape = Literal["linear", "exponential", "saturating"]


class Statistic(Section):
    """One number per seed, from the records of a cell."""

    metric: str
    of: Literal[
        "first", "last", "change", "ratio", "log_ratio", "slope", "curvature", "highest", "lowest", "drop",
        "exceeds_first", "lost", "until", "lead", "growth", "worth", "undone",
    ] = "change"  # fmt: skip
    """``first`` and ``last``: in generation 0 and in the last one; ``change``: last - first; ``ratio``: last
    / first; ``log_ratio``: its logarithm; ``slope``: least squares over the generations, per generation;
    ``curvature``: second derivative of the parabola by least squares; ``highest``, ``lowest``: over the
    generations; ``drop``: from the highest to the last; ``exceeds_first``: 1 where the last one is above the
    95 % interval of one more seed's generation 0, else 0; ``lost``: 1 where the last one is 0, else 0;
    ``until``: generations until ``threshold`` is reached; ``lead``: generations by which it leaves generation
    0's scatter over seeds before the metric ``than`` does; ``growth``: by how much lower the AICc of
    ``shape`` is; ``worth``: synthetic examples that buy what one more real one buys; ``undone``: more real
    examples that undo the change."""
    generation: Annotated[int, Field(ge=0)] | None = None
    """Taken as the last one; the chains' last when null."""
    baseline: Annotated[int, Field(ge=0)] = 0
    """Taken as the first one by ``first``, ``change``, ``ratio``, ``log_ratio``, ``until`` and ``undone``."""
    threshold: float | None = None
    """Of ``until``: a rise since the first one, or a fall where it is negative."""
    than: str | None = None
    """Of ``lead``: the other metric."""
    shape: GrowthShape | None = None
    """Of ``growth``: the shape that is claimed."""
    against: GrowthShape | None = None
    """Of ``growth``: the shape that it is compared with; the best of the others when null."""
    where: dict[str, Any] = {}
    """Axes and their values, which name one cell."""
    over: Literal["mean", "best", "worst"] | None = None
    """Of the members of a population, which ``where`` names: their mean, or the best or the worst of them in
    each generation."""
    minus: dict[str, Any] | None = None
    """Another cell, whose value for the same seed is subtracted."""
    beside: tuple[dict[str, Any], ...] = ()
    """Of ``worth`` two cells, of ``undone`` one, with other numbers of real and synthetic examples."""

    @model_validator(mode="after")
    def _own_fields(self) -> Statistic:
        """Each field that only some statistics have is there with them, and only with them."""
        for name, kinds in {"threshold": ("until",), "shape": ("growth",), "than": ("lead",)}.items():
            given = getattr(self, name) is not None
            if given != (self.of in kinds):
                raise ValueError(f"of: {self.of} {'has no' if given else 'needs a'} {name}")
        if self.threshold == 0:
            raise ValueError("threshold: 0 is no change; give a rise, or a fall as a negative number")
        if self.against is not None and (self.of != "growth" or self.against == self.shape):
            what = "another shape than shape" if self.of == "growth" else "of: growth"
            raise ValueError(f"against: found {self.against}, it goes with {what}")
        cells = {"worth": 2, "undone": 1}.get(self.of, 0)
        if len(self.beside) != cells:
            raise ValueError(f"beside: found {len(self.beside)} cells, of: {self.of} has {cells}")
        if cells and self.over is not None:
            raise ValueError(f"over: of: {self.of} compares cells, not populations; leave it out")
        if self.of == "lead" and self.minus is not None:
            raise ValueError("minus: of: lead compares two metrics already; leave it out")
        if cells and self.minus is not None:
            raise ValueError(f"minus: of: {self.of} compares cells already; leave it out")
        return self

    @property
    def cells(self) -> list[tuple[str, dict[str, Any]]]:
        """Every cell that is named, with the field that names it."""
        others = [(f"beside.{place}", cell) for place, cell in enumerate(self.beside)]
        return [("where", self.where), *([] if self.minus is None else [("minus", self.minus)]), *others]


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
            raise ValueError(
                f"give exactly one of above, below or between; found {', '.join(given) or 'none'}"
            )
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

    experiment: Annotated[str, Field(pattern=NAME)]
    data: Data
    learner: Learner
    regime: Regime = Regime(kind="replace", synthetic_ratio=1.0)
    filters: tuple[Filter, ...] = ()
    evaluate: Evaluate = Evaluate()
    population: Population | None = None
    """Several models that train on what all of them write, each a cell of the grid (column ``member``)."""
    generations: Annotated[int, Field(ge=0)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**62)] = 0
    resources: Resources = Resources()
    retention: Retention = Retention()
    tracking: Tracking = Tracking()
    claims: tuple[Claim, ...] = ()
    """What is expected; never part of a key."""

    @model_validator(mode="after")
    def _agree(self) -> Config:
        kind, found = self.learner.kind, data_kind(self.data)
        learner = LEARNERS[kind]
        if not readable(found, learner.reads):
            hint = "; hub data and files are images with kind: images" if "images" in learner.reads else ""
            reads, source = ", ".join(learner.reads), self.data.source
            unknown = unknown_source(source)
            what = f"learner {kind} reads {reads} data, {source!r} is {found}{hint}"
            raise ValueError(f"data.source: {unknown or what}")
        self._check_evaluation(kind, found)
        if self.resources.ranks != 1 and not learner.many_ranks:
            raise ValueError(
                f"resources.ranks: found {self.resources.ranks}, learner {kind} runs on one rank"
            )
        if learner.family:
            self._check_closed_form()
        _fits("learner", learner.check, self)
        for number, item in enumerate(self.filters):
            wanted = FILTERS[item.kind].reads
            if not readable(found, wanted):
                raise ValueError(f"filters: {item.kind} reads {', '.join(wanted)}, not {found} data")
            _fits(f"filters.{number}", FILTERS[item.kind].check, item, self.data, found)
        self._check_pool()
        self._check_passing()
        self._check_source(found)
        return self

    def _check_pool(self) -> None:
        """Filters that judge pools, and what they learn from."""
        if not REGIMES[self.regime.kind].selects:
            for item in self.filters:
                if FILTERS[item.kind].of == "pools":
                    allowed = ", ".join(kind for kind in REGIMES if REGIMES[kind].selects)
                    raise ValueError(
                        f"filters: {item.kind} chooses from what arrives unlabelled, so it needs regime.kind "
                        f"{allowed}; found {self.regime.kind}"
                    )
            return
        if self.regime.select != "filters" and not self.filters:
            raise ValueError(
                f"regime.select: found {self.regime.select!r}, which keeps as many examples as the filters "
                "would, and there are none"
            )

    def _check_passing(self) -> None:
        """Filters that let nothing pass, where generations behind 0 need something that does."""
        told = [why for item in self.filters if (why := FILTERS[item.kind].none(item, self.data))]
        # What is known to be real is trained on unjudged, and so is all of a generation without models.
        if not told or not self.generations or self.regime.anchor or self.regime.refresh:
            return
        if any(part.origin != REAL for part in usual_parts(self.regime)):
            raise ValueError(f"filters: {told[0]}, so nothing passes")

    def _check_evaluation(self, kind: str, data: str) -> None:
        read = LEARNERS[kind].evaluates
        for name, info in type(self.evaluate).model_fields.items():
            if name not in ("metrics", *read) and getattr(self.evaluate, name) != info.get_default():
                raise ValueError(
                    f"evaluate.{name}: is not used by learner {kind}, which reads {', '.join(read)}"
                )
        for name in self.evaluate.metrics:
            reads = METRICS[name].reads
            if not readable(data, reads):
                raise ValueError(f"evaluate.metrics: {name} reads {', '.join(reads)}, not {data} data")

    def _check_source(self, data: str) -> None:
        n, refresh, writer = self.data.num_examples, self.regime.refresh, self.regime.writer
        if refresh is not None and refresh.examples is not None and n is not None and refresh.examples > n:
            raise ValueError(
                f"regime.refresh.examples: {refresh.examples}, more than data.num_examples ({n})"
            )
        if writer.changes is not None if data == "text" else writer.pretrained is not None:
            raise ValueError(
                "regime.source.model: for text the name of a pretrained model, for analytic data fields of "
                "data in which it differs"
            )
        if writer.corpus is not None and self.filters and not REGIMES[self.regime.kind].selects:
            raise ValueError(
                "filters apply to what the chain writes; with regime.source {corpus: ...} filter the corpus "
                "itself"
            )

    def _check_closed_form(self) -> None:
        kind, refresh = self.learner.kind, self.regime.refresh
        if self.regime.budget != "examples":
            raise ValueError(f"regime.budget: is not used by learner {kind}, which takes no steps")
        if refresh is not None and refresh.init is not None and not begins(self.learner):
            raise ValueError(
                f"regime.refresh.init: is not used by learner {kind}, which has no weights to start from"
            )
        if refresh is not None and refresh.init == "pretrained":
            raise ValueError(
                f"regime.refresh.init: learner {kind} has no pretrained weights; allowed: scratch, previous"
            )

    @property
    def micro_batch(self) -> int:
        """Examples per forward pass and rank."""
        return LEARNERS[self.learner.kind].micro_batch(self)

    @property
    def unread(self) -> frozenset[str]:
        """Fields that its regime and learner do not read: they are at their defaults, and say nothing."""
        regime, learner = REGIMES[self.regime.kind], LEARNERS[self.learner.kind]
        of_regimes = {name for kind in REGIMES for name in REGIMES[kind].uses} - set(regime.uses)
        of_evaluate = set(Evaluate.model_fields) - {"metrics", *learner.evaluates}
        named = [("regime", of_regimes), ("evaluate", of_evaluate)]
        return frozenset(f"{section}.{name}" for section, names in named for name in names)

    @property
    def zero_stage(self) -> int | None:
        """ZeRO stage; None where it is left open and does not apply."""
        return LEARNERS[self.learner.kind].zero_stage(self)


def _fits(field: str, check: Callable[..., None], *arguments: Any) -> None:
    """Ask a component whether its section fits the rest of a study.

    Args:
        field: The section's; what is said without a field of a study before it is about this one.
        check: The component's.
        arguments: What it is asked with.

    Raises:
        ValueError: The section does not fit.
    """
    try:
        with no_verdict(AssertionError):
            check(*arguments)
    except ValueError as error:
        named = re.split(r"[.: ]", str(error), maxsplit=1)[0] in Config.model_fields
        raise ValueError(str(error) if named else f"{field}: {error}") from None
