"""SLURM itself: its programs, its controller, its partitions, and the settings that matter to a study."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from harness.launch.doctor.checks import Check, ChildError, graded, ok, run

PROGRAMS = ("sbatch", "squeue", "scontrol", "sinfo", "srun", "scancel")
ANSWER_S = 15.0
SHORT_KILL_S = 10
"""A shorter time between SIGTERM and SIGKILL may not do for a checkpoint."""


def examine() -> list[Check]:
    """Everything about SLURM that can be seen from here."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if len(missing) == len(PROGRAMS):
        return [ok("slurm", "not a SLURM machine")]
    remedy = "ask those who run the cluster; `harness run` works without SLURM"
    if missing:
        return [Check("slurm", "failure", f"missing programs: {', '.join(missing)}", remedy)]
    try:
        ping, found = run(["scontrol", "ping"], ANSWER_S), run(["scontrol", "show", "config"], ANSWER_S)
        partitions = run(["scontrol", "-o", "show", "partition"], ANSWER_S)
    except ChildError as error:
        if "configuration source" in str(error):
            return [
                ok(
                    "slurm",
                    "not a SLURM machine: its programs are here, but nothing says where its controller is",
                )
            ]
        return [Check("slurm", "failure", f"the controller does not answer: {error}", remedy)]
    config = settings(found)
    down = [
        line.strip() for line in ping.splitlines() if "(primary)" in line and not line.rstrip().endswith("UP")
    ]
    text = (
        f"SLURM {config.get('SLURM_VERSION', 'of unknown version')}, controller of cluster "
        f"{config.get('ClusterName', '?')} answers"
    )
    return [
        graded("slurm", text, [], down, remedy=remedy),
        judge_partitions(partitions),
        *judge_settings(config, partitions),
    ]


def settings(text: str) -> dict[str, str]:
    """What ``scontrol show config`` prints, by name."""
    return {
        match[1]: match[2].strip() for match in re.finditer(r"^([A-Za-z_]+)\s*= (.*)$", text, re.MULTILINE)
    }


def _lines(text: str) -> list[dict[str, str]]:
    return [
        dict(part.split("=", 1) for part in line.split() if "=" in part)
        for line in text.splitlines()
        if line.strip()
    ]


def judge_partitions(text: str) -> Check:
    """The partitions, with their limits.

    Args:
        text: What ``scontrol -o show partition`` prints.
    """
    up = [line for line in _lines(text) if line.get("State") == "UP"]
    said = [
        f"{line['PartitionName']} ({line['TotalNodes']} nodes, {line['TotalCPUs']} CPUs, up to "
        f"{line['MaxTime']})"
        for line in up
    ]
    none = [] if up else ["no partition is up"]
    return graded(
        "partitions", ", ".join(said), none, remedy="wait, or ask those who run the cluster (`sinfo`)"
    )


def judge_settings(config: Mapping[str, str], partitions: str) -> list[Check]:
    """The settings that decide whether a job can save, go on, and leave nothing behind.

    Args:
        config: What ``scontrol show config`` says.
        partitions: What ``scontrol -o show partition`` prints.
    """
    checks = []
    tracking = config.get("ProctrackType", "")
    loose = (
        []
        if tracking == "proctrack/cgroup"
        else [f"ProctrackType={tracking}: daemons that a job has started can outlive it"]
    )
    advice = (
        "the harness ends its own Ray; after a crash look with `ps` on the nodes, or ask for proctrack/cgroup"
    )
    checks.append(
        graded("slurm processes", "" if loose else f"ProctrackType={tracking}", [], loose, remedy=advice)
    )

    kill = re.match(r"\d+", config.get("KillWait", ""))
    wait_s = int(kill[0]) if kill else 0
    short = (
        [f"{wait_s} s from SIGTERM to SIGKILL (KillWait): a checkpoint may not be done by then"]
        if wait_s < SHORT_KILL_S
        else []
    )
    advice = "have the job signalled earlier (--signal=B:USR1@N); resources.checkpoint_s bounds what is lost"
    checks.append(
        graded("slurm time limit", "" if short else f"KillWait={wait_s} s", [], short, remedy=advice)
    )

    modes = {line["PartitionName"]: line.get("PreemptMode", "OFF").split(",") for line in _lines(partitions)}
    preempting = sorted(name for name, mode in modes.items() if not set(mode) & {"OFF", "DISABLED"})
    mode = config.get("PreemptMode", "OFF")
    if config.get("PreemptType", "preempt/none") == "preempt/none" or not preempting:
        checks.append(ok("slurm preemption", f"PreemptMode={mode}; no partition is preempted"))
    else:
        told = "preempt_send_user_signal" in config.get("SlurmctldParameters", "")
        silent = (
            []
            if told
            else [f"jobs in {', '.join(preempting)} are preempted without the signal that they asked for"]
        )
        cancelled = sorted(name for name in preempting if "CANCEL" in modes[name])
        silent += (
            [f"preempted jobs in {', '.join(cancelled)} are cancelled, not queued again"] if cancelled else []
        )
        text = f"PreemptMode={mode}; jobs in {', '.join(preempting)} can be preempted" + (
            ", and hear of it first" if told else ""
        )
        advice = (
            "what was committed stays; submit again, or ask for SlurmctldParameters=preempt_send_user_signal "
            "and a GraceTime"
        )
        checks.append(graded("slurm preemption", text, [], silent, remedy=advice))

    requeue = config.get("JobRequeue", "1")
    text = f"JobRequeue={requeue}: " + (
        "a job is queued again after its node has failed" if requeue == "1" else "needs --requeue"
    )
    lost = ["jobs are not queued again after their node has failed"] if requeue != "1" else []
    checks.append(graded("slurm requeue", text, [], lost, remedy="submit with --requeue"))
    return checks


def expand(nodes: str) -> list[str]:
    """The names in a list of SLURM's, such as ``n[1-3,7]``.

    Raises:
        ChildError: SLURM cannot say.
    """
    return run(["scontrol", "show", "hostnames", nodes], ANSWER_S).split()
