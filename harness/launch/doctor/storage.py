"""The root of the store.

What leases and commits ask of its file system, on one machine and between machines.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import stat
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from harness.files import PROBE, is_foreign, sync_file
from harness.launch.doctor.checks import Check, above, gib, graded

ROUNDS = 60
"""Names that all machines try to take with `link`, one after another."""
SEEN_LIMIT_S = 30.0
"""A file that other machines do not see for this long does not count as shared."""
SLOW_SEEN_S = 5.0
SKEW_WARNING_S, SKEW_FAILURE_S = 1.0, 30.0
FREE_WARNING, FREE_FAILURE = 10 * 2**30, 2**30
FEW_INODES = 100_000
SLOW_FSYNC_S = 0.2


def root(root: str) -> list[Check]:
    """Whether a store can live at a root; `above`, the nearest folder that there is, is a fact of the check.

    Leaves nothing behind.
    """
    there = above(Path(root))
    first, *others = _root(Path(root), there)
    return [replace(first, facts={"above": str(there)}), *others]


def _root(root: Path, there: Path) -> list[Check]:
    folder, wrong = there / f"{PROBE}{uuid.uuid4().hex}", ""
    if not there.is_dir():
        wrong = f"{there} is not a folder"
    elif there == root and is_foreign(there):
        wrong = f"{root} is not empty and is not a store of the harness"
    else:
        try:
            folder.mkdir()
        except OSError as error:
            wrong = f"{root} cannot be written: {error.strerror}"
    if wrong:
        return [graded("store root", "", [wrong])]
    try:
        calls, fsync_s = _calls(folder)
        group = _judge_group(there, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    state = "there" if there == root else f"not there yet; {there} is"
    found = f"{root} ({state}): link, rename and fsync ({fsync_s * 1e3:.1f} ms) do what a store needs"
    slow = [f"fsync takes {fsync_s * 1e3:.0f} ms, and commits wait for it"] if fsync_s > SLOW_FSYNC_S else []
    return [graded("store root", "" if calls else found, calls, slow), judge_disk(there), *group]


def _judge_group(place: Path, made: Path) -> list[Check]:
    """Where a folder is shared by a group: whether the group could go on with what is made in it."""
    shared, mine = place.stat(), made.stat()
    if not shared.st_mode & stat.S_IWGRP or shared.st_mode & stat.S_IWOTH:
        return []
    wrong, remedies = [], []
    if not mine.st_mode & stat.S_IWGRP:
        wrong.append("the group may write here, but not in what you make: your umask takes that away")
        remedies.append("`umask 0002` here, and `umask: '0002'` in the site file for jobs")
    if mine.st_gid != shared.st_gid:
        wrong.append("what you make belongs to another group")
        remedies.append(f"`chmod g+s {place}`")
    found = "" if wrong else "the group can go on with what you make"
    return [graded("group", found, [], wrong, "; ".join(remedies))]


def _calls(folder: Path) -> tuple[list[str], float]:
    """What does not work of that which leases and commits rest on, and the seconds of a small fsync.

    The best of three: others use the disk too.
    """
    wrong = []
    first, second, name = folder / "first", folder / "second", folder / "name"
    second.write_bytes(b"y")
    fsync_s = min(_flush(first, folder) for _ in range(3))
    try:
        os.link(first, name)
        if os.stat(first).st_nlink != 2:
            wrong.append("a hard link is not counted")
        with contextlib.suppress(FileExistsError):
            os.link(second, name)
            wrong.append("link replaces a name that is taken, so two runs could hold one lease")
    except OSError as error:
        wrong.append(f"there are no hard links ({error.strerror}), which leases are made of")
    for number in (1, 2):
        (folder / f"item{number}").mkdir()
        (folder / f"item{number}" / "content").write_text(str(number))
    os.rename(folder / "item1", folder / "target")
    with contextlib.suppress(OSError):
        os.rename(folder / "item2", folder / "target")
        wrong.append("rename replaces a folder that is not empty, so a commit could be lost")
    return wrong, fsync_s


def _flush(file: Path, folder: Path) -> float:
    """Seconds that it takes to put a small file, and its name, to disk."""
    file.write_bytes(b"x" * 4096)
    started = time.monotonic()
    sync_file(file)
    sync_file(folder)
    return time.monotonic() - started


def judge_disk(place: Path) -> Check:
    """Free space and inodes."""
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    found = f"{gib(usage.free)} of {gib(usage.total)} free"
    little = [f"{gib(usage.free)} are little"] if usage.free < FREE_WARNING else []
    if inodes.f_files:
        found += f", {inodes.f_favail:,} inodes free"
        little += [f"{inodes.f_favail:,} inodes are few"] if inodes.f_favail < FEW_INODES else []
    return graded("disk", found, little if usage.free < FREE_FAILURE else [], little)


# --- between machines ---------------------------------------------------------------------------------------


def meet(folder: str) -> None:
    """Make the folder that the machines meet in."""
    Path(folder).mkdir(parents=True, exist_ok=True)


def look(path: str) -> bool:
    """Whether a file is there: a file system that caches what is not there is asked before it is."""
    return Path(path).exists()


def make(path: str) -> None:
    """Make a file."""
    Path(path).write_text(path)
    sync_file(Path(path))


def see(path: str, patience_s: float) -> float | None:
    """Seconds until a file that another machine has made is seen, with its content; None where it is not."""
    started = time.monotonic()
    while (waited := time.monotonic() - started) < patience_s:
        with contextlib.suppress(OSError):
            if Path(path).read_text() == path:
                return waited
        time.sleep(0.01)
    return None


def race(folder: str, node: str, rounds: int) -> list[bool]:
    """Try to take names that all machines want; which of them this one got."""
    mine = Path(folder) / f"{node}.mine"
    won: list[bool] = []
    for number in range(rounds):
        mine.write_text(node)
        if won and won[-1]:
            # Who is ahead waits a moment, so that the others catch up, and all want the next name at once.
            time.sleep(random.random() / 100)
        try:
            os.link(mine, Path(folder) / f"name{number}")
            won.append(True)
        except FileExistsError:
            # Over NFS a link that was made can be reported as failed when the first answer got lost.
            won.append(os.stat(mine).st_nlink > 1)
        mine.unlink()
    return won


def leave(folder: str) -> None:
    """Remove the folder that the machines met in."""
    shutil.rmtree(folder, ignore_errors=True)


def clock() -> float:
    """What this machine's clock shows."""
    return time.time()


