"""Leases: who computes what, on nothing but a shared POSIX file system.

A lease is a file ``leases/<key>/<epoch>`` that names its owner; the highest epoch counts. To take a key is to
create the next epoch with ``link``, which fails where another process was first, so it is a compare-and-swap
that needs neither locks nor a clock that machines share. Epochs are never taken back while a key is worked on
(a key that is given back gets an epoch without owner), so a process that acts on an old view of the folder
always fails.

An owner proves that it lives by a counter that it raises (``leases/owners/<id>.beat``). An observer that has
seen the counter stand still for the owner's ``lease_s``, by the observer's own clock, takes the lease to be
stale. On the same machine a process that no longer exists is known to be dead at once, and so are earlier
runs of the job that the observer is part of.

Leases only save work. That one commit of a key survives is the commit's doing (`Store.commit`), so an owner
that was paused for longer than its lease and wakes up does no harm.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.files import write_json
from harness.proc import start_of

BEATS_PER_LEASE = 6
"""How often an owner shows that it lives in the time after which it counts as dead."""


@functools.cache
def _machine() -> str:
    """The running kernel and process namespace: within them a process id means one process."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    return ""


def _incarnation() -> tuple[str, int] | None:
    """The job that this process is part of, and the number of its run.

    ``$HARNESS_INCARNATION`` says so (``cluster.12_3/1``).

    Whoever starts a job again has ended its earlier runs first, so what they held is free for the later ones
    at once.
    """
    name, separator, count = os.environ.get("HARNESS_INCARNATION", "").rpartition("/")
    return (name, int(count)) if separator and count.isdigit() else None


@dataclass(frozen=True)
class View:
    """What a process saw of a key.

    Attributes:
        epoch: The highest epoch; 0 where there is none.
        owner: Who holds it; None where nobody does.
        about: What the owner said about its work.
    """

    epoch: int
    owner: str | None
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Lease:
    """The right to work on a key."""

    key: str
    epoch: int


