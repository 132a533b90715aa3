"""Inside a SLURM job: what SLURM gave, and a private Ray on all of it.

Ray is started the classic way, one ``srun ... ray start --block`` a node. The job has its own port, token and
short folder, so jobs that share a node do not meet; sizes are SLURM's, never the machine's. Whether Ray is up
is judged by what it offers (the caller counts that), and whether work is done by the store: ``srun`` may
return 0 although a node has failed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import GangError, InputError
from harness.launch.processes import die_with_parent
from harness.launch.slurm import Slurm, SlurmError
from harness.ray_access import LOOPBACK_ADDRESS, TOKEN, write_token
from harness.terminal import shown

TMP_VARIABLE, TMP = "HARNESS_TMP", "/tmp"
"""Where every node's folder of the job is made, and where it is unless the site says otherwise."""
LONGEST_TMP = 36
"""Ray adds some 60 characters to its folder for its sockets, and a socket's path may have 107 bytes."""
FIRST_PORT, PORTS = 20000, 10000
HEAD_WAIT_S = 60.0
END_WAIT_S = 15.0
LINGER_SHARE = 0.6
"""Share of SLURM's KillWait for which Ray stays up after SIGTERM, so that ranks can save."""


SHAPED_BY = (
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_NTASKS_PER_CORE",
    "SLURM_NTASKS_PER_SOCKET",
    "SLURM_NTASKS_PER_GPU",
    "SLURM_TASKS_PER_NODE",
    "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK",
    "SLURM_CPUS_PER_GPU",
    "SLURM_GPUS_PER_TASK",
    "SLURM_GPUS_PER_SOCKET",
    "SLURM_TRES_PER_TASK",
    "SLURM_GPU_BIND",
    "SLURM_CPU_BIND",
    "SLURM_DISTRIBUTION",
    "SLURM_HINT",
    "SLURM_THREADS_PER_CORE",
    "SLURM_CORE_SPEC",
    "SLURM_ARBITRARY",
    "SLURM_HOSTFILE",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
)
"""What a job's shape tells srun by the environment; one task a node is asked for here whatever the job's
shape."""


@dataclass(frozen=True)
class Allocation:
    """What SLURM gave to this job.

    Attributes:
        job: Its id, ``12`` or ``12_3`` for a task of an array.
        job_id: The id that SLURM uses for this allocation alone.
        cluster: The cluster's name.
        nodes: Names of its nodes; this process runs on the first.
        cpus: CPUs on each node, in the same order.
        gpus: GPUs on each node.
        memory: Bytes on each node; 0 where SLURM sets no limit.
        restarts: How often SLURM has requeued it.
    """

    job: str
    job_id: str
    cluster: str
    nodes: tuple[str, ...]
    cpus: tuple[int, ...]
    gpus: int
    memory: int
    restarts: int

    @property
    def incarnation(self) -> str:
        """Names this run of the job.

        An earlier one with the same name has certainly ended (see `harness.store.leases`).
        """
        return f"{self.cluster}.{self.job}/{self.restarts}"

    @property
    def tmp(self) -> Path:
        """Ray's folder on every node.

        Another one for every run of the job, so that clearing up after one never meets the next.
        """
        return Path(os.environ.get(TMP_VARIABLE) or TMP) / f"h{self.job_id}-{self.restarts}"


