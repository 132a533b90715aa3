"""Whether an entry is what its artifacts say: computed again from a store, or by running a seed again."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.board.entry import Entry, SeedResult, make_entry
from harness.board.rules import other_rules, worse_sign
from harness.config.mitigations import AXIS, SECTION
from harness.errors import HarnessError, InputError, StoreError
from harness.files import write_json
from harness.inventory import StoredChains
from harness.store import Store
from harness.study import Prepared, prepare_study
from harness.terminal import first_some, listed, shown

MAX_LINES = 20
"""Differences that are named one by one."""


@dataclass(frozen=True)
class EntryVerdict:
    """What came of a verification.

    Attributes:
        good: Whether the entry stands.
        verdict: In a sentence.
        lines: What was found, one thing a line.
    """

    good: bool
    verdict: str
    lines: tuple[str, ...] = ()


def write_study(entry: Entry, folder: Path) -> Path:
    """Write the study of an entry, and its track, as files that `harness run` takes."""
    # YAML reads what JSON writes
    write_json(folder / "track.yaml", entry.track.model_dump(mode="json"))
    write_json(folder / "study.yaml", {**entry.study, "track": "track.yaml"})
    return folder / "study.yaml"


def verified(entry: Entry, root: Path) -> EntryVerdict:
    """Compute an entry again from the artifacts in a store.

    Args:
        entry: The entry.
        root: The store that its study was run in, or one that has been run with the same study since.

    Raises:
        InputError: The store has nothing of it.
    """
    if changed := other_rules(entry.track):
        return EntryVerdict(
            False,
            "not verified: its track is not the one of this name and version that comes with the harness",
            tuple(f"track.{name}: is not what the track says" for name in changed[:MAX_LINES]),
        )
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        study, store = write_study(entry, Path(folder)), Store.read(root)
        prepared = prepare_study(study, (), store, Path(folder))
        damaged = list(_damaged(prepared, store, entry))
        if damaged:
            what = f"{len(damaged)} artifacts that it rests on are damaged or missing"
            return EntryVerdict(False, f"not verified: {what}", tuple(damaged[:MAX_LINES]))
        said = entry.declared.hash if entry.declared else None
        again = make_entry(prepared, store, entry.mitigation, said)
    mine, theirs = _plain(entry), _plain(again)
    if not entry.samples:  # an entry from before there were any
        del mine["samples"], theirs["samples"]
    found = [*_differences(mine, theirs, ""), *_undue(entry, again)]
    if found:
        # what was computed comes before the numbers that follow from it
        found.sort(key=lambda line: line.startswith(("baseline.", "seeds.")))
        verdict = "not verified: the entry does not say what its artifacts say"
        return EntryVerdict(False, verdict, tuple(first_some(found, MAX_LINES)))
    count = sum(len(result.keys) for result in (*entry.seeds.values(), *entry.baseline.values()))
    return EntryVerdict(True, f"verified: all numbers follow from {count} artifacts", _notes(entry, again))


def _plain(entry: Entry) -> dict[str, Any]:
    """What has to agree: all but what a later run of other studies on the store may add."""
    found = entry.model_dump(mode="json")
    for name in ("declared", "experiment", "other_seeds", "provenance"):
        found.pop(name)
    found["cost"].pop("device_hours")
    return found


def _undue(entry: Entry, again: Entry) -> Iterator[str]:
    """Of what may differ between stores, what does not follow from this one."""
    mine, theirs = entry.other_seeds, again.other_seeds
    for seed in mine.keys() - theirs.keys():
        yield f"other_seeds.{seed}: is not in the artifacts"
    for seed in theirs.keys() - mine.keys():
        yield f"other_seeds.{seed}: the store has it, and the entry leaves it out; add the entry anew"
    for seed in mine.keys() & theirs.keys():
        one, other = (result.model_dump(mode="json") for result in (mine[seed], theirs[seed]))
        yield from _differences(one, other, f"other_seeds.{seed}")
    if not _same_runs(entry, again):
        return
    before, after = (None if e.declared is None else e.declared.model_dump() for e in (entry, again))
    yield from _differences(before, after, "declared")
    hours = entry.cost.device_hours, again.cost.device_hours
    if not math.isclose(*hours):
        yield f"cost.device_hours: the entry has {shown(hours[0])}, the artifacts say {shown(hours[1])}"


def _same_runs(entry: Entry, again: Entry) -> bool:
    """Whether two entries say the same of how, where and when.

    How many were drawn at once is not asked: older entries do not say it.
    """
    mine, theirs = (e.provenance.model_copy(update={"sample_batches": ()}) for e in (entry, again))
    return mine == theirs


def _notes(entry: Entry, again: Entry) -> tuple[str, ...]:
    """What differs and may be of a later run, or of another one in another store."""
    notes, sizes = list[str](), [e.provenance.sample_batches for e in (entry, again)]
    if all(sizes) and sizes[0] != sizes[1]:
        mine, theirs = (listed([*map(str, said)]) for said in sizes)
        notes.append(
            f"its texts were drawn {mine} at once, by the artifacts {theirs}: they may be drawn anew"
        )
    if not _same_runs(entry, again):
        notes.append(
            "its device-hours, claims, source and machine are not those of the runs in this store: "
            "not compared"
        )
    return tuple(notes)


def _damaged(prepared: Prepared, store: Store, entry: Entry) -> Iterator[str]:
    """What of the artifacts of an entry does not match its checksums."""
    official, stored = set(entry.track.seeds), StoredChains(prepared, store)
    for chain in prepared.chains:
        if chain.seed not in official:
            continue
        try:
            stored.of(chain).check(chain)
        except StoreError as error:
            yield f"{_label(prepared, chain)}: {error}"


def _label(prepared: Prepared, chain: Any) -> str:
    return f"{prepared.axes(chain)[AXIS]}, seed {chain.seed}"


def _differences(mine: Any, theirs: Any, where: str) -> Iterator[str]:
    """Fields in which two entries differ, with both values."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        for name in sorted(mine.keys() | theirs.keys()):
            place = f"{where}.{name}" if where else str(name)
            if name not in mine or name not in theirs:
                which = "the artifacts" if name in mine else "the entry"
                yield f"{place}: is not in {which}"
            else:
                yield from _differences(mine[name], theirs[name], place)
    elif isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            yield from _differences(one, other, f"{where}.{index}")
    elif mine != theirs:
        yield f"{where}: the entry has {shown(mine)}, the artifacts say {shown(theirs)}"


