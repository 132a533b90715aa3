"""Keys, the graph of all generations of a grid, and the branches that it is cut into.

A key is the hash of canonical JSON that describes the science and nothing else. Chains that agree on everything up to a generation
have equal keys there, so they share the node; nothing else does the sharing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.errors import HarnessError
from harness.records import REAL, Recipe

KEY_FORMAT = 1
"""Enters every key; raised only if the meaning of canonical JSON itself changes."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, and nothing that two machines could write differently.

    Raises:
        HarnessError: The value holds something that has no one way to be written: NaN, infinity, an object, a key that is no text.
    """
    _check_plain(value, "")
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check_plain(value: Any, path: str) -> None:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if kind is dict:
        for name, inner in value.items():
            if type(name) is not str:
                raise HarnessError(f"a key cannot hold {path or 'a mapping'} with the name {name!r}: names must be text")
            _check_plain(inner, f"{path}.{name}")
    elif kind is list or kind is tuple:
        for index, inner in enumerate(value):
            _check_plain(inner, f"{path}.{index}")
    elif kind is not float or not math.isfinite(value):
        raise HarnessError(f"a key cannot hold {path} = {value!r} ({kind.__name__}): only finite plain data")


def key_of(spec: Mapping[str, Any], checked: bool = False) -> str:
    """The key of a spec: 128 bits of SHA-256, in hexadecimal.

    Args:
        spec: Plain data.
        checked: That it is plain is known already: its parts were in a spec before, or are numbers and keys.
    """
    text = _ENCODER.encode(spec) if checked else canonical_json(spec)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class CellScience:
    """What a cell's keys are made of; everything is plain data but ``recipe``.

    Attributes:
        data: The real data by content, with the recipe of the tokenizer and the blocks.
        fit: The learner: kind, version, model, init, training.
        sampling: The learner's version and sampling, the source of prompts.
        evaluation: Names and versions of the metrics, prompts, number of examples.
        filters: The filters with their versions.
        recipe: Generation to training set.
        init: Where generation 0 starts from, and later ones too unless ``init_previous``; None for a learner without weights.
        init_previous: A generation starts from the weights of the one before.
        previous_prompts: Examples continue the previous corpus.
        n: Real training examples.
        evaluated: Examples of each corpus that the metrics read.
        generations: Index of the last generation.
        cost: Relative cost of one training example (for priorities).
        source: Index of the cell whose chain wrote the synthetic examples, with the same seed; None for the chain itself.
        writer: Fingerprint of a fixed corpus, or what a fixed teacher is; None for other sources.
    """

    data: Mapping[str, Any]
    fit: Mapping[str, Any]
    sampling: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    filters: Sequence[Mapping[str, Any]]
    recipe: Callable[[int], Recipe]
    init: str | None
    init_previous: bool
    previous_prompts: bool
    n: int
    evaluated: int
    generations: int
    cost: float = 1.0
    source: int | None = None
    writer: Any = None


@dataclass(frozen=True, slots=True)
class Node:
    """One generation of the lineage, shared by all chains that agree on it; ``evaluation`` is its identity.

    Attributes:
        generation: Index, from 0.
        seed: The chain's seed.
        cell: Index of the first cell that has it.
        fit: Key of the fit.
        corpus: Key of the corpus.
        evaluation: Key of the evaluation.
        recipe: Its training set.
        corpora: Origin to the node whose corpus is read.
        previous: The node before it; None for generation 0, and where chains with different pasts meet (in a refresh): such a
            generation reads nothing of what came before, and exists as soon as one of those chains comes so far.
        first: The node of generation 0 (itself for generation 0).
        init: ``scratch``, ``pretrained`` or ``previous``; None for a learner without weights to start from.
        init_from: The node whose weights it starts from; None unless ``previous``.
        dependencies: Nodes that must be committed before: the previous one, and owners of what it shares.
        cost: Estimated relative cost.
    """

    generation: int
    seed: int
    cell: int
    fit: str
    corpus: str
    evaluation: str
    recipe: Recipe
    corpora: Mapping[int, str]
    previous: str | None
    first: str
    init: str | None
    init_from: str | None
    dependencies: tuple[str, ...]
    cost: float


@dataclass(frozen=True, slots=True)
class Chain:
    """One cell and seed: the nodes of its generations, in order."""

    id: str
    cell: int
    seed: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundledChain:
    """A chain of a cheap learner: run, committed and found as a whole, beside others of its shape.

    Attributes:
        id: As of a `Chain`.
        cell: Index of its cell.
        seed: Its seed.
        key: Of its science without its length: what the store knows it by.
        generations: Index of the last generation.
    """

    id: str
    cell: int
    seed: int
    key: str
    generations: int


@dataclass(frozen=True)
class Lineage:
    """The graph.

    Attributes:
        nodes: By evaluation key, parents before children.
        chains: In the order of cells, then seeds.
        examples: Corpus key to the number of examples that the grid reads from it.
        specs: Key to the full spec behind it.
    """

    nodes: Mapping[str, Node]
    chains: tuple[Chain, ...]
    examples: Mapping[str, int]
    specs: Mapping[str, Mapping[str, Any]]


class _Builder:
    """Collects nodes; the specs of one cell are assembled here and nowhere else."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.examples: dict[str, int] = {}
        self.specs: dict[str, Mapping[str, Any]] = {}
        self.owners: dict[str, str] = {}

    def key(self, spec: Mapping[str, Any], generation: int) -> str:
        key = key_of(spec, checked=generation > 1)  # what a cell gives to its specs is all in those of generations 0 and 1
        self.specs.setdefault(key, spec)
        return key

    def read(self, corpus: str, count: int) -> None:
        self.examples[corpus] = max(self.examples.get(corpus, 0), count)

    def chain(
        self, index: int, cell: CellScience, seed: int, recipes: Sequence[Recipe], written: Sequence[str] | None
    ) -> tuple[str, ...]:
        """Add a chain; ``written`` are the nodes of the chain that writes its synthetic examples, None for itself."""
        path: list[Node] = []
        writers = path if written is None else [self.nodes[key] for key in written]
        for generation, recipe in enumerate(recipes):
            path.append(self.node(index, cell, seed, generation, recipe, path, writers))
        return tuple(node.evaluation for node in path)

    def node(
        self,
        index: int,
        cell: CellScience,
        seed: int,
        generation: int,
        recipe: Recipe,
        path: Sequence[Node],
        writers: Sequence[Node],
    ) -> Node:
        previous = path[-1] if path else None
        reads = {part.origin: part.count for part in recipe.parts if part.origin >= 0}
        init = recipe.init or ("previous" if cell.init_previous else cell.init)
        if init == "previous" and previous is None:
            init = cell.init
        init_from = previous if init == "previous" else None
        fit_spec: dict[str, Any] = {
            "format": KEY_FORMAT,
            "data": cell.data,
            "learner": {**cell.fit, **({"init": init} if init else {})},
            "seed": seed,
            "generation": generation,
        }
        if generation:
            corpora = [{"corpus": writers[origin].corpus, "examples": count} for origin, count in reads.items()]
            # A detector looks at real examples too, and errs there.
            synthetic = any(part.origin != REAL for part in recipe.parts)
            used = [item for item in cell.filters if synthetic or item["kind"] == "label"]
            fit_spec["training_set"] = {**recipe.spec, "corpora": corpora, **({"filters": used} if used else {})}
        if init_from is not None:
            fit_spec["parent"] = init_from.fit
        fit = self.key(fit_spec, generation)
        corpus_spec: dict[str, Any] = {"format": KEY_FORMAT, "fit": fit, "sampling": cell.sampling}
        if cell.previous_prompts and previous is not None:
            corpus_spec["prompts"] = previous.corpus
            self.read(previous.corpus, cell.n)
        corpus = self.key(corpus_spec, generation)
        first = path[0].fit if path else fit
        evaluation = self.key(
            {"format": KEY_FORMAT, "fit": fit, "corpus": corpus, "generation_0": first, "evaluation": cell.evaluation}, generation
        )
        for origin, count in reads.items():
            self.read(writers[origin].corpus, count)
        self.read(corpus, cell.evaluated)
        if (known := self.nodes.get(evaluation)) is not None:
            return self._meet(known, previous)
        shared = {self.owners.setdefault(key, evaluation) for key in (fit, corpus)} - {evaluation}
        if writers is not path:
            shared |= {writers[origin].evaluation for origin in reads}
        node = Node(
            generation=generation,
            seed=seed,
            cell=index,
            fit=fit,
            corpus=corpus,
            evaluation=evaluation,
            recipe=recipe,
            corpora={origin: writers[origin].evaluation for origin in reads},
            previous=previous.evaluation if previous else None,
            first=path[0].evaluation if path else evaluation,
            init=init,
            init_from=init_from.evaluation if init_from else None,
            dependencies=tuple(dict.fromkeys(([previous.evaluation] if previous else []) + sorted(shared))),
            cost=cell.cost * recipe.size,
        )
        self.nodes[evaluation] = node
        return node

    def _meet(self, known: Node, previous: Node | None) -> Node:
        """A node that is there already, reached by one more chain; equal keys say that it does not read what lies behind it."""
        if known.previous is not None and previous is not None and previous.evaluation != known.previous:
            needed = dict.fromkeys((known.first, *known.corpora.values(), *known.dependencies))
            needed.pop(known.previous, None)
            known = self.nodes[known.evaluation] = replace(known, previous=None, dependencies=tuple(needed))
        return known


