"""How a language model answers the test prompts of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from harness.components import FILTERS
from harness.data.task import TaskCorpus
from harness.learners.language_model.sampling import Sampler
from harness.metrics.tasks import model_metrics, task_metrics
from harness.records import Examples
from harness.registry import Known, named
from harness.science import Versioned
from harness.streams import stream, uniforms

BATCH, FEW = 256, 32
"""Completions that are drawn together: of tasks in characters, and of models that are larger."""


def draw_answers(
    sampler: Sampler,
    data: TaskCorpus,
    prompts: int,
    completions: int,
    seed: int,
    generation: int,
    mine: slice,
) -> npt.NDArray[np.float64]:
    """Complete test prompts; row i is completion i modulo ``completions`` of a prompt.

    Args:
        sampler: The sampler.
        data: The task.
        prompts: How many test prompts.
        completions: Of each.
        seed: The chain's seed.
        generation: Index of the generation.
        mine: Which batches are drawn; the rest is NaN.

    Returns:
        Tokens, then their log-probabilities, shape [prompts * completions, 2 * width]; -1 and NaN behind the
        end.
    """
    start, rows = data.prompt_tokens, prompts * completions
    width = data.config.block_size - start
    found = np.full((rows, 2 * width), np.nan)
    size = BATCH if data.fill is None else FEW
    for batch in range(-(-rows // size))[mine]:
        index = np.arange(batch * size, min(rows, (batch + 1) * size))
        prefix = data.test.values[index // completions, :start].astype(np.int64)
        short = size - len(index)  # of one shape, so that an answer does not depend on how many there are
        prefix = np.pad(prefix, ((0, short), (0, 0)), mode="edge")
        each = sampler.numbers(width)
        numbers = uniforms(seed, generation, "answers", batch * size, (batch + 1) * size, each)
        drawn = sampler.draw(prefix, width, numbers).take(slice(len(index)))
        used = np.arange(width)[None, :] < drawn.lengths[:, None]
        found[index, :width] = np.where(used, drawn.values, -1)
        found[index, width:] = drawn.notes["logprob"]
    return found


def answers_of(data: TaskCorpus, prompts: int, rows: npt.NDArray[np.float64]) -> Examples:
    """The answers that `draw_answers` wrote, as examples of the task with their log-probabilities."""
    start, width = data.prompt_tokens, rows.shape[1] // 2
    each = len(rows) // prompts
    tokens = rows[:, :width]
    lengths = start + (tokens >= 0).sum(axis=1)
    prefix = data.test.values[np.repeat(np.arange(prompts), each), :start]
    values = np.concatenate([prefix, np.maximum(tokens, 0).astype(np.int32)], axis=1)
    note = np.pad(rows[:, width:], ((0, 0), (start, 0)), constant_values=np.nan)
    return Examples(values.astype(np.int32), lengths.astype(np.int32)).noted("logprob", note)


def measure(
    data: TaskCorpus,
    prompts: int,
    ks: tuple[int, ...],
    answers: Examples,
    gen0_nll: npt.NDArray[np.float64],
    judges: Sequence[Versioned],
) -> Mapping[str, float]:
    """The metrics of a task.

    Args:
        data: The task.
        prompts: How many test prompts were answered.
        ks: Values of k.
        answers: From `answers_of`.
        gen0_nll: Of each answer under generation 0's model.
        judges: Of the cell.
    """
    tokens = answers.lengths.astype(np.int64) - data.prompt_tokens
    logprob = np.nansum(answers.notes["logprob"].astype(np.float64), axis=1)
    found = dict(model_metrics(logprob, gen0_nll, tokens))
    votes = any(FILTERS[str(item.identity["kind"])].votes(item.section) for item in judges)
    troubles = data.troubles(answers, votes)
    found |= {f"task/checker_{trouble}": float(count) for trouble, count in troubles.items()}
    if not data.has_truth:
        unended = [text is None for text in data.completions(answers)]
        return {"task/unended": float(np.mean(unended)), **found}
    verdicts = data.verdicts(answers)
    shape = (prompts, len(answers) // prompts)
    correct = np.array([verdict.correct for verdict in verdicts]).reshape(shape)
    answer = np.array([verdict.answer for verdict in verdicts]).reshape(shape)
    texts = data.completions(answers)
    rows = [texts[place : place + shape[1]] for place in range(0, len(texts), shape[1])]
    skills, difficulties = data.about_test(prompts)
    return {**task_metrics(correct, answer, rows, skills, difficulties, ks), **found}


def judged(
    data: TaskCorpus,
    judges: Sequence[Versioned],
    completions: int,
    answers: Examples,
    seed: int,
    generation: int,
    learned: Examples | None,
) -> Mapping[str, float]:
    """The mean reward of the answers by the cell's last judge, and what records say of what it has learned.

    Nothing where it has no judge. ``learned`` is what a judge learns from, in no case answers to test
    prompts.
    """
    if not judges:
        return {}
    section, plugin = judges[-1].section, FILTERS[str(judges[-1].identity["kind"])]
    numbers = stream(seed, generation, "answers_judge").random(len(answers))
    known = Known(data, seed, generation, numbers, learned=learned)
    asked = section
    if "of" in type(section).model_fields:
        asked = section.model_copy(update={"of": completions})
    found = {"task/judged_reward": float(np.mean(named(plugin.rewards)(asked, answers, known)))}
    return {**found, **(named(plugin.facts)(section, known) if plugin.facts else {})}
