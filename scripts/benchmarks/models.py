"""Fits, samples and scores of one model, the harness beside plain programs and a limit, all in turn."""

import statistics
import sys
from dataclasses import dataclass

from benchmarks.table import Figure
from benchmarks.turns import Contestant, Left, alternate, spread

SAYS = {
    "matrix_product": "matrix product (limit)",
    "harness_fit": "harness",
    "harness_compiled_fit": "harness, compiled",
    "plain_fit": "torch loop",
    "compiled_fit": "torch loop, compiled",
    "trainer_fit": "Trainer",
    "harness_sample": "harness",
    "generate": "generate",
    "ctranslate2": "CTranslate2",
    "vllm": "vLLM",
    "forward_steps": "forward pass, token by token (limit)",
    "forward_blocks": "forward pass, whole blocks",
    "harness_score": "harness",
    "plain_score": "torch loop",
    "forward_scores": "forward pass (limit)",
}
"""How contestants are called in figures."""
EXTRA = ("trainer_fit", "ctranslate2", "vllm")
"""Those that need packages which the harness's environment does not have."""


@dataclass(frozen=True)
class Comparison:
    """Who takes turns.

    Attributes:
        limit: What the machine could do at best.
        others: Plain programs; those that can not be set up are left out.
    """

    limit: str
    harness: str
    others: tuple[str, ...]


COMPARISONS = {
    "fits": Comparison("matrix_product", "harness_fit", ("plain_fit", "trainer_fit")),
    "samples": Comparison(
        "forward_steps", "harness_sample", ("forward_blocks", "generate", "ctranslate2", "vllm")
    ),
    "scores": Comparison("forward_scores", "harness_score", ("plain_score",)),
}


@dataclass
class Measured:
    """What a comparison found.

    Attributes:
        figures: The `Figure` of everybody.
        left_out: Who could not be set up, and why.
        device: ``cpu``, or the GPU's name.
        profiles: The profiler's tables, where they were asked for.
    """

    figures: list
    left_out: dict
    device: str = "cpu"
    profiles: dict | None = None


def measure(what, shape, rounds=7, only=None, extra=None, compiled=False, profile=False, clock="seconds"):
    """Compare; ray is not needed.

    Args:
        what: A key of `COMPARISONS`.
        shape: The `Shape`.
        rounds: Turns of each that are counted.
        only: Names of the plain programs that take part; None for all.
        extra: Folder with packages for those in `EXTRA`.
        compiled: Whether compiled fits, the harness's and the loop's, take part.
        profile: Whether the harness's last turn is profiled.
        clock: ``seconds``, or ``cpu_seconds`` of the contestant's process.

    Raises:
        Left: The harness or the limit could not be set up, or somebody ended on the way.
    """
    comparison = COMPARISONS[what]
    others = comparison.others if only is None else tuple(name for name in comparison.others if name in only)
    names = [
        comparison.limit,
        comparison.harness,
        *others,
        *(["harness_compiled_fit", "compiled_fit"] if compiled and what == "fits" else []),
    ]
    taking = [Contestant(name, shape, extra if name in EXTRA else None) for name in names]
    abouts, left_out, playing = {}, {}, []
    try:
        for one in taking:
            try:
                abouts[one.name] = one.about()
                one.turn()  # not counted: the first turn compiles, fills caches, and shows what does not work
                playing.append(one)
            except Left as error:
                if one.name in (comparison.limit, comparison.harness):
                    raise
                left_out[f"{what}, {SAYS[one.name]}"] = str(error)
                print(f"left out: {error}", file=sys.stderr)
        seconds = alternate(playing, rounds, clock)
        profiles = None
        if profile:
            harness = next(one for one in playing if one.name == comparison.harness)
            profiles = {f"{what} {shape.model} {shape.precision}": harness.turn("profile")["table"]}
    finally:
        for one in taking:
            one.close()
    work = {name: about["work"] for name, about in abouts.items()}
    figures = figures_of(what, shape, comparison, seconds, work, abouts[comparison.limit].get("fit_flop"))
    return Measured(figures, left_out, abouts[comparison.limit]["device"], profiles)


def figures_of(what, shape, comparison, seconds, work, flop):
    """Figures from seconds.

    Args:
        what: The comparison's name.
        shape: The `Shape`.
        comparison: The `Comparison`.
        seconds: By contestant, one for every round.
        work: What a turn does, by contestant: tokens, FLOP for matrix products.
        flop: FLOP of a token where the limit is a rate of FLOP; None where it is one of tokens.
    """
    rates = {name: [work[name] / value for value in values] for name, values in seconds.items()}
    limits = [rate / (flop or 1) for rate in rates[comparison.limit]]
    ours, found = rates[comparison.harness], []
    for name, values in rates.items():
        is_limit, is_flop = name == comparison.limit, name == comparison.limit and flop is not None
        scale = 1e9 if is_flop else 1
        middle, low, high = spread([value / scale for value in values])
        share = (
            None if is_limit else statistics.median(v / most for v, most in zip(values, limits, strict=True))
        )
        ratio = statistics.median(own / value for own, value in zip(ours, values, strict=True))
        ratio = None if is_limit or name == comparison.harness else ratio
        unit = "GFLOP/s" if is_flop else "tokens/s"
        about = what, shape.label, shape.precision, SAYS[name], unit
        found.append(Figure(*about, middle, low, high, share, ratio))
    return found
