"""From cells to specs, and from these to the lineage and to the identities of bundled chains."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

from harness.components import FILTERS, LEARNERS, REGIMES
from harness.config.grid import Cell, Study
from harness.config.population import arrival
from harness.config.schema import Config, Evaluate, science
from harness.data.real import ExternalCorpus, PreparedData, RealData
from harness.errors import ConfigError
from harness.learners.protocol import Resolved
from harness.metrics import (
    BYTES_OF_TOKENS,
    DRIFT_VERSION,
    OTHERS_BYTES_OF_TOKENS,
    OTHERS_VERSION,
    POOL_VERSION,
    versions,
)
from harness.metrics.added import added_versions
from harness.population import Exchange, Rule, unread
from harness.preparation import data_spec
from harness.regimes import recipe
from harness.registry import named
from harness.science import (
    KEY_FORMAT,
    Called,
    CellSpec,
    Chain,
    DataSpec,
    Lineage,
    Measured,
    Versioned,
    blank,
    build,
    chain_id,
    in_order,
    key_of,
)
from harness.section import begins, per_prompt


def cell_spec(
    config: Config,
    data: PreparedData,
    resolved: Resolved,
    texts: Mapping[str, ExternalCorpus],
    fixed: str | None,
    teacher: DataSpec | None,
    source: int | None,
) -> CellSpec:
    """What the chains of a cell have in common: the one place where a configuration becomes specs.

    Args:
        config: The cell.
        data: Its real data.
        resolved: What its learner is.
        texts: The other real texts of its evaluation.
        fixed: The hash of its fixed corpus, where it has one.
        teacher: Its fixed teacher, where it has one.
        source: Index of the cell whose chain writes for it; None for the chain itself.
    """
    n = data.real.num_examples
    external = fixed if teacher is None else teacher.identity
    measured = _measured(config, data.real, texts, _filters(config), resolved.metrics)
    return CellSpec(
        called=_called(config, measured, fixed, teacher),
        data=data_spec(config.data, data),
        learner=resolved.fit,
        sampling=resolved.sampling,
        measured=measured,
        filters=_filters(config),
        recipe=partial(recipe, config.regime, n, external=external, compared=resolved.compared),
        init=resolved.init,
        init_previous=begins(config.learner) == "previous",
        prompts=resolved.prompts,
        n=n,
        generations=config.generations,
        cost=resolved.cost,
        source=source,
        fixed=fixed,
        teacher=teacher,
        first=resolved.first,
        anchored=resolved.anchored,
        compared=resolved.compared,
        based=resolved.based,
        judge=resolved.judge,
    )


def _called(config: Config, measured: Measured, fixed: str | None, teacher: DataSpec | None) -> Called:
    """A fixed corpus is called by its content, never by where it lies; a fixed teacher by what it is."""
    writer: str | dict[str, Any] = "self" if fixed is None else {"corpus": fixed}
    texts = {"others": measured.identity["others"]} if measured.others else {}
    return Called(
        regime=Versioned(config.regime, REGIMES.loaded[config.regime.kind].version),
        init=begins(config.learner),
        writer=writer if teacher is None else {"model": teacher.identity},
        generation=config.regime.writer.generation,
        evaluation={**science(config.evaluate), **texts},
        filters=[science(found) for found in config.filters],
    )


def with_populations(study: Study, specs: Sequence[CellSpec]) -> list[CellSpec]:
    """The specs of cells, those of members as their populations have them: they read each other.

    Raises:
        ConfigError: A member reads one that is not there.
    """
    found = list(specs)
    for cell in study.cells:
        member, population = cell.member, cell.config.population
        if member is None or population is None or member.number:
            continue
        rules = tuple(_rule(study.cells[index], specs[index]) for index in member.cells)
        judged = any(specs[index].measured.judges for index in member.cells)
        if population.mixes and judged and len({_asked(specs[index]) for index in member.cells}) > 1:
            raise study.source.error(
                "population.members",
                "members who read one another have judges, and do not write as many completions of a prompt "
                "(learner.sample.per_prompt), or are asked for other verdicts; allowed: the same for all",
            )
        if wrong := unread(population, rules):
            raise study.source.error("population.exchange", wrong)
        exchange, names = Exchange(population, rules), list(population.named)
        said: Any = population.exchange
        if not isinstance(said, str):
            said = [[population.share(reader, writer) for writer in names] for reader in names]
        for number, index in enumerate(member.cells):
            found[index] = replace(
                specs[index],
                called=replace(specs[index].called, exchange=said),
                recipe=partial(exchange.recipe, number),
                members=member.cells,
                number=number,
                arrives=rules[number].arrives,
            )
    return found


def _asked(spec: CellSpec) -> tuple[Any, ...]:
    """What judges of those who read a member's corpus take for granted."""
    section = spec.sampling.section
    verdict = getattr(section, "verdict", None)  # a language model's, as only these answer prompts
    return per_prompt(section), None if verdict is None else verdict.model_dump_json()


