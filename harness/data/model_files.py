"""The files of a model's folder, looked at before anything is loaded.

Headers only, so that gigabytes cost milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.files import refuse_pointer
from harness.terminal import listed

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
MAX_HEADER = 100_000_000
"""Bytes of a safetensors header, as the format's own reader allows."""
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its type, as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_plain(path: Path, field: str) -> Mapping[str, Any]:
    """A JSON file of a model's folder that holds an object.

    Raises:
        DataError: It is missing, is no JSON, or is what Git LFS puts in the place of a file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{field}: {path} cannot be read ({error.strerror or error})") from None
    refuse_pointer(path, content[:200], field)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(
            f"{field}: {path} is not JSON" if content.strip() else f"{field}: {path} is empty"
        ) from None
    if not isinstance(found, dict):
        raise DataError(f"{field}: {path} holds no JSON object")
    return found


def weight_files(folder: Path, field: str) -> list[Path]:
    """The files that the weights of a model in a folder are read from: its one file, or all of its index.

    Whatever else lies there is not read, and says nothing about the model.

    Raises:
        DataError: A file is missing.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise DataError(f"{field}: {folder} holds neither {WEIGHTS} nor {INDEX}")
    places = index_of(folder, field)
    for shard in places.values():
        if "/" in shard or not (folder / shard).is_file():
            raise DataError(f"{field}: {folder} lacks {shard}, which {INDEX} names")
    return [folder / shard for shard in sorted(set(places.values()))]


def refuse_adapter(folder: Path, field: str) -> None:
    """Refuse a folder with an adapter beside the weights: some libraries would add it to them, others not.

    Raises:
        DataError: There is one.
    """
    if (folder / ADAPTER_CONFIG).exists():
        raise DataError(
            f"{field}: {folder} holds an adapter ({ADAPTER_CONFIG}), which is not read; name a folder "
            "without one, with what it adds merged into the weights"
        )


def index_of(folder: Path, field: str) -> Mapping[str, str]:
    """Which of several files each tensor is in, by what the index says.

    Raises:
        DataError: It does not say that.
    """
    places = read_plain(folder / INDEX, field).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise DataError(f"{field}: {folder / INDEX} has no weight_map")
    return places


def read_header(path: Path, field: str) -> dict[str, StoredTensor]:
    """Names, types and shapes of the tensors in a safetensors file.

    Raises:
        DataError: It is no safetensors file, or not all of one.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            content = first + file.read(min(length, MAX_HEADER, size))
    except OSError as error:
        raise DataError(f"{field}: {path} cannot be read ({error.strerror or error})") from None
    refuse_pointer(path, content[:200], field)
    if size == 0:
        raise DataError(f"{field}: {path} is empty")
    try:
        if length > MAX_HEADER:
            raise ValueError
        if len(content) < 8 + length:
            raise DataError(f"{field}: {path} is truncated: {size} bytes, its header alone has {8 + length}")
        tensors = json.loads(content[8 : 8 + length])
        tensors.pop("__metadata__", None)
        found = {
            name: StoredTensor(about["dtype"], tuple(map(int, about["shape"])))
            for name, about in tensors.items()
        }
        end = max((int(about["data_offsets"][1]) for about in tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        raise DataError(f"{field}: {path} is no safetensors file") from None
    if size != 8 + length + end:
        which = "truncated" if size < 8 + length + end else "damaged"
        raise DataError(f"{field}: {path} is {which}: {size} bytes, its header says {8 + length + end}")
    return found


def stored_weights(folder: Path, field: str) -> dict[str, StoredTensor]:
    """All tensors of a model in a folder: of its one file, or of all that its index names.

    Raises:
        DataError: A file is missing or damaged, or does not hold what the index says.
    """
    files = weight_files(folder, field)
    found = {name: tensor for path in files for name, tensor in read_header(path, field).items()}
    named = () if files == [folder / WEIGHTS] else index_of(folder, field)
    missing = sorted(set(named) - set(found))
    if missing:
        raise DataError(f"{field}: {folder}: {listed(missing)} in {INDEX}, but in no file")
    return found
