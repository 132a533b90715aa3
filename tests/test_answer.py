"""The sentences that a report begins with, on rows whose answer is known."""

from __future__ import annotations

from typing import Any

from harness.metrics import catalogue
from harness.reporting.answer import ONE_SEED, SHOWN, answers, reserved

AXES = ("learner.sample.temperature",)


def chain(
    cell: Any, seed: int, *nll: float | None, status: str = "ok", **last: float
) -> list[dict[str, Any]]:
    """The rows of a chain; other metrics are 1 in generation 0, and as given in the last one."""
    rows = []
    for generation, value in enumerate(nll):
        ends = generation == len(nll) - 1
        others = {f"text/{name}": end if ends and generation else 1.0 for name, end in last.items()}
        identity = {"chain": f"{cell}-{seed}", "seed": seed, "generation": generation}
        row = {**identity, "status": status if ends else "ok", AXES[0]: cell, "test/nll": value, **others}
        rows.append(row)
    return rows


def test_what_worsens_most_comes_first() -> None:
    rows = [
        *chain(1.0, 0, 3.0, 3.2, distinct_2=1.1, entropy_2=1.05, tail_mass=1.0),
        *chain(0.7, 0, 3.0, 4.0, distinct_2=0.5, entropy_2=0.9, tail_mass=0.6),
        *chain(0.9, 0, 3.0, 2.9, distinct_2=1.2, entropy_2=0.9, tail_mass=0.6),
    ]
    assert answers(rows, AXES, [0]) == [
        "temperature 0.7: NLL on real test text rises from 3 to 4 nats/token; its text narrows "
        "(distinct-2 1 to 0.5, tail mass 1 to 0.6)",
        "temperature 1.0: NLL on real test text rises from 3 to 3.2 nats/token; its text broadens "
        "(distinct-2 1 to 1.1)",
        "temperature 0.9: NLL on real test text falls from 3 to 2.9 nats/token",
    ]


def test_what_goes_the_other_way_is_told_apart() -> None:
    """A share that rises is no evidence of a text that narrows."""
    rows = chain(0.7, 0, 3.0, 4.0, distinct_2=0.5, entropy_2=0.9, tail_mass=1.2, vocab_coverage=0.8)
    (line,) = answers(rows, AXES, [0])
    assert line.endswith(
        "; its text narrows (distinct-2 1 to 0.5, vocabulary coverage 1 to 0.8), but tail mass rises, 1 to "
        "1.2"
    )
    rows = chain(1.0, 0, 3.0, 4.0, distinct_2=1.1, entropy_2=1.2, tail_mass=0.9, vocab_coverage=0.8)
    (line,) = answers(rows, AXES, [0])
    assert line.endswith(
        "; its text broadens (distinct-2 1 to 1.1), but tail mass falls, 1 to 0.9, and vocabulary coverage "
        "falls, 1 to 0.8"
    )


def test_a_verb_needs_no_sign() -> None:
    """By how much something falls is no negative number; where nothing is known of the way the sign is."""
    falling = [
        row for seed, by in enumerate((0.4, 0.5, 0.6, 0.5)) for row in chain(None, seed, 3.0, 3.0 - by)
    ]
    (line,) = answers(falling, (), range(4))
    assert line == "NLL on real test text falls from 3 to 2.5 nats/token (by 0.50 ± 0.13)"
    doubtful = [
        row for seed, by in enumerate((0.4, -0.6, 1.0, 0.1)) for row in chain(None, seed, 3.0, 3.0 - by)
    ]
    (line,) = answers(doubtful, (), range(4))
    assert line.startswith("NLL on real test text does not change beyond doubt, 3 and ")
    assert "(by -0.2 ± 1.1" in line
    ended = [*chain(None, 0, 3.0, None, status="diverged"), *falling[2:]]
    (line,) = answers(ended, (), range(4))
    assert line.endswith("(by 0.5333* (3 of 4 live, median 0.5))"), (
        "what has diverged is not below all others"
    )


def test_numbers_are_no_text() -> None:
    """Kernel densities have no other headline than their likelihood, of examples that have no tokens."""
    rows = chain(None, 0, 3.0, 4.0)
    for row in rows:
        row["kde/variance"] = 1.0
    assert answers(rows, (), [0]) == ["NLL on real examples rises from 3 to 4 nats"]
    for row in rows:
        row["test/perplexity"] = 20.0  # beside language models it is theirs
    assert catalogue.among("test/nll", set(rows[0])).unit == "nats/token"


