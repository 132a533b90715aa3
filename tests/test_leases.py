"""Leases: one live holder of a key at any time, whatever the interleaving; a dead owner's work is taken
over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from harness.store.leases import Lease, Leases, Owner, View, bury

KEYS = ("a", "b")
PROCESSES = (0, 1, 2)
LEASE_S = 10.0


class Protocol(RuleBasedStateMachine):
    """Processes look, take and release in any order; they beat, sleep, die and come back, each with a clock
    that starts elsewhere.

    A holder that beats within its lease time keeps its right to a key; one that sleeps longer loses it,
    though it need not know.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.clocks = {p: 1000.0 * p for p in PROCESSES}
        self.views: dict[int, dict[str, tuple[View, bool]]] = {p: {} for p in PROCESSES}
        self.leases = {p: self.process(p) for p in PROCESSES}
        self.holds: dict[int, dict[str, Lease]] = {p: {} for p in PROCESSES}
        self.rights: set[tuple[int, str]] = set()
        self.idle = dict.fromkeys(PROCESSES, 0.0)
        self.finished: set[str] = set()

    def process(self, p: int) -> Leases:
        return Leases(self.root, Owner(self.root / "leases" / "owners", LEASE_S), lambda: self.clocks[p])

    def teardown(self) -> None:
        self.folder.cleanup()

    def beats(self, p: int) -> None:
        owner = self.leases[p].owner
        assert owner is not None
        owner.beat()
        self.idle[p] = 0.0

    @rule(p=st.sampled_from(PROCESSES), key=st.sampled_from(KEYS))
    def look(self, p: int, key: str) -> None:
        view = self.leases[p].look(key)
        self.views[p][key] = (view, self.leases[p].held(view))

    @rule(p=st.sampled_from(PROCESSES), key=st.sampled_from(KEYS))
    def take(self, p: int, key: str) -> None:
        """Act on a view that may be as old as anything."""
        view, held = self.views[p].get(key, (None, True))
        if view is None or held or key in self.holds[p] or key in self.finished:
            return
        lease = self.leases[p].take(key, view)
        if lease is not None:
            self.beats(p)
            self.holds[p][key] = lease
            self.rights.add((p, key))

    @rule(p=st.sampled_from(PROCESSES), key=st.sampled_from(KEYS), finished=st.booleans())
    def release(self, p: int, key: str, finished: bool) -> None:
        if key in self.holds[p]:
            self.leases[p].release(self.holds[p].pop(key), finished)
            self.rights.discard((p, key))
            if finished:
                self.finished.add(key)

    @rule(p=st.sampled_from(PROCESSES))
    def beat(self, p: int) -> None:
        self.beats(p)

    @rule(seconds=st.integers(1, 30), awake=st.sets(st.sampled_from(PROCESSES)))
    def time_passes(self, seconds: int, awake: set[int]) -> None:
        for p in PROCESSES:
            self.clocks[p] += seconds
            self.idle[p] += seconds
            if self.idle[p] >= LEASE_S:
                self.rights -= {(p, key) for key in KEYS}
        for p in awake:
            self.beats(p)

    @rule(p=st.sampled_from(PROCESSES))
    def die_and_come_back(self, p: int) -> None:
        """Without a trace: the old counter stands still for ever."""
        self.leases[p] = self.process(p)
        self.holds[p], self.views[p], self.idle[p] = {}, {}, 0.0
        self.rights -= {(p, key) for key in KEYS}

    @rule(p=st.sampled_from(PROCESSES), key=st.sampled_from(KEYS))
    def what_nobody_works_on_can_be_had(self, p: int, key: str) -> None:
        if key in self.finished or any(key in held for held in self.holds.values()):
            return
        leases = self.leases[p]
        if leases.held(leases.look(key)):
            self.time_passes(5, set(PROCESSES))
            self.time_passes(5, set(PROCESSES))
        lease = leases.acquire(key)
        assert lease is not None
        leases.release(lease, finished=False)

    @invariant()
    def a_key_has_one_owner_and_who_beats_in_time_keeps_it(self) -> None:
        for key in set(KEYS) - self.finished:
            told = [
                p for p in PROCESSES if key in self.holds[p] and not self.leases[p].lost(self.holds[p][key])
            ]
            entitled = [p for p in PROCESSES if (p, key) in self.rights]
            assert len(told) <= 1 and len(entitled) <= 1 and set(entitled) <= set(told)


TestProtocol = Protocol.TestCase
TestProtocol.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def leases(root: Path, lease_s: float = 60.0, **options: object) -> Leases:
    return Leases(root, Owner(root / "leases" / "owners", lease_s), **options)


def test_a_key_that_has_come_again_is_not_ones_own(tmp_path: Path) -> None:
    """While a process sleeps others may finish a key's work, and begin with its first epoch again."""
    for finished in (True, False):
        root = tmp_path / str(finished)
        slow, quick, next_one = (Leases(root, Owner(root / "leases" / "owners", LEASE_S)) for _ in range(3))
        lease = slow.acquire("a")
        assert lease is not None and slow.owner is not None and not slow.lost(lease)
        bury(root / "leases" / "owners", slow.owner.id)
        taken = quick.acquire("a")
        assert taken is not None and slow.lost(lease)
        quick.release(taken, finished=True)
        assert slow.lost(lease)
        again = next_one.acquire("a")
        assert again is not None and again.epoch == lease.epoch
        assert slow.lost(lease) and not next_one.lost(again)
        slow.release(lease, finished)
        assert not next_one.lost(again) and quick.acquire("a") is None


