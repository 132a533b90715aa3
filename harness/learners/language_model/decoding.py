"""What happens to a model's scores before a token is chosen.

What has occurred is penalised, the end of text held back, and what no tokenizer knows is left out.
"""

from __future__ import annotations

import torch

from harness.config.schema import Sample
from harness.metrics.watermark import GreenLists


class Adjustment:
    """Changes the scores of a batch, position by position, and remembers which tokens each row has seen."""

    def __init__(
        self,
        config: Sample,
        eos: int,
        context: torch.Tensor,
        vocab_size: int | None = None,
        green: GreenLists | None = None,
    ) -> None:
        """Start behind a context.

        Args:
            config: The sampling section.
            eos: End-of-text token.
            context: Token ids in front of the first new token, shape [rows, context_length].
            vocab_size: Tokens that the tokenizer knows: those behind them, which pad the table of a model,
                never occur.
            green: What a watermark makes likelier.
        """
        self.config, self.eos, self.vocab_size = config, eos, vocab_size
        self._context, self._green, self._last = context, green, context
        self._seen: torch.Tensor | None = None
        # Made once: a GPU is not waited for at every token.
        self._held = torch.tensor([eos], device=context.device)

    def __call__(self, scores: torch.Tensor, position: int) -> torch.Tensor:
        """The scores of one position.

        The penalty is CTRL's (Keskar et al. 2019, arXiv 1909.05858, section 4.1), extended to scores of
        either sign: a positive score of a token that has occurred is divided by it, a negative one
        multiplied.

        Args:
            scores: Shape [rows, vocab]: logits, or log-probabilities in a beam search.
            position: New tokens before this one.
        """
        if self.config.repetition_penalty != 1.0:
            scores = scores.float()
            penalty = self.config.repetition_penalty
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(self._mask(scores), penalised, scores)
        if self._green is not None and self.config.watermark is not None:
            marked = self._green.rows(self._last[:, -self._green.context :].cpu().numpy())
            if marked is not None:
                scores = scores.float().clone()
                known = torch.from_numpy(marked).to(scores.device)
                scores[:, : known.shape[1]] += self.config.watermark.delta * known
        if self.config.forbid_eos or position < self.config.min_new_tokens:
            scores = scores.float().index_fill(-1, self._held, -torch.inf)
        if self.vocab_size is not None and self.vocab_size < scores.shape[-1]:
            scores = scores.float().clone()
            scores[:, self.vocab_size :] = -torch.inf
        return scores

    def _mask(self, scores: torch.Tensor) -> torch.Tensor:
        """Which tokens each row has seen, shape [rows, vocab]."""
        if self._seen is None:
            self._seen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
            if self.config.penalize_prompt:
                self._seen.scatter_(1, self._context, True)
        return self._seen

    def add(self, choice: torch.Tensor) -> None:
        """A token was chosen in every row; shape [rows]."""
        if self._green is not None:
            self._last = torch.cat([self._last, choice[:, None]], dim=1)[:, -self._green.context :]
        if self._seen is not None:
            self._seen.scatter_(1, choice[:, None], True)

    def reorder(self, rows: torch.Tensor) -> None:
        """Row i goes on from what row ``rows[i]`` was; shape [rows]."""
        if self._seen is not None:
            self._seen = self._seen[rows]
