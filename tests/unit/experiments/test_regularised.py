"""Regularised offline training, on made-up runs whose truth is known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.regularised import FAMILIES, VARIANTS, with_sft
from aligngap.experiments.study import load_study
from aligngap.train.loop import LossSpec
from made_up import HALFWAY, LOW, RISING, analysed, entries, finished

PLAIN = {"online": RISING, "online_dpo": RISING, "offline": LOW, "offline_dpo": LOW}
DRIFT = {"online": -5.0, "online_dpo": -5.0, "offline": -3.0, "offline_dpo": -4.0} | dict.fromkeys(VARIANTS, -1.0)
NEARLY_LOW = [0.1, 0.11, 0.16, 0.21, 0.22, 0.23]


def concluded(changes: Mapping[str, list[float]], drift: Mapping[str, float] | None = None, seeds: int = 1) -> Analysis:
    curves = PLAIN | dict.fromkeys(VARIANTS, NEARLY_LOW) | changes
    drifts = DRIFT | (drift or {})
    found = entries("regularised", seeds).items()
    arms = [finished(entry, curves[family], drift=drifts[family]) for (family, _), entry in found]
    return analysed("regularised", arms)


@pytest.mark.parametrize(
    ("changes", "drift", "verdict"),
    [
        ({}, {}, "supported"),
        ({"offline_dpo_sft": RISING}, {}, "contradicted"),  # one that closes the gap is enough
        ({"offline_dpo_sft": HALFWAY}, {}, "inconclusive"),  # one at about half leaves it open
        ({}, {"offline_sft": -3.5}, "inconclusive"),  # a term that did not lift the winners tests nothing
        ({"offline": RISING}, {}, "inconclusive"),  # no gap, so no share of it
    ],
)
def test_verdicts(changes: dict[str, list[float]], drift: dict[str, float], verdict: str) -> None:
    assert concluded(changes, drift).verdict == verdict


def test_the_first_estimate_is_the_variant_that_closes_most() -> None:
    found = concluded({"offline_dpo_positive": HALFWAY}).estimates
    first = next(iter(found.values()))
    assert "DPO-positive" in first.label
    assert first.estimate == found["share_offline_dpo_positive"].estimate
    assert first.estimate.value == pytest.approx(0.47 / 0.95)  # areas above offline, by trapezoids
    assert found["share_offline_sft"].estimate.value < 0.15


def test_each_variant_is_compared_under_its_own_loss() -> None:
    found = concluded({"online_dpo": HALFWAY, "offline_dpo_sft": HALFWAY}).estimates
    assert found["share_offline_dpo_sft"].estimate.value == pytest.approx(1)
    assert found["share_offline_sft"].estimate.value < 0.15
    assert found["raised_offline_dpo_sft"].estimate.value == pytest.approx(3)
    assert found["raised_offline_sft"].estimate.value == pytest.approx(2)


def test_holm_asks_more_of_three_than_of_one() -> None:
    """The adjusted p in the sentence is at least the number of variants times the smallest there is."""
    found = concluded({}, seeds=5)
    smallest = 3 * 2 / 201
    assert found.sentence.count(f"p = {smallest:.3f}") == 3
    assert found.verdict == "supported"


def test_drift_is_the_last_steps_of_the_primary_split_without_ties() -> None:
    found = concluded({}, seeds=2)
    for family, value in DRIFT.items():
        estimate = found.estimates[f"drift_{family}"].estimate
        assert (estimate.value, estimate.n_seeds) == (pytest.approx(value), 2)
        assert estimate.n_prompts == 99
    curve = [point for point in found.figures[1].points if point.series == "offline" and point.seed == 0]
    assert [point.x for point in curve] == [1, 2, 3, 4, 5, 6]
    assert [point.y for point in curve] == pytest.approx([-0.5, -1, -1.5, -2, -2.5, -3])


@pytest.mark.parametrize("missing", list(FAMILIES))
def test_a_missing_arm_is_no_evidence(missing: str) -> None:
    curves = PLAIN | dict.fromkeys(VARIANTS, NEARLY_LOW)
    arms = [
        finished(entry, curves[family], drift=DRIFT[family])
        for (family, _), entry in entries("regularised", 2).items()
        if family != missing
    ]
    found = analysed("regularised", arms)
    assert found.verdict == "inconclusive"
    assert "cannot be told" in found.sentence.lower()
    assert np.isnan(found.estimates[f"drift_{missing}"].estimate.value)


def test_the_sft_term_lifts_a_winner_of_eight_tokens_half_as_much_as_the_loss() -> None:
    assert with_sft(LossSpec(name="ipo", beta=0.1)).sft == pytest.approx(0.5 * 8 * 0.1)  # slope beta
    assert with_sft(LossSpec(name="dpo", beta=0.1)).sft == pytest.approx(0.5 * 8 * 0.05)  # slope beta / 2
    # Averaged over tokens, both terms are divided by the length, and it drops out.
    assert with_sft(LossSpec(name="ipo", beta=0.1, reduction="mean")).sft == pytest.approx(0.05)


def test_arms() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("regularised", 1).items()}
    assert set(arms) == set(FAMILIES)
    assert {family for family, arm in arms.items() if arm.loss.sft} == {"offline_sft", "offline_dpo_sft"}
    names = {family: arm.loss.name for family, arm in arms.items()}
    assert names["offline_dpo_positive"] == "dpo_positive"
    assert {family for family, name in names.items() if name == "dpo"} == {
        "online_dpo",
        "offline_dpo",
        "offline_dpo_sft",
    }
    assert len({arm.recorded.identity for arm in arms.values() if arm.recorded}) == 1


def test_the_shipped_study_runs_it() -> None:
    assert load_study("regularised").experiments == ("regularised",)
