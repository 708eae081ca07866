"""First upward passage, what a run keeps, and means over a range, against arithmetic written out and scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from aligngap.stats.passages import (
    KL_GRID,
    crossings,
    evaluation_prompts,
    even_at_start,
    mean_over,
    passage,
    per_prompt,
    tenths,
)
from made_runs import run

STORED = [0, 0.8, 1.3, 2.5, 4.5, 7.3, 5.1, 5.4, 7.0, 9.1]  # a path of the first laboratory, its beginning filled in


def by_hand(kl, win, k):
    """The first rise through k, found by walking."""
    for i in range(1, len(kl)):
        if kl[i] >= k:
            if kl[i - 1] >= k or kl[i] > 2 * kl[i - 1]:
                return np.nan
            share = (k**0.5 - kl[i - 1] ** 0.5) / (kl[i] ** 0.5 - kl[i - 1] ** 0.5)
            return win[i - 1] + share * (win[i] - win[i - 1])
    return np.nan


def test_w_is_linear_in_the_root_of_kl_between_the_checkpoints_around():
    found = passage(run([0, 1, 1.69], [0.5, 0.6, 0.9]), 1.21)
    assert (found.state, found.before, found.after) == ("reached", 1, 2)
    assert found.share == pytest.approx(1 / 3)
    assert found.value == pytest.approx(0.7)


def test_a_path_that_turns_back_counts_its_first_rise_alone():
    """Ordered by KL instead of by step, the checkpoint at 5.1 would come before that at 7.3."""
    win = [0.5, 0.6, 0.62, 0.7, 0.75, 0.8, 0.2, 0.2, 0.2, 0.2]
    one = run(STORED, win)
    first, last = passage(one, 6), passage(one, 6, "last")
    assert (first.before, first.after) == (4, 5)
    assert 0.75 < first.value < 0.8
    assert (last.before, last.after) == (7, 8)
    assert last.value == pytest.approx(0.2)
    assert passage(one, 8).value == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("kl", "k", "state"),
    [
        ([0, 0.9, 1.2], 2, "not reached"),
        ([0, 0.9, 1.9], 1, "hole"),  # a factor of 2.1
        ([0, 0.9, 1.8], 1, "reached"),  # of 2 exactly
        ([0, 0.5], 0.3, "hole"),  # step 0 is near to nothing
        ([0.7, 0.9], 0.5, "hole"),  # nothing below
        ([0, 21.8, 7.3], 8, "hole"),
        ([], 1, "not reached"),
    ],
)
def test_states(kl, k, state):
    found = passage(run(kl, np.full(len(kl), 0.5)), k)
    assert found.state == state
    assert np.isfinite(found.value) == (state == "reached")


def test_a_missing_checkpoint_makes_its_neighbours_neighbours_and_so_a_hole():
    assert passage(run([0, 1, np.nan, 1.8], [0.5, 0.6, 0.9, 0.7]), 1.5).state == "reached"
    lost = run([0, 1, 1.5, 2.1], [0.5, 0.6, np.nan, 0.7])
    assert passage(lost, 1.2).state == "hole"
    assert passage(lost, 1.2).after == 3


def test_checkpoints_are_taken_in_the_order_of_training():
    shuffled = run([1.69, 0, 1], [0.9, 0.5, 0.6], steps=[200, 0, 100])
    found = passage(shuffled, 1.21)
    assert (found.before, found.after) == (2, 0)
    assert found.value == pytest.approx(0.7)


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=12), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_passages_are_those_found_by_walking(path, k):
    kl = [0.0, *path]
    win = [0.5, *(0.3 + 0.4 * np.abs(np.sin(np.arange(len(path)))))]
    assert passage(run(kl, win), k).value == pytest.approx(by_hand(kl, win, k), nan_ok=True)


@given(st.integers(0, 10_000))
def test_paths_at_once_cross_where_each_alone_does(seed):
    rng = np.random.default_rng(seed)
    kl = rng.gamma(2, 1, (3, 2, 9))
    kl[rng.random(kl.shape) < 0.2] = np.nan
    for which in ("first", "last"):
        together = crossings(kl, 1.5, which)
        alone = [[crossings(path, 1.5, which) for path in row] for row in kl]
        for number, one in enumerate(together):
            np.testing.assert_array_equal(one, [[found[number] for found in row] for row in alone])


def test_prompts_are_a_prefix_and_each_checkpoint_has_its_own_mean():
    win = np.array([[0.0, 1, 1, 1], [1, 1, np.nan, np.nan]])
    found = passage(run([1, 1.96], win), 1.44)
    assert found.value == pytest.approx(0.5 * 0.75 + 0.5 * 1)
    np.testing.assert_allclose(per_prompt(run([1, 1.96], win), found), [0.5, 1, np.nan, np.nan])


def test_the_standard_error_of_w_is_that_of_resampled_prompts():
    """KL, known prompt by prompt, is resampled too: simulated here with numpy alone."""
    rng = np.random.default_rng(3)
    n, k = 300, 1.5
    lengths = rng.gamma(3, 1 / 3, n)
    kl = np.array([[1.0], [1.9]]) * lengths * rng.gamma(3, 1 / 3, (2, n))
    win = np.clip(np.array([[0.55], [0.75]]) + rng.normal(0, 0.1, n) + rng.normal(0, 0.2, (2, n)), 0, 1)
    found = passage(run(kl, win), k)
    draws = []
    for _ in range(4000):
        pick = rng.integers(0, n, n)
        a, b = np.sqrt(kl[:, pick].mean(1))
        low, high = win[:, pick].mean(1)
        draws.append(low + (k**0.5 - a) / (b - a) * (high - low))
    assert found.seed_value.prompt_se == pytest.approx(np.std(draws), rel=0.06)
    flat = passage(run(kl.mean(1), win), k)
    assert flat.value == pytest.approx(found.value)
    assert flat.seed_value.prompt_se != pytest.approx(found.seed_value.prompt_se, rel=0.02)


def test_the_grid():
    np.testing.assert_allclose(KL_GRID[1:] / KL_GRID[:-1], 2**0.5)
    assert {0.5, 1.0, 2.0, 4.0, 8.0, 16.0} <= set(KL_GRID)
    assert KL_GRID[0] >= 0.1 > KL_GRID[0] / 2**0.5


def test_tenths():
    assert tenths(250) == (25, 50, 75, 100, 125, 150, 175, 200, 225, 250)
    assert tenths(15) == (2, 3, 5, 6, 8, 9, 11, 12, 14, 15)
    assert tenths(3) == (1, 2, 3)


def test_prompts_follow_what_reads_them():
    kl = np.array([0, 0.5, 0.8, 1.1, 1.5, 2.2, 1.9, 3, 5, 9])
    np.testing.assert_array_equal(
        evaluation_prompts(kl, (1.0, 2.0)), [512, 512, 1024, 1024, 1024, 1024, 512, 512, 256, 256]
    )


@pytest.mark.parametrize(("low", "high"), [(1.2, 6.0), (0.9, 2.0), (2.5, 7.2)])
def test_a_mean_over_a_range_is_the_integral_of_w(low, high):
    win = np.array([0.5, 0.6, 0.62, 0.7, 0.75, 0.8, 0.2, 0.3, 0.4, 0.6])
    one = run(STORED, win)
    area, _ = quad(lambda x: by_hand(STORED, win, x**2), low**0.5, high**0.5, points=np.sqrt(STORED[1:6]), limit=200)
    assert mean_over(one, low, high).value == pytest.approx(area / (high**0.5 - low**0.5), abs=1e-6)
    log, _ = quad(lambda x: by_hand(STORED, win, np.exp(x)), np.log(low), np.log(high), points=np.log(STORED[1:6]))
    fine = mean_over(one, low, high, np.log, pieces=64)
    assert fine.value == pytest.approx(log / np.log(high / low), abs=1e-5)


def test_a_mean_over_a_range_with_a_hole_is_none():
    assert not mean_over(run([0, 1, 3], [0.5, 0.6, 0.7]), 1, 2).defined
    assert not mean_over(run([0, 1, 1.5], [0.5, 0.6, 0.7]), 1, 2).defined


def test_start_is_even_within_three_standard_errors():
    win = np.repeat([1.0, 0.0], [60, 40])
    value, even = even_at_start(run([0, 1], np.array([win, win])))
    assert value.value == 0.6
    assert value.prompt_se == pytest.approx((0.24 / 99) ** 0.5)
    assert even
    assert not even_at_start(run([0, 1], np.array([np.repeat([1.0, 0.0], [70, 30]), win])))[1]
    assert not even_at_start(run([1], np.array([win]), steps=[1]))[1]
