"""A folder of entries as a board: pages, and the same numbers as CSV, JSON and a feed.

The same entries give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from html import escape, unescape
from itertools import chain, count
from pathlib import Path
from typing import Any

from harness.board.checked import SUFFIX, Verification
from harness.board.entry import Entry, read_entry
from harness.board.entry_page import entry_page
from harness.board.immutable import Immutable, read_immutable
from harness.board.pages import answer, file_of, index_page, safe, track_page, values_of
from harness.board.rules import other_rules
from harness.board.score import TrackTable, table_of
from harness.config.schema import science
from harness.config.shipped import tracks
from harness.config.track import Track, read_track
from harness.errors import DamagedError, InputError
from harness.files import dump_json, file_sha256, read_json, write_atomic
from harness.reporting.tables import to_csv
from harness.terminal import listed, visible

PAGES = (".html", ".csv", ".xml")
"""What a board has beside entries, where its pages are in the same folder."""
MAX_FOREIGN = 5
"""Files that are no entries are named up to this many."""


def build_site(folder: Path, out: Path, answers: bool = False) -> Iterator[str]:
    """Write the board.

    Args:
        folder: Entries, as ``<track>/<name>.json``; several people may add to it at once.
        out: The pages' folder; made where there is none.
        answers: Say first what each track's table says.

    Returns:
        Lines for people: what has changed since the pages were last built, and what was left out.

    Raises:
        InputError: There is no such folder, a file in it is no entry or was changed, two entries contradict
            each other, or the pages cannot be written.
    """
    if folder.resolve() in out.resolve().parents:
        raise InputError(
            f"--out: {out} lies in the folder of entries; allowed: {folder} itself, or one outside"
        )
    entries, foreign = read_entries(folder)
    checks = read_verifications(folder)
    tables = tables_of(entries, checks)
    before = _before(out)
    files = dict(site_files(tables))
    for name in files:
        if (out / name).is_dir():  # before anything is written
            raise InputError(f"--out: {out / name} is a folder, and a page is to be there")
    try:
        for name, part in files.items():
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _is_there(target, part):
                write_atomic(target, content_of(part))
        for name in _pages(before) - files.keys():
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"--out: {out} cannot be written: {error.strerror}") from None
    for table in tables:
        if answers and not table.stale:
            yield f"{visible(table.track.title)}: {unescape(re.sub('</?b>', '', answer(table)))}"
    yield from _changes(before, json.loads(content_of(files["board.json"])))
    yield from _otherwise(tables)
    yield from _left_out(foreign, checks, tables)


def content_of(part: Immutable | bytes) -> bytes:
    """A file of the board; large ones are not kept, and written out anew."""
    return part if isinstance(part, bytes) else part.content


def _is_there(target: Path, part: Immutable | bytes) -> bool:
    if not target.exists():
        return False
    if isinstance(part, bytes):
        return target.read_bytes() == part
    return file_sha256(target) == part.sha256


def _otherwise(tables: Iterable[TrackTable]) -> Iterator[str]:
    """Tables whose entries say of their track what it does not say."""
    for table in tables:
        if changed := other_rules(table.track):
            names = ", ".join(visible(line.entry.name) for line in table.lines[:MAX_FOREIGN])
            yield (
                f"other rules than the track {table.track.track} of version {table.track.version} has "
                f"({', '.join(changed)}): {names}"
            )


def _left_out(
    foreign: Sequence[Path], checks: Iterable[Verification], tables: Sequence[TrackTable]
) -> Iterator[str]:
    """Files of the folder that the board does not show."""
    if foreign:
        yield f"left out, for they are no entries: {listed([*map(str, foreign)], MAX_FOREIGN)}"
    used = {item.name for table in tables for found in table.checks.values() for item in found}
    for item in checks:
        if item.name not in used:
            yield f"left out: {visible(item.name)} is of an entry that is not here, or not with this content"


def read_entries(folder: Path) -> tuple[list[Entry], list[Path]]:
    """All entries of a folder, and the files in it that do not look like any.

    Raises:
        InputError: There is no such folder, or a file is called as an entry is and is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of entries; harness leaderboard add makes one")
    entries, foreign = [], []
    for path in _files(folder):
        relative = path.relative_to(folder)
        if path.suffix in PAGES or relative == Path("board.json"):
            continue
        if not _has_place(path, relative):
            foreign.append(relative)
            continue
        if path.name.endswith(SUFFIX):
            continue
        entry = read_entry(path)
        if relative.parts[0] != entry.track.track:
            raise InputError(
                f"{path} is an entry of the track {entry.track.track}, in another track's folder"
            )
        entries.append(entry)
    return entries, foreign


