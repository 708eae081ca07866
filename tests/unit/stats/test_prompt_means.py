"""Means of per-prompt values that all seeds share the prompts of."""

from __future__ import annotations

import numpy as np
import pytest

from aligngap.stats.budget import Run
from aligngap.stats.intervals import intervals, prompt_means

N = 300


def values(seeds: int, mean: float = 7.0, spread: float = 0.0) -> dict[int, np.ndarray]:
    """What prompts have in common, each seed's own part, and a seed effect."""
    common = np.random.default_rng(99).normal(0, 2, N)
    rng = np.random.default_rng(0)
    return {seed: mean + common + rng.normal(0, 1, N) + spread * rng.normal() for seed in range(seeds)}


def test_one_seed_covers_prompts_only() -> None:
    found = prompt_means({"x": values(1)}, rng=np.random.default_rng(1))["x"]
    only = values(1)[0]
    assert found.value == pytest.approx(only.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * only.std() / np.sqrt(N), rel=0.1)
    assert (found.n_seeds, found.n_prompts) == (1, N)
    assert "1 seed" in found.note


def test_what_prompts_do_to_all_seeds_does_not_average_away() -> None:
    found = prompt_means({"x": values(6)}, rng=np.random.default_rng(1))["x"]
    alone = 2 * 1.96 * 2 / np.sqrt(N)  # of the common part, whose standard deviation is 2
    assert found.high - found.low > 0.9 * alone
    assert found.low < 7 < found.high
    # Nested items would see the seeds' means only, which hardly scatter.
    assert found.high - found.low > 3 * np.std([one.mean() for one in values(6).values()])


def test_it_agrees_with_the_bootstrap_of_win_rates() -> None:
    rng = np.random.default_rng(5)
    wins = {seed: (rng.random(N) < 0.3 + 0.05 * seed).astype(float) for seed in range(4)}
    runs = [Run("x", seed, np.array([1]), win[None], {"kl": np.ones((1, N))}) for seed, win in wins.items()]
    ours = prompt_means({"x": wins}, rng=np.random.default_rng(1))["x"]
    theirs = intervals({"x": runs}, lambda seed: seed["x"][0].end, rng=np.random.default_rng(1))[""]
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))


def test_missing_values_and_missing_seeds_are_counted() -> None:
    holes = values(2)
    holes[0][:10] = np.nan
    found = prompt_means({"x": holes, "none": {}}, rng=np.random.default_rng(1))
    assert found["x"].value == pytest.approx((np.nanmean(holes[0]) + holes[1].mean()) / 2)
    assert np.isnan(found["none"].value)
    assert (found["none"].n_seeds, found["none"].n_prompts) == (0, 0)
    assert "no data" in found["none"].note
    assert np.isnan(prompt_means({"x": {}}, rng=np.random.default_rng(1))["x"].low)


def test_prompts_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="share their prompts"):
        prompt_means({"x": {0: np.zeros(3)}, "y": {0: np.zeros(4)}}, rng=np.random.default_rng(1))
