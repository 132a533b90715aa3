"""The recursive algorithm for cheap learners: many chains at once, each as it would be alone.

The same steps as `harness.chain`: training set, fit, sample, evaluate; the corpora stay in memory and are not
kept. Chains of one cell go through them together, as the first axis of every array.
"""

from harness.bundle.job import CellJob
from harness.bundle.unit import Again, Lesson, Unit, provenance, run_unit

__all__ = ["Again", "CellJob", "Lesson", "Unit", "provenance", "run_unit"]
