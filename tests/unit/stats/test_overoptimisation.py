import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import curve_fit

from aligngap.stats.budget import Run
from aligngap.stats.overoptimisation import fit, overoptimisation


def law(d, a, b):
    return d * (a - b * np.log(d))


WIDE = np.geomspace(0.2, 60, 12)


def runs(a, b, seeds=3, n=200, noise=0.0, kl=WIDE):
    out = []
    for seed in range(seeds):
        g = np.random.default_rng(seed)
        mean = 0.5 + law(np.sqrt(kl), a, b)
        win = np.clip(mean[:, None] + noise * g.normal(size=(len(kl), n)), 0, 1)
        out.append(Run("arm", seed, np.arange(len(kl)), win, {"kl": np.repeat(kl[:, None], n, 1)}))
    return out


@given(st.floats(-1, 1), st.floats(0.05, 1))
def test_exact_points_give_back_the_law(a, b):
    kl = np.geomspace(0.1, 50, 8)
    f = fit(kl, law(np.sqrt(kl), a, b))
    assert (f.a, f.b) == pytest.approx((a, b), abs=1e-8)


def test_noisy_fit_agrees_with_scipy():
    g = np.random.default_rng(0)
    kl = np.geomspace(0.2, 40, 20)
    y = law(np.sqrt(kl), 0.2, 0.1) + g.normal(0, 0.02, 20)
    f = fit(kl, y)
    (a, b), _ = curve_fit(law, np.sqrt(kl), y)
    assert (f.a, f.b) == pytest.approx((a, b), rel=1e-5)


def test_points_near_zero_and_missing_ones_are_dropped():
    kl = np.array([0.0, 0.08, 1.0, 2.0, 4.0, np.nan, 9.0])
    y = law(np.sqrt(np.maximum(kl, 0.01)), 0.3, 0.1)
    y[-1] = np.nan
    y[:2] = 99.0
    f = fit(kl, y)
    assert (f.a, f.b) == pytest.approx((0.3, 0.1))


def test_undetermined_fits_are_nan():
    assert np.isnan(fit(np.array([1.0, 4.0]), np.array([0.1, 0.2]))).all()
    assert np.isnan(fit(np.full(5, 2.0), np.arange(5.0)).a)
    with pytest.raises(ValueError, match="expected"):
        fit(np.ones(3), np.ones(4))


def test_a_law_without_decline_has_a_negative_rate():
    d = np.linspace(0.5, 5, 6)
    assert fit(d**2, law(d, 0.1, -0.02)).b == pytest.approx(-0.02)


def test_overoptimisation_recovers_the_law_over_seeds():
    result = overoptimisation(runs(0.15, 0.07, noise=0.05), np.random.default_rng(0), replicates=200)
    assert result["a"].low < 0.15 < result["a"].high
    assert result["b"].low < 0.07 < result["b"].high
    assert result["a"].n_seeds == 3


def test_with_one_seed_the_errors_are_scipys():
    noise, n = 0.1, 900
    (single,) = runs(0.15, 0.07, seeds=1, n=n, noise=noise)
    found = overoptimisation([single], np.random.default_rng(0), replicates=2000)
    kl, win = single.amount[:, 0], single.win.mean(axis=1)
    d = np.sqrt(kl[kl >= 0.09])
    error = np.full(len(d), single.win.std(axis=1)[-len(d) :].mean() / np.sqrt(n))
    values, covariance = curve_fit(law, d, win[-len(d) :] - 0.5, sigma=error, absolute_sigma=True)
    for ours, value, variance in zip((found["a"], found["b"]), values, np.diag(covariance), strict=True):
        assert ours.value == pytest.approx(value, abs=1e-5)
        assert ours.high - ours.low == pytest.approx(2 * 1.96 * np.sqrt(variance), rel=0.1)


def test_too_few_points_is_no_data():
    result = overoptimisation(runs(0.1, 0.05, kl=np.array([1.0, 2.0])), np.random.default_rng(0), replicates=20)
    assert np.isnan(result["a"].value)
    assert "no data" in result["a"].note
    assert overoptimisation([], np.random.default_rng(0), replicates=20)["a"].note == "no data"
