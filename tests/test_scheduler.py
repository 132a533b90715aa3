"""The scheduler: pure, so any grid on any machines can be tried."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from chains import open_prepared
from conftest import TEXT, Make
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.coordinator import shares
from harness.coordinator.scheduler import (
    Assign,
    Capacity,
    Gang,
    Queue,
    Retire,
    Shape,
    Start,
    at_once,
    decide,
    feasible,
    place,
)
from harness.coordinator.shapes import check_feasible, turns_of
from harness.coordinator.shares import Shares, part
from harness.coordinator.simulate import simulate
from harness.errors import ResourceError
from harness.inventory.estimates import Estimates, scheduled_seconds
from harness.science import Branch, cut
from harness.store import Store

SHAPES = [
    Shape(1, 1, 0),
    Shape(2, 1, 0),
    Shape(4, 1, 0),
    Shape(1, 2, 1),
    Shape(2, 1, 1),
    Shape(1, 1, 0, True, 5),
]


@st.composite
def grids(draw: st.DrawFn) -> tuple[list[Branch], dict[str, Shape], list[Capacity]]:
    """A random forest of branches; each may wait for a node of an earlier one."""
    branches: list[Branch] = []
    for number in range(draw(st.integers(1, 14))):
        nodes = tuple(f"{number}.{g}" for g in range(draw(st.integers(1, 4))))
        needs: frozenset[str] = frozenset()
        if branches and draw(st.booleans()):
            parent = draw(st.sampled_from(branches))
            needs = frozenset({draw(st.sampled_from(parent.nodes))})
        branches.append(Branch(str(number), nodes, needs, float(draw(st.integers(1, 9)))))
    shapes = {branch.id: draw(st.sampled_from(SHAPES)) for branch in branches}
    machines = [
        Capacity(draw(st.integers(4, 8)), draw(st.integers(2, 4)), draw(st.integers(5, 20)))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return branches, shapes, machines


def find_places(gangs: dict[int, Gang], machines: list[Capacity], random: Any) -> None:
    """What Ray does: a gang gets whatever places there are, or waits for some; nothing is ever given
    twice."""
    cpus = [machine.cpus for machine in machines]
    gpus = [machine.gpus for machine in machines]
    memory = [machine.memory for machine in machines]

    def take(index: int, shape: Shape, times: int) -> None:
        cpus[index] -= times * shape.cpus
        gpus[index] -= times * shape.gpus
        memory[index] -= times * shape.memory

    for gang in gangs.values():
        for index in gang.machines:
            take(index, gang.shape, 1)
    assert min(cpus + gpus + memory) >= 0
    for number, gang in gangs.items():
        chosen: list[int] = []
        while not gang.machines and len(chosen) < gang.shape.ranks:
            fits = [
                i
                for i in range(len(machines))
                if cpus[i] >= gang.shape.cpus
                and gpus[i] >= gang.shape.gpus
                and memory[i] >= gang.shape.memory
            ]
            if not fits:
                break
            chosen.append(random.choice(fits))
            take(chosen[-1], gang.shape, 1)
        if not gang.machines and len(chosen) == gang.shape.ranks:
            gangs[number] = replace(gang, machines=tuple(chosen))
        else:
            for index in chosen:
                take(index, gang.shape, -1)


@settings(max_examples=150, deadline=None)
@given(grids(), st.randoms(use_true_random=False))
def test_branches_run_once_and_machines_are_never_overbooked(grid: Any, random: Any) -> None:
    branches, shapes, machines = grid
    queue, done, gangs, number = Queue(branches, set()), list[str](), {}, 0
    running: dict[int, Branch] = {}
    while True:
        actions = decide(queue.ready, shapes, list(gangs.values()), machines)
        for action in actions:
            if isinstance(action, Retire):
                assert gangs.pop(action.gang).branch is None
                continue
            branch = queue.take(action.branch)
            assert branch.needs <= set(done)
            if isinstance(action, Start):
                assert action.shape == shapes[branch.id]
                number += 1
                gangs[number] = Gang(number, action.shape, branch.id)
                running[number] = branch
            else:
                assert isinstance(action, Assign)
                assert gangs[action.gang].branch is None and gangs[action.gang].shape == shapes[branch.id]
                gangs[action.gang] = replace(gangs[action.gang], branch=branch.id, amid=False)
                running[action.gang] = branch
        amid = [gang for gang in gangs.values() if gang.branch is None and gang.amid]
        assert not any(shapes[branch.id] == gang.shape for branch in queue.ready for gang in amid)
        find_places(gangs, machines, random)
        busy = [gang for gang in gangs.values() if gang.branch is not None and gang.machines]
        if actions:
            continue
        if not busy:
            break
        ended = random.choice(busy)
        branch = running.pop(ended.id)
        given = random.randint(1, len(branch.nodes))  # all of it, or a part
        gangs[ended.id] = replace(ended, branch=None, amid=given < len(branch.nodes))
        for node in branch.nodes[:given]:
            done.append(node)
            queue.complete(node)
        if given < len(branch.nodes):
            queue.push(branch.rest(branch.nodes[given]))
    assert number <= len(branches), "gangs start where a branch has ended, and not amid one"
    assert sorted(done) == sorted(node for branch in branches for node in branch.nodes)


@settings(max_examples=150, deadline=None)
@given(grids(), st.data())
def test_a_failure_stops_only_those_that_need_it(grid: Any, data: st.DataObject) -> None:
    """Of two branches that share something the first makes it; where that fails, the other does."""
    branches = [
        replace(branch, shares=branch.needs if data.draw(st.booleans()) else frozenset())
        for branch in grid[0]
    ]
    bad = data.draw(st.sets(st.sampled_from([branch.id for branch in branches])))
    queue, done = Queue(branches, set()), set[str]()
    while len(queue):
        branch = queue.take(data.draw(st.sampled_from([each.id for each in queue.ready])))
        assert branch.id not in done, "a branch is given once"
        made = (
            branch.nodes[: data.draw(st.integers(0, len(branch.nodes) - 1))]
            if branch.id in bad
            else branch.nodes
        )
        done |= {branch.id, *made}
        for node in made:
            queue.complete(node)
        if branch.id in bad:
            queue.give_up(branch)
    for branch in branches:
        assert (branch.id in done) == (branch.needs - branch.shares <= done), branch


def test_what_a_failure_stopped_goes_on_when_others_have_made_it() -> None:
    failed, behind = Branch("a", ("a0", "a1"), frozenset(), 2.0), Branch("b", ("b0",), frozenset({"a1"}), 1.0)
    beside = Branch("c", ("c0",), frozenset({"b0"}), 1.0, shares=frozenset({"b0"}))
    queue = Queue([failed, behind, beside], set())
    queue.give_up(queue.take("a"))
    assert [branch.id for branch in queue.ready] == ["c"], "b will not make what c shares with it"
    queue.complete("a1")  # by another run
    queue.complete("b0")
    assert [branch.id for branch in queue.ready] == ["b", "c"] and queue.waiting == 0


@settings(max_examples=100, deadline=None)
@given(grids())
def test_the_virtual_clock_ends_between_the_two_bounds(grid: Any) -> None:
    branches, shapes, machines = grid
    seconds = {node: 10.0 for branch in branches for node in branch.nodes}
    wall, idle = simulate(branches, shapes, seconds, machines, start_s=1.0)
    longest = max(10.0 * len(branch.nodes) for branch in branches)
    assert longest < wall <= sum(seconds.values()) + len(branches)
    assert 0 <= idle < 1


def test_gangs_end_together_where_chains_can_wait() -> None:
    """Two gangs, a model that takes three times as long as another, two ratios of each from one generation 0:
    whole chains end after 430 s, as a long one waits for a short one; in parts after 405, half of all."""

    def chains(name: str, each: float) -> list[Branch]:
        ranks = tuple(each * left for left in (4, 3, 2, 1))
        first = Branch(f"{name}a", tuple(f"{name}a{g}" for g in range(4)), frozenset(), ranks[0], ranks)
        needs = frozenset({f"{name}a0"})
        other = Branch(f"{name}b", tuple(f"{name}b{g}" for g in (1, 2, 3)), needs, ranks[1], ranks[1:])
        return [first, other]

    branches = [*chains("long", 85.0), *chains("short", 30.0)]
    seconds = {node: 85.0 if "long" in node else 30.0 for branch in branches for node in branch.nodes}
    shapes, machines = {branch.id: SHAPES[0] for branch in branches}, [Capacity(2, 0)]
    wall, idle = simulate(branches, shapes, seconds, machines, start_s=0.0)
    assert (wall, idle) == (405.0, 1 - sum(seconds.values()) / (2 * 405.0))
    quick = {node: value / 100 for node, value in seconds.items()}  # not worth to be taken up again
    assert simulate(branches, shapes, quick, machines, start_s=0.0)[0] == pytest.approx(4.3)


@given(grids(), st.floats(0.1, 30.0))
def test_parts_are_the_branch_in_order(grid: Any, each: float) -> None:
    for branch in grid[0]:
        ranked = replace(branch, ranks=tuple(float(len(branch.nodes) - g) for g in range(len(branch.nodes))))
        seconds, left, done = dict.fromkeys(branch.nodes, each), ranked, list[str]()
        while True:
            now = part(left, seconds, shares.TURN_S)
            assert now == left.nodes[: len(now)] and now
            assert sum(seconds[node] for node in now[:-1]) < shares.TURN_S
            done += now
            if len(now) == len(left.nodes):
                break
            left = left.rest(left.nodes[len(now)])
            assert left.id == branch.id and left.rank == len(branch.nodes) - len(done)
        assert tuple(done) == branch.nodes


def test_what_is_urgent_waits_no_longer_than_for_a_branch() -> None:
    """Fifty chains of 100 s on four gangs move forward together, so that none ends before all do; a long one
    of another shape, ready after 10 s, still has its place once a gang has done what it was started for."""
    branches = [
        Branch(f"a{i:02}", tuple(f"{i}.{g}" for g in range(10)), frozenset(), 10.0, tuple(range(10, 0, -1)))
        for i in range(50)
    ]
    nodes = tuple(f"long.{g}" for g in range(150))
    branches.append(Branch("b", nodes, frozenset({"0.0"}), 150.0, tuple(range(150, 0, -1))))
    seconds = {node: 10.0 for branch in branches for node in branch.nodes}
    shapes = {branch.id: SHAPES[5] if branch.id == "b" else SHAPES[0] for branch in branches}
    wall, _ = simulate(branches, shapes, seconds, [Capacity(4, 0, 5)], start_s=0.0)
    assert 1600 <= wall <= 1600 + 60, "100 s for a branch, and the long one; the others end meanwhile"


def test_what_a_gang_has_done_costs_nothing_unseen() -> None:
    given = Shares(dict.fromkeys("abcde", shares.TURN_S), {})
    branch = Branch("x", tuple("abcde"), frozenset(), 5.0)
    assert given.give(1, branch) == ("a",) and not given.amid(1)
    given.end(1, ("a",))
    assert given.amid(1) and given.give(1, branch) == ("a", "b"), "a is there, if not for this machine"
    assert not given.amid(1) and given.give(2, branch) == ("a", "b")


def test_a_run_needs_no_estimates(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What somebody else has left in the store, or a package's code, ends no run."""
    prepared, store = open_prepared(make_config(TEXT), tmp_path / "root")
    nodes = prepared.lineage.nodes
    monkeypatch.setattr(Store, "committed", lambda self, kind: {"x"})
    for wrong in ({}, [], {"device": 1, "tokens_per_s": {}, "world_size": 0, "fit": "x", "learner": {}}):
        monkeypatch.setattr(Store, "json", Mock(return_value=wrong))
        found = scheduled_seconds(prepared, store, False, nodes)
        assert found.keys() == nodes.keys() and min(found.values()) > 0
    monkeypatch.setattr(Estimates, "seconds", lambda self, node: 1 / 0)
    assert scheduled_seconds(prepared, store, False, nodes) == {}