def read_allocation(
    environment: Mapping[str, str], hostnames: Callable[[str], list[str]] | None = None
) -> Allocation:
    """The allocation that this process runs in.

    Args:
        environment: As SLURM sets it.
        hostnames: From SLURM's list of nodes to names; asks ``scontrol`` when absent.

    Raises:
        InputError: This is no allocation.
    """
    listed = environment.get("SLURM_JOB_NODELIST")
    if not listed or "SLURM_JOB_ID" not in environment:
        raise InputError(
            "--slurm: this is not inside a SLURM allocation (SLURM_JOB_NODELIST is not set); use harness "
            "submit, or salloc"
        )
    nodes = tuple((hostnames or _hostnames)(listed))
    here = environment.get("SLURMD_NODENAME", "")
    if here != nodes[0]:
        raise InputError(
            f"--slurm: this is {f'node {here}' if here else 'no node'} of the allocation, but its first node "
            f"({nodes[0]}) is where a run starts; go there: srun -N1 -n1 -w {nodes[0]} --overlap --pty bash"
        )
    cpus = _expand(environment.get("SLURM_JOB_CPUS_PER_NODE", str(environment.get("SLURM_CPUS_ON_NODE", 1))))
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    per_node, per_cpu = environment.get("SLURM_MEM_PER_NODE"), environment.get("SLURM_MEM_PER_CPU")
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    per_gpu = environment.get("SLURM_MEM_PER_GPU")
    memory = (
        int(per_node)
        if per_node
        else int(per_cpu) * min(cpus)
        if per_cpu
        else int(per_gpu) * gpus
        if per_gpu
        else 0
    )
    job_id = environment["SLURM_JOB_ID"]
    return Allocation(
        f"{array}_{task}" if array and task else job_id,
        job_id,
        environment.get("SLURM_CLUSTER_NAME", "slurm"),
        nodes,
        tuple(cpus) if len(cpus) == len(nodes) else (min(cpus),) * len(nodes),
        gpus,
        memory * 2**20,
        int(environment.get("SLURM_RESTART_COUNT") or 0),
    )


