"""The store: committed results on disk, the only state that outlives a process."""

from harness.store.corpora import Corpora
from harness.store.experiment import Experiment
from harness.store.store import Store

__all__ = ["Corpora", "Experiment", "Store"]
