"""The wish that a run ends early."""

from __future__ import annotations

import time

STEP_S = 0.05


class Stop:
    """Set where a run is to save its work and end.

    A plain flag: a signal handler sets it, and must not need a lock.

    Attributes:
        at_once: End without saving; the checkpoints that there are stand.
    """

    def __init__(self) -> None:
        """A wish to stop that nobody has yet."""
        self.at_once = self._set = False

    def set(self) -> None:
        """Ask for the stop."""
        self._set = True

    def is_set(self) -> bool:
        """Whether somebody has asked for the stop."""
        return self._set

    def wait(self, timeout: float) -> bool:
        """Wait until somebody does, at most so many seconds."""
        deadline = time.monotonic() + timeout
        while not self._set and time.monotonic() < deadline:
            time.sleep(STEP_S)
        return self._set
