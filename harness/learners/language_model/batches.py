"""Token sequences in batches of few widths, so that short ones are not read as wide as the widest may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedConfig

from harness.records import Examples

NARROWEST = 32
"""Tokens below which no width is halved further."""
ALIGNED = 16
"""Narrower widths are whole multiples of it: threads share odd numbers of rows unevenly, and where in a batch
a sequence stands may then show in its last bits."""
HALVINGS = 3
"""Widths below the full one: each more is one more batch to fill up, and saves less and less."""
BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary positions that differ with the length of all that is read with a text, or was before it."""


@dataclass(frozen=True)
class Batch:
    """Some sequences that are read together.

    Attributes:
        rows: Which of the examples they are.
        first: Where each begins in its example: what fills it up in front is left out.
        examples: The sequences, shape [rows, width].
        size: Rows of all batches of this width, the last one filled up.
    """

    rows: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    examples: Examples
    size: int

    def filled(self) -> tuple[Examples, npt.NDArray[np.int64]]:
        """With empty ones as many sequences as every batch of this width has; and where they begin."""
        short = self.size - len(self.rows)
        values = np.pad(self.examples.values, ((0, short), (0, 0)))
        return Examples(values, np.pad(self.examples.lengths, (0, short))), np.pad(self.first, (0, short))


def widths(full: int) -> list[int]:
    """Widths at which sequences are read, narrowest first: the full one, its half, quarter and eighth."""
    halved = (-(-full // 2**times) for times in range(1, HALVINGS + 1))
    return [*sorted({-(-width // ALIGNED) * ALIGNED for width in halved if width >= NARROWEST}), full]


def of_one_width(config: PreTrainedConfig) -> bool:
    """Whether a model is to read all texts in one width, or what it says of one depends on the others'."""
    found = getattr(config.get_text_config(), "rope_parameters", None) or {}
    of_layers = [part for part in found.values() if isinstance(part, dict)]  # by their kind of attention
    return any(part.get("rope_type") in BY_LENGTH for part in (found, *of_layers))


def batches(
    examples: Examples,
    tokens: int,
    unread: int = 0,
    fill: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    one_width: bool = False,
) -> Iterator[Batch]:
    """A rank's share of the examples, each at the least of the `widths` that holds it, widest first.

    A sequence's width follows from its own length and the full width, and the size of a batch from its width:
    both are the same whatever else is read. Of one width the sequences stay in their order, so where all are
    of full length batches are as they lie.

    Args:
        examples: Shape [num_examples, width].
        tokens: Of a batch of full width; of narrower ones, each of which is to be filled up, half of it.
        unread: Tokens at the end of each that no model reads: 1 where nothing stands in front of them.
        fill: Token that fills examples up in front; None where nothing does.
        rank: This rank reads batches rank, rank + world_size, ...
        world_size: Number of ranks.
        one_width: All at full width (`of_one_width`).
    """
    full, lengths = examples.values.shape[1], examples.lengths.astype(np.int64)
    first = np.zeros(len(examples), np.int64)
    if fill is not None:
        first = np.minimum(np.logical_and.accumulate(examples.values == fill, axis=1).sum(axis=1), lengths)
    known = np.array([full - unread] if one_width else widths(full - unread)) + unread
    own = known[np.searchsorted(known, lengths - first)]
    found = []
    for width in map(int, known[::-1]):
        size = max(1, tokens // full if width == full else tokens // 2 // (width - unread))
        wide = np.flatnonzero(own == width)
        found += [(width, size, wide[start : start + size]) for start in range(0, len(wide), size)]
    for width, size, rows in found[rank::world_size]:
        # behind an example's end anything may stand
        place = np.minimum(first[rows, None] + np.arange(width), full - 1)
        values = np.take_along_axis(examples.values[rows], place, axis=1)
        yield Batch(rows, first[rows], Examples(values, (lengths - first)[rows]), size)
