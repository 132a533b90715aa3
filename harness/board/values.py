"""A metric by generation as an entry keeps it: a board of 50 entries of 200 seeds has 16 million numbers."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, cast, overload

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

Number = Annotated[float, Field(allow_inf_nan=False)]


class MetricValues(Sequence[float | None]):
    """Numbers, and None where there is none, that cannot be changed.

    They read, and are written, as a tuple does, and take 8 bytes each where one takes 32.
    """

    __slots__ = ("_gaps", "_numbers")

    def __init__(self, values: Sequence[float | None]) -> None:
        """Keep values: finite ones, and None for what is not."""
        self._gaps = None in values
        known = [math.nan if v is None else v for v in values] if self._gaps else values
        self._numbers = array("d", cast(Sequence[float], known))

    def to_list(self) -> list[float | None]:
        """As JSON has them."""
        found = self._numbers.tolist()
        return [None if value != value else value for value in found] if self._gaps else [*found]

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, place: int) -> float | None: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[float | None, ...]: ...

    def __getitem__(self, place: int | slice) -> float | None | tuple[float | None, ...]:
        if isinstance(place, slice):
            return tuple(self.to_list()[place])
        value = self._numbers[place]
        return None if value != value else value

    def __iter__(self) -> Iterator[float | None]:
        return iter(self.to_list())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MetricValues):
            if not self._gaps:
                return self._numbers == other._numbers
            return self.to_list() == other.to_list()
        return isinstance(other, tuple) and tuple(self.to_list()) == other

    def __hash__(self) -> int:
        return hash(tuple(self.to_list()))

    def __repr__(self) -> str:
        return repr(tuple(self.to_list()))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """What a tuple of numbers or null may be, as these."""
        checked = core_schema.no_info_after_validator_function(
            cls, handler.generate_schema(tuple[Number | None, ...])
        )

        def known(value: Any, check: core_schema.ValidatorFunctionWrapHandler) -> Any:
            return value if isinstance(value, cls) else check(value)

        return core_schema.json_or_python_schema(
            checked,
            core_schema.no_info_wrap_validator_function(known, checked),
            serialization=core_schema.plain_serializer_function_ser_schema(cls.to_list),
        )