def new_owner_id() -> str:
    """A name that nobody else has."""
    return f"{socket.gethostname().split('.')[0]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Owner:
    """One process that may hold leases; its counter goes up while it lives."""

    def __init__(
        self,
        folder: Path,
        lease_s: float = 60.0,
        about: Mapping[str, Any] | None = None,
        identity: str | None = None,
    ) -> None:
        """Make the owner known; nothing beats yet (`start`).

        Args:
            folder: ``leases/owners/``.
            lease_s: Others take this owner for dead when its counter has stood still for this many seconds.
            about: For people who look: experiment, gang.
            identity: A name that nobody else has; made up where it is not given.
        """
        self.id = identity or new_owner_id()
        self.lease_s, self._folder, self._count = lease_s, folder, 0
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.id}.beat").write_text(f"{0:020d}")
        who = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
            "start": start_of(os.getpid()),
        }
        job = {"incarnation": list(found), "user": os.getuid()} if (found := _incarnation()) else {}
        write_json(folder / f"{self.id}.json", {**who, **job, "lease_s": lease_s, "about": dict(about or {})})

    def beat(self) -> None:
        """Raise the counter, in place: it must also work on a disk that is full."""
        with self._lock:
            self._count += 1
            descriptor = os.open(self._folder / f"{self.id}.beat", os.O_WRONLY)
            try:
                os.pwrite(descriptor, f"{self._count:020d}".encode(), 0)
            finally:
                os.close(descriptor)

    def start(self) -> Owner:
        """Beat in a thread from now on."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="lease-beat", daemon=True)
            self._thread.start()
        return self

    def _work(self) -> None:
        while not self._end.wait(self.lease_s / BEATS_PER_LEASE):
            with contextlib.suppress(OSError):
                self.beat()

    def close(self) -> None:
        """End the beats and remove what made the owner known.

        Whatever it still held is free for others at once.
        """
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        bury(self._folder, self.id)


def bury(folder: Path, owner: str) -> None:
    """Declare an owner dead, by somebody who knows: its leases are free from now on."""
    with contextlib.suppress(OSError):
        (folder / f"{owner}.dead").touch()
    for suffix in (".beat", ".json"):
        with contextlib.suppress(OSError):
            (folder / f"{owner}{suffix}").unlink()


@dataclass(frozen=True)
class Incarnation:
    """The job that an owner is part of.

    Attributes:
        name: Cluster and job, as ``lab.12_3``.
        run: The number of the job's run.
        user: Whose job it is.
    """

    name: str
    run: int
    user: int


def incarnations(folder: Path) -> dict[str, Incarnation]:
    """The owners that are part of jobs, and are not known to be dead.

    Args:
        folder: ``leases/owners/``.
    """
    found = {}
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(path.read_bytes())
            name, run = known["incarnation"]
            if not (folder / f"{path.stem}.dead").exists():
                found[path.stem] = Incarnation(str(name), int(run), int(known["user"]))
    return found


class Watch:
    """An observer's memory of other owners' counters."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has been seen yet.

        Args:
            folder: ``leases/owners/``.
            clock: Seconds; only differences between this observer's own readings are used.
        """
        self.folder, self._clock = folder, clock
        self._seen: dict[str, tuple[str, float]] = {}
        self._known: dict[str, Mapping[str, Any]] = {}

    def identity(self, owner: str) -> Mapping[str, Any]:
        """What an owner said about itself; empty where its file is gone."""
        if owner not in self._known:
            try:
                self._known[owner] = json.loads((self.folder / f"{owner}.json").read_bytes())
            except (OSError, ValueError):
                return {}
        return self._known[owner]

    def silent(self) -> dict[str, str]:
        """Owners that have not moved for their lease time, with their counters.

        Observers that only begin to watch are told.
        """
        now = self._clock()
        found = ((owner, beat, now - since) for owner, (beat, since) in self._seen.items())
        return {
            owner: beat
            for owner, beat, age in found
            if age >= float(self.identity(owner).get("lease_s", 60.0))
        }

    def believe(self, silent: Mapping[str, str]) -> None:
        """Take over what another observer has seen (`silent`).

        An owner whose counter has moved since is watched anew.
        """
        self._seen |= {owner: (beat, -math.inf) for owner, beat in silent.items()}

    def dead(self, owner: str) -> bool:
        """Whether an owner is dead.

        It certainly is, or it has not moved for its own lease time since this observer first saw it.
        """
        if (self.folder / f"{owner}.dead").exists():
            return True
        identity = self.identity(owner)
        if (
            identity.get("machine")
            and identity["machine"] == _machine()
            and start_of(identity["pid"]) != identity["start"]
        ):
            return True
        job, mine = identity.get("incarnation"), _incarnation()
        if job and mine and job[0] == mine[0] and job[1] < mine[1]:
            return True
        try:
            beat = (self.folder / f"{owner}.beat").read_text()
        except OSError:
            beat = "absent"
        now = self._clock()
        if self._seen.get(owner, ("", 0.0))[0] != beat:
            self._seen[owner] = (beat, now)
            return False
        return now - self._seen[owner][1] >= float(identity.get("lease_s", 60.0))


class Leases:
    """The leases under a root, as one owner sees them; without an owner they can only be looked at."""

    def __init__(self, root: Path, owner: Owner | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Keep the folder.

        Args:
            root: The store's root.
            owner: Who takes leases here.
            clock: See `Watch`.
        """
        self.folder = root / "leases"
        self.owner = owner
        self.watch = Watch(self.folder / "owners", clock)

    def _epochs(self, key: str) -> list[int]:
        try:
            return sorted(int(name) for name in os.listdir(self.folder / key) if name.isdigit())
        except OSError:
            return []

    def look(self, key: str) -> View:
        """The state of a key."""
        while epochs := self._epochs(key):
            try:
                content = json.loads((self.folder / key / f"{epochs[-1]:08d}").read_bytes())
            except (OSError, ValueError):
                if self._epochs(key) == epochs:  # unreadable, and nobody has replaced it: as good as free
                    return View(epochs[-1], None, {})
                continue
            return View(epochs[-1], content["owner"], content["about"])
        return View(0, None, {})

    def held(self, view: View) -> bool:
        """Whether somebody else, who may be alive, holds what was seen."""
        mine = self.owner is not None and view.owner == self.owner.id
        return view.owner is not None and not mine and not self.watch.dead(view.owner)

    def take(self, key: str, view: View, about: Mapping[str, Any] | None = None) -> Lease | None:
        """Take a key on the strength of what was seen of it; None where it has changed since."""
        assert self.owner is not None
        epoch = view.epoch + 1
        return Lease(key, epoch) if self._create(key, epoch, self.owner.id, about or {}) else None

    def acquire(self, key: str, about: Mapping[str, Any] | None = None) -> Lease | None:
        """The lease of a key, or None where somebody who may be alive holds it.

        Args:
            key: The key.
            about: What the work is, for people who look.
        """
        while True:
            view = self.look(key)
            if self.held(view):
                return None
            lease = self.take(key, view, about)
            if lease is not None:
                return lease

    def lost(self, lease: Lease) -> bool:
        """Whether somebody has taken the key over (this process was paused for longer than its lease).

        Who has done so may have finished, and a third one have begun with the first epoch again.
        """
        assert self.owner is not None
        view = self.look(lease.key)
        return view.epoch != lease.epoch or view.owner not in (None, self.owner.id)

    def release(self, lease: Lease, finished: bool) -> None:
        """Give a key back.

        Args:
            lease: What is held.
            finished: The key's work is committed, so the lease's folder goes; else the next epoch is free for
                anybody.
        """
        if self.lost(lease):
            return
        if finished:
            self._remove(lease.key, [epoch for epoch in self._epochs(lease.key) if epoch <= lease.epoch])
        else:
            self._create(lease.key, lease.epoch + 1, None, {})

    def _remove(self, key: str, epochs: Collection[int]) -> None:
        """Remove these epochs of a key, and its folder where nothing else is in it."""
        for epoch in epochs:
            with contextlib.suppress(OSError):
                (self.folder / key / f"{epoch:08d}").unlink()
        with contextlib.suppress(OSError):
            (self.folder / key).rmdir()

    def _create(self, key: str, epoch: int, owner: str | None, about: Mapping[str, Any]) -> bool:
        assert self.owner is not None
        folder = self.folder / key
        temporary = self.folder / "owners" / f"{self.owner.id}-{uuid.uuid4().hex[:8]}.new"
        temporary.write_text(json.dumps({"owner": owner, "about": dict(about)}))
        try:
            while True:
                try:
                    os.link(temporary, folder / f"{epoch:08d}")
                    return True
                except FileNotFoundError:
                    # Two others may make the folder and remove it again while it is made here; then it is
                    # tried again.
                    with contextlib.suppress(FileExistsError):
                        folder.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    # Over NFS a link that was made can be reported as failed when the first answer got lost.
                    return os.stat(temporary).st_nlink > 1
        finally:
            temporary.unlink()

    def forget(self, owners: Collection[str]) -> None:
        """Remove what is known of dead owners that no lease names any more."""
        named = {view.owner for _, view in self.keys()}
        for owner in set(owners) - named:
            for suffix in (".dead", ".beat", ".json"):
                with contextlib.suppress(OSError):
                    (self.watch.folder / f"{owner}{suffix}").unlink()

    def sweep(self, dry_run: bool = False) -> int:
        """Remove leases of dead owners, and what is known of dead owners; returns how many leases that are.

        Only for keys that nobody holds: a process that is about to take one of them fails to, and looks
        again.
        """
        dead = [(key, view.epoch) for key, view in self.keys() if not self.held(view)]
        if not dry_run:
            for key, seen in dead:
                self._remove(key, [epoch for epoch in self._epochs(key) if epoch <= seen])
            known = {
                path.stem
                for path in self.watch.folder.glob("*.*")
                if path.suffix in (".beat", ".dead", ".json")
            }
            self.forget({owner for owner in known if self.watch.dead(owner)})
        return len(dead)

    def keys(self) -> Iterator[tuple[str, View]]:
        """All keys that have a lease, held or not, in order."""
        if self.folder.is_dir():
            for name in sorted(os.listdir(self.folder)):
                if name != "owners" and (self.folder / name).is_dir():
                    yield name, self.look(name)


@contextlib.contextmanager
def own_leases(root: Path, lease_s: float = 60.0, about: Mapping[str, Any] | None = None) -> Iterator[Leases]:
    """The leases under a root as an owner sees them that lives as long as the context.

    What it still holds then is free.

    Args:
        root: The store's root.
        lease_s: See `Owner`.
        about: See `Owner`.
    """
    owner = Owner(root / "leases" / "owners", lease_s, about).start()
    leases = Leases(root, owner)
    try:
        yield leases
    finally:
        owner.close()
        leases.forget([owner.id])
