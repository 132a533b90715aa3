"""Learners: families of models that can be fitted, sampled and scored."""

from harness.learners.base import Learner, Ranks, SoloRanks, make_learner

__all__ = ["Learner", "Ranks", "SoloRanks", "make_learner"]
