"""What is minimised besides the cross-entropy of completions.

An objective arranges the training examples in units, one loss each (a pair, a completion), with numbers that
are known before the fit, such as log-probabilities under a reference. The loss of a batch is the mean over
its units, whatever the ranks and micro batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from harness.components.objectives import OBJECTIVES, Dpo, Reinforce
from harness.records import Examples
from harness.registry import named

Numbers = Mapping[str, npt.NDArray[np.float32]]
ScoreExamples = Callable[[Examples], npt.NDArray[np.float64]]
"""Log-probabilities of every token under the reference, shape [num_examples, width]; 0 where none counts."""


@dataclass(frozen=True)
class Units:
    """Training examples, ``each`` of them in a row a unit, and numbers of every example."""

    examples: Examples
    each: int
    numbers: Numbers

    def __len__(self) -> int:
        """How many units."""
        return len(self.examples) // self.each


class Objective(Protocol):
    """An objective of one section."""

    def units(self, examples: Examples, prompt: int, score: ScoreExamples) -> Units:
        """Arrange training examples.

        Args:
            examples: With the notes that the judge and the sampling have left.
            prompt: Tokens of every prompt.
            score: Under the reference.
        """

    def loss(
        self, logprob: torch.Tensor, used: torch.Tensor, numbers: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The loss of each unit, shape [units].

        Args:
            logprob: Of every token under the model, shape [units * each, width], 0 where none counts. Where
                it learns from all completions, which it may compare with how they were drawn, that is among
                the tokenizer's tokens, as the note ``logprob`` and the scores of the reference are.
            used: Which tokens count, of the same shape.
            numbers: Of every example.
        """


@dataclass(frozen=True)
class DpoLoss:
    """Rafailov et al. 2023, arXiv 2305.18290, equation 7; a unit is a pair, the better one first.

    With ``length_normalised``, log-probabilities are divided by the number of tokens, so that a completion
    gains nothing by its length (as in Meng et al. 2024, arXiv 2405.14734, with a reference).
    """

    section: Dpo

    def units(self, examples: Examples, prompt: int, score: ScoreExamples) -> Units:
        """Pairs as the judge has left them, the better one first; equal pairs are none."""
        reward = examples.notes.get("reward", np.zeros(len(examples), np.float32))
        same = (examples.values[:-1, :prompt] == examples.values[1:, :prompt]).all(axis=1)
        pairs: list[int] = []
        row = 0
        while row < len(examples) - 1:  # a pair that a training set has cut in two is passed over
            if same[row] and reward[row] != reward[row + 1]:
                pairs += [row, row + 1] if reward[row] > reward[row + 1] else [row + 1, row]
            row += 2 if same[row] else 1
        rows = np.array(pairs, dtype=np.int64)
        chosen = examples.take(rows)
        known = score(chosen) if len(rows) else np.zeros(chosen.values.shape)
        return Units(chosen, 2, {"reference": self._sum(known, chosen, prompt)})

    def _sum(
        self, logprob: npt.NDArray[np.float64], examples: Examples, prompt: int
    ) -> npt.NDArray[np.float32]:
        tokens = np.maximum(examples.lengths - prompt, 1) if self.section.length_normalised else 1
        return np.asarray(logprob.sum(axis=1) / tokens, dtype=np.float32)

    def loss(
        self, logprob: torch.Tensor, used: torch.Tensor, numbers: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """Minus the log-probability that the better one wins by the implied rewards."""
        total = logprob.sum(dim=1)
        if self.section.length_normalised:
            total = total / used.sum(dim=1).clamp(min=1)
        margin = (total - numbers["reference"]).view(-1, 2)
        return -torch.nn.functional.logsigmoid(self.section.beta * (margin[:, 0] - margin[:, 1]))


@dataclass(frozen=True)
class ReinforceLoss:
    """The clipped surrogate of Schulman et al. 2017 (arXiv 1707.06347, equation 7), by completion.

    Its advantage is the reward less the mean of the prompt's completions, over their standard deviation where
    ``scaled`` (Shao et al. 2024, arXiv 2402.03300, section 4.1). The KL divergence from the reference is
    estimated token by token as exp(d) - d - 1 with d the reference's log-probability less the model's
    (Schulman 2020), and added with its weight.
    """

    section: Reinforce
    SMALL: ClassVar[float] = 1e-4
    """Added to standard deviations."""

    def units(self, examples: Examples, prompt: int, score: ScoreExamples) -> Units:
        """Completions with their advantages; of prompts whose completions have one reward none is left."""
        reward = examples.notes["reward"].astype(np.float64)
        starts = np.flatnonzero(
            np.append(True, (examples.values[1:, :prompt] != examples.values[:-1, :prompt]).any(axis=1))
        )
        advantage = np.zeros(len(examples))
        for start, stop in zip(starts, [*starts[1:], len(examples)], strict=True):
            group = reward[start:stop]
            if len(group) > 1:
                advantage[start:stop] = group - group.mean()
                if self.section.scaled:
                    advantage[start:stop] /= group.std(ddof=1) + self.SMALL
        kept = examples.take(advantage != 0) if not self.section.kl else examples
        numbers = {
            "advantage": (advantage if self.section.kl else advantage[advantage != 0]).astype(np.float32),
            "drawn": np.nan_to_num(kept.notes["logprob"]).astype(np.float32),
        }
        if self.section.kl:
            numbers["reference"] = score(kept).astype(np.float32)
        return Units(kept, 1, numbers)

    def loss(
        self, logprob: torch.Tensor, used: torch.Tensor, numbers: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The mean over a completion's tokens."""
        width = logprob.shape[1]
        advantage = numbers["advantage"][:, None]
        ratio = torch.exp(logprob - numbers["drawn"][:, -width:])
        clipped = ratio.clamp(1 - self.section.clip, 1 + self.section.clip)
        token = -torch.minimum(ratio * advantage, clipped * advantage)
        if self.section.kl:
            ahead = numbers["reference"][:, -width:] - logprob
            token = token + self.section.kl * (torch.exp(ahead) - ahead - 1)
        return (token * used).sum(dim=1) / used.sum(dim=1).clamp(min=1)


def make_objective(section: Any) -> Objective | None:
    """The code of an objective; None for the cross-entropy of completions."""
    place = OBJECTIVES[section.kind].loss if section is not None else ""
    if not place:
        return None
    found: Objective = named(place, Objective)(section)
    return found
