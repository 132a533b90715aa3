"""A reward model: logistic regression on counts of n-grams, learned once from labelled completions.

It learns from what generation 0 answered to training prompts and judges what later generations write, so the
further they move from that, the less it knows of what it judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.components.judging import JudgeFilter
from harness.ngrams import ngram_counts
from harness.proc import one_thread
from harness.records import Examples
from harness.registry import Known
from harness.streams import stream

HELD_OUT = 5
"""One in so many prompts is held out: its completions measure what the others have taught."""


@dataclass(frozen=True)
class RewardModel:
    """What has been learned.

    Attributes:
        section: The judge's.
        classifier: Of scikit-learn; None where all that it could learn from had one label.
        columns: Those that it reads: n-grams that it has seen, as others have no weight.
        label: The one label.
        facts: How good it is on what was held out, by column.
    """

    section: JudgeFilter
    classifier: Any
    columns: npt.NDArray[np.int64]
    label: float
    facts: Mapping[str, float]

    def rewards(self, examples: Examples, known: Known) -> npt.NDArray[np.float64]:
        """The probability that each completion is labelled right, shape [num_examples]."""
        if self.classifier is None or not len(examples):
            return np.full(len(examples), self.label)
        counts = _counts(self.section, examples, known)[:, self.columns]
        found: npt.NDArray[np.float64] = self.classifier.predict_proba(counts)[:, 1]
        return found


def learn(section: JudgeFilter, known: Known) -> RewardModel:
    """Learn from generation 0's completions (``known.learned``), labelled right or not by the checker.

    Labels err with the section's rates, each by a number of the chain's own stream. What is measured on held
    out prompts is against the truth, not against these labels: ``judge/heldout_accuracy`` (the reward is 0.5
    or more where the completion is right), ``judge/heldout_baseline`` (that of a judge that gives everything
    the more frequent verdict) and ``judge/heldout_auc`` (a right completion has a higher reward than a wrong
    one, equal ones counted half: Hanley and McNeil 1982). The last is not a number where all labels are one,
    so that nothing was learned; it is absent where all that is held out is right, or wrong.
    """
    from sklearn.linear_model import LogisticRegression

    examples = known.learned
    assert examples is not None
    right = known.real.right(examples)
    uniform = stream(known.seed, 0, "judge_labels").random(len(examples))
    labels = np.where(right, uniform >= section.false_reject, uniform < section.false_accept)
    prompts = [row.tobytes() for row in examples.values[:, : known.real.prompt_tokens]]
    order = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    held = np.array([order[prompt] % HELD_OUT == HELD_OUT - 1 for prompt in prompts])
    classifier, columns, label = None, np.zeros(0, np.int64), float(labels[~held][0])
    if (labels[~held] != label).any():
        counts = _counts(section, examples.take(~held), known)
        columns = np.unique(counts.indices)
        classifier = LogisticRegression(C=1 / section.regularisation, max_iter=1000)
        with one_thread():  # products of several threads round by their number
            classifier.fit(counts[:, columns], labels[~held])
    model = RewardModel(section, classifier, columns, label, {})
    reward = model.rewards(examples.take(held), known)
    return replace(model, facts=_facts(reward, right[held], classifier is not None))


def _facts(
    reward: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], learned: bool
) -> Mapping[str, float]:
    if not len(right):  # the data have too few different prompts, whatever a model does
        return {}
    share = right.mean()
    facts = {
        "judge/heldout_accuracy": float(((reward >= 0.5) == right).mean()),
        "judge/heldout_baseline": float(max(share, 1 - share)),
    }
    if not learned:
        facts["judge/heldout_auc"] = float("nan")
    elif 0 < share < 1:
        ahead = reward[right][:, None] - reward[~right][None, :]
        facts["judge/heldout_auc"] = float((ahead > 0).mean() + (ahead == 0).mean() / 2)
    return facts


def _counts(section: JudgeFilter, examples: Examples, known: Known) -> Any:
    """N-grams of prompts with their completions, without what fills up in front."""
    rows = [row.tolist() for row in examples.rows()]
    filler = known.real.filler
    for row in rows:
        while row and row[0] == filler:
            del row[0]
    return ngram_counts(section.ngram, rows)
