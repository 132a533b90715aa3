"""What is wrong with a store, and what in it nobody needs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.errors import DamagedError, HarnessError, StoreError
from harness.files import move_aside, read_json
from harness.records import Record
from harness.science import key_of
from harness.store.experiment import is_there, weights_kept
from harness.store.leases import Leases
from harness.store.mixed import mixed_results
from harness.store.store import WRITABLE_PROBE, ItemKind, Store

CHECKED: tuple[ItemKind, ...] = ("data", "fits", "evaluations")


@dataclass(frozen=True)
class Finding:
    """One thing about a store.

    Attributes:
        severity: ``damage``: would be recomputed or mislead; ``leftover``: costs space; ``note``: only worth
            knowing.
        where: Path under the root.
        what: What it is.
        remedy: What to do about it; empty for a note.
    """

    severity: Literal["damage", "leftover", "note"]
    where: str
    what: str
    remedy: str = ""


def examine(store: Store, leases: Leases, repair: bool = False) -> Iterator[Finding]:
    """Everything that is wrong with a store, or left over in it.

    Args:
        store: The store.
        leases: To tell work that goes on from what was left behind.
        repair: Set damaged items aside, so that the next run computes them again.
    """
    for name in store.packs.names():  # before what is in them is looked for, which mends them
        try:
            store.packs.check(name)
        except DamagedError as error:
            if repair:
                store.unpack(name)
            remedy = (
                "set aside; what is undamaged in it has folders again" if repair else "mend it with --repair"
            )
            yield Finding("damage", f"packs/{name}", str(error), remedy)
    for kind in CHECKED:
        for key in sorted(store.committed(kind)):
            yield from _item(store, kind, key, repair)
    for key in store.corpora.names():
        yield from _corpus(store, key, repair)
    for name in store.bundles.names():
        try:
            store.bundles.check(name)
        except DamagedError as error:
            if repair:
                move_aside(store.bundles.folder / name, store.root)
            yield Finding("damage", f"bundles/{name}", str(error), _remedy(repair))
    yield from _mixed(store, repair)
    yield from _references(store)
    yield from _left_behind(store, leases)


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _work(store: Store) -> list[str]:
    """The keys that there is work on."""
    return sorted(name for name in _names(store.root / "work") if not name.startswith(WRITABLE_PROBE))


def _remedy(repair: bool) -> str:
    return (
        "set aside; the next run computes it again"
        if repair
        else "set it aside with --repair; the next run computes it again"
    )


def _item(store: Store, kind: ItemKind, key: str, repair: bool) -> Iterator[Finding]:
    path = store.path(kind, key)
    place = store.place(kind, key)
    if place != path and store.packs.damage(place.name):
        return  # told of the pack
    try:
        store.check(kind, key)
    except (HarnessError, OSError) as error:
        if repair:
            store.set_aside(path)
        yield Finding("damage", f"{kind}/{key}", str(error), _remedy(repair))


def _corpus(store: Store, key: str, repair: bool) -> Iterator[Finding]:
    shards, spec = store.corpora.shards(key), store.root / "corpora" / key / "spec.json"
    begun = shards or spec.exists()  # else somebody is about to write it
    for start, stop in shards:
        try:
            store.corpora.check(key, start, stop, set_aside=repair)
        except DamagedError as error:
            yield Finding("damage", f"corpora/{key}", str(error), _remedy(repair))
    try:
        good = key_of(read_json(spec)) == key
    except (DamagedError, AttributeError, TypeError):
        good = False
    if begun and not good:
        if repair:
            store.set_aside(store.root / "corpora" / key)
        yield Finding(
            "damage", f"corpora/{key}/spec.json", "is missing or does not belong to this key", _remedy(repair)
        )


def _mixed(store: Store, repair: bool) -> Iterator[Finding]:
    """What a branch of another cell computed; none of it is damaged, all of it is wrong."""
    try:
        found = list(mixed_results(store))
    except (StoreError, OSError, KeyError, TypeError, AttributeError) as error:
        yield Finding(
            "note",
            "experiments",
            f"a list of chains cannot be read, so mixed cells cannot be looked for ({error})",
        )
        return
    for item in found:
        if repair:
            if item.kind == "evaluations" and (place := store.packs.place(item.key)) is not None:
                store.unpack(place.pack)
            store.set_aside(store.root / item.kind / item.key)
        yield Finding("damage", f"{item.kind}/{item.key}", item.why, _remedy(repair))


def _references(store: Store) -> Iterator[Finding]:
    """Records whose fit or corpus is not there."""
    # first: a generation that is committed meanwhile has its fit and corpus before that
    records = store.committed("evaluations")
    fits, corpora = store.committed("fits"), set(_names(store.root / "corpora"))
    for key in sorted(records):
        try:
            record = Record.from_json(store.json("evaluations", key, "record.json"))
            examples = int(store.json("evaluations", key, "spec.json")["evaluation"].get("examples", 1))
        except (StoreError, OSError, AttributeError, TypeError, KeyError, ValueError):
            continue  # told above
        remedy = "the next run of its experiment makes it again"
        if record.fit not in fits:
            yield Finding("damage", f"fits/{record.fit}", f"is missing, and record {key} rests on it", remedy)
        if record.status == "diverged":
            continue
        if record.corpus not in corpora or not store.corpora.count(record.corpus):
            yield Finding(
                "damage", f"corpora/{record.corpus}", f"is missing, and record {key} rests on it", remedy
            )
        elif store.corpora.count(record.corpus) < examples:
            have = store.corpora.count(record.corpus)
            yield Finding(
                "damage",
                f"corpora/{record.corpus}",
                f"has {have} examples, record {key} rests on {examples}",
                remedy,
            )


def _left_behind(store: Store, leases: Leases) -> Iterator[Finding]:
    for key in _work(store):
        size = _size(store.root / "work" / key)
        if leases.held(leases.look(key)):
            yield Finding("note", f"work/{key}", f"is being worked on ({_mebibytes(size)})")
        else:
            yield Finding(
                "leftover",
                f"work/{key}",
                f"unfinished, nobody works on it ({_mebibytes(size)})",
                "continue it with run, or gc",
            )
    for key, view in leases.keys():
        if view.owner is not None and not leases.held(view):
            yield Finding(
                "leftover",
                f"leases/{key}",
                f"its owner {view.owner} is dead",
                "run takes it over; gc removes it",
            )
    aside = _names(store.root / "damaged")
    if aside:
        size = _size(store.root / "damaged")
        yield Finding(
            "leftover",
            "damaged",
            f"{len(aside)} items that were set aside ({_mebibytes(size)})",
            "gc --damaged",
        )
    evicted = sum(not store.has_weights(key) for key in store.committed("fits"))
    yield Finding(
        "note",
        "fits",
        f"{evicted} of {len(store.committed('fits'))} have no weights (retention, or diverged)",
    )
    usage = shutil.disk_usage(store.root)
    yield Finding("note", ".", f"{_mebibytes(usage.free)} free on its disk")


def _size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; what others remove meanwhile counts as nothing."""
    total = 0
    for file in (path, *(Path(folder, name) for folder, _, names in os.walk(path) for name in names)):
        with contextlib.suppress(OSError):
            total += 0 if file.is_dir() else file.stat().st_size
    return total


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def evaluations_by_chain(store: Store) -> Iterable[str]:
    """The keys of all evaluations, those of a chain one after another where an experiment has it."""
    found = dict[str, None]()
    for path in sorted((store.root / "experiments").glob("*/chains.json")):
        with contextlib.suppress(StoreError, KeyError, TypeError):
            for chain in read_json(path):
                found.update({generation["evaluation"]: None for generation in chain["generations"]})
    there = store.committed("evaluations")
    return [*(key for key in found if key in there), *sorted(there - found.keys())]


