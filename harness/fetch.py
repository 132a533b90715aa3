"""What a study needs of the Hugging Face hub.

It is brought into a shared cache on a login node, and looked for before a job.

Jobs run with the hub offline, so everything that they would ask it for is listed here once, from the
configuration. Only data, texts and safetensors are fetched: nothing that executes when it is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.components import FILTERS, LEARNERS
from harness.config.grid import Study
from harness.config.schema import Config, PretrainedTokenizer
from harness.data.hub import Caches, load_hub, prepared_folder
from harness.data.reach import offline, unreached
from harness.data.tokenizers import pretrained_fingerprint
from harness.errors import DataError, reason_of
from harness.registry import named
from harness.section import HubItem, hub_data
from harness.terminal import shown

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
MODEL_FILES = (CONFIG, "generation_config.json")
WEIGHT_FILES = (WEIGHTS, INDEX, "model-*.safetensors")
TOKENIZER_FILES = (
    CONFIG,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
)
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",), ("*.model",))
"""Files of which a tokenizer can be built; one set of them is enough."""


@dataclass(frozen=True)
class Fetched:
    """An item that is in the cache.

    Attributes:
        item: What it is.
        path: Where it lies.
        bytes: Size of the files that are used.
        there: It was there before.
    """

    item: HubItem
    path: Path
    bytes: int
    there: bool

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        item = self.item
        return {
            "kind": item.kind,
            "field": item.field,
            "name": item.name,
            "revision": item.revision,
            "path": str(self.path),
            "bytes": self.bytes,
            "there": self.there,
        }


def needed(study: Study, caches: Caches | None = None) -> list[HubItem]:
    """Everything of the hub that the cells of a study read, each once, in the order of the cells.

    Args:
        study: From `expand`.
        caches: What the hub has said before lies there; in the libraries' own place when None.
    """
    found: dict[tuple[str, str, str | None], HubItem] = {}
    for cell in study.cells:
        for item in _needed(
            cell.config, "regime.source.model" if cell.teacher else "learner.model.pretrained", caches
        ):
            key = (item.kind, item.name, item.revision)
            known = found.setdefault(key, item)
            found[key] = replace(known, weights=known.weights or item.weights)
    return list(found.values())


def _needed(config: Config, model_field: str, caches: Caches | None) -> Iterator[HubItem]:
    yield from config.data.hub_items
    for name, text in config.evaluate.others.items():
        yield from hub_data(f"evaluate.others.{name}", text)
    yield from hub_data("regime.source.corpus", config.regime.writer.corpus or "")
    for place, section in enumerate(config.filters):
        yield from FILTERS[section.kind].hub_items(section, f"filters.{place}")
    hub_items = LEARNERS[config.learner.kind].hub_items
    if hub_items:
        yield from named(hub_items)(config, model_field, caches)


def missing_files(study: Study, caches: Caches | None = None) -> list[str]:
    """What jobs would miss with the hub offline; looks only at the cache.

    Args:
        study: From `expand`; `prepare_study` itself needs the files.
        caches: Where to look; the libraries' own when None.

    Returns:
        One message for each item that is not there as a whole; empty where jobs have all they need.
    """
    where = caches or Caches.default()
    found = []
    for item in needed(study, where):
        problem = _problem(item, where)
        if problem:
            found.append(f"{item.field}: {item.name} {problem}; run `harness fetch CONFIG`")
    return found


def _problem(item: HubItem, caches: Caches) -> str:
    """What is wrong with an item in the cache; empty where it is there."""
    at = f" at revision {item.revision}" if item.revision else ""
    if item.kind == "data":
        try:
            return (
                ""
                if prepared_folder(item.name, item.revision, caches)
                else f"(data){at} is not in {caches.datasets}"
            )
        except DataError as error:
            return f"cannot be told apart in the cache ({error})"
    folder = _snapshot(item, caches)
    if folder is None:
        return f"({item.kind}){at} is not, or not all of it, in {caches.hub}"
    files = _missing_of_model(folder, item.weights) if item.kind == "model" else _missing_of_tokenizer(folder)
    return f"({files}){at} is not in {caches.hub}" if files else ""


def _patterns(item: HubItem) -> list[str]:
    if item.kind == "tokenizer":
        return list(TOKENIZER_FILES)
    return [*MODEL_FILES, *(WEIGHT_FILES if item.weights else ())]


def _snapshot(item: HubItem, caches: Caches) -> Path | None:
    """An item's snapshot in the cache.

    None where it is not there, or not all that the repository has of it.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                item.name,
                revision=item.revision,
                cache_dir=caches.hub,
                allow_patterns=_patterns(item),
                local_files_only=True,
            )
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _missing_of_model(folder: Path, weights: bool) -> str:
    """The first file that a model lacks; also where the cache has no listing of its repository."""
    if not (folder / CONFIG).exists():
        return CONFIG
    if not weights or (folder / WEIGHTS).exists():
        return ""
    if not (folder / INDEX).exists():
        return WEIGHTS
    try:
        shards = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError):
        return f"a sound {INDEX}"
    return next((shard for shard in shards if not (folder / shard).exists()), "")


