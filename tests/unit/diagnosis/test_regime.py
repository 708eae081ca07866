"""The regime from made-up numbers: every outcome, both sides of its thresholds, and no outcome from no data."""

from __future__ import annotations

from typing import Any

import pytest

from aligngap.diagnosis.numbers import UNKNOWN, Measurement
from aligngap.diagnosis.regime import Signs, decide


def number(value: float, half: float = 0.03) -> Measurement:
    return Measurement(value, value - half, value + half, 300)


def signs(nearer: float, farther: float, **changes: Any) -> Signs:
    given = {
        "prompts": 512,
        "nearer": number(nearer),
        "farther": number(farther),
        "lead": number(farther - nearer),
        "quality": UNKNOWN,
        "covered": number(1.0, 0.02),
        "unlikely": number(0.01, 0.005),
        "likely": number(0.01, 0.005),
    }
    return Signs(**{**given, **changes})


@pytest.mark.parametrize(
    ("nearer", "farther", "name"),
    [
        (0.50, 0.50, "on_policy"),
        (0.50, 0.56, "on_policy"),
        (0.50, 0.58, "undecided"),  # its interval reaches beyond 60%
        (0.60, 0.70, "one_side_near"),
        (0.66, 0.95, "one_side_near"),
        (0.66, 0.67, "undecided"),  # the lead may be 0, and the farther below 65%
        (0.705, 0.95, "between"),  # beyond 2/3: no answer need be near
        (0.68, 0.95, "one_side_near"),
        (0.72, 0.73, "between"),
        (0.77, 0.80, "between"),  # its interval begins below 75%
        (0.79, 0.80, "far_unjudged"),
        (0.99, 1.00, "far_unjudged"),
    ],
)
def test_where_the_answers_lie(nearer: float, farther: float, name: str) -> None:
    assert decide(signs(nearer, farther)).name == name


@pytest.mark.parametrize(
    ("quality", "name"), [(0.60, "far_better"), (0.52, "far_not_better"), (0.30, "far_not_better")]
)
def test_quality_decides_among_what_is_far(quality: float, name: str) -> None:
    assert decide(signs(0.9, 0.95, quality=number(quality))).name == name


def test_wide_intervals_and_few_prompts_decide_nothing() -> None:
    wide = signs(0.85, 0.85)._replace(nearer=number(0.85, 0.2), farther=number(0.85, 0.2))
    assert decide(wide).name == "undecided"
    few = decide(signs(0.99, 0.99, prompts=99))
    assert few.name == "undecided"
    assert "fewer than 100" in few.evidence[0]
    assert decide(signs(0.5, 0.5)._replace(nearer=UNKNOWN, farther=UNKNOWN, lead=UNKNOWN)).name == "undecided"


def test_what_speaks_against_is_said() -> None:
    found = decide(signs(0.5, 0.52, quality=number(0.7), unlikely=number(0.2), covered=number(0.8, 0.02)))
    assert found.name == "on_policy"
    assert len(found.against) == 3
    assert any("less likely" in line for line in found.against)
    assert any("80.0%" in line for line in found.against)
    assert any("70.0%" in line for line in found.against)
    far = decide(signs(0.9, 0.9, quality=number(0.7)))
    assert any("70.0%" in line for line in far.evidence)
    assert any("within what it says" in line for line in far.beside)


@pytest.mark.parametrize(("nearer", "farther"), [(0.5, 0.5), (0.6, 0.9), (0.9, 0.9), (0.72, 0.73)])
def test_our_own_finding_against_proximity_is_told_with_every_regime(nearer: float, farther: float) -> None:
    found = decide(signs(nearer, farther))
    assert "contradicts" in found.meaning
    assert any("not a forecast" in line for line in found.limits)


def test_the_verdict_carries_its_thresholds() -> None:
    found = decide(signs(0.5, 0.5)).as_json()
    assert found["thresholds"] == {
        "min_prompts": 100,
        "near": 0.60,
        "one_near": 0.72,
        "one_far": 0.65,
        "far": 0.75,
        "between": 2 / 3,
        "covered": 0.95,
        "unlikely": 0.10,
    }
    assert "without a judge" in " ".join(found["beside"])
