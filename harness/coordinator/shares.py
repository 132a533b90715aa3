"""The parts of branches that gangs are given at once. Pure, as the scheduler is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.science import Branch

TURN_S = 10.0
"""Estimated seconds of the generations that a gang is given at once, at least: to take up a branch again
takes it a tenth of a second (docs/LOG.md)."""
COMPILED_TURN_S = 100.0
"""The same of compiled fits: a gang that has computed fits of another kind meanwhile takes 4 s to find its
program again."""


def part(branch: Branch, seconds: Mapping[str, float], least: float) -> tuple[str, ...]:
    """The generations of a branch that a gang is given at once: as few as take it so long.

    After them the branch waits in the queue again, by what is left of it. So a long chain does not wait until
    a short one has ended, and gangs are left without work only where fewer chains are left than gangs.

    Args:
        branch: What is left of a branch.
        seconds: What each generation takes; those without an entry are there.
        least: Seconds.
    """
    took = 0.0
    for count, node in enumerate(branch.nodes, 1):
        took += seconds.get(node, 0.0)
        if took >= least:
            return branch.nodes[:count]
    return branch.nodes


class Shares:
    """The parts of branches that gangs are given, and for how long each goes on with those of its shape.

    As long as what it was started or chosen for is estimated to take: whichever branches of its shape it has
    computed meanwhile, another shape then has waited for it as long as without parts.
    """

    def __init__(self, seconds: Mapping[str, float], turns: Mapping[str, float]) -> None:
        """Nothing is given yet.

        Args:
            seconds: What each generation takes; those without an entry are there.
            turns: For how many seconds at least a gang is given a branch, by its id; `TURN_S` of others.
        """
        self._seconds, self._turns = dict(seconds), turns
        self._due: dict[int, float] = {}
        self._amid: set[int] = set()

    def give(self, gang: int, branch: Branch) -> tuple[str, ...]:
        """A gang gets the first generations of what is left of a branch: these."""
        given = part(branch, self._seconds, self._turns.get(branch.id, TURN_S))
        if gang not in self._amid:
            self._due[gang] = self._of(branch.nodes)
        self._amid.discard(gang)
        self._due[gang] -= self._of(given)
        return given

    def end(self, gang: int, given: Iterable[str]) -> None:
        """A gang has ended a part, and not all, of a branch: that is there now."""
        self._seconds |= dict.fromkeys(given, 0.0)
        if self._due[gang] > 0:
            self._amid.add(gang)

    def amid(self, gang: int) -> bool:
        """Whether a gang is idle amid a branch."""
        return gang in self._amid

    def _of(self, nodes: Iterable[str]) -> float:
        return sum(self._seconds.get(node, 0.0) for node in nodes)
