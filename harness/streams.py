"""Random streams: functions of (seed, generation, purpose, index) and of nothing else.

No stream depends on an attempt, a rank, a batch or a clock, so a chain that is resumed, spread over other
ranks or run beside other chains draws the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def stream_seed(seed: int, generation: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one stream, for libraries that take an integer.

    Args:
        seed: The chain's seed.
        generation: Index of the generation, 0 for the one fitted to real data.
        purpose: What the numbers are for, such as ``order`` or ``init``.
        index: Position within the purpose: an example, a step, an epoch.

    Returns:
        An integer in [0, 2**63).
    """
    text = f"{seed}/{generation}/{purpose}/{index}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def stream(seed: int, generation: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A numpy generator for one stream (arguments as for `stream_seed`)."""
    return np.random.Generator(np.random.PCG64DXSM(stream_seed(seed, generation, purpose, index)))


def uniforms(
    seed: int, generation: int, purpose: str, start: int, stop: int, width: int
) -> npt.NDArray[np.float64]:
    """Independent uniforms for examples start..stop-1, one stream per example.

    A row depends on its own index alone: Philox is counter-based, the key is the stream and the counter's
    high word the example.

    Args:
        seed: The chain's seed.
        generation: Index of the generation.
        purpose: What the numbers are for.
        start: First example.
        stop: One past the last example.
        width: Numbers per example.

    Returns:
        Array of shape [stop - start, width], values in [0, 1).
    """
    key = stream_seed(seed, generation, purpose)
    rows = np.empty((stop - start, width), dtype=np.float64)
    for row, example in enumerate(range(start, stop)):
        rows[row] = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, example])).random(width)
    return rows
