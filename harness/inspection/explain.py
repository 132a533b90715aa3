"""Why a generation will run.

What is there, what is missing, and how it differs from the nearest one that is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from harness.errors import DamagedError
from harness.inventory import Inventory, NodeState, StoredChains
from harness.science import Chain, Node
from harness.store import Store
from harness.store.store import AnyKind
from harness.study import Prepared
from harness.terminal import counted

Reason = Literal[
    "committed",
    "running",
    "damaged",
    "failed",
    "missing",
    "new",
    "changed",
    "waiting",
    "diverged",
    "unreachable",
]
NEAREST = 50
"""Stored generations whose parents are compared too, to find the nearest one."""
DEPTH = 64
FIELDS = (
    ("sampling.", "learner.sample."),
    ("evaluation.", "evaluate."),
    ("training_set.filters", "filters"),
    ("training_set.", "regime."),
)
"""From parts of a spec to fields of the configuration."""
ABSENT = "(default)"
AFTER = "will run after generation {}"
"""Of a generation that waits for the one before it."""


@dataclass(frozen=True)
class Difference:
    """One field in which a generation differs from a stored one.

    Attributes:
        generation: Whose field it is: the generation itself, or one that it descends from.
        field: As in the configuration, as far as there is such a field.
        stored: Value of the stored one.
        wanted: Value of this one.
    """

    generation: int
    field: str
    stored: Any
    wanted: Any


@dataclass(frozen=True)
class Explanation:
    """Why one generation will run, or will not.

    Attributes:
        generation: Its index.
        reason: In a word.
        detail: In a sentence.
        nearest: Evaluation key of the nearest stored generation, for ``changed``.
        differences: What differs from it.
    """

    generation: int
    reason: Reason
    detail: str
    nearest: str | None = None
    differences: tuple[Difference, ...] = ()


def ranges(found: Sequence[Explanation], bundled: bool) -> list[tuple[str, Explanation]]:
    """Generations of which there is the same to be said, as ``generations 2 to 9``, with one of each.

    Args:
        found: From `Explainer.explain`.
        bundled: Whether the chain is there as a whole, or not; of others each committed one was made at a
            time of its own.
    """
    parts: list[list[Explanation]] = []
    for item in found:
        alike = bundled or item.reason == "waiting"
        if alike and parts and not item.differences and _said(parts[-1][-1]) == _said(item):
            parts[-1].append(item)
        else:
            parts.append([item])
    told = []
    for first, *others in parts:
        name, one = f"generation {first.generation}", first
        if others:
            name = f"generations {first.generation} to {others[-1].generation}"
            one = replace(first, detail=str(_said(first)[1]))
        told.append((name, one))
    return told


def _said(item: Explanation) -> tuple[object, ...]:
    """What is said of a generation, whichever it is."""
    after = item.reason == "waiting" and item.detail == AFTER.format(item.generation - 1)
    return item.reason, "will run one after the other" if after else item.detail, item.differences


class Explainer:
    """Compares a chain with what a store holds; reads only."""

    def __init__(self, prepared: Prepared, store: Store, chain: Chain) -> None:
        """Look at what is there of the chain."""
        self.prepared, self.store, self.chain = prepared, store, chain
        self.stored = StoredChains(prepared, store, Inventory(prepared, store, chain.nodes)).of(chain)

    def explain(self) -> list[Explanation]:
        """Every generation of the chain, in order; a bundled chain is there as a whole, or not."""
        found: list[Explanation] = []
        for generation, state in enumerate(self.stored.states(self.chain)):
            told = self._told(state, generation)
            if told is None:
                node = self.prepared.lineage.nodes[self.chain.nodes[generation]]
                told = self._one(state, node, behind=bool(found) and found[-1].reason != "committed")
            found.append(told)
            if told.reason in ("diverged", "unreachable"):
                break
        return found

    def _told(self, found: NodeState, generation: int) -> Explanation | None:
        """What the inventory says by itself; None where it is to be seen what is there of the node."""
        match found.state:
            case "committed" | "diverged" | "new" | "unreachable" if found.detail:
                return Explanation(generation, found.state, found.detail)
            case "diverged":
                return Explanation(
                    generation, "diverged", "is committed; it diverged, so there are no later generations"
                )
            case "failed" | "waiting" if not self.chain.nodes:
                return Explanation(generation, found.state, f"will be tried again: {found.detail}")
            case "running":
                return Explanation(generation, "running", f"is being computed: {found.detail}")
        return None

    def _one(self, found: NodeState, node: Node, behind: bool) -> Explanation:
        if found.state == "committed":
            return Explanation(node.generation, "committed", self._provenance(node))
        if found.state == "damaged":
            trouble = self.store.trouble[str(self.store.path("evaluations", node.evaluation))]
            return Explanation(node.generation, "damaged", f"will run: {trouble}")
        if self.store.record(node.evaluation) is not None:
            return self._rest(node)
        aside = self._set_aside(node)
        if aside:
            return Explanation(
                node.generation, "damaged", f"will run: it was damaged and set aside as {aside}"
            )
        if behind:
            return Explanation(node.generation, "waiting", AFTER.format(node.generation - 1))
        if found.state == "failed":
            return Explanation(node.generation, "failed", f"will be tried again: {found.detail}")
        if self.store.has("fits", node.fit):
            have, examples = (
                self.store.corpora.count(node.corpus),
                self.prepared.lineage.examples[node.corpus],
            )
            differences = self._evaluation_differences(node)
            detail = f"will run from its fit, which is stored; {have} of {examples} examples are sampled"
            return Explanation(
                node.generation, "changed" if differences else "new", detail, differences=differences
            )
        return self._nearest(node)

    def _rest(self, node: Node) -> Explanation:
        """A generation whose record is there, but not all that belongs to it."""
        have, examples = self.store.corpora.count(node.corpus), self.prepared.lineage.examples[node.corpus]
        detail = f"will be sampled again: {have} of {examples} examples are there"
        if not self.store.has("fits", node.fit):
            detail = "will be fitted again: its record is there, its fit is not"
        return Explanation(node.generation, "missing", detail)

    def _provenance(self, node: Node) -> str:
        try:
            found = self.store.json("evaluations", node.evaluation, "provenance.json")
            freed = (
                "; its weights were freed (retention.weights)" if self.store.weights_freed(node.fit) else ""
            )
            return f"at {found['finished']} on {found['host']}{freed}"
        except (DamagedError, KeyError):
            return "its provenance cannot be read"

    def _set_aside(self, node: Node) -> str | None:
        names = (f"evaluations-{node.evaluation}-", f"fits-{node.fit}-", f"corpora-{node.corpus}-")
        folder = self.store.root / "damaged"
        found = (
            [path.name for path in folder.glob("*") if path.name.startswith(names)] if folder.is_dir() else []
        )
        return f"damaged/{found[0]}" if found else None

    # --- differences ----------------------------------------------------------------------------------------

    @cached_property
    def _stored(self) -> dict[int, list[tuple[str, Mapping[str, Any]]]]:
        """Generation to (evaluation key, spec of its fit) of everything that is stored."""
        found: dict[int, list[tuple[str, Mapping[str, Any]]]] = {}
        for key in sorted(self.store.committed("evaluations")):
            spec = self._spec(key, "evaluations")
            fit = self._spec(spec["fit"], "fits") if spec else None
            if fit:
                found.setdefault(fit["generation"], []).append((key, fit))
        return found

    @cached_property
    def _wanted(self) -> Mapping[str, Mapping[str, Any]]:
        """The specs of the grid by key."""
        specs = [node.spec for node in self.prepared.lineage.nodes.values()]
        return {part.key: part.to_json() for spec in specs for part in (spec.fit, spec.corpus, spec)}

    def _spec(self, key: str, kind: AnyKind) -> Mapping[str, Any] | None:
        """A spec by key: of the grid, or of the store."""
        if key in self._wanted:
            return self._wanted[key]
        try:
            found: Mapping[str, Any] = self.store.json(kind, key, "spec.json")
            return found
        except DamagedError:
            return None

    def _nearest(self, node: Node) -> Explanation:
        wanted = node.spec.fit.to_json()
        same_kind = [
            (key, spec)
            for key, spec in self._stored.get(node.generation, [])
            if spec["learner"]["kind"] == wanted["learner"]["kind"]
        ]
        if not same_kind:
            return Explanation(node.generation, "new", "will run: nothing like it is stored")
        same_kind.sort(key=lambda item: (len(_leaves(wanted).items() ^ _leaves(item[1]).items()), item[0]))
        options = [(key, self._fit_differences(spec, wanted, DEPTH)) for key, spec in same_kind[:NEAREST]]
        best = min(options, key=lambda option: (len(option[1]), option[0]))
        detail = f"will run: the nearest stored generation differs in {counted(len(best[1]), 'field')}"
        return Explanation(node.generation, "changed", detail, best[0], tuple(best[1]))

    def _fit_differences(
        self, stored: Mapping[str, Any], wanted: Mapping[str, Any], depth: int
    ) -> list[Difference]:
        """Field by field; a corpus or a parent that differs is followed to the fields in which it does."""
        generation, found = int(wanted["generation"]), []
        left, right = _leaves(stored), _leaves(wanted)
        for path in sorted(left.keys() | right.keys()):
            a, b = left.get(path, ABSENT), right.get(path, ABSENT)
            if a == b:
                continue
            deeper: list[Difference] | None = None
            if depth and isinstance(a, str) and isinstance(b, str):
                if path.endswith(".corpus") or path == "prompts":
                    deeper = self._corpus_differences(a, b, depth - 1)
                elif path == "parent":
                    deeper = self._follow(a, b, depth - 1)
            found += [Difference(generation, _field(path), a, b)] if deeper is None else deeper
        return list(dict.fromkeys(found))

    def _corpus_differences(self, stored: str, wanted: str, depth: int) -> list[Difference] | None:
        a, b = self._spec(stored, "corpora"), self._spec(wanted, "corpora")
        if a is None or b is None:
            return None
        fit = self._spec(b["fit"], "fits")
        found = [] if a["fit"] == b["fit"] else self._follow(a["fit"], b["fit"], depth)
        if found is None or fit is None:
            return None
        left, right = _leaves({"sampling": a["sampling"]}), _leaves({"sampling": b["sampling"]})
        return found + _differences(int(fit["generation"]), left, right)

    def _follow(self, stored: str, wanted: str, depth: int) -> list[Difference] | None:
        a, b = self._spec(stored, "fits"), self._spec(wanted, "fits")
        return None if a is None or b is None else self._fit_differences(a, b, depth)

    def _evaluation_differences(self, node: Node) -> tuple[Difference, ...]:
        """The fit is stored: how its sampling or its evaluation differs from those that are stored for it."""
        wanted = self._whole(node.evaluation)
        others = [
            self._whole(key)
            for key, fit in self._stored.get(node.generation, [])
            if self._fit_of(key) == node.fit
        ]
        found = [_differences(node.generation, other, wanted) for other in others]
        closest: list[Difference] = min(found, key=len, default=[])
        return tuple(closest)

    def _fit_of(self, evaluation: str) -> str | None:
        spec = self._spec(evaluation, "evaluations")
        return str(spec["fit"]) if spec else None

    def _whole(self, evaluation: str) -> dict[str, Any]:
        spec = self._spec(evaluation, "evaluations") or {}
        corpus = self._spec(str(spec.get("corpus")), "corpora") or {}
        return _leaves({"evaluation": spec.get("evaluation", {}), "sampling": corpus.get("sampling", {})})


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted path to value, for every leaf of plain data."""
    if isinstance(value, Mapping):
        items = [(f"{path}.{name}" if path else str(name), inner) for name, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{path}.{index}", inner) for index, inner in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for inner_path, inner in items for name, leaf in _leaves(inner, inner_path).items()}


def _differences(generation: int, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[Difference]:
    names = sorted(
        name for name in stored.keys() | wanted.keys() if stored.get(name, ABSENT) != wanted.get(name, ABSENT)
    )
    return [
        Difference(generation, _field(name), stored.get(name, ABSENT), wanted.get(name, ABSENT))
        for name in names
    ]


def _field(path: str) -> str:
    """The field of the configuration behind a part of a spec."""
    for prefix, field in FIELDS:
        if path.startswith(prefix):
            return field + path.removeprefix(prefix)
    return path
