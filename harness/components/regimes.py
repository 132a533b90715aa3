"""Regimes: how many examples of which corpus, or real ones, a generation trains on.

A rule looks at counts only: from the regime's section, the number n of real examples and the generation to
the parts of its training set and, where only some of them are drawn, how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from numbers import Integral
from typing import Any, get_args

from harness.errors import DataError
from harness.records import REAL, DrawKind, Part
from harness.registry import RegimePlugin, no_verdict
from harness.terminal import shown

USUAL = 1_000_000
"""Real examples where only their proportion to others is asked for (`usual_parts`)."""


def synthetic_count(ratio: float, n: int) -> int:
    """Ratio * n rounded to the nearest example, halves up; exact in decimal, so 0.15 of 10 is 2."""
    return int(Fraction(Decimal(str(ratio))) * n + Fraction(1, 2))


def augment_count(ratio: float, n: int) -> int:
    """Synthetic examples beside all n real ones: ratio / (1 - ratio) * n, rounded as in `synthetic_count`."""
    share = Fraction(Decimal(str(ratio)))
    return int(share / (1 - share) * n + Fraction(1, 2))


def grown(growth: Any, n: int, generation: int) -> int:
    """Examples of a generation whose training sets grow: n factor^g or n (g + 1)^power, to the nearest."""
    if growth is None:
        return n
    times = growth.factor**generation if growth.factor else (generation + 1) ** growth.power
    return int(Fraction(times) * n + Fraction(1, 2))


def _replace(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """The share ``synthetic_ratio`` of the last corpus, real examples for the rest; n in all, or more."""
    size = grown(regime.growth, n, generation)
    synthetic = synthetic_count(regime.synthetic_ratio or 0.0, size)
    return (Part(REAL, size - synthetic, regime.real_part), Part(generation - 1, synthetic)), None


def _replace_grown(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """The last corpus alone, as large as `accumulate` would be: tells collapse from more optimisation."""
    return (Part(generation - 1, n * (generation + 1)),), None


def _pool(n: int, generation: int) -> tuple[Part, ...]:
    return (Part(REAL, n), *(Part(origin, n) for origin in range(generation)))


def _accumulate(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """The real examples and all corpora so far, all of them; n(g+1) in all."""
    return _pool(n, generation), None


def _accumulate_subsample(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """A sample of n, drawn without replacement from what `accumulate` would train on."""
    return _pool(n, generation), n


def _augment(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """All n real examples, and as many of the last corpus beside them as make up ``synthetic_ratio``."""
    return (Part(REAL, n), Part(generation - 1, augment_count(regime.synthetic_ratio or 0.0, n))), None


def _fresh_real(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """As `replace`, but no earlier generation has seen the real part."""
    synthetic = synthetic_count(regime.synthetic_ratio or 0.0, n)
    real = n - synthetic
    return (
        Part(REAL, real, "unseen", offset=n + (generation - 1) * real),
        Part(generation - 1, synthetic),
    ), None


def _stream(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """As the web: real and synthetic examples arrive unlabelled, and filters choose what to train on."""
    arriving = synthetic_count(regime.pool, n)
    synthetic = synthetic_count(regime.synthetic_ratio or 0.0, arriving)
    real, anchored = arriving - synthetic, synthetic_count(regime.anchor, n)
    parts = [Part(REAL, anchored, "resample")]
    if regime.history == "all":
        parts.append(Part(REAL, n, pooled=True))
    for then in range(1 if regime.history == "all" else generation, generation + 1):
        parts.append(Part(REAL, real, "unseen", offset=n + (then - 1) * real, pooled=True))
        parts.append(Part(then - 1, synthetic, pooled=True))
    return tuple(parts), n - anchored


def ruled(regime: Any, n: int, generation: int) -> tuple[tuple[Part, ...], int | None]:
    """What a regime's rule says, if it says what a rule can say.

    Raises:
        DataError: A package's rule gives something else.
        PluginError: It raises what in a section's validator would be what is wrong with the study.
    """
    from harness.components import REGIMES

    component = REGIMES.loaded[regime.kind]
    with no_verdict(ValueError, AssertionError):
        found = component.plugin.rule(regime, n, generation)
    if not component.package:
        return found
    expected = "a tuple of parts, and a number of examples or None"
    match found:
        case (tuple() as parts, Integral() | None as some) if all(isinstance(part, Part) for part in parts):
            expected = _expected(parts, some, generation, component.plugin.selects)
            if not expected:
                # numbers of other libraries are equal to Python's, and cannot be written into a key
                plain = [
                    replace(p, origin=int(p.origin), count=int(p.count), offset=int(p.offset)) for p in parts
                ]
                return tuple(plain), None if some is None else int(some)
    raise DataError(
        f"regime.kind: the rule of {regime.kind} ({component.package}) gives {shown(found)} for generation "
        f"{generation}, expected {expected}"
    )


def _expected(parts: Sequence[Part], some: Any, generation: int, selects: bool) -> str:
    """What a package's parts should have been; empty where nothing is wrong with them."""
    if not all(isinstance(number, Integral) for p in parts for number in (p.origin, p.count, p.offset)):
        return "whole numbers as origin, count and offset of a part"
    corpora, total = [p.origin for p in parts if p.origin != REAL], sum(p.count for p in parts)
    rules = (
        (
            all(0 <= g < generation for g in corpora),
            f"origins of REAL or a generation from 0 to {generation - 1}",
        ),
        (len(set(corpora)) == len(corpora), "each corpus in one part"),
        (all(p.count >= 0 and p.offset >= 0 for p in parts), "no count or offset below 0"),
        (total > 0, "at least one example"),
        (all(p.draw in get_args(DrawKind) for p in parts), f"a draw of {', '.join(get_args(DrawKind))}"),
        (selects or not any(p.pooled for p in parts), "pooled parts only where the regime has selects=True"),
        (not selects or some is not None, "how many of the pool to take, as the regime has selects=True"),
        (
            some is None or (0 <= some and (selects or some <= total)),
            f"to draw from 0 to {total} examples, as many as the parts have",
        ),
    )
    return next((expected for kept, expected in rules if not kept), "")


def usual_parts(regime: Any) -> list[Part]:
    """What the generations 1 to 3 read where there are a million real examples.

    So what a regime reads is asked of its rule, whatever it is called and whoever adds it.
    """
    return [part for generation in (1, 2, 3) for part in ruled(regime, USUAL, generation)[0] if part.count]


COMPONENTS: Mapping[str, RegimePlugin] = {
    "replace": RegimePlugin(_replace, 1, uses_ratio=True, pools=False, uses=("real_part", "growth")),
    "replace_grown": RegimePlugin(_replace_grown, 1, pools=False),
    "accumulate": RegimePlugin(_accumulate, 1),
    "accumulate_subsample": RegimePlugin(_accumulate_subsample, 1),
    "augment": RegimePlugin(_augment, 1, uses_ratio=True, pools=False),
    "fresh_real": RegimePlugin(_fresh_real, 1, uses_ratio=True, pools=False, unseen=True),
    "stream": RegimePlugin(
        _stream,
        1,
        uses_ratio=True,
        pools=False,
        unseen=True,
        selects=True,
        uses=("pool", "history", "anchor", "select"),
    ),
}