def _missing_of_tokenizer(folder: Path) -> str:
    there = any(all(any(folder.glob(pattern)) for pattern in files) for files in VOCABULARIES)
    return "" if there else "tokenizer.json"


def use_cache(home: Path) -> Caches:
    """Make the libraries of this process use a cache; before any of them is imported.

    Args:
        home: It becomes ``HF_HOME``.

    Raises:
        DataError: It cannot be made or written.
    """
    caches = Caches.under(home.absolute())
    try:
        for folder in (caches.hub, caches.datasets):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"--cache: {home} cannot be written: {error.strerror}") from None
    os.environ.update({"HF_HOME": str(home.absolute()), **caches.environment()})
    return caches


OFFLINE = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
"""The variables that keep the hub's libraries from the network; they read them when they are imported."""


def cache_environment(home: Path | None) -> dict[str, str]:
    """The variables by which the hub's libraries find a cache.

    Args:
        home: It becomes ``HF_HOME``; None for what the libraries use in this process.
    """
    if home is None:
        return Caches.default().environment()
    return {"HF_HOME": str(home.absolute()), **Caches.under(home.absolute()).environment()}


def fetch(study: Study, cache: Path | None, say: Callable[[str], None]) -> list[Fetched]:
    """Bring everything that a study needs of the hub into the cache; what is there is not downloaded again.

    Args:
        study: From `expand`.
        cache: The shared cache (see `use_cache`); the libraries' own when None.
        say: Takes lines of progress.

    Raises:
        DataError: The hub has no such thing, may not give it, or does not answer; or its weights are not
            safetensors.
    """
    caches = use_cache(cache) if cache else Caches.default()  # before the hub is asked anything
    items = needed(study, caches)
    if items and offline():
        raise DataError(
            "fetch needs the hub, but HF_HUB_OFFLINE, HF_DATASETS_OFFLINE or TRANSFORMERS_OFFLINE is set; "
            "unset it"
        )
    if items and (why := unreached()):
        raise DataError(f"fetch needs the hub, which cannot be reached ({why})")
    found = []
    for item in items:
        before = _place(item, caches)
        say(f"{item}: {'checking' if before else 'fetching'}")
        if item.kind == "data":
            _fetch_data(item)
        else:
            _fetch_files(item, caches)
        place = _place(item, caches)
        if place is None:
            raise DataError(
                f"{item.field}: {item.name} {_problem(item, caches)}, though the hub was asked for it"
            )
        found.append(Fetched(item, place, _size(item, place), place == before))
    return found


def _place(item: HubItem, caches: Caches) -> Path | None:
    """Where an item lies in the cache; None where it is not there as a whole."""
    if _problem(item, caches):
        return None
    return (
        prepared_folder(item.name, item.revision, caches) if item.kind == "data" else _snapshot(item, caches)
    )


def _size(item: HubItem, folder: Path) -> int:
    patterns = ["*"] if item.kind == "data" else _patterns(item)
    return sum(
        path.stat().st_size
        for path in {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    )


def _fetch_data(item: HubItem) -> None:
    try:
        load_hub(item.name, item.revision)
    except DataError as error:
        raise DataError(str(error).replace("data.source:", f"{item.field}:", 1)) from None


def _fetch_files(item: HubItem, caches: Caches) -> None:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    where = f"{item.field}: {shown(item.name)}" + (f" at revision {item.revision}" if item.revision else "")
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                item.name, revision=item.revision, cache_dir=caches.hub, allow_patterns=_patterns(item)
            )
        )
    except errors.GatedRepoError:
        raise DataError(f"{where} is gated: ask for access on its page, then `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise DataError(f"{where}: the hub has no such revision") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise DataError(
            f"{where}: the hub has no such repository, or you may not see it (`hf auth login`)"
        ) from None
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk, not the hub
        raise DataError(f"{where} cannot be fetched ({type(error).__name__}: {reason_of(error)})") from None
    except Exception as error:  # the library raises whatever its transport raises; the user needs one line
        raise DataError(f"{where} cannot be fetched ({type(error).__name__}: {reason_of(error)})") from None
    if item.kind == "tokenizer":
        pretrained_fingerprint(PretrainedTokenizer(kind="pretrained", name=item.name, revision=item.revision))
    elif item.weights and _missing_of_model(folder, True) == WEIGHTS:
        raise DataError(
            f"{where} has no safetensors weights, and pickled ones are never loaded; name a revision that "
            "has them (often refs/pr/N)"
        )


def describe(found: Fetched) -> str:
    """An item in one line."""
    return (
        f"{found.item}: {found.path} ({found.bytes / 2**20:.1f} MiB, "
        f"{'already there' if found.there else 'fetched'})"
    )
