"""Every training example of a study with its origin: who wrote it, from what, and which filters it met.

Of chains that are run one by one everything is in the store. Bundles keep no corpora, so their chains are run
again, and what comes out is compared with their records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from safetensors.numpy import load_file

from harness.bundle import Again, Lesson
from harness.curation import accepted, judge_of, training_examples, undetected
from harness.curation.filters import is_short, raw_count
from harness.curation.training import Sources
from harness.data.packing import corpus_science, read_other
from harness.data.real import RealData
from harness.errors import DamagedError, HarnessError
from harness.inventory.slices import make_slices
from harness.records import EXTERNAL, MEMBER, REAL, TEACHER, Examples
from harness.regimes import Drawn, draw
from harness.science import Node, key_of
from harness.store import Store
from harness.store.bundles import CHAIN, GENERATION
from harness.study import Prepared

CHUNK = 2048
"""Rows that are made at a time."""
ORIGINS = {REAL: "real", EXTERNAL: "corpus", TEACHER: "teacher"}
"""Names of origins that are no generation; those are ``synthetic``."""
TOLERANCE = 1e-9
"""Relative difference between two computations of one number that is none."""
_OWN = pa.schema(
    [
        ("key", pa.string()),
        ("seed", pa.int64()),
        ("generation", pa.int32()),
        ("position", pa.int64()),
        ("origin", pa.string()),
        ("writer", pa.string()),
        ("writer_generation", pa.int32()),
        ("corpus", pa.string()),
        ("example", pa.int64()),
        ("prompt", pa.string()),
        ("prompt_corpus", pa.string()),
        ("prompt_example", pa.int64()),
        ("dropped_by", pa.string()),
    ]
)
COLUMNS = {
    "key": "key of the fit that trains on it, as in the column key of records",
    "seed": "seed of the chain",
    "generation": "generation that trains on it",
    "position": "place in the training set; null where it was dropped",
    "origin": "real; synthetic: a generation wrote it; corpus: a fixed corpus; teacher: a fixed model",
    "writer": "key of the fit that wrote it; of a fixed corpus its hash; null for real examples",
    "writer_generation": "generation that wrote it; null unless synthetic",
    "corpus": "key of the corpus that it is from; null unless synthetic",
    "example": "its place in that corpus, or among the real examples of the seed; null where a teacher's are "
    "filtered",
    "prompt": "what it continues: none, real or corpus; null unless synthetic",
    "prompt_corpus": "key of the corpus whose example it continues",
    "prompt_example": "place of the example that it continues",
    "dropped_by": "the filter that dropped it; not_needed: it passed, and enough had passed before; null "
    "where it was trained on",
    "text": "the example as text",
    "tokens": "the example as token ids",
    "values": "the example as numbers: coordinates, an outcome, or the grey values of a picture, row by row",
}
"""What each column means."""


@dataclass
class Told:
    """What is known when all rows have been made.

    Attributes:
        trained: Rows of training sets.
        real: How many of these are real.
        dropped: Rows that filters dropped, by filter.
        differ: Chains of bundles that this machine computes otherwise than their records say.
    """

    trained: int = 0
    real: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    differ: list[str] = field(default_factory=list)


class ExampleRows:
    """The rows of a study, in pieces."""

    def __init__(self, prepared: Prepared, store: Store) -> None:
        """Nothing is read yet.

        Args:
            prepared: The study.
            store: The store; only read.
        """
        self.prepared, self.store, self.told = prepared, store, Told()
        contents = [data.real.table(data.real.real(0, 1)).schema for data in prepared.data]
        found = {name: schema.field(name).type for schema in contents for name in schema.names}
        for schema in contents:
            for name in schema.names:  # float32 and float64 in one study
                if found[name] != schema.field(name).type:
                    found[name] = pa.list_(pa.float64())
        self.schema = pa.schema([*_OWN, *found.items()])

    def __iter__(self) -> Iterator[pa.Table]:
        """Tables of at most `CHUNK` rows.

        Raises:
            DamagedError: Something that a committed fit was trained on is not in the store, or not the same.
        """
        seen: set[str] = set()
        for key, node in self.prepared.lineage.nodes.items():
            if node.fit in seen or self.store.record(key) is None or not self.store.has("fits", node.fit):
                continue
            seen.add(node.fit)
            real = self.prepared.data[node.cell].real
            sources = _Stored(self.prepared, self.store, node, real)
            lesson = Lesson(node.cell, node, self.prepared.lineage.nodes, sources)
            made = _Remade(lesson, real)
            self._check(node, made.drawn)
            yield from self._tables(made)
        if self.prepared.bundles:
            yield from self._bundled(seen)

    def _check(self, node: Node, drawn: Drawn) -> None:
        """What is made again is what was trained on."""
        path = self.store.path("fits", node.fit) / "training_set.safetensors"
        if not path.exists():  # fits of earlier versions
            return
        kept = load_file(path)
        if not (np.array_equal(kept["origin"], drawn.origin) and np.array_equal(kept["index"], drawn.index)):
            raise DamagedError(f"{path}: this version of the harness draws another training set")

    def _bundled(self, seen: set[str]) -> Iterator[pa.Table]:
        places = self.store.bundles.index()
        there = {chain.key for chain in self.prepared.bundles if chain.key in places}
        for part in filter(None, (part.only(there) for part in make_slices(self.prepared, self.store))):
            for unit in part.units:
                again = Again(unit)
                for lesson in again.lessons():
                    if lesson.node.fit not in seen:
                        seen.add(lesson.node.fit)
                        yield from self._tables(_Remade(lesson, self.prepared.data[lesson.cell].real))
                self._compare(again.rows(), [chain.key for chain in unit.chains])

    def _compare(self, again: pa.Table, keys: Sequence[str]) -> None:
        """Note chains of which this machine makes other numbers than the records say."""
        stored = self.store.bundles.read(keys)
        if stored is None:
            return
        names = [name for name in stored.column_names if "/" in name and name in again.column_names]
        by_chain = [(CHAIN, "ascending"), (GENERATION, "ascending")]
        mine = again.sort_by(by_chain)
        theirs = stored.set_column(0, CHAIN, stored[CHAIN].cast(pa.string())).sort_by(by_chain)
        # A bundle may hold longer chains than the study asks for.
        last = dict(zip(mine[CHAIN].to_pylist(), mine[GENERATION].to_pylist(), strict=True))
        rows = zip(theirs[CHAIN].to_pylist(), theirs[GENERATION].to_pylist(), strict=True)
        theirs = theirs.filter([number <= last.get(chain, -1) for chain, number in rows])
        same = np.full(len(mine), len(theirs) == len(mine))
        for name in names if same.all() else ():
            one, other = (t[name].cast(pa.float64()).to_numpy() for t in (mine, theirs))
            same &= np.isclose(one, other, rtol=TOLERANCE, atol=0.0, equal_nan=True)
        for chain in dict.fromkeys(np.array(mine[CHAIN].to_pylist())[~same].tolist()):
            self.told.differ.append(chain)

    def _tables(self, made: _Remade) -> Iterator[pa.Table]:
        self.told.trained += len(made.drawn)
        self.told.real += int((made.drawn.origin == REAL).sum())
        for piece in made.pieces():
            if piece.dropped_by:
                name = piece.dropped_by
                self.told.dropped[name] = self.told.dropped.get(name, 0) + len(piece.origin)
            for start in range(0, len(piece.origin), CHUNK):
                yield made.table(piece, slice(start, start + CHUNK), self.schema)


@dataclass(frozen=True)
class _Stored:
    """Where a node's training examples come from: the store alone, nothing is computed."""

    prepared: Prepared
    store: Store
    node: Node
    data: RealData

    def real(self, count: int) -> Examples:
        return self.data.real(self.node.seed, count)

    def fixed(self, content: str) -> Examples:
        key = key_of(corpus_science(self.node.spec.fit.data.identity, content))
        if not self.store.sound("data", key):
            raise DamagedError(f"the fixed corpus {content} is not in the store; harness run puts it there")
        return read_other(self.store.path("data", key))

    def corpus(self, origin: int, count: int) -> Examples:
        writer = self.prepared.lineage.nodes[self.node.corpora[origin]]
        return self.store.corpora.load(writer.corpus, count)


