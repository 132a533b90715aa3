"""The folder of one experiment.

Its resolved configuration, chains, events, progress, logs, report and W&B files.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import json
import os
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.components import ADDED
from harness.errors import DamagedError, StoreError
from harness.files import dump_json, link_once, read_json, sync_file, write_atomic, write_json
from harness.registry import earlier
from harness.science import key_of
from harness.terminal import listed, visible

NOT_DECLARED = ("experiment", "claims", "tracking", "resources", "retention", "grid")
"""Fields of a study that no claim is about, or that a declaration has in a place of their own."""


@dataclass(frozen=True)
class Others:
    """Chains of another study under the name of this one.

    Attributes:
        count: How many.
        measured: Whether the studies differ in nothing but ``evaluate``.
    """

    count: int = 0
    measured: bool = False


class Experiment:
    """``experiments/<name>/`` under a root.

    Nothing in it is needed to compute: the store's items are the truth.
    """

    def __init__(self, root: Path, name: str) -> None:
        """Keep the path; nothing is made yet."""
        self.path = root.absolute() / "experiments" / name
        self.name = name
        self._own_events: Path | None = None

    def begin(self, config: Mapping[str, Any], chains: Sequence[Mapping[str, Any]]) -> Others:
        """Make the folder and write down what the experiment is.

        Chains of earlier runs under this name stay in the list: a part of a grid may be run by itself, and
        what the rest of it needs must not be freed meanwhile. Runs that begin at the same time each write
        their part, and then merge all parts.

        Args:
            config: The resolved configuration.
            chains: One entry per chain: id, axes, seed, keys, and the fits whose weights this experiment
                keeps (``keep``).

        Returns:
            The chains that another study has run under this name; none where this one goes on with it.
        """
        others = self._others(config, {entry["chain"] for entry in chains})
        for name in ("logs", "progress", "parts"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        write_json(self.path / "config.json", config)
        earlier.note(self.path, config, ADDED)
        self._declare(config)
        part = dump_json(list(chains))
        write_atomic(self.path / "parts" / f"{hashlib.sha256(part).hexdigest()[:16]}.json", part)
        merged: list[Path] = []
        while (
            parts := self._parts()
        ) != merged:  # whoever merges last has seen every part: a later one is merged by its writer
            self._merge(parts)
            merged = parts
        return others

    def _others(self, config: Mapping[str, Any], chains: Collection[str]) -> Others:
        """The chains that there are, if none of them and nothing but the grid is of this study."""
        try:
            before, known = read_json(self.path / "config.json"), read_json(self.path / "chains.json")
            there = {entry["chain"] for entry in known}
            axes = {*before.get("grid", ()), *config.get("grid", ())}.union(*(e["axes"] for e in known))
            was, now = _about(before, axes), _about(config, axes)
            differ = {name for name in {*was, *now} if was.get(name) != now.get(name)}
        except (DamagedError, KeyError, TypeError, AttributeError):
            return Others()
        if not differ or there.intersection(chains):
            return Others()
        return Others(len(there), measured=differ == {"evaluate"})

    def _declare(self, config: Mapping[str, Any]) -> None:
        """Write down what a study claims before anything of it runs: once, so the first time stays."""
        said = declaration(config)
        if said is None:
            return
        folder, key = self.path / "declared", key_of(said)
        folder.mkdir(exist_ok=True)
        temporary = folder / f".{uuid.uuid4().hex}"
        temporary.write_bytes(dump_json({"time": time.time(), "declaration": said}))
        link_once(temporary, folder / f"{key}.json")

    def _parts(self) -> list[Path]:
        """What runs under this name were about, the latest last."""
        return sorted(
            (self.path / "parts").glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name)
        )

    def _merge(self, parts: Sequence[Path]) -> None:
        known: dict[str, Mapping[str, Any]] = {}
        for path in (self.path / "chains.json", *parts):
            with contextlib.suppress(DamagedError, KeyError, TypeError):
                known |= {entry["chain"]: entry for entry in read_json(path)}
        # What is kept comes first: whoever finds the chains may free what nobody keeps.
        write_json(
            self.path / "keep.json",
            sorted({fit for entry in known.values() for fit in entry.get("keep", ())}),
        )
        write_json(self.path / "chains.json", list(known.values()))

    @property
    def logs(self) -> Path:
        """Folder of the log files."""
        return self.path / "logs"

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event; a line is written in one call, so writers do not mix."""
        line = (
            json.dumps(
                {
                    "time": time.time(),
                    "event": kind,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    **fields,
                }
            )
            + "\n"
        )
        descriptor = os.open(self._events_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _events_file(self) -> Path:
        """This host's file: ``events.jsonl`` for the host that began it, ``events-<host>.jsonl`` for others.

        Appending is atomic within one kernel only: over NFS, two hosts that append to one file overwrite each
        other.
        """
        if self._own_events is None:
            host, first = socket.gethostname().split(".")[0], self.path / "events.jsonl"
            if not first.exists():
                self.path.mkdir(parents=True, exist_ok=True)
                temporary = self.path / f".events-{uuid.uuid4().hex}"
                temporary.write_text(
                    json.dumps({"time": time.time(), "event": "opened", "host": host, "pid": os.getpid()})
                    + "\n"
                )
                # a first line that a power cut tears would leave a file that is nobody's
                sync_file(temporary)
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, first)
                temporary.unlink()
            self._own_events = first if _host_of(first) == host else self.path / f"events-{host}.jsonl"
            _end_torn_line(self._own_events)
        return self._own_events

    def events(self) -> Iterator[dict[str, Any]]:
        """All events so far, of all hosts, in the order of their times.

        A line cut short by a crash is left out.
        """
        files = sorted(path for path in self.path.glob("events*.jsonl") if path.is_file())
        yield from heapq.merge(*map(_read_lines, files), key=lambda event: float(event["time"]))

    def news(self, offsets: dict[str, int]) -> list[dict[str, Any]]:
        """Events that have come since the last call.

        Args:
            offsets: File to how far it has been read; kept by the caller, begins empty, and then reads from
                the files' ends.
        """
        found = []
        for path in sorted(self.path.glob("events*.jsonl")):
            size = path.stat().st_size
            start = offsets.setdefault(path.name, size if not offsets else 0)
            if size <= start:
                continue
            with open(path, "rb") as file:
                file.seek(start)
                data = file.read()
            offsets[path.name] = start + data.rfind(b"\n") + 1
            found += list(_parse(data[: data.rfind(b"\n") + 1].decode(errors="replace").splitlines()))
        return found

    def write_progress(self, branch: str, progress: Mapping[str, Any]) -> None:
        """Replace the progress of a branch (not flushed to disk: it is only a display)."""
        path = self.path / "progress" / f"{branch}.json"
        temporary = path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({**progress, "updated": time.time()}), encoding="utf-8")
            os.replace(temporary, path)

    def clear_progress(self, branch: str) -> None:
        """Remove the progress of a branch that is no longer run."""
        with contextlib.suppress(OSError):
            (self.path / "progress" / f"{branch}.json").unlink()

    def progress(self) -> dict[str, dict[str, Any]]:
        """Progress of the branches that are being run, by branch id."""
        found = {}
        for path in sorted((self.path / "progress").glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        return found


def _about(config: Mapping[str, Any], axes: Collection[str]) -> Any:
    """What a study's chains have in common: all but its axes, how it is run, and how far.

    Args:
        config: Its content.
        axes: Dotted fields that some study of this name sweeps, and another one may set.
    """
    found: Any = config
    for name in (*NOT_DECLARED, "seed", "generations", *axes):
        found = _without(found, name)
    return found


def _without(data: Any, dotted: str) -> Any:
    head, _, rest = dotted.partition(".")
    if not isinstance(data, Mapping) or head not in data:
        return data
    others = {name: value for name, value in data.items() if name != head}
    return {**others, head: _without(data[head], rest)} if rest else others


def experiments(root: Path) -> list[str]:
    """The names of the experiments that were run on a store, sorted."""
    return sorted(path.parent.name for path in (root / "experiments").glob("*/config.json"))


def nothing_of(root: Path, name: str) -> str:
    """What is said where a store has no record of a study.

    Args:
        root: The store.
        name: Of the experiment.
    """
    known = [visible(found, lines=False) for found in experiments(root)]
    if name in known:
        return (
            f"nothing of this study is committed in {root}: {name} has begun there, with these values or "
            "with others (harness status and harness explain say more)"
        )
    others = f"which has {listed(known, 10)}" if known else "where no experiment has begun"
    return f"nothing of {name} is in {root}, {others}"


def weights_kept(folder: Path) -> set[str]:
    """Fits whose weights an experiment keeps; none where no run of it has begun.

    Args:
        folder: The experiment's.

    Raises:
        StoreError: It cannot be read, or is damaged.
    """
    if not (is_there(folder / "keep.json") or is_there(folder / "chains.json")):
        return set()
    found = read_json(folder / "keep.json")
    if not isinstance(found, list) or not all(isinstance(fit, str) for fit in found):
        raise DamagedError(f"{folder / 'keep.json'} is no list of fits")
    return set(found)


def is_there(path: Path) -> bool:
    """Whether there is a file or anything else of that name.

    Raises:
        StoreError: Nobody can tell: its folder cannot be entered.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    return True


def declaration(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a study claims, with all that it is about; None where it claims nothing.

    How it is run is not in it, and neither is which part of it is: a study may be run seed by seed.

    Args:
        config: Its content.
    """
    if not config.get("claims"):
        return None
    partly, grid = ("seed", "mitigation"), config.get("grid") or {}
    about = {name: value for name, value in config.items() if name not in (*NOT_DECLARED, *partly)}
    about["grid"] = {name: values for name, values in grid.items() if name not in partly}
    return {"claims": config["claims"], "about": about}


def _host_of(path: Path) -> str | None:
    """The host that began a file of events; None where its first line does not say so."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            return str(json.loads(lines.readline())["host"]).split(".")[0]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _end_torn_line(path: Path) -> None:
    """Begin a new line where the last one was cut short by a crash, so that what comes next can be read."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            with open(path, "ab") as end:  # behind what others have written since: nothing of theirs is lost
                end.write(b"\n")


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8", errors="replace") as lines:
        yield from _parse(lines)


def _parse(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            event = json.loads(line)
            timed = isinstance(event, dict) and isinstance(event.get("time"), int | float)
            if timed and event.get("event", "opened") != "opened":
                yield event
