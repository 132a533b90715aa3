"""SLURM itself: its programs, its controller, its partitions, and the settings that matter to a study."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from harness.launch.doctor.checks import Check, graded
from harness.launch.slurm import NoClusterError, Slurm, SlurmError

PROGRAMS = ("sbatch", "squeue", "scontrol", "sinfo", "srun", "scancel")
ANSWER_S = 15.0
SHORT_KILL_S = 10
"""A shorter time between SIGTERM and SIGKILL may not do for a checkpoint."""


def scontrol(*arguments: str) -> str:
    """What SLURM's controller says.

    Raises:
        SlurmError: It does not answer.
    """
    return Slurm().call("scontrol", *arguments, again=False, limit_s=ANSWER_S)


def expand(nodes: str) -> list[str]:
    """The names in a list of SLURM's, such as ``n[1-3,7]`` (errors as `scontrol`)."""
    return scontrol("show", "hostnames", nodes).split()


def examine() -> list[Check]:
    """Everything about SLURM that can be seen from here."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if len(missing) == len(PROGRAMS):
        return [graded("slurm", "not a SLURM machine")]
    if missing:
        return [graded("slurm", "", [f"missing programs: {', '.join(missing)}"])]
    try:
        ping, found = scontrol("ping"), scontrol("show", "config")
        partitions = scontrol("-o", "show", "partition")
    except NoClusterError:
        here = "not a SLURM machine: its programs are here, but nothing says where its controller is"
        return [graded("slurm", here)]
    except SlurmError as error:
        return [graded("slurm", "", [f"the controller does not answer: {error}"])]
    config, primary = settings(found), [line for line in ping.splitlines() if "(primary)" in line]
    version, cluster = config.get("SLURM_VERSION", "of unknown version"), config.get("ClusterName", "?")
    down = [line.strip() for line in primary if not line.rstrip().endswith("UP")]
    answers = graded("slurm", f"SLURM {version}, controller of cluster {cluster} answers", [], down)
    return [answers, judge_partitions(partitions), *judge_settings(config, partitions)]


def settings(text: str) -> dict[str, str]:
    """What ``scontrol show config`` prints, by name."""
    lines = re.finditer(r"^([A-Za-z_]+)\s*= (.*)$", text, re.MULTILINE)
    return {line[1]: line[2].strip() for line in lines}


def _partitions(text: str) -> list[dict[str, str]]:
    """What ``scontrol -o show partition`` prints: one a line."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [dict(part.split("=", 1) for part in line if "=" in part) for line in lines]


def judge_partitions(text: str) -> Check:
    """The partitions that are up, with their limits (from ``scontrol -o show partition``)."""
    said = [
        f"{p['PartitionName']} ({p['TotalNodes']} nodes, {p['TotalCPUs']} CPUs, up to {p['MaxTime']})"
        for p in _partitions(text)
        if p.get("State") == "UP"
    ]
    return graded("partitions", ", ".join(said), [] if said else ["no partition is up"])


def judge_settings(config: Mapping[str, str], partitions: str) -> list[Check]:
    """The settings that decide whether a job can save, go on, and leave nothing behind.

    Args:
        config: What ``scontrol show config`` says.
        partitions: What ``scontrol -o show partition`` prints.
    """
    tracking = config.get("ProctrackType", "")
    processes, loose = f"ProctrackType={tracking}", "daemons that a job has started can outlive it"
    kill = re.match(r"\d+", config.get("KillWait", ""))
    wait_s = int(kill[0]) if kill else 0
    short = f"{wait_s} s from SIGTERM to SIGKILL (KillWait): a checkpoint may not be done by then"
    requeue = config.get("JobRequeue", "1")
    again, lost = "a job is queued again after its node has failed", "it is not queued again"
    return [
        _setting("slurm processes", processes, tracking == "proctrack/cgroup", f"{processes}: {loose}"),
        _setting("slurm time limit", f"KillWait={wait_s} s", wait_s >= SHORT_KILL_S, short),
        _preemption(config, _partitions(partitions)),
        _setting("slurm requeue", f"JobRequeue={requeue}: {again}", requeue == "1", f"JobRequeue=0: {lost}"),
    ]


def _setting(name: str, found: str, well: bool, otherwise: str) -> Check:
    return graded(name, found if well else "", [], [] if well else [otherwise])


def _preemption(config: Mapping[str, str], partitions: list[dict[str, str]]) -> Check:
    """Whether jobs are preempted, and hear of it first."""
    modes = {line["PartitionName"]: line.get("PreemptMode", "OFF").split(",") for line in partitions}
    preempting = sorted(name for name, mode in modes.items() if not set(mode) & {"OFF", "DISABLED"})
    mode = f"PreemptMode={config.get('PreemptMode', 'OFF')}"
    if config.get("PreemptType", "preempt/none") == "preempt/none" or not preempting:
        return graded("slurm preemption", f"{mode}; no partition is preempted")
    told = "preempt_send_user_signal" in config.get("SlurmctldParameters", "")
    names, cancelled = ", ".join(preempting), [name for name in preempting if "CANCEL" in modes[name]]
    wrong = [] if told else [f"jobs in {names} are preempted without the signal that they asked for"]
    if cancelled:
        wrong.append(f"preempted jobs in {', '.join(cancelled)} are cancelled, not queued again")
    heard = ", and hear of it first" if told else ""
    return graded("slurm preemption", f"{mode}; jobs in {names} can be preempted{heard}", [], wrong)
