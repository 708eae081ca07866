from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from aligngap.stats.budget import JUDGE_CALLS, LABELS, STEPS, Curve, Run, common_range, curve, interpolate
from aligngap.stats.estimands import average_gap, fall, peak, peak_difference

E = np.e


def run(kl, win, steps=None, seed=0):
    kl, win = np.asarray(kl, float), np.asarray(win, float)
    return Run("arm", seed, np.arange(len(kl)) if steps is None else np.asarray(steps), win, {"kl": kl})


def line(*points):
    x, y = zip(*points, strict=True)
    return Curve(np.asarray(x, float), np.asarray(y, float), y[-1])


@st.composite
def lines(draw):
    x = sorted(draw(st.lists(st.integers(-20, 20), min_size=1, max_size=6, unique=True)))
    return line(*((v / 4, draw(st.integers(0, 16)) / 16) for v in x))


def test_curve_is_means_over_prompts_and_drops_step_zero():
    c = curve(run([[0, 0], [1, 2 * E - 1], [E**2, E**2]], [[1, 1], [1, 0.5], [0, 0.5]]))
    np.testing.assert_allclose(c.x, [1, 2])
    np.testing.assert_allclose(c.win, [0.75, 0.25])
    assert c.end == 0.25


def test_weights_resample_prompts_in_kl_and_win_alike():
    r = run([[1, 3], [5, 9]], [[1, 0], [0.5, 1]])
    c = curve(r, np.array([3.0, 1.0]))
    np.testing.assert_allclose(np.exp(c.x), [1.5, 6])
    np.testing.assert_allclose(c.win, [0.75, 0.625])
    with pytest.raises(ValueError, match="weights"):
        curve(r, np.ones(3))


@given(st.lists(st.integers(0, 4), min_size=4, max_size=4).filter(sum))
def test_integer_weights_equal_repeating_prompts(counts):
    rng = np.random.default_rng(1)
    kl, win = rng.gamma(2, 1, (5, 4)), rng.integers(0, 3, (5, 4)) / 2
    weighted = curve(run(kl, win), np.asarray(counts, float))
    repeated = curve(run(np.repeat(kl, counts, 1), np.repeat(win, counts, 1)))
    np.testing.assert_allclose(weighted.x, repeated.x)
    np.testing.assert_allclose(weighted.win, repeated.win)


def test_missing_prompts_leave_only_their_own_mean_and_empty_checkpoints_go():
    c = curve(run([[1, np.nan], [2, 4], [np.nan, np.nan]], [[np.nan, 1], [1, 0], [1, 1]]))
    np.testing.assert_allclose(np.exp(c.x), [1, 3])
    np.testing.assert_allclose(c.win, [1, 0.5])
    lost = curve(run([[1, 2]], [[np.nan, np.nan]]))
    assert len(lost.x) == 0
    assert np.isnan(lost.end)


def test_shrinking_kl_orders_by_kl_but_end_is_the_last_step():
    c = curve(run([[4], [8], [2]], [[0.5], [1], [0]], steps=[100, 200, 300]))
    np.testing.assert_allclose(np.exp(c.x), [2, 4, 8])
    np.testing.assert_array_equal(c.win, [0, 0.5, 1])
    assert c.end == 0
    assert fall(c) == 1
    assert curve(run([[4], [8], [2]], [[0.5], [1], [0]], steps=[300, 200, 100])).end == 0.5


def test_equal_kl_is_averaged():
    c = curve(run([[2], [3], [2]], [[1], [1], [0]]))
    np.testing.assert_allclose(np.exp(c.x), [2, 3])
    np.testing.assert_array_equal(c.win, [0.5, 1])


@pytest.mark.parametrize(
    ("kl", "win", "steps", "message"),
    [
        ([[1.0]], [[1.0, 0.0]], [0], "expected steps"),
        ([[1.0], [1.0]], [[1.0], [1.0]], [3, 3], "twice"),
        ([[1.0]], [[1.5]], [0], "outcomes"),
        ([[np.inf]], [[1.0]], [0], "infinite"),
    ],
)
def test_bad_runs_are_refused(kl, win, steps, message):
    with pytest.raises(ValueError, match=message):
        run(kl, win, steps)


def test_interpolation_never_extrapolates():
    c = line((0, 0.2), (2, 0.6))
    np.testing.assert_allclose(interpolate(c, np.array([-0.001, 0, 1, 2, 2.001])), [np.nan, 0.2, 0.4, 0.6, np.nan])
    assert np.isnan(interpolate(Curve(np.empty(0), np.empty(0), np.nan), np.zeros(2))).all()


def test_common_range():
    assert common_range([line((0, 0), (3, 0)), line((1, 0), (4, 0))]) == (1, 3)
    assert np.isnan(common_range([line((0, 0), (1, 0)), line((2, 0), (4, 0))])).all()
    assert np.isnan(common_range([line((0, 0)), Curve(np.empty(0), np.empty(0), np.nan)])).all()
    assert np.isnan(common_range([])).all()


