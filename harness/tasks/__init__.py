"""Tasks: prompts whose completions a program can check, and what judges say of them."""

from harness.tasks.checking import Checker
from harness.tasks.problem import Problem, Verdict

__all__ = ["Checker", "Problem", "Verdict"]
