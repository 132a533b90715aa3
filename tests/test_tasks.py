"""Tasks and their checkers, the sides of their prompts, pass@k, and judges."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.components.judging import JudgeFilter
from harness.components.tasks import TASKS, Arithmetic, Boolean, Rewriting, TaskData
from harness.data.real import Kept
from harness.data.task import TaskCorpus, _check_problem, collect, prepared, side_of
from harness.errors import DataError
from harness.metrics.lexical import NUM_BANDS, band_of, lexical_metrics
from harness.metrics.tasks import model_metrics, pass_at, task_metrics
from harness.records import Examples, status_of
from harness.registry import Known, named
from harness.tasks import Checker, Problem, Verdict, checking, derivations
from harness.tasks.checking import answer_of, verdict_of
from harness.tasks.derivations import MAX_STEPS, check_rewriting, derivation, end_of, rewriting_moves
from harness.tasks.judges import keep, rewards

SECTIONS = [
    Boolean(kind="boolean", difficulty=(1, 2, 3, 4)),
    Arithmetic(kind="arithmetic", difficulty=(1, 2, 3)),
    Arithmetic(kind="arithmetic", difficulty=(2, 3), modulus=None),
    Arithmetic(kind="arithmetic", difficulty=(3,), modulus=7, operators="-*"),
    Rewriting(kind="rewriting"),
]


def problems(section: Any, count: int) -> list[Any]:
    return list(itertools.islice(named(TASKS[section.kind].problems)(section), count))


def value(section: Arithmetic, state: str) -> int:
    """What Python makes of a calculation."""
    found = int(eval(state))
    return found if section.modulus is None else found % section.modulus


def truth(state: str) -> bool:
    """A truth value by numbers: Python's arithmetic on 0 and 1, which binds as the brackets say."""
    text = state.replace("T", "1").replace("F", "0").replace("~", "1-")
    # 1-x binds less than &, so an operand that is negated needs brackets of its own
    while "1-" in text:
        at = text.rindex("1-")
        end, depth = at + 2, 0
        while end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
            if depth == 0:
                break
        text = f"{text[:at]}(1 ^ {text[at + 2 : end]}){text[end:]}"
    return bool(eval(text))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.kind)
def test_solutions_are_right_and_agree_with_python(section: Any) -> None:
    check = Checker(section)
    for problem in problems(section, 300):
        assert check([problem.prompt], [problem.solution])[0].correct, problem
        if isinstance(section, Rewriting):
            continue
        steps = [problem.prompt[:-1], *problem.solution.split("=")]
        if isinstance(section, Boolean):
            assert {truth(step) for step in steps} == {steps[-1] == "T"}, problem
        else:
            assert {value(section, step) for step in steps} == {int(steps[-1])}, problem
        operators = [sum(step.count(o) for o in "&|^~") for step in steps]
        if isinstance(section, Boolean):
            assert operators == list(range(problem.difficulty, -1, -1))
        assert len(steps) - 1 == problem.difficulty


@settings(max_examples=150)
@given(st.sampled_from(SECTIONS), st.integers(0, 199), st.data())
def test_a_changed_solution_is_right_if_it_derives_the_answer(
    section: Any, number: int, data: st.DataObject
) -> None:
    """One character is replaced, dropped or doubled: what still counts as right has to be a derivation."""
    problem = problems(section, number + 1)[-1]
    text = problem.solution
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from(sorted({*problem.prompt, *text, "x", "="})))
    changed = data.draw(
        st.sampled_from(
            [text[:at] + letter + text[at + 1 :], text[:at] + text[at + 1 :], text[:at] + letter + text[at:]]
        )
    )
    verdict = Checker(section)([problem.prompt], [changed])[0]
    separator = problem.prompt[-1]
    if verdict.correct:
        states = [problem.prompt[:-1], *changed.split(separator)]
        assert verdict.answer
        assert len(changed.split(separator)[-1]) >= 1
        if isinstance(section, Boolean):
            assert len({truth(state) for state in states}) == 1 and states[-1] in "TF"
        elif isinstance(section, Arithmetic):
            assert len({value(section, state) for state in states}) == 1
    elif changed == text:
        raise AssertionError("a solution is wrong")


