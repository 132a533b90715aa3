"""`harness sync`: what is committed, to the trackers.

Beside jobs that still compute, or afterwards, as often as one likes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.config.asking import planning
from harness.errors import DamagedError, HarnessError, InputError
from harness.files import no_store
from harness.stop import Stop
from harness.store import Experiment, Leases, Store, own_leases
from harness.study import Prepared
from harness.terminal import counted
from harness.tracking import BusyError, held, patience_s
from harness.tracking.tracker import NO_WANDB, Tracker, open_trackers
from harness.tracking.views import Mirrored, Views, aggregates, mirrored, of_chain

PROGRESS_CHAINS = 20
"""A line of progress after so many chains."""
BOTH = ("chain or cell", "chains and cells")
"""What items are called of which some are chains and others the cells of bundles."""
MAX_FAILURES = 3
"""Chains in a row that could not be sent, after which a pass ends: the tracker does not answer, and each took
its time to say so."""


@dataclass
class Synced:
    """What a sync has done.

    Attributes:
        chains: Chains of the study; of those in bundles their cells, where these are sent
            (`tracking.bundles`), as in all counts here.
        cells: How many of them are cells.
        complete: Chains of which nothing is left to send, ever: all generations are there, or the last one
            diverged.
        chains_sent: Chains of which something was sent, once for each tracker.
        generations_sent: Generations that were sent, once for each tracker.
        means_due: Cells of which all chains are complete, and the means not yet sent.
        errors: Chain to why it could not be sent, in the last pass over it.
        busy: Chains that another process is sending.
        view: Address at which a tracker shows the study as a whole.
        view_missing: Why there is none, where one was asked for; changes nothing of the exit code.
        stopped: A signal ended it.
        wall_s: Seconds.
    """

    chains: int
    cells: int = 0
    complete: int = 0
    chains_sent: int = 0
    generations_sent: int = 0
    means_due: int = 0
    errors: dict[str, str] = field(default_factory=dict)
    busy: list[str] = field(default_factory=list)
    view: str = ""
    view_missing: str = ""
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
        InputError: ``tracking.wandb`` is ``disabled``, or W&B not installed, and no other tracker is named.
    """
    if not prepared.study.base.tracking.names:
        if prepared.study.base.tracking.without:
            raise InputError(NO_WANDB)
        message = (
            "found disabled, so nothing may be sent; allowed for sync: offline, online (or --set "
            "tracking.wandb=offline), or other trackers (tracking.trackers)"
        )
        raise prepared.study.source.error("tracking.wandb", message)


@planning
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
        raise no_store(root)
    base, there = prepared.study.base, (root / "format").exists()
    trackers = open_trackers(base.tracking, Experiment(root, base.experiment).path)
    with contextlib.ExitStack() as stack:
        for tracker in trackers:
            stack.enter_context(tracker.working(there))
            tracker.connect()
        return _watch(prepared, root, trackers, stop, every_s, say)


def _watch(
    prepared: Prepared,
    root: Path,
    trackers: Sequence[Tracker],
    stop: Stop,
    every_s: float | None,
    say: Callable[[str], None],
) -> Synced:
    started, items = time.monotonic(), mirrored(prepared)
    total = Synced(len(items), sum(item.kind == "cell" for item in items))
    while True:
        if (root / "format").exists():
            _Pass(prepared, root, trackers, stop, say, total).run()
        total.wall_s = round(time.monotonic() - started, 3)
        left = total.complete < total.chains or total.means_due or total.errors or total.busy
        if every_s is None or stop.is_set() or not left:
            total.stopped = stop.is_set()
            return total
        stop.wait(every_s)


