"""What a chain needs to know of the real distribution, and what its kinds have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.records import Examples
from harness.science import DataSpec
from harness.section import DataSection
from harness.streams import stream
from harness.terminal import shown

if TYPE_CHECKING:
    import pyarrow as pa


GROUP = "group."
"""What names of groups of the real data begin with, among those of other texts that models are scored on."""


@dataclass(frozen=True)
class ExternalCorpus:
    """Text from elsewhere, as blocks of the real data's tokens.

    Attributes:
        fingerprint: Hash of its documents.
        examples: The blocks.
    """

    fingerprint: str
    examples: Examples


class RealData(ABC):
    """A real distribution: text, images, rows of numbers, or a known one.

    Attributes:
        config: Their section.
        prompted: Whether an example is a prompt and a completion.
        prompt_tokens: Tokens at the beginning of an example that are never learned: its prompt's.
        counted: Whether models that only count tokens are what a chain has to be better than.
    """

    prompted: bool = False
    prompt_tokens: int = 0
    counted: bool = False
    config: Any

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        return int(self.config.num_examples or self.supply)

    @property
    @abstractmethod
    def supply(self) -> int:
        """Real training examples there are, the reservoir of ``fresh_real`` included."""

    @property
    @abstractmethod
    def example_bytes(self) -> int:
        """Bytes that an example takes in memory."""

    @property
    def stored_bytes(self) -> float:
        """Bytes that an example of a corpus takes in the store, about."""
        return self.example_bytes

    @abstractmethod
    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` real training examples; where the truth is analytic, drawn for this seed."""

    @property
    def running_text(self) -> list[npt.NDArray[Any]]:
        """The real training text as it runs on, token ids, each of shape [tokens]: an example by itself."""
        return list(self.real(0, self.supply).rows())

    def external(
        self, source: str, packed: Callable[[str], Examples | None] = lambda _: None
    ) -> ExternalCorpus:
        """A fixed corpus, packed as the real text is; see `TextCorpus`.

        Raises:
            DataError: It cannot be read, or the real data are not text.
        """
        raise DataError("regime.source: a fixed corpus is text, the real data are not")

    def other(self, name: str, source: str) -> ExternalCorpus:
        """The test side of another real text, packed as the real text is; see `TextCorpus`.

        Raises:
            DataError: It cannot be read, or the real data are not text.
        """
        raise DataError(f"evaluate.others.{name}: is text, the real data are not")

    def groups(self, field: str) -> dict[str, ExternalCorpus]:
        """The test side of each group of the real data, packed as the real text is; see `TextCorpus`.

        Raises:
            DataError: Nothing names groups, or these are too many or too small.
        """
        raise DataError(
            f"evaluate.groups: found {shown(field)}, and these data have no field that names groups"
        )

    def teacher(self, changes: Mapping[str, Any]) -> DataSpec:
        """A fixed teacher: the truth with some of its fields changed.

        Raises:
            DataError: The fields do not fit, or the truth is not known.
        """
        raise DataError(
            "regime.source: {model: ...} names fields of analytic data; for text, use {cell: ...} with a "
            "chain of a larger model, or {corpus: ...} with what a teacher wrote"
        )

    def right(self, examples: Examples) -> npt.NDArray[np.bool_] | None:
        """Which examples are right, where the data know it; None where there is no such truth."""
        return None

    def troubles(self, examples: Examples, votes: bool = False) -> Mapping[str, int]:
        """For how many examples what knows the truth has failed, by how (`harness.tasks.problem.Trouble`).

        With ``votes`` what finds their final answers counts too.
        """
        return {}

    @property
    def metrics(self) -> Mapping[str, int]:
        """Groups of metrics that only these data have, with their versions, for evaluations' keys."""
        return {}

    @property
    def own_metrics(self) -> Mapping[str, float]:
        """What metrics would be of the real distribution itself, where it is known."""
        return {}

    @property
    def test_is_plain(self) -> bool:
        """Whether the test examples are plain."""
        return True

    def is_plain(self, tokens: npt.NDArray[np.integer[Any]]) -> bool:
        """Whether tokens stand for ASCII alone; what is no text has none that do not."""
        return True

    def table(self, examples: Examples) -> pa.Table:
        """Raw examples as columns, for people and other tools: one list of numbers an example."""
        import pyarrow as pa

        kind = pa.list_(pa.from_numpy_dtype(np.asarray(examples.values).dtype))
        return pa.table({"values": pa.array([row.tolist() for row in examples.rows()], kind)})

    def write_tokenizer(self, folder: Path) -> bool:
        """Put the tokenizer beside a model; False where the examples are no text."""
        return False


class Room(Protocol):
    """Where the data of a section are prepared: it names the folder that keeps them, and notes it.

    ``stored`` is all that the folder's content depends on, the version of what prepares it too. A package's
    name, and the version of its kind, need not be in it: the room adds them.
    """

    def known(self, stored: Mapping[str, Any]) -> Path | None:
        """The folder of prepared data in the store; None where it has none that is sound."""

    def folder(self, stored: Mapping[str, Any], prepare: Callable[[Path], None]) -> Path:
        """The folder of prepared data: that in the store, or one of its own, which ``prepare`` fills."""

    def gone(self, *paths: str) -> bool:
        """Whether none of some files and folders is there, and something has been noted of them together."""

    def recall(self, paths: Sequence[str], use: str, names: Sequence[str]) -> dict[str, Any] | None:
        """What `remember` was given when the study last ran; None where a file or folder is there.

        Args:
            paths: All that the section names.
            use: All else of the section that decides what is read of them.
            names: What has to be known.
        """

    def remember(self, paths: Sequence[str], use: str, found: dict[str, Any]) -> None:
        """Keep the hash of what files or folders held, and what else is to be known without reading them."""


@dataclass(frozen=True)
class Kept:
    """A folder of prepared data.

    Attributes:
        spec: What its content depends on.
        key: The hash of that, and the folder's name in the store.
        path: Where it is: in the store, or a temporary folder until `harness.study.commit_data`.
    """

    spec: Mapping[str, Any]
    key: str
    path: Path


@dataclass(frozen=True)
class PreparedData:
    """The real data of some cells.

    Attributes:
        spec: What enters keys.
        real: The data.
        about: What was read, for people: the source, and of text its files and documents.
        kept: The folder that their `Room` gave them; None where they asked for none.
    """

    spec: Mapping[str, Any]
    real: RealData
    about: Mapping[str, Any]
    kept: Kept | None = None


def own_examples(section: DataSection, seed: int, supply: int, count: int) -> slice | npt.NDArray[np.int64]:
    """Which of a split's examples are the first ``count`` of a chain; fewer are a prefix of more.

    Args:
        section: With ``resample`` every seed has an order of its own, otherwise all have the split's;
            ``segment`` is every so many-th example, so that segments of one size hold the first examples of
            the split together.
        seed: The chain's seed.
        supply: Examples of the training split.
        count: How many are wanted.
    """
    if section.resampled:
        return stream(seed, 0, "resample").permutation(supply)[:count]
    segment = section.own_part
    if segment is None:
        return slice(count)
    own = supply // segment.of  # a remainder is nobody's
    return np.arange(segment.number, segment.number + min(count, own) * segment.of, segment.of)


def supply_of(section: DataSection, examples: int) -> int:
    """How many of a split's training examples a chain may have: all, or as many as every segment has."""
    segment = section.own_part
    return examples if segment is None else examples // segment.of
