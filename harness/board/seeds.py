"""Every seed that a store has ever been asked for: an entry cannot leave one out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from harness.cells import chain_namer, lineage_of
from harness.errors import DamagedError, InputError
from harness.files import read_json
from harness.store import Store
from harness.study import Prepared
from harness.terminal import shown


def listed_chains(store: Store) -> Mapping[str, int]:
    """Every chain that any run on a store has been asked for, with its seed.

    Raises:
        InputError: A list of chains is damaged: what is in it would be left out.
    """
    found = dict[str, int]()
    for path in sorted((store.root / "experiments").glob("*/chains.json")):
        try:
            chains = read_json(path)
            if not isinstance(chains, list):
                raise TypeError
            for chain in chains:
                found[str(chain["chain"])] = int(chain["seed"])
        except (DamagedError, KeyError, TypeError, ValueError, OverflowError):
            raise InputError(
                f"{path} is damaged, so it is not known which seeds were run; run the experiment "
                f"{shown(path.parent.name)} again, which writes it anew"
            ) from None
    return found


def with_seeds(prepared: Prepared, official: Collection[int], listed: Mapping[str, int]) -> Prepared:
    """A study with the seeds of its track, and all others that were run of one of its cells.

    What is resolved of it (data, models) depends on no seed, and stays.

    Args:
        prepared: The study.
        official: The track's seeds.
        listed: From `listed_chains`.
    """
    name, cells = chain_namer(prepared.specs, prepared.study.generations_is_axis), range(len(prepared.specs))
    others = set(listed.values()) - set(official)
    known = sorted(seed for seed in others if any(name(cell, seed) in listed for cell in cells))
    study = replace(prepared.study, seeds=(*official, *known))
    lineage, bundles = lineage_of(study, list(prepared.specs))
    return replace(prepared, study=study, lineage=lineage, bundles=bundles)
