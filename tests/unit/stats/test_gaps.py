"""Gaps at equal KL, frontiers, and what is described, on runs made up prompt by prompt."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from aligngap.stats.ceiling import ceiling, efficiency, efficiency_over, mid_ranks, w_star
from aligngap.stats.gaps import (
    ONE_OF_MANY,
    SAME_SEEDS,
    choose,
    delta_eq,
    frontier,
    gap_at_kl,
    gap_weighted,
    goodhart_area,
    head_to_head,
    leave_one_out,
    opposite_signs,
    q90,
)
from aligngap.stats.passages import passage, per_prompt
from made_runs import PATH, run, study


def opens_at_one(size):
    return lambda k: size * float(np.clip((k**0.5 - 1) / (2**0.5 - 1), 0, 1))


def test_rows_are_paired_differences_by_seed_and_prompt():
    made = study(np.random.default_rng(0), lambda k: 0.05)
    row = gap_at_kl(made["online"], made["offline"], [2.0])[0]
    pairs = list(zip(made["online"]["beta"], made["offline"]["beta"], strict=True))
    tables = [per_prompt(a, passage(a, 2.0)) - per_prompt(b, passage(b, 2.0)) for a, b in pairs]
    np.testing.assert_allclose(row.contrast.values, [table.mean() for table in tables])
    assert row.seeds[0].prompt_se == pytest.approx(stats.sem(tables[0]))
    assert row.contrast.value == pytest.approx(0.05, abs=4 * row.contrast.se)
    assert row.band == pytest.approx(row.contrast.interval(0.95), rel=0.02)


def test_the_band_is_wider_than_each_rows_interval():
    made = study(np.random.default_rng(1), lambda k: 0.05)
    for row in gap_at_kl(made["online"], made["offline"], [0.5, 1.0, 2.0, 4.0, 8.0]):
        low, high = row.contrast.interval()
        assert row.band[0] < low < high < row.band[1]


def test_a_seed_that_does_not_reach_k_leaves_the_row_undefined_and_is_counted():
    short = {("offline", 3): PATH / 4}  # ends at KL 2.8
    made = study(np.random.default_rng(2), lambda k: 0.05, paths=short)
    result = delta_eq(made["online"], made["offline"], (1.0, 2.0, 4.0))
    assert [row.reached for row in result.rows] == [((5, 5), (5, 5)), ((5, 5), (5, 5)), ((5, 5), (4, 5))]
    assert not result.rows[2].contrast.defined
    assert np.isnan(result.rows[2].band).all()
    assert (result.averaged, result.reached) == ((1.0, 2.0), False)
    both = [row.contrast.value for row in result.rows[:2]]
    assert result.contrast.value == pytest.approx(np.mean(both))  # printed, without a word


def test_a_seed_that_one_configuration_lacks_is_not_dropped():
    made = study(np.random.default_rng(3), lambda k: 0.05)
    lost = {"beta": made["offline"]["beta"][:4]}
    assert gap_at_kl(made["online"], lost, [1.0])[0].reached == ((5, 5), (4, 5))


@pytest.mark.parametrize("which", ["online", "offline"])
def test_delta_eq_puts_no_weight_on_what_lies_before_the_registered_k(which):
    """The audit's check: whatever happens before a run's warm-up ends, KL .7 here, the estimate is what it was."""
    made = study(np.random.default_rng(4), opens_at_one(0.06))
    whole = delta_eq(made["online"], made["offline"], (1.0, 2.0, 4.0))
    for one in made[which]["beta"]:
        early = one.budgets["kl"] < 0.7
        assert early.sum() > 4
        one.win[early] = 0.0
    changed = delta_eq(made["online"], made["offline"], (1.0, 2.0, 4.0))
    assert changed.contrast.value == whole.contrast.value
    np.testing.assert_array_equal([one.influence for one in changed.seeds], [one.influence for one in whole.seeds])
    assert whole.contrast.value == pytest.approx(0.04, abs=4 * whole.contrast.se)


def test_a_mean_over_ln_kl_hides_a_gap_that_opens_at_one_and_delta_eq_does_not():
    made = study(np.random.default_rng(5), opens_at_one(0.06), sd=0.002)
    sides = [made[method]["beta"] for method in ("online", "offline")]
    weighted = np.mean([gap_weighted(a, b, "w*").value for a, b in zip(*sides, strict=True)])
    assert weighted < 0.025 < delta_eq(made["online"], made["offline"], (1.0, 2.0, 4.0)).contrast.value


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 6))
def test_leave_one_out_is_the_best_of_the_others(seed, configurations, seeds):
    rng = np.random.default_rng(seed)
    values = rng.random((configurations, seeds))
    values[rng.random(values.shape) < 0.05] = np.nan
    complete = [c for c in range(configurations) if np.isfinite(values[c]).all()]
    for s, chosen in enumerate(leave_one_out(values)):
        others = {c: np.delete(values[c], s).mean() for c in complete}
        assert chosen == (max(others, key=others.get) if others else -1)


def configurations(values, seeds=None):
    """A sweep with w(1) as given, {configuration: values by seed}; NaN: ends at KL .9."""
    return {
        name: [
            run([0, 0.9, 1.1] if np.isfinite(v) else [0, 0.9], [0.5, v, v] if np.isfinite(v) else [0.5, 0.6], seed=s)
            for s, v in enumerate(row)
        ]
        for name, row in values.items()
    }


def test_a_frontier_takes_the_registered_configuration():
    sweep = configurations({"a": [0.6, 0.6, 0.9], "b": [0.7, 0.7, 0.7]})
    found = frontier(sweep, 1.0, [0, 1, 2], choice={1.0: ["a"]})
    assert [one.value for one in found.seeds] == pytest.approx([0.6, 0.6, 0.9])
    assert found.note == ""
    sweep["short"] = configurations({"short": [0.9, 0.9, np.nan]})["short"]
    next_ = frontier(sweep, 1.0, [0, 1, 2], choice={1.0: ["short", "b", "a"]})  # the first that every seed passes
    assert next_.chosen == ["b", "b", "b"]
    assert frontier(sweep, 1.0, [0, 1, 2], choice={1.0: ["short"]}).reached == (2, 3)
    with pytest.raises(ValueError, match="no registered configuration for k = 2"):
        frontier(sweep, 2.0, [0, 1, 2], choice={1.0: ["a"]})


def test_a_frontier_without_one_chooses_on_the_other_seeds_and_says_so():
    sweep = configurations({"a": [0.6, 0.6, 0.95], "b": [0.7, 0.7, 0.7], "short": [0.9, 0.9, np.nan]})
    found = frontier(sweep, 1.0, [0, 1, 2])
    assert found.chosen == ["a", "a", "b"]
    assert [one.value for one in found.seeds] == pytest.approx([0.6, 0.6, 0.7])
    assert found.note == SAME_SEEDS
    assert found.reached == (3, 3)
    assert frontier({"b": sweep["b"]}, 1.0, [0, 1, 2]).note == ""
    alone = frontier(configurations({"a": [0.6], "b": [0.7]}), 1.0, [0])
    assert (alone.chosen, alone.note) == ([""], ONE_OF_MANY)


def test_values_of_a_frontier_chosen_on_the_other_seeds_are_not_independent():
    """Why no word rests on it: the mean's variance is half as large again as the t interval believes, or more."""
    rng = np.random.default_rng(6)
    values = rng.standard_normal((4000, 4, 8))
    chosen = leave_one_out(values)
    picked = np.take_along_axis(values, chosen[:, None], 1)[:, 0]
    assert picked.mean(axis=1).var() > 1.5 * picked.var(axis=1, ddof=1).mean() / 8
    fixed = values[:, 0]
    assert fixed.mean(axis=1).var() == pytest.approx(fixed.var(axis=1, ddof=1).mean() / 8, rel=0.06)


