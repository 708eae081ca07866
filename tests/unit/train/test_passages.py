"""Checkpoints by KL: which steps a comparison at equal KL will need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from aligngap.models.policy import Policy
from aligngap.train.passages import EVERY, Passages

POLICY = cast(Policy, None)  # the probe of these tests does not look at it


def walked(levels: list[float], path: list[float]) -> tuple[Passages, list[int]]:
    """Passages after a walk, KL at every look, and the steps that it asked for."""
    seen: Iterator[float] = iter(path)
    passages = Passages(levels, lambda policy: next(seen))
    return passages, [step for step in range(1, EVERY * len(path) + 1) if passages.asks(step, POLICY)]


def test_both_sides_of_each_first_passage_are_needed() -> None:
    passages, asked = walked([1, 2], [0.4, 0.9, 1.5, 1.8, 2.5])
    assert passages.needed == [8, 12, 16, 20]  # .9 and 1.5 around 1, 1.8 and 2.5 around 2
    assert set(passages.needed) <= set(asked)


def test_a_path_that_turns_back_counts_where_it_first_rose() -> None:
    passages, asked = walked([1], [0.5, 0.8, 0.2, 0.6, 1.2, 0.3, 1.4])
    assert passages.needed == [8, 20]
    assert set(passages.needed) <= set(asked)
    assert len(passages.path) == 5, "nothing is left to be seen once the last level is passed"


def test_a_jump_over_several_levels_keeps_its_two_ends() -> None:
    passages, _ = walked([1, 2, 4], [0.9, 7.6])
    assert passages.needed == [4, 8]


def test_a_level_at_the_first_look_is_passed_from_the_start() -> None:
    """Step 0 is the start, whose weights every arm has."""
    assert walked([1], [1.7])[0].needed == [4]


def test_what_is_never_passed_needs_nothing() -> None:
    assert walked([1], [0.1, 0.9, 0.2])[0].needed == []


@pytest.mark.parametrize("cut", range(1, 7))
def test_it_goes_on_from_what_it_has_seen(cut: int) -> None:
    path = [0.5, 0.8, 0.2, 0.6, 1.2, 2.3, 1.4]
    whole, asked = walked([1, 2], path)
    first, before = walked([1, 2], path[:cut])
    rest = iter(path[cut:])
    resumed = Passages([1, 2], lambda policy: next(rest))
    resumed.load_state_dict(first.state_dict())
    later = [step for step in range(EVERY * cut + 1, EVERY * len(path) + 1) if resumed.asks(step, POLICY)]
    assert (resumed.path, resumed.needed, before + later) == (whole.path, whole.needed, asked)
