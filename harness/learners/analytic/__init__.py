"""Learners in closed form, or nearly: families that fit and sample many chains at once."""

from harness.learners.analytic.family import Array, Chains, Family, Parameters, Summary, make_family

__all__ = ["Array", "Chains", "Family", "Parameters", "Summary", "make_family"]
