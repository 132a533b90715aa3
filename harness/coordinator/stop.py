"""The wish that a run ends early."""

from __future__ import annotations

import threading


class Stop(threading.Event):
    """Set where a run is to save its work and end.

    Attributes:
        at_once: End without saving; the checkpoints that there are stand.
    """

    at_once = False