def test_the_change_is_of_the_same_seed_and_has_its_interval() -> None:
    rows = [
        row for seed, first in enumerate((1.0, 2.0, 3.0)) for row in chain(None, seed, first, first + 0.5)
    ]
    (line,) = answers(rows, (), [0, 1, 2])
    assert line == "NLL on real test text rises from 2 to 2.5 nats/token (by 0.5 ± 0 (3 seeds))"
    (line,) = answers(rows, (), [0, 1, 2, 3])
    assert line.endswith("(by 0.5 ± 0 (3 of 4 seeds))"), "a seed that is not there is counted"


def test_one_seed_is_said_where_no_cell_has_more() -> None:
    one, two = chain("a", 0, 3.0, 4.0), chain("b", 1, 3.0, 4.0)
    assert reserved(one, AXES, [0]) == reserved([*one, *two], AXES, ()) == [ONE_SEED]
    assert reserved(one, AXES, [0, 1]) == reserved([*one, *chain("a", 1, 3.0, 4.0)], AXES, ()) == []
    assert reserved([], AXES, [0]) == [], "nothing is there to be doubted"


def test_nobody_misses_the_seeds_of_another_cell() -> None:
    rows = [*chain("a", 0, 3.0, 4.0), *(row for seed in range(5) for row in chain("b", seed, 3.0, 3.5))]
    lines = answers(rows, AXES, ())
    assert not any(" of " in line for line in lines), lines
    assert "(1 of 5 seeds)" in answers(rows, AXES, range(5))[0]


def test_nothing_rises_from_a_number_to_the_same() -> None:
    (line,) = answers(chain(None, 0, 0.0, 0.0), (), [0])
    assert line == "NLL on real test text stays at 0 nats/token"


def test_what_chance_explains_is_no_change() -> None:
    rows = [row for seed, last in enumerate((2.0, 4.0, 3.5)) for row in chain(None, seed, 3.0, last)]
    (line,) = answers(rows, (), [0, 1, 2])
    assert line.startswith(
        "NLL on real test text does not change beyond doubt, 3 and 3.17 nats/token (by 0.17 ± 2.6"
    )


def test_chains_that_ended_are_told() -> None:
    ended = chain(0.7, 0, 3.0, None, status="diverged")
    rows = [*ended, *chain(0.7, 1, 3.0, 4.0), *chain(1.0, 0, 3.0, None, status="diverged")]
    lines = answers(rows, AXES, [0, 1])
    assert lines[0] == "temperature 1.0: 1 of 2 seeds have diverged, no other is finished"
    assert "(by 1* (1 of 2 live, median diverged))" in lines[1] and "±" not in lines[1]
    short = answers([*chain(0.7, 0, 3.0, 3.5, 4.0), *chain(0.7, 1, 3.0, 9.0)], AXES, [0, 1])
    assert short[0].startswith("temperature 0.7: NLL on real test text rises from 3 to 4"), "not half a chain"


def test_many_cells_are_counted_and_nothing_is_said_of_nothing() -> None:
    rows = [row for cell in range(SHOWN + 3) for row in chain(cell, 0, 1.0, 1.0 + cell)]
    lines = answers(rows, AXES, [0])
    assert len(lines) == SHOWN + 1 and lines[0].startswith(f"temperature {SHOWN + 2}: ")
    assert lines[-1] == "3 more cells: 2 worsen less, 1 does not change beyond doubt"
    more = f"{SHOWN - 1} more cells: {SHOWN - 2} worsen less, 1 does not change beyond doubt"
    assert answers(rows, AXES, [0], 4) == [*lines[:4], more]
    assert answers([row for row in rows if row[AXES[0]]], AXES, [0])[-1] == "2 more cells worsen less"
    rows = [row for cell in range(SHOWN + 1) for row in chain(cell, 0, 1.0, 1.0 + cell)]
    assert answers(rows, AXES, [0])[-1] == "1 more cell does not change beyond doubt"
    assert answers([row for row in rows if row[AXES[0]]] + chain(0.5, 0, 1.0, 1.1), AXES, [0])[-1] == (
        "1 more cell worsens less"
    )
    assert answers([], AXES, [0]) == [] and answers(chain(1.0, 0, 3.0), AXES, [0]) == []
    gaussian = [
        {"chain": "a", "seed": 0, "generation": g, "status": "ok", "gaussian/log_variance": -g}
        for g in (0, 1)
    ]
    assert answers(gaussian, (), [0]) == ["log variance falls from 0 to -1"]


