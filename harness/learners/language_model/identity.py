"""What a pretrained model is, by content: planning needs it, and needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.config.schema import Model
from harness.data.model_files import CONFIG, INDEX, WEIGHTS, read_plain, refuse_adapter, weight_files
from harness.data.reach import asking, hub_error
from harness.errors import DataError
from harness.files import file_sha256, no_folder
from harness.terminal import shown

FIELD = "learner.model.pretrained"


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
        if not (folder / CONFIG).is_file():
            raise DataError(f"{FIELD}: {name} holds no {CONFIG}")
        refuse_adapter(folder, FIELD)
        files = sorted([folder / CONFIG, *weight_files(folder, FIELD)])
        try:
            text = "".join(f"{file.name}:{file_sha256(file)}\n" for file in files)
        except OSError as error:
            raise DataError(f"{FIELD}: {error.filename} cannot be read ({error.strerror})") from None
        return Pretrained(hashlib.sha256(text.encode()).hexdigest()[:32], read_plain(folder / CONFIG, FIELD))
    if folder.is_absolute():
        raise DataError(f"{FIELD}: {no_folder(folder)}")
    import huggingface_hub

    try:
        with asking(name):
            path = Path(huggingface_hub.hf_hub_download(name, CONFIG, revision=model.revision))
    except Exception as error:  # the library raises whatever its transport raises; the user needs one line
        raise DataError(f"{FIELD}: {shown(name)} is no folder, and no model ({hub_error(error)})") from None
    return Pretrained(f"hub:{name}@{path.parent.name}", read_plain(path, FIELD), path.parent.name)


def stored_folder(model: Model) -> Path | None:
    """Where a pretrained model's files lie: its folder, or the hub's cache where that has weights.

    None where they are not here.
    """
    folder = Path(model.pretrained or "")
    if folder.is_dir():
        return folder
    import huggingface_hub

    found = pretrained_identity(model).revision
    for name in (WEIGHTS, INDEX):
        path = huggingface_hub.try_to_load_from_cache(model.pretrained or "", name, revision=found)
        if isinstance(path, str):
            return Path(path).parent
    return None
