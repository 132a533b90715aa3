"""An entry: what one mitigation has come to on a track, read from a store and never typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from harness.board.declared import Declared, claimed, declared_of
from harness.board.immutable import Immutable, read_immutable, write_immutable
from harness.board.rules import check_rules, overlap_of
from harness.board.seeds import listed_chains, with_seeds
from harness.board.texts import EntrySample, samples_of
from harness.board.values import MetricValues, Number
from harness.components import REGIMES
from harness.config.grid import find_cells
from harness.config.mitigations import AXIS, NAME, SECTION
from harness.config.schema import science
from harness.config.track import BASELINE, Track
from harness.errors import InputError
from harness.inspection.status import ChainState, chain_states
from harness.reporting import ledger
from harness.science import Chain, key_of
from harness.section import Section, begins
from harness.store import Store
from harness.store.corpora import digest
from harness.study import Prepared
from harness.terminal import cut

FORMAT = 1
"""Of an entry's file; raised where its meaning changes."""


class SeedResult(Section):
    """What one seed has come to.

    ``state`` is that of its chain: ``complete``, ``diverged``, or why there is no more; ``begun`` where a run
    was asked for it and the store has no record of it.
    """

    chain: str
    state: Literal[
        "complete",
        "diverged",
        "unreachable",
        "running",
        "failed",
        "damaged",
        "interrupted",
        "begun",
        "waiting",
    ]
    detail: str = ""
    keys: tuple[str, ...] = ()
    """Of the fits, by generation; of a bundled chain its own."""
    corpora: tuple[str, ...] = ()
    """SHA-256 of the examples that the metrics read, by generation; a bundled chain keeps no corpora."""
    metrics: dict[str, MetricValues] = {}
    """By name, a value a generation; null where it is not finite. A diverged generation has null alone."""

    @property
    def ended(self) -> int | None:
        """The generation in which its chain has diverged: the first without metrics; None if it has not."""
        if self.state != "diverged":
            return None
        return max((_measured(values) for values in self.metrics.values()), default=0)


def _measured(values: Sequence[float | None]) -> int:
    """How many generations there are up to the last that has a value."""
    return next((place for place in range(len(values), 0, -1) if values[place - 1] is not None), 0)


class EntryCost(Section):
    """What the entry's own chains took, shared generations counted for each chain that has them."""

    device_hours: Annotated[Number, Field(ge=0)]
    training_examples: Annotated[int, Field(ge=0)]
    """Of all generations of one seed together."""
    times_baseline: Annotated[Number, Field(ge=0)]
    """As a multiple of the baseline's."""


class EntryProvenance(Section):
    """How, where and when; none of it decides a number."""

    commits: tuple[str, ...]
    devices: tuple[str, ...]
    versions: dict[str, tuple[str, ...]]
    finished: str
    sample_batches: tuple[Annotated[int, Field(gt=0)], ...] = ()
    """How many examples were drawn at once, of the track's seeds and the baseline's, each number once,
    in order; empty where their scores were not kept as they were drawn, and in older entries."""

    @property
    def dirty(self) -> bool:
        """Whether a source tree with local changes, or of no known revision, computed any of it."""
        return not self.commits or any(not commit or commit.endswith("+dirty") for commit in self.commits)