class _Pass:
    """One look at every chain."""

    def __init__(
        self,
        prepared: Prepared,
        root: Path,
        trackers: Sequence[Tracker],
        stop: Stop,
        say: Callable[[str], None],
        total: Synced,
    ) -> None:
        store = Store.read(root)
        self.prepared, self.store, self.trackers = prepared, store, trackers
        self.stop, self.say, self.total = stop, say, total
        self.views = Views(prepared, store)
        self.gave_up = self.sent = False

    def run(self) -> None:
        before, self.total.errors, self.total.busy = self.total.errors, {}, []
        for tracker in self.trackers:
            self._tell(tracker)
            new = self.sent or not self.total.view
            if tracker.shows and new and not (self.gave_up or self.stop.is_set()):
                self._show(tracker)
        self.total.complete = sum(
            all(self._asked(tracker.is_complete, item) for tracker in self.trackers)
            for item in mirrored(self.prepared)
        )
        self.total.means_due = sum(len(self._due(tracker)) for tracker in self.trackers)
        for chain, reason in self.total.errors.items():
            if before.get(chain) != reason:
                self.say(f"{chain}: {reason}")

    def _tell(self, tracker: Tracker) -> None:
        self.gave_up = self.sent = False
        todo = [item for item in mirrored(self.prepared) if self._asked(tracker.is_due, item)]
        if not (todo or self._due(tracker)):
            return
        with self._leases() as leases:
            busy = self._send(todo, tracker, leases)
            deadline = time.monotonic() + patience_s(leases)
            while busy and not self.gave_up and time.monotonic() < deadline and not self.stop.wait(1.0):
                busy = self._send(busy, tracker, leases)
            due = self._due(tracker)
            # What has made their chains whole may have come since this pass began.
            self.views = Views(self.prepared, Store.read(self.store.root))
            busy += self._send(due, tracker, leases, means=True)
        self.total.busy += [item.id for item in busy]

    def _asked(self, question: Callable[[Views, Mirrored], bool], item: Mirrored) -> bool:
        """What a tracker says of a chain; of one that is damaged, no, and the others are not kept back."""
        try:
            return question(self.views, item)
        except DamagedError as error:
            self.total.errors[item.id] = str(error)
            return False

    def _show(self, tracker: Tracker) -> None:
        """Let the tracker show the study as a whole; a failure is one line, and no failure of the sync."""
        told, self.total.view_missing = self.total.view_missing, ""
        try:
            with self._leases() as leases, held(leases, self.prepared.study.base.experiment, "view"):
                self.total.view = tracker.show(self.views) or self.total.view
        except BusyError:  # whoever holds it makes the same
            return
        except Exception as error:
            self.total.view_missing = str(error) if isinstance(error, HarnessError) else tracker.reason(error)
            if self.total.view_missing != told:
                self.say(self.total.view_missing)

    @contextlib.contextmanager
    def _leases(self) -> Iterator[Leases]:
        study = self.prepared.study
        root = Store.open(self.store.root).root
        with own_leases(root, study.lease_s, {"experiment": study.base.experiment, "sync": True}) as leases:
            yield leases

    def _due(self, tracker: Tracker) -> list[Mirrored]:
        """Cells of which all chains have been sent as a whole, and the means have not.

        Means go to the last generation that any chain has: chains may end early, and all of them.
        """
        found = []
        for cell in aggregates(self.prepared) if tracker.means else ():
            chains = [of_chain(chain) for chain in cell.chains]
            known = len(tracker.told(cell.id))
            if known > cell.generations or known >= max(len(tracker.told(chain.id)) for chain in chains):
                continue
            if all(self._asked(tracker.is_complete, chain) for chain in chains):
                found.append(cell)
        return found

    def _send(
        self, items: Sequence[Mirrored], tracker: Tracker, leases: Leases, means: bool = False
    ) -> list[Mirrored]:
        """Send chains, or means over chains that are sent, one after another.

        Returns:
            Those that other processes hold.
        """
        busy: list[Mirrored] = []
        done = failures = 0
        for item in items:
            if self.stop.is_set() or self.gave_up:
                break
            try:
                with held(leases, self.prepared.study.base.experiment, item.id):
                    generations = tracker.send(self.views.view(item))
            except BusyError:
                busy.append(item)
                continue
            except Exception as error:  # one chain that cannot be sent must not keep the others back
                told = self.total.errors.get(item.id)
                self.total.errors[item.id] = (f"{told}; " if told else "") + tracker.reason(error)
                failures += 1
                if failures == MAX_FAILURES:
                    self.say(
                        f"{_counted(failures, items)} in a row could not be sent; the rest is left for later"
                    )
                    self.gave_up = True
                continue
            failures, done, self.sent = 0, done + 1, True
            if not means:
                self.total.chains_sent += generations > 0
                self.total.generations_sent += generations
                if done % PROGRESS_CHAINS == 0 or done == len(items):
                    self.say(f"sent {done} of {_counted(len(items), items)}")
        return busy


def _counted(number: int, items: Sequence[Mirrored]) -> str:
    """So many of some items, in words: chains, cells, or both."""
    kinds = sorted({item.kind for item in items}, reverse=True)
    return counted(number, *(kinds if len(kinds) == 1 else BOTH))


def describe(done: Synced) -> str:
    """What a sync has done, in one line; in another the address of the saved view, where there is one."""
    what = ["chain"] if done.cells == 0 else ["cell"] if done.cells == done.chains else BOTH
    text = (
        f"{counted(done.generations_sent, 'generation')} of {counted(done.chains_sent, *what)} sent, "
        f"{done.complete} of {counted(done.chains, *what)} complete"
    )
    if done.errors:
        text += f", {len(done.errors)} could not be sent"
    if done.busy:
        text += f", {len(done.busy)} are being sent by another process: run the command again"
    text += "; stopped early" if done.stopped else ""
    return text + (f"\nsaved view: {done.view}" if done.view else "")
