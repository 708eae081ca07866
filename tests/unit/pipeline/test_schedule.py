from __future__ import annotations

import pytest

from aligngap.pipeline.executors.schedule import Schedule, estimate
from aligngap.pipeline.graph import all_stages
from unit.pipeline.fake_stages import Fake


def test_the_stage_that_heads_the_longest_chain_goes_first() -> None:
    alone = Fake(name="alone", cost=5)
    head = Fake(name="head", cost=1)
    tail = Fake(name="tail", cost=5, after=(head,))
    schedule = Schedule(all_stages([alone, tail]), done=(), jobs=2)
    assert schedule.take() is head
    assert schedule.take() is alone
    assert schedule.take() is None
    schedule.finish(head.identity)
    assert schedule.take() is tail


@pytest.mark.parametrize(("jobs", "order"), [(1, ["arm 1", "end 1", "arm 2", "end 2"]), (2, ["arm 1", "arm 2"])])
def test_one_result_after_the_other_while_the_longest_chain_leaves_room(jobs: int, order: list[str]) -> None:
    arms = [Fake(name=f"arm {i}", cost=5) for i in (1, 2)]
    ends = [Fake(name=f"end {i}", cost=1, after=(arm,)) for i, arm in enumerate(arms, start=1)]
    schedule = Schedule(all_stages(ends), (), jobs)
    taken = []
    while (stage := schedule.take()) and isinstance(stage, Fake):
        taken.append(stage.name)
        if jobs == 1:
            schedule.finish(stage.identity)
    assert taken == order


def test_the_longest_chain_never_waits_for_results_to_come_in() -> None:
    """Thirty short results are named before a chain of a hundred seconds; with two jobs it must start at once."""
    short = [Fake(name=f"short {i}", cost=1) for i in range(30)]
    head = Fake(name="head", cost=50)
    stages = all_stages([*short, Fake(name="tail", cost=50, after=(head,))])
    assert estimate(stages, (), 2) == 100
    assert Schedule(stages, (), 2).take() is head


def test_what_is_done_is_neither_handed_out_nor_waited_for() -> None:
    head = Fake(name="head")
    tail = Fake(name="tail", after=(head,))
    schedule = Schedule(all_stages([tail]), done={head.identity}, jobs=1)
    assert schedule.take() is tail
    assert schedule.take() is None


def test_a_failure_takes_out_all_that_needs_it_once() -> None:
    root, other = Fake(name="root"), Fake(name="other")
    left, right = Fake(name="left", after=(root,)), Fake(name="right", after=(root, other))
    join = Fake(name="join", after=(left, right))
    schedule = Schedule(all_stages([join]), done=(), jobs=2)
    assert schedule.take() is root
    assert sorted(stage.name for stage in schedule.fail(root.identity) if isinstance(stage, Fake)) == [
        "join",
        "left",
        "right",
    ]
    assert schedule.take() is other
    schedule.finish(other.identity)
    assert schedule.take() is None


def test_what_is_lost_is_made_again_and_what_needs_it_waits() -> None:
    head, side = Fake(name="head"), Fake(name="side")
    tail = Fake(name="tail", after=(head,))
    join = Fake(name="join", after=(head, tail, side))
    schedule = Schedule(all_stages([join]), done={head.identity, tail.identity}, jobs=1)
    assert schedule.take() is side
    schedule.finish(side.identity)
    assert schedule.take() is join
    assert schedule.lost(head.identity)
    schedule.again(join.identity)
    assert schedule.take() is head
    assert not schedule.lost(head.identity)  # another of its users found the same
    assert schedule.take() is None
    schedule.finish(head.identity)
    assert schedule.take() is join  # what was made from it has the same identity, and stays
    schedule.again(join.identity)
    assert schedule.lost(tail.identity)
    assert schedule.take() is tail
    assert schedule.fail(tail.identity) == [join]
    assert schedule.take() is None


@pytest.mark.parametrize(("jobs", "seconds"), [(1, 12), (2, 7), (3, 7)])
def test_estimate(jobs: int, seconds: float) -> None:
    head = Fake(name="head", cost=2)
    stages = all_stages([Fake(name="tail", cost=5, after=(head,)), Fake(name="alone", cost=5)])
    assert estimate(stages, (), jobs) == seconds


def test_estimate_of_what_is_left() -> None:
    head = Fake(name="head", cost=2)
    stages = all_stages([Fake(name="tail", cost=5, after=(head,))])
    assert estimate(stages, {head.identity}, 1) == 5
    assert estimate(stages, {stage.identity for stage in stages}, 1) == 0
