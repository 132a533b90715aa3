"""A SLURM of several machines on this one: real daemons, each machine a set of namespaces.

A machine is a process tree with its own network, processes, mounts, host name and /tmp; the PID 1 of its
process namespace is a shell that reaps orphans, and to kill it is to cut the machine's power: processes,
network and /tmp are gone at once. The machines hang on a bridge inside the controller's network namespace, so
nothing can leave it. Needs root (namespaces) and the packages slurm-wlm, munge and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked_worker

ROOT = Path(__file__).parents[1]
NET = "10.78.0"
LOGIN = ("PATH", "HOME", "LANG", "CI")
"""What a login has of the environment of the tests: libraries that these have loaded leave settings of their
own in it."""
NEEDED = ("slurmctld", "slurmd", "munged", "unshare", "nsenter", "ip")

WORKERS = "/tmp/workers"
"""Where each machine has the server from which ranks are forked (`forked_worker`)."""
SERVE = " ".join([sys.executable, forked_worker.__file__, "--serve", f"{WORKERS}/s"])
RANKS = {
    "PYTHONPATH": os.pathsep.join([str(ROOT / "tests" / "forked_ranks"), str(ROOT)]),
    forked_worker.SOCKET: f"{WORKERS}/s",
}
"""What makes a job take its ranks from there."""

PATIENCE = 4
"""Waits are given for a machine that does nothing else; other tests run beside these, and are as slow."""

INIT = """
name=$1; ip=$2; base=$3; shift 3
hostname "$name"
mount --make-rprivate /
if [ "$name" != login ]; then
    mkdir -p "$base/mnt/$name"
    mount -t tmpfs -o mode=1777 tmpfs "$base/mnt/$name"
    for folder in "$@"; do
        mkdir -p "$base/mnt/$name/${folder#/tmp/}"
        mount --bind "$folder" "$base/mnt/$name/${folder#/tmp/}"
    done
    mount --rbind "$base/mnt/$name" /tmp
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
fi
mount --bind "$base/etc/hosts" /etc/hosts
ip link set lo up
if [ "$name" = login ]; then
    ip link add br0 type bridge && ip addr add "$ip/24" dev br0 && ip link set br0 up
fi
touch "$base/run/$name.up"
while [ ! -e "$base/run/$name.net" ]; do sleep 0.05; done
cd /
if [ "$name" = login ]; then
    munged --key-file="$base/etc/munge.key" --socket="$base/run/munge.socket" \\
        --pid-file="$base/run/munged.pid" --seed-file="$base/run/munged.seed" \\
        --log-file="$base/log/munged.log"
    slurmctld -D >>"$base/log/slurmctld.out" 2>&1 &
else
    mkdir "$workers"
    mkfifo "$workers/alive"
    env TMPDIR="$workers" $libraries $serve <>"$workers/alive" >>"$base/log/$name.workers" 2>&1
    slurmd -D -N "$name" >>"$base/log/$name.out" 2>&1 &
