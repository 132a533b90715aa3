"""What an entry's models write: a few prompts with what some generations make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from harness.errors import StoreError
from harness.section import Section
from harness.store import Store
from harness.study import Prepared

PROMPTS, GENERATIONS, LENGTH = 3, 3, 400
"""Prompts, generations (the first, one between, and the last), and characters of each text at most."""


class EntrySample(Section):
    """A prompt, and what generations make of it."""

    prompt: Annotated[str, Field(max_length=LENGTH)]
    texts: Annotated[dict[str, Annotated[str, Field(max_length=LENGTH)]], Field(max_length=GENERATIONS)]
    """Generation to its continuation."""


def samples_of(prepared: Prepared, store: Store, cell: int, seeds: Sequence[int]) -> tuple[EntrySample, ...]:
    """The samples of a cell's first seed; none for learners that continue no prompts.

    Args:
        prepared: The study.
        store: The store.
        cell: Index of the cell.
        seeds: The track's, in order.
    """
    chains = {chain.seed: chain for chain in prepared.lineage.chains if chain.cell == cell}
    chain = next((chains[seed] for seed in seeds if seed in chains), None)
    if chain is None:
        return ()
    there = [g for g, key in enumerate(chain.nodes) if store.record(key) is not None]
    chosen = sorted({there[0], there[len(there) // 2], there[-1]}) if there else []
    found: dict[int, tuple[str, dict[str, str]]] = {}
    for generation in chosen:
        try:
            written: Sequence[Mapping[str, str]] = store.json(
                "evaluations", chain.nodes[generation], "continuations.json"
            )
        except StoreError as error:
            store.trouble.setdefault(str(store.path("evaluations", chain.nodes[generation])), str(error))
            continue
        for place, text in enumerate(written[:PROMPTS]):
            prompt, texts = found.setdefault(place, (text["prompt"], {}))
            texts[str(generation)] = text["continuation"][:LENGTH]
    return tuple(EntrySample(prompt=prompt[-LENGTH:], texts=texts) for prompt, texts in found.values())