@settings(max_examples=100)
@given(st.sampled_from(SECTIONS), st.text(max_size=60))
def test_a_checker_answers_whatever_it_is_given(section: Any, completion: str) -> None:
    problem = problems(section, 1)[0]
    verdict = Checker(section)([problem.prompt], [completion])[0]
    assert not verdict.correct or completion == problem.solution or "=" in completion or ">" in completion
    assert not verdict.trouble


@pytest.mark.parametrize(
    ("code", "trouble"),
    [("signal.setitimer(signal.ITIMER_REAL, 0.01); signal.pause()", "timed_out"), ("exit(3)", "raised")],
)
def test_a_checker_that_its_own_clock_has_ended_was_late(code: str, trouble: str) -> None:
    """Where whoever asks is late himself, so that it has ended when he looks."""
    process = subprocess.Popen([sys.executable, "-c", f"import signal; {code}"], stdin=-1, stdout=-1)
    process.wait()
    with process:
        assert checking._Apart(Boolean(kind="boolean"), 1.0)._trouble(process) == trouble


def test_default_rules_come_to_one_end_in_any_order() -> None:
    """Between two c's, a counts 1 and b counts 2 modulo 3; blocks that vanish let their c's become one."""
    section = Rewriting(kind="rewriting")
    moves = rewriting_moves(section.rules)
    draw = np.random.default_rng(0)
    for size in range(1, 7):
        for letters in itertools.product("abc", repeat=size):
            state = "".join(letters)
            blocks = [(part.count("a") + 2 * part.count("b")) % 3 for part in state.split("c")]
            inner = [block for block in blocks[1:-1] if block]
            if "c" in state:
                expected = "c".join(["", "a", "b"][block] for block in (blocks[0], *inner, blocks[-1]))
            else:
                expected = ["_", "a", "b"][blocks[0]]
            assert end_of(moves, state) == expected
            steps = derivation(moves, state, draw)
            assert steps is not None and [state, *steps][-1] == expected


@pytest.mark.slow
def test_rules_that_never_end_are_refused() -> None:
    with pytest.raises(ValueError, match="ab becomes cab, which holds ab again"):
        Rewriting(kind="rewriting", rules=(("ab", "cab"),))
    endless: list[Any] = [(("ab", "ba"), ("ba", "ab")), (("a", "bbbb"), ("b", "aaaa"))]
    for rules in endless:
        section = Rewriting(kind="rewriting", rules=rules, difficulty=(3,))
        data = TaskData(
            source="task",
            task=section,
            num_examples=2,
            test=1,
            validation=1,
            prompt_tokens=9,
            completion_tokens=40,
        )
        said = "different prompts of the train side are asked for, .* gives 0; it has no problem at all"
        with pytest.raises(DataError, match=said):
            collect(data)