def read_verifications(folder: Path) -> list[Verification]:
    """All verifications of a folder, of whatever entries.

    Raises:
        InputError: A file is called as one is and is none.
    """
    found = [path for path in _files(folder) if path.name.endswith(SUFFIX)]
    found = [path for path in found if _has_place(path, path.relative_to(folder))]
    return [read_immutable(path, Verification, "verification") for path in found]


def _has_place(path: Path, relative: Path) -> bool:
    """Whether a file lies and is called as an entry or a verification does and is: no link, no pipe."""
    odd = path.suffix != ".json" or len(relative.parts) != 2 or path.name.startswith(".")
    return not odd and path.is_file()


def _files(folder: Path) -> list[Path]:
    """All that lies in a folder, at any depth, and is no folder; a link to one is not followed."""

    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from None

    found = list[Path]()
    for place, folders, files in os.walk(folder, onerror=refuse):  # a folder that is closed hides entries
        found += [Path(place, name) for name in files]
        found += [path for path in (Path(place, name) for name in folders) if path.is_symlink()]
    return sorted(found)


def tables_of(entries: Sequence[Entry], checks: Sequence[Verification] = ()) -> list[TrackTable]:
    """A table for each track, version of it, and data; the newest version has the track's plain name."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.comparable, []).append(entry)
    ordered = sorted(groups.values(), key=_newest, reverse=True)
    plain, taken, found = {group[0].track.track for group in ordered}, {"index"}, []
    for group in ordered:
        track = group[0].track
        older = f"{track.track}-version-{track.version}"
        names = chain((track.track, older), (f"{older}-{number}" for number in count(2)))
        # a track may itself be called as an older version of another is
        name = next(n for n in names if n not in taken and (n == track.track or n not in plain))
        taken.add(name)
        table = table_of(track, group, name, checks)
        newest = next(group[0] for group in ordered if group[0].track.track == track.track)
        found.append(table if newest is group[0] else _stale(table, group[0], newest))
    return sorted(found, key=lambda table: table.name)


def _stale(table: TrackTable, entry: Entry, newest: Entry) -> TrackTable:
    """A table that is not the newest of its track, whose entries say so."""
    if entry.track.version != newest.track.version:
        why = f"version {entry.track.version} of the track; the newest is {newest.track.version}"
    elif science(entry.track) != science(newest.track):
        why = "other rules under the same name and version of the track"
    elif entry.data != newest.data:
        why = "other data than the newest entries'"
    else:
        why = "another version of a metric or a learner than the newest entries'"
    lines = tuple(replace(line, badges=(*line.badges, f"stale: {why}")) for line in table.lines)
    return replace(table, lines=lines, newer=newest.track.track, stale=why)


def _newest(group: Sequence[Entry]) -> tuple[bool, int, int, str]:
    """Of tables of one track the one that comes last has the track's page: never one with other rules."""
    own = not other_rules(group[0].track)
    return own, group[0].track.version, len(group), max(entry.provenance.finished for entry in group)


def site_files(tables: Sequence[TrackTable]) -> Iterator[tuple[str, Immutable | bytes]]:
    """Every file of the board by its name in the board's folder; entries as such, for they are large."""
    board: dict[str, Any] = {"tracks": {}}
    everything: list[Entry] = []
    for table in tables:
        rows = [values_of(line, table) for line in table.lines]
        board["tracks"][table.name] = {
            "version": table.track.version,
            "title": table.track.title,
            "entries": rows,
        }
        yield f"{table.name}.html", track_page(table).encode()
        yield f"{table.name}.csv", _csv(rows)
        for line in table.lines:
            everything.append(line.entry)
            checks = table.checks.get(line.entry.name, ())
            yield file_of(line.entry), entry_page(line, line.entry, table.name, checks).encode()
            yield line.entry.name, line.entry
        for entry in table.superseded:
            checks = table.checks.get(entry.name, ())
            yield file_of(entry), entry_page(None, entry, table.name, checks).encode()
            yield entry.name, entry
        for found in table.checks.values():
            yield from ((item.name, item) for item in found)
    yield "index.html", index_page(tables, _waiting(tables)).encode()
    yield "board.json", dump_json(board)
    yield "feed.xml", _feed(everything)