def _expand(counts: str) -> list[int]:
    """SLURM's ``4(x2),8`` as 4, 4, 8."""
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", counts)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def _hostnames(listed: str) -> list[str]:
    done = subprocess.run(
        ["scontrol", "show", "hostnames", listed], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode != 0:
        raise InputError(
            f"--slurm: scontrol cannot read the node list {shown(listed)}: {done.stderr.strip()}"
        )
    return done.stdout.split()


def kill_wait(timeout_s: float = 20.0) -> float:
    """Seconds between SLURM's SIGTERM and its SIGKILL (KillWait).

    SLURM's default where it does not answer.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=timeout_s, check=False
        )
        found = re.search(r"^KillWait\s*=\s*(\d+)", done.stdout, re.MULTILINE)
        if found:
            return float(found[1])
    return 30.0


class RayInAllocation:
    """A private Ray on all nodes of an allocation.

    Attributes:
        address: HOST:PORT of its head.
    """

    def __init__(self, allocation: Allocation, folder: Path, stopped: Callable[[], bool]) -> None:
        """Start the head; returns when it listens. The environment names the token's file already.

        Args:
            allocation: Where.
            folder: The job's folder on the shared file system.
            stopped: Says when to wait no longer.

        Raises:
            InputError: A folder for Ray's sockets would have too long a name.
            GangError: The head does not come up, or not before the stop.
        """
        if len(str(allocation.tmp)) > LONGEST_TMP:
            raise InputError(
                f"{allocation.tmp}: more than {LONGEST_TMP} characters, too long for Ray's sockets"
            )
        self.allocation, self.folder = allocation, folder
        folder.mkdir(parents=True, exist_ok=True)
        write_token(folder / TOKEN)
        self._linger = LINGER_SHARE * kill_wait()
        self._steps: dict[str, subprocess.Popen[bytes]] = {}
        host = _own_address(allocation.nodes)
        self.address = f"{host}:{_free_port(int(allocation.job_id), host)}"
        try:
            self._start(0)
            self._await_head(stopped)
            for index in range(1, len(allocation.nodes)):
                self._start(index)
        except BaseException:
            self.close()
            raise

    def _start(self, index: int) -> None:
        allocation, name = self.allocation, self.allocation.nodes[index]
        log = self.folder / f"ray-{name}.log"
        # With --export, since a job may have been submitted to export nothing.
        step = [
            "srun",
            "--overlap",
            "--exact",
            "-N1",
            "-n1",
            f"-c{allocation.cpus[index]}",
            "-w",
            name,
            "--job-name=ray",
        ]
        step.append("--export=ALL")
        if allocation.gpus:
            step.append(f"--gpus-per-node={allocation.gpus}")
        agent = ["--head", self.address, "--tmp", allocation.tmp, "--cpus", allocation.cpus[index]]
        agent += ["--gpus", allocation.gpus, "--memory", allocation.memory, "--linger", self._linger]
        if index == 0:
            agent.append("--is-head")
        command = [*step, sys.executable, "-P", "-m", "harness.launch.node", *map(str, agent)]
        # An srun that is killed leaves its step running; one that is terminated ends it.
        tie = functools.partial(die_with_parent, signal.SIGTERM)
        # SLURM makes the folder that TMPDIR names on every node, and leaves it there.
        environment = {key: value for key, value in os.environ.items() if key not in (*SHAPED_BY, "TMPDIR")}
        with open(log, "ab") as output:
            self._steps[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=tie,
                env=environment,
            )

    def _await_head(self, stopped: Callable[[], bool]) -> None:
        host, _, port = self.address.rpartition(":")
        deadline = time.monotonic() + HEAD_WAIT_S
        while time.monotonic() < deadline:
            if trouble := self.trouble():
                raise GangError(trouble)
            if stopped():
                raise GangError("stopped before Ray's head listened")
            with contextlib.suppress(OSError):
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            time.sleep(0.1)
        raise GangError(
            f"Ray's head on {self.allocation.nodes[0]} does not listen after {HEAD_WAIT_S:.0f} "
            f"s{self._said(0)}"
        )

    def trouble(self) -> str:
        """Which node's Ray has ended, with the last line of its log; empty while all run."""
        for index, name in enumerate(self.allocation.nodes):
            step = self._steps.get(name)
            if step is not None and step.poll() is not None:
                return f"Ray on {name} ended (srun: {step.returncode}){self._said(index)}"
        return ""

    def _said(self, index: int) -> str:
        log = self.folder / f"ray-{self.allocation.nodes[index]}.log"
        lines = (
            [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            if log.exists()
            else []
        )
        return f": {lines[-1].strip()} (log: {log})" if lines else f" (log: {log})"

    def close(self) -> None:
        """End Ray on all nodes; returns when the nodes are clear, or do not answer."""
        # srun hands SIGUSR2 on, so that every node can clean up; at SIGTERM it would have the step killed.
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + END_WAIT_S
            for step in self._steps.values():
                if step.poll() is None:
                    step.send_signal(number)
            for step in self._steps.values():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    step.wait(max(0.1, deadline - time.monotonic()))
        (self.folder / TOKEN).unlink(missing_ok=True)


def _own_address(nodes: tuple[str, ...]) -> str:
    """This node's address, as the other nodes reach it."""
    if len(nodes) > 1:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
            way.connect((nodes[1], 9))
            return str(way.getsockname()[0])
    if len(nodes) == 1:
        return LOOPBACK_ADDRESS
    with contextlib.suppress(OSError):
        return socket.gethostbyname(nodes[0])
    return LOOPBACK_ADDRESS


def _free_port(job_id: int, host: str) -> int:
    """A port that is free now.

    Where to look first depends on the job, so jobs on one node do not race for one.
    """
    for attempt in range(200):
        port = FIRST_PORT + (job_id * 7 + attempt * 131) % PORTS
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((host, port))
            return port
    raise GangError(f"no free port between {FIRST_PORT} and {FIRST_PORT + PORTS} on {host}")


def bury_ended_jobs(owners: Path, allocation: Allocation, slurm: Slurm) -> int:
    """Free what jobs held that SLURM says are over.

    Nobody waits then for leases that only their death has left.

    Args:
        owners: ``leases/owners/`` of the store.
        allocation: This job; owners of other clusters are nobody's business here.
        slurm: Asked once, and only where owners of other jobs are there.

    Returns:
        How many owners were buried.
    """
    # Here, for the store's libraries are no business of a job's own process, or of the doctor's on each node.
    from harness.store.leases import bury, incarnations

    others = {}
    for owner, found in incarnations(owners).items():
        cluster, _, job = found.name.rpartition(".")
        # Only this user's jobs: SLURM may hide those of others, and what it does not show is not over.
        if cluster == allocation.cluster and job != allocation.job and found.user == os.getuid():
            others[owner] = job
    if not others:
        return 0
    try:
        running = slurm.running()
    except SlurmError:
        return 0  # they will be found dead by their silence
    ended = [owner for owner, job in others.items() if job not in running]
    for owner in ended:
        bury(owners, owner)
    return len(ended)


@contextlib.contextmanager
def ray_in_allocation(
    allocation: Allocation, folder: Path, stopped: Callable[[], bool]
) -> Iterator[RayInAllocation]:
    """`RayInAllocation` for the time of a run."""
    ray = RayInAllocation(allocation, folder, stopped)
    try:
        yield ray
    finally:
        ray.close()