def test_average_gap_by_hand():
    # a rises 0 to 1 on [0, 2]; b is .25 up to 1 and falls to 0 at 3. On [0, 2]: areas 1 and .25 + .1875.
    a, b = line((0, 0), (2, 1)), line((-1, 0.25), (1, 0.25), (3, 0))
    assert average_gap(a, b) == pytest.approx((1 - 0.4375) / 2)
    assert average_gap(a, b, within=(1, 2)) == pytest.approx(0.75 - 0.1875)
    assert np.isnan(average_gap(a, b, within=(np.nan, np.nan)))
    assert average_gap(line((1, 0.9)), b) == pytest.approx(0.65)  # a range of one point
    assert np.isnan(average_gap(a, line((5, 1), (6, 1))))


@given(lines(), lines())
def test_average_gap_is_the_integral_and_antisymmetric(a, b):
    low, high = common_range([a, b])
    gap = average_gap(a, b)
    if np.isnan(low):
        assert np.isnan(gap)
        return
    assert average_gap(b, a) == pytest.approx(-gap, abs=1e-12)
    assert average_gap(a, a) == 0
    if low < high:
        knots = np.unique(np.clip(np.concatenate((a.x, b.x)), low, high))

        def delta(x):
            return float(np.interp(x, a.x, a.win) - np.interp(x, b.x, b.win))

        area = sum(quad(delta, x, y)[0] for x, y in pairwise(knots))
        assert gap == pytest.approx(area / (high - low), abs=1e-9)


@given(lines(), st.integers(-8, 8))
def test_average_gap_of_a_shifted_curve_is_the_shift(a, shift):
    shifted = Curve(a.x, a.win + shift / 8, a.end)
    assert average_gap(shifted, a) == pytest.approx(shift / 8, abs=1e-12)


def test_average_gap_ignores_what_lies_outside_the_common_range():
    a, b = line((0, 0.5), (1, 0.7)), line((0, 0.4), (1, 0.4))
    longer = line((-5, 0.0), (0, 0.4), (1, 0.4), (9, 1.0))
    assert average_gap(a, longer) == pytest.approx(average_gap(a, b))


def test_peak_fall_and_difference():
    c = Curve(np.array([0.0, 1.0, 2.0]), np.array([0.5, 0.8, 0.8]), 0.6)
    assert peak(c) == (0.8, pytest.approx(E))  # the cheaper of two equal peaks
    assert fall(c) == pytest.approx(0.2)
    assert peak_difference(c, line((5, 0.7))) == pytest.approx(0.1)
    empty = Curve(np.empty(0), np.empty(0), np.nan)
    assert np.isnan([*peak(empty), fall(empty), peak_difference(c, empty)]).all()


def costed(calls, win, steps=(1, 2, 3)):
    """A run along judge calls whose KL would order its checkpoints the other way."""
    kl = np.repeat(np.arange(len(calls), 0, -1.0)[:, None], 4, 1)
    outcomes = np.repeat(np.asarray(win, float)[:, None], 4, 1)
    budgets = {"kl": kl, "judge_calls": np.asarray(calls, float)}
    return Run("arm", 0, np.asarray(steps), outcomes, budgets).over(JUDGE_CALLS)


def test_a_curve_over_a_cost_is_linear_in_the_amount_and_keeps_step_0():
    c = curve(costed([0, 32, 64], [0.1, 0.2, 0.6], steps=(0, 1, 2)))
    np.testing.assert_array_equal(c.x, [0, 32, 64])
    np.testing.assert_allclose(c.win, [0.1, 0.2, 0.6])
    assert peak(c) == (pytest.approx(0.6), 64)


def test_at_equal_cost_the_last_checkpoint_stands_but_equal_kl_is_pooled():
    c = curve(costed([32, 64, 64], [0.2, 0.3, 0.5]))
    np.testing.assert_array_equal(c.x, [32, 64])
    np.testing.assert_allclose(c.win, [0.2, 0.5])
    pooled = curve(Run("arm", 0, np.array([1, 2]), np.array([[0.2], [0.6]]), {"kl": np.array([[1.0], [1.0]])}))
    np.testing.assert_allclose(pooled.win, [0.4])


def test_the_gap_over_a_cost_is_the_mean_over_its_amount():
    a, b = curve(costed([0, 10, 20], [0.5, 0.5, 0.5])), curve(costed([10, 20, 40], [0.1, 0.3, 0.3]))
    assert average_gap(a, b) == pytest.approx(0.3)  # on [10, 20], where b rises from .1 to .3


def test_steps_are_always_known_and_other_costs_are_nan_where_nobody_counted():
    run = costed([0, 1, 2], [0.1, 0.2, 0.3], steps=(5, 10, 20))
    np.testing.assert_array_equal(curve(run.over(STEPS)).x, [5, 10, 20])
    assert len(curve(run.over(LABELS)).x) == 0


def test_curves_over_different_budgets_are_not_compared():
    run = costed([0, 1, 2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match=r"judge_calls.*steps"):
        average_gap(curve(run), curve(run.over(STEPS)))


def test_a_cost_of_the_wrong_shape_or_without_end_is_refused():
    for calls, words in (([1.0, 2.0], "expected steps"), ([1.0, 2.0, np.inf], "judge_calls is infinite")):
        with pytest.raises(ValueError, match=words):
            costed(calls, [0.1, 0.2, 0.3])
