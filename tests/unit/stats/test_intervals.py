import ast
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

import aligngap.stats
from aligngap.stats.budget import Curve, Run, common_range, curve
from aligngap.stats.estimands import (
    GAP_NAMES,
    LEANS_UP,
    PLACE,
    average_gap,
    fraction_closed,
    gap_band,
    gap_estimates,
    peak,
    select_best,
    split_prompts,
)
from aligngap.stats.intervals import FEW_SEEDS, ONE_SEED, Estimate, intervals

PATH = np.geomspace(1, 30, 6)


def rng(seed=0):
    return np.random.default_rng(seed)


def run(arm="arm", seed=0, win=0.5, n=120, noise=None, path=PATH, chance=None):
    """Bernoulli outcomes of probability `win` (or `chance` [N]); KL `path` times gamma noise."""
    g = rng([seed, sum(map(ord, arm)), 7] if noise is None else noise)
    p = np.full(n, win) if chance is None else chance
    outcome = (g.random((len(path), n)) < p).astype(float)
    return Run(
        arm,
        seed,
        np.arange(1, len(path) + 1),
        outcome,
        {"kl": np.asarray(path)[:, None] * g.gamma(4, 0.25, (len(path), n))},
    )


def flat(arm, seed, values):
    """Exact runs: one KL path for all prompts, win rate `values` [N] at each checkpoint."""
    values = np.asarray(values, float)
    shape = (len(PATH), len(values))
    return Run(
        arm, seed, np.arange(1, 7), np.broadcast_to(values, shape), {"kl": np.broadcast_to(PATH[:, None], shape)}
    )


def estimate(groups, statistic, **how):
    return intervals(groups, statistic, **how)[""]


def gap(seed):
    return average_gap(seed["a"][0], seed["b"][0])


def width(e):
    return e.high - e.low


