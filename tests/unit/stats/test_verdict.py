import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower, zt_ind_solve_power
from statsmodels.stats.weightstats import ttost_paired

from aligngap.stats.intervals import Estimate, prompt_means
from aligngap.stats.verdict import (
    all_of,
    bootstrap_p,
    equivalence_verdict,
    holm,
    joint_verdict,
    prompts_needed,
    seeds_needed,
    sign_verdict,
    threshold_verdict,
)


def est(low, high):
    return Estimate((low + high) / 2, low, high, 5, 100, 1000, "")


@pytest.mark.parametrize(
    ("low", "high", "predicted", "verdict"),
    [
        (0.01, 0.2, 1, "supported"),
        (0.01, 0.2, -1, "contradicted"),
        (-0.2, -0.01, -1, "supported"),
        (-0.2, -0.01, 1, "contradicted"),
        (-0.1, 0.2, 1, "inconclusive"),
        (-0.04, 0.04, 1, "contradicted"),  # equivalent to no effect
        (-0.04, 0.04, -1, "contradicted"),
        (-0.04, 0.06, 1, "inconclusive"),
        (0.01, 0.02, 1, "supported"),  # small but certain
        (0.0, 0.2, 1, "inconclusive"),
        (np.nan, np.nan, 1, "inconclusive"),
    ],
)
def test_sign_verdict(low, high, predicted, verdict):
    assert sign_verdict(est(low, high), predicted, 0.05) == verdict


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ([(0.01, 0.2), (0.02, 0.03)], "supported"),
        ([(0.01, 0.2), (0.02, 0.3), (-0.2, -0.01)], "contradicted"),
        ([(-0.04, 0.04), (-0.2, -0.01)], "contradicted"),
        ([(0.01, 0.04), (-0.04, 0.04)], "contradicted"),  # all within the margin
        ([(0.01, 0.04), (0.02, 0.03)], "supported"),  # small but certain
        ([(0.01, 0.2), (-0.04, 0.04)], "inconclusive"),
        ([(0.01, 0.2), (np.nan, np.nan)], "inconclusive"),
        ([(-0.2, -0.01), (np.nan, np.nan)], "contradicted"),
    ],
)
def test_joint_verdict(parts, verdict):
    assert joint_verdict([est(*part) for part in parts], 0.05) == verdict
    assert joint_verdict([est(*part) for part in reversed(parts)], 0.05) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.04, 0.04, "supported"),
        (0.01, 0.04, "supported"),  # not zero, yet equivalent
        (-0.04, 0.06, "inconclusive"),
        (0.01, 0.06, "inconclusive"),
        (0.06, 0.2, "contradicted"),
        (-0.2, -0.06, "contradicted"),
        (np.nan, np.nan, "inconclusive"),
    ],
)
def test_equivalence_verdict(low, high, verdict):
    assert equivalence_verdict(est(low, high), 0.05) == verdict


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("centre", [0.0, 0.03, 0.045, 0.05, 0.07])
def test_equivalence_is_two_one_sided_tests(seeds, centre):
    """Without noise from prompts the interval is the t interval of the seeds, so statsmodels' paired test at 2.5% must
    say the same.
    """
    margin, spread = 0.05, 0.004
    differences = centre + spread * stats.norm.ppf((np.arange(seeds) + 0.5) / seeds)
    found = prompt_means({"": {s: np.full(40, d) for s, d in enumerate(differences)}}, rng=np.random.default_rng(0))[""]
    inside, _, _ = ttost_paired(differences, np.zeros(seeds), -margin, margin)
    assert (equivalence_verdict(found, margin) == "supported") == (inside < 0.025)
    beyond = stats.ttest_1samp(differences, margin, alternative="greater").pvalue
    assert (equivalence_verdict(found, margin) == "contradicted") == (beyond < 0.025)


def test_threshold_verdict():
    assert threshold_verdict(est(0.6, 0.7), 0.5, 1) == "supported"
    assert threshold_verdict(est(0.6, 0.7), 0.5, -1) == "contradicted"
    assert threshold_verdict(est(0.4, 0.7), 0.5, 1) == "inconclusive"
    assert threshold_verdict(est(np.nan, np.nan), 0.5, -1) == "inconclusive"


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_the_two_predictions_never_both_hold(low, width, margin):
    e = est(low, low + width)
    verdicts = {sign_verdict(e, 1, margin), sign_verdict(e, -1, margin)}
    assert verdicts != {"supported"}
    mirrored = est(-low - width, -low)
    assert sign_verdict(e, 1, margin) == sign_verdict(mirrored, -1, margin)