def test_a_pilot_registers_the_best_configuration_that_goes_further():
    def to(end, win, seeds=3):
        kl = [0, 0.6, 0.9, 1.25, 1.7, 2.2, 2.9, 3.9, 5.0, 6.5]
        n = sum(k <= end for k in kl)
        return [run(kl[:n], np.linspace(0.5, win, 10)[:n], seed=s, steps=np.arange(n)) for s in range(seeds)]

    sweep = {"short": to(1.25, 0.9), "middle": to(2.9, 0.8), "far": to(6.5, 0.7), "lost": to(6.5, 0.99, seeds=2)}
    assert choose(sweep) == {1.0: ["middle", "far"], 2.0: ["middle", "far"], 4.0: ["far"]}
    assert choose({"short": sweep["short"]}) == {}


def test_sweeps_must_share_their_prompts_and_have_one_run_a_seed():
    sweep = configurations({"a": [0.6, 0.6]})
    other = {"a": [run([0, 0.9, 1.1], np.full((3, 7), 0.5), seed=0)]}
    with pytest.raises(ValueError, match="one list of prompts"):
        gap_at_kl(sweep, other, [1.0])
    with pytest.raises(ValueError, match="two runs of one seed"):
        frontier({"a": [sweep["a"][0], sweep["a"][0]]}, 1.0, [0])
    with pytest.raises(ValueError, match="registered k"):
        delta_eq(sweep, sweep, ())


