"""What earlier evaluations of a fit have left for a new one whose weights are gone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load

from harness.errors import StoreError
from harness.metrics import SCORES_VERSION
from harness.science import Node
from harness.store import Store

ARRAYS = "arrays.safetensors"
FREE = (
    "metrics",
    "added",
    "pool",
    "examples",
    "prompts",
    "others",
    "perplexity_batch",
    "max_duplicate_share",
    "ranges",
    "judges",
    "drift",
)
"""Fields of an evaluation that do not change the values per example of the texts that both have; versions of
metrics do not, but for those that `_versions` takes."""


class Earlier:
    """Values per example, and continuations, of other evaluations of the same fit and corpus.

    They are looked for only where weights were freed: where weights are there, computing is simpler, and
    tells more.
    """

    def __init__(self, store: Store, node: Node, first: Node, spec: Mapping[str, Any]) -> None:
        """Nothing is read yet.

        Args:
            store: The store.
            node: What is evaluated.
            first: Generation 0 of its chain.
            spec: Of the evaluation.
        """
        self.store, self.node, self.first, self.spec = store, node, first, spec

    @cached_property
    def _found(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """Keys and evaluation sections of those that can be read from, in the order of their keys."""
        if self.store.has_weights(self.node.fit) and self.store.has_weights(self.first.fit):
            return ()
        found = []
        for key in sorted(self.store.committed("evaluations") - {self.node.evaluation}):
            try:
                spec = self.store.json("evaluations", key, "spec.json")
            except (StoreError, OSError):
                continue
            if self._fits(spec) and self.store.sound("evaluations", key):
                found.append((key, spec["evaluation"]))
        return found

    def _fits(self, spec: Mapping[str, Any]) -> bool:
        if any(spec.get(name) != self.spec[name] for name in ("format", "fit", "corpus", "generation_0")):
            return False
        theirs, ours = (
            {k: v for k, v in s["evaluation"].items() if k not in FREE} for s in (spec, self.spec)
        )
        texts, wanted = _texts(spec), _texts(self.spec)
        return (
            theirs == ours
            and _versions(spec) == _versions(self.spec)
            and all(texts[name] == wanted[name] for name in texts.keys() & wanted.keys())
        )

    def array(self, name: str, rows: int) -> npt.NDArray[np.float64] | None:
        """The first ``rows`` values of an array; None where nobody has so many."""
        for key, _ in self._found:
            try:
                content = self.store.content("evaluations", key, ARRAYS)
                version, arrays = _scores_version(content), load(content)
            except (StoreError, SafetensorError, ValueError):
                continue
            if version == SCORES_VERSION and len(arrays.get(name, ())) >= rows:
                values: npt.NDArray[np.float64] = arrays[name][:rows]
                return values
        return None

    def texts(self) -> Sequence[Mapping[str, str]] | None:
        """The continuations of the same prompts; None where there are none."""
        wanted = self.spec["evaluation"].get("prompts")
        key = next((key for key, section in self._found if section.get("prompts") == wanted), None)
        return None if key is None else list(self.store.json("evaluations", key, "continuations.json"))


def _scores_version(content: bytes) -> int:
    """What the header of a safetensors file says (its length in eight bytes, then JSON)."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return int(header.get("__metadata__", {}).get("scores", 1))


def _versions(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Versions of how values per example come about, where `SCORES_VERSION` does not say it.

    Those are of the answers to a task's prompts, and of all that a package's learner measures.
    """
    metrics: Mapping[str, Any] = spec["evaluation"]["metrics"]
    return {name: version for name, version in metrics.items() if name == "task" or isinstance(version, str)}


def _texts(spec: Mapping[str, Any]) -> Mapping[str, str]:
    found: Mapping[str, str] = spec["evaluation"].get("others", {}).get("texts", {})
    return found
