"""Watermarks in token ids: which tokens are green, and how sure it is that a text favours them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from harness.records import Examples
from harness.streams import stream, stream_seed

CACHED_BYTES = 2**26
"""Green lists that are kept."""


class GreenLists:
    """The green tokens behind every context, for one key.

    A generator seeded by the key and the tokens before draws a permutation of the vocabulary, of which the
    first share gamma is green (Kirchenbauer and others 2023, arXiv 2301.10226, algorithm 2).
    """

    def __init__(self, seed: int, vocab_size: int, gamma: float, context: int) -> None:
        """Nothing is drawn.

        Args:
            seed: Of the chain, whose key it is.
            vocab_size: Tokens of the tokenizer.
            gamma: Share of them that is green.
            context: How many tokens before decide.
        """
        self.context, self.vocab_size = context, vocab_size
        self.count = green_count(gamma, vocab_size)
        self._key = stream_seed(seed, 0, "watermark")
        self._known: dict[tuple[int, ...], npt.NDArray[np.bool_]] = {}

    def green(self, before: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        """Which tokens are green behind some others, shape [vocab_size]."""
        if before not in self._known:
            if (len(self._known) + 1) * self.vocab_size > CACHED_BYTES:
                self._known.clear()
            mask = np.zeros(self.vocab_size, dtype=bool)
            name = "green/" + "/".join(map(str, before))
            mask[stream(self._key, 0, name).permutation(self.vocab_size)[: self.count]] = True
            self._known[before] = mask
        return self._known[before]

    def rows(self, before: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_] | None:
        """Which tokens are green in each row; None where there are too few tokens before.

        Args:
            before: The last tokens, shape [rows, context].

        Returns:
            Shape [rows, vocab_size].
        """
        if before.shape[1] < self.context:
            return None
        return np.stack([self.green(tuple(row)) for row in before.tolist()])

    def z_scores(self, examples: Examples) -> npt.NDArray[np.float64]:
        """How many standard deviations more tokens are green than in a text that knows nothing of the key.

        (g - gamma T) / sqrt(T gamma (1 - gamma)), with g green ones of T distinct (context, token): a
        repeated one says nothing new (section 3 there). 0 where T is.

        Args:
            examples: Token ids.

        Returns:
            Shape [num_examples].
        """
        share = self.count / self.vocab_size
        found = np.zeros(len(examples))
        for place, row in enumerate(examples.rows()):
            hits = [self.green(before)[token] for before, token in self._pairs(row.tolist())]
            if hits:
                found[place] = (sum(hits) - share * len(hits)) / np.sqrt(len(hits) * share * (1 - share))
        return found

    def _pairs(self, tokens: list[int]) -> Iterator[tuple[tuple[int, ...], int]]:
        """Distinct contexts with what follows."""
        pairs = (
            (tuple(tokens[at - self.context : at]), tokens[at]) for at in range(self.context, len(tokens))
        )
        return iter(dict.fromkeys(pairs))


def green_count(gamma: float, vocab_size: int) -> int:
    """How many tokens are green, to the nearest one."""
    return int(gamma * vocab_size + 0.5)
