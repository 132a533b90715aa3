"""What a cell gives the units that run its chains, and what one of them takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.data.analytic import Truth
from harness.learners.analytic.family import make_family
from harness.records import REAL, Recipe
from harness.science import CellSpec


@dataclass(frozen=True)
class CellJob:
    """One cell of a bundle: what its chains are, and the data that they share.

    Attributes:
        spec: What its chains have in common.
        truth: The real distribution.
        weights: Whose parameters are kept (``retention.weights``).
    """

    spec: CellSpec
    truth: Truth
    weights: Literal["all", "last", "none"]

    @property
    def alone(self) -> bool:
        """Whether a unit holds one chain.

        Filters and other cells' chains may end one chain and not another.
        """
        return bool(self.spec.filters) or self.spec.source is not None

    @property
    def bytes_per_chain(self) -> int:
        """Rough memory of one chain.

        Its training set, or the whole pool that it is drawn from, its real examples, its model.
        """
        recipes = [self.spec.recipe(generation) for generation in (1, self.spec.generations)]
        pooled = any(
            recipe.take is not None or (is_drawn(recipe, self.spec.n) and len(recipe.parts) > 2)
            for recipe in recipes
        )
        rows = max(sum(part.count for part in recipe.parts) if pooled else recipe.size for recipe in recipes)
        real = max(
            (part.offset + part.count for recipe in recipes for part in recipe.parts if part.origin == REAL),
            default=0,
        )
        family = make_family(self.spec.learner.section, self.truth)
        return int(8 * ((rows + real) * self.truth.width + family.numbers_per_chain(rows, self.spec.n)))


def is_drawn(recipe: Recipe, n: int) -> bool:
    """Whether a training set is drawn at random: a subset of the n real examples, or of everything."""
    return (
        recipe.subsample is not None
        or recipe.take is not None
        or any(part.draw in ("resample", "fixed") and part.count < n for part in recipe.parts)
    )