def test_the_package_imports_nothing_else_of_the_project():
    for file in Path(aligngap.stats.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not name.startswith("aligngap") or name.startswith("aligngap.stats"), (file, name)


def test_without_prompt_noise_the_interval_is_the_t_interval_of_the_seeds():
    differences = np.array([0.1, 0.15, 0.3, 0.05])
    a = [flat("a", s, np.full(50, 0.5 + d)) for s, d in enumerate(differences)]
    b = [flat("b", s, np.full(50, 0.5)) for s in range(4)]
    e = estimate({"a": a, "b": b}, gap, rng=rng(), replicates=1000)
    low, high = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    assert e.value == pytest.approx(differences.mean())
    assert (e.low, e.high) == pytest.approx((low, high), abs=0.01 * (high - low))
    np.testing.assert_allclose(e.seed_values, differences)
    assert (e.n_seeds, e.n_prompts, e.replicates) == (4, 50, 1000)


@pytest.mark.parametrize("interval", ["t", "percentile"])
def test_with_one_seed_the_interval_is_that_of_the_prompt_mean_and_says_so(interval):
    x = rng(3).integers(0, 3, 300) / 2
    e = estimate(
        {"a": [flat("a", 0, x)], "b": [flat("b", 0, np.full(300, 0.5))]},
        gap,
        rng=rng(),
        replicates=4000,
        interval=interval,
    )
    reference = stats.bootstrap((x - 0.5,), np.mean, n_resamples=4000, method="percentile", rng=rng(1))
    assert (e.low, e.high) == pytest.approx(tuple(reference.confidence_interval), abs=0.006)
    assert e.prompt_se == pytest.approx(stats.sem(x), rel=0.08)
    assert e.note == ONE_SEED


def test_percentile_interval_is_the_plain_hierarchical_bootstrap():
    rows = rng(5).random((4, 200))
    a = [flat("a", s, rows[s]) for s in range(4)]
    b = [flat("b", s, np.zeros(200)) for s in range(4)]
    e = estimate({"a": a, "b": b}, gap, rng=rng(), replicates=4000, interval="percentile")
    g, plain = rng(9), []
    for _ in range(4000):
        seeds, prompts = g.integers(0, 4, 4), g.integers(0, 200, 200)
        plain.append(rows[np.ix_(seeds, prompts)].mean())
    assert (e.low, e.high) == pytest.approx(tuple(np.quantile(plain, [0.025, 0.975])), abs=0.004)


@pytest.mark.parametrize("name", ["average_gap", "peak_difference", "online_peak", "offline_fall", "online_at_peak"])
def test_with_one_seed_all_of_figure_1_is_scipys_bootstrap_of_whole_prompts(name):
    n = 150
    easy = rng(1).random(n)
    online, offline = (
        run(arm, chance=np.clip(easy + shift, 0, 1), n=n, path=PATH * factor)
        for arm, shift, factor in (("on", 0.1, 1), ("off", -0.1, 0.7))
    )

    def statistic(prompts):
        on, off = (
            curve(Run(r.arm, 0, r.steps, r.win[:, prompts], {"kl": r.amount[:, prompts]})) for r in (online, offline)
        )
        return {
            "average_gap": average_gap(on, off),
            "peak_difference": peak(on)[0] - peak(off)[0],
            "online_peak": peak(on)[0],
            "offline_fall": peak(off)[0] - off.end,
            "online_at_peak": peak(on)[1],
        }[name]

    ours = gap_estimates([online], [offline], rng(), replicates=2000)[name]
    reference = stats.bootstrap(
        (np.arange(n),), statistic, n_resamples=2000, vectorized=False, method="percentile", rng=rng(2)
    )
    assert ours.value == pytest.approx(statistic(np.arange(n)))
    low, high = reference.confidence_interval
    if name != "online_at_peak":  # which is left as resampled; all others are moved to the estimate
        moved = ours.value - reference.bootstrap_distribution.mean()
        low, high = low + moved, high + moved
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_several_seeds_spread_as_the_analysis_of_variance_says():
    """Of crossed seeds and prompts the grand mean's variance is (MS seed + MS prompt - MS residual) / (S N). Ours gives
    the seeds' part the tails of a t.
    """
    n_seeds, n = 6, 120
    g = rng(4)
    x = 0.5 + g.normal(0, 0.03, (n_seeds, 1)) + g.normal(0, 0.1, n) + g.normal(0, 0.12, (n_seeds, n))
    frame = pd.DataFrame({"x": x.ravel(), "s": np.repeat(np.arange(n_seeds), n), "p": np.tile(np.arange(n), n_seeds)})
    table = anova_lm(ols("x ~ C(s) + C(p)", frame).fit())
    squares = (table["sum_sq"] / table["df"]).to_dict()
    tails = (n_seeds - 1) / (n_seeds - 3)
    expected = (tails * squares["C(s)"] + squares["C(p)"] - squares["Residual"]) / (n_seeds * n)
    e = estimate(
        {"a": [flat("a", s, np.clip(x[s], 0, 1)) for s in range(n_seeds)]}, at_end, rng=rng(), replicates=20000
    )
    assert e.draws.var() == pytest.approx(expected, rel=0.06)


def at_end(seed):
    return seed["a"][0].end


def test_seeds_are_paired():
    luck = rng(2).normal(0, 0.1, 6)  # shared by the two arms of a seed
    a = [flat("a", s, np.full(80, 0.6 + luck[s])) for s in range(6)]
    b = [flat("b", s, np.full(80, 0.5 + luck[s])) for s in range(6)]
    shuffled = [flat("b", s, np.full(80, 0.5 + luck[(s + 1) % 6])) for s in range(6)]
    paired = estimate({"a": a, "b": b}, gap, rng=rng(), replicates=300)
    broken = estimate({"a": a, "b": shuffled}, gap, rng=rng(), replicates=300)
    assert paired.value == pytest.approx(broken.value) == pytest.approx(0.1)
    assert width(paired) < 1e-9
    assert width(broken) > 0.1
    # The order in which the runs are listed is not the pairing; the seed is.
    assert width(estimate({"a": a, "b": b[::-1]}, gap, rng=rng(), replicates=300)) < 1e-9


def test_prompts_are_resampled_jointly_for_arms_checkpoints_and_seeds():
    x = rng(4).random(100)
    joint = {"a": [flat("a", s, x) for s in range(3)], "b": [flat("b", s, x * 0.5) for s in range(3)]}
    same = estimate({"a": joint["a"], "b": joint["a"]}, gap, rng=rng(), replicates=200)
    assert width(same) == pytest.approx(0, abs=1e-12)
    # Prompts common to all seeds are not averaged away by seeds: 3 equal seeds are no better than 1.
    three = estimate(joint, gap, rng=rng(), replicates=2000)
    one = estimate({k: v[:1] for k, v in joint.items()}, gap, rng=rng(), replicates=2000)
    assert width(three) == pytest.approx(width(one), rel=0.1)
    permuted = {**joint, "b": [flat("b", s, rng(8).permutation(x) * 0.5) for s in range(3)]}
    assert width(estimate(permuted, gap, rng=rng(), replicates=2000)) > 1.5 * width(three)


def test_kl_is_recomputed_under_the_weights():
    kl = np.array([[1.0, 9.0], [20.0, 20.0]])
    r = Run("a", 0, np.array([1, 2]), np.full((2, 2), 0.5), {"kl": kl})
    e = estimate({"a": [r]}, lambda seed: float(np.exp(seed["a"][0].x[0])), rng=rng(), replicates=200)
    centred = set(np.round(e.draws - e.draws.min(), 6))
    assert centred == {0.0, 4.0, 8.0}  # mean KL is 1, 5 or 9


def test_noise_of_independent_seeds_is_not_counted_twice():
    # Only seed-specific noise: the t interval of the seeds is right, and adding the prompts again is a quarter wider.
    ratios = []
    for trial in range(12):
        a, b = ([run(arm, s, n=100, noise=[trial, s, k]) for s in range(6)] for k, arm in enumerate("ab"))
        e = estimate({"a": a, "b": b}, gap, rng=rng(), replicates=300)
        ratios.append(width(e) / (2 * stats.t.ppf(0.975, 5) * stats.sem(e.seed_values)))
    assert np.median(ratios) == pytest.approx(1, abs=0.08)


def test_same_generator_same_estimate_and_more_data_is_narrower():
    groups = {"a": [run("a", s, 0.7) for s in range(3)], "b": [run("b", s) for s in range(3)]}
    first, again, other = (estimate(groups, gap, rng=rng(i), replicates=100, interval="percentile") for i in (1, 1, 2))
    assert first == again
    assert first != other
    big = {"a": [run("a", 0, 0.7, n=4000)], "b": [run("b", 0, n=4000)]}
    small = {"a": [run("a", 0, 0.7, n=40)], "b": [run("b", 0, n=40)]}
    assert (
        width(estimate(big, gap, rng=rng(), replicates=200))
        < width(estimate(small, gap, rng=rng(), replicates=200)) / 5
    )


def test_notes_count_seeds():
    def note(n_a, n_b, interval="t"):
        groups = {"a": [run("a", s) for s in range(n_a)], "b": [run("b", s) for s in range(n_b)]}
        e = estimate(groups, gap, rng=rng(), replicates=50, interval=interval)
        return e.n_seeds, e.note

    assert note(1, 1) == (1, ONE_SEED)
    assert note(4, 4) == (4, FEW_SEEDS["t"])
    assert note(4, 4, "percentile") == (4, "fewer than 5 seeds: interval is narrow")
    assert note(5, 5) == (5, "")
    assert note(7, 5) == (5, "2 seed(s) not present in every arm left out")


def test_no_data_is_nan_with_a_count():
    for groups in ({"a": [], "b": []}, {"a": [run("a", 0)], "b": [run("b", 1)]}, {}):
        e = estimate(groups, gap, rng=rng(), replicates=10)
        assert np.isnan([e.value, e.low, e.high]).all()
        assert e.n_seeds == 0
        assert e.note.startswith("no data")


def test_seeds_without_common_range_are_counted_not_hidden():
    far = PATH * 1e4
    a = [run("a", s) for s in range(3)]
    b = [run("b", 0), run("b", 1), run("b", 2, path=far)]
    e = estimate({"a": a, "b": b}, gap, rng=rng(), replicates=50)
    assert e.n_seeds == 2
    assert "undefined for 1 of 3 seeds" in e.note
    nothing = estimate({"a": a[:2], "b": [run("b", 0, path=far), run("b", 1, path=far)]}, gap, rng=rng(), replicates=50)
    assert np.isnan(nothing.value)
    assert "undefined for 2 of 2 seeds" in nothing.note


def test_interval_is_withheld_when_replicates_lose_the_common_range():
    # One prompt carries all of b's KL overlap with a: about 37% of resamples miss it.
    n = 20
    kl = np.full((2, n), 1.0)
    kl[1, 0] = 100.0
    b = Run("b", 0, np.array([1, 2]), np.full((2, n), 0.5), {"kl": kl})
    a = Run("a", 0, np.array([1, 2]), np.full((2, n), 0.6), {"kl": np.repeat([[2.0], [50.0]], n, axis=1)})
    e = estimate({"a": [a], "b": [b]}, gap, rng=rng(), replicates=400)
    assert e.value == pytest.approx(0.1)
    assert np.isnan([e.low, e.high]).all()
    assert e.replicates < 400
    assert f"{400 - e.replicates} of 400 replicates undefined: no interval" in e.note


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="share their prompts"):
        estimate({"a": [run(n=10)], "b": [run(n=12)]}, gap, rng=rng())
    for bad in ({"replicates": 1}, {"level": 1.0}, {"interval": "bca"}):
        with pytest.raises(ValueError, match="replicates"):
            estimate({"a": [run()]}, gap, rng=rng(), **bad)


