"""How well a model answers prompts that a program can check, from several completions of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def pass_at(correct: npt.NDArray[np.bool_], k: int) -> npt.NDArray[np.float64]:
    """The probability that one of k completions is right, estimated without bias for each prompt.

    Of n completions c are right; of all sets of k of them, this is the share that holds a right one: 1 -
    C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Args:
        correct: Shape [num_prompts, n].
        k: From 1 to n.

    Returns:
        Shape [num_prompts].
    """
    n = correct.shape[1]
    wrong = n - correct.sum(axis=1).astype(np.float64)
    none = np.ones(len(correct))
    for drawn in range(k):  # C(n-c, k) / C(n, k), factor by factor
        none *= np.maximum(wrong - drawn, 0.0) / (n - drawn)
    return 1.0 - none


def task_metrics(
    correct: npt.NDArray[np.bool_],
    answer: npt.NDArray[np.bool_],
    completions: Sequence[Sequence[str | None]],
    skills: Sequence[str],
    difficulties: Sequence[int],
    ks: Sequence[int],
) -> dict[str, float]:
    """What comes of the checker's verdicts.

    Args:
        correct: Whether a completion is right, shape [num_prompts, n].
        answer: Whether its final answer is, shape [num_prompts, n].
        completions: The text of each; None where it did not end.
        skills: Of each prompt.
        difficulties: Of each prompt.
        ks: Values of k for ``task/pass_<k>``, besides 1.
    """
    found = {"task/pass_1": float(correct.mean())}
    found |= {f"task/pass_{k}": float(pass_at(correct, k).mean()) for k in ks if k != 1}
    found["task/answer"] = float(answer.mean())
    different = [
        len({text for text, right in zip(texts, row, strict=True) if right})
        for texts, row in zip(completions, correct, strict=True)
    ]
    found["task/distinct_correct"] = float(np.mean(different))
    found["task/unended"] = float(np.mean([[text is None for text in texts] for texts in completions]))
    found |= _by("skill", skills, correct) | _by("difficulty", difficulties, correct)
    return found


def _by(what: str, groups: Sequence[Any], correct: npt.NDArray[np.bool_]) -> dict[str, float]:
    """pass@1 of each group of prompts, where there are several."""
    names = sorted(set(groups))
    if len(names) < 2:
        return {}
    which = np.array([names.index(group) for group in groups])
    return {f"task/{what}_{name}": float(correct[which == place].mean()) for place, name in enumerate(names)}


def model_metrics(
    logprob: npt.NDArray[np.float64], gen0_nll: npt.NDArray[np.float64], tokens: npt.NDArray[np.int64]
) -> Mapping[str, float]:
    """Entropy, distance from generation 0's model and length, from completions that the model drew.

    Args:
        logprob: Log-probability of each completion under the model that drew it, shape [num].
        gen0_nll: Negative log-probability under generation 0's model, shape [num].
        tokens: Of each, the one that ends it included, shape [num].

    Returns:
        Monte-Carlo estimates, exact in expectation where the model draws at temperature 1 and cuts nothing.
    """
    total = float(tokens.sum())
    return {
        "task/entropy": float(-logprob.sum() / total),
        "task/kl": float((logprob + gen0_nll).sum() / total),
        "task/length": float(tokens.mean()),
    }
