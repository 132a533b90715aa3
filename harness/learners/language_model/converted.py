"""Models that were published as pickles.

The hub's own bot has their weights as safetensors, in a pull request of the repository.

transformers looks for that request only where no revision is named. Here every revision is pinned, so it is
looked for first. For a revision that the user names, it is taken where it adds safetensors to these very
files.
"""

from __future__ import annotations

import contextlib
import re
from functools import cache
from pathlib import Path
from typing import cast

from harness.components.model import resolve_model
from harness.config.schema import Config, LanguageModel, Model
from harness.data.hub import Caches
from harness.data.model_files import INDEX, WEIGHTS
from harness.data.reach import offline, unreached
from harness.files import write_atomic
from harness.learners.language_model.facts import needs_weights
from harness.section import HubItem

BOT, TITLE = "SFconvertbot", "Adding `safetensors` variant of this model"
"""Who makes the request, and what it is called; one by anybody else is not taken."""
ANSWER_S = 10.0
"""How long the hub may take for an answer."""


def with_safetensors(model: Model, caches: Caches | None = None) -> Model:
    """A pretrained model at the revision that has its weights as safetensors.

    Others, and where there is none, as they are.

    Args:
        model: A model's section.
        caches: Where the answer is kept for when the hub is offline; the libraries' own place when None.
    """
    if model.pretrained is None or Path(model.pretrained).is_dir():
        return model
    revision = _converted(model.pretrained, model.revision, caches or Caches.default())
    return model if revision in (None, model.revision) else model.model_copy(update={"revision": revision})


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
def _converted(name: str, revision: str | None, caches: Caches) -> str | None:
    """The revision of the request, where the one that is asked for has no safetensors; else that one.

    What was found before where the hub is not there, or where a commit is asked for, which never changes.
    """
    place = "@".join(part.replace("/", "--") for part in (name, revision) if part)
    note = caches.datasets / "converted" / place
    known = _noted(note)
    settled = known and revision and re.fullmatch("[0-9a-f]{40}", revision)
    if offline() or settled or unreached():
        return known
    # whatever the transport raises: who loads the model says what is wrong with the hub
    with contextlib.suppress(Exception):
        found = _ask(name, revision)
        if found != known:
            with contextlib.suppress(OSError):
                note.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(note, (found or "").encode())
        return found
    return known


def _noted(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _ask(name: str, revision: str | None) -> str | None:
    import huggingface_hub

    hub = huggingface_hub.HfApi()

    def files(at: str | None) -> tuple[str | None, dict[str, str | None]]:
        """The commit, and paths to what identifies their content, without those that only describe.

        It is asked once: the call that lists a tree asks again for 23 s where the hub cannot be reached.
        """
        about = hub.model_info(name, revision=at, files_metadata=True, timeout=ANSWER_S)
        found = {each.rfilename: each.blob_id for each in about.siblings or ()}
        described = {
            path: blob for path, blob in found.items() if not path.endswith((".md", ".gitattributes"))
        }
        return about.sha, described

    _, there = files(revision)
    if there.keys() & {WEIGHTS, INDEX}:
        return revision
    for request in hub.get_repo_discussions(name, author=BOT, discussion_type="pull_request"):
        if request.author != BOT or request.title != TITLE:
            continue
        at = f"refs/pr/{request.num}"
        commit, converted = files(at)
        if not converted.keys() & {WEIGHTS, INDEX}:
            continue
        if revision is None:
            return at
        if there.items() <= converted.items():
            return commit  # what is named once stays what it is
    return None