def test_gap_estimates_are_the_seed_means_of_the_curve_statistics():
    online, offline = ([run(arm, s, win) for s in range(3)] for arm, win in (("on", 0.7), ("off", 0.5)))
    result = gap_estimates(online, offline, rng(), replicates=60)
    assert tuple(result) == GAP_NAMES
    on, off = [curve(r) for r in online], [curve(r) for r in offline]
    assert result["average_gap"].value == pytest.approx(
        np.mean([average_gap(a, b) for a, b in zip(on, off, strict=True)])
    )
    assert result["online_peak"].value == pytest.approx(np.mean([peak(c)[0] for c in on]))
    assert result["online_fall"].value == pytest.approx(np.mean([peak(c)[0] - c.end for c in on]))
    assert result["offline_at_peak"].value == pytest.approx(stats.gmean([peak(c)[1] for c in off]))
    assert result["offline_at_peak"].low > 0
    assert result["peak_difference"].value == pytest.approx(result["online_peak"].value - result["offline_peak"].value)
    assert all(e.low <= e.value <= e.high for e in result.values())


def test_the_place_of_a_peak_is_a_checkpoints_where_one_seed_was_run():
    arms = [run(arm, 0, 0.5, n=60) for arm in ("on", "off")]
    exact = [Run(r.arm, 0, r.steps, r.win, {"kl": np.repeat(PATH[:, None], 60, 1)}) for r in arms]
    place = gap_estimates(exact[:1], exact[1:], rng(), replicates=300)["online_at_peak"]
    assert set(np.round(place.draws, 9)) <= set(np.round(PATH, 9))
    assert len(set(np.round(place.draws, 9))) > 1
    assert place.low <= place.value <= place.high


