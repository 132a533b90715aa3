"""What a task gives: problems, and verdicts on completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt.

    Attributes:
        prompt: What a model continues.
        solution: A right completion, which stands for what a person would write. None where the task has none
            (`harness.registry.TaskPlugin.solutions`).
        skill: What it asks for, in a word of letters, digits and ``_``.
        difficulty: How hard it is, from 1.
    """

    prompt: str
    solution: str | None = None
    skill: str = "all"
    difficulty: int = 1


Trouble = Literal["", "raised", "timed_out"]
"""A package's code failed on a completion: it ``raised``, or did not return in time."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a checker says of a completion.

    Attributes:
        correct: Whether it is right: every step, and the answer.
        answer: Whether the final answer is the right one, whatever the steps.
        trouble: The checker itself failed, and the completion counts as wrong.
    """

    correct: bool
    answer: bool
    trouble: Trouble = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The final answer that is found in a completion.

    Attributes:
        text: None where there is none.
        trouble: What looks for it failed, and the completion counts as having none.
    """

    text: str | None
    trouble: Trouble = ""