def test_opposite_signs_at_a_half_and_at_the_largest_k():
    rng = np.random.default_rng(7)
    made = study(rng, lambda k: 0.04 if k > 1 else -0.04, sd=0.002)
    rows = gap_at_kl(made["online"], made["offline"])
    first, last = opposite_signs(rows)
    assert (first.k, last.k) == (0.5, 8.0)
    assert first.contrast.value < 0 < last.contrast.value
    same = study(rng, lambda k: 0.04, sd=0.002)
    assert opposite_signs(gap_at_kl(same["online"], same["offline"])) is None
    assert opposite_signs(gap_at_kl(made["online"], made["offline"], [1.0, 2.0])) is None


def test_head_to_head_is_bilinear_in_the_root_of_kl():
    a, b = run([0, 1, 1.69], [0.5, 0.6, 0.9]), run([0, 1, 1.96], [0.5, 0.6, 0.7])
    on, off = passage(a, 1.21), passage(b, 1.21)
    x, y = 0.1 / 0.3, 0.1 / 0.4
    rng = np.random.default_rng(8)
    wins = rng.random((2, 2, 40))
    found = head_to_head(on, off, wins)
    by_prompt = (1 - x) * ((1 - y) * wins[0, 0] + y * wins[0, 1]) + x * ((1 - y) * wins[1, 0] + y * wins[1, 1])
    assert found.value == pytest.approx(by_prompt.mean())
    assert found.prompt_se == pytest.approx(stats.sem(by_prompt))
    assert not head_to_head(passage(a, 3.0), passage(b, 3.0), wins).defined
    with pytest.raises(ValueError, match="one k"):
        head_to_head(on, passage(b, 1.3), wins)


def test_goodhart_area_is_the_integral_of_the_difference_over_the_root_of_kl():
    kl = np.array([0, 0.3, 0.5, 0.8, 1.2, 1.9, 3, 4.5])
    proxy, truth = 0.5 + 0.1 * np.sqrt(kl), 0.5 + 0.1 * np.sqrt(kl) - 0.02 * kl
    found = goodhart_area(run(kl, proxy), run(kl, truth), 4.0)
    area, _ = quad(lambda x: np.interp(x, np.sqrt(kl), proxy - truth), 0.5**0.5, 2, points=np.sqrt(kl[3:7]))
    assert found.value == pytest.approx(area / (2 - 0.5**0.5))
    with pytest.raises(ValueError, match="two runs"):
        goodhart_area(run(kl, proxy), run(kl, truth, seed=1), 4.0)


def test_weighted_means_by_quadrature():
    kl = np.array([0, 0.3, 0.5, 0.8, 1.2, 1.9, 3, 4.5])
    a, b = run(kl, 0.5 + 0.1 * kl**0.7 / 3), run(kl, np.full(8, 0.5))
    x = np.linspace(0.5**0.5, 2, 4001)
    gap = np.interp(x, np.sqrt(kl), a.win.mean(axis=1) - 0.5)
    assert gap_weighted(a, b, "sqrt KL").value == pytest.approx(np.trapezoid(gap, x) / (x[-1] - x[0]), abs=1e-6)
    few = np.linspace(0.5**0.5, 2, 401)
    steps = np.diff([w_star(v**2) for v in few])
    middles = np.interp((few[1:] + few[:-1]) / 2, np.sqrt(kl), a.win.mean(axis=1) - 0.5)
    assert gap_weighted(a, b, "w*").value == pytest.approx(steps @ middles / steps.sum(), abs=2e-4)