def test_cells_without_a_sentence_are_counted_by_their_way() -> None:
    """Those that improve or do not change do not worsen less; neither do those that have ended."""
    lasts = {"a": (4, 4.01), "b": (3.2, 3.21), "c": (2.9, 3.2), "d": (2, 2.01), "e": (2.5, 2.51)}
    rows = [row for cell, of in lasts.items() for s, v in enumerate(of) for row in chain(cell, s, 3.0, v)]
    assert answers(rows, AXES, [0, 1], 1)[1:] == [
        "4 more cells: 1 worsens less, 1 does not change beyond doubt, 2 improve"
    ]
    assert answers(rows, AXES, [0, 1], 3)[3:] == ["2 more cells improve"]
    gone = [row for cell in "xyz" for row in chain(cell, 0, 3.0, None, status="diverged")]
    gone += chain("w", 0, 3.0, float("inf"))
    assert answers([*gone, *chain("a", 0, 3.0, 2.0)], AXES, [0], 1)[1:] == [
        "4 more cells: 2 have diverged, 1 is not finite any more, 1 improves"
    ]


def test_a_text_whose_seeds_disagree_has_no_way() -> None:
    """What narrows is said beyond doubt, as what worsens is: by the intervals, where there are any."""

    def end_of(seeds: int, **last: tuple[float, float]) -> str:
        rows = [
            row
            for s in range(seeds)
            for row in chain(None, s, 3.0, 4.0, **{name: pair[s == 1] for name, pair in last.items()})
        ]
        return answers(rows, (), range(seeds))[0].partition(";")[2].strip()

    sure, doubtful = (0.5, 0.6), (0.9, 1.2)
    assert end_of(5, distinct_2=sure, entropy_2=sure) == "its text narrows (distinct-2 1 to 0.52)"
    assert end_of(5, distinct_2=doubtful, entropy_2=sure) == ""
    assert end_of(5, distinct_2=sure, entropy_2=doubtful) == ""
    both = {"distinct_2": sure, "entropy_2": sure}
    tails = end_of(5, **both, tail_mass=doubtful, vocab_coverage=(1.3, 1.4))
    assert tails == "its text narrows (distinct-2 1 to 0.52), but vocabulary coverage rises, 1 to 1.32"
    assert end_of(5, **both, tail_mass=sure, vocab_coverage=(1.3, 0.6)).endswith("tail mass 1 to 0.52)")
    one = end_of(1, distinct_2=doubtful, entropy_2=doubtful, tail_mass=doubtful)
    assert one == "its text narrows (distinct-2 1 to 0.9, tail mass 1 to 0.9)", "one seed has no interval"


def test_survivors_do_not_place_their_cell() -> None:
    """Of a cell that has lost seeds the others may improve: it is the worst all the same, and so counted."""
    inf = float("inf")
    rows = [row for cell in range(1, 10) for s in range(5) for row in chain(cell, s, 3.0, 3.0 + cell + s / 9)]
    rows += [*chain("few", 0, 3.0, 2.9), *(r for s in range(1, 5) for r in chain("few", s, 3.0, inf))]
    for seed in range(5):
        rows += chain("most", seed, 3.0, None, status="diverged") if seed else chain("most", 0, 3.0, 2.9)
        rows += chain("one", seed, 3.0, 2.9 if seed else None, status="ok" if seed else "diverged")
        rows += chain("some", seed, 3.0, 2.9 if seed else inf)
    lines = answers(rows, AXES, range(5), 7)
    assert [line.partition(":")[0].removeprefix("temperature ") for line in lines[:6]] == [
        "few", "most", "one", "some", "9", "8",
    ]  # fmt: skip
    assert "(by 0.1* (1 of 5 live, median diverged))" in lines[1]
    assert answers(rows, AXES, range(5), 0) == [
        "13 more cells: 2 have diverged in some seeds, 2 are not finite any more in some seeds, 9 worsen less"
    ]
    assert answers(rows, AXES, range(5), 1)[1].startswith(
        "12 more cells: 2 have diverged in some seeds, 1 is"
    )


def test_what_is_not_known_says_no_kind() -> None:
    """Of a share of nothing it is not known which way it goes."""
    nan = float("nan")
    for first, last in ((nan, 1.0), (1.0, nan), (nan, nan)):
        rows = chain(1.0, 0, 3.0, 3.2, distinct_2=first, entropy_2=last)
        (line,) = answers(rows, AXES, [0])
        assert line.endswith("from 3 to 3.2 nats/token"), line


def test_every_cell_has_a_metric_of_its_own_learner() -> None:
    def of(cell: str, name: str, *values: float) -> list[dict[str, Any]]:
        return [
            {"chain": cell, "seed": 0, "generation": g, "status": "ok", "learner.kind": cell, name: value}
            for g, value in enumerate(values)
        ]

    rows = [*of("vae", "vae/latent_std", 1.0, 0.5), *of("discrete", "discrete/entropy", 3.0, 2.0)]
    lines = answers(rows, ("learner.kind",), [0])
    assert [line.partition(":")[0] for line in lines] == ["discrete", "vae"]
    assert "from 3 to 2" in lines[0] and "from 1 to 0.5" in lines[1]


