"""Differences between runs of different seeds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aligngap.stats.budget import Curve, Run
from aligngap.stats.estimands import average_gap, peak
from aligngap.stats.intervals import Estimate
from aligngap.stats.unpaired import difference_of_intervals, unpaired_estimates

PATH = np.array([1.0, 3.0, 9.0])


def run(seed: int, win: np.ndarray) -> Run:
    """Outcomes `win` [N] at each of three checkpoints, one KL for all prompts."""
    shape = (len(PATH), len(win))
    kl = np.broadcast_to(PATH[:, None], shape)
    return Run("arm", seed, np.arange(1, 4), np.array(np.broadcast_to(win, shape)), {"kl": np.array(kl)})


def level(seed: int, share: float, n: int = 40) -> Run:
    """The same outcome on every prompt: no prompt noise."""
    return run(seed, np.full(n, share))


def statistic(a: Curve, b: Curve) -> dict[str, float]:
    return {"gap": average_gap(b, a), "peak": peak(b)[0] - peak(a)[0]}


def estimated(first: list[Run], second: list[Run], seed: int = 0, replicates: int = 400) -> dict[str, Estimate]:
    rng = np.random.default_rng(seed)
    return unpaired_estimates(first, second, statistic, ("gap", "peak"), rng=rng, replicates=replicates)


def test_without_prompt_noise_it_is_welchs_interval() -> None:
    x, y = [0.40, 0.44, 0.43, 0.41, 0.47, 0.42, 0.46], [0.50, 0.58, 0.52, 0.49, 0.53, 0.55]
    first = [level(seed, value) for seed, value in enumerate(x)]
    second = [level(seed + 10, value) for seed, value in enumerate(y)]
    welch = stats.ttest_ind(y, x, equal_var=False).confidence_interval()
    for found in estimated(first, second, replicates=2000).values():
        assert found.value == pytest.approx(np.mean(y) - np.mean(x))
        # Behrens's and Fisher's interval is a little wider than Welch's approximation of it.
        assert 1.0 <= (found.high - found.low) / (welch.high - welch.low) < 1.2
        assert found.n_seeds == 6
        assert "7 against 6" in found.note


def test_one_seed_each_covers_prompts_alone_and_says_so() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.random(200) < 0.5).astype(float), (rng.random(200) < 0.6).astype(float)
    found = estimated([run(0, a)], [run(1, b)], replicates=4000)["peak"]
    error = np.std(b - a) / np.sqrt(200)
    assert "prompts only" in found.note
    assert found.value == pytest.approx(np.mean(b) - np.mean(a))
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)


def test_the_same_runs_differ_by_nothing() -> None:
    rng = np.random.default_rng(2)
    win = (rng.random(50) < 0.5).astype(float)
    found = estimated([run(0, win)], [run(5, win)])["gap"]
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_nothing_is_nan_with_a_note() -> None:
    found = estimated([], [level(0, 0.5)])["gap"]
    assert np.isnan(found.value)
    assert found.note == "no data"
    empty = Run(
        "arm", 0, np.arange(1, 4), np.full((3, 40), 0.5), {"kl": np.zeros((3, 40))}
    )  # no KL: no place on the axis
    assert np.isnan(estimated([empty], [level(1, 0.5)])["gap"].value)


def test_prompts_must_be_shared() -> None:
    with pytest.raises(ValueError, match="share their prompts"):
        estimated([level(0, 0.5)], [level(1, 0.5, n=41)])


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "seed_sd"), [((3, 3), 0.03), ((5, 2), 0.03), ((4, 4), 0.0)])
def test_intervals_cover_a_known_difference(sizes: tuple[int, int], seed_sd: float) -> None:
    # Seeds shift the win rate, prompts are easy or hard for every run, and outcomes are Bernoulli.
    rng = np.random.default_rng(3)
    held, repetitions = 0, 150
    for _ in range(repetitions):
        easy = rng.uniform(-0.3, 0.3, 120)
        sides = []
        for size, centre in zip(sizes, (0.45, 0.5), strict=True):
            shares = np.clip(centre + rng.normal(0, seed_sd, size), 0, 1)
            sides.append([run(s, (rng.random(120) < p + easy).astype(float)) for s, p in enumerate(shares)])
        found = estimated(sides[0], sides[1], seed=int(rng.integers(1 << 30)), replicates=150)["gap"]
        held += found.low <= 0.05 <= found.high
    # 95% less three standard errors of the simulation.
    assert held / repetitions >= 0.89


def test_a_difference_of_intervals() -> None:
    first, second = (Estimate(v, v - h, v + h, 3, 100, 10, "") for v, h in ((0.2, 0.03), (0.5, 0.04)))
    assert difference_of_intervals(first, second) == pytest.approx((0.3, 0.25, 0.35))
    lacking = Estimate(0.1, np.nan, np.nan, 1, 100, 0, "")
    assert np.isnan(difference_of_intervals(lacking, second)[1])
