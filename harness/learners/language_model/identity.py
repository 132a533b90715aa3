"""What a pretrained model is, by content: planning needs it, and needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.config.schema import Model
from harness.errors import DataError
from harness.files import file_sha256


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model's identity.

    Attributes:
        content: Revision of the hub's snapshot, or a hash of the folder's files; never a path.
        config: Its ``config.json``.
        revision: Revision of the hub's snapshot; None for a folder.
    """

    content: str
    config: Mapping[str, Any]
    revision: str | None = None


@cache
def pretrained_identity(model: Model) -> Pretrained:
    """Resolve a pretrained model to its content.

    Raises:
        DataError: There is no such model, or neither the hub nor the cache has it.
    """
    name = model.pretrained or ""
    folder = Path(name)
    if folder.is_dir():
        files = sorted([folder / "config.json", *folder.glob("*.safetensors")])
        missing = [file.name for file in files if not file.is_file()]
        if missing or len(files) < 2:
            raise DataError(f"learner.model.pretrained: {name} holds no config.json with *.safetensors beside it")
        text = "".join(f"{file.name}:{file_sha256(file)}\n" for file in files)
        return Pretrained(hashlib.sha256(text.encode()).hexdigest()[:32], json.loads(files[0].read_bytes()))
    import huggingface_hub

    try:
        path = Path(huggingface_hub.hf_hub_download(name, "config.json", revision=model.revision))
    except Exception as error:  # the library raises whatever its transport raises; the user needs one line
        reason = (str(error).strip().splitlines() or [""])[0]
        message = f"learner.model.pretrained: {name!r} is no folder, and the hub cannot give it ({type(error).__name__}: {reason})"
        raise DataError(message) from None
    return Pretrained(f"hub:{name}@{path.parent.name}", json.loads(path.read_bytes()), path.parent.name)