class Entry(Immutable):
    """The file of an entry."""

    format: Literal[1]
    track: Track
    """All that the track said; its hash tells versions apart."""
    mitigation: Annotated[str, Field(pattern=NAME)]
    settings: dict[str, Any]
    """What the mitigation sets, by dotted field."""
    configuration: dict[str, Any]
    """All that decides its numbers, the seed aside."""
    configuration_hash: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    data: str
    """Key of the real data."""
    seeds: dict[str, SeedResult]
    """Those of the track."""
    other_seeds: dict[str, SeedResult]
    """All others that the store knows of this configuration."""
    baseline: dict[str, SeedResult]
    """`BASELINE` in the same store, with the track's seeds."""
    overlap: dict[str, Number]
    """Share of the test set that is also in the training set: as whole examples, and as n-grams of text."""
    cost: EntryCost
    provenance: EntryProvenance
    experiment: str
    """Of the study that it is from."""
    controls: dict[str, dict[str, SeedResult]] = {}
    """What the track runs beside it: a control's name to its results by seed; ``baseline.clean``: `BASELINE`
    where nothing is synthetic."""
    declared: Declared | None = None
    """What that study claims; None where it claims nothing."""
    samples: tuple[EntrySample, ...] = ()
    """What the models of the first seed write; empty for those that write no text, and in older entries."""

    @field_validator("configuration")
    @classmethod
    def _is_whole(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name in ("learner", "sampling", "evaluation"):
            if not isinstance(value.get(name), dict):
                raise ValueError(f"has no {name}")
        if not isinstance(value["evaluation"].get("metrics"), dict):
            raise ValueError("has no versions of metrics")
        if type(value.get("generations")) is not int:
            raise ValueError("has no number of generations")
        return value

    @property
    def study(self) -> dict[str, Any]:
        """The study that has this entry alone, beside its track."""
        mitigations: dict[str, Any] = {BASELINE: {}, self.mitigation: dict(self.settings)}
        return {"experiment": self.experiment, SECTION: mitigations, "tracking": {"wandb": "disabled"}}

    @property
    def comparable(self) -> str:
        """The same for entries whose numbers may be compared: track, data, and versions of all that it fixes.

        A learner that computes otherwise than it did is another environment, its baseline's too.
        """
        parts = {name: self.configuration[name] for name in ("learner", "sampling", "evaluation")}
        versions = {name: part.get("version") for name, part in parts.items()}
        metrics = parts["evaluation"]["metrics"]
        fixed = {"track": science(self.track), "data": self.data}
        return key_of({**fixed, "metrics": metrics, "versions": versions})

    @property
    def chains(self) -> frozenset[str]:
        """The ids of its chains: the same for entries of the same science, and for no others."""
        return frozenset(result.chain for result in self.seeds.values())

    @property
    def name(self) -> str:
        """Of its file, from the board's folder: the same content always has the same name."""
        track = f"{self.track.track}/{self.mitigation}"
        return f"{track}-{self.configuration_hash[:8]}-{self.sha256[:12]}.json"

    @property
    def is_replicated(self) -> bool:
        """Whether every seed of the track has come to its end, with the baseline's."""
        ended = {"complete", "diverged"}
        return all(r.state in ended for r in (*self.seeds.values(), *self.baseline.values()))


def make_entry(prepared: Prepared, store: Store, mitigation: str, said: str | None = None) -> Entry:
    """One entry of `make_entries`."""
    (entry,) = make_entries(prepared, store, [mitigation], said)
    return entry


def make_entries(
    prepared: Prepared, store: Store, mitigations: Sequence[str], said: str | None = None
) -> list[Entry]:
    """Compute entries.

    Args:
        prepared: A study of a track, with any seeds.
        store: The store.
        mitigations: Their names in the study.
        said: Hash of what another study has claimed of them; of what this one claims when None.

    Raises:
        InputError: The study is of no track, the store has nothing of one, or it breaks a rule of the track.
    """
    listed = listed_chains(store)
    prepared = with_seeds(prepared, track_of(prepared).seeds, listed)
    for name in (*mitigations, BASELINE):
        if not find_cells(prepared.study, {AXIS: name}):
            raise InputError(
                f"{name} is not in the part of the study that is asked for, and an entry needs it; leave "
                f"{AXIS} out of grid and --set, and name entries with --mitigation"
            )
    states = {state.chain: state for state in chain_states(prepared, store)}
    # a run was asked for it: that much is known, and is no secret
    states = {
        chain: replace(state, state="begun") if state.state == "waiting" and chain in listed else state
        for chain, state in states.items()
    }
    claims = said or claimed(prepared)
    results = _Results(prepared, store, states)
    return [_entry(results, name, claims) for name in mitigations]


def _entry(results: _Results, mitigation: str, said: Mapping[str, Any] | str | None) -> Entry:
    prepared, store = results.prepared, results.store
    track = track_of(prepared)
    (cell,), (none,) = (find_cells(prepared.study, {AXIS: name}) for name in (mitigation, BASELINE))
    found, baseline = results.seeds(cell), results.seeds(none)
    official = {str(seed) for seed in track.seeds}
    if not any(result.metrics for result in found.values()):
        damage = f" (left out: {next(iter(store.trouble.values()))})" if store.trouble else ""
        raise InputError(
            f"{mitigation}: the store has none of its generations{damage}; harness run computes them"
        )
    overlap = overlap_of(prepared.data[cell])
    examples, times = check_rules(prepared, track, cell, none, overlap)
    config, spec = prepared.study.cells[cell].config, prepared.specs[cell]
    configuration = {
        "data": spec.data.identity,
        # where a fit starts from is in the keys of fits one by one, and so not in what all have in common
        "learner": {**spec.learner.identity, "init": begins(config.learner)},
        "sampling": spec.sampling.identity,
        "evaluation": spec.measured.identity,
        "filters": [part.identity for part in spec.filters],
        "regime": {**science(config.regime), "version": REGIMES.loaded[config.regime.kind].version},
        "generations": config.generations,
    }
    settings = dict((prepared.study.source.data[SECTION] or {}).get(mitigation) or {})
    own = results.rows(cell)
    return Entry(
        format=FORMAT,
        # all of it written out: what it leaves to defaults is what they are now
        track=Track.model_validate(track.model_dump(mode="json")),
        mitigation=mitigation,
        settings=settings,
        configuration=configuration,
        configuration_hash=key_of(configuration),
        data=key_of(spec.data.identity),
        seeds={seed: result for seed, result in found.items() if seed in official},
        other_seeds={s: r for s, r in found.items() if s not in official and r.state != "waiting"},
        baseline={seed: result for seed, result in baseline.items() if seed in official},
        overlap=overlap,
        cost=EntryCost(
            device_hours=results.device_hours(own, official), training_examples=examples, times_baseline=times
        ),
        provenance=_provenance(own, results.sample_batches((cell, none), official)),
        experiment=prepared.study.base.experiment,
        declared=declared_of(prepared, store, cell, own, said),
        controls=_controls(results, mitigation),
        samples=samples_of(prepared, store, cell, track.seeds),
    )


def _controls(results: _Results, mitigation: str) -> dict[str, dict[str, SeedResult]]:
    """What the store has of the controls of a mitigation, by control and seed: the columns of the board."""
    prepared = results.prepared
    track = track_of(prepared)
    shown = {track.score.metric, *track.score.beside}
    mitigations = prepared.study.source.data[SECTION]
    named: dict[str, str | None] = {c: track.control(mitigation, c, mitigations) for c in track.controls}
    names = {control: name for control, name in named.items() if name is not None}
    if "clean" in names:
        names["baseline.clean"] = f"{BASELINE}.clean"
    official, found = {str(seed) for seed in track.seeds}, dict[str, dict[str, SeedResult]]()
    for control, name in names.items():
        for cell in find_cells(prepared.study, {AXIS: name}):
            found[control] = {
                seed: result.model_copy(
                    update={"metrics": {n: v for n, v in result.metrics.items() if n in shown}}
                )
                for seed, result in results.seeds(cell).items()
                if seed in official
            }
    return found


def track_of(prepared: Prepared) -> Track:
    """The track of a study.

    Raises:
        InputError: It has none.
    """
    if prepared.study.source.track is None:
        raise InputError(
            f"{prepared.study.source.name} is no study of a track; name one in it: 'track: NAME' (harness "
            "list tracks)"
        )
    return prepared.study.source.track.track


class _Results:
    """What the store has of a study, by cell; what several entries ask for is read once."""

    def __init__(self, prepared: Prepared, store: Store, states: Mapping[str, ChainState]) -> None:
        self.prepared, self.store, self.states = prepared, store, states
        self._rows = ledger.rows(prepared, store, provenance=True, keys=False)
        self._chains = prepared.chains
        self._cells = np.array([chain.cell for chain in self._chains])[self._rows.chain]
        self._seeds: dict[int, dict[str, SeedResult]] = {}

    def rows(self, cell: int) -> Any:
        """The rows of a cell, with their provenance, as a data frame."""
        return self._rows.where(self._cells == cell).to_pandas()

    def seeds(self, cell: int) -> Mapping[str, SeedResult]:
        """Every seed of a cell."""
        if cell not in self._seeds:
            self._seeds[cell] = self._read(cell)
        return self._seeds[cell]

    def _read(self, cell: int) -> dict[str, SeedResult]:
        rows = self.rows(cell)
        names = [name for name in rows.columns if "/" in name and not name.startswith("provenance/")]
        values = {name: rows[name].to_numpy(dtype=np.float64, na_value=np.nan) for name in names}
        places, nowhere = rows.groupby("chain", sort=False).indices, np.zeros(0, dtype=np.int64)
        bundled = {chain.id: (chain.key,) for chain in self.prepared.bundles}
        found = {}
        for chain in (chain for chain in self._chains if chain.cell == cell):
            own, state = places.get(chain.id, nowhere), self.states[chain.id]
            metrics = {
                name: MetricValues([None if v != v else v for v in values[name][own].tolist()])
                for name in sorted(names)
                if not np.isnan(values[name][own]).all()
            }
            nodes = (self.prepared.lineage.nodes[key] for key in chain.nodes[: len(own)])
            keys = bundled.get(chain.id) or tuple(node.fit for node in nodes)
            found[str(chain.seed)] = SeedResult(
                chain=chain.id,
                state=state.state,
                detail=cut(state.detail),
                keys=keys if len(own) else (),
                corpora=_corpora(self.prepared, self.store, chain, len(own)),
                metrics=metrics,
            )
        return found

    def sample_batches(self, cells: Sequence[int], official: set[str]) -> tuple[int, ...]:
        """How many examples were drawn at once in these cells, as far as metrics read them.

        Empty where that decides nothing: what the model gave them as it wrote them was not kept of all, and
        has been computed anew; or nothing is kept.
        """
        name, own = "provenance/sample_batch", self._rows.own
        chains = [c.cell in cells and str(c.seed) in official for c in self._chains]
        wanted = np.array(chains, dtype=np.bool_)[self._rows.chain]
        found = set[int]()
        if name in own.column_names:  # what is there may have been drawn anew since
            found |= set(own[name].filter(pa.array(wanted)).drop_null().to_pylist())
        for place, generations in Counter(self._rows.chain[wanted].tolist()).items():
            for key in self._chains[place].nodes[:generations]:
                node = self.prepared.lineage.nodes[key]
                count = node.spec.measured.examples
                if self.store.corpora.scores(node.corpus, count) is None:
                    return ()
                shards = self.store.corpora.shards(node.corpus)
                found |= {stop - start for start, stop in shards if start < count}
        return tuple(sorted(found))

    def device_hours(self, own: Any, official: set[str]) -> float:
        """Hours of devices (GPUs; CPU processes where there are none) that the track's seeds took.

        Args:
            own: `rows` of a cell that has some.
            official: The seeds.
        """
        own = own[own["seed"].astype(str).isin(official)]
        if "provenance/bundle" in own.columns:
            chains = own.groupby("chain").first()
            # Of a bundle of an earlier version, which did not say it, each chain has an equal share.
            shares = chains["provenance/seconds/bundle"] / chains["provenance/bundle"].map(self._sizes)
            if "provenance/seconds/chain" in chains.columns:
                shares = chains["provenance/seconds/chain"].fillna(shares)
            return float(shares.sum()) / 3600
        phases = [name for name in own.columns if name.startswith("provenance/seconds/")]
        seconds = own[phases].sum(axis=1) * own["provenance/world_size"]
        return float(seconds.sum()) / 3600

    @cached_property
    def _sizes(self) -> Mapping[str, int]:
        """How many chains each bundle has."""
        return Counter(place.path.name for place in self.store.bundles.index().values())


def _corpora(prepared: Prepared, store: Store, chain: Chain, generations: int) -> tuple[str, ...]:
    """The hashes of what the first generations of a chain have written, as far as metrics read it."""
    nodes = [prepared.lineage.nodes[key] for key in chain.nodes[:generations]]
    found = []
    for node in nodes:
        count = node.spec.measured.examples
        if store.corpora.count(node.corpus) >= count:  # a diverged generation has written nothing
            found.append(digest(store.corpora.load(node.corpus, count)))
    return tuple(found)


def _provenance(own: Any, sample_batches: tuple[int, ...]) -> EntryProvenance:
    def distinct(name: str) -> tuple[str, ...]:
        return tuple(sorted(map(str, own[name].dropna().unique()))) if name in own.columns else ()

    versions = [name for name in own.columns if name.startswith("provenance/versions/")]
    finished = distinct("provenance/finished")
    return EntryProvenance(
        commits=distinct("provenance/commit"),
        devices=distinct("provenance/device"),
        versions={name.removeprefix("provenance/versions/"): distinct(name) for name in versions},
        finished=finished[-1] if finished else "",
        sample_batches=sample_batches,
    )


def read_entry(path: Path) -> Entry:
    """Read an entry's file.

    Raises:
        InputError: It cannot be read, is no entry, or is not what its name says.
    """
    return read_immutable(path, Entry, "entry")


def write_entry(entry: Entry, folder: Path) -> Path:
    """Add an entry to a folder; one with the same content is there already, and stays.

    Raises:
        InputError: The folder cannot be written.
    """
    try:
        return write_immutable(entry, folder)
    except OSError as error:
        raise InputError(f"--to: {folder / entry.name} cannot be written: {error.strerror}") from None
