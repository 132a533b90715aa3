"""DeepSpeed checkpoints without pickle: its own save and load, with files of safetensors and JSON.

DeepSpeed hands whole trees of tensors and plain values to a checkpoint engine. Tensors go into a safetensors
file, the tree into its header as JSON; reading one executes nothing.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.errors import LearnerError
from harness.learners.language_model.imports import deepspeed

_engines = deepspeed.runtime.checkpoint_engine.checkpoint_engine
DERIVED = frozenset({"loss_scaler", "param_slice_mappings", "ds_config", "param_shapes"})
"""Entries that an engine makes again from its configuration: fp16's loss scaler (we train in bf16 and fp32,
where it is constant) and layouts that only DeepSpeed's offline conversion reads."""


class _Writer:
    """Turns a tree into JSON and a flat set of tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def encode(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            name = str(len(self.tensors))
            self.tensors[name] = value.detach().contiguous().cpu().clone()
            return {"tensor": name}
        if isinstance(value, enum.Enum):
            return self.encode(value.value, path)
        if value is None or isinstance(value, bool | int | float | str):
            return {"value": value}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, Mapping):
            pairs = [
                [self.encode(key, path), self.encode(inner, f"{path}.{key}")]
                for key, inner in value.items()
                if key not in DERIVED
            ]
            return {"map": pairs}
        if isinstance(value, list | tuple | torch.Size):
            kind = "list" if isinstance(value, list) else "tuple"
            return {kind: [self.encode(inner, f"{path}.{index}") for index, inner in enumerate(value)]}
        if isinstance(value, set | frozenset):
            return {"set": [self.encode(inner, path) for inner in sorted(value)]}
        raise LearnerError(
            f"a checkpoint cannot hold {path} ({type(value).__name__}): only tensors and plain values"
        )


def _decode(node: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "value":
        return value
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "map":
        return {_decode(key, tensors): _decode(inner, tensors) for key, inner in value}
    return {"list": list, "tuple": tuple, "set": set}[kind](_decode(inner, tensors) for inner in value)


def save_tree(tree: Any, path: str | os.PathLike[str]) -> None:
    """Write a tree of tensors and plain values as one safetensors file."""
    writer = _Writer()
    header = json.dumps(writer.encode(tree, ""))
    save_file(writer.tensors, path, metadata={"tree": header})


def load_tree(path: str | os.PathLike[str]) -> Any:
    """The inverse of `save_tree`, on the CPU."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        header = (file.metadata() or {})["tree"]
    return _decode(json.loads(header), tensors)


class SafeCheckpointEngine(_engines.CheckpointEngine):  # type: ignore[misc, name-defined]
    """DeepSpeed's file system seam."""

    def __init__(
        self, derived: Callable[[], Mapping[str, Any]], left_out: Collection[str] = frozenset()
    ) -> None:
        """Nothing has been written.

        Args:
            derived: Entries of a ZeRO optimizer's state that are not stored, as the live optimizer has them.
            left_out: Names of weights that are not stored: they are what they were when the fit began.
        """
        super().__init__()
        self.written: list[str] = []
        self._derived, self._left_out = derived, left_out

    def create(self, info: Any) -> None:
        """Begin a checkpoint."""
        self.written = []

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        if self._left_out and isinstance(state_dict.get("module"), Mapping):
            kept = {name: v for name, v in state_dict["module"].items() if name not in self._left_out}
            state_dict = {**state_dict, "module": kept}
        save_tree(state_dict, path)
        self.written.append(path)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file."""
        tree = load_tree(path)
        if isinstance(tree.get("optimizer_state_dict"), dict):
            tree["optimizer_state_dict"].update(self._derived())
        return tree

    def commit(self, info: Any) -> bool:
        """All files of this rank are written; who called decides when they count."""
        return True

    def preserves_storage_sharing(self) -> bool:
        """Whether tensors that share memory still do so when read: they do not, each is copied."""
        return False
