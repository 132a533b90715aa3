"""A run inside a SLURM job, and the jobs of an experiment as people see them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness import terminal
from harness.cli.tables import print_rows

if TYPE_CHECKING:
    from harness.coordinator.cluster import RayPlace
    from harness.coordinator.summary import RunSummary
    from harness.launch.jobs import ArrayTask
    from harness.study import Prepared

JOIN_S = 180.0
"""How long a job waits for its nodes' Rays: a shared file system that is busy makes Python start slowly."""


class JobRun:
    """This run as the work of a SLURM job."""

    def __init__(self, prepared: Prepared, root: Path) -> None:
        """Look where this is.

        Raises:
            InputError: Not in an allocation.
        """
        from harness.launch.allocation import read_allocation
        from harness.launch.jobs import run_folder
        from harness.ray_access import LOOPBACK, MODE, PATH, TOKEN, VALUE
        from harness.store import Experiment

        self.allocation = read_allocation(os.environ)
        self.root, self.owners = root, root / "leases" / "owners"
        self.folder = run_folder(Experiment(root, prepared.study.base.experiment).path, self.allocation.job)
        alone = LOOPBACK if len(self.allocation.nodes) == 1 else {}
        os.environ.pop(VALUE, None)
        os.environ |= {
            MODE: "token",
            PATH: str(self.folder / TOKEN),
            **alone,
            "HARNESS_INCARNATION": self.allocation.incarnation,
        }

    @contextlib.contextmanager
    def place(self, stopped: Callable[[], bool]) -> Iterator[RayPlace]:
        """Ray on all nodes of the allocation; ``stopped`` says when to wait for it no longer."""
        from harness.coordinator.cluster import RayPlace
        from harness.launch.allocation import bury_ended_jobs, ray_in_allocation
        from harness.launch.slurm import Slurm
        from harness.store import Store

        # before this run's own folders stand in it: what is not empty is not made a store
        Store.open(self.root)
        bury_ended_jobs(self.owners, self.allocation, Slurm())
        with ray_in_allocation(self.allocation, self.folder, stopped) as ray:
            nodes = len(self.allocation.nodes)
            yield RayPlace(
                ray.address,
                nodes,
                sum(self.allocation.cpus),
                nodes * self.allocation.gpus,
                JOIN_S,
                ray.trouble,
            )

    def ended(self, summary: RunSummary) -> None:
        """Write down how the run ended.

        The process that decides about the job reads it, and `harness status`.
        """
        from harness.coordinator.summary import IDLE
        from harness.launch.jobs import write_outcome

        reason = "idle" if summary.reason == IDLE else "stopped" if summary.stopped else "done"
        complete = terminal.counted(summary.chains_complete, "chain")
        counts = f"{complete} complete, {summary.chains_failed} failed"
        because = f"; {summary.reason or 'stopped with work left'}" if summary.stopped else ""
        write_outcome(self.folder, reason, counts + because)


def find_jobs(experiment: Path) -> tuple[list[ArrayTask], str]:
    """The experiment's jobs, and why SLURM could not be asked, if it could not."""
    from harness.launch import jobs
    from harness.launch.slurm import Slurm, SlurmError

    slurm: Slurm = Slurm()
    try:
        return jobs.tasks(experiment, slurm), ""
    except SlurmError as error:
        return [], str(error)


def print_jobs(found: Sequence[ArrayTask], problem: str) -> None:
    """Jobs as a table for people."""
    if problem:
        terminal.show(f"jobs: unknown ({problem})")
    if not found:
        return
    rows = [(task.job, task.state.lower(), str(task.requeues), task.detail) for task in found]
    print_rows(("job", "state", "requeued", ""), rows)
