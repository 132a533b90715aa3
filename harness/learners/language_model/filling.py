"""What fills prompts up in front is hidden from the model, which reads a prompt as if it stood alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def hidden(tokens: torch.Tensor, fill: int | None, new: int | None = None) -> Mapping[str, torch.Tensor]:
    """What a model is told besides tokens: which of them it sees, and at which positions they stand.

    Args:
        tokens: All that it has read and reads now, shape [rows, length].
        fill: The token that fills up; a row's first tokens are it, and no row begins with it otherwise. None
            where nothing is hidden.
        new: The last so many tokens are read now; all when None.
    """
    if fill is None:
        return {}
    seen = (tokens != fill).cumsum(dim=1) > 0
    positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
    start = 0 if new is None else tokens.shape[1] - new
    return {"attention_mask": seen.long(), "position_ids": positions[:, start:]}