def _waiting(tables: Sequence[TrackTable]) -> list[Track]:
    """The tracks that come with the harness and have no entry here; none on a board of others' tracks."""
    there, shipped = {table.track.track for table in tables}, tracks()
    if there and not there & shipped.keys():
        return []
    return [read_track(path).track for name, path in shipped.items() if name not in there]


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(rows[0]) if rows else ["rank"]
    return to_csv(columns, [[row[name] for name in columns] for row in rows])


def _feed(entries: Sequence[Entry]) -> bytes:
    """An Atom feed of the entries, the newest first."""
    newest = sorted(entries, key=lambda entry: (entry.provenance.finished, entry.name), reverse=True)
    updated = newest[0].provenance.finished if newest else ""
    items = [
        f"<entry><title>{safe(entry.mitigation)} on {safe(entry.track.title)}</title>"
        f"<id>urn:sha256:{escape(entry.name.rpartition('-')[2].removesuffix('.json'))}</id>"
        f'<link href="{safe(file_of(entry))}"/><updated>{safe(entry.provenance.finished)}</updated></entry>'
        for entry in newest
    ]
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<feed xmlns="http://www.w3.org/2005/Atom">'
        "<title>What resists model collapse</title><id>urn:model-collapse:board</id>"
        f"<author><name>the board</name></author><updated>{safe(updated)}</updated>{''.join(items)}</feed>\n"
    ).encode()


def _before(out: Path) -> Mapping[str, Any]:
    try:
        found = read_json(out / "board.json")
        return found if isinstance(found, dict) else {}
    except (DamagedError, OSError):
        return {}


def _pages(board: Mapping[str, Any]) -> set[str]:
    """Pages and tables of a board that was built before; nothing that lies elsewhere, and no entry.

    The pages' folder may be one of entries as well, and what is in no other place must not go.
    """
    try:
        rows = [row for found in board["tracks"].values() for row in found["entries"]]
        names = {str(row["file"]) for row in rows}
    except (KeyError, TypeError, AttributeError):
        return set()
    own = {name for name in names if re.fullmatch(r"[a-z0-9-]+/[A-Za-z0-9._-]+\.json", name)}
    tables = {name for name in board["tracks"] if re.fullmatch(r"[a-z0-9-]+", name)}
    pages = {name.removesuffix(".json") + ".html" for name in own}
    return pages | {f"{name}{form}" for name in tables for form in (".html", ".csv")}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What is new, gone, or ranked otherwise, a line each; nothing where there was no board."""
    if not before:
        return
    old, new = (_ranks(board) for board in (before, now))
    for name in sorted(new.keys() - old.keys()):
        yield f"new: {visible(name)}, rank {new[name] or 'none'}"
    for name in sorted(old.keys() - new.keys()):
        yield f"gone: {visible(name)}"
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield f"changed: {visible(name)}, rank {old[name] or 'none'} to {new[name] or 'none'}"
    marked, marks = (_by_name(board, "notes") for board in (before, now))
    for name in sorted(marked.keys() & marks.keys()):
        if marked[name] != marks[name]:
            yield f"marked: {visible(name)}, {visible(str(marks[name] or 'nothing any more'))}"


def _ranks(board: Mapping[str, Any]) -> dict[str, Any]:
    return _by_name(board, "rank")


def _by_name(board: Mapping[str, Any], column: str) -> dict[str, Any]:
    """A column of all entries, by track and name; nothing of a board of another form."""
    try:
        return {
            f"{track} {row['entry']}": row[column]
            for track, found in board["tracks"].items()
            for row in found["entries"]
        }
    except (KeyError, TypeError, AttributeError):
        return {}
