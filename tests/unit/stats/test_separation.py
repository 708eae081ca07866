"""A rule that tells two kinds of things apart, on things whose kinds are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from aligngap.stats.budget import Floats
from aligngap.stats.separation import higher, separating_rule

N = 1200


def made(shift: float, seed: int = 0) -> tuple[Floats, Floats]:
    """Two things of either kind in each context; one feature of five differs; contexts differ far more."""
    rng = np.random.default_rng(seed)
    context = 30 * rng.standard_normal((N, 1, 5))
    ours, others = (context + rng.standard_normal((N, 2, 5)) for _ in range(2))
    others[:, :, 2] += shift
    return ours, others


def tried(ours: Floats, others: Floats) -> Floats:
    """Fitted on a third, tried on the rest: how often the first of others is ranked above the first of ours."""
    weights = separating_rule(ours[::3], others[::3])
    rest = np.arange(len(ours)) % 3 != 0
    return higher(others[rest, 0] @ weights, ours[rest, 0] @ weights)


@pytest.mark.parametrize("shift", [0.5, 1.0, 2.0])
def test_it_ranks_as_well_as_the_best_rule(shift: float) -> None:
    assert tried(*made(shift)).mean() == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.05)


def test_where_there_is_nothing_an_interval_over_contexts_holds_one_half_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = tried(*(part[:300] for part in made(0.0, seed)))
        held += abs(found.mean() - 0.5) < 1.96 * found.std() / np.sqrt(len(found))
    assert 180 <= held <= 200


def test_features_in_other_units_and_constant_ones_change_nothing() -> None:
    ours, others = made(1.0)
    scale = np.array([1e-3, 1, 1e4, 1, 1])
    np.testing.assert_allclose(
        separating_rule(ours * scale, others * scale) * scale, separating_rule(ours, others), atol=1e-3
    )
    still = [np.concatenate([part, np.ones((N, 2, 1))], axis=2) for part in (ours, others)]
    found = separating_rule(still[0], still[1])
    assert found[5] == 0
    np.testing.assert_allclose(found[:5], separating_rule(ours, others), atol=1e-3)


@pytest.mark.parametrize(("ours", "others"), [((4, 2, 3), (4, 2, 2)), ((4, 2, 3), (5, 2, 3)), ((0, 2, 3), (0, 2, 3))])
def test_shapes_must_fit(ours: tuple[int, ...], others: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shapes"):
        separating_rule(np.zeros(ours), np.zeros(others))


def test_higher_counts_a_tie_one_half() -> None:
    assert higher(np.array([1.0, 0.0, 2.0]), np.array([0.0, 1.0, 2.0])).tolist() == [1, 0, 0.5]