def test_a_last_number_that_is_not_finite_is_told() -> None:
    rows = [*chain(0.7, 0, 3.0, float("inf")), *chain(1.0, 0, 3.0, 3.5)]
    lines = answers(rows, AXES, [0])
    assert lines[0] == (
        "temperature 0.7: NLL on real test text is 3 in generation 0, and not finite in the last one"
    )
    assert lines[1].startswith("temperature 1.0: ")


def test_both_ends_are_of_the_same_seeds() -> None:
    """A seed whose number is missing in one generation is in neither mean."""
    for one in ((float("nan"), 9.0), (9.0, float("inf"))):
        (line,) = answers([*chain(1.0, 0, *one), *chain(1.0, 1, 3.0, 4.0)], AXES, [0, 1])
        assert line.endswith("rises from 3 to 4 nats/token (by 1 (1 of 2 seeds))"), line


def test_cells_that_are_not_equally_far_say_how_far_they_are() -> None:
    lines = answers([*chain(1.0, 0, 3.0, 3.5, 4.0), *chain(0.7, 0, 3.0, 3.2)], AXES, [0])
    assert [line.partition(": ")[0] for line in lines] == [
        "temperature 1.0, up to generation 2",
        "temperature 0.7, up to generation 1",
    ]


def test_what_a_judge_sees_stands_beside_the_truth() -> None:
    def rows(cell: str, reward: float, judged: float, accepted: float, last: float) -> list[dict[str, Any]]:
        first = {"task/pass_1": 0.4, "task/pass_4": 0.7, "task/pass_8": 0.8, "task/judged_reward": 0.5}
        later = {"task/pass_1": last, "task/pass_8": 0.6, "task/judged_reward": reward}
        later |= {
            "judge/true_share": 0.4,
            "judge/reward": judged,
            "judge/accepted": accepted,
            "text/distinct_2": 1.0,
        }
        identity = {"chain": cell, "seed": 0, "status": "ok", "mitigation": cell}
        return [{**identity, "generation": g, **found} for g, found in enumerate((first, later))]

    cells = [("itself", 0.9, 0.8, 5, 0.3), ("nobody", 1.0, 1.0, 9, 0.35), ("strict", 0.4, 0.0, 0, 0.45)]
    lines = answers([row for cell in cells for row in rows(*cell)], ["mitigation"], [0])
    assert lines == [
        "itself: pass@1 on test prompts falls from 0.4 to 0.3; its judge sees 0.5 to 0.9, pass@8 0.8 to 0.6",
        "nobody: pass@1 on test prompts falls from 0.4 to 0.35; its judge sees 0.5 to 1, pass@8 0.8 to 0.6",
        "strict: pass@1 on test prompts rises from 0.4 to 0.45; its judge sees 0.5 to 0.4, pass@8 0.8 to 0.6",
    ]


def test_groups_and_other_texts_are_in_the_sentence() -> None:
    """Who asks for them learns from the answer what becomes of each, those that move most first."""
    names = ("test/nll/en", "test/nll/xx", "other/poems/nll", "other/code/nll", "other/same/nll")
    ends = ((2.0, 2.125), (3.0, 3.5), (4.0, 3.75), (1.0, 1.0625), (1.0, 1.0))
    rows = chain(None, 0, 2.0, 2.5)
    for name, pair in zip(names, ends, strict=True):
        for row, value in zip(rows, pair, strict=True):
            row[name] = value
    (line,) = answers(rows, (), [0])
    assert line == (
        "NLL on real test text rises from 2 to 2.5 nats/token; NLL in nats/token rises by 0.5 on xx, falls "
        "by 0.25 on poems, rises by 0.125 on en, by 0.0625 on code"
    )


def test_groups_that_may_not_have_changed_are_not_named() -> None:
    noise, sure = (3.1, 2.0, 3.4, 2.6), (3.5, 3.52, 3.49, 3.51)
    rows = [row for seed in range(4) for row in chain(None, seed, 2.0, 2.5 + 0.01 * seed)]
    for row in rows:
        row["test/nll/noise"] = noise[row["seed"]] if row["generation"] else 3.0
        row["test/nll/sure"] = sure[row["seed"]] if row["generation"] else 3.0
    (line,) = answers(rows, (), [0, 1, 2, 3])
    assert line.endswith("; NLL in nats/token rises by 0.505 on sure")