class Folder:
    """Where a test's data are prepared."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept: Kept | None = None

    def known(self, stored: Any) -> Path | None:
        return None

    def folder(self, stored: Any, prepare: Any) -> Path:
        self.path.mkdir()
        prepare(self.path)
        return self.path


def corpus(path: Path, task: Any, **fields: Any) -> TaskCorpus:
    config = TaskData(
        source="task", task=task, **{"num_examples": 40, "test": 20, "validation": 10, **fields}
    )
    real = prepared(config, Folder(path)).real
    assert isinstance(real, TaskCorpus)
    return real


@settings(max_examples=25)
@given(
    st.sampled_from(["boolean", "arithmetic", "rewriting"]),
    st.integers(1, 60),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 30),
)
def test_sides_share_no_prompt_and_more_examples_change_none(
    kind: str, train: int, validation: int, test: int, more: int
) -> None:
    def found(count: int, reserve: int) -> dict[str, list[Any]]:
        sizes = {"num_examples": count, "reserve": reserve, "validation": validation, "test": test}
        return collect(TaskData(source="task", task={"kind": kind}, **sizes))

    small, large = found(train, 0), found(train, more)
    prompts = [problem.prompt for side in large.values() for problem in side]
    assert len(set(prompts)) == len(prompts) == train + more + validation + test
    assert all(side_of(problem.prompt) == side for side, items in large.items() for problem in items)
    assert small == {**large, "train": large["train"][:train]}


@pytest.mark.parametrize(
    ("task", "fields"),
    [
        ({"kind": "rewriting", "difficulty": [6, 7, 8]}, {}),
        ({"kind": "boolean", "difficulty": [2]}, {"completion_tokens": 40}),
        ({"kind": "arithmetic", "difficulty": [1]}, {}),
    ],
    ids=["few letters", "roomy", "short"],
)
def test_who_writes_as_the_data_do_has_not_collapsed(tmp_path: Path, task: Any, fields: Any) -> None:
    """Every metric of the text of solutions is a number, whatever alphabet and length these have."""
    data = corpus(tmp_path / "data", task, **fields)
    found = lexical_metrics(data.written(data.real(0, data.num_examples)), data.counts, data.longest)
    assert status_of("ok", found) == "ok"
    short = task["kind"] == "arithmetic"  # a digit, and the end
    solutions = [problem.solution or "" for problem in collect(data.config)["train"]]
    assert data.longest == 1 + max(map(len, solutions)) and short == (data.longest == 2)
    assert ("text/rep_4" in found) != short
    there = {f"text/band_{band + 1}" for band in band_of(data.counts)[data.counts > 0]}
    assert {name for name in found if "band" in name} == there
    assert (len(there) == NUM_BANDS) == (task["kind"] == "boolean"), "the others' letters leave one empty"
    assert data.metrics.get("lexical", 1) == (2 if short else 1), "only keys of such data say so"


def test_an_example_is_its_prompt_and_its_solution(tmp_path: Path) -> None:
    data = corpus(tmp_path / "data", {"kind": "boolean", "difficulty": [2, 3]})
    expected = collect(data.config)["train"]
    examples = data.real(0, 40)
    assert data.prompts(examples) == [problem.prompt for problem in expected]
    assert data.completions(examples) == [problem.solution for problem in expected]
    assert data.right(examples).all()
    unended = Examples(examples.values, examples.lengths - 1)
    assert data.completions(unended) == [None] * 40 and not data.right(unended).any()
    assert data.decode(data.encode("T&F=")) == "T&F="
    with pytest.raises(DataError, match="holds 'x', which is not in the alphabet"):
        data.encode("x=")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"task": {"kind": "boolean"}, "prompt_tokens": 5},
            r"data.prompt_tokens: the prompt .* has \d+ char",
        ),
        ({"task": {"kind": "boolean"}, "completion_tokens": 4}, r"data.completion_tokens: .* at least \d+"),
        ({"task": {"kind": "boolean", "difficulty": [1]}}, "task boolean gives 11; ask"),
    ],
)
def test_what_does_not_fit_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        collect(TaskData(source="task", **fields))


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem(" T=", "T"), "must not begin with a space"),
        (Problem("T=", "T", skill="a/b"), "gives the skill 'a/b', expected letters"),
        (Problem("T=", "T", difficulty="hard"), "gives the difficulty 'hard', expected a whole number"),
        (Problem("T\ud800=", "T"), "as a prompt or solution, expected text"),
        (Problem(1, "T"), "as a prompt or solution, expected text"),  # type: ignore[arg-type]
        (("T=", "T"), "expected a harness.tasks.Problem"),
    ],
)
def test_a_problem_that_is_none_is_said(problem: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _check_problem("boolean", problem)


def says(section: Any, prompt: str, completion: str) -> Any:
    """A checker, and the answer of a task, that give what the section says."""
    return section


def says_answer(section: Any, completion: str) -> Any:
    return section


def test_what_a_checker_gives_is_a_verdict_or_an_error() -> None:
    place, prompt = f"{__name__}:says", "T="
    assert verdict_of(place, Verdict(np.bool_(True), np.bool_(False)), prompt, "T") == Verdict(True, False)
    assert json.dumps(asdict(verdict_of(place, np.bool_(True), prompt, "T")))
    for odd in ({"a": 1}, None, "yes"):
        with pytest.raises(TypeError, match="a checker gives"):
            verdict_of(place, odd, prompt, "T")
    assert answer_of(f"{__name__}:says_answer", None, "T") is None
    with pytest.raises(TypeError, match="an answer is list"):
        answer_of(f"{__name__}:says_answer", ["T"], "T")


@pytest.mark.parametrize(
    ("rule", "least"),
    [(lambda state: "b" if state == "a" else "a", MAX_STEPS), (lambda state: state + "a", 100)],
)
def test_a_check_takes_no_more_steps_than_it_may(rule: Any, least: int) -> None:
    """The harness's own checkers run without a clock: rules that never end are followed for so many steps,
    and every state of a completion is compared once."""
    asked: list[str] = []

    def moves(state: str) -> list[str]:
        asked.append(state)
        return [rule(state)]

    assert end_of(moves, "a") is None and least <= len(asked) <= MAX_STEPS
    for states in ([], ["b", "a"] * 150, ["x"] * 300, list(itertools.accumulate("a" * 40))[1:]):
        asked.clear()
        verdict = derivations.judge(moves, ">", "a>", ">".join(states))
        assert verdict == Verdict(False, False) and len(asked) <= MAX_STEPS + len(states) + 2


def test_rules_with_several_ends_make_right_what_derives_one() -> None:
    """``ab`` may become ``a`` or ``b``: both are answers to it."""
    section = Rewriting(kind="rewriting", rules=(("ab", "a"), ("ab", "b")))
    for completion in ("a", "b"):
        assert check_rewriting(section, "ab>", completion) == Verdict(True, True)
    assert check_rewriting(section, "ab>", "ab") == Verdict(False, False)


# --- pass@k ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5, 8])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_pass_at_k_is_unbiased_for_bernoulli_solvers(k: int, p: float) -> None:
    """Over the binomial number of right ones among n its mean is 1 - (1 - p)^k, exactly."""
    n = 8
    correct = np.array([[place < c for place in range(n)] for c in range(n + 1)])
    weight = np.array([math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)])
    assert weight @ pass_at(correct, k) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 4])
def test_pass_at_k_is_the_share_of_sets_with_a_right_one(k: int) -> None:
    row = np.array([True, False, False, True, False])
    sets = [any(row[list(chosen)]) for chosen in itertools.combinations(range(5), k)]
    assert pass_at(row[None], k)[0] == pytest.approx(np.mean(sets), abs=1e-12)


def test_simulated_solvers_meet_the_closed_form() -> None:
    draw = np.random.default_rng(1)
    p = draw.random(4000)
    correct = draw.random((4000, 8)) < p[:, None]
    for k in (1, 4, 8):  # p is uniform, so the mean of 1 - (1 - p)^k is k / (k + 1)
        found = pass_at(correct, k)
        assert abs(found.mean() - k / (k + 1)) < 4 * found.std() / math.sqrt(4000)


def test_metrics_of_answers() -> None:
    correct = np.array([[True, True, False], [False, False, True]])
    answer = np.array([[True, True, True], [False, False, True]])
    texts = [["a", "a", "b"], [None, "c", "d"]]
    found = task_metrics(correct, answer, texts, ["and", "and"], [1, 3], [3])
    assert (found["task/difficulty_1"], found["task/difficulty_3"]) == pytest.approx((2 / 3, 1 / 3))
    assert not any(name.startswith("task/skill") for name in found), "there is one"
    found = task_metrics(correct, answer, texts, ["and", "or"], [1, 1], [3])
    assert found == pytest.approx(
        {
            "task/pass_1": 3 / 6,
            "task/pass_3": 1.0,
            "task/answer": 4 / 6,
            "task/distinct_correct": 1.0,  # one of two equal ones, and one
            "task/unended": 1 / 6,
            "task/skill_and": 2 / 3,
            "task/skill_or": 1 / 3,
        }
    )
    found = dict(model_metrics(np.array([-2.0, -4.0]), np.array([5.0, 4.0]), np.array([2, 4])))
    assert found == pytest.approx({"task/entropy": 1.0, "task/kl": 3 / 6, "task/length": 3.0})


# --- judges ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TaskCorpus:
    return corpus(tmp_path_factory.mktemp("judges") / "data", {"kind": "boolean", "difficulty": [2, 3]})


def written(data: TaskCorpus, prompt: int, texts: list[str | None]) -> Examples:
    """Completions of a training prompt; None does not end."""
    start = data.prompt_tokens
    row = data.real(0, prompt + 1).values[prompt]
    tokens = data.tokenizer.get_vocab()
    values = np.zeros((len(texts), len(row)), dtype=np.int32)
    lengths = np.zeros(len(texts), dtype=np.int32)
    for place, text in enumerate(texts):
        whole = [tokens[letter] for letter in (text if text is not None else "T" * (len(row) - start))]
        values[place, :start] = row[:start]
        values[place, start : start + len(whole)] = whole
        lengths[place] = min(len(row), start + len(whole) + (text is not None))
    return Examples(values, lengths)


def known(data: TaskCorpus, count: int, seed: int = 0) -> Known:
    return Known(data, 0, 0, np.random.default_rng(seed).random(count))


def judge(**fields: Any) -> JudgeFilter:
    return JudgeFilter(kind="judge", **fields)


def test_rewards_are_what_each_judge_says(data: TaskCorpus) -> None:
    solution = data.completions(data.real(0, 1))[0]
    assert solution is not None
    answer, other = solution[-1], {"T": "F", "F": "T"}[solution[-1]]
    found = written(data, 0, [solution, f"T&T={answer}", other, None])
    room = found.values.shape[1] - data.prompt_tokens
    logprob = np.full(found.values.shape, np.nan)
    for row, length in enumerate(found.lengths):
        logprob[row, data.prompt_tokens : length] = math.log(0.25 * (row + 1))
    found = found.noted("logprob", logprob)

    def given(**fields: Any) -> list[float]:
        return list(rewards(judge(of=4, **fields), found, known(data, 4)))

    assert given(judge="exact") == [1, 0, 0, 0]
    assert given(judge="answer") == [1, 1, 0, 0]
    assert given(judge="majority") == [0.5, 0.5, 0.25, 0]
    assert given(judge="self", choose="best") == pytest.approx([0.25, 0.5, 0.75, 0], abs=1e-6)
    tokens = found.lengths - data.prompt_tokens
    assert given(judge="self", choose="best", per="completion")[:2] == pytest.approx(
        [0.25 ** tokens[0], 0.5 ** tokens[1]], rel=1e-5
    )
    short, long = ((len(text) + 1) / room for text in (other, solution))
    assert given(judge="proxy", choose="best")[0] == pytest.approx(long)
    assert given(judge="proxy", choose="best", prefers="short")[2] == pytest.approx(1 - short)
    assert given(judge="proxy", choose="best", prefers="form", form="T&T=") == [0, 1, 0, 0]
    assert given(judge="proxy", choose="best", prefers="form", form="T")[3] == 0, "it does not end"


def test_empty_completions_are_judged_and_compared(data: TaskCorpus) -> None:
    """One that is ended at once, and one without a single token, beside a solution: the truth gives them 0,
    none is an answer, and pairs and losses are finite numbers."""
    torch = pytest.importorskip("torch")
    from harness.components.objectives import Dpo, Reinforce
    from harness.learners.language_model.objectives import DpoLoss, ReinforceLoss

    solution = data.completions(data.real(0, 1))[0]
    assert solution is not None
    found, start = written(data, 0, ["", None, solution]), data.prompt_tokens
    found.lengths[1] = start
    found.values[1, start:] = 0
    assert data.completions(found) == ["", None, solution]
    used = np.arange(found.values.shape[1])[None, :] < found.lengths[:, None]
    used[:, :start] = False
    logprob = np.where(used, math.log(0.5), np.nan)
    found = found.noted("logprob", logprob)
    room = found.values.shape[1] - start

    def given(**fields: Any) -> list[float]:
        return list(rewards(judge(of=3, **fields), found, known(data, 3)))

    for truth in ({"judge": "exact"}, {"judge": "answer"}, {"judge": "noisy"}):
        assert given(**truth) == [0, 0, 1]
    assert given(judge="majority")[1:] == [0, pytest.approx(1 / 3)]
    assert given(judge="self", choose="best") == pytest.approx([0.5, 0, 0.5])
    assert given(judge="proxy", choose="best")[:2] == [pytest.approx(1 / room), 0]
    assert given(judge="proxy", choose="best", prefers="form", form="T")[:2] == [0, 0]
    for two in ([0, 2], [1, 2]):  # an empty one is the worse of a pair, of any two it is one alone
        pair = found.take(np.array(two)).noted("reward", np.array([0.0, 1.0]))
        section = judge(judge="exact", choose="pairs", of=2)
        assert keep(section, pair, known(data, 2)).all()
        counts, drawn = torch.from_numpy(used[two]), np.nan_to_num(logprob[two])
        for objective in (
            DpoLoss(Dpo(kind="dpo", length_normalised=True)),
            ReinforceLoss(Reinforce(kind="reinforce", kl=0.1)),
        ):
            units = objective.units(pair, start, lambda rows: np.zeros(rows.values.shape))
            order = [1, 0] if units.each == 2 else [0, 1]
            numbers = {name: torch.from_numpy(value) for name, value in units.numbers.items()}
            loss = objective.loss(torch.from_numpy(drawn[order]).float(), counts[order], numbers)
            assert units.examples.lengths.tolist() == pair.lengths[order].tolist()
            assert torch.isfinite(loss).all()
    alike = found.take(np.array([1, 1])).noted("reward", np.array([0.0, 0.0]))
    assert not keep(judge(judge="exact", choose="pairs", of=2), alike, known(data, 2)).any()


def test_a_noisy_judge_errs_as_often_as_it_is_told(data: TaskCorpus) -> None:
    solution = data.completions(data.real(0, 1))[0]
    count = 4000
    examples = written(data, 0, [solution, "T=T"] * (count // 2))
    section = judge(judge="noisy", false_accept=0.3, false_reject=0.1)
    found = rewards(section, examples, known(data, count))
    right = np.arange(count) % 2 == 0
    for share, expected in ((found[right].mean(), 0.9), (found[~right].mean(), 0.3)):
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / (count / 2))


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.4, 0.6, 1.0]), st.integers(0, 2)), min_size=0, max_size=23),
    st.integers(2, 5),
    st.integers(1, 3),
    st.sampled_from(["threshold", "best", "pairs", "all"]),
)
def test_what_passes_a_judge(items: list[tuple[float, int]], of: int, most: int, choose: str) -> None:
    """Whole groups only; at most so many of a prompt, each once, all good enough; pairs differ."""
    reward, which = np.array([r for r, _ in items]), np.array([w for _, w in items], dtype=np.int32)
    examples = Examples(which[:, None], np.ones(len(items), np.int32)).noted("reward", reward)
    more = {"most": min(most, of)} if choose in ("threshold", "best") else {}
    section = judge(judge="exact", of=of, choose=choose, **more)
    mask = keep(section, examples, None)  # type: ignore[arg-type]
    whole = len(items) // of * of
    assert not mask[whole:].any()
    longer = Examples(np.append(which, 0)[:, None], np.ones(len(items) + 1, np.int32))
    longer = longer.noted("reward", np.append(reward, 1.0))
    assert (keep(section, longer, None)[:whole] == mask[:whole]).all()  # type: ignore[arg-type]
    for start in range(0, whole, of):
        group = np.arange(start, start + of)
        chosen = group[mask[group]]
        good = group[reward[group] >= section.least]
        if choose == "all":
            assert len(chosen) == of
        elif choose == "pairs":
            assert len(chosen) in (0, 2)
            if len(chosen):
                assert set(reward[chosen]) == {reward[group].max(), reward[group].min()}
                assert which[chosen[0]] != which[chosen[1]]
        else:
            assert len(chosen) == min(section.most, len(set(which[good])))
            assert len(set(which[chosen])) == len(chosen) and set(chosen) <= set(good)
            if choose == "best" and len(chosen):
                assert reward[chosen].max() == reward[group].max()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.6, 1.0]), st.integers(0, 2)), min_size=0, max_size=24),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["threshold", "best"]),
    st.integers(0, 99),
)
def test_as_many_pass_by_lot(
    items: list[tuple[float, int]], most: int, once: bool, choose: str, seed: int
) -> None:
    """As many as the judge passes, of each prompt at most as many as may, each once."""
    reward, which = np.array([r for r, _ in items]), np.array([w for _, w in items], dtype=np.int32)
    examples = Examples(which[:, None], np.ones(len(items), np.int32)).noted("reward", reward)
    drawn = Known(None, 0, 0, np.random.default_rng(seed).random(len(items)))
    own = {"judge": "exact", "of": 3, "choose": choose, "most": most, "deduplicate": once}
    judged, lot = (keep(judge(**own, by_lot=by_lot), examples, drawn) for by_lot in (False, True))
    assert lot.sum() == judged.sum() and not lot[len(items) // 3 * 3 :].any()
    for start in range(0, len(items) // 3 * 3, 3):
        chosen = start + np.flatnonzero(lot[start : start + 3])
        assert len(chosen) <= most and (not once or len(set(which[chosen])) == len(chosen))


def test_the_lot_knows_nothing_of_what_is_right() -> None:
    """A quarter of the answers of 1,000 prompts are right: so are a quarter of those that are drawn, also as
    many as a noisy judge passes, whose errors come of the same numbers."""
    uniform = np.random.default_rng(0).random(4000)
    right = np.random.default_rng(1).random(4000) < 0.25
    examples = Examples(np.arange(4000, dtype=np.int32)[:, None], np.ones(4000, np.int32))
    section = judge(judge="noisy", of=4, by_lot=True, false_accept=0.2)
    passes = np.where(right, 1.0, uniform < section.false_accept)
    mask = keep(section, examples.noted("reward", passes), Known(None, 0, 0, uniform))
    count = int(mask.sum())
    assert count == passes.reshape(-1, 4).any(axis=1).sum() and 600 < count < 1000
    assert abs(right[mask].mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge": "exact", "choose": "pairs", "by_lot": True}, "choose: pairs does not use by_lot"),
        ({"judge": "self"}, "judge: self needs at_least"),
        (
            {"judge": "exact", "false_accept": 0.1},
            "judge: exact does not use false_accept, which is of noisy",
        ),
        ({"judge": "majority", "of": 1}, "of: found 1, and judge: majority .* at least 2 completions"),
        ({"judge": "exact", "of": 2, "most": 3}, "needs at least 3 completions of a prompt"),
        ({"judge": "exact", "choose": "pairs", "most": 2}, "choose: pairs does not use most"),
        ({"judge": "proxy", "choose": "best", "prefers": "form"}, "prefers: form goes with form, the text"),
        ({"judge": "proxy", "choose": "best", "form": "T"}, "and form with it"),
        (
            {"judge": "self", "choose": "best", "form": "T"},
            "judge: self does not use form, which is of proxy",
        ),
    ],
)
def test_judges_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(**fields)
