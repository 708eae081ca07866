"""Means of items that belong to one seed each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aligngap.stats.intervals import FEW_SEEDS
from aligngap.stats.items import ONE_SEED, apart, item_estimate
from aligngap.stats.verdict import bootstrap_p

MEAN = 0.6


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def nested(seeds: int, items: int, spread: float, g: np.random.Generator) -> dict[int, np.ndarray]:
    """Items around their seed's own mean, which scatter with `spread` around `MEAN`."""
    return {seed: MEAN + spread * g.normal() + 0.4 * g.normal(size=items) for seed in range(seeds)}


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_several_seeds_give_the_t_interval_of_their_means(seeds: int) -> None:
    values = {seed: rng(seed).random(20 + 7 * seed) for seed in range(seeds)}
    means = np.array([found.mean() for found in values.values()])
    found = item_estimate(values, rng())
    low, high = stats.t.interval(0.95, seeds - 1, means.mean(), stats.sem(means))
    assert (found.value, found.low, found.high) == pytest.approx((means.mean(), low, high))
    assert (found.n_seeds, found.n_prompts) == (seeds, sum(map(len, values.values())))
    assert found.note == (FEW_SEEDS["t"] if seeds < 5 else "")
    np.testing.assert_allclose(found.seed_values, means)
    # Draws say the same as the interval, so p-values do, too.
    assert np.quantile(found.draws, [0.025, 0.975]) == pytest.approx([low, high], abs=0.02 * (high - low))
    assert bootstrap_p(found.draws, low) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.1), (4, 0.1), (4, 0.0), (1, 0.0)])
def test_the_interval_covers_the_truth_as_often_as_it_says(seeds: int, spread: float) -> None:
    """With and without differences between seeds: the items' own noise is counted once, not twice and not never."""
    g, tries = rng(7), 600
    hits = 0
    for _ in range(tries):
        found = item_estimate(nested(seeds, 60, spread, g), g, replicates=400)
        hits += found.low < MEAN < found.high
    assert hits / tries == pytest.approx(0.95, abs=0.03)


def test_one_seed_covers_its_items_only_and_says_so() -> None:
    x = rng(1).normal(size=400)
    found = item_estimate({3: x}, rng(), replicates=4000)
    half = 1.96 * x.std() / 20
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half), abs=0.01)
    assert (found.n_seeds, found.n_prompts, found.note) == (1, 400, ONE_SEED)


def test_missing_items_are_left_out_and_seeds_without_any_are_counted() -> None:
    x, y = np.array([0.0, 1.0, np.nan, 1.0]), np.array([0.5, np.nan])
    found = item_estimate({0: x, 1: np.array([np.nan, np.nan]), 2: y, 3: np.empty(0)}, rng())
    assert found.value == pytest.approx((2 / 3 + 0.5) / 2)  # a seed is a seed, however few its items
    assert (found.n_seeds, found.n_prompts) == (2, 4)
    assert "2 seed(s) without data" in found.note


@pytest.mark.parametrize("values", [{}, {0: np.empty(0)}, {0: np.array([np.nan])}])
def test_no_items_are_no_data(values: dict[int, np.ndarray]) -> None:
    found = item_estimate(values, rng())
    assert np.isnan([found.value, found.low, found.high]).all()
    assert (found.n_seeds, found.n_prompts, found.replicates) == (0, 0, 0)
    assert found.note.startswith("no data")


def test_seeds_that_agree_leave_no_width() -> None:
    found = item_estimate({seed: np.array([0.0, 1.0]) for seed in range(3)}, rng())
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("bad", [{"replicates": 1}, {"level": 1.0}, {"level": 0.0}])
def test_bad_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="replicates"):
        item_estimate({0: np.ones(3)}, rng(), **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [(200, 200), (400, 60)])
def test_apart_spreads_as_two_samples_do(sizes: tuple[int, int]) -> None:
    a, b = (0.9 - 0.3 * k + (0.2 + 0.4 * k) * rng(k).normal(size=size) for k, size in enumerate(sizes))
    found = item_estimate({0: apart(a, b)}, rng(), replicates=4000)
    error = np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.06)


def test_apart_of_several_seeds_is_the_t_interval_of_the_differences() -> None:
    sides = [(rng(k).random(30), rng(k + 50).random(90)) for k in range(4)]
    differences = np.array([a.mean() - b.mean() for a, b in sides])
    found = item_estimate({k: apart(a, b) for k, (a, b) in enumerate(sides)}, rng())
    expected = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    assert (found.low, found.high) == pytest.approx(expected)


def test_apart_leaves_out_what_is_missing() -> None:
    a, b = np.array([1.0, np.nan, 0.0]), np.array([np.nan, 0.25])
    assert apart(a, b).mean() == pytest.approx(0.25)
    assert len(apart(a, b)) == 3
    for pair in ((a, np.empty(0)), (np.array([np.nan]), b)):
        assert len(apart(*pair)) == 0