@dataclass
class _Counted:
    """Sources that note how much of each corpus was read."""

    sources: Sources
    read: dict[int, int] = field(default_factory=dict)

    def real(self, count: int) -> Examples:
        return self.sources.real(count)

    def fixed(self, content: str) -> Examples:
        return self.sources.fixed(content)

    def corpus(self, generation: int, count: int) -> Examples:
        self.read[generation] = max(count, self.read.get(generation, 0))
        return self.sources.corpus(generation, count)


@dataclass(frozen=True)
class _Piece:
    """Rows of one fate.

    Attributes:
        origin: Of each.
        index: Place among the examples of that origin.
        example: Place in the raw corpus; -1 where it is not known.
        examples: By origin, what ``index`` points into.
        dropped_by: The filter; empty for a training set.
    """

    origin: npt.NDArray[np.int32]
    index: npt.NDArray[np.int64]
    example: npt.NDArray[np.int64]
    examples: Mapping[int, Examples]
    dropped_by: str = ""


class _Remade:
    """A training set, made again."""

    def __init__(self, lesson: Lesson, data: RealData) -> None:
        self.node, self.nodes, self.data = lesson.node, lesson.nodes, data
        self.spec, self.sources = lesson.node.spec.fit, _Counted(lesson.sources)
        self.filters: list[Any] = [part.section for part in self.spec.filters]
        made = training_examples(self.spec, data, self.sources)
        self.drawn, self.found, self.dropped = made.drawn, made.found, made.dropped
        self.pooled = self.spec.recipe.take is not None  # then filters judge the pool, and corpora arrive raw
        read = {} if self.pooled else self.sources.read
        self.passed = {
            origin: [np.arange(count), made.raw.get(origin, np.zeros(0, np.int64))]
            if made.raw
            else self._passed(origin, count)
            for origin, count in read.items()
        }

    def _passed(self, origin: int, count: int) -> list[npt.NDArray[np.int64]]:
        """Places in a raw corpus that are left behind each filter, all of them first."""
        raw, judge = self.sources.corpus(origin, count), judge_of(self.spec, self.data, self.sources, origin)
        parts = [part.offset for part in self.spec.recipe.parts if part.origin == origin]
        start = raw_count(self.filters, max(parts, default=0)) if is_short(self.filters) else 0
        every = (accepted(self.filters[:number], raw, judge) for number in range(len(self.filters) + 1))
        return [index[index >= start] for index in every]

    def pieces(self) -> Iterator[_Piece]:
        """The training set, then what each filter dropped on the way to it."""
        drawn = self.drawn
        yield _Piece(drawn.origin, drawn.index, self._raw(drawn), self.found)
        for origin, passed in self.passed.items():
            used = drawn.index[drawn.origin == origin]
            if not len(used) or len(passed) < 2:
                continue
            last, raw = (
                passed[-1][used.max()],
                {origin: self.sources.corpus(origin, self.sources.read[origin])},
            )
            for section, before, after in zip(self.filters, passed, passed[1:], strict=False):
                lost = np.setdiff1d(before, after)
                lost = lost[lost < last]
                yield _Piece(np.full(len(lost), origin, np.int32), lost, lost, raw, section.kind)
        for kind, left_out in self.dropped:
            yield _Piece(left_out.origin, left_out.index, left_out.index, self.found, kind)
        if not self.pooled:
            yield from self._detected()

    def _detected(self) -> Iterator[_Piece]:
        """What detectors took for synthetic."""
        drawn = draw(self.spec.recipe, self.data.num_examples, self.spec.seed, self.spec.generation)
        left = np.ones(len(drawn), dtype=bool)
        for number, section in enumerate(self.filters, start=1):
            kept = undetected(self.filters[:number], drawn.origin, self.spec.seed, self.spec.generation)
            if kept is not None:
                lost = drawn.take(left & ~kept)
                yield _Piece(lost.origin, lost.index, self._raw(lost), self.found, section.kind)
                left = kept

    def _raw(self, drawn: Drawn) -> npt.NDArray[np.int64]:
        """Places in raw corpora; -1 where a teacher's examples were filtered, which nobody keeps."""
        found = drawn.index.copy()
        for origin, passed in self.passed.items():
            rows = drawn.origin == origin
            found[rows] = passed[-1][drawn.index[rows]]
        if self.filters and not self.pooled:
            found[drawn.origin == TEACHER] = -1
        return found

    def table(self, piece: _Piece, rows: slice, schema: pa.Schema) -> pa.Table:
        """Some rows of a piece."""
        origin, index, example = piece.origin[rows], piece.index[rows], piece.example[rows]
        size = len(origin)
        columns: dict[str, Any] = {
            "key": pa.array([self.node.fit] * size, pa.string()),
            "seed": np.full(size, self.node.grid_seed),
            "generation": np.full(size, self.spec.generation, np.int32),
            "position": pa.nulls(size, pa.int64())
            if piece.dropped_by
            else np.arange(len(piece.origin))[rows],
            "origin": [ORIGINS.get(o, "synthetic") for o in origin.tolist()],
            "writer_generation": pa.array(origin % MEMBER, mask=origin < 0),
            "example": pa.array(example, mask=example < 0),
            "dropped_by": pa.array([piece.dropped_by or None] * size, pa.string()),
        }
        columns |= self._writers(origin, example)
        content = self.data.table(self._gather(piece.examples, origin, index))
        columns |= {name: content[name] for name in content.column_names}
        whole = {f.name: columns.get(f.name, pa.nulls(size, f.type)) for f in schema}
        return pa.table(whole).cast(schema)

    def _writers(self, origin: npt.NDArray[np.int32], example: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Who wrote each row, and what it continues."""
        about = {number: self._writer(number) for number in np.unique(origin).tolist()}
        found: dict[str, list[Any]] = {
            name: [about[number][name] for number in origin.tolist()]
            for name in ("writer", "corpus", "prompt", "prompt_corpus")
        }
        wrote = {
            number: self.nodes[self.node.corpora[number]].spec.corpus
            for number, item in about.items()
            if item["prompt"] is not None
        }
        found["prompt_example"] = [
            wrote[number].prompt_of(place, self.data.num_examples) if number in wrote else None
            for number, place in zip(origin.tolist(), example.tolist(), strict=True)
        ]
        return found

    def _writer(self, origin: int) -> dict[str, str | None]:
        none = dict.fromkeys(("writer", "corpus", "prompt", "prompt_corpus"))
        if origin == REAL:
            return none
        if origin == EXTERNAL:
            return {**none, "writer": str(self.spec.recipe.spec["source"]["corpus"])}
        if origin == TEACHER:
            assert self.spec.writer is not None
            return {**none, "writer": key_of(self.spec.writer.identity)}
        writer = self.nodes[self.node.corpora[origin]]
        wrote = writer.spec.corpus
        prompt = {"none": "none", "real": "real", "fresh": "real", "previous": "corpus"}[wrote.prompts]
        return {
            "writer": writer.fit,
            "corpus": writer.corpus,
            "prompt": prompt,
            "prompt_corpus": wrote.previous,
        }

    @staticmethod
    def _gather(
        examples: Mapping[int, Examples], origin: npt.NDArray[np.int32], index: npt.NDArray[np.int64]
    ) -> Examples:
        """The examples at some places, in order."""
        used = np.unique(origin).tolist()
        if not used:
            raise HarnessError("no rows")
        width = max(examples[number].values.shape[1] for number in used)
        values = np.zeros((len(origin), width), dtype=examples[used[0]].values.dtype)
        lengths = np.zeros(len(origin), dtype=np.int32)
        for number in used:
            rows = np.flatnonzero(origin == number)
            chosen = examples[number].take(index[rows])
            values[rows, : chosen.values.shape[1]] = chosen.values
            lengths[rows] = chosen.lengths
        return Examples(values, lengths)
