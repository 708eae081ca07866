"""Means over seeds and worlds against scipy, statsmodels, and studies simulated here."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.oneway import anova_oneway
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from aligngap.stats.contrast import (
    Contrast,
    benjamini_hochberg,
    heterogeneity,
    max_t,
    noncentrality,
    over_seeds,
    over_worlds,
    p_different,
    sign_flip,
    simultaneous,
    upper_sd,
)
from aligngap.stats.seedvalue import SeedValue, constant, prompt_mean, undefined


def seeds(values):
    """Seeds without noise of prompts."""
    return [constant(float(value), 3) for value in values]


VALUES = np.array([0.031, 0.012, 0.055, -0.004, 0.02])


def test_without_prompts_it_is_scipys_t():
    contrast = over_seeds(seeds(VALUES))
    test = stats.ttest_1samp(VALUES, 0)
    assert contrast.p == pytest.approx(test.pvalue)
    for level in (0.9, 0.95, 0.975):
        assert contrast.interval(level) == pytest.approx(tuple(test.confidence_interval(level)))
    assert contrast.p_inside(0.04) == pytest.approx(ttost_paired(VALUES, np.zeros(5), -0.04, 0.04)[0])


def test_variance_is_that_of_the_two_way_analysis_of_variance():
    rng = np.random.default_rng(1)
    n_seeds, n = 6, 40
    table = rng.normal(0, 0.02, (n_seeds, 1)) + rng.normal(0, 0.3, n) + rng.normal(0, 0.2, (n_seeds, n))
    contrast = over_seeds([prompt_mean(row) for row in table])
    data = pd.DataFrame([(s, p, table[s, p]) for s in range(n_seeds) for p in range(n)], columns=["s", "p", "y"])
    squares = anova_lm(ols("y ~ C(s) + C(p)", data).fit())["mean_sq"]
    common = (squares["C(p)"] - squares["Residual"]) / n_seeds / n
    assert contrast.shared_se**2 == pytest.approx(common)
    assert contrast.variance == pytest.approx(squares["C(s)"] / n / n_seeds + common)
    assert contrast.value == pytest.approx(table.mean())
    assert contrast.df == n_seeds - 1


@pytest.mark.parametrize(("shared", "least", "most"), [(0.0, 0.925, 0.985), (0.05, 0.925, 0.99), (0.15, 0.95, 1.0)])
def test_intervals_hold_the_truth_where_seeds_and_prompts_both_scatter(shared, least, most):
    """A simulation with its own arithmetic: how often the interval holds the mean. The more of the noise is the
    prompts' own, the more often: few seeds' degrees of freedom then stand for a variance that is well known.
    """
    rng = np.random.default_rng(2)
    for n_seeds in (3, 5):
        hits = []
        for _ in range(500):
            of_prompt = rng.normal(0, shared, 256) if shared else np.zeros(256)
            table = 0.03 + rng.normal(0, 0.03, (n_seeds, 1)) + of_prompt + rng.normal(0, 0.1, (n_seeds, 256))
            low, high = over_seeds([prompt_mean(row) for row in table]).interval()
            hits.append(low <= 0.03 <= high)
        assert least <= np.mean(hits) <= most


def test_a_seed_that_lacks_it_leaves_the_mean_undefined_and_is_counted():
    contrast = over_seeds([*seeds(VALUES[:4]), undefined(3)])
    assert not contrast.defined
    assert contrast.reached == (4, 5)
    assert np.isnan(contrast.p)
    assert np.isnan(contrast.interval()).all()
    assert contrast.note == "reached by 4 of 5"
    assert contrast.estimate().n_seeds == 0
    assert over_seeds([]).reached == (0, 0)


def test_one_seed_has_the_prompts_error_and_says_so():
    win = np.repeat([1.0, 0.0], [30, 10])
    contrast = over_seeds([prompt_mean(win)])
    assert contrast.se == pytest.approx(stats.sem(win))
    assert "1 seed" in contrast.estimate().note


def test_identical_runs_do_not_differ_and_a_difference_without_noise_does():
    assert over_seeds(seeds(np.zeros(5))).p == 1
    assert over_seeds(seeds(np.full(5, 0.02))).p == 0
    assert np.isnan(p_different(np.nan, np.nan, 4))


def test_influences_combine_as_paired_differences_and_ratios_do():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 50))
    difference = prompt_mean(a) - prompt_mean(b)
    assert difference.prompt_se == pytest.approx(stats.sem(a - b))
    ratio = prompt_mean(a) / prompt_mean(b)
    draws = [(lambda i: a[i].mean() / b[i].mean())(rng.integers(0, 50, 50)) for _ in range(4000)]
    assert ratio.prompt_se == pytest.approx(np.std(draws), rel=0.08)
    assert not (prompt_mean(a) / constant(0, 50)).defined


def world(values, note=""):
    return over_seeds(seeds(values))


def test_the_mean_over_two_worlds_has_welchs_degrees_of_freedom():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.03, 0.01, 5), rng.normal(0.01, 0.04, 8)
    welch = stats.ttest_ind(a, -b, equal_var=False)  # mean a - mean(-b) = their sum
    mean = over_worlds([world(a), world(b)])
    assert mean.df == pytest.approx(welch.df)
    assert mean.p == pytest.approx(welch.pvalue)
    assert mean.value == pytest.approx((a.mean() + b.mean()) / 2)
    assert (mean.n_seeds, mean.most_seeds) == (5, 8)


def test_no_world_is_dropped():
    mean = over_worlds([world(VALUES), over_seeds([*seeds(VALUES[:2]), undefined(3)])])
    assert not mean.defined
    assert mean.note == "reached in 1 of 2 worlds"
    with pytest.raises(ValueError, match="needs a world"):
        over_worlds([])


def test_heterogeneity_is_welchs_test():
    rng = np.random.default_rng(6)
    groups = [rng.normal(m, s, n) for m, s, n in ((0, 0.01, 5), (0.02, 0.02, 6), (0.01, 0.03, 8), (0, 0.02, 5))]
    q, p = heterogeneity([world(g) for g in groups])
    expected = anova_oneway(groups, use_var="unequal")
    assert p == pytest.approx(expected.pvalue)
    means, weights = np.array([g.mean() for g in groups]), np.array([len(g) / g.var(ddof=1) for g in groups])
    assert q == pytest.approx(sum(weights * (means - np.average(means, weights=weights)) ** 2))
    assert np.isnan(heterogeneity([world(groups[0])])).all()


@given(st.lists(st.floats(-1, 1).filter(lambda v: abs(v) > 1e-3), min_size=2, max_size=8))
def test_sign_flips_are_scipys_permutation_test(values):
    x = np.array(values)
    exact = stats.permutation_test((x,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert sign_flip(x) == pytest.approx(exact)
    assert sign_flip(np.abs(x)) == 2 / 2 ** len(x)


def test_the_detectable_gap_has_the_power_that_statsmodels_gives_it():
    contrast = over_seeds(seeds(VALUES))
    for level, power in ((0.95, 0.8), (0.975, 0.8), (0.95, 0.5)):
        effect = contrast.detectable(power, level) / VALUES.std(ddof=1)
        assert TTestPower().power(effect, nobs=5, alpha=1 - level) == pytest.approx(power, abs=1e-3)
    assert noncentrality(np.inf, 0.8, 0.95) == pytest.approx(stats.norm.ppf(0.975) + stats.norm.ppf(0.8), abs=1e-3)
    for df in (1, 2, 4, 11):  # scipy's own noncentral t, where it is not NaN
        for level in (0.95, 0.975):
            missed = stats.nct.cdf(stats.t.ppf((1 + level) / 2, df), df, noncentrality(df, 0.8, level))
            assert np.isnan(missed) or missed == pytest.approx(0.2, abs=2e-3)
    with pytest.raises(ValueError, match="power"):
        noncentrality(4, 0.01)


def test_benjamini_hochberg_is_statsmodels():
    p = np.random.default_rng(7).random(12) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), multipletests(p, method="fdr_bh")[1])
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    lost = benjamini_hochberg([0.01, np.nan, 0.02])
    np.testing.assert_allclose(lost, [0.03, np.nan, 0.03])


def test_the_band_holds_all_rows_at_once():
    """Of correlated rows drawn here: 120 bands of 5 and 8 seeds; two standard errors are .04."""
    rng = np.random.default_rng(8)
    mixed = np.linalg.cholesky(0.8 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
    for n_seeds in (5, 8):
        held = []
        for _ in range(120):
            x = rng.standard_normal((n_seeds, 4)) @ mixed.T
            wide = simultaneous([seeds(row) for row in x.T], draws=2000)
            held.append(np.abs(stats.ttest_1samp(x, 0).statistic).max() <= wide)
        assert np.mean(held) >= 0.91


def test_max_t_of_independent_rows_is_sidaks_and_of_one_is_t():
    sidak = stats.t.ppf(1 - (1 - 0.95 ** (1 / 4)) / 2, 7)
    assert max_t(np.eye(4), 8, draws=60_000) == pytest.approx(sidak, rel=0.015)
    assert max_t(np.eye(1), 8, draws=60_000) == pytest.approx(stats.t.ppf(0.975, 7), rel=0.015)
    assert np.isnan(simultaneous([seeds([0.1])]))


def test_the_upper_limit_of_a_standard_deviation_is_passed_by_a_fifth():
    rng = np.random.default_rng(9)
    limits = [upper_sd(sd, 5) for sd in rng.normal(0, 2.5, (2500, 5)).std(axis=1, ddof=1)]
    assert np.mean(np.array(limits) >= 2.5) == pytest.approx(0.8, abs=0.02)
    with pytest.raises(ValueError, match="two seeds"):
        upper_sd(1.0, 1)


def test_lists_of_prompts_must_agree():
    with pytest.raises(ValueError, match="different lists"):
        over_seeds([constant(0.1, 3), constant(0.1, 4)])


def test_estimates_carry_what_reports_read():
    contrast = over_seeds([SeedValue(v, np.array([0.01, -0.01])) for v in VALUES])
    estimate = contrast.estimate(0.9)
    assert isinstance(contrast, Contrast)
    assert (estimate.value, estimate.n_seeds, estimate.n_prompts) == (contrast.value, 5, 2)
    assert (estimate.low, estimate.high) == contrast.interval(0.9)
    np.testing.assert_array_equal(estimate.seed_values, VALUES)
