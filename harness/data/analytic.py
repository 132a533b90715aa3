"""What a real distribution of numbers has to give; every seed draws its own training examples.

The test examples are the same for every seed. Example i depends on its index alone, so fewer examples are a
prefix of more.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from harness.components.truths import AnalyticData, GaussianData
from harness.config.schema.data import data_kind
from harness.data.real import RealData
from harness.errors import DataError
from harness.records import Examples
from harness.science import DataSpec
from harness.section import science
from harness.streams import stream

Array = npt.NDArray[np.float64]
Draw = Callable[[str], np.random.Generator]
"""From a purpose to its stream."""
TEST_EXAMPLES = 500
"""Fresh real examples that a NLL is measured on, where it has no closed form (as many as Kazdan et al.
2410.16713)."""
VERSION = 1
"""Version of how the examples are drawn; part of every key."""


class Truth(RealData):
    """A known distribution, or rows of numbers.

    Attributes:
        config: The section.
        width: Numbers per example.
        normal: Mean and variance, where it is a normal distribution.
    """

    config: AnalyticData
    width: int
    normal: GaussianData | None = None

    def __init__(self, config: AnalyticData, purpose: str = "real") -> None:
        """Keep the parameters.

        Args:
            config: The section.
            purpose: Name of the streams, so that a teacher's examples are not the real ones.
        """
        self.config, self.purpose = config, purpose

    @property
    def num_examples(self) -> int:
        """Real training examples of generation 0."""
        assert self.config.num_examples is not None
        return self.config.num_examples

    @property
    def supply(self) -> int:
        """Number of real examples that there are: no limit."""
        return sys.maxsize

    @property
    def example_bytes(self) -> int:
        """Bytes of an example in memory."""
        return 8 * self.width

    @property
    def shape(self) -> tuple[int, ...]:
        """What examples are like: those of a teacher have the same."""
        return (self.width,)

    @property
    def identity(self) -> dict[str, Any]:
        """What enters keys."""
        return {"kind": self.config.source, **science(self.config), "version": VERSION}

    @property
    def stored(self) -> Mapping[str, Any] | None:
        """What decides the folder that keeps the examples; None where the section describes them."""
        return None

    @property
    def origin(self) -> str:
        """Where the examples come from, for people."""
        return self.config.source

    def write(self, folder: Path) -> None:
        """Write what `load_truth` reads, where something is stored."""

    @property
    def num_test(self) -> int:
        """Test examples."""
        return TEST_EXAMPLES

    @property
    @abstractmethod
    def test(self) -> Array:
        """Fresh real examples, the same for every seed: [examples, width]."""


class Distribution(Truth):
    """A distribution that examples are drawn from."""

    def teacher(self, changes: Mapping[str, Any]) -> DataSpec:
        """This distribution with some of its fields changed.

        Raises:
            DataError: The fields do not fit.
        """
        try:
            made = type(self)(type(self.config).model_validate({**self.config.model_dump(), **changes}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            allowed = ", ".join(name for name in type(self.config).model_fields if name != "source")
            raise DataError(
                f"regime.source.model.{where}: {str(first['msg']).lower()}; fields of this data: {allowed}"
            ) from None
        if made.shape != self.shape:
            raise DataError(
                "regime.source.model: the teacher's examples have another shape than the real ones (dim, "
                "outcomes or means)"
            )
        return DataSpec(data_kind(made.config), made.config, made.identity)

    @abstractmethod
    def draw(self, streams: Draw, count: int) -> Array:
        """``count`` examples from these streams."""

    def real(self, seed: int, count: int) -> Examples:
        """The first ``count`` examples of this seed, shape [count, width]."""
        return Examples.full(self.draw(lambda what: stream(seed, 0, self.purpose + what), count))

    def lesson(self, seed: int, generation: int, count: int) -> Examples:
        """What this distribution teaches one generation, where it is a teacher.

        ``count`` examples, new in each generation.
        """
        return Examples.full(self.draw(lambda what: stream(seed, generation, self.purpose + what), count))

    @cached_property
    def test(self) -> Array:
        """Fresh real examples, the same for every seed: [examples, width]."""
        return self.draw(lambda what: stream(0, 0, "test" + what), TEST_EXAMPLES)