def test_the_least_exact_intervals_say_so():
    on, off = ([run(arm, s) for s in range(5)] for arm in ("on", "off"))
    notes = {name: e.note for name, e in gap_estimates(on, off, rng(), replicates=20).items()}
    assert notes["average_gap"] == notes["peak_difference"] == ""
    for arm in ("online", "offline"):
        assert notes[f"{arm}_peak"] == notes[f"{arm}_fall"] == LEANS_UP
        assert notes[f"{arm}_at_peak"] == PLACE
    assert {e.note for e in gap_estimates([], [], rng(), replicates=20).values()} == {"no data"}


def test_pooled_sweep_is_the_mean_over_configurations_never_the_maximum():
    online = [flat("on", 0, np.full(10, 0.9))]
    sweep = [flat("x", 0, np.full(10, 0.2)), flat("y", 0, np.full(10, 0.6))]
    result = gap_estimates(online, sweep, rng(), replicates=20)
    assert result["offline_peak"].value == pytest.approx(0.4)
    assert result["average_gap"].value == pytest.approx(0.5)
    far = run("z", 0, n=10, path=PATH * 1e5)
    noted = gap_estimates(online, [*sweep, far], rng(), replicates=20)["average_gap"]
    assert noted.value == pytest.approx(0.5)
    assert "1 of 3 pairs of runs share no KL range" in noted.note


