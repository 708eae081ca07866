"""H4 on made-up runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from aligngap.experiments.base import Analysis
from aligngap.experiments.loss import FAMILIES
from aligngap.experiments.study import load_study
from aligngap.sources.recorded import RecordedSpec
from made_up import HALFWAY, KL, LOW, RISING, analysed, entries, finished

SMALL_KL = 0.1


def concluded(online: list[float], offline: list[float], shuffled: list[float], seeds: int = 3) -> Analysis:
    curves = {"online": RISING, "offline": LOW, "online_bo2": online, "offline_bo2": offline, "shuffled_bo2": shuffled}
    return analysed(
        "loss",
        [
            finished(entry, curves[family], kl_factor=SMALL_KL if family.endswith("bo2") else 1.0)
            for (family, _), entry in entries("loss", seeds).items()
        ],
    )


@pytest.mark.parametrize(
    ("online", "offline", "verdict"),
    [
        (RISING, LOW, "supported"),
        (LOW, RISING, "contradicted"),
        (RISING, RISING, "contradicted"),  # no gap, within the margin
        ([0.2, 0.4, 0.2, 0.4, 0.2, 0.4], [0.3] * 6, "inconclusive"),  # a higher peak alone
    ],
)
def test_the_verdict_rests_on_the_gap_under_best_of_2(online: list[float], offline: list[float], verdict: str) -> None:
    found = concluded(online, offline, HALFWAY)
    assert found.verdict == verdict
    assert next(iter(found.estimates)) == "average_gap"


@pytest.mark.parametrize(
    ("shuffled", "words"),
    [(RISING, "the shuffled stream matches online"), (LOW, "the shuffled stream does not match online")],
)
def test_the_shuffled_stream_is_judged_apart(shuffled: list[float], words: str) -> None:
    found = concluded(RISING, LOW, shuffled)
    assert words in found.sentence
    assert found.verdict == "supported"


def test_numbers_are_those_of_the_arms() -> None:
    found = {key: one.estimate.value for key, one in concluded(RISING, LOW, HALFWAY).estimates.items()}
    # Trapezoids of online minus offline at evenly spaced ln KL: 0, .1, .15, .2, .3, .4.
    assert found["average_gap"] == pytest.approx((0 / 2 + 0.1 + 0.15 + 0.2 + 0.3 + 0.4 / 2) / 5)
    assert found["average_gap_baseline"] == pytest.approx(found["average_gap"])
    assert found["peak_difference"] == pytest.approx(0.4)
    assert found["online_minus_shuffled_peak"] == pytest.approx(0.2)


def test_how_far_each_arm_goes_is_said() -> None:
    found = concluded(RISING, LOW, HALFWAY)
    assert found.estimates["kl_online"].estimate.value == pytest.approx(KL[-1])
    assert found.estimates["kl_online_bo2"].estimate.value == pytest.approx(KL[-1] * SMALL_KL)
    assert "online, Best-of-2 0.50 nats" in found.sentence
    assert found.figures[0].families == tuple(FAMILIES)


@pytest.mark.parametrize("missing", ["online_bo2", "offline_bo2", "shuffled_bo2"])
def test_a_missing_arm_is_no_evidence(missing: str) -> None:
    arms = [finished(entry, RISING) for (family, _), entry in entries("loss", 2).items() if family != missing]
    found = analysed("loss", arms)
    assert np.isnan(found.estimates["online_minus_shuffled" if missing[0] == "s" else "average_gap"].estimate.value)
    assert np.isnan(found.estimates[f"kl_{missing}"].estimate.value)
    assert f"{FAMILIES[missing]} (no data)" in found.sentence
    assert found.verdict == ("contradicted" if missing == "shuffled_bo2" else "inconclusive")


def test_the_stream_is_best_of_2s_own_and_all_else_is_the_baselines() -> None:
    arms = {family: entry.stage for (family, _), entry in entries("loss", 1).items()}
    assert set(arms) == set(FAMILIES)
    assert arms["shuffled_bo2"].recorded == arms["online_bo2"]
    assert arms["shuffled_bo2"].source == RecordedSpec(order="uniform")
    assert arms["offline_bo2"].recorded == arms["offline"].recorded
    for family, arm in arms.items():
        assert arm.loss.name == ("best_of_2" if family.endswith("bo2") else "ipo")
        assert (arm.optim, arm.keep) == (arms["online"].optim, arms["online"].keep)


def test_the_shipped_study_runs_it() -> None:
    assert load_study("loss").experiments == ("loss",)
