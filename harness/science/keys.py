"""Keys: the hash of canonical JSON that describes the science and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from harness.errors import HarnessError

KEY_FORMAT = 1
"""Enters every key; raised only if the meaning of canonical JSON itself changes."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces, and nothing that two machines could write differently.

    Raises:
        HarnessError: The value holds something that has no one way to be written: NaN, infinity, an object, a
            key that is no text.
    """
    _check_plain(value, "")
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _check_plain(value: Any, path: str) -> None:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if kind is dict:
        for name, inner in value.items():
            if type(name) is not str:
                raise HarnessError(
                    f"a key cannot hold {path or 'a mapping'} with the name {name!r}: names must be text"
                )
            _check_plain(inner, f"{path}.{name}")
    elif kind is list or kind is tuple:
        for index, inner in enumerate(value):
            _check_plain(inner, f"{path}.{index}")
    elif kind is not float or not math.isfinite(value):
        raise HarnessError(f"a key cannot hold {path} = {value!r} ({kind.__name__}): only finite plain data")


def key_of(spec: Mapping[str, Any], checked: bool = False) -> str:
    """The key of a spec: 128 bits of SHA-256, in hexadecimal.

    Args:
        spec: Plain data.
        checked: That it is plain is known already: its parts were in a spec before, or are numbers and keys.
    """
    text = _ENCODER.encode(spec) if checked else canonical_json(spec)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def chain_id(science: Mapping[str, Any], seed: int, suffix: str = "") -> str:
    """A chain's id: the hash of its cell (without ``generations``) and seed.

    It has a suffix where generations is an axis.
    """
    return hashlib.sha256(canonical_json({"cell": science, "seed": seed}).encode()).hexdigest()[:12] + suffix
