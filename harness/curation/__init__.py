"""Which examples a generation trains on: filters, detectors, and how a training set is built."""

from harness.curation.filters import Judge, accepted, first_accepted, undetected
from harness.curation.training import Chosen, Sources, gather, judge_of, taught, training_examples

__all__ = [
    "Chosen",
    "Judge",
    "Sources",
    "accepted",
    "first_accepted",
    "gather",
    "judge_of",
    "taught",
    "training_examples",
    "undetected",
]
