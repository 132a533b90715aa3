"""Tasks: prompts whose completions a program can check, and what judges say of them."""

from harness.tasks.base import Problem, Verdict
from harness.tasks.checking import Checker

__all__ = ["Checker", "Problem", "Verdict"]