def test_q90_is_over_configurations_and_grid_points():
    sweep = {"a": [run([0, 0.9, 1.1, 1.5], [0.5, 0.6, 0.6, 0.6])], "b": [run([0, 0.9, 1.1], [0.5, 0.8, 0.8])]}
    assert q90(sweep, 0) == pytest.approx(np.quantile([0.6, 0.6, 0.8], 0.9))
    assert np.isnan(q90(sweep, 1))


@pytest.mark.parametrize(("k", "win"), [(0.1, 0.628), (0.25, 0.699), (0.5, 0.774), (1, 0.865), (2, 0.95), (4, 0.993)])
def test_w_star_is_the_table_and_its_definition_by_quadrature(k, win):
    assert w_star(k) == pytest.approx(win, abs=5e-4)
    best = w_star(k)

    def kl_of(tilt):
        mass, _ = quad(lambda u: np.exp(tilt * (u - 1)), 0, 1, points=[1 - 1 / (1 + tilt)])
        mean, _ = quad(lambda u: u * np.exp(tilt * (u - 1)) / mass, 0, 1, points=[1 - 1 / (1 + tilt)])
        return mean, tilt * (mean - 1) - np.log(mass)

    tilts = np.geomspace(0.1, 300, 400)
    means, kls = np.array([kl_of(t) for t in tilts]).T
    assert best == pytest.approx(np.interp(k, kls, means), abs=2e-3)


def test_w_star_at_nothing_and_refusals():
    assert w_star(0) == 0.5
    assert w_star(1e-4) == pytest.approx(0.5 + (2e-4 / 12) ** 0.5, abs=1e-4)
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="at least 0"):
            w_star(wrong)


def test_a_judges_own_ceiling_is_w_star_without_ties_and_lies_lower_with_them():
    rng = np.random.default_rng(9)
    scores = rng.standard_normal((64, 256))
    for k in (0.5, 1.0, 2.0):
        assert ceiling(scores, k) == pytest.approx(w_star(k), abs=0.003)
        assert ceiling(np.sign(scores), k) < w_star(k) - 0.04
    assert ceiling(scores, 0) == 0.5
    assert np.isnan(ceiling(scores, 4.5))
    assert ceiling(np.sign(scores), 2.0) == pytest.approx(0.75, abs=0.02)  # the better half of them, for ln 2
    assert ceiling(np.zeros((4, 8)), 1.0) == 0.5  # a judge that ties everything can give nothing


def test_mid_ranks_are_how_often_a_sample_wins():
    scores = np.array([[1.0, 2, 2, 5]])
    beats = (scores[0][:, None] > scores[0]).mean(1) + (scores[0][:, None] == scores[0]).mean(1) / 2
    np.testing.assert_allclose(mid_ranks(scores)[0], beats)


def test_no_policy_beats_the_ceiling_of_its_kl():
    """Random tiltings of the samples, by their own arithmetic."""
    rng = np.random.default_rng(10)
    scores = rng.integers(0, 6, (8, 64)).astype(float)
    ranks = mid_ranks(scores)
    for _ in range(30):
        weights = np.exp(rng.gamma(1, 2) * ranks + rng.normal(0, 0.5, ranks.shape))
        weights /= weights.sum(1, keepdims=True)
        kl = (weights * np.log(weights * 64)).sum(1).mean()
        assert (weights * ranks).sum(1).mean() <= ceiling(scores, kl) + 1e-9


def test_efficiency_is_the_share_of_what_can_be_had():
    kl = np.array([0, 0.3, 0.5, 0.8, 1.2, 1.9, 3, 4.5])
    half_way = run(kl, [0.5 + (w_star(k) - 0.5) / 2 for k in kl])
    assert efficiency(half_way, 1.2).value == pytest.approx(0.5, abs=1e-6)
    assert efficiency_over(half_way, 0.5, 4.0).value == pytest.approx(0.5, abs=0.01)
    assert efficiency(half_way, 1.2, lambda k: 0.8).value == pytest.approx((w_star(1.2) - 0.5) / 2 / 0.3)
    assert not efficiency(half_way, 9.0).defined
    assert not efficiency(half_way, 1.2, lambda k: np.nan).defined
    assert not efficiency(half_way, 1.2, lambda k: 0.5).defined