def replayed(entry: Entry, seed: int) -> EntryVerdict:
    """Run one seed of an entry and of its baseline again, in a store of its own, and compare the numbers.

    Args:
        entry: The entry.
        seed: One of the track's.

    Raises:
        InputError: The seed is none of the track's, or the entry has no result of it.
        HarnessError: The run fails.
    """
    if seed not in entry.track.seeds:
        allowed = ", ".join(map(str, entry.track.seeds))
        raise InputError(f"--replay: found {seed}, the track {entry.track.track} has the seeds {allowed}")
    only = (f"grid.seed=[{seed}]", f"grid.mitigation={json.dumps(list(entry.study[SECTION]))}")
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        study, root = write_study(entry, Path(folder)), Path(folder) / "runs"
        command = [sys.executable, "-P", "-m", "harness", "run", str(study), "--root", str(root)]
        command += [word for assignment in only for word in ("--set", assignment)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HarnessError(
                f"--replay: the run ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
            )
        store = Store.read(root)
        again = make_entry(prepare_study(study, only, store, Path(folder)), store, entry.mitigation)
    return compared(entry, again, seed)


def compared(entry: Entry, again: Entry, seed: int) -> EntryVerdict:
    """Compare the numbers of one seed with those of the same seed, run again.

    Raises:
        InputError: One of the two has no result of it.
    """
    if again.configuration != entry.configuration:
        found = list(_differences(entry.configuration, again.configuration, "configuration"))
        return EntryVerdict(
            False, "not replayed: this harness computes something else", tuple(found[:MAX_LINES])
        )
    lines, good, equal = list[str](), True, True
    for name, mine, theirs in (
        (entry.mitigation, entry.seeds, again.seeds),
        ("baseline", entry.baseline, again.baseline),
    ):
        before, after = mine.get(str(seed)), theirs.get(str(seed))
        if before is None or after is None or not before.metrics:
            raise InputError(f"--replay: the entry has no result of seed {seed} for {name}")
        if _plain_result(before) == _plain_result(after):
            lines.append(f"{name}: equal in every digit")
            continue
        equal = False
        others = [result for number, result in mine.items() if number != str(seed)]
        line, within = _compare(entry.track.score.metric, name, before, after, others)
        lines.append(line)
        good &= within
    if equal:
        return EntryVerdict(
            True, f"replayed: seed {seed} gives the same numbers, digit by digit", tuple(lines)
        )
    verdict = "agrees within the spread of the seeds" if good else "does NOT agree with the entry"
    return EntryVerdict(good, f"replayed: seed {seed} {verdict}", tuple(lines))


def _plain_result(result: SeedResult) -> str:
    return json.dumps([result.state, {name: list(v) for name, v in result.metrics.items()}], sort_keys=True)


def _compare(
    metric: str, name: str, before: SeedResult, after: SeedResult, others: Sequence[SeedResult]
) -> tuple[str, bool]:
    """A metric in the last generation, before and after, against how other seeds scatter."""
    lasts = [r.metrics[metric][-1] for r in others if r.state == "complete" and metric in r.metrics]
    numbers = [value for value in lasts if value is not None]
    one, other = before.metrics.get(metric, (None,))[-1], after.metrics.get(metric, (None,))[-1]
    if one is None or other is None or len(numbers) < 2:
        same = before.state == after.state and one == other
        return f"{name}: {before.state} before, {after.state} now", same
    spread = float(np.std(numbers, ddof=1))
    # What training makes of a rounding is at most what it makes of another seed: a difference of two seeds
    # has a standard deviation of sqrt(2) times theirs, and 3 of these are exceeded by 0.3 % of honest ones.
    within = abs(one - other) <= 3 * math.sqrt(2) * spread
    worse = "worse" if worse_sign(metric) * (other - one) > 0 else "better"
    text = (
        f"{name}: {metric} {one:.6g} before, {other:.6g} now ({worse} by {abs(one - other):.3g}; other seeds "
    )
    return f"{text}scatter by {spread:.3g})", within
