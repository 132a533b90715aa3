"""Generations that a branch of another cell computed: wrong results under valid keys.

They let a branch go on from a generation that several cells share into another cell, and ran all of it with
the filters, the fixed corpus and the teacher of the first. What was computed so is found from the
experiments' events, from their lists of chains and from the specs beside the results; so is all that rests on
it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import StoreError
from harness.files import read_json
from harness.store.experiment import Experiment
from harness.store.store import AnyKind, ItemKind, Store


@dataclass(frozen=True)
class Mixed:
    """One result that cannot be trusted.

    Attributes:
        kind: ``fits``, ``corpora`` or ``evaluations``.
        key: Its key.
        why: In a sentence.
    """

    kind: ItemKind | str
    key: str
    why: str


def mixed_results(store: Store) -> Iterator[Mixed]:
    """All results that a branch of another cell computed with other filters, sources or corpora.

    What rests on them is wrong too.

    Args:
        store: The store; only read.

    Raises:
        StoreError: An experiment's list of chains cannot be read.
    """
    roots = _mixed_fits(store)
    if not roots:
        return
    for fit, why in roots.items():
        yield Mixed("fits", fit, why)
    wrong, below = set(roots), "rests on fit {}, which a branch of another cell computed"
    specs = {key: _spec(store, "fits", key) for key in store.committed("fits")}
    corpora = {key: _spec(store, "corpora", key) for key in store.corpora.names()}
    wrong_corpora: set[str] = set()
    grew = True
    while grew:  # one more generation in each turn
        new = {
            key
            for key, spec in corpora.items()
            if spec.get("fit") in wrong or spec.get("prompts") in wrong_corpora
        }
        wrong_corpora |= new
        grown = {
            key for key, spec in specs.items() if spec.get("parent") in wrong or wrong_corpora & _reads(spec)
        } - wrong
        for key in sorted(grown):
            yield Mixed("fits", key, "rests on a generation that a branch of another cell computed")
        wrong |= grown
        grew = bool(grown)
    for key in sorted(wrong_corpora):
        yield Mixed("corpora", key, below.format(corpora[key].get("fit")))
    for key in sorted(store.committed("evaluations")):
        spec = _spec(store, "evaluations", key)
        if {spec.get("fit"), spec.get("generation_0")} & wrong or spec.get("corpus") in wrong_corpora:
            yield Mixed("evaluations", key, below.format(spec.get("fit")))


def _mixed_fits(store: Store) -> dict[str, str]:
    """Fits to what is wrong with them: the roots, without what rests on them."""
    found: dict[str, str] = {}
    for folder in sorted((store.root / "experiments").glob("*")):
        grids = [_chains(path) for path in sorted((folder / "parts").glob("*.json"))]
        if not grids and (folder / "chains.json").exists():
            grids = [_chains(folder / "chains.json")]
        found |= _of_experiment(store, Experiment(store.root, folder.name), grids)
    return found


def _of_experiment(
    store: Store, experiment: Experiment, grids: Sequence[Sequence[Mapping[str, Any]]]
) -> dict[str, str]:
    found: dict[str, str] = {}
    trusted: set[str] = set()
    for event in experiment.events():
        branch = event.get("branch", "")
        if event["event"] == "branch_started":
            # Since branches stay in their cell, they say which one it is.
            (trusted.add if "axes" in event else trusted.discard)(branch)
        elif event["event"] == "fit_committed":
            found.pop(event["fit"], None)
            why = None if branch in trusted else _judge(store, branch, event, grids)
            if why and store.has("fits", event["fit"]):
                found[event["fit"]] = f"{why} (experiment {experiment.name}, branch {branch})"
    return found


def _judge(
    store: Store, branch: str, event: Mapping[str, Any], grids: Sequence[Sequence[Mapping[str, Any]]]
) -> str | None:
    """Why a fit cannot be trusted.

    None where the cell that its branch ran with is its own, or says the same.
    """
    own = _science(store, event["fit"])
    if own is None:  # generation 0 trains on the real examples alone; what is not there misleads nobody
        return None
    for chains in grids:
        through = [
            chain for chain in chains if any(g["evaluation"].startswith(branch) for g in chain["generations"])
        ]
        if not any(g["evaluation"] == event["evaluation"] for chain in through for g in chain["generations"]):
            continue
        runner = _runner(store, through)
        if any(g["evaluation"] == event["evaluation"] for g in runner["generations"]):
            continue
        theirs = [_science(store, g["fit"]) for g in runner["generations"]]
        if own not in theirs:
            return "was computed by a branch of another cell, with its filters, sources or corpora"
    return None


def _runner(store: Store, through: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The chain whose cell gave a branch its configuration.

    The first that has its first generation, writers before readers.
    """
    runner = through[0]
    for _ in through:
        own = {g["corpus"] for g in runner["generations"]}
        reads = {
            corpus for g in runner["generations"] for corpus in _reads(_spec(store, "fits", g["fit"]))
        } - own
        writer = next(
            (chain for chain in through if reads & {g["corpus"] for g in chain["generations"]}), None
        )
        if writer is None:
            break
        runner = writer
    return runner


def _science(store: Store, fit: str) -> tuple[Any, Any] | None:
    """What of a cell its branch brings along: filters and source.

    None for generation 0 and for what is not there.
    """
    training = _spec(store, "fits", fit).get("training_set")
    return None if training is None else (training.get("filters"), training.get("source"))


def _reads(spec: Mapping[str, Any]) -> set[str]:
    return {item["corpus"] for item in spec.get("training_set", {}).get("corpora", ())}


def _spec(store: Store, kind: AnyKind, key: str) -> dict[str, Any]:
    """A spec; empty where it cannot be read, which is told elsewhere."""
    try:
        found = store.json(kind, key, "spec.json")
    except (StoreError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def _chains(path: Path) -> list[Mapping[str, Any]]:
    """The chains of one grid, in its order; those in bundles have no branches."""
    return [chain for chain in read_json(path) if chain["generations"]]
