"""The graph of all generations of a grid.

Chains that agree on everything up to a generation have equal keys there, so they share the node; nothing else
does the sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from harness.records import MEMBER, TEACHER, Recipe, writer_of
from harness.science.specs import CellSpec, CorpusSpec, DataSpec, EvaluationSpec, FitSpec, Versioned


@dataclass(frozen=True, slots=True)
class Node:
    """One generation of the lineage, shared by all chains that agree on it; ``evaluation`` is its identity.

    Attributes:
        spec: What is fitted, sampled and measured.
        cell: Index of the first cell that has it.
        grid_seed: The seed of the grid that its chain has; a member of a population has another of its own
            (`CellSpec.seed`).
        corpora: Origin to the node whose corpus is read.
        previous: The node before it; None for generation 0, and where chains with different pasts meet (in a
            refresh): such a generation reads nothing of what came before, and exists as soon as one of those
            chains comes so far.
        first: The node of generation 0 (itself for generation 0).
        init_from: The node whose weights it starts from; None unless ``spec.fit.init`` is ``previous``.
        prompted_by: The node whose corpus its examples continue; None unless ``spec.corpus.prompts`` is
            ``previous``.
        judged_by: The node whose fit ``spec.corpus.judge`` names; None where it names none.
        dependencies: Nodes that must be committed before: the previous one, and owners of what it shares.
        shares: Those of them that only make first what it would make itself without them.
        cost: Estimated relative cost.
    """

    spec: EvaluationSpec
    cell: int
    grid_seed: int
    corpora: Mapping[int, str]
    previous: str | None
    first: str
    init_from: str | None
    prompted_by: str | None
    dependencies: tuple[str, ...]
    cost: float
    judged_by: str | None = None
    shares: frozenset[str] = frozenset()

    @property
    def generation(self) -> int:
        """Index, from 0."""
        return self.spec.fit.generation

    @property
    def seed(self) -> int:
        """The chain's own seed, of all its random streams."""
        return self.spec.fit.seed

    @property
    def fit(self) -> str:
        """Key of the fit."""
        return self.spec.fit.key

    @property
    def corpus(self) -> str:
        """Key of the corpus."""
        return self.spec.corpus.key

    @property
    def evaluation(self) -> str:
        """Key of the evaluation."""
        return self.spec.key

    @property
    def recipe(self) -> Recipe:
        """Its training set."""
        return self.spec.fit.recipe


@dataclass(frozen=True, slots=True)
class Chain:
    """One cell and seed.

    Attributes:
        id: Of its science and its seed (`chain_id`).
        cell: Index of its cell.
        seed: Its seed.
        generations: Index of the last generation.
        nodes: Of its generations, in order, where these are run, kept and found one by one.
        key: Of its science without its length, where it is run, kept and found as a whole: in a bundle.
    """

    id: str
    cell: int
    seed: int
    generations: int
    nodes: tuple[str, ...] = ()
    key: str = ""


@dataclass(frozen=True)
class Lineage:
    """The graph.

    Attributes:
        nodes: By evaluation key, parents before children.
        chains: In the order of cells, then seeds.
        examples: Corpus key to the number of examples that the grid reads from it.
    """

    nodes: Mapping[str, Node]
    chains: tuple[Chain, ...]
    examples: Mapping[str, int]


@dataclass(frozen=True)
class _Step:
    """What the chains of a cell have in common in one generation.

    Attributes:
        recipe: The training set.
        reads: Origin to the number of first examples that are needed of its corpus.
        longer: Those of which no earlier generation needs as many; a chain that accumulates reads each corpus
            in every generation behind it.
        init: Where its fit starts from.
        filters: Those that its training set goes through.
        writer: The fixed teacher, where it reads one.
    """

    recipe: Recipe
    reads: Mapping[int, int]
    longer: Mapping[int, int]
    init: str | None
    filters: tuple[Versioned, ...]
    writer: DataSpec | None


def _steps(cell: CellSpec) -> list[_Step]:
    known: dict[tuple[int | None, int], int] = {}
    return [_step(cell, generation, known) for generation in range(cell.generations + 1)]


