"""Which examples a generation trains on: filters, detectors, and how a training set is built."""

from harness.curation.filters import Judge, accepted, first_accepted, undetected
from harness.curation.training import Sources, taught, training_examples

__all__ = ["Judge", "Sources", "accepted", "first_accepted", "taught", "training_examples", "undetected"]