def file_clock(folder: str, node: str) -> float:
    """How far the file server's clock is ahead of this machine's, in seconds."""
    path = Path(folder) / f"{node}.clock"
    before = time.time()
    path.write_text(node)
    sync_file(path)  # or a client may answer with its own clock
    ahead = path.stat().st_mtime - (before + time.time()) / 2
    path.unlink()
    return ahead


def judge_race(wins: Mapping[str, Sequence[bool]]) -> Check:
    """Exactly one machine must have taken each name.

    Args:
        wins: For each machine, which names it took.
    """
    counts = [sum(column) for column in zip(*wins.values(), strict=True)]
    shares = ", ".join(f"{node} {sum(won)}" for node, won in sorted(wins.items()))
    found = f"{len(counts)} names, each taken by exactly one of {len(wins)} machines ({shares})"
    twice, never = sum(count > 1 for count in counts), sum(count == 0 for count in counts)
    wrong = [f"{twice} of {len(counts)} names were taken by more than one machine"] if twice else []
    wrong += [f"{never} of {len(counts)} names were taken by none"] if never else []
    return graded("locking", "" if wrong else found, wrong)


def judge_seen(waits: Mapping[tuple[str, str], float | None]) -> Check:
    """How long files take to be seen by other machines.

    Args:
        waits: Seconds by (who made it, who looked); None where it was not seen.
    """
    unseen = [pair for pair, wait in waits.items() if wait is None]
    blind = sorted(f"{reader} does not see what {writer} writes" for writer, reader in unseen)
    longest = max((wait for wait in waits.values() if wait is not None), default=0.0)
    slow = [f"a new file was seen after {longest:.1f} s"] if longest > SLOW_SEEN_S else []
    found = f"new files are seen by all others within {max(longest, 0.001):.3f} s"
    return graded("shared root", "" if blind else found, blind[:4], slow)


def judge_clocks(offsets: Mapping[str, tuple[float, float]], server: Mapping[str, float]) -> Check:
    """Clocks of machines, and of the file server.

    Args:
        offsets: For each machine how far its clock is ahead of the one who asks, and how well that is known,
            in seconds.
        server: For each machine how far the file server's clock is ahead of it.
    """
    # Of two clocks the difference counts; what the measurement leaves open is not held against them.
    low, high = (pick(offsets, key=lambda node: offsets[node][0]) for pick in (min, max))
    between = max(0.0, offsets[high][0] - offsets[low][0] - offsets[high][1] - offsets[low][1])
    far = max(server, key=lambda node: abs(server[node]), default="")
    ahead, exact = server.get(far, 0.0), max(known for _, known in offsets.values())
    parts = [f"clocks differ by {between:.3f} s (+-{exact * 1e3:.1f} ms)"] if len(offsets) > 1 else []
    parts += [f"the file server's by {abs(ahead):.3f} s"] if far else []
    bad = [f"{high} is {between:.1f} s ahead of {low}"] if between > SKEW_WARNING_S else []
    if abs(ahead) > SKEW_WARNING_S:
        way = "ahead of" if ahead > 0 else "behind"
        bad.append(f"the file server is {abs(ahead):.1f} s {way} {far}")
    worst = bad if max(between, abs(ahead)) > SKEW_FAILURE_S else []
    return graded("clocks", "" if bad else ", ".join(parts), worst, bad)
