"""Data sets of the Hugging Face hub, and its cache.

With the hub offline they are the same data at the same revision.

The library's own offline mode takes whichever version was prepared last, whatever revision is asked for; here
the revision decides.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.reach import hub_error, offline, tell_unreached, unreached
from harness.errors import DataError, reason_of
from harness.files import write_atomic
from harness.section import HUB
from harness.terminal import shown


@dataclass(frozen=True)
class Caches:
    """Where the hub's libraries keep what they have downloaded.

    Attributes:
        hub: Files of repositories, by revision.
        datasets: Data sets that were prepared from them.
    """

    hub: Path
    datasets: Path

    @classmethod
    def under(cls, home: Path) -> Caches:
        """The caches of a folder that is (or will be) ``HF_HOME``."""
        return cls(home / "hub", home / "datasets")

    @classmethod
    def default(cls) -> Caches:
        """The caches that the libraries use in this process."""
        from huggingface_hub import constants

        datasets = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
        return cls(Path(constants.HF_HUB_CACHE), Path(datasets))

    def full_name(self, repo: str) -> str:
        """The name that a repository goes by now: old ones have no organisation, others were renamed."""
        try:
            return self._note(repo).read_text(encoding="utf-8").strip()
        except OSError:
            return repo

    def note_name(self, repo: str, full: str) -> None:
        """Remember what the hub calls a repository, for when it cannot be asked."""
        note = self._note(repo)
        if self.full_name(repo) != full:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(note, full.encode())

    def _note(self, repo: str) -> Path:
        return self.datasets / "full_names" / repo.replace("/", "--")

    def environment(self) -> dict[str, str]:
        """The variables by which the libraries find the caches."""
        return {"HF_HUB_CACHE": str(self.hub), "HF_DATASETS_CACHE": str(self.datasets)}

    def commit(self, repo: str, kind: str, revision: str | None) -> str | None:
        """The commit that a revision stands for, as far as the cache knows.

        None names the newest that was asked for.
        """
        if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
            return revision
        try:
            return (
                (self.hub / f"{kind}s--{repo.replace('/', '--')}" / "refs" / (revision or "main"))
                .read_text()
                .strip()
            )
        except OSError:
            return None


def hub_names(source: str) -> list[tuple[str, str | None]]:
    """What a source may mean, as repository and configuration, in the order in which they are tried.

    Args:
        source: ``hf:NAME``, ``hf:ORG/NAME``, ``hf:ORG/NAME/CONFIG``, or ``hf:NAME/CONFIG`` where no
            repository is called so.

    Raises:
        DataError: It is none of these.
    """
    parts = source.removeprefix(HUB).split("/")
    if not all(parts) or len(parts) > 3:
        raise DataError(
            f"data.source: found {shown(source)}, expected hf:NAME, hf:ORG/NAME, hf:ORG/NAME/CONFIG or "
            "hf:NAME/CONFIG"
        )
    if len(parts) == 3:
        return [(f"{parts[0]}/{parts[1]}", parts[2])]
    return [(parts[0], None)] if len(parts) == 1 else [("/".join(parts), None), (parts[0], parts[1])]


def prepared_folder(source: str, revision: str | None, caches: Caches) -> Path | None:
    """Where the cache has a data set prepared, at its revision; None where it has not.

    Args:
        source: See `hub_names`.
        revision: Its revision; None for the newest that was fetched.
        caches: Where to look.

    Raises:
        DataError: The name is malformed, or the cache has several configurations of it and the source names
            none.
    """
    from datasets.naming import camelcase_to_snakecase

    for named, configuration in hub_names(source):
        repo = caches.full_name(named)
        *organisation, name = repo.split("/")
        commit = caches.commit(repo, "dataset", revision)
        folder = caches.datasets / "___".join([*organisation, camelcase_to_snakecase(name)])
        found = {
            path.parts[-3]: path
            for path in sorted(folder.glob(f"*/*/{commit}"))
            if (path / "dataset_info.json").exists()
        }
        if commit is None or not found:
            continue
        if configuration is None and len(found) > 1 and "default" not in found:
            several = ", ".join(found)
            raise DataError(
                f"data.source: {source} has several configurations in the cache ({several}); name one: "
                "hf:ORG/NAME/CONFIG"
            )
        wanted = configuration or ("default" if "default" in found else next(iter(found)))
        if wanted in found:
            return found[wanted]
    return None


def load_hub(source: str, revision: str | None) -> Mapping[str, Any]:
    """The splits of a data set of the hub, by name.

    Args:
        source: See `hub_names`.
        revision: Its revision; None for the newest (offline: the newest that was fetched).

    Raises:
        DataError: Neither the hub nor the cache has it.
    """
    if offline():
        return _cached(source, revision, "the hub is offline")
    found = _ask(source, revision)
    if isinstance(found, str):
        tell_unreached(found)
        return _cached(source, revision, f"the hub cannot be asked ({found})")
    repo, configuration, commit = found
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded: Mapping[str, Any] = datasets.load_dataset(repo, configuration, revision=revision)
    except Exception as error:  # the library raises whatever its transport raises; the user needs one line
        raise DataError(f"data.source: {source} cannot be loaded ({hub_error(error)})") from None
    places = {Path(file["filename"]).parent.name for rows in loaded.values() for file in rows.cache_files}
    # the library takes what it has in its cache where the hub fails in the middle of it
    if places - {commit}:
        raise DataError(
            f"data.source: {source} cannot be loaded (the hub failed, and the cache has another revision of "
            "it)"
        )
    return loaded


def place_of(source: str, revision: str | None) -> tuple[str, str, str] | None:
    """Repository, configuration and commit of a source that is in the cache, without loading it.

    None where it is not there.
    """
    try:
        found = "offline" if offline() else _ask(source, revision)
        folder = prepared_folder(source, revision if isinstance(found, str) else found[2], Caches.default())
    except DataError:  # which whoever loads it will say
        return None
    return None if folder is None else (folder.parts[-4], folder.parts[-3], folder.name)


def _ask(source: str, revision: str | None) -> tuple[str, str | None, str] | str:
    """Repository, configuration and commit of a source, from the hub; why not, where it cannot be asked."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    names = hub_names(source)
    if why := unreached():
        return why
    for repo, configuration in names:
        try:
            about = huggingface_hub.HfApi().dataset_info(repo, revision=revision)
            Caches.default().note_name(repo, about.id)
            return about.id, configuration, str(about.sha)
        except RevisionNotFoundError:
            raise DataError(f"data.revision: {source} has no revision {shown(revision)}") from None
        except RepositoryNotFoundError:
            continue
        except HFValidationError as error:
            raise DataError(f"data.source: found {shown(source)}: {str(error).splitlines()[0]}") from None
        except Exception as error:  # no network, whatever the transport calls it
            return type(error).__name__
    raise DataError(
        f"data.source: {source} cannot be loaded (the hub has no such data set, or you may not see it)"
    )


def _cached(source: str, revision: str | None, why: str) -> Mapping[str, Any]:
    """A prepared data set, from the cache alone."""
    caches = Caches.default()
    folder = prepared_folder(source, revision, caches)
    if folder is None:
        at = f" at revision {revision}" if revision else ""
        raise DataError(
            f"data.source: {source}{at} is not in {caches.datasets}, and {why}; run `harness fetch CONFIG` "
            "first"
        )
    import datasets
    from datasets.naming import camelcase_to_snakecase, filenames_for_dataset_split

    name = camelcase_to_snakecase(folder.parts[-4].rpartition("___")[2])
    splits = {}
    try:
        for split, about in datasets.DatasetInfo.from_directory(str(folder)).splits.items():
            files = filenames_for_dataset_split(str(folder), name, split, "arrow", about.shard_lengths)
            splits[str(split)] = datasets.concatenate_datasets(
                [datasets.Dataset.from_file(file) for file in files]
            )
    except Exception as error:  # a file is gone or damaged; the library raises what its reader raises
        reason = reason_of(error)
        raise DataError(
            f"data.source: {source} in {folder} cannot be read ({type(error).__name__}: {reason})"
        ) from None
    return splits