def test_selection_and_report_use_different_prompts():
    selection = np.array([True] * 5 + [False] * 5)
    lucky = flat("lucky", 0, [1.0] * 5 + [0.0] * 5)
    sound = flat("sound", 0, [0.5] * 10)
    sweep = {"lucky": [lucky], "sound": [sound]}
    best = select_best({"offline": sweep, "online": sweep}, selection)["offline"]
    assert best.arm == "lucky"
    assert best.selection_peaks == {"lucky": 1.0, "sound": 0.5}
    assert [peak(curve(r))[0] for r in best.runs] == [0.0]
    assert best.runs[0].n_prompts == 5


def test_best_of_equal_arms_does_not_profit_from_noise():
    peaks = []
    for trial in range(40):
        sweep = {f"arm{i}": [run(f"arm{i}", 0, n=100, noise=[trial, i], path=[5.0])] for i in range(8)}
        best = select_best({"m": sweep}, split_prompts(100, rng(trial)))["m"]
        peaks.append((best.selection_peaks[best.arm], peak(curve(best.runs[0]))[0]))
    selected, reported = np.mean(peaks, axis=0)
    assert selected > 0.57  # the best of 8 coins on 50 tosses
    assert abs(reported - 0.5) < 4 * 0.5 / np.sqrt(40 * 50)


def test_unequal_budgets_are_refused():
    half = split_prompts(120, rng())
    assert half.sum() == 60
    one, two = {"x": [run("x")]}, {"x": [run("x")], "y": [run("y")]}
    with pytest.raises(ValueError, match="sweep budgets must be equal"):
        select_best({"online": one, "offline": two}, half)
    with pytest.raises(ValueError, match="sweep budgets must be equal"):
        select_best({"online": one, "offline": {"x": [run("x", 0), run("x", 1)]}}, half)
    lost = Run("x", 0, np.array([1]), np.full((1, 120), np.nan), {"kl": np.ones((1, 120))})
    with pytest.raises(ValueError, match="no arm has a peak"):
        select_best({"online": {"x": [lost]}}, half)


def test_band_stays_in_the_common_range_and_is_wider_than_pointwise():
    online = [run("on", s, 0.7, n=200) for s in range(6)]
    offline = [run("off", s, 0.5, n=200, path=PATH * 2) for s in range(6)]
    band = gap_band(online, offline, rng(), grid_points=9, replicates=400)
    low, high = common_range(curve(r) for r in online + offline)
    assert low <= band.x[0] < band.x[-1] <= high
    assert np.isfinite([band.value, band.low, band.high]).all()
    middle = float(band.x[4])

    def at_middle(seed: dict[str, list[Curve]]) -> float:
        return float(np.interp(middle, seed["a"][0].x, seed["a"][0].win)
                     - np.interp(middle, seed["b"][0].x, seed["b"][0].win))  # fmt: skip

    point = estimate({"a": online, "b": offline}, at_middle, rng=rng(), replicates=400)
    assert band.value[4] == pytest.approx(point.value)
    assert band.high[4] - band.low[4] > 1.1 * width(point)


