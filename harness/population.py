"""Populations: several chains that train in each generation on what all of them have written before.

A member's training set is that of its regime, with the examples that it would have written itself divided
among the members by its row of a row-stochastic exchange matrix. Nobody reads an example that another one
reads: of each corpus the members read neighbouring slices, in their order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

from harness.config.schema import Population, Regime
from harness.records import Part, Recipe, written_by
from harness.regimes import recipe


@dataclass(frozen=True)
class Rule:
    """What a member's training sets follow from.

    Attributes:
        name: Of the member.
        regime: Its regime.
        n: Its real training examples.
        arrives: The population's time of its generation 0.
        last: The population's time of its last generation.
        compared: Whether it learns from comparisons (`harness.regimes.recipe`).
        passing: The share of what it reads that passes at most, with filters that ask for nothing more.
        together: How many examples of a corpus are judged together.
    """

    name: str
    regime: Regime
    n: int
    arrives: int
    last: int
    compared: bool = False
    passing: Fraction = Fraction(1)
    together: int = 1

    def there(self, time: int) -> bool:
        """Whether it writes a corpus at a time."""
        return self.arrives <= time <= self.last


@dataclass(frozen=True)
class Exchange:
    """Who reads how much of whom.

    Attributes:
        population: The section.
        rules: Of the members, in order.
    """

    population: Population
    rules: tuple[Rule, ...]
    _known: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Exchange], tuple[Population, tuple[Rule, ...]]]:
        """What it is made of travels, not what has been worked out."""
        return Exchange, (self.population, self.rules)

    def recipe(self, number: int, generation: int) -> Recipe:
        """The training set of a member in one of its generations.

        Args:
            number: Its place among the members.
            generation: Its own, from 0.
        """
        rule = self.rules[number]
        made = recipe(rule.regime, rule.n, generation, compared=rule.compared)
        found: list[tuple[int, Part]] = []
        for part in made.parts:
            if part.origin < 0:
                found.append((number, part))
                continue
            time = rule.arrives + part.origin
            starts = self._starts(time)[number]
            for writer, count in enumerate(self.counts(number, time, part.count)):
                if count:
                    there = time - self.rules[writer].arrives
                    piece = replace(part, origin=there, count=count, offset=starts[writer])
                    found.append((writer, piece))
        writers = tuple(dict.fromkeys(writer for writer, _ in found if writer != number))
        parts = tuple(
            part if writer == number else replace(part, origin=written_by(writers.index(writer), part.origin))
            for writer, part in found
        )
        return replace(made, parts=parts, writers=writers)

    def shares(self, number: int, time: int) -> list[Fraction]:
        """The share of each member in what one of them reads of the corpora of a time; they sum to 1.

        Those that are not there have none: their shares go to the others in proportion.
        """
        there = tuple(rule.there(time) for rule in self.rules)
        key = number, there
        if key not in self._known:
            self._known[key] = self._shares(number, there)
        found: list[Fraction] = self._known[key]
        return found

    def _shares(self, number: int, there: Sequence[bool]) -> list[Fraction]:
        names = [rule.name for rule in self.rules]
        match self.population.exchange:
            case "self":
                weights = [Fraction(place == number) for place in range(len(names))]
            case "pool":
                weights = [Fraction(found) for found in there]
            case "ring":
                size = len(names)
                before = next(
                    (p for p in ((number - step) % size for step in range(1, size)) if there[p]), number
                )
                weights = [Fraction(place == before) for place in range(size)]
            case _:
                given = [self.population.share(names[number], name) or 0.0 for name in names]
                weights = [
                    Fraction(Decimal(str(share))) if found else Fraction(0)
                    for share, found in zip(given, there, strict=True)
                ]
        total = sum(weights)
        return [weight / total for weight in weights]

    def counts(self, number: int, time: int, count: int) -> list[int]:
        """So many examples divided by the shares: rounded down, and the rest by the largest remainders."""
        exact = [share * count for share in self.shares(number, time)]
        found = [int(part) for part in exact]
        order = sorted(range(len(exact)), key=lambda place: found[place] - exact[place])
        for place in order[: count - sum(found)]:
            found[place] += 1
        return found

    def _starts(self, time: int) -> list[list[int]]:
        """Where each member's slices of the corpora of a time begin: behind those of the members before it.

        As long as these are when the corpora are new, whether or not a refresh reads none of them then.
        """
        if time in self._known:
            known: list[list[int]] = self._known[time]
            return known
        found, ends = [], [0] * len(self.rules)
        # Where as many pass of what all read, a place among what passes is one in the corpus.
        alike = len({rule.passing for rule in self.rules}) == 1
        for number, rule in enumerate(self.rules):
            found.append(ends if alike else [math.ceil(end * rule.passing) for end in ends])
            own = time - rule.arrives
            if own < 0 or time + 1 > rule.last:
                continue
            regime = rule.regime.model_copy(update={"refresh": None})
            asked = sum(part.count for part in recipe(regime, rule.n, own + 1).parts if part.origin == own)
            counts = self.counts(number, time, asked)
            if not alike:
                counts = [math.ceil(count / rule.passing / rule.together) * rule.together for count in counts]
            ends = [end + count for end, count in zip(ends, counts, strict=True)]
        self._known[time] = found
        return found


def unread(population: Population, rules: Sequence[Rule]) -> str | None:
    """What is wrong with who reads whom and when; None where nothing is."""
    exchange = Exchange(population, tuple(rules))
    for number, reader in enumerate(rules):
        for writer in rules:
            share = population.share(reader.name, writer.name)
            if share and writer.arrives > reader.arrives:
                return (
                    f"{reader.name} arrives in generation {reader.arrives} and reads {writer.name}, which "
                    f"arrives in generation {writer.arrives}"
                )
        for time in range(reader.arrives, reader.last):
            try:
                exchange.shares(number, time)
            except ZeroDivisionError:
                return (
                    f"nobody whom {reader.name} reads is there in generation {time}, and it trains in "
                    f"generation {time + 1}"
                )
    return None