def _rule(cell: Cell, spec: CellSpec) -> Rule:
    assert cell.member is not None
    arrives = arrival(cell.config, cell.member)
    kinds = [(FILTERS[str(item.identity["kind"])], item.section) for item in spec.filters]
    shares = [Fraction(kind.passing(section)).limit_denominator(10**6) for kind, section in kinds]
    return Rule(
        cell.member.name,
        cell.config.regime,
        spec.n,
        arrives,
        arrives + spec.generations,
        spec.compared,
        Fraction(math.prod(shares)) if any(kind.short for kind, _ in kinds) else Fraction(1),
        per_prompt(spec.sampling.section),
    )


def _filters(config: Config) -> tuple[Versioned, ...]:
    """The filters of a cell, as they are executed; one that lets everything pass is none."""
    found: list[Versioned] = []
    for item in config.filters:
        if FILTERS[item.kind].neutral(item):
            continue
        settle = FILTERS[item.kind].settle
        section = named(settle)(item, config) if settle else item
        before = [part.section for part in found if part.section.kind == item.kind]
        raised = FILTERS[item.kind].raised(section, before)
        found.append(Versioned(section, FILTERS.loaded[item.kind].raised(raised)))
    return tuple(found)


def _measured(
    config: Config,
    real: RealData,
    texts: Mapping[str, ExternalCorpus],
    filters: Sequence[Versioned],
    own: Mapping[str, int],
) -> Measured:
    """What a cell's evaluations measure; of the section only what its learner reads.

    ``own`` are versions of metrics of its model alone.
    """
    learner, asked = LEARNERS[config.learner.kind], config.evaluate
    examples = min(real.num_examples, asked.examples)
    metrics = {**versions(config.learner.kind), **real.metrics, **own}
    if not real.test_is_plain:
        metrics = {**metrics, **BYTES_OF_TOKENS}
    identity: dict[str, Any] = {"metrics": dict(metrics)}
    if asked.metrics:  # apart: a package's name for a metric may be one of the groups' here
        identity["added"] = added_versions(asked.metrics)
    if REGIMES[config.regime.kind].selects:
        identity["pool"] = POOL_VERSION
    section = blank(asked, *(set(Evaluate.model_fields) - {"metrics", *learner.evaluates}))
    found = science(section)
    for name in ("metrics", "others", *(["groups"] if "others" in learner.evaluates else [])):
        # by their versions, and by their content
        found.pop(name, None)
    if asked.drift is not None:
        identity["drift"] = {**found.pop("drift", {}), "version": DRIFT_VERSION}
    counted = learner.names_examples or "examples" in found or "ranges" in found
    identity |= {**found, **({"examples": examples} if counted else {})}
    contents = {name: text.fingerprint for name, text in texts.items()}
    if contents:
        plain = all(real.is_plain(text.examples.values) for text in texts.values())
        identity["others"] = {
            "version": OTHERS_VERSION if plain else OTHERS_BYTES_OF_TOKENS,
            "texts": contents,
        }
    judges = tuple(item for item in filters if FILTERS[str(item.identity["kind"])].rewards)
    if judges:
        identity["judges"] = [item.identity for item in judges]
    return Measured(blank(section, "others"), identity, examples, contents, judges)


