"""Tasks in which a state is rewritten step by step until no rule applies: every step is written out.

A completion is a chain of states. Each has to be what one rule makes of the state before it, at one place,
and the last has to be one to which no rule applies. Text that a model wrote is never parsed: it is compared
with the states that are allowed, so whatever it holds, a check ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from harness.components.tasks import Arithmetic, Boolean, Rewriting
from harness.streams import stream
from harness.tasks.problem import Problem, Verdict

MAX_STEPS = 200
"""A string that rules have not brought to an end by then is not asked about."""
MAX_LENGTH = 200
"""Nor is one that rules make longer than this."""
MAX_FRUITLESS = 1_000
"""After so many strings in a row that give no problem there are no more."""
Moves = Callable[[str], Sequence[str]]
"""From a state to all that one step can make of it, each once and in a fixed order."""
Tree = Any
"""An expression: a literal as text, ``("~", tree)``, or ``(operator, tree, tree)``."""


def judge(moves: Moves, separator: str, prompt: str, completion: str) -> Verdict:
    """Check a completion, step by step.

    Args:
        moves: The rules.
        separator: What stands between states, and at the end of the prompt.
        prompt: The first state, with the separator.
        completion: What a model wrote behind it.
    """
    state, right = prompt.removesuffix(separator), True
    pieces = completion.split(separator)
    final = end_of(moves, state)
    for piece in pieces:
        if piece not in moves(state):
            right = False
            break
        state = piece
    correct = right and not moves(state)
    return Verdict(correct, correct or pieces[-1] == final)  # rules may lead to several ends


def end_of(moves: Moves, state: str) -> str | None:
    """The state at the end of a derivation; None where there is none within `MAX_STEPS`."""
    for _ in range(MAX_STEPS):
        found = moves(state)
        if not found or len(state) > MAX_LENGTH:
            return None if found else state
        state = found[0]
    return None


def derivation(moves: Moves, state: str, draw: np.random.Generator) -> list[str] | None:
    """The states behind a first one, each step drawn from all allowed ones; None where none is the last."""
    found: list[str] = []
    for _ in range(MAX_STEPS):
        allowed = moves(state)
        if not allowed or len(state) > MAX_LENGTH:
            return None if allowed else found
        state = allowed[int(draw.integers(len(allowed)))]
        found.append(state)
    return None


def last_of(separator: str, completion: str) -> str | None:
    """The final answer in a completion: its last state; None where that is empty."""
    return completion.rpartition(separator)[2] or None


# --- expressions ----------------------------------------------------------------------------------------


class _Reader:
    """Reads an expression that the harness itself has written."""

    def __init__(self, text: str, operators: str) -> None:
        self.text, self.operators, self.at = text, operators, 0

    def expression(self) -> Tree:
        """``atom``, or ``atom operator atom``."""
        left = self.atom()
        if self.at < len(self.text) and self.text[self.at] in self.operators:
            operator = self.text[self.at]
            self.at += 1
            return (operator, left, self.atom())
        return left

    def atom(self) -> Tree:
        """``~ atom``, ``( expression )``, ``T``, ``F`` or a whole number, which may be negative."""
        start = self.at
        first = self.text[self.at]
        self.at += 1
        if first == "~":
            return ("~", self.atom())
        if first == "(":
            inner = self.expression()
            self.at += 1
            return inner
        if first == "-" or first.isdigit():
            while self.at < len(self.text) and self.text[self.at].isdigit():
                self.at += 1
        return self.text[start : self.at]


def write(tree: Tree, outer: bool = True) -> str:
    """An expression as text; every pair but the outermost has brackets."""
    if isinstance(tree, str):
        return tree
    if tree[0] == "~":
        return "~" + write(tree[1], False)
    text = write(tree[1], False) + tree[0] + write(tree[2], False)
    return text if outer else f"({text})"


def _reduced(tree: Tree, apply: Callable[[str, Sequence[str]], str]) -> Iterator[Tree]:
    """Every tree that has one operation less, the one whose operands are literals carried out."""
    if isinstance(tree, str):
        return
    operator, *inner = tree
    if all(isinstance(part, str) for part in inner):
        yield apply(operator, inner)
        return
    for place, part in enumerate(inner):
        for smaller in _reduced(part, apply):
            yield (operator, *inner[:place], smaller, *inner[place + 1 :])


def _expression_moves(operators: str, apply: Callable[[str, Sequence[str]], str]) -> Moves:
    def moves(state: str) -> Sequence[str]:
        tree = _Reader(state, operators).expression()
        return list(dict.fromkeys(write(found) for found in _reduced(tree, apply)))

    return moves


def _logic(operator: str, inner: Sequence[str]) -> str:
    left, right = inner[0] == "T", inner[-1] == "T"
    match operator:
        case "~":
            value = not left
        case "&":
            value = left and right
        case "|":
            value = left or right
        case "^":
            value = left != right
        case _:
            raise ValueError(f"no operator {operator!r}")
    return "T" if value else "F"


BOOLEAN_MOVES = _expression_moves("&|^", _logic)


def arithmetic_moves(modulus: int | None) -> Moves:
    """The steps of a calculation, in whole numbers or modulo one."""

    def apply(operator: str, inner: Sequence[str]) -> str:
        left, right = map(int, inner)
        match operator:
            case "+":
                value = left + right
            case "-":
                value = left - right
            case "*":
                value = left * right
            case _:
                raise ValueError(f"no operator {operator!r}")
        return str(value if modulus is None else value % modulus)

    return _expression_moves("+-*", apply)


def _grow(
    operations: int, draw: np.random.Generator, literals: Sequence[str], operators: str, unary: bool
) -> Tree:
    """A random expression with so many operations."""
    if operations == 0:
        return literals[int(draw.integers(len(literals)))]
    if unary and draw.random() < 0.25:
        return ("~", _grow(operations - 1, draw, literals, operators, unary))
    left = int(draw.integers(operations))
    operator = operators[int(draw.integers(len(operators)))]
    return (
        operator,
        _grow(left, draw, literals, operators, unary),
        _grow(operations - 1 - left, draw, literals, operators, unary),
    )


SKILLS = {"~": "not", "&": "and", "|": "or", "^": "xor", "+": "add", "-": "subtract", "*": "multiply"}
"""What the outermost operator of an expression is called."""


def _expressions(
    name: str,
    difficulties: Sequence[int],
    literals: Sequence[str],
    operators: str,
    moves: Moves,
    unary: bool = False,
) -> Iterator[Problem]:
    for number in count():
        draw = stream(0, 0, f"task_{name}", number)
        difficulty = difficulties[number % len(difficulties)]
        tree = _grow(difficulty, draw, literals, operators, unary)
        steps = derivation(moves, write(tree), draw)
        assert steps is not None  # every step takes one operation away
        yield Problem(write(tree) + "=", "=".join(steps), SKILLS[tree[0]], difficulty)


def boolean_problems(section: Boolean) -> Iterator[Problem]:
    """Expressions of truth values, and how one evaluates them."""
    return _expressions("boolean", section.difficulty, "TF", "&|^", BOOLEAN_MOVES, unary=True)


def check_boolean(section: Boolean, prompt: str, completion: str) -> Verdict:
    """Whether every step carries out one operation, down to a truth value."""
    return judge(BOOLEAN_MOVES, "=", prompt, completion)


def arithmetic_problems(section: Arithmetic) -> Iterator[Problem]:
    """Calculations with one-digit numbers, and how one carries them out."""
    digits = [str(digit) for digit in range(min(10, section.modulus or 10))]
    moves = arithmetic_moves(section.modulus)
    name = "arithmetic" if section.modulus is None else f"arithmetic_{section.modulus}"
    return _expressions(name, section.difficulty, digits, section.operators, moves)


def check_arithmetic(section: Arithmetic, prompt: str, completion: str) -> Verdict:
    """Whether every step carries out one operation, down to a number."""
    return judge(arithmetic_moves(section.modulus), "=", prompt, completion)


def answer_of_expression(section: Boolean | Arithmetic, completion: str) -> str | None:
    """What stands behind the last equals sign."""
    return last_of("=", completion)


# --- rewriting ------------------------------------------------------------------------------------------


def rewriting_moves(rules: Sequence[tuple[str, str]]) -> Moves:
    """The strings that one rule makes of another at one place; the empty string is written ``_``."""

    def moves(state: str) -> Sequence[str]:
        text = "" if state == "_" else state
        found: dict[str, None] = {}
        for start in range(len(text)):
            for left, right in rules:
                if text.startswith(left, start):
                    found[(text[:start] + right + text[start + len(left) :]) or "_"] = None
        return list(found)

    return moves


def rewriting_problems(section: Rewriting) -> Iterator[Problem]:
    """Strings to which at least one rule applies, and how one comes to their normal form."""
    moves, letters = rewriting_moves(section.rules), sorted(set("".join(left for left, _ in section.rules)))
    room, fruitless = section.lengths[1] - 1, 0
    for number in count():
        if fruitless == MAX_FRUITLESS:
            return
        draw = stream(0, 0, "task_rewriting", number)
        difficulty = section.difficulty[number % len(section.difficulty)]
        state = "".join(letters[int(draw.integers(len(letters)))] for _ in range(difficulty))
        steps = derivation(moves, state, draw)
        if not steps or len(solution := ">".join(steps)) > room:
            fruitless += 1
            continue
        fruitless = 0
        yield Problem(f"{state}>", solution, "vanishes" if steps[-1] == "_" else "stays", difficulty)


def check_rewriting(section: Rewriting, prompt: str, completion: str) -> Verdict:
    """Whether every step applies one rule at one place, down to a string to which none applies."""
    return judge(rewriting_moves(section.rules), ">", prompt, completion)


def answer_of_rewriting(section: Rewriting, completion: str) -> str | None:
    """What stands behind the last arrow."""
    return last_of(">", completion)


def alphabet_of_boolean(section: Boolean) -> str:
    """Truth values and what connects them."""
    return "TF&|^~()="


def alphabet_of_arithmetic(section: Arithmetic) -> str:
    """Digits and what connects them."""
    return "0123456789+-*()="


def alphabet_of_rewriting(section: Rewriting) -> str:
    """The letters of its rules."""
    return "".join(sorted({letter for rule in section.rules for part in rule for letter in part})) + ">_"