def in_order(cells: Mapping[int, CellScience]) -> list[int]:
    """Cells such that the source of each comes before it, else in their own order."""
    found: list[int] = []

    def visit(index: int) -> None:
        source = cells[index].source
        if source is not None and source not in found:
            visit(source)
        if index not in found:
            found.append(index)

    for index in cells:
        visit(index)
    return found


def build(cells: Mapping[int, CellScience], chain_ids: Callable[[int, int], str], seeds: Sequence[int]) -> Lineage:
    """Build the lineage of a grid.

    Args:
        cells: The cells by index; with each cell its source.
        chain_ids: From the index of a cell and a seed to the id of the chain (`chain_id`).
        seeds: The seeds that every cell is run with.
    """
    builder, chains = _Builder(), dict[tuple[int, int], Chain]()
    for index in in_order(cells):
        cell = cells[index]
        recipes = [cell.recipe(generation) for generation in range(cell.generations + 1)]
        for seed in seeds:
            written = None if cell.source is None else chains[cell.source, seed].nodes
            nodes = builder.chain(index, cell, seed, recipes, written)
            chains[index, seed] = Chain(chain_ids(index, seed), index, seed, nodes)
    ordered = tuple(chains[index, seed] for index in cells for seed in seeds)
    return Lineage(builder.nodes, ordered, builder.examples, builder.specs)


