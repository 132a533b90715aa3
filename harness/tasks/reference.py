"""Final answers in free text, and whether they are the reference's."""

from __future__ import annotations

import re

from harness.tasks.checking import KEPT
from harness.tasks.problem import Answer, Verdict

LIMIT_S = 1.0
"""Seconds that a regular expression may search in one completion: some take for ever on some texts."""
NUMBER = re.compile(r"-?(\d{1,3}(,\d{3})+|\d+)?(\.\d+)?")


class Reference:
    """Finds final answers, and compares them."""

    def __init__(self, extract: str | None) -> None:
        """Keep the expression.

        Args:
            extract: Regular expression whose last match, or its first group, is the final answer; None where
                that is the whole text.
        """
        import regex

        self._pattern = None if extract is None else regex.compile(extract)
        self._answers: dict[str, Answer] = {}

    def found(self, text: str, limited: bool = True) -> str | None:
        """The final answer in a text, normalised; None where it has none.

        Args:
            text: The text.
            limited: The expression may search for `LIMIT_S`; otherwise for as long as it takes.

        Raises:
            TimeoutError: The expression has not found out in time.
        """
        if self._pattern is None:
            return normal(text)
        matches = list(self._pattern.finditer(text, timeout=LIMIT_S if limited else None))
        if not matches:
            return None
        last = matches[-1]
        return normal(last[1] or "" if self._pattern.groups else last[0])

    def answer(self, text: str) -> Answer:
        """The final answer in a completion; none where it is not found in time."""
        if text not in self._answers:
            if len(self._answers) >= KEPT:
                self._answers.clear()
            try:
                self._answers[text] = Answer(self.found(text))
            except TimeoutError:
                self._answers[text] = Answer(None, "timed_out")
        return self._answers[text]

    def reference(self, text: str, limited: bool = False) -> str:
        """The final answer of a reference: what the expression finds, or all of it.

        Raises:
            TimeoutError: The expression has not found out in time.
        """
        found = self.found(text, limited)
        return normal(text) if found is None else found

    def verdict(self, completion: str, reference: str) -> Verdict:
        """Whether a completion's final answer is the reference's."""
        found = self.answer(completion)
        right = found.text == reference
        return Verdict(right, right, found.trouble)


def normal(answer: str) -> str:
    """What answers are compared by.

    Numbers by their value, without a currency sign, commas between thousands and a full stop at the end;
    other texts without regard to case and blanks.
    """
    text = " ".join(answer.split()).rstrip(".").strip()
    number = text.removeprefix("$").strip()
    if number and NUMBER.fullmatch(number):
        # Digit by digit: decimal arithmetic would round, by a context that anybody may change.
        whole, _, part = number.removeprefix("-").replace(",", "").partition(".")
        if whole or part:
            value = ".".join(filter(None, (whole.lstrip("0") or "0", part.rstrip("0"))))
            return f"-{value}" if number.startswith("-") and value != "0" else value
    return text.casefold()
