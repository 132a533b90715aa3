"""W&B as a tracker: its own files, or a server that somebody is logged in to."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

from harness.config.schema import Tracking
from harness.tracking.runs import ChainView, Sent, Server, connect, send_chain, write_chain
from harness.tracking.staging import staged
from harness.tracking.tracker import Tracker
from harness.tracking.views import Mirrored, Views, aggregates, mirrored
from harness.tracking.workspace import content, save

VIEW = "view.json"
"""Beside the notes of what was sent."""


class Wandb(Tracker):
    """Weights & Biases: tracking.wandb is offline, online or disabled."""

    means = shows = True

    def __init__(self, name: str, tracking: Tracking, experiment: Path) -> None:
        """Nobody is asked yet.

        Args:
            name: Its name.
            tracking: The section.
            experiment: The experiment's folder.
        """
        super().__init__(name, tracking, experiment)
        self.folder = experiment / "wandb"
        # never online where its own variable says that there is no network
        self._online = tracking.wandb == "online" and os.environ.get("WANDB_MODE") != "offline"
        self._server: Server | None = None
        self._unreachable = False

    def working(self, there: bool = True) -> AbstractContextManager[object]:
        """Keep what its SDK stages under the experiment's folder."""
        return staged(self.folder if there else None)

    def connect(self) -> None:
        """Ask the server who is logged in.

        Raises:
            LoginError: Nobody is, or the server refuses the key.
            HarnessError: The server does not answer.
        """
        self._server = connect()

    def tell(self, view: ChainView) -> list[str]:
        """Log in with the first chain where it is online; one warning, not one a chain, where that fails."""
        if self._unreachable:
            return []
        if self._online and self._server is None:
            try:
                self.connect()
            except Exception as error:
                self._unreachable = True
                later = "the records are safe, `harness sync` sends them later"
                return [f"W&B: nothing was sent: {error}; {later}"]
        return [f"W&B: {line}" for line in super().tell(view)]

    def write(self, view: ChainView) -> None:
        """Send it, or write its own files."""
        if self._online:
            self.send(view)
        else:
            write_chain(view, self.folder)

    def send(self, view: ChainView) -> int:
        """Send what the server has not been sent of a chain."""
        return send_chain(view, self._connected, self.folder)

    @property
    def _connected(self) -> Server:
        if self._server is None:
            self.connect()
        assert self._server is not None
        return self._server

    def told(self, chain: str) -> list[str]:
        """What was sent to this server, entity and project."""
        tracking = self.tracking
        return Sent(self.folder, self._connected, tracking.entity, tracking.project).evaluations(chain)

    def is_due(self, views: Views, item: Mirrored) -> bool:
        """Whether more of it is committed than was sent.

        A bundled chain that diverged has fewer records than generations.
        """
        known = len(self.told(item.id))
        return views.committed(item) > known and len(views.view(item).generations) > known

    def is_complete(self, views: Views, item: Mirrored) -> bool:
        """Whether as much was sent as there will ever be."""
        known = len(self.told(item.id))
        if known > item.generations:
            return True
        return known > 0 and views.whole(item) and len(views.view(item).generations) == known

    def show(self, views: Views) -> str:
        """Save a view of the study in its project, with what has been sent of it."""
        prepared, tracking = views.prepared, self.tracking
        there = [item for item in (*mirrored(prepared), *aggregates(prepared)) if self.told(item.id)]
        if not there:
            return ""
        chains = {item.cell: item.chains[0] for item in there}
        names = set().union(*map(views.metrics, chains.values()))
        means = any(item.kind == "cell" and len(item.chains) > 1 for item in there)
        sent = Sent(self.folder, self._connected, tracking.entity, tracking.project)
        wanted = content(names, means, len(chains))
        return save(prepared.study.base.experiment, sent.target, wanted, sent.folder / VIEW)
