"""What the generations write and draw, side by side: the same prompts, with what changed marked; pictures."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any

from safetensors.numpy import load

from harness.config.naming import cell_name
from harness.files import write_atomic
from harness.reporting import figures
from harness.reporting.ledger import cell_value
from harness.reporting.page import Page
from harness.reporting.statistics import thinned
from harness.science import Chain
from harness.store import Store
from harness.study import Prepared
from harness.terminal import visible

MAX_CELLS = 12
MAX_WORDS = 400
"""Words of a text that are compared; what comes behind is not marked."""
MarkedParts = list[tuple[bool, str]]
"""A text in parts: whether each is new, and the part."""


def first_chains(prepared: Prepared, limit: int) -> list[Chain]:
    """One chain per cell, of its first seed; evenly chosen cells where there are more than ``limit``."""
    found = {chain.cell: chain for chain in reversed(prepared.lineage.chains)}
    return [found[cell] for cell in thinned(sorted(found), limit)]


def chain_title(prepared: Prepared, chain: Chain) -> str:
    """A chain for people: its cell and seed."""
    values = prepared.axes(chain)
    return visible(cell_name([cell_value(v) for v in values.values()], list(values), chain.seed), lines=False)


def samples(prepared: Prepared, store: Store) -> list[dict[str, Any]]:
    """The prompts with every generation's continuation, for one chain of each cell."""
    shown = []
    for chain in first_chains(prepared, MAX_CELLS):
        by_prompt: dict[int, tuple[str, list[str]]] = {}
        generations = 0
        for key in chain.nodes:
            if store.record(key) is None:
                break
            generations += 1
            for index, text in enumerate(store.json("evaluations", key, "continuations.json")):
                by_prompt.setdefault(index, (text["prompt"], []))[1].append(text["continuation"])
        if by_prompt:
            rows = [
                {"prompt": prompt, "continuations": marked(texts)} for prompt, texts in by_prompt.values()
            ]
            shown.append({"title": chain_title(prepared, chain), "generations": generations, "rows": rows})
    return shown


def marked(texts: Sequence[str]) -> list[MarkedParts]:
    """Texts in parts; a part is new where the text before it has no such words there."""
    found: list[MarkedParts] = [[(False, text)] for text in texts[:1]]
    for before, text in zip(texts, texts[1:], strict=False):
        found.append(_parts(before, text))
    return found


def _parts(before: str, text: str) -> MarkedParts:
    one, other = (re.findall(r"\s+|\w+|[^\w\s]", words) for words in (before, text))
    rest = "".join(other[MAX_WORDS:])
    one, other = one[:MAX_WORDS], other[:MAX_WORDS]
    parts: MarkedParts = []
    for kind, _, _, start, stop in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        part = "".join(other[start:stop])
        if part:
            parts.append((kind != "equal" and not part.isspace(), part))
    return [*parts, (False, rest)] if rest else parts


def pictures(prepared: Prepared, store: Store, page: Page) -> list[dict[str, Any]]:
    """The first samples of every generation as pictures, one strip a generation, for one chain of each cell.

    Files too.
    """
    shown = []
    for chain in first_chains(prepared, MAX_CELLS):
        strips = []
        for generation, key in enumerate(chain.nodes):
            if store.record(key) is None:
                break
            found = load(store.content("evaluations", key, "arrays.safetensors")).get("pictures")
            if found is not None:
                image = figures.strip(found)
                name = f"samples-{chain.id}-generation-{generation}"
                write_atomic(page.folder / "figures" / f"{name}.png", image)
                strips.append({"generation": generation, "name": name} | page.image(image))
        if strips:
            shown.append({"title": chain_title(prepared, chain), "strips": strips})
    return shown