def test_a_lease_is_had_by_one_and_given_back(tmp_path: Path) -> None:
    first, second = leases(tmp_path), leases(tmp_path)
    lease = first.acquire("k", {"generation": 3})
    assert lease is not None and second.acquire("k") is None
    assert second.look("k").about == {"generation": 3} and second.held(second.look("k"))
    first.release(lease, finished=False)
    taken = second.acquire("k")
    assert taken is not None and first.lost(lease) and not second.lost(taken)
    second.release(taken, finished=True)
    assert not (tmp_path / "leases" / "k").exists() and [
        path.name for path in (tmp_path / "leases").iterdir()
    ] == ["owners"]


def test_a_stale_counter_is_measured_on_the_observers_clock(tmp_path: Path) -> None:
    now = [5.0]
    owner, observer = leases(tmp_path, 10.0), leases(tmp_path, clock=lambda: now[0])
    assert owner.acquire("k") is not None
    assert observer.acquire("k") is None
    now[0] += 9.9
    assert observer.acquire("k") is None
    assert owner.owner is not None
    owner.owner.beat()
    now[0] += 0.2
    assert observer.acquire("k") is None, "the counter has moved, so the time starts again"
    now[0] += 10.0
    assert observer.acquire("k") is not None


def test_what_one_observer_has_seen_another_need_not_wait_for(tmp_path: Path) -> None:
    """A gang believes its coordinator; an owner that has moved since is watched anew."""
    clock = [0.0]
    owner = Owner(tmp_path / "leases" / "owners", LEASE_S)
    path = tmp_path / "leases" / "owners" / f"{owner.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
    assert Leases(tmp_path, owner).acquire("a")
    coordinator, gang, late = (Leases(tmp_path, None, lambda: clock[0]) for _ in range(3))
    assert coordinator.held(coordinator.look("a")) and not coordinator.watch.silent()
    clock[0] += LEASE_S
    assert not coordinator.held(coordinator.look("a"))
    silent = coordinator.watch.silent()
    assert silent.keys() == {owner.id}
    gang.watch.believe(silent)
    assert not gang.held(gang.look("a")), "at once, and not after the lease time once more"
    owner.beat()
    late.watch.believe(silent)
    assert late.held(late.look("a")), "it was only paused"


def test_who_is_buried_or_closes_is_free_at_once(tmp_path: Path) -> None:
    first, second, third = leases(tmp_path), leases(tmp_path), leases(tmp_path)
    assert first.owner is not None and second.owner is not None
    assert first.acquire("a") and second.acquire("b")
    bury(tmp_path / "leases" / "owners", first.owner.id)
    second.owner.close()
    assert third.acquire("a") and third.acquire("b")


def test_a_process_of_this_machine_that_is_gone_is_dead_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from harness.store.leases import Leases, Owner; root = "
        "Path(sys.argv[1]);Leases(root, Owner(root / 'leases' / 'owners', 3600)).acquire('k'); print('held', "
        "flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    mine = leases(tmp_path)
    assert mine.acquire("k") is None
    os.kill(process.pid, signal.SIGSTOP)
    assert mine.acquire("k") is None, "a stopped process is alive; only its lease time tells"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert mine.acquire("k") is not None


def _contend(root: str, worker: int, rounds: int) -> None:
    mine = leases(Path(root), 30.0)
    assert mine.owner is not None
    mine.owner.start()
    for number in range(rounds):
        key = f"k{number}"
        while not Path(root, "done", key).exists():
            lease = mine.acquire(key)
            if lease is None:
                time.sleep(0.0005)
                continue
            if not Path(root, "done", key).exists():
                inside = os.open(f"{root}/inside-{key}", os.O_CREAT | os.O_EXCL)  # fails if two are here
                with open(f"{root}/log", "a") as log:
                    log.write(json.dumps([key, worker]) + "\n")
                os.close(inside)
                os.unlink(f"{root}/inside-{key}")
                if (number + worker) % 3:
                    Path(root, "done", key).touch()
            mine.release(lease, finished=Path(root, "done", key).exists())
    mine.owner.close()


def test_real_processes_never_meet_on_a_key(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_contend, args=(str(tmp_path), worker, 60)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    entries = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {key for key, _ in entries} == {f"k{number}" for number in range(60)} and len(
        {worker for _, worker in entries}
    ) > 1
    late = leases(tmp_path)
    assert not any(late.held(view) for _, view in late.keys())


def test_a_beat_needs_no_space_and_survives_its_folder(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "owners", 0.3).start()
    before = (tmp_path / "owners" / f"{owner.id}.beat").stat()
    deadline = time.monotonic() + 10
    while (after := (tmp_path / "owners" / f"{owner.id}.beat").stat()).st_mtime_ns == before.st_mtime_ns:
        assert time.monotonic() < deadline, "it does not beat"
    assert (
        after.st_size == before.st_size == 20
        and after.st_ino == before.st_ino
        and after.st_mtime_ns > before.st_mtime_ns
    )
    owner.close()
    assert [path.suffix for path in (tmp_path / "owners").iterdir()] == [".dead"]
