"""Models that were published as pickles.

The hub's own bot has their weights as safetensors, in a pull request of the repository.

transformers looks for that request only where no revision is named. Here every revision is pinned, so it is
looked for first.
"""

from __future__ import annotations

import contextlib
from functools import cache
from pathlib import Path
from typing import cast

from harness.components.language_model import resolve_model
from harness.config.schema import Config, LanguageModel, Model
from harness.data.hub import Caches, offline
from harness.files import write_atomic
from harness.learners.language_model.facts import needs_weights
from harness.learners.language_model.weights import INDEX, WEIGHTS
from harness.section import HubItem

BOT, TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
"""Who makes the request, and what it is called; one by anybody else is not taken."""


def with_safetensors(model: Model, caches: Caches | None = None) -> Model:
    """A pretrained model at the revision that has its weights as safetensors.

    Others, and where there is none, as they are.

    Args:
        model: A model's section.
        caches: Where the answer is kept for when the hub is offline; the libraries' own place when None.
    """
    if model.pretrained is None or model.revision is not None or Path(model.pretrained).is_dir():
        return model
    revision = _converted(model.pretrained, caches or Caches.default())
    return model if revision is None else model.model_copy(update={"revision": revision})


def hub_items(config: Config, field: str, caches: Caches | None) -> list[HubItem]:
    """What a language model needs of the hub: its configuration, and weights where a chain begins with them.

    Args:
        config: The cell.
        field: The field that names the model, for messages.
        caches: Where the answers of the hub are kept; the libraries' own place when None.
    """
    learner = cast("LanguageModel", config.learner)
    model, refresh = resolve_model(learner.model), config.regime.refresh
    if model.pretrained is None or Path(model.pretrained).is_dir():
        return []
    weights = needs_weights(learner, refresh.init if refresh is not None else None)
    revision = with_safetensors(model, caches).revision if weights else model.revision
    return [HubItem("model", field, model.pretrained, revision, weights)]


@cache
def _converted(name: str, caches: Caches) -> str | None:
    """The revision of the request, where the newest one has no safetensors.

    What was found before where the hub is not there.
    """
    note = caches.datasets / "converted" / name.replace("/", "--")
    if not offline():
        # whatever the transport raises: who loads the model says what is wrong with the hub
        with contextlib.suppress(Exception):
            found = _ask(name)
            if found != _noted(note):
                with contextlib.suppress(OSError):
                    note.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(note, (found or "").encode())
            return found
    return _noted(note)


def _noted(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _ask(name: str) -> str | None:
    import huggingface_hub

    hub = huggingface_hub.HfApi()

    def has_weights(revision: str | None) -> bool:
        files = {file.rfilename for file in hub.model_info(name, revision=revision).siblings or ()}
        return bool(files & {WEIGHTS, INDEX})

    if has_weights(None):
        return None
    for request in hub.get_repo_discussions(name, author=BOT, discussion_type="pull_request"):
        revision = f"refs/pr/{request.num}"
        if request.author == BOT and request.title == TITLE and has_weights(revision):
            return revision
    return None
