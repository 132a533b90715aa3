"""Curation: filters that a corpus passes through when it is read; the raw corpus stays as it was sampled."""

from harness.curation.filters import Judge, accepted, first_accepted, undetected

__all__ = ["Judge", "accepted", "first_accepted", "undetected"]
