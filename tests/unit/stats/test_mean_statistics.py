"""Statistics of several means over prompts."""

from __future__ import annotations

import numpy as np
import pytest

from aligngap.stats.intervals import Estimate, mean_statistics, prompt_means

N = 200


def values(seeds: int) -> dict[int, np.ndarray]:
    """Two quantities a prompt."""
    return {seed: np.random.default_rng(seed).normal([[3.0], [1.0]], 1.0, (2, N)) for seed in range(seeds)}


def found(given: dict[int, np.ndarray], **settings: float) -> dict[str, Estimate]:
    def statistic(seed: int, means: np.ndarray) -> np.ndarray:
        first, second = means.T
        return np.stack([first - second, first / second], axis=1)

    rng = np.random.default_rng(1)
    return mean_statistics(given, statistic, ("difference", "ratio"), rng=rng, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("seeds", [1, 4])
def test_a_linear_statistic_is_the_mean_of_its_values(seeds: int) -> None:
    given = values(seeds)
    ours = found(given)["difference"]
    theirs = prompt_means({"": {s: v[0] - v[1] for s, v in given.items()}}, rng=np.random.default_rng(1))[""]
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high))
    assert (ours.n_seeds, ours.n_prompts, ours.note) == (theirs.n_seeds, theirs.n_prompts, theirs.note)


def test_others_have_the_spread_that_theory_gives_them() -> None:
    ours = found(values(1), replicates=4000)["ratio"]
    a, b = values(1)[0]
    error = np.std(a - ours.value * b) / b.mean() / np.sqrt(N)
    assert ours.value == pytest.approx(a.mean() / b.mean())
    assert ours.high - ours.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_missing_values_are_left_out_of_their_own_mean() -> None:
    given = values(1)
    given[0][0, :50] = np.nan
    ours = found(given)["difference"]
    assert ours.value == pytest.approx(np.nanmean(given[0][0]) - given[0][1].mean())
    assert ours.n_prompts == N


def test_undefined_and_no_data() -> None:
    nothing = {0: np.full((2, N), np.nan)}
    for given in ({}, nothing):
        for one in found(given).values():
            assert np.isnan([one.value, one.low, one.high]).all()
            assert one.n_seeds == 0
            assert "no data" in one.note


def test_prompts_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="share their prompts"):
        found({0: np.ones((2, 3)), 1: np.ones((2, 4))})
