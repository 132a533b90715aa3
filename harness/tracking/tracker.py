"""What runs and syncs ask of a tracker; whose it is, and how it is told, they do not know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.components import TRACKERS
from harness.config.schema import Tracking
from harness.errors import PluginError, reason_of
from harness.registry import named
from harness.tracking.runs import ChainView

if TYPE_CHECKING:
    from harness.tracking.views import Mirrored, Views

NO_WANDB = (
    "W&B is not installed here, so it is told nothing; pip install 'model-collapse-harness[wandb]', or say "
    "tracking.wandb: disabled"
)


class Tracker(ABC):
    """One tracker of one experiment.

    Attributes:
        means: Whether it is told, besides chains that have runs of their own, of the means over them.
        shows: Whether it can show a study as a whole (`show`).
    """

    means: ClassVar[bool] = False
    shows: ClassVar[bool] = False

    def __init__(self, name: str, tracking: Tracking, experiment: Path) -> None:
        """Touch nothing yet.

        Args:
            name: Its name.
            tracking: The section.
            experiment: The experiment's folder.
        """
        self.name, self.tracking, self.experiment = name, tracking, experiment

    def working(self, there: bool = True) -> AbstractContextManager[object]:
        """A block in which it is told of chains; ``there`` is whether there is a store yet."""
        return nullcontext()

    def connect(self) -> None:
        """Get ready to send.

        Raises:
            InputError: Nobody is logged in.
            HarnessError: The server does not answer.
        """
        return

    def tell(self, view: ChainView) -> list[str]:
        """Tell it of a chain while its study runs; returns what went wrong, in lines.

        Only for who holds the chain's lease.
        """
        try:
            self.write(view)
        except Exception as error:  # a tracker must never stop a chain, whatever it raises
            return [f"{view.chain}: {self.reason(error)}"]
        except SystemExit as error:
            return [f"{view.chain}: tracker {self.name}: SystemExit: {error}"]
        return []

    @abstractmethod
    def write(self, view: ChainView) -> None:
        """Put down a chain that is complete, unless all of it is there."""

    @abstractmethod
    def send(self, view: ChainView) -> int:
        """Send what it has not been sent of a chain; returns the number of generations."""

    @abstractmethod
    def told(self, chain: str) -> list[str]:
        """The keys of the evaluations that it has been told of."""

    @abstractmethod
    def is_due(self, views: Views, item: Mirrored) -> bool:
        """Whether there is something to send of an item."""

    @abstractmethod
    def is_complete(self, views: Views, item: Mirrored) -> bool:
        """Whether nothing of an item is left to send, now or later."""

    def show(self, views: Views) -> str:
        """Show a study in one place, as far as the tracker has been told of it.

        Returns:
            Its address; empty where it has been told nothing.

        Raises:
            HarnessError: It could not be made, which changes nothing of what was told.
        """
        return ""

    def reason(self, error: Exception) -> str:
        """What went wrong, in a line without secrets."""
        said = reason_of(error)
        return said if isinstance(error, PluginError) else f"{type(error).__name__}: {said}"


def open_trackers(tracking: Tracking, experiment: Path) -> list[Tracker]:
    """The trackers that a study asks for."""
    return [named(TRACKERS[name].tracker, Tracker)(name, tracking, experiment) for name in tracking.names]
