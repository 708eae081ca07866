"""Orders are permutations, and a walk goes through them without losing its place."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aligngap.sources.order import Walk, in_sequence, prompt_schedule, uniform, windowed

lengths = st.integers(1, 200)
epochs = st.integers(0, 5)
seeds = st.integers(0, 3)


@given(lengths, epochs, seeds, st.integers(1, 250))
def test_every_order_is_a_permutation(length: int, epoch: int, seed: int, window: int) -> None:
    for order in (in_sequence, uniform("o", seed), windowed(window, "o", seed), prompt_schedule(seed)):
        found = order(length, epoch)
        assert found.dtype == torch.int64
        assert sorted(found.tolist()) == list(range(length))
        assert torch.equal(found, order(length, epoch))


@given(lengths, epochs, seeds, st.integers(1, 250))
def test_windows_keep_items_within_their_window(length: int, epoch: int, seed: int, window: int) -> None:
    found = windowed(window, "o", seed)(length, epoch)
    assert torch.equal(found // window, torch.arange(length) // window)


@given(lengths, epochs, seeds)
def test_a_window_of_one_is_the_sequence(length: int, epoch: int, seed: int) -> None:
    assert torch.equal(windowed(1, "o", seed)(length, epoch), in_sequence(length, epoch))


def test_shuffles_depend_on_epoch_and_name_and_move_most_items() -> None:
    for make in (uniform, lambda *key: windowed(16, *key)):
        base = make("o", 0)(200, 0)
        for other in (make("o", 0)(200, 1), make("o", 1)(200, 0), make("p", 0)(200, 0)):
            assert (base != other).sum() > 150
    first = windowed(16, "o", 0)(64, 0).view(4, 16) % 16
    assert len({tuple(row) for row in first.tolist()}) == 4  # each window is shuffled in its own way


def test_uniform_is_uniform() -> None:
    """Where item 0 of 4 lands over 4,000 epochs: each place 1,000 times, give or take five standard deviations."""
    order = uniform("o", 0)
    places = torch.stack([order(4, epoch).argmin() for epoch in range(4000)]).bincount(minlength=4)
    assert ((places - 1000).abs() < 5 * 27.4).all()


def test_a_window_holds_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least one"):
        windowed(0, "o")


@given(st.integers(1, 30), seeds, st.lists(st.integers(0, 25), min_size=1, max_size=12))
def test_walk_goes_through_every_epoch_however_it_is_cut(length: int, seed: int, sizes: list[int]) -> None:
    order = uniform("o", seed)
    walk = Walk(length, order)
    parts = [walk.take(n) for n in sizes]
    assert [len(part) for part in parts] == sizes
    whole = torch.cat([order(length, epoch) for epoch in range(sum(sizes) // length + 1)])[: sum(sizes)]
    assert torch.equal(torch.cat(parts), whole)
    assert walk.position == sum(sizes)


@given(st.integers(1, 30), st.integers(0, 70), st.integers(0, 20))
def test_walk_continues_from_its_position(length: int, before: int, after: int) -> None:
    walk, resumed = Walk(length, uniform("o", 1)), Walk(length, uniform("o", 1))
    walk.take(before)
    resumed.position = walk.position
    assert torch.equal(walk.take(after), resumed.take(after))


def test_walk_can_be_put_back() -> None:
    walk = Walk(10, uniform("o", 1))
    first = walk.take(25)
    walk.position = 0
    assert torch.equal(walk.take(25), first)


def test_nothing_to_walk_through() -> None:
    with pytest.raises(ValueError, match="empty"):
        Walk(0, in_sequence)
