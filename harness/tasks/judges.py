"""Judges: what decides which completions are trained on.

Each gives a reward from 0 to 1; only some know the truth. A judge looks at the completions of one prompt
together, ``section.of`` in a row, where it needs to: a majority is one of these. A completion that does not
end has the reward 0 from every judge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.judging import JudgeFilter
from harness.records import Examples
from harness.registry import Known
from harness.tasks.reward_model import learn

Rewards = npt.NDArray[np.float64]


def settled(section: JudgeFilter, config: Any) -> JudgeFilter:
    """The judge of a cell's own completions: it looks at as many together as are written for a prompt."""
    each = getattr(getattr(config.learner, "sample", None), "per_prompt", 1)
    return section if section.of is not None else section.model_copy(update={"of": each})


def rewards(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """What a judge gives to completions.

    Args:
        section: The judge's.
        examples: Completions in the order in which they were drawn, those of one prompt in a row.
        known: With the task (`harness.data.task.TaskCorpus`) as the real data.

    Returns:
        Shape [num_examples], from 0 to 1.
    """
    ended = np.array([text is not None for text in known.real.completions(examples)], dtype=bool)
    found = JUDGES[section.judge](section, examples, known)
    return np.asarray(np.where(ended, found, 0.0), dtype=np.float64)


def _exact(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """1 where every step and the answer are right."""
    return np.array([verdict.correct for verdict in known.real.verdicts(examples)], dtype=np.float64)


def _answer(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """1 where the final answer is right, whatever the steps."""
    return np.array([verdict.answer for verdict in known.real.verdicts(examples)], dtype=np.float64)


def _noisy(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """As the exact one, but it errs."""
    right = _exact(section, examples, known) > 0
    verdict = np.where(right, known.uniform >= section.false_reject, known.uniform < section.false_accept)
    return np.asarray(verdict, dtype=np.float64)


def _self(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """How likely the model finds what it has written: its probability, or that of a token in the mean."""
    logprob = examples.notes["logprob"].astype(np.float64)
    tokens = np.maximum((~np.isnan(logprob)).sum(axis=1), 1) if section.per == "token" else 1
    return np.asarray(np.exp(np.nansum(logprob, axis=1) / tokens))


def _majority(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """The share of the prompt's completions that come to the same final answer."""
    texts, of = known.real.completions(examples), section.of or 1
    answers = [None if text is None else known.real.checker.answer(text).text for text in texts]
    found = np.zeros(len(answers))
    for start in range(0, len(answers), of):
        group = answers[start : start + of]
        votes = Counter(answer for answer in group if answer is not None)
        found[start : start + of] = [
            votes[answer] / len(group) if answer is not None else 0 for answer in group
        ]
    return found


def _verdict(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """What a model has said of each, which was asked when it was written."""
    return np.asarray(examples.notes["verdict"].reshape(-1), dtype=np.float64)


def _trained(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """What a model gives that has learned from labelled completions of generation 0."""
    return learn(section, known).rewards(examples, known)


def _proxy(section: JudgeFilter, examples: Examples, known: Known) -> Rewards:
    """Length, as a share of the room that there is, or whether a text is in it; the truth is not asked.

    A completion that does not end holds nothing.
    """
    if section.form is not None:
        texts = known.real.completions(examples)
        return np.array([text is not None and section.form in text for text in texts], dtype=np.float64)
    written = known.real.written(examples)
    share = written.lengths / written.values.shape[1]
    return np.asarray(share if section.prefers == "long" else 1 - share, dtype=np.float64)


def facts(section: JudgeFilter, known: Known) -> Mapping[str, float]:
    """What is known of a judge that has learned (`harness.tasks.reward_model.learn`); nothing of others."""
    return learn(section, known).facts if section.judge == "trained" else {}


JUDGES: Mapping[str, Callable[[JudgeFilter, Examples, Known], Rewards]] = {
    "exact": _exact,
    "answer": _answer,
    "noisy": _noisy,
    "self": _self,
    "majority": _majority,
    "proxy": _proxy,
    "verdict": _verdict,
    "trained": _trained,
}


def keep(section: JudgeFilter, examples: Examples, known: Known) -> npt.NDArray[np.bool_]:
    """Which completions of each prompt pass; of a last prompt without all of its completions none.

    Args:
        section: The judge's.
        examples: With the note ``reward``.
        known: See `rewards`.
    """
    of, reward = section.of or 1, examples.notes["reward"]
    mask = np.zeros(len(examples), dtype=bool)
    rows = [row.tobytes() for row in examples.rows()]
    for start in range(0, len(examples) - of + 1, of):
        group = np.arange(start, start + of)
        if section.choose == "all":
            mask[group] = True
        elif section.choose == "pairs":
            mask[_pair(section, group, reward, rows)] = True
        else:
            mask[_chosen(section, group, reward, rows)] = True
    return _by_lot(section, int(mask.sum()), rows, known.uniform) if section.by_lot else mask


def decides(section: JudgeFilter, examples: Examples, index: npt.NDArray[np.int64], real: Any) -> str:
    """What is wrong with how a judge decides about completions (`harness.components.filters.DECISIONS`).

    Args:
        section: The judge's.
        examples: With the note ``reward``.
        index: Which of them pass.
        real: The task.

    Returns:
        ``everything`` where all that end have a reward that passes, and not all of them are right; ``alike``
        where the completions of no prompt have different rewards, but for a threshold; else ``nothing`` where
        nothing passes. Empty where it decides, where there is nothing to decide about, and by lot.
    """
    reward, of = examples.notes["reward"].reshape(-1), section.of or 1
    if section.by_lot or not len(reward):
        return ""
    if section.beside:  # what is judged alike may still be worse than a solution, or another model's better
        return "" if len(index) or section.solutions else "nothing"
    if section.choose != "threshold":
        groups = reward[: len(reward) // of * of].reshape(-1, of)
        if of > 1 and len(groups) and bool((groups == groups[:, :1]).all()):
            return "alike"
    elif (reward >= section.least).any():
        right = real.right(examples)
        below = np.flatnonzero(reward < section.least)
        for few in (below[:16], below[16:]):  # nearly always the first ones have ended
            if any(text is not None for text in real.completions(examples.take(few))):
                return ""
        return "" if right is not None and right[reward >= section.least].all() else "everything"
    return "" if len(index) else "nothing"


def _by_lot(
    section: JudgeFilter, count: int, rows: list[bytes], uniform: npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """So many completions by lot, of each prompt at most as many as may pass, and different ones.

    Args:
        section: The judge's.
        count: How many.
        rows: The completions, those of one prompt in a row.
        uniform: A number in [0, 1) for each; the lowest ones are drawn.
    """
    of, taken = section.of or 1, np.zeros(len(rows), dtype=bool)
    passed: dict[int, list[bytes]] = {}
    for place in np.argsort(uniform[: len(rows) // of * of], kind="stable").tolist():
        found = passed.setdefault(place // of, [])
        new = not section.deduplicate or rows[place] not in found
        if count and new and len(found) < section.most:
            found.append(rows[place])
            taken[place] = True
            count -= 1
    return taken


def opposed(
    section: JudgeFilter, current: Examples, initial: Examples, solutions: Examples
) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of a prompt's best and worst completion, where these are of two models, or one is a solution.

    The better one is the best of what a generation wrote, or the solution, which has the reward 1; the worse
    one is the worst of what it wrote, or of what generation 0 did. As in pairs of one model's, the better one
    has the higher reward, and the two differ. With ``solutions: 1`` and the generation's own answers rejected
    it is self-play fine-tuning (Chen et al. 2024, arXiv 2401.01335).

    Args:
        section: The judge's.
        current: What a generation wrote, with the note ``reward``; those of one prompt in a row.
        initial: What generation 0 wrote, to the same prompts in the same order.
        solutions: One of each of these prompts, in their order.

    Returns:
        Of each pair the better one and the worse one: whose it is (the names above) and its position there.
    """
    of, found = section.of or 1, []
    there = {"current": current, "initial": initial, "solutions": solutions}
    texts = {name: [row.tobytes() for row in examples.rows()] for name, examples in there.items()}
    reward = {name: there[name].notes["reward"].reshape(-1) for name in ("current", "initial")}
    worse: str = section.rejected
    for number, start in enumerate(range(0, min(len(current), len(initial)) - of + 1, of)):
        worst = start + of - 1 - int(np.argmin(reward[worse][start : start + of][::-1]))
        best = start + int(np.argmax(reward["current"][start : start + of]))
        high = reward["current"][best]
        share = section.solutions
        if solved := math.floor((number + 1) * share) > math.floor(number * share):
            best, high = number, 1.0
        better = "solutions" if solved else "current"
        if _apart(section, high, reward[worse][worst]) and texts[better][best] != texts[worse][worst]:
            found.append(((better, best), (worse, worst)))
    return found


def _chosen(section: JudgeFilter, group: npt.NDArray[np.int64], reward: Any, rows: list[bytes]) -> list[int]:
    """At most ``most`` of a prompt's completions: the first that pass, or the best."""
    if section.choose == "best":
        group = group[np.argsort(-reward[group], kind="stable")]
    least = section.least
    found: list[int] = []
    for place in group.tolist():
        new = not section.deduplicate or rows[place] not in {rows[other] for other in found}
        if reward[place] >= least and new and len(found) < section.most:
            found.append(place)
    return found


def _pair(section: JudgeFilter, group: npt.NDArray[np.int64], reward: Any, rows: list[bytes]) -> list[int]:
    """The best and the worst of a prompt's completions; nothing where they are equal, or none is good."""
    order = group[np.argsort(-reward[group], kind="stable")]
    best, worst = int(order[0]), int(order[-1])
    apart = _apart(section, reward[best], reward[worst]) and rows[best] != rows[worst]
    return [best, worst] if apart else []


def _apart(section: JudgeFilter, best: Any, worst: Any) -> bool:
    """Whether two rewards make a pair; they are compared with ``at_least`` in their precision, fp32.

    So 7 votes of 10 are at least 0.7, which no number of fp32 is.
    """
    least = None if section.at_least is None else np.float32(section.at_least)
    return bool(best > worst and (least is None or np.float32(best) >= least > np.float32(worst)))
