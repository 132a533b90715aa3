"""The recursive algorithm: for every generation build the training set, fit, sample, evaluate, commit.

`run_branch` is the same under every engine, on a laptop and on a cluster. Everything it needs it asks the
store for, and what the store lacks is computed first, so it goes on wherever an earlier process stopped:
inside a fit from its checkpoint, inside a sampling from its shards, inside an evaluation from its pieces.
What is being computed is leased, so that others on the same store wait for it or do something else.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.chain.branch import BranchRun
from harness.chain.plan import Busy, End, Observer, Plan, Site
from harness.learners.protocol import Stopped
from harness.records import Status
from harness.science import Node
from harness.turn import turn

__all__ = ["Busy", "End", "Observer", "Plan", "Site", "run_branch"]


def run_branch(plan: Plan, site: Site) -> End:
    """Run a branch of the lineage, generation by generation.

    Args:
        plan: The branch: what is computed.
        site: Where, and with what.
    """
    branch = BranchRun(plan, site)
    try:
        for key in plan.order:
            node = plan.nodes[key]
            if not branch.complete(node):
                with branch.context.claim(node.evaluation, node):
                    branch.context.check_stop()
                    branch.context.measure_anew()
                    # whoever had the lease may have finished it after the first look
                    if not branch.complete(node):
                        turn(_Steps(branch, node))
            if branch.status(node) == "diverged":
                return End("diverged")
    except Busy as busy:
        return End("busy", busy.key)
    except Stopped:
        return End("stopped")
    return End("ok")


@dataclass(frozen=True)
class _Steps:
    """The steps of a node; each returns at once where the store has its result."""

    branch: BranchRun
    node: Node

    def fit(self) -> Status:
        return self.branch.fit(self.node)

    def sample(self) -> None:
        self.branch.sample(self.node, self.branch.plan.examples[self.node.corpus])

    def evaluate(self, status: Status) -> None:
        self.branch.evaluate(self.node, status)