def test_compiled_fits_are_taken_up_again_less_often(make_config: Make, tmp_path: Path) -> None:
    """Fits of another kind, as other gangs' cells have, make a gang forget the program."""
    compiled = {"when": {"learner.model.width": 32}, "set": {"resources.compile": True}}
    config = make_config(TEXT, grid={"learner.model.width": [16, 32]}, overrides=[compiled])
    prepared, _ = open_prepared(config, tmp_path / "root")
    turns = turns_of(prepared, cut(prepared.lineage))
    assert sorted(turns.values()) == [shares.TURN_S, shares.COMPILED_TURN_S]


def test_the_longest_remaining_path_goes_first() -> None:
    branches = [Branch("short", ("a",), frozenset(), 1.0), Branch("long", ("b", "c"), frozenset(), 5.0)]
    shapes = {"short": SHAPES[0], "long": SHAPES[0]}
    assert decide(Queue(branches, set()).ready, shapes, [], [Capacity(1, 0)]) == [Start(SHAPES[0], "long")]


def test_gangs_of_a_shape_are_reused_and_others_make_room() -> None:
    small, large = SHAPES[0], SHAPES[2]
    ready = [Branch("large", ("a",), frozenset(), 9.0), Branch("small", ("b",), frozenset(), 1.0)]
    shapes = {"large": large, "small": small}
    machines = [Capacity(4, 0)]
    idle = [Gang(1, small, None), Gang(2, small, "running")]
    assert decide(ready, shapes, idle, machines) == [Retire(1)]
    # While another small gang runs, nothing less urgent takes the place that the large one waits for.
    assert decide(ready, shapes, [Gang(2, small, "running")], machines) == []
    assert decide(ready[1:], shapes, idle, machines) == [Assign(1, "small")]


