"""What a study has cost, by phase, and what its chains share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

from harness.errors import StoreError
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared

PHASES = {"fit": "fits", "sample": "corpora", "evaluate": "evaluations"}
"""Phases of a generation, with where their results are in the store."""


def costs(prepared: Prepared, store: Store) -> dict[str, Any]:
    """Time, device-hours and disk by phase, each generation counted once however many chains share it.

    Returns:
        ``lines`` with ``phase``, ``generations``, ``hours`` (of devices), ``each`` (seconds of a generation,
        the median), and ``disk`` (megabytes); ``total`` of the hours; ``where``: devices, in words. Empty
        where nothing is known.
    """
    phases: dict[str, list[tuple[float, int]]] = {}
    devices, disk, counted = Counter[str](), Counter[str](), set[tuple[str, str]]()
    for node in _committed(prepared, store):
        try:
            found = store.json("evaluations", node, "provenance.json")
        except StoreError as error:
            store.trouble.setdefault(str(store.path("evaluations", node)), str(error))
            continue
        devices[f"{found['world_size']} x {found['device']}"] += 1
        for phase, seconds in found["seconds"].items():
            phases.setdefault(phase, []).append((float(seconds), int(found["world_size"])))
        keys = prepared.lineage.nodes[node]
        for phase, key in (("fit", keys.fit), ("sample", keys.corpus), ("evaluate", node)):
            if (phase, key) not in counted:  # one fit may have several corpora, and these evaluations
                counted.add((phase, key))
                disk[phase] += size_of(store.root / PHASES[phase] / key)
                disk[phase] += store.packs.bytes_each(key) if phase == "evaluate" else 0
    bundled = _bundles(prepared, store)
    if bundled:
        phases["bundle"] = [(seconds, 1) for seconds, _ in bundled]
        disk["bundle"] = sum(size for _, size in bundled)
    lines: list[dict[str, Any]] = [
        {
            "phase": {"bundle": "bundles of chains, all phases"}.get(phase, phase),
            "generations": len(times),
            "hours": sum(seconds * ranks for seconds, ranks in times) / 3600,
            "each": median(seconds for seconds, _ in times),
            "disk": disk[phase] / 1e6,
        }
        for phase, times in phases.items()
    ]
    total = sum(line["hours"] for line in lines)
    where = ", ".join(f"{name} ({count})" for name, count in devices.most_common())
    return {"lines": lines, "total": total, "where": where} if lines else {}


def _committed(prepared: Prepared, store: Store) -> Iterable[str]:
    known = store.committed("evaluations")
    return (node for node in prepared.lineage.nodes if node in known)


def _bundles(prepared: Prepared, store: Store) -> list[tuple[float, int]]:
    """Seconds and bytes of the study's chains in every bundle that has some: others' may be in it too."""
    if not prepared.bundles:
        return []
    places = store.bundles.index()
    sizes = Counter(place.path for place in places.values())
    own: dict[Path, set[str]] = {}
    for chain in prepared.bundles:
        if chain.key in places:
            own.setdefault(places[chain.key].path, set()).add(chain.key)
    found = []
    for path in sorted(own):
        how, share = store.bundles.provenance(path.name), len(own[path]) / sizes[path]
        each, equal = how.get("chain_seconds", {}), float(how["seconds"]) / sizes[path]
        seconds = sum(each.get(key, equal) for key in own[path])  # earlier versions did not say it
        found.append((seconds, round(size_of(path) * share)))
    return found


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files right within a folder; 0 where there is none."""
    try:
        if path.is_file():
            return path.stat().st_size
        with os.scandir(path) as entries:
            return sum(entry.stat().st_size for entry in entries if entry.is_file())
    except OSError:
        return 0


def lineage(prepared: Prepared) -> dict[str, Any]:
    """What was shared: by generation, how many chains go through how many different ones.

    Returns:
        How many ``chains`` there are, ``asked`` and ``different`` generations in all, and ``lines`` with
        ``generation``, ``chains``, ``different`` and ``most``, the largest number of chains through one;
        empty without such chains.
    """
    chains: tuple[Chain, ...] = prepared.lineage.chains
    if not chains:
        return {}
    by_generation: dict[int, Counter[str]] = {}
    for chain in chains:
        for generation, node in enumerate(chain.nodes):
            by_generation.setdefault(generation, Counter())[node] += 1
    lines = [
        {
            "generation": generation,
            "chains": sum(found.values()),
            "different": len(found),
            "most": max(found.values()),
        }
        for generation, found in by_generation.items()
    ]
    asked = sum(line["chains"] for line in lines)
    return {"chains": len(chains), "asked": asked, "different": len(prepared.lineage.nodes), "lines": lines}