def test_bad_rules_are_refused():
    for call in (
        lambda: sign_verdict(est(-1, 1), 0, 0.1),
        lambda: threshold_verdict(est(np.nan, np.nan), 0, 2),
        lambda: sign_verdict(est(-1, 1), 1, -0.1),
        lambda: equivalence_verdict(est(-1, 1), 0.0),
        lambda: holm([0.5, 1.2]),
        lambda: seeds_needed(0, 0.1, 0.1),
        lambda: seeds_needed(0.1, 0.1, 0.1, shared=2),
    ):
        with pytest.raises(ValueError, match=r"must|need"):
            call()


@pytest.mark.parametrize("p", [[0.3], [0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.5], [0.0, 1.0, 0.02, 0.02, 0.011]])
def test_holm_agrees_with_statsmodels(p):
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(p):
    adjusted = holm(p)
    for level in (0.05, 0.3):
        rejected = set()
        for rank, i in enumerate(np.argsort(p)):
            if p[i] * (len(p) - rank) > level:
                break
            rejected.add(int(i))
        assert rejected == set(np.flatnonzero(adjusted <= level).tolist())


def test_holm_counts_the_untestable():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.03, np.nan, 0.08])
    assert len(holm([])) == 0


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (["supported", "supported"], "supported"),
        (["supported", "inconclusive"], "inconclusive"),
        (["inconclusive", "contradicted"], "contradicted"),
        (["supported", "contradicted"], "contradicted"),
    ],
)
def test_all_of_needs_every_part(parts, verdict):
    assert all_of(parts) == verdict


def test_all_of_nothing_is_no_finding():
    with pytest.raises(ValueError, match="at least one part"):
        all_of([])


def test_bootstrap_p():
    draws = np.arange(-4, 95, dtype=float)  # 99 draws, 5 at or below 0
    assert bootstrap_p(draws) == pytest.approx(2 * 6 / 100)
    assert bootstrap_p(-draws) == bootstrap_p(draws)
    assert bootstrap_p(draws + 1000) == pytest.approx(0.02)  # never 0
    assert bootstrap_p(np.zeros(10)) == 1
    assert np.isnan(bootstrap_p(np.array([np.nan])))
    normal = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000) + 2.0
    assert bootstrap_p(normal) == pytest.approx(2 * stats.norm.sf(2.0), abs=2e-4)


@pytest.mark.parametrize(("gap", "sd", "power"), [(0.05, 0.05, 0.8), (0.05, 0.03, 0.9), (-0.02, 0.05, 0.8)])
def test_seeds_needed_agrees_with_statsmodels(gap, sd, power):
    exact = TTestPower().solve_power(effect_size=abs(gap) / sd, power=power, alpha=0.05)
    assert seeds_needed(gap, sd, 0.0, power) == int(np.ceil(exact))
    split = sd * np.sqrt(0.5)
    assert seeds_needed(gap, split, split, power) == int(np.ceil(exact))


@pytest.mark.parametrize("power", [0.8, 0.95])
def test_prompts_needed_agree_with_statsmodels(power):
    sd, n, gap = 0.5, 400, 0.03
    exact = zt_ind_solve_power(gap / sd, alpha=0.05, power=power, ratio=0)
    assert prompts_needed(gap, sd / np.sqrt(n), n, power) == int(np.ceil(exact))


@pytest.mark.parametrize(("sd", "se"), [(0.03, 0.01), (0.02, 0.02)])
def test_the_seeds_needed_do_resolve_the_gap(sd, se):
    """Of simulated studies whose prompts are common to all seeds, about as many find the gap as were asked for."""
    gap, g, tries = 0.07, np.random.default_rng(3), 4000
    needed = seeds_needed(gap, sd, se, shared=1.0)
    own = g.normal(gap, sd, (tries, needed)) + g.normal(0, se, (tries, 1))
    t = stats.t.ppf(0.975, needed - 1) * own.std(axis=1, ddof=1) / np.sqrt(needed)
    half = np.sqrt(t**2 + (1.96 * se) ** 2)  # the sum's interval, to first order
    assert 0.76 < np.mean(own.mean(axis=1) > half) < 0.95


def test_seeds_needed_at_the_limits():
    assert seeds_needed(0.1, 0.0, 0.0) == 2
    assert seeds_needed(0.1, 1e-4, 0.0) == 2
    assert seeds_needed(0.001, 0.5, 0.0) is None
    assert seeds_needed(0.05, 0.03, 0.02, shared=1.0) is None  # shared prompts set a floor that seeds do not lower
    some = seeds_needed(0.1, 0.03, 0.02, shared=1.0)
    assert some is not None
    assert some >= seeds_needed(0.1, 0.03, 0.02)
    assert seeds_needed(np.nan, 0.1, 0.1) is None