def test_band_of_one_grid_point_family_equals_the_pointwise_interval():
    # The curves are flat and exact, so all grid points move together and max-t needs no correction.
    differences = [0.1, 0.2, 0.15, 0.3, 0.25]
    online = [flat("on", s, np.full(20, 0.5 + d)) for s, d in enumerate(differences)]
    offline = [flat("off", s, np.full(20, 0.5)) for s in range(5)]
    band = gap_band(online, offline, rng(), grid_points=4, replicates=1000)
    half = stats.t.ppf(0.975, 4) * stats.sem(differences)
    np.testing.assert_allclose(band.value, 0.2)
    np.testing.assert_allclose(band.high - band.value, half, rtol=0.03)


@pytest.mark.parametrize("points", [2, 6])
def test_band_over_independent_points_is_sidaks(points):
    n, path = 4000, np.geomspace(1, 30, points)
    win = (rng(3).random((points, n)) < 0.5).astype(float)
    kl = np.repeat(path[:, None], n, 1)
    online, offline = (
        Run(arm, 0, np.arange(points), w, {"kl": kl}) for arm, w in (("on", win), ("off", np.full_like(win, 0.5)))
    )
    band = gap_band([online], [offline], rng(), grid_points=points, replicates=4000)
    critical = stats.norm.ppf((1 + 0.95 ** (1 / points)) / 2)
    np.testing.assert_allclose(band.high - band.value, critical * stats.sem(win, axis=1), rtol=0.04)


def test_band_without_common_range_is_empty():
    band = gap_band([run("on")], [run("off", path=PATH * 1e6)], rng(), replicates=20)
    assert len(band.x) == len(band.value) == 0
    assert "no common KL range" in band.note
    assert gap_band([], [], rng(), replicates=20).n_seeds == 0


def test_fraction_closed():
    offline = [flat("off", s, np.full(30, 0.5)) for s in range(5)]
    online = [flat("on", s, np.full(30, 0.7 + 0.01 * s)) for s in range(5)]
    x = [flat("x", s, np.full(30, 0.55 + 0.005 * s)) for s in range(5)]
    e = fraction_closed(x, offline, online, rng(), replicates=300)
    assert e.value == pytest.approx(0.06 / 0.22)
    assert e.low < e.value < e.high
    ends = [fraction_closed(arm, offline, online, rng(), replicates=300) for arm in (offline, online)]
    assert [(f.low, f.value, f.high) for f in ends] == [pytest.approx((0, 0, 0)), pytest.approx((1, 1, 1))]


def test_fraction_closed_uses_the_range_common_to_all_three():
    def rising(arm, path, win):
        return Run(
            arm, 0, np.arange(2), np.repeat([[win[0]], [win[1]]], 9, 1), {"kl": np.repeat([[path[0]], [path[1]]], 9, 1)}
        )

    offline = [rising("off", (1, np.e**4), (0.2, 0.2))]
    online = [rising("on", (1, np.e**4), (0.2, 1.0))]  # gap .2 kappa; on [0, 2] it averages .2
    x = [rising("x", (1, np.e**2), (0.3, 0.3))]
    assert fraction_closed(x, offline, online, rng(), replicates=20).value == pytest.approx(0.5)


def test_fraction_of_no_gap_is_undefined():
    arms = [[run(name, s) for s in range(5)] for name in ("x", "off", "on")]
    e = fraction_closed(*arms, rng(), replicates=200)
    assert np.isnan([e.value, e.low, e.high]).all()
    assert "fraction undefined" in e.note
    assert fraction_closed([], arms[1], arms[2], rng(), replicates=20).note.startswith("no data")


def test_exponential_maps_value_and_interval():
    e = Estimate(0.0, -1.0, 1.0, 2, 3, 2, "", np.array([-1.0, 1.0]), np.array([0.0]), 0.1).exponential()
    assert (e.value, e.low, e.high) == pytest.approx((1, 1 / np.e, np.e))
    np.testing.assert_allclose(e.draws, [1 / np.e, np.e])