def _step(cell: CellSpec, generation: int, known: dict[tuple[int | None, int], int]) -> _Step:
    """``known``: by member that writes (None for a chain of its own) and generation, what was read so far."""
    recipe = cell.recipe(generation)
    reads: dict[int, int] = {}
    for part in recipe.parts:
        if part.origin >= 0:
            # another's corpus cannot be gone on with where a filter needs more of it than is trained on
            end = cell.drawn(recipe, part.end) if part.origin >= MEMBER else part.end
            reads[part.origin] = max(reads.get(part.origin, 0), end)
    for asked in (cell.labelled(recipe), cell.opposed(recipe)):
        if asked:
            reads[0] = max(reads.get(0, 0), asked)
    longer: dict[int, int] = {}
    for origin, count in reads.items():
        place, then = writer_of(origin)
        corpus = (None if place is None else recipe.writers[place], then)
        if count > known.get(corpus, -1):
            known[corpus] = longer[origin] = count
    return _Step(
        recipe=recipe,
        reads=reads,
        longer=longer,
        init=recipe.init or ("previous" if cell.init_previous else cell.init),
        filters=cell.used_filters(recipe) if generation else (),
        writer=cell.teacher if any(part.origin == TEACHER for part in recipe.parts) else None,
    )


class _Builder:
    """Collects nodes; the specs of one cell are assembled here and nowhere else."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.examples: dict[str, int] = {}
        self.owners: dict[str, str] = {}

    def read(self, corpus: str, count: int) -> None:
        self.examples[corpus] = max(self.examples.get(corpus, 0), count)

    def chains(
        self,
        cells: Mapping[int, CellSpec],
        seed: int,
        steps: Mapping[int, Sequence[_Step]],
        written: Sequence[str] | None,
    ) -> dict[int, tuple[str, ...]]:
        """Add the chain of a cell, or of every member of a population, generation by generation.

        ``written`` are the nodes of the chain that writes its synthetic examples; None for itself, and for
        members, who read each other.
        """
        paths: dict[int, list[Node]] = {index: [] for index in cells}
        source = None if written is None else [self.nodes[key] for key in written]

        def read(index: int, step: _Step) -> dict[int, Node]:
            own = source or paths[index]
            if not step.recipe.writers:
                return {origin: own[origin] for origin in step.reads}
            found = {}
            for origin in step.reads:
                place, then = writer_of(origin)
                writer = own if place is None else paths[cells[index].members[step.recipe.writers[place]]]
                found[origin] = writer[then]
            return found

        for time in range(max(cell.arrives + cell.generations for cell in cells.values()) + 1):
            for index, cell in cells.items():
                if 0 <= time - cell.arrives <= cell.generations:
                    step = steps[index][time - cell.arrives]
                    paths[index].append(self.node(index, cell, seed, step, paths[index], read(index, step)))
        return {index: tuple(node.evaluation for node in path) for index, path in paths.items()}

    def node(
        self,
        index: int,
        cell: CellSpec,
        grid_seed: int,
        step: _Step,
        path: Sequence[Node],
        writers: Mapping[int, Node],
    ) -> Node:
        """The next generation of a chain, behind those on its path; ``writers`` by origin."""
        previous, first = (path[-1], path[0]) if path else (None, None)
        init = step.init if previous or step.init != "previous" else cell.init
        fit = FitSpec(
            data=cell.data,
            learner=cell.learner if path or cell.first is None else cell.first,
            init=init,
            seed=cell.seed(grid_seed),
            generation=len(path),
            recipe=step.recipe,
            corpora={origin: writer.spec.corpus.key for origin, writer in writers.items()},
            filters=step.filters,
            writer=step.writer,
            parent=previous.fit if previous and init == "previous" else None,
            reference=first.fit if first and cell.anchored else None,
            base=first.fit if first and cell.based else None,
        )
        prompts = "real" if cell.prompts == "previous" and previous is None else cell.prompts
        continued = previous if prompts == "previous" else None
        judge = first if cell.judge == "initial" else previous if cell.judge == "previous" else None
        corpus = CorpusSpec(
            fit,
            cell.sampled(len(path)),
            prompts,
            continued.corpus if continued else None,
            judge.fit if judge else None,
        )
        learned = (first.corpus if first else corpus.key) if cell.learned else None
        spec = EvaluationSpec(corpus, first.fit if first else fit.key, cell.measured, learned)
        if learned is not None:
            self.read(learned, cell.learned)
        if continued is not None:
            self.read(continued.corpus, cell.n)
        for origin, count in step.longer.items():
            self.read(writers[origin].corpus, count)
        self.read(corpus.key, cell.measured.examples)
        if (known := self.nodes.get(spec.key)) is not None:
            return self._meet(known, previous)
        needed = {previous.evaluation} if previous else set()
        if cell.source is not None or cell.members:
            own = {node.evaluation for node in path} if cell.members else set()
            needed |= {writer.evaluation for writer in writers.values()} - own
        owners = {self.owners.setdefault(key, spec.key) for key in (fit.key, corpus.key)} - {spec.key}
        node = Node(
            spec=spec,
            cell=index,
            grid_seed=grid_seed,
            corpora={origin: writer.spec.key for origin, writer in writers.items()},
            previous=previous.evaluation if previous else None,
            first=first.evaluation if first else spec.key,
            init_from=previous.evaluation if previous and fit.parent is not None else None,
            prompted_by=continued.evaluation if continued else None,
            dependencies=tuple(
                dict.fromkeys(([previous.evaluation] if previous else []) + sorted(needed | owners))
            ),
            cost=cell.cost * step.recipe.size,
            judged_by=judge.evaluation if judge else None,
            shares=frozenset(owners - needed),
        )
        self.nodes[spec.key] = node
        return node

    def _meet(self, known: Node, previous: Node | None) -> Node:
        """A node that is there already, reached by one more chain.

        Equal keys say that it does not read what lies behind it.
        """
        if known.previous is not None and previous is not None and previous.evaluation != known.previous:
            read = (known.first, *known.corpora.values())
            needed = dict.fromkeys((*read, *known.dependencies))
            needed.pop(known.previous, None)
            known = self.nodes[known.evaluation] = replace(
                known, previous=None, dependencies=tuple(needed), shares=known.shares.difference(read)
            )
        return known


def in_order(cells: Mapping[int, CellSpec]) -> list[int]:
    """Cells such that the source of each comes before it, members of a population beside each other.

    Else in their own order.
    """
    found: list[int] = []

    def visit(index: int) -> None:
        source = cells[index].source
        if source is not None and source not in found:
            visit(source)
        found.extend([member for member in cells[index].members or (index,) if member not in found])

    for index in cells:
        visit(index)
    return found


def build(
    cells: Mapping[int, CellSpec], chain_ids: Callable[[int, int], str], seeds: Sequence[int]
) -> Lineage:
    """Build the lineage of a grid.

    Args:
        cells: The cells by index; with each cell its source.
        chain_ids: From the index of a cell and a seed to the id of the chain (`chain_id`).
        seeds: The seeds that every cell is run with.
    """
    builder, chains = _Builder(), dict[tuple[int, int], Chain]()
    for index in in_order(cells):
        if cells[index].members and index != cells[index].members[0]:  # with the first of its population
            continue
        group = {member: cells[member] for member in cells[index].members or (index,)}
        steps = {i: _steps(cell) for i, cell in group.items()}
        source = cells[index].source
        for seed in seeds:
            written = None if source is None else chains[source, seed].nodes
            for member, nodes in builder.chains(group, seed, steps, written).items():
                chains[member, seed] = Chain(chain_ids(member, seed), member, seed, len(nodes) - 1, nodes)
    ordered = tuple(chains[index, seed] for index in cells for seed in seeds)
    return Lineage(builder.nodes, ordered, builder.examples)


def reachable(lineage: Lineage, diverged: Collection[str]) -> set[str]:
    """The nodes that exist.

    A chain ends with a diverged generation, and where the chain that writes for it has ended.

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


def ends(lineage: Lineage, done: Collection[str], asked: Collection[str] | None = None) -> set[str]:
    """The nodes that are done and may be where a chain has diverged.

    Of a chain the last one that is done; and those before a node that chains of another past have too (in a
    refresh): that may be there though this chain has ended.

    Args:
        lineage: The graph.
        done: Nodes that are complete.
        asked: Where only these are asked for, other chains' last ones count if somebody reads them; None for
            all.
    """
    found = set()
    wanted = set(lineage.nodes if asked is None else asked)
    for node in lineage.nodes.values():
        if node.corpora.get(node.generation - 1) != node.previous:  # else all are the chain's own
            wanted |= set(node.corpora.values())
    for chain in lineage.chains:
        count = next((place for place, key in enumerate(chain.nodes) if key not in done), len(chain.nodes))
        if count and (count < len(chain.nodes) or chain.nodes[-1] in wanted):
            found.add(chain.nodes[count - 1])
        for before, key in zip(chain.nodes[:count], chain.nodes[1:count], strict=False):
            if lineage.nodes[key].previous is None:
                found.add(before)
    return found
