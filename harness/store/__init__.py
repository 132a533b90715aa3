"""The store: committed results on disk, the only state that outlives a process."""

from harness.store.corpora import Corpora
from harness.store.experiment import Experiment
from harness.store.leases import Lease, Leases, Owner, own_leases
from harness.store.store import Store
from harness.store.work import Workplace

__all__ = ["Corpora", "Experiment", "Lease", "Leases", "Owner", "Store", "Workplace", "own_leases"]
