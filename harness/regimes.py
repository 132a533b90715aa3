"""Regimes: how the training set of a generation is built from real data and from what models wrote.

A regime is a pure function from a generation's index to a `Recipe` (counts only), and one function turns any
recipe into the origin and index of every training example. Neither looks at the examples.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components import REGIMES
from harness.components.regimes import ruled
from harness.config.schema import Regime, science
from harness.errors import DataError
from harness.records import EXTERNAL, REAL, TEACHER, Part, Recipe
from harness.streams import stream


def is_refresh(regime: Regime, generation: int) -> bool:
    """Whether this generation trains on real data alone because of ``refresh``."""
    if regime.refresh is None or generation == 0:
        return False
    return (
        generation in regime.refresh.at
        if regime.refresh.at
        else generation % (regime.refresh.every or 1) == 0
    )


def recipe(regime: Regime, n: int, generation: int, external: Any = None, compared: bool = False) -> Recipe:
    """The training set of one generation, as counts.

    Args:
        regime: The regime.
        n: Number of real training examples.
        generation: Index of the generation; 0 trains on the n real examples under every regime.
        external: Fingerprint of the fixed corpus, or what the fixed teacher is; None for other sources.
        compared: What is learned is which of two completions is better, so that real examples, which nothing
            is compared with, are no part of it.

    Returns:
        The recipe; its ``spec`` is empty for generation 0, which no regime enters.
    """
    if generation == 0:
        return Recipe({}, (Part(REAL, n),))
    budget = regime.budget
    extra = {} if budget == "examples" else {"budget": budget}
    if is_refresh(regime, generation):
        assert regime.refresh is not None
        init, count = regime.refresh.init, regime.refresh.examples or n
        spec: dict[str, Any] = {"kind": "refresh", "version": 1, **({"init": init} if init else {}), **extra}
        if count != n:
            spec["examples"] = count
        return Recipe(spec, (Part(REAL, count),), budget=budget, init=init)
    component = REGIMES.loaded[regime.kind]
    parts, some = ruled(regime, n, generation)
    origin = _fixed_origin(regime, external)
    if origin is not None:
        parts = tuple(_fixed(part, origin) for part in parts)
    parts = tuple(part for part in parts if part.count and not (compared and part.origin == REAL))
    spec = _spec(regime, n, component.version, parts, external)
    if component.package:  # which of the regime's fields its rule reads is known to nobody else
        spec["parts"] = [[p.origin, p.count, p.draw, p.offset, p.pooled] for p in parts]
        spec["some"] = some
    if component.plugin.selects:
        return Recipe(spec, parts, take=some, select=regime.select, budget=budget)
    return Recipe(spec, parts, some, budget=budget)


def _fixed(part: Part, origin: int) -> Part:
    """A part as a source has it that does not go along; each pool has the next slice of a corpus."""
    if part.origin == REAL:
        return part
    slices = part.pooled and origin == EXTERNAL
    return replace(part, origin=origin, offset=part.origin * part.count if slices else part.offset)


def _fixed_origin(regime: Regime, external: Any) -> int | None:
    """Where a source that does not go along with the chain has its examples; None where it does."""
    writer = regime.writer
    if writer.corpus is not None:
        return EXTERNAL
    if writer.changes is not None:
        return TEACHER
    return writer.generation if writer.pretrained is None else 0  # a chain of one generation


def _spec(
    regime: Regime, n: int, version: int | str, parts: tuple[Part, ...], external: Any
) -> dict[str, Any]:
    """The fields of the regime that this training set depends on."""
    spec: dict[str, Any] = {"kind": regime.kind, "version": version}
    if regime.synthetic_ratio is not None:
        spec["synthetic_ratio"] = regime.synthetic_ratio
    if any(part.draw == "fixed" and part.count < n for part in parts):
        spec["real_part"] = "fixed"
    if any(part.origin == EXTERNAL for part in parts):
        spec["source"] = {"corpus": external}
    if any(part.origin == TEACHER for part in parts):
        spec["source"] = {"model": external}
    if regime.budget != "examples":
        spec["budget"] = regime.budget
    if regime.growth is not None:
        spec["growth"] = science(regime.growth)
    if REGIMES[regime.kind].selects:
        spec |= {name: value for name, value in science(regime).items() if name in REGIMES[regime.kind].uses}
    return spec


def check_supply(regime: Regime, n: int, generations: int, real: int, external: int | None) -> None:
    """Check that the regime's real and fixed synthetic examples exist.

    Args:
        regime: The regime.
        n: Number of real training examples.
        generations: Index of the last generation.
        real: Real examples there are, the reservoir included.
        external: Examples of the fixed corpus; None where there is none.

    Raises:
        DataError: With the number that is missing.
    """
    if n > real:
        raise DataError(
            f"data.num_examples: {n} training examples are asked for, the training split has {real}"
        )
    if REGIMES[regime.kind].selects and not recipe(regime, n, 1, "").pooled:
        raise DataError(f"regime.pool: {regime.pool} x {n} training examples is none; nothing would arrive")
    if regime.refresh is not None and (regime.refresh.examples or 0) > n:
        raise DataError(
            f"regime.refresh.examples: {regime.refresh.examples}, more than the {n} training examples"
        )
    if regime.growth is not None:
        _check_growth(regime, n, generations)
    component = REGIMES.loaded[regime.kind]
    if not (component.plugin.unseen or component.package) and external is None:
        return  # no more than the n real examples, however many generations
    for generation in range(1, generations + 1):
        for part in recipe(regime, n, generation, "").parts:
            needed = part.offset + part.count
            if part.origin == REAL and needed > real:
                raise DataError(
                    f"regime.kind {regime.kind}: generation {generation} needs {needed} real examples in "
                    f"all, the training split has {real}: {needed - real} are missing; lower "
                    "data.num_examples or generations, or raise synthetic_ratio"
                )
            if part.origin == EXTERNAL and external is not None and needed > external:
                raise DataError(
                    f"regime.source: generation {generation} needs {needed} examples, the corpus has "
                    f"{external}"
                )


MAX_GROWN = 100_000_000
"""Examples of one training set that may be asked for by ``regime.growth``."""


def _check_growth(regime: Regime, n: int, generations: int) -> None:
    """Check that a training set that grows has the real examples it needs, and a size that there can be."""
    for generation in range(1, generations + 1):
        made = recipe(regime, n, generation, "")
        if made.size > MAX_GROWN:
            raise DataError(
                f"regime.growth: generation {generation} would train on {made.size:.3g} examples; allowed "
                f"are {MAX_GROWN:,}"
            )
        for part in made.parts:
            if part.origin == REAL and part.count > n:
                raise DataError(
                    f"regime.growth: generation {generation} needs {part.count} real examples, there are {n} "
                    "(data.num_examples); raise synthetic_ratio or data.num_examples, or lower the growth"
                )


@dataclass(frozen=True)
class Drawn:
    """The origin and index of every training example.

    Attributes:
        origin: Shape [size], `REAL`, `EXTERNAL`, `TEACHER` or the generation that wrote the example.
        index: Shape [size], position within the real examples or within that corpus as filtered.
    """

    origin: npt.NDArray[np.int32]
    index: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of training examples."""
        return len(self.origin)

    def take(self, kept: npt.NDArray[Any]) -> Drawn:
        """Some of the training examples."""
        return Drawn(self.origin[kept], self.index[kept])


