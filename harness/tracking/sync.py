"""`harness sync`: what is committed, to W&B and the other trackers.

Beside jobs that still compute, or afterwards, as often as one likes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.stop import Stop
from harness.store import Experiment, Leases, Store, own_leases
from harness.study import Prepared
from harness.tracking import BusyError, Sent, Server, connect, held, patience_s, send_chain
from harness.tracking.others import tell
from harness.tracking.staging import staged
from harness.tracking.views import Mirrored, Views, aggregates, mirrored, of_chain

PROGRESS_CHAINS = 20
"""A line of progress after so many chains."""
MAX_FAILURES = 3
"""Chains in a row that could not be sent, after which a pass ends: W&B does not answer, and each took its
time to say so."""


@dataclass
class Synced:
    """What a sync has done.

    Attributes:
        chains: Chains of the study.
        complete: Chains of which nothing is left to send, ever: all generations are there, or the last one
            diverged.
        chains_sent: Chains of which something was sent.
        generations_sent: Generations that were sent.
        errors: Chain to why it could not be sent, in the last pass over it.
        stopped: A signal ended it.
        wall_s: Seconds.
    """

    chains: int
    complete: int = 0
    chains_sent: int = 0
    generations_sent: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    stopped: bool = False
    wall_s: float = 0.0

    @property
    def exit_code(self) -> int:
        """See the commands' exit codes.

        1 a chain could not be sent, 75 there was more to do when it ended.
        """
        return 1 if self.errors else 75 if self.stopped or self.busy else 0

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        names = {"complete": "chains_complete"}
        found = {names.get(name, name): value for name, value in asdict(self).items()}
        return {**found, "chains_failed": len(self.errors)}


def check_wanted(prepared: Prepared) -> None:
    """Refuse a study that its file keeps away from all trackers: what has been sent cannot be taken back.

    Raises:
        InputError: ``tracking.wandb`` is ``disabled``, and no other tracker is named.
    """
    tracking = prepared.study.base.tracking
    if tracking.wandb == "disabled" and not tracking.trackers:
        message = (
            "found disabled, so nothing may be sent; allowed for sync: offline, online (or --set "
            "tracking.wandb=offline), or other trackers (tracking.trackers)"
        )
        raise prepared.study.source.error("tracking.wandb", message)


def sync(
    prepared: Prepared, root: Path, stop: Stop, every_s: float | None, say: Callable[[str], None]
) -> Synced:
    """Send what is committed and was not sent before.

    Args:
        prepared: The study.
        root: The store's root.
        stop: Set from outside to end early.
        every_s: Look again every so many seconds until all chains are complete; None for once.
        say: Takes lines of progress.

    Raises:
        InputError: Nobody is logged in, there is no store, or the study is not to be sent.
    """
    check_wanted(prepared)
    if every_s is None and not (root / "format").exists():
        raise InputError(f"--root {root} is not a store of the harness")
    if prepared.study.base.tracking.wandb == "disabled":
        return _watch(prepared, root, None, stop, every_s, say)
    experiment = Experiment(root, prepared.study.base.experiment)
    with staged(experiment.path / "wandb" if (root / "format").exists() else None):
        return _watch(prepared, root, connect(), stop, every_s, say)


def _watch(
    prepared: Prepared,
    root: Path,
    server: Server | None,
    stop: Stop,
    every_s: float | None,
    say: Callable[[str], None],
) -> Synced:
    started, total = time.monotonic(), Synced(len(mirrored(prepared)))
    while True:
        if (root / "format").exists():
            _Pass(prepared, root, server, stop, say, total).run()
        total.wall_s = round(time.monotonic() - started, 3)
        if (
            every_s is None
            or stop.is_set()
            or (total.complete == total.chains and not total.errors and not total.busy)
        ):
            total.stopped = stop.is_set()
            return total
        stop.wait(every_s)


class _Pass:
    """One look at every chain."""

    def __init__(
        self,
        prepared: Prepared,
        root: Path,
        server: Server | None,
        stop: Stop,
        say: Callable[[str], None],
        total: Synced,
    ) -> None:
        store = Store.read(root)
        self.prepared, self.store, self.server = prepared, store, server
        self.stop, self.say, self.total = stop, say, total
        self.views = Views(prepared, store)
        self.gave_up = False
        self.folder = Experiment(store.root, prepared.study.base.experiment).path / "wandb"

    def run(self) -> None:
        self.total.busy, errors = [], self.total.errors
        self.total.errors = {}
        if self.server is not None:
            self._to_wandb(self.server)
        self._to_others()
        for chain, reason in self.total.errors.items():
            if errors.get(chain) != reason:
                self.say(f"{chain}: {reason}")

    def _to_wandb(self, server: Server) -> None:
        tracking = self.prepared.study.base.tracking
        sent = Sent(self.folder, server, tracking.entity, tracking.project)
        todo = [
            chain for chain in mirrored(self.prepared) if self._news(chain, len(sent.evaluations(chain.id)))
        ]
        if todo or self._due(sent):
            with self._leases() as leases:
                busy = self._send(todo, server, leases)
                deadline = time.monotonic() + patience_s(leases)
                while busy and not self.gave_up and time.monotonic() < deadline and not self.stop.wait(1.0):
                    busy = self._send(busy, server, leases)
                self.total.busy = [chain.id for chain in busy]
                # after the chains: what has made them whole may have come since this pass began
                self._send_cells(self._due(sent), server, leases)
        self.total.complete = sum(self._complete(chain, sent) for chain in mirrored(self.prepared))

    def _to_others(self) -> None:
        """Tell trackers besides W&B of the chains that are whole."""
        base = self.prepared.study.base
        whole = [chain for chain in mirrored(self.prepared) if self.views.whole(chain)]
        names, folder = base.tracking.trackers, self.folder.parent / "trackers"
        if names and whole:
            with self._leases() as leases:
                for chain in whole:
                    if self.stop.is_set():
                        return
                    try:
                        with held(leases, base.experiment, chain.id, patience_s(leases)):
                            wrong = tell(names, self.views.view(chain), folder)
                    except BusyError:
                        self.total.busy.append(chain.id)
                        continue
                    if wrong:
                        self.total.errors[chain.id] = "; ".join(wrong)
        if self.server is None:
            self.total.complete = len({chain.id for chain in whole} - {*self.total.errors, *self.total.busy})

    @contextlib.contextmanager
    def _leases(self) -> Iterator[Leases]:
        base = self.prepared.study.base
        root = Store.open(self.store.root).root
        with own_leases(
            root, base.resources.lease_s, {"experiment": base.experiment, "sync": True}
        ) as leases:
            yield leases

    def _news(self, chain: Mirrored, known: int) -> bool:
        """Whether more of a chain is committed than was sent.

        A bundled chain that diverged has fewer records than generations.
        """
        return self.views.committed(chain) > known and len(self.views.view(chain).generations) > known

    def _send(self, chains: Sequence[Mirrored], server: Server, leases: Leases) -> list[Mirrored]:
        """Send chains one after another; returns those that other processes hold."""
        busy: list[Mirrored] = []
        done = failures = 0
        for chain in chains:
            if self.stop.is_set():
                break
            try:
                with held(leases, self.prepared.study.base.experiment, chain.id):
                    generations = send_chain(self.views.view(chain), server, self.folder)
            except BusyError:
                busy.append(chain)
                continue
            except Exception as error:  # one chain that cannot be sent must not keep the others back
                self.total.errors[chain.id] = (
                    f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
                )
                failures += 1
                if failures == MAX_FAILURES:
                    self.say(f"{failures} chains in a row could not be sent; the rest is left for later")
                    self.gave_up = True
                    break
                continue
            failures, done = 0, done + 1
            self.total.chains_sent += generations > 0
            self.total.generations_sent += generations
            if done % PROGRESS_CHAINS == 0 or done == len(chains):
                self.say(f"sent {done} of {len(chains)} chains")
        return busy

    def _due(self, sent: Sent) -> list[Mirrored]:
        """Cells of which all chains have been sent as a whole, and the means have not."""
        return [
            cell
            for cell in aggregates(self.prepared)
            if len(sent.evaluations(cell.id)) <= cell.generations
            and all(self._complete(of_chain(chain), sent) for chain in cell.chains)
        ]

    def _send_cells(self, cells: Sequence[Mirrored], server: Server, leases: Leases) -> None:
        """Send the means of cells."""
        for cell in cells:
            if self.stop.is_set() or self.gave_up:
                return
            try:
                with held(leases, self.prepared.study.base.experiment, cell.id):
                    send_chain(self.views.view(cell), server, self.folder)
            except BusyError:
                self.total.busy.append(cell.id)
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                self.total.errors[cell.id] = f"{type(error).__name__}: {reason}"

    def _complete(self, chain: Mirrored, sent: Sent) -> bool:
        """Whether nothing of a chain is left to send, now or later."""
        known = len(sent.evaluations(chain.id))
        if known > chain.generations:
            return True
        return known > 0 and self.views.whole(chain) and len(self.views.view(chain).generations) == known


def describe(done: Synced) -> str:
    """What a sync has done, in one line."""
    text = (
        f"{done.generations_sent} generations of {done.chains_sent} chains sent, {done.complete} of "
        f"{done.chains} chains complete"
    )
    if done.errors:
        text += f", {len(done.errors)} could not be sent"
    if done.busy:
        text += f", {len(done.busy)} are being sent by another process: run the command again"
    return text + ("; stopped early" if done.stopped else "")
