"""Learners: families of models that can be fitted, sampled and scored."""

from harness.learners.protocol import Control, Execution, Learner, Ranks, SoloRanks, make_learner

__all__ = ["Control", "Execution", "Learner", "Ranks", "SoloRanks", "make_learner"]