def test_idle_gangs_make_room_where_they_really_are() -> None:
    small, large = Shape(1, 1, 0), Shape(1, 2, 0)
    machines = [Capacity(1, 0), Capacity(2, 0)]
    ready, shapes = [Branch("large", ("a",), frozenset(), 1.0)], {"large": large}
    # it may go to the first machine
    assert decide(ready, shapes, [Gang(1, small, None)], machines) == [Start(large, "large")]
    assert decide(ready, shapes, [Gang(1, small, None, (1,))], machines) == [Retire(1)]
    # Started before it was known where the small one went: it waits for room, though nothing else is ready.
    assert decide([], shapes, [Gang(1, small, None, (1,)), Gang(2, large, "large")], machines) == [Retire(1)]
    assert decide([], shapes, [Gang(1, small, "busy", (1,)), Gang(2, large, "large")], machines) == []


@pytest.mark.parametrize(
    ("shape", "machines", "said"),
    [
        (
            Shape(1, 1, 1),
            [Capacity(2, 0)],
            "resources.gpus_per_rank: this grid asks for 1 GPU a gang (1 rank x 1); the machine has 0; "
            "leave resources.gpus_per_rank out, or set it to 0",
        ),
        (
            Shape(2, 1, 4),
            [Capacity(8, 2), Capacity(8, 2)],
            "resources.gpus_per_rank: this grid asks for 8 GPUs a gang (2 ranks x 4); the largest machine "
            "has 2, all 2 together 4; lower resources.gpus_per_rank to 2 or less",
        ),
        (
            Shape(1, 8, 0),
            [Capacity(2, 0)],
            "resources.threads: this grid asks for 8 CPUs a gang (1 rank x 8); the machine has 2; lower "
            "resources.threads to 2 or less",
        ),
        (
            Shape(8, 1, 0),
            [Capacity(2, 0)],
            "resources.ranks: this grid asks for 8 CPUs a gang (8 ranks x 1); the machine has 2; lower "
            "resources.ranks to 2 or less",
        ),
        (
            Shape(8, 2, 1),  # there are GPUs enough
            [Capacity(5, 8), Capacity(4, 8)],
            "resources.ranks: this grid asks for 16 CPUs a gang (8 ranks x 2); the largest machine has 5, "
            "all 2 together 9; lower resources.ranks to 4 or less, or resources.threads",
        ),
    ],
)
def test_the_field_that_asks_for_too_much_is_named(shape: Shape, machines: list[Capacity], said: str) -> None:
    with pytest.raises(ResourceError) as error:
        check_feasible({SHAPES[0], shape}, machines)
    assert str(error.value) == said


