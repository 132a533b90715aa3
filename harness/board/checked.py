"""Who has verified or replayed an entry, where, when, and what came of it: a file beside the entry."""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from harness.board.entry import Entry
from harness.board.immutable import Immutable
from harness.board.verify import EntryVerdict
from harness.bundle import provenance
from harness.coordinator.revision import source_revision
from harness.terminal import cut

SUFFIX = ".verification.json"
"""Ends the names of these files; an entry's ends with a hash."""
MAX_LINE = 500
"""Characters of a line that is kept."""


class Verification(Immutable):
    """What came of one `harness leaderboard verify`."""

    format: Literal[1]
    entry: str
    """The entry's file, from the board's folder."""
    entry_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the entry's content: of no other is anything said."""
    kind: Literal["artifacts", "replay"]
    """Computed again from a store, or one seed run again."""
    seed: int | None
    """Which seed was run again."""
    good: bool
    verdict: str
    lines: tuple[str, ...]
    """What was found, as the command has said it."""
    who: str
    """The user's name; empty where the system has none."""
    host: str
    device: str
    commit: str
    """Revision of the harness; empty where it is not known."""
    versions: dict[str, str]
    time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$")]
    """UTC."""

    @property
    def name(self) -> str:
        """Of its file, from the board's folder: beside the entry's."""
        return f"{self.entry.removesuffix('.json')}.{self.sha256[:12]}{SUFFIX}"

    @property
    def badge(self) -> str:
        """In three words."""
        said = {
            ("artifacts", True): "verified",
            ("artifacts", False): "verification failed",
            ("replay", True): "replayed",
            ("replay", False): "replay failed",
        }
        return f"{said[self.kind, self.good]} {self.time[:10]}"

    def is_of(self, entry: Entry) -> bool:
        """Whether this entry, with this content, is what was looked at."""
        return self.entry == entry.name and self.entry_sha256 == entry.sha256


def verification(entry: Entry, seed: int | None, outcome: EntryVerdict) -> Verification:
    """What came of a verification, made here and now.

    Args:
        entry: What was verified.
        seed: The seed that was run again; None where it was computed from a store.
        outcome: What came of it.
    """
    here = provenance(time.monotonic(), source_revision())
    try:
        who = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        who = ""
    return Verification(
        format=1,
        entry=entry.name,
        entry_sha256=entry.sha256,
        kind="artifacts" if seed is None else "replay",
        seed=seed,
        good=outcome.good,
        verdict=cut(outcome.verdict, MAX_LINE),
        lines=tuple(cut(line, MAX_LINE) for line in outcome.lines),
        who=who,
        host=here["host"],
        device=here["device"],
        commit=here["commit"],
        versions={name: str(version) for name, version in here["versions"].items()},
        time=here["finished"],
    )


def badges(found: Iterable[Verification]) -> list[str]:
    """What is shown of an entry's verifications: the last word of each machine, good and bad.

    A failure is taken back by the same check on the same machine, and by no other.
    """
    last: dict[tuple[str, int | None, str], Verification] = {}
    for item in sorted(found, key=lambda item: (item.time, item.name)):
        last[item.kind, item.seed, item.host] = item
    latest = {
        item.badge.rpartition(" ")[0]: item.badge for item in sorted(last.values(), key=lambda i: i.time)
    }
    return [latest[name] for name in sorted(latest, key=lambda name: ("failed" not in name, name))]