def draw(made: Recipe, n: int, seed: int, generation: int) -> Drawn:
    """Turn a recipe into the origin and index of every training example; a pool is behind the rest, shuffled.

    Args:
        made: The recipe.
        n: Number of real training examples (subsets of the real ones are drawn from these).
        seed: The chain's seed.
        generation: Index of the generation.
    """
    origins, indices = [], []
    for part in made.parts:
        if part.draw in ("resample", "fixed") and part.count < n:
            when = generation if part.draw == "resample" else 0
            chosen = np.sort(stream(seed, when, "real_part").permutation(n)[: part.count])
        else:
            chosen = np.arange(part.offset, part.offset + part.count)
        origins.append(np.full(len(chosen), part.origin, dtype=np.int32))
        indices.append(chosen.astype(np.int64))
    origin, index = np.concatenate(origins), np.concatenate(indices)
    if made.take is not None:
        order = stream(seed, generation, "pool").permutation(made.pooled)
        order = np.concatenate([np.arange(len(origin) - made.pooled), len(origin) - made.pooled + order])
        origin, index = origin[order], index[order]
    if made.subsample is not None:
        kept = np.sort(stream(seed, generation, "subsample").permutation(len(origin))[: made.subsample])
        origin, index = origin[kept], index[kept]
    return Drawn(origin, index)
