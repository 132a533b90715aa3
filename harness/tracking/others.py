"""Trackers that write whole chains: told of each once, with all its generations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.components import TRACKERS
from harness.files import write_json
from harness.registry import named
from harness.tracking.runs import ChainView, noted
from harness.tracking.tracker import Tracker

if TYPE_CHECKING:
    from harness.tracking.views import Mirrored, Views

SENT = "sent"
"""Folder of the notes, in a tracker's own: which evaluations of a chain it has been told of."""


class WholeChains(Tracker):
    """One that a function writes for (`harness.registry.TrackerPlugin.write`); notes say what it was told."""

    @property
    def folder(self) -> Path:
        """Its own, which is there when it is called."""
        return self.experiment / "trackers" / self.name

    def write(self, view: ChainView) -> None:
        """Call the function, unless it has been told of just this."""
        note = self._note(view.chain)
        if self.told(view.chain) == view.evaluations:
            return
        note.parent.mkdir(parents=True, exist_ok=True)
        named(TRACKERS[self.name].write)(view, self.folder)
        where = self._where()
        said: Any = view.evaluations
        write_json(note, said if where is None else {"where": where, "evaluations": said})

    def send(self, view: ChainView) -> int:
        """Write a chain, as a run does."""
        self.write(view)
        return len(view.generations)

    def told(self, chain: str) -> list[str]:
        """What it has been told where it writes to now.

        Nothing by a note of another form: its package has got, or lost, `where` since, or it is damaged.
        """
        found, where = noted(self._note(chain)), self._where()
        if where is not None:
            is_of = isinstance(found, dict) and found.get("where") == where
            found = found.get("evaluations") if is_of else None
        return [str(key) for key in found] if isinstance(found, list) else []

    def is_due(self, views: Views, item: Mirrored) -> bool:
        """Whether all of it is there, and something of it is new."""
        return views.whole(item) and not self.is_complete(views, item)

    def is_complete(self, views: Views, item: Mirrored) -> bool:
        """Whether all of it is there, and was told."""
        return views.whole(item) and self.told(item.id) == views.view(item).evaluations

    def reason(self, error: Exception) -> str:
        """Whose it is, and without what stands between a name and the @ of an address."""
        return f"tracker {self.name}: " + re.sub(
            r"(://[^\s:/@]*):[^\s@]+@", r"\1:***@", super().reason(error)
        )

    def _note(self, chain: str) -> Path:
        return self.folder / SENT / f"{chain}.json"

    def _where(self) -> Any:
        where = TRACKERS[self.name].where
        return named(where)(self.folder) if where else None