def chain_namer(specs: Sequence[CellSpec], with_length: bool) -> Callable[[int, int], str]:
    """The ids of chains: from the index of a cell and any seed.

    Args:
        specs: What the chains of each cell have in common.
        with_length: Whether cells differ in their generations, of which the rest of an id says nothing.
    """
    names: list[dict[str, Any]] = [
        {
            "data": item.data.identity,
            "learner": {**item.learner.identity, "init": item.called.init, "version": None},
            **({"first": {**item.first.identity, "version": None}} if item.first else {}),
            "sampling": {**item.sampling.identity, "version": None},
            "evaluation": item.called.evaluation,
            "filters": item.called.filters,
            "regime": science(item.called.regime.section) | {"source": item.called.writer},
        }
        for item in specs
    ]
    alone = [key_of({"cell": name}) for name in names]
    for index in in_order(dict(enumerate(specs))):
        source = specs[index].source
        if source is not None:
            names[index]["regime"]["source"] = _writing_cell(specs[index], {"cell": names[source]})
        names[index] |= _population(specs, index, alone)

    def name(index: int, seed: int) -> str:
        return chain_id(names[index], seed, f"-G{specs[index].generations}" if with_length else "")

    return name


def lineage_of(study: Study, specs: list[CellSpec]) -> tuple[Lineage, tuple[Chain, ...]]:
    """The graph of all generations that are run one by one, and the chains that are run in bundles.

    Args:
        study: The cells.
        specs: What the chains of each have in common.

    Raises:
        ConfigError: Two cells are the same science.
    """
    name, order = chain_namer(specs, study.generations_is_axis), in_order(dict(enumerate(specs)))
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
            identities[index] = _bundle_identity(specs[index], identities)
    alone = {index: key_of(identity) for index, identity in identities.items()}
    for index in identities:
        identities[index] |= _population(specs, index, alone)
    chains = tuple(
        Chain(
            name(index, seed),
            index,
            seed,
            study.cells[index].config.generations,
            key=key_of({**identities[index], "seed": seed}),
        )
        for index in bundled
        for seed in study.seeds
    )
    single = {index: item for index, item in enumerate(specs) if index not in set(bundled)}
    return build(single, name, study.seeds), chains


def _population(
    specs: Sequence[CellSpec], index: int, alone: Mapping[int, str] | Sequence[str]
) -> dict[str, Any]:
    """What the chains of a member are known by besides: who else is there, when, and who reads whom."""
    item = specs[index]
    if len(item.members) < 2:
        return {}
    there = [[alone[i], specs[i].arrives, specs[i].arrives + specs[i].generations] for i in item.members]
    return {"population": {"members": there, "exchange": item.called.exchange, "member": item.number}}


def _writing_cell(item: CellSpec, known_by: Mapping[str, Any]) -> dict[str, Any]:
    """Whose chain writes for a cell, and which generation of it, where every one reads the same."""
    one = {} if item.called.generation is None else {"generation": item.called.generation}
    return {"cell": key_of(known_by), **one}


def _bundle_identity(item: CellSpec, others: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What the chains of a cell are known by in bundles: all of its science but seed and length."""
    writer = item.called.writer if item.source is None else _writing_cell(item, others[item.source])
    return {
        "format": KEY_FORMAT,
        "data": item.data.identity,
        "learner": {**item.learner.identity, **({"init": item.called.init} if item.called.init else {})},
        "sampling": item.sampling.identity,
        "evaluation": item.measured.identity,
        "filters": [part.identity for part in item.filters],
        "regime": {**item.called.regime.identity, "source": writer},
    }


def is_bundled(config: Config) -> bool:
    """Whether a cell's chains are run in bundles."""
    return LEARNERS[config.learner.kind].batchable and config.resources.bundled