fi
trap 'exit 0' TERM
while :; do sleep 3600 & wait; done
"""

CONF = """
ClusterName=lab
SlurmctldHost=login({net}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.socket
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=8
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
MinJobAge=3600
DefMemPerCPU=500
NodeName=n[1-{nodes}] CPUs={cpus} SocketsPerBoard=1 CoresPerSocket={cpus} RealMemory={memory} Gres=gpu:{gpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=grace Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=short Nodes=ALL MaxTime=10 DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=physics Nodes=ALL MaxTime=INFINITE DefaultTime=60 PriorityTier=10 PreemptMode=OFF \\
    AllowAccounts=physics
"""


def missing_programs() -> list[str]:
    """What this machine lacks for a cluster."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return lacking if os.geteuid() == 0 else [*lacking, "root"]


def login_environment() -> dict[str, str]:
    """What `LOGIN` names."""
    return {key: os.environ[key] for key in LOGIN if key in os.environ}


@dataclass
class Cluster:
    """A login node and machines n1 to nN; everything outside /tmp is their shared file system.

    Attributes:
        base: Its files; not under /tmp, which every machine has for itself.
        nodes: Machines.
        cpus: Of each, as SLURM is told.
        memory: MiB of each, as SLURM is told.
        gpus: Of each: device files without a device, which SLURM counts and hands out.
        shared: Folders under /tmp that all machines share.
    """

    base: Path
    nodes: int = 3
    cpus: int = 4
    memory: int = 8000
    gpus: int = 2
    shared: Sequence[Path] = ()

    def up(self) -> Cluster:
        """Boot; returns when all machines are idle."""
        assert not str(self.base).startswith("/tmp/")
        for name in ("etc", "run", "log", "state", "spool", "mnt", "dev"):
            (self.base / name).mkdir(parents=True)
        etc = self.base / "etc"
        (etc / "munge.key").write_bytes(os.urandom(128))
        (etc / "munge.key").chmod(0o400)
        machines = [f"{NET}.1 login", *(f"{NET}.{10 + i} n{i}" for i in range(1, self.nodes + 1))]
        (etc / "hosts").write_text("\n".join(["127.0.0.1 localhost", *machines]) + "\n")
        for number in range(self.gpus):
            os.mknod(self.base / "dev" / f"gpu{number}", 0o20666, os.makedev(1, 3))
        (etc / "plugstack.conf").touch()
        (etc / "cgroup.conf").write_text("CgroupAutomount=no\n")
        devices = (
            f"NodeName=n[1-{self.nodes}] Name=gpu File={self.base}/dev/gpu[0-{self.gpus - 1}]\n"
            if self.gpus
            else ""
        )
        (etc / "gres.conf").write_text("AutoDetect=off\n" + devices)
        values = {
            "net": NET,
            "base": self.base,
            "nodes": self.nodes,
            "cpus": self.cpus,
            "memory": self.memory,
            "gpus": self.gpus,
        }
        (etc / "slurm.conf").write_text(CONF.format(**values))
        self.boot("login")
        for number in range(1, self.nodes + 1):
            self.boot(f"n{number}")
        self.wait(lambda: self.idle() == self.nodes, 120, "machines that are idle")
        return self

    def boot(self, name: str) -> None:
        """Switch a machine on."""
        run = self.base / "run"
        for suffix in ("up", "net", "pid"):
            (run / f"{name}.{suffix}").unlink(missing_ok=True)
        address = f"{NET}.1" if name == "login" else f"{NET}.{10 + int(name[1:])}"
        flags = ["--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command = [
            "unshare",
            *flags,
            "bash",
            "-c",
            INIT,
            "init",
            name,
            address,
            str(self.base),
            *map(str, self.shared),
        ]
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        settings = login_environment() | {"PYTHONPATH": RANKS["PYTHONPATH"]}
        environment = {
            "PATH": path,
            "SLURM_CONF": str(self.base / "etc" / "slurm.conf"),
            "HOME": os.environ.get("HOME", "/"),
            "workers": WORKERS,
            "serve": SERVE,
            "libraries": " ".join(f"{key}={value}" for key, value in settings.items()),
        }
        with open(self.base / "log" / f"{name}.init", "ab") as log:
            outer = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self.wait((run / f"{name}.up").exists, 60, f"machine {name}")
        pid = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()[0])
        (run / f"{name}.pid").write_text(str(pid))
        if name != "login":
            login = self._unplug(name)
            link = (
                f"ip link add v-{name} type veth peer name eth0 netns {pid} && ip link set v-{name} master "
                "br0 up"
            )
            subprocess.run([*login, "sh", "-c", link], check=True)
            # Always the same hardware address, as a real machine has: its peers remember it, and would talk
            # to nobody for a while.
            hardware = f"02:00:00:00:00:{10 + int(name[1:]):02x}"
            inner = (
                f"ip link set eth0 address {hardware} && ip addr add {address}/24 dev eth0 && ip link set "
                "eth0 up"
            )
            subprocess.run(["nsenter", "-t", str(pid), "-n", "sh", "-c", inner], check=True)
        (run / f"{name}.net").touch()

    def _unplug(self, name: str) -> list[str]:
        """Take a machine off the network, if it is on; returns how to run a command in the controller's
        network."""
        login = ["nsenter", "-t", str(self.pid("login")), "-n"]
        subprocess.run([*login, "ip", "link", "del", f"v-{name}"], capture_output=True, check=False)
        return login

    def pid(self, name: str) -> int:
        """A machine's PID 1, as this machine numbers it."""
        return int((self.base / "run" / f"{name}.pid").read_text())

    def poweroff(self, name: str) -> None:
        """Cut a machine's power: first its network, for a machine without power does not say goodbye to its
        peers."""
        self._unplug(name)
        os.kill(self.pid(name), 9)
        (self.base / "run" / f"{name}.pid").unlink()

    def down(self) -> None:
        """Cut all power."""
        for path in sorted((self.base / "run").glob("*.pid")):
            if path.stem == "login" or path.stem[1:].isdigit():
                try:
                    os.kill(int(path.read_text()), 9)
                except ProcessLookupError:
                    pass
        time.sleep(0.2)

    # --- to work on it --------------------------------------------------------------------------------------

    def on(
        self,
        name: str,
        *command: object,
        check: bool = True,
        timeout: float = 120,
        cwd: Path | None = None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a machine, past SLURM."""
        enter = [
            "nsenter",
            "-t",
            str(self.pid(name)),
            "-m",
            "-u",
            "-i",
            "-n",
            "-p",
            f"-w{cwd or self.base}",
            "--",
        ]
        settings = {**login_environment(), "SLURM_CONF": str(self.base / "etc" / "slurm.conf"), **environment}
        done = subprocess.run(
            [*enter, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=settings,
            check=False,
        )
        assert not check or done.returncode == 0, (
            f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def login(self, *command: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node."""
        return self.on("login", *command, **options)

    def harness(
        self, *arguments: object, check: bool = False, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the harness on the login node."""
        return self.login(sys.executable, "-m", "harness", *arguments, check=check, **RANKS | options)

    def idle(self) -> int:
        """How many machines are idle."""
        done = self.login("sinfo", "-h", "-p", "main", "-t", "idle", "-o", "%D", check=False)
        return int(done.stdout.strip() or 0) if done.returncode == 0 else 0

    def jobs(self) -> dict[str, str]:
        """All jobs' states, finished ones too, by id (``12`` or ``12_0``)."""

        def asked() -> subprocess.CompletedProcess[str] | None:
            done = self.login("squeue", "-h", "-t", "all", "-r", "-o", "%i %T", check=False)
            return done if done.returncode == 0 else None  # the controller may be too busy for the moment

        lines = self.wait(asked, 60, "answer of squeue").stdout.split("\n")
        return dict(line.split() for line in lines if line.strip())

    def wait(
        self, condition: Callable[[], Any], timeout: float, what: str, patience: float = PATIENCE
    ) -> Any:
        """Wait until something holds, ``patience`` times the seconds at most; returns its value."""
        timeout *= patience
        deadline = time.monotonic() + timeout
        while True:
            asked = time.monotonic()
            if value := condition():
                return value
            answered = time.monotonic()
            if answered > deadline:
                raise TimeoutError(f"no {what} within {timeout:.0f} s; logs are in {self.base}/log")
            # What asks SLURM starts processes, which others wait for: a fifth of the time is enough for that.
            time.sleep(min(max(0.1, 4 * (answered - asked)), 1.0))

    def wait_job(self, job: str, *states: str, timeout: float = 120) -> str:
        """Wait for a state of a job; a job that ends in another one is an error."""
        final = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL"}

        def reached() -> str:
            state = self.jobs().get(job, "")
            wrong = state in final and state not in states
            assert not wrong, (
                f"job {job} is {state}, not {' or '.join(states)}; its log ends:\n{self.log(job)}"
            )
            return state if state in states else ""

        found: str = self.wait(reached, timeout, f"job {job} in {' or '.join(states)}")
        return found

    def log(self, job: str) -> str:
        """The end of a job's log."""
        shown = self.login("scontrol", "-o", "show", "job", job, check=False).stdout
        path = next((Path(part[7:]) for part in shown.split() if part.startswith("StdOut=")), None)
        return path.read_text(errors="replace")[-2000:] if path is not None and path.is_file() else "(none)"

    def now(self, job: str) -> None:
        """SLURM holds a requeued job back for two minutes; start it a moment after it is queued again.

        Not at once: messages about its earlier run may still be on their way, and would be taken for news of
        the next one.
        """
        update = ("scontrol", "update", f"jobid={job}", "StartTime=now")
        machines = [path.stem for path in (self.base / "run").glob("n*.pid")]
        self.wait(lambda: self.jobs().get(job) == "PENDING", 60, f"job {job} that waits")
        self.wait(
            lambda: not any(self.on(name, "pgrep", "slurmstepd", check=False).stdout for name in machines),
            60,
            "quiet",
        )
        time.sleep(3.0)
        self.wait(
            lambda: not self.login(*update, check=False).returncode or self.jobs()[job] != "PENDING",
            60,
            "update",
        )

    def processes(self, name: str) -> list[str]:
        """Command lines on a machine, less those of the machine itself."""
        lines = self.on(name, "ps", "-eo", "args", "--no-headers").stdout.splitlines()
        lines.remove(SERVE)  # the server, and not what it has forked
        own = ("bash -c", "slurmd", "slurmctld", "munged", "sleep 3600", "ps -eo", "/usr/sbin/slurm")
        return [
            line
            for line in lines
            if line.strip() and not line.startswith(own) and "slurmstepd: " not in line[:12]
        ]

    def leftovers(self, name: str) -> list[str]:
        """What jobs have left on a machine: processes, shared memory, temporary files."""
        shared = {str(path).removeprefix("/tmp/").split("/")[0] for path in (*self.shared, WORKERS)}
        found = [f"process {line}" for line in self.processes(name)]
        for folder in ("/dev/shm", "/tmp"):
            names = self.on(name, "ls", "-A", folder).stdout.split()
            found += [f"{folder}/{entry}" for entry in names if folder != "/tmp" or entry not in shared]
        return found
