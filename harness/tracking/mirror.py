"""The mirror of one `harness run`.

Chains are queued when they are complete, and one thread is the only writer.

A chain is mirrored when it is complete, all generations in one go, so a run that was killed and continued
sends nothing twice and leaves no half-written offline file behind. A failure here is kept for a warning at
the end; it never reaches the chains.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from harness.errors import reason_of
from harness.store import Lease, Leases
from harness.tracking.runs import ChainView, run_id
from harness.tracking.tracker import Tracker

POLL_S = 0.25


class BusyError(Exception):
    """Another process holds a chain's lease, and is alive."""


@contextmanager
def held(leases: Leases, experiment: str, chain: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lease of a chain's run: coordinators and syncs on one store send it one after another.

    Args:
        leases: The leases of the store.
        experiment: The experiment.
        chain: The chain's id.
        patience_s: How long to wait for another holder; a dead one on another machine is known after its
            lease time.

    Raises:
        BusyError: It is still held.
    """
    key, deadline = f"wandb-{run_id(experiment, chain)}", time.monotonic() + patience_s
    lease: Lease | None
    while (lease := leases.acquire(key)) is None:
        if time.monotonic() >= deadline:
            raise BusyError(f"another process is sending it ({leases.look(key).owner})")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        leases.release(lease, finished=True)


def patience_s(leases: Leases) -> float:
    """Long enough to see that another holder is dead."""
    return 1.2 * leases.owner.lease_s if leases.owner is not None else 0.0


class Mirror:
    """The one writer: chains are queued and mirrored by a thread."""

    def __init__(self, trackers: Sequence[Tracker], leases: Leases) -> None:
        """Start the thread, unless nobody is told of anything.

        Args:
            trackers: Who is told.
            leases: Several processes may want to mirror a chain; one after another does, and finds what was
                done before.
        """
        self.trackers, self.leases = trackers, leases
        self.errors: list[str] = []
        self._mirrored = 0
        self._queue: queue.SimpleQueue[tuple[ChainView, bool] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if self.active:
            self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)
            self._thread.start()

    @property
    def active(self) -> bool:
        """Whether anybody is told of chains."""
        return bool(self.trackers)

    def add(self, view: ChainView, means: bool = False) -> None:
        """Queue a complete chain.

        Args:
            view: The chain, or the means of a cell.
            means: Whether it is the means over chains that were queued too (`Tracker.means`).
        """
        if self._thread is not None:
            self._queue.put((view, means))

    def _work(self) -> None:
        with ExitStack() as stack:
            for tracker in self.trackers:
                stack.enter_context(tracker.working())
            self._take()

    def _take(self) -> None:
        while (item := self._queue.get()) is not None:
            view, means = item
            try:
                with held(self.leases, view.experiment, view.chain, patience_s(self.leases)):
                    for tracker in self.trackers:
                        if tracker.means or not means:
                            self.errors += tracker.tell(view)
            except BaseException as error:  # a tracker must never stop a chain, whatever it raises
                reason = reason_of(error)
                self.errors.append(f"{view.chain}: {type(error).__name__}: {reason}")
            self._mirrored += 1

    def close(self, timeout_s: float = 120.0) -> list[str]:
        """Wait for what is queued, as long as there is progress.

        Args:
            timeout_s: Give up after this long without one more chain.

        Returns:
            What went wrong, one line each.
        """
        if self._thread is not None:
            self._queue.put(None)
            while self._thread.is_alive():
                before = self._mirrored
                self._thread.join(timeout_s)
                if self._thread.is_alive() and self._mirrored == before:
                    self.errors.append(
                        f"the trackers took no chain for {timeout_s:.0f} s; run the command again to send "
                        "the rest"
                    )
                    break
        return self.errors