@dataclass
class Freed:
    """What `collect` freed, or would free: number and bytes."""

    weights: int = 0
    weights_bytes: int = 0
    work: int = 0
    work_bytes: int = 0
    leases: int = 0
    damaged: int = 0
    damaged_bytes: int = 0


@dataclass(frozen=True)
class Needs:
    """What the experiments on a root need.

    Attributes:
        weights: Fits whose weights stay: an experiment keeps them, or has chains that are not complete and
            may read them.
        unfinished: Keys of generations that are not complete: their work stays.
    """

    weights: frozenset[str]
    unfinished: frozenset[str]


def needs(store: Store) -> Needs:
    """What the experiments on a root need.

    Raises:
        StoreError: An experiment cannot be read; then nothing may be freed.
    """
    weights: set[str] = set()
    unfinished: set[str] = set()
    there: dict[ItemKind, set[str]] = {
        "evaluations": store.committed("evaluations"),
        "fits": store.committed("fits"),
    }
    for folder in sorted((store.root / "experiments").glob("*")):
        try:
            weights.update(weights_kept(folder))
            if not is_there(folder / "chains.json"):
                continue
            for chain in read_json(folder / "chains.json"):
                missing = missing_of(store, chain["generations"], lambda kind, key: key in there[kind])
                if missing:
                    weights.update(entry["fit"] for entry in chain["generations"])
                    unfinished.update(
                        entry[name] for entry in missing for name in ("fit", "corpus", "evaluation")
                    )
        except (StoreError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{folder} cannot be read ({error}), so what it needs is not known: run it again, or remove "
                "it"
            ) from None
    return Needs(frozenset(weights), frozenset(unfinished))