def test_a_gang_may_span_machines_but_not_exceed_them() -> None:
    machines = [Capacity(2, 1), Capacity(2, 1)]
    assert place(Shape(2, 1, 1), machines) == [Capacity(1, 0), Capacity(1, 0)]
    assert not feasible(Shape(3, 1, 1), machines)
    assert not feasible(Shape(1, 3, 0), machines)
    assert feasible(Shape(1, 1, 0, memory=5), [Capacity(1, 0, 5)])
    assert not feasible(Shape(1, 1, 0, memory=6), [Capacity(1, 0, 5)])


@given(grids())
def test_gangs_of_one_rank_are_counted_as_they_are_placed(grid: Any) -> None:
    _, _, machines = grid
    for shape in (shape for shape in SHAPES if shape.ranks == 1):
        left, count = place(shape, machines), 0
        while left is not None:
            left, count = place(shape, left), count + 1
        assert at_once(shape, machines) == count


def test_memory_bounds_how_many_work_at_once() -> None:
    machines = [Capacity(4, 0, 10), Capacity(4, 0, 3)]
    assert [at_once(Shape(1, 1, 0, memory=each), machines) for each in (0, 3, 4, 11)] == [8, 4, 2, 0]
    assert at_once(Shape(2, 1, 0, memory=3), machines) == 2, "both ranks on one machine, or one on each"


def test_two_machines_take_half_the_time_of_one() -> None:
    branches = [Branch(str(i), (f"{i}.0",), frozenset(), 1.0) for i in range(8)]
    shapes = {branch.id: Shape(4, 1, 1) for branch in branches}
    seconds = {f"{i}.0": 100.0 for i in range(8)}
    one, _ = simulate(branches, shapes, seconds, [Capacity(64, 8)], start_s=0)
    two, _ = simulate(branches, shapes, seconds, [Capacity(64, 8)] * 2, start_s=0)
    assert (one, two) == (400.0, 200.0)


def test_a_large_grid_is_simulated_in_a_bounded_number_of_steps() -> None:
    branches = [
        Branch(f"{i:05d}", tuple(f"{i}.{g}" for g in range(4)), frozenset(), float(i % 7))
        for i in range(5000)
    ]
    seconds = {node: 1.0 for branch in branches for node in branch.nodes}
    started = time.process_time()
    wall, _ = simulate(branches, {b.id: SHAPES[0] for b in branches}, seconds, [Capacity(10, 0)], start_s=0)
    assert wall == 2000.0
    assert time.process_time() - started < 60  # a quadratic schedule takes minutes
