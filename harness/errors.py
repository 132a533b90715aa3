"""The exception tree.

HarnessError
├── InputError          what the user gave is wrong: exit code 2, nothing started, nothing written
│   ├── ConfigError     in a configuration: file, line, field, what was found, what is allowed
│   ├── PluginError     a package's component is not what it has to be
│   ├── DataError       the real data are missing, unreadable or too small for what is asked of them
│   └── ResourceError   the grid cannot fit the devices at hand
├── StoreError          the store cannot be read or written
│   ├── StoreVersionError   the root was written by a newer version
│   └── DamagedError    a committed item does not match its checksums
├── LearnerError        a learner cannot go on (not divergence, which is a result)
└── GangError           a rank of a gang died or raised
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def reason_of(error: object) -> str:
    """The first line of what an error says, for messages of one line; empty where it says nothing."""
    return (str(error).strip().splitlines() or [""])[0]


class HarnessError(Exception):
    """Base of every error that the harness raises on purpose."""


class InputError(HarnessError):
    """The user's input is wrong; the command ends with exit code 2."""


@dataclass(frozen=True)
class InputProblem:
    """One thing that is wrong in a configuration.

    Attributes:
        where: File, or ``--set``.
        line: Line in the file, counted from 1; None where there is none.
        field: Dotted path of the field; empty for the file as a whole.
        message: What was found and what is allowed.
    """

    where: str
    line: int | None
    field: str
    message: str

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}:{self.line}"
        return f"{place}: {self.field + ': ' if self.field else ''}{self.message}"


class ConfigError(InputError):
    """A configuration is wrong; carries every problem that was found."""

    def __init__(self, problems: Sequence[InputProblem]) -> None:
        """Keep the problems and join them, one to a line.

        Those without a line come first, then those of each file by line.
        """
        places = list(dict.fromkeys(problem.where for problem in problems if problem.line is not None))
        self.problems = tuple(
            sorted(problems, key=lambda p: (0, 0) if p.line is None else (1 + places.index(p.where), p.line))
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))


class PluginError(InputError):
    """What a package adds is not there, or not what it has to be."""


class DataError(InputError):
    """The real data are missing, unreadable or too small."""


class ResourceError(InputError):
    """The grid asks for more than the devices at hand can give."""


class StoreError(HarnessError):
    """The store cannot be read or written."""


class StoreVersionError(StoreError, InputError):
    """The root was written by a newer version of the harness."""


class DamagedError(StoreError):
    """A committed item does not match its checksums."""


class LearnerError(HarnessError):
    """A learner cannot go on."""


class GangError(HarnessError):
    """A rank of a gang died or raised."""