def missing_of(
    store: Store, generations: Sequence[dict[str, Any]], has: Callable[[ItemKind, str], bool]
) -> list[dict[str, Any]]:
    """Those generations of a chain that are not complete; none where it has diverged.

    Args:
        store: The store.
        generations: Of the chain, as its experiment's ``chains.json`` has them.
        has: Whether an item is committed.
    """
    missing = [
        entry
        for entry in generations
        if not has("evaluations", entry["evaluation"])
        or not has("fits", entry["fit"])
        or store.corpora.count(entry["corpus"]) < entry.get("examples", 0)  # earlier versions did not say
    ]
    last = [entry["evaluation"] for entry in generations if has("evaluations", entry["evaluation"])]
    if missing and last and store.json("evaluations", last[-1], "record.json")["status"] == "diverged":
        return []
    return missing


def collect(store: Store, leases: Leases, dry_run: bool = False, damaged: bool = False) -> Freed:
    """Free weights and work that no experiment on the root needs, and what dead processes have left.

    Records and corpora always stay; so do what somebody works on, and the weights and work of chains that are
    not complete.

    Args:
        store: The store.
        leases: To leave alone what is being worked on.
        dry_run: Only count.
        damaged: Also remove what was set aside.
    """
    needed, freed = needs(store), Freed()
    for fit in sorted(store.committed("fits") - needed.weights):
        path = store.weights_file(fit)
        if path.exists() and not leases.held(leases.look(fit)):
            freed.weights += 1
            freed.weights_bytes += _size(path)
            if not dry_run:
                store.evict_weights(fit, "gc: no experiment needs them")
    for key in _work(store):
        if key not in needed.unfinished and not leases.held(leases.look(key)):
            freed.work += 1
            freed.work_bytes += _size(store.root / "work" / key)
            if not dry_run:
                store.clear_work(key)
    freed.leases = leases.sweep(dry_run)
    if damaged:
        for name in _names(store.root / "damaged"):
            freed.damaged += 1
            freed.damaged_bytes += _size(store.root / "damaged" / name)
        if not dry_run:
            shutil.rmtree(store.root / "damaged", ignore_errors=True)
    return freed