def reachable(lineage: Lineage, diverged: Collection[str]) -> set[str]:
    """The nodes that exist: a chain ends with a diverged generation, and where the chain that writes for it has ended.

    Args:
        lineage: The graph.
        diverged: Nodes whose record says so.
    """
    if not diverged:
        return set(lineage.nodes)
    found: set[str] = set()
    known = -1
    while len(found) > known:  # a chain may come before the one that writes for it
        known = len(found)
        for chain in lineage.chains:
            for key in chain.nodes:
                written = lineage.nodes[key].corpora.values()
                if any(node not in found or node in diverged for node in written):
                    break
                found.add(key)
                if key in diverged:
                    break
    return found


def chain_nodes(chain: Chain, exists: Collection[str], diverged: Collection[str]) -> Iterator[str]:
    """The nodes of a chain that exist (`reachable`): what others share behind its end is not its own."""
    for key in chain.nodes:
        if key not in exists:
            return
        yield key
        if key in diverged:
            return


def ends(lineage: Lineage, done: Collection[str]) -> set[str]:
    """Of each chain that is not complete, the last node that is: where it may have diverged."""
    found = set()
    for chain in lineage.chains:
        count = next((place for place, key in enumerate(chain.nodes) if key not in done), len(chain.nodes))
        if 0 < count < len(chain.nodes):
            found.add(chain.nodes[count - 1])
    return found


def chain_id(science: Mapping[str, Any], seed: int, suffix: str = "") -> str:
    """A chain's id: the hash of its cell (without ``generations``) and seed, with a suffix where generations is an axis."""
    return hashlib.sha256(canonical_json({"cell": science, "seed": seed}).encode()).hexdigest()[:12] + suffix


@dataclass(frozen=True, slots=True)
class Branch:
    """A path of the lineage that one gang runs from a fork to a leaf; all its nodes are of one cell.

    Attributes:
        id: Short name, from its first node.
        nodes: Evaluation keys in order.
        needs: Nodes outside the branch that must be committed before it starts.
        rank: Cost of the longest path from its first node to a leaf: the scheduler's priority.
    """

    id: str
    nodes: tuple[str, ...]
    needs: frozenset[str]
    rank: float


def cut(lineage: Lineage) -> tuple[Branch, ...]:
    """Cut the graph into branches: each path goes on with its costliest child of the same cell.

    Other children start branches of their own. A gang builds its learner, its filters and what it reads from outside from the
    cell of its branch, so a branch never goes on into another cell, though the two share all generations up to there.
    """
    children: dict[str, list[str]] = {}
    for node in lineage.nodes.values():
        if node.previous is not None:
            children.setdefault(node.previous, []).append(node.evaluation)
    height: dict[str, float] = {}
    for key in reversed(list(lineage.nodes)):
        below = max((height[child] for child in children.get(key, ())), default=0.0)
        height[key] = lineage.nodes[key].cost + below
    heirs: dict[str, str] = {}
    for key, below_keys in children.items():
        cell = lineage.nodes[key].cell
        own = [child for child in below_keys if lineage.nodes[child].dependencies == (key,) and lineage.nodes[child].cell == cell]
        if own:
            heirs[key] = max(own, key=lambda child: height[child])
    continued = set(heirs.values())
    branches = []
    for key, node in lineage.nodes.items():
        if key in continued:
            continue
        path = [key]
        while path[-1] in heirs:
            path.append(heirs[path[-1]])
        branches.append(Branch(key[:12], tuple(path), frozenset(node.dependencies), height[key]))
    return tuple(branches)
